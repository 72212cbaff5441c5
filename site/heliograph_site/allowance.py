"""What a node may fetch now and what it waits for before it activates: `heliograph.economy`, fed with what was counted.

It decides nothing. It counts every byte of content (pages, leaves, recipes, manifests) that comes in a chunk, wanted or
not, for the release being fetched, under the day of the site's time zone, and keeps the count in the journal.

Rule 1: the count never goes back. A kill loses at most what came since the last flush: less than `FLUSH_BYTES`, and
    nothing that is older than the agent's tick.
Rule 2: what is signed is never held back: denials, metadata, documents and manifests count, and come all the same.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from zoneinfo import ZoneInfo

from heliograph import economy
from heliograph.blob import LEAF_BYTES
from heliograph.documents import Spent
from heliograph.economy import Wait
from heliograph.policy import DAY_S, Policy
from heliograph_site.journal import Journal

FLUSH_BYTES = 256 * 1024
"""What is counted is on disk at the latest when so much has come since."""
REMEMBERED_DAYS = 62
"""Days whose bytes are remembered: this month and the one before."""


class Allowance:
    """The node's meter."""

    def __init__(
        self,
        journal: Journal,
        policy: Callable[[], Policy],
        labels: Callable[[], Mapping[str, str]],
        now: Callable[[], int],
    ) -> None:
        """`policy` is the node's, `labels` are its assignment's, `now` is the estimated time."""
        self._journal, self._policy, self._labels, self._now = journal, policy, labels, now
        self._unsaved: Counter[bytes] = Counter()
        self._label: str | None = None
        self._zone = economy.zone(None)
        self._period = economy.periods(self._zone.tz, 0)
        self._period_zone = ""
        self._day = self._month = 0
        self._closed: Wait | None = None
        self._closed_key: tuple[object, ...] = ()
        self._look_at = self._looked_at = 0
        self._turned_at = 0
        self._turn()

    @property
    def tz(self) -> ZoneInfo:
        """The site's time zone."""
        return self._in_zone().tz

    @property
    def said(self) -> str:
        """What is wrong with the name of the time zone; empty if nothing is."""
        return self._in_zone().said

    @property
    def link(self) -> str:
        """What the assignment calls the site's link (label `link`)."""
        return self._labels().get("link", "")

    def spent(self) -> Spent:
        """What came on this day and in this month of the site's."""
        self._turn()
        return Spent(day=self._day, month=self._month)

    def budget_left(self) -> int | None:
        """Bytes that may be fetched now; None: as many as wanted."""
        return economy.budget_left(self._policy().budget, self.spent())

    def why_not_fetch(self) -> Wait | None:
        """What fetching waits for; None: go on."""
        policy, now, tz = self._policy(), self._now(), self.tz
        key = (policy.ring, policy.number, tz.key)
        if key != self._closed_key or not self._looked_at <= now < self._look_at:
            # Judged anew when a window opens or closes, when policy or zone is another, and when the time fell.
            self._closed = economy.why_closed(policy.windows, "fetch", tz, now)
            until = economy.open_until(policy.windows, "fetch", tz, now)
            self._look_at = self._closed.until if self._closed else until or now
            self._looked_at, self._closed_key = now, key
        spent = self.spent()
        return self._closed or economy.why_spent(policy.budget, spent, tz, now) or self._why_too_little(policy, now)

    def _why_too_little(self, policy: Policy, now: int) -> Wait | None:
        """Waits for the next period where what is left of this one's budget is less than the least that can come."""
        left = economy.budget_left(policy.budget, self.spent())
        if left is None or left >= LEAF_BYTES:
            return None
        rest = Spent(day=self._day + LEAF_BYTES, month=self._month + LEAF_BYTES)
        spent = economy.why_spent(policy.budget, rest, self.tz, now)
        assert spent is not None, "less than a leaf is left"
        period = spent.reason.partition(":")[0]
        return Wait(f"{period}: {left} bytes of this one's budget are left, too few for a leaf", spent.until)

    def why_not_activate(self, model: str, version: str, activated_at: int | None) -> Wait | None:
        """What a new release waits for before it is activated; `activated_at` is when the active one was."""
        return economy.why_not_yet_activate(
            self._policy(), model, version, activated_at=activated_at, tz=self.tz, now=self._now()
        )

    def may_take(self) -> int | None:
        """Bytes of content that may come now; None: any number."""
        return 0 if self.why_not_fetch() is not None else self.budget_left()

    def took(self, release: bytes, size: int) -> None:
        """So much content came for this release."""
        self._turn()
        self._unsaved[release] += size
        self._day += size
        self._month += size
        if self._unsaved.total() >= FLUSH_BYTES:
            self.flush()

    def took_for(self, release: bytes) -> int:
        """Content that came for the release on the days remembered."""
        return self._journal.spent_on(release) + self._unsaved[release]

    def flush(self) -> None:
        """All that was counted is on disk when this returns."""
        unsaved, self._unsaved = self._unsaved, Counter()
        oldest = economy.periods(self._zone.tz, max(0, self._now() - REMEMBERED_DAYS * DAY_S)).day
        for release, size in unsaved.items():
            self._journal.spend(self._period.day, release, size, forget_before=oldest)

    def _in_zone(self) -> economy.Zone:
        label = self._labels().get("time-zone")
        if label != self._label:
            self._label, self._zone = label, economy.zone(label)
        return self._zone

    def _turn(self) -> None:
        """Counts for the day and the month that it is now."""
        tz, now = self.tz, self._now()
        if self._turned_at <= now < self._period.day_ends and tz.key == self._period_zone:
            self._turned_at = now
            return
        self.flush()
        self._turned_at = now
        self._period, self._period_zone = economy.periods(tz, now), tz.key
        self._day = self._journal.spent(self._period.day, self._period.day)
        self._month = self._journal.spent(f"{self._period.month}-01", f"{self._period.month}-31")
