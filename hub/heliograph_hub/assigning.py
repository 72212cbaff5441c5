"""[IO] What operators stated of nodes, and the newest signed assignment of each.

Rule 1: what is stated and the assignment that says so change in one transaction; a statement that changes nothing gives
    no new assignment.
Rule 2: an assignment that needs protected's keys is proposed, and the one before stays in force until enough of them
    have signed it. A number that was proposed is never used for anything else: people may have signed it.
Rule 3: assignment numbers and command numbers of a name only grow, whatever hardware bears it.

Signing comes from the caller; signatures made elsewhere are checked here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from heliograph import statement as envelope
from heliograph.documents import Assignment, Command
from heliograph.errors import NotFoundError, RefusedError, TrustError
from heliograph.names import RINGS, Ring
from heliograph.signing import PublicKey
from heliograph.statement import Statement
from heliograph.vouching import PROTECTED_ROLE
from heliograph_hub.assignment import (
    MAX_OPEN_COMMANDS,
    CommandKind,
    Wanted,
    assignment,
    needs_protected,
    next_number,
)
from heliograph_hub.database import Database, commands, labels, nodes, pins, proposals, sites

FIRST_RING: Ring = "general"
"""The ring of a site until it is assigned one."""
WHOLE_SITE = ""
"""Stands for the node in labels of a whole site: no node has this name."""

Keys = tuple[int, Mapping[bytes, bytes]]
"""A threshold, and public keys by their ids."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What became of one node's assignment.

    Attributes:
        statement: the newest assignment in force, to be sent; empty if there is none.
        proposed: the number of one that waits for protected's signatures.
    """

    site: str
    node: str
    number: int
    statement: bytes
    proposed: int | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """An assignment that waits for protected's signatures."""

    document: Assignment
    payload: bytes
    signatures: tuple[tuple[bytes, bytes], ...]
    need: int


@dataclass(frozen=True, slots=True)
class Given:
    """A command as it was given; `done_at` when its node said that it is done, `ended_at` when it ended without."""

    number: int
    kind: str
    model: str | None
    given_at: int
    done_at: int | None
    ended_at: int | None


class Assignments:
    """What the nodes of one realm are to be.

    Args:
        sign: makes the signed statement of an assignment (role `assign`).
        protected: the threshold and keys of ring protected now.
    """

    def __init__(
        self,
        database: Database,
        realm: str,
        sign: Callable[[Assignment], bytes],
        protected: Callable[[], Keys],
    ) -> None:
        self._database = database
        self._realm = realm
        self._sign = sign
        self._protected = protected

    # --- what operators state -----------------------------------------------------------------------------------------

    def put(self, site: str, ring: Ring) -> list[Assigned]:
        """Puts a site into a ring, all its nodes and those to come with it; committed before this returns."""
        assert ring in RINGS
        with self._database.write() as connection:
            before = connection.execute(sa.select(sites.c.ring).where(sites.c.site == site)).scalar_one_or_none()
            if before == ring:
                return []
            if before is None:
                connection.execute(sa.insert(sites).values(site=site, ring=ring))
            else:
                connection.execute(sa.update(sites).where(sites.c.site == site).values(ring=ring))
            return self._issue_site(connection, site)

    def label(self, site: str, node: str | None, changes: Mapping[str, str | None]) -> list[Assigned]:
        """Sets labels (None: takes them away) of one node, or of a whole site; a node's own stand before its site's.

        Raises:
            NotFoundError: no such node.
            RefusedError: too many.
        """
        changed = False
        with self._database.write() as connection:
            if node is not None:
                _row(connection, site, node)
            for key, value in changes.items():
                where = (*_is(labels, site, node or WHOLE_SITE), labels.c.key == key)
                before = connection.execute(sa.select(labels.c.value).where(*where)).scalar_one_or_none()
                if before == value:
                    continue
                changed = True
                connection.execute(sa.delete(labels).where(*where))
                if value is not None:
                    row = {"site": site, "node": node or WHOLE_SITE, "key": key, "value": value}
                    connection.execute(sa.insert(labels).values(**row))
            if not changed:
                return []
            if node is not None:
                return [self.issue(connection, site, node)]
            # Bounded also for a site without nodes yet.
            assignment(
                self._realm, site, "any", bytes(32), 1, Wanted(FIRST_RING, _labels(connection, site, WHOLE_SITE))
            )
            return self._issue_site(connection, site)

    def pin(self, site: str, node: str, model: str, version: str | None) -> list[Assigned]:
        """Restricts a model on a node to one version; None lifts that.

        Raises:
            NotFoundError: no such node.
            RefusedError: too many pins.
        """
        with self._database.write() as connection:
            _row(connection, site, node)
            where = (*_is(pins, site, node), pins.c.model == model)
            before = connection.execute(sa.select(pins.c.version).where(*where)).scalar_one_or_none()
            if before == version:
                return []
            connection.execute(sa.delete(pins).where(*where))
            if version is not None:
                connection.execute(sa.insert(pins).values(site=site, node=node, model=model, version=version))
            return [self.issue(connection, site, node)]

    def relay(self, site: str, node: str, relay: str | None) -> list[Assigned]:
        """Names the relay that a node takes content from; None: the hub.

        Raises:
            NotFoundError: no such node.
        """
        with self._database.write() as connection:
            if _row(connection, site, node).relay == relay:
                return []
            connection.execute(sa.update(nodes).where(*_is(nodes, site, node)).values(relay=relay))
            return [self.issue(connection, site, node)]

    def command(
        self, site: str, node: str, kind: CommandKind, model: str | None, now: int, said_done: int = 0
    ) -> tuple[int, list[Assigned]]:
        """Gives a command and returns its number; the same that waits already is not given twice.

        `said_done` is the highest number that the node says it has done: it does nothing up to there.

        Raises:
            NotFoundError: no such node.
            RefusedError: too many wait.
        """
        with self._database.write() as connection:
            _row(connection, site, node)
            for waiting in _open_commands(connection, site, node):
                if (waiting.kind, waiting.model) == (kind, model):
                    return waiting.number, []
            highest = sa.select(sa.func.max(commands.c.number)).where(*_is(commands, site, node))
            number = next_number(connection.execute(highest).scalar() or 0, said_done)
            row = {"number": number, "kind": kind, "model": model, "given_at": now}
            connection.execute(sa.insert(commands).values(site=site, node=node, **row))
            return number, [self.issue(connection, site, node)]

    def follow(self, site: str, node: str, said: int) -> list[Assigned]:
        """States what the node is anew if it says that it has a later assignment than any that is known here.

        An older copy of the database was brought back: the node passes over whatever has a lower number than its own.
        """
        with self._database.read() as connection:  # every report comes here
            row = _row(connection, site, node)
            known = max(row.assignment, row.proposed)
            if next_number(known, said) == known + 1:
                return []
        with self._database.write() as connection:
            return [self.issue(connection, site, node, said)]

    def done(self, site: str, node: str, number: int, now: int) -> list[Assigned]:
        """The node said that all commands up to this number are done: the next assignment leaves them out.

        One of a node in protected isn't proposed anew for that: a node does nothing twice.
        """
        where = (*_is(commands, site, node), commands.c.number <= number, *_waits())
        with self._database.read() as connection:  # every report comes here
            if connection.execute(sa.select(commands.c.number).where(*where)).first() is None:
                return []
        with self._database.write() as connection:
            connection.execute(sa.update(commands).where(*where).values(done_at=now))
            row = _row(connection, site, node)
            if needs_protected(row.ring, _ring(connection, site), for_protected=bool(row.protected)):
                return []
            return [self.issue(connection, site, node)]

    # --- what becomes of it -------------------------------------------------------------------------------------------

    def issue(self, connection: sa.Connection, site: str, node: str, said: int = 0) -> Assigned:
        """Signs, or proposes, the assignment that says what is stated of a node now; part of the caller's transaction.

        `said` is the number of the assignment that the node says it has, if that is none of these.

        Raises:
            RefusedError: it would exceed its bounds.
        """
        row = _row(connection, site, node)
        wanted = Wanted(
            _ring(connection, site),
            _labels(connection, site, WHOLE_SITE) | _labels(connection, site, node),
            row.relay,
            {r.model: r.version for r in connection.execute(sa.select(pins).where(*_is(pins, site, node)))},
            tuple(
                Command(number=given.number, kind=given.kind, model=given.model)
                for given in _open_commands(connection, site, node)
            ),
        )
        number = next_number(max(row.assignment, row.proposed), said)
        document = assignment(self._realm, site, node, row.keyid, number, wanted)
        here = _is(nodes, site, node)
        connection.execute(sa.delete(proposals).where(*_is(proposals, site, node)))
        if not needs_protected(row.ring, wanted.ring, for_protected=bool(row.protected)):
            statement = self._sign(document)
            values = {"assignment": number, "assigned": statement, "ring": wanted.ring}
            connection.execute(sa.update(nodes).where(*here).values(**values))
            return Assigned(site, node, number, statement)
        stands = Assignment.decode(envelope.parse(row.assigned).payload) if row.assigned else None
        if said <= row.assignment and stands == document.model_copy(update={"number": row.assignment}):
            return Assigned(site, node, row.assignment, row.assigned)  # stated back to what is in force
        statement = envelope.encode(Statement("assignment", document.encode(), ()))
        connection.execute(sa.insert(proposals).values(site=site, node=node, number=number, statement=statement))
        connection.execute(sa.update(nodes).where(*here).values(proposed=number))
        return Assigned(site, node, row.assignment, row.assigned, number)

    def sign_again(self, counts: Callable[[bytes, str], bool]) -> list[Assigned]:
        """Signs again, or proposes again, the assignments that keys in force no longer vouch for.

        Args:
            counts: whether a statement reaches the threshold of a role.
        """
        changed = []
        with self._database.write() as connection:
            rows = connection.execute(sa.select(nodes).where(nodes.c.removed_at.is_(None))).all()
            for row in rows:
                if not row.assigned or counts(row.assigned, PROTECTED_ROLE):
                    continue
                document = Assignment.decode(envelope.parse(row.assigned).payload)
                if needs_protected(row.ring, document.ring, for_protected=bool(row.protected)):
                    where = _is(proposals, row.site, row.node)
                    if connection.execute(sa.select(proposals.c.number).where(*where)).first() is None:
                        number = max(row.assignment, row.proposed) + 1
                        payload = document.model_copy(update={"number": number}).encode()
                        statement = envelope.encode(Statement("assignment", payload, ()))
                        value = {"site": row.site, "node": row.node, "number": number, "statement": statement}
                        connection.execute(sa.insert(proposals).values(**value))
                        here = _is(nodes, row.site, row.node)
                        connection.execute(sa.update(nodes).where(*here).values(proposed=number))
                elif not counts(row.assigned, "assign"):
                    statement = self._sign(document)
                    here = _is(nodes, row.site, row.node)
                    connection.execute(sa.update(nodes).where(*here).values(assigned=statement))
                    changed.append(Assigned(row.site, row.node, row.assignment, statement))
        return changed

    def proposals(self, site: str | None = None, node: str | None = None) -> list[Proposal]:
        """The assignments that wait for protected's signatures: all, or of a site, or of a node."""
        query = sa.select(proposals.c.statement).order_by(proposals.c.site, proposals.c.node)
        if site is not None:
            query = query.where(proposals.c.site == site)
        if node is not None:
            query = query.where(proposals.c.node == node)
        with self._database.read() as connection:
            found = connection.execute(query).scalars().all()
        return [self._proposal(statement) for statement in found]

    def add_signatures(self, payload: bytes, signatures: Mapping[bytes, bytes]) -> tuple[Proposal, Assigned | None]:
        """Takes signatures for a proposed assignment: (how far it is, the assignment if it is in force by now).

        Raises:
            TrustError: a signature is not by a key of ring protected, or doesn't fit.
            RefusedError: it is not the one that waits now.
        """
        document = Assignment.decode(payload)
        site, node = document.site, document.node
        need, keys = self._protected()
        message = envelope.signed_bytes("assignment", payload)
        for keyid, signature in signatures.items():
            if keyid not in keys:
                raise TrustError(
                    f"key {keyid.hex()[:16]} is not one of the keys of ring protected: "
                    f"sign what heliograph fleet request {site}/{node} writes anew, by those alone"
                )
            if not PublicKey(keys[keyid]).is_signature(message, signature):
                raise TrustError(f"signature of key {keyid.hex()[:16]} does not fit the assignment of {site}/{node}")
        with self._database.write() as connection:
            waiting = connection.execute(sa.select(proposals).where(*_is(proposals, site, node))).one_or_none()
            if waiting is None or envelope.parse(waiting.statement).payload != payload:
                row = _row(connection, site, node)
                if row.assigned and envelope.parse(row.assigned).payload == payload:
                    given = Assigned(site, node, row.assignment, row.assigned)
                    return self._proposal(row.assigned), given  # handed in again
                raise RefusedError(
                    f"assignment {document.number} of {site}/{node} is not the one that waits for signatures"
                    + (f", that is {waiting.number}" if waiting else "")
                    + f": heliograph fleet request {site} --out FILE gives what is to be signed now"
                )
            before = self._proposal(waiting.statement)
            both = sorted((dict(before.signatures) | dict(signatures)).items())
            statement = envelope.encode(Statement("assignment", payload, tuple(both)))
            where = _is(proposals, site, node)
            if len(both) < need:
                connection.execute(sa.update(proposals).where(*where).values(statement=statement))
                return self._proposal(statement), None
            connection.execute(sa.delete(proposals).where(*where))
            values = {"assignment": document.number, "assigned": statement, "ring": document.ring}
            connection.execute(sa.update(nodes).where(*_is(nodes, site, node)).values(**values))
            return self._proposal(statement), Assigned(site, node, document.number, statement)

    def given(self, site: str, node: str, limit: int = 20) -> list[Given]:
        """The newest commands of a node, newest first."""
        query = sa.select(commands).where(*_is(commands, site, node)).order_by(commands.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [Given(r.number, r.kind, r.model, r.given_at, r.done_at, r.ended_at) for r in rows]

    def labels(self) -> dict[tuple[str, str], dict[str, str]]:
        """The labels stated of each node, its site's among them, and of each site (as node '')."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(labels)).all()
            known = connection.execute(sa.select(nodes.c.site, nodes.c.node)).all()
        own: dict[tuple[str, str], dict[str, str]] = {}
        for row in rows:
            own.setdefault((row.site, row.node), {})[row.key] = row.value
        of_nodes = {(n.site, n.node): own.get((n.site, WHOLE_SITE), {}) | own.get((n.site, n.node), {}) for n in known}
        return {place: found for place, found in own.items() if place[1] == WHOLE_SITE} | of_nodes

    def pins(self) -> dict[tuple[str, str], dict[str, str]]:
        """The pins of each node that has any."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        with self._database.read() as connection:
            for row in connection.execute(sa.select(pins)):
                found.setdefault((row.site, row.node), {})[row.model] = row.version
        return found

    def site_label(self, site: str, key: str) -> str | None:
        """One label of a whole site."""
        with self._database.read() as connection:
            return _labels(connection, site, WHOLE_SITE).get(key)

    def end(self, connection: sa.Connection, site: str, node: str, now: int) -> None:
        """Forgets what was stated of a node that is removed; part of the caller's transaction."""
        waiting = (*_is(commands, site, node), *_waits())
        connection.execute(sa.update(commands).where(*waiting).values(ended_at=now))
        for table in (labels, pins, proposals):
            connection.execute(sa.delete(table).where(*_is(table, site, node)))

    def _issue_site(self, connection: sa.Connection, site: str) -> list[Assigned]:
        query = sa.select(nodes.c.node).where(nodes.c.site == site, nodes.c.removed_at.is_(None))
        return [self.issue(connection, site, node) for node in sorted(connection.execute(query).scalars())]

    def _proposal(self, data: bytes) -> Proposal:
        """As stored, with those signatures that count now."""
        statement = envelope.parse(data)
        need, keys = self._protected()
        message = envelope.signed_bytes("assignment", statement.payload)
        good = tuple(
            (keyid, signature)
            for keyid, signature in statement.signatures
            if keyid in keys and PublicKey(keys[keyid]).is_signature(message, signature)
        )
        return Proposal(Assignment.decode(statement.payload), statement.payload, good, need)


def is_time_zone(name: str) -> bool:
    """Whether this machine's database of time zones knows the name."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _row(connection: sa.Connection, site: str, node: str) -> Any:
    row = connection.execute(sa.select(nodes).where(*_is(nodes, site, node))).one_or_none()
    if row is None or row.removed_at is not None:
        raise NotFoundError(f"no node {site}/{node} is enrolled: heliograph fleet token {site}/{node}")
    return row


def _ring(connection: sa.Connection, site: str) -> Ring:
    ring: Ring | None = connection.execute(sa.select(sites.c.ring).where(sites.c.site == site)).scalar_one_or_none()
    return ring or FIRST_RING


def _labels(connection: sa.Connection, site: str, node: str) -> dict[str, str]:
    return {row.key: row.value for row in connection.execute(sa.select(labels).where(*_is(labels, site, node)))}


def _waits() -> tuple[sa.ColumnElement[bool], ...]:
    return (commands.c.done_at.is_(None), commands.c.ended_at.is_(None))


def _open_commands(connection: sa.Connection, site: str, node: str) -> list[Any]:
    query = sa.select(commands).where(*_is(commands, site, node), *_waits()).order_by(commands.c.number)
    return list(connection.execute(query.limit(MAX_OPEN_COMMANDS + 1)))


def _is(table: sa.Table, site: str, node: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.site == site, table.c.node == node)
