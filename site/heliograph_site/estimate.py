"""What time it is on a node that may have no clock: the greatest signed time seen, plus what has passed since.

Only signatures move the estimate forward by a jump; between them CLOCK_BOOTTIME carries it, also over restarts of the
agent. Powered-off time doesn't count. The wall clock is never read.

Beside it stands when the hub was last heard: what it signed anew then proves that it was there, so that a node can tell
how long it has been alone.
"""

import time
from collections.abc import Callable
from pathlib import Path

from heliograph_site.journal import Journal, TimeMark

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Estimate:
    """The node's time, kept in the journal."""

    def __init__(self, journal: Journal, clock: Callable[[], float] | None = None) -> None:
        """`clock` gives seconds since boot; left out: CLOCK_BOOTTIME."""
        self._journal = journal
        self._boottime_s = clock or _boottime_s
        self._boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        mark = journal.time_mark() or TimeMark(0, self._boot, self._boottime_s())
        if mark.boot != self._boot or mark.boottime_s > self._boottime_s():
            mark = TimeMark(mark.at, self._boot, self._boottime_s())
        self._mark = mark
        self.heard_at = journal.heard_at() or mark.at
        """The newest time that the hub vouched for; what came before anybody wrote it down counts as heard."""

    def now(self) -> int:
        """Seconds since 1970, never more than what was signed and what has passed since; 0 before any signed time."""
        return self._mark.at + int(self._boottime_s() - self._mark.boottime_s) if self._mark.at else 0

    def saw(self, signed_at: int) -> None:
        """A verified signature states this time."""
        if signed_at > self.now():
            self._mark = TimeMark(signed_at, self._boot, self._boottime_s())
            self._journal.save_time(self._mark)

    def heard(self, at: int) -> None:
        """The hub vouched for this time: it answered a hello, or signed a timestamp then. Later than now counts as now.

        On disk when this returns.
        """
        at = min(at, self.now())
        if at > self.heard_at:
            self.heard_at = at
            self._journal.save_heard(at)

    def save(self) -> None:
        """Writes the estimate as it is now, so that a power cut loses little of it."""
        if self._mark.at:
            now_s = self._boottime_s()
            elapsed = int(now_s - self._mark.boottime_s)
            self._mark = TimeMark(self._mark.at + elapsed, self._boot, self._mark.boottime_s + elapsed)
            self._journal.save_time(self._mark)


def _boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
