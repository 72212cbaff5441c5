"""What both sides of the rANS coder know of a stream and learn as they go: shape, tokens, memory, contexts, tables.

Pure but for numpy, exact (integers alone); FORMATS.md says all of it. A token's *place* says the context as well: it is
where its frequency and start stand in the tables.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from heliograph.delta.elements import MAX_DEPTH

Array: TypeAlias = NDArray[Any]

DIRECT = 16
"""Integers below this are their own tokens."""
LEAN_AT = 8192 + 1024
"""What which way residuals went is told from: such a memory stands above any of how large they were."""
_LEVELS = 32
_LEANINGS = 7
_INT_LEVELS = 16
_MEMORY_SHIFT = {True: 4, False: 5}
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What both sides know before the first word.

    Attributes:
        count: integers, at least 1.
        width_bits: below 2 to the power of this each.
        lanes_log2: 0 to 12.
        is_float: whether there are depths.
    """

    count: int
    width_bits: int
    lanes_log2: int
    is_float: bool

    @property
    def lanes(self) -> int:
        """How many lanes have anything to do."""
        return min(1 << self.lanes_log2, self.count)

    @property
    def steps(self) -> int:
        """Of the longest lane."""
        return -(-self.count // self.lanes)

    @property
    def lasting(self) -> int:
        """How many lanes take part in the last step."""
        return self.count - (self.steps - 1) * self.lanes

    @property
    def table_log2(self) -> int:
        """Frequencies of a context sum to 2 to the power of this."""
        return min(15, max(11, self.count.bit_length() - 4))

    @property
    def detail_bits(self) -> int:
        """Bits below the first that a token tells: a byte must hold any token."""
        return 2 if self.width_bits <= 32 else 1

    @property
    def token_limit(self) -> int:
        """How many tokens there are."""
        return DIRECT + ((max(self.width_bits, 4) - 4) << (self.detail_bits + 1))

    @property
    def token_log2(self) -> int:
        """A context has 2 to the power of this places: room for every token."""
        return (self.token_limit - 1).bit_length()

    @property
    def kinds(self) -> int:
        """How many contexts there are of each level."""
        return 4 if self.is_float else _LEANINGS

    @property
    def levels(self) -> int:
        """How many sizes of residuals contexts tell apart."""
        return _LEVELS if self.is_float else _INT_LEVELS

    @property
    def memory_shift(self) -> int:
        """After its first tokens a lane's memory takes one 2 to the power of this part of a new one."""
        return _MEMORY_SHIFT[self.is_float]


class Tables:
    """Frequencies of tokens in each context, by what was counted.

    Attributes:
        ranges: frequency and start by place, int64.
        slots: for decoding, the place of each slot of each context, uint16.
    """

    def __init__(self, shape: Shape, *, is_decoding: bool) -> None:
        self._shape = shape
        self._ends = {end for _, end in refreshes(shape.steps) if end < shape.steps}
        cells = shape.levels, shape.kinds, 1 << shape.token_log2
        self._counts = np.zeros(cells, np.int64)
        self._made = np.full(shape.levels, -1)
        self._ranges = np.empty((*cells, 2), np.int64)
        self.ranges = self._ranges.reshape(-1, 2)
        contexts = shape.levels * shape.kinds if is_decoding else 0
        self.slots = np.empty(contexts << shape.table_log2, np.uint16)
        self._make()

    def count(self, places: Array, end: int) -> None:
        """Counts tokens by their places; makes the tables anew if a run of steps ends here."""
        found = np.bincount(places.reshape(-1), minlength=self._counts.size)
        self._counts += found.reshape(self._counts.shape)
        if end in self._ends:
            self._make()

    def tokens(self) -> Array:
        """How often each token was counted, in all contexts together."""
        tokens: Array = self._counts.sum(axis=(0, 1))
        return tokens

    def _make(self) -> None:
        """Frequencies by the counts of a context, a little of those of its level, and a trace for every token; of the
        levels alone in which something was counted since."""
        totals = self._counts.sum(axis=(1, 2))
        changed = np.flatnonzero(totals != self._made)
        self._made = totals
        whole, limit = 1 << self._shape.table_log2, self._shape.token_limit
        counts = self._counts[changed]
        level = counts.sum(axis=1, keepdims=True)
        level = (level << 8) // (level.sum(axis=2, keepdims=True) + 1)
        weights = (counts << 5) + level
        weights[:, :, :limit] += np.maximum(16 >> (np.arange(limit) >> 3), 1)
        table = weights * (whole - limit) // weights.sum(axis=2, keepdims=True)
        table[:, :, :limit] += 1
        rows = table.reshape(-1, table.shape[2])
        rows[np.arange(len(rows)), rows.argmax(axis=1)] += whole - rows.sum(axis=1)
        self._ranges[changed, :, :, 0] = table
        self._ranges[changed, :, :, 1] = np.cumsum(table, axis=2) - table
        if len(self.slots):
            of_context = self.slots.reshape(len(self._counts), table.shape[1], -1)
            places = np.arange(self._counts.size, dtype=np.uint16).reshape(self._counts.shape)
            for at, number in enumerate(changed):
                for kind in range(table.shape[1]):
                    of_context[number, kind] = np.repeat(places[number, kind], table[at, kind])


def lengths(shape: Shape) -> tuple[Array, Array, Array]:
    """For each of 256 tokens: how many bits of rest it has, its smallest integer, and its last bit."""
    tokens = np.arange(256, dtype=np.int64)
    above = np.maximum(tokens - DIRECT, 0)
    detail = shape.detail_bits
    length = (above >> (detail + 1)) + 4
    is_direct = tokens < DIRECT
    rest = np.where(is_direct, 0, length - detail - 1)
    lead = (1 << detail) | ((above >> 1) & ((1 << detail) - 1))
    return rest, np.where(is_direct, tokens, lead << np.minimum(length - detail, 62)), tokens & 1


@cache
def weights(width_bits: int, is_float: bool) -> tuple[Array, Array]:
    """For each of 256 tokens what it adds to each memory, one for floats and two for integers; and the first context
    (its level, or its leaning) by what a memory says."""
    shape = Shape(1, width_bits, 0, is_float)
    _, least, last = lengths(shape)
    size = ((least >> 1) & _LARGEST) + (least & 1)
    if is_float:
        # 16ths of a power of two, times 16. A level is half a power of two, or one where elements are wider.
        added = np.array([[_log16(1 + 2 * min(int(x), 1 << 60)) << 4] for x in size], np.int64)
        step = (8 if width_bits <= 16 else 16) << 4
        levels = np.minimum(np.arange((_LEVELS + 1) * step) // step, _LEVELS - 1) * 4
    else:
        # A level is a third of a power of two of one and twice the mean size; a leaning is half of one, up to three
        # halves.
        sizes = 256 + 2 * np.arange(LEAN_AT - 1024)
        bits = np.frexp(sizes)[1] - 1
        mean = 16 * bits + ((sizes << 4) >> bits) - 16
        level = np.minimum(3 * (mean - 128) >> 4, _INT_LEVELS - 1) * _LEANINGS
        leaning = np.clip((np.arange(-1024, 1025) + 64) >> 7, -3, 3) + 3
        levels = np.concatenate([level, leaning])
        leans = np.minimum(size, 4) * np.where(last == 1, -256, 256) + LEAN_AT
        added = np.stack([np.minimum(size, 31) << 8, leans], axis=1)
    for each in (added, levels):
        each.setflags(write=False)
    return added, levels


def _log16(value: int) -> int:
    """16 times the logarithm to base 2, straight between powers of two."""
    whole = value.bit_length() - 1
    return 16 * whole + ((value << 4) >> whole) - 16


def refreshes(steps: int) -> Iterator[tuple[int, int]]:
    """Runs of steps coded by the same tables."""
    first, end = 0, 1
    while first < steps:
        yield first, min(end, steps)
        first, end = end, min(2 * end, end + max(1, steps >> 3))


def stretches(steps: int, most: int) -> Iterator[tuple[int, int]]:
    """The same runs, in pieces of so many steps at most, which take little memory."""
    for first, end in refreshes(steps):
        for at in range(first, end, most):
            yield at, min(at + most, end)


assert MAX_DEPTH < 1 << 7, "depths fit the memory's scale"
