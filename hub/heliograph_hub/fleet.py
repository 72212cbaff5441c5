"""[IO] What the hub knows of its nodes: what each said last, and every record it sent.

Rule 1: a statement counts only if the key of the node its topic names signed it and its payload names that node; the
    signature is checked before the payload is parsed. What fails is counted with its node and changes nothing else.
Rule 2: `reported` is ordered by (run, n): a run once left never comes back, and within a run n only grows.
Rule 3: records are counted once. A row is new if its number is at or above the lane's `next`; a batch commits whole,
    then its receipt may be sent. kept + merged + lost + missing = next, in every lane of every run.
Rule 4: what a removed node, or hardware that was replaced, still sends counts for nothing and is counted.

Who is a node is `heliograph_hub.enrolment`'s, what each is to be `heliograph_hub.assigning`'s, how long records are
kept `heliograph_hub.retention`'s. Time comes from the caller.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from heliograph.deadlines import DEADLINES, Deadlines
from heliograph.documents import Document, Hello, LaneReceipt, Records, Renew, Reported
from heliograph.errors import IntegrityError, NotFoundError, RefusedError, TrustError
from heliograph.names import Ring
from heliograph.protocol import topic
from heliograph.statement import parse
from heliograph.vouching import open_own
from heliograph.wire import pack, unpack
from heliograph_hub.assigning import FIRST_RING
from heliograph_hub.database import Database, counts, lanes, nodes, records, runs, sites
from heliograph_hub.figures import Figures, figures
from heliograph_hub.rollout import Member
from heliograph_hub.setbacks import WENT_BACK, setbacks
from heliograph_hub.telling import Told

log = logging.getLogger(__name__)

HEARD_EVERY_S = 10
"""A node's `last_heard` is written at most this often."""
GAP = "gap"
MAX_AT = 1 << 40
"""Beyond every time that a record can tell."""
MAX_SEQUENCE = 1 << 48
"""More than any lane will see, and sums of it still fit the database."""
MAX_UNCOUNTED = 1000
"""Distinct (node, reason) pairs kept between two writes; more are counted without their node."""
MAX_METRICS = 1000
"""Newest metric records of a node that its figures are made of."""


class ReplayError(TrustError):
    """A statement that was true once and is not newer than what is known."""


@dataclass(frozen=True, slots=True)
class Node:
    """One enrolled node.

    Attributes:
        ring: of its newest assignment in force; before the first, its site's.
        assignment: the number of that assignment.
        assigned: its signed statement; empty before the first.
        proposed: the highest number ever proposed to protected's keys.
        protected: it was enrolled with a token that says protected.
    """

    site: str
    node: str
    ring: Ring
    key: bytes
    keyid: bytes
    assignment: int
    assigned: bytes
    enrolled_at: int
    last_heard: int | None
    gone_at: int | None
    run: bytes | None
    reported: Reported | None
    proposed: int = 0
    protected: bool = False
    relay: str | None = None
    removed_at: int | None = None

    def is_up(self, now: int, deadlines: Deadlines = DEADLINES) -> bool:
        """Whether it was heard within its deadline and the broker has not seen its connection break since."""
        if self.last_heard is None or self.gone_at is not None:
            return False
        return now - self.last_heard <= deadlines.silent_check_ins * deadlines.check_in_s


class Fleet:
    """The nodes of one realm."""

    def __init__(self, database: Database, realm: str, deadlines: Deadlines = DEADLINES) -> None:
        self._database = database
        self._realm = realm
        self._deadlines = deadlines
        # Both bounded by the nodes enrolled: only what a known node sent is a sign of life.
        self._heard: dict[tuple[str, str], int] = {}
        self._latest: dict[tuple[str, str], int] = {}
        self._uncounted: dict[tuple[str, str, str], tuple[int, str]] = {}

    # --- what nodes say ---------------------------------------------------------------------------------------------

    def heard(self, site: str, node: str, now: int) -> None:
        """Notes a sign of life; what is asked knows it at once, the disk at most every 10 seconds."""
        self._latest[site, node] = now
        last = self._heard.get((site, node))
        if last is not None and now - last < HEARD_EVERY_S:
            return
        self._heard[site, node] = now
        with self._database.write() as connection:
            connection.execute(sa.update(nodes).where(*_is(nodes, site, node)).values(last_heard=now, gone_at=None))

    def forget(self, site: str, node: str) -> None:
        """The name has new hardware, or none: what the old one let hear says nothing of that."""
        self._heard.pop((site, node), None)
        self._latest.pop((site, node), None)

    def gone(self, site: str, node: str, now: int) -> None:
        """The broker saw the node's connection break: a hint, undone by the next sign of life."""
        self._heard.pop((site, node), None)
        with self._database.write() as connection:
            connection.execute(sa.update(nodes).where(*_is(nodes, site, node)).values(gone_at=now))

    def take_reported(self, site: str, node: str, data: bytes) -> Reported:
        """Verifies and keeps what a node says it is and runs.

        Raises:
            TrustError: not signed by this node's key, or not about this node.
            IntegrityError: malformed.
            ReplayError: older than what is known, or the same again.
        """
        reported = self._open("reported", site, node, data)
        assert isinstance(reported, Reported)
        with self._database.write() as connection:
            row = connection.execute(_one(nodes, site, node)).one()
            known = connection.execute(_one(runs, site, node).where(runs.c.run == reported.run)).one_or_none()
            if known is not None and (row.run != reported.run or reported.n <= row.n):
                raise ReplayError(f"{site}/{node} reported {reported.n} of a run that is past it")
            if known is None and 0 < row.runs_before >= reported.estimate:
                raise ReplayError(f"{site}/{node} reported of a run that ended before {row.runs_before}")
            if known is None:
                since = {"run": reported.run, "since": reported.estimate}
                connection.execute(sa.insert(runs).values(site=site, node=node, **since))
            values = {"run": reported.run, "n": reported.n, "reported": parse(data).payload}
            connection.execute(sa.update(nodes).where(*_is(nodes, site, node)).values(**values))
            before = _node(row, FIRST_RING).reported
        self._alarm(site, node, before, reported.tuf, reported.deny.count, reported.assignment)
        return reported

    def take_records(self, site: str, node: str, data: bytes, now: int = 0) -> LaneReceipt:
        """Verifies and commits a batch, then returns the receipt that may be sent; a replay changes nothing.

        A record is kept from `now` on at least as long as policy says, whatever time its node took it for.

        Raises:
            TrustError: not signed by this node's key, or not about this node.
            IntegrityError: malformed.
        """
        batch = self._open("records", site, node, data)
        assert isinstance(batch, Records)
        if batch.first + sum(row[0] for row in batch.rows) > MAX_SEQUENCE:
            raise IntegrityError(f"{site}/{node} numbers its {batch.lane} records beyond {MAX_SEQUENCE}")
        where = (*_is(lanes, site, node), lanes.c.run == batch.run, lanes.c.lane == batch.lane)
        key = {"site": site, "node": node, "run": batch.run, "lane": batch.lane}
        with self._database.write() as connection:
            row = connection.execute(sa.select(lanes).where(*where)).one_or_none()
            if row is None and batch.rows:
                before = connection.execute(_one(nodes, site, node)).one().records_before
                if all(at < before for _, _, at, _ in batch.rows):
                    # Of a run that was forgotten, or too late: they would be dropped the same day.
                    self.count(site, node, "records older than any that are kept", f"of lane {batch.lane}")
                    return LaneReceipt(
                        run=batch.run, lane=batch.lane, next=batch.first + sum(row[0] for row in batch.rows)
                    )
            state = {name: getattr(row, name) if row else 0 for name in ("next", "kept", "merged", "lost", "missing")}
            fresh, state = _fresh_rows(batch, state)
            if fresh:
                connection.execute(sa.insert(records), [{**key, **values, "received_at": now} for values in fresh])
            if row is None:
                connection.execute(sa.insert(lanes).values(**key, **state, dropped=0))
            else:
                connection.execute(sa.update(lanes).where(*where).values(**state))
        return LaneReceipt(run=batch.run, lane=batch.lane, next=state["next"])

    def receipts(self, site: str, node: str, run: bytes) -> tuple[LaneReceipt, ...]:
        """How far each lane of a run is committed."""
        query = _one(lanes, site, node).where(lanes.c.run == run).order_by(lanes.c.lane)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(LaneReceipt(run=row.run, lane=row.lane, next=row.next) for row in rows)

    def check_hello(self, node: Node, keyid: bytes | None) -> None:
        """Returns if the hello may be from the node itself; an older agent names no key.

        Raises:
            TrustError: it is from hardware that was replaced.
        """
        if keyid is not None and keyid != node.keyid:
            raise TrustError(
                f"{node.site}/{node.node} says hello with key {keyid.hex()[:16]}, the node's is {node.keyid.hex()[:16]}"
            )

    def open_renew(self, node: Node, name: str, data: bytes) -> Renew:
        """A node's request for a certificate, on the topic of `name`.

        Raises:
            TrustError: not signed by this node's key, or not about this node.
            IntegrityError: malformed.
        """
        renew = self._open(name, node.site, node.node, data)
        assert isinstance(renew, Renew)  # the row says so
        return renew

    def watch(self, node: Node, hello: Hello) -> None:
        """Raises an alarm if a run that is new begins with less than the node had when it last reported.

        Whoever starts from an older copy catches up within seconds: its first hello is all that shows it. A hello is
        not signed: a hostile broker can raise this alarm, never silence it in what is signed.
        """
        with self._database.read() as connection:
            known = connection.execute(_one(runs, node.site, node.node).where(runs.c.run == hello.run)).one_or_none()
        if known is None:
            had = hello.numbers.assignment
            self._alarm(node.site, node.node, node.reported, hello.tuf, hello.deny.count, had)

    def _alarm(
        self, site: str, node: str, before: Reported | None, tuf: Mapping[str, int], denials: int, assignment: int
    ) -> None:
        found = setbacks(before, tuf, denials, assignment) if before is not None else ()
        if found:
            log.error("%s/%s went back, an older copy of its storage runs: %s", site, node, "; ".join(found))
            self.count(site, node, WENT_BACK, "; ".join(found))

    def _open(self, name: str, site: str, node: str, data: bytes) -> Document:
        """What the node's own key signed about itself."""
        names = {"site": site, "node": node}
        return open_own(data, topic(name), names, realm=self._realm, public_key=self.node(site, node).key)

    def count(self, site: str, node: str, what: str, last: str) -> None:
        """Counts a message that was not obeyed; on disk after the next `flush_counts`. `last` says why, in words."""
        if len(self._uncounted) >= MAX_UNCOUNTED and (site, node, what) not in self._uncounted:
            site = node = ""
        before, _ = self._uncounted.get((site, node, what), (0, ""))
        self._uncounted[site, node, what] = (before + 1, last[:400])

    def flush_counts(self) -> None:
        """Writes what was counted, by node if it is enrolled, else all together."""
        if not self._uncounted:
            return
        waiting, self._uncounted = self._uncounted, {}
        with self._database.write() as connection:
            enrolled = {(row.site, row.node) for row in connection.execute(sa.select(nodes.c.site, nodes.c.node))}
            for (asked_site, asked_node, what), (number, last) in waiting.items():
                site, node = (asked_site, asked_node) if (asked_site, asked_node) in enrolled else ("", "")
                where = (*_is(counts, site, node), counts.c.what == what)
                values = {"count": counts.c.count + number, "last": last}
                if connection.execute(sa.update(counts).where(*where).values(**values)).rowcount == 0:
                    row = {"site": site, "node": node, "what": what, "count": number, "last": last}
                    connection.execute(sa.insert(counts).values(**row))

    # --- what is known ----------------------------------------------------------------------------------------------

    def node(self, site: str, node: str, *, removed_too: bool = False) -> Node:
        """One node.

        Raises:
            NotFoundError: it never enrolled.
            RefusedError: it was removed, and those are not asked for.
        """
        with self._database.read() as connection:
            row = connection.execute(_one(nodes, site, node)).one_or_none()
            if row is None:
                raise NotFoundError(f"no node {site}/{node} is enrolled: heliograph fleet token {site}/{node}")
            if row.removed_at is not None and not removed_too:
                raise RefusedError(f"{site}/{node} was removed: its key counts no more")
            return self._node(row, _ring_of(connection, site))

    def nodes(self, *, removed_too: bool = False, site: str | None = None) -> list[Node]:
        """All nodes that are enrolled, or those of one site, by site and name."""
        query = sa.select(nodes).order_by(nodes.c.site, nodes.c.node)
        if site is not None:
            query = query.where(nodes.c.site == site)
        with self._database.read() as connection:
            rings = {row.site: row.ring for row in connection.execute(sa.select(sites))}
            rows = connection.execute(query).all()
        return [
            self._node(row, rings.get(row.site, FIRST_RING)) for row in rows if removed_too or row.removed_at is None
        ]

    def _node(self, row: Any, ring: Ring) -> Node:
        node = _node(row, ring)
        latest = self._latest.get((node.site, node.node))
        return node if latest is None else replace(node, last_heard=latest)

    def members(self, model: str, now: int) -> list[Member]:
        """What a rollout needs to know of each node."""
        return [
            Member(
                n.site,
                n.node,
                n.ring,
                not n.is_up(now, self._deadlines),
                n.reported.models.get(model) if n.reported else None,
            )
            for n in self.nodes()
        ]

    def uncounted(self) -> dict[str, dict[str, Any]]:
        """Refused messages whose node is not enrolled."""
        return self._counts("", "")

    def lanes(self, site: str, node: str) -> dict[str, dict[str, int]]:
        """Record counts per lane, all runs together; of those kept, `dropped` have been deleted since for their age."""
        names = ("kept", "merged", "lost", "missing", "dropped")
        sums = [sa.func.sum(lanes.c[name]).label(name) for name in names]
        query = sa.select(lanes.c.lane, *sums).where(*_is(lanes, site, node)).group_by(lanes.c.lane)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {row.lane: {name: int(row._mapping[name]) for name in names} for row in rows}

    def records(self, site: str, node: str, lane: str, limit: int = 100) -> list[dict[str, Any]]:
        """The newest records of a lane, newest first."""
        query = _one(records, site, node).where(records.c.lane == lane)
        query = query.order_by(records.c.at.desc(), records.c.seq.desc()).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            {
                "run": r.run.hex(),
                "seq": r.seq,
                "count": r.count,
                "kind": r.kind,
                "at": r.at,
                "body": _plain(unpack(r.body)),
            }
            for r in rows
        ]

    def told(
        self, site: str, node: str, limit: int, *, since: int = 0, until: int = MAX_AT, kind: str | None = None
    ) -> list[Told]:
        """The newest records of the lanes `incident` and `audit` that tell of a time, newest first."""
        query = _one(records, site, node).where(records.c.lane.in_(("incident", "audit")))
        query = query.where(records.c.at.between(since, until))
        if kind is not None:
            query = query.where(records.c.kind == kind)
        query = query.order_by(records.c.at.desc(), records.c.seq.desc()).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Told(r.run, r.lane, r.seq, r._mapping["count"], r.kind, r.at, r.received_at, body)
            for r in rows
            if isinstance(body := unpack(r.body), dict)
        ]

    def serving(self, site: str, node: str) -> dict[str, list[Figures]]:
        """What each model answered lately, as the node's newest metric records tell: per release, the newest first."""
        query = _one(records, site, node).where(records.c.lane == "metric", records.c.kind == "serving")
        query = query.order_by(records.c.at.desc(), records.c.seq.desc()).limit(MAX_METRICS)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return figures((row.at, unpack(row.body)) for row in rows)

    def counts(self, site: str, node: str) -> dict[str, dict[str, Any]]:
        """Messages of this node's topics that were not obeyed: kind → how many and why the last."""
        return {what: row for what, row in self._counts(site, node).items() if what != WENT_BACK}

    def alarms(self) -> dict[tuple[str, str], tuple[int, str]]:
        """Nodes that hold less than they held: how often that was seen, and what went back the last time."""
        self.flush_counts()
        with self._database.read() as connection:
            rows = connection.execute(sa.select(counts).where(counts.c.what == WENT_BACK, counts.c.site != "")).all()
        return {(row.site, row.node): (int(row._mapping["count"]), row.last) for row in rows}

    def _counts(self, site: str, node: str) -> dict[str, dict[str, Any]]:
        self.flush_counts()
        with self._database.read() as connection:
            rows = connection.execute(_one(counts, site, node).order_by(counts.c.what)).all()
        return {row.what: {"count": row.count, "last": row.last} for row in rows}


def _plain(value: Any) -> Any:
    """The value as JSON knows it: bytes in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _fresh_rows(batch: Records, state: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows not yet known, and the lane's figures after them.

    A row that begins below `next` and ends above it stands for what is new of it: the node merged what it had sent.
    """
    state = dict(state)
    fresh = []
    seq = batch.first
    if seq > state["next"]:
        state["missing"] += seq - state["next"]
        state["next"] = seq
    for count, kind, at, body in batch.rows:
        end = seq + count
        new = end - max(seq, state["next"])
        if new > 0:
            row = {"seq": end - new, "count": new, "kind": kind, "at": at, "body": pack(body)}
            fresh.append(row)
            if kind == GAP:
                state["lost"] += new
            else:
                state["kept"] += 1
                state["merged"] += new - 1
            state["next"] = end
        seq = end
    return fresh, state


def _is(table: sa.Table, site: str, node: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.site == site, table.c.node == node)


def _one(table: sa.Table, site: str, node: str) -> sa.Select[Any]:
    return sa.select(table).where(*_is(table, site, node))


def _ring_of(connection: sa.Connection, site: str) -> Ring:
    ring: Ring | None = connection.execute(sa.select(sites.c.ring).where(sites.c.site == site)).scalar_one_or_none()
    return ring or FIRST_RING


def _node(row: Any, ring: Ring) -> Node:
    try:
        reported = Reported.decode(row.reported) if row.reported is not None else None
    except IntegrityError:
        reported = None  # written by a version whose reports this one can't read: the node reports again
    return Node(
        row.site,
        row.node,
        row.ring or ring,
        row.key,
        row.keyid,
        row.assignment,
        row.assigned,
        row.enrolled_at,
        row.last_heard,
        row.gone_at,
        row.run,
        reported,
        row.proposed,
        bool(row.protected),
        row.relay,
        row.removed_at,
    )
