"""What operators do in a world, well or badly: rollouts, denials, metadata, assignments, orders, policies, configs."""

from typing import TYPE_CHECKING, Final

from heliograph.names import Digest, Ring
from simulator import catalogue
from simulator.hub import can
from simulator.machines import Machines
from simulator.papers import RINGS

if TYPE_CHECKING:
    from simulator.world import World

ORDERS: Final = ("rollback", "abort", "drill")
ACTS: Final = {
    "assign": 0.7, "deny": 2.0, "deny_key": 0.3, "direct": 2.0, "order": 3.0, "premature": 1.0, "promote": 3.0,
    "publish": 2.0, "start": 5.0,
}  # fmt: skip
"""What may come at any time, and how often; each takes a model and returns what the trace says."""


class Operators:
    """Those of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._hub, self._nodes, self._met = world.hub, world.nodes, world.met
        self._rng, self._papers_rng = world.rng, world.papers_rng

    def _release(self, model: str) -> bytes:
        return catalogue.of(model, self._rng.randint(1, min(self._hub.step + 2, len(catalogue.KINDS)))).digest

    def _known(self, model: str) -> bytes:
        """A release that matters somewhere."""
        memories = [node.memories.get(model) for node in self._nodes.values()]
        releases = [release for memory in memories if memory is not None for release in memory.releases]
        return self._rng.choice(releases) if releases and self._rng.random() < 0.8 else self._release(model)

    def _active(self, model: str) -> bytes:
        """A release that is active somewhere."""
        memories = [node.memories.get(model) for node in self._nodes.values()]
        active = [memory.active.release for memory in memories if memory is not None and memory.active is not None]
        return self._rng.choice(active) if active else self._release(model)

    def start(self, model: str) -> str:
        release = self._release(model)
        done = can(lambda: self._hub.start(model, release))
        return f"rollout of {catalogue.releases()[Digest(release)]} {'started' if done else 'refused'}"

    def promote(self, model: str) -> str:
        return f"promote {model}: {can(lambda: self._hub.promote(model))}"

    def premature(self, model: str) -> str:
        release = catalogue.of(model, self._rng.randint(1, len(catalogue.KINDS))).digest
        self._met["directive without duties"] += 1
        self._hub.start(model, release, is_premature=True)
        return f"directive for {catalogue.releases()[Digest(release)]}, whatever the duties say"

    def direct(self, model: str) -> str:
        ring: Ring = self._rng.choice(("canary", "early"))
        action = self._rng.choice(("hold", "return", "return", "install"))
        release = self._active(model) if action == "return" and self._rng.random() < 0.8 else self._known(model)
        self._hub.direct(ring, model, release, action)
        self._met[f"directive {action}"] += 1
        return f"{ring}: {action} {catalogue.releases()[Digest(release)]}"

    def deny(self, model: str) -> str:
        release, by = self._known(model), self._rng.randrange(2)
        self._met["denial"] += 1
        self._hub.deny(release, by)
        return f"deny {catalogue.releases()[Digest(release)]} by key {by}"

    def deny_key(self, model: str) -> str:
        keep = (self._known(model),) if self._rng.random() < 0.5 else ()
        self._met["denial of a key"] += 1
        self._hub.deny_key(model, keep)
        return f"deny an approver of {model}"

    def publish(self, model: str) -> str:
        self._hub.publish_step()
        return f"metadata step {self._hub.step}, form {self._hub.form}"

    def assign(self, model: str) -> str:
        name = self._rng.choice(list(self._nodes))
        ring: Ring = self._rng.choice(("canary", "early"))
        self._hub.assign(name, ring)
        self._met["assignment"] += 1
        return f"{name} to ring {ring}"

    def order(self, model: str) -> str:
        name, kind = self._rng.choice(list(self._nodes)), self._rng.choice(ORDERS)
        self._met[f"order {kind}"] += 1
        self._hub.order(name, kind, model)
        return f"{name}: {kind} {model}"

    # --- documents ------------------------------------------------------------------------------------------------

    def outlaw(self, node: Machines, model: str) -> None:
        """A policy forbids what a machine at work serves, and often a later one doesn't any more."""
        self._world.papers_to_come -= 1
        memory = node.memories.get(model)
        if memory is None:
            return
        known = [pointer for pointer in (memory.active, memory.unfit, *memory.line) if pointer is not None]
        several = self._papers_rng.choice([1, 1, 3])
        versions = [catalogue.releases()[Digest(pointer.release)].version for pointer in known[:several]]
        ring = self._hub.rings[node.name]
        self._met["policy at a bad moment"] += 1
        self._world.tell("operator", f"{ring}: {model} {versions} may serve no more")
        self._hub.outlaw(ring, model, versions)
        if self._papers_rng.random() < 0.7:
            self._world.papers_to_come += 1
            self._world.clock.after(self._papers_rng.uniform(0.5, 40.0), lambda: self._allow(ring, model))

    def _allow(self, ring: Ring, model: str) -> None:
        self._world.papers_to_come -= 1
        self._world.tell("operator", f"{ring}: {model} may serve again")
        self._hub.outlaw(ring, model, [])

    def set_paper(self) -> None:
        """An operator sets a policy or a config."""
        self._world.papers_to_come -= 1
        if self._papers_rng.random() < 0.5:
            ring = self._papers_rng.choice(RINGS)
            policy = self._hub.set_policy(ring, self._papers_rng)
            self._met["policy"] += 1
            self._world.tell(
                "operator", f"policy {policy.number} of {ring}, held {policy.hold_max_s} s: {policy.models}"
            )
            return
        model = self._papers_rng.choice(self._world.models)
        config = self._hub.set_config(model, self._papers_rng)
        self._met["config"] += 1
        self._world.tell("operator", f"config {config.number} of {model}, generation {config.generation}")
