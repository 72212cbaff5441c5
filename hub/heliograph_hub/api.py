"""[IO] The operator API: what commands ask a running hub, as JSON over its unix socket (0600: the hub's own user).

Rule 1: an answer is made of what is committed; whatever changes something commits, then announces, then answers.
Rule 2: an error is `{"error": sentence, "kind": family}`; the client raises the same family again.
Rule 3: what was signed elsewhere is checked here before it counts; no private key ever comes in.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from heliograph.documents import Deny, DenyKey, ModelReport
from heliograph.errors import ConfigError, HeliographError, NotFoundError, RefusedError
from heliograph.names import RINGS, check_name, parse_release
from heliograph.protocol import DENIALS
from heliograph_hub import rollout
from heliograph_hub.denial import Standing, why
from heliograph_hub.figures import Figures
from heliograph_hub.fleet import Node
from heliograph_hub.registry import Release, transfer_bytes

if TYPE_CHECKING:
    from heliograph_hub.service import Service

MAX_BODY_BYTES = 64 * 1024
_STATUS = {2: 400, 3: 404, 4: 409, 5: 504}
"""HTTP status by the family's exit code; 503 otherwise."""

Answer = Any
DenialT = TypeVar("DenialT", Deny, DenyKey)


class Operations:
    """One method per thing an operator can ask; arguments are checked here, answers are plain JSON values."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._adding = asyncio.Lock()

    # --- releases ---------------------------------------------------------------------------------------------------

    async def add_release(self, body: dict[str, Any]) -> Answer:
        """Packs a folder of this machine; the first release of a model also has its duties delegated."""
        service = self._service
        folder = Path(_text(body, "dir"))
        if not folder.is_absolute():
            raise ConfigError(f"{folder} is not an absolute path: the hub can't know what it is relative to")
        async with self._adding:
            release, bundle, is_new = await asyncio.to_thread(service.registry.add, folder, _now())
        said = []
        if release.model not in service.authority.set.models:
            said = service.authority.add_model(release.model, _now())
        service.announce()
        service.request_recipes(await asyncio.to_thread(service.registry.likely_pairs, release))
        return {
            "release": release.name,
            "digest": release.digest.hex(),
            "new": is_new,
            "files": len(bundle.manifest.files),
            "bytes": sum(file.length for file in bundle.manifest.files),
            "said": said,
        }

    async def list_releases(self) -> Answer:
        """Every release, by model and version."""
        return [self._summary(release) for release in self._service.registry.all()]

    async def show_release(self, name: str) -> Answer:
        """One release: files, duties, and the deltas made to it."""
        service = self._service
        release = self._find(name)
        manifest = service.registry.manifest(release)
        holders = self._holders(release.model)
        deltas = []
        for file in manifest.files:
            full = transfer_bytes(file.length)
            for delta in service.registry.deltas_to(file.sha256):
                row = {
                    "file": file.name,
                    "base": delta.base.hex(),
                    "from": holders.get(delta.base, []),
                    "bytes": delta.cost_bytes,
                    "full_bytes": full,
                    "offered": delta.cost_bytes < full and not service.denials.is_recipe_denied(delta.recipe),
                    "recipe": {"sha256": delta.recipe.hex(), "length": delta.recipe_length},
                    "patch": {"sha256": delta.patch.hex(), "length": delta.patch_length},
                    "seconds": round(delta.seconds, 3),
                }
                deltas.append(row)
        files = [{"name": file.name, "length": file.length, "sha256": file.sha256.hex()} for file in manifest.files]
        full_bytes = sum({file.sha256: transfer_bytes(file.length) for file in manifest.files}.values())
        return self._summary(release) | {
            "files": files,
            "full_bytes": full_bytes,
            "deltas": deltas,
            "costs": self._costs(release),
        }

    def _costs(self, release: Release) -> dict[str, int]:
        """Bytes of content that must cross the link to a node that holds another release of the model, by its name."""
        registry = self._service.registry
        manifest = registry.manifest(release)
        costs = {}
        for other in registry.all():
            if other.model != release.model or other.digest == release.digest:
                continue
            cheapest: dict[bytes, int] = {}
            bases = [file.sha256 for file in registry.manifest(other).files]
            for way in registry.ways(manifest, bases, self._service.denials.is_recipe_denied):
                cheapest[way.blob] = min(way.bytes, cheapest.get(way.blob, way.bytes))
            costs[other.name] = release.length + sum(cheapest.values())
        return costs

    async def request_signature(self, name: str, body: dict[str, Any]) -> Answer:
        """The bytes that a key of a duty is to sign for this release, and which keys count."""
        service = self._service
        release = self._find(name)
        self._refuse_denied(release)
        duty = _text(body, "duty")
        if duty not in ("sign", "approve"):
            raise ConfigError(f"no duty {duty!r}: duties are sign and approve")
        state = self._duty(release, duty)
        if state["done"]:
            return state
        role = f"{duty}-{release.model}"
        asked = service.authority.request_signature(
            role, release.model, release.version, release.length, release.digest, _now()
        )
        return state | {
            "have": asked.have,
            "candidate": asked.candidate,
            "role": role,
            "bytes": asked.data.hex(),
            "keyids": sorted(
                keyid.hex()
                for keyid in service.authority.set.role_keys(role)[1]
                if not service.denials.held.is_key_denied(keyid)
            ),
            "said": [asked.note] if asked.note else [],
        }

    async def add_signature(self, candidate: str, body: dict[str, Any]) -> Answer:
        """One signature; the release is published when the duty's threshold is reached."""
        keyid, signature = _hex(body, "keyid", 32), _hex(body, "signature", 64)
        if self._service.denials.held.is_key_denied(keyid):
            raise RefusedError(f"key {keyid.hex()[:16]} is denied: what it signs counts no more, use another key")
        result = self._service.authority.add_signature(candidate, keyid, signature, _now())
        if result.is_published:
            self._service.denials.note_vouchers([result.path.partition("/")[0]])
            self._service.announce()
        return {"have": result.have, "need": result.need, "done": result.is_published, "said": []}

    def _refuse_denied(self, release: Release) -> None:
        denial = self._service.denials.denial(release.model, release.digest)
        if denial is not None:
            raise RefusedError(f"{release.name} is denied {why(denial)}; that is for good, release a new version")

    def _denied(self, release: Release) -> dict[str, Any] | None:
        """What denies a release, for people; None if nothing does."""
        denial = self._service.denials.denial(release.model, release.digest)
        if denial is None or denial.document is None:
            return None
        return {
            "type": denial.type,
            "reason": denial.document.reason,
            "at": denial.document.at,
            "final": self._service.denials.is_final(release.model, release.digest),
        }

    def _find(self, name: str) -> Release:
        return self._service.registry.find(*parse_release(name))

    def _duty(self, release: Release, duty: str) -> dict[str, Any]:
        authority = self._service.authority
        if release.model not in authority.set.models:
            return {"have": 0, "need": 1, "done": False}
        states = authority.duties(release.model, release.version, release.digest, _now())
        state = states[("sign", "approve").index(duty)]
        return {"have": state.have, "need": state.need, "done": state.is_done}

    def _summary(self, release: Release) -> dict[str, Any]:
        manifest = self._service.registry.manifest(release)
        return {
            "release": release.name,
            "model": release.model,
            "version": release.version,
            "digest": release.digest.hex(),
            "added_at": release.added_at,
            "signed": self._duty(release, "sign"),
            "approved": self._duty(release, "approve"),
            "denied": self._denied(release),
            "files": len(manifest.files),
            "bytes": sum(file.length for file in manifest.files),
        }

    def _holders(self, model: str) -> dict[bytes, list[str]]:
        """Which releases of a model have a file of this digest."""
        holders: dict[bytes, list[str]] = {}
        for release in self._service.registry.all():
            if release.model == model:
                for file in self._service.registry.manifest(release).files:
                    holders.setdefault(file.sha256, []).append(release.name)
        return holders

    # --- denials ----------------------------------------------------------------------------------------------------

    async def list_denials(self) -> Answer:
        """Every denial, newest first."""
        names = self._names()
        return [_denial(standing, names) for standing in self._service.denials.standings()]

    async def request_denial(self, body: dict[str, Any]) -> Answer:
        """The payload to be signed, and which keys count: what there is of the same things, else a new one."""
        service = self._service
        reason = _text(body, "reason")
        match body.get("type"):
            case "deny":
                releases = tuple(dict.fromkeys(self._digest(name) for name in _texts(body, "releases")))
                document: Deny | DenyKey = _made(Deny, realm=service.realm, releases=releases, reason=reason)
            case "deny-key":
                keys = tuple(dict.fromkeys(self._keyid(name) for name in _texts(body, "keys")))
                keep = tuple(dict.fromkeys(self._digest(name) for name in _texts(body, "keep")))
                document = _made(DenyKey, realm=service.realm, keys=keys, keep=keep, reason=reason)
            case other:
                raise ConfigError(f"no denial of type {other!r}: types are {', '.join(DENIALS)}")
        standing = service.denials.request(document)
        return _denial(standing, self._names()) | {
            "payload": standing.payload.hex(),
            "keyids": sorted(keyid.hex() for keyid in service.denials.keyids(standing.type)),
        }

    async def add_denial(self, body: dict[str, Any]) -> Answer:
        """Signatures for a denial; when they are enough it is announced before this answers."""
        service = self._service
        type_, payload = _text(body, "type"), _hex(body, "payload")
        given = body.get("signatures")
        if not isinstance(given, dict) or not given:
            raise ConfigError("signatures must be a map of key ids to signatures")
        signatures = {_hex({"keyid": keyid}, "keyid", 32): _hex(given, keyid, 64) for keyid in given}
        standing = service.denials.add(type_, payload, signatures, _now())
        said = []
        if standing.in_force_at is not None:
            try:
                service.announce()
            except HeliographError as error:
                said.append(f"the denial is published, but the timestamp that is to name it can't be signed: {error}")
        denied = [release.name for release in service.registry.all() if self._denied(release) is not None]
        return _denial(standing, self._names()) | {"denied": denied, "said": said}

    async def list_keys(self) -> Answer:
        """The keys of each role, and which of them are denied."""
        service = self._service
        held = service.denials.held
        return [
            {"role": role, "keyid": keyid.hex(), "threshold": threshold, "denied": held.is_key_denied(keyid)}
            for role in service.authority.roles
            for threshold, keys in [service.authority.set.role_keys(role)]
            for keyid in sorted(keys)
        ]

    def _digest(self, name: str) -> bytes:
        """A release by its name, or any release or recipe by its digest."""
        digest = _bytes_of(name)
        if len(digest) == 32:
            return digest
        if "@" not in name:
            raise ConfigError(f"{name!r} is neither MODEL@MAJOR.MINOR.PATCH nor a digest of 64 hex digits")
        return bytes(self._find(name).digest)

    def _keyid(self, name: str) -> bytes:
        """A key by its whole id, or by 16 or more of its first digits if this realm knows it."""
        keyid = _bytes_of(name)
        if len(keyid) == 32:
            return keyid
        roles = self._service.authority.roles
        known = {known for role in roles for known in self._service.authority.set.role_keys(role)[1]}
        found = [known_id for known_id in known if known_id.hex().startswith(name)]
        if len(name) < 16 or len(found) != 1:
            raise NotFoundError(f"no key {name!r} in this realm: heliograph key list shows them; or give all 64 digits")
        return found[0]

    # --- rollouts ---------------------------------------------------------------------------------------------------

    async def start_rollout(self, body: dict[str, Any]) -> Answer:
        """Signs a directive for every ring of the hub's and releases canary's."""
        service = self._service
        release = self._find(_text(body, "release"))
        self._refuse_denied(release)
        directives = rollout.start(
            service.desired.rows(),
            realm=service.realm,
            model=release.model,
            version=release.version,
            release=release.digest,
            signed=service.authority.is_signed(release.model, release.digest),
            approved=service.authority.is_approved(release.model, release.digest),
            now=_now(),
        )
        signed = [(d, service.authority.sign_statement(f"ring-{d.ring}", "directive", d)) for d in directives]
        service.desired.add(signed, frozenset({"canary"}), _now())
        service.announce()
        return self._rollout(release)

    async def promote_rollout(self, name: str, body: dict[str, Any]) -> Answer:
        """Releases the next ring, or every ring up to one."""
        service = self._service
        release = self._find(name)
        self._refuse_denied(release)
        to = body.get("to")
        rows = rollout.promote(
            service.desired.rows(), model=release.model, version=release.version, release=release.digest, to=to
        )
        service.desired.release(rows, _now())
        service.announce()
        return self._rollout(release)

    async def show_rollout(self, name: str) -> Answer:
        """Each ring's state and nodes."""
        return self._rollout(self._find(name))

    def _rollout(self, release: Release) -> dict[str, Any]:
        service = self._service
        try:
            rings = rollout.standings(
                service.desired.rows(),
                service.fleet.members(release.model, _now()),
                model=release.model,
                release=release.digest,
            )
        except NotFoundError as error:
            raise NotFoundError(f"{release.name} has no rollout: heliograph rollout start {release.name}") from error
        return {
            "release": release.name,
            "digest": release.digest.hex(),
            "denied": self._denied(release),
            "rings": [
                {
                    "ring": ring.ring,
                    "state": ring.state,
                    "number": ring.number,
                    "serving": list(ring.serving),
                    "refused": [{"node": node, "reason": reason} for node, reason in ring.refused],
                    "silent": list(ring.silent),
                    "under_way": list(ring.under_way),
                }
                for ring in rings
            ],
        }

    # --- fleet ------------------------------------------------------------------------------------------------------

    async def list_fleet(self) -> Answer:
        """Every node as it last reported."""
        names = self._names()
        return [self._node(node, names) for node in self._service.fleet.nodes()]

    async def show_node(self, site: str, name: str) -> Answer:
        """One node, with all it said."""
        fleet = self._service.fleet
        node = fleet.node(site, name)
        said = node.reported
        names = self._names()
        models = {}
        for model, report in said.models.items() if said else ():
            models[model] = _model(report, names) | {
                "fallback": _tuple(report.fallback, None, names),
                "held": [digest.hex() for digest in report.held],
                "refused": [
                    {
                        "release": names.get(refusal.release),
                        "digest": refusal.release.hex(),
                        "number": refusal.number,
                        "reason": refusal.reason,
                    }
                    for refusal in report.refused
                ],
                "verdict": report.verdict,
                "waiting": report.waiting,
            }
        return self._node(node, names) | {
            "models": models,
            "key": node.keyid.hex(),
            "enrolled_at": node.enrolled_at,
            "agent": said.agent if said else None,
            "estimate": said.estimate if said else None,
            "run": node.run.hex() if node.run else None,
            "trust": {"versions": dict(said.tuf) if said else {}},
            "assignment": {"number": node.assignment, "echoed": said.assignment if said else None},
            "deny": {
                "count": said.deny.count if said else 0,
                "digest": said.deny.digest.hex() if said else "",
                "acknowledged": said is not None and said.deny == self._service.denials.head,
            },
            "bytes_sent": self._service.distribution.content_bytes[site, name],
            "serving": {
                model: [_figures(release, names) for release in releases]
                for model, releases in fleet.serving(site, name).items()
            },
            "records": fleet.lanes(site, name),
            "not_counted": fleet.counts(site, name),
        }

    async def list_records(self, site: str, name: str, lane: str) -> Answer:
        """The newest records of one lane of one node."""
        self._service.fleet.node(site, name)
        return self._service.fleet.records(site, name, lane)

    async def add_token(self, body: dict[str, Any]) -> Answer:
        """A join string: the one secret this API gives out."""
        site, node = check_name(_text(body, "site"), "site"), check_name(_text(body, "node"), "node")
        life_s = body.get("life_s")
        if type(life_s) is not int:
            raise ConfigError("life_s must be a whole number of seconds")
        join, expires = self._service.add_token(site, node, life_s)
        return {"join": join, "expires": expires, "site": site, "node": node}

    async def assign(self, body: dict[str, Any]) -> Answer:
        """Puts a site into a ring."""
        site, wanted = check_name(_text(body, "site"), "site"), _text(body, "ring")
        ring = next((ring for ring in RINGS if ring == wanted), None)
        if ring is None:
            raise NotFoundError(f"no ring {wanted!r}: rings are {', '.join(RINGS)}")
        assigned = self._service.fleet.assign(site, ring)
        for node, statement in assigned:
            await self._service.send_assignment(site, node, statement)
        return {"site": site, "ring": ring, "nodes": [node for node, _ in assigned]}

    async def show_hub(self) -> Answer:
        """What this hub is."""
        service = self._service
        trusted = service.authority.set
        return {
            "realm": service.realm,
            "kind": trusted.kind,
            "broker": {"host": service.mqtt.broker.host, "port": service.port, "link": _link(service.mqtt.connected)},
            "versions": trusted.versions,
            "expired": list(trusted.expired(_now())),
            "deny": {"count": service.denials.head.count, "digest": service.denials.head.digest.hex()},
            "not_counted": service.fleet.uncounted(),
            "content_bytes_sent": service.distribution.content_bytes.total(),
        }

    def _names(self) -> dict[bytes, str]:
        return {release.digest: release.name for release in self._service.registry.all()}

    def _node(self, node: Node, names: dict[bytes, str]) -> dict[str, Any]:
        said = node.reported
        return {
            "site": node.site,
            "node": node.node,
            "ring": node.ring,
            "models": {model: _model(report, names) for model, report in (said.models if said else {}).items()},
            "last_heard": node.last_heard,
            "link": _link(node.is_up(_now())),
            "bytes_received": said.bytes_received if said else 0,
        }


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
        return kind(at=_now(), **fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {message}") from error


def _model(report: ModelReport, names: dict[bytes, str]) -> dict[str, Any]:
    return {"phase": report.phase, "active": _tuple(report.tuple, report.since, names)}


def _tuple(value: Any, since: int | None, names: dict[bytes, str]) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "release": names.get(value.release),
        "digest": value.release.hex(),
        "config": value.config,
        "policy": value.policy,
        "since": since,
    }


def _figures(figures: Figures, names: dict[bytes, str]) -> dict[str, Any]:
    return {
        "release": names.get(figures.release),
        "digest": figures.release.hex(),
        "records": figures.records,
        "from": figures.begin,
        "to": figures.end,
        "requests": figures.requests,
        "errors": figures.errors,
        "restarts": figures.restarts,
        "p50_ms": figures.latency_ms(0.5),
        "p95_ms": figures.latency_ms(0.95),
    }


def _link(is_up: bool) -> str:
    return "up" if is_up else "down"


# --- HTTP -----------------------------------------------------------------------------------------------------------


def application(service: "Service") -> Starlette:
    """The API as an ASGI application."""
    do = Operations(service)

    def release(request: Request) -> str:
        return f"{request.path_params['model']}@{request.path_params['version']}"

    def names(request: Request) -> tuple[str, str]:
        return request.path_params["site"], request.path_params["node"]

    def name(request: Request) -> str:
        return str(request.path_params["candidate"])

    def lane(request: Request) -> str:
        return str(request.path_params["lane"])

    # fmt: off
    routes: list[tuple[str, str, Callable[[Request, dict[str, Any]], Awaitable[Answer]]]] = [
        ("GET",  "/v1/hub",                                    lambda r, b: do.show_hub()),
        ("GET",  "/v1/releases",                               lambda r, b: do.list_releases()),
        ("POST", "/v1/releases",                               lambda r, b: do.add_release(b)),
        ("GET",  "/v1/releases/{model}/{version}",             lambda r, b: do.show_release(release(r))),
        ("POST", "/v1/releases/{model}/{version}/requests",    lambda r, b: do.request_signature(release(r), b)),
        ("POST", "/v1/candidates/{candidate}",                 lambda r, b: do.add_signature(name(r), b)),
        ("GET",  "/v1/denials",                                lambda r, b: do.list_denials()),
        ("POST", "/v1/denials/requests",                       lambda r, b: do.request_denial(b)),
        ("POST", "/v1/denials",                                lambda r, b: do.add_denial(b)),
        ("GET",  "/v1/keys",                                   lambda r, b: do.list_keys()),
        ("POST", "/v1/rollouts",                               lambda r, b: do.start_rollout(b)),
        ("GET",  "/v1/rollouts/{model}/{version}",             lambda r, b: do.show_rollout(release(r))),
        ("POST", "/v1/rollouts/{model}/{version}/promote",     lambda r, b: do.promote_rollout(release(r), b)),
        ("GET",  "/v1/fleet",                                  lambda r, b: do.list_fleet()),
        ("GET",  "/v1/fleet/{site}/{node}",                    lambda r, b: do.show_node(*names(r))),
        ("GET",  "/v1/fleet/{site}/{node}/records/{lane}",     lambda r, b: do.list_records(*names(r), lane(r))),
        ("POST", "/v1/fleet/tokens",                           lambda r, b: do.add_token(b)),
        ("POST", "/v1/fleet/assignments",                      lambda r, b: do.assign(b)),
    ]
    # fmt: on
    return Starlette(
        routes=[Route(path, _endpoint(action), methods=[method]) for method, path, action in routes],
        exception_handlers={HeliographError: _on_error, HTTPException: _on_http_error},
    )


def _endpoint(
    action: Callable[[Request, dict[str, Any]], Awaitable[Answer]],
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        body = await _body(request) if request.method == "POST" else {}
        return JSONResponse(await action(request, body))

    return endpoint


async def _body(request: Request) -> dict[str, Any]:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise ConfigError(f"request body exceeds {MAX_BODY_BYTES} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError("request body is not JSON") from error
    if not isinstance(value, dict):
        raise ConfigError("request body is not a JSON object")
    return value


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HeliographError)
    status = _STATUS.get(error.exit_code, 503)
    # Families of the hub's own are sent as the shared one they belong to.
    kind = next(c.__name__ for c in type(error).__mro__ if c.__module__ == HeliographError.__module__)
    return JSONResponse({"error": str(error), "kind": kind}, status)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"the hub's API has no {request.method} {request.url.path}"
    return JSONResponse({"error": message, "kind": "NotFoundError"}, error.status_code)


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"{name} is missing from the request")
    return value


def _texts(body: dict[str, Any], name: str) -> list[str]:
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} is not a list of text")
    return value


def _bytes_of(name: str) -> bytes:
    """The bytes that `name` is the lower-case hex of, or none."""
    return bytes.fromhex(name) if re.fullmatch(r"([0-9a-f]{2})*", name) else b""


def _hex(body: dict[str, Any], name: str, length: int | None = None) -> bytes:
    try:
        value = bytes.fromhex(_text(body, name))
    except ValueError as error:
        raise ConfigError(f"{name[:100]} is not hex") from error
    if length is not None and len(value) != length:
        raise RefusedError(f"{name} has {len(value)} bytes, expected {length}")
    return value


def _now() -> int:
    import time

    return int(time.time())
