"""How much of a transfer may be on its way at once: as much as fills the link, as little as keeps it quick for others.

Rule 1: the window follows delay. Loss without delay does not shrink it.
Rule 2: a window that isn't used up says nothing about a larger one, and doesn't grow.

Source: measured on emulated links: a 16 KiB window keeps a 300-byte message within 0.32 s behind bulk on 256 kbit/s,
64 KiB is wanted where the road loses or is cut; no fixed multiple of the bandwidth-delay product does both.
"""

from heliograph.blob import LEAF_BYTES

SMALL_CHUNK_LEAVES = 2
SMALL_CHUNK_BYTES = SMALL_CHUNK_LEAVES * LEAF_BYTES
CHUNK_LEAVES = 4
SLOW_LINK_BYTES_PER_S = 32 * 1024
"""At or below this rate chunks are 8 KiB, above 16 KiB."""


class Window:
    """How many bytes may be on their way, by delay.

    Doubles every round trip until delay first shows, then grows by one chunk a round trip; while chunks take longer
    than the smallest round trip plus an allowance it shrinks, at most once a round trip. The allowance is what one
    chunk takes on the link, at least 250 ms. The smallest round trip is that of the last ten minutes.
    """

    SMALLEST_BYTES = 16 * 1024
    LARGEST_BYTES = 256 * 1024
    ALLOWANCE_S = 0.25
    MEMORY_S = 300.0

    def __init__(self) -> None:
        self.size_bytes = self.SMALLEST_BYTES
        self.rtt_s: float | None = None
        """Smoothed round trip of chunks; None before the first."""
        self.rate_bytes_per_s: float | None = None
        """Smoothed rate at which chunks come in while more are on their way."""
        self._is_young = True
        self._smallest: tuple[float, float] | None = None
        self._smallest_before: float | None = None
        self._shrunk_at = float("-inf")
        self._rate_from: float | None = None
        self._rate_bytes = 0

    @property
    def smallest_s(self) -> float | None:
        """The smallest round trip remembered."""
        if self._smallest is None:
            return None
        return min(self._smallest[1], self._smallest_before or self._smallest[1])

    @property
    def chunk_leaves(self) -> int:
        """Leaves in a chunk, by the link's rate."""
        rate = self.rate_bytes_per_s
        return SMALL_CHUNK_LEAVES if rate is None or rate <= SLOW_LINK_BYTES_PER_S else CHUNK_LEAVES

    def on_chunk(self, rtt_s: float | None, chunk_bytes: int, outstanding_bytes: int, now: float) -> None:
        """A chunk came.

        Args:
            rtt_s: since it was asked for; None if it was asked for twice, so that nobody knows.
            chunk_bytes: its size. Pages and last leaves are quicker than whole chunks and say nothing about delay.
            outstanding_bytes: what is still on its way after it.
            now: seconds.
        """
        self._measure_rate(chunk_bytes, outstanding_bytes, now)
        if rtt_s is None:
            return
        if chunk_bytes < SMALL_CHUNK_BYTES:
            self.rtt_s = self.rtt_s or rtt_s
            return
        self.rtt_s = rtt_s if self.rtt_s is None else 0.875 * self.rtt_s + 0.125 * rtt_s
        self._remember(rtt_s, now)
        own_s = chunk_bytes / self.rate_bytes_per_s if self.rate_bytes_per_s else 0.0
        smallest = self.smallest_s
        assert smallest is not None
        if rtt_s < smallest + max(self.ALLOWANCE_S, own_s):
            # A window that isn't used says nothing about a larger one.
            if outstanding_bytes + 2 * chunk_bytes > self.size_bytes:
                grown = chunk_bytes if self._is_young else chunk_bytes * chunk_bytes // self.size_bytes + 1
                self.size_bytes = min(self.size_bytes + grown, self.LARGEST_BYTES)
        elif now - self._shrunk_at >= rtt_s:
            self._is_young = False
            self._shrunk_at = now
            self.size_bytes = max(self.size_bytes * 7 // 8, self.SMALLEST_BYTES)

    def on_link_lost(self) -> None:
        """The next link may be another one: delay is learnt anew, the size is kept as a first guess."""
        self.rtt_s = None
        self._smallest = self._smallest_before = None
        self._rate_from = None
        self.size_bytes = min(self.size_bytes, 64 * 1024)

    def _remember(self, rtt_s: float, now: float) -> None:
        if self._smallest is None:
            self._smallest = (now, rtt_s)
        elif now - self._smallest[0] > self.MEMORY_S:
            self._smallest_before = self._smallest[1]
            self._smallest = (now, rtt_s)
        elif rtt_s < self._smallest[1]:
            self._smallest = (self._smallest[0], rtt_s)

    def _measure_rate(self, chunk_bytes: int, outstanding_bytes: int, now: float) -> None:
        """Bytes over time from one arrival to later ones, as long as the road never ran empty between them."""
        if self._rate_from is not None:
            self._rate_bytes += chunk_bytes
            span_s = now - self._rate_from
            if span_s > 0 and (span_s >= 1.0 or self._rate_bytes >= 64 * 1024):
                rate = self._rate_bytes / span_s
                old = self.rate_bytes_per_s
                self.rate_bytes_per_s = rate if old is None else 0.5 * old + 0.5 * rate
                self._rate_from, self._rate_bytes = now, 0
        if outstanding_bytes <= 0:
            self._rate_from = None
        elif self._rate_from is None:
            self._rate_from, self._rate_bytes = now, 0
