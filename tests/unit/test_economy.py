"""Windows, cadence, budgets, ways and pacing, as tables; windows against a search minute by minute."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph import economy
from heliograph.documents import RecipeRef, Spent, Way
from heliograph.economy import Wait
from heliograph.policy import Budget, ModelRules, Pacing, Policy, Window, no_policy

UTC_ZONE, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
HOUR, DAY = 3600, 86_400


def at(text: str) -> int:
    """Seconds of a time such as `2026-03-29T01:30` (UTC) or `…+02:00`."""
    found = datetime.fromisoformat(text)
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def a_policy(**fields: object) -> Policy:
    return no_policy("demo", "general").model_copy(update=fields)


NIGHT = Window(opens="0 2 * * *", for_s=HOUR)
NOW = at("2026-11-22T12:00")


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "until", "opens"),
    [
        ("2026-11-22T01:59:59", None, "2026-11-22T02:00"),
        ("2026-11-22T02:00:00", "2026-11-22T03:00", "2026-11-22T02:00:00"),
        ("2026-11-22T02:59:59", "2026-11-22T03:00", "2026-11-22T02:59:59"),
        ("2026-11-22T03:00:00", None, "2026-11-23T02:00"),
    ],
)
def test_a_window_is_open_from_its_time_for_as_long_as_it_says(now: str, until: str | None, opens: str) -> None:
    assert economy.open_until((NIGHT,), "fetch", UTC_ZONE, at(now)) == (at(until) if until else None)
    assert economy.next_open((NIGHT,), "fetch", UTC_ZONE, at(now)) == at(opens)
    wait = economy.why_closed((NIGHT,), "fetch", UTC_ZONE, at(now))
    assert (wait is None) == (until is not None)
    assert wait is None or wait.until == at(opens)


@pytest.mark.parametrize(
    ("now", "is_open", "opens"),
    [
        # Winter: 02:00 is 01:00 UTC. Summer: 02:00 is 00:00 UTC.
        ("2026-03-28T01:30", True, "2026-03-28T01:30"),
        ("2026-03-28T00:30", False, "2026-03-28T01:00"),
        # The night in which 02:00 to 03:00 doesn't exist: the window opens when it would have, at 03:00 summer time.
        ("2026-03-29T00:59:59", False, "2026-03-29T01:00"),
        ("2026-03-29T01:30", True, "2026-03-29T01:30"),
        ("2026-03-29T02:00", False, "2026-03-30T00:00"),
        # The night in which 02:00 to 03:00 comes twice: it opens once, the first time.
        ("2026-10-24T23:59:59", False, "2026-10-25T00:00"),
        ("2026-10-25T00:30", True, "2026-10-25T00:30"),
        ("2026-10-25T01:30", False, "2026-10-26T01:00"),
        ("2026-10-26T01:30", True, "2026-10-26T01:30"),
    ],
)
def test_a_window_follows_the_clocks_of_the_site_when_they_change(now: str, is_open: bool, opens: str) -> None:
    assert (economy.open_until((NIGHT,), "fetch", BERLIN, at(now)) is not None) == is_open
    assert economy.next_open((NIGHT,), "fetch", BERLIN, at(now)) == at(opens)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-22", 24)])
def test_a_window_of_every_hour_is_open_all_day_however_long_the_day_is(day: str, hours: int) -> None:
    always = (Window(opens="0 * * * *", for_s=HOUR),)
    begins = int(datetime.fromisoformat(day).replace(tzinfo=BERLIN).timestamp())
    opened = [at for at in range(begins, begins + hours * HOUR, 600) if economy.open_until(always, "fetch", BERLIN, at)]
    assert len(opened) == hours * 6
    assert economy.periods(BERLIN, begins).day_ends == begins + hours * HOUR


def test_without_a_window_that_guards_it_anything_goes() -> None:
    only_activating = (Window(opens="0 2 * * *", for_s=HOUR, guards=("activate",)),)
    assert economy.why_closed((), "fetch", UTC_ZONE, NOW) is None
    assert economy.why_closed(only_activating, "fetch", UTC_ZONE, NOW) is None
    wait = economy.why_closed(only_activating, "activate", UTC_ZONE, NOW)
    assert wait == Wait("the window for activating that opens at 2026-11-23 02:00 UTC", at("2026-11-23T02:00"))


def test_of_several_windows_any_will_do_and_the_longest_counts() -> None:
    windows = (NIGHT, Window(opens="30 2 * * 1-5", for_s=2 * HOUR), Window(opens="0 20 * * 6", for_s=60))
    monday = at("2026-11-23T02:45")
    assert economy.open_until(windows, "fetch", UTC_ZONE, monday) == at("2026-11-23T04:30")
    assert economy.next_open(windows, "fetch", UTC_ZONE, at("2026-11-21T12:00")) == at("2026-11-21T20:00")


def test_a_window_longer_than_the_time_between_its_openings_never_closes() -> None:
    windows = (Window(opens="0 * * * *", for_s=2 * HOUR),)
    assert economy.open_until(windows, "fetch", UTC_ZONE, NOW + 59) == NOW + 2 * HOUR


CRONS = ["0 2 * * *", "*/15 * * * *", "30 1,13 * * 1-5", "0 0 1 * *", "15 2 29 3 *", "45 2 25 10 *", "0 3 * * 7"]


@settings(max_examples=60, deadline=None)
@given(
    cron=st.sampled_from(CRONS),
    minutes=st.integers(1, 300),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    now=st.one_of(
        st.integers(at("2026-03-28T00:00"), at("2026-03-30T12:00")),
        st.integers(at("2026-10-24T00:00"), at("2026-10-26T12:00")),
    ),
)
def test_what_is_open_is_what_a_walk_from_opening_to_opening_finds(
    cron: str, minutes: int, zone: str, now: int
) -> None:
    window, tz = Window(opens=cron, for_s=minutes * 60), ZoneInfo(zone)
    found, start = None, now - window.for_s
    while (opening := economy.next_opening(window, tz, start)) is not None and opening <= now:
        found, start = opening, opening
    until = None if found is None else found + window.for_s
    assert economy.open_until((window,), "fetch", tz, now) == until


# --- time zones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [None, "", "UTC"])
def test_a_site_without_a_label_lives_in_utc(label: str | None) -> None:
    assert economy.zone(label) == (UTC_ZONE, "")


@pytest.mark.parametrize("label", ["Mars/Olympus", "../../etc/passwd", "/etc/localtime", "x" * 400, "Europe", "a\0b"])
def test_an_unknown_time_zone_is_utc_and_said(label: str) -> None:
    zone = economy.zone(label)
    assert zone.tz == UTC_ZONE
    assert "unknown here: UTC counts" in zone.said
    assert len(zone.said) < 200
    assert economy.zone("Europe/Berlin") == (BERLIN, "")


# --- cadence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "activated_at", "own", "waits_s"),
    [
        ("1.1.0", None, None, None),
        ("1.1.0", NOW, None, DAY),
        ("1.1.0", NOW - DAY + 1, None, 1),
        ("1.1.0", NOW - DAY, None, None),
        ("1.2.0", NOW, None, None),  # a security release
        ("1.1.0", NOW, 2 * DAY, 2 * DAY),  # the model's own cadence
        ("1.1.0", NOW, 0, None),
    ],
)
def test_the_cadence_holds_back_what_is_new_and_no_security_release(
    version: str, activated_at: int | None, own: int | None, waits_s: int | None
) -> None:
    rules = ModelRules(cadence_s=own, security={"1.2.0": NOW})
    policy = a_policy(cadence_s=DAY, models={"digits": rules})
    wait = economy.why_not_yet_activate(policy, "digits", version, activated_at=activated_at, tz=UTC_ZONE, now=NOW)
    assert (wait.until - NOW if wait else None) == waits_s
    assert wait is None or wait.reason.startswith("the cadence: ")


def test_a_closed_window_holds_back_activating_even_a_security_release() -> None:
    policy = a_policy(windows=(NIGHT,), models={"digits": ModelRules(security={"1.2.0": NOW})})
    wait = economy.why_not_yet_activate(policy, "digits", "1.2.0", activated_at=None, tz=UTC_ZONE, now=NOW)
    assert wait is not None
    assert wait.until == at("2026-11-23T02:00")
    open_at = at("2026-11-23T02:30")
    assert not economy.why_not_yet_activate(policy, "digits", "1.2.0", activated_at=None, tz=UTC_ZONE, now=open_at)


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "now", "expected"),
    [
        ("UTC", "2026-11-22T12:00", ("2026-11-22", "2026-11", "2026-11-23T00:00", "2026-12-01T00:00")),
        ("UTC", "2026-12-31T23:59:59", ("2026-12-31", "2026-12", "2027-01-01T00:00", "2027-01-01T00:00")),
        ("UTC", "2028-02-28T00:00", ("2028-02-28", "2028-02", "2028-02-29T00:00", "2028-03-01T00:00")),
        ("Europe/Berlin", "2026-11-22T23:30", ("2026-11-23", "2026-11", "2026-11-23T23:00", "2026-11-30T23:00")),
        ("Europe/Berlin", "2026-03-29T12:00", ("2026-03-29", "2026-03", "2026-03-29T22:00", "2026-03-31T22:00")),
        ("Europe/Berlin", "2026-10-25T12:00", ("2026-10-25", "2026-10", "2026-10-25T23:00", "2026-10-31T23:00")),
        ("Pacific/Kiritimati", "2026-11-30T10:00", ("2026-12-01", "2026-12", "2026-12-01T10:00", "2026-12-31T10:00")),
        # Midnight is skipped here: the day begins at 01:00, 04:00 UTC.
        ("America/Santiago", "2026-09-05T12:00", ("2026-09-05", "2026-09", "2026-09-06T04:00", "2026-10-01T03:00")),
    ],
)
def test_days_and_months_are_those_of_the_site(zone: str, now: str, expected: tuple[str, str, str, str]) -> None:
    day, month, day_ends, month_ends = expected
    found = economy.periods(ZoneInfo(zone), at(now))
    assert found == (day, month, at(day_ends), at(month_ends))


@given(st.sampled_from(["UTC", "Europe/Berlin", "America/Santiago", "America/Havana"]), st.integers(0, 1 << 32))
def test_a_day_ends_in_the_future_and_the_next_one_follows(zone: str, now: int) -> None:
    tz = ZoneInfo(zone)
    today = economy.periods(tz, now)
    assert now < today.day_ends <= today.month_ends
    assert economy.periods(tz, today.day_ends - 1).day == today.day
    assert economy.periods(tz, today.day_ends).day > today.day
    assert economy.periods(tz, today.month_ends - 1).month == today.month < economy.periods(tz, today.month_ends).month


@pytest.mark.parametrize(
    ("budget", "spent", "left", "until"),
    [
        (Budget(), Spent(day=10**9, month=10**9), None, None),
        (Budget(day_bytes=100), Spent(day=40, month=400), 60, None),
        (Budget(day_bytes=100), Spent(day=100, month=100), 0, "2026-11-23T00:00"),
        (Budget(day_bytes=100), Spent(day=130, month=130), 0, "2026-11-23T00:00"),
        (Budget(month_bytes=1000), Spent(day=0, month=999), 1, None),
        (Budget(month_bytes=1000), Spent(day=0, month=1000), 0, "2026-12-01T00:00"),
        (Budget(day_bytes=100, month_bytes=1000), Spent(day=100, month=1000), 0, "2026-12-01T00:00"),
        (Budget(day_bytes=100, month_bytes=1000), Spent(day=0, month=950), 50, None),
        (Budget(day_bytes=0), Spent(), 0, "2026-11-23T00:00"),
    ],
)
def test_what_is_left_of_a_budget_and_when_there_is_more(
    budget: Budget, spent: Spent, left: int | None, until: str | None
) -> None:
    assert economy.budget_left(budget, spent) == left
    wait = economy.why_spent(budget, spent, UTC_ZONE, NOW)
    assert (wait.until if wait else None) == (at(until) if until else None)


def test_a_fetch_larger_than_a_days_budget_is_spread_over_days_and_ends() -> None:
    budget, now, to_fetch, days = Budget(day_bytes=100), NOW, 350, []
    spent = Spent()
    while to_fetch:
        wait = economy.why_spent(budget, spent, UTC_ZONE, now)
        if wait is not None:
            assert wait.reason == "the next day: 100 of 100 bytes of this one's budget are spent"
            now, spent = wait.until, Spent(month=spent.month)
            continue
        left = economy.budget_left(budget, spent)
        assert left is not None
        took = min(left, to_fetch)
        to_fetch -= took
        spent = Spent(day=spent.day + took, month=spent.month + took)
        days.append(took)
    assert days == [100, 100, 100, 50]
    assert now == at("2026-11-25T00:00")


# --- ways -----------------------------------------------------------------------------------------------------------

IMAGE, LABELS = b"i" * 32, b"l" * 32
RECIPE = RecipeRef(length=10, sha256=b"r" * 32)


def full(blob: bytes, cost: int) -> Way:
    return Way(kind="full", blob=blob, bytes=cost)


def delta(blob: bytes, cost: int, base: bytes = b"b" * 32) -> Way:
    return Way(kind="delta", blob=blob, bytes=cost, base=base, recipe=RECIPE)


def test_of_each_blob_the_cheapest_way_that_can_be_gone_is_taken() -> None:
    other = delta(IMAGE, 5, b"o" * 32)
    ways = [full(IMAGE, 100), other, delta(IMAGE, 8), full(LABELS, 3), delta(LABELS, 3)]
    assert economy.cheapest(ways) == {IMAGE: other, LABELS: full(LABELS, 3)}
    assert economy.cheapest(ways, lambda way: way.base != b"o" * 32)[IMAGE] == delta(IMAGE, 8)
    assert economy.cheapest([]) == {}


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([full(IMAGE, 100), full(LABELS, 3)], True),
        ([full(IMAGE, 100), delta(IMAGE, 8), full(LABELS, 3)], False),
        ([full(IMAGE, 100), full(LABELS, 3), delta(LABELS, 1)], True),
        ([full(LABELS, 3), full(IMAGE, 100), delta(IMAGE, 8)], False),
        ([full(IMAGE, 100), Way(kind="relay", blob=IMAGE, bytes=100)], False),
        ([delta(IMAGE, 8)], False),
        ([], False),
    ],
)
def test_only_full_will_do_where_the_image_has_no_other_way(ways: list[Way], expected: bool) -> None:
    assert economy.only_full(ways) == expected


def test_the_full_image_is_the_dearest_of_the_full_ways() -> None:
    assert economy.full_image([full(LABELS, 3), delta(IMAGE, 200), full(IMAGE, 100)]) == full(IMAGE, 100)
    assert economy.full_image([delta(IMAGE, 8)]) is None


@pytest.mark.parametrize(
    ("rule", "is_only_full", "has_base", "expected"),
    [
        ("full", True, True, "take"),
        ("wait", True, True, "wait"),
        ("fail", True, True, "fail"),
        ("wait", False, True, "take"),
        ("fail", False, True, "take"),
        ("wait", True, False, "take"),  # nothing here that a delta could begin from
        ("fail", True, False, "take"),
    ],
)
def test_what_is_done_where_only_the_full_image_will_do(
    rule: str, is_only_full: bool, has_base: bool, expected: str
) -> None:
    budget = Budget.model_validate({"full": rule})
    assert economy.judge_full(budget, is_only_full=is_only_full, has_base=has_base) == expected


# --- at the hub -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "fetching", "begun", "sent", "has_begun", "until_s"),
    [
        (Pacing(), 10**6, [NOW] * 10, 10**12, False, None),
        (Pacing(nodes_at_once=2), 1, [], 0, False, None),
        (Pacing(nodes_at_once=2), 2, [], 0, False, 60),
        (Pacing(nodes_at_once=2), 2, [], 0, True, 60),
        (Pacing(nodes_per_hour=2), 0, [NOW - 10], 0, False, None),
        (Pacing(nodes_per_hour=2), 0, [NOW - 10, NOW - 3000], 0, False, 600),
        (Pacing(nodes_per_hour=2), 0, [NOW - 3000, NOW - 10], 0, False, 600),
        (Pacing(nodes_per_hour=2), 0, [NOW - 20, NOW - 10, NOW - 30], 0, False, HOUR - 20),
        (Pacing(nodes_per_hour=2), 0, [NOW - 10, NOW - HOUR], 0, False, None),
        (Pacing(nodes_per_hour=2), 0, [NOW - 10, NOW - 20], 0, True, None),  # it goes on with what it began
        (Pacing(bytes_per_hour=100), 0, [], 99, False, None),
        (Pacing(bytes_per_hour=100), 0, [], 100, True, 900),
    ],
)
def test_who_has_to_wait_for_the_others(
    limits: Pacing, fetching: int, begun: list[int], sent: int, has_begun: bool, until_s: int | None
) -> None:
    wait = economy.why_paced(
        limits, fetching=fetching, begun=begun, bytes_last_hour=sent, has_begun=has_begun, now=NOW
    )  # fmt: skip
    assert (wait.until - NOW if wait else None) == until_s


def test_a_sites_bytes_are_the_sum_of_what_its_nodes_report_of_the_same_day_and_month() -> None:
    nodes = [
        (Spent(day=5, month=50), NOW),
        (Spent(day=7, month=70), NOW - DAY),  # yesterday's day doesn't count, its month does
        (Spent(day=9, month=90), NOW - 40 * DAY),
    ]
    assert economy.site_spent(nodes, UTC_ZONE, NOW) == Spent(day=5, month=120)
