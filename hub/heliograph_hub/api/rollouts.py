"""[IO] Rollouts: a release through the rings."""

import asyncio
from typing import Any

from starlette.requests import Request

from heliograph.documents import Directive
from heliograph.errors import ConfigError, NotFoundError, RefusedError
from heliograph_hub import rollout
from heliograph_hub.api.messages import Answer, Routes, hex_of, now, optional_text, text
from heliograph_hub.api.part import Part
from heliograph_hub.registry import Release
from heliograph_hub.rollout import Action, Stop
from heliograph_hub.rollouts import Offline

ACTIONS: dict[str, Action] = {"install": "install", "hold": "hold", "return": "return"}


class Rollouts(Part):
    """What is asked about rollouts."""

    def routes(self) -> Routes:
        """Where it is asked."""

        def release(request: Request) -> str:
            return f"{request.path_params['model']}@{request.path_params['version']}"

        return [
            ("POST", "/v1/rollouts", lambda r, b: self.start_rollout(b)),
            ("GET", "/v1/rollouts/{model}/{version}", lambda r, b: self.show_rollout(release(r))),
            ("POST", "/v1/rollouts/{model}/{version}/promote", lambda r, b: self.promote_rollout(release(r), b)),
            ("POST", "/v1/rollouts/{model}/{version}/abort", lambda r, b: self.stop_rollout(release(r), "hold", b)),
            ("POST", "/v1/rollouts/{model}/{version}/return", lambda r, b: self.stop_rollout(release(r), "return", b)),
            ("POST", "/v1/rollouts/{model}/{version}/pause", lambda r, b: self.pause_rollout(release(r), b)),
            ("POST", "/v1/rollouts/{model}/{version}/resume", lambda r, b: self.resume_rollout(release(r))),
            ("POST", "/v1/rollouts/{model}/{version}/requests", lambda r, b: self.request_directive(release(r), b)),
            ("POST", "/v1/rollouts/{model}/{version}/signatures", lambda r, b: self.add_directive(release(r), b)),
        ]

    async def start_rollout(self, body: dict[str, Any]) -> Answer:
        """Signs a directive for every ring of the hub's and releases canary's."""
        service = self._service
        release = self.find(text(body, "release"))
        self.refuse_denied(release)
        await asyncio.to_thread(service.registry.check_whole, release)
        service.rollouts.start(release, now())
        service.announce()
        await asyncio.to_thread(service.workshop.request_recipes, release)
        service.workshop.wake()
        return self._rollout(release)

    async def promote_rollout(self, name: str, body: dict[str, Any]) -> Answer:
        """Releases the next ring, or every ring up to one."""
        service = self._service
        release = self.find(name)
        self.refuse_denied(release)
        await asyncio.to_thread(service.registry.check_whole, release)
        service.rollouts.promote(release, optional_text(body, "to"), now())
        service.announce()
        return self._rollout(release)

    async def stop_rollout(self, name: str, action: Stop, body: dict[str, Any]) -> Answer:
        """Aborts or returns a release, in one ring or wherever there is a directive of it."""
        service = self._service
        release = self.find(name)
        worded = service.rollouts.stop(release, action, optional_text(body, "ring"), now())
        service.announce()
        said = [] if worded else [f"{release.name} was {rollout.STOPPED[action]} there already: nothing has changed"]
        offline = service.rollouts.offline(release)
        if offline is not None and offline.row.action == action:
            said.append(
                f"ring protected is told when its offline keys have signed: "
                f"heliograph rollout request {release.name} --action {action} --out FILE"
            )
        return self._rollout(release) | {"said": said}

    async def pause_rollout(self, name: str, body: dict[str, Any]) -> Answer:
        """Has a rollout stand still."""
        service = self._service
        release = self.find(name)
        service.rollouts.pause(release, lets_running=body.get("let_running") is True, now=now())
        service.announce()
        return self._rollout(release)

    async def resume_rollout(self, name: str) -> Answer:
        """Has a rollout go on."""
        service = self._service
        release = self.find(name)
        was_paused = service.rollouts.resume(release)
        service.announce()
        return self._rollout(release) | {"said": [] if was_paused else [f"{release.name} was not paused"]}

    async def request_directive(self, name: str, body: dict[str, Any]) -> Answer:
        """Protected's directive, to be signed by its offline keys."""
        release = self.find(name)
        action = text(body, "action")
        if action not in ACTIONS:
            raise ConfigError(f"no action {action!r}: actions are {', '.join(ACTIONS)}")
        if action == "install":
            self.refuse_denied(release)
        return self._offline(release, self._service.rollouts.word(release, ACTIONS[action], now()))

    async def add_directive(self, name: str, body: dict[str, Any]) -> Answer:
        """Signatures for protected's directive; with the last one needed the ring is told before this answers."""
        service = self._service
        release = self.find(name)
        given = body.get("signatures")
        if not isinstance(given, dict) or not given:
            raise ConfigError("signatures must be a map of key ids to signatures")
        signatures = {hex_of({"keyid": keyid}, "keyid", 32): hex_of(given, keyid, 64) for keyid in given}
        payload = hex_of(body, "payload")
        document = Directive.decode(payload)
        if document.release != release.digest:
            raise RefusedError(f"the directive is of {document.release.hex()[:16]}, not of {release.name}")
        if document.action == "install":
            self.refuse_denied(release)
        denied = [keyid for keyid in signatures if service.denials.held.is_key_denied(keyid)]
        if denied:
            raise RefusedError(f"key {denied[0].hex()[:16]} is denied: what it signs counts no more, use another key")
        offline = service.rollouts.add_signatures(release.name, payload, signatures, now())
        service.announce()
        return self._offline(release, offline)

    def _offline(self, release: Release, offline: Offline) -> dict[str, Any]:
        return {
            "release": release.name,
            "ring": offline.row.ring,
            "action": offline.row.action,
            "number": offline.row.number,
            "payload": offline.payload.hex(),
            "keyids": [keyid.hex() for keyid in self._service.rollouts.offline_keyids()],
            "have": offline.have,
            "need": offline.need,
            "released": offline.have >= offline.need,
        }

    async def show_rollout(self, name: str) -> Answer:
        """Each ring's state and nodes."""
        return self._rollout(self.find(name))

    def _rollout(self, release: Release) -> dict[str, Any]:
        service = self._service
        paused = service.rollouts.paused(release)
        rows = service.desired.rows()
        try:
            rings = rollout.standings(
                rows,
                service.fleet.members(release.model, now()),
                model=release.model,
                release=release.digest,
                is_paused=paused is not None,
            )
        except NotFoundError as error:
            raise NotFoundError(f"{release.name} has no rollout: heliograph rollout start {release.name}") from error
        ends = {(row.ring, row.number): service.desired.ends(row) for row in rows if row.model == release.model}
        offline = service.rollouts.offline(release)
        asked = None if offline is None else self._offline(release, offline)
        sent = service.ledger.bytes_by_site(release.digest)
        return {
            "release": release.name,
            "digest": release.digest.hex(),
            "denied": self.denied(release),
            "paused": None if paused is None else {"let_running": paused.lets_running},
            "said": [],
            "making": self.making(release),
            "bytes_sent": sum(sent.values()),
            "sites": [{"site": site, "bytes_sent": count} for site, count in sent.items()],
            "rings": [
                {
                    "ring": ring.ring,
                    "state": ring.state,
                    "number": ring.number,
                    "expires": None if ring.number is None else ends[ring.ring, ring.number],
                    "signatures": asked if ring.ring == "protected" else None,
                    "serving": list(ring.serving),
                    "proven": list(ring.proven),
                    "refused": [{"node": node, "reason": reason} for node, reason in ring.refused],
                    "silent": list(ring.silent),
                    "under_way": list(ring.under_way),
                    "waiting": [{"node": node, "reason": reason} for node, reason in ring.waiting],
                }
                for ring in rings
            ],
        }
