"""A small TUF repository with every file in memory, to be signed, spoiled and published as a test wants."""

import random
from copy import deepcopy
from datetime import UTC, datetime, timedelta

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from heliograph.metadata import load
from heliograph.signing import PrivateKey
from heliograph.workflow import Workflow

NOW = 1_800_000_000
LIFE_S = 86400
TOP = ("root", "timestamp", "snapshot", "targets")


def at(seconds: int) -> datetime:
    """An instant as TUF's classes take it."""
    return datetime.fromtimestamp(seconds, UTC)


class Repository:
    """Files as they would be published next, and the keys that sign them."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.keys: dict[str, list[PrivateKey]] = {role: [self.new_key()] for role in TOP}
        expires = at(NOW + LIFE_S)
        self.root = Root(expires=expires, consistent_snapshot=True)
        for role in TOP:
            self.root.add_key(self.keys[role][0].public.tuf_key(), role)
        self.targets: dict[str, Targets] = {"targets": Targets(expires=expires)}
        self.snapshot = Snapshot(expires=expires)
        self.timestamp = Timestamp(expires=expires)
        self.published: dict[str, bytes] = {}
        self.publish()

    def new_key(self) -> PrivateKey:
        """One more key, by the seed."""
        return PrivateKey.generate(self._rng.randbytes(32))

    def sign(self, role: str, signed: Signed, keys: list[PrivateKey] | None = None) -> bytes:
        """The file with the signatures of the role's keys, or of these."""
        metadata = Metadata(deepcopy(signed))
        for key in self.keys[role] if keys is None else keys:
            metadata.sign(key.signer(), append=True)
        return metadata.to_bytes()

    def publish(self) -> None:
        """Signs everything as it stands: the snapshot lists the targets files, the timestamp the snapshot."""
        self.published = {"root": self.sign("root", self.root)}
        for role, targets in self.targets.items():
            data = self.published[role] = self.sign(role, targets)
            self.snapshot.meta[f"{role}.json"] = MetaFile.from_data(targets.version, data, ["sha256"])
        self.seal()

    def seal(self) -> None:
        """Signs the snapshot as it stands, and a timestamp that names it."""
        data = self.published["snapshot"] = self.sign("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.published["timestamp"] = self.sign("timestamp", self.timestamp)

    def bump(self, *roles: str) -> None:
        """The next version of these files and of whatever names them, published."""
        for role in roles:
            self.targets[role].version += 1
        self.snapshot.version += 1
        self.timestamp.version += 1
        self.publish()

    def delegate(self, by: str, role: str, paths: list[str], *, is_terminating: bool = False) -> None:
        """Has `by` delegate a new role for these paths."""
        key = self.new_key()
        self.keys[role] = [key]
        self.targets.setdefault(role, Targets(expires=at(NOW + LIFE_S)))
        delegator = self.targets[by]
        if delegator.delegations is None:
            delegator.delegations = Delegations({}, {})
        assert delegator.delegations.roles is not None
        delegator.delegations.roles[role] = DelegatedRole(role, [], 1, is_terminating, paths)
        delegator.add_key(key.public.tuf_key(), role)

    def delegate_bins(self, bits: int) -> None:
        """Has targets delegate hash bins."""
        key = self.new_key()
        succinct = SuccinctRoles([key.keyid.hex()], 1, bits, "bin")
        self.targets["targets"].delegations = Delegations({key.keyid.hex(): key.public.tuf_key()}, None, succinct)
        for role in succinct.get_roles():
            self.keys[role] = [key]
            self.targets[role] = Targets(expires=at(NOW + LIFE_S))

    def add_target(self, role: str, path: str, data: bytes) -> None:
        """Lists a target in a role's file."""
        self.targets[role].targets[path] = TargetFile.from_data(path, data, ["sha256"])

    def next_root(self, *, by: list[PrivateKey] | None = None) -> bytes:
        """The root as it stands, one version on."""
        self.root.version += 1
        return self.sign("root", self.root, by)

    def replace_key(self, role: str) -> PrivateKey:
        """Takes the role's keys from the root and gives it a new one; returns the old."""
        old = self.keys[role][0]
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.keys[role] = [self.new_key()]
        self.root.add_key(self.keys[role][0].public.tuf_key(), role)
        return old

    def begin(self) -> Workflow:
        """A client that has nothing but the root of now."""
        return Workflow(load(Root, self.sign("root", self.root), "root"), is_own_only=False)

    def taken(self, flow: Workflow, now: int = NOW) -> Workflow:
        """The client after it took all that is published, in order."""
        flow = flow.with_timestamp(self.published["timestamp"], now)
        flow = flow.with_snapshot(self.published["snapshot"], now)
        return flow.with_targets(self.published["targets"], now)


def age(signed: Signed, by: timedelta = timedelta(seconds=LIFE_S + 1)) -> None:
    """Lets a file expire."""
    signed.expires -= by
