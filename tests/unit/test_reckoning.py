"""The span of time by itself: its bounds, its falls, and what holds over any history."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph_site.reckoning import BUILT_AT, DRIFT, MAX_MARKS, TOLERANCE_S, Reckoning, TimeMark

NOW, DAY = 1_795_000_000, 86_400
MONTH = 30 * DAY
A, B = b"a" * 32, b"b" * 32
SIGNED = Reckoning().signed(NOW, [A], "boot", 100.0)


def test_before_any_signature_it_is_the_time_this_version_was_made_and_no_wall_clock_is_believed_beyond() -> None:
    known = Reckoning()
    assert known.earliest(1e9) == BUILT_AT and not known.is_signed
    assert known.latest(5.0, NOW, MONTH) == BUILT_AT


def test_only_a_later_time_moves_it_and_what_has_passed_is_added() -> None:
    assert SIGNED.earliest(100.0) == NOW and SIGNED.is_signed
    assert SIGNED.earliest(160.9) == NOW + 60
    for at in (NOW - DAY, NOW, NOW + 60):
        assert SIGNED.signed(at, [A], "boot", 160.0) is SIGNED
    assert SIGNED.signed(NOW + 61, [A], "boot", 160.0).earliest(160.0) == NOW + 61
    assert SIGNED.earliest(50.0) == NOW, "a clock of the boot that goes back adds nothing"


@pytest.mark.parametrize(
    ("wall", "latest", "suspicion"),
    [
        (0, NOW, -NOW),
        (NOW - TOLERANCE_S - 1, NOW, -TOLERANCE_S - 1),
        (NOW - TOLERANCE_S, NOW, 0),
        (NOW - 1, NOW, 0),
        (NOW, NOW, 0),
        (NOW + 1, NOW + 1, 0),
        (NOW + MONTH, NOW + MONTH, 0),
        (NOW + MONTH + 1, NOW, MONTH + 1),
        (None, NOW, 0),
    ],
)
def test_the_wall_clock_counts_from_the_estimate_to_max_offline_later(
    wall: int | None, latest: int, suspicion: int
) -> None:
    assert SIGNED.latest(100.0, wall, MONTH) == latest
    assert SIGNED.suspicion_s(100.0, wall, MONTH) == suspicion


def test_the_hubs_answer_narrows_what_a_wall_clock_may_say_by_all_that_passed_since_it_was_asked() -> None:
    known = SIGNED.answered(NOW, [A], "boot", 40.0)
    assert known.bound(100.0, MONTH) == NOW + 60 + TOLERANCE_S
    ahead = NOW + 60 + TOLERANCE_S + 1
    assert known.latest(100.0, ahead, MONTH) == NOW and known.suspicion_s(100.0, ahead, MONTH) > 0
    assert known.latest(100.0, ahead - 1, MONTH) == ahead - 1
    later = 100.0 + DAY
    assert known.bound(later, MONTH) == NOW + 60 + DAY + TOLERANCE_S + (60 + DAY) // DRIFT
    assert known.bound(100.0, 10) == NOW + 10, "never beyond what policy allows"
    assert known.started("boot", 100.0).proof is None, "it is of one run"


def test_an_answer_older_than_the_estimate_takes_nothing_from_it() -> None:
    known = SIGNED.answered(NOW - MONTH, [A], "boot", 90.0)
    assert known.earliest(100.0) == NOW
    assert known.bound(100.0, MONTH) == NOW + TOLERANCE_S


def test_what_keys_said_that_count_no_more_is_gone_with_their_answer() -> None:
    known = SIGNED.signed(NOW + 9 * DAY, [B], "boot", 100.0).answered(NOW + 9 * DAY, [B], "boot", 99.0)
    assert known.judged(1, [A, B]) is known
    left = known.judged(1, [A])
    assert (left.earliest(160.0), left.proof) == (NOW + 60, None)
    assert left.judged(2, [A]).earliest(160.0) == BUILT_AT
    both = Reckoning().signed(NOW, [B, A], "boot", 1.0)
    assert both.judged(2, [A, B]) is both and not both.judged(2, [A]).is_signed


def test_what_was_stored_before_signers_were_is_theirs_who_are_heard_first() -> None:
    known = Reckoning((TimeMark(NOW + DAY, "boot", 100.0),))
    assert known.judged(1, []) is known
    taken = known.signed(NOW + 2 * DAY, [A], "boot", 100.0)
    assert [mark.keyids for mark in taken.marks] == [(A,)]
    assert known.signed(NOW, [A], "boot", 100.0).earliest(100.0) == NOW + DAY, "it doesn't fall by that"


def test_only_so_many_sets_of_signers_are_remembered_and_the_latest_is_among_them() -> None:
    known = SIGNED
    for n in range(40):
        known = known.signed(NOW + 40 - n, [bytes([n]) * 32], "boot", 100.0)
    assert len(known.marks) == MAX_MARKS and known.earliest(100.0) == NOW + 40


@pytest.mark.parametrize(
    ("boot", "boottime_s", "now"),
    [("boot", 160.0, NOW + 60), ("boot", 30.0, NOW), ("another", 30.0, NOW), ("another", 160.0, NOW)],
)
def test_a_start_adds_what_one_boot_measured_and_no_time_between_boots(boot: str, boottime_s: float, now: int) -> None:
    known = SIGNED.started(boot, boottime_s)
    assert known.earliest(boottime_s) == now
    assert known.earliest(boottime_s + 7) == now + 7


# --- any history ------------------------------------------------------------------------------------------------------


@dataclass
class History:
    """True time, and what a node with an honest hub makes of it. `off_s`: what it had no power for since a proof."""

    true: int = NOW
    boottime_s: float = 1000.0
    boot: int = 0
    off_s: int = 0
    slack_s: int = 1
    known: Reckoning = field(default_factory=Reckoning)
    stored: Reckoning = field(default_factory=Reckoning)

    def signed(self, age_s: int, keyid: bytes) -> None:
        self.known = self.known.signed(self.true - age_s, [keyid], str(self.boot), self.boottime_s)
        self.stored = self.known
        if age_s == 0:
            self.off_s, self.slack_s = 0, 1

    def passes(self, seconds: int) -> None:
        self.true += seconds
        self.boottime_s += seconds
        if self.true % 2:
            self.known = self.stored = self.known.carried(self.boottime_s)

    def answers(self, delay_s: int, keyid: bytes) -> None:
        at, asked_s = self.true, self.boottime_s
        self.true += delay_s
        self.boottime_s += delay_s
        self.known = self.known.signed(at, [keyid], str(self.boot), self.boottime_s)
        self.known = self.known.answered(at, [keyid], str(self.boot), asked_s)
        self.stored = Reckoning(self.known.marks)
        self.off_s, self.slack_s = min(self.off_s, delay_s), delay_s + 1

    def loses_power(self, seconds: int) -> None:
        unsaved = self.known.earliest(self.boottime_s) - max((mark.at for mark in self.stored.marks), default=BUILT_AT)
        self.true += seconds
        self.boot += 1
        self.boottime_s = 3.0
        self.known = self.stored.started(str(self.boot), self.boottime_s)
        self.off_s += seconds + max(0, unsaved)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("signed"), st.integers(0, 60 * DAY), st.sampled_from([A, B])),
        st.tuples(st.just("passes"), st.integers(0, 20 * DAY)),
        st.tuples(st.just("answers"), st.integers(0, 10 * DAY), st.sampled_from([A, B])),
        st.tuples(st.just("loses_power"), st.integers(0, 60 * DAY)),
    ),
    max_size=12,
)
WALLS = st.one_of(st.none(), st.integers(-3 * 365 * DAY, 20 * 365 * DAY))


@given(EVENTS, WALLS)
def test_over_any_history_the_estimate_is_never_ahead_of_an_honest_hub_and_behind_by_no_more_than_was_unmeasured(
    events: list[tuple[str, int]], off: int | None
) -> None:
    history = History()
    history.signed(0, A)
    for name, *arguments in events:
        before = history.known.earliest(history.boottime_s)
        getattr(history, name)(*arguments)
        now = history.known.earliest(history.boottime_s)
        assert now <= history.true
        assert name == "loses_power" or now >= before, "it falls by no event but a loss of what wasn't saved"
        wall = None if off is None else history.true + off
        latest = history.known.latest(history.boottime_s, wall, MONTH)
        assert now <= latest <= now + MONTH
        assert latest in (now, wall)
        assert history.true - latest <= history.true - now
        assert history.true - now <= history.off_s + history.slack_s + len(events)


@given(EVENTS)
def test_over_any_history_a_right_wall_clock_is_right_unless_too_much_is_unmeasured(
    events: list[tuple[str, int]],
) -> None:
    history = History()
    history.signed(0, A)
    for name, *arguments in events:
        getattr(history, name)(*arguments)
        now = history.known.earliest(history.boottime_s)
        latest = history.known.latest(history.boottime_s, history.true, MONTH)
        assert latest == (history.true if history.true - now <= MONTH else now)
