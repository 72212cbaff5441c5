"""No walk through the table, whatever happens in it, breaks what the machine promises."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph_site.happenings import (
    Admitted,
    Answer,
    Blocked,
    CalledOff,
    Declined,
    DenialsHeld,
    Directed,
    Event,
    Failed,
    Fetched,
    GivenUp,
    Happening,
    Healthy,
    LastClosed,
    Passed,
    Proved,
    Recalled,
    Served,
    Spoiled,
    Staged,
    StandIn,
    Started,
    StoodDown,
    Stopped,
    Wanted,
)
from heliograph_site.machine import classify, step
from heliograph_site.memory import UNDER_WAY, FailMode, Memory, Target
from heliograph_site.weighing import weigh
from steps import A, B, C, D, Denied

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
