"""What every part of a node's shell stands on: what its disk keeps, its life, and effects that may be its last.

Every effect (a save, an object, a message, a switch) may be the last thing before the node dies, or the one it dies
before: `_do` asks the weather both times.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heliograph.documents import Numbers, Way
from heliograph.manifest import Manifest
from heliograph.names import Digest
from heliograph.transfer import Fetcher
from heliograph.trust import state_to_bytes
from heliograph_site.belief import Belief
from heliograph_site.journal import Held
from heliograph_site.memory import Memory
from heliograph_site.outbox import Outbox
from heliograph_site.rulebook import NO_NUMBERS
from heliograph_site.slots import PartialBlob, Slots
from simulator import catalogue, disk
from simulator.clock import Bell, Steps, Task
from simulator.server import Server
from simulator.watch import Watch

if TYPE_CHECKING:
    from simulator.world import World

T = TypeVar("T")
POLL_S = 5.0
LOOK_S = 4 * POLL_S
"""How often a node looks at its server."""


class Died(BaseException):
    """The agent is gone, or the whole node if the power went; nothing on the node catches this."""

    def __init__(self, who: str, power: bool) -> None:
        super().__init__(who)
        self.who = who
        self.power = power


class Shell:
    """What its disk keeps, its server process, and while it lives its agent.

    Attributes:
        serves_traffic: whether anybody asks it anything; without, nothing is ever proven.
        is_disk_full, is_disk_bad: the disk takes nothing; what is fetched rots at once.
        done: highest number of a command that was carried out; on disk.
        heard_at: when the hub answered last; on disk.
    """

    def __init__(self, world: "World", name: str, folder: Path) -> None:
        self.world, self.name = world, name
        self.site, self.node = name.split("/")
        self.clock, self.rng, self.road = world.clock, world.rng, world.road
        self.folder = folder
        self.journal = disk.Journal(folder / "journal", state_to_bytes(world.hub.trusted))
        self.journal.hold(Held("assignment", "", *world.hub.assignments[name]))
        self.slots = Slots(folder)
        self.server = Server(folder, self.journal)
        self.done = 0
        self.watch = Watch(world, name, world.seed, world.hub.trusted)
        self.heard_at = self.now()
        self.serves_traffic = self.rng.random() < 0.7
        self.is_disk_full = self.is_disk_bad = self.had_bad_disk = False
        self.was_orderly = True
        self.is_touched = True
        self.is_alive = False
        self.life = 0
        self.outbox_path = folder / "outbox.sqlite"
        self.written: dict[str, int] = {}
        self.memories: dict[str, Memory] = {}
        self.belief: Belief
        self.outbox: Outbox | None = None
        self._tasks: dict[str, Task] = {}
        self._loops: list[Task] = []

    def now(self) -> int:
        return self.watch.now()

    def _wake(self) -> None:
        """The agent is there, with what the disk kept; it has done nothing yet."""
        self.life += 1
        self.is_alive = True
        self.run = self.rng.randbytes(8)
        self.watch.starts()
        keyid = catalogue.key(self.name).keyid
        names = (catalogue.REALM, self.site, self.node)
        self.belief = Belief(
            self.journal,  # type: ignore[arg-type]
            names,
            keyid,
            self.now,
            manifests=self._manifest,
            latest=self.watch.latest,
        )
        self._told_lacks: Numbers = NO_NUMBERS
        self.memories = {model: self.journal.load(model) for model in self.journal.models()}
        self.fetcher = Fetcher()
        self._sinks: dict[bytes, PartialBlob] = {}
        self._tasks, self._loops = {}, []
        self._arrived, self._offered, self._turn_over = Bell(), Bell(), Bell()
        self._turn: object = None
        self._drills: set[str] = set()
        self._ordered = Bell()
        self._asked = 0
        self._unheard: set[str] = set()
        self._heard: set[tuple[str, str]] = set()
        self._reaching: set[str] = set()
        self._asks: dict[int, Any] = {}
        self._ways: dict[str, tuple[bytes, tuple[Way, ...]]] = {}
        self._nonce: bytes | None = None
        self._pumps = 0
        self._sent: dict[str, tuple[int, float]] = {}
        if self.world.has_records:
            self.outbox = disk.outbox(self.outbox_path, self.run, self.world.outbox_cap)

    def _manifest(self, release: bytes) -> Manifest | None:
        return catalogue.manifest(Digest(release)) if self.slots.store.has(Digest(release)) else None

    def die(self, *, power: bool) -> None:
        """Nothing more happens here until the next start."""
        self.is_alive = False
        self.road.disconnect(self.name, tells=False)
        for task in (*self._tasks.values(), *self._loops):
            task.cancel()
        if self.outbox is not None:
            self.outbox.close()
            self.outbox = None
        if power:
            self.watch.loses_power()
            self.server.die()
            torn = disk.tear(self.slots.incoming, self.rng)
            self.world.met["torn writes"] += torn

    def stop(self) -> None:
        """An orderly end."""
        self.journal.save_life(False)
        self.die(power=False)

    def _spawn(self, steps: Steps) -> None:
        task = Task(self.clock, steps, lambda result: None)
        self._loops.append(task)
        self.clock.after(0.0, task.go_on)

    def _do(self, what: str, effect: Callable[[], T]) -> T:
        self.is_touched = True
        self.world.effect(self.name, f"before {what}")
        result = effect()
        self.world.effect(self.name, f"after {what}")
        return result

    def _alive(self, what: Callable[[], None]) -> Callable[[], None]:
        """The same, but only if this life lasts until then."""
        life = self.life

        def later() -> None:
            if self.is_alive and self.life == life:
                what()

        return later

    def record(self, lane: Any, kind: str, body: dict[str, Any]) -> None:
        """Keeps for the hub what happened."""
        if self.outbox is not None:
            outbox = self.outbox

            def write() -> None:
                outbox.append(lane, kind, self.now(), body)
                self.written[lane] = self.written.get(lane, 0) + 1

            self._do("outbox append", write)

    def _publish(self, kind: str, body: Any, qos: int = 1) -> bool:
        return self._do(f"publish {kind}", lambda: self.road.up(self.name, (kind, {}, body), qos=qos))
