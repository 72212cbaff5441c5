"""What stands in, stands down, is recalled or called off: nothing of it is lost, and what was committed comes back."""

from dataclasses import replace

import pytest

from heliograph.documents import Phase
from heliograph_site.happenings import (
    Aborted,
    ActiveDenied,
    CalledOff,
    Directed,
    Failed,
    Passed,
    Postponed,
    Proved,
    Recalled,
    Served,
    StandIn,
    Started,
    SteppedAside,
    Stopped,
    Withdrawn,
)
from heliograph_site.machine import Command, classify, settled, step
from heliograph_site.memory import UNDER_WAY, Memory, Pointer, Target
from heliograph_site.weighing import weigh
from steps import PHASES, A, B, C, Denied, after, install

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


def test_what_passed_waits_if_meanwhile_something_forbids_activating() -> None:
    memory = Memory("digits", "activating", 4, Target(B, 2), active=Pointer(A, 1, 1))
    event = classify(memory, Passed(4, 9, waits_for="denials"))
    assert event == Postponed("denials")
    waiting, command = step(memory, Postponed("denials"))
    assert (waiting.phase, waiting.active, command) == ("activating", memory.active, Command.ACTIVATE)
