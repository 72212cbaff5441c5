"""The MQTT broker beside the hub: started, watched, started again.

Mosquitto if it is installed, else the iotcore wheel, which keeps everything in memory and speaks only MQTT 3.1.1:
enough for a demonstration. Either way the broker is no store: it may be killed any time, and hub and nodes catch up.

Without TLS it listens on the loopback only, and `notes` says that anybody there may do anything. Its doors with TLS are
made by `heliograph_hub.access`.
"""

import asyncio
import importlib.util
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Literal, NoReturn, Self

from heliograph.errors import ConfigError, NotFoundError, TransportError
from heliograph.lab import IOTCORE_PROGRAM, find_mosquitto
from heliograph.mosquitto import MAX_PACKET_BYTES, Listener, configuration

log = logging.getLogger("heliograph.hub.broker")

READY_S = 10.0
STOP_S = 5.0
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
STEADY_S = 60.0
LOG_BYTES = 10 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Broker:
    """One broker process, its files in `folder`/broker. `async with` it, and `run` it inside: so it always ends.

    Attributes:
        kind: which broker is used.
        notes: what the operator has to know about it, one sentence each; known from the beginning.
        starts: how often it was started.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        listen: str = "127.0.0.1",
        *,
        kind: Literal["mosquitto", "iotcore"] | None = None,
        doors: tuple[Listener, ...] = (),
    ) -> None:
        """Chooses the broker; starts nothing. With `doors`, which have TLS, there is no other way in.

        Raises:
            ConfigError: neither Mosquitto nor iotcore is there, or only iotcore and it should have TLS, or one without
                TLS should listen beyond the loopback.
        """
        if not doors and listen not in LOOPBACK:
            raise ConfigError(f"a broker without TLS listens on the loopback only, not on {listen}")
        self._listeners = doors or (Listener(port, listen),)
        self.folder = folder.absolute() / "broker"
        self.port = port
        self.listen = listen
        self.starts = 0
        self.notes: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._program: Path | None = None
        if kind != "iotcore":
            try:
                self._program = find_mosquitto()
            except NotFoundError as error:
                if kind == "mosquitto":
                    raise ConfigError(str(error)) from error
        self.kind: Literal["mosquitto", "iotcore"] = "mosquitto" if self._program else "iotcore"
        if self._program is None:
            if importlib.util.find_spec("iotcore") is None:
                raise ConfigError(
                    "no MQTT broker: install the package mosquitto, or, for a demonstration, the wheel iotcore"
                )
            if doors:
                raise ConfigError(
                    "iotcore has neither TLS nor access lists: install the package mosquitto, or, for a demonstration "
                    "on this machine, name a port without TLS: --plain-port"
                )
            self.notes.append("the broker is iotcore, in memory and for demonstrations only: install mosquitto")
        if doors and os.geteuid() == 0 and any(door.address not in LOOPBACK for door in doors):
            self.notes.append(
                "the broker runs as root and can be reached from elsewhere: run the hub as a user of its own"
            )
        if not doors:
            self.notes.append(
                f"the broker on port {port} is open to this machine only: no passwords, no TLS, for development"
            )

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when the broker answers on its port. An own broker left over from a killed hub is ended first.

        Raises:
            ConfigError: the port is taken, or the broker doesn't start; the message says what to do.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if await self._end_leftovers():
            await self._until_free()
        self._check_port()
        await self._spawn()

    async def run(self) -> NoReturn:
        """Starts the broker again whenever it dies, with back-off; ends it when cancelled. Call after `start`."""
        loop = asyncio.get_running_loop()
        retry_s = FIRST_RETRY_S
        try:
            while True:
                process = self._process
                if process is None:
                    raise RuntimeError("run is for a broker that was started")
                since = loop.time()
                status = await process.wait()
                if loop.time() - since > STEADY_S:
                    retry_s = FIRST_RETRY_S
                log.warning("broker ended with %d, starting it again in %g s", status, retry_s)
                while True:
                    await asyncio.sleep(retry_s)
                    retry_s = min(2 * retry_s, LONGEST_RETRY_S)
                    try:
                        self._check_port()
                        await self._spawn()
                    except ConfigError as error:
                        log.error("broker does not start, next try in %g s: %s", retry_s, error)
                    else:
                        break
        finally:
            await self.stop()

    def reload(self) -> None:
        """Has the broker read its certificates, the list of those revoked, and its access lists again."""
        if self.pid is not None and self.kind == "mosquitto":
            os.kill(self.pid, signal.SIGHUP)

    async def stop(self) -> None:
        """Ends the broker, which saves its memory, and waits for it. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def _config(self) -> Path:
        return self.folder / "mosquitto.conf"

    def _argv(self) -> list[str]:
        if self._program is None:
            program = [sys.executable, "-c", IOTCORE_PROGRAM, self.listen, str(self.port), str(MAX_PACKET_BYTES)]
            return [*program, str(self.folder)]  # which is for `_leftovers`
        return [str(self._program), "-c", str(self._config)]

    def _check_port(self) -> None:
        for one in self._listeners:
            family = socket.AF_INET6 if ":" in one.address else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((one.address, one.port))
                except OSError as error:
                    raise ConfigError(
                        f"port {one.port} on {one.address} is not free ({error.strerror}): "
                        "stop the program that has it, or name another with --port"
                    ) from error

    async def _spawn(self) -> None:
        if self._program is not None:
            # Started by root, Mosquitto becomes the user mosquitto, who can't write into a folder that is ours alone;
            # on the loopback, for development, it stays who started it.
            user = "root" if os.geteuid() == 0 else None
            self._config.write_text(configuration(str(self.folder), *self._listeners, user=user))
        output = self.folder / "output.log"
        for path in (output, self.folder / "mosquitto.log"):
            if path.exists() and path.stat().st_size > LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        with output.open("ab") as stream:
            # A session of its own: ctrl-C is for the hub, which then ends the broker in order.
            process = await asyncio.create_subprocess_exec(
                *self._argv(), stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        self._process = process
        self._pid_file.write_text(f"{process.pid}\n")
        try:
            await self._until_ready(process)
        except TransportError as error:
            await self.stop()
            raise ConfigError(f"the broker {self.kind} does not start: {error}; see {self.folder}") from error
        self.starts += 1

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        waited = list(self._listeners)
        try:
            async with asyncio.timeout(READY_S):
                while process.returncode is None:
                    if not waited:
                        return
                    try:
                        _, writer = await asyncio.open_connection(near(waited[0].address), waited[0].port)
                    except OSError:
                        await asyncio.sleep(0.02)
                        continue
                    writer.close()
                    waited.pop(0)
        except TimeoutError as error:
            raise TransportError(f"port {self.port} does not answer within {READY_S:g} s") from error
        raise TransportError(f"it ended with {process.returncode}")

    def _leftovers(self) -> list[int]:
        """Process numbers of brokers of this folder that outlived a hub, which may not have written them down."""
        arguments = [os.fsencode(part) for part in self._argv()[1:]]
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                argv = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended
            if argv[1:-1] == arguments:
                found.append(int(process.name))
        return found

    async def _until_free(self) -> None:
        """The threads of a process that just ended may hold its port a moment longer than it lives."""
        try:
            async with asyncio.timeout(STOP_S):
                while True:
                    try:
                        return self._check_port()
                    except ConfigError:
                        await asyncio.sleep(0.02)
        except TimeoutError:
            return  # `start` says whose it may be

    async def _end_leftovers(self) -> bool:
        """Whether there were any."""
        pids = self._leftovers()
        for pid in pids:
            log.warning("ending the broker with process number %d that an earlier hub left", pid)
            await _end(pid)
        return bool(pids)


def near(address: str) -> str:
    """Where this machine reaches what listens at an address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared, not bound


async def _end(pid: int) -> None:
    """Ends a process that is not our child."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = loop.time() + STOP_S
        while loop.time() < deadline:
            if not _runs(pid):
                return
            await asyncio.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
