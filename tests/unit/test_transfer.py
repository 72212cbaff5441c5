"""The transfer core over a simulated road that loses, repeats, reorders, corrupts and cuts, in virtual time."""

import heapq
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from heliograph.blob import LEAF_BYTES, PAGE_SPAN_BYTES, describe, page_of
from heliograph.documents import MAX_CHUNK_BYTES, Chunk, Want
from heliograph.errors import IntegrityError
from heliograph.names import Digest
from heliograph.sender import Sender
from heliograph.transfer import MAX_SMALL_BYTES, BlobFetch, Fetcher
from heliograph.window import Window

HANDLE = b"\0\0\0\1"


def blob_fetch(data: bytes, handle: bytes = HANDLE, *, paged: bool = True) -> BlobFetch:
    digest, pages = describe(data)
    return BlobFetch(digest, len(data), pages if paged else (), handle)


def page_bytes(data: bytes, index: int) -> bytes:
    return page_of(data[index * PAGE_SPAN_BYTES : (index + 1) * PAGE_SPAN_BYTES])


def page_chunk(data: bytes, index: int, handle: bytes = HANDLE) -> Chunk:
    return Chunk(handle=handle, page=index, bytes=page_bytes(data, index))


def run_chunk(data: bytes, first: int, count: int, handle: bytes = HANDLE) -> Chunk:
    offset = first * LEAF_BYTES
    return Chunk(handle=handle, offset=offset, bytes=data[offset : offset + count * LEAF_BYTES])


# --- one blob -----------------------------------------------------------------------------------------------------


def test_a_leaf_is_returned_once_and_its_repetition_is_counted_as_resent() -> None:
    data = Random(1).randbytes(3 * LEAF_BYTES + 100)
    fetch = blob_fetch(data)
    assert fetch.accept(page_chunk(data, 0)) == []
    assert fetch.accept(run_chunk(data, 1, 2)) == [(LEAF_BYTES, data[LEAF_BYTES : 3 * LEAF_BYTES])]
    assert fetch.accept(run_chunk(data, 1, 2)) == []
    assert fetch.bytes_resent == 2 * LEAF_BYTES
    assert fetch.accept(run_chunk(data, 0, 4)) == [(0, data[:LEAF_BYTES]), (3 * LEAF_BYTES, data[3 * LEAF_BYTES :])]
    assert fetch.complete
    assert fetch.accept(page_chunk(data, 0)) == []
    assert fetch.bytes_resent == 4 * LEAF_BYTES + 4 * 16


def test_one_wrong_leaf_spoils_its_chunk_and_changes_nothing() -> None:
    data = Random(2).randbytes(4 * LEAF_BYTES)
    fetch = blob_fetch(data)
    fetch.accept(page_chunk(data, 0))
    wrong = bytearray(data)
    wrong[2 * LEAF_BYTES + 7] ^= 1
    with pytest.raises(IntegrityError, match="leaf 2 of"):
        fetch.accept(run_chunk(bytes(wrong), 0, 4))
    assert list(fetch.missing()) == [0, 1, 2, 3]
    assert fetch.bytes_corrupt == 4 * LEAF_BYTES
    assert fetch.accept(run_chunk(data, 0, 4)) == [(0, data)]


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        (0, 0, "does not fit"),
        (0, LEAF_BYTES - 1, "not whole leaves"),
        (4 * LEAF_BYTES, LEAF_BYTES, "does not fit"),
        (1 << 61, LEAF_BYTES, "does not fit"),
        (0, MAX_CHUNK_BYTES + LEAF_BYTES, "does not fit"),
        (0, LEAF_BYTES, "does not match its page"),
    ],
)
def test_a_chunk_that_cannot_be_part_of_the_blob_is_refused(offset: int, length: int, reason: str) -> None:
    data = Random(3).randbytes(3 * LEAF_BYTES + 5)
    fetch = blob_fetch(data)
    fetch.accept(page_chunk(data, 0))
    with pytest.raises(IntegrityError, match=reason):
        fetch.accept(Chunk(handle=HANDLE, offset=offset, bytes=bytes(length)))
    assert fetch.bytes_held == 0


def test_a_leaf_before_its_page_is_refused_because_it_cannot_be_verified() -> None:
    data = Random(4).randbytes(LEAF_BYTES)
    with pytest.raises(IntegrityError, match="does not match its page"):
        blob_fetch(data).accept(run_chunk(data, 0, 1))


@pytest.mark.parametrize("index", [0, 1, 7])
def test_a_forged_page_is_refused_at_any_place(index: int) -> None:
    fetch = blob_fetch(Random(5).randbytes(PAGE_SPAN_BYTES + 1))
    with pytest.raises(IntegrityError, match=f"page {index}"):
        fetch.accept(Chunk(handle=HANDLE, page=index, bytes=bytes(4096)))
    assert not fetch.pages_to_keep()


@pytest.mark.parametrize(("length", "pages"), [(PAGE_SPAN_BYTES + 1, 1), (10, 2), (MAX_SMALL_BYTES + 1, 0), (-1, 0)])
def test_a_length_that_contradicts_the_pages_is_refused(length: int, pages: int) -> None:
    with pytest.raises(IntegrityError, match=r"names \d pages|names no pages"):
        BlobFetch(Digest(bytes(32)), length, (bytes(16),) * pages, HANDLE)


def test_restore_keeps_what_verifies_and_asks_only_for_the_rest() -> None:
    data = Random(6).randbytes(2 * PAGE_SPAN_BYTES + 3 * LEAF_BYTES)
    kept = bytearray(data)
    kept[5 * LEAF_BYTES] ^= 1  # leaf 5 is rotten
    kept = kept[: PAGE_SPAN_BYTES + 2 * LEAF_BYTES + 9]  # leaf 258 is torn, what follows was never written
    pages = {0: page_bytes(data, 0), 1: page_bytes(data, 1), 2: bytes(48), 9: b""}
    fetch = blob_fetch(data)
    held = fetch.restore(pages, lambda offset, length: bytes(kept[offset : offset + length]))
    assert held == 255 + 2
    assert list(fetch.missing()) == [5, *range(258, 512)]  # page 2 was forged: its leaves wait for it
    assert list(fetch.missing_pages()) == [2]
    assert fetch.pages_to_keep() == []
    assert not fetch.has_range(4 * LEAF_BYTES, LEAF_BYTES + 1)
    assert fetch.has_range(4 * LEAF_BYTES, LEAF_BYTES)
    assert fetch.has_range(0, 0)
    assert not fetch.has_range(3 * PAGE_SPAN_BYTES, 1)


def test_a_blob_without_pages_is_given_out_only_when_its_digest_fits_and_else_starts_over() -> None:
    data = Random(7).randbytes(2 * LEAF_BYTES + 17)
    fetch = blob_fetch(data, paged=False)
    assert fetch.accept(run_chunk(bytes(len(data)), 0, 1)) == []
    assert fetch.accept(run_chunk(data, 1, 2)) == []
    with pytest.raises(IntegrityError, match="does not match its digest"):
        fetch.finish()
    assert list(fetch.missing()) == [0, 1, 2]
    fetch.accept(run_chunk(data, 0, 3))
    assert fetch.finish() == data


def test_an_empty_blob_is_complete_at_once() -> None:
    fetch = blob_fetch(b"")
    assert fetch.complete
    assert fetch.finish() == b""


# --- the window ---------------------------------------------------------------------------------------------------


def drive(window: Window, rtts: list[float], start: float = 0.0, chunk: int = 8192) -> None:
    now = start
    for rtt in rtts:
        now += 0.2
        window.on_chunk(rtt, chunk, window.size_bytes, now)


def test_the_window_grows_without_delay_up_to_its_bound() -> None:
    window = Window()
    drive(window, [0.3] * 100)
    assert window.size_bytes == Window.LARGEST_BYTES


def test_the_window_shrinks_with_delay_down_to_its_bound_and_not_faster_than_once_a_round_trip() -> None:
    window = Window()
    drive(window, [0.3] * 100)
    window.on_chunk(2.0, 8192, window.size_bytes, 100.0)
    first = window.size_bytes
    assert first < Window.LARGEST_BYTES
    window.on_chunk(2.0, 8192, window.size_bytes, 101.0)
    assert window.size_bytes == first
    drive(window, [2.0] * 300, start=102.0)
    assert window.size_bytes == Window.SMALLEST_BYTES


def test_an_unused_window_does_not_grow() -> None:
    window = Window()
    for turn in range(50):
        window.on_chunk(0.3, 8192, 0, float(turn))
    assert window.size_bytes == Window.SMALLEST_BYTES


def test_a_slower_road_becomes_the_measure_after_ten_minutes() -> None:
    window = Window()
    drive(window, [0.1] * 10)
    drive(window, [1.0] * 3100, start=10.0)
    assert window.smallest_s == 1.0


# --- the fetcher over a simulated road ------------------------------------------------------------------------------


@dataclass
class Road:
    """What lies between asker and hub; probabilities are per message, times in seconds."""

    rate: float = 1e9
    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    repeat: float = 0.0
    corrupt: float = 0.0
    cut_every: float = 0.0
    buffer: int = 1 << 30


@dataclass
class World:
    """A fetcher, a sender and a road, in virtual time."""

    road: Road
    seed: int
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    now: float = 0.0
    free_at: float = 0.0
    bytes_sent: int = 0
    stalls: int = 0
    corrupt: int = 0

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.sender: Sender[str] = Sender()
        self.fetcher = Fetcher()
        self.files: dict[bytes, bytearray] = {}
        self.done_at: dict[bytes, float] = {}
        self.events: list[tuple[float, int, str, object]] = []
        self.count = 0
        self.next_cut = self.road.cut_every

    def fetch(self, data: bytes, *, paged: bool = True, priority: int = 10) -> BlobFetch:
        fetch = blob_fetch(data, self.rng.randbytes(4), paged=paged)
        self.blobs[fetch.blob] = data
        self.files[fetch.blob] = bytearray(len(data))
        self.fetcher.add(fetch, priority)
        return fetch

    def later(self, at: float, kind: str, what: object) -> None:
        self.count += 1
        heapq.heappush(self.events, (at, self.count, kind, what))

    def pass_road(self, kind: str, message: object, size: int) -> None:
        if self.rng.random() < self.road.loss or (self.free_at - self.now) * self.road.rate > self.road.buffer:
            return
        self.free_at = max(self.free_at, self.now) + size / self.road.rate
        for _ in range(2 if self.rng.random() < self.road.repeat else 1):
            self.later(self.free_at + self.road.delay + self.rng.random() * self.road.jitter, kind, message)

    def ask(self) -> None:
        for want in self.fetcher.wants(self.now):
            held = next(fetch for fetch in self.fetcher.fetches if fetch.handle == want.handle)
            for page in want.pages:
                assert not held.has_page(page), "asked for a page it holds"
            for first, count in want.ranges:
                assert not any(held.has_leaf(leaf) for leaf in range(first, first + count)), "asked for a leaf it holds"
            if self.rng.random() >= self.road.loss:
                self.later(self.now + self.road.delay, "want", Want.decode(want.encode()))

    def run(self, until: float = 20_000) -> None:
        """Runs until every blob is complete."""
        self.ask()
        while any(not fetch.complete for fetch in self.fetcher.fetches):
            deadline = self.fetcher.next_deadline(self.now)
            if deadline is not None and (not self.events or deadline < self.events[0][0]):
                self.now = max(self.now, deadline)
                self.stalls += self.fetcher.on_time(self.now)
            else:
                assert self.events, f"nothing is on its way and nothing is waited for at {self.now}"
                self.now, _, kind, message = heapq.heappop(self.events)
                if kind == "want":
                    assert isinstance(message, Want)
                    self.answer(message)
                elif kind == "call":
                    assert callable(message)
                    message()
                else:
                    assert isinstance(message, Chunk)
                    self.arrive(message)
            assert self.now < until, f"not complete after {until} s"
            if self.road.cut_every and self.now >= self.next_cut:
                self.next_cut = self.now + self.road.cut_every
                self.events = [event for event in self.events if event[2] == "call"]
                self.free_at = self.now
                self.fetcher.on_link_lost(lambda: self.rng.randbytes(4))
                self.sender.forget("node")
            self.ask()
        for fetch in self.fetcher.fetches:
            data = fetch.finish() if not fetch.is_paged else bytes(self.files[fetch.blob])
            assert data == self.blobs[fetch.blob]

    def answer(self, want: Want) -> None:
        self.sender.take("node", want, self.now)
        while (send := self.sender.next(self.now)) is not None:
            data = self.blobs[send.blob]
            if send.page is not None:
                chunk = page_chunk(data, send.page, send.handle)
            else:
                chunk = run_chunk(data, send.offset // LEAF_BYTES, send.length // LEAF_BYTES, send.handle)
            self.bytes_sent += len(chunk.bytes)
            if self.rng.random() < self.road.corrupt:
                spoiled = bytearray(chunk.bytes)
                spoiled[self.rng.randrange(len(spoiled))] ^= 1 << self.rng.randrange(8)
                chunk = chunk.model_copy(update={"bytes": bytes(spoiled)})
            self.pass_road("chunk", chunk, len(chunk.bytes) + 80)

    def arrive(self, chunk: Chunk) -> None:
        try:
            arrival = self.fetcher.on_chunk(chunk, self.now)
        except IntegrityError:
            self.corrupt += 1
            return
        if arrival is None:
            return
        for offset, data in arrival.runs:
            self.files[arrival.fetch.blob][offset : offset + len(data)] = data
        if arrival.fetch.complete:
            self.done_at.setdefault(arrival.fetch.blob, self.now)


roads = st.builds(
    Road,
    rate=st.sampled_from([8e3, 32e3, 125e3, 1e7]),
    delay=st.sampled_from([0.0, 0.05, 0.6]),
    jitter=st.sampled_from([0.0, 0.02, 1.0]),
    loss=st.sampled_from([0.0, 0.02, 0.3]),
    repeat=st.sampled_from([0.0, 0.3]),
    corrupt=st.sampled_from([0.0, 0.05, 0.3]),
    cut_every=st.sampled_from([0.0, 3.0, 40.0]),
    buffer=st.sampled_from([20_000, 1 << 30]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(roads, st.integers(0, 1 << 32), st.sampled_from([1, 4095, 4096, 70_001, (1 << 20) + 5000]))
@example(Road(rate=8e3, delay=0.6, jitter=1.0, loss=0.3, repeat=0.3, corrupt=0.3, cut_every=40.0), 1, 300_000)
def test_a_fetch_completes_with_exactly_its_bytes_on_any_road(road: Road, seed: int, length: int) -> None:
    note(f"seed {seed}, {road}")
    world = World(road, seed)
    rng = Random(seed)
    world.fetch(rng.randbytes(length))
    world.fetch(rng.randbytes(min(length, 30_000)), priority=1)
    world.run()


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_road_sends_nothing_twice_and_asks_once(seed: int) -> None:
    world = World(Road(rate=32e3, delay=0.15), seed)
    fetch = world.fetch(Random(seed).randbytes(2 * PAGE_SPAN_BYTES + 1))
    world.run()
    assert fetch.bytes_resent == 0
    assert world.fetcher.unknown == 0
    assert world.bytes_sent == fetch.length + sum(fetch.page_bytes(index) for index in range(3))


@pytest.mark.parametrize(
    ("road", "share"),
    [
        (Road(rate=8_000, delay=0.3), 0.97),
        (Road(rate=32_000, delay=0.15), 0.97),
        (Road(rate=32_000, delay=0.15, loss=0.02), 0.95),
        (Road(rate=125_000, delay=0.05), 0.97),
    ],
    ids=["64 kbit/s", "256 kbit/s", "256 kbit/s with loss", "1 Mbit/s"],
)
def test_the_link_is_kept_full(road: Road, share: float) -> None:
    world = World(road, 11)
    fetch = world.fetch(Random(11).randbytes(3 * PAGE_SPAN_BYTES))
    world.run()
    assert fetch.length / world.now / road.rate > share
    assert fetch.bytes_resent < fetch.length * 0.01


@pytest.mark.parametrize(("rate", "delay", "most_s"), [(32_000, 0.15, 1.0), (8_000, 0.3, 3.0), (125_000, 0.05, 0.6)])
def test_bulk_leaves_the_queue_short_for_what_is_urgent(rate: float, delay: float, most_s: float) -> None:
    world = World(Road(rate=rate, delay=delay), 5)
    world.fetch(Random(5).randbytes(2 * PAGE_SPAN_BYTES))
    queues: list[float] = []

    def look() -> None:
        queues.append(max(0.0, world.free_at - world.now))
        world.later(world.now + 0.5, "call", look)

    world.later(10.0, "call", look)
    world.run()
    assert max(queues) + delay < most_s


def test_loss_without_delay_does_not_shrink_the_window() -> None:
    world = World(Road(rate=1e6, delay=0.3, loss=0.05), 3)
    world.fetch(Random(3).randbytes(4 * PAGE_SPAN_BYTES))
    world.run()
    assert world.fetcher.window.size_bytes == Window.LARGEST_BYTES


def test_an_urgent_blob_overtakes_the_bulk() -> None:
    world = World(Road(rate=32e3, delay=0.15), 4)
    bulk = world.fetch(Random(4).randbytes(PAGE_SPAN_BYTES))
    asked_at = 10.0
    urgent: list[BlobFetch] = []
    world.later(asked_at, "call", lambda: urgent.append(world.fetch(b"m" * 5000, paged=False, priority=0)))
    world.run()
    assert world.done_at[urgent[0].blob] - asked_at < 1.5 < 20.0 < world.done_at[bulk.blob] - asked_at


def test_an_urgent_blob_is_asked_for_at_once_though_the_window_is_full() -> None:
    bulk, urgent = blob_fetch(b"b" * 500_000, b"bulk", paged=False), blob_fetch(b"u" * 9000, b"urge", paged=False)
    fetcher = Fetcher()
    fetcher.add(bulk)
    assert sum(count for want in fetcher.wants(0.0) for _, count in want.ranges) == 4
    assert fetcher.wants(0.0) == []
    fetcher.add(urgent, priority=0)
    assert [(want.handle, want.ranges) for want in fetcher.wants(0.0)] == [(b"urge", ((0, 2),))]
    assert fetcher.wants(0.0) == []  # by one chunk, no more


def test_silence_is_waited_out_ever_more_slowly_and_asks_the_shell_to_probe() -> None:
    data = Random(8).randbytes(100_000)
    fetcher = Fetcher()
    fetcher.add(blob_fetch(data))
    now, gaps = 0.0, []
    for _ in range(8):
        assert len(fetcher.wants(now)) == 1
        assert fetcher.wants(now) == []
        assert not fetcher.on_time(now + 4.9)
        deadline = fetcher.next_deadline(now)
        assert deadline is not None
        gaps.append(deadline - now)
        now = deadline
        assert fetcher.on_time(now)
    assert gaps == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0, 60.0]
    fetcher.wants(now)
    fetcher.on_chunk(page_chunk(data, 0), now + 1)
    fetcher.wants(now + 1)
    assert fetcher.next_deadline(now + 1) == now + 1 + 5.0


def test_a_peer_that_is_known_to_be_back_is_asked_at_once() -> None:
    fetcher = Fetcher()
    fetcher.add(blob_fetch(Random(8).randbytes(100_000)))
    now = 0.0
    for _ in range(6):
        fetcher.wants(now)
        deadline = fetcher.next_deadline(now)
        assert deadline is not None
        now = deadline
        fetcher.on_time(now)
    assert len(fetcher.wants(now)) == 1
    assert fetcher.next_deadline(now) == now + 60.0
    assert fetcher.on_peer_back()
    assert len(fetcher.wants(now + 1)) == 1
    assert fetcher.next_deadline(now + 1) == now + 6.0
    assert not fetcher.on_peer_back(), "there was no silence: nothing is asked twice"
    assert fetcher.wants(now + 1) == []


def test_round_trips_of_a_bad_hour_put_nothing_off_for_more_than_a_minute() -> None:
    data = Random(11).randbytes(3 * PAGE_SPAN_BYTES)
    fetcher = Fetcher()
    fetcher.add(blob_fetch(data))
    fetcher.wants(0.0)
    fetcher.on_chunk(page_chunk(data, 0), 0.1)
    (want,) = fetcher.wants(0.1)
    now = 90.0  # the link stood still and came back, nothing was lost but time
    for first, count in want.ranges:
        fetcher.on_chunk(run_chunk(data, first, count), now)
    assert fetcher.window.rtt_s is not None and fetcher.window.rtt_s > 15
    assert fetcher.wants(now)
    deadline = fetcher.next_deadline(now)
    assert deadline is not None and deadline <= now + Fetcher.PATIENCE_LIMIT_S
    assert fetcher.on_time(deadline)
    assert fetcher.wants(deadline), "and what was lost then is asked for again"


def test_a_peer_that_sends_only_rubbish_is_asked_ever_more_slowly() -> None:
    world = World(Road(rate=1e6, corrupt=1.0), 9)
    world.fetch(Random(9).randbytes(50_000))
    with pytest.raises(AssertionError, match="not complete after 600"):
        world.run(until=600)
    assert 10 < world.corrupt < 30


def test_after_a_lost_link_old_handles_are_unknown_and_everything_is_asked_again() -> None:
    data = Random(10).randbytes(100_000)
    fetcher = Fetcher()
    fetch = blob_fetch(data)
    fetcher.add(fetch)
    fetcher.wants(0.0)
    fetcher.on_link_lost(lambda: b"new!")
    assert fetcher.on_chunk(page_chunk(data, 0), 1.0) is None
    assert fetcher.unknown == 1
    assert [want.handle for want in fetcher.wants(1.0)] == [b"new!"]
    fetcher.remove(fetch)
    assert fetcher.wants(2.0) == []
    assert fetcher.next_deadline(2.0) is None


def test_a_removed_blob_leaves_no_old_silence_behind() -> None:
    fetcher = Fetcher()
    first = blob_fetch(b"a" * 5000, b"aaaa")
    fetcher.add(first)
    fetcher.wants(0.0)
    fetcher.remove(first)
    fetcher.add(blob_fetch(b"b" * 5000, b"bbbb"))
    fetcher.wants(100.0)
    assert not fetcher.on_time(100.0)
    assert fetcher.next_deadline(100.0) == 105.0
