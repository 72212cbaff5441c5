"""The outbox under random lives: nothing lost in silence, nothing sent twice as something else."""

import sqlite3
from pathlib import Path
from random import Random

import pytest

from heliograph.documents import LANES
from heliograph.errors import ConfigError
from heliograph_site.outbox import DEFAULT_CAP_BYTES, GAP, MAX_BODY_BYTES, Outbox

RUN, NEXT_RUN = b"run-0001", b"run-0002"


def assert_ledger_balances(outbox: Outbox) -> None:
    for lane, status in outbox.status().items():
        total = status.kept + status.merged + status.lost + status.receipted
        assert total == status.written, f"{lane}: {status}"


def test_numbers_grow_by_one_per_run_and_lane(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        assert [outbox.append("audit", "step", 5, {}) for _ in range(3)] == [0, 1, 2]
        assert outbox.append("metric", "minute", 5, {}) == 0
    with Outbox(tmp_path / "o", RUN) as outbox:
        assert outbox.append("audit", "step", 6, {}) == 3
    with Outbox(tmp_path / "o", NEXT_RUN) as outbox:
        assert outbox.append("audit", "step", 7, {}) == 0


def test_what_no_receipt_covers_is_sent_again_the_same_even_after_a_kill(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", RUN)
    for n in range(5):
        outbox.append("audit", "step", n, {"n": n})
    first = outbox.batch("audit", 220)
    assert first is not None and first.first == 0 and len(first.rows) == 4
    # Not closed: a kill leaves the file as the last commit left it.
    again = Outbox(tmp_path / "o", NEXT_RUN)
    assert again.batch("audit", 220) == first
    assert again.receipt(RUN, "audit", first.next) == 4
    rest = again.batch("audit", 220)
    assert rest is not None and (rest.run, rest.first, len(rest.rows)) == (RUN, 4, 1)


def test_older_runs_go_first_under_their_own_name(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        outbox.append("audit", "old", 1, {})
    with Outbox(tmp_path / "o", NEXT_RUN) as outbox:
        outbox.append("audit", "new", 2, {})
        batch = outbox.batch("audit", 10_000)
        assert batch is not None and batch.run == RUN and [row[1] for row in batch.rows] == ["old"]
        outbox.receipt(RUN, "audit", 1)
        batch = outbox.batch("audit", 10_000)
        assert batch is not None and batch.run == NEXT_RUN and [row[1] for row in batch.rows] == ["new"]
        outbox.receipt(NEXT_RUN, "audit", 1)
        assert outbox.batch("audit", 10_000) is None
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


def test_over_the_cap_the_lowest_lane_makes_way_and_says_how_much(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=1900) as outbox:
        for n in range(10):
            outbox.append("incident", "refused", n, {"n": n})
            outbox.append("sample", "request", n, {"text": "x" * 100})
        status = outbox.status()
        assert status["incident"].lost == 0 and status["incident"].kept == 10
        assert status["sample"].lost == 2 and status["sample"].kept == 8
        batch = outbox.batch("sample", 100_000)
        assert batch is not None and batch.rows[0][:2] == (2, GAP) and batch.first == 0
        assert batch.next == 10
        assert_ledger_balances(outbox)


def test_what_was_sent_is_not_dropped_for_the_cap(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN, cap_bytes=500) as outbox:
        outbox.append("sample", "request", 1, {"text": "x" * 200})
        sent = outbox.batch("sample", 100_000)
        for n in range(5):
            outbox.append("sample", "request", n, {"text": "y" * 200})
        again = outbox.batch("sample", 100_000)
        assert sent is not None and again is not None
        assert again.rows[0] == sent.rows[0]
        assert again.rows[1][1] == GAP


def test_an_oversized_body_becomes_a_note_of_its_size(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o", RUN) as outbox:
        outbox.append("sample", "request", 1, {"text": "x" * MAX_BODY_BYTES})
        batch = outbox.batch("sample", 1000)
        assert batch is not None and batch.rows[0][3]["oversize_bytes"] > MAX_BODY_BYTES


@pytest.mark.parametrize("seed", range(12))
def test_any_life_keeps_the_ledger_and_never_reuses_a_number(tmp_path: Path, seed: int) -> None:
    """Random appends, batches, receipts (repeated, lost, stale) and kills; a hub that keeps what it is told, once."""
    rng = Random(seed)
    path = tmp_path / "o"
    cap = rng.choice([600, 3000, DEFAULT_CAP_BYTES])
    runs = 0
    outbox = Outbox(path, b"%08d" % runs, cap)
    seen: dict[tuple[bytes, str, int], tuple[object, ...]] = {}
    hub_next: dict[tuple[bytes, str], int] = {}
    written = dict.fromkeys(LANES, 0)
    trace = []

    def deliver(lane: str, max_bytes: int) -> None:
        batch = outbox.batch(lane, max_bytes)  # type: ignore[arg-type]
        if batch is None:
            return
        at = batch.first
        for row in batch.rows:
            for seq in range(at, at + row[0]):
                # A gap's rows are all the same content: that the number is lost.
                told = (row[1],) if row[1] == GAP else row
                assert seen.setdefault((batch.run, lane, seq), told) == told, trace
            at += row[0]
        key = (batch.run, lane)
        assert batch.first <= hub_next.get(key, 0), f"the hub would miss numbers: {trace}"
        hub_next[key] = max(hub_next.get(key, 0), at)

    for _ in range(250):
        action = rng.choice(["append", "append", "append", "deliver", "receipt", "kill"])
        lane = rng.choice(LANES)
        trace.append((action, lane))
        match action:
            case "append":
                outbox.append(lane, "step", rng.randrange(100), {"v": "x" * rng.randrange(80)})
                written[lane] += 1
            case "deliver":
                deliver(lane, rng.choice([1, 200, 2000]))
            case "receipt" if hub_next:
                run, told_lane = rng.choice(sorted(hub_next))
                outbox.receipt(run, told_lane, rng.randrange(hub_next[run, told_lane] + 2))  # type: ignore[arg-type]
            case "kill":
                runs += rng.random() < 0.7
                outbox = Outbox(path, b"%08d" % runs, cap)
        assert_ledger_balances(outbox)
        assert {lane: status.written for lane, status in outbox.status().items()} == written

    for lane in LANES:
        while (batch := outbox.batch(lane, 2000)) is not None:
            deliver(lane, 2000)
            assert outbox.receipt(batch.run, lane, batch.next) > 0
    final = outbox.status()
    assert all(status.kept == 0 for status in final.values())
    heard = {lane: sum(1 for key, told in seen.items() if key[1] == lane and told != (GAP,)) for lane in LANES}
    assert heard == {lane: status.receipted for lane, status in final.items()}
    gaps = {lane: sum(1 for key, told in seen.items() if key[1] == lane and told == (GAP,)) for lane in LANES}
    assert gaps == {lane: status.lost for lane, status in final.items()}


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
