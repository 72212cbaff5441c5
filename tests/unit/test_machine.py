"""The life of a release: the table is complete, and each of its rows leads where it should."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from heliograph.documents import Phase
from heliograph_site.happenings import (
    EVENTS,
    Aborted,
    Admitted,
    Answer,
    Blocked,
    Declined,
    DenialsHeld,
    Directed,
    Failed,
    Fetched,
    FitsAgain,
    GivenUp,
    Happening,
    Healthy,
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
from heliograph_site.memory import UNDER_WAY, Memory, Pointer, Refused, Target
from heliograph_site.weighing import fallbacks
from steps import PHASES, A, B, C, after, install

ROOT = Path(__file__).parents[2]


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


def test_what_answers_and_is_named_by_nothing_is_a_stray_once_nothing_else_could_be_served() -> None:
    """B is denied before its successor C answered, and neither C nor A can be served."""
    active, answers, oldest = Pointer(C, 9, 3), Pointer(B, 5, 2), Pointer(A, 1, 1)
    memory = Memory(
        "digits", "proving", 6, Target(C, 3), active=active, fallback=answers, earlier=oldest, resort=answers
    )
    denied, _ = after(memory, DenialsHeld(frozenset({B})))
    assert not denied.is_stray(B), "C or A is about to answer"
    back, _ = after(denied, Recalled("not this one"))
    assert (back.phase, back.active) == ("rolling-back", oldest)
    lost, _ = after(back, Failed(back.epoch, "its worker died"))
    assert lost.active == active and not lost.is_stray(B)
    stuck, command = after(lost, Failed(lost.epoch, "its worker died"))
    assert (stuck.phase, command) == ("stuck", None)
    assert stuck.is_stray(B) and not stuck.is_stray(C)


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


def test_the_printed_diagram_is_the_one_in_the_documents() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "heliograph_site.machine"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == mermaid()
    assert f"```mermaid\n{printed}```\n" in (ROOT / "shared" / "MACHINE.md").read_text()
    assert printed.count("-->") == len(TABLE) + 1
