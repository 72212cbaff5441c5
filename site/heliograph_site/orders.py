"""What people order of this node: the commands of its assignment, and what its site does by itself.

A command is a level with a number: it stands in the assignment until the node has said that it is done. An order
changes what a machine does only by a happening; whether anything follows from it is the machine's to say, by the
fallback rule.

Rule 1: each number is carried out once. It is written down as done before anything is done: a command that a kill cut
    short isn't repeated, which might go back twice; it is told as interrupted, and can be given again.
Rule 2: every order ends in one audit record, `ordered`: whose it was, what, and what came of it or why nothing did.
Rule 3: a site does what policy gives it authority for (`heliograph.rules`); a refusal names policy and number.
Rule 4: a number counts as done as long as the keys that signed its assignment may assign: who stole one can't use up
    the numbers of those who come after.
Rule 5: pins and what a site holds only restrict: nothing new of the model is begun; what serves goes on.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

from heliograph import rules
from heliograph.deadlines import Deadlines
from heliograph.documents import COMMAND_KINDS, Assignment, Lane
from heliograph.errors import RefusedError
from heliograph.policy import Policy
from heliograph.rules import Action, Who
from heliograph.wire import pack, unpack
from heliograph_site.happenings import CalledOff, Directed, Happening, Recalled, StandIn
from heliograph_site.journal import Journal
from heliograph_site.memory import UNDER_WAY, Memory
from heliograph_site.surroundings import Pace, Switched

log = logging.getLogger("heliograph.agent")

DRILL_BEGUN, DRILL_OVER = "a drill", "the drill is over"
MAX_REASON = 200


class Node(Protocol):
    """What orders need of the agent."""

    journal: Journal

    @property
    def memories(self) -> Mapping[str, Memory]:
        """What each machine remembers."""

    @property
    def switched(self) -> Mapping[str, Switched]:
        """The last switch of each model."""

    @property
    def assigned(self) -> Assignment | None:
        """What this node is."""

    @property
    def assigned_by(self) -> tuple[bytes, ...]:
        """The ids of the keys that signed that, if they still may."""

    def may_assign(self, keyids: Collection[bytes]) -> bool:
        """Whether these keys together may say what this node is."""

    def policy_of(self, model: str) -> Policy:
        """The policy in force for a model."""

    def record(self, lane: Lane, kind: str, body: dict[str, Any]) -> None:
        """Keeps for the hub what happened."""

    def collect(self) -> None:
        """Drops from the disk what no model needs."""

    async def tell_all(self) -> None:
        """Has everything reported now."""

    async def derive(self) -> None:
        """Has the levels of every model looked at again."""


class Orders:
    """Carries out what is ordered, one after the other.

    Args:
        deliver: has a machine take a happening, when its turn comes; returns whether anything followed from it.
    """

    def __init__(
        self,
        node: Node,
        deliver: Callable[[str, Happening], Awaitable[bool]],
        deadlines: Deadlines,
        pace: Pace,
    ) -> None:
        """Reads the journal; nothing is done before `run`."""
        self._node, self._deliver, self._deadlines, self._pace = node, deliver, deadlines, pace
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._drills: set[str] = set()
        journal = node.journal
        self._done: dict[tuple[bytes, ...], int] = {
            tuple(keyids): number for number, keyids in unpack(journal.state("done-by") or pack([]))
        } or {(): journal.counter("done")}
        self.holds: dict[str, str] = dict(unpack(journal.state("holds") or pack({})))
        """Models that the site holds, and why."""

    @property
    def done(self) -> int:
        """Highest number of a command that was carried out or refused, as far as its signers still may assign."""
        return max(
            (number for keyids, number in self._done.items() if not keyids or self._node.may_assign(keyids)), default=0
        )

    def look(self) -> None:
        """There may be a new assignment."""
        self._wake.set()

    async def run(self) -> None:
        """Carries out commands for ever."""
        interrupted = unpack(self._node.journal.state("doing") or pack(None))
        if interrupted is not None:
            number, kind, model = interrupted
            self._tell("hub", number, kind, model, "interrupted by a restart: give it again if it is still wanted")
            self._node.journal.save_state("doing", pack(None))
        while True:
            self._wake.clear()
            # One that doesn't verify any more says what the node is, and orders nothing.
            assigned = self._node.assigned if self._node.assigned_by else None
            for command in sorted(assigned.commands if assigned else (), key=lambda command: command.number):
                if command.number > self.done:
                    await self._once(command.number, command.kind, command.model)
            await self._wake.wait()

    async def by_site(self, action: str, model: str, reason: str) -> str:
        """What a person at the site wants: `rollback`, `hold`, `resume` or `drill`; returns what came of it.

        Raises:
            RefusedError: policy gives the site no authority for it, or the machine can't, in one sentence.
        """
        words = f"by the site: {reason[:MAX_REASON]}" if reason else "by the site"
        needed: Action = "rollback" if action == "rollback" else "drill" if action == "drill" else "hold"
        if self._turn.locked():
            raise RefusedError("another order is being carried out: try again when it is done")
        async with self._turn:
            try:
                if action not in ("rollback", "hold", "resume", "drill"):
                    raise RefusedError(
                        f"{action[:40]!r} is nothing that a site can do: rollback, hold, resume or drill"
                    )
                if model not in self._node.memories:
                    raise RefusedError(f"there is no model {model[:40]!r} on this node")
                why = rules.why_may_not(self._node.policy_of(model), model, "site", needed)
                if why is not None:
                    raise RefusedError(why)
                match action:
                    case "rollback":
                        outcome = await self._rollback(model, words)
                    case "hold":
                        outcome = await self._hold(model, words)
                    case "drill":
                        outcome = await self._drill(model, 0)
                    case _:
                        outcome = await self._resume(model)
            except RefusedError as error:
                self._tell("site", 0, action[:40], model[:40], f"refused: {error}")
                raise
            self._tell("site", 0, action, model, outcome)
            return outcome

    def is_drilling(self, model: str) -> bool:
        """Whether the fallback is to stand in for a drill."""
        return model in self._drills

    def why_restricted(self, model: str, happening: Happening | None) -> str | None:
        """Why a pin or the site lets nothing be made of a directive; None: go on."""
        if not isinstance(happening, Directed) or happening.action != "install":
            return None
        if model in self.holds and rules.why_may_not(self._node.policy_of(model), model, "site", "hold") is None:
            return f"held {self.holds[model]}"  # as long as policy lets a site hold: else nobody could resume
        version = happening.target.path.rpartition("/")[2]
        assigned = self._node.assigned
        pin = assigned.pins.get(model) if assigned is not None else None
        if pin is None or pin == version:
            return None
        return f"pinned to {model}@{pin} by its assignment, the directive names {version}"

    # --- carrying out -------------------------------------------------------------------------------------------------

    async def _once(self, number: int, kind: str, model: str | None) -> None:
        async with self._turn:
            self._node.journal.save_state("doing", pack([number, kind, model or ""]))
            self._write_done(number)
            try:
                outcome = await self._carry_out(number, kind, model)
            except RefusedError as error:
                outcome = f"refused: {error}"
            self._tell("hub", number, kind, model or "", outcome)
            self._node.journal.save_state("doing", pack(None))
        await self._node.tell_all()

    def _write_done(self, number: int) -> None:
        keyids = self._node.assigned_by
        counted = {who: known for who, known in self._done.items() if who and self._node.may_assign(who)}
        unknown = self._done.get((), 0)  # from before signers were written down: theirs who sign now
        self._done = {**counted, keyids: max(number, unknown, counted.get(keyids, 0))}
        self._node.journal.save_counters(done=number)
        rows = [[known, list(who)] for who, known in self._done.items()]
        self._node.journal.save_state("done-by", pack(rows))

    async def _carry_out(self, number: int, kind: str, model: str | None) -> str:
        if kind not in COMMAND_KINDS:
            raise RefusedError(f"{kind!r} is no command that this version knows")
        if kind == "report":
            await self._node.tell_all()
            return "reported"
        if kind == "forget":
            self._node.collect()
            return "dropped what no release here needs"
        models = [model] if model is not None else sorted(self._node.memories)
        outcomes = []
        for name in models:
            if name not in self._node.memories:
                raise RefusedError(f"there is no model {name!r} on this node")
            match kind:
                case "rollback":
                    outcomes.append(await self._rollback(name, f"by command {number}"))
                case "abort":
                    outcomes.append(await self._abort(name, f"called off by command {number}"))
                case _:
                    outcomes.append(await self._drill(name, number))
        return "; ".join(outcomes) or "nothing is on this node"

    async def _rollback(self, model: str, words: str) -> str:
        memory = self._node.memories[model]
        self._require_fallback(memory)
        left = self._name(memory.active.release if memory.active else b"")
        if not await self._deliver(model, Recalled(f"rolled back {words}")):
            raise RefusedError(f"{model} is {self._node.memories[model].phase}: it can't roll back now")
        return f"rolled back from {left} to {self._name(memory.fallback.release if memory.fallback else b'')}"

    async def _abort(self, model: str, words: str) -> str:
        memory = self._node.memories[model]
        if memory.phase not in UNDER_WAY or memory.target is None:
            raise RefusedError(f"nothing of {model} is on its way")
        if not await self._deliver(model, CalledOff(words)):
            raise RefusedError(f"nothing of {model} is on its way any more")
        return f"stopped {self._name(memory.target.release)}, refused under number {memory.target.number}"

    async def _hold(self, model: str, words: str) -> str:
        self.holds[model] = words
        self._save_holds()
        await self._node.derive()
        return f"nothing new of {model} is begun until the site resumes"

    async def _resume(self, model: str) -> str:
        if self.holds.pop(model, None) is None:
            raise RefusedError(f"{model} is not held by the site")
        self._save_holds()
        await self._node.derive()
        return f"{model} takes new releases again"

    def _save_holds(self) -> None:
        self._node.journal.save_state("holds", pack(self.holds))

    async def _drill(self, model: str, number: int) -> str:
        """To the fallback and forward again, measured; under whatever load there is. `number` 0: the site's own."""
        memory = self._node.memories[model]
        self._require_fallback(memory)
        if memory.phase != "idle":
            raise RefusedError(f"{model} is {memory.phase}: a drill needs it at rest")
        active, fallback = memory.active, memory.fallback
        assert active is not None and fallback is not None, "looked at above"
        began, last = time.monotonic(), self._node.switched.get(model)
        self._drills.add(model)
        try:
            if not await self._deliver(model, StandIn("fallback", DRILL_BEGUN)):
                raise RefusedError(f"the fallback of {model} fits no policy and config in force: it can't stand in")
            back = await self._switched_to(model, fallback.release, last)
        finally:
            self._drills.discard(model)
            last = self._node.switched.get(model)
            await self._deliver(model, StandIn("", DRILL_OVER))
        forward = await self._switched_to(model, active.release, last) if back is not None else None
        body: dict[str, Any] = {
            "model": model,
            "number": number,
            "release": active.release,
            "fallback": fallback.release,
            "back_ms": back.duration_ms if back else None,
            "forward_ms": forward.duration_ms if forward else None,
            "failed": (back.failed if back else 0) + (forward.failed if forward else 0),
            "took_ms": round(1000 * (time.monotonic() - began)),
            "passed": forward is not None,
        }
        self._node.record("audit", "drill", body)
        if forward is None:
            self._node.record("incident", "drill-failed", body)
            raise RefusedError(f"the drill of {model} failed: {'forward again' if back else 'the fallback'} in vain")
        return f"back in {body['back_ms']:g} ms, forward in {body['forward_ms']:g} ms, {body['failed']} requests failed"

    async def _switched_to(self, model: str, release: bytes, before: Switched | None) -> Switched | None:
        """The switch to this release that follows `before`, once the machine is at rest; None: it never came."""
        deadline = time.monotonic() + 2 * self._deadlines.rollback_s
        while time.monotonic() < deadline:
            memory, last = self._node.memories[model], self._node.switched.get(model)
            if memory.active is None or memory.active.release != release:
                return None
            if last is not None and last is not before and last.release == release and memory.phase == "idle":
                return last
            await asyncio.sleep(self._pace.poll_s)
        return None

    def _require_fallback(self, memory: Memory) -> None:
        if memory.active is None:
            raise RefusedError(f"nothing of {memory.model} serves")
        if memory.fallback is None:
            raise RefusedError(f"{memory.model} has nothing to fall back to, by the fallback rule")
        if memory.aside:
            raise RefusedError(f"{memory.model} has stepped aside already: {memory.reason or 'its fallback serves'}")

    def _tell(self, who: Who, number: int, kind: str, model: str, outcome: str) -> None:
        log.info("%s of %s by the %s: %s", kind, model or "this node", who, outcome)
        body = {"by": who, "number": number, "command": kind, "model": model, "outcome": outcome[:400]}
        self._node.record("audit", "ordered", body)

    def _name(self, release: bytes) -> str:
        return self._node.journal.release_name(release) or release.hex()[:16]
