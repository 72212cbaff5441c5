"""What the demo stands on: the traffic, a step and how it is told, and what is looked at on hub and nodes."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from heliograph.errors import HeliographError, TransportError, WaitError
from heliograph.lab import Realm, infer, infer_with_numbers, wait_until
from heliograph_hub.client import HubClient
from heliograph_site.status import status as node_status

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from bundles import sample_request  # noqa: E402 (the demo's bundles are the tests' own)

MODEL = "digits"
DATA = ROOT / "tests" / "data" / "digits"


class StepError(Exception):
    """A step did not hold."""


@dataclass
class Step:
    """One line of the demo."""

    name: str
    ok: bool = False
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


class Traffic:
    """Requests to every node all the time, as the shop's own programs would send them, counted by outcome."""

    PAUSE_S = 0.06

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.answered = 0
        self.failed: list[str] = []
        self.seen: set[tuple[str, str, int]] = set()
        """Node, version and config number of answers, since whoever looks emptied it."""
        self._stop = threading.Event()
        self._paused: set[str] = set()
        self._threads: list[threading.Thread] = []

    def call(self, node: str, url: str) -> None:
        """Has a program of its own call the node from now on."""
        thread = threading.Thread(target=self._run, args=(node, url), daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Ends all programs. Idempotent."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)

    @contextlib.contextmanager
    def paused(self, node: str) -> Iterator[None]:
        """No traffic to this node meanwhile: its process is being restarted on purpose."""
        self._paused.add(node)
        try:
            yield
        finally:
            self._paused.discard(node)

    def _run(self, node: str, url: str) -> None:
        while not self._stop.wait(self.PAUSE_S):
            if node in self._paused:
                continue
            try:
                answer, (config, _) = infer_with_numbers(url, MODEL, self.request)
                self.seen.add((node, str(answer["model_version"]), config))
                self.answered += 1
            except HeliographError as error:
                if node not in self._paused:
                    self.failed.append(f"{node}: {error}")


class Scene:
    """A realm, its traffic, and what is seen of it. `steps` holds what was seen."""

    hub: HubClient
    """Once the hub has begun."""

    def __init__(self, realm: Realm, work: Path, console: Console) -> None:
        self.realm = realm
        self.work = work
        self.console = console
        self.steps: list[Step] = []
        self.bytes = {"full": 0, "delta": 0, "resent": 0}
        self.cost = 0
        """Bytes of content that 1.1.0 takes from 1.0.0."""
        self.traffic = Traffic(sample_request(DATA))

    # --- how a step is told ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Runs one step: times it, prints its line, keeps its facts. An error ends the story; the line says why."""
        step = Step(name)
        self.steps.append(step)
        began = time.monotonic()
        try:
            yield step
            step.ok = True
        except (HeliographError, StepError) as error:
            step.facts["error"] = str(error)
            raise StepError(f"{name}: {error}") from error
        finally:
            step.seconds = round(time.monotonic() - began, 1)
            told = step.facts.get("told") or step.facts.get("error", "")
            # A step that was interrupted has neither held nor failed.
            if step.ok or told:
                mark = "[green]✓[/]" if step.ok else "[red]✗[/]"
                line = f"{mark} {name} [dim]({step.seconds:.1f} s)[/] {told}"
                self.console.print(line, highlight=False, soft_wrap=True)

    def wait(self, what: str, condition: Callable[[], Any], limit_s: float = 90.0) -> Any:
        """The first truthy answer of `condition`.

        Raises:
            StepError: none came in time.
        """
        answer: list[Any] = []

        def holds() -> bool:
            try:
                answer[:] = [condition()]
            except TransportError:
                return False
            return bool(answer[0])

        try:
            wait_until(holds, limit_s, what)
        except WaitError as error:
            raise StepError(str(error)) from error
        return answer[0]

    # --- what is looked at ------------------------------------------------------------------------------------------

    def status(self, node: str) -> dict[str, Any]:
        """What `node status --json` prints."""
        return node_status(self.realm.node_dir(node))

    def model(self, node: str) -> dict[str, Any]:
        """The node's own word about the model; empty before it has one."""
        return dict(self.status(node)["models"].get(MODEL, {}))

    def serves(self, node: str, release: str) -> bool:
        """Whether the node says it serves the release and its answers come from it."""
        model = self.model(node)
        if not model or model["phase"] != "idle" or (model["active"] or {}).get("release") != release:
            return False
        answer = infer(self.realm.url(node), MODEL, self.traffic.request)
        return f"{MODEL}@{answer['model_version']}" == release

    def serves_with(self, node: str, version: str, config: int) -> bool:
        """Whether the node answers from the version with this config, and its memory says the same."""
        active = self.model(node)["active"]
        answer, (number, _) = infer_with_numbers(self.realm.url(node), MODEL, self.traffic.request)
        at_work = (active["release"], active["config"]) == (f"{MODEL}@{version}", config)
        return at_work and (answer["model_version"], number) == (version, config)

    def is_proven(self, node: str, version: str) -> bool:
        """Whether the release is active there and came through its probation."""
        active = self.model(node).get("active") or {}
        return active.get("release") == f"{MODEL}@{version}" and active.get("verdict") == "proven"

    def wait_for_answers(self, node: str, version: str) -> None:
        """Waits until the release answers there, then has programs call it all the time."""
        url = self.realm.url(node)
        self.wait(f"{node} on {version}", lambda: infer(url, MODEL, self.traffic.request)["model_version"] == version)
        self.traffic.call(node, url)

    def refusal(self, node: str, version: str) -> dict[str, Any] | None:
        """Why the node won't run the release, if it has refused it."""
        found = (r for r in self.model(node)["refused"] if r["release"] == f"{MODEL}@{version}")
        return next(found, None)

    def record(self, node: str, lane: str, kind: str) -> dict[str, Any] | None:
        """The newest record of this kind that the hub holds of the node."""
        rows = self.hub.get(f"/v1/fleet/{node}/records/{lane}")
        return next((dict(row) for row in rows if row["kind"] == kind), None)

    @contextlib.contextmanager
    def no_failures(self) -> Iterator[None]:
        """No request of any program may fail meanwhile.

        Raises:
            StepError: one did.
        """
        before = len(self.traffic.failed)
        yield
        if len(self.traffic.failed) > before:
            raise StepError(f"requests failed meanwhile: {self.traffic.failed[before]}")

    def known(self, node: str) -> dict[str, Any]:
        """What the hub knows of the node."""
        return dict(self.hub.get(f"/v1/fleet/{node}"))

    def received(self, node: str) -> int:
        """MQTT payload bytes the node has received since it was enrolled."""
        return int(self.status(node)["bytes_received"])

    def nodes(self) -> list[dict[str, Any]]:
        """`fleet list`, or nothing when no hub answers any more."""
        try:
            return self.realm.fleet()
        except HeliographError:
            return []

    @contextlib.contextmanager
    def bars(self, nodes: list[str], totals: dict[str, int]) -> Iterator[None]:
        """Progress bars that follow what each node has received, until the block ends."""
        with Progress(
            TextColumn("   {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as progress:
            base = {node: self.received(node) for node in nodes}
            tasks = {node: progress.add_task(node, total=totals[node]) for node in nodes}
            done = threading.Event()

            def follow() -> None:
                while not done.wait(0.5):
                    for node, task in tasks.items():
                        progress.update(task, completed=min(self.received(node) - base[node], totals[node]))

            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join(timeout=10)

    def publish(self, folder: Path, version: str) -> dict[str, Any]:
        """Adds, signs and approves a release; returns `release show`."""
        keys = self.realm.hub_dir / "keys"
        name = f"{MODEL}@{version}"
        self.realm.cli("release", "add", str(folder))
        self.realm.cli("release", "sign", name, "--key", str(keys / f"sign-{MODEL}.key"))
        for manager in (1, 2):
            self.realm.cli("release", "approve", name, "--key", str(keys / f"approve-{MODEL}-{manager}.key"))
        return dict(self.realm.cli_json("release", "show", name))

    def set_document(self, kind: str, text: str) -> None:
        """Sets a policy or a config that says this, as an operator with a file does."""
        file = self.work / f"{kind}.toml"
        file.write_text(text)
        self.realm.cli(kind, "set", file)
