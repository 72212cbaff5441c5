"""A node's shell in virtual time: what `heliograph_site.agent` does with asyncio, done with tasks that are generators.

What it stands on is `shell`; `getting` brings bytes, `machines` says what moves the machines, `tasks` performs their
commands; here stand its loops and what the link brings. It decides nothing: all cores are the real ones.
"""

from collections.abc import Callable
from functools import partial

from heliograph.deadlines import DEADLINES
from heliograph.documents import LANES, Lane, Records
from heliograph.errors import HeliographError
from heliograph.protocol import topic
from heliograph_site.belief import News
from heliograph_site.happenings import CalledOff, GivenUp, Recalled, StandIn, Started
from heliograph_site.memory import UNDER_WAY
from heliograph_site.orders import DRILL_BEGUN, DRILL_OVER
from heliograph_site.outbox import Batch
from heliograph_site.rulebook import NO_NUMBERS
from simulator import catalogue
from simulator.clock import Steps
from simulator.road import Message
from simulator.shell import LOOK_S, POLL_S
from simulator.tasks import Tasks


class Node(Tasks):
    """One node: what its disk keeps, its server process, and while it lives its agent."""

    def start(self) -> None:
        """The agent starts, with what the disk kept."""
        self._wake()
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
            yield POLL_S if self.server.given_up else LOOK_S
            for model, memory in tuple(self.memories.items()):
                active = memory.active
                if active is not None and self.server.given_up.get(model) == active.release:
                    self.happen(model, GivenUp(active.release, "the server gave it up"))
                elif active is not None and self.server.is_up:
                    self.server.tune(model, active.release, (active.config, active.policy))
                if memory.is_stray(answers := self.server.serving.get(model, b"")):
                    self.world.met["stray stopped"] += 1
                    self.server.stop(model, answers)

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
                batch = self._do("outbox batch", partial(self._batch, lane))
                if batch is not None:
                    self.world.oracle.handed_out(self, batch)
                    names = {"realm": catalogue.REALM, "site": self.site, "node": self.node}
                    body = Records(**names, run=batch.run, lane=lane, first=batch.first, rows=batch.rows)
                    self._sent[lane] = (batch.next, self.clock.now)
                    self._publish("records", body)

    def _batch(self, lane: Lane) -> Batch | None:
        assert self.outbox is not None, "only what records asks"
        return self.outbox.batch(lane, self.rng.choice([2_000, 8_000]))

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
