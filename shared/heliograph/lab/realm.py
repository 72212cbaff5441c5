"""[IO] `Realm`: a hub and its nodes on this machine, each a process of its own, each node on its own shaped link."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from heliograph.errors import RefusedError, TransportError, WaitError
from heliograph.lab.link import Profile
from heliograph.lab.processes import Running, free_port, spawn, wait_until
from heliograph.lab.profiles import load_profile
from heliograph.lab.road import Road


def infer(url: str, model: str, request: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """The node's answer to one Open Inference Protocol request; raises as `infer_with_numbers`."""
    return infer_with_numbers(url, model, request, timeout_s)[0]


def infer_with_numbers(
    url: str, model: str, request: dict[str, Any], timeout_s: float = 10.0
) -> tuple[dict[str, Any], tuple[int, int]]:
    """The node's answer, and the numbers of the config and of the policy that it came with.

    Raises:
        TransportError: nobody answered, or not with 200; the message has the answer's own words.
    """
    body = json.dumps(request).encode()
    asked = urllib.request.Request(  # noqa: S310 (a URL of this machine, made by Realm)
        f"{url}/v2/models/{model}/infer", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s) as answer:  # noqa: S310
            headers = answer.headers
            numbers = int(headers["heliograph-config"]), int(headers["heliograph-policy"])
            return dict(json.load(answer)), numbers
    except urllib.error.HTTPError as error:
        raise TransportError(f"{url} answered {error.code}: {error.read(400).decode(errors='replace')}") from error
    except OSError as error:
        raise TransportError(f"{url} did not answer: {error}") from error


class Realm:
    """A hub and its nodes on this machine, each a process of its own, driven by the commands that operators type.

    What it started ends with the thread that started it, even if that is killed: use it from one that stays.
    """

    def __init__(self, folder: Path, *, name: str = "demo", rate_bytes_per_s: int | None = None) -> None:
        """`folder` is made; the hub's port is chosen now and kept across restarts."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = name
        self.hub_dir = folder / "hub"
        self.port = free_port()
        self.rate_bytes_per_s = rate_bytes_per_s
        self._hub: Running | None = None
        self.roads: dict[str, Road] = {}
        """The shaped links, of nodes that joined with a profile."""
        self._nodes: dict[str, Running] = {}
        self._http: dict[str, int] = {}

    def __enter__(self) -> "Realm":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- commands ---------------------------------------------------------------------------------------------------

    def cli(self, *args: str | Path, stdin: str = "") -> str:
        """What the command printed on stdout. Secrets go in by `stdin`: arguments can be read by everybody.

        Raises:
            RefusedError: it ended with another status than 0; the message is what it said.
        """
        done = subprocess.run(
            [sys.executable, "-m", "heliograph.cli", *map(str, args)],
            env={**os.environ, "HELIOGRAPH_HUB": str(self.hub_dir)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            told = (done.stderr.strip() or done.stdout.strip()).splitlines()
            # The command's name only: the third word may be a join string, which is a secret.
            raise RefusedError(f"{' '.join(map(str, args[:2]))} ended with {done.returncode}: {' '.join(told)[-600:]}")
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
            "--plain-port",
            str(self.port),
            *rate,
        ]
        log = self.folder / "hub.log"
        said = len(log.read_text(errors="replace")) if log.exists() else 0
        hub = self._hub = spawn(argv, log, dies_with_us=True)

        def answers() -> bool:
            if not hub.is_alive:
                raise WaitError(f"the hub ended: {hub.output()[-600:]}")
            if "operator API" not in hub.output()[said:]:
                return False  # a command takes longer to find that out
            try:
                self.cli("fleet", "list")
            except RefusedError:
                return False
            return True

        wait_until(answers, 90.0, "the hub answers")

    def kill_hub(self) -> None:
        """SIGKILL to the hub and its broker: a power cut."""
        assert self._hub is not None, "start_hub first"
        self._hub.kill()  # first, or it might start another meanwhile
        self.kill_broker()

    def kill_broker(self) -> None:
        """SIGKILL to the broker, if it runs just now; the hub starts it again."""
        folder = self.hub_dir.absolute() / "broker"
        its_last = [os.fsencode(folder / "mosquitto.conf")], [os.fsencode(folder)]  # argument, of either broker
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if (process / "cmdline").read_bytes().split(b"\0")[-2:-1] in its_last:
                    os.kill(int(process.name), signal.SIGKILL)

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

    def join(
        self,
        node: str,
        *,
        port: int | None = None,
        profile: Profile | str | None = None,
        kind: Literal["namespaces", "proxy"] | None = None,
    ) -> None:
        """Enrols the node by a token, at the hub's side of its link.

        Args:
            node: `site/node`.
            port: a road to the broker that it takes from then on.
            profile: a shaped link of its own that it takes from then on, in `roads`.
            kind: how that is made; None: the best this machine allows (`Road`).
        """
        join_string = self.cli("fleet", "token", node)
        self._http[node] = free_port()
        self.cli("node", "join", "-", self.node_dir(node), "--http-port", str(self._http[node]), stdin=join_string)
        host = "127.0.0.1"
        if profile is not None:
            road = self._build(node, load_profile(profile) if isinstance(profile, str) else profile, kind)
            host, port = road.host, road.port
        if port:
            file = self.node_dir(node) / "node.toml"
            text = file.read_text().replace(f"port = {self.port}\n", f"port = {port}\n", 1)
            file.write_text(text.replace('host = "127.0.0.1"\n', f'host = "{host}"\n', 1))

    def _build(self, node: str, profile: Profile, kind: Literal["namespaces", "proxy"] | None) -> Road:
        road = self.roads[node] = Road(
            profile,
            self.port,
            self.folder / f"{node.replace('/', '-')}-road.log",
            far_ports=[self._http[node]],
            seed=len(self.roads),
            kind=kind,
        )
        return road

    def start_node(self, node: str) -> None:
        """Starts agent and server under their supervisor, at the far end of the node's link; returns at once."""
        argv: list[str | Path] = [sys.executable, "-m", "heliograph.cli", "node", "run", self.node_dir(node)]
        road = self.roads.get(node)
        self._nodes[node] = spawn(
            road.at_far_end(argv) if road else argv,
            self.folder / f"{node.replace('/', '-')}.log",
            dies_with_us=True,
        )

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
        for road in self.roads.values():
            road.close()
