"""[IO] Programs on this machine, for tests and the demonstration: each in a process group of its own; and brokers."""

import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from heliograph.errors import NotFoundError, WaitError
from heliograph.mosquitto import MAX_PACKET_BYTES, Listener, configuration

POLL_S = 0.02
PORTS = range(20_000, 28_192)
"""Where `free_port` looks: below those that kernels give to connections, and to whoever asks for any."""
_PORTS_AT_ONCE = 128
_claims: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of the loopback nobody listens on, and which no other process is given as long as this one lives.

    So it may be kept for later, and for a program that is started again and again. A process is given so many in turn.

    Raises:
        NotFoundError: there is none left.
    """
    for port in itertools.islice(_ports(os.getpid()), _PORTS_AT_ONCE):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NotFoundError(f"none of the ports {PORTS.start} to {PORTS.stop - 1} is left: end some of what uses them")


@functools.cache
def _ports(_of_process: int) -> Iterator[int]:
    """A process's own, again and again: they are claimed by a name that is taken as long as the process lives."""
    for first in PORTS[::_PORTS_AT_ONCE]:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0heliograph-ports-{first}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return itertools.cycle(range(first, first + _PORTS_AT_ONCE))
    return iter(())


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

    def wait_for_line(self, text: str, timeout_s: float = 60.0) -> str:
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
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()  # if it lives: it was forked just now, and has no group of its own yet
        self.process.wait()

    def terminate(self, timeout_s: float = 60.0) -> int:
        """SIGTERM to the program, then SIGKILL to its group when the time is up; returns the exit status."""
        if self.is_alive:
            self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        self.kill()  # and whatever it left behind in its group
        return self.process.wait()


_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def spawn(
    argv: Sequence[str | Path], log: Path, *, env: dict[str, str] | None = None, dies_with_us: bool = False
) -> Running:
    """Starts a program; `env` is added to ours. Appends to `log`.

    With `dies_with_us` it gets a SIGTERM when the thread that called this ends, however it ends, even by SIGKILL.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if dies_with_us:
        argv = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *argv]
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
            wait_until(lambda port=port: is_listening(port) or not running.is_alive, 60.0, f"port {port}")  # type: ignore[misc]
            if not running.is_alive:
                raise WaitError(
                    f"{running.log.name}: ended with {running.process.returncode}: {running.output()[-500:]}"
                )
    except WaitError:
        running.kill()
        raise
