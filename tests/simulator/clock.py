"""Virtual time: a queue of what happens when, and tasks that are generators.

A task yields seconds to sleep, or a `Bell` to wait for. Nothing takes time but what says so.
"""

import heapq
from collections.abc import Callable, Generator
from typing import Any

Steps = Generator["float | Bell", None, Any]


class Bell:
    """Wakes whoever waits for it."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def wait(self, wake: Callable[[], None]) -> None:
        self._waiting.append(wake)

    def ring(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()


MAX_EVENTS = 60_000
"""More than any world needs that comes to rest."""
MAX_HOSTILE_EVENTS = 400_000
"""The same where a broker repeats what it likes and loses what must then be asked for again."""


class RestlessError(AssertionError):
    """Something goes on and on."""


class Clock:
    """What is due when. Equal times go in the order in which they were asked for.

    Attributes:
        skipped_s: nights that were skipped: true time is so much later.
    """

    def __init__(self, max_events: int = MAX_EVENTS) -> None:
        self._max_events = max_events
        self.now = 0.0
        self.skipped_s = 0
        self.events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    @property
    def true_s(self) -> float:
        """Seconds since the world began, by a clock that was never skipped."""
        return self.now + self.skipped_s

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._number, what))

    def run(self, until: float, guard: Callable[[Callable[[], None]], None]) -> None:
        """Lets everything happen that is due by then, each through `guard`."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, what = heapq.heappop(self._queue)
            self.events += 1
            if self.events > self._max_events:
                raise RestlessError(f"{self._max_events} events, and no rest")
            guard(what)
        self.now = until


class Task:
    """A generator on its way; `done` is called with what it returns."""

    def __init__(self, clock: Clock, steps: Steps, done: Callable[[Any], None]) -> None:
        self._clock = clock
        self._steps = steps
        self._done = done
        self.is_over = False

    def go_on(self) -> None:
        if self.is_over:
            return
        try:
            what = next(self._steps)
        except StopIteration as end:
            self.is_over = True
            self._done(end.value)
            return
        if isinstance(what, Bell):
            what.wait(lambda: self._clock.after(0.0, self.go_on))
        else:
            self._clock.after(what, self.go_on)

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._steps.close()
