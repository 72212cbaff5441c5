"""What the configs and policies held make of a machine: every row of it, in every phase, and what a restart leaves."""

from dataclasses import replace
from typing import get_args

import pytest

from heliograph.documents import Phase
from heliograph_site.happenings import (
    ActiveLost,
    ActiveUnfit,
    DenialsHeld,
    Failed,
    FallbackDenied,
    FitsAgain,
    GivenUp,
    LastStopped,
    LastUnfit,
    Matched,
    Passed,
    Restarted,
    Retuned,
    Served,
    Started,
    Stopped,
)
from heliograph_site.machine import Command, classify, end_of, matched, settled, step
from heliograph_site.memory import UNDER_WAY, Memory, Pointer, Target

PHASES: tuple[Phase, ...] = get_args(Phase)
A, B, C, D = b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32


def memory_in(phase: Phase, *, fallback: bool = True) -> Memory:
    """C serves with config 3 under policy 2; B, then A would be next."""
    target = {"proving": Target(C, 3)}.get(phase, Target(D, 4) if phase in UNDER_WAY else None)
    return Memory(
        "digits", phase, 5, target, active=Pointer(C, 9, 3, "unproven" if phase == "proving" else "proven", 3, 2),
        fallback=Pointer(B, 5, 2, "proven", 1, 1, proven=2) if fallback else None,
        earlier=Pointer(A, 1, 1, "proven", 0, 1, proven=1) if fallback else None,
        reason="because" if phase in ("stuck", "rolling-back") else "", policy=2,
    )  # fmt: skip


def restarted(memory: Memory) -> tuple[Memory, Command | None]:
    event = classify(memory, Started(was_orderly=True))
    assert isinstance(event, Restarted)
    return step(memory, event)


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_active_is_retuned_in_place_and_whatever_is_under_way_goes_on(phase: Phase) -> None:
    before = memory_in(phase)
    found = Matched(C, 4, 3, "fits", "closed")
    after, command, events = settled(before, found)
    assert events == (Retuned(4, 3, "closed"),) and command is None
    assert after.active == replace(before.active, config=4, policy=3, fail_mode="closed")  # type: ignore[type-var]
    assert (after.phase, after.epoch, after.target, after.line) == (phase, before.epoch, before.target, before.line)
    assert after.policy == 3
    assert classify(after, found) is None, "a level"
    again, _ = restarted(after)
    assert again.active == after.active and classify(again, found) is None


@pytest.mark.parametrize("phase", PHASES)
def test_what_fits_no_more_gives_way_to_the_fallback_that_fits_and_is_refused_for_nothing(phase: Phase) -> None:
    before = memory_in(phase)
    found = Matched(A, 2, 4, "fits", "safe", "policy is 4, compatible.policy.max wants 3")
    after, command, events = settled(before, found)
    assert [type(event) for event in events] == [ActiveUnfit]
    assert (after.phase, command, after.target) == ("rolling-back", Command.SERVE, None)
    assert after.active is not None and before.active is not None
    assert (after.active.release, after.active.config, after.active.policy, after.policy) == (A, 2, 4, 4)
    assert {pointer.release for pointer in after.kept} == {A, B, C}, "may serve again, once something fits"
    assert after.refused == () and after.reason == found.reason
    again, command = restarted(after)
    assert (again.phase, command, again.active) == ("rolling-back", Command.SERVE, after.active)
    served, _ = step(after, Served(after.epoch))
    assert (served.phase, served.reason) == ("idle", "")


@pytest.mark.parametrize("phase", PHASES)
def test_with_nothing_that_fits_a_safe_model_serves_on_flagged_until_something_does(phase: Phase) -> None:
    before = memory_in(phase, fallback=False)
    found = Matched(C, 3, 5, "flagged", "safe", "policy is 5")
    after, command, events = settled(before, found)
    assert [type(event) for event in events] == [LastUnfit] and command is None
    assert after.is_last_unfit and (after.phase, after.policy) == (phase, 5)
    again, _ = restarted(after)
    assert again.is_last_unfit and classify(again, found) is None
    fits, _, events = settled(after, Matched(C, 4, 5))
    assert [type(event) for event in events] == [Retuned]
    assert not fits.is_last_unfit and fits.phase == phase


@pytest.mark.parametrize("phase", PHASES)
def test_with_nothing_that_fits_a_closed_model_stops_until_something_does(phase: Phase) -> None:
    before = memory_in(phase, fallback=False)
    after, command, events = settled(before, Matched(C, 3, 5, "stopped", "closed", "policy is 5"))
    assert [type(event) for event in events] == [LastStopped]
    assert (after.phase, command, after.active, after.policy) == ("rolling-back", Command.SERVE, None, 5)
    assert after.unfit is not None and after.unfit.release == C and after.refused == ()
    assert after.releases == (C,), "its bytes are kept"
    again, command = restarted(after)
    assert (again.phase, command, again.unfit) == ("rolling-back", Command.SERVE, after.unfit)
    still, _ = step(after, Stopped(after.epoch))
    assert (still.phase, still.reason) == ("stuck", "policy is 5")
    revived, command, events = settled(still, Matched(C, 6, 5))
    assert [type(event) for event in events] == [FitsAgain]
    assert (revived.phase, command, revived.unfit) == ("rolling-back", Command.SERVE, None)
    assert revived.active is not None
    assert (revived.active.release, revived.active.config, revived.active.policy) == (C, 6, 5)


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "proving"])
def test_what_was_stopped_comes_back_wherever_the_machine_is_by_then(phase: Phase) -> None:
    stopped = replace(memory_in(phase), active=None, unfit=Pointer(C, 9, 3, "proven", 3, 2))
    back, command, events = settled(stopped, Matched(B, 1, 3))
    assert [type(event) for event in events] == [FitsAgain]
    assert (back.phase, command, back.target) == ("rolling-back", Command.SERVE, None)
    assert back.active is not None and back.active.release == B
    assert [pointer.release for pointer in back.line] == [C, A] or {p.release for p in back.line} == {A, C}
    again, command = restarted(back)
    assert (again.active, command) == (back.active, Command.SERVE)


def test_the_same_number_of_another_ring_is_another_policy() -> None:
    before = replace(memory_in("idle"), ring="canary")
    found = Matched(C, 3, 2, ring="early")
    after, command, events = settled(before, found)
    assert events == (Retuned(3, 2, ring="early"),) and command is None
    assert (after.policy, after.ring, after.active) == (2, "early", before.active)
    assert classify(after, found) is None


def test_what_answers_is_kept_until_the_server_has_stopped_it() -> None:
    last = Pointer(B, 5, 2, "proven", denied="once")
    proving = replace(memory_in("proving", fallback=False), resort=last)
    stopping, _, events = settled(proving, Matched(C, 3, 5, "stopped", "closed", "policy is 5"))
    assert [type(event) for event in events] == [LastStopped] and stopping.resort == last
    assert step(stopping, Stopped(stopping.epoch))[0].resort is None
    revived, _, _ = settled(stopping, Matched(C, 3, 6))
    lost = classify(revived, Failed(revived.epoch, "its worker died"))
    assert isinstance(lost, ActiveLost) and step(revived, lost)[0].active == last


def test_a_fallback_that_still_answers_goes_on_denied_if_what_fits_does_not_serve() -> None:
    before = memory_in("idle")
    way, _, _ = settled(before, Matched(B, 1, 4, "fits", "safe", "policy is 4"))
    assert way.resort == before.active and before.active in way.line
    denied, _, _ = settled(way, DenialsHeld(frozenset({A, C})))
    lost = classify(denied, Failed(denied.epoch, "its worker died"))
    assert isinstance(lost, ActiveLost)
    back, _ = step(denied, lost)
    assert back.active == replace(before.active, denied="once")


def test_what_may_have_come_to_answer_on_the_way_is_kept_where_the_way_leads_back_to_what_answered_before() -> None:
    way = replace(memory_in("rolling-back"), resort=Pointer(B, 5, 2, "proven", 1, 1, proven=2))
    back, _, _ = settled(way, Matched(B, 1, 4, "fits", "safe", "policy is 4"))
    assert back.resort == way.active, "the server was told to serve it, or started with it"


def test_a_stopped_model_learns_of_a_newer_policy_and_serves_flagged_once_that_is_safe() -> None:
    stopped = replace(memory_in("stuck", fallback=False), active=None, unfit=Pointer(C, 9, 3, "proven", 3, 2))
    after, command, events = settled(stopped, Matched(C, 3, 7, "stopped", "closed"))
    assert [type(event) for event in events] == [Retuned] and command is None
    assert (after.policy, after.active) == (7, None)
    safe, _, events = settled(after, Matched(C, 3, 8, "flagged", "safe"))
    assert [type(event) for event in events] == [FitsAgain, LastUnfit]
    assert safe.is_last_unfit and safe.policy == 8


@pytest.mark.parametrize("blemish", [{"verdict": "failed"}, {"denied": "once"}])
def test_what_failed_or_is_denied_does_not_come_back_once_it_was_stopped(blemish: dict[str, str]) -> None:
    before = memory_in("stuck", fallback=False)
    assert before.active is not None
    blemished = replace(before, active=replace(before.active, **blemish))  # type: ignore[arg-type]
    after, _, events = settled(blemished, Matched(C, 3, 5, "stopped", "closed", "policy is 5"))
    assert [type(event) for event in events] == [LastStopped]
    assert (after.active, after.unfit, after.policy) == (None, None, 5)


def test_what_was_stopped_is_gone_for_good_once_it_is_denied() -> None:
    stopped = replace(memory_in("stuck", fallback=False), active=None, unfit=Pointer(C, 9, 3, "proven", 3, 2))
    after, _, events = settled(stopped, DenialsHeld(frozenset({C})))
    assert [type(event) for event in events] == [FallbackDenied]
    assert after.unfit is None and classify(after, Matched(C, 3, 2)) is None
    assert [(refusal.release, refusal.number) for refusal in after.refused] == [(C, 3)]


def test_the_numbers_of_the_tuple_are_in_the_pointer_that_flips() -> None:
    before = memory_in("activating")
    event = classify(before, Passed(5, 99, "closed", "", 7, 6))
    assert event is not None
    after, command = step(before, event)
    assert after.active is not None and command is Command.PROVE
    assert (after.active.release, after.active.config, after.active.policy, after.policy) == (D, 7, 6, 6)


def test_what_served_flagged_may_be_a_fallback_like_any_other() -> None:
    before = replace(memory_in("activating", fallback=False))
    assert before.active is not None
    flagged = replace(before, active=replace(before.active, is_unfit=True))
    after, _ = step(flagged, Passed(5, 99, "safe", "", 7, 6))
    assert after.fallback is not None and after.fallback.release == C and not after.fallback.is_unfit


def test_rolling_back_restores_the_config_passes_over_those_that_came_since_and_keeps_the_policy() -> None:
    before = memory_in("idle")
    lost = classify(before, GivenUp(C, "its worker died"))
    assert lost is not None
    after, _ = step(before, lost)
    assert after.active is not None
    assert (after.active.release, after.active.config, after.active.passed_over) == (B, 1, 3)
    assert (after.active.policy, after.policy) == (2, 2), "policy never goes back"


def test_what_the_documents_lead_to_is_followed_to_its_end_in_one_go() -> None:
    before = memory_in("rolling-back")

    def look(memory: Memory) -> Matched:
        """Only A fits, and that only with config 8."""
        assert memory.active is not None
        return Matched(A, 8 if memory.active.release == A else 2, 4, "fits", "safe", "policy is 4")

    steps = matched(before, look)
    assert [type(event) for _, event, _ in steps] == [ActiveUnfit, Retuned]
    memory, command = end_of(steps, before, Command.PROVE)
    assert memory.active is not None and memory.active.config == 8
    assert command is Command.SERVE, "the last one there was"
    assert end_of((), before, Command.PROVE) == (before, Command.PROVE)
