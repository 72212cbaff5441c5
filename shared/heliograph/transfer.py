"""What to ask for next: the bulk of a release, leaf by leaf, over a link that loses and repeats.

The asker's side is `BlobFetch` (one blob: what is held, what verifies) and `Fetcher` (several blobs by priority,
through one `heliograph.window`). The other side, hub or relay, is `heliograph.sender`.

Rule 1: nothing unverified leaves this module, except from a blob without pages, which is verified whole by `finish`.
Rule 2: a leaf that is held is never asked for. What is held is what verifies; no bitmap is kept on disk.
Rule 3: the road may lose, repeat, reorder and corrupt; that costs time, never correctness. Waiting is without limit.

Time is an argument: seconds of any monotonic clock. Nothing here reads or writes anything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from heliograph.blob import (
    LEAF_BYTES,
    LEAVES_PER_PAGE,
    MAX_UNPAGED_BYTES,
    PAGE_SPAN_BYTES,
    SHORT_DIGEST_BYTES,
    check_page,
    leaf_count,
    page_count,
    sha256,
    short_digest,
)
from heliograph.deadlines import DEADLINES, Deadlines
from heliograph.documents import MAX_CHUNK_BYTES, MAX_RANGES, Chunk, Want
from heliograph.errors import IntegrityError
from heliograph.names import Digest
from heliograph.sealing import sealed_length
from heliograph.window import Window

MAX_SMALL_BYTES = sealed_length(MAX_UNPAGED_BYTES)
"""Longest blob that comes without pages: the largest recipe, sealed."""


class BlobFetch:
    """One blob on its way: its pages, and which of its leaves are held.

    Attributes:
        handle: 4 bytes drawn by the asker for this blob and connection.
        bytes_resent: bytes of chunks that were already held when they came.
        bytes_corrupt: bytes of chunks that did not verify.
    """

    def __init__(self, blob: Digest, length: int, page_digests: tuple[bytes, ...], handle: bytes) -> None:
        """Takes length and page digests as a verified document names them; without pages, at most 1 MiB sealed.

        Raises:
            IntegrityError: the numbers contradict each other.
        """
        if page_digests and len(page_digests) != page_count(length):
            raise IntegrityError(f"blob of {length} bytes names {len(page_digests)} pages, has {page_count(length)}")
        if not page_digests and not 0 <= length <= MAX_SMALL_BYTES:
            raise IntegrityError(f"blob of {length} bytes names no pages, allowed up to {MAX_SMALL_BYTES}")
        self.blob = blob
        self.length = length
        self.handle = handle
        self.bytes_resent = 0
        self.bytes_corrupt = 0
        self._page_digests = page_digests
        self._pages: dict[int, bytes] = {}
        self._new_pages: list[tuple[int, bytes]] = []
        self._leaves = leaf_count(length)
        self._held = bytearray(self._leaves)
        self._held_count = 0
        self._first_missing = 0
        self._whole = bytearray()

    @property
    def is_paged(self) -> bool:
        """Whether leaves are verified one by one."""
        return bool(self._page_digests)

    @property
    def complete(self) -> bool:
        """Every leaf is held. A blob without pages is still to be verified by `finish`."""
        return self._held_count == self._leaves

    @property
    def bytes_held(self) -> int:
        """Bytes of the blob held, exact but for a short last leaf."""
        return min(self._held_count * LEAF_BYTES, self.length)

    def restore(self, pages: dict[int, bytes], read: Callable[[int, int], bytes]) -> int:
        """Takes back what verifies after a restart and returns how many leaves are held.

        Args:
            pages: whatever was kept of `pages_to_keep`; those that don't verify are ignored.
            read: (offset, length) -> bytes of the partial blob; may return fewer.
        """
        for index, page in pages.items():
            if index in self._pages:
                continue
            try:
                check_page(page, index, self.length, self._page_digests)
            except IntegrityError:
                continue
            self._pages[index] = page
            offset = index * PAGE_SPAN_BYTES
            span = memoryview(read(offset, min(PAGE_SPAN_BYTES, self.length - offset)))
            for number in range(len(page) // SHORT_DIGEST_BYTES):
                leaf = index * LEAVES_PER_PAGE + number
                data = span[number * LEAF_BYTES : (number + 1) * LEAF_BYTES]
                if not self._held[leaf] and self._verifies(leaf, data):
                    self._hold(leaf)
        return self._held_count

    def accept(self, chunk: Chunk) -> list[tuple[int, bytes]]:
        """Takes a chunk and returns the verified (offset, bytes) runs to write now; what was held already: none.

        Raises:
            IntegrityError: it doesn't verify, isn't whole leaves, or came before its page; nothing changed.
        """
        try:
            return self._accept_page(chunk.page, chunk.bytes) if chunk.page is not None else self._accept_run(chunk)
        except IntegrityError:
            self.bytes_corrupt += len(chunk.bytes)
            raise

    def _accept_page(self, index: int, page: bytes) -> list[tuple[int, bytes]]:
        if index in self._pages:
            self.bytes_resent += len(page)
            return []
        check_page(page, index, self.length, self._page_digests)
        self._pages[index] = page
        self._new_pages.append((index, page))
        return []

    def _accept_run(self, chunk: Chunk) -> list[tuple[int, bytes]]:
        offset, data = chunk.offset, memoryview(chunk.bytes)
        assert offset is not None
        end = offset + len(data)
        if not 0 < len(data) <= MAX_CHUNK_BYTES or offset % LEAF_BYTES or end > self.length:
            raise IntegrityError(f"chunk of {len(data)} bytes at {offset} does not fit a blob of {self.length}")
        if end % LEAF_BYTES and end != self.length:
            raise IntegrityError(f"chunk of {len(data)} bytes at {offset} is not whole leaves")
        first = offset // LEAF_BYTES
        news: list[int] = []
        resent = 0
        for number in range(leaf_count(len(data))):
            leaf_bytes = data[number * LEAF_BYTES : (number + 1) * LEAF_BYTES]
            if self._held[first + number]:
                resent += len(leaf_bytes)
            elif self.is_paged and not self._verifies(first + number, leaf_bytes):
                raise IntegrityError(f"leaf {first + number} of {self.blob.hex()[:12]} does not match its page")
            else:
                news.append(number)
        self.bytes_resent += resent
        runs: list[tuple[int, bytes]] = []
        for number, count in _runs(news):
            self._hold_run(first + number, count)
            run = bytes(data[number * LEAF_BYTES : (number + count) * LEAF_BYTES])
            at = offset + number * LEAF_BYTES
            if self.is_paged:
                runs.append((at, run))
            else:
                if not self._whole:
                    self._whole = bytearray(self.length)
                self._whole[at : at + len(run)] = run
        return runs

    def pages_to_keep(self) -> list[tuple[int, bytes]]:
        """Pages verified since the last call, to be kept beside the partial blob."""
        pages, self._new_pages = self._new_pages, []
        return pages

    def has_range(self, offset: int, length: int) -> bool:
        """Whether every leaf that these bytes touch is held."""
        if length <= 0:
            return True
        first, end = offset // LEAF_BYTES, leaf_count(offset + length)
        return end <= self._leaves and self._held.find(0, first, end) < 0

    def missing_pages(self) -> Iterator[int]:
        """Pages not held whose span lacks leaves, in order."""
        for index in range(len(self._page_digests)):
            if index not in self._pages:
                yield index

    def missing(self) -> Iterator[int]:
        """Leaves not held that could be verified now (their page is held), in order."""
        leaf = self._first_missing
        while True:
            leaf = self._held.find(0, leaf)
            if leaf < 0:
                return
            page = leaf // LEAVES_PER_PAGE
            if not self.is_paged or page in self._pages:
                yield leaf
                leaf += 1
            else:
                leaf = (page + 1) * LEAVES_PER_PAGE

    def leaf_bytes(self, first: int, count: int) -> int:
        """Bytes of a run of leaves; the last leaf of the blob may be short."""
        return min((first + count) * LEAF_BYTES, self.length) - first * LEAF_BYTES

    def page_bytes(self, index: int) -> int:
        """Bytes of a page."""
        return leaf_count(min(PAGE_SPAN_BYTES, self.length - index * PAGE_SPAN_BYTES)) * SHORT_DIGEST_BYTES

    def has_page(self, index: int) -> bool:
        """Whether this page is held."""
        return index in self._pages

    def has_leaf(self, leaf: int) -> bool:
        """Whether this leaf is held."""
        return bool(self._held[leaf])

    def finish(self) -> bytes:
        """The bytes of a complete blob without pages, verified whole.

        Raises:
            IntegrityError: they aren't the blob; everything is forgotten, to be fetched again.
        """
        if self.is_paged or not self.complete:
            raise ValueError("finish is for a complete blob without pages")
        data = bytes(self._whole)
        if sha256(data) != self.blob:
            self.bytes_corrupt += len(data)
            self._held = bytearray(self._leaves)
            self._held_count = self._first_missing = 0
            self._whole = bytearray()
            raise IntegrityError(f"blob {self.blob.hex()[:12]} of {self.length} bytes does not match its digest")
        return data

    def _verifies(self, leaf: int, data: bytes | memoryview) -> bool:
        page = self._pages.get(leaf // LEAVES_PER_PAGE)
        if page is None or len(data) != self.leaf_bytes(leaf, 1):
            return False
        at = leaf % LEAVES_PER_PAGE * SHORT_DIGEST_BYTES
        return short_digest(data) == page[at : at + SHORT_DIGEST_BYTES]

    def _hold(self, leaf: int) -> None:
        self._hold_run(leaf, 1)

    def _hold_run(self, first: int, count: int) -> None:
        self._held[first : first + count] = b"\1" * count
        self._held_count += count
        if first == self._first_missing:
            following = self._held.find(0, first)
            self._first_missing = self._leaves if following < 0 else following


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs in ascending numbers."""
    start = count = 0
    for number in numbers:
        if count and number == start + count:
            count += 1
            continue
        if count:
            yield start, count
        start, count = number, 1
    if count:
        yield start, count


SMALL, BULK = 1, 10
"""Priorities: what is signed and small overtakes; what a budget counts."""


@dataclass(slots=True, eq=False)
class _Asked:
    """One page or run of leaves on its way.

    `number` is the order of asking; `later` counts answers to what was asked for after it.
    """

    fetch: BlobFetch
    page: int | None
    first: int
    count: int
    at: float
    bytes: int
    again: bool
    number: int
    later: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A chunk that was taken: the verified runs to write to its blob now."""

    fetch: BlobFetch
    runs: list[tuple[int, bytes]]


class Fetcher:
    """Several blobs through one window: the one of the highest priority first, so that a later one can overtake.

    The shell calls `wants` after every arrival and at `next_deadline`, and sends what it returns; it calls `on_time` at
    `next_deadline` and probes the link if that says so.

    Attributes:
        unknown: chunks whose handle or place nobody asked for.
        budget_bytes: what blobs of priority `BULK` and after may still bring, counting what is on its way; None: any.
    """

    LATER_ANSWERS = 3
    """So many answers to later questions mean that this one is lost."""
    PATIENCE_LIMIT_S = 60.0

    def __init__(self, window: Window | None = None, deadlines: Deadlines = DEADLINES) -> None:
        self.window = window or Window()
        self.unknown = 0
        self.budget_bytes: int | None = None
        self._deadlines = deadlines
        self._fetches: dict[bytes, tuple[int, BlobFetch]] = {}
        self._asked: list[_Asked] = []
        self._number = 0
        self._asked_before: set[tuple[Digest, int | None, int]] = set()
        self._heard_at: float | None = None
        self._stalls = 0
        self._corrupt_in_a_row = 0
        self._not_before = float("-inf")

    @property
    def outstanding_bytes(self) -> int:
        """What was asked for and may still come: what a later answer has overtaken no longer fills the window."""
        return sum(asked.bytes for asked in self._asked if not asked.later)

    @property
    def fetches(self) -> tuple[BlobFetch, ...]:
        """All blobs being fetched, first the ones asked for first."""
        return tuple(fetch for _, fetch in sorted(self._fetches.values(), key=lambda entry: entry[0]))

    def add(self, fetch: BlobFetch, priority: int = BULK) -> None:
        """Fetches this blob too; a lower number goes first, equals in the order they were added."""
        self._fetches[fetch.handle] = (priority, fetch)

    def remove(self, fetch: BlobFetch) -> None:
        """Asks for nothing more of this blob; what still comes of it is unknown. Idempotent."""
        self._fetches.pop(fetch.handle, None)
        self._asked = [asked for asked in self._asked if asked.fetch is not fetch]
        self._asked_before = {key for key in self._asked_before if key[0] != fetch.blob}

    def wants(self, now: float) -> list[Want]:
        """What to ask for now: at most one want per blob, as far as the window lets. Call again after arrivals."""
        if now < self._not_before:
            return []
        self._drop_lost(now)
        was_quiet = not self._asked
        wants: list[Want] = []
        credit = self.window.size_bytes - self.outstanding_bytes
        for fetch in self.fetches:
            pages, ranges, credit = self._choose(fetch, credit, now)
            if pages or ranges:
                wants.append(Want(handle=fetch.handle, blob=fetch.blob, pages=tuple(pages), ranges=tuple(ranges)))
        if wants and was_quiet:
            self._heard_at = now
        return wants

    def on_chunk(self, chunk: Chunk, now: float) -> Arrival | None:
        """Takes a chunk; None if nobody asked for it (counted).

        Raises:
            IntegrityError: it doesn't verify; it will be asked for again, ever more slowly if that goes on.
        """
        _, fetch = self._fetches.get(chunk.handle, (0, None))
        if fetch is None:
            self.unknown += 1
            return None
        self._heard_at = now
        self._stalls = 0
        answered = self._take_answered(fetch, chunk)
        try:
            runs = fetch.accept(chunk)
        except IntegrityError:
            self._corrupt_in_a_row += 1
            if self._corrupt_in_a_row > 3:
                self._not_before = now + min(2.0 ** (self._corrupt_in_a_row - 4), self.PATIENCE_LIMIT_S)
            raise
        self._corrupt_in_a_row = 0
        if answered is None:
            self.unknown += 1
        else:
            rtt_s = None if answered.again else now - answered.at
            self.window.on_chunk(rtt_s, len(chunk.bytes), self.outstanding_bytes, now)
        return Arrival(fetch, runs)

    def next_deadline(self, now: float) -> float | None:
        """When to call `on_time` and `wants` even if nothing comes; None: only after an arrival or `add`."""
        if now < self._not_before:
            return self._not_before
        if not self._asked or self._heard_at is None:
            return None
        return self._heard_at + self._patience_s(self._stalls)

    def on_time(self, now: float) -> bool:
        """Whether nothing at all came for too long: then everything is asked for again, and the link is to be probed.

        How long is too long doubles each time up to a minute: a hub that is away must not cost a metered link.
        """
        if not self._asked or self._heard_at is None or now < self._heard_at + self._patience_s(self._stalls):
            return False
        self._forget_asked(self._asked)
        self._heard_at = None
        self._stalls += 1
        return True

    def on_link_lost(self, draw: Callable[[], bytes] | None = None) -> None:
        """Nothing is on its way any more. Handles are for one connection: `draw` gives each blob a new one."""
        self._forget_asked(self._asked)
        self._heard_at = None
        self._stalls = 0
        self.window.on_link_lost()
        if draw is not None:
            entries = list(self._fetches.values())
            self._fetches.clear()
            for priority, fetch in entries:
                fetch.handle = draw()
                self._fetches[fetch.handle] = (priority, fetch)

    def on_peer_back(self) -> bool:
        """Whoever answers is known to be there now: what its silence had put off is asked for at the next `wants`.

        Returns whether there was such a silence.
        """
        if not self._stalls:
            return False
        self._forget_asked(self._asked)
        self._heard_at = None
        self._stalls = 0
        return True

    def _patience_s(self, stalls: int = 0) -> float:
        """How long nothing may come; a round trip that was measured in a bad hour stretches it to a minute at most."""
        rtt_s = self.window.rtt_s or 0.0
        patience = self._deadlines.chunk_base_s + self._deadlines.chunk_rtts * rtt_s
        return min(patience * 2.0 ** min(stalls, 16), self.PATIENCE_LIMIT_S)

    def _choose(self, fetch: BlobFetch, credit: int, now: float) -> tuple[list[int], list[tuple[int, int]], int]:
        """Pages and runs to ask for within the credit, and the credit left."""
        chunk_leaves = self.window.chunk_leaves
        priority = self._fetches[fetch.handle][0]
        if all(self._priority(asked) > priority for asked in self._asked):
            # Nothing as urgent is on its way: one chunk may go beyond a window that other blobs have filled.
            credit = max(credit, chunk_leaves * LEAF_BYTES)
        if self.budget_bytes is not None and priority >= BULK:
            left = self.budget_bytes - sum(asked.bytes for asked in self._asked if self._priority(asked) >= BULK)
            credit = min(credit, left)
            chunk_leaves = max(1, min(chunk_leaves, left // LEAF_BYTES))
        pages: list[int] = []
        ranges: list[tuple[int, int]] = []
        busy_leaves: set[int] = set()
        page_is_busy = False
        for asked in self._asked:
            if asked.fetch is fetch:
                page_is_busy |= asked.page is not None
                busy_leaves.update(range(asked.first, asked.first + asked.count))
        if fetch.is_paged and not page_is_busy:
            # The next page comes early enough that the window never runs dry.
            enough = 2 * self.window.size_bytes // LEAF_BYTES
            page = next(fetch.missing_pages(), None)
            if page is not None and sum(1 for _ in islice(fetch.missing(), enough)) < enough:
                size = fetch.page_bytes(page)
                if size <= credit:
                    pages.append(page)
                    credit -= size
                    self._ask(fetch, page, 0, 0, size, now)
        free = (leaf for leaf in fetch.missing() if leaf not in busy_leaves)
        for first, count in _cut(free, chunk_leaves):
            size = fetch.leaf_bytes(first, count)
            if size > credit or len(ranges) >= MAX_RANGES:
                break
            ranges.append((first, count))
            credit -= size
            self._ask(fetch, None, first, count, size, now)
        return pages, ranges, credit

    def _ask(self, fetch: BlobFetch, page: int | None, first: int, count: int, size: int, now: float) -> None:
        again = (fetch.blob, page, first) in self._asked_before
        self._number += 1
        self._asked.append(_Asked(fetch, page, first, count, now, size, again, self._number))

    def _priority(self, asked: _Asked) -> int:
        return self._fetches[asked.fetch.handle][0]

    def _take_answered(self, fetch: BlobFetch, chunk: Chunk) -> _Asked | None:
        """Removes what this chunk answers and returns the first of it; questions before it grow older."""
        first = 0 if chunk.offset is None else chunk.offset // LEAF_BYTES
        end = first + leaf_count(len(chunk.bytes))
        found: _Asked | None = None
        left: list[_Asked] = []
        for asked in self._asked:
            if asked.fetch is not fetch or asked.page != chunk.page:
                left.append(asked)
            elif chunk.page is not None or (first <= asked.first and asked.first + asked.count <= end):
                found = found or asked
                self._asked_before.discard((fetch.blob, asked.page, asked.first))
            elif first <= asked.first < end:
                # Whoever answers cuts smaller than we asked: the rest is still on its way.
                found = found or asked
                taken = end - asked.first
                asked.bytes -= fetch.leaf_bytes(asked.first, taken)
                asked.first, asked.count = end, asked.count - taken
                left.append(asked)
            else:
                left.append(asked)
        if found is not None:
            for asked in left:
                if asked.number < found.number:
                    asked.later += 1
        self._asked = left
        return found

    def _drop_lost(self, now: float) -> None:
        """What later answers have overtaken, or what is too old by itself, may be asked for again."""
        rtt_s = self.window.rtt_s or 0.0
        patience_s = self._patience_s()
        lost = [
            asked
            for asked in self._asked
            if (asked.later >= self.LATER_ANSWERS and now - asked.at > 1.25 * rtt_s) or now - asked.at > patience_s
        ]
        if lost:
            self._forget_asked(lost)

    def _forget_asked(self, lost: list[_Asked]) -> None:
        self._asked_before.update((asked.fetch.blob, asked.page, asked.first) for asked in lost)
        gone = {asked.number for asked in lost}
        self._asked = [asked for asked in self._asked if asked.number not in gone]


def _cut(leaves: Iterator[int], most: int) -> Iterator[tuple[int, int]]:
    """(first, count) of runs of ascending leaves, each at most `most` long."""
    first = count = 0
    for leaf in leaves:
        if count and (leaf != first + count or count == most):
            yield first, count
            count = 0
        if not count:
            first = leaf
        count += 1
    if count:
        yield first, count
