"""[IO] Releases: adding, signing, approving, looking."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from heliograph.errors import ConfigError, NotFoundError, RefusedError
from heliograph.sealing import sealed_length
from heliograph_hub.api.messages import Answer, Routes, hex_of, now, text
from heliograph_hub.api.part import Part
from heliograph_hub.registry import FULL, Release, SealedWays, transfer_bytes

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
            ("POST", "/v1/releases/{model}/rekey", lambda r, b: self.rekey(str(r.path_params["model"]))),
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
        said += [
            _shares(release, name, other) for name, other in await asyncio.to_thread(service.registry.shared, release)
        ]
        service.announce()
        await asyncio.to_thread(service.workshop.request_recipes, release)
        service.workshop.request_seals([release])
        service.workshop.wake()
        return {
            "release": release.name,
            "digest": release.digest.hex(),
            "new": is_new,
            "confidential": release.confidential,
            "files": len(bundle.manifest.files),
            "bytes": sum(file.length for file in bundle.manifest.files),
            "said": said,
        }

    async def rekey(self, model: str) -> Answer:
        """A new epoch of a model: what is offered from now on is sealed by a key that was granted to nobody yet.

        Raises:
            NotFoundError: the model has no confidential release.
        """
        service = self._service
        mine = [release for release in service.registry.all() if release.model == model and release.confidential]
        if not mine:
            raise NotFoundError(f"{model} has no confidential release: heliograph release list shows what there is")
        epoch = await asyncio.to_thread(service.workshop.seals.epochs.begin, model, now())
        service.workshop.seal_again()
        return {"model": model, "epoch": epoch.number, "releases": [release.name for release in mine]}

    async def list_releases(self) -> Answer:
        """Every release, by model and version."""
        return [self._summary(release) for release in self._service.registry.all()]

    async def show_release(self, name: str) -> Answer:
        """One release: files, duties, the deltas made to it, and those that are being made."""
        service = self._service
        release = self.find(name)
        manifest = service.registry.manifest(release)
        holders = self.holders(release.model)
        deltas, by_seal = [], self._by_seal(release)
        fulls = {file.sha256: transfer_bytes(file.length) for file in manifest.files}
        if release.confidential:
            lengths = {file.sha256: file.length for file in manifest.files}
            fulls = {blob: _sealed_bytes(by_seal, FULL, blob, length) for blob, length in lengths.items()}
        for file in manifest.files:
            full = fulls[file.sha256]
            for delta in service.registry.deltas_to(file.sha256):
                cost = delta.cost_bytes
                if release.confidential:
                    lengths_of = (delta.recipe_length, delta.patch_length)
                    cost = _sealed_bytes(by_seal, delta.base, delta.target, *lengths_of)
                row = {
                    "file": file.name,
                    "base": delta.base.hex(),
                    "from": holders.get(delta.base, []),
                    "bytes": cost,
                    "full_bytes": full,
                    "offered": cost < full and not service.denials.is_recipe_denied(delta.recipe),
                    "recipe": {"sha256": delta.recipe.hex(), "length": delta.recipe_length},
                    "patch": {"sha256": delta.patch.hex(), "length": delta.patch_length},
                    "seconds": round(delta.seconds, 3),
                }
                deltas.append(row)
        files = [{"name": file.name, "length": file.length, "sha256": file.sha256.hex()} for file in manifest.files]
        return self._summary(release) | {
            "files": files,
            "full_bytes": sum(fulls.values()),
            "deltas": deltas,
            "making": self.making(release),
            "costs": self._costs(release),
            "sites": [
                {"site": site, "bytes_sent": count}
                for site, count in service.ledger.bytes_by_site(release.digest).items()
            ],
        }

    def _costs(self, release: Release) -> dict[str, int]:
        """Bytes of content that must cross the link to a node that holds another release of the model, by its name."""
        registry, by_seal = self._service.registry, self._by_seal(release)
        manifest = registry.manifest(release)
        costs = {}
        for other in registry.all():
            if other.model != release.model or other.digest == release.digest:
                continue
            cheapest: dict[bytes, int] = {}
            bases = [file.sha256 for file in registry.manifest(other).files]
            for way in registry.ways(manifest, bases, self._service.denials.is_recipe_denied, by_seal):
                cheapest[way.blob] = min(way.bytes, cheapest.get(way.blob, way.bytes))
            if {file.sha256 for file in manifest.files} <= {*bases, *cheapest}:  # else some of it is being sealed
                costs[other.name] = release.length + sum(cheapest.values())
        return costs

    def _by_seal(self, release: Release) -> SealedWays:
        """What is sealed of a confidential release's model now."""
        if not release.confidential:
            return {}
        seals = self._service.workshop.seals
        return seals.ways(release.model, seals.epochs.number(release.model))

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
            "confidential": release.confidential,
            "epoch": self._service.workshop.seals.epochs.number(release.model) if release.confidential else None,
            "files": len(manifest.files),
            "bytes": sum(file.length for file in manifest.files),
        }


def _sealed_bytes(by_seal: SealedWays, base: bytes, blob: bytes, *lengths: int) -> int:
    """What a sealed way costs; without the seal's own bytes as long as there is none."""
    found = by_seal.get((base, blob))
    return found.cost_bytes if found else sum(transfer_bytes(sealed_length(length)) for length in lengths)


def _shares(release: Release, file: str, other: Release) -> str:
    """What is said of a file that a confidential release and another share."""
    secret, public = (release, other) if release.confidential else (other, release)
    return (
        f"WARNING: {file} of confidential {secret.name} is a file of {public.name} too: whoever carries that reads it"
    )
