"""Has today's hub and agent talk, and keeps what they said: `python tests/recorder.py VERSION`.

It writes `tests/data/conversations/VERSION.txt`, unless that exists: what was said once stays as it was.
"""

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

import heliograph
from conversation import FOLDER, FORMAT, MODEL, NAMES, NODE, REALM, SITE, Conversation, Line, Who
from ends import SEED, HubEnd, NodeEnd, _Joining, is_heard
from heliograph.protocol import below_realm, topic
from heliograph_site.agent import Agent
from waits import until

STEPS_1 = ("assign shop canary", "release 1.0.0", "token", "start", "rollout 1.0.0", "cut", "release 1.1.0",
           "rollout 1.1.0", "back", "deny 1.1.0")  # fmt: skip
"""What every hub was able to do from the first version on; while it is cut off, a node hears nothing."""
STEPS_2 = (
    *STEPS_1[:5],
    "set policy",
    "set config",
    "command report",
    *STEPS_1[5:-1],
    "command drill digits",
    STEPS_1[-1],
)
"""The same with control documents."""


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
        self._set = {"policy": 0, "config": 0, "command": 0}
        self.refused: dict[str, object] = {}
        """What the hub did not take of the node's messages, and why."""

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
        name, *arguments = step.split()
        if name in ("set", "command"):
            self._set["command" if name == "command" else arguments[0]] += 1
        await self.hub.operate(step, bytes(range(32)))

    async def _rest(self, version: str | None) -> None:
        """Waits until the node serves this version, with all that was set, and has said so; the hub has its records."""
        digests = {} if version is None else {version: self.hub.service.registry.find(MODEL, version).digest.hex()}

        def rests() -> bool:
            assert self._agent is not None
            phase, active, verdict = self.node.told()
            known = self.hub.service.fleet.node(SITE, NODE).reported
            said = known.models.get(MODEL) if known else None
            is_said = said is not None and said.tuple is not None and said.phase == "idle"
            if known is not None and said is not None and said.tuple is not None:
                has = {"policy": said.tuple.policy, "config": said.tuple.config, "command": known.done}
                is_said = is_said and has == self._set
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
                self.refused = {**self.hub.service.fleet.counts(SITE, NODE), **self.hub.service.fleet.uncounted()}
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
        await until(lambda: self._joining is not None and self._joining._ceremony.answered.is_set(), "enrolled")
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
        made = asyncio.run(Recorder(Path(folder)).record(STEPS_2))
    FOLDER.mkdir(exist_ok=True)
    path.write_text(made.text(), "ascii")
    print(f"wrote {path.name}: {len(made.lines)} lines")


if __name__ == "__main__":
    main(sys.argv[1])
