"""Of a segment with elements of several types, where each type stands; pure, and without numpy. Layout in FORMATS.md.

A *mixture* is a row of *stretches*, each a *pattern* of parts that repeats until the stretch ends: a tensor is a
stretch of one part; blocks of quantised weights are a pattern of two, a scale and the values that it is for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from heliograph.delta.dtypes import Dtype
from heliograph.delta.numbers import Numbers, put
from heliograph.errors import IntegrityError

MAX_STRETCHES = 256
MAX_PARTS = 16
MAX_TYPES = 4
MAX_LANES_LOG2 = 12
MAX_MIXED_BYTES = 2 << 20
"""Of a segment: what it takes to part and join it comes on top of what decoding takes."""
_DTYPES = {int(dtype): dtype for dtype in Dtype}
_LOWEST, _HIGHEST = min(_DTYPES), max(_DTYPES)

Pattern = tuple[tuple[Dtype, int], ...]
"""(what it is, bytes) of each part."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """So many bytes, of parts that repeat; the last may be cut short."""

    length: int
    parts: Pattern


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a stretch stands: so often, from `at` on, `length` bytes each time, every `period`; then `left`
    bytes of one that is cut short."""

    dtype: Dtype
    at: int
    length: int
    period: int
    count: int
    left: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """Stretches, one behind the other, and the lanes (their log2) by which each type is coded, in the types' order."""

    stretches: tuple[Stretch, ...]
    lanes: tuple[int, ...] = ()

    @property
    def types(self) -> list[Dtype]:
        """The types that occur, by their number."""
        return sorted({dtype for stretch in self.stretches for dtype, _ in stretch.parts})

    def places(self, dtype: Dtype) -> Iterator[Place]:
        """Where elements of one type stand, in the order in which they are coded."""
        start = 0
        for stretch in self.stretches:
            period = sum(length for _, length in stretch.parts)
            count, rest = divmod(stretch.length, period)
            at = 0
            for of, length in stretch.parts:
                if of == dtype:
                    yield Place(of, start + at, length, period, count, min(max(rest - at, 0), length))
                at += length
            start += stretch.length

    def sizes(self) -> dict[Dtype, int]:
        """How many bytes of each type there are, in the types' order."""
        found: dict[Dtype, int] = {}
        for stretch in self.stretches:
            count, rest = divmod(stretch.length, sum(length for _, length in stretch.parts))
            for dtype, length in stretch.parts:
                found[dtype] = found.get(dtype, 0) + length * count + min(rest, length)
                rest = max(rest - length, 0)
        return dict(sorted(found.items()))

    def bytes_of(self, dtype: Dtype) -> int:
        """How many bytes of one type there are."""
        return self.sizes().get(dtype, 0)


def encode(mixture: Mixture) -> bytes:
    """The parameters that `parse` reads."""
    out = bytearray()
    put(out, len(mixture.stretches))
    for stretch in mixture.stretches:
        put(out, stretch.length)
        put(out, len(stretch.parts))
        for dtype, length in stretch.parts:
            put(out, dtype)
            if len(stretch.parts) > 1:
                put(out, length)
    return bytes(out) + bytes(mixture.lanes)


def parse(params: bytes, length: int) -> Mixture:
    """The mixture of a segment of so many bytes.

    Raises:
        IntegrityError: these parameters are none of it.
    """
    reader = Numbers(params)
    stretches = []
    made = 0
    for _ in range(reader.number("stretches", 1, MAX_STRETCHES)):
        size = reader.number("stretch", 1, min(length - made, MAX_MIXED_BYTES))
        count = reader.number("parts", 1, MAX_PARTS)
        parts = []
        for _ in range(count):
            dtype = _DTYPES[reader.number("dtype", _LOWEST, _HIGHEST)]
            parts.append((dtype, reader.number("part", 1, size) if count > 1 else size))
        stretches.append(Stretch(size, tuple(parts)))
        made += size
    mixture = Mixture(tuple(stretches))
    types = mixture.types
    if made != length or not 2 <= len(types) <= MAX_TYPES:
        raise IntegrityError(f"a mixture of {len(types)} types has {made} bytes, the segment {length}")
    lanes = reader.data("lanes", len(types))
    reader.finish()
    return Mixture(mixture.stretches, tuple(lanes))
