"""The node's time [IO]: `heliograph_site.reckoning` with its clocks, kept in the journal.

Rule 1: what was signed is on disk when it counts. What has passed since is written at every change of phase and every
    10 minutes, so that a power cut loses no more of it.
Rule 2: the wall clock is an argument; without one there is none. `now` never looks at it, `latest` may.
Rule 3: beside it stands when the hub was last heard: what it signed anew then proves that it was there, so that a node
    can tell how long it has been alone. It is never later than now.
"""

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from heliograph_site.journal import Journal
from heliograph_site.reckoning import Reckoning

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SAVE_EVERY_S = 600.0


class Estimate:
    """What time it is, and may be."""

    def __init__(
        self, journal: Journal, clock: Callable[[], float] | None = None, wall: Callable[[], float] | None = None
    ) -> None:
        """`clock` gives seconds since boot; left out: CLOCK_BOOTTIME. `wall` gives the wall clock's time, if any."""
        self._journal = journal
        self._boottime_s = clock or _boottime_s
        self._wall = wall
        self._boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        self._known = Reckoning(journal.time_marks()).started(self._boot, self._boottime_s())
        self._saved_s = self._boottime_s()
        self._asked: tuple[bytes, float] | None = None
        self.heard_at = journal.heard_at() or self.now()
        """The newest time that the hub vouched for; what came before anybody wrote it down counts as heard."""

    @property
    def is_signed(self) -> bool:
        """Whether any signature that counts has told the time."""
        return self._known.is_signed

    def now(self) -> int:
        """The estimate, seconds since 1970: it is at least so late. The wall clock has no part in it."""
        return self._known.earliest(self._boottime_s())

    def latest(self, max_offline_s: int) -> int:
        """It may be so late; what ends is judged by this. Where the wall clock doesn't count, it is `now`."""
        return self._known.latest(self._boottime_s(), self._wall_at(), max_offline_s)

    def why_suspect(self, max_offline_s: int) -> str:
        """Why the wall clock counts for nothing; empty: it may be right, or there is none."""
        off_s = self._known.suspicion_s(self._boottime_s(), self._wall_at(), max_offline_s)
        if not off_s:
            return ""
        side = "behind" if off_s < 0 else "ahead of"
        return f"the wall clock is {abs(off_s)} s {side} the time by what was signed: it is ignored"

    def saw(self, signed_at: int, keyids: Iterable[bytes] = ()) -> None:
        """A signature that these keys made, verified, states this time. On disk on return."""
        self._keep(self._known.signed(signed_at, keyids, self._boot, self._boottime_s()))

    def asked(self, nonce: bytes) -> None:
        """The hub is asked for the time, under this nonce."""
        self._asked = nonce, self._boottime_s()

    def answered(self, nonce: bytes, signed_at: int, keyids: Iterable[bytes]) -> None:
        """The hub signed this time in its answer to that nonce."""
        if self._asked is not None and self._asked[0] == nonce:
            self._known = self._known.answered(signed_at, keyids, self._boot, self._asked[1])

    def judge(self, threshold: int, keyids: Collection[bytes]) -> bool:
        """Drops what was signed by keys that no longer reach the threshold; says whether the time fell. On disk."""
        before = self.now()
        self._keep(self._known.judged(threshold, keyids))
        if self.heard_at > self.now():
            self.heard_at = self.now()
            self._journal.save_heard(self.heard_at)
        return self.now() < before

    def heard(self, at: int) -> None:
        """The hub vouched for this time: it answered a hello, or signed a timestamp then. Later than now counts as now.

        On disk when this returns.
        """
        at = min(at, self.now())
        if at > self.heard_at:
            self.heard_at = at
            self._journal.save_heard(at)

    def save(self) -> None:
        """Writes the estimate as it is now."""
        self._saved_s = self._boottime_s()
        self._keep(self._known.carried(self._saved_s))

    def save_if_due(self) -> None:
        """As `save`, if that was 10 minutes ago."""
        if self._boottime_s() - self._saved_s >= SAVE_EVERY_S:
            self.save()

    def _wall_at(self) -> int | None:
        return int(self._wall()) if self._wall is not None else None

    def _keep(self, known: Reckoning) -> None:
        is_news = known.marks != self._known.marks
        self._known = known
        if is_news:
            now_s = self._boottime_s()
            self._journal.save_times(*sorted(known.marks, key=lambda mark: mark.reads(now_s), reverse=True))


def _boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
