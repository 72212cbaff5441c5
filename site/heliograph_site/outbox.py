"""Records waiting for the hub: `DIR/outbox.sqlite`, numbered as they are sent, bounded in pages, no silent loss.

Lanes, the dearest first: `incident`, `audit`, `metric`, `sample`. A record gets its number within (run, lane) when it
is first handed out; until then it has its place in the lane only, may be merged, and belongs to no run.

Rule 1: a row is numbered and marked in the database before its bytes are handed out, and what is marked stays as it is,
    under its run and number, until a receipt covers it.
Rule 2: rows are numbered oldest first; in the incident lane newest first. What was handed out before goes first.
Rule 3: over its limit the outbox decays before it loses: metrics of past hours merge into hours, of past days into
    days, oldest first, then those of the open hour and day. Then the oldest unsent records of the lowest lane make way
    for the lane's one `gap` row, which counts them; incidents and audit records go last and never merge.
Rule 4: a lane never fills what is reserved for dearer ones, and nothing of a dearer lane is lost for it.
Rule 5: kept + merged + lost + receipted = written, in every lane, always; a restart changes none of them.
Rule 6: what policy keeps at the site (`telemetry`) is left out before anything is stored: a lane that may not leave is
    not written at all, fields that are redacted are gone from every record, at any depth.

How kinds of records merge is said in decay.py. Source: FORMATS.md, "Outbox".
"""

import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from heliograph.documents import LANES, Lane
from heliograph.policy import Telemetry
from heliograph.rules import keep_from, redacted
from heliograph.wire import pack, unpack
from heliograph_site.database import Database, Migrations, open_database
from heliograph_site.decay import PERIODS_S, Piece, merge, subject

OUTBOX_FILE = "outbox.sqlite"
DEFAULT_CAP_BYTES = 8 << 20
RESERVED_SHARES: Final[dict[Lane, float]] = {"incident": 1 / 8, "audit": 1 / 8}
"""Shares of the cap that lower lanes leave free."""
MAX_BODY_BYTES = 16 * 1024
"""Largest body of one record, so that a batch always fits a message."""
ROW_OVERHEAD_BYTES = 48
"""What a row costs beside its body in batches and against reserves: never less than it is on the wire."""
GAP = "gap"
DECAYING: Lane = "metric"
MAX_GAP_KINDS = 16
"""Kinds a gap tells apart; records of more kinds are counted as `other`."""
ROOM_SHARE = 1 / 64
"""Decay makes this share of the cap free at once, so that it isn't needed for every record."""
SPARE_PAGES = 32
"""Free pages the file keeps for what comes next; more are given back to the disk."""
WAL_PAGES = 128
"""The log beside the file is written back when it is this long."""
_RANKS: Final = {lane: rank for rank, lane in enumerate(LANES)}
_LOST_LEVEL: Final = len(PERIODS_S) + 1
_UNSENT_METRICS: Final = f"lane = {_RANKS[DECAYING]} AND run IS NULL"

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


@migrations(name="0002")
def _number_when_sent(db: Database) -> None:
    # lane is its place in LANES; id orders a lane's rows. run and seq are null until the row is first handed out.
    # level: how often thinned (0, 1: hour, 2: day, 3: gap). bytes: of the lane's rows, with ROW_OVERHEAD_BYTES each.
    ranks = " ".join(f"WHEN '{lane}' THEN {rank}" for lane, rank in _RANKS.items())
    for table in ("record", "sequence", "total"):
        db.conn.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    db.conn.execute(
        "CREATE TABLE record (lane INTEGER NOT NULL, id INTEGER NOT NULL, run INTEGER, seq INTEGER,"
        " count INTEGER NOT NULL, kind TEXT NOT NULL, level INTEGER NOT NULL, at INTEGER NOT NULL,"
        " until INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (lane, id)) WITHOUT ROWID"
    )
    db.conn.execute("CREATE INDEX record_sent ON record (lane, run, seq) WHERE run IS NOT NULL")
    db.conn.execute(f"CREATE INDEX record_due ON record (level, at) WHERE {_UNSENT_METRICS}")
    db.conn.execute(
        "CREATE TABLE sequence (run INTEGER NOT NULL, lane INTEGER NOT NULL, next INTEGER NOT NULL,"
        " acked INTEGER NOT NULL, PRIMARY KEY (run, lane)) WITHOUT ROWID"
    )
    db.conn.execute(
        "CREATE TABLE total (lane INTEGER PRIMARY KEY, written INTEGER NOT NULL, merged INTEGER NOT NULL,"
        " lost INTEGER NOT NULL, receipted INTEGER NOT NULL, bytes INTEGER NOT NULL)"
    )
    # Numbers that were given but never handed out are given up: nobody knows them.
    db.conn.execute(
        f"INSERT INTO record SELECT CASE r.lane {ranks} END,"  # noqa: S608 - constant text
        " ROW_NUMBER() OVER (PARTITION BY r.lane ORDER BY r.run, r.seq),"
        " IIF(r.seq < s.sent, r.run, NULL), IIF(r.seq < s.sent, r.seq, NULL), r.count, r.kind,"
        f" IIF(r.kind = '{GAP}', {_LOST_LEVEL}, 0), r.at, r.at, r.body"
        " FROM old_record r JOIN old_sequence s ON s.run = r.run AND s.lane = r.lane"
    )
    db.conn.execute(f"INSERT INTO sequence SELECT run, CASE lane {ranks} END, sent, acked FROM old_sequence")  # noqa: S608 - constant text
    db.conn.execute(
        f"INSERT INTO total SELECT CASE t.lane {ranks} END, t.written, t.merged, t.lost, t.receipted,"  # noqa: S608 - constant text
        f" (SELECT COALESCE(SUM(LENGTH(o.body) + {ROW_OVERHEAD_BYTES}), 0) FROM old_record o WHERE o.lane = t.lane)"
        " FROM old_total t"
    )
    for table in ("record", "sequence", "total"):
        db.conn.execute(f"DROP TABLE old_{table}")


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
    """One lane's ledger, all runs together.

    `acked_seq` is of the newest run, and so is `next_seq`, in which what waits is counted as if it were sent.
    """

    next_seq: int
    acked_seq: int
    written: int
    kept: int
    merged: int
    lost: int
    receipted: int


class Outbox:
    """The outbox, open for appending and sending under one run, or for reading.

    Args:
        run: the agent's run, 8 bytes; None opens read-only.
        cap_bytes: what the file's used pages may take; rows that were handed out are never dropped for it.

    Attributes:
        telemetry: what may leave the site; counts for what is written from now on.
    """

    def __init__(self, path: Path, run: bytes | None, cap_bytes: int = DEFAULT_CAP_BYTES) -> None:
        self._db = open_database(path, migrations, read_only=run is None)
        self._conn: sqlite3.Connection = self._db.conn
        self.telemetry = Telemetry()
        self._cap_bytes = cap_bytes
        self._reserved_bytes = sum(int(share * cap_bytes) for share in RESERVED_SHARES.values())
        self._page_bytes: int = self._conn.execute("PRAGMA page_size").fetchone()[0]
        self._run = -1
        if run is not None:
            if self._conn.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:
                self._conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
                self._conn.execute("VACUUM")
            self._conn.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            self._conn.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * self._page_bytes}")
            with self._db.atomic():
                self._conn.execute("INSERT OR IGNORE INTO run (run) VALUES (?)", (run,))
                self._run = self._conn.execute("SELECT id FROM run WHERE run = ?", (run,)).fetchone()[0]
                for rank in _RANKS.values():
                    self._conn.execute("INSERT OR IGNORE INTO sequence VALUES (?, ?, 0, 0)", (self._run, rank))
                self._forget_finished_runs()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing is pending, ever."""
        self._conn.close()

    def append(self, lane: Lane, kind: str, at: int, body: dict[str, Any]) -> None:
        """Writes a record, on disk when this returns. It may make older records merge, or be lost, to fit.

        A body over 16 KiB is replaced by a note of its size: a record must fit one message. Nothing is written in a
        lane that may not leave the site.
        """
        kept = redacted(self.telemetry, lane, body)
        if kept is None:
            return
        data = pack(kept)
        if len(data) > MAX_BODY_BYTES:
            data = pack({"oversize_bytes": len(data)})
        with self._db.atomic():
            self._insert(lane, 1, kind, 0, Piece(at, at, {}), data)
            is_freed = self._make_room(lane, at)
        if is_freed:
            self._give_back()

    def expire(self, now: int) -> int:
        """Loses, counted in their lanes' gaps, what was kept longer than `telemetry.keep_days`; returns how many.

        What was handed out stays until it is receipted (rule 1).
        """
        oldest, lost = keep_from(self.telemetry, now), 0
        with self._db.atomic():
            for lane in LANES:
                while self._is_older(lane, oldest) and self._lose(lane):
                    lost += 1
        if lost:
            self._give_back()
        return lost

    def _is_older(self, lane: Lane, than: int) -> bool:
        """Whether the lane's oldest unsent record ended before; one that knew no time yet is as new as any."""
        row = self._conn.execute(
            "SELECT until FROM record WHERE lane = ? AND run IS NULL AND kind != ? ORDER BY id LIMIT 1",
            (_RANKS[lane], GAP),
        ).fetchone()
        return row is not None and 0 < row[0] < than

    def batch(self, lane: Lane, max_bytes: int) -> Batch | None:
        """The rows of the lane to send next, numbered and marked as handed out; None if there are none.

        Rows that were handed out and not receipted come first, the oldest run's; asked again, the same rows come
        again, with newer ones after them if they fit.
        """
        rank = _RANKS[lane]
        rows: list[tuple[int, str, int, dict[str, Any]]] = []
        if self._conn.execute("SELECT 1 FROM record WHERE lane = ? LIMIT 1", (rank,)).fetchone() is None:
            return None
        with self._db.atomic():
            oldest = self._conn.execute(
                "SELECT MIN(run) FROM record WHERE lane = ? AND run IS NOT NULL", (rank,)
            ).fetchone()[0]
            run_id = self._run if oldest is None else oldest
            run, following = self._conn.execute(
                "SELECT n.run, s.next FROM sequence s JOIN run n ON n.id = s.run WHERE s.run = ? AND s.lane = ?",
                (run_id, rank),
            ).fetchone()
            sent = self._conn.execute(
                "SELECT seq, count, kind, at, body FROM record WHERE lane = ? AND run = ? ORDER BY seq", (rank, run_id)
            ).fetchall()
            size, first = 0, sent[0][0] if sent else following
            for _, count, kind, at, body in sent:
                size += len(body) + ROW_OVERHEAD_BYTES
                if rows and size > max_bytes:
                    break
                rows.append((count, kind, at, unpack(body)))
            if len(rows) == len(sent) and run_id == self._run:
                order = "DESC" if lane == "incident" else "ASC"
                unsent = self._conn.execute(
                    f"SELECT id, count, kind, at, body FROM record WHERE lane = ? AND run IS NULL ORDER BY id {order}",  # noqa: S608 - constant text
                    (rank,),
                )
                marked = []
                for id_, count, kind, at, body in unsent:
                    size += len(body) + ROW_OVERHEAD_BYTES
                    if rows and size > max_bytes:
                        break
                    rows.append((count, kind, at, unpack(body)))
                    marked.append((run_id, following, rank, id_))
                    following += count
                if marked:
                    self._conn.executemany("UPDATE record SET run = ?, seq = ? WHERE lane = ? AND id = ?", marked)
                    self._conn.execute(
                        "UPDATE sequence SET next = ? WHERE run = ? AND lane = ?", (following, run_id, rank)
                    )
        return Batch(bytes(run), lane, first, tuple(rows)) if rows else None

    def receipt(self, run: bytes, lane: Lane, next_seq: int) -> int:
        """The hub holds everything of (run, lane) below `next_seq`: drops it here and returns how many rows that were.

        Never more than was handed out; repeated, older or unknown receipts change nothing.
        """
        rank = _RANKS[lane]
        with self._db.atomic():
            known = self._conn.execute("SELECT id FROM run WHERE run = ?", (run,)).fetchone()
            if known is None:
                return 0
            where = (rank, known[0], next_seq)
            records, size, rows, end = self._conn.execute(
                "SELECT COALESCE(SUM(kind != 'gap'), 0), COALESCE(SUM(LENGTH(body) + ?), 0), COUNT(*),"
                " COALESCE(MAX(seq + count), 0) FROM record WHERE lane = ? AND run = ? AND seq + count <= ?",
                (ROW_OVERHEAD_BYTES, *where),
            ).fetchone()
            if rows == 0:
                return 0
            self._conn.execute("DELETE FROM record WHERE lane = ? AND run = ? AND seq + count <= ?", where)
            self._conn.execute("UPDATE sequence SET acked = ? WHERE run = ? AND lane = ?", (end, known[0], rank))
            self._conn.execute(
                "UPDATE total SET receipted = receipted + ?, bytes = bytes - ? WHERE lane = ?", (records, size, rank)
            )
            self._forget_finished_runs()
        self._give_back()
        return int(rows)

    def acked(self) -> dict[Lane, tuple[bytes, int]]:
        """Per lane: the newest run and the number below which everything of it is receipted."""
        rows = self._conn.execute(
            "SELECT s.lane, n.run, s.acked FROM sequence s JOIN run n ON n.id = s.run"
            " WHERE s.run = (SELECT MAX(id) FROM run)"
        )
        return {LANES[rank]: (bytes(run), acked) for rank, run, acked in rows}

    def status(self) -> dict[Lane, LaneStatus]:
        """The ledger of every lane."""
        ledger: dict[Lane, LaneStatus] = {}
        for lane, rank in _RANKS.items():
            following, acked = self._conn.execute(
                "SELECT next, acked FROM sequence WHERE lane = ? ORDER BY run DESC LIMIT 1", (rank,)
            ).fetchone() or (0, 0)
            kept, waiting = self._conn.execute(
                "SELECT COALESCE(SUM(kind != 'gap'), 0), COALESCE(SUM(IIF(run IS NULL, count, 0)), 0)"
                " FROM record WHERE lane = ?",
                (rank,),
            ).fetchone()
            written, merged, lost, receipted = self._conn.execute(
                "SELECT written, merged, lost, receipted FROM total WHERE lane = ?", (rank,)
            ).fetchone()
            ledger[lane] = LaneStatus(following + waiting, acked, written, kept, merged, lost, receipted)
        return ledger

    def used_bytes(self) -> int:
        """What the cap bounds: the file's pages but the free ones."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._page_bytes

    def _pragma(self, name: str) -> int:
        return int(self._conn.execute(f"PRAGMA {name}").fetchone()[0])

    def _insert(self, lane: Lane, count: int, kind: str, level: int, piece: Piece, data: bytes) -> None:
        """Puts a record written now at the lane's end. In a transaction, like all that follow."""
        rank = _RANKS[lane]
        self._conn.execute(
            "INSERT INTO record SELECT ?1, COALESCE(MAX(id), 0) + 1, NULL, NULL, ?2, ?3, ?4, ?5, ?6, ?7"
            " FROM record WHERE lane = ?1",
            (rank, count, kind, level, piece.at, piece.until, data),
        )
        self._conn.execute(
            "UPDATE total SET written = written + 1, bytes = bytes + ? WHERE lane = ?",
            (len(data) + ROW_OVERHEAD_BYTES, rank),
        )

    def _add_bytes(self, rank: int, size: int) -> None:
        self._conn.execute("UPDATE total SET bytes = bytes + ? WHERE lane = ?", (size, rank))

    def _limit(self, lane: Lane) -> int:
        """What may be used after a record of this lane: the cap, less what dearer lanes have not used of their own."""
        limit = self._cap_bytes
        for dearer in LANES[: _RANKS[lane]]:
            held = self._conn.execute("SELECT bytes FROM total WHERE lane = ?", (_RANKS[dearer],)).fetchone()[0]
            limit -= max(0, int(RESERVED_SHARES.get(dearer, 0) * self._cap_bytes) - held)
        return limit

    def _make_room(self, lane: Lane, at: int) -> bool:
        """Thins, then loses, until what is used is within the lane's limit; `at` says which hour and day are open.

        Whether there was anything to do.
        """
        used = self.used_bytes()
        if used <= self._cap_bytes - self._reserved_bytes:
            return False  # below every limit
        limit = self._limit(lane)
        if used <= limit:
            return False
        self._decay(limit, at)
        for victim in reversed(LANES[_RANKS[lane] :]):
            while self.used_bytes() > limit and self._lose(victim):
                pass
        return True

    def _decay(self, limit: int, at: int) -> None:
        """Merges metrics, the oldest first, until what is used is within the limit, with some room where it can be."""
        for is_open in (False, True):
            target = limit if is_open else limit - int(ROOM_SHARE * self._cap_bytes)
            for level, period_s in enumerate(PERIODS_S, 1):
                periods = self._conn.execute(
                    f"SELECT DISTINCT at / ?1 FROM record WHERE {_UNSENT_METRICS} AND level < ?2"  # noqa: S608 - constant text
                    f" AND (at / ?1 {'=' if is_open else '!='} ?3 / ?1) ORDER BY 1",
                    (period_s, level, at),
                ).fetchall()
                for (period,) in periods:
                    if self.used_bytes() <= target:
                        return
                    self._merge(level, period * period_s, (period + 1) * period_s)

    def _merge(self, level: int, begin: int, end: int) -> None:
        """Merges the unsent metrics of one period that are about the same."""
        rank = _RANKS[DECAYING]
        groups: dict[bytes, list[tuple[int, int, int, str, Piece]]] = {}
        levels = ", ".join(str(lower) for lower in range(level + 1))
        where = f"{_UNSENT_METRICS} AND level IN ({levels}) AND at >= ? AND at < ?"
        for id_, count, kind, at, until, data in self._conn.execute(
            f"SELECT id, count, kind, at, until, body FROM record WHERE {where} ORDER BY at, id",  # noqa: S608 - constant text
            (begin, end),
        ):
            body = unpack(data)
            about = subject(kind, body)
            if about is not None:
                row = (id_, count, len(data), kind, Piece(at, until, body))
                groups.setdefault(about, []).append(row)
        self._conn.execute(f"UPDATE record SET level = ? WHERE {where}", (level, begin, end))  # noqa: S608 - constant text
        for rows in groups.values():
            piece = merge(rows[0][3], [row[4] for row in rows]) if len(rows) > 1 else None
            data = pack(piece.body) if piece else b""
            if piece is None or len(data) > MAX_BODY_BYTES:
                continue
            first, *others = sorted(row[0] for row in rows)
            self._conn.executemany("DELETE FROM record WHERE lane = ? AND id = ?", [(rank, id_) for id_ in others])
            self._conn.execute(
                "UPDATE record SET count = ?, at = ?, until = ?, body = ? WHERE lane = ? AND id = ?",
                (sum(row[1] for row in rows), piece.at, piece.until, data, rank, first),
            )
            self._conn.execute("UPDATE total SET merged = merged + ? WHERE lane = ?", (len(others), rank))
            self._add_bytes(rank, len(data) - sum(row[2] for row in rows) - len(others) * ROW_OVERHEAD_BYTES)

    def _lose(self, lane: Lane) -> bool:
        """Counts the lane's oldest unsent record into its gap, which stands at its place; whether there was one."""
        rank = _RANKS[lane]
        rows = self._conn.execute(
            "SELECT id, count, kind, at, until, body FROM record WHERE lane = ? AND run IS NULL ORDER BY id LIMIT 2",
            (rank,),
        ).fetchall()
        gap = rows.pop(0) if rows and rows[0][2] == GAP else None
        if not rows:
            return False
        id_, count, kind, at, until, data = rows[0]
        kinds = _kinds_of(gap[1], gap[5]) if gap else Counter()
        for name, number in (_kinds_of(count, data) if kind == GAP else Counter({kind: count})).items():
            kinds[name if name in kinds or len(kinds) < MAX_GAP_KINDS else "other"] += number
        begin, end = (min(at, gap[3]), max(until, gap[4])) if gap else (at, until)
        body = pack({"kinds": dict(kinds), "from": begin, "to": end})
        if gap:
            self._conn.execute("DELETE FROM record WHERE lane = ? AND id = ?", (rank, gap[0]))
        self._conn.execute(
            "UPDATE record SET count = ?, kind = ?, level = ?, at = ?, until = ?, body = ? WHERE lane = ? AND id = ?",
            (count + (gap[1] if gap else 0), GAP, _LOST_LEVEL, begin, end, body, rank, id_),
        )
        if kind != GAP:
            self._conn.execute(
                "UPDATE total SET lost = lost + ?, merged = merged - ? WHERE lane = ?", (count, count - 1, rank)
            )
        before = len(data) + (len(gap[5]) + ROW_OVERHEAD_BYTES if gap else 0)
        self._add_bytes(rank, len(body) - before)
        return True

    def _forget_finished_runs(self) -> None:
        """Drops what older runs left behind once every record of theirs is receipted."""
        finished = "id != ? AND id NOT IN (SELECT run FROM record WHERE run IS NOT NULL)"
        self._conn.execute(f"DELETE FROM sequence WHERE run IN (SELECT id FROM run WHERE {finished})", (self._run,))  # noqa: S608 - constant text
        self._conn.execute(f"DELETE FROM run WHERE {finished}", (self._run,))  # noqa: S608 - constant text

    def _give_back(self) -> None:
        """Gives free pages back to the disk, but a few. Outside of a transaction."""
        free = self._pragma("freelist_count")
        if free > 2 * SPARE_PAGES:
            # Each step of it frees one page; `execute` would take only the first.
            self._conn.executescript(f"PRAGMA incremental_vacuum({free - SPARE_PAGES})")


def _kinds_of(count: int, gap: bytes) -> Counter[str]:
    """How many records of which kind a gap stands for; schema 0001 did not write it down."""
    return Counter(unpack(gap).get("kinds") or {"other": count})
