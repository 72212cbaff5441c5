"""[IO] What goes: records with age, which stay counted; runs with nothing left, folded into sums; objects nobody names.

Rule 1: a record is dropped when both its own time and its arrival are older than policy keeps it: the clock of a node
    may be wrong. A dropped record stays in its lane's `kept` and is counted in `dropped` as well, so that what a node
    wrote can be added up for ever.
Rule 2: what a forgotten run had sent never counts again: its records are all older than `records_before` of its node,
    its reports than `runs_before`, and both are refused or passed over when they come once more.
Rule 3: `runs_before` stays `MIN_RUN_AGE_S` behind the hub's clock, so that no wrong estimate of a node locks it out.
Rule 4: an object is on disk before the row that names it and goes after it, so a hub that is killed in between leaves
    one that nothing names. Such are removed when a hub begins `UNNAMED_S` later: until then a newer database may be put
    back that names them. A database that names none at all isn't this store's: then nothing is.

Time comes from the caller.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import sqlalchemy as sa

from heliograph.errors import NotFoundError
from heliograph.names import Ring
from heliograph.objects import ObjectStore
from heliograph.policy import DAY_S, Telemetry
from heliograph.rules import keep_from
from heliograph_hub.assigning import FIRST_RING
from heliograph_hub.database import Database, blobs, lanes, nodes, records, runs, sites

MIN_RUN_AGE_S: Final = 90 * DAY_S
MAX_RUNS: Final = 256
"""Newest runs of a node that are remembered one by one, however old; older ones only while they have records. As many
that only sent records, and no report, are remembered as well."""
UNNAMED_S: Final = 14 * DAY_S
FOLDED: Final = b""
"""Stands for the run in the sums of all that are forgotten: no run has this name."""
SUMS: Final = ("kept", "merged", "lost", "missing", "dropped")


def drop_unnamed(database: Database, objects: ObjectStore, now: int) -> int:
    """Removes what an earlier hub was writing or dropping when it was killed; returns how many objects that were.

    Halves of files go at once, whole objects that came `UNNAMED_S` before `now` (seconds since 1970) or earlier. What
    can't be removed stays until the next time. Only while nobody else writes to the store.

    Raises:
        OSError: the store can't be listed.
    """
    objects.clean()
    with database.read() as connection:
        named = set(connection.execute(sa.select(blobs.c.digest)).scalars())
    gone = [digest for digest in objects.list() if digest not in named] if named else []
    dropped = 0
    for digest in gone:
        with suppress(OSError, NotFoundError):
            if objects.came_at(digest) <= now - UNNAMED_S:
                objects.delete(digest)
                dropped += 1
    return dropped


def drop_old(database: Database, telemetry: Callable[[Ring], Telemetry], now: int, *, max_runs: int = MAX_RUNS) -> int:
    """Drops records older than their node's ring keeps them and forgets dead runs; returns how many were dropped."""
    with database.read() as connection:
        rings = {row.site: row.ring for row in connection.execute(sa.select(sites))}
        found = [
            (r.site, r.node, r.ring or rings.get(r.site, FIRST_RING)) for r in connection.execute(sa.select(nodes))
        ]
    dropped = 0
    for site, node, ring in found:  # a transaction each, so that nodes that report meanwhile don't wait long
        with database.write() as connection:
            before = keep_from(telemetry(ring), now)
            dropped += _drop(connection, site, node, before)
            if _forget_runs(connection, site, node, now, max_runs):
                here = (*_is(nodes, site, node), nodes.c.records_before < before)
                connection.execute(sa.update(nodes).where(*here).values(records_before=before))
    return dropped


def _drop(connection: sa.Connection, site: str, node: str, before: int) -> int:
    old = (*_is(records, site, node), records.c.at < before, records.c.received_at < before)
    counts = sa.select(records.c.run, records.c.lane, sa.func.count().label("gone")).where(
        *old, records.c.kind != "gap"
    )
    total = 0
    for row in connection.execute(counts.group_by(records.c.run, records.c.lane)).all():
        where = (*_is(lanes, site, node), lanes.c.run == row.run, lanes.c.lane == row.lane)
        connection.execute(sa.update(lanes).where(*where).values(dropped=lanes.c.dropped + row.gone))
        total += row.gone
    connection.execute(sa.delete(records).where(*old))
    return total


def _forget_runs(connection: sa.Connection, site: str, node: str, now: int, max_runs: int) -> bool:
    """Folds the lanes of runs that have no record left, but for the newest; whether there were any."""
    is_any = False
    current = connection.execute(sa.select(nodes.c.run).where(*_is(nodes, site, node))).scalar_one()
    alive = {r.run for r in connection.execute(sa.select(records.c.run).where(*_is(records, site, node)).distinct())}
    told = connection.execute(sa.select(runs).where(*_is(runs, site, node)).order_by(runs.c.since.desc())).all()
    newest = {row.run for row in told[:max_runs]}
    known = {row.run: row.since for row in told}
    spoken = set(connection.execute(sa.select(lanes.c.run).where(*_is(lanes, site, node)).distinct()).scalars())
    untold = sorted(spoken - set(known) - {FOLDED})
    for run in (set(known) | set(untold[max_runs:])) - alive - newest - {current}:
        if known.get(run, 0) > now - MIN_RUN_AGE_S:
            continue
        _fold(connection, site, node, run)
        is_any = True
        if run in known:
            connection.execute(sa.delete(runs).where(*_is(runs, site, node), runs.c.run == run))
            here = (*_is(nodes, site, node), nodes.c.runs_before < known[run])
            connection.execute(sa.update(nodes).where(*here).values(runs_before=known[run]))
    return is_any


def _fold(connection: sa.Connection, site: str, node: str, run: bytes) -> None:
    """Adds the lanes of a run to the sums of forgotten ones."""
    for row in connection.execute(sa.select(lanes).where(*_is(lanes, site, node), lanes.c.run == run)).all():
        sums = (*_is(lanes, site, node), lanes.c.run == FOLDED, lanes.c.lane == row.lane)
        if connection.execute(sa.select(lanes.c.next).where(*sums)).first() is None:
            begin = {"site": site, "node": node, "run": FOLDED, "lane": row.lane}
            connection.execute(sa.insert(lanes).values(**begin, next=0, **dict.fromkeys(SUMS, 0)))
        added = {name: lanes.c[name] + getattr(row, name) for name in ("next", *SUMS)}
        connection.execute(sa.update(lanes).where(*sums).values(**added))
    connection.execute(sa.delete(lanes).where(*_is(lanes, site, node), lanes.c.run == run))


def _is(table: sa.Table, site: str, node: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.site == site, table.c.node == node)
