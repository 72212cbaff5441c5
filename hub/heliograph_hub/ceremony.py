"""Makes TUF metadata: who is what in a realm, for how long, and which file states what. Pure; signing is the caller's.

Rule 1: a file's `version` is the caller's business; everything else here is a function of its arguments, so the same
    keys and times give the same bytes.
Rule 2: TUF roles are delegated by root; duties (`sign-*`, `approve-*`) by targets with the paths of their model;
    statement roles by targets with no paths, so that they can list nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from heliograph.documents import Heads
from heliograph.metadata import AnyMetadata, heads_to_json
from heliograph.names import Digest
from heliograph.signing import PrivateKey, PublicKey

DAY_S: Final = 86_400
LIFE_S: Final = {
    "root": 730 * DAY_S,
    "targets": 400 * DAY_S,
    "duty": 180 * DAY_S,
    "snapshot": 7 * DAY_S,
    "timestamp": 7 * DAY_S,
}
"""How long a file of each kind is valid."""


@dataclass(frozen=True, slots=True)
class Staffing:
    """How many keys a role has, and how many of them must sign."""

    keys: int
    threshold: int


# fmt: off
TUF_ROLES: Final = {
    "root":      Staffing(3, 2),
    "targets":   Staffing(3, 2),
    "snapshot":  Staffing(1, 1),
    "timestamp": Staffing(1, 1),
}
STATEMENT_ROLES: Final = {
    "assign":         Staffing(1, 1),
    "recipes":        Staffing(1, 1),
    "policy":         Staffing(1, 1),
    "deny":           Staffing(2, 1),  # two keys: stopping a model's last release takes both
    "deny-key":       Staffing(3, 2),
    "ring-canary":    Staffing(1, 1),
    "ring-early":     Staffing(1, 1),
    "ring-general":   Staffing(1, 1),
    "ring-protected": Staffing(2, 2),
}
MODEL_ROLES: Final = {
    "sign":    Staffing(1, 1),
    "approve": Staffing(3, 2),
    "config":  Staffing(1, 1),
}
# fmt: on
ONLINE_ROLES: Final = ("timestamp", "snapshot", "assign", "recipes", "ring-canary", "ring-early", "ring-general")
"""Roles whose keys the hub's folder holds in every realm; in a development realm it holds the others' too."""


def staffing_of(role: str) -> Staffing | None:
    """How a role is staffed by default; None if there is no such role."""
    duty, _, model = role.partition("-")
    known = (TUF_ROLES | STATEMENT_ROLES).get(role)
    return MODEL_ROLES.get(duty) if known is None and model else known


def paths_of(role: str) -> list[str]:
    """The paths that targets delegates to a role: a model's releases to its duties, nothing to statement roles."""
    duty, _, model = role.partition("-")
    return [f"{model}/*"] if duty in ("sign", "approve") else []


def key_names(role: str, staffing: Staffing) -> tuple[str, ...]:
    """`timestamp` for a role of one key, `root-1` to `root-3` for one of three."""
    return (role,) if staffing.keys == 1 else tuple(f"{role}-{number + 1}" for number in range(staffing.keys))


def make_root(
    realm: str,
    kind: Literal["production", "development"],
    version: int,
    keys: Mapping[str, Iterable[PublicKey]],
    staffing: Mapping[str, Staffing],
    now: int,
) -> Metadata[Root]:
    """Root metadata that gives each TUF role its keys."""
    known: dict[str, Key] = {key.keyid.hex(): key.tuf_key() for role in TUF_ROLES for key in keys[role]}
    roles = {role: Role([key.keyid.hex() for key in keys[role]], staffing[role].threshold) for role in TUF_ROLES}
    custom = {"custom": {"realm": realm, "kind": kind}}
    return Metadata(Root(version, None, _at(now + LIFE_S["root"]), known, roles, True, custom))


def make_targets(version: int, now: int) -> Metadata[Targets]:
    """Top-level targets metadata without delegations."""
    return Metadata(Targets(version, None, _at(now + LIFE_S["targets"]), {}, Delegations({}, {})))


def delegate(targets: Targets, role: str, keys: Iterable[PublicKey], threshold: int, paths: list[str]) -> None:
    """Adds a role to targets, in place; `paths` is empty for statement roles."""
    assert targets.delegations is not None  # made by make_targets
    assert targets.delegations.roles is not None
    keyids = []
    for key in keys:
        keyids.append(key.keyid.hex())
        targets.delegations.keys[keyids[-1]] = key.tuf_key()
    targets.delegations.roles[role] = DelegatedRole(role, keyids, threshold, False, paths)


def delegate_model(targets: Targets, model: str, keys: Mapping[str, Iterable[PublicKey]]) -> None:
    """Adds a model's three roles to targets, in place; `keys` by `sign`, `approve` and `config`."""
    for duty, staffing in MODEL_ROLES.items():
        role = f"{duty}-{model}"
        delegate(targets, role, keys[duty], staffing.threshold, paths_of(role))


def make_duty(version: int, targets: Mapping[str, TargetFile], now: int) -> Metadata[Targets]:
    """The file of a `sign-*` or `approve-*` role."""
    return Metadata(Targets(version, None, _at(now + LIFE_S["duty"]), dict(targets)))


def make_target(path: str, length: int, digest: Digest) -> TargetFile:
    """One manifest as a duty lists it."""
    return TargetFile(length, {"sha256": digest.hex()}, path)


def make_snapshot(version: int, files: Mapping[str, tuple[int, bytes]], now: int) -> Metadata[Snapshot]:
    """Snapshot metadata; `files` gives (version, bytes) of targets and every duty's file, by role."""
    meta = {f"{role}.json": MetaFile.from_data(number, data, ["sha256"]) for role, (number, data) in files.items()}
    return Metadata(Snapshot(version, None, _at(now + LIFE_S["snapshot"]), meta))


def make_timestamp(version: int, snapshot: tuple[int, bytes], heads: Heads, now: int) -> Metadata[Timestamp]:
    """Timestamp metadata over a snapshot's (version, bytes), with the signed time and the heads."""
    meta = MetaFile.from_data(snapshot[0], snapshot[1], ["sha256"])
    custom = {"custom": {"at": now, "heads": heads_to_json(heads)}}
    return Metadata(Timestamp(version, None, _at(now + LIFE_S["timestamp"]), meta, custom))


def expires(kind: str, now: int) -> datetime:
    """When a file of a kind (`LIFE_S`) that is made now expires."""
    return _at(now + LIFE_S[kind])


def sign(metadata: AnyMetadata, keys: Iterable[PrivateKey]) -> bytes:
    """The file's bytes, signed by each key in addition to the signatures it has."""
    for key in keys:
        metadata.sign(key.signer(), append=True)
    return metadata.to_bytes()


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
