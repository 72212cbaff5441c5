"""The hub's view of its nodes: reports in order, records counted once, whatever is replayed or forged."""

import random
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from fleets import LATER_RUN, NODE_KEY, NOW, OTHER_KEY, RUN, Hub, records, reported
from heliograph.errors import ConfigError, HeliographError, IntegrityError, NotFoundError, RefusedError, TrustError
from heliograph.signing import sign_statement
from heliograph.statement import parse
from heliograph_hub import database as db
from heliograph_hub.fleet import Fleet, ReplayError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub.sqlite")
    yield hub
    hub.database.close()


@pytest.fixture
def database(hub):
    return hub.database


@pytest.fixture
def fleet(hub):
    return hub.fleet


@pytest.fixture
def enrolled(hub):
    hub.enroll()
    return hub.fleet


# --- reports ----------------------------------------------------------------------------------------------------------


def test_what_a_node_said_last_is_what_is_known(enrolled):
    for n in (1, 2, 3):
        enrolled.take_reported("lab", "pi-1", reported(n))
    said = enrolled.node("lab", "pi-1").reported
    assert said.n == 3 and said.models["digits"].tuple.release == bytes([3]) * 32
    (member,) = enrolled.members("digits", NOW)
    assert (member.ring, member.report) == ("general", said.models["digits"])


FORGED = {
    "another's key": (lambda: reported(1, key=OTHER_KEY), TrustError),
    "about another node": (lambda: reported(1, node="pi-2"), TrustError),
    "about another realm": (lambda: reported(1, realm="prod"), TrustError),
    "another type": (lambda: records(0, [(1, "x")]), TrustError),
    "one bit changed": (lambda: reported(1)[:-1] + bytes([reported(1)[-1] ^ 1]), TrustError),
    "no statement": (lambda: b"\xc1", IntegrityError),
    "empty": (lambda: b"", IntegrityError),
    "unknown field": (
        lambda: sign_statement(
            "reported", parse(reported(1)).payload.replace(b"bytes_received", b"bytes_recieved"), [NODE_KEY]
        ),
        IntegrityError,
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_report_not_by_and_about_its_node_changes_nothing(enrolled, case):
    forge, family = FORGED[case]
    with pytest.raises(family):
        enrolled.take_reported("lab", "pi-1", forge())
    assert enrolled.node("lab", "pi-1").reported is None


def test_replays_within_a_run_and_of_a_past_run_are_refused(enrolled):
    enrolled.take_reported("lab", "pi-1", reported(5))
    for n in (5, 4):
        with pytest.raises(ReplayError):
            enrolled.take_reported("lab", "pi-1", reported(n))
    enrolled.take_reported("lab", "pi-1", reported(1, run=LATER_RUN))
    with pytest.raises(ReplayError):
        enrolled.take_reported("lab", "pi-1", reported(6))
    assert enrolled.node("lab", "pi-1").run == LATER_RUN


def test_a_node_that_never_enrolled_is_not_known(fleet):
    with pytest.raises(NotFoundError, match="heliograph fleet token lab/pi-1"):
        fleet.take_reported("lab", "pi-1", reported(1))


def test_a_node_is_up_while_heard_and_down_by_silence_or_by_its_broken_connection(enrolled):
    assert not enrolled.node("lab", "pi-1").is_up(NOW)
    enrolled.heard("lab", "pi-1", NOW)
    assert enrolled.node("lab", "pi-1").is_up(NOW + 1800)
    assert not enrolled.node("lab", "pi-1").is_up(NOW + 1801), "silent after two check-ins"
    enrolled.gone("lab", "pi-1", NOW + 5)
    assert not enrolled.node("lab", "pi-1").is_up(NOW + 5)
    enrolled.heard("lab", "pi-1", NOW + 6)
    assert enrolled.node("lab", "pi-1").is_up(NOW + 6), "heard again, however soon"


def test_every_sign_of_life_is_known_at_once_and_written_seldom(enrolled, database):
    for at in (NOW, NOW + 3, NOW + 9):
        enrolled.heard("lab", "pi-1", at)
    assert enrolled.node("lab", "pi-1").last_heard == enrolled.nodes()[0].last_heard == NOW + 9
    assert Fleet(database, "dev").node("lab", "pi-1").last_heard == NOW
    enrolled.heard("lab", "pi-1", NOW + 10)
    assert Fleet(database, "dev").node("lab", "pi-1").last_heard == NOW + 10


def test_what_was_refused_is_counted_by_its_node_and_strangers_together(enrolled):
    for n in range(3):
        enrolled.count("lab", "pi-1", "replayed", f"reported {n}")
    for n in range(2000):
        enrolled.count("nowhere", f"n{n}", "about unknown things", "no such node")
    assert enrolled.counts("lab", "pi-1") == {"replayed": {"count": 3, "last": "reported 2"}}
    enrolled.count("lab", "pi-1", "replayed", "again")
    assert enrolled.counts("lab", "pi-1")["replayed"] == {"count": 4, "last": "again"}
    assert enrolled.uncounted()["about unknown things"]["count"] == 2000
    assert enrolled.counts("nowhere", "n1") == {}


# --- records ----------------------------------------------------------------------------------------------------------


def _lane(fleet, lane="audit"):
    return fleet.lanes("lab", "pi-1")[lane]


def test_a_batch_replayed_three_times_is_counted_once_and_receipted_each_time(enrolled):
    batch = records(0, [(1, "staged"), (1, "activated"), (1, "proved")])
    receipts = {enrolled.take_records("lab", "pi-1", batch).next for _ in range(3)}
    assert receipts == {3} and _lane(enrolled) == {"kept": 3, "merged": 0, "lost": 0, "missing": 0, "dropped": 0}
    rows = enrolled.records("lab", "pi-1", "audit")
    assert sorted((row["seq"], row["kind"]) for row in rows) == [(0, "staged"), (1, "activated"), (2, "proved")]


def test_merged_rows_and_gaps_stand_for_what_they_count(enrolled):
    receipt = enrolled.take_records("lab", "pi-1", records(0, [(1, "minute"), (60, "hour"), (7, "gap"), (1, "minute")]))
    assert receipt.next == 69 and _lane(enrolled) == {"kept": 3, "merged": 59, "lost": 7, "missing": 0, "dropped": 0}


def test_a_longer_batch_that_begins_with_known_rows_adds_only_the_new(enrolled):
    enrolled.take_records("lab", "pi-1", records(0, [(1, "a")] * 3))
    assert enrolled.take_records("lab", "pi-1", records(0, [(1, "a")] * 5)).next == 5
    assert enrolled.take_records("lab", "pi-1", records(2, [(4, "merged")])).next == 6, "merged over what was known"
    assert _lane(enrolled) == {"kept": 6, "merged": 0, "lost": 0, "missing": 0, "dropped": 0}


def test_what_never_came_is_counted_as_missing(enrolled):
    assert enrolled.take_records("lab", "pi-1", records(10, [(1, "a")])).next == 11
    assert _lane(enrolled) == {"kept": 1, "merged": 0, "lost": 0, "missing": 10, "dropped": 0}


def test_lanes_and_runs_are_numbered_apart(enrolled):
    for lane, run in (("audit", RUN), ("audit", LATER_RUN), ("metric", RUN)):
        assert enrolled.take_records("lab", "pi-1", records(0, [(1, "a")] * 2, lane, run)).next == 2
    assert _lane(enrolled)["kept"] == 4 and _lane(enrolled, "metric")["kept"] == 2
    assert [(r.lane, r.next) for r in enrolled.receipts("lab", "pi-1", RUN)] == [("audit", 2), ("metric", 2)]


@pytest.mark.parametrize("forged", [{"key": OTHER_KEY}, {"node": "pi-2"}, {"realm": "prod"}, {"site": "shop"}])
def test_records_not_by_and_about_their_node_are_not_kept(enrolled, forged):
    with pytest.raises(TrustError):
        enrolled.take_records("lab", "pi-1", records(0, [(1, "a")], **forged))
    assert enrolled.lanes("lab", "pi-1") == {}


@pytest.mark.parametrize(("first", "count"), [((1 << 63) - 1, 1), (0, (1 << 64) - 1), (1 << 48, 1)])
def test_numbers_that_no_database_holds_are_malformed(enrolled, first, count):
    with pytest.raises(IntegrityError, match="numbers its audit records beyond"):
        enrolled.take_records("lab", "pi-1", records(first, [(count, "a")]))
    assert enrolled.lanes("lab", "pi-1") == {}


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture_of_replays_and_overlaps_keeps_the_ledger_whole(enrolled, seed):
    rng = random.Random(seed)
    written = [(rng.choice([1, 1, 1, 5]), rng.choice(["a", "gap"])) for _ in range(40)]
    starts = [sum(count for count, _ in written[:i]) for i in range(len(written) + 1)]
    done = 0
    while done < len(written):
        begin = rng.randint(max(0, done - 5), done)
        end = rng.randint(begin, min(begin + 8, len(written)))
        receipt = enrolled.take_records("lab", "pi-1", records(starts[begin], written[begin:end]))
        done = max(done, end)
        assert receipt.next == starts[done]
    expected = {
        "kept": sum(kind == "a" for _, kind in written),
        "merged": sum(count - 1 for count, kind in written if kind == "a"),
        "lost": sum(count for count, kind in written if kind == "gap"),
        "missing": 0,
        "dropped": 0,
    }
    assert _lane(enrolled) == expected and sum(expected.values()) == starts[-1]


def test_hostile_bytes_are_our_errors_and_change_nothing(enrolled):
    rng = random.Random(7)
    good = [reported(1), records(0, [(1, "a")])]
    for _ in range(300):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if bytes(data) in good:
            continue
        for take in (enrolled.take_reported, enrolled.take_records):
            with pytest.raises(HeliographError):
                take("lab", "pi-1", bytes(data))
    assert enrolled.node("lab", "pi-1").reported is None and enrolled.lanes("lab", "pi-1") == {}


# --- the database -----------------------------------------------------------------------------------------------------


def test_everything_is_there_after_the_hub_was_killed_and_opens_the_file_again(enrolled, database):
    enrolled.take_reported("lab", "pi-1", reported(1))
    enrolled.take_records("lab", "pi-1", records(0, [(1, "a")]))
    reopened = db.Database(database.path)  # while the other still has it open: as after a kill
    again = Fleet(reopened, "dev")
    assert again.node("lab", "pi-1") == enrolled.node("lab", "pi-1")
    assert again.take_records("lab", "pi-1", records(0, [(1, "a")])).next == 1
    reopened.close()


def test_a_transaction_that_fails_leaves_nothing(database):
    def write_and_fail():
        with database.write() as connection:
            connection.execute(sa.insert(db.sites).values(site="lab", ring="canary"))
            raise RefusedError("half way")

    with pytest.raises(RefusedError):
        write_and_fail()
    with database.read() as connection:
        assert connection.execute(sa.select(db.sites)).all() == []


def test_tables_in_code_are_the_tables_that_the_migrations_make(database):
    engine = sa.create_engine(f"sqlite:///{database.path}")
    made = sa.MetaData()
    made.reflect(engine)
    columns = {name: [c.name for c in table.columns] for name, table in made.tables.items()}
    assert columns.pop("schema_version") == ["version"]
    assert columns == {name: [c.name for c in table.columns] for name, table in db.metadata.tables.items()}
    engine.dispose()


@pytest.mark.parametrize("version", range(1, db.SCHEMA_VERSION + 1))
def test_a_file_of_every_version_there_was_still_loads(tmp_path, version):
    with sqlite3.connect(tmp_path / "hub.sqlite") as raw:
        raw.executescript((GOLDEN / f"hub-{version}.sql").read_text())
    raw.close()
    opened = db.Database(tmp_path / "hub.sqlite")
    fleet = Fleet(opened, "dev")
    node = fleet.node("lab", "pi-1")
    assert (node.ring, node.keyid, node.assignment) == ("canary", NODE_KEY.keyid, 2)
    assert node.reported.models["digits"].tuple.release == bytes([1]) * 32
    assert fleet.lanes("lab", "pi-1") == {"audit": {"kept": 3, "merged": 59, "lost": 7, "missing": 0, "dropped": 0}}
    assert fleet.take_records("lab", "pi-1", records(0, [(1, "a")])).next == 69
    assert fleet.counts("lab", "pi-1") == {"replayed": {"count": 1, "last": "reported 1"}}
    with opened.read() as connection:
        assert connection.exec_driver_sql("SELECT max(version) FROM schema_version").scalar() == db.SCHEMA_VERSION
    opened.close()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(database):
    database.close()
    with sqlite3.connect(database.path) as raw:
        raw.execute("INSERT INTO schema_version VALUES (?)", (db.SCHEMA_VERSION + 1,))
    before = sorted(row for row in raw.execute("SELECT name, sql FROM sqlite_master"))
    with pytest.raises(ConfigError, match=f"schema {db.SCHEMA_VERSION + 1} .* run the newer version"):
        db.Database(database.path)
    assert sorted(row for row in raw.execute("SELECT name, sql FROM sqlite_master")) == before
    raw.close()


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path):
    (tmp_path / "hub.sqlite").write_bytes(b"no database at all, but long enough to look at" * 50)
    with pytest.raises(ConfigError, match="can't be opened as the hub's database"):
        db.Database(tmp_path / "hub.sqlite")
