"""Every row of the machine's table can be met: on some way from an empty memory, each is taken.

Simulated worlds meet most rows by themselves (`tests/simulation/test_worlds.py`); what they meet too seldom to be
counted on is met here, by ways that choose among everything that may happen.
"""

from dataclasses import replace
from random import Random

from heliograph_site.happenings import (
    Admitted,
    Blocked,
    CalledOff,
    Declined,
    DenialsHeld,
    Directed,
    Failed,
    Fetched,
    GivenUp,
    Happening,
    Healthy,
    LastStopped,
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
    Wanted,
    Withdrawn,
)
from heliograph_site.machine import MAX_CUTS, MAX_TRIES, TABLE, classify, step
from heliograph_site.memory import FailMode, Memory, Target

MODES: tuple[FailMode, ...] = ("safe", "closed")
RELEASES = (b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32)
WAYS, STEPS = 30_000, 12


def answer(memory: Memory, rng: Random, luck: float) -> Happening:
    """What the task of this phase may say."""
    epoch = memory.epoch
    verdict, mode = rng.choice(("proven", "unproven")), rng.choice(MODES)
    passed = Passed(epoch, 7, mode, rng.choice(("", "", "", "denials")), rng.randrange(3), rng.randrange(3))  # type: ignore[arg-type]
    good: dict[str, Happening] = {
        "checking": Admitted(epoch),
        "fetching": Fetched(epoch),
        "staging": Staged(epoch),
        "activating": passed,
        "proving": rng.choice((Healthy(epoch), Proved(epoch, verdict, returns=rng.random() < 0.3))),  # type: ignore[arg-type]
        "rolling-back": Served(epoch) if memory.active is not None else Stopped(epoch),
        "idle": Served(epoch) if memory.active is not None else Stopped(epoch),
    }
    if rng.random() < luck and memory.phase in good:
        return good[memory.phase]
    bad: tuple[Happening, ...] = (Failed(epoch, "broke"),)
    if memory.phase == "checking":
        bad = (Declined(epoch, "no"), Failed(epoch, "broke"))
    if memory.phase in ("fetching", "staging"):
        bad = (Spoiled(epoch, "bad"), Blocked(epoch, "full"))
    return rng.choice(bad)


def anything(memory: Memory, rng: Random, luck: float) -> Happening:
    """Something that may happen to this machine."""
    if rng.random() < 0.6:
        return answer(memory, rng, luck)
    release = rng.choice(memory.releases or RELEASES)
    last = memory.active or memory.unfit
    shown = [pointer.release for pointer in (last, *memory.line) if pointer is not None] or [release]
    held = frozenset(known for known in memory.releases if rng.random() < 0.4)
    fit = rng.choice(("fits", "flagged", "stopped"))
    best = rng.choice(shown) if fit == "fits" or memory.active is None else shown[0]
    return rng.choice(
        (
            Directed(rng.choice(("install", "install", "install", "hold", "return", "")),
                     Target(rng.choice(RELEASES), rng.randrange(9))),
            Directed("install", Target(rng.choice(RELEASES), rng.randrange(9))),
            Directed("return", Target(release, rng.randrange(9))),
            Started(rng.random() < 0.4),
            DenialsHeld(frozenset({release}), frozenset()),
            DenialsHeld(held, frozenset(known for known in held if rng.random() < 0.5)),
            Matched(best, rng.randrange(3), rng.randrange(3), fit, rng.choice(MODES), "why"),  # type: ignore[arg-type]
            GivenUp(release, "died"),
            StandIn(rng.choice(("", "fallback", "stopped")), "alone"),  # type: ignore[arg-type]
            Recalled("wanted back"),
            CalledOff("called off"),
            Withdrawn("no more"),
        )
    )  # fmt: skip


def with_fallbacks(count: int, fail_mode: FailMode) -> Memory:
    """A machine that has proven this many releases, one after the other."""
    memory = Memory("digits")
    for number, release in enumerate(RELEASES[:count], 1):
        for happening in (Directed("install", Target(release, number)), Admitted, Fetched, Staged):
            told = happening if isinstance(happening, Directed) else happening(memory.epoch)
            event = classify(memory, told)
            assert event is not None
            memory, _ = step(memory, event)
        memory, _ = step(memory, Passed(memory.epoch, 10 * number, fail_mode))
        memory, _ = step(memory, Proved(memory.epoch, "proven"))
    return memory


def test_every_row_is_taken_on_some_way_through_the_machine() -> None:
    rng = Random(4)
    left = {(row.phase, row.event) for row in TABLE}
    for _ in range(WAYS):
        memory = with_fallbacks(rng.choice((0, 1, 2, 2, 3)), rng.choice(MODES))
        luck = rng.choice((0.2, 0.5, 0.8, 0.95))
        if memory.active is not None and rng.random() < 0.3:  # nothing fits, and it stopped
            memory, _ = step(memory, LastStopped(1, "why"))
            memory, _ = step(memory, Stopped(memory.epoch))
        if rng.random() < 0.5:  # one more misfortune, and the target is given up
            memory, _ = step(memory, Wanted(Target(RELEASES[3], 9)))
            memory = replace(memory, tries=MAX_TRIES - 1, cuts=MAX_CUTS - 1)
        for _ in range(STEPS):
            event = classify(memory, anything(memory, rng, luck))
            if event is None:
                continue
            left.discard((memory.phase, type(event)))
            memory, _ = step(memory, event)
        if not left:
            return
    assert not left, f"{WAYS} ways never took {sorted((phase, event.__name__) for phase, event in left)}"
