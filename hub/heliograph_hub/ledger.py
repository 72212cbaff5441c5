"""[IO] What was sent to whom, who began with what, and which rollouts are paused: the rows that pacing goes by.

Rule 1: who is let in is committed before the offer that says so is sent, so a hub that starts anew paces as before.
Rule 2: bytes are counted for (site, node, release) by the quarter of an hour, which every time zone's days are made of.
    They are written every few seconds: a hub that is killed forgets the last of them, never more.
Rule 3: quarters older than `KEEP_S` are added up into one row, so that totals stay and the table doesn't grow. Who
    began and was sent nothing for as long is forgotten, and begins anew.

May be used by several threads: each question and each change is one step.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from heliograph.documents import ModelReport, Spent
from heliograph.names import Ring
from heliograph_hub.database import Database, begun, pauses, sent
from heliograph_hub.pacing import HOUR_S, IDLE_S, Facts
from heliograph_hub.rollout import Paused

QUARTER_S = 900
KEEP_S = 40 * 86400
"""Longer than any month."""
OLD = 0
"""The quarter that everything older is added to."""

ReportOf = Callable[[str, str, str], ModelReport | None]
"""What (site, node) last said of a model."""


class Ledger:
    """The books of one hub."""

    def __init__(self, database: Database, report_of: ReportOf) -> None:
        self._database = database
        self._report_of = report_of
        self._lock = threading.Lock()
        self._unwritten: Counter[tuple[str, str, bytes, int, Ring]] = Counter()
        self._last: dict[tuple[str, str, bytes], int] = {}
        self.noted: Counter[str] = Counter()
        """Bytes counted since this began, by site."""
        self._paused = self._read_pauses()

    # --- bytes ------------------------------------------------------------------------------------------------------

    def note_sent(self, site: str, node: str, ring: Ring, release: bytes, count: int, now: int) -> None:
        """Counts bytes of content; on disk after the next `flush`."""
        with self._lock:
            self._unwritten[site, node, release, now // QUARTER_S, ring] += count
            self._last[site, node, release] = now
            self.noted[site] += count

    def flush(self) -> None:
        """Writes what was counted."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if not self._unwritten:
            return
        with self._database.write() as connection:
            for (site, node, release, quarter, ring), count in self._unwritten.items():
                _add(connection, site, node, release, quarter, ring, count)
            for (site, node, release), at in self._last.items():
                connection.execute(sa.update(begun).where(*_is(begun, site, node, release)).values(last_at=at))
        self._unwritten.clear()
        self._last.clear()

    def tidy(self, now: int) -> None:
        """Adds up what is older than any month that still counts, and forgets who began and was sent nothing since."""
        oldest = (now - KEEP_S) // QUARTER_S
        with self._lock, self._database.write() as connection:
            where = (sent.c.quarter < oldest, sent.c.quarter != OLD)
            for row in connection.execute(sa.select(sent).where(*where)).all():
                _add(connection, row.site, row.node, row.release, OLD, row.ring, row.bytes)
            connection.execute(sa.delete(sent).where(*where))
            connection.execute(sa.delete(begun).where(begun.c.last_at < now - KEEP_S))

    def bytes_by_site(self, release: bytes) -> dict[str, int]:
        """What each site was sent of a release."""
        query = sa.select(sent.c.site, sa.func.sum(sent.c.bytes).label("bytes")).where(sent.c.release == release)
        with self._lock:
            self._flush()
            with self._database.read() as connection:
                rows = connection.execute(query.group_by(sent.c.site).order_by(sent.c.site)).all()
        return {row.site: int(row.bytes) for row in rows}

    def bytes_by_release(self, site: str, node: str) -> dict[bytes, int]:
        """What a node was sent of each release."""
        where = (sent.c.site == site, sent.c.node == node)
        query = sa.select(sent.c.release, sa.func.sum(sent.c.bytes).label("bytes")).where(*where)
        with self._lock:
            self._flush()
            with self._database.read() as connection:
                rows = connection.execute(query.group_by(sent.c.release)).all()
        return {row.release: int(row.bytes) for row in rows}

    def spent(self, site: str, zone: ZoneInfo, now: int) -> Spent:
        """What a site was sent in its day and its month."""
        with self._lock:
            self._flush()
            with self._database.read() as connection:
                return _spent(connection, site, zone, now)

    # --- who began --------------------------------------------------------------------------------------------------

    def admit(
        self,
        site: str,
        node: str,
        ring: Ring,
        model: str,
        release: bytes,
        number: int,
        cost: int,
        zone: ZoneInfo,
        now: int,
        is_let_in: Callable[[Facts], bool],
    ) -> None:
        """Asks `is_let_in` of what bears on this node's ask, and if it says so writes down that the node has begun."""
        with self._lock:
            self._flush()
            with self._database.write() as connection:
                facts = self._facts(connection, site, node, ring, model, release, number, zone, now)
                if not is_let_in(facts):
                    return
                total = _total(connection, site, node, release)
                values = {"model": model, "ring": ring, "number": number, "cost": cost, "sent_before": total}
                where = _is(begun, site, node, release)
                row = connection.execute(sa.select(begun).where(*where)).one_or_none()
                if row is None:
                    key = {"site": site, "node": node, "release": release, "began_at": now, "last_at": now}
                    connection.execute(sa.insert(begun).values(**key, **values))
                    return
                if row.number != number:
                    values |= {"began_at": now, "last_at": now}  # its rollout was started again
                elif row.sent_before != total:
                    values["last_at"] = now  # who only asks again and takes nothing doesn't keep its place
                connection.execute(sa.update(begun).where(*where).values(**values))

    def has_begun(self, site: str, node: str, release: bytes, number: int) -> bool:
        """Whether the node was let in by this directive."""
        query = sa.select(begun.c.number).where(*_is(begun, site, node, release))
        with self._database.read() as connection:
            return connection.execute(query).scalar_one_or_none() == number

    def _facts(
        self,
        connection: sa.Connection,
        site: str,
        node: str,
        ring: Ring,
        model: str,
        release: bytes,
        number: int,
        zone: ZoneInfo,
        now: int,
    ) -> Facts:
        fetching = ring_bytes = promised = 0
        starts: list[int] = []
        for row in connection.execute(sa.select(begun).where(begun.c.last_at > now - HOUR_S)).all():
            if (row.site, row.node) == (site, node) or not (row.ring == ring or row.site == site):
                continue
            if row.ring == ring and row.release == release and row.began_at > now - HOUR_S:
                starts.append(row.began_at)
            if not self._fetches(row, now):
                continue
            due = max(row.cost - _total(connection, row.site, row.node, row.release) + row.sent_before, 0)
            if row.ring == ring:
                fetching += row.model == model
                ring_bytes += due
            if row.site == site:
                promised += due
        own = connection.execute(sa.select(begun.c.number).where(*_is(begun, site, node, release))).one_or_none()
        lately = (sent.c.quarter >= (now - HOUR_S) // QUARTER_S, sent.c.ring == ring)
        ring_bytes += connection.execute(sa.select(sa.func.sum(sent.c.bytes)).where(*lately)).scalar() or 0
        return Facts(
            has_begun=own is not None and own.number == number,
            fetching=fetching,
            begun=tuple(sorted(starts)),
            ring_bytes=ring_bytes,
            site=_spent(connection, site, zone, now),
            promised=promised,
        )

    def _fetches(self, row: sa.Row[tuple[object, ...]], now: int) -> bool:
        """Whether a node that began is being sent something still, as far as it and the books tell."""
        if row.last_at <= now - IDLE_S:
            return False
        report = self._report_of(row.site, row.node, row.model)
        if report is None:
            return True
        has_it = row.release in report.held or (report.tuple is not None and report.tuple.release == row.release)
        return not has_it and not any((r.release, r.number) == (row.release, row.number) for r in report.refused)

    # --- pauses -----------------------------------------------------------------------------------------------------

    def pauses(self) -> Mapping[bytes, Paused]:
        """The rollouts that stand still, by release."""
        return self._paused

    def _read_pauses(self) -> dict[bytes, Paused]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(pauses)).all()
        return {row.release: Paused(row.model, row.release, row.lets_running) for row in rows}

    def pause(self, paused: Paused, now: int) -> None:
        """Has a rollout stand still; on disk when this returns."""
        with self._database.write() as connection:
            connection.execute(sa.delete(pauses).where(pauses.c.release == paused.release))
            values = {"model": paused.model, "release": paused.release, "lets_running": paused.lets_running, "at": now}
            connection.execute(sa.insert(pauses).values(**values))
        self._paused = self._read_pauses()

    def resume(self, release: bytes) -> bool:
        """Has it go on; whether it was paused. On disk when this returns."""
        with self._database.write() as connection:
            was_paused = connection.execute(sa.delete(pauses).where(pauses.c.release == release)).rowcount > 0
        self._paused = self._read_pauses()
        return was_paused


def _spent(connection: sa.Connection, site: str, zone: ZoneInfo, now: int) -> Spent:
    today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    day, month = (int(at.timestamp()) // QUARTER_S for at in (today, today.replace(day=1)))
    query = sa.select(sent.c.quarter, sa.func.sum(sent.c.bytes).label("bytes"))
    rows = connection.execute(query.where(sent.c.site == site, sent.c.quarter >= month).group_by(sent.c.quarter)).all()
    of_day = sum(int(row.bytes) for row in rows if row.quarter >= day)
    return Spent(day=of_day, month=sum(int(row.bytes) for row in rows))


def _total(connection: sa.Connection, site: str, node: str, release: bytes) -> int:
    query = sa.select(sa.func.sum(sent.c.bytes)).where(*_is(sent, site, node, release))
    return int(connection.execute(query).scalar() or 0)


def _add(connection: sa.Connection, site: str, node: str, release: bytes, quarter: int, ring: str, count: int) -> None:
    where = (*_is(sent, site, node, release), sent.c.quarter == quarter)
    if connection.execute(sa.update(sent).where(*where).values(bytes=sent.c.bytes + count)).rowcount == 0:
        row = {"site": site, "node": node, "release": release, "quarter": quarter, "ring": ring, "bytes": count}
        connection.execute(sa.insert(sent).values(**row))


def _is(table: sa.Table, site: str, node: str, release: bytes) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.site == site, table.c.node == node, table.c.release == release)
