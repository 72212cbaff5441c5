"""The road: a broker with retained messages and sessions, and one link to each node, as good as the weather lets it be.

A message is (name, names, payload): the row of the topic table, the names in the topic, the payload. QoS 1 messages for
a node whose link is down wait in its session; the broker may lose both sessions and retained messages when it restarts.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from simulator.clock import Clock
from simulator.hostile import Hostile

Message = tuple[str, dict[str, str], Any]
SESSION = 200
ORDER = {"deny": 0, "head": 1, "set": 2, "policy": 3, "desired": 4}


@dataclass
class Weather:
    """How bad it is. Shares are per message or per effect; `calm` ends it."""

    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    corrupt: float = 0.0
    crash: float = 0.0
    stale: float = 0.0
    latency_s: float = 0.05
    met: Counter[str] = field(default_factory=Counter)

    def calm(self) -> None:
        self.loss = self.twice = self.late = self.corrupt = self.crash = self.stale = 0.0
        self.latency_s = 0.05


@dataclass
class Link:
    """A node's connection. `number` counts connections: what was on its way when one broke is gone."""

    deliver: Callable[[Message], None]
    on_link: Callable[[bool], None]
    is_up: bool = False
    is_open: bool = True
    number: int = 0
    session: deque[Message] = field(default_factory=lambda: deque(maxlen=SESSION))
    topics: Callable[[], set[tuple[str, str]]] = set


class Road:
    """All links and the broker."""

    def __init__(self, clock: Clock, rng: Random, weather: Weather, hostile: Hostile | None = None) -> None:
        self.hostile = hostile
        self._clock, self._rng, self.weather = clock, rng, weather
        self.links: dict[str, Link] = {}
        self.retained: dict[tuple[str, str], Message] = {}
        self.is_broker_up = True
        self.to_hub: Callable[[str, Message], None] = lambda node, message: None
        self.is_hub_up: Callable[[], bool] = lambda: True
        self._for_hub: deque[tuple[str, Message]] = deque(maxlen=SESSION)
        self.seen: dict[str, deque[Message]] = {}

    # --- links --------------------------------------------------------------------------------------------------------

    def connect(self, name: str) -> None:
        """The node's client tries once; a shell that is dead or a road that is closed tries later."""
        link = self.links[name]
        if link.is_up or not link.is_open or not self.is_broker_up:
            return
        link.is_up = True
        link.number += 1
        link.on_link(True)
        wanted = link.topics()
        retained = [message for key, message in self.retained.items() if key in wanted]
        for message in sorted(retained, key=lambda message: ORDER.get(message[0], 9)):
            self._send_down(name, message, qos=1)
        waiting, link.session = list(link.session), deque(maxlen=SESSION)
        for message in waiting:
            self._send_down(name, message, qos=1)

    def disconnect(self, name: str, *, tells: bool = True) -> None:
        link = self.links[name]
        if link.is_up:
            link.is_up = False
            if tells:
                link.on_link(False)

    def cut(self, name: str) -> None:
        self.weather.met["cut"] += 1
        self.links[name].is_open = False
        self.disconnect(name)

    def restore(self, name: str) -> None:
        self.links[name].is_open = True

    def subscribe(self, name: str, key: tuple[str, str]) -> None:
        """A new subscription brings what is retained for it."""
        if self.links[name].is_up and key in self.retained:
            self._send_down(name, self.retained[key], qos=1)

    # --- messages -----------------------------------------------------------------------------------------------------

    def publish(self, key: tuple[str, str], message: Message) -> None:
        """The hub retains a message for whoever subscribed."""
        if not self.is_broker_up:
            return
        self.retained[key] = message
        for name, link in self.links.items():
            if key in link.topics():
                self.down(name, message, qos=1)

    def down(self, name: str, message: Message, *, qos: int) -> None:
        """The hub sends to one node."""
        if not self.is_broker_up:
            return
        link = self.links[name]
        if link.is_up:
            self._send_down(name, message, qos)
        elif qos:
            link.session.append(message)

    def up(self, name: str, message: Message, *, qos: int) -> bool:
        """A node sends; False: no link."""
        link = self.links[name]
        if not link.is_up:
            return False
        number = link.number

        def arrive(seeming: str, what: Message) -> None:
            if link.number != number or not link.is_up or not self.is_broker_up:
                return
            if self.is_hub_up():
                self.to_hub(seeming, what)
            elif qos:
                self._for_hub.append((seeming, what))

        if self.hostile is None:
            self._travel(lambda: arrive(name, message), qos)
            return True
        for seeming, what, late_s in self.hostile.up(name, message, list(self.links)):
            self._clock.after(late_s, lambda s=seeming, w=what: self._travel(lambda: arrive(s, w), qos))  # type: ignore[misc]
        return True

    def hub_is_back(self) -> None:
        """The broker delivers what waited in the hub's session."""
        waiting, self._for_hub = list(self._for_hub), deque(maxlen=SESSION)
        for name, message in waiting:
            self._clock.after(0.01, lambda name=name, message=message: self.to_hub(name, message))  # type: ignore[misc]

    def broker_dies(self, *, loses: bool) -> None:
        self.weather.met["broker restart, state " + ("lost" if loses else "kept")] += 1
        self.is_broker_up = False
        for name in self.links:
            self.disconnect(name)
        if loses:
            self.retained.clear()
            self._for_hub.clear()
            for link in self.links.values():
                link.session.clear()

    def replay(self, name: str) -> None:
        """Something that the node had once comes again."""
        if self.seen.get(name) and self.links[name].is_up:
            self.weather.met["stale message"] += 1
            self.links[name].deliver(self._rng.choice(self.seen[name]))

    def _send_down(self, name: str, message: Message, qos: int) -> None:
        if self.hostile is None:
            self._carry_down(name, message, qos)
            return
        for to, what, late_s in self.hostile.down(name, message, list(self.links)):
            self._clock.after(late_s, lambda t=to, w=what: self._carry_down(t, w, qos))  # type: ignore[misc]

    def _carry_down(self, name: str, message: Message, qos: int) -> None:
        link = self.links[name]
        number = link.number
        if message[0] == "chunk" and self._rng.random() < self.weather.corrupt:
            self.weather.met["corrupt chunk"] += 1
            data = bytearray(message[2])
            if data:  # a hostile broker may have left nothing of it
                data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            message = (message[0], message[1], bytes(data))

        is_kept = False

        def arrive() -> None:
            nonlocal is_kept
            if link.is_up and link.number == number:
                if qos:
                    self.seen.setdefault(name, deque(maxlen=30)).append(message)
                link.deliver(message)
            elif qos and not is_kept:  # a session keeps it once, however often it was sent
                is_kept = True
                link.session.append(message)

        if self.weather.late and message[0] in ("deny", "reply") and self._rng.random() < 0.3:
            self.weather.met["denials late"] += message[0] == "deny"
            self._clock.after(self._rng.uniform(5.0, 90.0), arrive)
            return
        self._travel(arrive, qos)

    def _travel(self, arrive: Callable[[], None], qos: int) -> None:
        weather, rng = self.weather, self._rng
        times = 1
        if weather.loss and rng.random() < weather.loss:
            if qos == 0:
                weather.met["lost"] += 1
                return
            weather.met["delayed by loss"] += 1
            self._clock.after(rng.uniform(1.0, 20.0), arrive)
            return
        if weather.twice and rng.random() < weather.twice:
            weather.met["duplicate"] += 1
            times = 2
        for _ in range(times):
            delay_s = weather.latency_s * rng.uniform(0.8, 1.2)
            if weather.late and rng.random() < weather.late:
                weather.met["late, so out of order"] += 1
                delay_s += rng.uniform(0.0, 60.0)
            self._clock.after(delay_s, arrive)
