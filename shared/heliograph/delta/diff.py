"""Makes a recipe and a patch that rebuild one blob from another; pure over buffers, and deterministic.

How it decides, in four steps:

1. *Spans*: `heliograph.delta.align` says where the like of each part of the new blob stands, and what its elements are.
2. *Parts*: `heliograph.delta.cuts` finds what is unchanged, and cuts the rest into segments of up to 4 MiB.
3. *Operations*: `heliograph.delta.trial` makes each segment in the ways that may win, and checks the smallest.
4. *Tuples*: where the old blob has more of the segments than they were made of, `heliograph.delta.merging` lets
   bsdiff4, if that is installed, look at them as a whole, and makes neighbours of control tuples if that is smaller;
   likewise copies and what changed little among them, where they stand.

Memory: the two buffers (may be mmaps), what aligning takes, 96 MiB for the segment in hand, and the patch. bsdiff4
takes 17 bytes for each byte of the old blob, of which it gets 32 MiB at most.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from heliograph.blob import Digest, describe
from heliograph.delta import merging, trial
from heliograph.delta.align import aligned
from heliograph.delta.buffer import Buffer
from heliograph.delta.cuts import Part, Range, cut, split
from heliograph.delta.merging import Done
from heliograph.delta.recipe import COPY, MIXED, Recipe, Segment, max_old_bytes
from heliograph.delta.trial import Made
from heliograph.errors import ConfigError

Progress = Callable[[int, int], None]
"""(bytes of the new blob done, bytes of the new blob)."""

MAX_TARGET_BYTES = 32 << 30
_READ_BYTES = 1 << 20
_SMALL_BYTES = 4096
_SURELY = 4
"""A mixture that is so many times smaller than its bytes isn't tried in several segments too."""


def make(old: Buffer, new: Buffer, progress: Progress | None = None) -> tuple[Recipe, bytes]:
    """The recipe that rebuilds `new` from `old`, and its patch. The same inputs and codec versions give the same bytes.

    Raises:
        ConfigError: `new` is larger than 32 GiB.
    """
    if len(new) > MAX_TARGET_BYTES:
        raise ConfigError(f"a target of {len(new)} bytes exceeds {MAX_TARGET_BYTES}: ship it in full")
    maker = _Maker(old, new)
    segments: list[Segment] = []
    patch = bytearray()
    for stretch in merging.stretches(list(cut(old, new, aligned(old, new)))):
        made = []
        for part in stretch:
            made += maker.done(part)
            _tell(progress, part.new, len(new))
        for done in merging.merged(old, new, made, maker.window):
            segment, patch_bytes = maker.checked(done)
            segments.append(replace(segment, patch=(len(patch), len(patch_bytes))))
            patch += patch_bytes
    _tell(progress, len(new), len(new))
    assert sum(segment.length for segment in segments) == len(new), "parts tile the new blob"
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

    def __init__(self, old: Buffer, new: Buffer) -> None:
        self._old = old
        self._new = new

    def done(self, part: Part) -> list[Done]:
        """The part made, as one or as several of one type each."""
        whole = [Done(part, self.made(part))]
        parts = [] if part.is_copy else split(part)
        is_sure = whole[0].made.op == MIXED and whole[0].made.cost * _SURELY < part.length
        if len(parts) < 2 or is_sure:
            return whole
        return min(whole, [Done(one, self.made(one)) for one in parts], key=merging.total)

    def made(self, part: Part) -> Made:
        """The smallest way to make a part by itself."""
        if part.is_copy:
            return Made(COPY, part.old, b"", b"")
        out = self._new[part.new : part.new + part.length]
        if part.dtype is not None and part.old:
            ways = trial.of_elements(out, part.old, self._read, part.dtype, part.pieces)
            if len(out) < _SMALL_BYTES:
                ways += trial.by_dictionary(out, self.window(part), self._read, trial.best(ways).cost)
        else:
            ways = self._without_elements(part, out)
        return trial.best(ways)

    def checked(self, done: Done) -> tuple[Segment, bytes]:
        """The segment, after it gave its bytes back, and its patch."""
        return trial.checked(done.made, self._new[done.part.new : done.part.new + done.part.length], self._read)

    def _without_elements(self, part: Part, out: bytes) -> list[Made]:
        ways = trial.alone(out, part.dtype)
        if part.old:
            ways += trial.of_bytes(out, part.old, self._read, trial.best(ways).cost)
        ways += trial.by_dictionary(out, self.window(part), self._read, trial.best(ways).cost)
        return ways + trial.harder(out, part.dtype, trial.best(ways))

    def window(self, part: Part) -> Range:
        """Old bytes about the place of a part's like, as many as it may read."""
        slack = max(max_old_bytes(part.length) - part.length, 0) // 2
        start = max(0, min(part.place - slack, len(self._old) - part.length - 2 * slack))
        return start, min(part.length + 2 * slack, len(self._old) - start, max_old_bytes(part.length))

    def _read(self, at: int, length: int) -> bytes:
        return self._old[at : at + length]


def _name(buffer: Buffer) -> tuple[Digest, int]:
    """Digest and length, read in pieces so that an mmap isn't copied."""
    sha = hashlib.sha256()
    for at in range(0, len(buffer), _READ_BYTES):
        sha.update(buffer[at : at + _READ_BYTES])
    return Digest(sha.digest()), len(buffer)
