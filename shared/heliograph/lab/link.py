"""An emulated link: what becomes of each packet that is put on it.

A link has two directions, *up* (node to hub) and *down*. Each has a rate, a queue before it that drops what doesn't
fit, a delay, and chance that loses packets on the way; outages and cuts are the link's, both directions at once.

Rule 1: a packet waits for those before it, then takes its size over the rate, then the delay; none overtakes another.
Rule 2: what doesn't fit into the queue is dropped at its tail; what chance loses has used up the rate all the same.
Rule 3: a link that is down loses what is put on it and what would have arrived meanwhile; it stores nothing.

Time (seconds of any monotonic clock) and chance are arguments. Nothing here reads, writes or waits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from heliograph.errors import ConfigError
from heliograph.toml import parse_toml


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link.

    Attributes:
        rate_bit_s: of whole IP packets; 0 is unlimited.
        delay_s: one way.
        loss_share: of packets, by chance.
        buffer_bytes: what may wait for the rate; 0 is unlimited.
    """

    rate_bit_s: float = 0.0
    delay_s: float = 0.0
    loss_share: float = 0.0
    buffer_bytes: int = 0

    @property
    def rate_bytes_per_s(self) -> float:
        """The rate in bytes; 0 is unlimited."""
        return self.rate_bit_s / 8


@dataclass(frozen=True, slots=True)
class Outages:
    """Times at which the link is down by itself: for `length_s`, every `every_s`, the first time after `first_s`."""

    first_s: float
    every_s: float
    length_s: float

    def is_down(self, after_s: float) -> bool:
        """Whether it is down so long after its beginning."""
        return after_s >= self.first_s and (after_s - self.first_s) % self.every_s < self.length_s

    def next_change_s(self, after_s: float) -> float:
        """How long from then until it goes down or comes back."""
        if after_s < self.first_s:
            return self.first_s - after_s
        within = (after_s - self.first_s) % self.every_s
        return (self.length_s if within < self.length_s else self.every_s) - within


@dataclass(frozen=True, slots=True)
class Profile:
    """A named kind of link, as a file in `heliograph/profiles` describes it."""

    name: str
    note: str
    up: Shape
    down: Shape
    outages: Outages | None = None

    @property
    def rtt_s(self) -> float:
        """The round trip of an idle link, without the packets' own time."""
        return self.up.delay_s + self.down.delay_s


_SHAPE = {"rate_bit_s", "delay_s", "loss_share", "buffer_bytes"}
_OUTAGES = {"first_s", "every_s", "length_s"}


def profile_from_toml(name: str, text: str) -> Profile:
    """Reads a profile: `note`, the four numbers of `Shape` for both directions, [up] and [down] for either, [outages].

    Raises:
        ConfigError: it is no TOML, names something unknown, or a number is out of range.
    """
    found = parse_toml(text, f"profile {name}")
    note = found.pop("note", "")
    tables = {key: found.pop(key, {}) for key in ("up", "down", "outages")}
    if not isinstance(note, str) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"profile {name}: note is text; up, down and outages are tables")
    both = _numbers(name, "", found, _SHAPE)
    shapes = {way: Shape(**(both | _numbers(name, way, tables[way], _SHAPE))) for way in ("up", "down")}
    for shape in shapes.values():
        if shape.loss_share >= 1.0:
            raise ConfigError(f"profile {name}: loss_share is {shape.loss_share:g}, must be below 1")
    outages = None
    if tables["outages"]:
        numbers = _numbers(name, "outages", tables["outages"], _OUTAGES)
        if set(numbers) != _OUTAGES or not 0 < numbers["length_s"] < numbers["every_s"]:
            raise ConfigError(f"profile {name}: [outages] needs first_s, every_s and a length_s shorter than every_s")
        outages = Outages(**numbers)
    return Profile(name, note, shapes["up"], shapes["down"], outages)


def _numbers(name: str, table: str, found: dict[str, Any], known: set[str]) -> dict[str, Any]:
    for key, value in found.items():
        where = f"profile {name}: {table}{'.' if table else ''}{key}"
        if key not in known:
            raise ConfigError(f"{where} is unknown, known are {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ConfigError(f"{where} is {value!r}, must be a number from 0 on")
    return found


@dataclass
class Direction:
    """One direction at work: `offer` every packet in the order of time.

    Attributes:
        packets, bytes: put onto the road, what chance lost and what an outage swallowed included.
        lost: by chance.
        overflowed: dropped at the tail of the queue.
        unheard: put on a link that was down, or on it when it went down.
    """

    shape: Shape
    draw: Callable[[], float]
    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    unheard: int = 0
    _free_at: float = field(default=float("-inf"), repr=False)
    _last_at: float = field(default=float("-inf"), repr=False)

    def waiting_bytes(self, now: float) -> float:
        """What waits for the rate or is being sent."""
        return max(0.0, self._free_at - now) * self.shape.rate_bytes_per_s

    def offer(self, size: int, now: float) -> float | None:
        """When a packet of `size` bytes arrives; None if it never does."""
        rate = self.shape.rate_bytes_per_s
        if self.shape.buffer_bytes and self.waiting_bytes(now) + size > self.shape.buffer_bytes:
            self.overflowed += 1
            return None
        self._free_at = max(self._free_at, now) + (size / rate if rate else 0.0)
        self.packets += 1
        self.bytes += size
        if self.shape.loss_share and self.draw() < self.shape.loss_share:
            self.lost += 1
            return None
        # A delay that was made shorter meanwhile lets nobody overtake.
        self._last_at = max(self._last_at, self._free_at + self.shape.delay_s)
        return self._last_at

    def empty(self) -> None:
        """Forgets what waits: the link went down."""
        self._free_at = self._last_at = float("-inf")


class Link:
    """Both directions and whether the link is up.

    Attributes:
        profile: may be exchanged at any time; what is on its way keeps its times.
        is_cut: by `cut`, whatever the profile's outages say.
    """

    def __init__(self, profile: Profile, draw: Callable[[], float], began: float) -> None:
        """`draw` gives numbers in 0..1; the profile's outages are counted from `began`."""
        self.profile = profile
        self.began = began
        self.is_cut = False
        self.up = Direction(profile.up, draw)
        self.down = Direction(profile.down, draw)

    def reshape(self, profile: Profile, now: float) -> None:
        """Becomes a link of another kind; its outages begin now."""
        self.profile, self.began = profile, now
        self.up.shape, self.down.shape = profile.up, profile.down

    def is_up(self, now: float) -> bool:
        """Whether anything gets through."""
        outages = self.profile.outages
        return not self.is_cut and not (outages is not None and outages.is_down(now - self.began))

    def cut(self) -> None:
        """Down until `restore`; what waits is lost."""
        self.is_cut = True
        self.up.empty()
        self.down.empty()

    def restore(self) -> None:
        """Up again, unless an outage of the profile is on."""
        self.is_cut = False

    def offer(self, direction: Direction, size: int, now: float) -> float | None:
        """When a packet put on now arrives, if the link is up then too (ask `arrives`); None if it never does."""
        if not self.is_up(now):
            direction.unheard += 1
            return None
        return direction.offer(size, now)

    def arrives(self, direction: Direction, now: float) -> bool:
        """Whether a packet that is due now gets through."""
        if self.is_up(now):
            return True
        direction.unheard += 1
        return False
