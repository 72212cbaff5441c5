"""A broker that wants harm: whatever passes it may be dropped, repeated, held back, spoilt, replayed or crossed.

It reads all and can sign nothing. What it may spoil or cross are bytes that somebody signed, and chunks, whose leaves
are named by what was signed; what the simulator passes as values stands for statements that are scoped to one node, so
it drops, repeats, holds back and replays those, and gives them to other nodes.

It draws from a source of its own, so that the same world without it stays the world that it was.
"""

from collections import deque
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.road import Message, Weather

DOCUMENTS = ("deny", "head", "set", "policy", "config", "desired", "assigned")
PLAIN_UP = ("hello", "ask", "want")
"""What nodes say unsigned: it may come under another node's name. What they sign is refused there, so not crossed."""


class Hostile:
    """Decides what becomes of each message; `share` of them suffer."""

    def __init__(self, seed: int, weather: "Weather") -> None:
        self._rng = Random(f"hostile {seed}")
        self._share = self._rng.choice([0.05, 0.2, 0.5])
        self._latest_s = self._rng.choice([1.0, 60.0, 900.0])
        self._met = weather.met
        self._seen: deque[tuple[str, Message]] = deque(maxlen=300)
        self._said: deque[tuple[str, Message]] = deque(maxlen=100)

    def calm(self) -> None:
        """From now on it does its work."""
        self._share = 0.0

    def down(self, name: str, message: "Message", nodes: list[str]) -> Iterator[tuple[str, "Message", float]]:
        """(node, message, seconds late) that become of one message to a node."""
        for to, what, late_s in self._suffer(name, message, self._seen, "to nodes"):
            kind, names, payload = what
            if not self._hits():
                yield to, what, late_s
                continue
            harm = self._rng.choice(("crosses nodes", "crosses topics", "spoils"))
            is_bytes = isinstance(payload, bytes)
            if harm == "crosses nodes":
                to = self._rng.choice(nodes)
            elif harm == "crosses topics" and is_bytes and kind != "chunk":
                other = self._rng.choice(DOCUMENTS)
                ring = self._rng.choice(("canary", "early"))
                names = {"policy": {"ring": ring}, "desired": {"ring": ring}, "config": {"model": "digits"}}.get(
                    other, {}
                )
                what = (other, names, payload)
            elif is_bytes:
                harm = "spoils"
                what = (kind, names, self._spoilt(payload))
            else:
                harm = "crosses nodes"
                to = self._rng.choice(nodes)
            self._met[f"broker {harm}"] += 1
            yield to, what, late_s

    def up(self, name: str, message: "Message", nodes: list[str]) -> Iterator[tuple[str, "Message", float]]:
        """The same for one from a node; the name is whom it seems to come from."""
        for to, what, late_s in self._suffer(name, message, self._said, "to the hub"):
            if what[0] in PLAIN_UP and self._hits():
                self._met["broker forges who speaks"] += 1
                to = self._rng.choice(nodes)
            yield to, what, late_s

    def _suffer(
        self, name: str, message: Any, seen: "deque[tuple[str, Message]]", way: str
    ) -> Iterator[tuple[str, Any, float]]:
        seen.append((name, message))
        if not self._hits():
            yield name, message, 0.0
            return
        match self._rng.randrange(4):
            case 0:
                self._met[f"broker drops {way}"] += 1
            case 1:
                self._met[f"broker repeats {way}"] += 1
                for late_s in (0.0, self._late(), self._late()):
                    yield name, message, late_s
            case 2:
                self._met[f"broker holds back {way}"] += 1
                yield name, message, self._late()
            case _:
                self._met[f"broker replays {way}"] += 1
                yield name, message, 0.0
                _, old = self._rng.choice([one for one in seen if one[0] == name])
                yield name, old, self._late()

    def _spoilt(self, payload: bytes) -> bytes:
        data = bytearray(payload)
        match self._rng.randrange(4):
            case 0 if data:
                data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            case 1:
                del data[self._rng.randrange(len(data) + 1) :]
            case 2:
                data += self._rng.randbytes(self._rng.randrange(1, 40))
            case _:
                data[:] = self._rng.randbytes(self._rng.randrange(200))
        return bytes(data)

    def _hits(self) -> bool:
        return self._rng.random() < self._share

    def _late(self) -> float:
        return self._rng.uniform(0.0, self._latest_s)
