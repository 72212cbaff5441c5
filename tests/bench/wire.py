"""Bytes on a node's link for each thing that happens to it: TLS, MQTT and all, each way, through a real broker.

    python tests/bench/wire.py [--json FILE]

One hub with its doors of TLS, one node behind a proxy that counts. A step's bytes are those from its command until the
node is at rest with it, has told so and has its receipt; what TCP and IP add is not in them. A release's file has
1 KiB, so that "roll it out" is what goes round it. Prints the table of shared/PROTOCOL.md, "What it costs".
"""

import argparse
import asyncio
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from agents import BUNDLE, PACE, QUICK, TENSOR, TIMING, Hub, Node, at_rest_with, delivered
from heliograph.lab import Proxy
from heliograph_hub.client import HubClient
from heliograph_site.agent import Agent
from heliograph_site.folder import JoinString, agent_lock
from heliograph_site.joining import join
from waits import until

MODEL = "digits"
QUIET_S = 1.0
"""Nothing more comes when nothing came for so long."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that one step took, to the node and from it."""

    step: str
    down: int
    up: int


@contextlib.asynccontextmanager
async def running(node: Node) -> AsyncIterator[Agent]:
    """Its agent, which says nothing of itself but what happens: no metrics, no check-ins."""
    stop, pace = asyncio.Event(), replace(PACE, metric_s=3600.0)
    with agent_lock(node.folder):
        deadlines = replace(QUICK, check_in_s=3600.0)
        agent = Agent(node.folder, rng=Random(7), server=node.server, deadlines=deadlines, pace=pace, timing=TIMING)
        task = asyncio.ensure_future(agent.run(stop))
        try:
            yield agent
        finally:
            stop.set()
            await task


class Bench:
    """A hub, and a node behind a proxy to each of its doors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = Hub(folder, has_tls=True)
        self.client = HubClient(str(self.hub.folder))
        self.costs: list[Cost] = []

    def operate(self, *arguments: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.hub.operate(*arguments)

    async def run(self) -> list[Cost]:
        """All steps, one after the other."""
        async with Proxy(self.hub.port) as inside, Proxy(self.hub.enroll_port) as door:
            answer = self.client.post("/v1/fleet/tokens", {"site": "lab", "node": "n1", "life_s": 600})
            string = replace(JoinString.parse(answer["join"]), port=inside.port, enroll_port=door.port)
            node = Node(self.folder / "node")
            await self.count("enrol, with its certificate", door, join(string, node.folder, 0, Random(1), QUICK))
            await asyncio.to_thread(self.operate, "fleet", "assign", "lab", "canary")
            async with running(node) as agent:
                await self.count("connect, hello and reply", inside, until(lambda: agent.is_up, "inside"))
                for version in ("1.0.0", "1.1.0"):
                    await self.release(agent, inside, version)
                await self.told(agent, inside, f"deny a release ({MODEL}@1.1.0)", "1.0.0", self.deny)
                await self.count("renew the certificate", inside, self.renew(agent))
        return self.costs

    async def release(self, agent: Agent, proxy: Proxy, version: str) -> None:
        """Publishes a release in its four steps."""
        bundle, keys = self.bundle(version), self.hub.folder / "keys"
        name = f"{MODEL}@{version}"
        approvers = [part for n in (1, 2) for part in ("--key", str(keys / f"approve-{MODEL}-{n}.key"))]
        first = " (first of its model)" if version == "1.0.0" else ""
        steps: list[tuple[str, tuple[str, ...]]] = [
            ("add a release" + first, ("release", "add", str(bundle))),
            ("sign it" + first, ("release", "sign", name, "--key", str(keys / f"sign-{MODEL}.key"))),
            ("approve it, 2 signatures" + first, ("release", "approve", name, *approvers)),
        ]
        for step, arguments in steps:
            await self.count(step, proxy, asyncio.to_thread(self.operate, *arguments))
        start = ("rollout", "start", name)
        await self.told(agent, proxy, "roll it out, 1 KiB" + first, version, lambda: self.operate(*start))

    async def told(self, agent: Agent, proxy: Proxy, step: str, version: str, act: Callable[[], None]) -> None:
        """A step that ends when the node serves a version and has said so."""

        async def acted() -> None:
            await asyncio.to_thread(act)
            await until(at_rest_with(agent, MODEL, version), "at rest", 60.0)
            await until(lambda: delivered(agent), "told", 60.0)

        await self.count(step, proxy, acted())

    def deny(self) -> None:
        """By one key of role deny."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.hub.deny(f"{MODEL}@1.1.0", 1)

    async def renew(self, agent: Agent) -> None:
        """As by the last third of a certificate's life."""
        link: Any = agent._link
        await link._renewal.run(lambda data: link.publish("renew", data), 10.0)

    async def count(self, step: str, proxy: Proxy, doing: Coroutine[Any, Any, Any]) -> None:
        """Keeps what the step costs, until the link is quiet."""
        down, up = proxy.bytes_down, proxy.bytes_up
        await doing
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < QUIET_S:
            if proxy.bytes_down + proxy.bytes_up != seen:
                seen, since = proxy.bytes_down + proxy.bytes_up, time.monotonic()
            await asyncio.sleep(0.02)
        self.costs.append(Cost(step, proxy.bytes_down - down, proxy.bytes_up - up))

    def bundle(self, version: str) -> Path:
        """A release folder whose model is 1 KiB of chance."""
        folder = self.folder / f"bundle-{version}"
        folder.mkdir()
        (folder / "model.tflite").write_bytes(Random(version).randbytes(1024))
        (folder / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
        (folder / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
        text = BUNDLE.format(model=MODEL, version=version, soak=0, fail_mode="safe")
        (folder / "release.toml").write_text(text)
        return folder


def table(costs: list[Cost]) -> str:
    """In Markdown."""
    lines = ["| step | to the node | from it |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {cost.step} | {cost.down:,} | {cost.up:,} |" for cost in costs)])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="heliograph-wire-") as name:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            bench = Bench(Path(name))
        try:
            costs = asyncio.run(bench.run())
        finally:
            bench.hub.stop()
    print(table(costs))
    if arguments.json:
        arguments.json.write_text(json.dumps([{"step": c.step, "down": c.down, "up": c.up} for c in costs], indent=1))


if __name__ == "__main__":
    main()
