"""One world from one seed: built, let live in bad weather, calmed, and judged."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from heliograph.names import Digest, Ring
from heliograph_site.happenings import Event
from heliograph_site.memory import UNDER_WAY, Memory
from simulator import catalogue
from simulator.clock import MAX_EVENTS, MAX_HOSTILE_EVENTS, Clock, RestlessError
from simulator.hostile import Hostile
from simulator.hub import Hub, can
from simulator.machines import Machines
from simulator.node import Node
from simulator.oracle import BrokenError, Oracle
from simulator.papers import RINGS
from simulator.road import Link, Road, Weather
from simulator.shell import Died

END_S = 6 * 3600.0
"""So long after calm a world may take to come to rest."""
LOOK_S = 20.0
SHM = Path("/dev/shm")
SMALL_CAP = 72 * 1024
ORDERS = ("rollback", "abort", "drill")


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
        for site, node_name in catalogue.NODES[: rng.choice([1, 2, 2, 3])]:
            name = f"{site}/{node_name}"
            place = folder / name.replace("/", "-")
            place.mkdir()
            self.hub.enroll(name, "canary" if not self.nodes else rng.choice(("canary", "early")))
            node = self.nodes[name] = Node(self, name, place)
            self.road.links[name] = Link(node.on_message, node.on_link, topics=node.topics)
            self.clock.after(rng.uniform(0.0, 5.0), lambda node=node: self._start(node))  # type: ignore[misc]
        self.has_calmed = False
        self.nights = self.clocks_rng.randint(1, 3) if self.has_clocks else 0
        if self.clocks_rng.random() < 0.3:
            self.clock.after(self.clocks_rng.uniform(60.0, 1200.0), self._skip_a_night)
        self.papers_rng = Random(f"when {seed}")
        self.papers_to_come = 0
        self.outlaws = self.papers_rng.choice([0, 0, 3, 8])
        if self.papers_rng.random() < 0.6:
            within_s = self.papers_rng.choice([60.0, 600.0, 2400.0])
            for _ in range(self.papers_rng.randint(1, 10)):
                self.papers_to_come += 1
                self.clock.after(self.papers_rng.uniform(0.0, within_s), self._set_paper)

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
            self.clock.after(self.clocks_rng.uniform(0.0, 1.0), self._skip_a_night)
            self.clock.after(self.clocks_rng.uniform(60.0, 900.0), lambda: self.road.restore(node.name))
        if self.outlaws and is_at_work and self.papers_rng.random() < 0.3:
            self.outlaws -= 1
            self.papers_to_come += 1
            wait_s = self.papers_rng.uniform(0.0, self.papers_rng.choice([0.0, 2.0, 20.0]))
            self.clock.after(wait_s, lambda: self._outlaw(node, after.model))
        if after.phase == before.phase or self.has_calmed or not self.ambush:
            return
        chance = self.ambush
        if after.phase in ("stuck", "rolling-back") or (after.phase == "proving" and after.earlier is not None):
            chance = 0.8
        if after.phase != "idle" and self.rng.random() < chance:
            for _ in range(self.rng.choice([1, 1, 2])):
                wait_s = self.rng.choice([0.0, 0.5, 5.0, 20.0])
                self.clock.after(self.rng.uniform(0.0, wait_s), lambda: self._strike(node, after.model))

    def _skip_a_night(self) -> None:
        """Days pass in which nothing happens but that time does, for whoever has power; then the hub signs anew."""
        if self.has_calmed or not self.nights:
            return
        self.nights -= 1
        for node in self.nodes.values():
            if self.clocks_rng.random() < 0.3:
                self._node_dies(node, power=True)
        days = self.clocks_rng.choice([1, 3, 6, 9])
        self.met["nights"] += 1
        self.tell("sun", f"{days} days pass")
        self.clock.skipped_s += days * 86_400
        if self.hub.is_up:
            self.hub.republish()

    def _outlaw(self, node: Machines, model: str) -> None:
        """A policy forbids what a machine at work serves, and often a later one doesn't any more."""
        self.papers_to_come -= 1
        memory = node.memories.get(model)
        if memory is None:
            return
        known = [pointer for pointer in (memory.active, memory.unfit, *memory.line) if pointer is not None]
        several = self.papers_rng.choice([1, 1, 3])
        versions = [catalogue.releases()[Digest(pointer.release)].version for pointer in known[:several]]
        ring = self.hub.rings[node.name]
        self.met["policy at a bad moment"] += 1
        self.tell("operator", f"{ring}: {model} {versions} may serve no more")
        self.hub.outlaw(ring, model, versions)
        if self.papers_rng.random() < 0.7:
            self.papers_to_come += 1
            self.clock.after(self.papers_rng.uniform(0.5, 40.0), lambda: self._allow(ring, model))

    def _allow(self, ring: Ring, model: str) -> None:
        self.papers_to_come -= 1
        self.tell("operator", f"{ring}: {model} may serve again")
        self.hub.outlaw(ring, model, [])

    def _set_paper(self) -> None:
        """An operator sets a policy or a config."""
        self.papers_to_come -= 1
        if self.papers_rng.random() < 0.5:
            ring = self.papers_rng.choice(RINGS)
            policy = self.hub.set_policy(ring, self.papers_rng)
            self.met["policy"] += 1
            self.tell("operator", f"policy {policy.number} of {ring}, held {policy.hold_max_s} s: {policy.models}")
            return
        model = self.papers_rng.choice(self.models)
        config = self.hub.set_config(model, self.papers_rng)
        self.met["config"] += 1
        self.tell("operator", f"config {config.number} of {model}, generation {config.generation}")

    def _strike(self, node: Machines, model: str) -> None:
        """What seldom meets a machine at work, or one that is stuck, is made to meet it."""
        memory = node.memories.get(model)
        if memory is None or self.has_calmed:
            return
        pointers = self.rng.choice([memory.kept[1:], memory.kept[1:], memory.kept[:1], (memory.target,)])
        releases = [pointer.release for pointer in pointers if pointer is not None]
        what = self.rng.randrange(7)
        if what < 2 and releases:
            self.met["denial at a bad moment"] += 1
            self.hub.deny(releases[0], self.rng.randrange(2))
        elif what == 2:
            self.met["worker breaks at a bad moment"] += 1
            node.server.breaks(model, self.rng.choice(memory.kept).release if memory.kept else b"")
        elif what == 3 and memory.phase in ("fetching", "staging"):
            self._spoil_disk(node)
        elif what == 3:
            self.road.cut(node.name)
            self.clock.after(self.rng.uniform(0.2, 3.0), lambda: self.road.restore(node.name))
        elif what == 5 and memory.phase in UNDER_WAY:
            self.met["assignment at a bad moment"] += 1
            self.hub.assign(node.name, "early" if self.hub.rings[node.name] == "canary" else "canary")
        elif what == 6:
            self.met["order at a bad moment"] += 1
            self.hub.order(node.name, self.rng.choice(ORDERS), model)
        elif memory.active is not None:
            self.met["directive at a bad moment"] += 1
            action = self.rng.choice(("hold", "return", "return"))
            self.hub.direct(self.hub.rings[node.name], model, memory.active.release, action)

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
            self._hub_dies()
        else:
            self._node_dies(self.nodes[died.who], power=died.power)

    def _node_dies(self, node: Node, *, power: bool) -> None:
        if node.is_alive:
            self.tell(node.name, "loses power" if power else "agent killed")
            self.met["power cut" if power else "agent killed"] += 1
            node.die(power=power)
            self.clock.after(self.rng.uniform(0.5, 60.0), lambda: self._start(node))

    def _start(self, node: Node) -> None:
        if node.is_alive:
            return
        if not node.server.is_up or not node.life:
            node.server.boot()
        self.tell(node.name, "starts")
        try:
            node.start()
        except Died as died:
            self._node_dies(node, power=died.power)
            if not node.is_alive:
                return
        self.clock.after(0.0, lambda: None)

    def _hub_dies(self) -> None:
        if self.hub.is_up:
            self.tell("hub", "dies")
            self.met["hub restart"] += 1
            self.hub.die()
            self.clock.after(self.rng.uniform(1.0, 120.0), self._hub_starts)

    def _hub_starts(self) -> None:
        if not self.hub.is_up:
            self.tell("hub", "starts")
            self.hub.start_up()

    # --- what operators do --------------------------------------------------------------------------------------------

    def _release(self, model: str) -> bytes:
        return catalogue.of(model, self.rng.randint(1, min(self.hub.step + 2, len(catalogue.KINDS)))).digest

    def _known(self, model: str) -> bytes:
        """A release that matters somewhere."""
        memories = [node.memories.get(model) for node in self.nodes.values()]
        releases = [release for memory in memories if memory is not None for release in memory.releases]
        return self.rng.choice(releases) if releases and self.rng.random() < 0.8 else self._release(model)

    def _active(self, model: str) -> bytes:
        """A release that is active somewhere."""
        memories = [node.memories.get(model) for node in self.nodes.values()]
        active = [memory.active.release for memory in memories if memory is not None and memory.active is not None]
        return self.rng.choice(active) if active else self._release(model)

    def op_start(self, model: str) -> str:
        release = self._release(model)
        done = can(lambda: self.hub.start(model, release))
        return f"rollout of {catalogue.releases()[Digest(release)]} {'started' if done else 'refused'}"

    def op_promote(self, model: str) -> str:
        return f"promote {model}: {can(lambda: self.hub.promote(model))}"

    def op_premature(self, model: str) -> str:
        release = catalogue.of(model, self.rng.randint(1, len(catalogue.KINDS))).digest
        self.met["directive without duties"] += 1
        self.hub.start(model, release, is_premature=True)
        return f"directive for {catalogue.releases()[Digest(release)]}, whatever the duties say"

    def op_direct(self, model: str) -> str:
        ring: Ring = self.rng.choice(("canary", "early"))
        action = self.rng.choice(("hold", "return", "return", "install"))
        release = self._active(model) if action == "return" and self.rng.random() < 0.8 else self._known(model)
        self.hub.direct(ring, model, release, action)
        self.met[f"directive {action}"] += 1
        return f"{ring}: {action} {catalogue.releases()[Digest(release)]}"

    def op_deny(self, model: str) -> str:
        release, by = self._known(model), self.rng.randrange(2)
        self.met["denial"] += 1
        self.hub.deny(release, by)
        return f"deny {catalogue.releases()[Digest(release)]} by key {by}"

    def op_deny_key(self, model: str) -> str:
        keep = (self._known(model),) if self.rng.random() < 0.5 else ()
        self.met["denial of a key"] += 1
        self.hub.deny_key(model, keep)
        return f"deny an approver of {model}"

    def op_publish(self, model: str) -> str:
        self.hub.publish_step()
        return f"metadata step {self.hub.step}, form {self.hub.form}"

    def op_assign(self, model: str) -> str:
        name = self.rng.choice(list(self.nodes))
        ring: Ring = self.rng.choice(("canary", "early"))
        self.hub.assign(name, ring)
        self.met["assignment"] += 1
        return f"{name} to ring {ring}"

    def op_order(self, model: str) -> str:
        name, kind = self.rng.choice(list(self.nodes)), self.rng.choice(ORDERS)
        self.met[f"order {kind}"] += 1
        self.hub.order(name, kind, model)
        return f"{name}: {kind} {model}"

    # --- what the weather does ----------------------------------------------------------------------------------------

    def _any(self) -> Node:
        return self.rng.choice(list(self.nodes.values()))

    def w_cut(self) -> str:
        node = self._any()
        self.road.cut(node.name)
        for_s = self.rng.choice([3.0, 30.0, 300.0, 2000.0])
        self.clock.after(for_s, lambda: self.road.restore(node.name))
        return f"cuts {node.name} off for {for_s:.0f} s"

    def w_power(self) -> str:
        node = self._any()
        self._node_dies(node, power=self.rng.random() < 0.7)
        return f"takes {node.name} down"

    def w_stop(self) -> str:
        node = self._any()
        if node.is_alive:
            self.met["orderly stop"] += 1
            node.stop()
            self.clock.after(self.rng.uniform(0.5, 30.0), lambda: self._start(node))
        return f"has {node.name} stopped"

    def w_server(self) -> str:
        node = self._any()
        if node.server.is_up:
            self.met["server died"] += 1
            node.server.die()
            self.clock.after(self.rng.uniform(1.0, 90.0), lambda: node.server.is_up or node.server.boot())
        return f"kills the server of {node.name}"

    def w_broker(self) -> str:
        if self.road.is_broker_up:
            self.road.broker_dies(loses=self.rng.random() < 0.6)
            self.clock.after(self.rng.uniform(1.0, 60.0), self._broker_starts)
        return "kills the broker"

    def _broker_starts(self) -> None:
        if not self.road.is_broker_up:
            self.road.is_broker_up = True
            if self.hub.is_up:
                self.road.hub_is_back()
                self.hub.announce()

    def w_hub(self) -> str:
        self._hub_dies()
        return "kills the hub"

    def w_replay(self) -> str:
        node = self._any()
        self.guard(lambda: self.road.replay(node.name))
        return f"replays something to {node.name}"

    def w_break(self) -> str:
        node, model = self._any(), self.rng.choice(self.models)
        if model not in node.server.serving:
            return "breaks nothing"
        self.met["worker breaks"] += 1
        name = catalogue.releases()[Digest(node.server.serving[model])]
        node.server.breaks(model, node.server.serving[model])
        return f"breaks {name} on {node.name}"

    def w_rot(self) -> str:
        node, model = self._any(), self.rng.choice(self.models)
        memory = node.memories.get(model)
        if memory is None or not memory.releases:
            return "rots nothing"
        manifest = node.slots.manifest(self.rng.choice(memory.releases))
        if manifest is not None:
            node.rot(manifest)
        return f"rots a file on {node.name}"

    def w_disk(self) -> str:
        node = self._any()
        self._spoil_disk(node)
        return f"{node.name} has a {'full' if node.is_disk_full else 'bad'} disk"

    def _spoil_disk(self, node: Machines) -> None:
        node.had_bad_disk = True
        node.is_disk_full = self.rng.random() < 0.5
        node.is_disk_bad = not node.is_disk_full

        def heal() -> None:
            node.is_disk_full = node.is_disk_bad = False

        self.clock.after(self.rng.choice([60.0, 600.0, 5000.0]), heal)

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
        ops = [getattr(self, name) for name in dir(self) if name.startswith("op_")]
        op_weights = [OP_WEIGHTS[op.__name__] * rng.choice([0.3, 1.0, 4.0]) for op in ops]
        weathers = [getattr(self, name) for name in dir(self) if name.startswith("w_")]
        weather_weights = [WEATHER_WEIGHTS[w.__name__] * rng.choice([0.0, 1.0, 3.0, 8.0]) for w in weathers]
        op_share = rng.uniform(0.3, 0.8) if any(weather_weights) else 1.0
        gap_s = rng.choice([4.0, 15.0, 40.0, 120.0])
        at = self.clock.now + rng.uniform(5.0, 60.0)
        for _ in range(rng.randint(5, 40)):
            self._run(at)
            if rng.random() < op_share:
                op = rng.choices(ops, op_weights)[0]
                self.tell("operator", op(rng.choice(self.models)))
            else:
                weather = rng.choices(weathers, weather_weights)[0]
                self.tell("weather", weather())
            at += rng.expovariate(1.0 / gap_s)
        self._run(at + rng.choice([0.0, 0.0, 600.0]))
        self._calm()
        deadline = self.clock.now + END_S
        while why := self.oracle.unsettled():
            if self.clock.now >= deadline:
                raise BrokenError("end", why)
            self._run(self.clock.now + LOOK_S)
        self.oracle.settled()

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
            self._start(node)
        self._broker_starts()
        self._hub_starts()
        self.hub.republish()

    def fall_apart(self) -> None:
        """Frees all of it at once, circles and all, so that the next world is built in the same memory."""
        for part in (*self.nodes.values(), self.hub, self.road, self.oracle, self.clock, self):
            vars(part).clear()


OP_WEIGHTS = {
    "op_start": 5.0, "op_promote": 3.0, "op_premature": 1.0, "op_direct": 2.0, "op_deny": 2.0, "op_deny_key": 0.3,
    "op_publish": 2.0, "op_assign": 0.7, "op_order": 3.0,
}  # fmt: skip
WEATHER_WEIGHTS = {
    "w_cut": 3.0, "w_power": 3.0, "w_stop": 0.7, "w_server": 1.0, "w_broker": 1.0, "w_hub": 1.0, "w_replay": 1.0,
    "w_break": 2.0, "w_rot": 0.2, "w_disk": 1.0,
}  # fmt: skip


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
