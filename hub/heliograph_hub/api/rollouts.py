"""[IO] Rollouts: a release through the rings."""

from typing import Any

from starlette.requests import Request

from heliograph.errors import NotFoundError
from heliograph_hub import rollout
from heliograph_hub.api.messages import Answer, Routes, now, text
from heliograph_hub.api.part import Part
from heliograph_hub.registry import Release


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
        ]

    async def start_rollout(self, body: dict[str, Any]) -> Answer:
        """Signs a directive for every ring of the hub's and releases canary's."""
        service = self._service
        release = self.find(text(body, "release"))
        self.refuse_denied(release)
        directives = rollout.start(
            service.desired.rows(),
            realm=service.realm,
            model=release.model,
            version=release.version,
            release=release.digest,
            signed=service.authority.is_signed(release.model, release.digest),
            approved=service.authority.is_approved(release.model, release.digest),
            now=now(),
        )
        signed = [(d, service.authority.sign_statement(f"ring-{d.ring}", "directive", d)) for d in directives]
        service.desired.add(signed, frozenset({"canary"}), now())
        service.announce()
        return self._rollout(release)

    async def promote_rollout(self, name: str, body: dict[str, Any]) -> Answer:
        """Releases the next ring, or every ring up to one."""
        service = self._service
        release = self.find(name)
        self.refuse_denied(release)
        to = body.get("to")
        rows = rollout.promote(
            service.desired.rows(), model=release.model, version=release.version, release=release.digest, to=to
        )
        service.desired.release(rows, now())
        service.announce()
        return self._rollout(release)

    async def show_rollout(self, name: str) -> Answer:
        """Each ring's state and nodes."""
        return self._rollout(self.find(name))

    def _rollout(self, release: Release) -> dict[str, Any]:
        service = self._service
        try:
            rings = rollout.standings(
                service.desired.rows(),
                service.fleet.members(release.model, now()),
                model=release.model,
                release=release.digest,
            )
        except NotFoundError as error:
            raise NotFoundError(f"{release.name} has no rollout: heliograph rollout start {release.name}") from error
        return {
            "release": release.name,
            "digest": release.digest.hex(),
            "denied": self.denied(release),
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
