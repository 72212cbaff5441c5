"""[IO] The server process: `python -m heliograph_site.serving DIR`.

Serves what the node's journal says is active, on loopback and on `DIR/serve.sock`; takes orders on `DIR/control.sock`.
Needs neither agent nor broker. Ends at SIGTERM or ctrl-C, after the requests it holds; its workers end with it, however
it ends.
"""

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from heliograph.errors import ConfigError, HeliographError
from heliograph.toml import MAX_TOML_BYTES, parse_toml
from heliograph.unix import bind, forbid_core_dumps
from heliograph_site.holdings import Holdings, OpenBox
from heliograph_site.journal import Journal
from heliograph_site.serving.admission import Limits
from heliograph_site.serving.asgi import Bodies, Handler, application
from heliograph_site.serving.gateway import Gateway, refusal
from heliograph_site.serving.server import Server
from heliograph_site.serving.spawn import Forks
from heliograph_site.serving.steering import steering
from heliograph_site.serving.tuned import opened

if TYPE_CHECKING:
    from heliograph.signing import PrivateKey

log = logging.getLogger(__name__)
_GRACE_S = 5
"""Requests still running when the server is told to end have so long."""
_IDLE_S = 30
_MAX_CONNECTIONS = 256


def main() -> None:
    """Runs the server of one node's folder."""
    forbid_core_dumps()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s server %(levelname)s %(message)s", stream=sys.stderr)
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m heliograph_site.serving DIR", file=sys.stderr)
        sys.exit(2)
    try:
        asyncio.run(run(Path(sys.argv[1]).absolute()))
    except HeliographError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


async def run(folder: Path, limits: Limits | None = None) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ConfigError: the folder, its node.toml or its journal can't be used, or a server runs there already.
    """
    limits = limits or Limits()
    host, port = _address(folder / "node.toml")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with _alone(folder / "server.lock"), contextlib.ExitStack() as sockets:
        tcp = sockets.enter_context(_listen(host, port))
        bound_host, bound_port = tcp.getsockname()[:2]
        unix = sockets.enter_context(bind(folder / "serve.sock", 0o660))
        control = sockets.enter_context(bind(folder / "control.sock", 0o600))
        url = f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
        pointers = folder / "journal.sqlite"
        active, fallback = Journal.pointers(pointers), Journal.pointers(pointers, "fallback")
        configs = {model: opened(statement) for model, statement in Journal.configs(pointers).items()}
        forks = Forks()
        try:
            async with asyncio.TaskGroup() as tasks:
                server = Server(Holdings(folder, _opener(folder)), forks, limits, tasks)
                steer = steering(server, {"http": url})
                fronts = [_front(Gateway(server).answer, limits), _front(steer, limits)]
                serving = [
                    tasks.create_task(fronts[0].serve(sockets=[tcp, unix]), name="gateway"),
                    tasks.create_task(fronts[1].serve(sockets=[control]), name="control"),
                ]
                boot = tasks.create_task(server.boot(active, fallback, configs), name="boot")
                log.info("listening on %s and %s", url, folder / "serve.sock")
                await stopping.wait()
                for front in fronts:
                    front.should_exit = True
                await asyncio.wait(serving)
                boot.cancel()
                server.close()
        finally:
            await forks.close()
            for name in ("serve.sock", "control.sock"):
                (folder / name).unlink(missing_ok=True)


class _Front(uvicorn.Server):
    """uvicorn, which leaves signals to us: two of them share this process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _front(handler: Handler, limits: Limits) -> _Front:
    bodies = Bodies(limits.body_bytes, limits.bodies_bytes, limits.request_s)
    config = uvicorn.Config(
        application(handler, refusal, bodies),
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    return _Front(config)


def _opener(folder: Path) -> OpenBox:
    """What the node's key opens. It is loaded when the first confidential file is, and what it needs with it."""

    @cache
    def key() -> "PrivateKey":
        from heliograph_site.folder import read_node_file
        from heliograph_site.identity import key_store

        return key_store(folder, read_node_file(folder).key_store).load()

    return lambda box: key().open_box(box)


def _address(path: Path) -> tuple[str, int]:
    """Where applications find the gateway; loopback only."""
    try:
        with path.open("rb") as file:
            facts = parse_toml(file.read(MAX_TOML_BYTES + 1), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} is not a node's folder: run `heliograph node join` first") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    host, port = facts.get("http_host", "127.0.0.1"), facts.get("http_port", 0)
    if not isinstance(port, int) or not 0 <= port < 65536:
        raise ConfigError(f"http_port {port!r} in {path} is not a port: use 0 to 65535")
    try:
        is_loopback = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError(f"http_host {host!r} in {path} is not a loopback address: use 127.0.0.1")
    return "127.0.0.1" if host == "localhost" else host, port


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds the folder's server lock."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"a server runs in {path.parent} already: stop it first") from None
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms a request.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"http_port {port} on {host} can't be used: {os.strerror(error.errno or 0)}") from error
    return sock


if __name__ == "__main__":
    main()
