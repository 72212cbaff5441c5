"""[IO] `hub run`: one service with its broker and its API as a process, alone in its folder; one TaskGroup owns all."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from heliograph.errors import ConfigError, HeliographError, RefusedError
from heliograph.toml import parse_toml
from heliograph.unix import bind
from heliograph_hub import upkeep
from heliograph_hub.access import HOST, Access, Doors
from heliograph_hub.api.application import application
from heliograph_hub.broker import Broker
from heliograph_hub.client import HUB_FILE, SOCKET_NAME
from heliograph_hub.service import Service

LOCK_FILE = "hub.lock"


def run(
    folder: Path,
    port: int,
    rate: int | None,
    node_rate: int | None,
    say: Callable[[str], None],
    doors: Doors | None = None,
) -> None:
    """`hub run`: blocks until SIGINT or SIGTERM. Without `doors` the broker has no TLS, and the loopback only.

    Raises:
        ConfigError: no hub folder, or its port is taken.
        RefusedError: a hub runs there already.
    """
    try:
        table = parse_toml((folder / HUB_FILE).read_bytes(), str(folder / HUB_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{folder} is no hub folder: heliograph hub init {folder}") from error
    except OSError as error:
        raise ConfigError(f"{folder / HUB_FILE} can't be read: {error}") from error
    if table.get("format") != 1:
        raise ConfigError(f"{folder / HUB_FILE} is of format {table.get('format')!r}, this version reads 1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("uvicorn", "tuf", "securesystemslib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _locked(folder):

        async def serve() -> None:
            await _serve(Service(folder, port, rate, node_rate, doors), doors, say)

        try:
            asyncio.run(serve())
        except BaseExceptionGroup as group:
            found: BaseException = group
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            if isinstance(found, HeliographError):
                raise found from None
            raise


async def _serve(service: Service, doors: Doors | None, say: Callable[[str], None]) -> None:
    """Runs all that a hub does until SIGINT or SIGTERM, then stops cleanly."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    service.begin()
    await asyncio.to_thread(service.workshop.request_all_recipes)
    service.workshop.wake()
    access = service.access
    if access is None:
        broker = Broker(service.folder, service.port, HOST)
    else:
        broker = Broker(service.folder, service.port, access.listen, doors=access.listeners())
        access.on_change = broker.reload
    await broker.start()
    try:
        with _listening(service.folder) as listener, _listening_to_all(doors) as far:
            config = uvicorn.Config(
                application(service), lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=2
            )
            server = _Server(config)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(broker.run(), name="broker"),
                    group.create_task(service.mqtt.run(), name="mqtt"),
                    group.create_task(service.announcing.publish_retained(service.mqtt), name="publish"),
                    group.create_task(service.send_chunks(), name="chunks"),
                    group.create_task(service.workshop.make_recipes(), name="recipes"),
                    group.create_task(service.workshop.seal(), name="seals"),
                    group.create_task(upkeep.renew(service), name="renew"),
                    group.create_task(upkeep.flush(service), name="flush"),
                    group.create_task(upkeep.drop_old(service), name="retention"),
                    group.create_task(upkeep.keep_doors(service), name="doors"),
                ]
                group.create_task(server.serve(sockets=[listener]), name="api")
                servers = [server]
                if far is not None and access is not None:
                    servers.append(_Server(_config_for_all(service, access)))
                    group.create_task(servers[1].serve(sockets=[far]), name="api for tokens")
                for line in greeting(service, broker):
                    say(line)
                await stop.wait()
                for one in servers:
                    one.should_exit = True
                for task in tasks:
                    task.cancel()
    finally:
        await broker.stop()
        upkeep.flush_now(service)
        service.database.close()
    say("stopped")


def greeting(service: Service, broker: Broker) -> list[str]:
    """What `hub run` says once it listens."""
    named, held = service.named_denials, service.denials.head.count
    lost = f"DENIALS ARE MISSING: the timestamp names {named}, the database has {held}: restore a newer copy"
    unsigned = f"NOTHING CAN BE SIGNED ANEW, what was signed before is announced: {service.unsigned}"
    access = service.access
    return [
        *([lost] if named > held else []),
        *(f"A DOCUMENT IS MISSING: {what}: set it again" for what in service.control.lost()),
        *([unsigned] if service.unsigned else []),
        f"hub of realm {service.realm} in {service.folder}, broker {broker.kind} on {broker.listen}:{service.port}",
        *(
            [f"TLS: nodes on port {service.port}, new nodes on {access.enroll_port}, as {access.host}"]
            if access
            else []
        ),
        *broker.notes,
        f"operator API on {service.folder / SOCKET_NAME}; Ctrl-C stops",
    ]


def _config_for_all(service: Service, access: Access) -> uvicorn.Config:
    """The API for those who bring a token, under TLS."""
    certificate, key = access.shown
    config = uvicorn.Config(
        application(service, service.operators),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    config.load()
    assert config.ssl is not None  # it was given a certificate
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return config


class _Server(uvicorn.Server):
    """uvicorn under our TaskGroup: signals are the service's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the handlers alone."""
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the kernel lets go of it however the process ends."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(f"a hub is running in {folder} already: stop it first, or use that one") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listening_to_all(doors: Doors | None) -> Iterator[socket.socket | None]:
    """The API's port for operators with a token, if there is to be one.

    Raises:
        ConfigError: it is taken.
    """
    if doors is None or not doors.api_port:
        yield None
        return
    family = socket.AF_INET6 if ":" in doors.listen else socket.AF_INET
    try:
        listener = socket.create_server((doors.listen, doors.api_port), family=family, backlog=64)
    except OSError as error:
        raise ConfigError(
            f"port {doors.api_port} on {doors.listen} is not free: name another with --api-port"
        ) from error
    try:
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()


@contextlib.contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    """The API's socket, for the owner only before anybody can connect; a stale one of a killed hub is replaced."""
    listener = bind(folder / SOCKET_NAME, 0o600)
    try:
        listener.listen(64)
        yield listener
    finally:
        listener.close()
        (folder / SOCKET_NAME).unlink(missing_ok=True)
