"""[IO] The hub's door: who brings a token becomes a node, who is one gets certificates; what each is answered.

Rule 1: what is said is committed. Nothing is sent from here: an `Answer` is, by whoever asked for it.
Rule 2: who is refused is told why, signed; but a signature is work that anybody at the door can ask for. `REFUSALS` at
    once and `REFUSALS_PER_S` after that are told; all others are only counted, and may try again.
Rule 3: a certificate is for a key that has signed a fresh challenge, and for a node's own name.

Time and tokens come from the caller.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heliograph.deadlines import DEADLINES
from heliograph.documents import Certified, Document, Enroll, Refused
from heliograph.errors import RefusedError
from heliograph.sender import Bucket
from heliograph.signing import PublicKey
from heliograph.vouching import UnknownTypeError
from heliograph.wire import pack
from heliograph_hub.access import Access
from heliograph_hub.enrolment import Enrolment
from heliograph_hub.fleet import Fleet, Node

REFUSALS = 32
"""How many are told at once why they are refused: more than people mistype, or a site's nodes are set up together."""
REFUSALS_PER_S = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to one name: a signed statement on a topic, or nothing.

    Attributes:
        topic: the name of its row.
        payload: the statement; empty: nothing is said.
        refused: why not, if it was refused; to be counted once the payload is sent.
        is_replaced: the name had another key before, which from now on counts no more.
    """

    topic: str
    payload: bytes
    refused: RefusedError | None = None
    is_replaced: bool = False


class Reception:
    """The door of one hub."""

    def __init__(
        self,
        realm: str,
        root: bytes,
        address: tuple[str, int],
        enrolment: Enrolment,
        fleet: Fleet,
        access: Access | None,
        sign: Callable[[str, Document], bytes],
    ) -> None:
        """`root` is the digest of the root that nodes begin with; `address` where they find a broker without TLS."""
        self._realm = realm
        self._root = root
        self._address = address
        self._enrolment = enrolment
        self._fleet = fleet
        self._access = access
        self._sign = sign
        self._told = Bucket(REFUSALS_PER_S, REFUSALS)

    def enroll(self, site: str, node: str, payload: bytes, now: int, now_s: float) -> Answer:
        """Enrols who brings a token for this name, committed when this returns; refuses whoever else.

        It goes to a topic that nobody who is a node already listens to. Enrolled for ring protected, it is told nothing
        yet: that ring's keys have to sign what it is to be.

        Args:
            site, node: the name.
            payload: what it said.
            now: seconds since 1970.
            now_s: seconds of a clock that only goes forward.

        Raises:
            IntegrityError: it said nothing that can be understood.
            TrustError: its key is no Ed25519 key.
        """
        request = Enroll.decode(payload)
        try:
            assigned = self._enrolment.enroll(site, node, request, now)
        except RefusedError as error:
            return Answer("refused", self._refusal(site, node, request, str(error), now_s), refused=error)
        self._fleet.forget(site, node)
        return Answer("assigned", assigned.statement, is_replaced=bool(self._enrolment.former_keys(site, node)))

    def certify(self, node: Node, name: str, payload: bytes, now: int) -> Answer:
        """A challenge for a node that asks for a certificate, the certificate for one that has signed the challenge.

        Args:
            node: who asks, by its topic.
            name: of that topic: `renew` with a certificate, `again` without.
            payload: what it said.
            now: seconds since 1970.

        Raises:
            IntegrityError, TrustError: it said nothing that can be understood, or didn't sign it.
        """
        renew = self._fleet.open_renew(node, name, payload)
        if self._access is None:
            raise UnknownTypeError("this hub's broker has no TLS: there is nothing to certify")
        who = node.site, node.node, node.keyid
        answer = Certified(realm=self._realm, site=node.site, node=node.node, key=node.keyid, nonce=renew.nonce, at=now)
        if renew.challenge is None or not self._access.is_challenge(renew.challenge, *who, now):
            answer = answer.model_copy(update={"challenge": self._access.challenge(*who, now)})
        else:
            certificate, expires = self._access.certify(node.site, node.node, node.key, node.keyid, now)
            answer = answer.model_copy(update={"certificate": certificate, "expires": expires})
        return Answer("certified", self._sign("certified", answer))

    def add_token(
        self, site: str, node: str, token: bytes, life_s: int, now: int, *, protected: bool = False
    ) -> tuple[str, int, bool]:
        """The join string for one node, good once, when it expires, and whether it says protected.

        Raises:
            RefusedError: it would live longer than tokens may, or the node has too many.
        """
        if not 0 < life_s <= DEADLINES.token_s:
            raise RefusedError(f"a token lives at most {DEADLINES.token_s / 86400:g} days, asked were {life_s} s")
        said = self._enrolment.add_token(site, node, token, now, life_s, protected=protected)
        return self.join_string(site, node, token, protected=said), now + life_s, said

    def join_string(self, site: str, node: str, token: bytes, *, protected: bool = False) -> str:
        """Everything a new node needs, to be pasted: hub address, root digest, names, and the secret token."""
        fields: list[Any] = [1, *self._address, self._realm, site, node, token, self._root, None]
        if self._access is not None:
            port = self._address[1]
            fields = [2, self._access.host, port, *fields[3:8], self._access.pin, self._access.enroll_port]
        fields += [True] * protected
        return "heliograph1:" + base64.urlsafe_b64encode(pack(fields)).decode().rstrip("=")

    def _refusal(self, site: str, node: str, request: Enroll, why: str, now_s: float) -> bytes:
        """The signed reason, or nothing once too many were told."""
        if self._told.ready_at(now_s) > now_s:
            return b""
        self._told.take(1)
        key = PublicKey(request.key).keyid
        refused = Refused(realm=self._realm, site=site, node=node, key=key, nonce=request.nonce, reason=why)
        return self._sign("refused", refused)
