"""The life of a release: the table is complete, and no walk through it breaks what it promises."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.documents import Phase
from heliograph_site.happenings import (
    EVENTS,
    Aborted,
    ActiveDenied,
    Admitted,
    Answer,
    Blocked,
    CalledOff,
    Declined,
    DenialsHeld,
    Directed,
    Event,
    Failed,
    FallbackDenied,
    Fetched,
    FitsAgain,
    GivenUp,
    Happening,
    Healthy,
    LastClosed,
    LastDenied,
    Passed,
    Postponed,
    Proved,
    Recalled,
    Renumbered,
    RestartedAgain,
    RestartedHealthy,
    RestartedMidway,
    Resumed,
    Returned,
    Served,
    Spoiled,
    Staged,
    StandIn,
    Started,
    SteppedAside,
    StoodDown,
    Stopped,
    TargetDenied,
    TriedEnough,
    Wanted,
    Withdrawn,
)
from heliograph_site.machine import MAX_CUTS, MAX_TRIES, TABLE, Command, classify, mermaid, settled, step
from heliograph_site.memory import UNDER_WAY, FailMode, Memory, Pointer, Refused, Target
from heliograph_site.weighing import fallbacks, weigh

ROOT = Path(__file__).parents[2]
PHASES: tuple[Phase, ...] = get_args(Phase)
A, B, C, D = b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32
RESTARTS = {RestartedMidway, RestartedHealthy, RestartedAgain}
ASIDE = {SteppedAside, StoodDown, Resumed}

# fmt: off
IGNORED: dict[str, set[type]] = {
    # What a machine at rest, or one that is busy elsewhere, need not hear: another phase's answers. `classify` names
    # what the active release failed at, restarts and denials so that only the phases they matter in hear of them.
    "idle":         {Withdrawn, Admitted, Declined, Fetched, Spoiled, Blocked, TriedEnough, Staged, Passed, Postponed,
                     Failed, Healthy, Proved, TargetDenied, Aborted, *RESTARTS},
    # What is on its way is withdrawn before anything steps aside.
    "checking":     {Fetched, Spoiled, Blocked, TriedEnough, Staged, Passed, Postponed, Failed, Healthy,
                     Proved, Served, Stopped, *ASIDE, *RESTARTS},
    "fetching":     {Admitted, Declined, Staged, Passed, Postponed, Failed, Healthy, Proved, Served, Stopped,
                     *ASIDE, *RESTARTS},
    "staging":      {Admitted, Declined, Fetched, Passed, Postponed, Failed, Healthy, Proved, Served, Stopped,
                     *ASIDE, *RESTARTS},
    # Only cuts count here, healthy or not.
    "activating":   {Admitted, Declined, Fetched, Spoiled, Blocked, TriedEnough, Staged, Healthy, Proved,
                     Served, Stopped, *ASIDE, RestartedHealthy},
    # Probation is not withdrawn: what is active is judged to the end, or superseded. What it fails at has other names.
    "proving":      {Withdrawn, Admitted, Declined, Fetched, Spoiled, Blocked, TriedEnough, Staged, Passed, Postponed,
                     Failed, Served, Stopped, RestartedMidway, TargetDenied, Aborted, FitsAgain, *ASIDE},
    # A way back is finished first; what the directive says is looked at again on arrival.
    "rolling-back": {Wanted, Renumbered, Withdrawn, Returned, Admitted, Declined, Fetched, Spoiled, Blocked,
                     TriedEnough, Staged, Passed, Postponed, Failed, Healthy, Proved, TargetDenied, Aborted, *ASIDE,
                     *RESTARTS},
    # What is active and sound makes the machine leave first.
    "stuck":        {Renumbered, Admitted, Declined, Fetched, Spoiled, Blocked, TriedEnough, Staged, Passed, Postponed,
                     Failed, Healthy, Proved, Served, Stopped, TargetDenied, Aborted, SteppedAside, *RESTARTS},
}
# fmt: on


def install(release: bytes, number: int) -> Directed:
    return Directed("install", Target(release, number))


def after(memory: Memory, *happenings: Happening) -> tuple[Memory, Command | None]:
    """Where these lead, one after the other; the command of the last."""
    command = None
    for happening in happenings:
        event = classify(memory, happening)
        assert event is not None, f"{happening} is nothing new in {memory.phase}"
        memory, command = step(memory, event)
    return memory, command


def test_every_pair_of_phase_and_event_is_a_row_or_ignored_on_purpose() -> None:
    rows = {(row.phase, row.event) for row in TABLE}
    ignored = {(phase, event) for phase, events in IGNORED.items() for event in events}
    assert not rows & ignored
    assert rows | ignored == {(phase, event) for phase in PHASES for event in EVENTS}


def test_no_pair_has_two_rows() -> None:
    assert len({(row.phase, row.event) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("was_orderly", [True, False])
@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_knows_how_to_restart(phase: Phase, was_orderly: bool) -> None:
    target = Target(B, 2) if phase in (*UNDER_WAY, "proving") else None
    memory = Memory("digits", phase, 3, target, active=Pointer(A, 1))
    event = classify(memory, Started(was_orderly))
    assert event is not None
    command = step(memory, event)[1]
    assert command is not None and step(memory, event)[0].epoch == 4


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "late",
    [Admitted(6), Declined(6, ""), Fetched(6), Spoiled(6, ""), Blocked(6, ""), Staged(6), Passed(6, 1), Failed(6, ""),
     Healthy(6), Proved(6, "proven"), Served(6), Stopped(6)],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
def test_a_late_answer_changes_nothing(phase: Phase, late: Answer) -> None:
    memory = Memory("digits", phase, 7, Target(B, 2), active=Pointer(A, 1), fallback=Pointer(C, 0))
    assert classify(memory, late) is None
    assert step(memory, late) == (memory, None)


def test_a_release_goes_from_directive_to_proven_with_its_evidence() -> None:
    memory = Memory("digits", active=Pointer(A, 1, 1, "proven"))
    target = Target(B, 2, "digits/1.1.0", (b"k" * 32,))
    started = []
    for happening in (
        Directed("install", target), Admitted(1), Fetched(2), Staged(3), Passed(4, 100, "closed"), Healthy(5),
        Proved(5, "proven"),
    ):  # fmt: skip
        memory, command = after(memory, happening)
        started.append(command)
    assert started == [
        Command.CHECK, Command.FETCH, Command.STAGE, Command.ACTIVATE, Command.PROVE, None, Command.REST,
    ]  # fmt: skip
    active = Pointer(
        B, 100, 2, "proven", path="digits/1.1.0", vouchers=(b"k" * 32,), fail_mode="closed", proven=5
    )  # fmt: skip
    assert memory == Memory("digits", "idle", 6, active=active, fallback=Pointer(A, 1, 1, "proven"))


def test_wrong_golden_outputs_leave_the_active_release_alone_and_are_remembered() -> None:
    memory = Memory("digits", "activating", 4, Target(B, 2), active=Pointer(A, 1, 1, "proven"))
    refused, command = after(memory, Failed(4, "golden outputs differ by 0.5"))
    assert (refused.phase, command, refused.active) == ("idle", Command.SERVE, memory.active)
    assert refused.refused == (Refused(B, 2, "golden outputs differ by 0.5"),)
    assert classify(refused, install(B, 2)) is None
    assert classify(refused, install(B, 3)) == Wanted(Target(B, 3))
    assert after(refused, Served(5))[1] == Command.REST


def test_failing_probation_serves_the_fallback_and_refuses_what_failed() -> None:
    memory = Memory("digits", "proving", 5, Target(B, 2), active=Pointer(B, 9, 2), fallback=Pointer(A, 1, 1, "proven"))
    back, command = after(memory, Failed(5, "worker died 3 times"))
    assert (back.phase, command) == ("rolling-back", Command.SERVE)
    assert back.active == memory.fallback and back.fallback is None and back.target is None
    assert back.resort == replace(memory.active, verdict="failed")  # type: ignore[type-var]  # it is there
    assert [(r.release, r.number) for r in back.refused] == [(B, 2)]
    healed, _ = after(back, Served(6))
    assert (healed.phase, healed.reason, healed.resort) == ("idle", "", None)


def test_a_fallback_that_does_not_serve_in_time_gives_way_to_the_next() -> None:
    memory = Memory(
        "digits", "proving", 5, Target(C, 3), active=Pointer(C, 9, 3),
        fallback=Pointer(A, 1, 1, "proven"), earlier=Pointer(B, 5, 2),
    )  # fmt: skip
    back, _ = after(memory, Failed(5, "too slow"))
    next_, command = after(back, Failed(6, "not serving within 60 s"))
    assert (next_.phase, command) == ("rolling-back", Command.SERVE)
    assert next_.active == memory.earlier and next_.fallback is None
    assert [(r.release, r.number) for r in next_.refused] == [(A, 1), (C, 3)]


def test_an_earlier_release_is_kept_only_until_the_active_one_is_judged() -> None:
    memory = Memory(
        "digits", "activating", 4, Target(C, 3), active=Pointer(B, 5, 2), fallback=Pointer(A, 1, 1, "proven")
    )
    proving, _ = after(memory, Passed(4, 9))
    assert proving.fallback == memory.fallback and proving.earlier == memory.active
    assert proving.releases == (C, A, B)
    judged, _ = after(proving, Proved(5, "unproven"))
    assert judged.earlier is None and judged.releases == (C, A)


@pytest.mark.parametrize("phase", ["idle", "rolling-back"])
def test_the_last_release_that_fails_to_serve_stays_and_is_no_fallback_for_the_next(phase: Phase) -> None:
    memory = Memory("digits", phase, 6, active=Pointer(A, 1, 1, "proven"))
    stuck, command = after(memory, Failed(6, "gone"))
    assert (stuck.phase, stuck.reason, command) == ("stuck", "gone", None)
    assert stuck.active == replace(memory.active, verdict="failed")  # type: ignore[type-var]  # it is there
    flipped, _ = after(stuck, install(B, 2), Admitted(7), Fetched(8), Staged(9), Passed(10, 50))
    assert flipped.phase == "proving" and flipped.fallback is None


def test_what_only_failed_to_serve_is_redeemed_by_serving_and_what_failed_probation_is_not() -> None:
    idle = Memory("digits", "idle", 6, active=Pointer(A, 1, 1, "proven", proven=3))
    served, _ = after(idle, Failed(6, "gone"), Started(), Served(7))
    assert served.active == Pointer(A, 1, 1, "unproven")
    proving = Memory("digits", "proving", 6, Target(A, 1), active=Pointer(A, 1, 1))
    condemned, _ = after(proving, Failed(6, "too slow"), Started(), Served(7))
    assert condemned.active == Pointer(A, 1, 1, "failed") and condemned.phase == "idle"
    assert condemned.refused == (Refused(A, 1, "too slow"),)
    assert classify(condemned, install(A, 1)) is None
    assert classify(condemned, install(A, 2)) == Wanted(Target(A, 2))


@pytest.mark.parametrize("phase", ["idle", "fetching", "proving", "rolling-back", "stuck"])
def test_the_last_release_of_a_closed_model_stops_when_it_fails(phase: Phase) -> None:
    target = Target(B, 2) if phase == "fetching" else None
    memory = Memory("digits", phase, 6, target, active=Pointer(A, 1, 1, fail_mode="closed"), reason="x")
    failure: Happening = GivenUp(A, "dead") if phase in ("idle", "fetching", "stuck") else Failed(6, "dead")
    closing, command = after(memory, failure)
    assert (closing.phase, command, closing.active) == ("rolling-back", Command.SERVE, None)
    stuck, command = after(closing, Stopped(7))
    assert (stuck.phase, stuck.reason, command) == ("stuck", "dead", Command.REST)
    assert classify(stuck, install(A, 1)) is None
    assert after(stuck, Started(), Stopped(9))[0].phase == "stuck", "still nothing to serve"


def test_what_the_server_gives_up_while_another_release_is_on_its_way_is_replaced_at_once() -> None:
    memory = Memory("digits", "fetching", 2, Target(B, 2), active=Pointer(A, 5, 3), fallback=Pointer(C, 1, 1))
    back, command = after(memory, GivenUp(A, "died too often"))
    assert (back.phase, command, back.active) == ("rolling-back", Command.SERVE, memory.fallback)
    rest, _ = after(back, Served(3))
    assert classify(rest, install(B, 2)) == Wanted(Target(B, 2)), "and what was on its way is wanted again"
    alone, command = after(replace(memory, fallback=None), GivenUp(A, "died too often"))
    assert (alone.phase, command) == ("fetching", None), "with nothing to fall back on, help is on its way"
    assert classify(alone, GivenUp(A, "died too often")) is None
    assert classify(memory, GivenUp(C, "not what is active")) is None


def test_a_release_is_never_its_own_fallback() -> None:
    memory = Memory(
        "digits", "activating", 4, Target(A, 3), active=Pointer(A, 1, 1, "proven"), fallback=Pointer(B, 0, 0)
    )
    flipped, _ = after(memory, Passed(4, 9))
    assert flipped.active is not None and flipped.fallback is not None
    assert (flipped.active.release, flipped.fallback.release) == (A, B)


def test_spoiled_bytes_are_asked_for_again_in_full() -> None:
    memory = Memory("digits", "fetching", 2, Target(B, 2))
    again, command = after(memory, Spoiled(2, "segment 3 rebuilt wrong"))
    assert (again.phase, again.full_only, again.tries, command) == ("checking", True, 1, Command.CHECK)
    another, _ = after(again, install(C, 3))
    assert (another.full_only, another.tries) == (False, 0)


@pytest.mark.parametrize("trouble", [Spoiled, Blocked])
def test_bytes_that_spoil_and_a_disk_that_takes_nothing_are_given_up_after_so_many_tries(
    trouble: type[Spoiled | Blocked],
) -> None:
    memory, _ = after(Memory("digits", active=Pointer(A, 1, 1)), install(B, 2))
    for _ in range(MAX_TRIES):
        assert memory.phase == "checking"
        memory, _ = after(memory, Admitted(memory.epoch))
        memory, command = after(memory, trouble(memory.epoch, "input/output error"))
    assert (memory.phase, command) == ("stuck", Command.REST)
    assert memory.reason == f"given up after {MAX_TRIES} tries: input/output error"
    assert memory.active == Pointer(A, 1, 1)
    assert classify(memory, install(B, 2)) is None
    assert after(memory, install(B, 3))[0].phase == "checking", "a new number tries again"
    assert after(memory, install(A, 3))[0].phase == "idle", "what is active is wanted: nothing is missing any more"
    assert after(memory, Directed("hold", Target(B, 3)))[0].phase == "idle"
    assert after(memory, Started(), Served(memory.epoch + 1))[0].phase == "idle"
    assert classify(after(memory, Started(), Served(memory.epoch + 1))[0], install(B, 2)) is None
    assert after(memory, DenialsHeld(frozenset({A})))[0].is_last_denied


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ((Pointer(A, 5, verdict="unproven"), Pointer(B, 3, verdict="proven")), B),
        ((Pointer(A, 5, verdict="proven"), Pointer(B, 3, verdict="proven")), A),
        ((Pointer(A, 5, verdict="proven", proven=4), Pointer(B, 3, verdict="proven", proven=9)), B),
        ((Pointer(A, 5, verdict="unproven"), Pointer(B, 3, verdict="unproven")), A),
        ((Pointer(A, 5, verdict="failed"), Pointer(B, 3, verdict="unproven")), B),
        ((Pointer(A, 5, verdict="proven", denied="once"), Pointer(B, 3, verdict="unproven")), B),
        ((Pointer(A, 5, verdict="failed"),), None),
        ((), None),
    ],
)
def test_the_fallback_is_the_most_recently_proven_never_failed_and_never_denied(
    candidates: tuple[Pointer, ...], chosen: bytes | None
) -> None:
    assert next((pointer.release for pointer in fallbacks(*candidates)), None) == chosen


def test_a_directive_that_names_what_is_active_stops_what_is_under_way() -> None:
    memory = Memory("digits", "fetching", 2, Target(B, 2), active=Pointer(A, 1, 1))
    assert isinstance(classify(memory, install(A, 3)), Withdrawn)
    assert after(memory, install(A, 3))[0].target is None


def test_a_directive_that_names_what_was_refused_stops_what_is_under_way() -> None:
    memory = Memory("digits", "fetching", 2, Target(B, 2), refused=(Refused(C, 3, "no"),))
    stopped, _, events = settled(memory, install(C, 3))
    assert (stopped.phase, [type(event) for event in events]) == ("idle", [Withdrawn])


def test_a_repeated_directive_changes_nothing() -> None:
    fetching = Memory("digits", "fetching", 2, Target(B, 2))
    rest = Memory("digits", active=Pointer(B, 1, 2))
    assert classify(fetching, install(B, 2)) is None
    assert classify(rest, install(B, 2)) is None
    assert classify(rest, Directed("hold", Target(B, 2))) is None
    assert classify(rest, Directed("unheard-of", Target(B, 2))) is None


@pytest.mark.parametrize("phase", [*UNDER_WAY, "proving"])
def test_what_is_under_way_is_refused_by_the_number_of_the_newest_directive_that_named_it(phase: Phase) -> None:
    key, other = b"k" * 32, b"l" * 32
    active = Pointer(B, 9, 2) if phase == "proving" else Pointer(A, 1, 1)
    memory = Memory("digits", phase, 4, Target(B, 2, "b", (key,)), active=active, fallback=Pointer(C, 0, 0), tries=2)
    newer = Directed("install", Target(B, 3, "b", (other,)))
    on, command, events = settled(memory, newer)
    assert [type(event) for event in events] == [Renumbered] and command is None
    assert (on.phase, on.epoch, on.tries, on.target) == (phase, 4, 2, Target(B, 3, "b", (key, other)))
    assert on.active == (Pointer(B, 9, 3) if phase == "proving" else active)
    assert settled(on, newer) == (on, None, ())
    failed: Happening = DenialsHeld(frozenset({B}))
    assert (B, 3) in {(r.release, r.number) for r in settled(on, failed)[0].refused}
    refused = replace(memory, refused=(Refused(B, 3, "no"),))
    _, _, events = settled(refused, newer)
    assert [type(event) for event in events] == ([] if phase == "proving" else [Withdrawn])


def test_what_is_active_is_refused_by_the_number_of_the_newest_directive_that_named_it() -> None:
    memory = Memory("digits", active=Pointer(B, 9, 2, "proven", proven=4), fallback=Pointer(A, 1, 1))
    on, command, _ = settled(memory, install(B, 3))
    assert (on.active, command) == (Pointer(B, 9, 3, "proven", proven=4), None)
    back, _ = after(on, GivenUp(B, "died too often"))
    assert classify(after(back, Served(back.epoch))[0], install(B, 3)) is None
    given_up = replace(memory, phase="stuck", reason="given up")
    assert [type(event) for event in settled(given_up, install(B, 3))[2]] == [Withdrawn, Renumbered]


@pytest.mark.parametrize("action", ["hold", "return", ""])
@pytest.mark.parametrize("phase", UNDER_WAY)
def test_hold_and_return_stop_what_is_under_way_and_keep_what_serves(phase: Phase, action: str) -> None:
    memory = Memory("digits", phase, 4, Target(B, 2), active=Pointer(A, 1, 1))
    rest, command, _ = settled(memory, Directed(action, Target(B, 3)))
    assert (rest.phase, rest.target, rest.active, command) == ("idle", None, memory.active, Command.SERVE)
    assert rest.refused == (), "nobody said that it is bad"


def test_return_serves_the_fallback_and_without_one_keeps_what_runs() -> None:
    alone = Memory("digits", active=Pointer(B, 1, 2))
    back = Directed("return", Target(B, 3))
    assert classify(alone, back) is None
    pair = replace(alone, fallback=Pointer(A, 0, 1))
    assert isinstance(classify(pair, back), Returned)
    assert isinstance(classify(replace(pair, phase="proving", target=Target(B, 2)), back), Returned)
    under_way = replace(pair, phase="fetching", target=Target(C, 2))
    returned, command, events = settled(under_way, back)
    assert [type(event) for event in events] == [Withdrawn, Returned]
    assert (returned.phase, returned.active, command) == ("rolling-back", pair.fallback, Command.SERVE)


def test_a_stuck_machine_tries_the_same_release_again_only_under_a_new_number() -> None:
    stuck = Memory("digits", "stuck", 4, active=Pointer(A, 1, 2, "failed"))
    assert classify(stuck, install(A, 2)) is None
    assert classify(stuck, install(A, 3)) == Wanted(Target(A, 3))


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_a_power_cut_while_proving_resumes_once_if_the_worker_was_healthy_and_then_demotes() -> None:
    memory = Memory("digits", "proving", 5, Target(B, 2), active=Pointer(B, 9, 2), fallback=Pointer(A, 1, 1, "proven"))
    resumed, command = after(memory, Healthy(5), Started())
    assert isinstance(classify(after(memory, Healthy(5))[0], Started()), RestartedHealthy)
    assert (resumed.phase, resumed.active, command) == ("proving", memory.active, Command.PROVE)
    demoted, command = after(resumed, Healthy(6), Started())
    assert (demoted.phase, demoted.active, command) == ("rolling-back", memory.fallback, Command.SERVE)
    assert demoted.refused == (Refused(B, 2, "the node stopped again during its probation"),)


def test_a_power_cut_before_the_worker_was_seen_healthy_demotes_at_once() -> None:
    memory = Memory("digits", "proving", 5, Target(B, 2), active=Pointer(B, 9, 2), fallback=Pointer(A, 1, 1, "proven"))
    assert isinstance(classify(memory, Started()), RestartedAgain)
    assert after(memory, Started())[0].active == memory.fallback


def test_an_orderly_restart_is_held_against_nobody() -> None:
    memory = Memory("digits", "proving", 5, Target(B, 2), active=Pointer(B, 9, 2), fallback=Pointer(A, 1, 1, "proven"))
    for _ in range(9):
        memory, command = after(memory, Started(was_orderly=True))
        assert (memory.phase, command, memory.cuts) == ("proving", Command.PROVE, 0)


def test_with_nothing_to_fall_back_on_probation_goes_on_after_every_power_cut() -> None:
    memory = Memory("digits", "proving", 5, Target(B, 2), active=Pointer(B, 9, 2))
    for _ in range(9):
        memory, command = after(memory, Started())
        assert (memory.phase, command) == ("proving", Command.PROVE)


def test_a_release_that_takes_the_node_down_while_it_is_activated_is_refused_in_the_end() -> None:
    memory = Memory("digits", "activating", 5, Target(B, 2), active=Pointer(A, 1, 1))
    for _ in range(MAX_CUTS - 1):
        memory, command = after(memory, Started())
        assert (memory.phase, command) == ("activating", Command.ACTIVATE)
    assert after(memory, Started(was_orderly=True))[0].cuts == MAX_CUTS - 1
    memory, command = after(memory, Started())
    assert (memory.phase, memory.active, command) == ("idle", Pointer(A, 1, 1), Command.SERVE)
    assert memory.refused == (Refused(B, 2, f"the node stopped {MAX_CUTS} times while it was activated"),)


def test_cuts_while_activating_are_not_counted_in_probation() -> None:
    memory = Memory("digits", "activating", 5, Target(B, 2), active=Pointer(A, 1, 1))
    memory, _ = after(memory, Started(), Passed(6, 9), Healthy(7))
    assert isinstance(classify(memory, Started()), RestartedHealthy)


# --- denials ----------------------------------------------------------------------------------------------------------


@dataclass
class Denied:
    """A deny set in memory."""

    releases: dict[bytes, int] = field(default_factory=dict)
    keys: set[bytes] = field(default_factory=set)

    def is_denied(self, release: bytes, vouchers: tuple[bytes, ...]) -> bool:
        return release in self.releases or not self.keys.isdisjoint(vouchers)

    def is_final(self, release: bytes, vouchers: tuple[bytes, ...]) -> bool:
        return self.releases.get(release, 0) > 1 or not self.keys.isdisjoint(vouchers)


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_a_denied_target_is_refused_wherever_it_is_on_its_way(phase: Phase) -> None:
    memory = Memory("digits", phase, 4, Target(B, 2), active=Pointer(A, 1, 1))
    rest, command, events = settled(memory, weigh(memory, Denied({B: 1})))
    assert [type(event) for event in events] == [TargetDenied]
    assert (rest.phase, rest.target, rest.active, command) == ("idle", None, memory.active, Command.SERVE)
    assert rest.refused == (Refused(B, 2, "denied"),)


def test_a_key_is_denied_by_the_evidence_that_was_kept_with_the_release() -> None:
    key = b"k" * 32
    memory = Memory("digits", "fetching", 4, Target(B, 2), active=Pointer(A, 1, 1, vouchers=(key,)))
    assert weigh(memory, Denied(keys={key})) == DenialsHeld(frozenset({A}), frozenset({A}))
    assert weigh(replace(memory, target=Target(B, 2, "", (key,)), active=None), Denied(keys={key})).denied == {B}


@pytest.mark.parametrize("phase", PHASES)
def test_a_denied_active_release_gives_way_to_the_best_fallback_that_is_not_denied(phase: Phase) -> None:
    target = {"proving": Target(C, 3)}.get(phase, Target(D, 4) if phase in UNDER_WAY else None)
    memory = Memory(
        "digits", phase, 5, target, active=Pointer(C, 9, 3),
        fallback=Pointer(A, 1, 1, "proven"), earlier=Pointer(B, 5, 2),
    )  # fmt: skip
    back, command, events = settled(memory, weigh(memory, Denied({A: 1, C: 1})))
    assert [type(event) for event in events] == [FallbackDenied, ActiveDenied]
    assert (back.phase, back.active, back.fallback, command) == ("rolling-back", memory.earlier, None, Command.SERVE)
    assert {(r.release, r.number) for r in back.refused} == {(A, 1), (C, 3)}
    assert back.releases == (B, C), "what answers is kept until something else does"
    served, _ = after(back, Served(back.epoch))
    assert served.releases == (B,), "the bytes of what is denied are needed no more"


@pytest.mark.parametrize("fail_mode", ["safe", "closed"])
@pytest.mark.parametrize("phase", PHASES)
def test_the_last_release_denied_once_serves_on_and_is_flagged(phase: Phase, fail_mode: FailMode) -> None:
    target = {"proving": Target(A, 1)}.get(phase, Target(B, 2) if phase in UNDER_WAY else None)
    memory = Memory("digits", phase, 5, target, active=Pointer(A, 1, 1, fail_mode=fail_mode))
    flagged, _, events = settled(memory, weigh(memory, Denied({A: 1})))
    assert events == (LastDenied("once"),)
    assert flagged.active is not None and flagged.active.release == A and flagged.is_last_denied
    assert settled(flagged, weigh(flagged, Denied({A: 1}))) == (flagged, None, ()), "and is not told again"
    assert flagged.phase == ("idle" if phase == "proving" else phase)


@pytest.mark.parametrize("phase", PHASES)
def test_the_last_release_denied_twice_ends_in_the_models_fail_mode(phase: Phase) -> None:
    target = {"proving": Target(A, 1)}.get(phase, Target(B, 2) if phase in UNDER_WAY else None)
    memory = Memory("digits", phase, 5, target, active=Pointer(A, 1, 1, denied="once"))
    safe, _, events = settled(memory, weigh(memory, Denied({A: 2})))
    assert events == (LastDenied("finally"),)
    assert safe.active is not None and safe.active.denied == "finally"
    assert settled(safe, weigh(safe, Denied({A: 2}))) == (safe, None, ())
    closing = replace(memory, active=Pointer(A, 1, 1, fail_mode="closed"))
    closed, command, events = settled(closing, weigh(closing, Denied({A: 2})))
    assert [type(event) for event in events] == [LastClosed]
    assert (closed.phase, closed.active, command) == ("rolling-back", None, Command.SERVE)
    assert after(closed, Stopped(closed.epoch))[0].phase == "stuck"


@pytest.mark.parametrize("fail_mode", ["safe", "closed"])
def test_what_was_denied_once_serves_on_flagged_where_no_fallback_serves(fail_mode: FailMode) -> None:
    memory = Memory(
        "digits", "idle", 5, active=Pointer(C, 9, 3, fail_mode=fail_mode),
        fallback=Pointer(A, 1, 1, "proven", fail_mode=fail_mode),
    )  # fmt: skip
    denials = Denied({C: 1})
    back, _, _ = settled(memory, weigh(memory, denials))
    flagged, command = after(back, Failed(6, "it is rotten"))
    assert (flagged.phase, flagged.reason, command) == ("rolling-back", "it is rotten", Command.SERVE)
    assert flagged.active == Pointer(C, 9, 3, fail_mode=fail_mode, denied="once") and flagged.is_last_denied
    assert flagged.kept == (flagged.active,) and settled(flagged, weigh(flagged, denials)) == (flagged, None, ())
    rest, _ = after(flagged, Served(7))
    assert rest.phase == "idle" and rest.is_last_denied
    denials.releases[C] = 2
    ended, _, events = settled(rest, weigh(rest, denials))
    if fail_mode == "closed":
        assert ([type(e) for e in events], ended.active, ended.phase) == ([LastClosed], None, "rolling-back")
    else:
        assert events == (LastDenied("finally"),) and ended.active is not None and ended.active.denied == "finally"


def test_a_second_denial_that_comes_on_the_way_back_counts_when_the_way_ends_where_it_began() -> None:
    closed = Pointer(C, 9, 3, fail_mode="closed")
    memory = Memory("digits", "idle", 5, active=closed, fallback=Pointer(A, 1, 1, "proven", fail_mode="closed"))
    back, _, _ = settled(memory, weigh(memory, Denied({C: 1})))
    assert settled(back, weigh(back, Denied({C: 2}))) == (back, None, ()), "it is being left as it is"
    again, _ = after(back, Failed(6, "it is rotten"))
    ended, command, events = settled(again, weigh(again, Denied({C: 2})))
    assert ([type(event) for event in events], ended.active, command) == ([LastClosed], None, Command.SERVE)


def test_of_two_releases_that_are_denied_the_one_with_fewer_signatures_goes_on() -> None:
    memory = Memory(
        "digits", "rolling-back", 5, active=Pointer(A, 1, 1, fail_mode="closed"), reason="denied",
        resort=Pointer(C, 9, 3, fail_mode="closed", denied="once"),
    )  # fmt: skip
    on, _, events = settled(memory, weigh(memory, Denied({A: 1, C: 1})))
    assert events == (LastDenied("once"),) and on.resort == memory.resort
    back, _, events = settled(on, weigh(on, Denied({A: 2, C: 1})))
    assert [type(event) for event in events] == [ActiveDenied]
    assert (back.active, back.resort) == (memory.resort, on.active)


def test_what_failed_serves_on_where_no_fallback_serves_unless_the_fail_mode_is_closed() -> None:
    memory = Memory("digits", "proving", 5, Target(B, 2), active=Pointer(B, 9, 2), fallback=Pointer(A, 1, 1, "proven"))
    back, _ = after(memory, Failed(5, "too slow"))
    on, command = after(back, Failed(6, "rotten"))
    assert (on.phase, on.active, command) == ("rolling-back", Pointer(B, 9, 2, "failed"), Command.SERVE)
    rest, _ = after(on, Served(7))
    assert rest.active == Pointer(B, 9, 2, "failed"), "serving does not redeem it"
    assert classify(rest, install(B, 2)) is None
    assert after(on, Failed(7, "gone"))[0].phase == "stuck"
    closed = replace(memory, active=Pointer(B, 9, 2, fail_mode="closed"))
    ended, command = after(closed, Failed(5, "too slow"), Failed(6, "rotten"))
    assert (ended.active, ended.kept, command) == (None, (), Command.SERVE)


def test_what_was_returned_serves_on_where_no_fallback_serves() -> None:
    memory = Memory("digits", "idle", 5, active=Pointer(B, 9, 2, "proven"), fallback=Pointer(A, 1, 1, "proven"))
    back, _ = after(memory, Directed("return", Target(B, 3)))
    assert after(back, Failed(6, "rotten"))[0].active == memory.active


def test_what_answers_denied_goes_on_if_the_next_release_does_not_get_to_answer() -> None:
    last = Pointer(A, 1, 1, "proven", denied="once")
    memory = Memory("digits", "activating", 4, Target(B, 2), active=last)
    proving, _ = after(memory, Passed(4, 9))
    assert proving.resort == last and last in proving.kept
    back, command = after(proving, Failed(5, "its manifest is gone"))
    assert (back.phase, back.active, command) == ("rolling-back", last, Command.SERVE)
    superseded, command = after(proving, install(C, 3))
    assert command == Command.CHECK, "which has the server serve what is active before anything else"
    assert superseded.resort == last, "nobody has seen the new one answer"
    assert after(superseded, Failed(6, "rotten"))[0].active == last, "CHECK could not have the server serve it"
    assert after(superseded, Admitted(6))[0].resort is None
    assert after(proving, Proved(5, "unproven"))[0].resort is None


def proving_before_the_switch() -> Memory:
    """C has just flipped and nobody has seen it answer: that is B still, whose fallback was A."""
    active, fallback = Pointer(B, 2, 2, "unproven"), Pointer(A, 1, 1, "proven", proven=1)
    proving, _ = after(Memory("digits", "activating", 4, Target(C, 3), active=active, fallback=fallback), Passed(4, 9))
    assert (proving.fallback, proving.earlier, proving.resort) == (fallback, active, active)
    return proving


def test_what_answers_goes_on_denied_if_it_was_dropped_before_the_next_release_answered() -> None:
    proving = proving_before_the_switch()
    denied, _, events = settled(proving, weigh(proving, Denied({A: 1, B: 1})))
    assert [type(event) for event in events] == [FallbackDenied] and denied.line == ()
    assert denied.resort == replace(proving.earlier, denied="once") and denied.resort in denied.kept  # type: ignore[type-var]
    back, command = after(denied, Failed(5, "its worker died"))
    assert (back.phase, back.active, command) == ("rolling-back", denied.resort, Command.SERVE)
    flagged, _, _ = settled(back, weigh(back, Denied({A: 1, B: 2})))
    assert flagged.active is not None and flagged.active.denied == "finally", "a second denial finds it"


def test_what_is_denied_once_the_next_release_was_seen_to_answer_is_dropped_for_good() -> None:
    healthy, _ = after(proving_before_the_switch(), Healthy(5))
    assert healthy.resort is None
    denied, _, _ = settled(healthy, weigh(healthy, Denied({A: 1, B: 1})))
    assert denied.kept == (healthy.active,)


def test_what_answers_is_kept_where_its_successor_never_did_and_else_its_successor() -> None:
    proving = proving_before_the_switch()
    unseen, _ = after(proving, Failed(5, "its files are rotten"))
    assert (unseen.active, unseen.fallback, unseen.resort) == (proving.fallback, proving.earlier, proving.earlier)
    seen, _ = after(proving, Failed(5, "too slow", answered=True))
    assert seen.resort == replace(proving.active, verdict="failed")  # type: ignore[type-var]
    superseded, _ = after(proving, install(D, 4))
    assert superseded.earlier is None and superseded.resort == proving.earlier, "it answers all the same"


REST = Memory("digits", "idle", 5, active=Pointer(B, 9, 2, "proven"), fallback=Pointer(A, 1, 1, "proven"))


def test_the_fallback_stands_in_and_what_is_committed_comes_back_and_nothing_is_refused() -> None:
    aside, command = after(REST, StandIn("fallback", "a drill"))
    assert (aside.phase, command, aside.active, aside.fallback) == (
        "rolling-back", Command.SERVE, REST.fallback, REST.active,
    )  # fmt: skip
    served, _ = after(aside, Served(6))
    assert (served.phase, served.aside) == ("idle", "fallback")
    assert classify(served, install(C, 9)) is None, "nothing new is taken up meanwhile"
    assert classify(served, Directed("return", Target(A, 9))) is None
    back, command = after(served, StandIn("", "it is over"))
    assert command is Command.SERVE
    assert back.resort == REST.fallback, "it answers until what is committed does"
    assert replace(after(back, Served(back.epoch))[0], epoch=5, reason="") == REST


def test_what_stands_in_and_fails_gives_way_to_what_is_committed() -> None:
    aside, _ = after(REST, StandIn("fallback", "a drill"))
    back, command = after(aside, Failed(6, "rotten"))
    assert (back.active, back.aside, command) == (REST.active, "", Command.SERVE)
    assert [(r.release, r.number) for r in back.refused] == [(A, 1)]


def test_a_model_stands_down_and_all_it_had_comes_back() -> None:
    down, command = after(REST, StandIn("stopped", "too long off line"))
    assert (down.active, down.fallback, command) == (None, REST.fallback, Command.SERVE)
    stopped, _ = after(down, Stopped(6))
    assert (stopped.phase, stopped.reason) == ("stuck", "too long off line")
    assert stopped.releases == (A, B), "the bytes of both are kept"
    restarted, command = after(stopped, Started())
    assert (restarted.active, command) == (None, Command.SERVE)
    back, _ = after(stopped, StandIn("", "the hub is heard"))
    assert (back.active, back.fallback, back.resort, back.phase) == (REST.active, REST.fallback, None, "idle")
    assert after(back, Served(back.epoch))[0].phase == "idle"


def test_what_is_denied_while_the_model_stands_down_does_not_come_back() -> None:
    stopped, _ = after(REST, StandIn("stopped", "too long off line"), Stopped(6))
    back, _ = after(stopped, StandIn("", "the hub is heard"))
    held, _, events = settled(back, weigh(back, Denied({B: 1})))
    assert [type(event) for event in events] == [ActiveDenied] and held.active == REST.fallback


def test_what_is_on_its_way_is_withdrawn_before_anything_stands_in() -> None:
    fetching = replace(REST, phase="fetching", target=Target(C, 3))
    memory, _, events = settled(fetching, StandIn("fallback", "too long off line"))
    assert [type(event) for event in events] == [Withdrawn, SteppedAside] and memory.target is None
    alone = Memory("digits", "fetching", 5, Target(C, 3), active=Pointer(B, 9, 2))
    assert classify(alone, StandIn("fallback", "a drill")) is None, "there is nothing to stand in"
    assert classify(replace(REST, phase="proving", target=Target(B, 2)), StandIn("fallback", "a drill")) is None


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "rolling-back"])
def test_what_a_person_recalls_gives_way_to_its_fallback_and_is_refused_by_its_number(phase: Phase) -> None:
    target = Target(C, 3) if phase in UNDER_WAY else Target(B, 2) if phase == "proving" else None
    back, command = after(replace(REST, phase=phase, target=target), Recalled("wrong labels"))
    assert (back.phase, back.active, command) == ("rolling-back", REST.fallback, Command.SERVE)
    assert [(r.release, r.number, r.reason) for r in back.refused] == [(B, 2, "wrong labels")]
    assert classify(replace(REST, fallback=None), Recalled("wrong labels")) is None


@pytest.mark.parametrize("phase", PHASES)
def test_what_a_person_calls_off_is_refused_by_its_number_wherever_it_is_on_its_way(phase: Phase) -> None:
    memory = replace(REST, phase=phase, target=Target(C, 3) if phase in UNDER_WAY else None)
    event = classify(memory, CalledOff("not today"))
    if phase not in UNDER_WAY:
        assert event is None
        return
    assert event == Aborted("not today")
    rest, command = step(memory, event)
    assert (rest.phase, rest.target, rest.active, command) == ("idle", None, REST.active, Command.SERVE)
    assert [(r.release, r.number) for r in rest.refused] == [(C, 3)]
    assert classify(rest, install(C, 3)) is None and classify(rest, install(C, 4)) is not None


def test_policy_unproven_return_goes_back_to_the_fallback_if_there_is_one() -> None:
    proving = replace(REST, phase="proving", target=Target(B, 2))
    back, command = after(proving, Proved(5, "unproven", returns=True))
    assert (back.phase, back.active, command) == ("rolling-back", REST.fallback, Command.SERVE)
    assert after(proving, Proved(5, "unproven"))[0].active == replace(REST.active, verdict="unproven")  # type: ignore[type-var]
    assert after(proving, Proved(5, "proven", returns=True))[0].phase == "idle"
    assert after(replace(proving, fallback=None), Proved(5, "unproven", returns=True))[0].phase == "idle"


def test_a_denied_last_release_is_no_fallback_for_the_next() -> None:
    memory = Memory("digits", "activating", 4, Target(B, 2), active=Pointer(A, 1, 1, "proven", denied="once"))
    flipped, _ = after(memory, Passed(4, 9))
    assert flipped.fallback is None and not flipped.is_last_denied


def test_what_passed_waits_if_meanwhile_something_forbids_activating() -> None:
    memory = Memory("digits", "activating", 4, Target(B, 2), active=Pointer(A, 1, 1))
    event = classify(memory, Passed(4, 9, waits_for="denials"))
    assert event == Postponed("denials")
    waiting, command = step(memory, Postponed("denials"))
    assert (waiting.phase, waiting.active, command) == ("activating", memory.active, Command.ACTIVATE)


# --- walks ------------------------------------------------------------------------------------------------------------

RELEASES = st.sampled_from([A, B, C, D])
NUMBERS = st.integers(0, 5)
MOVES = st.one_of(
    st.tuples(st.just("directive"), st.sampled_from(["install", "install", "hold", "return", ""]), RELEASES, NUMBERS),
    st.tuples(st.just("answer"), st.sampled_from(range(12)), st.sampled_from([0, 0, 0, 0, 1]), st.booleans()),
    st.tuples(st.just("natural"), st.sampled_from([True, True, True, False])),
    st.tuples(st.just("natural"), st.just(True)),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(st.just("deny"), RELEASES),
    st.tuples(st.just("given up"), RELEASES),
    st.tuples(st.just("stand in"), st.sampled_from(["", "fallback", "stopped"])),
    st.sampled_from([("recall",), ("call off",)]),
)
MAX_COMMANDS = 60


def natural(memory: Memory, good: bool, fail_mode: FailMode, *, blocked: bool = False) -> Answer | None:
    """What the task of this phase would answer; None where none is running."""
    epoch = memory.epoch
    match memory.phase:
        case "checking":
            return Admitted(epoch) if good else Declined(epoch, "no")
        case "fetching":
            bad: Answer = Blocked(epoch, "full") if blocked else Spoiled(epoch, "bad")
            return Fetched(epoch) if good else bad
        case "staging":
            return Staged(epoch) if good else Spoiled(epoch, "bad")
        case "activating":
            return Passed(epoch, 7, fail_mode) if good else Failed(epoch, "broke")
        case "proving":
            return Proved(epoch, "proven") if good else Failed(epoch, "broke")
        case "rolling-back":
            if memory.active is None:
                return Stopped(epoch)
            return Served(epoch) if good else Failed(epoch, "broke")
        case _:
            return None


class Walk:
    """A machine in a world that may do anything to it, and what must hold after every step."""

    def __init__(self, fail_mode: FailMode) -> None:
        self.memory = Memory("digits")
        self.fail_mode = fail_mode
        self.deny = Denied()
        self.passed: set[bytes] = set()
        self.directive: Directed | None = None
        self.stand_in = StandIn("", "it is over")
        self.commands = 0

    def happen(self, happening: Happening) -> None:
        """Classifies and steps, then looks at the levels again, as the shell does."""
        event = classify(self.memory, happening)
        if event is not None:
            self.step(event)
        self.look()

    def look(self) -> None:
        for _ in range(2):
            self.level(weigh(self.memory, self.deny))
            self.level(self.stand_in)
        self.level(weigh(self.memory, self.deny))
        if self.stand_in.aside:
            return
        if self.directive is not None and self.directive.target.release not in self.deny.releases:
            self.level(self.directive)

    def level(self, happening: Directed | DenialsHeld | StandIn) -> None:
        for _ in range(8):
            event = classify(self.memory, happening)
            if event is None or not self.step(event):
                return
        raise AssertionError(f"{happening} never settles")

    def step(self, event: Event) -> bool:
        before = self.memory
        self.memory, command = step(before, event)
        if self.memory is before:
            return False
        self.commands += command is not None
        assert (command is None) == (self.memory.epoch == before.epoch)
        if isinstance(event, Passed):
            assert before.target is not None and before.phase == "activating"
            self.passed.add(before.target.release)
        if isinstance(event, Wanted):
            named = (event.target.release, event.target.number)
            assert named not in {(r.release, r.number) for r in before.refused}, "refused, and wanted again"
        if before.active is not None and self.memory.active is None:
            is_closed = isinstance(event, LastClosed) and before.active.fail_mode == "closed"
            assert is_closed or isinstance(event, StoodDown)
        for late in (Admitted, Fetched, Staged, Healthy, Served, Stopped):
            assert step(self.memory, late(before.epoch - 1)) == (self.memory, None)
        return True

    def check(self) -> None:
        memory = self.memory
        active, spare, resort = memory.active, memory.line, memory.resort
        assert all(pointer.release in self.passed for pointer in memory.kept)
        assert len({pointer.release for pointer in memory.kept}) == len(memory.kept)
        assert (memory.target is not None) == (memory.phase in (*UNDER_WAY, "proving"))
        assert memory.fallback is not None or memory.earlier is None
        is_stopped = memory.aside == "stopped"
        assert active is None or not is_stopped
        assert memory.aside != "fallback" or memory.fallback is not None
        assert active is not None or not memory.kept or is_stopped, "something could serve, and nothing does"
        assert resort is None or is_stopped or memory.phase in ("proving", "checking", "rolling-back", "idle")
        for pointer in spare:
            assert pointer.verdict != "failed" and not pointer.denied
            assert pointer.release not in self.deny.releases, "a denied release may serve again"
        if memory.target is not None and memory.phase in UNDER_WAY:
            assert memory.target.release not in self.deny.releases, "a denied release is on its way"
        if active is not None:
            signatures = self.deny.releases.get(active.release, 0)
            assert memory.is_last_denied == (signatures > 0), "known to be denied and not flagged, or the reverse"
            assert not (signatures and memory.fallback), "denied, and something else could serve"
            is_better = resort and resort.verdict != "failed"
            assert not (signatures and is_better and resort.release not in self.deny.releases)  # type: ignore[union-attr]
            assert not (signatures > 1 and active.fail_mode == "closed"), "denied finally and not stopped"
            assert active.verdict != "failed" or memory.fallback is None, "failed, and something else could serve"
        if memory.phase in ("stuck", "rolling-back"):
            assert memory.reason, "stuck, and doesn't say why"

    def move(self, move: tuple[object, ...]) -> None:
        memory = self.memory
        match move:
            case ("directive", str(action), bytes(release), int(number)):
                self.directive = Directed(action, Target(release, number))
                if release not in self.deny.releases:
                    self.level(self.directive)
            case ("natural", bool(good)):
                answer = natural(memory, good, self.fail_mode)
                if answer is not None:
                    self.happen(answer)
            case ("answer", int(kind), int(age), bool(good)):
                epoch = memory.epoch - age
                answers: tuple[Answer, ...] = (
                    Admitted(epoch), Declined(epoch, "no"), Fetched(epoch), Spoiled(epoch, "bad"),
                    Blocked(epoch, "full"), Staged(epoch), Passed(epoch, 7, self.fail_mode, "" if good else "news"),
                    Failed(epoch, "broke"),
                    Healthy(epoch), Proved(epoch, "proven" if good else "unproven"), Served(epoch), Stopped(epoch),
                )  # fmt: skip
                # SERVE says Stopped only where nothing is active, Served only where something is.
                if not (isinstance(answers[kind], Stopped) and memory.active) and not (
                    isinstance(answers[kind], Served) and memory.active is None
                ):
                    self.happen(answers[kind])
            case ("deny", bytes(release)):
                self.deny.releases[release] = self.deny.releases.get(release, 0) + 1
                self.level(weigh(self.memory, self.deny))
            case ("given up", bytes(release)):
                self.happen(GivenUp(release, "died too often"))
            case ("stand in", str(aside)):
                self.stand_in = StandIn(aside, "so it is for a while")  # type: ignore[arg-type]
                self.look()
            case ("recall",):
                self.happen(Recalled("the operator recalls it"))
            case ("call off",):
                self.happen(CalledOff("the operator calls it off"))
            case ("restart", bool(was_orderly)):
                self.happen(Started(was_orderly))

    def run_dry(self, answers: Random | None = None) -> None:
        """Lets the tasks answer until none is running: well, or as `answers` draws. Nothing stands in any more."""
        self.commands = 0
        self.stand_in = StandIn("", "it is over")
        self.look()
        while True:
            good = answers is None or answers.random() < 0.6
            blocked = answers is not None and answers.random() < 0.5
            answer = natural(self.memory, good, self.fail_mode, blocked=blocked)
            if answer is None:
                break
            self.happen(answer)
            self.check()
            assert self.commands <= MAX_COMMANDS, "never comes to rest"
        assert self.memory.phase in ("idle", "stuck")


def walk(moves: list[tuple[object, ...]], fail_mode: FailMode) -> Walk:
    found = Walk(fail_mode)
    for move in moves:
        found.move(move)
        found.check()
    return found


FAIL_MODES = st.sampled_from(["safe", "closed"])


@given(st.lists(MOVES, max_size=60), FAIL_MODES)
@settings(max_examples=400, deadline=None)
def test_no_walk_serves_what_never_passed_or_is_denied_or_wants_what_was_refused(
    moves: list[tuple[object, ...]], fail_mode: FailMode
) -> None:
    walk(moves, fail_mode)


@given(st.lists(MOVES, max_size=40), FAIL_MODES, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_every_walk_comes_to_rest_in_a_bounded_number_of_commands_whatever_the_tasks_answer(
    moves: list[tuple[object, ...]], fail_mode: FailMode, answers: Random
) -> None:
    walk(moves, fail_mode).run_dry(answers)


@given(st.lists(MOVES, max_size=40), FAIL_MODES, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_restart_anywhere_ends_at_rest_with_what_is_wanted_or_a_reason(
    moves: list[tuple[object, ...]], fail_mode: FailMode, was_orderly: bool
) -> None:
    found = walk(moves, fail_mode)
    found.happen(Started(was_orderly))
    found.check()
    found.run_dry()
    memory, directive = found.memory, found.directive
    if directive is None or directive.action != "install" or directive.target.release in found.deny.releases:
        return
    wanted = directive.target
    is_refused = any((r.release, r.number) == (wanted.release, wanted.number) for r in memory.refused)
    assert is_refused or memory.active is not None
    if not is_refused and memory.active is not None:
        assert (memory.active.release, memory.active.number) == (wanted.release, wanted.number)


def test_the_printed_diagram_is_the_one_in_the_documents() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "heliograph_site.machine"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == mermaid()
    assert f"```mermaid\n{printed}```\n" in (ROOT / "shared" / "MACHINE.md").read_text()
    assert printed.count("-->") == len(TABLE) + 1
