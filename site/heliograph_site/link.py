"""The node's side of the line: one connection to the broker, hello until it is replied to, asks and their offers.

What comes in is given to whoever listens (`Listener`) and judged there; what goes out is built from the topic table.

Rule 1: one connection at a time, made anew when the ring changes, since the ring's topic does.
Rule 2: hello is said on every connect, at check-in, when asked to, and ever more slowly while no reply comes.
Rule 3: where the broker has TLS, the certificate is renewed in time over this connection; if it has ended, or the
    broker lets us in no more, at the door for new nodes, by the node's key. Every day the connection is made anew.
Rule 4: an ask ends with its offer, with its time, or with the link; a late offer finds nobody.
Rule 5: what the broker refuses is sent ever more seldom, whoever wants it sent, until the broker takes it or the
    connection is another. Each topic by itself: one that is refused keeps back no other.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Protocol

from heliograph.connection import Broker, Timing, UnwelcomeError
from heliograph.deadlines import Deadlines
from heliograph.documents import Ask, Certified, Document, Hello, Offer, Reply, Want
from heliograph.errors import HeliographError, TransportError, TrustError
from heliograph.mosquitto import CLIENT_PREFIX
from heliograph.mqtt import Mqtt
from heliograph.names import Ring
from heliograph.protocol import topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph_site.folder import NodeFile
from heliograph_site.identity import Credentials
from heliograph_site.renewal import Renewal

log = logging.getLogger("heliograph.agent")

DOWN_KINDS = ("assigned", "offer", "receipt", "reply", "certified")
LOOK_S = 3600.0
"""How often it is looked whether the certificate is to be renewed."""
_EARLIER_HELLOS = 8
"""So many hellos before the last one may still be replied to."""
FIRST_DOOR_S, LONGEST_DOOR_S = 1.0, 600.0
"""Bounds of the back-off between two tries at the door."""
FIRST_REFUSED_S, LONGEST_REFUSED_S = 1.0, 600.0
"""Bounds of the back-off of what the broker refuses."""


class Listener(Protocol):
    """Who hears what comes, and knows what to say."""

    @property
    def ring(self) -> Ring | None:
        """The ring whose directives and policy are heard; None before the assignment."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose configs are heard."""

    async def on_message(self, full: str, payload: bytes, retained: bool) -> None:
        """A message; acknowledged when this returns."""

    async def on_link(self, is_up: bool) -> None:
        """The link came or went; `on_change` is to be called in its turn."""

    async def on_cut(self) -> None:
        """This connection is over, whatever it last said of itself."""

    def hello(self, nonce: bytes) -> Hello:
        """What to say now."""

    def greeted(self) -> None:
        """Hello was sent."""


class Refusals:
    """What the broker refuses, by the name of its topic, and how long each is to wait. Bounded by the topics there are.

    Times are seconds of a clock that only goes forward.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._tries: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        """Of each topic refused, why it was the last time; kept from one connection to the next."""

    def wait_s(self, name: str, now: float) -> float:
        """How long to wait before the next try; not above 0: none."""
        return self._until.get(name, now) - now

    def begin(self, name: str, now: float) -> None:
        """A try begins: if others failed before it, the next one waits again."""
        if name in self._tries:
            bound = min(LONGEST_REFUSED_S, FIRST_REFUSED_S * 2.0 ** min(self._tries[name], 16))
            self._until[name] = now + self._rng.uniform(bound / 2, bound)

    def refused(self, name: str, reason: str, now: float) -> bool:
        """The try failed; returns whether this reason is another than the last one."""
        self._tries.setdefault(name, 0)
        self.begin(name, now)
        self._tries[name] += 1
        is_new = self.reasons.get(name) != reason
        self.reasons[name] = reason
        return is_new

    def taken(self, name: str) -> bool:
        """The broker took one; returns whether it had refused others."""
        self._tries.pop(name, None)
        self._until.pop(name, None)
        return self.reasons.pop(name, None) is not None

    def clear(self) -> None:
        """The connection is another: nothing waits any longer."""
        self._tries.clear()
        self._until.clear()


class Link:
    """One node's connection, and the questions that wait for answers on it.

    Attributes:
        run_id: this start of the agent.
        nonce: of the hello that waits for its reply; None if none does.
    """

    def __init__(
        self,
        file: NodeFile,
        key: PrivateKey,
        listener: Listener,
        run_id: bytes,
        received_before: int,
        rng: Random,
        deadlines: Deadlines,
        timing: Timing | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """`received_before`: MQTT payload bytes of earlier lives. No `credentials`: the broker has no TLS."""
        self.run_id = run_id
        self.nonce: bytes | None = None
        self._earlier: deque[bytes] = deque(maxlen=_EARLIER_HELLOS)
        self._file, self._key, self._listener = file, key, listener
        self._names = {"site": file.site, "node": file.node}
        self._rng, self._deadlines, self._timing = rng, deadlines, timing
        self._received_before = received_before
        self._credentials = credentials
        self._renewal = Renewal(file.realm, file.site, file.node, key)
        self._door_tries = 0
        self._mqtt: Mqtt | None = None
        self._up = asyncio.Event()
        self._refusals = Refusals(rng)
        self._taken = asyncio.Event()
        self._renew = asyncio.Event()
        self._hello_now = asyncio.Event()
        self._unanswered = 0
        self._asks: dict[int, tuple[asyncio.Future[Offer], float]] = {}
        self._asked = 0

    @property
    def is_up(self) -> bool:
        """Whether there is a link to the broker."""
        return self._mqtt is not None and self._mqtt.connected

    @property
    def bytes_received(self) -> int:
        """MQTT payload bytes since the node was enrolled."""
        return self._received_before + (self._mqtt.bytes_received if self._mqtt else 0)

    async def run(self) -> None:
        """Keeps one connection."""
        while True:
            if self._credentials is not None and self._credentials.is_over:
                await self._at_the_door(self._credentials)
                continue
            self._renew.clear()
            realm, names = self._file.realm, self._names
            filters = [(topic(name).filter(realm), topic(name).qos) for name in ("deny", "root", "set", "head")]
            if self._listener.ring is not None:
                filters += [(topic(name).filter(realm, ring=self._listener.ring), 1) for name in ("policy", "desired")]
            filters += [self._config(model) for model in self._listener.models]
            filters += [(topic(name).filter(realm, **names), topic(name).qos) for name in (*DOWN_KINDS, "chunk")]
            user = f"{self._file.site}/{self._file.node}"
            broker = Broker(self._file.host, self._file.port, user)
            tls = self._credentials.tls() if self._credentials is not None else None
            if tls is not None:
                broker = Broker(self._file.host, self._file.port, tls=tls)
                user = CLIENT_PREFIX + user  # the broker takes the certificate's name instead
            mqtt = Mqtt(
                broker,
                user,
                filters,
                self._rng,
                self._listener.on_message,
                self._listener.on_link,
                will=(topic("gone").build(realm, **names), b""),
                timing=self._timing,
            )
            self._mqtt = mqtt
            running = asyncio.ensure_future(mqtt.run())
            try:
                changed = asyncio.ensure_future(self._renew.wait())
                turned_away = asyncio.ensure_future(mqtt.turned_away.wait())
                await asyncio.wait(
                    {running, changed, turned_away},
                    timeout=None if tls is None else self._deadlines.session_s * self._rng.uniform(0.8, 1.0),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                changed.cancel()
                turned_away.cancel()
                if running.done():
                    running.result()
            finally:
                running.cancel()
                await asyncio.wait({running})
                self._received_before, self._mqtt = self.bytes_received, None
                await self._listener.on_cut()
            if self._credentials is not None and mqtt.turned_away.is_set():
                await self._at_the_door(self._credentials)

    # --- certificates -------------------------------------------------------------------------------------------------

    async def keep_certified(self) -> None:
        """Has the certificate renewed in time, for ever; what got lost on the way is asked again, ever more seldom."""
        lost = 0
        while self._credentials is not None and self._credentials.has_tls:
            pause_s = LOOK_S
            if self._credentials.is_due:
                await self._up.wait()
                try:
                    self._credentials.keep(
                        await self._renewal.run(lambda data: self.publish("renew", data), self._deadlines.reply_s)
                    )
                    log.info("certificate renewed until %d", self._credentials.expires)
                    lost = 0
                except HeliographError as error:
                    log.info("certificate not renewed yet: %s", error)
                    pause_s = min(LOOK_S, self._deadlines.reply_s * 2.0 ** min(lost, 16))
                    lost += 1
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))

    def on_certified(self, certified: Certified) -> None:
        """The hub's answer to the question for a certificate."""
        self._renewal.take(certified)

    async def _at_the_door(self, credentials: Credentials) -> None:
        """One try to get a certificate where new nodes come in; then a while, ever longer until one is given."""
        realm, names, user = self._file.realm, self._names, f"{self._file.site}/{self._file.node}"
        inside = asyncio.Event()

        async def on_link(is_up: bool) -> None:
            if is_up:
                inside.set()

        # The realm's keys may have changed while we slept: metadata is heard here too.
        filters = [(topic(name).filter(realm), topic(name).qos) for name in ("root", "set", "head")]
        filters.append((topic("certified").filter(realm, **names), topic("certified").qos))
        mqtt = Mqtt(
            Broker(self._file.host, self._file.enroll_port, user, tls=credentials.tls_at_the_door()),
            f"{CLIENT_PREFIX}{user}/{os.urandom(8).hex()}",
            filters,
            self._rng,
            self._listener.on_message,
            on_link,
            timing=self._timing,
            is_lasting=False,
        )
        again = topic("again").build(realm, **names)
        running = asyncio.ensure_future(mqtt.run())
        try:
            async with asyncio.timeout(self._deadlines.enroll_s):
                await inside.wait()
            credentials.keep(
                await self._renewal.run(lambda data: mqtt.publish(again, data, qos=1), self._deadlines.reply_s)
            )
            self._door_tries = 0
            log.info("certified at the door until %d", credentials.expires)
        except (HeliographError, TimeoutError) as error:
            self._door_tries += 1
            log.warning("no certificate yet: %s", error or "nobody answers at the door")
        finally:
            running.cancel()
            await asyncio.wait({running})
        if self._door_tries:
            bound = min(LONGEST_DOOR_S, FIRST_DOOR_S * 2.0 ** min(self._door_tries, 16))
            await asyncio.sleep(self._rng.uniform(bound / 2, bound))

    # --- state of the link --------------------------------------------------------------------------------------------

    def hear(self, models: Iterable[str]) -> None:
        """Subscribes to the configs of these models too."""
        if self._mqtt is not None:
            self._mqtt.subscribe(self._config(model) for model in models)

    def _config(self, model: str) -> tuple[str, int]:
        return topic("config").filter(self._file.realm, model=model), topic("config").qos

    def renew(self) -> None:
        """Connects anew: the ring is another."""
        self._renew.set()

    def on_change(self, is_up: bool) -> None:
        """The link came or went: asks may go out, or wait in vain."""
        if is_up:
            self._unanswered = 0
            self._refusals.clear()
            self._taken.set()
            self._up.set()
            self._hello_now.set()
            return
        self._up.clear()
        self._give_up_asks("the link went away", 0.0)

    def on_hub_back(self) -> None:
        """The hub spoke of itself just now: what it should have answered by now reached it never, and is asked anew."""
        self._give_up_asks("the hub did not answer and is there now", self._deadlines.chunk_base_s)

    def _give_up_asks(self, reason: str, least_s: float) -> None:
        """Ends the asks that have waited at least so long."""
        now = asyncio.get_running_loop().time()
        for answer, began in self._asks.values():
            if not answer.done() and now - began >= least_s:
                answer.set_exception(TransportError(reason))

    # --- what goes out ------------------------------------------------------------------------------------------------

    async def publish(self, name: str, payload: bytes) -> None:
        """Sends one message of this node.

        Raises:
            TransportError: no link, or the broker did not take it.
            UnwelcomeError: the broker refuses it, or did a while ago and isn't asked again yet.
        """
        if self._mqtt is None:
            raise TransportError("no link yet")
        row, now = topic(name), asyncio.get_running_loop().time
        if self._refusals.wait_s(name, now()) > 0:
            raise UnwelcomeError(self._refusals.reasons[name])
        self._refusals.begin(name, now())
        try:
            await self._mqtt.publish(row.build(self._file.realm, **self._names), payload, qos=row.qos)
        except UnwelcomeError as error:
            if self._refusals.refused(name, str(error), now()):
                log.warning("%s: %s; from now on tried ever more seldom", name, error)
            raise
        if self._refusals.taken(name):
            log.info("%s: the broker takes it again", name)
            self._taken.set()

    async def _may_send(self, name: str) -> None:
        """Returns when there is a link, and the broker may be tried with a message of this name."""
        while True:
            await self._up.wait()
            wait_s = self._refusals.wait_s(name, asyncio.get_running_loop().time())
            if wait_s <= 0:
                return
            self._taken.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._taken.wait()
            except TimeoutError:
                pass

    async def publish_signed(self, name: str, document: Document) -> None:
        """Signs with the node's key and sends.

        Raises:
            TransportError: as `publish`.
        """
        statement = topic(name).statement
        assert statement is not None, "only statements are signed"
        await self.publish(name, sign_statement(statement, document.encode(), [self._key]))

    async def send_want(self, want: Want) -> None:
        """Asks for chunks.

        Raises:
            TransportError: as `publish`.
        """
        await self.publish("want", want.encode())

    async def probe(self, timeout_s: float) -> None:
        """Finds out whether the link lives; a dead one is replaced."""
        if self._mqtt is not None:
            await self._mqtt.probe(timeout_s)

    # --- hello and its reply ------------------------------------------------------------------------------------------

    def greet_now(self) -> None:
        """Says hello at once instead of at the next check-in."""
        self._hello_now.set()

    async def greet(self) -> None:
        """Says hello for ever, when it is time."""
        while True:
            self._hello_now.clear()
            if self.is_up:
                try:
                    await self._hello()
                except UnwelcomeError:
                    pass  # `publish` has said so
                except TransportError as error:
                    log.info("no hello: %s", error)
            if self.nonce is not None and self.is_up:
                self._unanswered += 1
                wait_s = min(self._deadlines.reply_s * 2.0 ** min(self._unanswered - 1, 10), self._deadlines.check_in_s)
            else:
                wait_s = self._deadlines.check_in_s
            try:
                async with asyncio.timeout(wait_s * self._rng.uniform(0.9, 1.1)):
                    await self._hello_now.wait()
            except TimeoutError:
                pass

    async def _hello(self) -> None:
        if self.nonce is not None:
            self._earlier.append(self.nonce)
        self.nonce = os.urandom(16)
        await self.publish("hello", self._listener.hello(self.nonce).encode())
        self._listener.greeted()

    def is_to_the_last_hello(self, reply: Reply) -> bool:
        """Whether this answers the last hello; False: an earlier one, said again before the answer came.

        Raises:
            TrustError: none of ours that waits.
        """
        if reply.nonce != self.nonce and reply.nonce not in self._earlier:
            raise TrustError("a reply to no hello of ours")
        return reply.nonce == self.nonce

    def answered(self) -> None:
        """The whole reply is here."""
        self.nonce, self._unanswered = None, 0
        self._earlier.clear()

    # --- an ask and its offer -----------------------------------------------------------------------------------------

    async def ask(self, question: Callable[[int], Ask]) -> Offer | None:
        """One ask, as soon as there is a link that may take it; its offer, or None if none came in time.

        Args:
            question: makes the ask of this number, when it can be sent.

        Raises:
            TransportError: the link went away meanwhile, or the ask got lost on it.
        """
        await self._may_send("ask")
        self._asked += 1
        number = self._asked
        ask = question(number)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Offer] = loop.create_future()
        self._asks[number] = answer, loop.time()
        try:
            async with asyncio.timeout(self._deadlines.offer_s):
                await self.publish("ask", ask.encode())
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asks[number]

    def on_offer(self, offer: Offer) -> None:
        """Gives the offer to the ask it answers; one of an ask given up, or of an earlier life, finds nobody.

        So that none is older than the deadline of its ask. What it says of the hub's clock isn't compared with the
        estimate, which never goes back: a clock that gained a minute in months would refuse every offer from then on.
        """
        answer, _ = self._asks.get(offer.n, (None, 0.0))
        if offer.run != self.run_id or answer is None or answer.done():
            return
        answer.set_result(offer)
