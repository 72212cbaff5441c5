"""Finds what stands unchanged in two blobs, wherever it moved to; pure over buffers, and deterministic.

Walks the new blob in steps of 4 KiB and compares at the shift of the last run, at shift 0 (counted from the front) and
at the shift that aligns the ends. Where none fits, it looks for content that moved: an *anchor* is a place chosen by
content alone, so it is chosen again wherever the content went; a bounded index of the old blob's anchors gives
candidate places. A run is extended byte by byte in both directions.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

Buffer = bytes | mmap
"""Slices give bytes."""

STEP_BYTES = 4096
_BUCKET_BYTES = 1 << 20
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
class Run:
    """Bytes that stand in both blobs."""

    new: int
    old: int
    length: int

    @property
    def shift(self) -> int:
        """Old offset minus new offset."""
        return self.old - self.new


class Search:
    """Finds runs of the new blob in the old one, front to back."""

    def __init__(self, old: Buffer, new: Buffer, min_run: int) -> None:
        self._old = old
        self._new = new
        self._min_run = min(min_run, len(new))
        self._thin = 4 * (1 + (len(old) >> 26))
        self._index: dict[int, int] | None = None
        self._shift = 0
        self._votes: dict[int, Counter[int]] = {}

    def runs(self) -> Iterator[Run]:
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
        yield Run(len(new), len(old), 0)

    def old_place(self, at: int, length: int) -> int:
        """Where the like of `new[at:at + length]` stands in the old blob: by its anchors, else by the last run."""
        votes: Counter[int] = Counter()
        for bucket in range(at // _BUCKET_BYTES, (at + length - 1) // _BUCKET_BYTES + 1):
            votes.update(self._votes.get(bucket, {}))
        shift = max(votes, key=lambda shift: (votes[shift], -abs(shift), shift)) if votes else self._shift
        return at + shift

    def _run_at(self, at: int, floor: int) -> Run | None:
        """The run that covers the step at `at`, or part of it; never reaches below `floor`."""
        old, new = self._old, self._new
        step = new[at : at + STEP_BYTES]
        for shift in (self._shift, 0, len(old) - len(new)):
            if at + shift >= 0 and old[at + shift : at + shift + len(step)] == step:
                return self._extended(at, at + shift, floor)
        best: Run | None = None
        for place, key in _anchors(new, at, at + STEP_BYTES, self._thin):
            if best is not None and place < best.new + best.length:
                continue
            there = self._indexed().get(key)
            if there is None or old[there : there + _KEY_BYTES] != new[place : place + _KEY_BYTES]:
                continue
            votes = self._votes.setdefault(place // _BUCKET_BYTES, Counter())
            if there - place in votes or len(votes) < _MAX_SHIFTS:
                votes[there - place] += 1
            run = self._extended(place, there, floor)
            if best is None or run.length > best.length:
                best = run
            if best.length >= self._min_run:
                break
        return best

    def _extended(self, at: int, there: int, floor: int) -> Run:
        """The run through `new[at]` = `old[there]`, as long as it can be."""
        back = _common(self._new, at, self._old, there, min(at - floor, there), forward=False)
        ahead = _common(self._new, at, self._old, there, min(len(self._new) - at, len(self._old) - there), forward=True)
        return Run(at - back, there - back, back + ahead)

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
            size = min(size * 2, _BUCKET_BYTES)
        elif size == 1:
            break
        else:
            # The first difference is within `size`: look at half of it, never wider again.
            most = agreed + size
            size //= 2
    return agreed
