"""[IO] One bundle file rebuilt from a base that is held and a patch that may still be on its way.

Segments are rebuilt in any order, one at a time in memory, and verified before they are written. Codecs meet patch
bytes in a child of bounded memory and CPU time, one for all segments. After a kill, what verifies counts.

How the file lies on the disk while it grows is its *target*: plain, segment by segment, or sealed, leaf by leaf.
Segments and leaves don't align: a leaf on the edge of a segment waits in memory for what its other segments give to it,
and a segment is made only when all that share its leaves can be made too. So little waits, nothing plain is written,
and what a kill takes from memory is made again from the segments on both sides.
"""

import os
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from heliograph.blob import LEAF_BYTES, short_digest
from heliograph.delta.apart import Apart
from heliograph.delta.recipe import Recipe, Segment
from heliograph.errors import IntegrityError, NotFoundError
from heliograph.objects import reserve
from heliograph.sealing import PLAIN_LEAF_BYTES, open_leaf, seal_range, sealed_length
from heliograph.source import Source
from heliograph_site.holdings import Holding, Holdings
from heliograph_site.slots import PartialBlob, write_all

RUN_LEAVES = 64
"""Leaves that are sealed or looked at at once."""
MAX_WAITING = 256
"""Leaves that may wait for other segments; what the oldest had is made again."""


class Segments(Protocol):
    """Joins one base and one patch."""

    def rebuild(self, segment: Segment) -> bytes | bytearray:
        """The segment, verified."""

    def close(self) -> None:
        """Nothing more is wanted."""


class Target(Protocol):
    """A file that grows segment by segment.

    Attributes:
        length: of the file, in bytes.
    """

    length: int

    def lacks(self, fd: int) -> set[int]:
        """Segments that have to be made, from what stands in the file already. Reads all of it: slow."""

    def together(self, index: int) -> tuple[int, int]:
        """First and one past the last of the segments that have to be makeable when this one is made."""

    def take(self, fd: int, index: int, data: bytes | bytearray) -> set[int]:
        """Writes what it can of a segment; returns those that have to be made again."""


class PlainTarget:
    """The plain bytes, each segment where it belongs."""

    def __init__(self, recipe: Recipe) -> None:
        self.length = recipe.target_length
        self._segments = recipe.segments
        self._starts = _starts(recipe)

    def lacks(self, fd: int) -> set[int]:
        """Those whose bytes don't stand there."""
        return {
            index
            for index, segment in enumerate(self._segments)
            if short_digest(os.pread(fd, segment.length, self._starts[index])) != segment.digest16
        }

    def together(self, index: int) -> tuple[int, int]:
        """Each stands alone."""
        return index, index + 1

    def take(self, fd: int, index: int, data: bytes | bytearray) -> set[int]:
        """Writes all of it."""
        write_all(fd, self._starts[index], data)
        return set()


class SealedTarget:
    """The sealed blob: leaves are sealed and written as soon as all their bytes are known."""

    def __init__(self, recipe: Recipe, key: bytes) -> None:
        """`key` is the leaf key of the file that the recipe makes."""
        self.length = sealed_length(recipe.target_length)
        self._plain_length = recipe.target_length
        self._key = key
        self._starts = _starts(recipe)
        self._held = bytearray(-(-self.length // LEAF_BYTES))
        self._waiting: dict[int, dict[int, bytes]] = {}
        """Of a leaf the pieces that are known, by where they begin in it."""

    def lacks(self, fd: int) -> set[int]:
        """Those that touch a leaf that doesn't open."""
        for first in range(0, len(self._held), RUN_LEAVES):
            data = os.pread(fd, RUN_LEAVES * LEAF_BYTES, first * LEAF_BYTES)
            for number in range(-(-len(data) // LEAF_BYTES)):
                leaf = data[number * LEAF_BYTES : (number + 1) * LEAF_BYTES]
                self._held[first + number] = self._opens(first + number, leaf)
        return {index for index in range(len(self._starts) - 1) if self._lacks_leaves(index)}

    def together(self, index: int) -> tuple[int, int]:
        """All that share a leaf with it that isn't there yet."""
        first, last = self._leaves(index)
        begin, end = index, index + 1
        if not self._held[first]:
            begin = self._segment_at(first * PLAIN_LEAF_BYTES)
        if not self._held[last]:
            end = self._segment_at(min((last + 1) * PLAIN_LEAF_BYTES, self._plain_length) - 1) + 1
        return begin, end

    def take(self, fd: int, index: int, data: bytes | bytearray) -> set[int]:
        """Seals and writes the leaves that are whole now; keeps the pieces of the others."""
        view = memoryview(data)
        at, end = self._starts[index], self._starts[index + 1]
        again: set[int] = set()
        while at < end:
            leaf, skip = divmod(at, PLAIN_LEAF_BYTES)
            left = view[len(view) - (end - at) :]
            whole = 0 if skip else min(len(left) // PLAIN_LEAF_BYTES, RUN_LEAVES)
            if whole:
                size = whole * PLAIN_LEAF_BYTES
                self._seal(fd, leaf, left[:size])
            else:
                size = min(self._leaf_bytes(leaf) - skip, end - at)
                again |= self._wait(fd, leaf, skip, bytes(left[:size]))
            at += size
        return again

    def _wait(self, fd: int, leaf: int, skip: int, piece: bytes) -> set[int]:
        if self._held[leaf]:
            return set()
        pieces = self._waiting.setdefault(leaf, {})
        pieces[skip] = piece
        if sum(map(len, pieces.values())) == self._leaf_bytes(leaf):
            del self._waiting[leaf]
            self._seal(fd, leaf, b"".join(pieces[at] for at in sorted(pieces)))
        elif len(self._waiting) > MAX_WAITING:
            dropped = next(iter(self._waiting))
            begins = [dropped * PLAIN_LEAF_BYTES + at for at in self._waiting.pop(dropped)]
            return {self._segment_at(begin) for begin in begins}
        return set()

    def _seal(self, fd: int, first: int, data: bytes | memoryview) -> None:
        write_all(fd, first * LEAF_BYTES, seal_range(self._key, first, data))
        count = -(-len(data) // PLAIN_LEAF_BYTES)
        self._held[first : first + count] = b"\1" * count

    def _opens(self, leaf: int, data: bytes) -> bool:
        try:
            return len(open_leaf(self._key, leaf, data)) == self._leaf_bytes(leaf)
        except IntegrityError:
            return False

    def _leaf_bytes(self, leaf: int) -> int:
        return min(PLAIN_LEAF_BYTES, self._plain_length - leaf * PLAIN_LEAF_BYTES)

    def _leaves(self, index: int) -> tuple[int, int]:
        """The first and the last leaf that a segment touches."""
        return self._starts[index] // PLAIN_LEAF_BYTES, (self._starts[index + 1] - 1) // PLAIN_LEAF_BYTES

    def _lacks_leaves(self, index: int) -> bool:
        first, last = self._leaves(index)
        return self._held.find(0, first, last + 1) >= 0

    def _segment_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1


class Rebuild:
    """One bundle file being rebuilt."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        holdings: Holdings,
        join: Callable[[Source, Source | None], Segments] = Apart,
        *,
        key: bytes = b"",
        patch_key: bytes = b"",
    ) -> None:
        """What the file at `path` will be, as the recipe has it.

        Args:
            path: grows into the file, or its sealed blob.
            recipe: parsed, for a base that is held.
            holdings: where the base is.
            join: makes, of base and patch, what rebuilds segments.
            key: leaf key of the file, a secret; empty: it is written plain.
            patch_key: leaf key of the patch, a secret; empty: it comes plain.
        """
        self.path = path
        self._recipe = recipe
        self._holdings = holdings
        self._join = join
        self._patch_key = patch_key
        self._target: Target = SealedTarget(recipe, key) if key else PlainTarget(recipe)
        self._joined: Segments | None = None
        self._inputs: list[int] = []
        self._todo = set(range(len(recipe.segments)))
        self._patched = bytearray(len(recipe.segments))
        self._fd = -1

    @property
    def is_complete(self) -> bool:
        """Every segment is written."""
        return not self._todo

    def open(self) -> None:
        """Opens or makes the file and finds out which segments stand there already. Reads all of it: slow.

        Raises:
            OSError: the disk has no room for all of it.
        """
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        reserve(self._fd, self._target.length)
        self._todo = self._target.lacks(self._fd)

    def ready(self, patch: PartialBlob | None) -> list[int]:
        """Segments that can be rebuilt from what is held of the patch, in order."""
        todo = sorted(self._todo)
        if patch is None:
            return todo
        index = self._patched.find(0)
        while index >= 0:
            self._patched[index] = patch.fetch.has_range(*self._patch_range(*self._recipe.segments[index].patch))
            index = self._patched.find(0, index + 1)
        patched = [0, *accumulate(self._patched)]
        spans = {index: self._target.together(index) for index in todo}
        return [index for index, (begin, end) in spans.items() if patched[end] - patched[begin] == end - begin]

    def make(self, index: int, patch: PartialBlob | None) -> None:
        """Rebuilds one segment and writes it. For a thread: it computes and waits for the disk.

        Raises:
            IntegrityError: base or patch don't give the segment that the recipe promises.
        """
        if self._joined is None:
            self._joined = self._opened(patch)
        out = self._joined.rebuild(self._recipe.segments[index])
        again = self._target.take(self._fd, index, out)
        self._todo.discard(index)
        self._todo |= again

    def close(self) -> None:
        """Closes the file; what it holds can be resumed. Idempotent."""
        if self._joined is not None:
            self._joined.close()
        self._joined = None
        while self._inputs:
            os.close(self._inputs.pop())
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _patch_range(self, offset: int, length: int) -> tuple[int, int]:
        """Where a range of the patch lies in what is fetched."""
        if not self._patch_key or not length:
            return offset, length
        first, end = offset // PLAIN_LEAF_BYTES, -(-(offset + length) // PLAIN_LEAF_BYTES)
        return first * LEAF_BYTES, min(end * LEAF_BYTES, sealed_length(self._recipe.patch_length)) - first * LEAF_BYTES

    def _opened(self, patch: PartialBlob | None) -> Segments:
        held = self._holdings.find(self._recipe.base)
        if held is None:
            raise IntegrityError(f"base {self._recipe.base.hex()[:12]} is gone")
        source = None
        if patch is not None:
            source = self._open(Holding(patch.path, self._recipe.patch_length, self._patch_key))
        return self._join(self._open(held), source)

    def _open(self, holding: Holding) -> Source:
        try:
            source = holding.open()
        except NotFoundError as error:
            raise IntegrityError(str(error)) from error
        self._inputs.append(source.fd)
        return source


def _starts(recipe: Recipe) -> list[int]:
    """Where each segment begins in the target, and where that ends."""
    return [0, *accumulate(segment.length for segment in recipe.segments)]
