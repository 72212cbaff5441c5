"""TUF metadata, read and judged one file at a time: bounded, of sound types, signed, unexpired, as listed.

The order in which files are judged, and what follows, is the client workflow in `heliograph.trust`. Here stand its
steps, the fields of ours in TUF's `custom`, and the checks that `tuf.api.metadata` leaves to its callers: numbers that
are numbers, versions in bounds, every key one of ours, no hash bins.
"""

import re
from datetime import UTC, datetime
from typing import Final, TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import (
    DelegatedRole,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError, SerializationError

from heliograph.blob import MAX_UNPAGED_BYTES
from heliograph.documents import LAST_S, Heads
from heliograph.errors import IntegrityError, TrustError
from heliograph.names import NAME_PATTERN, VERSION_PATTERN
from heliograph.signing import TufKey

MAX_METADATA_BYTES = 1 << 20
MAX_TIMESTAMP_BYTES = 64 * 1024
"""The timestamp is the one file whose digest no other file states, so its bound is tighter."""
MAX_VERSION = (1 << 31) - 1

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)
AnyMetadata = Metadata[Root] | Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets]

_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(NAME_PATTERN.strip("^$"))
_VERSION: Final = re.compile(VERSION_PATTERN.strip("^$"))


def load(kind: type[T], data: bytes, name: str, *, is_own_only: bool = True) -> Metadata[T]:
    """Metadata of one kind, bounded and of sound types; nothing in it is believed yet.

    `is_own_only`: every key must be one of ours, as in every realm.
    """
    limit = MAX_TIMESTAMP_BYTES if kind is Timestamp else MAX_METADATA_BYTES
    if len(data) > limit:
        raise IntegrityError(f"{name!r} metadata of {len(data)} bytes exceeds {limit}")
    try:
        metadata = Metadata[T].from_bytes(data)
    except DeserializationError as error:
        raise IntegrityError(f"{name!r} metadata is not TUF JSON: {str(error.__cause__)[:200]!r}") from error
    if type(metadata.signed) is not kind:
        raise IntegrityError(f"{name!r} metadata is of type {metadata.signed.type}, expected {kind.type}")
    if not _is_sound_metadata(metadata.signed, is_own_only):
        raise IntegrityError(f"{name!r} metadata has a field of the wrong type or out of bounds")
    return metadata


def load_listed(
    data: bytes, name: str, delegator: Root | Targets, snapshot: Snapshot, *, is_own_only: bool = True
) -> Metadata[Targets]:
    """A targets file that the snapshot lists: its digest first, then its signatures, then its version."""
    meta = listed_meta(snapshot, name)
    require_listed(name, data, meta)
    metadata = load(Targets, data, name, is_own_only=is_own_only)
    verify_role(delegator, name, metadata)
    require_version(name, metadata.signed, meta)
    return metadata


def verify_role(delegator: Root | Targets, role: str, metadata: AnyMetadata, name: str | None = None) -> list[bytes]:
    """The key ids that signed, if they reach the role's threshold."""
    role_of(delegator, role)
    result = delegator.get_verification_result(role, signed_bytes(metadata, role), metadata.signatures)
    if not result:
        who = name or f"{role!r} metadata"
        raise TrustError(f"{who} is signed by {len(result.signed)} of its keys, it needs {result.threshold}")
    return [bytes.fromhex(keyid) for keyid in result.signed]


def is_verified(delegator: Root | Targets, role: str, metadata: AnyMetadata) -> bool:
    """Whether the role's threshold is met."""
    try:
        verify_role(delegator, role, metadata)
    except TrustError:
        return False
    return True


def signed_bytes(metadata: AnyMetadata, name: str) -> bytes:
    """The canonical bytes that signatures are over."""
    try:
        return metadata.signed_bytes
    except SerializationError as error:
        raise IntegrityError(f"{name!r} metadata has no canonical form") from error


def require_unexpired(name: str, signed: Signed, now: int, consequence: str) -> None:
    """Raises TrustError if the file has expired at `now`, and says what follows from it."""
    if now >= expiry(signed):
        raise TrustError(f"{name} {signed.version} expired at {time_text(expiry(signed))}: {consequence}")


def require_not_older(name: str, held: Signed | MetaFile, new: Signed | MetaFile) -> None:
    """Raises TrustError if the new version is below the held one (rollback)."""
    if new.version < held.version:
        raise TrustError(f"{name} of version {new.version} is older than the held version {held.version}")


def listed_meta(snapshot: Snapshot, name: str) -> MetaFile:
    """What the snapshot states of a role's file; raises TrustError if nothing."""
    meta = snapshot.meta.get(f"{name}.json")
    if meta is None:
        raise TrustError(f"snapshot {snapshot.version} does not list {name!r}")
    return meta


def require_listed(name: str, data: bytes, meta: MetaFile) -> None:
    """Raises IntegrityError unless the bytes have the length and digests stated of them."""
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise IntegrityError(f"{name!r} metadata of {len(data)} bytes is not the one that was signed for") from error


def require_version(name: str, signed: Signed, meta: MetaFile) -> None:
    """Raises TrustError unless the file has the version stated of it."""
    if signed.version != meta.version:
        raise TrustError(f"{name!r} metadata has version {signed.version}, {meta.version} was signed for")


# --- metadata fields of ours --------------------------------------------------------------------------------------


def heads_to_json(heads: Heads) -> dict[str, object]:
    """Heads as the timestamp's `custom` holds them: digests in hex."""
    return {
        "deny": {"count": heads.deny.count, "digest": heads.deny.digest.hex()},
        "policy": dict(sorted(heads.policy.items())),
        "config": dict(sorted(heads.config.items())),
        "directives": {ring: digest.hex() for ring, digest in sorted(heads.directives.items())},
    }


def heads_from_json(value: object) -> Heads:
    """The heads in a timestamp's `custom`.

    Raises:
        IntegrityError: not what `heads_to_json` writes.
    """
    match value:
        case {"deny": {"count": count, "digest": digest}, "directives": dict(directives), **rest}:
            pass
        case _:
            raise IntegrityError("timestamp states no heads")
    try:
        content = {
            "deny": {"count": count, "digest": bytes.fromhex(digest)},
            "policy": rest.get("policy", {}),
            "config": rest.get("config", {}),
            "directives": {ring: bytes.fromhex(digest) for ring, digest in directives.items()},
        }
        return Heads.model_validate(content)
    except (ValueError, TypeError) as error:
        raise IntegrityError("timestamp states malformed heads") from error


def expiry(signed: Signed) -> int:
    """When metadata expires, in seconds since 1970."""
    return int(signed.expires.timestamp())


def custom_of(timestamp: Timestamp) -> tuple[int, Heads]:
    """The signed time and the heads in a timestamp; raises IntegrityError if it has none."""
    match timestamp.unrecognized_fields.get("custom"):
        case {"at": int(at), "heads": heads} if not isinstance(at, bool) and 0 <= at < 1 << 40:
            return at, heads_from_json(heads)
        case _:
            raise IntegrityError("timestamp has no custom field with at and heads")


def realm_and_kind(root: Root) -> tuple[str, str]:
    """The realm and kind a root names; raises TrustError if it names none."""
    match root.unrecognized_fields.get("custom"):
        case {"realm": str(realm), "kind": ("production" | "development") as kind} if _is_name(realm):
            return realm, kind
        case _:
            raise TrustError("root has no custom field with realm and kind, so it is no Heliograph realm's")


# --- shapes -------------------------------------------------------------------------------------------------------


def delegations(targets: Targets | None) -> dict[str, DelegatedRole]:
    """The roles that targets delegates, by name."""
    if targets is None or targets.delegations is None or targets.delegations.roles is None:
        return {}
    return targets.delegations.roles


def role_of(delegator: Root | Targets, role: str) -> Role:
    """Keys and threshold of a role; raises TrustError if nobody delegates it."""
    try:
        return delegator.get_delegated_role(role)
    except ValueError as error:
        raise TrustError(f"{role!r} is delegated by nobody in this realm") from error


def authority_of(root: Root, role: str) -> tuple[frozenset[str], int]:
    """Who may sign a role: a rotation changes this."""
    return frozenset(root.roles[role].keyids), root.roles[role].threshold


def _is_sound_metadata(signed: Signed, is_own_only: bool) -> bool:
    """Whether the fields that tuf's classes take on trust have the types and bounds we count on."""
    metas: list[MetaFile] = []
    roles: list[Role] = []
    keys: list[object] = []
    match signed:
        case Root():
            roles, keys = list(signed.roles.values()), list(signed.keys.values())
        case Timestamp():
            metas = [signed.snapshot_meta]
        case Snapshot():
            metas = list(signed.meta.values())
        case Targets(delegations=None):
            pass
        case Targets():
            assert signed.delegations is not None  # the case above
            if signed.delegations.roles is None and is_own_only:
                return False
            roles, keys = list((signed.delegations.roles or {}).values()), list(signed.delegations.keys.values())
    return (
        _is_version(signed.version)
        and all(_is_version(meta.version) for meta in metas)
        and all(meta.length is None or type(meta.length) is int for meta in metas)
        and all(type(role.threshold) is int and isinstance(role.keyids, list) for role in roles)
        and all(isinstance(keyid, str) for role in roles for keyid in role.keyids)
        and (not is_own_only or all(isinstance(key, TufKey) for key in keys))
    )


def _is_version(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_VERSION


def is_sound_target(target: TargetFile) -> bool:
    """Whether a target states a length a manifest may have and a SHA-256."""
    digest = target.hashes.get("sha256", "")
    return type(target.length) is int and 0 < target.length <= MAX_UNPAGED_BYTES and bool(_HEX_DIGEST.fullmatch(digest))


def is_release_path(path: str, model: str) -> bool:
    """Whether `path` is `<model>/<version>` of this model."""
    found, slash, version = path.partition("/")
    return bool(slash) and found == model and _VERSION.fullmatch(version) is not None


def _is_name(value: str) -> bool:
    return _NAME.fullmatch(value) is not None


def time_text(at: int) -> str:
    """A time in seconds as people and TUF write it; what no calendar here reaches is said so, whoever signed it."""
    if not 0 <= at <= LAST_S:
        return f"second {at}"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
