"""Whatever policies come to whatever rings a node is moved between: none in force goes back or is lost."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.realms import MODEL

from heliograph.documents import Heads
from heliograph.names import Ring
from heliograph_site.happenings import Passed
from heliograph_site.machine import end_of, matched, step
from heliograph_site.memory import Memory, Target
from unit.test_rulebook import NEW, OLD, Node, _manifest

RINGS: tuple[Ring, ...] = ("canary", "early")
HOLD_MAX_S = 600


class Moved:
    """A node that is moved between two rings with policies of their own, and what was in force for its model."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng, self.node = Random(seed), Node(folder)
        self.node.manifests |= {OLD: _manifest("1.0.0"), NEW: _manifest("1.1.0")}
        self.node.start()
        self.published: dict[Ring, dict[int, bytes]] = {ring: {} for ring in RINGS}
        self.ring: Ring = "canary"
        self.moves = 1
        self.told: list[object] = [seed]

    def do(self) -> None:
        rng, node = self.rng, self.node
        what = rng.choice(("publish", "publish", "move", "move", "hear", "hear", "wait", "restart", "activate", "ask"))
        self.told.append(what)
        match what:
            case "publish":
                self._publish(rng.choice(RINGS))
            case "move":
                self.moves, self.ring = self.moves + 1, rng.choice(RINGS)
                node.assign(self.ring, self.moves)
                if rng.random() < 0.5:
                    self.settle()
                    self.hear()
            case "hear":
                self.hear()
            case "wait":
                node.now += rng.choice((1, 130, HOLD_MAX_S))
            case "restart":
                node.start()
            case "activate" if node.memory.active is not None:
                self._activate(NEW if node.memory.active.release == OLD else OLD)
            case "ask":
                lacks = node.belief.rules.lacks([node.memory])
                node.belief.rules.asked(lacks)
                known = [number for number in self.published[self.ring] if number <= lacks.policy]
                if known:
                    node.hear(self.published[self.ring][max(known)], ring=self.ring, is_answer=True)
            case _:
                pass
        self.settle()

    def _publish(self, ring: Ring) -> None:
        rng, number = self.rng, max(self.published[ring], default=0) + self.rng.choice((1, 1, 2))
        bounds: dict[str, Any] = {"policy": {rng.choice(("min", "max")): number + rng.choice((0, 5))}}
        rules = rng.choice((
            {}, {}, {"floor": rng.choice(("1.1.0", "2.0.0"))},
            {"compatible": {rng.choice(("1.0.0", "1.1.0")): bounds}},
        ))  # fmt: skip
        self.published[ring][number] = self.node.policy(
            number, ring, hold_max_s=rng.choice((0, HOLD_MAX_S, HOLD_MAX_S)),
            fail_mode=rng.choice((None, "safe", "closed")), models={MODEL: rules},
        )  # fmt: skip
        self.name_all()

    def name_all(self) -> None:
        """The newest timestamp names every ring's newest."""
        self.node.realm.heads = Heads(policy={ring: max(found) for ring, found in self.published.items() if found})
        self.node.republish()

    def hear(self) -> None:
        published = self.published[self.ring]
        if published:
            self.node.hear(published[max(published)], ring=self.ring)

    def _activate(self, release: bytes) -> None:
        node = self.node
        coming = replace(node.memory, phase="activating", epoch=5, target=Target(release, 9))
        heard = node.belief.rules.heard(coming, Passed(5, node.now))
        if not heard.waits_for:
            node.memory = replace(step(coming, heard)[0], phase="idle", target=None, resort=None)

    def settle(self) -> None:
        """What the documents lead to is followed and saved, as the machines do."""
        node = self.node
        node.memory, _ = end_of(matched(node.memory, node.belief.rules.match), node.memory, None)
        node.journal.save(node.memory)
        node.belief.rules.leave_ring()
        self.told.append((self.ring, node.memory.policy, node.memory.ring))
        assert matched(node.memory, node.belief.rules.match) == (), f"never settles: {self.told}"

    def check(self, before: Memory) -> None:
        memory, heads = self.node.memory, self.node.belief.trusted.heads.policy
        assert memory.ring != before.ring or memory.policy >= before.policy, f"goes back: {self.told}"
        assert memory.policy or not before.policy or self.ring not in heads, f"none is in force: {self.told}"
        assert not memory.policy or memory.policy in self.published[memory.ring], f"of another ring: {self.told}"  # type: ignore[index]
        assert memory.ring in ("", self.ring) or self.ring in heads, f"the ring has none: {self.told}"


@pytest.mark.parametrize("shard", range(3))
def test_wherever_a_node_is_moved_no_policy_in_force_goes_back_or_is_lost(tmp_path: Path, shard: int) -> None:
    for seed in range(shard * 16, shard * 16 + 16):
        folder = tmp_path / str(seed)
        folder.mkdir()
        moved = Moved(folder, seed)
        for _ in range(16):
            before = moved.node.memory
            moved.do()
            moved.check(before)
        moved.name_all()
        moved.hear()
        moved.node.now += HOLD_MAX_S
        moved.settle()
        moved.settle()
        published, memory = moved.published[moved.ring], moved.node.memory
        if published:
            assert (memory.policy, memory.ring) == (max(published), moved.ring), f"its time has come: {moved.told}"
        assert {paper.scope for paper in moved.node.journal.papers()} <= {moved.ring}
