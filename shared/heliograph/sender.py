"""What to send next: the wants of many askers, in turn, within a rate for each and one for all.

The side of the hub or a relay; the asker's is `heliograph.transfer`. Nothing is read here: what a `Send` names is read
and put in a chunk by whoever asks for the next one.

Rule 1: no asker can cost another its turn, its rate or its place in a queue.
Rule 2: every queue is bounded. What is dropped is asked for again, since wants are QoS 0 anyway.

Time is an argument: seconds of any monotonic clock.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from heliograph.blob import LEAF_BYTES
from heliograph.documents import MAX_CHUNK_BYTES, MAX_CHUNK_LEAVES, MAX_RANGES, Want
from heliograph.names import Digest

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Send(Generic[K]):
    """Send this page, or these whole leaves, of this blob to this asker under its handle, now.

    `length` is an upper bound: the end of the blob cuts it. What isn't there (wrong page, offset beyond the end) is
    simply not sent.
    """

    node: K
    handle: bytes
    blob: Digest
    page: int | None
    offset: int
    length: int


class Bucket:
    """A token bucket that may go into debt by one chunk, so that no chunk is too large for it."""

    def __init__(self, rate_bytes_per_s: float | None, burst_bytes: int = 2 * MAX_CHUNK_BYTES) -> None:
        """Full at first. A rate of None never waits."""
        self.rate = rate_bytes_per_s
        self.burst = burst_bytes
        self._tokens = float(burst_bytes)
        self._at: float | None = None

    def ready_at(self, now: float) -> float:
        """When the next chunk may go; `now` if at once."""
        if self.rate is None:
            return now
        if self._at is not None and now > self._at:
            self._tokens = min(self._tokens + (now - self._at) * self.rate, float(self.burst))
        self._at = now if self._at is None else max(now, self._at)
        return now if self._tokens > 0 else now + (1.0 - self._tokens) / self.rate

    def take(self, count: int) -> None:
        """Spends what was sent."""
        if self.rate is not None:
            self._tokens -= count


@dataclass(slots=True)
class _Queue:
    bucket: Bucket
    sends: "OrderedDict[tuple[Digest, int | None, int], tuple[bytes, int]]"


class Sender(Generic[K]):
    """Which chunk goes to whom next: wants of many askers, in turn, within a rate per asker and one in total.

    The queue of an asker is bounded and its oldest entries are dropped: wants are QoS 0, whoever still needs it asks
    again. What is queued already is not queued twice. Nothing is read here.

    Attributes:
        dropped: chunks forgotten because an asker wanted too many at once.
        repeated: chunks asked for that were still queued.
    """

    def __init__(
        self,
        total_bytes_per_s: float | None = None,
        node_bytes_per_s: float | None = None,
        queue_chunks: int = 96,
    ) -> None:
        """Rates are bytes of blob content; None means unlimited. `queue_chunks` bounds each asker's queue."""
        self.dropped = 0
        self.repeated = 0
        self._total = Bucket(total_bytes_per_s)
        self._node_rate = node_bytes_per_s
        self._queue_chunks = queue_chunks
        # Askers with something queued, in turn; and the buckets in debt of those without.
        self._queues: OrderedDict[K, _Queue] = OrderedDict()
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()

    @property
    def queued(self) -> int:
        """Chunks waiting to be sent."""
        return sum(len(queue.sends) for queue in self._queues.values())

    def take(self, node: K, want: Want, now: float) -> int:
        """Queues what is wanted, pages first, and returns how many chunks are new in the queue."""
        queue = self._queues.get(node)
        if queue is None:
            bucket = self._buckets.pop(node, None) or Bucket(self._node_rate)
            queue = self._queues[node] = _Queue(bucket, OrderedDict())
        blob = Digest(want.blob)
        news = 0
        for page in want.pages[:MAX_RANGES]:
            news += self._queue(queue, (blob, page, 0), want.handle, LEAF_BYTES)
        for first, count in want.ranges[:MAX_RANGES]:
            for at in range(first, first + count, MAX_CHUNK_LEAVES):
                leaves = min(MAX_CHUNK_LEAVES, first + count - at)
                news += self._queue(queue, (blob, None, at * LEAF_BYTES), want.handle, leaves * LEAF_BYTES)
        if not queue.sends:
            self._retire(node)
        return news

    def next(self, now: float) -> Send[K] | None:
        """The chunk to send now, taken off its queue; None if nothing is queued or a rate says wait."""
        if self._total.ready_at(now) > now:
            return None
        for node in list(self._queues):
            queue = self._queues[node]
            if queue.bucket.ready_at(now) > now:
                continue
            (blob, page, offset), (handle, length) = queue.sends.popitem(last=False)
            self._total.take(length)
            queue.bucket.take(length)
            self._queues.move_to_end(node)
            if not queue.sends:
                self._retire(node)
            return Send(node, handle, blob, page, offset, length)
        return None

    def next_time(self, now: float) -> float | None:
        """When `next` will have something, now or later; None while nothing is queued."""
        if not self._queues:
            return None
        earliest = min(queue.bucket.ready_at(now) for queue in self._queues.values())
        return max(earliest, self._total.ready_at(now))

    def drop(self, is_dropped: Callable[[K, Digest], bool]) -> int:
        """Takes off the queues what this says of (asker, blob), and returns how many chunks that were."""
        dropped = 0
        for node, queue in list(self._queues.items()):
            for blob in {blob for blob, _, _ in queue.sends}:
                if is_dropped(node, blob):
                    mine = [key for key in queue.sends if key[0] == blob]
                    dropped += len(mine)
                    for key in mine:
                        del queue.sends[key]
            if not queue.sends:
                self._retire(node)
        return dropped

    def forget(self, node: K) -> None:
        """The asker is gone: nothing is sent to it until it asks again."""
        if node in self._queues:
            self._retire(node)

    def _queue(self, queue: _Queue, key: tuple[Digest, int | None, int], handle: bytes, length: int) -> int:
        known = queue.sends.get(key)
        if known is not None and known[1] >= length:
            queue.sends[key] = (handle, known[1])
            self.repeated += 1
            return 0
        queue.sends[key] = (handle, length)
        if len(queue.sends) > self._queue_chunks:
            queue.sends.popitem(last=False)
            self.dropped += 1
        return 0 if known is not None else 1

    def _retire(self, node: K) -> None:
        """Keeps only the debt, so that asking in small portions doesn't outrun the rate; bounded, oldest forgotten."""
        queue = self._queues.pop(node)
        if self._node_rate is not None:
            self._buckets[node] = queue.bucket
            if len(self._buckets) > 10_000:
                self._buckets.popitem(last=False)
