"""[IO] A TCP road with a rate, a delay and cuts: what there is where namespaces can't be made, and for simple tests."""

import asyncio
import socket
from dataclasses import dataclass, field

from heliograph.lab.link import Outages, Profile


def _small_buffers(sock: socket.socket) -> socket.socket:
    """A receive buffer so small that the sender feels the road, not the kernel's megabytes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    return sock


@dataclass(eq=False)
class _Road:
    """One direction of one connection: bytes leave it at the proxy's rate, each after its delay."""

    proxy: "Proxy"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_up: bool
    free_at: float = 0.0

    async def carry(self) -> None:
        loop = asyncio.get_running_loop()
        # Bounded: the delay times the rate, as long as `read` waits for the rate.
        async with asyncio.TaskGroup() as group:
            line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=4096)
            group.create_task(self._deliver(line), name="road delivers")
            while data := await self.reader.read(1400):
                await self.proxy.open.wait()
                rate, delay_s = self.proxy.shape(self.is_up)
                now = loop.time()
                self.free_at = max(self.free_at, now) + (len(data) / rate if rate else 0.0)
                await line.put((self.free_at + delay_s, data))
                # No queue longer than a quarter second before the sender feels it: a modest buffer at the link.
                await asyncio.sleep(max(0.0, self.free_at - now - 0.25))
            await line.put((self.free_at + self.proxy.shape(self.is_up)[1], b""))

    async def _deliver(self, line: "asyncio.Queue[tuple[float, bytes]]") -> None:
        loop = asyncio.get_running_loop()
        while True:
            at, data = await line.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            await self.proxy.open.wait()
            if not data:
                self.writer.write_eof()
                return
            if self.is_up:
                self.proxy.bytes_up += len(data)
            else:
                self.proxy.bytes_down += len(data)
            self.writer.write(data)
            await self.writer.drain()


@dataclass
class Proxy:
    """A TCP road to a port: `rate_bytes_per_s` each way (0: unlimited), one-way `delay_s`; both may change any time.

    `cut` stalls every connection and answers no new one, as a dead link does; `cut(reset=True)` breaks them instead.
    `follow` takes rates, delays and outages from a profile instead; loss and a queue that drops can't be had of TCP.

    Attributes:
        bytes_up, bytes_down: carried from and to the clients since the start.
        connections: accepted since the start.
    """

    target_port: int
    rate_bytes_per_s: float = 0.0
    delay_s: float = 0.0
    target_host: str = "127.0.0.1"
    port: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    profile: Profile | None = None
    _server: asyncio.Server | None = None
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)
    _is_cut: bool = False
    _is_out: bool = False
    _weather: "asyncio.Task[None] | None" = None

    async def __aenter__(self) -> "Proxy":
        self.open.set()
        listener = _small_buffers(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=4096)
        self.port = int(self._server.sockets[0].getsockname()[1])
        if self.profile is not None:
            self.follow(self.profile)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [*self._tasks, *([self._weather] if self._weather else [])]
        await _end(tasks)

    async def cut(self, *, reset: bool = False) -> None:
        """The link is down until `restore`; connections hang, or are reset."""
        self._is_cut = True
        self._turn()
        if reset:
            await _end(list(self._tasks))

    def restore(self) -> None:
        """The link is up again, unless an outage of the profile is on."""
        self._is_cut = False
        self._turn()

    def follow(self, profile: Profile) -> None:
        """Rates, delays and outages are the profile's from now on."""
        self.profile = profile
        if self._weather is not None:
            self._weather.cancel()
        self._weather = None
        self._is_out = False
        self._turn()
        if profile.outages is not None:
            self._weather = asyncio.create_task(self._follow_outages(profile.outages), name="proxy outages")

    def shape(self, is_up: bool) -> tuple[float, float]:
        """Bytes a second and delay of one direction, as they are now."""
        if self.profile is None:
            return self.rate_bytes_per_s, self.delay_s
        shape = self.profile.up if is_up else self.profile.down
        return shape.rate_bytes_per_s, shape.delay_s

    async def _follow_outages(self, outages: Outages) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            after_s = loop.time() - began
            self._is_out = outages.is_down(after_s)
            self._turn()
            # A little late rather than early: then the answer has changed.
            await asyncio.sleep(outages.next_change_s(after_s) + 0.001)

    def _turn(self) -> None:
        if self._is_cut or self._is_out:
            self.open.clear()
        else:
            self.open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        far: asyncio.StreamWriter | None = None
        try:
            await self.open.wait()
            near = _small_buffers(socket.socket())
            near.setblocking(False)
            await asyncio.get_running_loop().sock_connect(near, (self.target_host, self.target_port))
            far_reader, far = await asyncio.open_connection(sock=near, limit=4096)
            async with asyncio.TaskGroup() as group:
                group.create_task(_Road(self, reader, far, True).carry(), name="road up")
                group.create_task(_Road(self, far_reader, writer, False).carry(), name="road down")
        except* OSError:
            pass  # either end hung up: so do we
        except* asyncio.CancelledError:
            pass  # dropped on purpose; the task ends here
        finally:
            self._tasks.discard(task)
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()


async def _end(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
