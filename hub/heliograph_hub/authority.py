"""The release authority [IO]: keeps a realm's keys and metadata on disk, collects signatures, publishes the set.

    DIR/keys/<name>.key           private keys, 0600 (shared/FORMATS.md, "Key file")
    DIR/metadata/root/<n>.json    every root there was, never changed
    DIR/metadata/state            the published set: one file, replaced whole (as a node's trust state row)
    DIR/metadata/pending/*.json   metadata of sign-* and approve-* that waits for signatures

Rule 1: what is published is what `heliograph.trust` accepts: every new set goes through `with_set` before it is stored.
Rule 2: `state` is the only truth about what is published, and replacing it is the only step that publishes. Keys and
    pending files are written before, cleaned up after; whatever a crash leaves can be run again.
Rule 3: a release is immutable: a version that is listed with one digest is never listed with another.
Rule 4: keys that sign releases need not be here. `request_signature` gives out bytes, `add_signature` takes one
    signature over them; the online keys (timestamp, snapshot, and those of statements) must be here.
Rule 5: time doesn't go back: no timestamp says an earlier time than the last one whose key still counts. Nodes hold the
    greatest signed time for the time, so that an earlier one would be of no use to them and only hide a wrong clock.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.metadata import Metadata, Signature, TargetFile, Targets

from heliograph import trust
from heliograph.blob import MAX_UNPAGED_BYTES, sha256
from heliograph.documents import Document, Heads
from heliograph.errors import ConfigError, IntegrityError, NotFoundError, RefusedError, TrustError
from heliograph.metadata import delegations, expiry, load, signed_bytes, time_text
from heliograph.names import Digest, check_name, parse_release
from heliograph.objects import write_durably
from heliograph.protocol import topic
from heliograph.signing import PrivateKey, PublicKey, sign_statement
from heliograph.statement import signed_bytes as statement_bytes
from heliograph.trust import TrustedSet
from heliograph_hub import ceremony
from heliograph_hub.ceremony import DAY_S, MODEL_ROLES, TUF_ROLES, key_names
from heliograph_hub.keys import KeyDir

RESIGN_AFTER_S: Final = DAY_S
"""Snapshot and timestamp are signed again when they are this old."""
MAX_BEHIND_S: Final = 3600
"""A clock that is set back by more than this is taken for wrong; for less, the last time is signed again."""
UNFINISHED = "init-unfinished"
"""A file in the folder of a realm that isn't finished."""


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """Bytes that a key of a role is asked to sign.

    Attributes:
        candidate: names the pending file; goes back with the signature.
        data: TUF canonical bytes of the role's next file, with the release in it.
        have, need: signatures so far, and the role's threshold.
        note: what people should know, or empty.
    """

    candidate: str
    role: str
    data: bytes
    have: int
    need: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class SigningResult:
    """What a signature brought about."""

    role: str
    path: str
    have: int
    need: int
    is_published: bool


@dataclass(frozen=True, slots=True)
class DutyState:
    """How far one duty is with one release: `have` of `need` signatures, `is_done` once it is published."""

    role: str
    have: int
    need: int
    is_done: bool


class Authority:
    """A realm in a folder that `founding` made.

    Raises:
        ConfigError: the folder holds no finished realm.
        IntegrityError, TrustError: its state is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = KeyDir(folder / "keys")
        self._metadata = folder / "metadata"
        if (folder / UNFINISHED).exists():
            raise ConfigError(f"the realm in {folder} is unfinished: run hub init again")
        try:
            state = (self._metadata / "state").read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(f"{folder} holds no realm: run hub init first") from error
        self.set: TrustedSet = trust.state_from_bytes(state)
        """The published set."""
        self.on_signed: Callable[[str, bytes, list[bytes]], None] = lambda type_, payload, keyids: None
        """Told what a key here is about to sign: type, payload, key ids."""

    @property
    def realm(self) -> str:
        """The realm's name."""
        return self.set.realm

    @property
    def root_digest(self) -> Digest:
        """SHA-256 of the root in force: what a node is told to begin with."""
        return sha256(self.set.root)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that has keys: TUF's own, then those that targets delegates, sorted."""
        assert self.set.targets is not None  # a realm's set is complete
        return (*TUF_ROLES, *sorted(delegations(load(Targets, self.set.targets, "targets").signed)))

    @property
    def may_delegate(self) -> bool:
        """Whether the keys of targets are on this machine, as in a development realm."""
        threshold, keys = self.set.role_keys("targets")
        return len(self.keys.find(keys)) >= threshold

    # --- models and releases --------------------------------------------------------------------------------------

    def add_model(self, model: str, now: int, *, entropy: Callable[[int], bytes] = secrets.token_bytes) -> list[str]:
        """Delegates `sign-`, `approve-` and `config-<model>` to new keys in the keys folder; published on return.

        Returns:
            Sentences to be shown to the operator.

        Raises:
            ConfigError: not a name.
            RefusedError: the model is there already, or the targets keys are not on this machine.
        """
        check_name(model, "model")
        if model in self.set.models:
            raise RefusedError(f"model {model} is delegated already")
        signers = self._signers("targets", f"adding model {model} needs the ceremony with the offline targets keys")
        staff = {
            duty: [self.keys.make(name, entropy) for name in key_names(f"{duty}-{model}", staffing)]
            for duty, staffing in MODEL_ROLES.items()
        }
        assert self.set.targets is not None  # a realm's set is complete
        held = load(Targets, self.set.targets, "targets").signed
        targets = ceremony.make_targets(held.version + 1, now)
        targets.signed.delegations = held.delegations
        ceremony.delegate_model(
            targets.signed, model, {duty: [key.public for key in keys] for duty, keys in staff.items()}
        )
        files = self._files() | {"targets": (targets.signed.version, ceremony.sign(targets, signers))}
        for duty in trust.DUTIES:
            files[f"{duty}-{model}"] = (1, ceremony.sign(ceremony.make_duty(1, {}, now), staff[duty]))
        self._publish(files, self.set.heads, now)
        need, of = MODEL_ROLES["approve"].threshold, MODEL_ROLES["approve"].keys
        return [
            f"model {model} is delegated: sign-{model} signs, {need} of {of} approve-{model} keys approve.",
            f"Its {sum(staffing.keys for staffing in MODEL_ROLES.values())} keys lie in {self.keys.folder}: "
            f"this is a development realm, give them to different people in a real one.",
        ]

    def request_signature(
        self, role: str, model: str, version: str, length: int, digest: Digest, now: int
    ) -> SigningRequest:
        """The bytes that a key of `role` (`sign-<model>` or `approve-<model>`) signs to list this manifest.

        Asking again gives the same bytes and keeps signatures, unless the candidate has gone stale: then it is made
        anew, without signatures, and `note` says why. On disk when this returns.

        Raises:
            NotFoundError: no such role.
            ConfigError: not a release, or not a manifest's length.
            RefusedError: the role lists it already, or the version is taken by another digest.
        """
        parse_release(f"{model}@{version}")
        if not 0 < length <= MAX_UNPAGED_BYTES or len(digest) != 32:
            raise ConfigError(f"manifest of {length} bytes: a manifest has 1 to {MAX_UNPAGED_BYTES} and a SHA-256")
        if role not in (f"sign-{model}", f"approve-{model}") or model not in self.set.models:
            raise NotFoundError(f"no role {role} for model {model}: add the model first")
        path = f"{model}/{version}"
        for target in self.set.releases(model):
            if target.version == version and target.sha256 != digest:
                raise RefusedError(
                    f"{model}@{version} is listed with digest {target.sha256.hex()[:16]}, not {digest.hex()[:16]}: "
                    f"releases are immutable, choose a new version"
                )
            if target.version == version and role in target.listed_by:
                raise RefusedError(f"{role} lists {model}@{version} already: nothing is left to sign")
        name = f"{role}@{version}"
        wanted = ceremony.make_target(path, length, digest)
        held, note = self._pending(name), ""
        if held is not None and (self._is_stale(role, held, now) or held.signed.targets.get(path) != wanted):
            if held.signatures:
                note = f"another release was published or time passed: {name} lost its signatures and needs them anew"
            held = None
        if held is None:
            version_before, listed = self._duty(role)
            held = ceremony.make_duty(version_before + 1, {**listed, path: wanted}, now)
            write_durably(self._pending_path(name), held.to_bytes())
        threshold, _ = self.set.role_keys(role)
        return SigningRequest(name, role, signed_bytes(held, role), len(held.signatures), threshold, note)

    def add_signature(self, candidate: str, keyid: bytes, signature: bytes, now: int) -> SigningResult:
        """Takes one signature; publishes when the role's threshold is reached. The same one again changes nothing.

        On disk when this returns; when `is_published`, the set is the new one and `publish_set` gives it out.

        Raises:
            NotFoundError: no such candidate.
            TrustError: not a key of the role, or not its signature over the candidate's bytes.
            RefusedError: the candidate has gone stale and lost its signatures: ask for the bytes again.
        """
        role, path = self._parse_candidate(candidate)
        threshold, keys = self.set.role_keys(role)
        held = self._pending(candidate)
        if path in self._duty(role)[1]:
            self._pending_path(candidate).unlink(missing_ok=True)
            return SigningResult(role, path, threshold, threshold, True)
        if held is None:
            raise NotFoundError(f"no candidate {candidate}: ask for the bytes to sign first")
        if self._is_stale(role, held, now):
            self._pending_path(candidate).unlink(missing_ok=True)
            raise RefusedError(f"{candidate} has gone stale and lost its signatures: ask for the bytes to sign again")
        if keyid not in keys:
            raise TrustError(f"key {keyid.hex()[:16]} is not one of the keys of {role}")
        if not PublicKey(keys[keyid]).is_signature(signed_bytes(held, role), signature):
            raise TrustError(f"signature of key {keyid.hex()[:16]} does not fit the bytes of {candidate}")
        held.signatures[keyid.hex()] = Signature(keyid.hex(), signature.hex())
        have = len(held.signatures)
        write_durably(self._pending_path(candidate), held.to_bytes())
        if have < threshold:
            return SigningResult(role, path, have, threshold, False)
        self._publish(self._files() | {role: (held.signed.version, held.to_bytes())}, self.set.heads, now)
        self._pending_path(candidate).unlink(missing_ok=True)
        return SigningResult(role, path, have, threshold, True)

    def duties(self, model: str, version: str, digest: Digest, now: int) -> tuple[DutyState, DutyState]:
        """How far signing and approving of a release are.

        Raises:
            NotFoundError: no such model.
            ConfigError: not a release.
        """
        parse_release(f"{model}@{version}")
        if model not in self.set.models:
            raise NotFoundError(f"model {model} is not delegated: add it first")
        target = self.set.target(model, digest)
        states = []
        for duty in trust.DUTIES:
            role = f"{duty}-{model}"
            threshold, _ = self.set.role_keys(role)
            is_done = target is not None and target.version == version and role in target.listed_by
            held = self._pending(f"{role}@{version}")
            have = 0 if held is None or self._is_stale(role, held, now) else len(held.signatures)
            states.append(DutyState(role, threshold if is_done else have, threshold, is_done))
        return states[0], states[1]

    def is_signed(self, model: str, digest: Digest) -> bool:
        """Whether `sign-<model>` lists the manifest."""
        target = self.set.target(model, digest)
        return target is not None and f"sign-{model}" in target.listed_by

    def is_approved(self, model: str, digest: Digest) -> bool:
        """Whether `approve-<model>` lists the manifest."""
        target = self.set.target(model, digest)
        return target is not None and f"approve-{model}" in target.listed_by

    # --- what goes out --------------------------------------------------------------------------------------------

    def publish_set(self, now: int, heads: Heads) -> dict[str, bytes]:
        """What is retained on which topic: `tuf/head`, `tuf/set` and every `tuf/root/<n>`.

        Snapshot and timestamp are signed again first if they are a day old or `heads` changed; otherwise the same
        bytes come out again, so calling this often costs nothing. On disk when this returns.

        Raises:
            RefusedError: the online keys are not here, or the clock says an earlier time than was signed last.
            TrustError: root or targets has expired, so no node would take the set.
        """
        now = self._not_before_the_last(now, self.set)
        if heads != self.set.heads or now - self.set.at >= RESIGN_AFTER_S:
            self._publish(self._files(), heads, now)
        return self.published()

    def published(self) -> dict[str, bytes]:
        """What `publish_set` signed last, on the same topics."""
        current = self.set
        assert current.timestamp is not None and current.snapshot is not None and current.targets is not None
        message = trust.pack_set(current.timestamp, current.snapshot, current.targets, current.delegated)
        out = {topic("head").build(self.realm): current.timestamp, topic("set").build(self.realm): message}
        for number in range(1, current.versions["root"] + 1):
            out[topic("root").build(self.realm, number=number)] = root_path(self.folder, number).read_bytes()
        return out

    def sign_statement(self, role: str, type_: str, document: Document) -> bytes:
        """A statement's envelope, signed by as many of the role's keys here as its threshold needs.

        Raises:
            TrustError: no such role.
            RefusedError: too few of its keys are on this machine.
            IntegrityError: it would exceed 60 KiB.
        """
        signers = self._signers(role, f"{type_} can't be signed here")
        self.on_signed(type_, document.encode(), [key.keyid for key in signers])
        return sign_statement(type_, document.encode(), signers)

    def sign_payload(self, role: str, type_: str, payload: bytes) -> dict[bytes, bytes]:
        """As `sign_statement`, of bytes: signatures by key id.

        Raises:
            TrustError, RefusedError: as there.
        """
        message = statement_bytes(type_, payload)
        signers = self._signers(role, f"{type_} can't be signed here, name the keys with --key")
        self.on_signed(type_, payload, [key.keyid for key in signers])
        return {key.keyid: key.sign(message) for key in signers}

    # --- inside ---------------------------------------------------------------------------------------------------

    def adopt(self, root: bytes | None, files: Mapping[str, tuple[int, bytes]], now: int) -> None:
        """Publishes a next root, if given, and these files in place of those there are; on disk when this returns.

        Snapshot and timestamp are signed by the keys that the next root names, and go on counting.

        Raises:
            TrustError, IntegrityError: no node would take it.
            RefusedError: the online keys are not here.
        """
        base = trust.with_root(self.set, root) if root is not None else self.set
        if root is not None:
            write_durably(root_path(self.folder, base.versions["root"]), root)
        self._publish(self._files() | dict(files), self.set.heads, now, base)

    def file(self, role: str) -> bytes:
        """A metadata file as published: `root`, `targets`, or a duty's."""
        if role == "root":
            return self.set.root
        assert self.set.targets is not None  # a realm's set is complete
        return self.set.targets if role == "targets" else self.set.delegated[role]

    def _not_before_the_last(self, now: int, under: TrustedSet) -> int:
        """`now`, or the time signed last where the clock is a little behind that; a clock far behind is wrong.

        What keys said that the next root names no more doesn't count.
        """
        last = under.at
        if now < last - MAX_BEHIND_S:
            raise RefusedError(
                f"this machine's clock says {time_text(now)}, and {time_text(last)} was signed before: set the "
                "clock; if it was wrong then, rotate the timestamp key: nodes forget what the old one said"
            )
        return max(now, last)

    def _signers(self, role: str, consequence: str, of: TrustedSet | None = None) -> list[PrivateKey]:
        """Keys that reach the role's threshold."""
        threshold, keys = (of or self.set).role_keys(role)
        here = self.keys.find(keys)
        if len(here) < threshold:
            raise RefusedError(
                f"{len(here)} keys of role {role} are in {self.keys.folder}, it needs {threshold}: {consequence}"
            )
        return here[:threshold]

    def _files(self) -> dict[str, tuple[int, bytes]]:
        """(version, bytes) of targets and every duty's file, as published."""
        assert self.set.targets is not None  # a realm's set is complete
        versions = self.set.versions
        contents = {"targets": self.set.targets, **self.set.delegated}
        return {role: (versions[role], data) for role, data in contents.items()}

    def _publish(
        self, files: Mapping[str, tuple[int, bytes]], heads: Heads, now: int, base: TrustedSet | None = None
    ) -> None:
        """Signs snapshot and timestamp over the files, checks the set as a node would, and makes it the published."""
        under = base or self.set
        now = self._not_before_the_last(now, under)
        snapshot_keys = self._signers("snapshot", "nothing can be published here", under)
        timestamp_keys = self._signers("timestamp", "nothing can be published here", under)
        new = assemble(under, files, heads, now, snapshot_keys, timestamp_keys, self.set.versions)
        write_durably(self._metadata / "state", trust.state_to_bytes(new))
        self.set = new

    def _duty(self, role: str) -> tuple[int, dict[str, TargetFile]]:
        """Version and listing of a duty's file as published; 0 and nothing before its first."""
        data = self.set.delegated.get(role)
        if data is None:
            return 0, {}
        signed = load(Targets, data, role).signed
        return signed.version, signed.targets

    def _is_stale(self, role: str, candidate: Metadata[Targets], now: int) -> bool:
        return candidate.signed.version != self._duty(role)[0] + 1 or now >= expiry(candidate.signed)

    def _pending_path(self, name: str) -> Path:
        return self._metadata / "pending" / f"{name}.json"

    def _pending(self, name: str) -> Metadata[Targets] | None:
        """The candidate of this name with those signatures that count; if it is damaged on disk it counts as none."""
        try:
            held = load(Targets, self._pending_path(name).read_bytes(), name)
            message = signed_bytes(held, name)
        except (FileNotFoundError, IntegrityError):
            return None
        _, keys = self.set.role_keys(name.partition("@")[0])
        good = {}
        for keyid, public in keys.items():
            found = held.signatures.get(keyid.hex())
            if found is not None and _is_signature_of(PublicKey(public), found, message):
                good[keyid.hex()] = found
        held.signatures = good
        return held

    def _parse_candidate(self, candidate: str) -> tuple[str, str]:
        """(role, path) of a candidate's name, which comes from outside."""
        role, at, version = candidate.partition("@")
        duty, dash, model = role.partition("-")
        if not (at and dash) or duty not in trust.DUTIES or model not in self.set.models:
            raise NotFoundError(f"no candidate {candidate[:100]!r}: ask for the bytes to sign first")
        try:
            parse_release(f"{model}@{version}")
        except ConfigError as error:
            raise NotFoundError(f"no candidate {candidate[:100]!r}: ask for the bytes to sign first") from error
        return role, f"{model}/{version}"


def assemble(
    current: TrustedSet,
    files: Mapping[str, tuple[int, bytes]],
    heads: Heads,
    now: int,
    snapshot_keys: list[PrivateKey],
    timestamp_keys: list[PrivateKey],
    before: Mapping[str, int] = MappingProxyType({}),
) -> TrustedSet:
    """The next set over `files`, as a node that holds `current` will judge it; versions go on from `before`."""
    number = before.get("snapshot", 0) + 1
    snapshot = ceremony.sign(ceremony.make_snapshot(number, files, now), snapshot_keys)
    version = before.get("timestamp", 0) + 1
    timestamp = ceremony.sign(ceremony.make_timestamp(version, (number, snapshot), heads, now), timestamp_keys)
    delegated = {role: data for role, (_, data) in files.items() if role != "targets"}
    return trust.with_set(current, trust.pack_set(timestamp, snapshot, files["targets"][1], delegated), now)


def _is_signature_of(key: PublicKey, signature: Signature, message: bytes) -> bool:
    """Whether TUF's form of a signature is the key's."""
    try:
        key.tuf_key().verify_signature(signature, message)
    except UnverifiedSignatureError:
        return False
    return True


def root_path(folder: Path, number: int) -> Path:
    """Where a root is kept."""
    return folder / "metadata" / "root" / f"{number}.json"
