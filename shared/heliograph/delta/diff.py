"""Makes a recipe and a patch that rebuild one blob from another; pure over buffers, and deterministic.

How it decides, in three steps:

1. *Spans*: `heliograph.delta.align` says where the like of each part of the new blob stands, and what its elements are.
2. *Parts*: `heliograph.delta.cuts` finds what is unchanged, and cuts the rest into segments of up to 4 MiB.
3. *Operations*: `heliograph.delta.trial` makes each segment in the ways that may win, and checks the smallest. Content
   of no known type is also looked at as a whole, by bsdiff4 where that is installed and a dictionary shows that the old
   blob has its like.

Memory: the two buffers (may be mmaps), what aligning takes, 96 MiB for the segment in hand, and the patch. bsdiff4
takes 17 bytes for each byte of the old blob, of which it gets 32 MiB at most.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from heliograph.blob import Digest, describe, short_digest
from heliograph.delta import trial
from heliograph.delta.align import aligned
from heliograph.delta.buffer import Buffer
from heliograph.delta.cuts import Part, Range, cut
from heliograph.delta.edits import Edit
from heliograph.delta.recipe import COPY, MAX_OLD_RANGES, Recipe, Segment, max_old_bytes
from heliograph.delta.trial import Made
from heliograph.errors import ConfigError

Progress = Callable[[int, int], None]
"""(bytes of the new blob done, bytes of the new blob)."""

MAX_TARGET_BYTES = 32 << 30
SORTED_BYTES = 32 << 20
"""The most of an old blob, and of a new one, that bsdiff4 is given at once."""
_READ_BYTES = 1 << 20
_LIKE = 0.9
"""A dictionary of old bytes that saves a tenth says that there is a like."""
_NEARLY_NOTHING = 400
"""What costs less than this part of its bytes isn't worth another look."""
_SMALL_BYTES = 4096


def make(old: Buffer, new: Buffer, progress: Progress | None = None) -> tuple[Recipe, bytes]:
    """The recipe that rebuilds `new` from `old`, and its patch. The same inputs and codec versions give the same bytes.

    Raises:
        ConfigError: `new` is larger than 32 GiB.
    """
    if len(new) > MAX_TARGET_BYTES:
        raise ConfigError(f"a target of {len(new)} bytes exceeds {MAX_TARGET_BYTES}: ship it in full")
    parts = list(cut(old, new, aligned(old, new)))
    maker = _Maker(old, new, parts)
    segments: list[Segment] = []
    patch = bytearray()
    for part in parts:
        segment, patch_bytes = maker.made(part)
        segments.append(replace(segment, patch=(len(patch), len(patch_bytes))))
        patch += patch_bytes
        _tell(progress, part.new + part.length, len(new))
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


class _Maker:
    """Makes the segments of one new blob."""

    def __init__(self, old: Buffer, new: Buffer, parts: Sequence[Part]) -> None:
        self._old = old
        self._new = new
        self._untyped = [part for part in parts if part.dtype is None and not part.is_copy]
        self._found: dict[int, list[Edit]] | None = None

    def made(self, part: Part) -> tuple[Segment, bytes]:
        """The smallest segment for a part, checked."""
        out = self._new[part.new : part.new + part.length]
        if part.is_copy:
            return Segment(part.length, COPY, part.old, (0, 0), short_digest(out)), b""
        if part.dtype is not None and part.old:
            ways = trial.of_elements(out, part.old, self._read, part.dtype)
            if len(out) < _SMALL_BYTES:
                ways += trial.by_dictionary(out, self._window(part), self._read, trial.best(ways).cost)
        else:
            ways = self._without_elements(part, out)
        return trial.checked(trial.best(ways), out, self._read)

    def _without_elements(self, part: Part, out: bytes) -> list[Made]:
        ways = trial.alone(out, part.dtype)
        if part.old:
            ways += trial.of_bytes(out, part.old, self._read, trial.best(ways).cost)
        fresh = trial.best(ways).cost
        ways += trial.by_dictionary(out, self._window(part), self._read, trial.best(ways).cost)
        if part.dtype is None and len(out) // _NEARLY_NOTHING < trial.best(ways).cost < _LIKE * fresh:
            ways += self._by_edits(part, out)
        return ways + trial.harder(out, part.dtype, trial.best(ways))

    def _window(self, part: Part) -> Range:
        """Old bytes about the place of a part's like, as many as it may read."""
        slack = max(max_old_bytes(part.length) - part.length, 0) // 2
        start = max(0, min(part.place - slack, len(self._old) - part.length - 2 * slack))
        return start, min(part.length + 2 * slack, len(self._old) - start, max_old_bytes(part.length))

    def _by_edits(self, part: Part, out: bytes) -> list[Made]:
        found = self._edits(part)
        if not found:
            return []
        ranges = _ranges(found, max_old_bytes(part.length))
        return trial.by_edits(out, _within(found, ranges), ranges, self._read)

    def _edits(self, part: Part) -> list[Edit]:
        """Control tuples that make a part from the old blob, or its window if that is long; none without bsdiff4."""
        if self._found is None:
            self._found = {}
            if len(self._old) <= SORTED_BYTES and sum(part.length for part in self._untyped) <= SORTED_BYTES:
                content = b"".join(self._new[other.new : other.new + other.length] for other in self._untyped)
                lengths = [other.length for other in self._untyped]
                for other, edits in zip(self._untyped, trial.edits_of(self._old[:], content, lengths), strict=False):
                    self._found[other.new] = edits
        if part.new not in self._found:
            start, length = self._window(part)
            content = self._new[part.new : part.new + part.length]
            for edits in trial.edits_of(self._old[start : start + length], content, [part.length]):
                self._found[part.new] = [replace(edit, old=edit.old + start) for edit in edits]
        return self._found.get(part.new, [])

    def _read(self, at: int, length: int) -> bytes:
        return self._old[at : at + length]


def _ranges(found: Sequence[Edit], most: int) -> tuple[Range, ...]:
    """The old bytes that edits add to, in at most 16 ranges of together at most so many bytes; the densest stay."""
    spans: list[list[int]] = []
    for at, end in sorted((edit.old, edit.old + edit.add) for edit in found if edit.add):
        if spans and at <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([at, end])
    by_gap = sorted(range(1, len(spans)), key=lambda index: (spans[index - 1][1] - spans[index][0], index))
    kept = set(by_gap[: MAX_OLD_RANGES - 1])
    merged: list[list[int]] = []
    for index, (at, end) in enumerate(spans):
        if index == 0 or index in kept:
            merged.append([at, end])
        else:
            merged[-1][1] = end
    out: list[Range] = []
    for at, end in sorted(merged, key=lambda span: (span[0] - span[1], span)):
        length = min(end - at, most - sum(size for _, size in out))
        if length > 0:
            out.append((at, length))
    return tuple(sorted(out))


def _within(found: Sequence[Edit], ranges: Sequence[Range]) -> list[Edit]:
    """The edits over ranges taken one behind the other; what stands in none of them is taken instead."""
    out: list[Edit] = []
    for edit in found:
        before = 0
        for at, length in ranges:
            if at <= edit.old and edit.old + edit.add <= at + length:
                out.append(Edit(before + edit.old - at, edit.add, edit.take))
                break
            before += length
        else:
            last = out.pop() if out else Edit(0, 0, 0)
            out.append(replace(last, take=last.take + edit.add + edit.take))
    return out


def _name(buffer: Buffer) -> tuple[Digest, int]:
    """Digest and length, read in pieces so that an mmap isn't copied."""
    sha = hashlib.sha256()
    for at in range(0, len(buffer), _READ_BYTES):
        sha.update(buffer[at : at + _READ_BYTES])
    return Digest(sha.digest()), len(buffer)
