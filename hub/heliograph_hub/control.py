"""[IO] Policies and configs as stored: numbered statements, one line of numbers per ring and per model.

Rule 1: a document is published when its role's threshold is reached, and for good; it is stored before it is announced.
    What is announced is a function of the rows and of the keys in force: of each ring and model the newest published
    one whose signatures still count.
Rule 2: a number names one payload for ever. The next one is above every number that was published, is waiting for
    signatures, stands in the timestamp or was reported by nodes, so that a hub restored from an older copy takes none
    twice.
Rule 3: the same content again is the same document: it gets no new number, only signatures that it lacks.

Signatures are checked here; private keys never come in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from heliograph import statement as envelope
from heliograph.documents import Count, ModelName
from heliograph.errors import NotFoundError, RefusedError, TrustError
from heliograph.names import RINGS, Ring, check_name
from heliograph.policy import MAX_DOCUMENT_BYTES, Config, Policy, no_policy
from heliograph.protocol import STATEMENTS, topic
from heliograph.signing import PublicKey
from heliograph.statement import MAX_SIGNATURES, Statement
from heliograph_hub.assignment import next_number
from heliograph_hub.authority import Authority
from heliograph_hub.database import Database, documents

Kind = Literal["policy", "config"]
KINDS: dict[str, type[Policy] | type[Config]] = {"policy": Policy, "config": Config}
SCOPES = {"policy": "ring", "config": "model"}
"""The field of each kind that says whom it is for."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One document and how far it is signed: published once `have` reached `need`.

    Attributes:
        have: signatures by keys that count now.
    """

    kind: Kind
    scope: str
    number: int
    payload: bytes
    document: Policy | Config
    have: int
    need: int
    published_at: int | None
    statement: bytes = b""

    @property
    def name(self) -> str:
        """`policy/general 3`."""
        return f"{self.kind}/{self.scope} {self.number}"

    @property
    def counts(self) -> bool:
        """Whether nodes take it: published, and signed by enough keys that are in force."""
        return self.published_at is not None and self.have >= self.need


class Control:
    """The policies and configs of one realm."""

    def __init__(self, database: Database, authority: Authority) -> None:
        self._database = database
        self._authority = authority
        self._newest: dict[Kind, dict[str, Stored]] = {}
        self._judged_by = authority.set

    # --- what is known ----------------------------------------------------------------------------------------------

    def all(self, kind: str | None = None, scope: str | None = None) -> list[Stored]:
        """Documents by kind, scope and number, oldest first, those that wait for signatures too."""
        query = sa.select(documents).order_by(documents.c.kind, documents.c.scope, documents.c.number)
        if kind is not None:
            query = query.where(documents.c.kind == kind)
        if scope is not None:
            query = query.where(documents.c.scope == scope)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [self._stored(row.kind, row.statement, row.published_at) for row in rows]

    def newest(self, kind: Kind) -> dict[str, Stored]:
        """By ring or model, what is announced."""
        if self._judged_by is not self._authority.set:
            self._newest, self._judged_by = {}, self._authority.set
        if kind not in self._newest:
            self._newest[kind] = {stored.scope: stored for stored in self.all(kind) if stored.counts}
        return self._newest[kind]

    def find(self, kind: str, scope: str, number: int) -> Stored:
        """One document.

        Raises:
            NotFoundError: there is none of this number.
        """
        for stored in self.all(kind, scope):
            if stored.number == number:
                return stored
        raise NotFoundError(f"no {kind}/{scope} {number}: heliograph {kind} show lists what there is")

    def at_most(self, kind: Kind, scope: str, number: int) -> Stored | None:
        """The newest that counts, up to a number: what a node asks for by number."""
        query = sa.select(documents).where(
            documents.c.kind == kind,
            documents.c.scope == scope,
            documents.c.number <= number,
            documents.c.published_at.is_not(None),
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(documents.c.number.desc())).all()
        found = (self._stored(row.kind, row.statement, row.published_at) for row in rows)
        return next((stored for stored in found if stored.counts), None)

    def policy_of(self, ring: Ring) -> Policy:
        """The policy that is published for a ring."""
        stored = self.newest("policy").get(ring)
        if stored is None or not isinstance(stored.document, Policy):
            return no_policy(self._authority.realm, ring)
        return stored.document

    def announced(self) -> dict[str, bytes]:
        """What is retained on which topic."""
        out = {}
        for kind in ("policy", "config"):
            for scope, stored in self.newest(kind).items():
                out[topic(kind).build(self._authority.realm, **{SCOPES[kind]: scope})] = stored.statement
        return out

    def heads(self) -> tuple[dict[Ring, Count], dict[ModelName, Count]]:
        """The newest number of each ring's policy and each model's config, for the timestamp: they never fall."""
        before = self._authority.set.heads
        policy: dict[Ring, int] = dict(before.policy)
        config = dict(before.config)
        for stored in self.newest("policy").values():
            assert isinstance(stored.document, Policy)
            policy[stored.document.ring] = max(stored.number, policy.get(stored.document.ring, 0))
        for stored in self.newest("config").values():
            config[stored.scope] = max(stored.number, config.get(stored.scope, 0))
        return policy, config

    def lost(self) -> list[str]:
        """What the timestamp names and no row has: an older copy of the database was brought back."""
        lost = []
        for kind, scope in self._named():
            newest = self.newest(kind).get(scope)
            has, named = newest.number if newest else 0, self._head(kind, scope)
            if has < named:
                lost.append(f"{kind}/{scope}: the timestamp names {named}, the database has {has}")
        return lost

    def keyids(self, kind: str, scope: str) -> frozenset[bytes]:
        """Who may sign."""
        return frozenset(self._keys(kind, scope)[1])

    # --- asking and signing -----------------------------------------------------------------------------------------

    def draft(self, document: Policy | Config, now: int, reported: int = 0) -> Stored:
        """What is to be signed: the newest, or one that waits, if its content is this; else this under a new number.

        Nothing is stored.

        Args:
            document: with any number and time.
            now: becomes its time if it is new.
            reported: the highest number that nodes said they have.

        Raises:
            RefusedError: too large.
            NotFoundError: no such model.
        """
        kind, scope = _kind(document), _scope(document)
        need, _ = self._keys(kind, scope)
        held = self.all(kind, scope)
        published = max((stored.number for stored in held if stored.published_at is not None), default=0)
        for stored in reversed(held):
            if stored.number < max(published, self._head(kind, scope)):
                break
            if _content(stored.document) == _content(document):
                return stored
        new = document.model_copy(update={"number": self._next(kind, scope, held, reported), "at": now})
        payload = new.encode()
        _require_size(kind, payload)
        return Stored(kind, scope, new.number, payload, new, 0, need, None)

    def sign_here(self, kind: str, payload: bytes) -> dict[bytes, bytes]:
        """Signatures by the role's keys that this hub holds.

        Raises:
            IntegrityError: not a document of this kind.
            RefusedError: too few of them are here.
        """
        document = KINDS[kind].decode(payload)
        role = _role(kind, _scope(document))
        self._keys(kind, _scope(document))
        return self._authority.sign_payload(role, kind, payload)

    def add(self, kind: str, payload: bytes, signatures: Mapping[bytes, bytes], now: int, reported: int = 0) -> Stored:
        """Takes signatures for a document; on disk when this returns, published when the threshold is reached.

        Raises:
            TrustError: a signature is not by one of the role's keys or doesn't fit, or it is of another realm.
            IntegrityError: not a document of this kind.
            NotFoundError: no such model.
            RefusedError: too large, its number is taken, past or too far ahead, or no such kind.
        """
        if kind not in KINDS:
            raise RefusedError(f"{kind[:40]!r} is no kind of document: kinds are {', '.join(KINDS)}")
        _require_size(kind, payload)
        document = KINDS[kind].decode(payload)
        kind = _kind(document)
        if document.realm != self._authority.realm:
            raise TrustError(f"{kind} is of realm {document.realm}, this hub is of {self._authority.realm}")
        scope = _scope(document)
        need, keys = self._keys(kind, scope)
        message = envelope.signed_bytes(kind, payload)
        for keyid, signature in signatures.items():
            if keyid not in keys:
                raise TrustError(f"key {keyid.hex()[:16]} is not one of the keys of {_role(kind, scope)}")
            if not PublicKey(keys[keyid]).is_signature(message, signature):
                raise TrustError(f"signature of key {keyid.hex()[:16]} does not fit {kind}/{scope} {document.number}")
        where = (documents.c.kind == kind, documents.c.scope == scope)
        with self._database.write() as connection:
            rows = connection.execute(sa.select(documents).where(*where)).all()
            row = next((row for row in rows if row.number == document.number), None)
            published = max((row.number for row in rows if row.published_at is not None), default=0)
            published = max(published, self._head(kind, scope)) if row is None else published
            name = f"{kind}/{scope} {document.number}"
            if row is not None and envelope.parse(row.statement).payload != payload:
                raise RefusedError(f"{name} is taken by other content: set the file again, it gets the next number")
            if document.number < published or (document.number == published and row is None):
                raise RefusedError(f"{name} is not newer than {published}, which is published: set the file again")
            most = self._next(kind, scope, self.all(kind, scope), reported)
            if row is None and document.number > most:
                raise RefusedError(f"{name} leaves numbers out: the next one is {most}, set the file again")
            before = dict(envelope.parse(row.statement).signatures) if row else {}
            good = {k: s for k, s in before.items() if k in keys and PublicKey(keys[k]).is_signature(message, s)}
            good |= signatures
            data = envelope.encode(Statement(kind, payload, tuple(sorted(good.items())[:MAX_SIGNATURES])))
            published_at = row.published_at if row else None
            if published_at is None and len(good) >= need:
                published_at = now
            values = {"statement": data, "published_at": published_at}
            if row is None:
                key = {"kind": kind, "scope": scope, "number": document.number, "made_at": now}
                connection.execute(sa.insert(documents).values(**key, **values))
            else:
                connection.execute(
                    sa.update(documents).where(*where, documents.c.number == document.number).values(**values)
                )
        self._newest = {}
        return self._stored(kind, data, published_at)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _stored(self, kind: str, data: bytes, published_at: int | None) -> Stored:
        statement = envelope.parse(data)
        document = KINDS[kind].decode(statement.payload)
        scope = _scope(document)
        need, keys = self._keys(kind, scope)
        message = envelope.signed_bytes(kind, statement.payload)
        have = sum(k in keys and PublicKey(keys[k]).is_signature(message, s) for k, s in statement.signatures)
        return Stored(
            _kind(document), scope, document.number, statement.payload, document, have, need, published_at, data
        )

    def _next(self, kind: Kind, scope: str, held: list[Stored], reported: int) -> int:
        known = max([stored.number for stored in held] + [self._head(kind, scope)])
        return next_number(known, reported)

    def _named(self) -> dict[tuple[Kind, str], int]:
        """What the timestamp says is newest."""
        heads = self._authority.set.heads
        named: dict[tuple[Kind, str], int] = {("policy", ring): number for ring, number in heads.policy.items()}
        return named | {("config", model): number for model, number in heads.config.items()}

    def _head(self, kind: Kind, scope: str) -> int:
        return self._named().get((kind, scope), 0)

    def _keys(self, kind: str, scope: str) -> tuple[int, dict[bytes, bytes]]:
        try:
            return self._authority.set.statement_keys(_role(kind, scope))
        except TrustError as error:
            raise NotFoundError(
                f"no keys for {kind}/{scope} in this realm: the first release of a model brings them, "
                f"heliograph release add DIR"
            ) from error


def check_scope(kind: str, scope: str) -> str:
    """The ring of a policy or the model of a config, as an operator names it.

    Raises:
        NotFoundError, ConfigError: no such kind, ring or name.
    """
    if kind not in KINDS:
        raise NotFoundError(f"no documents of kind {kind[:40]!r}: kinds are {', '.join(KINDS)}")
    if kind == "policy" and scope not in RINGS:
        raise NotFoundError(f"no ring {scope[:40]!r}: rings are {', '.join(RINGS)}")
    return check_name(scope, SCOPES[kind])


def _role(kind: str, scope: str) -> str:
    return STATEMENTS[kind].format(**{SCOPES[kind]: scope})


def _kind(document: Policy | Config) -> Kind:
    return "policy" if isinstance(document, Policy) else "config"


def _scope(document: Policy | Config) -> str:
    return document.ring if isinstance(document, Policy) else document.model


def _content(document: Policy | Config) -> Policy | Config:
    """What a document says, whatever its number and time."""
    return document.model_copy(update={"number": 0, "at": 0})


def _require_size(kind: str, payload: bytes) -> None:
    if len(payload) > MAX_DOCUMENT_BYTES:
        raise RefusedError(f"{kind} of {len(payload)} bytes exceeds {MAX_DOCUMENT_BYTES}: say less in it")
