"""Random documents, ranges and orders of arrival: a node never leaves the matrix and always ends on the newest tuple.

The hub publishes; the link loses, delays and reorders; a pure model of a node asks the one rule what to do. What must
come out is worked out by `_best`, which knows the contract and nothing of `heliograph.tuples`.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from heliograph import tuples
from heliograph.manifest import Compatible, Span
from heliograph.policy import ModelRules
from heliograph.tuples import Held, HeldConfig, HeldPolicy, HeldRelease

HOLDS = (0, 50, 1_000)
Numbers = tuple[int | None, int, int]
"""(release, config, policy)."""


@dataclass
class Hub:
    """What is published: numbers grow, some are never published."""

    rng: random.Random
    now: int = 0
    releases: list[HeldRelease] = field(default_factory=list)
    configs: dict[int, HeldConfig] = field(default_factory=dict)
    policies: dict[int, HeldPolicy] = field(default_factory=dict)
    directive: tuple[int, int] | None = None
    """(index of the release, number)."""

    def publish(self) -> None:
        rng = self.rng
        match rng.choice(["release", "config", "policy", "directive"]):
            case "release":
                index = len(self.releases)
                self.releases.append(
                    HeldRelease(
                        digest=bytes([index]) * 32,
                        version=f"1.{index}.0",
                        compatible=Compatible(
                            config=self._span(len(self.configs)), policy=self._span(len(self.policies))
                        ),
                        generations=rng.choice([(), (1,), (2,), (1, 2)]),
                        fail_mode=rng.choice(["safe", "closed"]),
                    )
                )
            case "config":
                number = max(self.configs, default=0) + rng.choice([1, 1, 2])
                self.configs[number] = HeldConfig(number, rng.choice([None, 1, 2]))
            case "policy":
                number = max(self.policies, default=0) + rng.choice([1, 1, 2])
                rules = ModelRules(
                    floor=f"1.{rng.randrange(3)}.0" if rng.random() < 0.2 else None,
                    compatible={
                        release.version: Compatible(config=self._span(len(self.configs)), policy=self._span(number))
                        for release in self.releases
                        if rng.random() < 0.2
                    },
                )
                self.policies[number] = HeldPolicy(number, rules, None, rng.choice(HOLDS))
            case _ if self.releases:
                number = self.directive[1] + 1 if self.directive else 1
                self.directive = (rng.randrange(len(self.releases)), number)

    def _span(self, newest: int) -> Span:
        rng = self.rng
        if rng.random() < 0.4:
            return Span()
        low = rng.randint(0, newest + 1)
        return Span(min=low, max=rng.choice([None, low + rng.randrange(4)]))


@dataclass
class Node:
    """One model on one node, as its journal would have it."""

    hub: Hub
    configs: dict[int, HeldConfig] = field(default_factory=dict)
    policies: dict[int, HeldPolicy] = field(default_factory=dict)
    directive: tuple[int, int] | None = None
    staged: set[int] = field(default_factory=set)
    refused: set[tuple[int, int]] = field(default_factory=set)
    kept: list[tuple[int, int, int]] = field(default_factory=list)
    """(release, config, passed over): active first, then the fallbacks."""
    policy: int = 0
    standing: str = "fits"
    trace: list[Any] = field(default_factory=list)

    def held(self) -> Held:
        releases = [
            replace(self.hub.releases[index], config=config, passed_over=passed) for index, config, passed in self.kept
        ]
        directed = None
        if self.directive is not None and self.directive not in self.refused:
            index = self.directive[0]
            known = [release for release, (kept, *_) in zip(releases, self.kept, strict=True) if kept == index]
            directed = replace(known[0] if known else self.hub.releases[index], is_staged=index in self.staged)
        return Held(
            model="digits",
            active=releases[0] if releases else None,
            directed=directed,
            fallbacks=tuple(releases[1:]),
            configs=tuple(self.configs.values()),
            policies=tuple(self.policies.values()),
            in_force=self.policy,
        )

    def take_config(self, config: HeldConfig, asked: int = 0) -> None:
        if asked or config.number > max(self.configs, default=0):
            until = max(asked, self.configs[config.number].newest_until if config.number in self.configs else 0)
            self.configs[config.number] = replace(config, newest_until=until)

    def take_policy(self, policy: HeldPolicy, asked: int = 0) -> None:
        known = self.policies.get(policy.number)
        if asked or policy.number > max(self.policies, default=0):
            until = max(asked, known.newest_until if known else 0)
            came_at = known.came_at if known else self.hub.now
            self.policies[policy.number] = replace(policy, came_at=came_at, newest_until=until)

    def take_directive(self, directive: tuple[int, int]) -> None:
        if self.directive is None or directive[1] > self.directive[1]:
            self.directive = directive

    def talk(self, is_lost: bool = False) -> None:
        """Hello and reply: what is newer, and what was asked for by number."""
        held = self.held()
        lacks = tuples.lacks(replace(held, in_force=tuples.choose(held, self.hub.now).in_force))
        if is_lost:
            return
        for configs in (self.hub.configs,):
            if configs and max(configs) > max(self.configs, default=0):
                self.take_config(configs[max(configs)])
            older = [number for number in configs if number <= lacks.config]
            if older:
                self.take_config(configs[max(older)], lacks.config)
        policies = self.hub.policies
        if policies and max(policies) > max(self.policies, default=0):
            self.take_policy(policies[max(policies)])
        older = [number for number in policies if number <= lacks.policy]
        if older:
            self.take_policy(policies[max(older)], lacks.policy)
        if self.hub.directive is not None:
            self.take_directive(self.hub.directive)

    def settle(self) -> None:
        """Makes active what the rule says; a release that is new here goes through activation."""
        before, held = self.policy, self.held()
        directed = [held.directed] if held.directed is not None and held.directed.is_staged else []
        best = _best(self, directed + ([held.active] if held.active is not None else []), self)
        choice = tuples.choose(held, self.hub.now)
        if tuples.least(held, self.hub.now) == self.policy and best is not None:
            got = choice.release[0] if choice.release is not None else None
            assert (got, choice.config, choice.in_force) == best, "the newest of what is held"
        self._adopt(choice)
        assert self.policy >= before, "policy never goes back"
        again = tuples.choose(self.held(), self.hub.now)
        assert (again.release, again.config, again.in_force, again.standing) == (
            choice.release, choice.config, choice.in_force, choice.standing,
        ), "what was chosen is chosen again"  # fmt: skip

    def fail(self) -> None:
        """The active release failed its probation, or what it serves rots."""
        if not self.kept:
            return
        (failed, config, _), *rest = self.kept
        if self.directive is not None and self.directive[0] == failed:
            self.refused.add(self.directive)
        self.kept = [(index, own, max(passed, config)) for index, own, passed in rest]
        self.staged.discard(failed)
        self.settle()

    def _adopt(self, choice: tuples.Choice) -> None:
        self.policy, self.standing = choice.in_force, choice.standing
        self.trace.append((self.hub.now, choice))
        if choice.release is None or choice.standing != "fits":
            return
        index = choice.release[0]
        passed = next((passed for kept, _, passed in self.kept if kept == index), 0)
        self.kept = [(index, choice.config, passed), *(row for row in self.kept if row[0] != index)][:3]

    @property
    def now(self) -> Numbers:
        return (self.kept[0][0], self.kept[0][1], self.policy) if self.kept else (None, 0, self.policy)


# --- the contract, a second time ----------------------------------------------------------------------------------


def _fits(release: HeldRelease, config: HeldConfig, policy: HeldPolicy) -> bool:
    spans = policy.rules.compatible.get(release.version, release.compatible)
    for span, number in ((spans.config, config.number), (spans.policy, policy.number)):
        if number < span.min or (span.max is not None and number > span.max):
            return False
    if config.generation is not None and release.generations and config.generation not in release.generations:
        return False
    floor = policy.rules.floor
    return floor is None or [int(part) for part in release.version.split(".")] >= [int(p) for p in floor.split(".")]


def _best(node: Node, among: list[HeldRelease], owner: "Hub | Node") -> Numbers | None:
    """The newest tuple of all that `owner` has, by brute force: policy, then `among` in order, then config."""
    policies = [policy for number, policy in owner.policies.items() if number >= node.policy]
    if node.policy == 0 and (node.kept or not owner.policies):
        policies.append(HeldPolicy(0))
    found = []
    for policy in policies:
        for place, release in enumerate(among):
            own = release.config
            configs = list(owner.configs.values())
            if not configs or own == 0:
                configs.append(HeldConfig(0))
            for config in configs:
                if _fits(release, config, policy):
                    is_new = config.number > release.passed_over
                    rank = (is_new, not is_new and config.number == own, config.number)
                    found.append(((policy.number, -place, rank), (release.digest[0], config.number, policy.number)))
    return max(found)[1] if found else None


def _check_matrix(node: Node) -> None:
    if not node.kept or node.standing != "fits":
        return
    index, config, _ = node.kept[0]
    policy = node.hub.policies.get(node.policy, HeldPolicy(0))
    assert _fits(node.hub.releases[index], node.hub.configs.get(config, HeldConfig(0)), policy), node.trace


def _live(seed: int) -> tuple[Hub, Node]:
    """A world of some happenings; every state is checked against the matrix."""
    rng = random.Random(seed)
    hub = Hub(rng)
    node = Node(hub)
    for _ in range(60):
        hub.now += rng.choice([0, 1, 10, 100])
        match rng.randrange(7):
            case 0 | 1:
                hub.publish()
            case 2:
                if hub.configs:  # the fast path, or an old message that comes late
                    node.take_config(hub.configs[rng.choice(list(hub.configs))])
            case 3:
                if hub.policies:
                    node.take_policy(hub.policies[rng.choice(list(hub.policies))])
            case 4:
                node.talk(is_lost=rng.random() < 0.5)
            case 5:
                if node.directive is not None:
                    node.staged.add(node.directive[0])
            case 6:
                if len(node.kept) > 1:
                    node.fail()
        _check_matrix(node)
        if rng.random() < 0.7:
            node.settle()
            _check_matrix(node)
    return hub, node


def _connect(node: Node) -> int:
    """Everything works now: how many hellos it took until nothing changed any more."""
    for hellos in range(1, 200):
        before = (node.now, dict(node.configs), dict(node.policies), node.directive)
        node.talk()
        if node.directive is not None and node.directive not in node.refused:
            node.staged.add(node.directive[0])
        node.settle()
        _check_matrix(node)
        if (node.now, node.configs, node.policies, node.directive) == before:
            return hellos
    raise AssertionError("it asks for ever")


SEEDS = 250


@pytest.mark.parametrize("part", range(4))
def test_a_connected_node_ends_on_the_newest_tuple_of_all_that_is_published(part: int) -> None:
    reached = 0
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        _, node = _live(seed)
        _connect(node)
        held = node.held()
        among = [release for release in (held.directed, held.active) if release is not None]
        best = _best(node, among, node.hub)
        if best is not None:
            reached += 1
            assert node.standing == "fits", (seed, node.trace[-3:])
            assert node.now == best, (seed, node.trace[-3:])
    assert reached > SEEDS / 2, "the worlds say something"


def test_policy_converges_when_its_holding_time_is_over_whatever_fits() -> None:
    fitting = 0
    for seed in range(SEEDS):
        hub, node = _live(seed)
        _connect(node)
        hub.now += max(HOLDS) + 1
        _connect(node)
        assert node.policy == max(hub.policies, default=0), (seed, node.trace[-3:])
        held = node.held()
        among = [release for release in (held.directed, held.active) if release is not None]
        best = _best(node, among, node.hub)
        fitting += best is not None
        assert (node.standing == "fits") == (best is not None), (seed, node.trace[-3:])
    assert fitting > SEEDS / 4, "the worlds say something"


def test_the_order_in_which_documents_are_held_decides_nothing() -> None:
    for seed in range(SEEDS):
        _, node = _live(seed)
        held, rng = node.held(), random.Random(seed)
        shuffled = replace(
            held,
            configs=tuple(rng.sample(held.configs, len(held.configs))),
            policies=tuple(rng.sample(held.policies, len(held.policies))),
        )
        first, second = (tuples.choose(one, node.hub.now) for one in (held, shuffled))
        assert replace(first, waits=()) == replace(second, waits=()), seed
        assert sorted(first.waits) == sorted(second.waits), seed


def test_the_worlds_have_what_is_rare() -> None:
    standings: set[str] = set()
    rollbacks = asked = 0
    for seed in range(SEEDS):
        _, node = _live(seed)
        standings |= {choice.standing for _, choice in node.trace}
        rollbacks += any(passed for *_, passed in node.kept)
        asked += any(config.newest_until for config in node.configs.values())
    assert standings == {"fits", "flagged", "stopped"}
    assert rollbacks > 10
    assert asked > 10
