"""Whatever answers is what the pointer names, or the server is on its way there: a machine beside a server of its own.

`Node` is the shell in small, with every task cut where another happening may come between; what the server really does
is known here and not to the machine. Each way is drawn from one seed.
"""

from dataclasses import replace
from random import Random

import pytest

from heliograph_site.happenings import (
    Admitted,
    CalledOff,
    Declined,
    Directed,
    Failed,
    Fetched,
    GivenUp,
    Happening,
    Healthy,
    Matched,
    Passed,
    Proved,
    Recalled,
    Served,
    Spoiled,
    Staged,
    StandIn,
    Started,
    Stopped,
)
from heliograph_site.machine import Command, classify, end_of, matched, settled, step
from heliograph_site.memory import UNDER_WAY, Memory, Target
from heliograph_site.weighing import weigh

RELEASES = (b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32)
STEPS = 24
BEGINS_BY_SERVING = (Command.CHECK, Command.PROVE, Command.SERVE)


class Denials:
    """Release -> by how many."""

    def __init__(self) -> None:
        self.by: dict[bytes, int] = {}

    def is_denied(self, release: bytes, vouchers: tuple[bytes, ...]) -> bool:
        return release in self.by

    def is_final(self, release: bytes, vouchers: tuple[bytes, ...]) -> bool:
        return self.by.get(release, 0) > 1


class Node:
    """A machine that has proven some releases, its server, and whatever happens to both.

    Attributes:
        serving: what answers.
        broken: releases whose worker dies.
        outlawed: releases that fit no policy.
        is_reaching: the task has still to make the server serve what is active.
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.memory = Memory("digits")
        self.modes = {release: rng.choice(("safe", "safe", "closed")) for release in RELEASES}
        self.deny, self.broken, self.outlawed = Denials(), set[bytes](), set[bytes]()
        self.policy = self.number = 0
        self.pace = rng.choice((0.3, 0.5, 0.7))
        self.command: Command | None = None
        self.is_reaching = self.has_reached = False
        self.directive: Directed | None = None
        self.stand_in = StandIn("", "it is over")
        self.told = [f"seed {seed}"]
        for release in RELEASES[: rng.choice((0, 1, 2, 2, 3))]:
            self.directive = self._newer("install", release)
            self.happen(self.directive)
            for answer in (Admitted, Fetched, Staged):
                self.happen(answer(self.memory.epoch))
            self.happen(Passed(self.memory.epoch, self.number, self.modes[release]))  # type: ignore[arg-type]
            self.happen(Proved(self.memory.epoch, rng.choice(("proven", "proven", "unproven"))))
        self.serving = self.memory.active.release if self.memory.active is not None else None
        self.is_reaching = False

    # --- the shell ----------------------------------------------------------------------------------------------------

    def happen(self, happening: Happening | None) -> None:
        while happening is not None and (event := classify(self.memory, happening)) is not None:
            after, command = step(self.memory, event)
            if after is self.memory:
                return
            self._take(after, command, type(event).__name__)
            happening = None if isinstance(happening, Started) else self._level()

    def _take(self, after: Memory, command: Command | None, name: str) -> None:
        self.memory, command = end_of(matched(after, self._look), after, command)
        if command is not None:
            self.command, self.has_reached = command, False
            self.is_reaching = command in BEGINS_BY_SERVING
        self.told.append(f"{name}: {self.memory}")

    def _look(self, memory: Memory) -> Matched | None:
        last = memory.active or memory.unfit
        if last is None:
            return None
        fitting = [p.release for p in (last, *memory.line) if p.release not in self.outlawed]
        found = fitting[0] if fitting else last.release
        fit = "fits" if fitting else "flagged" if self.modes[found] == "safe" else "stopped"
        return Matched(found, 0, self.policy, fit, self.modes[found], "policy says so")  # type: ignore[arg-type]

    def _level(self) -> Happening | None:
        for level in (weigh(self.memory, self.deny), self._standing_in()):
            if classify(self.memory, level) is not None:
                return level
        return self._wanted() if self.memory.phase in ("idle", "stuck") else None

    def _standing_in(self) -> StandIn:
        memory, wanted = self.memory, self.stand_in
        if wanted.aside == "fallback" and not memory.aside and memory.active is not None and memory.fallback:
            found = self._look(replace(memory, active=memory.fallback, fallback=memory.active))
            if found is not None and found.release != memory.fallback.release:
                return StandIn("", "documents forbid it")
        return wanted

    def _wanted(self) -> Happening | None:
        stand_in, directive = self._standing_in(), self.directive
        if stand_in.aside and (self.memory.aside or classify(self.memory, stand_in) is not None):
            return None
        if directive is not None and directive.action == "install" and directive.target.release in self.deny.by:
            return None
        return directive

    def derive(self) -> None:
        """Looks at all levels anew."""
        self._take(self.memory, None, "documents")
        for level in (weigh(self.memory, self.deny), self._standing_in()):
            self.happen(level)
        self.happen(self._wanted())

    # --- the task -----------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """The task does its next bit."""
        memory, epoch = self.memory, self.memory.epoch
        is_lucky = self.rng.random() < 0.85
        match self.command:
            case Command.SERVE | Command.CHECK | Command.PROVE if not self.has_reached:
                active = memory.active
                is_served = self._reach()
                if not is_served and not (self.command is Command.CHECK and active and active.verdict == "failed"):
                    self.happen(Failed(epoch, "its worker died"))
                elif self.command is Command.SERVE:
                    self.happen(Served(epoch) if active is not None else Stopped(epoch))
            case Command.CHECK:
                self.happen(Admitted(epoch) if is_lucky else Declined(epoch, "no"))
            case Command.FETCH:
                self.happen(Fetched(epoch) if is_lucky else Spoiled(epoch, "bad"))
            case Command.STAGE:
                self.happen(Staged(epoch) if is_lucky else Spoiled(epoch, "bad"))
            case Command.ACTIVATE if memory.target is not None:
                target = memory.target.release
                waits_for = "documents that fit" if target in self.outlawed else ""
                passed = Passed(epoch, 99, self.modes[target], waits_for, 0, self.policy)  # type: ignore[arg-type]
                self.happen(passed if target not in self.broken or is_lucky else Failed(epoch, "its worker died"))
            case Command.PROVE if memory.active is not None:
                if self.serving != memory.active.release:
                    self.has_reached = False
                elif memory.active.release in self.broken or not is_lucky:
                    self.happen(Failed(epoch, "too slow", answered=True))
                elif not memory.is_healthy:
                    self.happen(Healthy(epoch))
                else:
                    self.happen(Proved(epoch, self.rng.choice(("proven", "unproven")), self.rng.random() < 0.2))
            case _:
                pass

    def _reach(self) -> bool:
        self.is_reaching, self.has_reached = False, True
        active = self.memory.active
        if active is not None and active.release in self.broken:
            return False
        self.serving = active.release if active is not None else None
        return True

    # --- whatever happens ---------------------------------------------------------------------------------------------

    def move(self) -> None:
        rng, memory = self.rng, self.memory
        if rng.random() < self.pace:
            self.go_on()
            return
        release = rng.choice(memory.releases or RELEASES)
        what = rng.choice(
            (
                "direct",
                "deny",
                "deny",
                "break",
                "break",
                "server",
                "agent",
                "policy",
                "policy",
                "stand in",
                "recall",
                "off",
            )
        )
        self.told.append(f"{what} {release[:1]!r}")
        match what:
            case "direct":
                action = rng.choice(("install", "install", "install", "hold", "return", ""))
                self.directive = self._newer(action, rng.choice(RELEASES) if action == "install" else release)
                self.happen(self._wanted())
            case "deny":
                self.deny.by[release] = self.deny.by.get(release, 0) + 1
                after, command, events = settled(memory, weigh(memory, self.deny))
                if events:
                    self._take(after, command, type(events[-1]).__name__)
            case "break":
                self.broken.add(release)
                if self.serving == release:
                    self.serving = None
            case "server":  # its worker or its power is gone; alone, it serves what the pointer names
                gone = memory.active.release if memory.active is not None else None
                self.serving = gone if gone not in self.broken else None
                if gone in self.broken and gone is not None:
                    self.happen(GivenUp(gone, "its worker died too often"))
            case "agent":
                self.command, self.is_reaching = None, False
                self.happen(Started(rng.random() < 0.4))
                self.derive()
            case "policy":
                self.policy += 1
                if self.outlawed and rng.random() < 0.5:
                    self.outlawed.clear()
                else:
                    self.outlawed.add(release)
                self.derive()
            case "stand in":
                self.stand_in = StandIn(rng.choice(("", "", "fallback", "stopped")), "alone")
                self.derive()
            case "recall":
                self.happen(Recalled("wanted back"))
            case _:
                self.happen(CalledOff("called off"))

    def _newer(self, action: str, release: bytes) -> Directed:
        self.number += 1
        return Directed(action, Target(release, self.number))

    def check(self) -> None:
        memory = self.memory
        active, where = memory.active, "\n".join(self.told[-20:])
        if self.serving is not None:
            is_named = active is not None and active.release == self.serving
            assert is_named or self.is_reaching, f"{self.serving[:1]!r} answers and no pointer names it: {where}"
        assert len({pointer.release for pointer in memory.kept}) == len(memory.kept)
        if active is not None:
            assert memory.is_last_denied == (active.release in self.deny.by), where
            assert not active.denied or memory.fallback is None, where
            assert self.deny.by.get(active.release, 0) < 2 or active.fail_mode == "safe", where
        if memory.phase in (*UNDER_WAY[1:], "stuck") and not memory.aside:
            assert memory.resort is None, f"what is active answers, or nothing: {where}"


@pytest.mark.parametrize("shard", range(4))
def test_on_no_way_does_anything_answer_that_no_pointer_names(shard: int) -> None:
    for seed in range(shard * 1000, (shard + 1) * 1000):
        node = Node(seed)
        for _ in range(STEPS):
            node.move()
            node.check()
