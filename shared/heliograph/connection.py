"""One connection to a broker, from TCP over TLS and MQTT to its end; `heliograph.mqtt` makes one after the other.

paho under an adapter of our own: aiomqtt 2.5 acknowledges before our code runs, and its bounded queue discards after
that (10 of 100 messages kept). paho is driven by the event loop here; no thread, no blocking call. Nothing else imports
paho or aiomqtt.

What waits to be written is bounded: `publish` waits for room, then for the acknowledgement.
"""

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

RECEIVE_MAXIMUM = 8
MAX_PACKET_BYTES = 256 * 1024
MAX_UNSENT_BYTES = 256 * 1024
SESSION_EXPIRY_S = 30 * 86400
UNSUPPORTED_VERSION = 0x84
#: What paho raises on bytes that aren't MQTT.
HOSTILE = (MQTTException, ValueError, IndexError, KeyError, TypeError, struct.error)


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


class UnwelcomeError(TransportError):
    """The broker is there and doesn't take this message: whoever sends it again at once is told the same."""


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


@dataclass(frozen=True, slots=True)
class Visit:
    """As whom to come, and how.

    Attributes:
        version: 5 or 3 (3.1.1).
        will: (topic, payload) that the broker publishes if we end without a word.
        is_lasting: the broker keeps what comes while we are away.
    """

    broker: Broker
    client_id: str
    version: int
    timing: Timing
    will: tuple[str, bytes] | None
    is_lasting: bool


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A PUBLISH that a connection brought, to be acknowledged there.

    `mid` is the broker's number of it, on this connection.
    """

    link: "Connection"
    topic: str
    payload: bytes
    retained: bool
    qos: int
    mid: int


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


class Connection:
    """One connection, from TCP to its end; never used twice.

    A new paho client each time: nothing of an earlier connection is sent again behind our back. Who published it was
    told that it failed, and publishes again if it still matters.

    Attributes:
        held: where `received` keeps what came before every subscription was confirmed; None once they are.
        session_present: whether the broker still knew us.
        refused_version: it said that it doesn't speak this version of MQTT.
        ended_before_connack: it ended before the broker let us in.
    """

    def __init__(self, visit: Visit, received: Callable[[Message], None]) -> None:
        """`received` is told of every PUBLISH, in order; it doesn't wait."""
        self._visit = visit
        self._received = received
        self.held: deque[Message] | None = deque()
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
        timing = self._visit.timing
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
        broker = self._visit.broker
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
        tls = self._visit.broker.tls
        if tls is None:
            return sock
        secured: ssl.SSLSocket | None = None
        try:
            secured = tls.context().wrap_socket(
                sock, server_hostname=self._visit.broker.host, do_handshake_on_connect=False
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
        visit = self._visit
        client = _Paho(sock, visit.client_id, visit.version, visit.is_lasting)
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
        if visit.broker.username is not None:
            client.username_pw_set(visit.broker.username, visit.broker.password)
        if visit.will is not None:
            client.will_set(visit.will[0], visit.will[1], qos=1)
        self._loop.add_reader(sock, self._read)
        properties = None
        if visit.version == 5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S if visit.is_lasting else 0
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            client.connect(
                visit.broker.host,
                visit.broker.port,
                keepalive=visit.timing.keepalive_s,
                clean_start=False,
                properties=properties,
            )
        else:
            client.connect(visit.broker.host, visit.broker.port, keepalive=visit.timing.keepalive_s)

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
            await asyncio.wait({self._ended}, timeout=max(self._visit.timing.keepalive_s / 8, 0.05))
            if self._client is not None:
                self._client.loop_misc()
        raise TransportError(self._ended.result())

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """As `Mqtt.publish`; how long to wait is the caller's business."""
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

    def ack(self, message: Message) -> None:
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
        self._received(Message(self, topic, bytes(message.payload), bool(message.retain), message.qos, message.mid))

    def _on_publish(self, _c: Any, _u: Any, mid: int, code: ReasonCode, _p: Any) -> None:
        self._unsent_bytes -= self._unsent.pop(mid, 0)
        self._give_turn()
        answer = self._published.get(mid)
        if answer is not None and not answer.done():
            if code.is_failure:
                answer.set_exception(UnwelcomeError(f"broker refuses the message: {code}"))
            else:
                answer.set_result(None)

    def _on_disconnect(self, _c: Any, _u: Any, _flags: Any, code: ReasonCode, _p: Any) -> None:
        if not self._ended.done():
            self.close(f"connection lost: {code}")
