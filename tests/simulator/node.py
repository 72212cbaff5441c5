"""A node's shell in virtual time: what `heliograph_site.agent`, `tasks` and `fetching` do with asyncio, done with tasks
that are generators. It decides nothing: the machine, belief, denials, fetcher and slots are the real ones.

Every effect (a save, an object, a message, a switch) may be the last thing before the node dies, or the one it dies
before: `_do` asks the weather both times.
"""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from heliograph.blob import LEAF_BYTES, leaf_count
from heliograph.deadlines import DEADLINES
from heliograph.delta.recipe import parse
from heliograph.deny import DenySet
from heliograph.documents import LANES, Chunk, Records, Way
from heliograph.errors import HeliographError, IntegrityError
from heliograph.manifest import File, Manifest
from heliograph.names import Digest
from heliograph.protocol import topic
from heliograph.rules import offline_action
from heliograph.transfer import BlobFetch, Fetcher
from heliograph.trust import state_to_bytes
from heliograph_site.belief import Belief, News
from heliograph_site.fetching import usable_ways
from heliograph_site.happenings import (
    Admitted,
    Answer,
    Blocked,
    CalledOff,
    Declined,
    Event,
    Failed,
    Fetched,
    GivenUp,
    Happening,
    Healthy,
    Passed,
    Proved,
    Recalled,
    Served,
    Spoiled,
    Staged,
    StandIn,
    Started,
    Stopped,
)
from heliograph_site.journal import Held
from heliograph_site.machine import Command, classify, end_of, matched, settled, step
from heliograph_site.memory import UNDER_WAY, Memory
from heliograph_site.orders import DRILL_BEGUN, DRILL_OVER
from heliograph_site.outbox import Outbox
from heliograph_site.rebuilding import Rebuild
from heliograph_site.rulebook import NO_NUMBERS
from heliograph_site.slots import PartialBlob, Slots
from heliograph_site.vigil import STANDS_IN
from heliograph_site.weighing import weigh
from simulator import catalogue, disk
from simulator.clock import Bell, Steps, Task
from simulator.road import Message
from simulator.server import Server
from simulator.watch import Watch

if TYPE_CHECKING:
    from simulator.world import World

T = TypeVar("T")
Moves = tuple[tuple[Memory, Event, Memory], ...]
POLL_S = 5.0
HEALTHY_S = 10.0
SMALL, BULK = 1, 10
HEARD = StandIn("", "the hub is heard")


class Died(BaseException):
    """The agent is gone, or the whole node if the power went; nothing on the node catches this."""

    def __init__(self, who: str, power: bool) -> None:
        super().__init__(who)
        self.who = who
        self.power = power


class Node:
    """One node: what its disk keeps, its server process, and while it lives its agent.

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

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The agent starts, with what the disk kept."""
        self.life += 1
        self.is_alive = True
        self.run = self.rng.randbytes(8)
        self.watch.starts()
        keyid = catalogue.key(self.name).keyid
        names = (catalogue.REALM, self.site, self.node)
        self.belief = Belief(
            self.journal,
            names,
            keyid,
            self.now,
            manifests=self._manifest,
            latest=self.watch.latest,  # type: ignore[arg-type]
        )
        self._told_lacks = NO_NUMBERS
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
        self.was_orderly = self.journal.was_orderly()
        started = Started(self.was_orderly)
        self._do("journal save", lambda: self.journal.save_life(True))
        for model in tuple(self.memories):
            self.happen(model, started)
        self.obey(self.belief.denials)
        self._derive_all()
        for loop in (self._connecting(), self._greeting(), self._ticking(), self._watching(), self._recording(),
                     self._ordering()):  # fmt: skip
            self._spawn(loop)

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

    # --- loops --------------------------------------------------------------------------------------------------------

    def _connecting(self) -> Steps:
        while True:
            self.road.connect(self.name)
            yield self.rng.uniform(1.0, 8.0)

    def topics(self) -> set[tuple[str, str]]:
        """What this node subscribes to."""
        if not self.life:
            return set()
        ring, configs = str(self.belief.ring), {("config", model) for model in self.belief.served_models}
        return {("deny", ""), ("head", ""), ("set", ""), ("desired", ring), ("policy", ring)} | configs

    def on_link(self, is_up: bool) -> None:
        """The link came or went."""
        if not self.is_alive:
            return
        if is_up:
            self.clock.after(0.0, self.guarded(self.greet))
        else:
            self.fetcher.on_link_lost(lambda: self.rng.randbytes(4))
            self._asks = dict.fromkeys(self._asks, ("lost",))
            self._offered.ring()
        self.pump()

    def guarded(self, what: Callable[[], None]) -> Callable[[], None]:
        return self._alive(what)

    def _greeting(self) -> Steps:
        silent = 0
        while True:
            yield 30.0 * 2 ** min(silent, 5) if self._nonce is not None else DEADLINES.check_in_s
            silent = silent + 1 if self._nonce is not None else 0
            self.greet()

    def greet(self) -> None:
        """Says hello."""
        self._nonce = self.rng.randbytes(16)
        self.watch.asked()
        version, deny = self.belief.trusted.versions.get("timestamp", 0), self.belief.denials.digest
        lacks = self._told_lacks = self.belief.rules.lacks(self.memories.values())
        self.belief.rules.asked(lacks)
        if lacks is not NO_NUMBERS and lacks != NO_NUMBERS:
            self.world.met["older document asked for"] += 1
        self._publish("hello", (self._nonce, version, deny, self.belief.numbers(), lacks))

    def _ticking(self) -> Steps:
        while True:
            yield 60.0
            self.watch.save_if_due()
            self._derive_all()
            self.watch.looked()
            self._ask_for_older()

    def _ask_for_older(self) -> None:
        lacks = self.belief.rules.lacks(self.memories.values())
        if lacks is not NO_NUMBERS and lacks not in (self._told_lacks, NO_NUMBERS):
            self.greet()

    def _watching(self) -> Steps:
        while True:
            yield POLL_S if self.server.given_up else 4 * POLL_S
            for model, memory in tuple(self.memories.items()):
                active = memory.active
                if active is not None and self.server.given_up.get(model) == active.release:
                    self.happen(model, GivenUp(active.release, "the server gave it up"))
                elif active is not None and self.server.is_up:
                    self.server.tune(model, active.release, (active.config, active.policy))

    def _recording(self) -> Steps:
        while self.outbox is not None:
            yield self.rng.uniform(10.0, 60.0)
            load = self.rng.choice([0, 2, 6])
            for _ in range(0 if self.world.has_calmed else load):
                about = {"model": "m", "release": self.rng.randbytes(1) * 500, "state": "ready", "requests": 1}
                self.record("metric", "serving", about)
                self.record("sample", "input", {"data": self.rng.randbytes(self.rng.choice([100, 3000]))})
            for lane in LANES:
                sent_at = self._sent.get(lane, (0, -1e9))[1]
                if not self.road.links[self.name].is_up or self.clock.now - sent_at < DEADLINES.receipt_s:
                    continue
                batch = self._do(
                    "outbox batch", lambda lane=lane: self.outbox.batch(lane, self.rng.choice([2_000, 8_000]))
                )  # type: ignore[misc, union-attr]
                if batch is not None:
                    self.world.oracle.handed_out(self, batch)
                    names = {"realm": catalogue.REALM, "site": self.site, "node": self.node}
                    body = Records(**names, run=batch.run, lane=lane, first=batch.first, rows=batch.rows)
                    self._sent[lane] = (batch.next, self.clock.now)
                    self._publish("records", body)

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

    # --- what the link brings -----------------------------------------------------------------------------------------

    def on_message(self, message: Message, *, is_answer: bool = False) -> None:
        """One message; whatever is wrong with it ends there."""
        if not self.is_alive:
            return
        kind, names, body = message
        try:
            match kind:
                case "chunk":
                    self._on_chunk(body)
                case "reply":
                    self._on_reply(*body)
                case "offer":
                    self._on_offer(*body)
                case "receipt":
                    if self.outbox is not None:
                        outbox = self.outbox
                        self._do("receipt", lambda: outbox.receipt(*body))
                        self._sent.pop(body[1], None)
                case _:
                    self._on_document(kind, names, body, is_answer=is_answer)
        except HeliographError as error:
            self.world.tell(self.name, f"refuses {kind}: {error}")

    def _on_document(self, kind: str, names: dict[str, str], payload: bytes, *, is_answer: bool = False) -> None:
        news = self._do("document", lambda: self.belief.take(topic(kind), names, payload, is_answer=is_answer))
        self._on_news(news)

    def _on_news(self, news: News) -> None:
        if news.denials is not None:
            self.obey(news.denials)
        self.watch.see(self.belief.trusted)
        self.heard_at = max(self.heard_at, min(self.belief.trusted.at, self.now()))
        if news.hello:
            self.greet()
        if news.assigned:
            self._ordered.ring()
        if news.ring:
            self.road.subscribe(self.name, ("policy", str(self.belief.ring)))
            self.road.subscribe(self.name, ("desired", str(self.belief.ring)))
        if news.again is not None:
            kind, names = "desired", {"ring": str(self.belief.ring)}
            self.on_message((kind, names, news.again[1]))
        if news.models:
            heard = {key for key in self.topics() if key[0] == "config"}
            self._derive_all()
            for key in sorted(heard - self._heard):
                self.road.subscribe(self.name, key)
            self._heard = heard
            self._ask_for_older()

    def _on_reply(self, nonce: bytes, documents: list[Message], at: int) -> None:
        if nonce != self._nonce:
            return
        self.watch.answered(at, self.belief.trusted)
        self.heard_at = self.now()
        for message in sorted(documents, key=lambda message: message[0] != "deny"):
            self.on_message(message, is_answer=True)
        self._nonce = None
        self._derive_all()

    def _on_offer(self, run: bytes, number: int, model: str, release: bytes, word: str, what: Any) -> None:
        if run == self.run and self._asks.get(number, 0) is None:
            self._asks[number] = (word, what)
            self._offered.ring()

    def _on_chunk(self, payload: bytes) -> None:
        try:
            arrival = self.fetcher.on_chunk(Chunk.decode(payload), self.clock.now)
        finally:
            self.clock.after(0.0, self._alive(self.pump))
        if arrival is None:
            return
        self.world.oracle.written(self, arrival)
        part = self._sinks.get(arrival.fetch.blob)
        if part is not None:
            self._do("leaf write", lambda: part.take(arrival))
        self._arrived.ring()

    def pump(self) -> None:
        """Sends what is wanted now, and looks again when the fetcher says so."""
        self._pumps += 1
        if not self.road.links[self.name].is_up:
            return
        number = self._pumps
        now = self.clock.now
        self.fetcher.on_time(now)
        for want in self.fetcher.wants(now):
            self._publish("want", want, qos=0)
        deadline = self.fetcher.next_deadline(now)
        if deadline is not None:
            again = self._alive(lambda: self.pump() if self._pumps == number else None)
            self.clock.after(max(0.001, deadline - now), again)

    # --- machines -----------------------------------------------------------------------------------------------------

    def happen(self, model: str, happening: Happening) -> None:
        """Saves what follows, then has it done; then looks at the denials and, at rest, at the directive again."""
        todo: Happening | None = happening
        while todo is not None:
            before = self.memories[model]
            if isinstance(todo, Passed) and before.target is not None:
                todo = replace(todo, waits_for=self.belief.why_not_yet(model, before.target.release) or "")
                todo = todo if todo.waits_for else self.belief.rules.heard(before, todo)
            event = classify(before, todo)
            if event is None:
                return
            after, command = step(before, event)
            if after is before:
                return

            self._take(after, ((before, event, after),), command)
            todo = None if isinstance(todo, Started) else self._level(self.memories[model])

    def _take(self, memory: Memory, moves: Moves, command: Command | None) -> None:
        """Saves where these moves led, with what the documents held make of it, at once; has it done."""
        more = matched(memory, self.belief.rules.match)
        if not moves and not more:
            return
        after, command = end_of(more, memory, command)

        def save() -> None:
            self.journal.save(after)
            self.watch.save()
            for move in (*moves, *more):
                self.world.stepped(self, *move)
            self.world.oracle.settled_on(self, (*moves, *more))

        self._do("journal save", save)
        self.memories[after.model] = after
        for _, event, _ in (*moves, *more):
            self.record("audit", "transition", {"model": after.model, "event": type(event).__name__})
        if command is not None:
            self._begin(command, after)

    def _level(self, memory: Memory) -> Happening | None:
        held = weigh(memory, self.belief.denials)
        if classify(memory, held) is not None:
            return held
        stand_in = self._stand_in(memory.model)
        if classify(memory, stand_in) is not None:
            return stand_in
        return self._wanted(memory.model) if memory.phase in ("idle", "stuck") else None

    def obey(self, denials: DenySet) -> None:
        """Saves denials with what every machine makes of them, at once; then has it done."""
        moves: list[tuple[Memory, Memory, Command | None, Moves]] = []
        for memory in self.memories.values():
            after, command, events = settled(memory, weigh(memory, denials))
            if events:
                steps, between = [], memory
                for event in events:
                    steps.append((between, event, step(between, event)[0]))
                    between = steps[-1][2]
                more = matched(after, self.belief.rules.match)
                after, command = end_of(more, after, command)
                moves.append((memory, after, command, (*steps, *more)))

        def save() -> None:
            self.journal.save(*(after for _, after, _, _ in moves), denials=denials.to_bytes())
            for _, _, _, steps in moves:
                for move in steps:
                    self.world.stepped(self, *move)
                self.world.oracle.settled_on(self, steps)

        self._do("journal save of denials", save)
        self.belief.holds(denials)
        for _, after, _, _ in moves:
            self.memories[after.model] = after
        for _, after, command, _ in moves:
            self.record("incident", "denied", {"model": after.model})
            if command is not None:
                self._begin(command, after)

    def _derive_all(self) -> None:
        for memory in tuple(self.memories.values()):
            self._take(memory, (), None)
            held = weigh(self.memories[memory.model], self.belief.denials)
            if classify(self.memories[memory.model], held) is not None:
                self.happen(memory.model, held)
        for model in tuple(self.memories):
            self.happen(model, self._stand_in(model))
        for model in dict.fromkeys((*self.belief.models, *self.memories)):
            happening = self._wanted(model)
            if happening is not None:
                self.happen(model, happening)
        self.belief.rules.leave_ring()

    def _wanted(self, model: str) -> Happening | None:
        memory = self.memories.get(model) or self.journal.load(model)
        stand_in = self._stand_in(model)
        if stand_in.aside and (memory.aside or classify(memory, stand_in) is not None):
            return None
        happening, _ = self.belief.wanted(model, memory)
        if happening is not None and classify(memory, happening) is not None:
            self.memories.setdefault(model, memory)
            return happening
        return None

    # --- what people order, and being alone ---------------------------------------------------------------------------

    def _stand_in(self, model: str) -> StandIn:
        if model in self._drills:
            return StandIn("fallback", DRILL_BEGUN)
        memory, rules = self.memories.get(model), self.belief.rules
        is_ruled = memory is not None and memory.policy
        policy = rules.policy(memory.policy, memory.ring) if is_ruled else rules.node_policy(self.memories.values())  # type: ignore[union-attr]
        offline = offline_action(policy, model, self.heard_at, self.now())
        self.world.oracle.clocks(self, model, policy, is_alone=offline is not None)
        if offline is None:
            return HEARD
        self.world.met[f"alone for too long: {offline.action}"] += 1
        return StandIn(STANDS_IN[offline.action], offline.reason)

    def _ordering(self) -> Steps:
        while True:
            assigned = self.belief.assignment
            todo = [command for command in (assigned.commands if assigned else ()) if command.number > self.done]
            if not todo:
                yield self._ordered
                continue
            number, kind, model = todo[0].number, todo[0].kind, str(todo[0].model)

            def write_down(number: int = number) -> None:
                self.done = number

            self._do("order written down", write_down)
            memory = self.memories.get(model)
            if memory is None:
                continue
            can_fall_back = memory.active is not None and memory.fallback is not None and not memory.aside
            if kind == "abort" and memory.phase in UNDER_WAY:
                self.happen(model, CalledOff(f"called off by command {number}"))
            elif kind == "rollback" and can_fall_back:
                self.happen(model, Recalled(f"rolled back by command {number}"))
            elif kind == "drill" and can_fall_back and memory.phase == "idle":
                yield from self._drill(model)

    def _drill(self, model: str) -> Steps:
        self._drills.add(model)
        self.happen(model, StandIn("fallback", DRILL_BEGUN))
        for _ in range(24):
            if self.memories[model].aside != "fallback" or self.memories[model].phase == "idle":
                break
            yield POLL_S
        self._drills.discard(model)
        self.happen(model, StandIn("", DRILL_OVER))

    # --- commands of machines -----------------------------------------------------------------------------------------

    def _begin(self, command: Command, memory: Memory) -> None:
        old = self._tasks.pop(memory.model, None)
        if old is not None:
            old.cancel()
        self.world.oracle.begins(self, command, memory)
        reaches = command in (Command.CHECK, Command.PROVE, Command.SERVE)
        (self._reaching.add if reaches else self._reaching.discard)(memory.model)
        steps = getattr(self, f"_{command.value}")(memory)
        task = Task(self.clock, steps, lambda answer: self._answer(memory.model, answer))
        self._tasks[memory.model] = task
        self.clock.after(self.rng.uniform(0.0, 0.2), self._alive(task.go_on))

    def is_reaching(self, model: str) -> bool:
        """Whether a task is about to make the server serve what is active, or its answer is still to be heard."""
        return model in self._reaching or model in self._unheard

    def _answer(self, model: str, answer: Answer | None) -> None:
        """What a task says waits its turn in the inbox; sometimes an old answer is heard again."""
        if answer is None:
            return

        def hear_now() -> None:
            self._unheard.discard(model)
            self.happen(model, answer)

        self._unheard.add(model)
        hear = self._alive(hear_now)
        self.clock.after(self.rng.uniform(0.0, 0.5), hear)
        if self.rng.random() < self.world.weather.stale:
            self.world.met["stale answer"] += 1
            self.clock.after(self.rng.uniform(0.0, 200.0), hear)

    # --- performing ---------------------------------------------------------------------------------------------------

    def _check(self, memory: Memory) -> Steps:
        assert memory.target is not None, "checking has a target"
        release = memory.target.release
        if memory.active is not None:
            failed = yield from self._reach(memory)
            if failed is not None and memory.active.verdict != "failed":
                self._answer(memory.model, failed)
                yield POLL_S
        if memory.tries > 1:
            yield 30.0 * 2.0 ** (memory.tries - 2)
        while self.belief.why_unsure() is not None:
            yield POLL_S
        while (listed := self.belief.trusted.target(memory.model, release)) is None:
            yield POLL_S
        manifest = self.slots.manifest(release)
        if manifest is None:
            data = yield from self._small(release, listed.length)
            try:
                manifest = listed.open_manifest(data)
            except IntegrityError as error:
                return Declined(memory.epoch, str(error))
            self._do("object write", lambda: self.slots.store.put(data))
        if any(variant.arch for variant in manifest.variants):
            return Declined(memory.epoch, "no variant fits this hardware")
        while self.belief.rules.why_unfit(memory) is not None:
            self.world.met["waits for documents that fit"] += 1
            yield POLL_S
        unanswered_s = POLL_S
        while True:
            word, what = yield from self._ask(memory.model, release)
            pause_s = POLL_S
            if word == "never":
                return Declined(memory.epoch, f"the hub declines: {what}")
            if word == "later":
                pause_s = what
            elif word == "silence":
                pause_s, unanswered_s = unanswered_s, min(2 * unanswered_s, DEADLINES.check_in_s)
            elif word == "ways":
                ways = tuple(
                    way
                    for way in what
                    if way.recipe is None
                    or not (memory.full_only or self.belief.denials.is_recipe_denied(way.recipe.sha256))
                )
                missing = self.slots.missing(manifest)
                if all(usable_ways(self.slots, file, ways) for file in missing):
                    self._ways[memory.model] = (release, ways)
                    return Admitted(memory.epoch)
                pause_s = DEADLINES.offer_s
            yield pause_s * self.rng.uniform(1.0, 1.25)

    def _ask(self, model: str, release: bytes) -> Generator[Any, None, tuple[str, Any]]:
        while not self.road.links[self.name].is_up:
            yield 1.0
        self._asked += 1
        number = self._asked
        self._asks[number] = None
        releases = [pointer.release for pointer in self.memories[model].kept]
        try:
            if not self._publish("ask", (self.run, number, model, release, self.slots.bases(releases))):
                return ("lost", None)
            deadline = self.clock.now + DEADLINES.offer_s
            self.clock.after(DEADLINES.offer_s, self._alive(self._offered.ring))
            while self._asks[number] is None and self.clock.now < deadline:
                yield self._offered
            answer = self._asks[number]
            return (
                answer if answer is not None and len(answer) == 2 else ("silence" if answer is None else "lost", None)
            )
        finally:
            self._asks.pop(number, None)

    def _small(self, digest: bytes, length: int) -> Generator[Any, None, bytes]:
        pause_s = 1.0
        while True:
            fetch = BlobFetch(Digest(digest), length, (), self.rng.randbytes(4))
            self.fetcher.add(fetch, SMALL)
            self.pump()
            try:
                while not fetch.complete:
                    yield self._arrived
                return fetch.finish()
            except IntegrityError:
                pass
            finally:
                self.fetcher.remove(fetch)
            yield pause_s
            pause_s = min(2 * pause_s, DEADLINES.check_in_s)

    def _fetch(self, memory: Memory) -> Steps:
        assert memory.target is not None, "fetching has a target"
        release = memory.target.release
        manifest = self.slots.manifest(release)
        offered, ways = self._ways.get(memory.model, (b"", ()))
        if manifest is None or offered != release:
            return Spoiled(memory.epoch, "the manifest is gone from the disk")
        me = object()
        try:
            while self._turn is not None:
                yield self._turn_over
            self._turn = me
            for file in self.slots.missing(manifest):
                if self.is_disk_full:
                    self.world.met["disk full"] += 1
                    raise OSError(28, "No space left on device")
                yield from self._file(file, ways)
        except IntegrityError as error:
            return Spoiled(memory.epoch, str(error))
        except OSError as error:
            return Blocked(memory.epoch, f"the disk: {error.strerror}")
        finally:
            if self._turn is me:
                self._turn = None
                self._turn_over.ring()
        return Fetched(memory.epoch)

    def _file(self, file: File, ways: tuple[Way, ...]) -> Steps:
        for way in usable_ways(self.slots, file, ways):
            if way.kind == "full":
                yield from self._full(file)
            else:
                yield from self._delta(file, way)
            return
        raise IntegrityError(f"no way was offered that leads to {file.name}")

    def _full(self, file: File) -> Steps:
        part = PartialBlob(
            self.slots.path(file.sha256, "part"),
            self.slots.path(file.sha256, "pages"),
            BlobFetch(Digest(file.sha256), file.length, file.pages, self.rng.randbytes(4)),
        )
        try:
            self._open(part)
            while not part.fetch.complete:
                yield self._arrived
        finally:
            self._close(part)
        self._do("object write", lambda: self.slots.settle(file.sha256, part.path))

    def _delta(self, file: File, way: Way) -> Steps:
        assert way.recipe is not None and way.base is not None, "a delta names both"
        data = self.slots.kept(file.sha256, "recipe", way.recipe.sha256)
        if data is None:
            data = yield from self._small(way.recipe.sha256, way.recipe.length)
            self.slots.keep(file.sha256, "recipe", data)
        recipe = parse(data)
        recipe.check_is_for(Digest(way.base), Digest(file.sha256), file.length)
        rebuild = Rebuild(self.slots.path(file.sha256, "out"), recipe, self.slots.holdings, disk.Joined)
        patch = PartialBlob(
            self.slots.path(file.sha256, "patch"),
            self.slots.path(file.sha256, "patch-pages"),
            BlobFetch(recipe.patch_sha256, recipe.patch_length, recipe.patch_pages, self.rng.randbytes(4)),
        )
        try:
            rebuild.open()
            self._open(patch)
            while not rebuild.is_complete:
                ready = rebuild.ready(patch)
                for index in ready:
                    self._do("segment write", lambda index=index: rebuild.make(index, patch))  # type: ignore[misc]
                if not ready and not rebuild.is_complete:
                    yield self._arrived
        finally:
            self._close(patch)
            rebuild.close()
        self.world.met["delta"] += 1
        self._do("object write", lambda: self.slots.settle(file.sha256, rebuild.path))

    def _open(self, part: PartialBlob) -> None:
        held = part.open()
        if held:
            self.world.met["resumed"] += 1
        self.world.oracle.resumed(self, part)
        self._sinks[part.fetch.blob] = part
        self.fetcher.add(part.fetch, BULK)
        self.pump()

    def _close(self, part: PartialBlob) -> None:
        self._sinks.pop(part.fetch.blob, None)
        self.fetcher.remove(part.fetch)
        part.close()

    def _stage(self, memory: Memory) -> Steps:
        assert memory.target is not None, "staging has a target"
        manifest = self.slots.manifest(memory.target.release)
        if manifest is None:
            return Spoiled(memory.epoch, "the manifest is gone from the disk")
        yield self.rng.uniform(0.0, 20.0)
        if self.is_disk_full and self.rng.random() < 0.5:
            self.world.met["disk gives nothing"] += 1
            return Blocked(memory.epoch, "the disk: Input/output error")
        if self.is_disk_bad:
            self.rot(manifest)
        try:
            self.slots.verify(manifest)
        except IntegrityError as error:
            return Spoiled(memory.epoch, str(error))
        self.world.oracle.staged(self, memory.target.release)
        return Staged(memory.epoch)

    def rot(self, manifest: Manifest) -> None:
        """A file of this release turns rotten on the disk."""
        file = self.rng.choice(manifest.files)
        if self.slots.store.has(Digest(file.sha256)):
            self.world.met["bit rot"] += 1
            self.world.oracle.rots(self, file.sha256)
            disk.rot(self.slots.store.path(Digest(file.sha256)), self.rng)

    def _activate(self, memory: Memory) -> Steps:
        assert memory.target is not None, "activating has a target"
        release = memory.target.release
        while (self.belief.why_not_yet(memory.model, release) or self.belief.rules.why_unfit(memory)) is not None:
            yield POLL_S
        while True:
            yield self.rng.uniform(0.5, 20.0)
            if self.server.is_up:
                reason = self._do("check", lambda: self.server.check(memory.model, release))
                if reason:
                    return Failed(memory.epoch, reason)
                manifest = self.slots.manifest(release)
                if manifest is None:
                    return Failed(memory.epoch, "the manifest is gone from the disk")
                return Passed(memory.epoch, self.now(), manifest.fail_mode)

    def _reach(self, memory: Memory) -> Steps:
        """Has the server serve what is active; waits for a server that isn't there."""
        release = memory.active.release if memory.active is not None else None
        while True:
            yield self.rng.uniform(0.1, 10.0)
            if self.server.is_up:
                reason = self._do("switch", lambda: self.server.serve(memory.model, release, self._tuned(memory)))
                self._reaching.discard(memory.model)
                if not reason:
                    self.world.oracle.switched(self, memory.model)
                return Failed(memory.epoch, reason) if reason else None

    def _tuned(self, memory: Memory) -> tuple[int, int]:
        active = self.memories[memory.model].active
        return (active.config, active.policy) if active is not None else (0, 0)

    def _prove(self, memory: Memory) -> Steps:
        assert memory.active is not None, "proving follows a flip"
        release = memory.active.release
        failed = yield from self._reach(memory)
        if failed is not None:
            return failed
        began, soak_s = self.clock.now, self.rng.uniform(20.0, 90.0)
        is_slow = catalogue.releases()[Digest(release)].kind == "slow"
        is_told = memory.is_healthy
        is_used = self.serves_traffic == (self.rng.random() < 0.8)
        while True:
            yield POLL_S
            if self.server.is_up and self.server.serving.get(memory.model) != release:
                failed = yield from self._reach(memory)
                if failed is not None:
                    return failed
            lasted_s = self.clock.now - began
            if release in self.server.broken:
                return Failed(memory.epoch, "its worker died too often", answered=True)
            if is_slow and is_used and lasted_s > soak_s / 2:
                return Failed(memory.epoch, "too slow", answered=True)
            if lasted_s > HEALTHY_S and not is_told:
                is_told = True
                self._answer(memory.model, Healthy(memory.epoch))
            if lasted_s > soak_s:
                return Proved(memory.epoch, "proven" if is_used else "unproven")

    def _serve(self, memory: Memory) -> Steps:
        failed = yield from self._reach(memory)
        if failed is not None:
            return failed
        return Served(memory.epoch) if memory.active is not None else Stopped(memory.epoch)

    def _rest(self, memory: Memory) -> Steps:
        self._ways.pop(memory.model, None)
        needed = [pointer.release for memory in self.memories.values() for pointer in memory.kept]
        coming = [memory.target.release for memory in self.memories.values() if memory.target is not None]
        self._do("collect", lambda: self.slots.collect(needed, coming))
        return None
        yield 0.0  # a task like the others


def held_leaves(part: PartialBlob) -> list[int]:
    """The leaves of a part that count as held."""
    return [leaf for leaf in range(leaf_count(part.fetch.length)) if part.fetch.has_leaf(leaf)]


LEAF = LEAF_BYTES
