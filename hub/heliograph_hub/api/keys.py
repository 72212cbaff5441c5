"""[IO] Keys: whose count, changing them, what offline keys are asked to sign, what ends soon, who did what."""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from heliograph.errors import ConfigError, TrustError
from heliograph.signing import PublicKey
from heliograph.statement import parse
from heliograph_hub import request as carried
from heliograph_hub.api.messages import Answer, Routes, hex_of, now, number, text, texts
from heliograph_hub.api.part import Part
from heliograph_hub.ceremony import LIFE_S
from heliograph_hub.request import Ask, Group
from heliograph_hub.rollouts import Offline

MAX_LOG = 1000
DUE_SHARE = 3
"""Due is what has less than this part, one third, of its life left."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Something signed that ends: after `life_s` from its signing, or never if that is None and it only lacks keys."""

    what: str
    expires: int
    life_s: int
    remedy: str

    def is_due(self, at: int) -> bool:
        """Whether less than a third of its life is left."""
        return (self.expires - at) * DUE_SHARE < self.life_s


class Keys(Part):
    """What is asked about keys."""

    def routes(self) -> Routes:
        """Where it is asked."""
        return [
            ("GET", "/v1/keys/due", lambda r, b: self.list_due()),
            ("GET", "/v1/keys/log", lambda r, b: self.list_log(r)),
            ("GET", "/v1/keys/requests", lambda r, b: self.list_asks()),
            ("POST", "/v1/keys/rotations", lambda r, b: self.rotate(b)),
            ("POST", "/v1/keys/rotations/drop", lambda r, b: self.drop()),
            ("POST", "/v1/keys/signatures", lambda r, b: self.add_signatures(b)),
        ]

    async def list_due(self) -> Answer:
        """What is signed and ends, and whether that is soon; then what lacks signatures of keys in force."""
        at = now()
        rows: list[dict[str, Any]] = [
            {
                "what": ending.what,
                "expires": ending.expires,
                "left_s": ending.expires - at,
                "due": ending.is_due(at),
                "remedy": ending.remedy,
            }
            for ending in self._endings()
        ]
        rows += [
            {
                "what": f"{ask.name} lacks {ask.lacks} signatures of {ask.role}",
                "expires": None,
                "left_s": None,
                "due": True,
                "remedy": "heliograph hub sign-request --out FILE",
            }
            for ask in self._asks()
        ]
        return sorted(rows, key=lambda row: (not row["due"], row["expires"] or 0))

    async def list_log(self, request: Request) -> Answer:
        """The newest acts, newest first."""
        limit = number(request, "limit", 100, MAX_LOG)
        before = number(request, "before", 0, (1 << 63) - 1) if "before" in request.query_params else None
        return [
            {"number": d.number, "at": d.at, "who": d.who, "what": d.what, "keyids": [k.hex() for k in d.keyids]}
            for d in self._service.duties.newest(limit, before)
        ]

    async def list_asks(self) -> Answer:
        """All that waits for signatures of keys which aren't here, as the file that carries it has it."""
        return [carried.to_plain(ask) for ask in self._asks()]

    async def rotate(self, body: dict[str, Any]) -> Answer:
        """Words the next root or targets in which a role has other keys."""
        role, threshold = text(body, "role"), body.get("threshold")
        if threshold is not None and (not isinstance(threshold, int) or isinstance(threshold, bool)):
            raise ConfigError("threshold is not a number")
        add = [PublicKey(hex_of({"add": one}, "add")) for one in texts(body, "add")]
        remove = [self._keyid_of(role, one) for one in texts(body, "remove")]
        said = self._service.rotation.propose(role, add, remove, threshold, now())
        asks = [carried.to_plain(ask) for ask in self._service.rotation.asks()]
        return {"role": role, "said": said, "asks": asks, "added": [key.keyid.hex()[:16] for key in add]}

    async def drop(self) -> Answer:
        """Forgets a change that waits for signatures."""
        return {"dropped": self._service.rotation.drop()}

    async def add_signatures(self, body: dict[str, Any]) -> Answer:
        """Signatures of a change of keys, or of a directive of protected that is in force."""
        service = self._service
        name, given = text(body, "name"), body.get("signatures")
        if not isinstance(given, dict) or not given:
            raise ConfigError("signatures must be a map of key ids to signatures")
        signatures = {hex_of({"keyid": keyid}, "keyid", 32): hex_of(given, keyid, 64) for keyid in given}
        if body.get("kind") == "directive":
            offline = service.rollouts.add_again(hex_of(body, "content"), signatures)
            service.announce()
            name = _directive_name(offline)
            return {"name": name, "lacks": max(0, offline.need - offline.have), "published": True, "said": []}
        published = service.rotation.add(name, signatures, now())
        said = []
        if published:
            service.denials.note_vouchers(service.authority.set.models)
            service.sign_again()  # a node that lacks its assignment says so once it knows the keys, and is sent it
            service.announce()
            said = [f"{ask.name} lacks {ask.lacks} signatures of {ask.role}" for ask in self._asks()]
        lacks = {ask.name: ask.lacks for ask in service.rotation.asks()}
        return {"name": name, "lacks": lacks.get(name, 0), "published": published, "said": said}

    # --- inside -----------------------------------------------------------------------------------------------------

    def _keyid_of(self, role: str, name: str) -> bytes:
        try:
            known = list(self._service.authority.set.role_keys(role)[1])
        except TrustError:
            known = []
        found = [keyid for keyid in known if keyid.hex().startswith(name.lower())]
        if len(name) < 8 or len(found) != 1:
            raise ConfigError(f"{name[:64]!r} names no single key of {role}: heliograph key list shows them")
        return found[0]

    def _asks(self) -> list[Ask]:
        """Root, targets, duties; then statements whose keys were rotated out, or that wait for a first signature."""
        service = self._service
        asks = service.rotation.asks()
        for standing in service.denials.standings():
            signatures = service.denials.signatures(standing)
            need = standing.need if standing.in_force_at is None else max(standing.need, min(2, len(signatures)))
            keyids = service.denials.keyids(standing.type)
            group = Group(min(need, len(keyids)), frozenset(keyids))
            good = {keyid: sig for keyid, sig in signatures.items() if keyid in keyids}
            name = f"{standing.type} {standing.digest.hex()[:16]}"
            asks.append(Ask(standing.type, standing.type, name, standing.payload, (group,), good))
        newest: dict[tuple[str, str], Ask] = {}
        for stored in service.control.all():
            group = Group(stored.need, service.control.keyids(stored.kind, stored.scope))
            good = {k: s for k, s in parse(stored.statement).signatures if k in group.keyids}
            role = "policy" if stored.kind == "policy" else f"config-{stored.scope}"
            newest[stored.kind, stored.scope] = Ask(role, stored.kind, stored.name, stored.payload, (group,), good)
        asks += newest.values()
        keys = frozenset(service.rollouts.offline_keyids())
        for offline, held in service.rollouts.unsigned():
            groups = (Group(offline.need, keys),)
            asks.append(Ask("ring-protected", "directive", _directive_name(offline), offline.payload, groups, held))
        return [ask for ask in asks if ask.lacks]

    def _endings(self) -> list[Ending]:
        service = self._service
        trusted = service.authority.set
        found = []
        for role, expires in trusted.expiries().items():
            kind = role if role in LIFE_S else "duty"
            is_online = role in ("timestamp", "snapshot")
            remedy = "heliograph hub run signs it daily" if is_online else f"heliograph key rotate {role}"
            found.append(Ending(f"{role} {trusted.versions[role]}", expires, LIFE_S[kind], remedy))
        for row in service.rollouts.told():
            if row.action == "install":
                signed_at, ends = service.desired.life(row)
                remedy = "heliograph rollout request" if row.ring == "protected" else "heliograph hub run renews it"
                what = f"directive {row.ring}/{row.model} {row.number}"
                found.append(Ending(what, ends, ends - signed_at, remedy))
        return found


def _directive_name(offline: Offline) -> str:
    return f"directive protected/{offline.row.model} {offline.row.number}"
