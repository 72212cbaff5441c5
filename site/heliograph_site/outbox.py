"""Records waiting for the hub: `DIR/outbox.sqlite`, numbered per run and lane, bounded in bytes, never lost in silence.

Lanes are `incident`, `audit`, `metric` and `sample`. A record gets its sequence number when it is appended and keeps
it: what was sent once under a number is never sent as something else under that number.

Rule 1: a batch is marked as sent in the database before its bytes are handed out, and what is marked stays as it is
    until a receipt covers it.
Rule 2: over the byte cap, the oldest unsent records of the lowest lane (`sample` first, `incident` last) make way for
    one `gap` row that counts them and takes their numbers; neighbouring gaps grow together.
Rule 3: kept + merged + lost + receipted = written, in every lane, always; a restart changes none of them.

Records of earlier runs of the agent go out before newer ones, under their own run. Source: FORMATS.md, "outbox".
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from heliograph.documents import LANES, Lane
from heliograph.wire import pack, unpack
from heliograph_site.journal import Database, Migrations, open_database

OUTBOX_FILE = "outbox.sqlite"
DEFAULT_CAP_BYTES = 8 << 20
MAX_BODY_BYTES = 16 * 1024
"""Largest body of one record, so that a batch always fits a message."""
ROW_OVERHEAD_BYTES = 48
"""What a row costs beside its body, for the cap and for batches: never less than it is on the wire."""
GAP = "gap"

migrations = Migrations("outbox")


@migrations(name="0001")
def _first(db: Database) -> None:
    # id orders the runs; seq is the first of `count` sequence numbers that the row stands for.
    db.conn.execute("CREATE TABLE run (id INTEGER PRIMARY KEY, run BLOB NOT NULL UNIQUE)")
    db.conn.execute(
        "CREATE TABLE record (run INTEGER NOT NULL, lane TEXT NOT NULL, seq INTEGER NOT NULL, count INTEGER NOT NULL,"
        " kind TEXT NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (run, lane, seq)) WITHOUT ROWID"
    )
    db.conn.execute(
        "CREATE TABLE sequence (run INTEGER NOT NULL, lane TEXT NOT NULL, next INTEGER NOT NULL, sent INTEGER NOT NULL,"
        " acked INTEGER NOT NULL, PRIMARY KEY (run, lane)) WITHOUT ROWID"
    )
    db.conn.execute(
        "CREATE TABLE total (lane TEXT PRIMARY KEY, written INTEGER NOT NULL, merged INTEGER NOT NULL,"
        " lost INTEGER NOT NULL, receipted INTEGER NOT NULL) WITHOUT ROWID"
    )
    db.conn.executemany("INSERT INTO total VALUES (?, 0, 0, 0, 0)", [(lane,) for lane in LANES])


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one run and lane, contiguous from `first`: (count, kind, at, body)."""

    run: bytes
    lane: Lane
    first: int
    rows: tuple[tuple[int, str, int, dict[str, Any]], ...]

    @property
    def next(self) -> int:
        """The sequence number after the last row."""
        return self.first + sum(row[0] for row in self.rows)


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane's ledger. `next_seq` and `acked_seq` are of the newest run; counts are of all runs together."""

    next_seq: int
    acked_seq: int
    written: int
    kept: int
    merged: int
    lost: int
    receipted: int


class Outbox:
    """The outbox, open for appending under one run, or for reading.

    Args:
        run: the agent's run, 8 bytes; None opens read-only.
        cap_bytes: what bodies and rows may take together; rows that were sent are never dropped for it.
    """

    def __init__(self, path: Path, run: bytes | None, cap_bytes: int = DEFAULT_CAP_BYTES) -> None:
        self._db = open_database(path, migrations, read_only=run is None)
        self._conn: sqlite3.Connection = self._db.conn
        self._cap_bytes = cap_bytes
        self._run = -1
        self._bytes = 0
        if run is not None:
            with self._db.atomic():
                self._conn.execute("INSERT OR IGNORE INTO run (run) VALUES (?)", (run,))
                self._run = self._conn.execute("SELECT id FROM run WHERE run = ?", (run,)).fetchone()[0]
                for lane in LANES:
                    self._conn.execute("INSERT OR IGNORE INTO sequence VALUES (?, ?, 0, 0, 0)", (self._run, lane))
            self._bytes = self._conn.execute(
                "SELECT COALESCE(SUM(LENGTH(body) + ?), 0) FROM record", (ROW_OVERHEAD_BYTES,)
            ).fetchone()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing is pending, ever."""
        self._conn.close()

    def append(self, lane: Lane, kind: str, at: int, body: dict[str, Any]) -> int:
        """Writes a record, on disk when this returns, and returns its sequence number within (run, lane).

        A body over 16 KiB is replaced by a note of its size: a record must fit one message.
        """
        data = pack(body)
        if len(data) > MAX_BODY_BYTES:
            data = pack({"oversize_bytes": len(data)})
        with self._db.atomic():
            seq = int(
                self._conn.execute(
                    "SELECT next FROM sequence WHERE run = ? AND lane = ?", (self._run, lane)
                ).fetchone()[0]
            )
            self._conn.execute(
                "INSERT INTO record VALUES (?, ?, ?, 1, ?, ?, ?)", (self._run, lane, seq, kind, at, data)
            )
            self._conn.execute("UPDATE sequence SET next = ? WHERE run = ? AND lane = ?", (seq + 1, self._run, lane))
            self._conn.execute("UPDATE total SET written = written + 1 WHERE lane = ?", (lane,))
            freed = self._make_room(self._bytes + len(data) + ROW_OVERHEAD_BYTES)
        self._bytes += len(data) + ROW_OVERHEAD_BYTES - freed
        return seq

    def batch(self, lane: Lane, max_bytes: int) -> Batch | None:
        """The oldest rows of the lane that no receipt covers, marked as sent; None if there are none.

        Asked again before a receipt, it returns the same rows first, with newer ones after them if they fit.
        """
        start = self._conn.execute(
            "SELECT r.run, n.run, MIN(r.seq) FROM record r JOIN run n ON n.id = r.run"
            " WHERE r.lane = ? AND r.run = (SELECT MIN(run) FROM record WHERE lane = ?)",
            (lane, lane),
        ).fetchone()
        if start is None or start[0] is None:
            return None
        run_id, run, first = start
        rows: list[tuple[int, str, int, dict[str, Any]]] = []
        size, expected = 0, first
        for seq, count, kind, at, body in self._conn.execute(
            "SELECT seq, count, kind, at, body FROM record WHERE run = ? AND lane = ? ORDER BY seq", (run_id, lane)
        ):
            size += len(body) + ROW_OVERHEAD_BYTES
            if seq != expected or (rows and size > max_bytes):
                break
            rows.append((count, kind, at, unpack(body)))
            expected = seq + count
        batch = Batch(bytes(run), lane, first, tuple(rows))
        with self._db.atomic():
            self._conn.execute(
                "UPDATE sequence SET sent = MAX(sent, ?) WHERE run = ? AND lane = ?", (batch.next, run_id, lane)
            )
        return batch

    def receipt(self, run: bytes, lane: Lane, next_seq: int) -> int:
        """The hub holds everything of (run, lane) below `next_seq`: drops it here and returns how many rows that were.

        Never more than was sent; repeated, older or unknown receipts change nothing.
        """
        known = self._conn.execute(
            "SELECT s.run, s.sent, s.acked FROM sequence s JOIN run n ON n.id = s.run WHERE n.run = ? AND s.lane = ?",
            (run, lane),
        ).fetchone()
        if known is None:
            return 0
        run_id, sent, acked = known
        upto = min(next_seq, sent)
        if upto <= acked:
            return 0
        with self._db.atomic():
            where = (run_id, lane, upto)
            records, size, rows, end = self._conn.execute(
                "SELECT COALESCE(SUM(kind != 'gap'), 0), COALESCE(SUM(LENGTH(body) + ?), 0), COUNT(*),"
                " COALESCE(MAX(seq + count), 0) FROM record WHERE run = ? AND lane = ? AND seq + count <= ?",
                (ROW_OVERHEAD_BYTES, *where),
            ).fetchone()
            self._conn.execute("DELETE FROM record WHERE run = ? AND lane = ? AND seq + count <= ?", where)
            self._conn.execute(
                "UPDATE sequence SET acked = MAX(acked, ?) WHERE run = ? AND lane = ?", (end, run_id, lane)
            )
            self._conn.execute("UPDATE total SET receipted = receipted + ? WHERE lane = ?", (records, lane))
            self._forget_finished_runs()
        self._bytes -= size
        return int(rows)

    def acked(self) -> dict[Lane, tuple[bytes, int]]:
        """Per lane: the newest run and the number below which everything of it is receipted."""
        rows = self._conn.execute(
            "SELECT s.lane, n.run, s.acked FROM sequence s JOIN run n ON n.id = s.run"
            " WHERE s.run = (SELECT MAX(id) FROM run)"
        )
        return {lane: (bytes(run), acked) for lane, run, acked in rows}

    def status(self) -> dict[Lane, LaneStatus]:
        """The ledger of every lane."""
        ledger: dict[Lane, LaneStatus] = {}
        for lane in LANES:
            newest = self._conn.execute(
                "SELECT next, acked FROM sequence WHERE lane = ? ORDER BY run DESC LIMIT 1", (lane,)
            ).fetchone() or (0, 0)
            kept = self._conn.execute(
                "SELECT COUNT(*) FROM record WHERE lane = ? AND kind != 'gap'", (lane,)
            ).fetchone()[0]
            written, merged, lost, receipted = self._conn.execute(
                "SELECT written, merged, lost, receipted FROM total WHERE lane = ?", (lane,)
            ).fetchone()
            ledger[lane] = LaneStatus(newest[0], newest[1], written, kept, merged, lost, receipted)
        return ledger

    def _make_room(self, size: int) -> int:
        """Turns old unsent records into gaps until `size` fits the cap; returns the bytes freed. In a transaction."""
        freed = 0
        for lane in reversed(LANES):
            while size - freed > self._cap_bytes:
                victims = self._conn.execute(
                    "SELECT r.run, r.seq, r.at, LENGTH(r.body) FROM record r JOIN sequence s USING (run, lane)"
                    " WHERE r.lane = ? AND r.kind != 'gap' AND r.seq >= s.sent ORDER BY r.run, r.seq LIMIT 16",
                    (lane,),
                ).fetchall()
                if not victims:
                    break
                for run, seq, at, length in victims:
                    if size - freed > self._cap_bytes:
                        freed += length + ROW_OVERHEAD_BYTES - self._lose(run, lane, seq, at)
        return freed

    def _lose(self, run: int, lane: Lane, seq: int, at: int) -> int:
        """Replaces one record by a gap, grown together with a gap just before it; returns the bytes that adds."""
        before = self._conn.execute(
            "SELECT r.seq, r.count FROM record r JOIN sequence s USING (run, lane)"
            " WHERE r.run = ? AND r.lane = ? AND r.kind = 'gap' AND r.seq >= s.sent AND r.seq + r.count = ?",
            (run, lane, seq),
        ).fetchone()
        self._conn.execute("DELETE FROM record WHERE run = ? AND lane = ? AND seq = ?", (run, lane, seq))
        self._conn.execute("UPDATE total SET lost = lost + 1 WHERE lane = ?", (lane,))
        if before is not None:
            self._conn.execute(
                "UPDATE record SET count = count + 1 WHERE run = ? AND lane = ? AND seq = ?", (run, lane, before[0])
            )
            return 0
        body = pack({})
        self._conn.execute("INSERT INTO record VALUES (?, ?, ?, 1, ?, ?, ?)", (run, lane, seq, GAP, at, body))
        return len(body) + ROW_OVERHEAD_BYTES

    def _forget_finished_runs(self) -> None:
        """Drops what older runs left behind once every record of theirs is receipted. In a transaction."""
        finished = "id != ? AND id NOT IN (SELECT DISTINCT run FROM record)"
        self._conn.execute(f"DELETE FROM sequence WHERE run IN (SELECT id FROM run WHERE {finished})", (self._run,))  # noqa: S608 - constant text
        self._conn.execute(f"DELETE FROM run WHERE {finished}", (self._run,))  # noqa: S608 - constant text
