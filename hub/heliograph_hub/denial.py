"""[IO] What operators denied: signed statements as stored, the list that `deny/all` retains, who vouched for what.

Rule 1: a denial is in force once its role's threshold is reached, and for good; it is stored before it is announced.
Rule 2: a further signature for the same releases, or the same keys, is added to the statement there is, so that one
    `deny` can become final later, and denials can be signed again when a deny key is rotated out.
Rule 3: the list announced is every denial in force, newest first; what has no room is a blob that the list names.
Rule 4: who signed and approved a release is stored when that is published, because the next release's file may be
    signed by others; what the files in force say counts as well, since nodes go by them.

Signatures are checked here; private keys never come in.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from heliograph import statement as envelope
from heliograph.blob import sha256
from heliograph.deny import MAX_KEPT_SIGNATURES, MAX_PAYLOAD_BYTES, Denial, DenySet, encode_list
from heliograph.documents import Denials as Head
from heliograph.documents import Deny, DenyKey
from heliograph.errors import RefusedError, TrustError
from heliograph.objects import ObjectStore
from heliograph.protocol import DENIALS, STATEMENTS
from heliograph.signing import PublicKey
from heliograph.statement import Statement
from heliograph.trust import DUTIES
from heliograph_hub.authority import Authority
from heliograph_hub.database import Database, blobs, denials, vouchers

MAX_ANNOUNCED_BYTES = 56 * 1024
"""Largest `deny/all`: it must fit into one signed reply."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One denial, and how far it is signed: in force once `have` reached `need`, `is_final` with two signatures."""

    digest: bytes
    type: str
    payload: bytes
    document: Deny | DenyKey
    have: int
    need: int
    in_force_at: int | None

    @property
    def is_final(self) -> bool:
        """Whether even a node with nothing else stops serving what it names."""
        return self.in_force_at is not None and self.have >= 2


class Denials:
    """The denials of one realm."""

    def __init__(self, database: Database, objects: ObjectStore, authority: Authority) -> None:
        self._database = database
        self._objects = objects
        self._authority = authority
        with database.read() as connection:
            self._held = DenySet.recall(_in_force(connection), authority.set)

    @property
    def held(self) -> DenySet:
        """Everything in force, judged by the keys in force."""
        self._held = self._held.with_trusted(self._authority.set)
        return self._held

    @property
    def head(self) -> Head:
        """What the timestamp says of the list."""
        return self._held.head

    def announced(self) -> bytes | None:
        """The payload of `deny/all`, its blob of older ones served; None before the first denial."""
        with self._database.read() as connection:
            statements = _in_force(connection)
        if not statements:
            return None
        payload, older = encode_list(statements, MAX_ANNOUNCED_BYTES)
        if older is not None:
            digest = self._objects.put(older)
            with self._database.write() as connection:
                if connection.execute(sa.select(blobs.c.digest).where(blobs.c.digest == digest)).first() is None:
                    connection.execute(sa.insert(blobs).values(digest=digest, length=len(older), kind="denials"))
        return payload

    # --- asking and signing -----------------------------------------------------------------------------------------

    def request(self, document: Deny | DenyKey) -> Standing:
        """The denial to be signed: the one there is of the same things, else this one. Nothing is stored.

        Raises:
            RefusedError: too long, or nobody in this realm may sign it.
        """
        type_ = next(name for name, kind in DENIALS.items() if isinstance(document, kind))
        for standing in self.standings():
            if standing.type == type_ and _subject(standing.document) == _subject(document):
                return standing
        payload = document.encode()
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise RefusedError(
                f"denial of {len(payload)} bytes exceeds {MAX_PAYLOAD_BYTES}: give a shorter reason, or deny in parts"
            )
        need, _ = self._keys(type_)
        return Standing(sha256(payload), type_, payload, document, 0, need, None)

    def keyids(self, type_: str) -> frozenset[bytes]:
        """Who may sign a denial of this type."""
        return frozenset(self._keys(type_)[1])

    def add(self, type_: str, payload: bytes, signatures: Mapping[bytes, bytes], now: int) -> Standing:
        """Takes signatures for a denial; on disk when this returns, in force when the threshold is reached.

        Raises:
            TrustError: a signature is not by one of the role's keys or doesn't fit, or it is of another realm.
            IntegrityError: not a denial.
            RefusedError: too long, too many, or of no type of denial.
        """
        if type_ not in DENIALS:
            raise RefusedError(f"{type_[:40]!r} is no denial: types are {', '.join(DENIALS)}")
        document = DENIALS[type_].decode(payload)
        if document.realm != self._authority.realm:
            raise TrustError(f"denial is of realm {document.realm}, this hub is of {self._authority.realm}")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise RefusedError(f"denial of {len(payload)} bytes exceeds {MAX_PAYLOAD_BYTES}")
        need, keys = self._keys(type_)
        message = envelope.signed_bytes(type_, payload)
        for keyid, signature in signatures.items():
            if keyid not in keys:
                raise TrustError(f"key {keyid.hex()[:16]} is not one of the keys of {STATEMENTS[type_]}")
            if not PublicKey(keys[keyid]).is_signature(message, signature):
                raise TrustError(f"signature of key {keyid.hex()[:16]} does not fit the denial")
        digest = sha256(payload)
        with self._database.write() as connection:
            row = connection.execute(sa.select(denials).where(denials.c.digest == digest)).one_or_none()
            before = dict(envelope.parse(row.statement).signatures) if row else {}
            good = {k: s for k, s in before.items() if k in keys and PublicKey(keys[k]).is_signature(message, s)}
            good |= signatures
            # Signatures of keys that were rotated out stay only until enough others have signed.
            spare = [] if len(good) >= need else sorted((k, s) for k, s in before.items() if k not in good)
            kept = sorted([*sorted(good.items()), *spare][:MAX_KEPT_SIGNATURES])
            statement = envelope.encode(Statement(type_, payload, tuple(kept)))
            is_enough = len(good) >= need
            in_force_at = row.in_force_at if row else None
            if in_force_at is None and is_enough:
                in_force_at = now
            held = self.held.with_statement(statement, self._authority.set) if is_enough else self.held
            values = {"statement": statement, "in_force_at": in_force_at}
            if row is None:
                connection.execute(sa.insert(denials).values(digest=digest, type=type_, made_at=now, **values))
            else:
                connection.execute(sa.update(denials).where(denials.c.digest == digest).values(**values))
            encode_list(_in_force(connection), MAX_ANNOUNCED_BYTES)  # what can't be announced isn't committed
        self._held = held
        return self._standing(type_, statement, in_force_at)

    def signatures(self, standing: Standing) -> dict[bytes, bytes]:
        """The signatures that a denial is stored with, those of keys that were rotated out among them; by key id."""
        query = sa.select(denials.c.statement).where(denials.c.digest == standing.digest)
        with self._database.read() as connection:
            data = connection.execute(query).scalar_one_or_none()
        return {} if data is None else dict(envelope.parse(data).signatures)

    def standings(self) -> list[Standing]:
        """Every denial, in force or still to be signed, newest first."""
        query = sa.select(denials).order_by(denials.c.made_at.desc(), denials.c.digest)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [self._standing(row.type, row.statement, row.in_force_at) for row in rows]

    def _standing(self, type_: str, data: bytes, in_force_at: int | None) -> Standing:
        statement = envelope.parse(data)
        need, keys = self._keys(type_)
        document = DENIALS[type_].decode(statement.payload)
        have = sum(keyid in keys for keyid, _ in statement.signatures)
        return Standing(sha256(statement.payload), type_, statement.payload, document, have, need, in_force_at)

    def _keys(self, type_: str) -> tuple[int, dict[bytes, bytes]]:
        return self._authority.set.statement_keys(STATEMENTS[type_])

    # --- what is denied ---------------------------------------------------------------------------------------------

    def denial(self, model: str, release: bytes) -> Denial | None:
        """What denies a release: by its digest, or by a key that signed or approved it."""
        return self._held.is_denied(release, self.vouchers(model, release))

    def is_final(self, model: str, release: bytes) -> bool:
        """Whether two people have denied it."""
        return self._held.is_final(release, self.vouchers(model, release))

    def is_recipe_denied(self, recipe: bytes) -> bool:
        """Whether the recipe is offered no more."""
        return self._held.is_recipe_denied(recipe) is not None

    def is_recipe(self, digest: bytes) -> bool:
        """Whether a recipe of this hub has this digest."""
        query = sa.select(blobs.c.kind).where(blobs.c.digest == digest)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one_or_none() == "recipe"

    def has_vouched(self, keyid: bytes) -> bool:
        """Whether this key ever signed or approved a release here."""
        with self._database.read() as connection:
            return connection.execute(sa.select(vouchers.c.role).where(vouchers.c.keyid == keyid)).first() is not None

    def vouchers(self, model: str, release: bytes) -> frozenset[bytes]:
        """The keys that ever signed or approved a release."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(vouchers.c.keyid).where(vouchers.c.release == release)).all()
        return frozenset(row.keyid for row in rows).union(*self._vouching(model, release).values())

    def note_vouchers(self, models: Iterable[str]) -> None:
        """Stores who vouches for what is published now, beside all who ever did; call after a release was published.

        A duty's file is signed anew, whole, with every release: each of its signers vouches for all it lists, and a
        node may have installed any of them under any of these files. So the hub never takes for good what a node
        drops; `keep` says what stays good.
        """
        trusted = self._authority.set
        listed = [(target, duty) for model in models for target in trusted.releases(model) for duty in DUTIES]
        with self._database.write() as connection:
            rows = connection.execute(sa.select(vouchers.c.release, vouchers.c.role, vouchers.c.keyid)).all()
            known = {(row.release, row.role, row.keyid) for row in rows}
            for target, duty in listed:
                role = f"{duty}-{target.model}"
                if role not in target.listed_by:
                    continue
                for keyid in trusted.signers(role):
                    if (target.sha256, role, keyid) in known:
                        continue
                    connection.execute(sa.insert(vouchers).values(release=target.sha256, role=role, keyid=keyid))

    def _vouching(self, model: str, release: bytes) -> dict[str, list[bytes]]:
        """By role, whose signatures in force list the release."""
        trusted = self._authority.set
        target = trusted.target(model, release)
        if target is None:
            return {}
        roles = [f"{duty}-{model}" for duty in DUTIES if f"{duty}-{model}" in target.listed_by]
        return {role: trusted.signers(role) for role in roles}


def _in_force(connection: sa.Connection) -> list[bytes]:
    """The list as it is announced: newest first."""
    query = sa.select(denials.c.statement).where(denials.c.in_force_at.is_not(None))
    return [row.statement for row in connection.execute(query.order_by(denials.c.in_force_at.desc(), denials.c.digest))]


def why(denial: Denial) -> str:
    """What a denial says, for people."""
    by_key = isinstance(denial.document, DenyKey)
    reason = denial.document.reason if denial.document else ""
    return ("with a key that vouched for it" if by_key else "by its digest") + (f": {reason}" if reason else "")


def _subject(document: Deny | DenyKey) -> tuple[frozenset[bytes], ...]:
    """What a denial is about, whatever its reason and time."""
    match document:
        case Deny():
            return (frozenset(document.releases),)
        case DenyKey():
            return (frozenset(document.keys), frozenset(document.keep))
