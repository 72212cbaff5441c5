"""The life of a release: the table is complete, and no walk through it breaks what it promises."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.documents import Phase
from heliograph_site.machine import (
    EVENTS,
    TABLE,
    Admitted,
    Command,
    Declined,
    Event,
    Failed,
    Fetched,
    Memory,
    Passed,
    Pointer,
    Proved,
    Refused,
    Restarted,
    Returned,
    Served,
    Spoiled,
    Staged,
    Target,
    Wanted,
    Withdrawn,
    choose_fallback,
    event_from_directive,
    mermaid,
    step,
)

ROOT = Path(__file__).parents[2]
PHASES: tuple[str, ...] = get_args(Phase)
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32

# fmt: off
IGNORED = {
    # What a machine at rest, or one that is busy elsewhere, need not hear: another phase's answers.
    "idle":         {Withdrawn, Admitted, Declined, Fetched, Spoiled, Staged, Passed, Proved, Served},
    "checking":     {Returned, Fetched, Spoiled, Staged, Passed, Failed, Proved, Served},
    "fetching":     {Returned, Admitted, Declined, Staged, Passed, Failed, Proved, Served},
    "staging":      {Returned, Admitted, Declined, Fetched, Passed, Failed, Proved, Served},
    "activating":   {Returned, Admitted, Declined, Fetched, Spoiled, Staged, Proved, Served},
    # Probation is not withdrawn: what is active is judged to the end, or superseded.
    "proving":      {Withdrawn, Admitted, Declined, Fetched, Spoiled, Staged, Passed, Served},
    # A way back is finished first; what the directive says is looked at again on arrival.
    "rolling-back": {Wanted, Withdrawn, Returned, Admitted, Declined, Fetched, Spoiled, Staged, Passed, Proved},
    "stuck":        {Withdrawn, Returned, Admitted, Declined, Fetched, Spoiled, Staged, Passed, Failed, Proved, Served},
}
# fmt: on


def test_every_pair_of_phase_and_event_is_a_row_or_ignored_on_purpose() -> None:
    rows = {(row.phase, row.event) for row in TABLE}
    ignored = {(phase, event) for phase, events in IGNORED.items() for event in events}
    assert not rows & ignored
    assert rows | ignored == {(phase, event) for phase in PHASES for event in EVENTS}


def test_no_pair_has_two_rows() -> None:
    assert len({(row.phase, row.event) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_knows_how_to_restart(phase: Phase) -> None:
    target = Target(B, 2) if phase not in ("idle", "rolling-back", "stuck") else None
    memory, command = step(Memory("digits", phase, 3, target, active=Pointer(A, 1)), Restarted())
    assert command is not None and memory.epoch == 4


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "late",
    [Admitted(6), Declined(6, ""), Fetched(6), Spoiled(6, ""), Staged(6), Passed(6, 1), Failed(6, ""),
     Proved(6, "proven"), Served(6)],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
def test_a_late_answer_changes_nothing(phase: Phase, late: Event) -> None:
    memory = Memory("digits", phase, 7, Target(B, 2), active=Pointer(A, 1))
    assert step(memory, late) == (memory, None)


def test_a_release_goes_from_directive_to_proven() -> None:
    memory = Memory("digits", active=Pointer(A, 1, 1, "proven"))
    started = []
    for event in (
        Wanted(Target(B, 2)), Admitted(1), Fetched(2), Staged(3), Passed(4, 100), Proved(5, "proven"),
    ):  # fmt: skip
        memory, command = step(memory, event)
        started.append(command)
    assert started == [
        Command.CHECK, Command.FETCH, Command.STAGE, Command.ACTIVATE, Command.PROVE, Command.REST,
    ]  # fmt: skip
    assert memory == Memory(
        "digits", "idle", 6, active=Pointer(B, 100, 2, "proven"), fallback=Pointer(A, 1, 1, "proven")
    )


def test_wrong_golden_outputs_leave_the_active_release_alone_and_are_remembered() -> None:
    memory = Memory("digits", "activating", 4, Target(B, 2), active=Pointer(A, 1, 1, "proven"))
    after, command = step(memory, Failed(4, "golden outputs differ by 0.5"))
    assert (after.phase, command, after.active) == ("idle", Command.REST, memory.active)
    assert after.refused == (Refused(B, 2, "golden outputs differ by 0.5"),)
    assert event_from_directive(after, "install", B, 2) is None
    assert event_from_directive(after, "install", B, 3) == Wanted(Target(B, 3))


def test_failing_probation_serves_the_fallback_and_refuses_what_failed() -> None:
    memory = Memory("digits", "proving", 5, Target(B, 2), active=Pointer(B, 9, 2), fallback=Pointer(A, 1, 1, "proven"))
    after, command = step(memory, Failed(5, "worker died 3 times"))
    assert (after.phase, command) == ("rolling-back", Command.SERVE)
    assert after.active == memory.fallback and after.fallback is None and after.target is None
    assert [(r.release, r.number) for r in after.refused] == [(B, 2)]
    healed, _ = step(after, Served(6))
    assert (healed.phase, healed.reason) == ("idle", "")


def test_what_fails_to_serve_as_fallback_is_no_fallback_for_the_next_release() -> None:
    memory = Memory("digits", "rolling-back", 6, active=Pointer(A, 1, 1, "proven"))
    for event in (Failed(6, "gone"), Wanted(Target(B, 2)), Admitted(7), Fetched(8), Staged(9), Passed(10, 50)):
        memory, _ = step(memory, event)
    assert memory.phase == "proving" and memory.fallback is None


def test_a_release_is_never_its_own_fallback() -> None:
    memory = Memory(
        "digits", "activating", 4, Target(A, 3), active=Pointer(A, 1, 1, "proven"), fallback=Pointer(B, 0, 0)
    )
    after, _ = step(memory, Passed(4, 9))
    assert after.active is not None and after.fallback is not None
    assert (after.active.release, after.fallback.release) == (A, B)


def test_spoiled_bytes_are_asked_for_again_in_full() -> None:
    memory = Memory("digits", "fetching", 2, Target(B, 2))
    after, command = step(memory, Spoiled(2, "segment 3 rebuilt wrong"))
    assert (after.phase, after.full_only, command) == ("checking", True, Command.CHECK)
    another, _ = step(after, Wanted(Target(C, 3)))
    assert not another.full_only


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ((Pointer(A, 5, verdict="unproven"), Pointer(B, 3, verdict="proven")), B),
        ((Pointer(A, 5, verdict="proven"), Pointer(B, 3, verdict="proven")), A),
        ((Pointer(A, 5, verdict="unproven"), Pointer(B, 3, verdict="unproven")), A),
        ((Pointer(A, 5, verdict="failed"), Pointer(B, 3, verdict="unproven")), B),
        ((Pointer(A, 5, verdict="failed"), None), None),
        ((None, None), None),
    ],
)
def test_the_fallback_is_the_most_recently_proven_and_never_a_failed_one(
    candidates: tuple[Pointer | None, ...], chosen: bytes | None
) -> None:
    found = choose_fallback(*candidates)
    assert (found.release if found else None) == chosen


def test_a_directive_that_names_what_is_active_stops_what_is_under_way() -> None:
    memory = Memory("digits", "fetching", 2, Target(B, 2), active=Pointer(A, 1, 1))
    event = event_from_directive(memory, "install", A, 3)
    assert isinstance(event, Withdrawn)
    assert step(memory, event)[0].target is None


def test_a_repeated_directive_changes_nothing() -> None:
    fetching = Memory("digits", "fetching", 2, Target(B, 2))
    settled = Memory("digits", active=Pointer(B, 1, 2))
    assert event_from_directive(fetching, "install", B, 2) is None
    assert event_from_directive(settled, "install", B, 2) is None
    assert event_from_directive(settled, "hold", B, 2) is None
    assert event_from_directive(settled, "unheard-of", B, 2) is None


def test_return_serves_the_fallback_and_without_one_keeps_what_runs() -> None:
    alone = Memory("digits", active=Pointer(B, 1, 2))
    assert event_from_directive(alone, "return", B, 3) is None
    event = event_from_directive(replace(alone, fallback=Pointer(A, 0, 1)), "return", B, 3)
    assert isinstance(event, Returned)
    assert isinstance(event_from_directive(Memory("digits", "staging", 1, Target(B, 2)), "return", B, 3), Withdrawn)


def test_a_stuck_machine_tries_the_same_release_again_only_under_a_new_number() -> None:
    stuck = Memory("digits", "stuck", 4, active=Pointer(A, 1, 2, "failed"))
    assert event_from_directive(stuck, "install", A, 2) is None
    assert event_from_directive(stuck, "install", A, 3) == Wanted(Target(A, 3))


RELEASES = st.sampled_from([A, B, C])
NUMBERS = st.integers(0, 4)
REASON = st.just("because")
MOVES = st.one_of(
    st.tuples(st.just("directive"), st.sampled_from(["install", "hold", "return"]), RELEASES, NUMBERS),
    st.tuples(st.just("answer"), st.sampled_from(range(9)), st.sampled_from([0, 0, 0, 0, 1]), st.booleans()),
    st.tuples(st.just("natural"), st.sampled_from([True, True, True, False])),
    st.tuples(st.just("restart")),
)


def natural(memory: Memory, good: bool) -> Event | None:
    """What the task of this phase would answer."""
    epoch = memory.epoch
    match memory.phase:
        case "checking":
            return Admitted(epoch) if good else Declined(epoch, "no")
        case "fetching":
            return Fetched(epoch) if good else Spoiled(epoch, "bad")
        case "staging":
            return Staged(epoch) if good else Spoiled(epoch, "bad")
        case "activating":
            return Passed(epoch, 7) if good else Failed(epoch, "broke")
        case "proving":
            return Proved(epoch, "proven") if good else Failed(epoch, "broke")
        case "rolling-back":
            return Served(epoch) if good and memory.active else Failed(epoch, "nothing left")
        case _:
            return None


@given(st.lists(MOVES, max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_walk_serves_what_never_passed_or_wants_what_was_refused(moves: list[tuple[object, ...]]) -> None:
    memory, passed = Memory("digits"), set()
    for move in moves:
        event: Event | None
        match move:
            case ("directive", str(action), bytes(release), int(number)):
                event = event_from_directive(memory, action, release, number)
                if isinstance(event, Wanted):
                    assert (event.target.release, event.target.number) not in {
                        (r.release, r.number) for r in memory.refused
                    }
                if event is not None:
                    again = step(memory, event)[0]
                    repeated = event_from_directive(again, action, release, number)
                    assert again == memory or not isinstance(event, Wanted) or repeated is None, "not level-triggered"
            case ("natural", bool(good)):
                event = natural(memory, good)
            case ("answer", int(kind), int(age), bool(good)):
                epoch = memory.epoch - age
                event = (
                    Admitted(epoch), Declined(epoch, "no"), Fetched(epoch), Spoiled(epoch, "bad"), Staged(epoch),
                    Passed(epoch, 7), Failed(epoch, "broke"), Proved(epoch, "proven" if good else "unproven"),
                    Served(epoch),
                )[kind]  # fmt: skip
                # The shell never says that nothing failed: without an active release there is nothing to judge.
                if isinstance(event, Failed) and memory.phase == "idle" and memory.active is None:
                    event = None
            case _:
                event = Restarted()
        if event is None:
            continue
        before = memory
        memory, command = step(before, event)
        if isinstance(event, Passed) and memory is not before:
            assert before.target is not None and before.phase == "activating"
            passed.add(before.target.release)
        for refusal in memory.refused:
            repeated = event_from_directive(memory, "install", refusal.release, refusal.number)
            assert not isinstance(repeated, Wanted), "what was refused is wanted again under the same number"
        assert memory.active is None or memory.active.release in passed
        assert memory.fallback is None or memory.fallback.release in passed
        assert memory.fallback is None or memory.fallback.verdict != "failed"
        assert memory.fallback is None or memory.active is None or memory.fallback.release != memory.active.release
        assert (command is None) == (memory.epoch == before.epoch)
        assert memory.target is not None or memory.phase in ("idle", "rolling-back", "stuck")
        if before.active is not None and memory.active is None:
            assert memory.phase == "rolling-back", "a model may lose what serves only by failing with no fallback"


def test_the_printed_diagram_is_the_one_in_the_documents() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "heliograph_site.machine"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == mermaid()
    assert f"```mermaid\n{printed}```\n" in (ROOT / "shared" / "MACHINE.md").read_text()
    assert printed.count("-->") == len(TABLE) + 1
