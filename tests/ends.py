"""A hub and a node without a network between them: the real service and the real agent, joined by function calls."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import httpx

from conversation import MODEL, NAMES, NODE, REALM, SITE
from heliograph.deadlines import Deadlines
from heliograph.documents import Assignment, Enroll
from heliograph.errors import RefusedError, TransportError
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph.statement import signed_bytes
from heliograph_hub.api.application import application
from heliograph_hub.founding import init_hub
from heliograph_hub.service import Service
from heliograph_site.agent import Agent
from heliograph_site.folder import JoinString
from heliograph_site.identity import keep_in
from heliograph_site.joining import _Ceremony, put_in_place
from heliograph_site.journal import Held
from heliograph_site.surroundings import Pace
from waits import turns

SEED = b"test-only key of the node, no se"
QUICK = Deadlines(check_in_s=600.0)
"""Nothing is lost on this road, so that no deadline is ever needed."""
PACE = Pace(poll_s=0.02, watch_s=0.05, metric_s=0.2, report_s=0.02, retry_s=0.1)
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}
DOCUMENTS = {
    "policy": 'ring = "canary"\nmax_offline_s = 86400\n[budget]\nday_bytes = 10000000\n[telemetry]\nkeep_days = 30\n',
    "config": 'model = "digits"\n[thresholds]\nsure = 0.8\n[flags]\nnight = true\n',
}
"""What `policy set` and `config set` are given."""
BUNDLE = """
model = "digits"
version = "{version}"
fail_mode = "safe"
[[variants]]
name = "plain"
files = ["model.tflite"]
[golden]
inputs = "in.json"
outputs = "out.json"
[soak]
min_s = 0
max_s = 60
"""


class Outlet:
    """Stands where the MQTT client does: what is published goes to `hear`."""

    bytes_received = bytes_sent = 0
    session_present = False
    connects = 1

    def __init__(self, hear: Callable[[str, bytes], Awaitable[None]]) -> None:
        self.connected = True
        self._hear = hear

    async def publish(self, full: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """Says it to the other end."""
        if not self.connected:
            raise TransportError("the link is cut")
        await self._hear(full, payload)

    def subscribe(self, subscriptions: Iterable[tuple[str, int]]) -> None:
        """Everything is heard anyway."""

    async def probe(self, timeout_s: float) -> None:
        """The link lives."""


class ScriptedServer:
    """A server process as the agent sees it: loads what it is told to and counts requests that nobody made."""

    def __init__(self) -> None:
        self.row: dict[str, dict[str, Any]] = {}

    async def check(self, model: str, release: bytes, files: Any = None, **given: Any) -> dict[str, Any]:
        """Loads."""
        return {"ok": True}

    async def serve(self, model: str, release: bytes, *given: Any, **named: Any) -> dict[str, Any]:
        """Switches."""
        row = self.row.get(model)
        if row is not None and row["active"] == release.hex():
            return {"ok": True, "duration_ms": None, "failed": 0, "before": None}
        self.row[model] = {"active": release.hex(), "state": "ready", "requests": 0, "errors": 0, "restarts": 0}
        return {"ok": True, "duration_ms": 1.5, "failed": 0, "before": None}

    async def tune(self, *given: Any, **named: Any) -> dict[str, Any]:
        """Takes a config."""
        return {"ok": True}

    async def drop(self, model: str, release: bytes) -> dict[str, Any]:
        """Ends a spare."""
        return {"ok": True}

    async def stop(self, model: str, release: bytes | None = None) -> None:
        """Ends all of the model."""
        self.row.pop(model, None)

    async def status(self) -> dict[str, Any]:
        """What is served."""
        for row in self.row.values():
            row["requests"] += 10
        return {"models": self.row}


class HubEnd:
    """The real hub service in a folder, its operator, and nothing between it and whoever hears what it publishes."""

    def __init__(self, folder: Path, hear: Callable[[str, bytes], Awaitable[None]]) -> None:
        init_hub(folder / "hub", REALM, int(time.time()))
        self.folder = folder
        self.service = Service(folder / "hub", 1)
        service: Any = self.service
        service.mqtt = Outlet(self._publish)
        self._hear = hear
        self.last: dict[str, bytes] = {}

    async def _publish(self, full: str, payload: bytes) -> None:
        await self._hear(full, payload)

    async def publish_retained(self) -> None:
        """Says what is retained and was not said before."""
        for full, payload in list(self.service.announcing.retained.items()):
            if self.last.get(full) != payload:
                self.last[full] = payload
                await self._hear(full, payload)
        self.service.announcing.is_named.set()

    async def take(self, full: str, payload: bytes) -> None:
        """A node's message, and every chunk that it makes due."""
        await self.service._on_message(full, payload, False)
        while (outgoing := self.service.distribution.next(time.monotonic())) is not None:
            await self._hear(topic("chunk").build(REALM, **NAMES), outgoing.payload)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """One request to the operators' API, and its answer."""
        transport = httpx.ASGITransport(app=application(self.service))
        async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
            answer = await client.post(path, json=body)
        content = answer.json()
        if not answer.is_success:
            raise RefusedError(f"{path}: {content}")
        return content

    async def operate(self, step: str, token: bytes = b"") -> None:
        """One of the operator's steps, then says what is new."""
        name, *arguments = step.split()
        await getattr(self, f"_step_{name}")(*([token] if name == "token" else arguments))
        await self.publish_retained()

    async def _step_assign(self, site: str, ring: str) -> None:
        await self.post("/v1/fleet/assignments", {"site": site, "ring": ring})

    async def _step_token(self, token: bytes) -> None:
        self.service.enrolment.add_token(SITE, NODE, token, int(time.time()), 3600)

    async def _step_start(self) -> None:
        """The node's program starts: nothing to do here."""

    async def _step_release(self, version: str) -> None:
        added = await self.post("/v1/releases", {"dir": str(bundle(self.folder / version, version))})
        for duty in ("sign", "approve"):
            asked = await self.post(f"/v1/releases/{MODEL}/{version}/requests", {"duty": duty})
            for key in self.keys(asked["keyids"])[: asked["need"]]:
                signature = key.sign(bytes.fromhex(asked["bytes"])).hex()
                body = {"keyid": key.keyid.hex(), "signature": signature}
                await self.post(f"/v1/candidates/{asked['candidate']}", body)
        while (pair := self.service.workshop.recipes.take()) is not None:
            self.service.workshop.recipes.make(pair, int(time.time()))
        assert added["new"]

    async def _step_rollout(self, version: str) -> None:
        await self.post("/v1/rollouts", {"release": f"{MODEL}@{version}"})

    async def _step_deny(self, version: str) -> None:
        body = {"type": "deny", "releases": [f"{MODEL}@{version}"], "reason": "wrong labels"}
        asked = await self.post("/v1/denials/requests", body)
        await self._signed("/v1/denials", asked, "deny")

    async def _step_set(self, kind: str) -> None:
        """A policy or config by its file, signed by the hub."""
        asked = await self.post("/v1/documents/requests", {"kind": kind, "text": DOCUMENTS[kind]})
        await self.post("/v1/documents", {"kind": kind, "payload": asked["payload"], "signatures": {}})

    async def _step_command(self, kind: str, model: str | None = None) -> None:
        await self.post(f"/v1/fleet/{SITE}/{NODE}/commands", {"kind": kind, "model": model})

    async def _signed(self, path: str, asked: dict[str, Any], type_: str) -> None:
        """Signs what was asked for with as many keys as count for it, one if one is enough, and sends it."""
        payload = bytes.fromhex(asked["payload"])
        key = self.keys(asked["keyids"])[0]
        signatures = {key.keyid.hex(): key.sign(signed_bytes(type_, payload)).hex()}
        await self.post(path, {"type": type_, "payload": asked["payload"], "signatures": signatures})

    def keys(self, keyids: list[str]) -> list[PrivateKey]:
        """The private keys of these ids: a development realm has them all."""
        return self.service.authority.keys.find({bytes.fromhex(keyid): b"" for keyid in keyids})

    def close(self) -> None:
        """Lets go of the folder."""
        self.service.database.close()


def bundle(folder: Path, version: str) -> Path:
    """A release folder of a few thousand bytes; 1.1.0 differs from 1.0.0 in a few."""
    old = Random(1).randbytes(9000)
    content = {"1.0.0": old, "1.1.0": old[:5000] + b"a few new bytes" + old[5015:]}[version]
    folder.mkdir()
    (folder / "model.tflite").write_bytes(content)
    (folder / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
    (folder / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
    (folder / "release.toml").write_text(BUNDLE.format(version=version))
    return folder


class NodeEnd:
    """The real agent of a joined folder, and nothing between it and whoever hears what it publishes."""

    def __init__(self, folder: Path, hear: Callable[[str, bytes], Awaitable[None]]) -> None:
        self.folder = folder / "node"
        self.key = PrivateKey.generate(SEED)
        self.server = ScriptedServer()
        self._outlet = Outlet(hear)
        self.agent: Agent

    def join(self, root: bytes, token: bytes) -> "_Joining":
        """What `node join` does, the messages left to the caller."""
        return _Joining(self, JoinString("hub", 1883, REALM, SITE, NODE, token, root))

    @contextlib.asynccontextmanager
    async def running(self, run: bytes | None = None) -> AsyncIterator[Agent]:
        """The agent, linked, until the end of the block; `run` names this start of it."""
        server: Any = self.server
        self.agent = agent = Agent(self.folder, rng=Random(7), server=server, deadlines=QUICK, pace=PACE)
        if run is not None:
            agent.run_id = agent._link.run_id = run
        link: Any = agent._link
        link._mqtt = self._outlet
        link.run = asyncio.Event().wait
        stop = asyncio.Event()
        task = asyncio.ensure_future(agent.run(stop))
        try:
            await turns(1)
            await agent.on_link(True)
            yield agent
        finally:
            stop.set()
            await task

    async def set_link(self, is_up: bool) -> None:
        """Cuts the link of the running agent, or gives it back."""
        self._outlet.connected = is_up
        await self.agent.on_link(is_up)

    def told(self, model: str = MODEL) -> tuple[str, str, str]:
        """(phase, active release, verdict) of the model, as `reported` would say; the release as hex."""
        memory = self.agent.memories.get(model)
        active = memory.active if memory else None
        return (
            memory.phase if memory else "",
            active.release.hex() if active else "",
            active.verdict if active else "",
        )

    def numbers(self, model: str = MODEL) -> tuple[int, int]:
        """(config, policy) that the model's tuple has."""
        memory = self.agent.memories.get(model)
        return (memory.active.config, memory.active.policy) if memory and memory.active else (0, 0)


class _Joining:
    """A node that is being joined."""

    def __init__(self, end: NodeEnd, string: JoinString) -> None:
        self._end, self._string = end, string
        self._ceremony = _Ceremony(string, end.key)

    async def hear(self, full: str, payload: bytes) -> None:
        """Takes a message of the hub."""
        await self._ceremony.on_message(full, payload, True)

    def enroll(self) -> tuple[str, bytes]:
        """The message that says: here I am."""
        enroll = Enroll(token=self._string.token, key=self._end.key.public.raw, nonce=bytes(16))
        return topic("enroll").build(REALM, **NAMES), enroll.encode()

    def finish(self) -> Assignment:
        """Puts the node's folder in place."""
        made = self._ceremony
        assert made.trusted is not None and made.assignment is not None, made._refused
        held = Held("assignment", "", made.assignment.number, made.statement)
        kept = keep_in("file", self._end.key)
        put_in_place(self._end.folder, self._string.node_file(0).encode(), kept, made.trusted, held)
        return made.assignment


def is_heard(below: str) -> bool:
    """Whether a node in canary subscribes to it."""
    kind, _, scope = below.partition("/")
    return kind not in ("desired", "policy") or scope == "canary"
