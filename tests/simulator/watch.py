"""What time a node takes it for: the real reckoning, fed with what a node of these worlds hears and with a wall clock.

True time is `Clock.true_s` since `catalogue.NOW`. Nights are skipped: everything that has power lives
through them, and nothing else happens meanwhile.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from heliograph.trust import TrustedSet
from heliograph_site.estimate import SAVE_EVERY_S
from heliograph_site.reckoning import Reckoning
from simulator import catalogue

if TYPE_CHECKING:
    from simulator.world import World

DAY = 86_400
MAX_OFFLINE_S = 30 * DAY
ROUNDED_S = 3600 + 60
"""The hub of these worlds signs full hours, and what it says may be under way for a while."""
JUMPS_EVERY_S = 1800
WALLS: Final[dict[str, Callable[[float], float] | None]] = {
    "right": lambda true: true,
    "none": None,
    "1970": lambda true: true - catalogue.NOW,
    "a year behind": lambda true: true - 365 * DAY,
    "a day behind": lambda true: true - DAY,
    "a day ahead": lambda true: true + DAY,
    "2040": lambda true: true - catalogue.NOW + 2_208_988_800,
    "jumps": lambda true: true + (20 * DAY if int(true) // JUMPS_EVERY_S % 2 else -20 * DAY),
}


class Watch:
    """A node's clocks.

    Attributes:
        wall: which wall clock it has.
        off_s: what it had no power for, and what a power cut took of what wasn't written, since the hub answered last.
    """

    def __init__(self, world: "World", name: str, seed: int, trusted: TrustedSet) -> None:
        self._world = world
        self.wall = Random(f"clock {seed} {name}").choice(list(WALLS)) if world.has_clocks else "none"
        self._boots, self._began_s = 0, self._true_s
        self.known = self._stored = Reckoning()
        self._saved_s, self._asked_s = 0.0, 0.0
        self._seen: TrustedSet | None = None
        self._looked_at = self.true()
        self._went_off: int | None = None
        self.off_s = 0
        self.see(trusted)

    @property
    def _true_s(self) -> float:
        return self._world.clock.true_s

    @property
    def _boottime_s(self) -> float:
        return 10.0 + self._true_s - self._began_s

    def true(self) -> int:
        """What a right clock says."""
        clock = self._world.clock
        return catalogue.NOW + int(clock.now + clock.skipped_s)

    def now(self) -> int:
        """The estimate."""
        return self.known.earliest(self._boottime_s) if self._world.has_clocks else self.true()

    def latest(self) -> int:
        """How late it may be."""
        tells = WALLS[self.wall]
        wall = None if tells is None else int(tells(float(self.true())))
        return self.known.latest(self._boottime_s, wall, MAX_OFFLINE_S) if self._world.has_clocks else self.true()

    def see(self, trusted: TrustedSet) -> None:
        """What the agent does with the time after each document."""
        if trusted is self._seen:
            return  # what it says was known ever since
        self._seen = trusted
        self._keep(self.known.judged(*trusted.role_keys("timestamp")))
        self._keep(self.known.signed(trusted.at, trusted.told_by, str(self._boots), self._boottime_s))

    def looked(self) -> None:
        """Everything was judged by the time that it is now."""
        self._looked_at = self.true()

    @property
    def has_jumped(self) -> bool:
        """Whether the wall clock jumped since then: no event tells a node so, it is met with the next tick."""
        return self.wall == "jumps" and self._looked_at // JUMPS_EVERY_S != self.true() // JUMPS_EVERY_S

    def asked(self) -> None:
        """Hello is said."""
        self._asked_s = self._boottime_s

    def answered(self, at: int, trusted: TrustedSet) -> None:
        """The hub has replied."""
        at = trusted.within(at)
        self._keep(self.known.signed(at, trusted.told_by, str(self._boots), self._boottime_s))
        self.known = self.known.answered(at, trusted.told_by, str(self._boots), self._asked_s)
        self.off_s = 0

    def save(self) -> None:
        """At every change of phase."""
        self._saved_s = self._boottime_s
        self._keep(self.known.carried(self._boottime_s))

    def save_if_due(self) -> None:
        """As `save`, if that was long ago."""
        if self._boottime_s - self._saved_s >= SAVE_EVERY_S:
            self.save()

    def loses_power(self) -> None:
        """From here on nothing is measured, and what wasn't written is gone."""
        lost = self.now() - max((mark.at for mark in self._stored.marks), default=0)
        self.off_s += max(0, lost)
        self._went_off = self.true()

    def starts(self) -> None:
        """The agent starts, after a boot if there was no power."""
        self._seen = None
        if self._went_off is not None:
            self.off_s += self.true() - self._went_off + 1
            self._went_off = None
            self._boots, self._began_s = self._boots + 1, self._true_s
            self.known = self._stored
        self.known = self.known.started(str(self._boots), self._boottime_s)
        self._saved_s = self._boottime_s

    @property
    def may_lag_s(self) -> int:
        """The documented bound of what it may be behind."""
        if self.wall == "right" and self.true() - self.now() <= MAX_OFFLINE_S:
            return 0
        return self.off_s + ROUNDED_S

    def _keep(self, known: Reckoning) -> None:
        if known.marks != self.known.marks:
            self._stored = Reckoning(known.marks)
        self.known = known
