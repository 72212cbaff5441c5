"""[IO] The realm: what this hub is, and whose keys count."""

from heliograph_hub.api.messages import Answer, Routes, link, now
from heliograph_hub.api.part import Part


class Realm(Part):
    """What is asked about the hub itself and its keys."""

    def routes(self) -> Routes:
        """Where it is asked."""
        return [
            ("GET", "/v1/hub", lambda r, b: self.show_hub()),
            ("GET", "/v1/keys", lambda r, b: self.list_keys()),
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
