"""What the weather does: links, power, processes and disks fail, at any time and at bad moments; nights pass."""

from typing import TYPE_CHECKING, Final

from heliograph.names import Digest
from heliograph_site.memory import UNDER_WAY
from simulator import catalogue
from simulator.machines import Machines
from simulator.node import Node
from simulator.operators import ORDERS

if TYPE_CHECKING:
    from simulator.world import World

MISHAPS: Final = {
    "break_worker": 2.0, "broker": 1.0, "cut": 3.0, "disk": 1.0, "hub": 1.0, "power": 3.0, "replay": 1.0, "rot": 0.2,
    "server": 1.0, "stop": 0.7,
}  # fmt: skip
"""What may come at any time, and how often; each returns what the trace says."""


class Mishaps:
    """Those of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._hub, self._road, self._nodes, self._clock = world.hub, world.road, world.nodes, world.clock
        self._rng, self._clocks_rng, self._met = world.rng, world.clocks_rng, world.met

    def _any(self) -> Node:
        return self._rng.choice(list(self._nodes.values()))

    def cut(self) -> str:
        node = self._any()
        self._road.cut(node.name)
        for_s = self._rng.choice([3.0, 30.0, 300.0, 2000.0])
        self._clock.after(for_s, lambda: self._road.restore(node.name))
        return f"cuts {node.name} off for {for_s:.0f} s"

    def power(self) -> str:
        node = self._any()
        self._world.node_dies(node, power=self._rng.random() < 0.7)
        return f"takes {node.name} down"

    def stop(self) -> str:
        node = self._any()
        if node.is_alive:
            self._met["orderly stop"] += 1
            node.stop()
            self._clock.after(self._rng.uniform(0.5, 30.0), lambda: self._world.start(node))
        return f"has {node.name} stopped"

    def server(self) -> str:
        node = self._any()
        if node.server.is_up:
            self._met["server died"] += 1
            node.server.die()
            self._clock.after(self._rng.uniform(1.0, 90.0), lambda: node.server.is_up or node.server.boot())
        return f"kills the server of {node.name}"

    def broker(self) -> str:
        if self._road.is_broker_up:
            self._road.broker_dies(loses=self._rng.random() < 0.6)
            self._clock.after(self._rng.uniform(1.0, 60.0), self.broker_starts)
        return "kills the broker"

    def broker_starts(self) -> None:
        if not self._road.is_broker_up:
            self._road.is_broker_up = True
            if self._hub.is_up:
                self._road.hub_is_back()
                self._hub.announce()

    def hub(self) -> str:
        self._world.hub_dies()
        return "kills the hub"

    def replay(self) -> str:
        node = self._any()
        self._world.guard(lambda: self._road.replay(node.name))
        return f"replays something to {node.name}"

    def break_worker(self) -> str:
        node, model = self._any(), self._rng.choice(self._world.models)
        if model not in node.server.serving:
            return "breaks nothing"
        self._met["worker breaks"] += 1
        name = catalogue.releases()[Digest(node.server.serving[model])]
        node.server.breaks(model, node.server.serving[model])
        return f"breaks {name} on {node.name}"

    def rot(self) -> str:
        node, model = self._any(), self._rng.choice(self._world.models)
        memory = node.memories.get(model)
        if memory is None or not memory.releases:
            return "rots nothing"
        manifest = node.slots.manifest(self._rng.choice(memory.releases))
        if manifest is not None:
            node.rot(manifest)
        return f"rots a file on {node.name}"

    def disk(self) -> str:
        node = self._any()
        self.spoil_disk(node)
        return f"{node.name} has a {'full' if node.is_disk_full else 'bad'} disk"

    def spoil_disk(self, node: Machines) -> None:
        node.had_bad_disk = True
        node.is_disk_full = self._rng.random() < 0.5
        node.is_disk_bad = not node.is_disk_full

        def heal() -> None:
            node.is_disk_full = node.is_disk_bad = False

        self._clock.after(self._rng.choice([60.0, 600.0, 5000.0]), heal)

    # --- at bad moments -------------------------------------------------------------------------------------------

    def skip_a_night(self) -> None:
        """Days pass in which nothing happens but that time does, for whoever has power; then the hub signs anew."""
        if self._world.has_calmed or not self._world.nights:
            return
        self._world.nights -= 1
        for node in self._nodes.values():
            if self._clocks_rng.random() < 0.3:
                self._world.node_dies(node, power=True)
        days = self._clocks_rng.choice([1, 3, 6, 9])
        self._met["nights"] += 1
        self._world.tell("sun", f"{days} days pass")
        self._clock.skipped_s += days * 86_400
        if self._hub.is_up:
            self._hub.republish()

    def strike(self, node: Machines, model: str) -> None:
        """What seldom meets a machine at work, or one that is stuck, is made to meet it."""
        memory = node.memories.get(model)
        if memory is None or self._world.has_calmed:
            return
        pointers = self._rng.choice([memory.kept[1:], memory.kept[1:], memory.kept[:1], (memory.target,)])
        releases = [pointer.release for pointer in pointers if pointer is not None]
        what = self._rng.randrange(7)
        if what < 2 and releases:
            self._met["denial at a bad moment"] += 1
            self._hub.deny(releases[0], self._rng.randrange(2))
        elif what == 2:
            self._met["worker breaks at a bad moment"] += 1
            node.server.breaks(model, self._rng.choice(memory.kept).release if memory.kept else b"")
        elif what == 3 and memory.phase in ("fetching", "staging"):
            self.spoil_disk(node)
        elif what == 3:
            self._road.cut(node.name)
            self._clock.after(self._rng.uniform(0.2, 3.0), lambda: self._road.restore(node.name))
        elif what == 5 and memory.phase in UNDER_WAY:
            self._met["assignment at a bad moment"] += 1
            self._hub.assign(node.name, "early" if self._hub.rings[node.name] == "canary" else "canary")
        elif what == 6:
            self._met["order at a bad moment"] += 1
            self._hub.order(node.name, self._rng.choice(ORDERS), model)
        elif memory.active is not None:
            self._met["directive at a bad moment"] += 1
            action = self._rng.choice(("hold", "return", "return"))
            self._hub.direct(self._hub.rings[node.name], model, memory.active.release, action)
