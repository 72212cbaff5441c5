"""What a trusted set vouches for: releases, by the AND of duties, and statements, by their roles.

Everything here is a function of bytes, a `heliograph.trust.TrustedSet` and `now` (seconds since 1970).

Rule 1: TUF's delegations are an OR; the AND is `admit`: signed AND approved AND directed, all naming the same path,
    length and SHA-256, while the timestamp is fresh.
Rule 2: a statement counts on the topic of its type, from the role its type names, for the realm, ring, model, node and
    key that it itself names. Its signatures are verified before its payload is parsed.
Rule 3: keys of the duties sign metadata, never statements; a node's own key signs what that node says, nothing else.
Rule 4: into ring protected, within it and out of it leads only an assignment that protected's own threshold signed;
    that threshold may also sign any other.
Rule 5: hostile input gives TrustError or IntegrityError, nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from heliograph import statement as envelope
from heliograph.documents import Assignment, Directive, Document, NodeScoped
from heliograph.errors import RefusedError, TrustError
from heliograph.metadata import time_text
from heliograph.names import Ring
from heliograph.protocol import STATEMENTS, Topic, topic
from heliograph.signing import PublicKey, verify_own
from heliograph.statement import Statement
from heliograph.trust import DUTIES, Target, TrustedSet

PROTECTED_ROLE = "ring-protected"


class UnknownTypeError(TrustError):
    """A statement of a type that this version does not know or that is reserved: count it and ignore it."""


@dataclass(frozen=True, slots=True)
class AdmissibleTarget:
    """A release that was signed, approved and directed to this ring; only `admit` makes one.

    Attributes:
        directive: the verified directive that names it.
        keyids: whoever vouched for it: keys of the sign, approve and ring roles, 32 bytes each, sorted.
    """

    target: Target
    directive: Directive
    keyids: tuple[bytes, ...]


def admit(current: TrustedSet, directive: bytes, ring: Ring, now: int, latest: int | None = None) -> AdmissibleTarget:
    """The release that a directive (its envelope's bytes) has this ring install, if every duty vouches for it.

    The directive is verified here, under the keys in force now, however it came and whenever it was stored. Where the
    time is known only as a span, `now` is its beginning, which what begins is judged by, and `latest` its end, which
    what expires is judged by; left out: `now`.

    Raises:
        TrustError: the set isn't fresh, the directive isn't this ring's or has expired, or a duty is missing.
        IntegrityError: not a directive.
        RefusedError: the directive asks for no installation, or not yet.
    """
    if not current.is_complete:
        raise TrustError("no complete set of metadata is held: nothing new is installed until tuf/set brings one")
    latest = now if latest is None else latest
    if not current.is_fresh(latest):
        raise TrustError(
            f"timestamp expired at {time_text(current.fresh_until)}: nothing new is installed until a newer set"
        )
    statement = envelope.parse(directive)
    order = _open(current, statement, topic("desired"), {"ring": ring}, f"ring-{ring}")
    assert isinstance(order, Directive)
    name = f"release {order.release.hex()[:16]} of {order.model}"
    if order.action != "install":
        raise RefusedError(f"directive {order.number} for {order.model} says {order.action}, not install")
    if latest >= order.expires:
        raise TrustError(f"{name} is not directed: directive {order.number} expired at {time_text(order.expires)}")
    if now < order.not_before:
        raise RefusedError(f"{name} may be installed from {time_text(order.not_before)} on")
    target = current.target(order.model, order.release)
    keyids = set(_signers(current, statement, f"ring-{ring}"))
    for duty, word in zip(DUTIES, ("signed", "approved"), strict=True):
        role = f"{duty}-{order.model}"
        why = current.why_not_listed(target, role)
        if why is not None:
            raise TrustError(f"{name} is not {word}: {why}")
        keyids.update(current.signers(role))
    assert target is not None  # both duties list it
    return AdmissibleTarget(target, order, tuple(sorted(keyids)))


def is_in_time(current: TrustedSet, admitted: AdmissibleTarget, now: int, latest: int) -> bool:
    """Whether `admit` would give the same again: it was given under the same set, and no time has run out since."""
    order = admitted.directive
    return current.is_fresh(latest) and latest < order.expires and now >= order.not_before


def verify(current: TrustedSet, statement: Statement, role: str) -> bytes:
    """The payload of a statement that reaches the threshold of `role`; distinct keys count once.

    Raises:
        TrustError: unknown role, or too few of its keys signed.
    """
    _signers(current, statement, role)
    return statement.payload


def open_document(
    current: TrustedSet,
    data: bytes,
    row: Topic,
    names: Mapping[str, str],
    *,
    site: str | None = None,
    node: str | None = None,
    key: bytes | None = None,
    is_protected: bool = False,
) -> Document:
    """Parses, verifies, decodes and scope-checks one statement that came on the topic of `row` with these names.

    Args:
        current: whose keys count, and which realm.
        data: one envelope.
        row: the topic it came on, from `protocol.parse_topic`.
        names: the names in that topic (`ring`, `model`, or `site` and `node`).
        site: who reads; needed for documents meant for one node.
        node: as `site`.
        key: the reader's key id, 32 bytes; as `site`.
        is_protected: the reader is in ring protected, or was enrolled for it: its assignment needs that threshold.

    Raises:
        UnknownTypeError: a type that is unknown or reserved: count it and ignore it.
        TrustError: of another topic's type, signatures missing, or meant for somebody else.
        IntegrityError: malformed.
    """
    statement = envelope.parse(data)
    _require_type(statement, row)
    role = STATEMENTS[statement.type].format(**names)
    is_by_protected = statement.type == "assignment" and _reaches(current, statement, PROTECTED_ROLE)
    if is_by_protected or (statement.type == "assignment" and is_protected):
        role = PROTECTED_ROLE
    document = _open(current, statement, row, names, role)
    if isinstance(document, Assignment) and document.ring == "protected" and not is_by_protected:
        raise TrustError(f"assignment into ring protected is signed by {role}, it needs {PROTECTED_ROLE}")
    if isinstance(document, NodeScoped):
        meant, reads = (document.site, document.node, document.key), (site, node, key)
        if meant != reads or any(names.get(what, mine) != mine for what, mine in (("site", site), ("node", node))):
            raise TrustError(
                f"{statement.type} is for node {document.site}/{document.node}, not for {site}/{node} and its key"
            )
    return document


def counted(current: TrustedSet, data: bytes, role: str) -> tuple[bytes, ...]:
    """The ids of the keys of `role` that signed a statement, if they reach its threshold; else none.

    Raises:
        IntegrityError: not a statement.
    """
    try:
        return tuple(sorted(_signers(current, envelope.parse(data), role)))
    except TrustError:
        return ()


def open_own(data: bytes, row: Topic, names: Mapping[str, str], *, realm: str, public_key: bytes) -> Document:
    """What a node signed with its own key (`reported`, `records`), as the hub reads it.

    Raises:
        UnknownTypeError, TrustError, IntegrityError: as `open_document`.
    """
    statement = envelope.parse(data)
    _require_type(statement, row)
    if STATEMENTS[statement.type] != "own":
        raise TrustError(f"{statement.type} is not a statement that nodes sign")
    payload = verify_own(statement, public_key, statement.type)
    assert row.document is not None  # _require_type
    document = row.document.decode(payload)
    for what, expected in {"realm": realm, **names}.items():
        if getattr(document, what, None) != expected:
            raise TrustError(f"{statement.type} names another {what} than {expected!r}, from where it came")
    return document


def _signers(current: TrustedSet, statement: Statement, role: str) -> list[bytes]:
    """The key ids of `role` that signed the statement, if they reach its threshold."""
    threshold, keys = current.statement_keys(role)
    message = envelope.signed_bytes(statement.type, statement.payload)
    distinct = dict(statement.signatures)
    signed = [
        keyid
        for keyid, public in keys.items()
        if keyid in distinct and PublicKey(public).is_signature(message, distinct[keyid])
    ]
    if len(signed) < threshold:
        raise TrustError(f"{statement.type!r} is signed by {len(signed)} keys of {role}, it needs {threshold}")
    return signed


def _reaches(current: TrustedSet, statement: Statement, role: str) -> bool:
    """Whether the statement reaches the threshold of a role."""
    try:
        _signers(current, statement, role)
    except TrustError:
        return False
    return True


def _require_type(statement: Statement, row: Topic) -> None:
    if statement.type not in STATEMENTS:
        raise UnknownTypeError(f"statement of unknown type {statement.type!r} on topic {row.pattern}")
    if statement.type != row.statement:
        raise TrustError(f"{statement.type} statement came on topic {row.pattern}, which carries {row.statement}")
    if row.document is None:
        raise UnknownTypeError(f"statement type {statement.type} is reserved: this version has no document for it")


def _open(current: TrustedSet, statement: Statement, row: Topic, names: Mapping[str, str], role: str) -> Document:
    """A verified document of this realm and of the topic's ring or model."""
    _require_type(statement, row)
    assert row.document is not None  # _require_type
    document = row.document.decode(verify(current, statement, role))
    expected = {"realm": current.realm, **{what: names[what] for what in ("ring", "model") if what in names}}
    for what, value in expected.items():
        if getattr(document, what) != value:
            raise TrustError(f"{statement.type} is for {what} {getattr(document, what)}, not for {what} {value}")
    return document
