"""What a node believes, and why: the TUF client as a core without I/O.

Everything here is a function of bytes and `now` (seconds since 1970); nothing reads a clock, a disk or a network.
A `TrustedSet` is frozen: an update gives a new one or raises, so a caller that stores what is returned, in one
transaction, can never hold half a set.

Rules, with the clauses of the TUF specification 1.0 (client workflow) that they come from:

1. `bootstrap` believes one root by its SHA-256, and nothing else (5.2).
2. `with_root` takes exactly version N+1, signed by the threshold of root N *and* of itself (5.3.4, 5.3.5), of the same
   realm and kind. An expired root still authenticates its successor. What the new root's keys no longer vouch for is
   dropped, and with it the version floors that a stolen key may have pushed up (5.3.11).
3. `with_set` takes a whole set or nothing: root unexpired (5.3.10); timestamp signed, not older than the held one, its
   snapshot not older, unexpired (5.4.2 to 5.4.4); snapshot with the hash and version the timestamp names, signed,
   listing all that was listed and nothing older, unexpired (5.5.2 to 5.5.6); targets and every delegated file with the
   hash and version the snapshot names and signed (5.6.2 to 5.6.4), targets unexpired (5.6.5). Every listed file must be
   in the message and nothing else may be.
4. A delegated file that has expired blocks new approvals only: what it lists for the first time after its expiry
   doesn't count; what was seen in time goes on counting.
5. Targets are manifests. Only `sign-<model>` and `approve-<model>` list any that count; the top-level targets role says
   who may do what, and a target it lists is nobody's duty. Delegations by delegated roles don't count.
6. A signed time never counts beyond the expiry of the offline-signed root and targets (`TrustedSet.at`).
7. Every byte string is bounded before it is parsed, and hostile input gives TrustError or IntegrityError, nothing else.

What this module does not do: say what a set vouches for (`heliograph.vouching`: the AND of duties, statements); deny,
floors of versions and the fallback rule; keep approvals of releases that are installed (the node does); decide whether
to stop serving (expiry alone never does).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar, cast

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from heliograph.blob import sha256
from heliograph.documents import Heads
from heliograph.errors import IntegrityError, TrustError
from heliograph.manifest import Manifest
from heliograph.metadata import (
    MAX_METADATA_BYTES,
    AnyMetadata,
    custom_of,
    delegations,
    expiry,
    is_release_path,
    is_sound_target,
    listed_meta,
    load,
    realm_and_kind,
    require_listed,
    require_unexpired,
    role_of,
    signed_bytes,
    time_text,
    verify_role,
)
from heliograph.names import Digest
from heliograph.wire import compress, decompress, pack, unpack
from heliograph.workflow import Workflow

MAX_SET_BYTES = 56 * 1024
"""The set message, compressed: it must fit into a signed reply."""
MAX_UNPACKED_SET_BYTES = 4 << 20
MAX_STATE_BYTES = 8 << 20
SET_FORMAT: Literal[1] = 1
STATE_FORMAT: Literal[1] = 1
TOP_ROLES: Final = ("timestamp", "snapshot", "targets")
DUTIES: Final = ("sign", "approve")
"""Both must list a release: `sign-<model>` and `approve-<model>`."""
MAX_ANSWERS = 1024
"""That a set remembers."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Target:
    """A manifest that at least one duty lists.

    Attributes:
        path: `<model>/<version>`.
        length, sha256: of the manifest; the digest names the release.
        listed_by: the roles that list exactly this path, length and digest, in time.
        late: the roles that list it only in a file that had expired when it was first seen: they don't count.
    """

    path: str
    model: str
    version: str
    length: int
    sha256: Digest
    listed_by: frozenset[str]
    late: frozenset[str]

    def open_manifest(self, data: bytes) -> Manifest:
        """The manifest in `data`, which must be the one listed, of this model and version.

        Raises:
            IntegrityError: other bytes, or a manifest that names another release than the path it is listed under.
        """
        manifest = Manifest.parse(data, self.sha256, self.length)
        if (manifest.model, manifest.version) != (self.model, self.version):
            raise IntegrityError(f"manifest of {manifest.release} is listed as {self.path}")
        return manifest


def _remembered(ask: Callable[Concatenate["TrustedSet", P], R]) -> Callable[Concatenate["TrustedSet", P], R]:
    """Works out once for a set, which never changes, what it is asked again and again; errors aren't remembered."""

    @wraps(ask)
    def asked(current: "TrustedSet", /, *args: P.args, **kwargs: P.kwargs) -> R:
        answers, key = current._answers, (ask, *args)
        known = answers.get(key)
        if known is None:
            if len(answers) >= MAX_ANSWERS:
                answers.clear()
            known = answers[key] = (ask(current, *args, **kwargs),)
        return cast(R, known[0])

    return asked


@dataclass(frozen=True, slots=True)
class TrustedSet:
    """The metadata that is believed, as bytes, with the questions that can be asked of it.

    After `bootstrap` only the root is there; `with_set` fills the rest at once. After a rotation parts may be gone
    until the next set: `is_complete` tells. Bytes are exactly as signed, to be stored by `state_to_bytes`.
    """

    root: bytes
    timestamp: bytes | None = None
    snapshot: bytes | None = None
    targets: bytes | None = None
    delegated: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    late: frozenset[tuple[str, str]] = frozenset()
    """(role, path) listed for the first time after the role's file had expired."""
    _files: Mapping[str, AnyMetadata] = field(default_factory=dict, repr=False, compare=False)
    _answers: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Given before, each to be read only."""

    @property
    def realm(self) -> str:
        """The realm its root names."""
        return realm_and_kind(self._root)[0]

    @property
    def kind(self) -> str:
        """`production` or `development`."""
        return realm_and_kind(self._root)[1]

    @property
    def versions(self) -> dict[str, int]:
        """Version of each file held, by role: `root`, `timestamp`, `snapshot`, `targets`, `sign-<model>`, …"""
        return {role: file.signed.version for role, file in self._files.items()}

    @property
    @_remembered
    def is_complete(self) -> bool:
        """Whether a whole set is held and still vouched for by the root."""
        return all(role in self._files for role in TOP_ROLES)

    @property
    @_remembered
    def heads(self) -> Heads:
        """What the newest timestamp says is newest; empty without one."""
        timestamp = self._timestamp
        return Heads() if timestamp is None else custom_of(timestamp)[1]

    @property
    @_remembered
    def at(self) -> int:
        """The timestamp's signed time, as `within` allows it; 0 without one."""
        return 0 if self._timestamp is None else self.within(custom_of(self._timestamp)[0])

    @property
    @_remembered
    def told_by(self) -> tuple[bytes, ...]:
        """The ids of the keys that signed the timestamp; none without one."""
        file = self._files.get("timestamp")
        return () if file is None else tuple(sorted(verify_role(self._root, "timestamp", file)))

    def within(self, at: int) -> int:
        """A signed time, but never beyond the expiry of root and targets, which are signed offline.

        Else a stolen online key would sign one far year, and every node would take all metadata for expired for ever.
        """
        bounds = [expiry(self._root), *([expiry(self._targets)] if self._targets else [])]
        return min(at, *bounds)

    @property
    @_remembered
    def fresh_until(self) -> int:
        """When the timestamp expires; 0 without one."""
        return 0 if self._timestamp is None else expiry(self._timestamp)

    def is_fresh(self, now: int) -> bool:
        """Whether something new may be installed: a complete set whose timestamp has not expired."""
        return self.is_complete and now < self.fresh_until

    def expired(self, now: int) -> tuple[str, ...]:
        """Roles whose files have expired, to be told to people; serving goes on whatever stands here."""
        return tuple(role for role, file in self._files.items() if now >= expiry(file.signed))

    def expiries(self) -> dict[str, int]:
        """When each file expires, by role."""
        return {role: expiry(file.signed) for role, file in self._files.items()}

    @_remembered
    def role_keys(self, role: str) -> tuple[int, dict[bytes, bytes]]:
        """(threshold, raw public key by key id) of a role.

        Raises:
            TrustError: no such role.
        """
        delegator: Root | Targets | None = self._root if role in ("root", *TOP_ROLES) else self._targets
        if delegator is None:
            raise TrustError(f"no targets metadata is held, so nobody is known to be {role!r}: wait for the set")
        found = role_of(delegator, role)
        keys = delegator.keys if isinstance(delegator, Root) else delegator.delegations.keys  # type: ignore[union-attr]  # role_of found it there
        known = {keyid: keys[keyid] for keyid in found.keyids if keyid in keys}
        return found.threshold, {
            bytes.fromhex(keyid): bytes.fromhex(key.keyval["public"]) for keyid, key in known.items()
        }

    @property
    def models(self) -> tuple[str, ...]:
        """Models for which both duties are delegated, sorted."""
        names = set(delegations(self._targets))
        models = (name.removeprefix("sign-") for name in names if name.startswith("sign-"))
        return tuple(sorted(model for model in models if f"approve-{model}" in names))

    @_remembered
    def releases(self, model: str) -> tuple[Target, ...]:
        """Every manifest that either duty lists for the model, by version."""
        found: dict[tuple[str, int, bytes], dict[bool, set[str]]] = {}
        for duty in DUTIES:
            role = f"{duty}-{model}"
            for path, (length, digest) in self._listed(role).items():
                late = (role, path) in self.late
                found.setdefault((path, length, digest), {False: set(), True: set()})[late].add(role)
        targets = [
            Target(path, model, path.split("/")[1], length, Digest(digest), frozenset(by[False]), frozenset(by[True]))
            for (path, length, digest), by in found.items()
        ]
        return tuple(sorted(targets, key=lambda t: (tuple(map(int, t.version.split("."))), t.sha256)))

    @_remembered
    def target(self, model: str, release: bytes) -> Target | None:
        """The manifest of this digest that most duties list for the model, or None."""
        matching = [target for target in self.releases(model) if target.sha256 == release]
        return max(matching, key=lambda target: len(target.listed_by), default=None)

    @_remembered
    def statement_keys(self, role: str) -> tuple[int, dict[bytes, bytes]]:
        """As `role_keys`, of a role that signs statements.

        Role `timestamp` is root's; every other statement role is delegated by targets with no paths, so that the keys
        of `sign-*` and `approve-*` can't sign statements.

        Raises:
            TrustError: no such role, or none for statements.
        """
        if role != "timestamp":
            delegated = delegations(self._targets).get(role)
            if delegated is None or delegated.paths != []:
                raise TrustError(f"{role!r} is no role for statements in this realm's targets metadata")
        return self.role_keys(role)

    @_remembered
    def signers(self, duty_role: str) -> list[bytes]:
        """The key ids that signed the held file of `sign-<model>` or `approve-<model>`."""
        assert self._targets is not None  # it delegates the role
        return verify_role(self._targets, duty_role, self._files[duty_role])

    def why_not_listed(self, target: Target | None, duty_role: str) -> str | None:
        """Why what this role lists does not vouch for the target; None if it does."""
        if target is not None and duty_role in target.listed_by:
            return None
        if duty_role not in delegations(self._targets):
            return f"targets delegates no role {duty_role!r}"
        if target is None or duty_role not in self._files:
            return f"{duty_role} does not list it"
        if duty_role in target.late:
            expired = expiry(self._files[duty_role].signed)
            return f"{duty_role} lists it only since its file expired at {time_text(expired)}"
        if target.path in self._listed(duty_role):
            return f"{duty_role} lists {target.path} with another length or digest"
        return f"{duty_role} does not list {target.path}"

    @property
    def _root(self) -> Root:
        return cast(Root, self._files["root"].signed)

    @property
    def _timestamp(self) -> Timestamp | None:
        file = self._files.get("timestamp")
        return cast(Timestamp, file.signed) if file else None

    @property
    def _snapshot(self) -> Snapshot | None:
        file = self._files.get("snapshot")
        return cast(Snapshot, file.signed) if file else None

    @property
    def _targets(self) -> Targets | None:
        file = self._files.get("targets")
        return cast(Targets, file.signed) if file else None

    def _listed(self, role: str) -> dict[str, tuple[int, bytes]]:
        """What a duty's file lists within its delegation, by path; malformed entries list nothing."""
        file = self._files.get(role)
        return {} if file is None else _listed(cast(Targets, file.signed), self._targets, role)


def _listed(duty: Targets, delegator: Targets | None, role: str) -> dict[str, tuple[int, bytes]]:
    delegated = delegations(delegator).get(role)
    if delegated is None:
        return {}
    model = role.partition("-")[2]
    listed = {}
    for path, target in duty.targets.items():
        if is_release_path(path, model) and delegated.is_delegated_path(path) and is_sound_target(target):
            listed[path] = (target.length, bytes.fromhex(target.hashes["sha256"]))
    return listed


# --- updates ------------------------------------------------------------------------------------------------------


def bootstrap(root: bytes, digest: bytes) -> TrustedSet:
    """The set that holds one root and nothing else. Source: TUF specification 5.2.

    Raises:
        IntegrityError: not the root of this SHA-256, or not root metadata.
        TrustError: not signed by its own threshold, or it names no realm and kind.
    """
    if len(root) > MAX_METADATA_BYTES or sha256(root) != digest:
        raise IntegrityError(f"root of {len(root)} bytes is not the one of SHA-256 {digest.hex()}")
    metadata = load(Root, root, "root")
    verify_role(metadata.signed, "root", metadata)
    realm_and_kind(metadata.signed)
    return TrustedSet(root, _files=MappingProxyType({"root": metadata}))


def with_root(current: TrustedSet, root: bytes) -> TrustedSet:
    """The set under the next root. Source: TUF specification 5.3.4, 5.3.5, 5.3.8, 5.3.11.

    The same root again gives the same set. What its keys no longer vouch for is dropped until the next set comes.

    Raises:
        IntegrityError: not root metadata.
        TrustError: not version N+1, a threshold not met, or another realm or kind.
    """
    if root == current.root:
        return current
    old = current._root
    flow = _workflow(current).with_root(root)
    new = flow.root.signed
    if realm_and_kind(new) != realm_and_kind(old):
        raise TrustError(f"root {new.version} is of {realm_and_kind(new)}, this realm is {realm_and_kind(old)}")
    return TrustedSet(
        root,
        current.timestamp if flow.timestamp else None,
        current.snapshot if flow.snapshot else None,
        current.targets if flow.targets else None,
        current.delegated if flow.targets else MappingProxyType({}),
        current.late if flow.targets else frozenset(),
        MappingProxyType(flow.files()),
    )


def pack_set(timestamp: bytes, snapshot: bytes, targets: bytes, delegated: Mapping[str, bytes]) -> bytes:
    """The message of `tuf/set`; the same files give the same bytes.

    Raises:
        IntegrityError: it would exceed 56 KiB.
    """
    content = {"format": SET_FORMAT, "timestamp": timestamp, "snapshot": snapshot, "targets": targets}
    data = compress(pack({**content, "delegated": dict(sorted(delegated.items()))}), level=19)
    if len(data) > MAX_SET_BYTES:
        raise IntegrityError(f"set of {len(data)} bytes exceeds {MAX_SET_BYTES}: remove releases that no node needs")
    return data


def with_set(current: TrustedSet, packed: bytes, now: int) -> TrustedSet:
    """The set that `packed` brings, whole, or an error and nothing. The same set again gives the same set.

    Raises:
        IntegrityError: malformed, out of bounds, or bytes that don't fit the digest another file states.
        TrustError: a signature, version or expiry rule was not met; the held set stays good for what it was.
    """
    message = _unpack_set(packed)
    flow = _workflow(current)
    flow.require_root_unexpired(now)
    timestamp = flow.open_timestamp(message.timestamp)
    custom_of(timestamp.signed)
    held = flow.timestamp
    if held is not None and timestamp.signed.version == held.signed.version:
        if signed_bytes(timestamp, "timestamp") != signed_bytes(held, "timestamp"):
            raise TrustError(f"a second timestamp of version {held.signed.version}, unlike the one that is held")
        if current.is_complete:
            return current
    flow = flow.with_timestamp(message.timestamp, now)
    flow = flow.with_snapshot(message.snapshot, now).with_targets(message.targets, now)
    assert flow.snapshot is not None  # it was just taken
    assert flow.targets is not None
    listed = flow.snapshot.signed.meta
    wanted = {name for name in delegations(flow.targets.signed) if f"{name}.json" in listed}
    if wanted != set(message.delegated):
        odd = sorted(wanted ^ set(message.delegated))
        raise TrustError(f"set is not whole: {odd[0][:60]!r} stands in only one of snapshot and message")
    flow = replace(flow, delegated=MappingProxyType({}))
    for name, data in sorted(message.delegated.items()):
        flow = flow.with_delegated(name, "targets", data)
    new = TrustedSet(
        current.root,
        message.timestamp,
        message.snapshot,
        message.targets,
        MappingProxyType(dict(sorted(message.delegated.items()))),
        _files=MappingProxyType(flow.files()),
    )
    return replace(new, late=_late(current, new, now))


def with_head(current: TrustedSet, head: bytes, now: int) -> bool:
    """Whether the timestamp in `head` (of `tuf/head`) says that a newer set than the held one exists.

    Raises:
        IntegrityError: not timestamp metadata.
        TrustError: not signed by the realm, or newer but expired.
    """
    if head == current.timestamp:
        return not current.is_complete
    timestamp = load(Timestamp, head, "timestamp")
    verify_role(current._root, "timestamp", timestamp)
    custom_of(timestamp.signed)
    held = current._timestamp
    if held is not None and timestamp.signed.version <= held.version:
        return not current.is_complete and timestamp.signed.version == held.version
    require_unexpired("timestamp", timestamp.signed, now, "it says nothing about what is newest")
    return True


def time_in_head(current: TrustedSet, head: bytes) -> tuple[int, tuple[bytes, ...]]:
    """The signed time in `head`, as `TrustedSet.within` allows it, and the ids of the keys that signed it.

    Raises:
        IntegrityError: not timestamp metadata.
        TrustError: not signed by the realm.
    """
    if head == current.timestamp:
        return current.at, current.told_by
    timestamp = load(Timestamp, head, "timestamp")
    keyids = verify_role(current._root, "timestamp", timestamp)
    return current.within(custom_of(timestamp.signed)[0]), tuple(sorted(keyids))


def _workflow(current: TrustedSet) -> Workflow:
    """The set as TUF's client workflow holds it."""
    files = current._files
    delegated = {role: file for role, file in files.items() if role not in ("root", *TOP_ROLES)}
    return Workflow(
        cast(Metadata[Root], files["root"]),
        cast(Metadata[Timestamp] | None, files.get("timestamp")),
        cast(Metadata[Snapshot] | None, files.get("snapshot")),
        cast(Metadata[Targets] | None, files.get("targets")),
        MappingProxyType(cast(dict[str, Metadata[Targets]], delegated)),
    )


# --- persistence --------------------------------------------------------------------------------------------------


def state_to_bytes(current: TrustedSet) -> bytes:
    """One row that holds the whole state; to be replaced in one transaction."""
    content = {
        "root": current.root,
        "timestamp": current.timestamp,
        "snapshot": current.snapshot,
        "targets": current.targets,
        "delegated": dict(current.delegated),
        "late": [list(pair) for pair in sorted(current.late)],
    }
    body = pack(content)
    return pack([STATE_FORMAT, sha256(body), body])


def state_from_bytes(data: bytes) -> TrustedSet:
    """The set in a stored row; its digest, signatures and what files state of each other are checked, expiry is not.

    Raises:
        IntegrityError: damaged, or written by a newer version.
        TrustError: a file in it is not signed as its role needs.
    """
    match unpack(data, max_bytes=MAX_STATE_BYTES, max_containers=1):
        case [int(version), *_] if version > STATE_FORMAT:
            raise IntegrityError(
                f"trust state has format {version}, this version reads {STATE_FORMAT}: run the newer heliograph again"
            )
        case [1, bytes(digest), bytes(body)] if sha256(body) == digest:
            state = unpack(body, max_bytes=MAX_STATE_BYTES, max_containers=4100)
        case _:
            raise IntegrityError("stored trust state is damaged: it does not fit its digest")
    match state:
        case {"root": bytes(root), "delegated": dict(delegated), "late": list(pairs)}:
            pass
        case _:
            raise IntegrityError("stored trust state is damaged: fields are missing")
    late = set()
    for pair in pairs:
        match pair:
            case [str(role), str(path)]:
                late.add((role, path))
            case _:
                raise IntegrityError("stored trust state is damaged: late listings")
    loaded = bootstrap(root, sha256(root))
    files: dict[str, AnyMetadata] = dict(loaded._files)
    trusted = loaded._root
    for role in TOP_ROLES:
        content = state.get(role)
        if content is None:
            continue
        if not isinstance(content, bytes):
            raise IntegrityError(f"stored trust state is damaged: {role}")
        match role:
            case "timestamp":
                files[role] = load(Timestamp, content, role)
            case "snapshot":
                files[role] = load(Snapshot, content, role)
            case "targets":
                files[role] = load(Targets, content, role)
        verify_role(trusted, role, files[role])
    snapshot, targets = files.get("snapshot"), files.get("targets")
    if snapshot is not None and targets is not None:
        require_listed("targets", state["targets"], listed_meta(cast(Snapshot, snapshot.signed), "targets"))
    for name, content in delegated.items():
        if targets is None or not isinstance(name, str) or not isinstance(content, bytes):
            raise IntegrityError("stored trust state is damaged: delegated files")
        files[name] = load(Targets, content, name)
        verify_role(cast(Targets, targets.signed), name, files[name])
    if "timestamp" in files:
        custom_of(cast(Timestamp, files["timestamp"].signed))
    return TrustedSet(
        root,
        state.get("timestamp"),
        state.get("snapshot"),
        state.get("targets"),
        MappingProxyType(dict(sorted(delegated.items()))),
        frozenset(late),
        MappingProxyType(files),
    )


# --- steps of the workflow ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SetMessage:
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    delegated: dict[str, bytes]


def _unpack_set(packed: bytes) -> _SetMessage:
    if len(packed) > MAX_SET_BYTES:
        raise IntegrityError(f"set of {len(packed)} bytes exceeds {MAX_SET_BYTES}")
    content = decompress(packed, max_bytes=MAX_UNPACKED_SET_BYTES)
    match unpack(content, max_bytes=MAX_UNPACKED_SET_BYTES, max_containers=2):
        case {
            "format": 1,
            "timestamp": bytes(timestamp),
            "snapshot": bytes(snapshot),
            "targets": bytes(targets),
            "delegated": dict(delegated),
        } if all(isinstance(name, str) and isinstance(data, bytes) for name, data in delegated.items()):
            return _SetMessage(timestamp, snapshot, targets, delegated)
        case {"format": int(version)} if version > SET_FORMAT:
            raise IntegrityError(f"set of format {version}, this version reads {SET_FORMAT}")
        case _:
            raise IntegrityError("not a set message")


def _late(current: TrustedSet, new: TrustedSet, now: int) -> frozenset[tuple[str, str]]:
    """What expired files list that was not seen while they were in time."""
    late = set()
    for role in new.delegated:
        if now < expiry(new._files[role].signed):
            continue
        seen = current._listed(role)
        for path, listed in new._listed(role).items():
            if seen.get(path) != listed or (role, path) in current.late:
                late.add((role, path))
    return frozenset(late)
