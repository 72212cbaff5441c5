"""The hub's books: bytes by site and release, who began when, pauses; all of it the same after a restart."""

from zoneinfo import ZoneInfo

import pytest

from heliograph.documents import ModelReport, Refusal, Spent, Tuple
from heliograph_hub.database import Database, sent
from heliograph_hub.ledger import KEEP_S, Ledger
from heliograph_hub.pacing import IDLE_S, Facts
from heliograph_hub.rollout import Paused

UTC = ZoneInfo("UTC")
ONE, TWO = b"\1" * 32, b"\2" * 32
NOON = 1_800_014_400  # 2027-01-15 12:00 UTC


class Books:
    """A ledger on disk that can be opened anew, and what nodes are to have reported."""

    def __init__(self, folder):
        self._path = folder / "hub.sqlite"
        self.reports = {}
        self.open()

    def open(self):
        self.database = Database(self._path)
        self.ledger = Ledger(self.database, lambda site, node, model: self.reports.get((site, node)))

    def kill(self):
        """What was not written is lost."""
        self.database.close()
        self.open()

    def begin(self, node, now, *, release=ONE, number=1, cost=1000, ring="canary", is_let_in=True):
        """Has a node ask; what bore on it."""
        seen = []

        def judge(facts):
            seen.append(facts)
            return is_let_in

        site, name = node.split("/")
        self.ledger.admit(site, name, ring, "digits", release, number, cost, UTC, now, judge)
        return seen[0]

    def facts(self, node, now, **kwargs):
        return self.begin(node, now, is_let_in=False, **kwargs)


@pytest.fixture
def books(tmp_path):
    made = Books(tmp_path)
    yield made
    made.database.close()


def test_who_began_counts_for_its_ring_and_promises_its_cost_to_its_site(books):
    assert books.begin("shop/a", NOON) == Facts()
    assert books.facts("shop/b", NOON + 5) == Facts(fetching=1, begun=(NOON,), ring_bytes=1000, promised=1000)
    assert books.facts("far/c", NOON + 5) == Facts(fetching=1, begun=(NOON,), ring_bytes=1000)
    assert books.facts("shop/d", NOON + 5, ring="early") == Facts(promised=1000)
    assert books.facts("shop/a", NOON + 5) == Facts(has_begun=True), "itself not counted"
    assert books.facts("shop/a", NOON + 5, number=2) == Facts(), "nor let in by another directive"


def test_a_node_that_was_told_later_has_not_begun(books):
    books.facts("shop/a", NOON)
    assert books.facts("shop/b", NOON) == Facts()


def test_what_was_sent_is_promised_no_more_and_survives_a_restart(books):
    books.begin("shop/a", NOON)
    books.ledger.note_sent("shop", "a", "canary", ONE, 300, NOON + 10)
    books.ledger.flush()
    books.kill()
    facts = books.facts("shop/b", NOON + 20)
    assert (facts.promised, facts.site, facts.ring_bytes) == (700, Spent(day=300, month=300), 1000)
    assert books.ledger.bytes_by_site(ONE) == {"shop": 300} and books.ledger.bytes_by_site(TWO) == {}
    assert books.ledger.bytes_by_release("shop", "a") == {ONE: 300}


@pytest.mark.parametrize(
    ("report", "is_fetching"),
    [
        (None, True),
        (ModelReport(phase="fetching"), True),
        (ModelReport(phase="idle", tuple=Tuple(release=ONE)), False),
        (ModelReport(phase="staging", held=(ONE,)), False),
        (ModelReport(phase="idle", refused=(Refusal(release=ONE, number=1, reason="no"),)), False),
        (ModelReport(phase="fetching", refused=(Refusal(release=ONE, number=0, reason="before"),)), True),
    ],
)
def test_a_node_stops_counting_as_fetching_when_it_says_that_it_has_or_refused_the_release(books, report, is_fetching):
    books.begin("shop/a", NOON)
    books.reports["shop", "a"] = report
    facts = books.facts("shop/b", NOON + 1)
    assert (facts.fetching, facts.promised) == ((1, 1000) if is_fetching else (0, 0))
    assert facts.begun == (NOON,)


def test_a_node_to_which_nothing_is_sent_keeps_no_other_waiting(books):
    books.begin("shop/a", NOON)
    books.ledger.note_sent("shop", "a", "canary", ONE, 1, NOON + 100)
    assert books.facts("shop/b", NOON + 99 + IDLE_S).fetching == 1
    assert books.facts("shop/b", NOON + 100 + IDLE_S).fetching == 0


def test_days_and_months_are_those_of_the_sites_zone(books):
    kolkata = ZoneInfo("Asia/Kolkata")  # its midnight is at 18:30 UTC
    evening = NOON + 6 * 3600 + 1800
    books.ledger.note_sent("shop", "a", "canary", ONE, 5, evening - 1)
    books.ledger.note_sent("shop", "a", "canary", ONE, 70, evening)
    assert books.ledger.spent("shop", kolkata, evening + 60) == Spent(day=70, month=75)
    assert books.ledger.spent("shop", UTC, evening + 60) == Spent(day=75, month=75)
    assert books.ledger.spent("other", UTC, evening + 60) == Spent()


def test_what_is_older_than_a_month_is_added_up_and_stays_counted(books):
    for day in range(60):
        books.ledger.note_sent("shop", "a", "canary", ONE, 10, NOON - day * 86_400)
    books.ledger.flush()
    before = books.ledger.spent("shop", UTC, NOON)
    books.ledger.tidy(NOON)
    books.ledger.tidy(NOON)
    assert books.ledger.bytes_by_site(ONE) == {"shop": 600}
    assert books.ledger.spent("shop", UTC, NOON) == before == Spent(day=10, month=150)
    with books.database.read() as connection:
        assert len(connection.execute(sent.select()).all()) == KEEP_S // 86_400 + 2


def test_who_began_is_forgotten_when_nothing_was_sent_to_it_for_longer_than_a_month(books):
    books.begin("shop/a", NOON)
    books.begin("shop/b", NOON)
    books.ledger.note_sent("shop", "b", "canary", ONE, 10, NOON + 86_400)
    books.ledger.flush()
    books.ledger.tidy(NOON + KEEP_S)
    assert books.ledger.has_begun("shop", "a", ONE, 1)
    books.ledger.tidy(NOON + KEEP_S + 1)
    assert not books.ledger.has_begun("shop", "a", ONE, 1)
    assert books.ledger.has_begun("shop", "b", ONE, 1)


def test_a_pause_is_kept_over_a_restart_until_it_is_resumed(books):
    books.ledger.pause(Paused("digits", ONE, lets_running=True), NOON)
    books.kill()
    assert dict(books.ledger.pauses()) == {ONE: Paused("digits", ONE, lets_running=True)}
    books.ledger.pause(Paused("digits", ONE), NOON)
    assert books.ledger.pauses()[ONE].lets_running is False
    assert books.ledger.resume(ONE) and not books.ledger.resume(ONE) and not books.ledger.pauses()


def test_who_asks_again_and_again_and_takes_nothing_does_not_keep_its_place(books):
    for at in range(0, IDLE_S + 60, 60):
        books.begin("shop/a", NOON + at)
    assert books.facts("shop/b", NOON + IDLE_S + 1) == Facts(begun=(NOON,))
    books.ledger.note_sent("shop", "a", "canary", ONE, 1, NOON + 300)
    assert books.facts("shop/b", NOON + 301).fetching == 1, "until it does take something"
