"""[IO] A lab that runs: hub, broker and three nodes on shaped links, and a unix socket to cut, restore and kill them.

Everything is done by the one thread that calls `run`, in turn: orders come to it through a queue. What the nodes say of
themselves is read by a process of its own, so that this one needs nothing of the node's.
"""

import contextlib
import fcntl
import json
import os
import queue
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from heliograph.errors import ConfigError, HeliographError, NotFoundError, RefusedError, TransportError
from heliograph.lab.link import Profile
from heliograph.lab.processes import spawn
from heliograph.lab.realm import Realm

NODES = {"canary": "shop-1/till", "early": "shop-2/till", "general": "plant-1/gateway"}
"""The node of each ring."""
OTHERS = {"kill": ("hub", "broker"), "restore": ("hub",)}
"""What an order can name beside a node."""
SOCKET_NAME = "lab.sock"
ENVIRONMENT = "HELIOGRAPH_LAB"
ANSWER_S = 60.0
_LOOK_S = 0.5
_WATCH = """
import asyncio, json, pathlib, sys, time
from heliograph.errors import HeliographError
from heliograph_site.serving.control import ServerControl
from heliograph_site.status import status

def look(folder):
    try:
        found = status(folder)
    except (HeliographError, OSError) as error:
        return {"error": str(error)}
    try:
        serving = asyncio.run(asyncio.wait_for(ServerControl(folder / "control.sock").status(), 2))
        found["serving"] = serving.get("models", {})
    except (HeliographError, OSError, TimeoutError):
        found["serving"] = {}
    return found

folders = [pathlib.Path(name) for name in sys.argv[2:]]
out = pathlib.Path(sys.argv[1])
while True:
    beside = out.with_suffix(".new")
    beside.write_text(json.dumps([look(folder) for folder in folders]))
    beside.replace(out)
    time.sleep(1)
"""

Order = dict[str, Any]


def default_folder() -> Path:
    """Where a lab lives unless told otherwise: one for each user."""
    return Path(tempfile.gettempdir()) / f"heliograph-lab-{os.getuid()}"


class Lab:
    """`with Lab(...) as lab: lab.run(...)`: everything has ended when the block is left.

    Attributes:
        folder: with the hub's and the nodes' own, and their logs.
    """

    def __init__(self, folder: Path, profile: Profile, *, keep: bool) -> None:
        """Takes the folder; `keep` leaves it when the lab ends.

        Raises:
            RefusedError: a lab runs there, or starts or ends.
            ConfigError: something else lies there, or it can't be a folder of ours.
        """
        self.folder = folder.absolute()
        self.profile = profile
        self._keep = keep
        self._orders: queue.Queue[tuple[Order, Future[dict[str, Any]]]] = queue.Queue()
        # The folder in the temporary folder is emptied: somebody else's link there must lead to nothing of ours.
        self._claim = _claimed(self.folder, folder, may_be_link=keep)
        left = sorted(self.folder.iterdir())
        if left and keep:
            os.close(self._claim)
            raise ConfigError(f"{folder} is not empty: name another folder with --dir")
        for entry in left:  # of a lab that was killed
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.realm = Realm(self.folder / "realm", name="lab")
        self._hub_runs = False
        self._running: set[str] = set()

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.realm.stop()
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._claim)

    def start(self, say: Callable[[str], None]) -> None:
        """Hub first, then each node enrolled and on its link."""
        realm = self.realm
        say("starting the hub and its broker")
        realm.init()
        realm.start_hub()
        self._hub_runs = True
        for ring, node in NODES.items():
            say(f"starting {node} in ring {ring}, link {self.profile.name}")
            realm.cli("fleet", "assign", node.split("/")[0], ring)
            realm.join(node, profile=self.profile)
            realm.start_node(node)
            self._running.add(node)
        spawn(
            [sys.executable, "-c", _WATCH, self._seen, *(realm.node_dir(node) for node in NODES.values())],
            self.folder / "watch.log",
            dies_with_us=True,
        )

    def run(self, seconds: float | None, draw: Callable[[dict[str, Any]], None]) -> None:
        """Carries out orders and shows the state, until the time is up (None: for ever)."""
        end = None if seconds is None else time.monotonic() + seconds
        with self._listening():
            while end is None or time.monotonic() < end:
                draw(self.status())
                try:
                    order, answer = self._orders.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue
                try:
                    answer.set_result(self.do(order))
                except HeliographError as error:
                    answer.set_result({"error": str(error), "exit_code": error.exit_code})

    # --- orders -----------------------------------------------------------------------------------------------------

    def do(self, order: Order) -> dict[str, Any]:
        """Carries out one order and says in `said` what is so now.

        Raises:
            HeliographError: it can't be; the message says why.
        """
        realm, what, name = self.realm, order.get("do"), str(order.get("name", ""))
        match what, name:
            case "status", _:
                return self.status()
            case "kill", "hub":
                realm.kill_hub()
                self._hub_runs = False
                return {"said": "hub and broker are killed; bring them back with: heliograph lab restore hub"}
            case "kill", "broker":
                if not self._hub_runs:
                    raise RefusedError("the hub is killed, and its broker with it: heliograph lab restore hub")
                realm.kill_broker()
                return {"said": "the broker is killed; the hub starts it again"}
            case "restore", "hub":
                if not self._hub_runs:
                    realm.start_hub()
                    self._hub_runs = True
                return {"said": "the hub runs"}
            case "restore", "broker":
                raise ConfigError("a broker isn't restored: the hub starts it again by itself, as long as it runs")
        node = node_of(name, *OTHERS.get(str(what), ()))
        road = realm.roads[node]
        match what:
            case "cut":
                road.cut()
                return {"said": f"the link of {node} is down"}
            case "restore":
                road.restore()
                if node not in self._running:
                    realm.start_node(node)
                    self._running.add(node)
                return {"said": f"{node} runs and its link is up"}
            case "kill":
                realm.kill_node(node)
                self._running.discard(node)
                return {"said": f"{node} is killed; bring it back with: heliograph lab restore {name}"}
        raise ConfigError(f"a lab can't {what}")

    def status(self) -> dict[str, Any]:
        """What stands and runs, as far as it is known by now."""
        try:
            seen = json.loads(self._seen.read_text())
        except FileNotFoundError:
            seen = [{} for _ in NODES]
        nodes = [self._node(ring, node, facts) for (ring, node), facts in zip(NODES.items(), seen, strict=True)]
        road = next(iter(self.realm.roads.values()))
        return {
            "folder": str(self.folder),
            "hub": {"folder": str(self.realm.hub_dir), "runs": self._hub_runs, "port": self.realm.port},
            "links": {"kind": road.kind, "why": road.why},
            "nodes": nodes,
        }

    def _node(self, ring: str, node: str, seen: dict[str, Any]) -> dict[str, Any]:
        road = self.realm.roads[node]
        link = road.facts()
        models: dict[str, Any] = seen.get("models", {})
        lanes = seen.get("outbox", {}).values()
        return {
            "node": node,
            "ring": ring,
            "runs": node in self._running,
            "profile": road.profile.name,
            "link": "cut" if link["is_cut"] else "up" if link["is_up"] else "outage",
            "carried": {way: link[way] for way in ("up", "down")},
            "connected": seen.get("link", "down") == "up" and node in self._running,
            "models": {
                model: {
                    "phase": facts["phase"],
                    "active": (facts["active"] or {}).get("release"),
                    "p95_ms": seen.get("serving", {}).get(model, {}).get("latency_ms", {}).get("p95"),
                }
                for model, facts in models.items()
            },
            "bytes_received": seen.get("bytes_received", 0),
            "outbox": sum(lane["kept"] for lane in lanes),
            "folder": str(self.realm.node_dir(node)),
            "url": self.realm.url(node),
        }

    @property
    def _seen(self) -> Path:
        return self.folder / "seen.json"

    # --- the socket -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        orders = self._orders

        class Asked(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    order = json.loads(self.rfile.readline(65536))
                except ValueError:
                    return
                answer: Future[dict[str, Any]] = Future()
                orders.put((order, answer))
                with contextlib.suppress(OSError, TimeoutError):
                    self.wfile.write(json.dumps(answer.result(ANSWER_S)).encode() + b"\n")

        (self.folder / SOCKET_NAME).unlink(missing_ok=True)
        with _short(self.folder) as path, socketserver.ThreadingUnixStreamServer(path, Asked) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                (self.folder / SOCKET_NAME).unlink(missing_ok=True)


def _claimed(folder: Path, named: Path, *, may_be_link: bool) -> int:
    """A descriptor: as long as it is open, the folder is this lab's. Made if need be; `named` is what it is called.

    Raises:
        RefusedError: another lab has it.
        ConfigError: it can't be had.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (0 if may_be_link else os.O_NOFOLLOW))
    except OSError as error:
        raise ConfigError(f"{named} can't be a lab's folder ({error.strerror}): name another with --dir") from error
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise ConfigError(f"{named} is not yours: name another folder with --dir")
        # The kernel lets go of it with the process, however that ends; none of its programs inherits it.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_nlink:
            raise BlockingIOError  # the lab that had it has just removed it
    except BlockingIOError as error:
        os.close(descriptor)
        raise RefusedError(
            f"a lab runs in {named} already: stop it first, or name another folder with --dir"
        ) from error
    except ConfigError:
        os.close(descriptor)
        raise
    return descriptor


def node_of(name: str, *others: str) -> str:
    """The node that is meant: `site/node`, or the ring it is in; `others` are what else could have been named.

    Raises:
        NotFoundError: the lab has no such node.
    """
    if name in NODES:
        return NODES[name]
    if name in NODES.values():
        return name
    known = ", ".join((*(f"{node} ({ring})" for ring, node in NODES.items()), *others))
    raise NotFoundError(f"the lab has no node {name}: use one of {known}")


def ask(folder: Path, order: Order) -> dict[str, Any]:
    """What the lab in this folder answers.

    Raises:
        TransportError: no lab runs there.
        HeliographError: it said no; its own words.
    """
    try:
        with _short(folder) as path, socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(ANSWER_S)
            asked.connect(path)
            asked.sendall(json.dumps(order).encode() + b"\n")
            line = asked.makefile("rb").readline()
    except OSError as error:
        raise TransportError(f"no lab runs in {folder}: start one with heliograph lab run") from error
    if not line:
        raise TransportError(f"the lab in {folder} ended")
    answer = dict(json.loads(line))
    if "error" in answer:
        kinds = (NotFoundError, ConfigError, RefusedError)
        kind = next((kind for kind in kinds if kind.exit_code == answer["exit_code"]), TransportError)
        raise kind(answer["error"])
    return answer


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path to the socket that fits into an address, however long the folder's is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
