"""[IO] Who may become a node, who is one, and who was: tokens, enrolment, replaced hardware, removal.

Rule 1: a token is stored as its hash, bound to one node, and used once; the same key may ask again with it, since an
    answer can be lost.
Rule 2: enrolling a name again ends its former key: from then on nothing counts that this signs. History stays, and
    numbers go on.
Rule 3: a removed node keeps its row and its records; its key, its tokens and what was stated of it end.

Time and tokens come from the caller.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from heliograph.blob import sha256
from heliograph.deadlines import DEADLINES, Deadlines
from heliograph.documents import Enroll
from heliograph.errors import NotFoundError, RefusedError
from heliograph.signing import PublicKey
from heliograph_hub.assigning import Assigned, Assignments
from heliograph_hub.database import Database, counts, former_keys, nodes, sites, tokens
from heliograph_hub.setbacks import WENT_BACK

MAX_OPEN_TOKENS = 16
"""Of one node."""


@dataclass(frozen=True, slots=True)
class OpenToken:
    """A token that can still be used; `id` is the beginning of its hash."""

    id: str
    site: str
    node: str
    expires: int
    protected: bool


@dataclass(frozen=True, slots=True)
class FormerKey:
    """A key that was a node's."""

    keyid: bytes
    enrolled_at: int
    ended_at: int
    why: str


class Enrolment:
    """The nodes of one realm as they come and go."""

    def __init__(self, database: Database, assignments: Assignments, deadlines: Deadlines = DEADLINES) -> None:
        self._database = database
        self._assignments = assignments
        self._deadlines = deadlines

    def add_token(self, site: str, node: str, token: bytes, now: int, life_s: int, *, protected: bool = False) -> bool:
        """Makes `token` good for enrolling this node once, and returns whether it says protected; its hash is kept.

        It does so too if the site is in ring protected.

        Raises:
            RefusedError: it would live longer than 7 days, or too many are open.
        """
        if not 0 < life_s <= self._deadlines.token_s:
            raise RefusedError(
                f"a token lives 1 second to {self._deadlines.token_s / 86400:g} days, asked were {life_s} s"
            )
        with self._database.write() as connection:
            connection.execute(sa.delete(tokens).where(tokens.c.expires < now, tokens.c.used_at.is_(None)))
            count = sa.select(sa.func.count()).select_from(tokens).where(*_is(tokens, site, node), *_unused())
            if (connection.execute(count).scalar() or 0) >= MAX_OPEN_TOKENS:
                raise RefusedError(
                    f"{site}/{node} has {MAX_OPEN_TOKENS} open tokens: heliograph fleet token {site}/{node} --revoke"
                )
            ring = connection.execute(sa.select(sites.c.ring).where(sites.c.site == site)).scalar_one_or_none()
            said = protected or ring == "protected"
            row = {"hash": sha256(token), "expires": now + life_s, "protected": int(said)}
            connection.execute(sa.insert(tokens).values(site=site, node=node, **row))
        return said

    def open_tokens(self, now: int) -> list[OpenToken]:
        """Tokens that can still be used, by node and expiry."""
        query = sa.select(tokens).where(*_unused(), tokens.c.expires >= now)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(tokens.c.site, tokens.c.node, tokens.c.expires)).all()
        return [OpenToken(r.hash.hex()[:16], r.site, r.node, r.expires, bool(r.protected)) for r in rows]

    def revoke_tokens(self, site: str, node: str) -> int:
        """Makes every open token of a node worthless and returns how many there were."""
        with self._database.write() as connection:
            return connection.execute(sa.delete(tokens).where(*_is(tokens, site, node), *_unused())).rowcount

    def enroll(self, site: str, node: str, request: Enroll, now: int) -> Assigned:
        """Enrols the node under the key it brings, committed before this returns.

        Its assignment has no statement yet if ring protected's keys have to sign that.

        Raises:
            RefusedError: the token is unknown, another node's, expired, or used by another key.
            TrustError: the key is no Ed25519 key.
        """
        keyid = PublicKey(request.key).keyid
        with self._database.write() as connection:
            token = connection.execute(sa.select(tokens).where(tokens.c.hash == sha256(request.token))).one_or_none()
            if token is None or (token.site, token.node) != (site, node):
                raise RefusedError(f"{site}/{node} brought a token that is not its own")
            old = connection.execute(sa.select(nodes).where(*_is(nodes, site, node))).one_or_none()
            if token.used_at is not None:
                is_same = old is not None and old.removed_at is None and old.key == request.key == token.used_by
                if not is_same:
                    raise RefusedError(f"{site}/{node} brought a token that was used before")
                assert old is not None  # is_same
                return Assigned(site, node, old.assignment, bytes(old.assigned))
            if token.expires < now:
                raise RefusedError(f"{site}/{node} brought a token that has expired")
            used = {"used_at": now, "used_by": request.key}
            connection.execute(sa.update(tokens).where(tokens.c.hash == token.hash).values(**used))
            values = {
                "key": request.key,
                "keyid": keyid,
                "assigned": b"",
                "enrolled_at": now,
                "protected": token.protected,
                "removed_at": None,
            }
            if old is None:
                begin = {"n": 0, "assignment": 0, "proposed": 0, "runs_before": 0, "records_before": 0}
                connection.execute(sa.insert(nodes).values(site=site, node=node, **begin, **values))
            else:
                if old.removed_at is None:
                    _end_key(connection, old, now, "replaced")
                else:
                    values["ring"] = None  # nothing stands of what it was
                values |= {"last_heard": None, "gone_at": None, "run": None, "n": 0, "reported": None}
                connection.execute(sa.update(nodes).where(*_is(nodes, site, node)).values(**values))
                connection.execute(sa.delete(counts).where(*_is(counts, site, node), counts.c.what == WENT_BACK))
            return self._assignments.issue(connection, site, node)

    def remove(self, site: str, node: str, now: int) -> None:
        """Ends a node: its key counts no more, its tokens and what was stated of it are gone; its row stays.

        Raises:
            NotFoundError: it isn't enrolled.
        """
        with self._database.write() as connection:
            row = connection.execute(sa.select(nodes).where(*_is(nodes, site, node))).one_or_none()
            if row is None or row.removed_at is not None:
                raise NotFoundError(f"no node {site}/{node} is enrolled")
            _end_key(connection, row, now, "removed")
            self._assignments.end(connection, site, node, now)
            connection.execute(sa.delete(tokens).where(*_is(tokens, site, node), *_unused()))
            values = {"removed_at": now, "relay": None}
            connection.execute(sa.update(nodes).where(*_is(nodes, site, node)).values(**values))

    def former_keys(self, site: str, node: str) -> list[FormerKey]:
        """The keys that a node had before, the newest first."""
        query = sa.select(former_keys).where(*_is(former_keys, site, node))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(former_keys.c.ended_at.desc())).all()
        return [FormerKey(r.keyid, r.enrolled_at, r.ended_at, r.why) for r in rows]


def _end_key(connection: sa.Connection, row: sa.Row[tuple[object, ...]], now: int, why: str) -> None:
    ended = {"keyid": row.keyid, "enrolled_at": row.enrolled_at, "ended_at": now, "why": why}
    connection.execute(sa.insert(former_keys).values(site=row.site, node=row.node, **ended))


def _unused() -> tuple[sa.ColumnElement[bool], ...]:
    return (tokens.c.used_at.is_(None),)


def _is(table: sa.Table, site: str, node: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.site == site, table.c.node == node)
