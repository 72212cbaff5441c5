"""A hub as a process and agents in this one, for tests that want neither a server process nor a model runtime."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import warm
from heliograph.cli import main
from heliograph.connection import Timing
from heliograph.deadlines import Deadlines
from heliograph.errors import RefusedError, TransportError, WaitError
from heliograph.lab import Running, free_port
from heliograph_site.agent import Agent
from heliograph_site.folder import JoinString, agent_lock
from heliograph_site.joining import join
from heliograph_site.serving.tuned import Tuned
from heliograph_site.surroundings import Pace

QUICK = Deadlines(offer_s=5.0, activation_s=5.0, receipt_s=2.0, reply_s=2.0, check_in_s=30.0, chunk_base_s=1.0)
PACE = Pace(poll_s=0.1, watch_s=0.2, metric_s=0.5, report_s=0.1, retry_s=0.2)
TIMING = Timing(connect_s=15.0, first_retry_s=0.1, longest_retry_s=0.5)
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}
BUNDLE = """
model = "{model}"
version = "{version}"
fail_mode = "{fail_mode}"
[[variants]]
name = "plain"
files = ["model.tflite"]
[golden]
inputs = "in.json"
outputs = "out.json"
[soak]
min_s = {soak}
max_s = 600
"""


class Hub:
    """A hub process and the operator in front of it."""

    def __init__(self, folder: Path, *, has_tls: bool = False) -> None:
        self.folder = folder / "hub"
        self.port = free_port()
        self.enroll_port, self.api_port = (free_port(), free_port()) if has_tls else (0, 0)
        self._lives = 0
        self.process: Running | None = None
        assert main(["hub", "init", str(self.folder), "--realm", "lab"]) == 0
        self.start()

    def start(self) -> None:
        ports = ["--plain-port", str(self.port)]
        if self.enroll_port:
            ports = ["--port", str(self.port), "--enroll-port", str(self.enroll_port)]
            ports += ["--api-port", str(self.api_port)]
        self._lives += 1  # what it said in an earlier one says nothing of this
        self._log = self.folder.with_name(f"hub-{self._lives}.log")
        self.process = warm.spawn("heliograph.cli", ["hub", "run", self.folder, *ports], self._log)
        try:
            self.process.wait_for_line("link to the broker is up")
        except WaitError:
            self.process.terminate()
            raise

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def operate(self, *args: str) -> None:
        assert main([*args, "--hub", str(self.folder)]) == 0, args

    def release(
        self,
        tmp: Path,
        model: str,
        version: str,
        content: bytes,
        soak: float = 0,
        fail_mode: str = "safe",
        *,
        is_confidential: bool = False,
    ) -> str:
        """Adds, signs, approves and rolls out to canary."""
        bundle = tmp / f"{model}-{version}"
        bundle.mkdir()
        (bundle / "model.tflite").write_bytes(content)
        (bundle / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
        (bundle / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
        text = BUNDLE.format(model=model, version=version, soak=soak, fail_mode=fail_mode)
        (bundle / "release.toml").write_text("confidential = true\n" * is_confidential + text)
        self.operate("release", "add", str(bundle))
        name, keys = f"{model}@{version}", self.folder / "keys"
        self.operate("release", "sign", name, "--key", str(keys / f"sign-{model}.key"))
        approvers = [arg for n in (1, 2) for arg in ("--key", str(keys / f"approve-{model}-{n}.key"))]
        self.operate("release", "approve", name, *approvers)
        self.operate("rollout", "start", name)
        return name

    def policy(self, tmp: Path, text: str, ring: str = "canary") -> None:
        """Sets the ring's policy."""
        file = tmp / "policy.toml"
        file.write_text(f'ring = "{ring}"\n{text}')
        self.operate("policy", "set", str(file), "--yes")

    def deny(self, name: str, *keys: int) -> None:
        """Denies a release by the deny keys of these numbers."""
        files = [arg for n in keys for arg in ("--key", str(self.folder / "keys" / f"deny-{n}.key"))]
        self.operate("release", "deny", name, *files, "--reason", "wrong labels")

    def token(self, capsys: pytest.CaptureFixture[str], name: str) -> JoinString:
        capsys.readouterr()
        self.operate("fleet", "token", name)
        return JoinString.parse(capsys.readouterr().out.strip().splitlines()[-1])

    def fleet(self, capsys: pytest.CaptureFixture[str], site: str) -> dict[str, Any]:
        capsys.readouterr()
        self.operate("fleet", "list", "--json")
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return next(row for row in rows if row["site"] == site)


class ScriptedServer:
    """A server process as the agent sees it: loads what it is told to and counts requests that nobody made."""

    def __init__(self) -> None:
        self.is_there = True
        self.refuses = ""
        self.has_traffic = True
        self.row: dict[str, dict[str, Any]] = {}
        self.fails_requests = False
        self.checked: list[bytes] = []

    def _answer(self) -> None:
        if not self.is_there:
            raise TransportError("the server can't be reached")

    async def check(self, model: str, release: bytes, files: Any = None, timeout_s: float = 60.0) -> dict[str, Any]:
        self._answer()
        self.checked.append(release)
        if self.refuses:
            raise RefusedError(self.refuses)
        return {"ok": True}

    async def serve(
        self, model: str, release: bytes, timeout_s: float = 60.0, tuned: Tuned | None = None
    ) -> dict[str, Any]:
        self._answer()
        row = self.row.get(model)
        if row is not None and row["active"] == release.hex():
            row |= (tuned or Tuned()).row() | {"tuned": (tuned or Tuned()).digest}
            return {"ok": True, "duration_ms": None, "failed": 0, "before": None}
        self.row[model] = {"active": release.hex(), "state": "ready", "requests": 0, "errors": 0, "restarts": 0}
        self.row[model] |= (tuned or Tuned()).row() | {"tuned": (tuned or Tuned()).digest}
        before = None
        if row is not None:
            answered = row["requests"] - row["errors"]
            before = {"release": row["active"], "answered": answered, "failed": row["errors"], "in_flight": 0}
        return {"ok": True, "duration_ms": 1.5, "failed": 0, "before": before}

    async def tune(self, model: str, release: bytes, tuned: Tuned) -> None:
        self._answer()
        self.row[model] |= tuned.row() | {"tuned": tuned.digest}

    async def drop(self, model: str, release: bytes) -> dict[str, Any]:
        self._answer()
        return {"ok": True}

    async def stop(self, model: str, release: bytes | None = None) -> None:
        self._answer()
        if release is not None and self.row.get(model, {}).get("active") != release.hex():
            raise RefusedError("another answers")
        self.row.pop(model, None)

    async def status(self) -> dict[str, Any]:
        self._answer()
        for row in self.row.values():
            row["requests"] += 10 * self.has_traffic
            row["errors"] += 10 * self.fails_requests
        return {"models": self.row}


class Node:
    """A joined node's folder and, while `running`, its agent in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = ScriptedServer()
        self.ahead_s = 0.0
        """How much more time has passed for it than really has."""
        self.wall: Callable[[], float] | None = None
        """Its wall clock, if it has one."""

    @contextlib.asynccontextmanager
    async def running(self, deadlines: Deadlines = QUICK) -> AsyncIterator[Agent]:
        stop = asyncio.Event()
        with agent_lock(self.folder):
            agent = Agent(
                self.folder,
                rng=Random(7),
                server=self.server,
                deadlines=deadlines,
                pace=PACE,
                timing=TIMING,
                clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + self.ahead_s,
                wall=self.wall,
            )
            task = asyncio.ensure_future(agent.run(stop))
            try:
                yield agent
            finally:
                stop.set()
                await task


def at_rest_with(agent: Agent, model: str, version: str, verdict: str = "proven") -> Callable[[], bool]:
    def holds() -> bool:
        memory = agent.memories.get(model)
        return (
            memory is not None
            and memory.phase == "idle"
            and memory.active is not None
            and agent.journal.release_name(memory.active.release) == f"{model}@{version}"
            and memory.active.verdict == verdict
        )

    return holds


def delivered(agent: Agent) -> bool:
    return all(lane.kept == 0 for lane in agent.outbox.status().values())


def enrol(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], site: str, port: int | None = None) -> Node:
    string = hub.token(capsys, f"{site}/n1")
    folder = tmp_path / "node"
    asyncio.run(join(replace(string, port=port or string.port), folder, 0, Random(1), QUICK))
    hub.operate("fleet", "assign", site, "canary")
    return Node(folder)
