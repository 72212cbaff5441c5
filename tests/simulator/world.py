"""One world from one seed: built, let live in bad weather, calmed, and judged."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from heliograph.names import Digest
from heliograph_site.happenings import Event
from heliograph_site.memory import Memory
from simulator import catalogue, ending
from simulator.clock import MAX_EVENTS, MAX_HOSTILE_EVENTS, Clock, RestlessError
from simulator.hostile import Hostile
from simulator.hub import Hub, can
from simulator.machines import Machines
from simulator.mishaps import MISHAPS, Mishaps
from simulator.node import Node
from simulator.operators import ACTS, Operators
from simulator.oracle import BrokenError, Oracle
from simulator.road import Link, Road, Weather
from simulator.shell import Died

END_S = 6 * 3600.0
"""So long after calm a world may take to come to rest."""
LOOK_S = 20.0
SHM = Path("/dev/shm")
SMALL_CAP = 72 * 1024


@dataclass(frozen=True)
class Outcome:
    """What became of a world; `violation` is empty if all held."""

    seed: int
    violation: str
    message: str
    events: int
    met: Counter[str]
    rows: Counter[tuple[str, str]]
    trace: tuple[str, ...]


class World:
    """Everything of one seed.

    Attributes:
        met: how often each kind of weather was met.
        rows: how often each row of the machine's table was taken.
    """

    def __init__(self, seed: int, folder: Path, *, is_told: bool, is_hostile: bool = False) -> None:
        self.rng = rng = Random(seed)
        self.seed, self.clock = seed, Clock(MAX_HOSTILE_EVENTS if is_hostile else MAX_EVENTS)
        self.clocks_rng = Random(f"clocks {seed}")
        self.has_clocks = self.clocks_rng.random() < 0.4
        self.is_told = is_told
        self.trace: list[str] = []
        self.rows: Counter[tuple[str, str]] = Counter()
        self.weather = Weather()
        self._bad = Weather(
            loss=rng.choice([0.0, 0.02, 0.1, 0.3]),
            twice=rng.choice([0.0, 0.05, 0.2]),
            late=rng.choice([0.0, 0.02, 0.1]),
            corrupt=rng.choice([0.0, 0.0, 0.05, 0.2]),
            crash=rng.choice([0.0, 0.002, 0.01, 0.03]),
            stale=rng.choice([0.0, 0.1, 0.3]),
            latency_s=rng.choice([0.02, 0.3, 1.5]),
        )
        self.met = self.weather.met
        # Some worlds begin with good days, in which every node gets something to fall back on.
        self.first_releases = rng.choice([(1,), (1, 2), (1, 5), (2, 1, 5)])
        self.ambush = rng.choice([0.0, 0.1, 0.4])
        self.has_records = rng.random() < 0.12
        self.outbox_cap = rng.choice([SMALL_CAP, SMALL_CAP, 8 << 20])
        self.models = catalogue.MODELS[: rng.choice([1, 2, 2])]
        if rng.random() < 0.3:
            self.models = self.models[-1:]
        self.oracle = Oracle(self)
        self.hostile = Hostile(seed, self.weather) if is_hostile else None
        self.road = Road(self.clock, rng, self.weather, self.hostile)
        least = max(self.first_releases) - 1
        self.hub = Hub(self.clock, rng, self.road, self.effect, rng.randint(least, max(least, catalogue.STEPS - 1)),
                       seed)  # fmt: skip
        self.road.to_hub, self.road.is_hub_up = self.hub.on_message, lambda: self.hub.is_up
        self.nodes: dict[str, Node] = {}
        self.papers_rng = Random(f"when {seed}")
        self.operators, self.mishaps = Operators(self), Mishaps(self)
        for site, node_name in catalogue.NODES[: rng.choice([1, 2, 2, 3])]:
            name = f"{site}/{node_name}"
            place = folder / name.replace("/", "-")
            place.mkdir()
            self.hub.enroll(name, "canary" if not self.nodes else rng.choice(("canary", "early")))
            node = self.nodes[name] = Node(self, name, place)
            self.road.links[name] = Link(node.on_message, node.on_link, topics=node.topics)
            self.clock.after(rng.uniform(0.0, 5.0), lambda node=node: self.start(node))  # type: ignore[misc]
        self.has_calmed = False
        self.nights = self.clocks_rng.randint(1, 3) if self.has_clocks else 0
        if self.clocks_rng.random() < 0.3:
            self.clock.after(self.clocks_rng.uniform(60.0, 1200.0), self.mishaps.skip_a_night)
        self.papers_to_come = 0
        self.outlaws = self.papers_rng.choice([0, 0, 3, 8])
        if self.papers_rng.random() < 0.6:
            within_s = self.papers_rng.choice([60.0, 600.0, 2400.0])
            for _ in range(self.papers_rng.randint(1, 10)):
                self.papers_to_come += 1
                self.clock.after(self.papers_rng.uniform(0.0, within_s), self.operators.set_paper)

    # --- telling ------------------------------------------------------------------------------------------------------

    def tell(self, who: str, what: str) -> None:
        if self.is_told:
            self.trace.append(f"{self.clock.now:10.3f}  {who:8}  {what}")

    def stepped(self, node: Machines, before: Memory, event: Event, after: Memory) -> None:
        """A machine took a row of its table."""
        name = type(event).__name__
        self.rows[before.phase, name] += 1
        if self.is_told:
            subject = after.target or before.target or after.active or before.active
            release = str(catalogue.releases()[Digest(subject.release)]) if subject else after.model
            reason = getattr(event, "reason", "")
            self.tell(node.name, f"{before.phase} -> {after.phase}  {name}  {release}  {reason}".rstrip())
        self.oracle.stepped(node, before, event, after)
        is_at_work = after.phase not in (before.phase, "idle") and not self.has_calmed
        if self.nights and is_at_work and after.phase == "staging" and self.clocks_rng.random() < 0.6:
            # What it has is all that it is shown; when the night is over, that may have expired.
            self.road.cut(node.name)
            self.clock.after(self.clocks_rng.uniform(0.0, 1.0), self.mishaps.skip_a_night)
            self.clock.after(self.clocks_rng.uniform(60.0, 900.0), lambda: self.road.restore(node.name))
        if self.outlaws and is_at_work and self.papers_rng.random() < 0.3:
            self.outlaws -= 1
            self.papers_to_come += 1
            wait_s = self.papers_rng.uniform(0.0, self.papers_rng.choice([0.0, 2.0, 20.0]))
            self.clock.after(wait_s, lambda: self.operators.outlaw(node, after.model))
        if after.phase == before.phase or self.has_calmed or not self.ambush:
            return
        chance = self.ambush
        if after.phase in ("stuck", "rolling-back") or (after.phase == "proving" and after.earlier is not None):
            chance = 0.8
        if after.phase != "idle" and self.rng.random() < chance:
            for _ in range(self.rng.choice([1, 1, 2])):
                wait_s = self.rng.choice([0.0, 0.5, 5.0, 20.0])
                self.clock.after(self.rng.uniform(0.0, wait_s), lambda: self.mishaps.strike(node, after.model))

    # --- dying --------------------------------------------------------------------------------------------------------

    def effect(self, who: str, what: str) -> None:
        """Somebody is about to do something, or has just done it: it may be their last."""
        if self.weather.crash and self.rng.random() < self.weather.crash:
            self.met[f"crash {what}"] += 1
            self.tell(who, f"dies {what}")
            raise Died(who, power=self.rng.random() < 0.4)

    def guard(self, what: Callable[[], None]) -> None:
        """Lets it happen, and buries whoever dies of it."""
        try:
            what()
        except Died as died:
            self._bury(died)

    def _bury(self, died: Died) -> None:
        if died.who == "hub":
            self.hub_dies()
        else:
            self.node_dies(self.nodes[died.who], power=died.power)

    def node_dies(self, node: Node, *, power: bool) -> None:
        if node.is_alive:
            self.tell(node.name, "loses power" if power else "agent killed")
            self.met["power cut" if power else "agent killed"] += 1
            node.die(power=power)
            self.clock.after(self.rng.uniform(0.5, 60.0), lambda: self.start(node))

    def start(self, node: Node) -> None:
        if node.is_alive:
            return
        if not node.server.is_up or not node.life:
            node.server.boot()
        self.tell(node.name, "starts")
        try:
            node.start()
        except Died as died:
            self.node_dies(node, power=died.power)
            if not node.is_alive:
                return
        self.clock.after(0.0, lambda: None)

    def hub_dies(self) -> None:
        if self.hub.is_up:
            self.tell("hub", "dies")
            self.met["hub restart"] += 1
            self.hub.die()
            self.clock.after(self.rng.uniform(1.0, 120.0), self.hub_starts)

    def hub_starts(self) -> None:
        if not self.hub.is_up:
            self.tell("hub", "starts")
            self.hub.start_up()

    # --- life ---------------------------------------------------------------------------------------------------------

    def live(self) -> None:
        """Bad weather, calm, judgement.

        Raises:
            BrokenError: something did not hold.
        """
        rng = self.rng
        for number in self.first_releases:
            for model in self.models:
                can(lambda model=model, number=number: self.hub.start(model, catalogue.of(model, number).digest))  # type: ignore[misc]
                if rng.random() < 0.7:
                    can(lambda model=model: self.hub.promote(model))  # type: ignore[misc]
            if len(self.first_releases) > 1:
                self._run(self.clock.now + rng.choice([20.0, 60.0, 120.0]))
        self._turn_bad()
        acts = [getattr(self.operators, name) for name in ACTS]
        act_weights = [weight * rng.choice([0.3, 1.0, 4.0]) for weight in ACTS.values()]
        mishaps = [getattr(self.mishaps, name) for name in MISHAPS]
        mishap_weights = [weight * rng.choice([0.0, 1.0, 3.0, 8.0]) for weight in MISHAPS.values()]
        act_share = rng.uniform(0.3, 0.8) if any(mishap_weights) else 1.0
        gap_s = rng.choice([4.0, 15.0, 40.0, 120.0])
        at = self.clock.now + rng.uniform(5.0, 60.0)
        for _ in range(rng.randint(5, 40)):
            self._run(at)
            if rng.random() < act_share:
                act = rng.choices(acts, act_weights)[0]
                self.tell("operator", act(rng.choice(self.models)))
            else:
                mishap = rng.choices(mishaps, mishap_weights)[0]
                self.tell("weather", mishap())
            at += rng.expovariate(1.0 / gap_s)
        self._run(at + rng.choice([0.0, 0.0, 600.0]))
        self._calm()
        deadline = self.clock.now + END_S
        while why := ending.unsettled(self):
            if self.clock.now >= deadline:
                raise BrokenError("end", why)
            self._run(self.clock.now + LOOK_S)
        ending.settled(self)

    def _run(self, until: float) -> None:
        nodes = tuple(self.nodes.values())

        def guarded(what: Callable[[], None]) -> None:
            try:
                what()
            except Died as died:
                self._bury(died)
            for node in nodes:
                if node.is_touched and node.is_alive:
                    node.is_touched = False
                    self.oracle.holds(node)

        self.clock.run(until, guarded)

    def _turn_bad(self) -> None:
        for name in ("loss", "twice", "late", "corrupt", "crash", "stale", "latency_s"):
            setattr(self.weather, name, getattr(self._bad, name))

    def _calm(self) -> None:
        self.tell("weather", "calms down")
        self.weather.calm()
        if self.hostile is not None:
            self.hostile.calm()
        self.has_calmed = True
        for node in self.nodes.values():
            self.road.restore(node.name)
            node.is_disk_full = node.is_disk_bad = False
            if not node.server.is_up:
                node.server.boot()
            self.start(node)
        self.mishaps.broker_starts()
        self.hub_starts()
        self.hub.republish()

    def fall_apart(self) -> None:
        """Frees all of it at once, circles and all, so that the next world is built in the same memory."""
        parts = (self.hub, self.road, self.oracle, self.operators, self.mishaps, self.clock)
        for part in (*self.nodes.values(), *parts, self):
            vars(part).clear()


def run(seed: int, *, is_told: bool = False, is_hostile: bool = False) -> Outcome:
    """Lives a world; never raises for what goes wrong in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"world-{seed}-", dir=SHM if SHM.is_dir() else None))
    world: World | None = None
    name = message = ""
    try:
        world = World(seed, folder, is_told=is_told, is_hostile=is_hostile)
        world.live()
    except BrokenError as violation:
        name, message = violation.name, str(violation)
    except RestlessError as error:
        name, message = "end", f"[end] {error}"
    except Exception as error:  # noqa: BLE001 - a crash of the product or of this simulator is a finding like any other
        import traceback

        name, message = "crash", "".join(traceback.format_exception(error)[-6:])
    finally:
        for node in world.nodes.values() if world else ():
            if node.is_alive:
                node.die(power=False)
        shutil.rmtree(folder, ignore_errors=True)
    assert world is not None, message
    outcome = Outcome(seed, name, message, world.clock.events, world.met, world.rows, tuple(world.trace))
    world.fall_apart()
    return outcome
