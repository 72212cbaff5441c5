"""[IO] The process behind a `heliograph.lab.road.Road`: two namespaces and the packets between them, or a proxy.

`python -m heliograph.lab.emulator` reads one JSON line after the other: first what to make, then orders (`cut`,
`restore`, `reshape`, `facts`), and answers each with one. When there are no more lines it ends, and so does everything
that runs in its namespaces.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import random
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heliograph.lab.link import Direction, Link, Outages, Profile, Shape
from heliograph.lab.proxy import Proxy

NEAR, FAR = "10.77.0.1", "10.77.0.2"
MTU = 1500
_CLONE_NEWNET = 0x40000000


def _profile(found: dict[str, Any]) -> Profile:
    outages = Outages(**found["outages"]) if found["outages"] else None
    return Profile(found["name"], found["note"], Shape(**found["up"]), Shape(**found["down"]), outages)


class _Namespace:
    """A network namespace without a name, with its loopback and one end of the road; ours while this process lives."""

    TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
    SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFDSTADDR, SIOCSIFMTU = 0x8914, 0x8916, 0x8918, 0x8922
    IFF_UP_RUNNING = 0x41

    def __init__(self, address: str, peer: str) -> None:
        """Raises OSError where this isn't allowed; then nothing is left behind."""
        with _home():
            _libc("unshare", _CLONE_NEWNET)
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            name = b"road"
            fcntl.ioctl(self.tun, self.TUNSETIFF, struct.pack("16sH22x", name, self.IFF_TUN | self.IFF_NO_PI))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, self.SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", self.IFF_UP_RUNNING))
                fcntl.ioctl(control, self.SIOCSIFMTU, struct.pack("16si20x", name, MTU))
                for request, value in ((self.SIOCSIFADDR, address), (self.SIOCSIFDSTADDR, peer)):
                    where = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
                    fcntl.ioctl(control, request, struct.pack("16s16s8x", name, where))
                fcntl.ioctl(control, self.SIOCSIFFLAGS, struct.pack("16sH22x", name, self.IFF_UP_RUNNING))

    def socket(self) -> socket.socket:
        """A TCP socket of this namespace."""
        with _home():
            _libc("setns", self.fd, _CLONE_NEWNET)
            found = socket.socket()
        found.setblocking(False)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def kill_all(self) -> None:
        """SIGKILL to every process in it, until there is none."""
        mine = os.fstat(self.fd)
        for _ in range(50):
            found = False
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                with contextlib.suppress(OSError):
                    its = (entry / "ns" / "net").stat()
                    if (its.st_dev, its.st_ino) == (mine.st_dev, mine.st_ino) and int(entry.name) != os.getpid():
                        os.kill(int(entry.name), signal.SIGKILL)
                        found = True
            if not found:
                return


@contextlib.contextmanager
def _home() -> Iterator[None]:
    """Whatever namespace the thread enters meanwhile, it is back in its own afterwards."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _libc("setns", home, _CLONE_NEWNET)
        os.close(home)


def _libc(name: str, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class _Carrier:
    """Carries one direction's packets from one TUN device to the other."""

    READS_AT_ONCE = 64

    def __init__(self, link: Link, direction: Direction, source: int, target: int) -> None:
        self.link, self.direction, self.source, self.target = link, direction, source, target
        self._loop = asyncio.get_running_loop()
        # Bounded by the direction's queue and its delay.
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(source, self._read)

    def _read(self) -> None:
        for _ in range(self.READS_AT_ONCE):
            try:
                packet = os.read(self.source, MTU + 100)
            except BlockingIOError:
                break
            if packet[0] >> 4 != 4:
                continue  # the kernel's own IPv6 chatter
            at = self.link.offer(self.direction, len(packet), self._loop.time())
            if at is not None:
                self._waiting.append((at, packet))
        self._deliver()

    def _deliver(self) -> None:
        now = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            _, packet = self._waiting.popleft()
            if self.link.arrives(self.direction, now):
                with contextlib.suppress(BlockingIOError):
                    os.write(self.target, packet)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._waiting[0][0], self._deliver) if self._waiting else None


class _Forwarder:
    """Joins every connection that comes in on `listener` with one made by `connect`."""

    def __init__(self, listener: socket.socket, source: "_Namespace | None", port: int) -> None:
        self.listener, self.source, self.port = listener, source, port

    async def start(self) -> None:
        self.listener.listen(128)
        await asyncio.start_server(self._joined, sock=self.listener)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other: asyncio.StreamWriter | None = None
        try:
            sock = self.source.socket() if self.source else socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            except OSError:
                sock.close()
                return
            other_reader, other = await asyncio.open_connection(sock=sock)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, other), name="forward in")
                group.create_task(_pump(other_reader, writer), name="forward out")
        except* OSError:
            pass  # one end broke: so does the other
        except* asyncio.CancelledError:
            pass  # the link is being closed; the task ends here
        finally:
            for end in (writer, other):
                if end is not None:
                    end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


class _Emulator:
    """The link by namespaces."""

    kind = "namespaces"

    def __init__(self, orders: dict[str, Any]) -> None:
        """Raises OSError where it isn't allowed."""
        self.near = _Namespace(NEAR, FAR)
        self.far = _Namespace(FAR, NEAR)
        self.host, self.port = NEAR, int(orders["hub_port"])
        self.namespace = f"/proc/{os.getpid()}/fd/{self.far.fd}"
        rng = random.Random(orders["seed"])  # noqa: S311 - chance that can be repeated
        self.link = Link(_profile(orders["profile"]), rng.random, asyncio.get_running_loop().time())
        self._far_ports = [int(port) for port in orders["far_ports"]]
        self._congestion: str | None = orders["congestion"]

    async def start(self) -> None:
        _Carrier(self.link, self.link.up, self.far.tun, self.near.tun)
        _Carrier(self.link, self.link.down, self.near.tun, self.far.tun)
        broker = self.near.socket()
        if self._congestion:
            broker.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion.encode())
        broker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        broker.bind((NEAR, self.port))
        await _Forwarder(broker, None, self.port).start()
        for port in self._far_ports:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            await _Forwarder(listener, self.far, port).start()

    async def do(self, order: dict[str, Any]) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        match order["do"]:
            case "cut":
                self.link.cut()
            case "restore":
                self.link.restore()
            case "reshape":
                self.link.reshape(_profile(order["profile"]), now)
        facts: dict[str, Any] = {"is_up": self.link.is_up(now), "is_cut": self.link.is_cut}
        for name, way in (("up", self.link.up), ("down", self.link.down)):
            facts[name] = {
                "packets": way.packets,
                "bytes": way.bytes,
                "lost": way.lost,
                "overflowed": way.overflowed,
                "unheard": way.unheard,
            }
        return facts

    async def end(self) -> None:
        self.far.kill_all()


class _Substitute:
    """The link by a TCP proxy on the loopback: the far end is this machine's own network."""

    kind = "proxy"
    namespace = None
    host = "127.0.0.1"

    def __init__(self, orders: dict[str, Any]) -> None:
        self.proxy = Proxy(int(orders["hub_port"]), profile=_profile(orders["profile"]))
        self._is_cut = False

    @property
    def port(self) -> int:
        return self.proxy.port

    async def start(self) -> None:
        await self.proxy.__aenter__()

    async def do(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "cut":
                self._is_cut = True
                await self.proxy.cut()
            case "restore":
                self._is_cut = False
                self.proxy.restore()
            case "reshape":
                self.proxy.follow(_profile(order["profile"]))
        counts = {"packets": 0, "lost": 0, "overflowed": 0, "unheard": 0}
        return {
            "is_up": self.proxy.open.is_set(),
            "is_cut": self._is_cut,
            "up": {**counts, "bytes": self.proxy.bytes_up},
            "down": {**counts, "bytes": self.proxy.bytes_down},
        }

    async def end(self) -> None:
        await self.proxy.__aexit__()


def _made(orders: dict[str, Any]) -> tuple[_Emulator | _Substitute, str]:
    if orders["kind"] == "proxy":
        return _Substitute(orders), "asked for"
    try:
        return _Emulator(orders), ""
    except OSError as error:
        if orders["kind"] == "namespaces":
            raise
        return _Substitute(orders), f"no network namespaces with TUN devices here ({error})"


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    first = await lines.readline()
    if not first:
        return
    try:
        link, why = _made(json.loads(first))
    except OSError as error:
        _answer({"error": str(error)})
        return
    try:
        await link.start()
    except OSError as error:
        await link.end()
        _answer({"error": str(error)})
        return
    _answer({"kind": link.kind, "why": why, "host": link.host, "port": link.port, "namespace": link.namespace})
    try:
        while line := await lines.readline():
            _answer(await link.do(json.loads(line)))
    finally:
        await link.end()


def _answer(facts: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(facts), flush=True)


def main() -> None:
    """Runs until its orders end. Ctrl-C is not for this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
