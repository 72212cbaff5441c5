"""[IO] Releases: adding, signing, approving, looking."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from heliograph.errors import ConfigError, RefusedError
from heliograph_hub.api.messages import Answer, Routes, hex_of, now, text
from heliograph_hub.api.part import Part
from heliograph_hub.registry import Release, transfer_bytes

if TYPE_CHECKING:
    from heliograph_hub.service import Service


class Releases(Part):
    """What is asked about releases."""

    def __init__(self, service: "Service") -> None:
        super().__init__(service)
        self._adding = asyncio.Lock()

    def routes(self) -> Routes:
        """Where it is asked."""

        def release(request: Request) -> str:
            return f"{request.path_params['model']}@{request.path_params['version']}"

        def candidate(request: Request) -> str:
            return str(request.path_params["candidate"])

        return [
            ("GET", "/v1/releases", lambda r, b: self.list_releases()),
            ("POST", "/v1/releases", lambda r, b: self.add_release(b)),
            ("GET", "/v1/releases/{model}/{version}", lambda r, b: self.show_release(release(r))),
            ("POST", "/v1/releases/{model}/{version}/requests", lambda r, b: self.request_signature(release(r), b)),
            ("POST", "/v1/candidates/{candidate}", lambda r, b: self.add_signature(candidate(r), b)),
        ]

    async def add_release(self, body: dict[str, Any]) -> Answer:
        """Packs a folder of this machine; the first release of a model also has its duties delegated."""
        service = self._service
        folder = Path(text(body, "dir"))
        if not folder.is_absolute():
            raise ConfigError(f"{folder} is not an absolute path: the hub can't know what it is relative to")
        async with self._adding:
            release, bundle, is_new = await asyncio.to_thread(service.registry.add, folder, now())
        said: list[str] = []
        model = release.model
        if model not in service.authority.set.models and service.authority.may_delegate:
            said = service.authority.add_model(model, now())
        elif model not in service.authority.set.models:
            said = [
                f"model {model} has no keys in this realm yet: heliograph key rotate sign-{model} --add PUBLIC,"
                f" and so for approve-{model} and config-{model}"
            ]
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
        release = self.find(name)
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
            "sites": [
                {"site": site, "bytes_sent": count}
                for site, count in service.ledger.bytes_by_site(release.digest).items()
            ],
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
        release = self.find(name)
        self.refuse_denied(release)
        duty = text(body, "duty")
        if duty not in ("sign", "approve"):
            raise ConfigError(f"no duty {duty!r}: duties are sign and approve")
        state = self._duty(release, duty)
        if state["done"]:
            return state
        role = f"{duty}-{release.model}"
        asked = service.authority.request_signature(
            role, release.model, release.version, release.length, release.digest, now()
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
        keyid, signature = hex_of(body, "keyid", 32), hex_of(body, "signature", 64)
        if self._service.denials.held.is_key_denied(keyid):
            raise RefusedError(f"key {keyid.hex()[:16]} is denied: what it signs counts no more, use another key")
        result = self._service.authority.add_signature(candidate, keyid, signature, now())
        if result.is_published:
            self._service.denials.note_vouchers([result.path.partition("/")[0]])
            self._service.announce()
        return {"have": result.have, "need": result.need, "done": result.is_published, "said": []}

    def _duty(self, release: Release, duty: str) -> dict[str, Any]:
        authority = self._service.authority
        if release.model not in authority.set.models:
            return {"have": 0, "need": 1, "done": False}
        states = authority.duties(release.model, release.version, release.digest, now())
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
            "denied": self.denied(release),
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
