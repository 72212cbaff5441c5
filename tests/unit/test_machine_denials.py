"""What denials and failures do to what is on its way, active, or kept: what serves is the best that is left."""

from dataclasses import replace

import pytest

from heliograph.documents import Phase
from heliograph_site.happenings import (
    ActiveDenied,
    Admitted,
    DenialsHeld,
    Directed,
    Failed,
    FallbackDenied,
    Healthy,
    LastClosed,
    LastDenied,
    Passed,
    Proved,
    Served,
    Stopped,
    TargetDenied,
)
from heliograph_site.machine import Command, classify, settled
from heliograph_site.memory import UNDER_WAY, FailMode, Memory, Pointer, Refused, Target
from heliograph_site.weighing import weigh
from steps import PHASES, A, B, C, D, Denied, after, install


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


def test_a_denied_last_release_is_no_fallback_for_the_next() -> None:
    memory = Memory("digits", "activating", 4, Target(B, 2), active=Pointer(A, 1, 1, "proven", denied="once"))
    flipped, _ = after(memory, Passed(4, 9))
    assert flipped.fallback is None and not flipped.is_last_denied
