"""[IO] Policies and configs: what a new one would do, signing and publishing it, who has not taken it."""

import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from heliograph.documents import Tuple
from heliograph.errors import ConfigError, HeliographError, NotFoundError
from heliograph.names import RINGS, Digest, Ring
from heliograph.policy import Config, Policy, config_from_table, no_config, no_policy, policy_from_table
from heliograph.toml import parse_toml
from heliograph.tuples import HeldRelease, release_from_manifest
from heliograph_hub.api.messages import Answer, Routes, hex_of, now, text
from heliograph_hub.api.part import Part
from heliograph_hub.control import KINDS, Stored, check_scope
from heliograph_hub.rollout import in_force
from heliograph_hub.simulation import Effect, Install, Seen, World, missing, simulate


class Documents(Part):
    """What is asked about policies and configs."""

    def routes(self) -> Routes:
        """Where it is asked."""

        def named(request: Request, name: str) -> str:
            return str(request.path_params[name])

        def number(request: Request) -> int | None:
            return int(request.path_params["number"]) if "number" in request.path_params else None

        one = "/v1/documents/{kind}/{scope}"
        return [
            ("GET", "/v1/documents/{kind}", lambda r, b: self.list_documents(named(r, "kind"))),
            ("GET", one, lambda r, b: self.show_document(named(r, "kind"), named(r, "scope"), number(r))),
            (
                "GET",
                one + "/{number:int}",
                lambda r, b: self.show_document(named(r, "kind"), named(r, "scope"), number(r)),
            ),
            ("GET", "/v1/convergence/{ring}", lambda r, b: self.show_missing(named(r, "ring"))),
            ("POST", "/v1/documents/requests", lambda r, b: self.request_document(b)),
            ("POST", "/v1/documents", lambda r, b: self.add_document(b)),
        ]

    async def list_documents(self, kind: str) -> Answer:
        """Every document of a kind, by ring or model and number."""
        if kind not in KINDS:
            raise NotFoundError(f"no documents of kind {kind[:40]!r}: kinds are {', '.join(KINDS)}")
        return [self._summary(stored) for stored in self._service.control.all(kind)]

    async def show_document(self, kind: str, scope: str, number: int | None) -> Answer:
        """One document with its content; without a number, the one that nodes are told."""
        scope = check_scope(kind, scope)
        control = self._service.control
        if kind == "config" and scope not in self._service.authority.set.models:
            raise NotFoundError(
                f"no model {scope!r} in this realm: heliograph release add DIR brings its first release"
            )
        newest = control.newest("policy" if kind == "policy" else "config").get(scope)
        if number or newest is not None:
            stored = control.find(kind, scope, number) if number else newest
            assert stored is not None  # one of the two
            return self._summary(stored) | {"content": _content(stored.document)}
        realm = self._service.realm
        ring = next((ring for ring in RINGS if ring == scope), None)
        nothing = no_policy(realm, ring) if kind == "policy" and ring is not None else no_config(realm, scope)
        return {"kind": kind, "scope": scope, "number": 0, "state": "none", "content": _content(nothing)}

    async def show_missing(self, wanted: str) -> Answer:
        """Who has not acknowledged a ring's policy with immediate items."""
        scope = check_scope("policy", wanted)
        newest = self._service.control.newest("policy").get(scope)
        if newest is None:
            return {"ring": scope, "number": 0, "immediate": [], "missing": []}
        assert isinstance(newest.document, Policy)
        rows = missing(newest.document, self._seen(), now())
        return {
            "ring": scope,
            "number": newest.number,
            "immediate": [
                {"item": item.item, "until": newest.document.at + item.converge_s} for item in newest.document.immediate
            ],
            "missing": [asdict(row) for row in rows],
        }

    async def request_document(self, body: dict[str, Any]) -> Answer:
        """What an operator's file would do to the fleet, and the payload to be signed; nothing is stored."""
        service = self._service
        document, warnings = self._read(text(body, "kind"), text(body, "text"))
        stored = service.control.draft(document, now(), self._reported(document))
        # Reads manifests and asks for every node: in a thread, so that chunks go on meanwhile.
        effects = [] if stored.counts else await asyncio.to_thread(self._simulate, stored.document)
        names = self.names()
        return self._summary(stored) | {
            "new": stored.published_at is None and stored.have == 0,
            "unchanged": stored.counts,
            "warnings": warnings,
            "effects": [_effect(effect, names) for effect in effects],
            "payload": stored.payload.hex(),
            "keyids": sorted(keyid.hex() for keyid in service.control.keyids(stored.kind, stored.scope)),
        }

    async def add_document(self, body: dict[str, Any]) -> Answer:
        """Signatures for a document, or none: then the hub signs with the keys it holds.

        When they are enough, it is announced before this answers.
        """
        service = self._service
        kind, payload = text(body, "kind"), hex_of(body, "payload")
        given = body.get("signatures")
        if not isinstance(given, dict):
            raise ConfigError("signatures must be a map of key ids to signatures")
        if kind not in KINDS:
            raise NotFoundError(f"no documents of kind {kind[:40]!r}: kinds are {', '.join(KINDS)}")
        document = KINDS[kind].decode(payload)
        signatures = {hex_of({"keyid": keyid}, "keyid", 32): hex_of(given, keyid, 64) for keyid in given}
        if not signatures:
            signatures = service.control.sign_here(kind, payload)
        stored = service.control.add(kind, payload, signatures, now(), self._reported(document))
        said = []
        if stored.counts:
            try:
                service.announce()
            except HeliographError as error:
                said.append(
                    f"{stored.name} is published, but the timestamp that is to name it can't be signed: {error}"
                )
        return self._summary(stored) | {"said": said}

    # --- inside -----------------------------------------------------------------------------------------------------

    def _read(self, kind: str, source: str) -> tuple[Policy | Config, list[str]]:
        """An operator's file, judged by itself and by what this realm has."""
        if kind not in KINDS:
            raise NotFoundError(f"no documents of kind {kind[:40]!r}: kinds are {', '.join(KINDS)}")
        table = parse_toml(source, kind)
        if kind == "config":
            config = config_from_table(table, realm=self._service.realm, number=0, at=0)
            return config, []
        policy = policy_from_table(table, realm=self._service.realm, number=0, at=0)
        return policy, list(self._check_models(policy))

    def _check_models(self, policy: Policy) -> Iterable[str]:
        """What is said of models and versions that this realm has not got."""
        known: dict[str, set[str]] = {model: set() for model in self._service.authority.set.models}
        for release in self._service.registry.all():
            known.setdefault(release.model, set()).add(release.version)
        for model, rules in policy.models.items():
            if model not in known:
                yield f"policy field models.{model}: this realm has no model {model} yet"
                continue
            floor = [rules.floor] if rules.floor is not None else []
            for field, versions in (("compatible", rules.compatible), ("security", rules.security), ("floor", floor)):
                for version in versions:
                    if version not in known[model]:
                        yield f"policy field models.{model}.{field}: this realm has no release {model}@{version} yet"

    def _simulate(self, document: Policy | Config) -> list[Effect]:
        return simulate(document, self._seen(), self._world(), now())

    def _seen(self) -> list[Seen]:
        return [
            Seen(f"{node.site}/{node.node}", node.ring, node.reported, not node.is_up(now()))
            for node in self._service.fleet.nodes()
        ]

    def _world(self) -> World:
        registry, control = self._service.registry, self._service.control
        published = [stored for stored in control.all() if stored.published_at is not None]
        policies: dict[Ring, dict[int, Policy]] = {ring: {} for ring in RINGS}
        configs: dict[str, dict[int, Config]] = {}
        for stored in published:
            if isinstance(stored.document, Policy):
                policies[stored.document.ring][stored.number] = stored.document
            else:
                configs.setdefault(stored.scope, {})[stored.number] = stored.document
        rows = self._service.desired.rows()
        at = self._service.desired.released_at()
        directed = {
            ring: {
                model: Install(row.release, row.number, at[row.ring, row.model, row.number])
                for model, row in models.items()
                if row.action == "install"
            }
            for ring, models in in_force(rows).items()
        }
        names = {r.digest: r for r in registry.all()}
        known: dict[Ring, dict[str, tuple[str, ...]]] = {ring: {} for ring in RINGS}
        for row in rows:
            release = names.get(Digest(row.release))
            if row.released and row.action == "install" and release is not None and self.denied(release) is None:
                known[row.ring][row.model] = (*known[row.ring].get(row.model, ()), release.version)
        releases: dict[bytes, HeldRelease] = {
            digest: release_from_manifest(registry.manifest(release), digest) for digest, release in names.items()
        }
        return World(releases, directed, known, policies, configs)

    def _reported(self, document: Policy | Config) -> int:
        """The highest number of this ring's policy, or this model's config, that nodes said they have."""
        numbers = [0]
        for node in self._service.fleet.nodes():
            if node.reported is None:
                continue
            models = node.reported.models.items()
            if isinstance(document, Config):
                numbers += [report.tuple.config for name, report in models if name == document.model and report.tuple]
            elif node.reported.ring == document.ring:
                numbers += [node.reported.policy, *(report.tuple.policy for _, report in models if report.tuple)]
        return max(numbers)

    def _summary(self, stored: Stored) -> dict[str, Any]:
        newest = self._service.control.newest(stored.kind).get(stored.scope)
        if stored.published_at is None:
            state = "waiting" if stored.have else "new"
        elif not stored.counts:
            state = "unsigned"
        else:
            state = "in force" if newest is not None and newest.number == stored.number else "superseded"
        return {
            "kind": stored.kind,
            "scope": stored.scope,
            "number": stored.number,
            "at": stored.document.at,
            "state": state,
            "have": stored.have,
            "need": stored.need,
            "published_at": stored.published_at,
        }


def _content(document: Policy | Config) -> dict[str, Any]:
    """What an operator's file says: fields that are at their default are left out."""
    return document.model_dump(mode="json", exclude_defaults=True, exclude={"realm", "number", "at"})


def _effect(effect: Effect, names: dict[bytes, str]) -> dict[str, Any]:
    def shown(value: Tuple | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return {
            "release": names.get(value.release),
            "digest": value.release.hex(),
            "config": value.config,
            "policy": value.policy,
        }

    return {
        "node": effect.node,
        "ring": effect.ring,
        "model": effect.model,
        "silent": effect.is_silent,
        "before": shown(effect.before),
        "after": shown(effect.after),
        "state": effect.state,
        "until": effect.until,
        "finally": effect.finally_,
        "loses_service": effect.loses_service,
        "why": list(effect.why),
    }
