"""What a node counts of its link, and what that and the windows let it do: tables of the time of day."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from heliograph.policy import Budget, Policy, Window
from heliograph_site.allowance import FLUSH_BYTES, Allowance
from heliograph_site.journal import Journal

A, B = b"a" * 32, b"b" * 32
NOON = 1_795_348_800  # 2026-11-22 12:00 UTC
HOUR, DAY = 3600, 86400


@dataclass
class Site:
    """A node's journal, and what its allowance is told."""

    folder: Path
    now: int = NOON
    labels: dict[str, str] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    number: int = 1

    def start(self) -> Allowance:
        self.journal = Journal(self.folder / "journal.sqlite")
        return Allowance(self.journal, self.policy, lambda: self.labels, lambda: self.now)

    def policy(self) -> Policy:
        return Policy(realm="lab", ring="canary", number=self.number, at=0, **self.rules)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_policy_budget_day_bytes_are_counted_in_the_sites_own_day(site: Site) -> None:
    site.rules, site.labels = {"budget": Budget(day_bytes=10_000)}, {"time-zone": "Asia/Tokyo"}
    allowance = site.start()
    assert (allowance.may_take(), allowance.why_not_fetch()) == (10_000, None)
    allowance.took(A, 5900)
    assert (allowance.may_take(), allowance.why_not_fetch()) == (4100, None)
    allowance.took(A, 100)
    assert allowance.may_take() == 0
    reason, _ = allowance.why_not_fetch() or ("", 0)
    assert reason == "the next day: 4000 bytes of this one's budget are left, too few for a leaf"
    allowance.took(B, 4000)
    assert allowance.may_take() == 0
    reason, until = allowance.why_not_fetch() or ("", 0)
    assert reason == "the next day: 10000 of 10000 bytes of this one's budget are spent"
    assert until == NOON + 3 * HOUR, "midnight in Tokyo"
    site.now = until - 1
    assert allowance.may_take() == 0
    site.now = until
    assert (allowance.may_take(), allowance.why_not_fetch()) == (10_000, None)
    assert (allowance.spent().day, allowance.spent().month) == (0, 10_000)


def test_policy_budget_month_bytes_wait_for_the_month(site: Site) -> None:
    site.rules = {"budget": Budget(day_bytes=10_000, month_bytes=15_000)}
    allowance = site.start()
    allowance.took(A, 10_000)
    site.now += DAY
    assert allowance.may_take() == 5000
    allowance.took(A, 5000)
    reason, until = allowance.why_not_fetch() or ("", 0)
    assert reason.startswith("the next month: 15000 of 15000 bytes")
    site.now += DAY
    assert allowance.may_take() == 0
    site.now = until
    assert allowance.may_take() == 10_000
    assert (allowance.spent().day, allowance.spent().month, allowance.took_for(A)) == (0, 0, 15_000)


def test_a_kill_loses_less_than_one_flush_of_what_was_counted(site: Site) -> None:
    allowance = site.start()
    came = 0
    for _ in range(50):
        allowance.took(A, 16 * 1024)
        came += 16 * 1024
        again = Site(site.folder, NOON).start()  # nobody closed the journal of the life before
        assert came - FLUSH_BYTES < again.spent().day <= came
    allowance.flush()
    assert Site(site.folder, NOON).start().spent().day == came


def test_days_of_more_than_two_months_ago_are_forgotten(site: Site) -> None:
    allowance = site.start()
    allowance.took(A, 10)
    allowance.flush()
    site.now += 63 * DAY
    allowance.took(B, 20)
    allowance.flush()
    assert (allowance.took_for(A), allowance.took_for(B)) == (0, 20)


def test_policy_windows_guard_fetching_in_the_sites_time_zone(site: Site) -> None:
    site.labels = {"time-zone": "Europe/Berlin", "link": "satellite"}
    site.rules = {"windows": (Window(opens="0 2 * * *", for_s=2 * HOUR, guards=("fetch",)),)}
    allowance = site.start()
    reason, until = allowance.why_not_fetch() or ("", 0)
    assert reason == "the window for fetching that opens at 2026-11-23 02:00 Europe/Berlin"
    assert (until, allowance.may_take(), allowance.link) == (NOON + 13 * HOUR, 0, "satellite")
    assert allowance.why_not_activate("digits", "1.0.0", None) is None
    for at, is_open in ((until - 1, False), (until, True), (until + 2 * HOUR - 1, True), (until + 2 * HOUR, False)):
        site.now = at
        assert (allowance.why_not_fetch() is None) is is_open, at - until
        assert allowance.may_take() == (None if is_open else 0)


def test_a_time_that_falls_is_judged_as_the_day_and_the_window_that_it_is(site: Site) -> None:
    site.rules = {
        "budget": Budget(day_bytes=10_000),
        "windows": (Window(opens="0 11 * * *", for_s=2 * HOUR, guards=("fetch",)),),
    }
    allowance = site.start()
    allowance.took(A, 10_000)
    site.now += 36 * HOUR
    assert allowance.may_take() == 0, "a window is closed"
    site.now -= 12 * HOUR
    assert allowance.may_take() == 10_000
    site.now -= DAY
    assert allowance.may_take() == 0, "that day's budget was spent"


def test_another_policy_or_another_zone_counts_at_once(site: Site) -> None:
    site.rules = {"windows": (Window(opens="0 2 * * *", for_s=HOUR),)}
    allowance = site.start()
    assert allowance.may_take() == 0
    site.number, site.rules = 2, {}
    assert allowance.may_take() is None
    site.labels = {"time-zone": "Mars/Olympus"}
    assert (allowance.tz.key, allowance.said) == ("UTC", "time zone 'Mars/Olympus' is unknown here: UTC counts")


def test_policy_cadence_s_and_windows_hold_activating_back(site: Site) -> None:
    site.rules = {"cadence_s": DAY}
    allowance = site.start()
    assert allowance.why_not_activate("digits", "1.0.0", None) is None
    reason, until = allowance.why_not_activate("digits", "1.0.0", NOON - HOUR) or ("", 0)
    assert "the cadence: 86400 s between activations" in reason and until == NOON + 23 * HOUR
    site.number, site.rules = 2, {"windows": (Window(opens="0 2 * * *", for_s=HOUR, guards=("activate",)),)}
    reason, _ = allowance.why_not_activate("digits", "1.0.0", None) or ("", 0)
    assert reason == "the window for activating that opens at 2026-11-23 02:00 UTC"
    assert allowance.why_not_fetch() is None
