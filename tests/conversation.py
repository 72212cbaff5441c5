"""Conversations between a node and its hub as bytes: recorded once from the real ones, replayed against later ones.

`python tests/conversation.py VERSION` records what hub and agent of this source say to each other, without a network,
and writes `tests/data/conversations/VERSION.txt`, unless it exists: what a node in the field says and understands never
changes again, so a record is never made anew (shared/FORMATS.md, "Conversation").

A record is text: `name value` lines; then, in the order in which things happened, `! step` (what an operator did),
`> topic` (the node said) and `< topic` (the hub said), each message followed by its payload in hex, indented. Lines
that begin with `#` say in words what follows. Topics stand below the realm.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import httpx

import heliograph
from heliograph.deadlines import Deadlines
from heliograph.documents import Assignment, Enroll
from heliograph.errors import RefusedError, TransportError
from heliograph.protocol import below_realm, parse_topic, topic
from heliograph.signing import PrivateKey
from heliograph.statement import parse as parse_statement
from heliograph.statement import signed_bytes
from heliograph.wire import unpack
from heliograph_hub.api.application import application
from heliograph_hub.service import Service, init
from heliograph_site.agent import Agent
from heliograph_site.folder import JoinString
from heliograph_site.joining import _Ceremony, put_in_place
from heliograph_site.journal import Held
from heliograph_site.tasks import Pace

FOLDER = Path(__file__).parent / "data" / "conversations"
FORMAT = 1
REALM, SITE, NODE = "talk", "shop", "till"
NAMES = {"site": SITE, "node": NODE}
MODEL = "digits"
STEPS_1 = ("assign shop canary", "release 1.0.0", "token", "start", "rollout 1.0.0", "cut", "release 1.1.0",
           "rollout 1.1.0", "back", "deny 1.1.0")  # fmt: skip
"""What every hub was able to do from the first version on; while it is cut off, a node hears nothing."""
SEED = b"test-only key of the node, no se"
QUICK = Deadlines(offer_s=5.0, activation_s=5.0, receipt_s=30.0, reply_s=5.0, check_in_s=600.0)
PACE = Pace(poll_s=0.02, watch_s=0.05, metric_s=0.2, report_s=0.02, retry_s=0.1)
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}
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

Who = Literal["!", ">", "<"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened: an operator's step (`what` alone), or a message of node (`>`) or hub (`<`)."""

    who: Who
    what: str
    payload: bytes = b""


@dataclass
class Conversation:
    """A record: what it was made with, and all that happened."""

    header: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    @property
    def steps(self) -> tuple[str, ...]:
        """What the operator did, in order."""
        return tuple(line.what for line in self.lines if line.who == "!")

    def bytes_of(self, name: str) -> bytes:
        """A header field in hex."""
        return bytes.fromhex(self.header[name])

    def after(self, step: str) -> list[Line]:
        """What was said from this step on, until the next."""
        found: list[Line] = []
        begun = False
        for line in self.lines:
            if line.who == "!":
                begun = line.what == step
            elif begun:
                found.append(line)
        return found

    def blobs(self) -> dict[bytes, bytes]:
        """Every blob that went over, put together from its chunks."""
        wanted: dict[bytes, bytes] = {}
        parts: dict[bytes, dict[int, bytes]] = {}
        for line in self.lines:
            if line.what.endswith("/up/want"):
                want = unpack(line.payload)
                wanted[want["handle"]] = want["blob"]
            elif line.what.endswith("/down/chunk"):
                chunk = unpack(line.payload)
                if chunk.get("offset") is not None:
                    parts.setdefault(wanted[chunk["handle"]], {})[chunk["offset"]] = chunk["bytes"]
        return {blob: b"".join(data for _, data in sorted(held.items())) for blob, held in parts.items()}

    def text(self) -> str:
        """The record as a file."""
        rows = ["# A conversation between a node and its hub; see tests/conversation.py. Its keys are of tests only."]
        rows += [f"{name} {value}" for name, value in self.header.items()]
        for line in self.lines:
            rows.append("")
            if line.who == "!":
                rows.append(f"! {line.what}")
                continue
            rows.append(f"# {in_words(line)}"[:120])
            rows.append(f"{line.who} {line.what}")
            rows += [f"  {part}" for part in textwrap.wrap(line.payload.hex(), 116)]
        return "\n".join(rows) + "\n"


def read(path: Path) -> Conversation:
    """The record in a file."""
    found = Conversation()
    for row in path.read_text("ascii").splitlines():
        if row.startswith("  "):
            last = found.lines[-1]
            found.lines[-1] = Line(last.who, last.what, last.payload + bytes.fromhex(row))
        elif row.startswith(("! ", "> ", "< ")):
            who: Any = row[0]
            found.lines.append(Line(who, row[2:]))
        elif row and not row.startswith("#"):
            name, _, value = row.partition(" ")
            found.header[name] = value
    if found.header.get("conversation") != str(FORMAT):
        raise RefusedError(f"{path} is a conversation of format {found.header.get('conversation')}, not {FORMAT}")
    return found


def records() -> list[Path]:
    """All records there are."""
    return sorted(FOLDER.glob("*.txt"))


def in_words(line: Line) -> str:
    """One line about a message, as far as it can be read without a key."""
    found = parse_topic(f"heliograph/v1/{REALM}/{line.what}", REALM)
    if found is None or found[0].payload == "bytes":
        return f"{len(line.payload)} bytes"
    if found[0].payload == "message":
        return _shown(unpack(line.payload))
    listed = unpack(line.payload) if found[0].payload == "statements" else [line.payload]
    return " ".join(f"{(s := parse_statement(data)).type} {_shown(unpack(s.payload))}" for data in listed)


def _shown(value: Any) -> str:
    match value:
        case bytes():
            return value.hex() if len(value) <= 8 else f"{value[:4].hex()}..({len(value)})"
        case dict():
            return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_shown, value)) + "]"
    return json.dumps(value)


# --- the two ends -------------------------------------------------------------------------------------------------


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

    async def stop(self, model: str) -> None:
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
        init(folder / "hub", REALM)
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
        for full, payload in list(self.service.retained.items()):
            if self.last.get(full) != payload:
                self.last[full] = payload
                await self._hear(full, payload)

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
        while (pair := self.service.recipes.take()) is not None:
            self.service.recipes.make(pair, int(time.time()))
        assert added["new"]

    async def _step_rollout(self, version: str) -> None:
        await self.post("/v1/rollouts", {"release": f"{MODEL}@{version}"})

    async def _step_deny(self, version: str) -> None:
        body = {"type": "deny", "releases": [f"{MODEL}@{version}"], "reason": "wrong labels"}
        asked = await self.post("/v1/denials/requests", body)
        await self._signed("/v1/denials", asked, "deny")

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
            await asyncio.sleep(0)
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
        put_in_place(self._end.folder, self._string.node_file(0).encode(), self._end.key, made.trusted, held)
        return made.assignment


async def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Returns when it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        await asyncio.sleep(0.005)


def is_heard(below: str) -> bool:
    """Whether a node in canary subscribes to it."""
    kind, _, scope = below.partition("/")
    return kind not in ("desired", "policy") or scope == "canary"


# --- recording ----------------------------------------------------------------------------------------------------


class Recorder:
    """Has hub and node talk and writes it down."""

    def __init__(self, folder: Path) -> None:
        self.made = Conversation()
        self.hub = HubEnd(folder, self._hub_says)
        self.node = NodeEnd(folder, self._node_says)
        self._joining: _Joining | None = None
        self._agent: Agent | None = None
        self._to_hub: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._busy = self._is_cut = False

    def _note(self, who: Who, full: str, payload: bytes) -> None:
        self.made.lines.append(Line(who, below_realm(full), payload))

    async def _hub_says(self, full: str, payload: bytes) -> None:
        if self._is_cut or not is_heard(below_realm(full)):
            return
        self._note("<", full, payload)
        if self._joining is not None:
            await self._joining.hear(full, payload)
        if self._agent is not None:
            await self._agent.on_message(full, payload, False)

    async def _node_says(self, full: str, payload: bytes) -> None:
        self._note(">", full, payload)
        self._to_hub.put_nowait((full, payload))

    async def _carry(self) -> None:
        while True:
            full, payload = await self._to_hub.get()
            self._busy = True
            await self.hub.take(full, payload)
            self._busy = False

    async def _step(self, step: str) -> None:
        self.made.lines.append(Line("!", step))
        await self.hub.operate(step, bytes(range(32)))

    async def _rest(self, version: str | None) -> None:
        """Waits until the node serves this version and has said so, and the hub holds all its records."""
        digests = {} if version is None else {version: self.hub.service.registry.find(MODEL, version).digest.hex()}

        def rests() -> bool:
            assert self._agent is not None
            phase, active, verdict = self.node.told()
            known = self.hub.service.fleet.node(SITE, NODE).reported
            said = known.models.get(MODEL) if known else None
            is_said = said is not None and said.tuple is not None and said.phase == "idle"
            return (
                self._to_hub.empty()
                and not self._busy
                and (version is None or (phase == "idle" and verdict == "proven" and active == digests[version]))
                and (version is None or (is_said and said.tuple.release.hex() == active))  # type: ignore[union-attr]
                and all(lane.kept == 0 for lane in self._agent.outbox.status().values())
            )

        await until(rests, f"rest on {version}")

    async def record(self, steps: tuple[str, ...]) -> Conversation:
        """The whole conversation of these steps."""
        root = bytes(self.hub.service.authority.root_digest)
        self.made.header = {
            "conversation": str(FORMAT), "agent": heliograph.__version__, "realm": REALM, "site": SITE, "node": NODE,
            "key": SEED.hex(), "root": root.hex(), "token": bytes(range(32)).hex(),
        }  # fmt: skip
        self.hub.service.begin()
        carrying = asyncio.ensure_future(self._carry())
        before, after = steps[: steps.index("start")], steps[steps.index("start") :]
        try:
            for step in before:
                await self._step(step)
            await self._enroll(root)
            async with contextlib.AsyncExitStack() as stack:
                version = None
                for step in after:
                    if step == "start":
                        self.made.lines.append(Line("!", step))
                        self._agent = await stack.enter_async_context(self.node.running())
                        self.made.header["run"] = self._agent.run_id.hex()
                        await until(lambda: self._heard("reply"), "a reply")
                        continue
                    if step in ("cut", "back"):
                        self.made.lines.append(Line("!", step))
                        self._is_cut = step == "cut"
                        await self.node.set_link(not self._is_cut)
                        if self._is_cut:
                            await self._node_says(topic("gone").build(REALM, **NAMES), b"")  # the broker, for it
                    else:
                        await self._step(step)
                    version = after_step(step, version)
                    if not self._is_cut and not step.startswith("release"):
                        await self._rest(version)
                await self._rest(version)
                for release in self.hub.service.registry.all():
                    self.made.header[f"release-{release.version}"] = release.digest.hex()
        finally:
            carrying.cancel()
            self.hub.close()
        return self.made

    def _heard(self, kind: str) -> bool:
        return any(line.what.endswith(f"/down/{kind}") for line in self.made.lines)

    async def _enroll(self, root: bytes) -> None:
        self._joining = self.node.join(root, bytes(range(32)))
        for full, payload in self.hub.last.items():
            await self._joining.hear(full, payload)
        full, payload = self._joining.enroll()
        await self._node_says(full, payload)
        await until(lambda: self._joining is not None and self._joining._ceremony.enrolled.is_set(), "enrolled")
        self._joining.finish()
        self._joining = None


def after_step(step: str, before: str | None) -> str | None:
    """The version that the node is to serve when a step has had its effect."""
    name, *arguments = step.split()
    match name:
        case "rollout":
            return arguments[0]
        case "deny":
            return "1.0.0"
    return before


def main(name: str) -> None:
    """Records a conversation under this name, unless there is one."""
    path = FOLDER / f"{name}.txt"
    if path.exists():
        print(f"{path.name} exists: what was said once stays as it was")
        return
    with tempfile.TemporaryDirectory() as folder:
        made = asyncio.run(Recorder(Path(folder)).record(STEPS_1))
    FOLDER.mkdir(exist_ok=True)
    path.write_text(made.text(), "ascii")
    print(f"wrote {path.name}: {len(made.lines)} lines")


if __name__ == "__main__":
    main(sys.argv[1])
