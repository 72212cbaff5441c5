"""The one connection to the broker: always there, always coming back, and nothing acknowledged before it was handled.

Rule 1: a QoS 1 message is acknowledged after the handler returned. A handler that raises TransportError has not handled
it: the connection is closed and the broker sends it again. Any other exception leaves `run` and ends the process.
Rule 2: at most RECEIVE_MAXIMUM messages wait for their handler, so a slow handler slows the broker, not our memory.
What comes with QoS 0 beyond its bound is dropped, oldest first, and counted: whoever asked for it asks again.
Rule 3: `connected` means that every subscription was confirmed. Handlers run one after the other, and the message of a
connection that is gone is not handled: it comes again.
Rule 4: what waits to be written is bounded; `publish` waits for room, then for the acknowledgement, then gives up.

Why paho under an adapter of our own: aiomqtt 2.5 acknowledges before our code runs, and its bounded queue discards
after that (10 of 100 messages kept). paho is driven by the event loop here; no thread, no blocking call.

This module decides nothing about topics or payloads. Nothing else imports paho or aiomqtt.
"""

import asyncio
import logging
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn

from paho.mqtt import MQTTException
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from heliograph.deadlines import DEADLINES
from heliograph.errors import TransportError, TrustError
from heliograph.tls import Tls
from heliograph.wire import MAX_MESSAGE_BYTES

log = logging.getLogger("heliograph.mqtt")

RECEIVE_MAXIMUM = 8
MAX_PACKET_BYTES = 256 * 1024
MAX_WAITING_QOS0 = 512
MAX_WAITING_QOS0_BYTES = 8 << 20
MAX_WAITING_QOS1 = 1024
"""A broker that has more unacknowledged messages with us breaks the protocol (MQTT 3.1.1 can't state a maximum)."""
MAX_UNSENT_BYTES = 256 * 1024
SESSION_EXPIRY_S = 30 * 86400
UNSUPPORTED_VERSION = 0x84
#: What paho raises on bytes that aren't MQTT.
HOSTILE = (MQTTException, ValueError, IndexError, KeyError, TypeError, struct.error)

OnMessage = Callable[[str, bytes, bool], Awaitable[None]]
OnLink = Callable[[bool], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is, and as whom."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    tls: Tls | None = None

    def __repr__(self) -> str:
        return f"Broker({self.host}:{self.port})"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Tests shorten them.

    Attributes:
        connect_s: for the TCP connection, then again for the handshake; short, because the kernel's own repeats slow
            down just when the link is back.
        keepalive_s: suited to slow links; `probe` finds out sooner.
        first_retry_s, longest_retry_s: bounds of the back-off before jitter (half to all of it is waited).
        steady_s: a connection that lasted so long lets the next back-off start from the beginning.
    """

    connect_s: float = 15.0
    keepalive_s: int = 60
    publish_s: float = DEADLINES.publish_s
    first_retry_s: float = 0.5
    longest_retry_s: float = 30.0
    steady_s: float = 5.0


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
        self._link: _Link | None = None
        # Bounded: messages by the limits above, link events by the back-off (one pair per connection).
        self._inbox: deque[_Message | _LinkEvent] = deque()
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
            TransportError: no link, or no answer in time (the connection is closed then), or the broker said no.
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
            link = _Link(self)
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

    def _up(self, link: "_Link") -> None:
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

    def _received(self, message: "_Message") -> None:
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
            oldest = next(item for item in inbox if isinstance(item, _Message) and not item.qos)
            inbox.remove(oldest)
            self._forget(oldest)
            self.dropped += 1
        self._arrived.set()

    def _forget(self, message: "_Message") -> None:
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
            link = item.link if isinstance(item, _Message) else self._link if item.up else None
            try:
                if isinstance(item, _LinkEvent):
                    await self._on_link(item.up)
                else:
                    await self._on_message(item.topic, item.payload, item.retained)
                    item.link.ack(item)
            except TransportError as error:
                if link is not None:
                    link.close(f"not handled: {error}")
            if isinstance(item, _Message):
                self._forget(item)


@dataclass(frozen=True, slots=True, eq=False)
class _Message:
    link: "_Link"
    topic: str
    payload: bytes
    retained: bool
    qos: int
    mid: int


@dataclass(frozen=True, slots=True)
class _LinkEvent:
    up: bool


class _Paho(paho.Client):
    """paho on a socket that the event loop connected."""

    def __init__(self, ready: socket.socket, client_id: str, version: int, is_lasting: bool) -> None:
        mqtt5 = version == 5
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if mqtt5 else not is_lasting,
            protocol=MQTTProtocolVersion.MQTTv5 if mqtt5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._ready: socket.socket | None = ready

    def _create_socket_connection(self) -> socket.socket:
        ready, self._ready = self._ready, None
        if ready is None:
            raise ConnectionError("one connection per client")
        return ready

    def ping(self) -> None:
        self._send_pingreq()

    @property
    def incoming_bytes(self) -> int:
        """Length of the packet being received, as its header claims."""
        return self._in_packet["remaining_length"]


class _Link:
    """One connection, from TCP to its end; never used twice.

    A new paho client each time: nothing of an earlier connection is sent again behind our back. Who published it was
    told that it failed, and publishes again if it still matters.
    """

    def __init__(self, owner: Mqtt) -> None:
        self.owner = owner
        self.held: deque[_Message] | None = deque()
        self.session_present = False
        self.refused_version = False
        self.ended_before_connack = False
        self._client: _Paho | None = None
        self._sock: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._suback: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._published: dict[int, asyncio.Future[None]] = {}
        self._unsent: dict[int, int] = {}
        self._unsent_bytes = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._heard: asyncio.Future[None] | None = None
        self._writing = False

    async def open(self, subscriptions: tuple[tuple[str, int], ...]) -> None:
        """Connects, presents itself, subscribes.

        Raises:
            TransportError: any of that failed.
        """
        timing = self.owner.timing
        try:
            async with asyncio.timeout(timing.connect_s):
                sock = await self._secure(await self._connect_tcp())
        except TimeoutError as error:
            raise TransportError(f"no connection within {timing.connect_s:g} s") from error
        except OSError as error:
            raise TransportError(f"no connection: {error.strerror or error}") from error
        self._introduce(sock)
        await self._first(self._connack)
        if subscriptions:
            if self._client is None:
                raise TransportError(self._ended.result())
            self._client.subscribe(list(subscriptions))
            codes = await self._first(self._suback)
            if len(codes) != len(subscriptions):
                raise TransportError(f"broker answers {len(subscriptions)} subscriptions with {len(codes)} codes")
            for (topic, _qos), code in zip(subscriptions, codes, strict=True):
                if code.is_failure:
                    raise TransportError(f"broker refuses the subscription to {topic}: {code}")

    def subscribe(self, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Subscribes to more; nobody waits for the answer."""
        if self._client is not None:
            self._client.subscribe(list(subscriptions))

    async def _connect_tcp(self) -> socket.socket:
        broker = self.owner.broker
        failure: OSError = OSError(f"{broker.host} has no address")
        for family, kind, protocol, _name, address in await self._loop.getaddrinfo(
            broker.host, broker.port, type=socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    async def _secure(self, sock: socket.socket) -> socket.socket:
        """The same connection under TLS, if the broker is to have it; verified before a byte of ours is sent."""
        tls = self.owner.broker.tls
        if tls is None:
            return sock
        secured: ssl.SSLSocket | None = None
        try:
            secured = tls.context().wrap_socket(
                sock, server_hostname=self.owner.broker.host, do_handshake_on_connect=False
            )
            while True:
                try:
                    secured.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._until(secured, self._loop.add_reader, self._loop.remove_reader)
                except ssl.SSLWantWriteError:
                    await self._until(secured, self._loop.add_writer, self._loop.remove_writer)
            tls.check(secured)
        except BaseException as error:
            (secured or sock).close()
            if isinstance(error, ssl.SSLError | TrustError):
                reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or str(error)
                raise TransportError(f"no TLS with the broker: {reason}") from error
            raise
        return secured

    async def _until(
        self, sock: socket.socket, add: Callable[..., None], remove: Callable[[socket.socket], bool]
    ) -> None:
        """Returns when the socket can be read, or written."""
        ready: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add(sock, wake)
        try:
            await ready
        finally:
            remove(sock)

    def _introduce(self, sock: socket.socket) -> None:
        owner = self.owner
        client = _Paho(sock, owner.client_id, owner.version, owner.is_lasting)
        self._client, self._sock = client, sock
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        client.max_inflight_messages_set(RECEIVE_MAXIMUM)
        if owner.broker.username is not None:
            client.username_pw_set(owner.broker.username, owner.broker.password)
        if owner.will is not None:
            client.will_set(owner.will[0], owner.will[1], qos=1)
        self._loop.add_reader(sock, self._read)
        properties = None
        if owner.version == 5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S if owner.is_lasting else 0
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            client.connect(
                owner.broker.host,
                owner.broker.port,
                keepalive=owner.timing.keepalive_s,
                clean_start=False,
                properties=properties,
            )
        else:
            client.connect(owner.broker.host, owner.broker.port, keepalive=owner.timing.keepalive_s)

    async def _first(self, future: "asyncio.Future[Any]") -> Any:
        """The future's result, unless the connection ends first."""
        await asyncio.wait({future, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise TransportError(self._ended.result())
        return future.result()

    async def stay(self) -> NoReturn:
        """Keeps the connection alive.

        Raises:
            TransportError: it ended.
        """
        while self._client is not None:
            # The turns only drive paho's keepalive; the end itself is an event.
            await asyncio.wait({self._ended}, timeout=max(self.owner.timing.keepalive_s / 8, 0.05))
            if self._client is not None:
                self._client.loop_misc()
        raise TransportError(self._ended.result())

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """See Mqtt.publish; TimeoutError is the caller's."""
        size = len(payload) + len(topic) + 16
        while self._unsent_bytes and self._unsent_bytes + size > MAX_UNSENT_BYTES:
            turn: asyncio.Future[None] = self._loop.create_future()
            self._room.append(turn)
            try:
                await self._first(turn)
            except BaseException:
                # A turn that was already given goes to the next in line.
                if turn.done() and not turn.cancelled():
                    self._give_turn()
                raise
            finally:
                if turn in self._room:
                    self._room.remove(turn)
        if self._client is None or self._ended.done():
            raise TransportError("connection to the broker ended")
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise TransportError(f"broker connection refuses to send: {paho.error_string(info.rc)}")
        self._unsent[info.mid] = size
        self._unsent_bytes += size
        if self._unsent_bytes < MAX_UNSENT_BYTES:
            self._give_turn()
        if qos:
            answer = self._published[info.mid] = self._loop.create_future()
            try:
                await self._first(answer)
            finally:
                self._published.pop(info.mid, None)

    def _give_turn(self) -> None:
        while self._room:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def ping(self) -> None:
        """Returns when any byte came after a PINGREQ."""
        if self._client is None or self._ended.done():
            raise TransportError("connection to the broker ended")
        if self._heard is None or self._heard.done():
            self._heard = self._loop.create_future()
        self._client.ping()
        await self._first(self._heard)

    def ack(self, message: _Message) -> None:
        """The message was handled; nothing to do if its connection is gone."""
        if message.qos and self._client is not None and not self._ended.done():
            self._client.ack(message.mid, message.qos)

    def close(self, reason: str) -> None:
        """Ends the connection now, without DISCONNECT. Idempotent."""
        if not self._ended.done():
            self._ended.set_result(reason)
            self.ended_before_connack = self._client is not None and (
                not self._connack.done() or self._connack.exception() is not None
            )
        client, self._client = self._client, None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
        if client is not None:
            client._sock_close()
        if self._connack.done() and not self._connack.cancelled():
            self._connack.exception()  # retrieved, or asyncio complains when nobody waited for it

    # --- paho's callbacks; all run on the loop, none awaits ---------------------------------------------------------

    def _read(self) -> None:
        client = self._client
        if client is None:
            return
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)
        while True:
            try:
                client.loop_read()
            except HOSTILE as error:
                self.close(f"not MQTT: {error}")
                return
            if self._client is not None and client.incoming_bytes > MAX_PACKET_BYTES:
                self.close(f"packet of {client.incoming_bytes} bytes exceeds {MAX_PACKET_BYTES}")
            # What TLS has opened already makes no socket readable again.
            sock = self._sock
            if self._client is None or not isinstance(sock, ssl.SSLSocket) or not sock.pending():
                return

    def _write(self) -> None:
        if self._client is not None:
            self._client.loop_write()

    def _on_register_write(self, *_: Any) -> None:
        if self._sock is not None and not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._write)

    def _on_unregister_write(self, *_: Any) -> None:
        if self._sock is not None and self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)

    def _on_socket_close(self, *_: Any) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock = None

    def _on_connect(self, _c: Any, _u: Any, flags: Any, code: ReasonCode, _p: Any) -> None:
        if self._connack.done():
            return
        if code.is_failure:
            self.refused_version = code.value == UNSUPPORTED_VERSION
            self._connack.set_exception(TransportError(f"broker refuses us: {code}"))
        else:
            self.session_present = bool(flags.session_present)
            self._connack.set_result(None)

    def _on_subscribe(self, _c: Any, _u: Any, _mid: int, codes: list[ReasonCode], _p: Any) -> None:
        if not self._suback.done():
            self._suback.set_result(codes)

    def _on_message(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # no row of ours: the reader counts and ignores it
        self.owner._received(
            _Message(self, topic, bytes(message.payload), bool(message.retain), message.qos, message.mid)
        )

    def _on_publish(self, _c: Any, _u: Any, mid: int, code: ReasonCode, _p: Any) -> None:
        self._unsent_bytes -= self._unsent.pop(mid, 0)
        self._give_turn()
        answer = self._published.get(mid)
        if answer is not None and not answer.done():
            if code.is_failure:
                answer.set_exception(TransportError(f"broker refuses the message: {code}"))
            else:
                answer.set_result(None)

    def _on_disconnect(self, _c: Any, _u: Any, _flags: Any, code: ReasonCode, _p: Any) -> None:
        if not self._ended.done():
            self.close(f"connection lost: {code}")
