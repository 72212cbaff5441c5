"""The machines of a node with the documents it holds: what one step leads to, until everything is at rest."""

import asyncio
import sqlite3
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heliograph.deny import DenySet
from heliograph.documents import Deny, Phase
from heliograph.protocol import topic
from heliograph.wire import pack
from heliograph_site.happenings import Answer, DenialsHeld, GivenUp, Happening, Matched, Served, StandIn, Started
from heliograph_site.machine import Command
from heliograph_site.machines import Machines
from heliograph_site.memory import Memory, Pointer, Target
from realms import MODEL, NOW
from unit.test_rulebook import NEW, OLD, Node
from waits import turns

OFFLINE = StandIn("fallback", "9 s without the hub's word, policy 1 allows 5 s")


class Serving:
    """Has each command that serves answered at once, and tells of nothing."""

    def __init__(self, runner: asyncio.Runner, node: Node, stand_in: StandIn) -> None:
        self.runner, self.stand_in = runner, stand_in
        self.performed: list[Command] = []
        self.told: list[str] = []
        self.named: dict[str, bytes] = {}
        self.answers: list[Answer] = []
        self.noted, self.tuned = "", 0
        self.restricted: str | None = None
        around: Any = self
        self.machines = Machines(
            node.journal, around, around, node.belief, around, around, self.spawn, self.deliver,
            tune=self.tune, stand_in=lambda _: self.stand_in, why_restricted=lambda *_: self.restricted,
        )  # fmt: skip

    def now(self) -> int:
        return NOW

    def save(self) -> None:
        pass

    def say(self) -> None:
        pass

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        self.noted = waiting

    def tune(self) -> None:
        self.tuned += 1

    def append(self, lane: str, kind: str, at: int, body: dict[str, Any]) -> None:
        self.told.append(body["event"])
        self.named[body["event"]] = body["release"]

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, name=name)

    async def perform(self, command: Command, memory: Memory) -> Answer | None:
        self.performed.append(command)
        return Served(memory.epoch) if command is Command.SERVE else None

    async def deliver(self, model: str, answer: Answer) -> None:
        self.answers.append(answer)

    def settle(self, most: int = 20) -> Memory:
        """Where the machine comes to rest; at most so many answers are taken."""

        async def run() -> None:
            await self.machines.derive_all()
            for _ in range(most):
                await turns(5)
                if not self.answers:
                    return
                await self.machines.step(MODEL, self.answers.pop(0))
            pytest.fail(f"no rest after {most} answers: {self.told}")

        self.runner.run(run())
        return self.machines.memories[MODEL]


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One loop for a whole test: tasks of one step are awaited in the next."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    newer = Pointer(NEW, NOW, 2, "proven", proven=3)
    node.memory = Memory(MODEL, active=newer, fallback=Pointer(OLD, NOW - 9, 1, "proven", proven=1))
    node.journal.save(node.memory)
    return node


def test_off_line_for_too_long_the_fallback_serves_until_the_hub_is_heard(runner: asyncio.Runner, node: Node) -> None:
    node.hear(node.policy(1))
    serving = Serving(runner, node, OFFLINE)
    aside = serving.settle()
    assert aside.aside == "fallback" and aside.active is not None and aside.active.release == OLD
    serving.stand_in = StandIn("", "the hub is heard")
    back = serving.settle()
    assert back.aside == "" and back.active is not None and back.active.release == NEW


@pytest.mark.parametrize(
    ("happening", "event"),
    [(GivenUp(NEW, "its worker died"), "ActiveLost"), (DenialsHeld(frozenset({NEW})), "ActiveDenied")],
)
@pytest.mark.parametrize("target", [None, Target(bytes(32), 3)])
def test_what_is_recorded_of_a_release_that_falls_names_that_release(
    runner: asyncio.Runner, node: Node, happening: Happening, event: str, target: Target | None
) -> None:
    phase: Phase = "idle" if target is None else "fetching"
    node.journal.save(replace(node.memory, phase=phase, target=target))
    serving = Serving(runner, node, StandIn("", ""))
    runner.run(serving.machines.step(MODEL, happening))
    assert serving.named[event] == NEW


def test_a_fallback_that_fits_no_policy_in_force_does_not_stand_in_and_the_machine_rests(
    runner: asyncio.Runner, node: Node
) -> None:
    node.hear(node.policy(1, models={MODEL: {"floor": "1.1.0"}}))
    serving = Serving(runner, node, OFFLINE)
    memory = serving.settle()
    assert memory.aside == "" and memory.active is not None and memory.active.release == NEW
    assert serving.performed == [] and "SteppedAside" not in serving.told
    node.hear(node.policy(2))
    assert serving.settle().aside == "fallback", "it does once a policy lets it"


def test_what_stands_in_gives_way_to_what_is_committed_once_a_policy_leaves_it_out(
    runner: asyncio.Runner, node: Node
) -> None:
    node.hear(node.policy(1))
    serving = Serving(runner, node, OFFLINE)
    assert serving.settle().aside == "fallback"
    node.hear(node.policy(2, hold_max_s=0, models={MODEL: {"floor": "1.1.0"}}))
    memory = serving.settle()
    assert memory.aside == "" and memory.active is not None and memory.active.release == NEW
    assert memory.fallback is not None and memory.fallback.release == OLD, "refused for nothing"
    assert replace(memory, epoch=0) == replace(serving.settle(), epoch=0), "and so it stays"


def test_what_answers_is_compared_with_the_pointer_whenever_documents_change_it(
    runner: asyncio.Runner, node: Node
) -> None:
    serving = Serving(runner, node, StandIn("", ""))
    serving.settle()
    assert serving.tuned == 0
    node.hear(node.policy(1), node.config(4))
    memory = serving.settle()
    assert memory.active is not None and (memory.active.config, memory.active.policy, serving.tuned) == (4, 1, 1)
    assert serving.performed == [], "nothing is switched or cancelled for it"


def test_what_people_restrict_is_not_begun_and_what_is_under_way_stops(runner: asyncio.Runner, node: Node) -> None:
    release = node.realm.list_release("1.2.0", b"manifest")
    node.republish()
    directive = node.realm.sign("ring-canary", "directive", node.realm.directive(release))
    serving = Serving(runner, node, StandIn("", ""))
    serving.restricted = "held by the site"
    node.belief.take(topic("desired"), {"ring": "canary"}, pack([directive]))
    assert serving.settle().phase == "idle" and serving.noted == "held by the site"
    serving.restricted = None
    assert serving.settle().phase == "checking"
    serving.restricted = "pinned"
    memory = serving.settle()
    assert (memory.phase, memory.target, memory.refused) == ("idle", None, ()), "refused for nothing"


def test_where_nothing_can_stand_in_directives_are_obeyed_as_ever(runner: asyncio.Runner, node: Node) -> None:
    release = node.realm.list_release("1.2.0", b"manifest")
    node.republish()
    node.memory = replace(node.memory, fallback=None)
    node.journal.save(node.memory)
    serving = Serving(runner, node, OFFLINE)
    for number, action, phase in ((1, "install", "checking"), (2, "hold", "idle")):
        directive = node.realm.directive(release, number=number).model_copy(update={"action": action})
        signed = node.realm.sign("ring-canary", "directive", directive)
        node.belief.take(topic("desired"), {"ring": "canary"}, pack([signed]))
        assert serving.settle().phase == phase


def test_a_task_that_does_not_end_when_it_is_cancelled_holds_up_its_machine_and_never_the_inbox(
    runner: asyncio.Runner, node: Node
) -> None:
    release = node.realm.list_release("1.2.0", b"manifest")
    node.republish()
    serving = Serving(runner, node, StandIn("", ""))
    holding, let_go = asyncio.Event(), asyncio.Event()
    perform = serving.perform

    async def hold(command: Command, memory: Memory) -> Answer | None:
        if holding.is_set():
            return await perform(command, memory)
        holding.set()
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()  # as a thread that reads an image back
        return None

    around: Any = serving
    around.perform = hold

    def direct(number: int, action: str) -> None:
        directive = node.realm.directive(release, number=number).model_copy(update={"action": action})
        signed = node.realm.sign("ring-canary", "directive", directive)
        node.belief.take(topic("desired"), {"ring": "canary"}, pack([signed]))
        serving.settle()

    direct(1, "install")
    assert holding.is_set() and not serving.machines.is_wedged
    for number, action in ((2, "hold"), (3, "install"), (4, "hold")):
        direct(number, action)
    assert serving.machines.memories[MODEL].phase == "idle", "what is heard is taken"
    assert serving.performed == [] and serving.noted == "the end of what was under way"
    assert not serving.machines.is_wedged, "it may last an hour"
    serving.machines._end_s = 0.0
    assert serving.machines.is_wedged, "and no longer"
    let_go.set()
    runner.run(turns(10))
    assert serving.performed == [Command.SERVE], "of the commands that waited only the last"
    assert not serving.machines.is_wedged


OTHER = "other"


class Faulty:
    """What a node believes, where what some parts of one model's documents mean meets a fault of ours."""

    def __init__(self, real: Any, *faults: str) -> None:
        self._real, self._faults = real, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @property
    def rules(self) -> "Faulty":
        return Faulty(self._real.rules, *self._faults)

    def match(self, memory: Memory) -> Matched | None:
        self._meet("match", memory.model)
        found: Matched | None = self._real.match(memory)
        return found

    def wanted(self, model: str, memory: Memory) -> Any:
        self._meet("wanted", model)
        return self._real.wanted(model, memory)

    def _meet(self, what: str, model: str) -> None:
        if what in self._faults and model == MODEL:
            raise KeyError(what)


class Two(Serving):
    """Serves two models, and keeps what is told of each."""

    def __init__(self, runner: asyncio.Runner, node: Node, *faults: str) -> None:
        super().__init__(runner, node, StandIn("", "the hub is heard"))
        belief: Any = Faulty(node.belief, *faults)
        self.machines._belief = belief
        self.machines._stand_in = self.standing
        self.faults = faults
        self.served: list[tuple[str, bytes]] = []
        self.kinds: list[tuple[str, str, str]] = []

    def standing(self, model: str) -> StandIn:
        if "stand-in" in self.faults and model == MODEL:
            raise ZeroDivisionError
        return self.stand_in

    def append(self, lane: str, kind: str, at: int, body: dict[str, Any]) -> None:
        self.kinds.append((kind, body["model"], str(body.get("where", ""))))

    async def perform(self, command: Command, memory: Memory) -> Answer | None:
        if command is Command.SERVE and memory.active is not None:
            self.served.append((memory.model, memory.active.release))
        return None


@pytest.mark.parametrize(
    ("fault", "where"), [("match", "its tuple"), ("wanted", "its directive"), ("stand-in", "its stand-in")]
)
def test_a_fault_in_what_one_models_documents_mean_stops_neither_denials_nor_another_model(
    runner: asyncio.Runner, node: Node, fault: str, where: str
) -> None:
    node.hear(node.policy(1), node.config(4))
    other = Memory(OTHER, active=Pointer(NEW, NOW, 2, "proven"))
    node.journal.save(other)
    denial = node.realm.sign("deny", "deny", Deny(realm=node.realm.name, releases=(NEW,), at=NOW))
    serving = Two(runner, node, fault)
    runner.run(serving.machines.begin(Started(True)))
    runner.run(turns(5))
    assert dict(serving.served) == {MODEL: NEW, OTHER: NEW}, "both serve as they did"
    told = [one for one in serving.kinds if one[0] == "model-fault"]
    assert told == [("model-fault", MODEL, where)], "of the one model, once"
    runner.run(serving.machines.obey(DenySet().with_statement(denial, node.belief.trusted)))
    runner.run(turns(5))
    memory = serving.machines.memories[MODEL]
    assert memory.active is not None and memory.active.release == OLD, "a denial is obeyed"
    assert serving.served[-1] == (MODEL, OLD)
    assert node.journal.load(MODEL) == memory and serving.machines.memories[OTHER].is_last_denied
    runner.run(serving.machines.derive_all())
    assert [one for one in serving.kinds if one[0] == "model-fault"] == told


def test_what_can_not_be_kept_is_no_fault_that_is_passed_over(runner: asyncio.Runner, node: Node) -> None:
    def fail(_: str) -> StandIn:
        raise sqlite3.OperationalError("disk I/O error")

    serving = Serving(runner, node, OFFLINE)
    serving.machines._stand_in = fail
    with pytest.raises(sqlite3.OperationalError):
        runner.run(serving.machines.derive_all())
