"""[IO] What a hub announces: what the broker is to retain, in which order, until it is there.

Rule 1: everything announced is a function of what is committed, so that a hub that was killed announces the same again.
Rule 2: retained messages are hints. They are published again whenever the link to the broker comes up, because the
    broker may have come back empty.
Rule 3: denials go before everything, even if nothing can be signed here any more. Then what others hang on: roots,
    policies, configs and lists, the set that names them, the head.
Rule 4: what other keys than before sign comes after the set that names those keys; whoever sends such a thing waits for
    `is_named`.
"""

import asyncio
import logging
from collections.abc import Mapping

from heliograph.blob import sha256
from heliograph.documents import Heads
from heliograph.errors import TransportError
from heliograph.mqtt import Mqtt
from heliograph.names import Ring
from heliograph.protocol import topic
from heliograph_hub.authority import Authority
from heliograph_hub.control import Control
from heliograph_hub.denial import Denials
from heliograph_hub.desired import Desired

log = logging.getLogger("heliograph.hub")

PUBLISH_AGAIN_S = 5.0


class Announcing:
    """What one hub has retained.

    Attributes:
        retained: payload by topic, in the order in which it is published.
        is_named: not set while other keys are in force and the set that names them is not published yet.
    """

    def __init__(self, authority: Authority, denials: Denials, desired: Desired, control: Control) -> None:
        self._authority, self._denials, self._desired, self._control = authority, denials, desired, control
        self._realm = authority.realm
        self.retained: dict[str, bytes] = {}
        self.is_named = asyncio.Event()
        self.is_named.set()
        self._named_by = (0, 0)
        """Versions of root and targets, which name the keys, as of the set that was announced last."""
        self._published: dict[str, bytes] = {}
        self._to_publish = asyncio.Event()

    def announce(self, now: int) -> None:
        """Signs what changed and has it published.

        Args:
            now: seconds since 1970.

        Raises:
            RefusedError, TrustError: nothing can be signed anew; denials are announced all the same.
        """
        deny = self._announce_denials()
        lists = self._desired.lists()
        policy, config = self._control.heads()
        directives: dict[Ring, bytes] = {ring: sha256(payload) for ring, payload in lists.items()}
        heads = Heads(deny=self._denials.head, policy=policy, config=config, directives=directives)
        self._retain(deny, lists, self._authority.publish_set(now, heads))

    def announce_as_signed(self) -> None:
        """Has published what was signed before, and denials, where nothing can be signed anew."""
        self._retain(self._announce_denials(), self._desired.lists(), self._authority.published())

    def link(self, is_up: bool) -> None:
        """The link to the broker came or went: what the broker holds is not known any more."""
        self._published.clear()
        if is_up:
            self._to_publish.set()

    async def publish_retained(self, mqtt: Mqtt) -> None:
        """Publishes what is retained and not yet known to be at the broker, for ever."""
        while True:
            await self._to_publish.wait()
            self._to_publish.clear()
            for full, payload in list(self.retained.items()):
                if self._published.get(full) == payload or not mqtt.connected:
                    continue
                try:
                    await mqtt.publish(full, payload, qos=1, retain=True)
                    self._published[full] = payload
                except TransportError as error:
                    log.warning("%s is not retained yet: %s", full, error)
                    asyncio.get_running_loop().call_later(PUBLISH_AGAIN_S, self._to_publish.set)
                    break
            if not self._to_publish.is_set():
                self.is_named.set()  # also without a link: nodes ask for the set when it is back

    def _announce_denials(self) -> dict[str, bytes]:
        """Has denials published, whatever comes of all else; by topic, none before the first denial."""
        denied = self._denials.announced()
        deny = {topic("deny").build(self._realm): denied} if denied is not None else {}
        self.retained = deny | self.retained | deny
        self._to_publish.set()
        return deny

    def _retain(self, deny: dict[str, bytes], lists: Mapping[Ring, bytes], signed: Mapping[str, bytes]) -> None:
        """Puts what is signed in order behind the denials.

        A set that names other keys than the one before goes in front of the lists, which those sign. Any other doesn't:
        nodes would see that they lack a list, and ask for what is on its way.
        """
        desired = {topic("desired").build(self._realm, ring=ring): payload for ring, payload in lists.items()}
        roots = {full: payload for full, payload in signed.items() if "/tuf/root/" in full}
        last = {topic(name).build(self._realm): signed[topic(name).build(self._realm)] for name in ("set", "head")}
        versions = self._authority.set.versions
        named_by = versions["root"], versions["targets"]
        first = {full: last[full] for full in last if named_by != self._named_by and full.endswith("/tuf/set")}
        if first and any(self._named_by):
            self.is_named.clear()
        self._named_by = named_by
        self.retained = deny | roots | first | self._control.announced() | desired | last
