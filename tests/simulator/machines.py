"""What moves the machines of a node of these worlds: what happened, denials, documents, directives, being alone.

It decides nothing: the machine, belief, denials and the rulebook are the real ones.
"""

from dataclasses import replace

from heliograph.deny import DenySet
from heliograph.rules import offline_action
from heliograph_site.happenings import Answer, Event, Happening, Passed, StandIn, Started
from heliograph_site.machine import Command, classify, end_of, matched, settled, step
from heliograph_site.memory import Memory
from heliograph_site.orders import DRILL_BEGUN
from heliograph_site.vigil import STANDS_IN
from heliograph_site.weighing import weigh
from simulator.clock import Task
from simulator.getting import Getting

Moves = tuple[tuple[Memory, Event, Memory], ...]
HEARD = StandIn("", "the hub is heard")


class Machines(Getting):
    """A shell whose machines are moved by what happens; each has one task at a time."""

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
