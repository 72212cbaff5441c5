"""Makes a recipe and a patch that rebuild one blob from another; pure over buffers, and deterministic.

How it decides, in three steps:

1. *Runs*: what stands unchanged in both. Walks the new blob in steps of 4 KiB and compares at the shift of the last
   run, at shift 0 (counted from the front) and at the shift that aligns the ends. Where none fits, it looks for content
   that moved: an *anchor* is a place chosen by content alone, so it is chosen again wherever the content went; a
   bounded index of the old blob's anchors gives candidate places. A run is extended byte by byte in both directions.
2. *Pieces*: runs of 32 KiB and more become copies; the rest is cut into pieces of about 1 MiB. A shorter run is worth
   less than the two segments it would cost, and the dictionary below finds it anyway.
3. *Operations*: each piece is compressed alone and with the aligned window of the old blob as dictionary; the smaller
   is rebuilt, compared, and kept.

Memory: the two buffers (may be mmaps), the index (at most 2^18 anchors), one piece with its window, and the patch.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from mmap import mmap

import zstandard

from heliograph.blob import Digest, describe, short_digest
from heliograph.delta.patch import dictionary, rebuild_segment
from heliograph.delta.recipe import COPY, DICT, FULL, MAX_SEGMENT_BYTES, Recipe, Segment, max_old_bytes
from heliograph.errors import ConfigError
from heliograph.wire import compress

Buffer = bytes | mmap
"""Slices give bytes."""
Progress = Callable[[int, int], None]
"""(bytes of the new blob done, bytes of the new blob)."""

MAX_TARGET_BYTES = 32 << 30
STEP_BYTES = 4096
MIN_RUN_BYTES = 32 << 10
PIECE_BYTES = 1 << 20
WINDOW_BYTES = 4 << 20
"""Old bytes given to one piece as dictionary: within what a recipe allows, and small enough for a 1 GB gateway."""
LEVEL = 19
_MAX_ANCHORS = 1 << 18
_KEY_BYTES = 32
_MAX_SHIFTS = 64
# Two neighbouring bytes of these classes: one place in 64 of random bytes, and common in text ("ed", "el", "ut").
_ANCHOR = re.compile(
    b"[" + b"".join(b"\\x%02x" % x for x in range(5, 256, 8)) + b"][" + b"".join(
        b"\\x%02x" % x for x in range(4, 256, 8)
    ) + b"]"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes that stand in both blobs."""

    new: int
    old: int
    length: int

    @property
    def shift(self) -> int:
        """Old offset minus new offset."""
        return self.old - self.new


def make(old: Buffer, new: Buffer, progress: Progress | None = None) -> tuple[Recipe, bytes]:
    """The recipe that rebuilds `new` from `old`, and its patch. The same inputs and codec versions give the same bytes.

    Raises:
        ConfigError: `new` is larger than 32 GiB.
    """
    if len(new) > MAX_TARGET_BYTES:
        raise ConfigError(f"a target of {len(new)} bytes exceeds {MAX_TARGET_BYTES}: ship it in full")
    search = _Search(old, new, max(MIN_RUN_BYTES, len(new) >> 11))
    # Bounds on segments hold up to 32 GiB: at most 2^11 runs and as many gaps, and one segment per piece.
    piece_bytes = PIECE_BYTES if len(new) <= 4 << 30 else MAX_SEGMENT_BYTES
    segments: list[Segment] = []
    patch = bytearray()
    done = 0
    for run in search.runs():
        for at, length in _pieces(done, run.new, piece_bytes):
            _append(segments, patch, *_best(old, new[at : at + length], search.old_place(at, length)))
            _tell(progress, at + length, len(new))
        for at, length in _pieces(run.new, run.new + run.length, MAX_SEGMENT_BYTES):
            out = new[at : at + length]
            _append(segments, patch, _segment(out, COPY, ((at + run.shift, length),), 0), b"")
        done = run.new + run.length
        _tell(progress, done, len(new))
    base, base_length = _name(old)
    target, target_length = _name(new)
    patch_bytes = bytes(patch)
    patch_sha256, patch_pages = describe(patch_bytes)
    recipe = Recipe(
        base, base_length, target, target_length, len(patch_bytes), patch_sha256, patch_pages, tuple(segments)
    )
    return recipe, patch_bytes


def _tell(progress: Progress | None, done: int, whole: int) -> None:
    if progress is not None:
        progress(done, whole)


def _name(buffer: Buffer) -> tuple[Digest, int]:
    """Digest and length, read in pieces so that an mmap isn't copied."""
    sha = hashlib.sha256()
    for at in range(0, len(buffer), PIECE_BYTES):
        sha.update(buffer[at : at + PIECE_BYTES])
    return Digest(sha.digest()), len(buffer)


def _pieces(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of nearly equal pieces of at most `most` bytes."""
    count = -(-(end - start) // most)
    for index in range(count):
        at = start + (end - start) * index // count
        yield at, start + (end - start) * (index + 1) // count - at


def _segment(out: bytes, op: int, spans: tuple[tuple[int, int], ...], patch_length: int) -> Segment:
    """A segment whose patch offset is not known yet."""
    return Segment(len(out), op, spans, (0, patch_length), short_digest(out))


def _append(segments: list[Segment], patch: bytearray, segment: Segment, patch_bytes: bytes) -> None:
    segments.append(replace(segment, patch=(len(patch), len(patch_bytes))))
    patch += patch_bytes


def _best(old: Buffer, out: bytes, old_place: int) -> tuple[Segment, bytes]:
    """The smallest way to make `out`, rebuilt and compared; `old_place` is where in the old blob its like stands."""
    frame = compress(out, LEVEL)
    winner = _segment(out, FULL, (), len(frame)), frame
    slack = max(min(WINDOW_BYTES, max_old_bytes(len(out))) - len(out), 0) // 2
    start = max(0, min(old_place - slack, len(old) - len(out) - 2 * slack))
    window = old[start : start + len(out) + 2 * slack]
    if window:
        level = zstandard.ZstdCompressionParameters.from_level(
            LEVEL,
            source_size=len(out),
            dict_size=len(window),
            window_log=max(10, (len(out) + len(window)).bit_length()),
        )
        codec = zstandard.ZstdCompressor(compression_params=level, dict_data=dictionary(window))
        frame = codec.compress(out)
        if len(frame) < len(winner[1]):
            winner = _segment(out, DICT, ((start, len(window)),), len(frame)), frame
    made = rebuild_segment(winner[0], lambda at, length: old[at : at + length], winner[1])
    if made != out:
        raise AssertionError("zstd gave back other bytes than it took")
    return winner


class _Search:
    """Finds runs of the new blob in the old one, front to back."""

    def __init__(self, old: Buffer, new: Buffer, min_run: int) -> None:
        self._old = old
        self._new = new
        self._min_run = min(min_run, len(new))
        self._thin = 4 * (1 + (len(old) >> 26))
        self._index: dict[int, int] | None = None
        self._shift = 0
        self._votes: dict[int, Counter[int]] = {}

    def runs(self) -> Iterator[_Run]:
        """Runs in order, without overlap; an empty one at the end stands for the rest."""
        old, new = self._old, self._new
        at = floor = 0
        while at < len(new):
            run = self._run_at(at, floor)
            if run is None or run.length < self._min_run:
                # A run too short to keep is stepped over, so that it isn't extended again at each step.
                at = max(at + STEP_BYTES, 0 if run is None else run.new + run.length)
                continue
            yield run
            self._shift = run.shift
            at = floor = run.new + run.length
        yield _Run(len(new), len(old), 0)

    def old_place(self, at: int, length: int) -> int:
        """Where the like of `new[at:at + length]` stands in the old blob: by its anchors, else by the last run."""
        votes: Counter[int] = Counter()
        for bucket in range(at // PIECE_BYTES, (at + length - 1) // PIECE_BYTES + 1):
            votes.update(self._votes.get(bucket, {}))
        shift = max(votes, key=lambda shift: (votes[shift], -abs(shift), shift)) if votes else self._shift
        return at + shift

    def _run_at(self, at: int, floor: int) -> _Run | None:
        """The run that covers the step at `at`, or part of it; never reaches below `floor`."""
        old, new = self._old, self._new
        step = new[at : at + STEP_BYTES]
        for shift in (self._shift, 0, len(old) - len(new)):
            if at + shift >= 0 and old[at + shift : at + shift + len(step)] == step:
                return self._extended(at, at + shift, floor)
        best: _Run | None = None
        for place, key in _anchors(new, at, at + STEP_BYTES, self._thin):
            if best is not None and place < best.new + best.length:
                continue
            there = self._indexed().get(key)
            if there is None or old[there : there + _KEY_BYTES] != new[place : place + _KEY_BYTES]:
                continue
            votes = self._votes.setdefault(place // PIECE_BYTES, Counter())
            if there - place in votes or len(votes) < _MAX_SHIFTS:
                votes[there - place] += 1
            run = self._extended(place, there, floor)
            if best is None or run.length > best.length:
                best = run
            if best.length >= self._min_run:
                break
        return best

    def _extended(self, at: int, there: int, floor: int) -> _Run:
        """The run through `new[at]` = `old[there]`, as long as it can be."""
        back = _common(self._new, at, self._old, there, min(at - floor, there), forward=False)
        ahead = _common(self._new, at, self._old, there, min(len(self._new) - at, len(self._old) - there), forward=True)
        return _Run(at - back, there - back, back + ahead)

    def _indexed(self) -> dict[int, int]:
        """Key of an anchor to its first place in the old blob; made when first needed."""
        if self._index is None:
            self._index = {}
            for place, key in _anchors(self._old, 0, len(self._old), self._thin):
                self._index.setdefault(key, place)
                if len(self._index) == _MAX_ANCHORS:
                    break
        return self._index


def _anchors(buffer: Buffer, start: int, end: int, thin: int) -> Iterator[tuple[int, int]]:
    """(place, key) of anchors in a range: one of `thin` of the pattern's hits, chosen by the 32 bytes that follow."""
    for hit in _ANCHOR.finditer(buffer, start, min(end + 1, len(buffer))):
        place = hit.start()
        text = buffer[place : place + _KEY_BYTES]
        key = zlib.crc32(text)
        if len(text) == _KEY_BYTES and key % thin == 0:
            yield place, key


def _common(one: Buffer, at: int, two: Buffer, there: int, most: int, *, forward: bool) -> int:
    """How many bytes agree from `one[at]` and `two[there]` on, or before them; at most `most`."""
    agreed, size = 0, 256
    while agreed < most:
        size = min(size, most - agreed)
        if forward:
            same = one[at + agreed : at + agreed + size] == two[there + agreed : there + agreed + size]
        else:
            same = one[at - agreed - size : at - agreed] == two[there - agreed - size : there - agreed]
        if same:
            agreed += size
            size = min(size * 2, PIECE_BYTES)
        elif size == 1:
            break
        else:
            # The first difference is within `size`: look at half of it, never wider again.
            most = agreed + size
            size //= 2
    return agreed
