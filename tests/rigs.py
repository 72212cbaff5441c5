"""A hub, a broker and a node as real processes, for tests that do them harm: which is which, and who asks.

Releases are made once per run of the tests, in a hub that is copied for each of them.
"""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundles import BASE, HEAD, digits_bundle, sample_request
from heliograph.errors import RefusedError, TransportError, WaitError
from heliograph.lab import Proxy, Realm, free_port, infer, wait_until
from heliograph_hub.client import HubClient
from heliograph_hub.commands.key import key_deny
from heliograph_hub.commands.release import release_add, release_approve, release_deny, release_sign
from heliograph_hub.commands.rollout import rollout_start
from heliograph_hub.keys import load_key
from heliograph_site.serving.control import ServerControl
from heliograph_site.status import status as node_status
from waits import eventually

MODEL = "digits"
VITAL = "vital"
NODE = "shop/till"
FIRST, SECOND, THIRD = "1.0.0", "1.1.0", "1.2.0"
AGENT, SERVER, WORKER, FORKSERVER = "agent", "server", "worker", "forkserver"


def prepare(folder: Path) -> Path:
    """A realm at rest, to be copied: the node has digits 1.0.0, the hub 1.1.0 and 1.2.0 too, and vital 1.0.0.

    All are signed and approved. Probation of 1.1.0 takes ten minutes whatever happens; 1.2.0 is the same model and soon
    judged. vital is small to fetch then, and would rather stop than serve what is denied. Returns the realm's folder.
    """
    with Realm(folder) as realm:
        realm.init()
        realm.start_hub()
        realm.cli("fleet", "assign", "shop", "canary")
        realm.join(NODE)
        realm.start_node(NODE)
        _vouch(realm, digits_bundle(folder / FIRST, FIRST, BASE, soak_max_s=1), MODEL, FIRST)
        rollout_start(f"{MODEL}@{FIRST}", str(realm.hub_dir))
        slow = digits_bundle(folder / SECOND, SECOND, HEAD, soak_max_s=600) / "release.toml"
        slow.write_text(slow.read_text().replace("min_s = 1\n", "min_s = 600\n"))
        _vouch(realm, slow.parent, MODEL, SECOND)
        _vouch(realm, digits_bundle(folder / THIRD, THIRD, HEAD, soak_max_s=1), MODEL, THIRD)
        vital = digits_bundle(folder / "vital", FIRST, BASE, soak_max_s=1)
        for path in (vital / "release.toml", vital / "golden" / "outputs.json"):
            text = path.read_text().replace('fail_mode = "safe"', 'fail_mode = "closed"')
            path.write_text(text.replace(f'"{MODEL}"', f'"{VITAL}"'))
        _vouch(realm, vital, VITAL, FIRST)
        node = Rig(realm)
        node.await_rest(FIRST)
        node.until(node.is_receipted, "every record is receipted")
        node.road.close()
    return folder


def _vouch(realm: Realm, bundle: Path, model: str, version: str) -> None:
    keys, hub = realm.hub_dir / "keys", str(realm.hub_dir)
    release_add(bundle, hub)
    release_sign(f"{model}@{version}", [f"{keys}/sign-{model}.key"], hub)
    release_approve(f"{model}@{version}", [f"{keys}/approve-{model}-{n}.key" for n in (1, 2)], hub)


class Road:
    """A TCP road with cuts, in a thread of its own."""

    def __init__(self, target_port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.proxy = Proxy(target_port)
        self._do(self.proxy.__aenter__())

    def cut(self) -> None:
        self._do(self.proxy.cut(reset=True))

    def restore(self) -> None:
        self._loop.call_soon_threadsafe(self.proxy.restore)

    def close(self) -> None:
        self._do(self.proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)


@dataclass(frozen=True)
class Asked:
    """One request and what came of it: a version, a status with its words, or no answer at all."""

    began: float
    ended: float
    version: str = ""
    failure: str = ""


class Load:
    """A caller who never stops asking, whatever the answer."""

    def __init__(self, url: str, rate: float = 25.0) -> None:
        self.asked: list[Asked] = []
        self._address = url.removeprefix("http://")
        self._pause_s = 1 / rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def failures(self, since: float = 0.0) -> list[Asked]:
        return [asked for asked in list(self.asked) if asked.failure and asked.ended >= since]

    def answers(self, version: str, since: float = 0.0) -> int:
        return sum(asked.version == version and asked.began >= since for asked in list(self.asked))

    def _run(self) -> None:
        body = json.dumps(sample_request()).encode()
        connection = http.client.HTTPConnection(self._address, timeout=60)
        while not self._over.wait(self._pause_s):
            began = time.monotonic()
            version = failure = ""
            try:
                connection.request("POST", f"/v2/models/{MODEL}/infer", body)
                answer = connection.getresponse()
                data = answer.read()
                if answer.status == 200:
                    version = json.loads(data)["model_version"]
                else:
                    failure = f"{answer.status} {data[:200].decode(errors='replace')}"
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                failure = type(error).__name__
            self.asked.append(Asked(began, time.monotonic(), version, failure))
        connection.close()


class Rig:
    """A realm with the prepared hub, the node `shop/till` on a road that can be cut, and what a test asks of them."""

    def __init__(self, realm: Realm) -> None:
        self.realm = realm
        self.road = Road(realm.port)
        self.folder = realm.node_dir(NODE)
        self.sessions: set[int] = set()
        """Of every start of the node or the hub: whatever lives in one of them must end with it."""

    # --- starting and ending ------------------------------------------------------------------------------------------

    def start_hub(self) -> None:
        self.realm.start_hub()
        assert self.realm._hub is not None
        self.sessions.add(self.realm._hub.process.pid)

    def start(self) -> None:
        self.realm.start_node(NODE)
        self.sessions.add(self.realm._nodes[NODE].process.pid)

    def kill(self) -> None:
        """A power cut of the node."""
        self.realm.kill_node(NODE)

    def restart_out_of_the_blue(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        self.realm.stop_node(NODE)

    # --- its processes ------------------------------------------------------------------------------------------------

    def pid(self, name: str) -> int | None:
        """The process that bears the name now; of workers the one that answers."""
        if name == WORKER:
            worker = self.served().get("worker")
            return int(worker) if worker else None
        modules = {AGENT: "heliograph_site.agent", SERVER: "heliograph_site.serving"}
        supervisor = self.realm._nodes[NODE].process.pid
        if name in modules:
            return next((p for p in children(supervisor) if modules[name] in command_line(p).split("\0")), None)
        server = self.pid(SERVER)
        mine = children(server) if server else []
        return next((p for p in mine if "heliograph_site.serving.forkserver" in command_line(p)), None)

    def strike(self, name: str) -> int:
        """SIGKILL to one process alone; returns its pid."""
        pid = eventually(lambda: self.pid(name) or 0, f"there is a process {name}")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), 30, f"the {name} is gone")
        return pid

    def leftovers(self) -> list[str]:
        """What still runs of all that was started."""
        found = []
        for pid in all_pids():
            line = command_line(pid)
            if is_alive(pid) and (session(pid) in self.sessions or str(self.realm.folder) in line):
                found.append(f"{pid} {line}")
        return found

    def await_end(self) -> None:
        """Returns once nothing runs of all that was started: what is killed ends a moment later."""
        try:
            wait_until(lambda: not self.leftovers(), 30, "all has ended")
        except WaitError as error:
            raise WaitError(f"{error}: {self.leftovers()}") from error

    # --- what it says -------------------------------------------------------------------------------------------------

    def model(self, model: str = MODEL) -> dict[str, Any]:
        return dict(node_status(self.folder)["models"].get(model, {}))

    def phase(self) -> str:
        return str(self.model().get("phase", ""))

    def phase_of(self, model: str) -> str:
        return str(self.model(model).get("phase", ""))

    def active(self, model: str = MODEL) -> str:
        return str((self.model(model).get("active") or {}).get("release", ""))

    def verdict(self) -> str:
        return str(self.model().get("verdict") or "")

    def is_up(self) -> bool:
        return bool(node_status(self.folder)["link"] == "up")

    def server_status(self) -> dict[str, Any]:
        try:
            control = ServerControl(self.folder / "control.sock")
            return asyncio.run(asyncio.wait_for(control.status(), 5))
        except (TransportError, RefusedError, TimeoutError):
            return {}

    def served(self, model: str = MODEL) -> dict[str, Any]:
        """The server's row of the model."""
        return dict(self.server_status().get("models", {}).get(model, {}))

    def answer(self, model: str = MODEL) -> str:
        """The version that answers, or why none does."""
        try:
            return str(infer(self.realm.url(NODE), model, sample_request())["model_version"])
        except TransportError as error:
            return str(error)

    def rests_on(self, version: str, model: str = MODEL) -> bool:
        facts = self.model(model)
        active = (facts.get("active") or {}).get("release")
        return facts.get("phase") == "idle" and active == f"{model}@{version}" and self.answer(model) == version

    def await_rest(self, version: str, model: str = MODEL, timeout_s: float = 120) -> None:
        try:
            wait_until(lambda: self.rests_on(version, model), timeout_s, f"{model}@{version} rests")
        except WaitError as error:
            raise WaitError(f"{error}; {self.answer(model)}; {self.model(model)}; {self.log()[-3000:]}") from error

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 90) -> None:
        try:
            wait_until(lambda: bool(condition()), timeout_s, what)
        except WaitError as error:
            raise WaitError(f"{error}; {self.model()}; {self.log()[-3000:]}") from error

    def log(self) -> str:
        return (self.realm.folder / f"{NODE.replace('/', '-')}.log").read_text(errors="replace")

    # --- operators ----------------------------------------------------------------------------------------------------

    def roll_out(self, version: str, model: str = MODEL) -> None:
        rollout_start(f"{model}@{version}", str(self.realm.hub_dir))

    def key(self, name: str) -> Path:
        return self.realm.hub_dir / "keys" / f"{name}.key"

    def deny(self, release: str, *numbers: int) -> None:
        keys = [str(self.key(f"deny-{number}")) for number in numbers]
        release_deny(release, keys, "wrong labels", str(self.realm.hub_dir))

    def deny_key(self, name: str, keep: list[str]) -> None:
        """Denies the key of this name, by two keys that may."""
        keyid = load_key(self.key(name)).keyid.hex()
        keys = [str(self.key(f"deny-key-{number}")) for number in (1, 2)]
        key_deny(keyid, keys, keep, "stolen", str(self.realm.hub_dir))

    def records(self, lane: str, kind: str) -> list[dict[str, Any]]:
        """What the hub holds of the node, the oldest first."""
        rows = HubClient(str(self.realm.hub_dir)).get(f"/v1/fleet/{NODE}/records/{lane}")
        return [row["body"] for row in reversed(rows) if row["kind"] == kind]

    def events(self) -> list[str]:
        """Names of what moved the machine, in order, as the hub's audit trail has them."""
        return [str(body["event"]) for body in self.records("audit", "transition")]

    # --- the ledger ---------------------------------------------------------------------------------------------------

    def is_receipted(self) -> bool:
        lanes = node_status(self.folder)["outbox"].values()
        return all(lane["kept"] == 0 and lane["next_seq"] == lane["acked_seq"] for lane in lanes)

    def check_records_once(self) -> int:
        """The hub's rows of each (run, lane) are numbered from 0 without a hole; returns how many records that are."""
        site, name = NODE.split("/")
        path = self.realm.hub_dir / "hub.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT hex(run), lane, seq, count, kind FROM records WHERE site = ? AND node = ? "
                "ORDER BY run, lane, seq",
                (site, name),
            ).fetchall()
        assert rows
        following: dict[tuple[str, str], int] = {}
        for run, lane, seq, count, kind in rows:
            assert kind != "gap", "nothing was lost"
            assert seq == following.get((run, lane), 0), f"{lane} of {run}: {seq} is missing or double"
            following[run, lane] = seq + count
        return sum(following.values())


@contextmanager
def rig(folder: Path, prepared: Path, *, rate: int | None = None, node_dir: Path | None = None) -> Iterator[Rig]:
    """A copy of the prepared realm, running, the node on a road; `node_dir`: where the node's folder is to lie."""
    with Realm(folder, rate_bytes_per_s=rate) as realm:
        leave = shutil.ignore_patterns("*.sock", "broker", "*.lock")
        shutil.copytree(prepared / "hub", realm.hub_dir, ignore=leave)
        realm.node_dir(NODE).parent.mkdir()
        if node_dir is not None:
            node_dir.mkdir()
            realm.node_dir(NODE).symlink_to(node_dir, target_is_directory=True)
        source = Realm(prepared).node_dir(NODE)
        shutil.copytree(source, realm.node_dir(NODE).resolve(), ignore=leave, dirs_exist_ok=True)
        realm._http[NODE] = free_port()
        made = Rig(realm)
        try:
            file = made.folder / "node.toml"
            text = re.sub(r"(?m)^port = .*$", f"port = {made.road.proxy.port}", file.read_text())
            file.write_text(re.sub(r"(?m)^http_port = .*$", f"http_port = {realm._http[NODE]}", text))
            made.start_hub()
            made.start()
            made.until(lambda: made.is_up() and made.rests_on(FIRST), "1.0.0 serves")
            yield made
        finally:
            realm.stop()
            made.road.close()


# --- processes --------------------------------------------------------------------------------------------------------


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def children(parent: int) -> list[int]:
    return [pid for pid in all_pids() if _stat(pid)[1:2] == [str(parent)]]


def session(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def is_alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """state, parent, group, session."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
