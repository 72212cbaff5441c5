"""[IO] The file that carries what is to be signed to offline keys, and their signatures back.

JSON: `{"format": 1, "type": "request", "realm": name, "asks": [one, …]}`, each of them `{"role": …, "kind": …, "name":
…, "content": hex, "groups": [{"need": n, "keyids": [hex, …]}, …], "signatures": {key id: hex}}`. Signed is the content,
as its kind says: `metadata`: TUF's canonical form of it; else a statement of that type. All else is only shown.

Rule 1: who signs sees what the content says (`words`), not what the file says of it.
Rule 2: `groups` is who has to sign: so many of each group, since a next root is signed by the old keys and the new.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Root, Signature, Targets

from heliograph.documents import Deny, DenyKey, Directive, Document
from heliograph.errors import ConfigError, IntegrityError, TrustError, shown
from heliograph.metadata import delegations, expiry, load, realm_and_kind, signed_bytes, time_text
from heliograph.names import check_name
from heliograph.objects import write_durably
from heliograph.policy import Config, Policy
from heliograph.signing import PublicKey
from heliograph.statement import signed_bytes as statement_bytes
from heliograph_hub.keys import SigningKey

METADATA = "metadata"
STATEMENT_KINDS: dict[str, type[Document]] = {
    "deny": Deny,
    "deny-key": DenyKey,
    "directive": Directive,
    "policy": Policy,
    "config": Config,
}
MAX_FILE_BYTES = 16 << 20
MAX_ASKS = 1000


@dataclass(frozen=True, slots=True)
class Group:
    """So many of these keys have to sign."""

    need: int
    keyids: frozenset[bytes]

    def lacks(self, signed: Iterable[bytes]) -> int:
        """How many more."""
        return max(0, self.need - len(self.keyids.intersection(signed)))


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing to be signed, and the signatures it has.

    Attributes:
        role: whose keys sign.
        kind: `metadata`, or the type of a statement.
        name: where the signatures go: the hub's name for it.
        content: a metadata file without signatures, or a statement's payload.
    """

    role: str
    kind: str
    name: str
    content: bytes
    groups: tuple[Group, ...]
    signatures: Mapping[bytes, bytes]

    @property
    def keyids(self) -> frozenset[bytes]:
        """Everybody whose signature counts."""
        return frozenset[bytes]().union(*(group.keyids for group in self.groups))

    @property
    def lacks(self) -> int:
        """How many signatures are still to come; one of a key in two groups counts for both."""
        return max((group.lacks(self.signatures) for group in self.groups), default=0)

    @property
    def message(self) -> bytes:
        """The bytes that are signed.

        Raises:
            IntegrityError: the content isn't what its kind says.
        """
        if self.kind == METADATA:
            return signed_bytes(self.metadata(), self.role)
        return statement_bytes(self.kind, self.content)

    def metadata(self) -> Metadata[Root] | Metadata[Targets]:
        """The content as metadata."""
        if self.role == "root":
            return load(Root, self.content, self.role)
        return load(Targets, self.content, self.role)

    def signed_by(self, key: SigningKey) -> "Ask":
        """The same, with the key's signature."""
        return replace(self, signatures={**self.signatures, key.keyid: key.sign(self.message)})

    def words(self) -> list[str]:
        """What a signature on it says, read from the content alone; a name in it can't move a terminal's cursor.

        Raises:
            IntegrityError: the content isn't what its kind says.
        """
        return [shown(line) for line in self._words()]

    def _words(self) -> list[str]:
        if self.kind != METADATA:
            return _statement_words(self.kind, STATEMENT_KINDS[self.kind].decode(self.content))
        signed = self.metadata().signed
        title = f"{self.role} {signed.version}, to count until {time_text(expiry(signed))}"
        if isinstance(signed, Root):
            realm, kind = realm_and_kind(signed)
            roles = [(name, role.threshold, role.keyids) for name, role in sorted(signed.roles.items())]
            return [f"{title}, of realm {realm} ({kind})", *_role_lines(roles)]
        given = [(name, role.threshold, role.keyids) for name, role in sorted(delegations(signed).items())]
        listed = [
            f"  lists {path}: {target.length} bytes, digest {target.hashes.get('sha256', '')}"
            for path, target in sorted(signed.targets.items())
        ]
        return [title, *_role_lines(given), *listed]


def good_signatures(ask: Ask, keys: Mapping[bytes, bytes], given: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The signatures given, if each is of one of the keys that count and fits.

    Raises:
        TrustError: one isn't, or doesn't.
    """
    for keyid, signature in given.items():
        if keyid not in keys or keyid not in ask.keyids:
            raise TrustError(f"key {keyid.hex()[:16]} is not one of the keys that sign {ask.name}")
        if not PublicKey(keys[keyid]).is_signature(ask.message, signature):
            raise TrustError(
                f"signature of key {keyid.hex()[:16]} does not fit {ask.name} as it is now: have it signed again"
            )
    return dict(given)


def keys_in(asks: Iterable[Ask]) -> dict[bytes, bytes]:
    """The raw public keys that the metadata among them names, by key id."""
    found: dict[str, Any] = {}
    for ask in asks:
        if ask.kind == METADATA:
            signed = ask.metadata().signed
            if isinstance(signed, Root):
                found |= signed.keys
            elif signed.delegations is not None:
                found |= signed.delegations.keys
    return {bytes.fromhex(keyid): bytes.fromhex(key.keyval["public"]) for keyid, key in found.items()}


def signed_file(ask: Ask) -> bytes:
    """The metadata file with the signatures it has."""
    file = ask.metadata()
    file.signatures = {
        keyid.hex(): Signature(keyid.hex(), signature.hex()) for keyid, signature in sorted(ask.signatures.items())
    }
    return file.to_bytes()


def to_plain(ask: Ask) -> dict[str, Any]:
    """As JSON has it."""
    groups = [{"need": g.need, "keyids": sorted(keyid.hex() for keyid in g.keyids)} for g in ask.groups]
    return {
        "role": ask.role,
        "kind": ask.kind,
        "name": ask.name,
        "content": ask.content.hex(),
        "groups": groups,
        "signatures": {keyid.hex(): signature.hex() for keyid, signature in sorted(ask.signatures.items())},
    }


def from_plain(row: Mapping[str, Any]) -> Ask:
    """What `to_plain` gave.

    Raises:
        ValueError, KeyError, TypeError: something else.
    """
    if row["kind"] != METADATA and row["kind"] not in STATEMENT_KINDS:
        raise ValueError(f"kind {row['kind']!r}")
    groups = tuple(
        Group(int(group["need"]), frozenset(bytes.fromhex(keyid) for keyid in group["keyids"]))
        for group in row["groups"]
    )
    signatures = {bytes.fromhex(keyid): bytes.fromhex(sig) for keyid, sig in row["signatures"].items()}
    return Ask(str(row["role"]), row["kind"], str(row["name"]), bytes.fromhex(row["content"]), groups, signatures)


def write(path: Path, realm: str, asks: Iterable[Ask]) -> None:
    """On disk when this returns.

    Raises:
        ConfigError: it can't be written there.
    """
    value = {"format": 1, "type": "request", "realm": realm, "asks": [to_plain(ask) for ask in asks]}
    try:
        write_durably(path, json.dumps(value, indent=1).encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}): choose another place") from error


def type_of(path: Path) -> str:
    """Which of the files that carry signatures this is: `request`, `directive`, `assignments`.

    Raises:
        ConfigError: missing, or none of them.
    """
    value = _json(path)
    if not isinstance(value, dict) or value.get("type") not in ("request", "directive", "assignments"):
        raise ConfigError(f"{path} carries nothing to sign: name what hub sign-request, rollout or fleet request wrote")
    return str(value["type"])


def read(path: Path) -> tuple[str, list[Ask]]:
    """What `write` wrote: the realm, and what is to be signed.

    Raises:
        ConfigError: missing, or no such file.
    """
    value = _json(path)
    try:
        if (value["format"], value["type"]) != (1, "request"):
            raise ConfigError(f"{path} is of format {value['format']!r}, this version reads requests of format 1")
        asks = [from_plain(row) for row in value["asks"]]
        realm = check_name(value["realm"], "realm")
        for ask in asks:
            ask.words()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IntegrityError, TrustError) as error:
        raise ConfigError(f"{path} is not what heliograph hub sign-request writes: {type(error).__name__}") from error
    if len(asks) > MAX_ASKS:
        raise ConfigError(f"{path} asks for {len(asks)} signatures, a file has at most {MAX_ASKS}")
    return realm, asks


def sign(asks: Iterable[Ask], keys: Iterable[SigningKey]) -> tuple[list[Ask], dict[bytes, int]]:
    """Everything signed by each key that counts for it, and how much each key signed."""
    counts: dict[bytes, int] = {}
    done = []
    for each in asks:
        ask = each
        for key in keys:
            counts.setdefault(key.keyid, 0)
            if key.keyid in ask.keyids:
                ask = ask.signed_by(key)
                counts[key.keyid] += 1
        done.append(ask)
    return done, counts


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} exceeds {MAX_FILE_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: name what hub sign-request wrote") from error


def directive_words(document: Directive) -> list[str]:
    """What a signature on a directive says."""
    return [
        f"directive {document.number} of realm {document.realm}, ring {document.ring}, model {document.model}:",
        f"  {document.action}, digest {document.release.hex()}",
        f"  to be obeyed until {time_text(document.expires)} by who hasn't yet",
    ]


def _role_lines(roles: Iterable[tuple[str, int, list[str]]]) -> list[str]:
    return [
        f"  {name}: {need} of {len(keyids)}: {', '.join(keyid[:16] for keyid in keyids)}"
        for name, need, keyids in roles
    ]


def _statement_words(kind: str, document: Document) -> list[str]:
    match document:
        case Deny():
            return [f"{kind}, {document.reason or 'no reason given'}", *(f"  {d.hex()}" for d in document.releases)]
        case DenyKey():
            keep = [f"  but not what is named {digest.hex()}" for digest in document.keep]
            keys = [f"  all that key {k.hex()} signed or approved" for k in document.keys]
            return [f"{kind}, {document.reason or 'no reason given'}", *keys, *keep]
        case Directive():
            return directive_words(document)
        case Policy() | Config():
            scope = document.ring if isinstance(document, Policy) else document.model
            fields = document.model_dump(mode="json", exclude_defaults=True)
            told = {k: v for k, v in fields.items() if k not in ("realm", "ring", "model", "number", "at")}
            return [f"{kind}/{scope} {document.number}", *(f"  {k} = {json.dumps(v)}" for k, v in told.items())]
        case _:
            return [kind]
