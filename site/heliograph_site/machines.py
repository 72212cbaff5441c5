"""The machines of a node, one per model: what happened goes in, memory is saved, commands are performed.

`machine.step` decides and `belief` says what is wanted; what is heard from outside comes through the agent's one inbox,
so that nothing here runs twice at a time.

Rule 1: memory is on disk before its command starts.
Rule 2: one task works for a machine; a new command cancels the old one, and its own task begins with waiting for the
    end of that. The inbox doesn't wait: a thread that reads an image back ends no sooner for being cancelled.
Rule 3: what the denials held mean is worked out again after every step, what a directive means whenever a machine
    comes to rest.
Rule 4: denials are saved in the transaction that holds what every machine makes of them.
Rule 5: a fault of ours in what a model's documents mean leaves that model as it is and stops no other, nor denials; it
    is told once. Only what is worked out before anything is saved is guarded so: a command whose memory is on disk is
    started, or the agent ends and its next start begins it.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar

from heliograph.deny import DenySet
from heliograph.errors import StorageError
from heliograph_site.belief import Belief
from heliograph_site.estimate import Estimate
from heliograph_site.happenings import (
    ActiveDenied,
    ActiveLost,
    ActiveUnfit,
    Answer,
    DenialsHeld,
    Event,
    FallbackDenied,
    Happening,
    LastClosed,
    LastDenied,
    LastLost,
    LastStopped,
    LastUnfit,
    Passed,
    Returned,
    StandIn,
    Started,
    TargetDenied,
    Withdrawn,
)
from heliograph_site.journal import Journal
from heliograph_site.machine import Command, classify, end_of, matched, settled, step
from heliograph_site.memory import UNDER_WAY, Memory
from heliograph_site.outbox import Outbox
from heliograph_site.reporting import Reporter
from heliograph_site.tasks import Tasks
from heliograph_site.weighing import weigh

log = logging.getLogger("heliograph.agent")

T = TypeVar("T")
Moves = tuple[tuple[Memory, Event, Memory], ...]
OF_ACTIVE = (
    ActiveDenied, ActiveLost, ActiveUnfit, LastClosed, LastDenied, LastLost, LastStopped, LastUnfit, Returned,
)  # fmt: skip
"""What befalls the release that was active, be another on its way or not."""
END_S = 3600.0
"""What a cancelled task does in a thread ends by itself: it reads an image back, or puts one in its place, which takes
minutes on a slow card. What takes so long will not end."""
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""(work, name) -> the task that does it."""


class Machines:
    """What each model's machine remembers, and the task that works for it.

    Args:
        spawn: starts a task in the agent's group.
        deliver: puts a task's last answer (model, answer) into the inbox.
        tune: has the server compared with the pointers, soon.
        stand_in: what is to stand in for a model's committed release now.
        why_restricted: what people let nothing be made of a directive for.
        end_s: a cancelled task that hasn't ended for so long won't.
    """

    def __init__(
        self,
        journal: Journal,
        outbox: Outbox,
        time: Estimate,
        belief: Belief,
        reporter: Reporter,
        tasks: Tasks,
        spawn: Spawn,
        deliver: Callable[[str, Answer], Awaitable[None]],
        tune: Callable[[], None] = lambda: None,
        stand_in: Callable[[str], StandIn] = lambda _: StandIn("", ""),
        why_restricted: Callable[[str, Happening | None], str | None] = lambda *_: None,
        end_s: float = END_S,
    ) -> None:
        """Loads every machine's memory; nothing is done before the first `step`."""
        self._journal, self._outbox, self._time = journal, outbox, time
        self._belief, self._reporter, self._tasks = belief, reporter, tasks
        self._spawn, self._deliver, self._tune = spawn, deliver, tune
        self._stand_in, self._why_restricted = stand_in, why_restricted
        self.memories: dict[str, Memory] = {model: journal.load(model) for model in journal.models()}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ending: dict[str, dict[asyncio.Task[None], float]] = {}
        """Of each model the tasks that were cancelled and go on, and since when, by the monotonic clock."""
        self._end_s = end_s
        self._faults: set[tuple[str, str]] = set()
        """(model, what of it) whose documents met a fault of ours and were told of."""

    @property
    def is_wedged(self) -> bool:
        """Whether a task that was cancelled will not end, so that nothing more can be done for its model."""
        now = monotonic()
        return any(now - since >= self._end_s for ending in self._ending.values() for since in ending.values())

    async def begin(self, started: Started) -> None:
        """Tells every machine that the agent started, and what it has to know before anything else."""
        for model in tuple(self.memories):
            await self.step(model, started)
        await self.obey(self._belief.denials)
        await self.derive_all()

    async def derive_all(self) -> None:
        """Tells every model's machine what the documents held and its directive mean now."""
        for model, memory in tuple(self.memories.items()):
            await self._take(memory, (), None)
            held = weigh(self.memories[model], self._belief.denials)  # another policy may have another fail mode
            if classify(self.memories[model], held) is not None:
                await self.step(model, held)
        for model in tuple(self.memories):
            stand_in = self._standing(model)
            if stand_in is not None:
                await self.step(model, stand_in)
        for model in dict.fromkeys((*self._belief.models, *self.memories)):
            happening = self._directed(model)
            if happening is not None:
                await self.step(model, happening)
        self._belief.rules.leave_ring()

    def _derived(self, model: str, what: str, derive: Callable[[], T], otherwise: T) -> T:
        """What documents held mean for one model; `otherwise`, which changes nothing, if that meets a fault of ours.

        Never for denials, nor for anything that saves or starts.
        """
        try:
            return derive()
        except (sqlite3.Error, StorageError):
            raise  # memory can't be kept: nothing may be done on it
        except Exception as error:  # beside messages the one place: no model's documents may stop the others
            if (model, what) not in self._faults:
                self._faults.add((model, what))
                log.exception("%s: %s met a fault of ours; it stays as it is", model, what)
                body = {"model": model, "where": what, "reason": type(error).__name__}
                self._outbox.append("incident", "model-fault", self._time.now(), body)
                self._reporter.say()
            return otherwise

    def _matching(self, memory: Memory) -> Moves:
        """What the configs and policies held make of it."""
        return self._derived(memory.model, "its tuple", lambda: matched(memory, self._belief.rules.match), ())

    def _standing(self, model: str) -> StandIn | None:
        """What is to stand in for what it committed to; None: that can't be told."""
        return self._derived(model, "its stand-in", lambda: self._stand_in(model), None)

    def _directed(self, model: str) -> Happening | None:
        """What its directive says to it now, if that is news."""
        return self._derived(model, "its directive", lambda: self._wanted(model), None)

    def _wanted(self, model: str) -> Happening | None:
        memory = self.memories.get(model) or self._journal.load(model)
        stands_in = self._standing(model)
        if stands_in is None:
            return None  # nothing new
        stand_in = self._possible(memory, stands_in)
        if (
            isinstance(stand_in, StandIn)
            and stand_in.aside
            and (memory.aside or classify(memory, stand_in) is not None)
        ):
            self._reporter.note(model, stand_in.reason)
            return None  # nothing new until all is as it was
        happening, waiting = self._belief.wanted(model, memory)
        restricted = self._why_restricted(model, happening)
        if restricted is not None and memory.phase in UNDER_WAY:
            happening = Withdrawn(restricted)
        elif restricted is not None and happening is not None and classify(memory, happening) is not None:
            waiting, happening = restricted, None
        if memory.phase in ("idle", "stuck"):
            self._reporter.note(model, waiting)
        if happening is not None and classify(memory, happening) is not None:
            self.memories.setdefault(model, memory)
            return happening
        return None

    async def step(self, model: str, happening: Happening) -> None:
        """Saves what follows, then has it done; then looks at the denials and, at rest, at the directive again."""
        todo: Happening | None = happening
        while todo is not None:
            before = self.memories[model]
            event = classify(before, self._possible(before, todo))
            if event is None:
                return
            after, command = step(before, event)
            if after is before:
                return
            await self._take(after, ((before, event, after),), command, is_denial=isinstance(todo, DenialsHeld))
            todo = None if isinstance(todo, Started) else self._level(self.memories[model])

    async def _take(self, memory: Memory, moves: Moves, command: Command | None, *, is_denial: bool = False) -> None:
        """Saves where these moves led, with what the documents held make of it, in one transaction; has it done."""
        more = self._matching(memory)
        if not moves and not more:
            return
        after, command = end_of(more, memory, command)
        self._journal.save(after)
        self.memories[after.model] = after
        self._time.save()
        for before, event, between in moves:
            if is_denial:
                self._record_denied(before, event)
            self._record(before, event, between)
        for before, event, between in more:
            self._record(before, event, between)
        if more:
            self._tune()
        if command is not None:
            self._start(command, after)

    def _possible(self, memory: Memory, happening: Happening) -> Happening:
        """A fallback stands in only where the documents held leave it so: else the two would take turns for ever."""
        if not isinstance(happening, StandIn) or happening.aside != "fallback" or memory.aside:
            return happening
        if memory.active is None or memory.fallback is None:
            return happening
        turned, fallback = replace(memory, active=memory.fallback, fallback=memory.active), memory.fallback.release

        def is_left() -> bool:
            found = self._belief.rules.match(turned)
            return found is None or found.release == fallback

        return happening if self._derived(memory.model, "its tuple", is_left, False) else StandIn("", happening.reason)

    def _level(self, memory: Memory) -> Happening | None:
        """What the denials held, or at rest the directive, say to a machine that has just changed."""
        held = weigh(memory, self._belief.denials)
        if classify(memory, held) is not None:
            return held
        stand_in = self._standing(memory.model)
        if stand_in is not None and classify(memory, stand_in) is not None:
            return stand_in
        return self._directed(memory.model) if memory.phase in ("idle", "stuck") else None

    async def obey(self, denials: DenySet) -> None:
        """Saves denials with what every machine makes of them, in one transaction; then has it done."""
        moves: list[tuple[Memory, Memory, Command | None, tuple[Event, ...]]] = []
        for memory in self.memories.values():
            after, command, events = settled(memory, weigh(memory, denials))
            if events:
                after, command = end_of(self._matching(after), after, command)
                moves.append((memory, after, command, events))
        self._journal.save(*(after for _, after, _, _ in moves), denials=denials.to_bytes())
        self._belief.holds(denials)
        for _, after, _, _ in moves:
            self.memories[after.model] = after
        for before, after, command, events in moves:
            for event in events:
                self._record_denied(before, event)
            self._record(before, events[-1], after)
            if command is not None:
                self._start(command, after)

    def as_heard(self, model: str, happening: Happening) -> Happening:
        """A task's answer with what forbids activating at this moment, which may be later than it was given.

        If nothing does, the target's evidence is also of this moment: keys that have vouched for it since count too.
        """
        memory = self.memories[model]
        target = memory.target
        if not isinstance(happening, Passed) or target is None:
            return happening
        waits_for = self._belief.why_not_yet(model, target.release) or ""
        if waits_for:
            return replace(happening, waits_for=waits_for)
        vouchers = tuple(sorted({*target.vouchers, *self._belief.vouchers(model)}))
        self.memories[model] = replace(memory, target=replace(target, vouchers=vouchers))
        return self._belief.rules.heard(memory, happening)

    def _start(self, command: Command, memory: Memory) -> None:
        ending = self._ending.setdefault(memory.model, {})
        old = self._running.get(memory.model)
        if old is not None and not old.done():
            old.cancel()
            ending[old] = monotonic()
            old.add_done_callback(ending.pop)
        work = self._perform(command, memory, tuple(ending))
        self._running[memory.model] = self._spawn(work, f"{memory.model} {command.value}")

    async def _perform(self, command: Command, memory: Memory, before: tuple[asyncio.Task[None], ...]) -> None:
        if still := [task for task in before if not task.done()]:
            self._reporter.note(memory.model, "the end of what was under way", is_news=False)
            await asyncio.wait(still)
        event = await self._tasks.perform(command, memory)
        if event is not None:
            await self._deliver(memory.model, event)

    def _record(self, before: Memory, event: Event, after: Memory) -> None:
        way = after.target or before.target or after.active or before.active
        subject = before.active if isinstance(event, OF_ACTIVE) else way
        release = subject.release if subject else b""
        reason = str(getattr(event, "reason", ""))
        name = self._journal.release_name(release) or release.hex()[:16]
        log.info("%s: %s -> %s (%s %s) %s", after.model, before.phase, after.phase, type(event).__name__, name, reason)
        body = {
            "model": after.model,
            "from": before.phase,
            "event": type(event).__name__,
            "to": after.phase,
            "release": release,
            "reason": reason[:400],
        }
        self._outbox.append("audit", "transition", self._time.now(), body)
        if len(after.refused) and after.refused != before.refused:
            self._outbox.append("incident", "release-refused", self._time.now(), body)
        self._reporter.say()

    def _record_denied(self, before: Memory, event: Event) -> None:
        """One incident for every release that a denial took out of use here, or would have."""
        match event:
            case TargetDenied():
                releases = [before.target.release] if before.target else []
            case FallbackDenied():
                releases = sorted(event.releases)
            case _:
                releases = [before.active.release] if before.active else []
        known = {pointer.release: pointer.vouchers for pointer in before.kept}
        if before.target is not None:
            known.setdefault(before.target.release, before.target.vouchers)
        for release in releases:
            denial = self._belief.denials.is_denied(release, known.get(release, ()))
            body = {
                "model": before.model,
                "release": release,
                "event": type(event).__name__,
                "denial": denial.digest if denial else b"",
                "is_final": self._belief.denials.is_final(release, known.get(release, ())),
                "reason": denial.document.reason[:400] if denial and denial.document else "",
            }
            name = self._journal.release_name(release) or release.hex()[:16]
            log.warning("%s is denied: %s", name, body["reason"])
            self._outbox.append("incident", "denied", self._time.now(), body)
