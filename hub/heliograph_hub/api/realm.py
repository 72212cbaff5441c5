"""[IO] The realm: what this hub is, and whose keys count."""

import secrets
from typing import Any

from heliograph_hub.api.messages import Answer, Routes, link, now, text
from heliograph_hub.api.part import Part


class Realm(Part):
    """What is asked about the hub itself and its keys."""

    def routes(self) -> Routes:
        """Where it is asked."""
        return [
            ("GET", "/v1/hub", lambda r, b: self.show_hub()),
            ("GET", "/v1/keys", lambda r, b: self.list_keys()),
            ("POST", "/v1/tokens", lambda r, b: self.add_token(b)),
        ]

    async def show_hub(self) -> Answer:
        """What this hub is."""
        service = self._service
        trusted = service.authority.set
        return {
            "realm": service.realm,
            "kind": trusted.kind,
            "broker": {"host": service.mqtt.broker.host, "port": service.port, "link": link(service.mqtt.connected)},
            "versions": trusted.versions,
            "expired": list(trusted.expired(now())),
            "deny": {"count": service.denials.head.count, "digest": service.denials.head.digest.hex()},
            "not_counted": service.fleet.uncounted(),
            "content_bytes_sent": service.distribution.content_bytes.total(),
        }

    async def add_token(self, body: dict[str, Any]) -> Answer:
        """A token for a role; only the hub's owner can ask for one."""
        token, expires = self._service.operators.add(text(body, "role"), now(), secrets.token_bytes(32))
        return {"token": token, "expires": expires}

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
