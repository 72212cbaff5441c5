"""What is no longer trusted: a set of denials that only grows, as a core without I/O.

A `DenySet` is frozen: taking a list or a statement gives another set or raises. Nothing here reads a clock: a denial
counts at any age, in any order, however often it comes, and sets that took the same denials under the same keys are
equal.

Rules (TUF delegations say who signs: role `deny`, one signature; role `deny-key`, two):

1. A denial that verified once is in force for good, whatever becomes of its keys. There is no un-deny.
2. A release is denied *finally* once two distinct keys of `deny`, both in force, have denied it, in one statement or
   two; or two distinct keys of `deny-key` those that vouched for it, whatever the realm's threshold for that.
3. A list (`deny/all`) is believed by nothing but its statements' own signatures. What doesn't verify is kept only if it
   is on the list that the newest trusted timestamp names, and dropped when a newer list that is named hasn't got it.
   It forbids new activations of what it names (the timestamp vouches for its payload, and whoever garbled a signature
   on the way gains nothing) and moves nobody off what is running.
4. A node activates nothing new until it holds every denial of the list its newest timestamp names (`holds_all`).
   Holding more, or some that it can't verify, never blocks.
5. `count` and `digest` tell the hub what is in force here; so a node that holds something unverified is sent the list
   again.
6. Sets are bounded: at most 2,048 denials that no named list has, 4,096 in all. Hostile bytes give IntegrityError or
   TrustError, nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from heliograph import statement as envelope
from heliograph.blob import MAX_UNPAGED_BYTES, sha256
from heliograph.documents import MAX_DENIAL_BYTES, Denials, Deny, DenyAll, DenyKey, OlderDenials
from heliograph.errors import IntegrityError, TrustError
from heliograph.protocol import DENIALS, STATEMENTS
from heliograph.signing import PublicKey
from heliograph.statement import KEYID_BYTES, SIGNATURE_BYTES, Statement
from heliograph.trust import TrustedSet
from heliograph.wire import pack, unpack

MAX_LIST_BYTES = 60 * 1024
"""The message of `deny/all`."""
MAX_LISTED = 2048
"""Denials of one list."""
MAX_DENIALS = 4096
MAX_PAYLOAD_BYTES = 700
"""What a hub signs, so that three signatures fit into a statement."""
MAX_KEPT_SIGNATURES = 3
"""More than any threshold of these roles; of more, those of the lowest key ids are kept."""
FINAL_SIGNATURES = 2
MAX_STATE_BYTES = 8 << 20
STATE_FORMAT: Literal[1] = 1
_MAX_LISTS = 8
"""Lists remembered as held, because a list comes before the timestamp that names it."""

Signatures = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Denial:
    """One statement of type `deny` or `deny-key`.

    Attributes:
        digest: SHA-256 of the payload.
        signatures: if it verified, those that counted, by key id; else all it came with.
        signers: the key ids that count under the keys it was last judged by.
        is_verified: it reached its threshold once.
        document: None if it is of another realm, or of a form that this version can't read.
    """

    type: str
    payload: bytes
    digest: bytes
    signatures: Signatures
    signers: frozenset[bytes]
    is_verified: bool
    document: Deny | DenyKey | None

    @property
    def statement(self) -> bytes:
        """The envelope's bytes, with every signature kept."""
        return envelope.encode(Statement(self.type, self.payload, self.signatures))

    def names(self, release: bytes, vouchers: Iterable[bytes]) -> bool:
        """Whether it denies a release by its digest, or by the keys that signed or approved it."""
        match self.document:
            case Deny(releases=releases):
                return release in releases
            case DenyKey(keys=keys, keep=keep):
                return release not in keep and any(keyid in keys for keyid in vouchers)
            case _:
                return False


@dataclass(frozen=True, slots=True)
class DenySet:
    """All denials held. The empty one is `DenySet()`.

    Attributes:
        denials: by the digest of their payload.
        final: releases that two keys of `deny` denied; and digests of denials of keys that two keys signed, where those
            signatures have given way to one by a newer key.
        judged_by: names the keys that signatures were last judged by; empty before the first.
        lists: digests of the last lists of which every denial is held; not part of what makes two sets equal.
    """

    denials: Mapping[bytes, Denial] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    final: frozenset[bytes] = frozenset()
    judged_by: bytes = b""
    lists: tuple[bytes, ...] = field(default=(), compare=False)

    # --- questions ------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many are in force."""
        return sum(denial.is_verified for denial in self.denials.values())

    @property
    def digest(self) -> bytes:
        """SHA-256 over the sorted SHA-256 of the payloads of those in force; empty for none."""
        return list_digest(digest for digest, denial in self.denials.items() if denial.is_verified)

    @property
    def head(self) -> Denials:
        """Count and digest, as hello and reported carry them."""
        return Denials(count=self.count, digest=self.digest)

    @property
    def unverified(self) -> tuple[Denial, ...]:
        """Those kept only because a named list has them."""
        return tuple(denial for _, denial in sorted(self.denials.items()) if not denial.is_verified)

    def holds_all(self, head: Denials) -> bool:
        """Whether every denial of the list that a timestamp names is held, so that something new may be activated."""
        return head.count == 0 or head.digest in self.lists or list_digest(self.denials) == head.digest

    def is_denied(self, release: bytes, vouchers: Iterable[bytes] = ()) -> Denial | None:
        """The denial in force of a release, by its digest or by the 32-byte ids of keys that signed or approved it."""
        return self._first(release, tuple(vouchers), is_verified=True)

    def forbids(self, release: bytes, vouchers: Iterable[bytes] = ()) -> Denial | None:
        """What stands against activating a release anew: a denial in force, else one that doesn't verify (rule 3)."""
        keys = tuple(vouchers)
        return self._first(release, keys, is_verified=True) or self._first(release, keys, is_verified=False)

    def is_recipe_denied(self, recipe: bytes) -> Denial | None:
        """The denial, in force or not, that names this recipe: it is not to be used."""
        return self.forbids(recipe)

    def is_final(self, release: bytes, vouchers: Iterable[bytes] = ()) -> bool:
        """Whether two people have denied it: not even a node that has nothing else serves it on."""
        keys = tuple(vouchers)
        by_key = [
            denial
            for denial in self.denials.values()
            if denial.is_verified and isinstance(denial.document, DenyKey) and denial.names(release, keys)
        ]
        together = {keyid for denial in by_key for keyid in denial.signers}
        return (
            release in self.final
            or len(together) >= FINAL_SIGNATURES
            or any(len(denial.signatures) >= FINAL_SIGNATURES or denial.digest in self.final for denial in by_key)
        )

    def is_key_denied(self, keyid: bytes) -> bool:
        """Whether what this key signs counts no more."""
        return any(
            denial.is_verified and isinstance(denial.document, DenyKey) and keyid in denial.document.keys
            for denial in self.denials.values()
        )

    def _first(self, release: bytes, vouchers: tuple[bytes, ...], *, is_verified: bool) -> Denial | None:
        found = (
            denial
            for denial in self.denials.values()
            if denial.is_verified == is_verified and denial.names(release, vouchers)
        )
        return min(found, key=lambda denial: denial.digest, default=None)

    # --- growth ---------------------------------------------------------------------------------------------------

    def with_list(self, payload: bytes, trusted: TrustedSet, head: Denials, older: bytes | None = None) -> "DenySet":
        """The set with all of a list that is to be kept: what verifies, and the rest if `head` names the list.

        Args:
            payload: of `deny/all`.
            trusted: whose keys count, and which realm.
            head: of the newest trusted timestamp (`trusted.heads.deny`).
            older: the blob that the list names (`older_blob`), if it is here; without it what the message itself
                carries is taken all the same.

        Raises:
            IntegrityError: not a list, out of bounds, or not the blob named.
        """
        message = _message(payload)
        listed = [*_parsed(message.statements), *_parsed(_older_statements(message.older, older))]
        if len(listed) > MAX_LISTED:
            raise IntegrityError(f"list of {len(listed)} denials, a list has at most {MAX_LISTED}")
        digests: set[bytes] = {sha256(statement.payload) for statement in listed}
        named = list_digest(digests)
        is_named = head.count > 0 and named == head.digest
        judge = _Judge(self, trusted)
        for statement in listed:
            judge.take(statement, is_listed=is_named)
        if is_named:
            judge.drop_unverified_but(digests)
        grown = judge.result()
        if digests <= grown.denials.keys():
            lists = (*(digest for digest in grown.lists if digest != named), named)[-_MAX_LISTS:]
            grown = replace(grown, lists=lists)
        return grown

    def with_statement(self, data: bytes, trusted: TrustedSet) -> "DenySet":
        """The set with one denial, which must verify.

        Raises:
            IntegrityError: malformed, or no room is left.
            TrustError: of another type or realm, or too few signatures count.
        """
        judge = _Judge(self, trusted)
        judge.verify(_parse(data))
        return judge.result()

    def with_trusted(self, trusted: TrustedSet) -> "DenySet":
        """The set judged by the keys in force now: what didn't verify may do so now; nothing is lost."""
        return _Judge(self, trusted).result()

    # --- persistence ----------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """One row that holds the whole set; equal sets that remember the same lists give the same bytes."""
        content = {
            "denials": [_denial_to_bytes(denial) for _, denial in sorted(self.denials.items())],
            "final": b"".join(sorted(self.final)),
            "judged_by": self.judged_by,
            "lists": b"".join(self.lists),
        }
        body = pack(content)
        return pack([STATE_FORMAT, sha256(body), body])

    @classmethod
    def from_bytes(cls, data: bytes) -> "DenySet":
        """The set in a stored row.

        Raises:
            IntegrityError: damaged, or written by a newer version.
        """
        match unpack(data, max_bytes=MAX_STATE_BYTES, max_containers=1):
            case [int(version), *_] if version > STATE_FORMAT:
                raise IntegrityError(
                    f"deny set has format {version}, this version reads {STATE_FORMAT}: run the newer heliograph again"
                )
            case [1, bytes(digest), bytes(body)] if sha256(body) == digest:
                state = unpack(body, max_bytes=MAX_STATE_BYTES, max_containers=2)
            case _:
                raise IntegrityError("stored deny set is damaged: it does not fit its digest")
        match state:
            case {"denials": list(rows), "final": bytes(final), "judged_by": bytes(judged_by), "lists": bytes(lists)}:
                denials = {denial.digest: denial for denial in map(_denial_from_bytes, rows)}
                return cls(
                    MappingProxyType(denials), frozenset(_digests(final)), judged_by, _digests(lists)[-_MAX_LISTS:]
                )
            case _:
                raise IntegrityError("stored deny set is damaged: fields are missing")

    @classmethod
    def recall(cls, statements: Iterable[bytes], trusted: TrustedSet) -> "DenySet":
        """The set of statements that had all verified when they were stored: they are in force, whatever keys are now.

        Raises:
            IntegrityError: one of them is malformed.
        """
        held: dict[bytes, Denial] = {}
        for data in statements:
            statement = _parse(data)
            document = _read(statement.payload, trusted.realm)
            digest = sha256(statement.payload)
            signatures = tuple(sorted(statement.signatures))
            held[digest] = Denial(statement.type, statement.payload, digest, signatures, frozenset(), True, document)
        return cls(MappingProxyType(held)).with_trusted(trusted)


def list_digest(payload_digests: Iterable[bytes]) -> bytes:
    """What names a list: SHA-256 over the sorted SHA-256 of its payloads; empty for an empty list."""
    joined = b"".join(sorted(payload_digests))
    return sha256(joined) if joined else b""


def older_blob(payload: bytes) -> OlderDenials | None:
    """The blob that a list needs to be whole; fetch it only while the newest timestamp names a list not yet held.

    Raises:
        IntegrityError: not a list.
    """
    return _message(payload).older


def encode_list(statements: Iterable[bytes], max_bytes: int = MAX_LIST_BYTES) -> tuple[bytes, bytes | None]:
    """The payload of `deny/all` and the blob of what it had no room for; `statements` newest first.

    Raises:
        IntegrityError: more than a list holds.
    """
    every = list(statements)
    if len(every) > MAX_LISTED:
        raise IntegrityError(f"list of {len(every)} denials, a list has at most {MAX_LISTED}")
    payload = DenyAll(statements=tuple(every)).encode()
    if len(payload) <= max_bytes:
        return payload, None
    room, fitting = max_bytes - 200, 0  # for the fields around the statements, the older blob's name among them
    while fitting < len(every) and room >= len(every[fitting]) + 3:
        room -= len(every[fitting]) + 3
        fitting += 1
    blob = pack(every[fitting:])
    if len(blob) > MAX_UNPAGED_BYTES:
        raise IntegrityError(f"older denials of {len(blob)} bytes exceed {MAX_UNPAGED_BYTES}")
    older = OlderDenials(length=len(blob), sha256=sha256(blob))
    return DenyAll(statements=tuple(every[:fitting]), older=older).encode(), blob


class _Judge:
    """A set on its way to the next: takes statements, judged by the keys in force."""

    def __init__(self, before: DenySet, trusted: TrustedSet) -> None:
        self._before = before
        self._realm = trusted.realm
        self._keys = {type_: _keys(trusted, STATEMENTS[type_]) for type_ in DENIALS}
        self._denials = dict(before.denials)
        self._outlived: set[bytes] = set()
        self._judged_by = sha256(
            pack([[type_, threshold, sorted(keys)] for type_, (threshold, keys) in self._keys.items()])
        )
        if self._judged_by != before.judged_by:
            for denial in before.denials.values():
                self._judge_again(denial)

    def take(self, statement: Statement, *, is_listed: bool) -> None:
        """Takes what verifies; what doesn't only if a named list has it. What there is no room for is left out."""
        try:
            self.verify(statement, is_listed=is_listed)
        except (TrustError, IntegrityError):
            digest = sha256(statement.payload)
            held = self._denials.get(digest)
            signatures = tuple(sorted(statement.signatures))
            if not is_listed or (held is not None and (held.is_verified or held.signatures <= signatures)):
                return
            document = _read(statement.payload, self._realm)
            new = Denial(statement.type, statement.payload, digest, signatures, frozenset(), False, document)
            if held is not None or len(self._denials) < MAX_DENIALS:
                self._denials[digest] = new

    def verify(self, statement: Statement, *, is_listed: bool = False) -> None:
        """Takes a statement that verifies, or adds its signatures to those of the same denial held.

        Raises:
            IntegrityError, TrustError: it doesn't verify, or there is no room.
        """
        type_, payload, digest = statement.type, statement.payload, sha256(statement.payload)
        held = self._denials.get(digest)
        if held is not None and not (held.is_verified and held.type == type_):
            held = None
        if held is not None and set(statement.signatures) <= set(held.signatures):
            return
        if type_ not in self._keys:
            raise TrustError(f"statement of type {type_[:40]!r} is no denial")
        threshold = 1 if held is not None else self._keys[type_][0]
        counted = self._counted(type_, payload, dict(statement.signatures))
        if len(counted) < max(threshold, 1):
            role = STATEMENTS[type_]
            raise TrustError(f"{type_!r} is signed by {len(counted)} keys of {role}, it needs {threshold}")
        if held is not None:
            standing = [pair for pair in held.signatures if pair[0] in held.signers]
            # Of two signatures of one key the lower, and of many keys the lowest, so that order doesn't matter.
            merged = dict(sorted({*counted, *standing}, reverse=True))
            counted = tuple(sorted(merged.items()))[:MAX_KEPT_SIGNATURES]
            if type_ == "deny-key" and len(counted) < FINAL_SIGNATURES <= len(held.signatures):
                self._outlived.add(digest)
        document = DENIALS[type_].decode(payload, max_bytes=MAX_DENIAL_BYTES)
        if document.realm != self._realm:
            raise TrustError(f"{type_} is for realm {document.realm}, not for realm {self._realm}")
        if _read(payload, self._realm) != document:
            raise IntegrityError("denial reads as deny and as deny-key at once")
        limit = MAX_DENIALS if is_listed else MAX_DENIALS - MAX_LISTED
        if digest not in self._denials and len(self._denials) >= limit:
            raise IntegrityError(f"{len(self._denials)} denials are held and no list names this one: no room is left")
        signers = frozenset(keyid for keyid, _ in counted)
        self._denials[digest] = Denial(type_, payload, digest, counted, signers, True, document)

    def drop_unverified_but(self, listed: set[bytes]) -> None:
        """Forgets what is only kept because some older list had it."""
        self._denials = {d: denial for d, denial in self._denials.items() if denial.is_verified or d in listed}

    def result(self) -> DenySet:
        """The next set."""
        denied_by: dict[bytes, set[bytes]] = {}
        for denial in self._denials.values():
            if denial.is_verified and isinstance(denial.document, Deny):
                for release in denial.document.releases:
                    denied_by.setdefault(release, set()).update(denial.signers)
        final = {release for release, signers in denied_by.items() if len(signers) >= FINAL_SIGNATURES}
        return replace(
            self._before,
            denials=MappingProxyType(self._denials),
            final=self._before.final | final | self._outlived,
            judged_by=self._judged_by,
        )

    def _judge_again(self, denial: Denial) -> None:
        counted = self._counted(denial.type, denial.payload, dict(denial.signatures))
        if denial.is_verified:
            self._denials[denial.digest] = replace(denial, signers=frozenset(dict(counted)))
            return
        try:
            self.verify(Statement(denial.type, denial.payload, denial.signatures), is_listed=True)
        except (TrustError, IntegrityError):
            return  # as unverified as before

    def _counted(self, type_: str, payload: bytes, signatures: Mapping[bytes, bytes]) -> Signatures:
        """The signatures that count, by key id, at most so many."""
        _, keys = self._keys.get(type_, (0, {}))
        message = envelope.signed_bytes(type_, payload)
        good = (
            (keyid, signatures[keyid])
            for keyid in sorted(keys.keys() & signatures.keys())
            if PublicKey(keys[keyid]).is_signature(message, signatures[keyid])
        )
        return tuple(good)[:MAX_KEPT_SIGNATURES]


def _keys(trusted: TrustedSet, role: str) -> tuple[int, dict[bytes, bytes]]:
    """Threshold and keys of a role; no keys while nobody is known to have it."""
    try:
        return trusted.statement_keys(role)
    except TrustError:
        return 1, {}


def _message(payload: bytes) -> DenyAll:
    return DenyAll.decode(payload, max_bytes=MAX_LIST_BYTES)


def _older_statements(named: OlderDenials | None, blob: bytes | None) -> tuple[bytes, ...]:
    if blob is None:
        return ()
    if named is None or len(blob) != named.length or sha256(blob) != named.sha256:
        raise IntegrityError(f"blob of {len(blob)} bytes is not the older denials that the list names")
    statements = unpack(blob, max_bytes=MAX_UNPAGED_BYTES, max_containers=1)
    if not isinstance(statements, list) or not all(isinstance(statement, bytes) for statement in statements):
        raise IntegrityError("older denials are not a list of statements")
    return tuple(statements)


def _parse(data: bytes) -> Statement:
    if len(data) > MAX_DENIAL_BYTES:
        raise IntegrityError(f"denial of {len(data)} bytes exceeds {MAX_DENIAL_BYTES}")
    return envelope.parse(data)


def _parsed(statements: Iterable[bytes]) -> list[Statement]:
    """Those that are statements; the rest may be of a later form, and never stands in a named list of this one."""
    parsed = []
    for data in statements:
        try:
            parsed.append(_parse(data))
        except IntegrityError:
            continue
    return parsed


def _read(payload: bytes, realm: str | None) -> Deny | DenyKey | None:
    """What a payload of this realm says, whatever type it came as; None if it says nothing, or two things."""
    found: list[Deny | DenyKey] = []
    for document in DENIALS.values():
        try:
            found.append(document.decode(payload, max_bytes=MAX_DENIAL_BYTES))
        except IntegrityError:
            continue
    return found[0] if len(found) == 1 and realm in (found[0].realm, None) else None


def _denial_to_bytes(denial: Denial) -> bytes:
    signatures = b"".join(keyid + signature for keyid, signature in denial.signatures)
    signers = b"".join(sorted(denial.signers))
    is_read = denial.document is not None
    return pack([denial.type, denial.payload, signatures, signers, denial.is_verified, is_read])


def _denial_from_bytes(data: object) -> Denial:
    row = unpack(data, max_bytes=2 * MAX_DENIAL_BYTES, max_containers=1) if isinstance(data, bytes) else None
    match row:
        case [str(type_), bytes(payload), bytes(joined), bytes(signers), bool(is_verified), bool(is_read)]:
            size = KEYID_BYTES + SIGNATURE_BYTES
            pairs = [joined[at : at + size] for at in range(0, len(joined), size)]
            signatures = tuple((pair[:KEYID_BYTES], pair[KEYID_BYTES:]) for pair in pairs)
            document = _read(payload, None) if is_read else None
            signed_by = frozenset(_digests(signers))
            return Denial(type_, payload, sha256(payload), signatures, signed_by, is_verified, document)
        case _:
            raise IntegrityError("stored deny set is damaged: a denial")


def _digests(joined: bytes) -> tuple[bytes, ...]:
    if len(joined) % 32:
        raise IntegrityError("stored deny set is damaged: digests")
    return tuple(joined[at : at + 32] for at in range(0, len(joined), 32))
