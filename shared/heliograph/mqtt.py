"""The one connection to the broker: always there, always coming back, and nothing acknowledged before it was handled.

Rule 1: a QoS 1 message is acknowledged after the handler returned. A handler that raises TransportError has not handled
it: the connection is closed and the broker sends it again. Any other exception leaves `run` and ends the process.
Rule 2: at most RECEIVE_MAXIMUM messages wait for their handler, so a slow handler slows the broker, not our memory.
What comes with QoS 0 beyond its bound is dropped, oldest first, and counted: whoever asked for it asks again.
Rule 3: `connected` means that every subscription was confirmed. Handlers run one after the other, and the message of a
connection that is gone is not handled: it comes again.
Rule 4: what waits to be written is bounded; `publish` waits for room, then for the acknowledgement, then gives up.

This module decides nothing about topics or payloads; one TCP connection is `heliograph.connection`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NoReturn

from heliograph.connection import Broker, Connection, Message, Timing, Visit
from heliograph.errors import TransportError
from heliograph.wire import MAX_MESSAGE_BYTES

log = logging.getLogger("heliograph.mqtt")

MAX_WAITING_QOS0 = 512
MAX_WAITING_QOS0_BYTES = 8 << 20
MAX_WAITING_QOS1 = 1024
"""A broker that has more unacknowledged messages with us breaks the protocol (MQTT 3.1.1 can't state a maximum)."""

OnMessage = Callable[[str, bytes, bool], Awaitable[None]]
OnLink = Callable[[bool], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _LinkEvent:
    up: bool


class Mqtt:
    """One client identity at one broker, for the life of the process.

    Cancelling `run` drops the connection without DISCONNECT, so that the broker publishes the will however we end.

    Attributes:
        connected: every subscription is confirmed and publishing is possible.
        bytes_received, bytes_sent: payload bytes since the start, repeats included.
        dropped: QoS 0 messages discarded because they came faster than they were handled.
        version: 5 or 3 (3.1.1), the one in use or tried next.
        session_present: whether the broker still knew us at the last connect.
        connects: confirmed connections since the start.
        turned_away: set once a broker that has TLS ended several connections before it let us in: our certificate
            may be no good any more.
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]],
        rng: Random,
        on_message: OnMessage,
        on_link: OnLink,
        will: tuple[str, bytes] | None = None,
        timing: Timing | None = None,
        is_lasting: bool = True,
    ) -> None:
        """Nothing happens before `run`. Subscriptions are made in their order, (filter, QoS), QoS at most 1.

        `is_lasting`: the broker keeps what comes while we are away. Whoever comes once leaves nothing behind.

        A `/` in `client_id` goes to the broker as `.`: some brokers refuse identities with what topics are made of.
        """
        self.broker = broker
        self.client_id = client_id.replace("/", ".")
        self.connected = False
        self.bytes_received = 0
        self.bytes_sent = 0
        self.dropped = 0
        self.connects = 0
        self.turned_away = asyncio.Event()
        self.session_present = False
        self.version = 5
        self.timing = timing or Timing()
        self.will = will
        self.is_lasting = is_lasting
        self._subscriptions = tuple(subscriptions)
        self._rng = rng
        self._on_message = on_message
        self._on_link = on_link
        self._link: Connection | None = None
        # Bounded: messages by the limits above, link events by the back-off (one pair per connection).
        self._inbox: deque[Message | _LinkEvent] = deque()
        self._arrived = asyncio.Event()
        self._waiting_qos0 = 0
        self._waiting_qos0_bytes = 0
        self._waiting_qos1 = 0
        self._interruptible: asyncio.Timeout | None = None
        self._woken = False

    @property
    def waiting(self) -> int:
        """Messages received and not yet handled."""
        return self._waiting_qos0 + self._waiting_qos1

    async def run(self) -> NoReturn:
        """Connects and stays connected until cancelled.

        Raises:
            ExceptionGroup: what a handler raised. Its message was not acknowledged.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._handle_all(), name="mqtt handle")
            group.create_task(self._stay_connected(), name="mqtt connect")
        raise AssertionError("both tasks run for ever")

    async def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> None:
        """Sends one message. QoS 1: returns when the broker has it. QoS 0: returns when there is room to send it.

        Raises:
            TransportError: no link, or no answer in time (the connection is closed then).
            UnwelcomeError: the broker said no.
        """
        if len(payload) > MAX_MESSAGE_BYTES:
            raise ValueError(f"payload of {len(payload)} bytes for {topic} exceeds {MAX_MESSAGE_BYTES}")
        link = self._link
        if link is None or not self.connected:
            raise TransportError(f"no connection to the broker at {self.broker.host}:{self.broker.port}")
        try:
            async with asyncio.timeout(self.timing.publish_s):
                await link.publish(topic, payload, qos, retain)
        except TimeoutError as error:
            link.close("a message was not acknowledged in time")
            raise TransportError(f"broker did not take {topic} within {self.timing.publish_s:g} s") from error
        self.bytes_sent += len(payload)

    def subscribe(self, subscriptions: Iterable[tuple[str, int]]) -> None:
        """Subscribes to these as well, (filter, QoS), from now on; known ones are left as they are.

        A refusal shows when the connection is made anew.
        """
        new = [one for one in subscriptions if one not in self._subscriptions]
        if not new:
            return
        self._subscriptions = (*self._subscriptions, *new)
        if self._link is not None and self.connected:
            self._link.subscribe(new)

    async def probe(self, timeout_s: float) -> bool:
        """Asks the broker for a sign of life; without any byte in time the connection is closed and made anew.

        Returns whether the link answered. False at once if there is none.
        """
        link = self._link
        if link is None or not self.connected:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await link.ping()
        except TimeoutError:
            link.close(f"no byte within {timeout_s:g} s of a ping")
            return False
        except TransportError:
            return False
        return True

    def wake(self) -> None:
        """Connects now instead of after the back-off or the kernel's: call it when the network came back."""
        self._woken = True
        if self._interruptible is not None:
            self._interruptible.reschedule(asyncio.get_running_loop().time())

    # --- connecting ---------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        failures = 0
        early_ends = 0
        refusals = 0
        while True:
            link = Connection(self._visit(), self._received)
            self._link = link
            up_since: float | None = None
            try:
                try:
                    async with asyncio.timeout(2 * self.timing.connect_s) as self._interruptible:
                        opened = self._subscriptions
                        await link.open(opened)
                except TimeoutError as error:
                    raise TransportError("no answer") from error
                finally:
                    self._interruptible = None
                self._woken = False
                up_since = loop.time()
                early_ends = refusals = 0
                self._up(link)
                if len(self._subscriptions) > len(opened):
                    link.subscribe(self._subscriptions[len(opened) :])
                await link.stay()
            except TransportError as error:
                log.info("broker %s:%d: %s", self.broker.host, self.broker.port, error)
            finally:
                link.close("ended")
                self._link = None
                self._down(up_since is not None)
            if up_since is None and link.ended_before_connack:
                # A 3.1.1 broker either says so or just hangs up; one that knows MQTT 5 may hang up while it dies.
                early_ends += 1
                refusals += 1
                if self.broker.tls is not None and refusals > 1:
                    self.turned_away.set()
                if link.refused_version or early_ends > (3 if self.connects else 0):
                    self.version = 3 if self.version == 5 else 5
                    early_ends = 0
            failures = 0 if up_since is not None and loop.time() - up_since >= self.timing.steady_s else failures + 1
            await self._back_off(max(failures - 1, 0))

    def _visit(self) -> Visit:
        return Visit(self.broker, self.client_id, self.version, self.timing, self.will, self.is_lasting)

    async def _back_off(self, failures: int) -> None:
        bound = min(self.timing.longest_retry_s, self.timing.first_retry_s * 2.0 ** min(failures, 16))
        if self._woken:
            self._woken = False
            bound = min(bound, self.timing.first_retry_s)
        try:
            async with asyncio.timeout(self._rng.uniform(bound / 2, bound)) as self._interruptible:
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            pass
        finally:
            self._interruptible = None

    def _up(self, link: Connection) -> None:
        self.connects += 1
        self.session_present = link.session_present
        self.connected = True
        # What a kept session delivered before our subscriptions were confirmed comes after the news that we are up.
        self._inbox.append(_LinkEvent(True))
        held, link.held = link.held, None
        for message in held or ():
            self._inbox.append(message)
        self._arrived.set()

    def _down(self, was_up: bool) -> None:
        self.connected = False
        kept = [item for item in self._inbox if isinstance(item, _LinkEvent)]
        self._inbox.clear()
        self._inbox.extend(kept)
        self._waiting_qos0 = self._waiting_qos0_bytes = self._waiting_qos1 = 0
        if was_up:
            self._inbox.append(_LinkEvent(False))
            self._arrived.set()

    # --- receiving ----------------------------------------------------------------------------------------------

    def _received(self, message: Message) -> None:
        """Called by the link for every PUBLISH."""
        link = message.link
        if link is not self._link:
            return
        self.bytes_received += len(message.payload)
        inbox = self._inbox if link.held is None else link.held
        if message.qos:
            if self._waiting_qos1 >= MAX_WAITING_QOS1:
                link.close(f"broker sent more than {MAX_WAITING_QOS1} messages unacknowledged")
                return
            self._waiting_qos1 += 1
        else:
            self._waiting_qos0 += 1
            self._waiting_qos0_bytes += len(message.payload)
        inbox.append(message)
        if self._waiting_qos0 > MAX_WAITING_QOS0 or self._waiting_qos0_bytes > MAX_WAITING_QOS0_BYTES:
            oldest = next(item for item in inbox if isinstance(item, Message) and not item.qos)
            inbox.remove(oldest)
            self._forget(oldest)
            self.dropped += 1
        self._arrived.set()

    def _forget(self, message: Message) -> None:
        """The message no longer waits."""
        if message.link is not self._link:
            return
        if message.qos:
            self._waiting_qos1 -= 1
        else:
            self._waiting_qos0 -= 1
            self._waiting_qos0_bytes -= len(message.payload)

    async def _handle_all(self) -> NoReturn:
        while True:
            while not self._inbox:
                self._arrived.clear()
                await self._arrived.wait()
            item = self._inbox.popleft()
            link = item.link if isinstance(item, Message) else self._link if item.up else None
            try:
                if isinstance(item, _LinkEvent):
                    await self._on_link(item.up)
                else:
                    await self._on_message(item.topic, item.payload, item.retained)
                    item.link.ack(item)
            except TransportError as error:
                if link is not None:
                    link.close(f"not handled: {error}")
            if isinstance(item, Message):
                self._forget(item)
