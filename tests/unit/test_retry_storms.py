"""However nodes are put off, they don't storm the hub: the node's real loop of asks, the hub's real answers, in virtual
time, with answers lost, links cut, the hub killed, rollouts paused, aborted and started again.

Held is, for every node and every hour: no more asks than `ASKS_PER_HOUR`, and besides those `ASKS_PER_RECIPE` for the
first wait and after each start of the hub, and one after each thing that has a node ask anew: a directive, a cut link,
an agent that restarts, a hub that is back.
"""

import asyncio
import json
import selectors
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from heliograph.deadlines import Deadlines
from heliograph.documents import Ask, Hardware, ModelReport, Offer, Tuple
from heliograph.errors import TransportError
from heliograph.objects import ObjectStore
from heliograph.policy import Budget, Pacing, Policy
from heliograph_hub.admission import Admission
from heliograph_hub.database import Database
from heliograph_hub.distribution import answer
from heliograph_hub.fleet import Node
from heliograph_hub.ledger import Ledger
from heliograph_hub.pacing import ASKS_PER_HOUR, ASKS_PER_RECIPE
from heliograph_hub.recipes import Recipes
from heliograph_hub.registry import Registry
from heliograph_hub.rollout import Paused, Signed
from heliograph_site.happenings import Admitted
from heliograph_site.memory import Memory, Target
from heliograph_site.slots import Slots
from heliograph_site.surroundings import Pace
from heliograph_site.tasks import Tasks

START = 1_800_000_000
HOUR = 3600
UTC = ZoneInfo("UTC")
HERE = Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={"tflite": "2.14.0"})
TENSOR = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}


class Instant(selectors.SelectSelector):
    """Waits for nothing: what would have been waited is added to the time."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nobody would ever wake"
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time; no threads."""

    def __init__(self) -> None:
        self._instant = Instant()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.now


@dataclass
class Asks:
    """When each node asked, and what allowed it to ask beyond the hourly number: (when, how many)."""

    at: dict[str, list[float]] = field(default_factory=dict)
    allowed: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def check(self) -> int:
        """The most asks of any node in any hour, held against the bound."""
        most = 0
        for name, times in self.at.items():
            for first, began in enumerate(times):
                count = sum(at < began + HOUR for at in times[first:])
                more = sum(n for at, n in self.allowed.get(name, []) if began - 900 <= at < began + HOUR)
                assert count <= ASKS_PER_HOUR + more, f"{name} asked {count} times from {began:.0f} on, {more} allowed"
                most = max(most, count)
        return most


class World:
    """One hub, some nodes of one ring, and what happens to them."""

    def __init__(self, folder: Path, rng: Random, nodes: int) -> None:
        self.rng = rng
        self.folder = folder
        self.asks = Asks()
        self.reasons: Counter[str] = Counter()
        self.names = [f"n{number}" for number in range(nodes)]
        self.reports: dict[str, ModelReport] = {}
        self.number = 1
        self.action: Any = "install"
        self.is_up = True
        self.changed = asyncio.Event()
        self.policy = Policy(
            realm="dev", ring="canary", number=1, at=0,
            pacing=Pacing(
                nodes_at_once=rng.choice([None, 1, 2]),
                nodes_per_hour=rng.choice([None, 1]),
                bytes_per_hour=rng.choice([None, 1000]),
            ),
            budget=Budget(day_bytes=rng.choice([None, 1000])),
        )  # fmt: skip
        self.database = Database(folder / "hub.sqlite")
        self.registry = Registry(self.database, ObjectStore(folder / "objects"))
        for version in ("1.0.0", "1.1.0"):
            self._release(version)
        self.old, self.release = self.registry.all()
        self.manifest = self.registry.manifest(self.release)
        self._start_hub()

    def _release(self, version: str) -> None:
        bundle = self.folder / version
        bundle.mkdir()
        (bundle / "model.tflite").write_bytes(version.encode() * 2000)
        (bundle / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
        (bundle / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
        golden = '[golden]\ninputs = "in.json"\noutputs = "out.json"\n'
        (bundle / "release.toml").write_text(f'model = "digits"\nversion = "{version}"\n{golden}')
        self.registry.add(bundle, START)

    def _start_hub(self) -> None:
        """What a hub has after it was killed: its rows."""
        self.ledger = Ledger(self.database, lambda site, node, model: self.reports.get(node))
        self.admission = Admission(self.ledger, lambda ring: self.policy, lambda site: UTC, self.rng.random)
        self.recipes = Recipes(self.registry)
        self.allow(ASKS_PER_RECIPE + 1)

    def allow(self, count: int, *names: str) -> None:
        now = asyncio.get_running_loop().time()
        for name in names or self.names:
            self.asks.allowed.setdefault(name, []).append((now, count))

    def offer(self, name: str, n: int) -> Offer:
        now = asyncio.get_running_loop().time()
        keyid, at = b"k" * 32, START + int(now)
        node = Node("shop", name, "canary", b"p" * 32, keyid, 1, b"", START, at, None, None, None)
        bases = tuple(file.sha256 for file in self.registry.manifest(self.old).files)
        ask = Ask(run=bytes(8), n=n, model="digits", release=self.release.digest, bases=bases, free_bytes=1 << 30)
        row = Signed("canary", "digits", self.number, self.release.digest, self.action, True)
        told = {"canary": {"digits": row}} if self.action != "nothing" else {}
        offer = answer(
            self.registry, self.recipes, "dev", node, ask, told, at, now, denials=None, admission=self.admission
        )
        self.reasons[" ".join(offer.reason.split()[-3:]) or "ways"] += 1
        return offer

    async def happen(self, until: float) -> None:
        """Operators and accidents."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self.rng.expovariate(1 / 1200))
            match self.rng.randrange(8):
                case 0:
                    self.ledger.pause(Paused("digits", self.release.digest, self.rng.random() < 0.5), START)
                case 1:
                    self.ledger.resume(self.release.digest)
                case 2:
                    self.is_up = False
                    await asyncio.sleep(self.rng.choice([1, 60, 2000]))
                    self.is_up = True
                    self._start_hub()
                case 3:
                    self.action = self.rng.choice(["hold", "nothing"])
                case _:
                    self.action, self.number = "install", self.number + 1
                    self.reports.clear()
                    self.allow(1 + ASKS_PER_RECIPE)
                    self.changed.set()
                    self.changed = asyncio.Event()


class Agent:
    """What the real loop of asks stands on: a link that loses answers and goes away."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.slots = Slots(world.folder / name)
        rng = Random(world.rng.random())
        agent: Any = self
        self.tasks = Tasks(agent, self.slots, agent, agent, HERE, rng, Deadlines(), Pace())
        self._asked = 0

    async def ask(self, model: str, release: bytes) -> Offer | None:
        world, loop = self.world, asyncio.get_running_loop()
        world.asks.at.setdefault(self.name, []).append(loop.time())
        self._asked += 1
        if not world.is_up or world.rng.random() < 0.1:
            await asyncio.sleep(Deadlines().offer_s)
            return None
        if world.rng.random() < 0.03:
            await asyncio.sleep(world.rng.choice([1, 30, 3000]))
            world.allow(1, self.name)
            raise TransportError("the link went away")
        offer = world.offer(self.name, self._asked)
        await asyncio.sleep(world.rng.random())
        return None if world.rng.random() < 0.1 else offer

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        pass

    def why_not_fetch(self) -> None:
        return None

    def is_recipe_denied(self, recipe: bytes) -> bool:
        return False

    def policy_of(self, model: str) -> Policy:
        return self.world.policy

    async def live(self) -> None:
        """Asks until it is let in or declined, fetches if it is, and then waits for another directive."""
        world = self.world
        while True:
            changed, target = world.changed, Target(world.release.digest, world.number)
            asking = asyncio.ensure_future(self.tasks._ask(Memory("digits", "checking", 1, target), world.manifest))
            moved = asyncio.ensure_future(changed.wait())
            await asyncio.wait({asking, moved}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                asking.cancel()
                continue
            if isinstance(asking.result(), Admitted):
                for _ in range(world.rng.randrange(1, 20)):
                    now = START + int(asyncio.get_running_loop().time())
                    world.ledger.note_sent("shop", self.name, "canary", world.release.digest, 400, now)
                    await asyncio.sleep(world.rng.uniform(1, 60))
                if world.rng.random() < 0.3:
                    world.allow(1, self.name)
                    continue  # its agent was killed, or what it got spoiled
                world.reports[self.name] = ModelReport(phase="idle", tuple=Tuple(release=world.release.digest))
            await moved


def _live(folder: Path, seed: int, nodes: int, hours: int) -> World:
    made: list[World] = []

    async def main() -> None:
        world = World(folder, Random(seed), nodes)
        made.append(world)
        lives = [asyncio.ensure_future(Agent(world, name).live()) for name in world.names]
        await world.happen(hours * HOUR)
        for life in lives:
            life.cancel()
        await asyncio.wait(lives)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    made[0].database.close()
    return made[0]


@pytest.mark.parametrize(
    ("seed", "nodes", "hours"),
    [(1, 4, 24), (2, 4, 24), *(pytest.param(n, 4, 24, marks=pytest.mark.full) for n in (3, 4))],
)
def test_no_node_asks_more_often_than_the_bound_whatever_happens(tmp_path, seed, nodes, hours):
    world = _live(tmp_path, seed, nodes, hours)
    most = world.asks.check()
    print(f"{sum(map(len, world.asks.at.values()))} asks of {nodes} nodes, at most {most} in an hour; {world.reasons}")
    assert most > 15, "they did ask"
    assert len(world.reasons) >= 3, "and were told different things"
