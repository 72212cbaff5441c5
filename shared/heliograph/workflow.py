"""The client workflow of TUF, one file at a time: a core without I/O.

`Workflow` is frozen. Each method takes one file's bytes and gives the workflow that holds it, or raises and changes
nothing; the order is the caller's to keep, as the specification states it: roots, timestamp, snapshot, targets,
delegated targets. Numbers in comments are clauses of the TUF specification 1.0, "Detailed client workflow".

Rule 1: nothing is held that its delegator's threshold did not sign (5.3.4, 5.4.2, 5.5.3, 5.6.3).
Rule 2: versions never go back, and what the snapshot listed it goes on listing (5.4.3, 5.5.5); what a root rotation
    takes the keys from is no longer held against anybody (5.3.11).
Rule 3: what is held from before (`*_before`) is judged as it was then: signed, but perhaps expired. It only says what
    may not go back, until it is confirmed or replaced.
Rule 4: `now` is an argument; expiry is judged of what is to be used (5.3.10, 5.4.4, 5.5.6, 5.6.5).

What a realm asks beyond TUF stands in `heliograph.trust`, which is made from these steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from heliograph.errors import HeliographError, TrustError
from heliograph.metadata import (
    AnyMetadata,
    authority_of,
    is_verified,
    listed_meta,
    load,
    load_listed,
    require_listed,
    require_not_older,
    require_unexpired,
    require_version,
    verify_role,
)

MAX_DELEGATIONS: Final = 32
"""Delegated files looked at for one target (5.6.7.1)."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """What is held of one repository.

    Attributes:
        delegated: targets files by role, `targets` itself left out.
        is_own_only: whether every key must be one of ours (`heliograph.signing.TufKey`).
    """

    root: Metadata[Root]
    timestamp: Metadata[Timestamp] | None = None
    snapshot: Metadata[Snapshot] | None = None
    targets: Metadata[Targets] | None = None
    delegated: Mapping[str, Metadata[Targets]] = field(default_factory=lambda: MappingProxyType({}))
    is_own_only: bool = True

    # --- root -------------------------------------------------------------------------------------------------------

    def with_root(self, data: bytes) -> "Workflow":
        """The workflow under the next root (5.3.3 to 5.3.8); what its keys no longer vouch for is dropped (5.3.11).

        Raises:
            IntegrityError: not root metadata.
            TrustError: not version N+1, or a threshold not met.
        """
        new = load(Root, data, "root", is_own_only=self.is_own_only)
        old = self.root.signed
        version = new.signed.version
        if version != old.version + 1:
            raise TrustError(f"root version {version} does not follow {old.version}: the next is {old.version + 1}")
        verify_role(old, "root", new, f"root {version}, by the keys of root {old.version},")
        verify_role(new.signed, "root", new, f"root {version}, by its own keys,")
        kept = replace(self, root=new)
        if any(authority_of(old, role) != authority_of(new.signed, role) for role in ("timestamp", "snapshot")):
            kept = replace(kept, timestamp=None, snapshot=None)
        if kept.targets is not None and not is_verified(new.signed, "targets", kept.targets):
            kept = replace(kept, targets=None, delegated=MappingProxyType({}))
        return kept

    def require_root_unexpired(self, now: int) -> None:
        """Raises TrustError if the root, which must be the newest there is, has expired (5.3.10)."""
        require_unexpired("root", self.root.signed, now, "nothing new is installed until the realm's next root arrives")

    # --- timestamp --------------------------------------------------------------------------------------------------

    def with_timestamp(self, data: bytes, now: int) -> "Workflow":
        """The workflow with a timestamp (5.4.2 to 5.4.4); the same one when this version is held already.

        Raises:
            IntegrityError: not timestamp metadata.
            TrustError: not signed, older than what is held, or expired.
        """
        new = self.open_timestamp(data)
        held = self.timestamp
        if held is not None:
            if new.signed.version == held.signed.version:
                new = held
            require_not_older("timestamp", held.signed, new.signed)  # 5.4.3.1
            require_not_older("snapshot", held.signed.snapshot_meta, new.signed.snapshot_meta)  # 5.4.3.2
        require_unexpired("timestamp", new.signed, now, "nothing new is installed until a newer set arrives")  # 5.4.4
        return replace(self, timestamp=new)

    def with_timestamp_before(self, data: bytes) -> "Workflow":
        """With the timestamp held before, which may have expired meanwhile.

        Raises:
            IntegrityError: not timestamp metadata.
            TrustError: not signed by this root's keys.
        """
        return replace(self, timestamp=self.open_timestamp(data))

    def open_timestamp(self, data: bytes) -> Metadata[Timestamp]:
        """A timestamp that the root's keys signed, not yet compared with anything.

        Raises:
            IntegrityError: not timestamp metadata.
            TrustError: not signed by this root's keys.
        """
        new = load(Timestamp, data, "timestamp", is_own_only=self.is_own_only)
        verify_role(self.root.signed, "timestamp", new)  # 5.4.2
        return new

    # --- snapshot ---------------------------------------------------------------------------------------------------

    def with_snapshot(self, data: bytes, now: int) -> "Workflow":
        """The workflow with the snapshot that the timestamp names (5.5.2 to 5.5.6).

        Raises:
            IntegrityError: other bytes than were signed for, or not snapshot metadata.
            TrustError: not signed, of another version, lacking or older than what is held, or expired.
        """
        meta = self._timestamp_held().snapshot_meta
        require_listed("snapshot", data, meta)  # 5.5.2
        new = self._snapshot(data)
        require_version("snapshot", new.signed, meta)  # 5.5.4
        require_unexpired("snapshot", new.signed, now, "nothing new is installed until a newer set arrives")  # 5.5.6
        return replace(self, snapshot=new)

    def with_snapshot_before(self, data: bytes) -> "Workflow":
        """With the snapshot held before, whatever the timestamp names now.

        Raises:
            IntegrityError: not snapshot metadata.
            TrustError: not signed by this root's keys, or lacking or older than what is held.
        """
        return replace(self, snapshot=self._snapshot(data))

    def is_snapshot_current(self, now: int) -> bool:
        """Whether the snapshot held is the one that the timestamp names, unexpired."""
        if self.snapshot is None:
            return False
        try:
            require_version("snapshot", self.snapshot.signed, self._timestamp_held().snapshot_meta)
            require_unexpired("snapshot", self.snapshot.signed, now, "")
        except TrustError:
            return False
        return True

    def _snapshot(self, data: bytes) -> Metadata[Snapshot]:
        new = load(Snapshot, data, "snapshot", is_own_only=self.is_own_only)
        verify_role(self.root.signed, "snapshot", new)  # 5.5.3
        for name, meta in (self.snapshot.signed.meta if self.snapshot else {}).items():  # 5.5.5
            listed = new.signed.meta.get(name)
            if listed is None:
                raise TrustError(
                    f"snapshot {new.signed.version} no longer lists {name[:60]!r}, which the held one does"
                )
            require_not_older(name, meta, listed)
        return new

    # --- targets ----------------------------------------------------------------------------------------------------

    def with_targets(self, data: bytes, now: int) -> "Workflow":
        """The workflow with the top-level targets file that the snapshot lists (5.6.2 to 5.6.5).

        Raises:
            IntegrityError: other bytes than were signed for, or not targets metadata.
            TrustError: not signed, of another version, or expired.
        """
        new = load_listed(data, "targets", self.root.signed, self._snapshot_held(), is_own_only=self.is_own_only)
        require_unexpired("targets", new.signed, now, "nothing new is installed until targets is signed again")
        return replace(self, targets=new)

    def with_delegated(self, role: str, by: str, data: bytes) -> "Workflow":
        """The workflow with the file of a role that `by` delegates (5.6.2 to 5.6.4); its expiry is the caller's.

        Raises:
            IntegrityError: other bytes than were signed for, or not targets metadata.
            TrustError: not listed, not signed, or of another version.
        """
        delegator = self.targets_of(by)
        new = load_listed(data, role, delegator.signed, self._snapshot_held(), is_own_only=self.is_own_only)
        return replace(self, delegated=MappingProxyType({**self.delegated, role: new}))

    def targets_of(self, role: str) -> Metadata[Targets]:
        """The targets file of a role, `targets` or a delegated one; raises TrustError if it isn't held."""
        file = self.targets if role == "targets" else self.delegated.get(role)
        if file is None:
            raise TrustError(f"no metadata of role {role[:60]!r} is held")
        return file

    def version_listed(self, role: str) -> int:
        """The version that the snapshot lists of a targets file; raises TrustError if it lists none."""
        return listed_meta(self._snapshot_held(), role).version

    def is_listed(self, role: str, data: bytes) -> bool:
        """Whether these bytes are what the snapshot lists of a role, as far as it says."""
        try:
            require_listed(role, data, listed_meta(self._snapshot_held(), role))
        except HeliographError:
            return False
        return True

    def files(self) -> dict[str, AnyMetadata]:
        """All that is held, by role."""
        top = {"root": self.root, "timestamp": self.timestamp, "snapshot": self.snapshot, "targets": self.targets}
        return {role: file for role, file in top.items() if file is not None} | dict(self.delegated)

    def _timestamp_held(self) -> Timestamp:
        if self.timestamp is None:
            raise TrustError("no timestamp is held, so nobody says which snapshot is newest")
        return self.timestamp.signed

    def _snapshot_held(self) -> Snapshot:
        if self.snapshot is None:
            raise TrustError("no snapshot is held, so nobody says which targets are newest")
        return self.snapshot.signed


class Search:
    """The walk through delegations for one target: in order of priority, depth first, each role once (5.6.7).

    Give it the file of each role that `next` names; `found` is the answer once `next` is None.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._to_visit: list[tuple[str, str]] = [("targets", "root")]
        self._visited: set[tuple[str, str]] = set()
        self.found: TargetFile | None = None

    def next(self) -> tuple[str, str] | None:
        """(role, delegator) to be looked at; None when the search is over."""
        while self._to_visit and self.found is None and len(self._visited) <= MAX_DELEGATIONS:
            pair = self._to_visit[-1]
            if pair[0] not in {role for role, _ in self._visited}:
                return pair
            self._to_visit.pop()
        return None

    def visit(self, targets: Targets) -> None:
        """Looks into the file of the role that `next` named."""
        role, by = self._to_visit.pop()
        self._visited.add((role, by))
        self.found = targets.targets.get(self._path)
        if self.found is not None or targets.delegations is None:
            return
        children: list[tuple[str, str]] = []
        for child, is_terminating in targets.delegations.get_roles_for_target(self._path):
            children.append((child, role))
            if is_terminating:
                self._to_visit = []
                break
        self._to_visit += reversed(children)
