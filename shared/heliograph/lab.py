"""Brokers, processes and a bad road on one machine, for tests and the demonstration.

`spawn` starts a program in a process group of its own with its output in a file; `Proxy` is a TCP road between client
and broker with a rate, a delay and cuts; `Realm` is a hub and nodes as processes. Nothing here is for production.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliograph.errors import NotFoundError, RefusedError, TransportError, WaitError
from heliograph.mosquitto import MAX_PACKET_BYTES, Listener, configuration

POLL_S = 0.02


def free_port() -> int:
    """A TCP port of the loopback nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Looks again and again until the condition holds.

    Raises:
        WaitError: it didn't in time; the message says `what` was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise WaitError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


@dataclass
class Running:
    """A program that was started; both its outputs go to `log`."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def wait_for_line(self, text: str, timeout_s: float = 10.0) -> str:
        """The first whole line that contains `text`.

        Raises:
            WaitError: the program ended or the time was up before; the message ends with its last lines.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            was_alive = self.is_alive
            for line in self.output().splitlines(keepends=True):
                if text in line and line.endswith("\n"):
                    return line.rstrip("\n")
            if not was_alive or time.monotonic() > deadline:
                why = f"within {timeout_s:g} s" if was_alive else f"before it ended with {self.process.returncode}"
                tail = "\n".join(self.output().splitlines()[-8:])
                raise WaitError(f"{self.log.name} did not say {text!r} {why}; it said:\n{tail}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """SIGKILL to its whole process group, and reaps it. Idempotent."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self, timeout_s: float = 10.0) -> int:
        """SIGTERM to the program, then SIGKILL to its group when the time is up; returns the exit status."""
        if self.is_alive:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.process.wait()
        finally:
            # Whatever it left behind in its group.
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


def spawn(argv: Sequence[str | Path], log: Path, *, env: dict[str, str] | None = None) -> Running:
    """Starts a program; `env` is added to ours. Appends to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=None if env is None else {**os.environ, **env},
        )
    return Running(process, log)


def find_mosquitto() -> Path:
    """The broker's program, on PATH or where distributions put it.

    Raises:
        NotFoundError: it isn't installed.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if found is None:
        raise NotFoundError(
            "mosquitto is not installed: install the package mosquitto, or the wheel iotcore for a demo"
        )
    return Path(found)


def start_mosquitto(folder: Path, *listeners: Listener) -> Running:
    """A Mosquitto with the hub's settings, its memory kept in `folder`; returns when every port answers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "mosquitto.conf"
    user = "root" if os.geteuid() == 0 else None
    config.write_text(configuration(str(folder.absolute()), *listeners, user=user))
    running = spawn([find_mosquitto(), "-c", config], folder / "mosquitto.out")
    _wait_for_ports(running, [listener.port for listener in listeners])
    return running


IOTCORE_PROGRAM = (
    "import sys; from iotcore import IotCoreBroker; "
    "IotCoreBroker(listen=sys.argv[1], port=int(sys.argv[2]), max_payload_size=int(sys.argv[3])).run_forever()"
)


def start_iotcore(folder: Path, port: int) -> Running:
    """The broker from the iotcore wheel: MQTT 3.1.1, everything in memory; returns when its port answers."""
    argv = [sys.executable, "-c", IOTCORE_PROGRAM, "127.0.0.1", str(port), str(MAX_PACKET_BYTES)]
    running = spawn(argv, folder / "iotcore.out")
    _wait_for_ports(running, [port])
    return running


def _wait_for_ports(running: Running, ports: list[int]) -> None:
    try:
        for port in ports:
            wait_until(lambda port=port: is_listening(port) or not running.is_alive, 10.0, f"port {port}")  # type: ignore[misc]
            if not running.is_alive:
                raise WaitError(
                    f"{running.log.name}: ended with {running.process.returncode}: {running.output()[-500:]}"
                )
    except WaitError:
        running.kill()
        raise


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
    count: Callable[[int], None]
    free_at: float = 0.0

    async def carry(self) -> None:
        loop = asyncio.get_running_loop()
        # Bounded: the delay times the rate, as long as `read` waits for the rate.
        async with asyncio.TaskGroup() as group:
            line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=4096)
            group.create_task(self._deliver(line), name="road delivers")
            while data := await self.reader.read(1400):
                await self.proxy.open.wait()
                rate = self.proxy.rate_bytes_per_s
                now = loop.time()
                self.free_at = max(self.free_at, now) + (len(data) / rate if rate else 0.0)
                await line.put((self.free_at + self.proxy.delay_s, data))
                # No queue longer than a quarter second before the sender feels it: a modest buffer at the link.
                await asyncio.sleep(max(0.0, self.free_at - now - 0.25))
            await line.put((self.free_at + self.proxy.delay_s, b""))

    async def _deliver(self, line: "asyncio.Queue[tuple[float, bytes]]") -> None:
        loop = asyncio.get_running_loop()
        while True:
            at, data = await line.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            await self.proxy.open.wait()
            if not data:
                self.writer.write_eof()
                return
            self.count(len(data))
            self.writer.write(data)
            await self.writer.drain()


@dataclass
class Proxy:
    """A TCP road to a port: `rate_bytes_per_s` each way (0: unlimited), one-way `delay_s`; both may change any time.

    `cut` stalls every connection and answers no new one, as a dead link does; `cut(reset=True)` breaks them instead.

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
    _server: asyncio.Server | None = None
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def __aenter__(self) -> "Proxy":
        self.open.set()
        listener = _small_buffers(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=4096)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._drop()

    async def cut(self, *, reset: bool = False) -> None:
        """The link is down until `restore`; connections hang, or are reset."""
        self.open.clear()
        if reset:
            await self._drop()

    def restore(self) -> None:
        """The link is up again."""
        self.open.set()

    async def _drop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
                group.create_task(_Road(self, reader, far, self._count_up).carry(), name="road up")
                group.create_task(_Road(self, far_reader, writer, self._count_down).carry(), name="road down")
        except* OSError:
            pass  # either end hung up: so do we
        except* asyncio.CancelledError:
            pass  # dropped on purpose; the task ends here
        finally:
            self._tasks.discard(task)
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()

    def _count_up(self, count: int) -> None:
        self.bytes_up += count

    def _count_down(self, count: int) -> None:
        self.bytes_down += count


def infer(url: str, model: str, request: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """The node's answer to one Open Inference Protocol request.

    Raises:
        TransportError: nobody answered, or not with 200; the message has the answer's own words.
    """
    body = json.dumps(request).encode()
    asked = urllib.request.Request(  # noqa: S310 (a URL of this machine, made by Realm)
        f"{url}/v2/models/{model}/infer", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s) as answer:  # noqa: S310
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise TransportError(f"{url} answered {error.code}: {error.read(400).decode(errors='replace')}") from error
    except OSError as error:
        raise TransportError(f"{url} did not answer: {error}") from error


class Realm:
    """A hub and its nodes on this machine, each a process of its own, driven by the commands that operators type."""

    def __init__(self, folder: Path, *, name: str = "demo", rate_bytes_per_s: int | None = None) -> None:
        """`folder` is made; the hub's port is chosen now and kept across restarts."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = name
        self.hub_dir = folder / "hub"
        self.port = free_port()
        self.rate_bytes_per_s = rate_bytes_per_s
        self._hub: Running | None = None
        self._nodes: dict[str, Running] = {}
        self._http: dict[str, int] = {}

    def __enter__(self) -> "Realm":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- commands ---------------------------------------------------------------------------------------------------

    def cli(self, *args: str | Path) -> str:
        """What the command printed on stdout.

        Raises:
            RefusedError: it ended with another status than 0; the message is what it said.
        """
        done = subprocess.run(
            [sys.executable, "-m", "heliograph.cli", *map(str, args)],
            env={**os.environ, "HELIOGRAPH_HUB": str(self.hub_dir)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            told = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise RefusedError(f"{' '.join(map(str, args[:3]))} ended with {done.returncode}: {' '.join(told)[-600:]}")
        return done.stdout

    def cli_json(self, *args: str | Path) -> Any:
        """The JSON that a read printed; raises as `cli`."""
        return json.loads(self.cli(*args, "--json"))

    # --- the hub ----------------------------------------------------------------------------------------------------

    def init(self) -> None:
        """Makes the development realm."""
        self.cli("hub", "init", self.hub_dir, "--realm", self.name)

    def start_hub(self) -> None:
        """Returns when the hub answers operators."""
        rate = ["--rate", str(self.rate_bytes_per_s)] if self.rate_bytes_per_s else []
        argv: list[str | Path] = [
            sys.executable,
            "-m",
            "heliograph.cli",
            "hub",
            "run",
            self.hub_dir,
            "--port",
            str(self.port),
            *rate,
        ]
        hub = self._hub = spawn(argv, self.folder / "hub.log")

        def answers() -> bool:
            if not hub.is_alive:
                raise WaitError(f"the hub ended: {hub.output()[-600:]}")
            try:
                self.cli("fleet", "list")
            except RefusedError:
                return False
            return True

        wait_until(answers, 30.0, "the hub answers")

    def kill_hub(self) -> None:
        """SIGKILL to the hub and its broker: a power cut."""
        assert self._hub is not None, "start_hub first"
        self.kill_broker()
        self._hub.kill()

    def kill_broker(self) -> None:
        """SIGKILL to the broker; the hub starts it again."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int((self.hub_dir / "broker" / "pid").read_text()), signal.SIGKILL)

    def fleet(self) -> list[dict[str, Any]]:
        """`fleet list`."""
        return list(self.cli_json("fleet", "list"))

    # --- nodes ------------------------------------------------------------------------------------------------------

    def node_dir(self, node: str) -> Path:
        """The folder of `site/node`."""
        return self.folder / "nodes" / node.replace("/", "-")

    def url(self, node: str) -> str:
        """Where the node answers requests."""
        return f"http://127.0.0.1:{self._http[node]}"

    def join(self, node: str, *, port: int | None = None) -> None:
        """Enrols the node by a token; `port` is a road to the broker that it takes from then on."""
        join_string = self.cli("fleet", "token", node).strip()
        self._http[node] = free_port()
        self.cli("node", "join", join_string, self.node_dir(node), "--http-port", str(self._http[node]))
        if port:
            file = self.node_dir(node) / "node.toml"
            file.write_text(file.read_text().replace(f"port = {self.port}\n", f"port = {port}\n"))

    def start_node(self, node: str) -> None:
        """Starts agent and server under their supervisor; returns at once."""
        argv: list[str | Path] = [sys.executable, "-m", "heliograph.cli", "node", "run", self.node_dir(node)]
        self._nodes[node] = spawn(argv, self.folder / f"{node.replace('/', '-')}.log")

    def kill_node(self, node: str) -> None:
        """SIGKILL to all the node's processes: a power cut."""
        self._nodes[node].kill()

    def stop_node(self, node: str) -> None:
        """SIGTERM, and waits."""
        self._nodes[node].terminate()

    def status(self, node: str) -> dict[str, Any]:
        """`node status`."""
        return dict(self.cli_json("node", "status", self.node_dir(node)))

    def stop(self) -> None:
        """Ends everything, nodes first. Idempotent."""
        for running in (*self._nodes.values(), *([self._hub] if self._hub else [])):
            running.terminate()
