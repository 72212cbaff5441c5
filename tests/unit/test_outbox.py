"""The outbox: numbered as sent, thinned before lost, counted always. Random lives: tests/simulation/test_records.py."""

import sqlite3
from pathlib import Path
from random import Random
from runpy import run_path
from typing import Any

import pytest

from heliograph.documents import LANES, Lane
from heliograph.errors import ConfigError
from heliograph.policy import Telemetry
from heliograph.sketch import Sketch
from heliograph_site.decay import SPAN, Piece, merge
from heliograph_site.outbox import GAP, MAX_BODY_BYTES, Outbox

DATA = Path(__file__).parents[1] / "data"
RUN, NEXT_RUN = b"run-0001", b"run-0002"
CAP = 128 * 1024
DAY = 86400
SERVED: dict[str, Any] = {
    "model": "digits",
    "release": b"\xa1" * 32,
    "state": "ready",
    "requests": 7,
    "errors": 1,
    "restarts": 0,
}


def assert_ledger_balances(outbox: Outbox) -> None:
    for lane, status in outbox.status().items():
        total = status.kept + status.merged + status.lost + status.receipted
        assert total == status.written, f"{lane}: {status}"


def test_numbers_are_given_in_the_order_of_sending_per_run_and_lane(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        for n in range(3):
            outbox.append("audit", "step", n, {})
        outbox.append("metric", "minute", 5, {})
        assert (firsts(outbox, "audit"), firsts(outbox, "metric")) == ((RUN, 0, [0, 1, 2]), (RUN, 0, [5]))
        outbox.receipt(RUN, "audit", 3)
        outbox.append("audit", "step", 6, {})
    with Outbox(tmp_path / "o", RUN) as outbox:
        assert firsts(outbox, "audit") == (RUN, 3, [6])
        outbox.receipt(RUN, "audit", 4)
        outbox.append("audit", "step", 7, {})
    with Outbox(tmp_path / "o", NEXT_RUN) as outbox:
        assert firsts(outbox, "audit") == (NEXT_RUN, 0, [7]), "what was never sent belongs to no run"


def firsts(outbox: Outbox, lane: Lane, max_bytes: int = 100_000) -> tuple[bytes, int, list[int]]:
    """Run, first number and the rows' times of the lane's next batch."""
    batch = outbox.batch(lane, max_bytes)
    assert batch is not None
    return batch.run, batch.first, [row[2] for row in batch.rows]


def test_what_no_receipt_covers_is_sent_again_the_same_even_after_a_kill(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", RUN)
    for n in range(5):
        outbox.append("audit", "step", n, {"n": n})
    first = outbox.batch("audit", 220)
    assert first is not None and first.first == 0 and len(first.rows) == 4
    # Not closed: a kill leaves the file as the last commit left it.
    again = Outbox(tmp_path / "o", NEXT_RUN)
    assert again.batch("audit", 10_000) == first, "a run that is over gets no new numbers"
    assert again.receipt(RUN, "audit", first.next) == 4
    assert firsts(again, "audit") == (NEXT_RUN, 0, [4])
    assert again.receipt(RUN, "audit", 99) == 0, "that run is done with"


def test_the_newest_incidents_go_first_and_what_was_sent_goes_before_them(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        for n in range(5):
            outbox.append("incident", "refused", n, {})
        assert firsts(outbox, "incident", 100) == (RUN, 0, [4, 3])
        outbox.append("incident", "refused", 5, {})
        assert firsts(outbox, "incident", 200) == (RUN, 0, [4, 3, 5, 2])
        assert outbox.receipt(RUN, "incident", 2) == 2
        assert firsts(outbox, "incident") == (RUN, 2, [5, 2, 1, 0])
        assert outbox.receipt(RUN, "incident", 6) == 4
        assert_ledger_balances(outbox)


def test_a_receipt_for_what_was_never_sent_drops_nothing(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        outbox.append("audit", "step", 1, {})
        assert outbox.receipt(RUN, "audit", 99) == 0
        assert outbox.receipt(b"stranger", "audit", 99) == 0
        assert outbox.status()["audit"].kept == 1


def test_a_repeated_or_older_receipt_changes_nothing(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        for n in range(3):
            outbox.append("audit", "step", n, {})
        batch = outbox.batch("audit", 10_000)
        assert batch is not None
        assert outbox.receipt(RUN, "audit", 2) == 2
        before = outbox.status()
        assert outbox.receipt(RUN, "audit", 2) == 0
        assert outbox.receipt(RUN, "audit", 1) == 0
        assert outbox.status() == before


def test_over_the_cap_the_lowest_lane_makes_way_and_says_how_much_of_what_from_when_to_when(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=CAP) as outbox:
        for n in range(200):
            outbox.append("incident", "refused", n, {"n": n})
            outbox.append("audit", "step", n, {"n": n})
            outbox.append("sample", f"request-{n % 2}", n, {"text": "x" * 1000})
            assert outbox.used_bytes() <= CAP
        status = outbox.status()
        assert [status[lane].lost for lane in ("incident", "audit")] == [0, 0]
        lost = status["sample"].lost
        assert 100 < lost < 200 and status["sample"].kept == 200 - lost
        batch = outbox.batch("sample", 10_000_000)
        assert batch is not None and batch.first == 0 and batch.next == 200 and len(batch.rows) == 1 + 200 - lost
        kinds = {"request-0": (lost + 1) // 2, "request-1": lost // 2}
        assert batch.rows[0] == (lost, GAP, 0, {"kinds": kinds, "from": 0, "to": lost - 1})
        assert_ledger_balances(outbox)


def test_incidents_and_audit_are_lost_last_the_audit_first_and_never_merge(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=CAP) as outbox:
        for n in range(20):
            outbox.append("metric", "serving", n * DAY, SERVED)
            outbox.append("sample", "request", n, {"text": "x" * 500})
        for n in range(400):
            outbox.append("audit", "step", n, {"text": "x" * 200})
        status = outbox.status()
        assert (status["sample"].kept, status["metric"].kept) == (0, 0) and 0 < status["audit"].kept < 400
        audited = status["audit"].lost
        for n in range(20):
            outbox.append("incident", "refused", n, {"text": "x" * 200})
        assert outbox.status()["audit"].lost == audited, "there is room reserved for incidents"
        for n in range(1000):
            outbox.append("incident", "refused", n, {"text": "x" * 200})
        status = outbox.status()
        assert status["audit"].kept == 0 and 0 < status["incident"].kept < 1020 and outbox.used_bytes() <= CAP
        assert [status[lane].merged for lane in LANES] == [0, 0, 0, 0]
        assert outbox.batch("incident", 10_000_000).rows[-1][0] == status["incident"].lost  # type: ignore[union-attr]
        assert_ledger_balances(outbox)


def test_a_lower_lane_leaves_free_what_is_reserved_and_takes_nothing_from_a_dearer_one(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=4 * CAP) as outbox:
        for n in range(2000):
            outbox.append("metric", "unmergeable", n, {"text": "x" * 300})
        assert 2.9 * CAP < outbox.used_bytes() <= 3 * CAP
        before = outbox.status()["metric"]
        for n in range(10):
            outbox.append("sample", "request", n, {"text": "x" * 5000})
        assert outbox.status()["metric"] == before and outbox.status()["sample"].kept == 0


def test_incidents_that_fill_the_outbox_are_not_lost_for_anything_cheaper(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=CAP) as outbox:
        for n in range(400):
            outbox.append("incident", "refused", n, {"text": "x" * 300})
        before = outbox.status()["incident"]
        assert before.lost > 0
        for lane in LANES[1:]:
            for n in range(20):
                outbox.append(lane, "step", n, {"text": "x" * 300})
            assert outbox.status()[lane].lost > 0
        assert outbox.status()["incident"] == before


def test_metrics_decay_to_hours_then_days_before_anything_is_lost(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=CAP) as outbox:
        outbox.append("sample", "request", 0, {"text": "x" * 100})
        seen = set()
        for minute in range(0, 6 * 1440, 5):
            for model in ("digits", "words"):
                outbox.append("metric", "serving", minute * 60, SERVED | {"model": model})
            status = outbox.status()
            assert (status["sample"].lost, status["metric"].lost) == (0, 0)
            seen.add(status["metric"].kept)
        assert status["metric"].written == 6 * 1440 // 5 * 2 > 10 * status["metric"].kept
        batch = outbox.batch("metric", 10_000_000)
        assert batch is not None and batch.next == status["metric"].written
        covered: dict[str, int] = dict.fromkeys(("digits", "words"), 0)
        levels = []
        for count, kind, at, body in batch.rows:
            first, last = body.get(SPAN, [at, at])
            assert (kind, at, last - first) == ("serving", first, (count - 1) * 300), "its span is what it counts"
            assert (body["requests"], body["errors"]) == (7 * count, count)
            assert first >= covered[body["model"]], "oldest first, nothing twice"
            covered[body["model"]] = last + 1
            levels.append(count)
        assert levels[0] == 288 and 12 in levels and levels[-1] == 1, "days, then hours, then what is new"
        assert_ledger_balances(outbox)


def test_even_the_open_hour_and_day_merge_before_anything_is_lost(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=CAP) as outbox:
        for n in range(700):
            outbox.append("metric", "serving", n, SERVED)
        for n in range(300):
            outbox.append("audit", "step", n, {"text": "x" * 60})
        status = outbox.status()["metric"]
        assert (status.lost, status.written) == (0, 700) and status.merged > 600


def test_what_was_sent_is_neither_merged_nor_dropped_for_the_cap(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=CAP) as outbox:
        for n in range(20):
            outbox.append("metric", "serving", n * 60, SERVED)
        sent = outbox.batch("metric", 1000)
        assert sent is not None and 1 < len(sent.rows) < 20
        for n in range(3000):
            outbox.append("audit", "step", 7200 + n, {"text": "y" * 200})
        assert outbox.status()["metric"].kept == len(sent.rows)
        again = outbox.batch("metric", 1000)
        assert again is not None and again.rows[:-1] == sent.rows
        assert again.rows[-1][:2] == (20 - len(sent.rows), GAP)
        assert outbox.receipt(RUN, "metric", again.next) == len(again.rows)
        assert_ledger_balances(outbox)


def test_records_that_can_not_be_merged_stay_as_they_are(tmp_path: Path) -> None:
    strange: list[dict[str, Any]] = [SERVED | {"colour": "red"}, SERVED | {"requests": "many"}, {"model": "digits"}]
    with Outbox(tmp_path / "o", RUN, cap_bytes=CAP) as outbox:
        for n, body in enumerate(strange):
            outbox.append("metric", "serving", n, body)
            outbox.append("metric", "weather", n, SERVED)
        for n in range(200):
            outbox.append("metric", "serving", 60 + n, SERVED | {"model": "words"})
            outbox.append("sample", "request", DAY + n, {"text": "x" * 1000})
        batch = outbox.batch("metric", 10_000_000)
        assert batch is not None
        plain = [row[3] for row in batch.rows if row[0] == 1]
        assert all(body in plain for body in strange) and plain.count(SERVED) == len(strange)
        assert outbox.status()["metric"].merged > 100


def test_merged_sketches_say_what_one_sketch_of_all_would_say(tmp_path: Path) -> None:
    rng, whole, pieces = Random(5), Sketch(), []
    for n in range(6):
        sketch = Sketch()
        for _ in range(50):
            value = rng.randrange(10**5, 10**8)
            sketch.add(value)
            whole.add(value)
        pieces.append(Piece(n, n, SERVED | {"latency": sketch.encode()}))
    pieces.append(Piece(6, 6, SERVED))
    done = merge("serving", pieces)
    assert done is not None and (done.at, done.until, done.body[SPAN], done.body["requests"]) == (0, 6, [0, 6], 49)
    told = Sketch.decode(done.body["latency"])
    assert told.quantile(0.95) == pytest.approx(whole.quantile(0.95), rel=0.02)
    assert merge("serving", [*pieces, Piece(7, 7, SERVED | {"latency": b"rotten"})]) is None


def test_the_file_shrinks_when_the_hub_has_taken_the_records(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        for n in range(400):
            outbox.append("sample", "request", n, {"text": "x" * 2000})
        full = outbox.used_bytes()
        while (batch := outbox.batch("sample", 100_000)) is not None:
            outbox.receipt(batch.run, "sample", batch.next)
        assert outbox.used_bytes() < 100_000 < 800_000 < full
        outbox.append("audit", "step", 1, {})
    # Closing wrote the log back: what is left is the file.
    assert (tmp_path / "o").stat().st_size < 300_000


def test_an_outbox_of_the_first_schema_is_taken_over_whole(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "o") as conn:
        conn.executescript((DATA / "outbox-1.sql").read_text())
    with Outbox(tmp_path / "o", b"run-0003", cap_bytes=CAP) as outbox:
        status = outbox.status()
        assert {lane: (s.written, s.kept, s.lost, s.receipted) for lane, s in status.items()} == {
            "incident": (1, 1, 0, 0), "audit": (4, 3, 0, 1), "metric": (3, 3, 0, 0), "sample": (9, 5, 4, 0),
        }  # fmt: skip
        assert_ledger_balances(outbox)
        # Sent once: under its old run and number. Never sent: numbered now, in the run that sends it.
        assert firsts(outbox, "audit") == (b"run-0001", 1, [101, 102])
        outbox.receipt(b"run-0001", "audit", 3)
        assert firsts(outbox, "audit") == (b"run-0003", 0, [103])
        assert firsts(outbox, "metric") == (b"run-0002", 0, [7200])
        assert firsts(outbox, "sample") == (b"run-0003", 0, [110, 114, 115, 116, 117, 120])
        for n in range(200):
            outbox.append("audit", "step", 1000 + n, {"text": "x" * 500})
        assert_ledger_balances(outbox)
    with sqlite3.connect(tmp_path / "o") as conn:
        assert conn.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        tables = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables == {"_sqlite_migrations", "run", "record", "sequence", "total"}


def test_gaps_of_the_first_schema_grow_into_one(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "o") as conn:
        conn.executescript((DATA / "outbox-1.sql").read_text())
        conn.execute("INSERT INTO record VALUES (2, 'sample', 1, 5, 'gap', 130, X'80')")
        conn.execute("UPDATE sequence SET next = 6 WHERE run = 2 AND lane = 'sample'")
        conn.execute("UPDATE total SET written = 14, lost = 9 WHERE lane = 'sample'")
    with Outbox(tmp_path / "o", b"run-0003", cap_bytes=CAP) as outbox:
        for n in range(100):
            outbox.append("sample", "request", 1000 + n, {"text": "x" * 3000})
        batch = outbox.batch("sample", 10_000_000)
        assert batch is not None and [row[1] for row in batch.rows].count(GAP) == 1
        lost = outbox.status()["sample"].lost
        assert batch.rows[0][0] == lost and batch.rows[0][3]["kinds"] == {"other": 9, "request": lost - 9}
        assert_ledger_balances(outbox)


def test_an_oversized_body_becomes_a_note_of_its_size(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        outbox.append("sample", "request", 1, {"text": "x" * MAX_BODY_BYTES})
        batch = outbox.batch("sample", 1000)
        assert batch is not None and batch.rows[0][3]["oversize_bytes"] > MAX_BODY_BYTES


def test_policy_telemetry_lanes_that_may_not_leave_are_not_written(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        outbox.telemetry = Telemetry(lanes=("incident", "audit"))
        for lane in LANES:
            outbox.append(lane, "step", 1, {"n": 1})
        assert {lane: status.written for lane, status in outbox.status().items()} == {
            "incident": 1, "audit": 1, "metric": 0, "sample": 0,
        }  # fmt: skip


def test_policy_telemetry_redact_leaves_fields_out_at_any_depth_before_they_are_stored(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        outbox.telemetry = Telemetry(redact=("secret", "audit.reason"))
        body = {"secret": "4711", "reason": "why", "deep": [{"secret": "4711", "n": 1}]}
        for lane in ("incident", "audit"):
            outbox.append(lane, "step", 1, body)  # type: ignore[arg-type]
        assert outbox.batch("incident", 9999).rows[0][3] == {"reason": "why", "deep": [{"n": 1}]}  # type: ignore[union-attr]
        assert outbox.batch("audit", 9999).rows[0][3] == {"deep": [{"n": 1}]}  # type: ignore[union-attr]
    assert b"4711" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_policy_telemetry_keep_days_loses_what_is_older_counted_in_a_gap(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        outbox.telemetry = Telemetry(keep_days=10)
        for n in range(4):
            outbox.append("audit", "step", (1 + 5 * n) * DAY, {"n": n})
        outbox.append("incident", "before any time was known", 0, {})
        assert outbox.expire(11 * DAY) == 0, "not older than that yet"
        assert outbox.expire(17 * DAY) == 2
        assert_ledger_balances(outbox)
        status = outbox.status()["audit"]
        assert (status.kept, status.lost, outbox.status()["incident"].lost) == (2, 2, 0)
        batch = outbox.batch("audit", 9999)
        assert batch is not None
        assert batch.rows[0] == (2, GAP, DAY, {"kinds": {"step": 2}, "from": DAY, "to": 6 * DAY})
        assert [row[3] for row in batch.rows[1:]] == [{"n": 2}, {"n": 3}]
        assert outbox.expire(1000 * DAY) == 0, "what was handed out stays until it is receipted"
        assert_ledger_balances(outbox)


def test_how_long_a_node_may_be_away_is_documented_as_measured() -> None:
    table = run_path(str(DATA.parent / "bench" / "outbox.py"))["table"]()
    assert table in (Path(__file__).parents[2] / "shared" / "FORMATS.md").read_text()


def test_a_damaged_outbox_is_named_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "o").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="can't be used: file is not a database; move it away"):
        Outbox(tmp_path / "o", RUN)


def test_an_outbox_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Outbox(tmp_path / "o", RUN).close()
    with sqlite3.connect(tmp_path / "o") as conn:
        conn.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('outbox', '0009', '')")
    with pytest.raises(ConfigError, match="written by a newer version"):
        Outbox(tmp_path / "o", RUN)
