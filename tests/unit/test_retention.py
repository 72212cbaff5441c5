"""Records go with age, and what a node wrote can still be added up; dead runs go, and nothing of them counts again."""

import pytest
import sqlalchemy as sa

from fleets import DAY, LATER_RUN, NODE_KEY, NOW, OTHER_KEY, RUN, Hub, records, reported
from heliograph.policy import Telemetry
from heliograph_hub import retention
from heliograph_hub.database import lanes, runs
from heliograph_hub.fleet import ReplayError

KEEP = 100
RUNS = 6


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub.sqlite")
    hub.enroll()
    yield hub
    hub.database.close()


def drop(hub, now, keep_days=KEEP):
    return retention.drop_old(hub.database, lambda ring: Telemetry(keep_days=keep_days), now, max_runs=RUNS)


def lane(hub, name="audit"):
    return hub.fleet.lanes("lab", "pi-1")[name]


def run_name(number):
    return b"%08d" % number


def count(hub, table):
    with hub.database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()


def test_records_older_than_policy_keeps_them_are_dropped_and_counted(hub):
    hub.fleet.take_reported("lab", "pi-1", reported(1))
    rows = [(1, "a"), (60, "hour"), (7, "gap")]
    hub.fleet.take_records("lab", "pi-1", records(0, rows, at=NOW))
    hub.fleet.take_records("lab", "pi-1", records(68, [(1, "a")], at=NOW + DAY))
    before = lane(hub)
    assert drop(hub, NOW + KEEP * DAY) == 0, "as old as is kept"
    assert drop(hub, NOW + KEEP * DAY + 1) == 2
    assert lane(hub) == before | {"dropped": 2}, "what was written still adds up"
    assert lane(hub)["kept"] == lane(hub)["dropped"] + len(hub.fleet.records("lab", "pi-1", "audit"))
    assert drop(hub, NOW + KEEP * DAY + 1) == 0, "once"
    receipt = hub.fleet.take_records("lab", "pi-1", records(0, rows, at=NOW))
    assert receipt.next == 69 and lane(hub) == before | {"dropped": 2}, "and not once more by a replay"


def test_a_clock_that_is_wrong_makes_no_record_old(hub):
    hub.fleet.take_records("lab", "pi-1", records(0, [(1, "a")], at=5), NOW)
    assert drop(hub, NOW + KEEP * DAY) == 0
    assert drop(hub, NOW + KEEP * DAY + 1) == 1
    hub.fleet.take_records("lab", "pi-1", records(0, [(1, "a")], run=LATER_RUN, at=5), NOW)
    assert lane(hub)["kept"] == 2, "also in a run that nobody heard of before"


def test_each_ring_keeps_them_as_long_as_its_own_policy_says(hub):
    hub.enroll("shop/a", OTHER_KEY, b"2" * 32)
    hub.assignments.put("shop", "canary")
    for name, key in (("lab/pi-1", NODE_KEY), ("shop/a", OTHER_KEY)):
        site, node = name.split("/")
        hub.fleet.take_records(site, node, records(0, [(1, "a")], key=key, site=site, node=node))
    days = {"canary": 10, "general": 20}
    assert retention.drop_old(hub.database, lambda ring: Telemetry(keep_days=days[ring]), NOW + 15 * DAY) == 1
    assert hub.fleet.records("shop", "a", "audit") == [] and len(hub.fleet.records("lab", "pi-1", "audit")) == 1


def test_dead_runs_are_folded_and_their_sums_stay(hub):
    number = RUNS + 20
    for n in range(number):
        run = run_name(n)
        hub.fleet.take_reported("lab", "pi-1", reported(1, run=run, estimate=NOW + n))
        hub.fleet.take_records("lab", "pi-1", records(0, [(1, "a"), (2, "gap")], run=run, at=NOW + n))
    before = lane(hub)
    drop(hub, NOW + number)
    assert count(hub, runs) == count(hub, lanes) == number, "as long as they have records"
    late = NOW + KEEP * DAY + number
    assert drop(hub, late) == number
    assert count(hub, runs) == RUNS
    assert count(hub, lanes) == RUNS + 1, "and one for the sums of the others"
    assert lane(hub) == before | {"dropped": number}


def test_of_a_run_that_was_forgotten_nothing_counts_again(hub):
    old = [
        (reported(1, run=run_name(n), estimate=NOW + n), records(0, [(1, "a")], run=run_name(n), at=NOW + n))
        for n in range(RUNS + 2)
    ]
    for report, batch in old:
        hub.fleet.take_reported("lab", "pi-1", report)
        hub.fleet.take_records("lab", "pi-1", batch)
    drop(hub, NOW + KEEP * DAY + DAY)
    before, said = lane(hub), hub.fleet.node("lab", "pi-1").reported
    for report, batch in old:
        with pytest.raises(ReplayError):
            hub.fleet.take_reported("lab", "pi-1", report)
        assert hub.fleet.take_records("lab", "pi-1", batch).next == 1, "receipted, so that it isn't sent for ever"
    assert (lane(hub), hub.fleet.node("lab", "pi-1").reported) == (before, said)
    assert hub.fleet.counts("lab", "pi-1")["records older than any that are kept"]["count"] == 2


def test_a_node_goes_on_in_the_run_it_is_in_and_in_new_ones(hub):
    hub.fleet.take_reported("lab", "pi-1", reported(1))
    hub.fleet.take_records("lab", "pi-1", records(0, [(1, "a")] * 3))
    late = NOW + 2 * KEEP * DAY
    drop(hub, late)
    hub.fleet.take_records("lab", "pi-1", records(3, [(1, "a")], at=late))
    hub.fleet.take_reported("lab", "pi-1", reported(2, estimate=late))
    hub.fleet.take_reported("lab", "pi-1", reported(1, run=LATER_RUN, estimate=late))
    hub.fleet.take_records("lab", "pi-1", records(0, [(1, "a")], run=LATER_RUN, at=late))
    assert lane(hub) == {"kept": 5, "merged": 0, "lost": 0, "missing": 0, "dropped": 3}


def test_an_estimate_that_was_far_ahead_locks_no_node_out(hub):
    for n in range(RUNS + 10):
        hub.fleet.take_reported("lab", "pi-1", reported(1, run=run_name(n), estimate=NOW + 1000 * DAY))
    drop(hub, NOW + DAY)
    assert hub.fleet.take_reported("lab", "pi-1", reported(1, run=RUN, estimate=NOW)).run == RUN
