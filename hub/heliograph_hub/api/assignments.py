"""[IO] What operators state of sites and nodes: rings, labels, pins, relays, commands, tokens, removal."""

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request

from heliograph.documents import Assignment
from heliograph.errors import ConfigError, IntegrityError, NotFoundError, RefusedError
from heliograph.names import RINGS, check_name, parse_release
from heliograph_hub.api.messages import Answer, Routes, hex_of, now, optional_text, text, texts
from heliograph_hub.api.part import Part
from heliograph_hub.assigning import Assigned, is_time_zone
from heliograph_hub.assignment import check_relay, command_kind, label_changes
from heliograph_hub.fleet import Node

MAX_SIGNED_AT_ONCE = 200
"""Assignments in one request file: what is beyond comes with the next one."""


class Assignments(Part):
    """What is stated of nodes; each answer says which assignments changed, and which wait for protected's keys."""

    def routes(self) -> Routes:
        """Where it is asked."""

        def names(request: Request) -> tuple[str, str]:
            return request.path_params["site"], request.path_params["node"]

        return [
            ("GET", "/v1/fleet/tokens", lambda r, b: self.list_tokens()),
            ("POST", "/v1/fleet/tokens", lambda r, b: self.add_token(b)),
            ("POST", "/v1/fleet/tokens/revoke", lambda r, b: self.revoke_tokens(b)),
            ("POST", "/v1/fleet/assignments", lambda r, b: self.assign(b)),
            ("POST", "/v1/fleet/labels", lambda r, b: self.label(b)),
            ("POST", "/v1/fleet/requests", lambda r, b: self.request(b)),
            ("POST", "/v1/fleet/signatures", lambda r, b: self.add_signatures(b)),
            ("POST", "/v1/fleet/{site}/{node}/pins", lambda r, b: self.pin(*names(r), b)),
            ("POST", "/v1/fleet/{site}/{node}/relay", lambda r, b: self.relay(*names(r), b)),
            ("POST", "/v1/fleet/{site}/{node}/commands", lambda r, b: self.command(*names(r), b)),
            ("POST", "/v1/fleet/{site}/{node}/remove", lambda r, b: self.remove(*names(r))),
        ]

    # --- tokens and removal -------------------------------------------------------------------------------------------

    async def list_tokens(self) -> Answer:
        """Tokens that can still be used; what they are is not kept."""
        return [
            {"id": t.id, "site": t.site, "node": t.node, "expires": t.expires, "protected": t.protected}
            for t in self._service.enrolment.open_tokens(now())
        ]

    async def add_token(self, body: dict[str, Any]) -> Answer:
        """A join string: the one secret this API gives out."""
        site, node = check_name(text(body, "site"), "site"), check_name(text(body, "node"), "node")
        life_s, protected = body.get("life_s"), body.get("protected", False)
        if type(life_s) is not int or type(protected) is not bool:
            raise ConfigError("life_s must be a whole number of seconds, protected true or false")
        join, expires, said = self._service.add_token(site, node, life_s, protected=protected)
        taken = self._find(site, node)
        return {
            "join": join,
            "expires": expires,
            "site": site,
            "node": node,
            "protected": said,
            "replaces": taken.keyid.hex() if taken else None,
        }

    async def revoke_tokens(self, body: dict[str, Any]) -> Answer:
        """Makes a node's open tokens worthless."""
        site, node = check_name(text(body, "site"), "site"), check_name(text(body, "node"), "node")
        return {"site": site, "node": node, "revoked": self._service.enrolment.revoke_tokens(site, node)}

    async def remove(self, site: str, name: str) -> Answer:
        """Ends a node, and says what is left on the device."""
        service = self._service
        node = self._enrolled(site, name)
        service.enrolment.remove(site, name, now())
        service.distribution.forget(site, name)
        service.fleet.forget(site, name)
        service.settle()
        return {"site": site, "node": name, "key": node.keyid.hex(), "remains": self._remains(node)}

    def _remains(self, node: Node) -> list[str]:
        """What a removed device still has and does, in sentences."""
        names = self.names()
        said = node.reported
        held = {digest for report in (said.models.values() if said else ()) for digest in report.held}
        active = {
            model: names.get(report.tuple.release, report.tuple.release.hex()[:16])
            for model, report in (said.models.items() if said else ())
            if report.tuple is not None
        }
        policy = self._service.control.policy_of(node.ring)
        lines = []
        if said is None:
            lines.append("it has never reported: what it holds is not known")
        if active:
            runs = ", ".join(sorted(active.values()))
            days = policy.max_offline_s / 86400
            does = {"serve": "goes on and flags it", "fall-back": "serves its fallback", "stop": "stops"}
            lines.append(f"it serves {runs} on: after {days:g} days without the hub it {does[policy.at_max_offline]}")
        if held:
            releases = ", ".join(sorted(names.get(digest, digest.hex()[:16]) for digest in held))
            lines.append(f"files of {releases} stay on its disk")
        lines.append("its key, its records that were not sent and all files stay in its folder until that is deleted")
        lines.append("its statements are refused and counted from now on; to bring it back takes a new token")
        return lines

    # --- statements ---------------------------------------------------------------------------------------------------

    async def assign(self, body: dict[str, Any]) -> Answer:
        """Puts a site into a ring."""
        site, wanted = check_name(text(body, "site"), "site"), text(body, "ring")
        ring = next((ring for ring in RINGS if ring == wanted), None)
        if ring is None:
            raise NotFoundError(f"no ring {wanted!r}: rings are {', '.join(RINGS)}")
        return {"site": site, "ring": ring} | await self._tell(self._service.assignments.put(site, ring))

    async def label(self, body: dict[str, Any]) -> Answer:
        """Sets labels of a node or of a whole site."""
        site, node = check_name(text(body, "site"), "site"), optional_text(body, "node")
        changes = label_changes(texts(body, "labels"), is_time_zone)
        if node is not None:
            self._enrolled(site, node)
        changed = self._service.assignments.label(site, node, changes)
        labels = self._service.assignments.labels().get((site, node or ""), {})
        return {"site": site, "node": node, "labels": labels} | await self._tell(changed)

    async def pin(self, site: str, name: str, body: dict[str, Any]) -> Answer:
        """Restricts a model on a node to one version; a body with `clear` lifts that."""
        node = self._enrolled(site, name)
        said = []
        if (cleared := optional_text(body, "clear")) is not None:
            model, version = check_name(cleared, "model"), None
        else:
            model, version = parse_release(text(body, "release"))
            release = self.find(f"{model}@{version}")
            self.refuse_denied(release)
            rows = self._service.desired.rows()
            if not any(r.released and (r.ring, r.release) == (node.ring, release.digest) for r in rows):
                said.append(
                    f"no directive of ring {node.ring} names {release.name}: a pin admits nothing, so the node starts "
                    f"nothing new of {model} until one does"
                )
        changed = self._service.assignments.pin(site, name, model, version)
        return {"site": site, "node": name, "model": model, "version": version, "said": said} | await self._tell(
            changed
        )

    async def relay(self, site: str, name: str, body: dict[str, Any]) -> Answer:
        """Names the relay that a node takes content from; null: the hub."""
        self._enrolled(site, name)
        relay = optional_text(body, "relay")
        changed = self._service.assignments.relay(site, name, None if relay is None else check_relay(relay))
        return {"site": site, "node": name, "relay": relay} | await self._tell(changed)

    async def command(self, site: str, name: str, body: dict[str, Any]) -> Answer:
        """Gives a node a command, once."""
        self._enrolled(site, name)
        model = optional_text(body, "model")
        kind = command_kind(text(body, "kind"), model)
        if model is not None and model not in self._service.authority.set.models:
            raise NotFoundError(f"no model {model[:60]!r} in this realm: heliograph release list shows them")
        said = self._service.fleet.node(site, name).reported
        done = said.done if said is not None else 0
        number, changed = self._service.assignments.command(site, name, kind, model, now(), done)
        given = {"site": site, "node": name, "number": number, "kind": kind, "model": model, "new": bool(changed)}
        return given | await self._tell(changed)

    # --- ring protected -----------------------------------------------------------------------------------------------

    async def request(self, body: dict[str, Any]) -> Answer:
        """The assignments that protected's keys are to sign, of a site or of one node."""
        site, node = check_name(text(body, "site"), "site"), optional_text(body, "node")
        service = self._service
        waiting = service.assignments.proposals(site, node)
        if not waiting:
            raise NotFoundError(f"no assignment of {site}{'/' + node if node else ''} waits for protected's signatures")
        need, keys = service.authority.set.statement_keys("ring-protected")
        return {
            "site": site,
            "need": need,
            "keyids": sorted(keyid.hex() for keyid in keys if not service.denials.held.is_key_denied(keyid)),
            "more": max(0, len(waiting) - MAX_SIGNED_AT_ONCE),
            "assignments": [
                {"payload": proposal.payload.hex(), "have": len(proposal.signatures)}
                for proposal in waiting[:MAX_SIGNED_AT_ONCE]
            ],
        }

    async def add_signatures(self, body: dict[str, Any]) -> Answer:
        """Signatures for one assignment; with the last one needed it is in force, and its node is told."""
        payload, given = hex_of(body, "payload"), body.get("signatures")
        if not isinstance(given, dict) or not 0 < len(given) <= 16:
            raise ConfigError("signatures must be a map of key ids to signatures")
        signatures = {hex_of({"keyid": keyid}, "keyid", 32): hex_of(given, keyid, 64) for keyid in given}
        for keyid in signatures:
            if self._service.denials.held.is_key_denied(keyid):
                raise RefusedError(f"key {keyid.hex()[:16]} is denied: what it signs counts no more, use another key")
        try:
            document = Assignment.decode(payload)
        except IntegrityError as error:
            raise ConfigError(f"payload is no assignment: {error}") from error
        proposal, done = self._service.assignments.add_signatures(payload, signatures)
        await self._service.send_assignments([done] if done else [])
        return {
            "site": document.site,
            "node": document.node,
            "number": document.number,
            "ring": document.ring,
            "have": len(proposal.signatures),
            "need": proposal.need,
            "done": done is not None,
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _tell(self, changed: Iterable[Assigned]) -> dict[str, Any]:
        """Sends what is in force, and says what is not yet."""
        changed = list(changed)
        await self._service.send_assignments(changed)
        return {
            "nodes": [one.node for one in changed if one.proposed is None],
            "waiting": [one.node for one in changed if one.proposed is not None],
        }

    def _enrolled(self, site: str, name: str) -> Node:
        return self._service.fleet.node(check_name(site, "site"), check_name(name, "node"))

    def _find(self, site: str, name: str) -> Node | None:
        try:
            return self._enrolled(site, name)
        except (NotFoundError, RefusedError):
            return None
