"""Counts and latencies of one loaded release. Pure: durations come as arguments."""

from collections import deque

from heliograph.sketch import Sketch

RING = 1024
"""Latencies kept: quantiles speak of the last so many answers."""


class Meter:
    """What a loaded release has answered; errors are the node's own, never a caller's bad request."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.busy_ns = 0
        self.failed_ns = 0
        self.sketch = Sketch()
        """Of every answer since the release was loaded."""
        self._recent: deque[int] = deque(maxlen=RING)

    def answered(self, took_ns: int) -> None:
        """A request was answered with outputs."""
        self.requests += 1
        self.busy_ns += took_ns
        self.sketch.add(took_ns)
        self._recent.append(took_ns)

    def failed(self, took_ns: int) -> None:
        """A request that was admitted ended without outputs."""
        self.requests += 1
        self.errors += 1
        self.failed_ns += took_ns

    def latency_ms(self) -> dict[str, float]:
        """p50 and p95 of recent answers, in milliseconds; empty without any."""
        if not self._recent:
            return {}
        ordered = sorted(self._recent)
        return {
            name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 3)
            for name, share in (("p50", 0.5), ("p95", 0.95))
        }
