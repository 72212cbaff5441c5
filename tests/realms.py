"""A realm in memory with every key at hand, to make good sets and any bad one that holders of some keys could."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuf.api.metadata import TargetFile

from heliograph import trust
from heliograph.blob import sha256
from heliograph.documents import Directive, Document, Heads
from heliograph.names import Digest
from heliograph.signing import PrivateKey, sign_statement
from heliograph.trust import TrustedSet
from heliograph_hub import ceremony
from heliograph_hub.ceremony import MODEL_ROLES, STATEMENT_ROLES, TUF_ROLES

NOW = 1_795_000_000
DAY = 86_400
MODEL = "digits"


@dataclass
class Files:
    """The files of one set; replace any to make a bad one."""

    timestamp: bytes
    snapshot: bytes
    targets: bytes
    delegated: dict[str, bytes]

    def pack(self) -> bytes:
        return trust.pack_set(self.timestamp, self.snapshot, self.targets, self.delegated)


@dataclass
class Realm:
    """One realm; `publish` gives the next set. The same seed gives the same keys."""

    seed: int
    name: str = "demo"
    kind: Literal["production", "development"] = "development"
    now: int = NOW
    heads: Heads = field(default_factory=Heads)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"{self.seed} {self.name}")
        self.keys: dict[str, list[PrivateKey]] = {}
        for role, staffing in (TUF_ROLES | STATEMENT_ROLES).items():
            self.keys[role] = [self.new_key() for _ in range(staffing.keys)]
        for duty, staffing in MODEL_ROLES.items():
            self.keys[f"{duty}-{MODEL}"] = [self.new_key() for _ in range(staffing.keys)]
        self.listed: dict[str, dict[str, TargetFile]] = {f"sign-{MODEL}": {}, f"approve-{MODEL}": {}}
        self.versions = dict.fromkeys(["root", "timestamp", "snapshot", "targets", *self.listed], 0)
        self.roots: list[bytes] = []
        self.rotate()

    def new_key(self) -> PrivateKey:
        return PrivateKey.generate(self._rng.randbytes(32))

    def signers(self, role: str) -> list[PrivateKey]:
        duty = role.removesuffix(f"-{MODEL}")
        staffing = (TUF_ROLES | STATEMENT_ROLES | MODEL_ROLES)[duty if duty in MODEL_ROLES else role]
        return self.keys[role][: staffing.threshold]

    def rotate(
        self,
        *roles: str,
        signers: list[PrivateKey] | None = None,
        version: int | None = None,
        edit: Callable[[Any], None] = lambda signed: None,
    ) -> bytes:
        """The next root, with new keys for `roles`, signed by the old and the new root keys."""
        old = self.signers("root")
        for role in roles:
            self.keys[role] = [self.new_key() for _ in self.keys[role]]
        number = version or len(self.roots) + 1
        public = {role: [key.public for key in keys] for role, keys in self.keys.items()}
        root = ceremony.make_root(self.name, self.kind, number, public, TUF_ROLES, self.now)
        edit(root.signed)
        data = ceremony.sign(root, signers if signers is not None else [*old, *self.signers("root")])
        self.roots.append(data)
        return data

    def list_release(self, version: str, content: bytes, *roles: str, length: int = 1000) -> Digest:
        """Has the roles (both duties if none are named) list a manifest from the next set on."""
        digest = sha256(content)
        path = f"{MODEL}/{version}"
        for role in roles or tuple(self.listed):
            self.listed[role][path] = ceremony.make_target(path, length, digest)
        return digest

    def publish(
        self,
        *,
        signers: Mapping[str, list[PrivateKey]] | None = None,
        edit: Mapping[str, Callable[[Any], None]] | None = None,
        bump: tuple[str, ...] | None = None,
    ) -> Files:
        """The next set, every version one up (or only those of `bump`).

        `signers` replaces who signs a file, `edit` changes a file's content before it is signed.
        """
        for role in bump if bump is not None else tuple(self.versions):
            self.versions[role] += 1
        edits = edit or {}

        def finish(role: str, metadata: Any) -> bytes:
            edits.get(role, lambda signed: None)(metadata.signed)
            who = signers[role] if signers and role in signers else self.signers(role)
            data = ceremony.sign(metadata, who)
            numbers[role] = (metadata.signed.version, data)
            return data

        numbers: dict[str, tuple[int, bytes]] = {}
        for role, targets in self.listed.items():
            finish(role, ceremony.make_duty(max(1, self.versions[role]), targets, self.now))
        top = ceremony.make_targets(max(1, self.versions["targets"]), self.now)
        for role, staffing in STATEMENT_ROLES.items():
            ceremony.delegate(top.signed, role, [key.public for key in self.keys[role]], staffing.threshold, [])
        by_duty = {duty: [key.public for key in self.keys[f"{duty}-{MODEL}"]] for duty in MODEL_ROLES}
        ceremony.delegate_model(top.signed, MODEL, by_duty)
        targets = finish("targets", top)
        delegated = {role: numbers[role][1] for role in self.listed}
        snapshot = finish("snapshot", ceremony.make_snapshot(max(1, self.versions["snapshot"]), numbers, self.now))
        stamp = ceremony.make_timestamp(max(1, self.versions["timestamp"]), numbers["snapshot"], self.heads, self.now)
        return Files(finish("timestamp", stamp), snapshot, targets, delegated)

    def bootstrap(self, number: int = 1) -> TrustedSet:
        """A node that knows root `number` and nothing else."""
        return trust.bootstrap(self.roots[number - 1], sha256(self.roots[number - 1]))

    def directive(self, release: bytes, **changes: Any) -> Directive:
        fields: dict[str, Any] = {"realm": self.name, "ring": "canary", "model": MODEL, "release": release, "number": 1}
        return Directive(**(fields | {"action": "install", "expires": self.now + DAY} | changes))

    def sign(self, role: str, type_: str, document: Document) -> bytes:
        return sign_statement(type_, document.encode(), self.signers(role))
