"""[IO] Denials of releases and keys."""

from typing import Any, TypeVar

from pydantic import ValidationError

from heliograph.documents import Deny, DenyKey
from heliograph.errors import ConfigError, HeliographError, NotFoundError
from heliograph.names import Digest
from heliograph.protocol import DENIALS
from heliograph_hub.api.messages import Answer, Routes, bytes_of, hex_of, now, text, texts
from heliograph_hub.api.part import Part
from heliograph_hub.denial import Standing

DenialT = TypeVar("DenialT", Deny, DenyKey)


class Denials(Part):
    """What is asked about denials."""

    def routes(self) -> Routes:
        """Where it is asked."""
        return [
            ("GET", "/v1/denials", lambda r, b: self.list_denials()),
            ("POST", "/v1/denials/requests", lambda r, b: self.request_denial(b)),
            ("POST", "/v1/denials", lambda r, b: self.add_denial(b)),
        ]

    async def list_denials(self) -> Answer:
        """Every denial, newest first."""
        names = self.names()
        return [_denial(standing, names) for standing in self._service.denials.standings()]

    async def request_denial(self, body: dict[str, Any]) -> Answer:
        """The payload to be signed, and which keys count: what there is of the same things, else a new one.

        What is named and unknown here is told: it may be of another hub of the realm, or mistyped.
        """
        service = self._service
        unknown: list[bytes] = []
        reason = text(body, "reason")
        match body.get("type"):
            case "deny":
                releases = tuple(dict.fromkeys(self._digest(name) for name in texts(body, "releases")))
                document: Deny | DenyKey = _made(Deny, realm=service.realm, releases=releases, reason=reason)
                unknown = [digest for digest in releases if not self._is_known(digest)]
            case "deny-key":
                keys = tuple(dict.fromkeys(self._keyid(name) for name in texts(body, "keys")))
                keep = tuple(dict.fromkeys(self._digest(name) for name in texts(body, "keep")))
                document = _made(DenyKey, realm=service.realm, keys=keys, keep=keep, reason=reason)
                unknown = [key for key in keys if key not in self._keyids() and not service.denials.has_vouched(key)]
                unknown += [digest for digest in keep if not self._is_known(digest)]
            case other:
                raise ConfigError(f"no denial of type {other!r}: types are {', '.join(DENIALS)}")
        standing = service.denials.request(document)
        return _denial(standing, self.names()) | {
            "payload": standing.payload.hex(),
            "keyids": sorted(keyid.hex() for keyid in service.denials.keyids(standing.type)),
            "unknown": [what.hex() for what in unknown],
        }

    async def add_denial(self, body: dict[str, Any]) -> Answer:
        """Signatures for a denial; when they are enough it is announced before this answers."""
        service = self._service
        type_, payload = text(body, "type"), hex_of(body, "payload")
        given = body.get("signatures")
        if not isinstance(given, dict) or not given:
            raise ConfigError("signatures must be a map of key ids to signatures")
        signatures = {hex_of({"keyid": keyid}, "keyid", 32): hex_of(given, keyid, 64) for keyid in given}
        standing = service.denials.add(type_, payload, signatures, now())
        said = []
        if standing.in_force_at is not None:
            try:
                service.announce()
            except HeliographError as error:
                said.append(f"the denial is published, but the timestamp that is to name it can't be signed: {error}")
        denied = [release.name for release in service.registry.all() if self.denied(release) is not None]
        return _denial(standing, self.names()) | {"denied": denied, "said": said}

    def _digest(self, name: str) -> bytes:
        """A release by its name, or any release or recipe by its digest; never what only a part of one has."""
        digest = bytes_of(name)
        if len(digest) == 32:
            registry = self._service.registry
            owners = [] if self._is_known(digest) else registry.owners(Digest(digest))
            owned = next((release for release in map(registry.by_digest, owners) if release is not None), None)
            if owned is not None:
                raise ConfigError(f"{name[:16]} is a part of {owned.name}, which no denial names: deny {owned.name}")
            return digest
        if "@" not in name:
            raise ConfigError(f"{name!r} is neither MODEL@MAJOR.MINOR.PATCH nor a digest of 64 hex digits")
        return bytes(self.find(name).digest)

    def _is_known(self, digest: bytes) -> bool:
        """Whether a release or a recipe here has this digest."""
        return self._service.registry.by_digest(digest) is not None or self._service.denials.is_recipe(digest)

    def _keyids(self) -> set[bytes]:
        """The keys of every role in force."""
        authority = self._service.authority
        return {keyid for role in authority.roles for keyid in authority.set.role_keys(role)[1]}

    def _keyid(self, name: str) -> bytes:
        """A key by its whole id, or by 16 or more of its first digits if this realm knows it."""
        keyid = bytes_of(name)
        if len(keyid) == 32:
            return keyid
        found = [known for known in self._keyids() if known.hex().startswith(name)]
        if len(name) < 16 or len(found) != 1:
            raise NotFoundError(f"no key {name!r} in this realm: heliograph key list shows them; or give all 64 digits")
        return found[0]


def _denial(standing: Standing, names: dict[bytes, str]) -> dict[str, Any]:
    document = standing.document

    def shown(digests: tuple[bytes, ...]) -> list[str]:
        return [names.get(digest, digest.hex()) for digest in digests]

    match document:
        case Deny():
            what = {"releases": shown(document.releases)}
        case DenyKey():
            what = {"keys": [keyid.hex() for keyid in document.keys], "keep": shown(document.keep)}
    return what | {
        "id": standing.digest.hex(),
        "type": standing.type,
        "reason": document.reason,
        "at": document.at,
        "have": standing.have,
        "need": standing.need,
        "in_force_at": standing.in_force_at,
        "final": standing.is_final,
    }


def _made(kind: type[DenialT], **fields: Any) -> DenialT:
    try:
        return kind(at=now(), **fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {message}") from error
