"""Whether a node may begin to fetch now, and when it is to ask again: tables of facts."""

from zoneinfo import ZoneInfo

import pytest

from heliograph.documents import Spent, Way
from heliograph.policy import Budget, Pacing, Policy
from heliograph_hub.admission import Admission
from heliograph_hub.pacing import (
    ASKS_PER_S,
    MAX_LATER_S,
    MIN_LATER_S,
    RECIPE_LATER_S,
    Facts,
    cost,
    later_s,
    recipe_later_s,
    why_wait,
)

UTC = ZoneInfo("UTC")
MANY = 60 * ASKS_PER_S
NOW = 1_800_000_000
DAY = Budget(day_bytes=1000)


def _policy(**fields):
    return Policy(realm="dev", ring="canary", number=1, at=0, **fields)


@pytest.mark.parametrize(
    ("limits", "facts", "words"),
    [
        ({}, Facts(fetching=9, begun=(NOW,) * 9, ring_bytes=1 << 40, site=Spent(day=1 << 40)), ""),
        ({"pacing": Pacing(nodes_at_once=2)}, Facts(fetching=1), ""),
        ({"pacing": Pacing(nodes_at_once=2)}, Facts(fetching=2), "2 of 2 nodes at once"),
        ({"pacing": Pacing(nodes_per_hour=2)}, Facts(begun=(NOW - 3599, NOW)), "2 of 2 nodes an hour"),
        ({"pacing": Pacing(nodes_per_hour=2)}, Facts(begun=(NOW - 3600, NOW)), ""),
        ({"pacing": Pacing(nodes_per_hour=1)}, Facts(begun=(NOW,), has_begun=True), ""),
        ({"pacing": Pacing(bytes_per_hour=100)}, Facts(ring_bytes=99), ""),
        ({"pacing": Pacing(bytes_per_hour=100)}, Facts(ring_bytes=100), "100 of 100 bytes an hour"),
        ({"budget": DAY}, Facts(site=Spent(day=999)), ""),
        ({"budget": DAY}, Facts(site=Spent(day=1000)), "1000 of 1000 bytes of this one's budget"),
        ({"budget": DAY}, Facts(site=Spent(day=400), promised=600), "the next day"),
        ({"budget": Budget(month_bytes=1000)}, Facts(site=Spent(month=400), promised=600), "the next month"),
    ],
)
def test_what_a_node_waits_for_is_said_and_nothing_else_keeps_it(limits, facts, words):
    waits = why_wait(_policy(**limits), facts, UTC, NOW)
    assert (waits is None) == (words == "")
    if waits is not None:
        assert words in waits.reason and waits.until > NOW


def test_the_cost_is_that_of_the_cheapest_way_to_each_blob():
    blobs = (b"1" * 32, b"2" * 32)
    ways = tuple(
        Way(kind="full", blob=blob, bytes=size) for blob, size in ((blobs[0], 90), (blobs[0], 70), (blobs[1], 5))
    )
    assert cost(ways) == 75


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("waiting", [1, 100, 1000, 10_000, 1_000_000])
@pytest.mark.parametrize("due_s", [0, 1, 45, 500, 86_400])
def test_later_is_within_its_bounds_grows_with_those_who_wait_and_is_spread(waiting, due_s, chance):
    wait_s = later_s(waiting, due_s, chance)
    assert MIN_LATER_S <= wait_s <= MAX_LATER_S
    assert wait_s >= min(waiting / ASKS_PER_S, due_s or MIN_LATER_S, MAX_LATER_S / 1.5)
    assert later_s(waiting, due_s, 1.0) >= 1.4 * later_s(waiting, due_s, 0.0), "spread over half as long again"


def test_all_who_wait_together_ask_no_more_than_the_hub_likes():
    for waiting in (1000, 5000, 12_000):
        assert waiting / later_s(waiting, 0, 0.0) <= ASKS_PER_S * 1.01


def test_a_recipe_is_asked_for_ever_more_slowly():
    at, asks = 0.0, 0
    while at < 60:
        at += recipe_later_s(1, at, 0.0)
        asks += 1
    assert recipe_later_s(1, 0, 0.0) == RECIPE_LATER_S and 5 <= asks <= 12


class Asker:
    """One of many nodes."""

    def __init__(self, n):
        self.site, self.node = "shop", f"n-{n}"


def test_who_has_asked_no_more_for_long_counts_no_more_among_those_who_wait():
    admission = Admission(None, _policy, lambda site: UTC, lambda: 0.0)
    for n in range(MANY):
        later = admission.later(Asker(n), "digits", 0, 5.0)
    assert later == MANY // ASKS_PER_S
    assert admission.later(Asker(0), "digits", 0, 6.0 + 2 * MAX_LATER_S) == MIN_LATER_S
    assert len(admission._waiting) == 1
