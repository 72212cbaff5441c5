"""Control tuples: copy and add so many old bytes, take so many new ones, go on elsewhere; pure, and without numpy.

The operations `tuples` (which copies nothing, and isn't made any more) and `edits`. Layouts in FORMATS.md: the count of
tuples, for edits all their copies, all their adds, takes, and seeks, then the bytes to add and the bytes to take. The
bytes to add may be packed apart. Those of edits may be words: what is added to numbers of 16 or 32 bits without a carry
between bytes, small ones being small, whatever their sign.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from heliograph.delta.numbers import Numbers, put
from heliograph.errors import IntegrityError

_STRIDE = 1 << 16
_MOST = (1 << 35) - 1
WIDTHS = (1, 2, 4)
"""Bytes of a word."""


def _of_words(word: int, width: int) -> int:
    return int.from_bytes(word.to_bytes(width, "little") * (_STRIDE // width), "little")


_LOW_BITS = {width: _of_words((1 << 8 * width - 1) - 1, width) for width in WIDTHS}
_TOP_BITS = {width: _of_words(1 << 8 * width - 1, width) for width in WIDTHS}
_ONES = {width: _of_words(1, width) for width in WIDTHS}


@dataclass(frozen=True, slots=True)
class Edit:
    """Add `add` bytes to as many of the old ones at `old`, then take `take` bytes as they are."""

    old: int
    add: int
    take: int


@dataclass(frozen=True, slots=True)
class Run:
    """Copy `copy` of the old bytes at `old`, add to the next `add`, then take `take` bytes as they are."""

    old: int
    copy: int
    add: int
    take: int


def max_edits(length: int) -> int:
    """How many tuples may make so many bytes: time is bounded by it."""
    return 16 + length // 8


def max_plain_bytes(length: int) -> int:
    """How long the layout of so many bytes may be."""
    return 2 * length + 1024


def encoded(edits: list[Edit], old: bytes, new: bytes) -> bytes:
    """The layout for `new`, which the edits tile, over `old`, which they stand in."""
    numbers, adds, takes = streams(edits, old, new)
    return numbers + adds + takes


def streams(edits: list[Edit], old: bytes, new: bytes) -> tuple[bytes, bytes, bytes]:
    """The three parts of the layout: numbers, bytes to add, bytes to take."""
    numbers = bytearray()
    put(numbers, len(edits))
    for edit in edits:
        put(numbers, edit.add)
    for edit in edits:
        put(numbers, edit.take)
    at = 0
    for edit in edits:
        put(numbers, (abs(edit.old - at) << 1) | (edit.old < at))
        at = edit.old + edit.add
    pieces, takes = bytearray(), bytearray()
    adds = bytearray()
    made = 0
    for edit in edits:
        pieces += old[edit.old : edit.old + edit.add]
        adds += new[made : made + edit.add]
        takes += new[made + edit.add : made + edit.add + edit.take]
        made += edit.add + edit.take
    _sum(adds, _negated(pieces))
    return bytes(numbers), bytes(adds), bytes(takes)


def rebuilt(plain: bytes, old: bytes, length: int, apart: bytes | None = None) -> bytearray:
    """The new bytes. If the bytes to add come `apart`, the layout is without them.

    Raises:
        IntegrityError: the layout is not one of so many bytes over this old content.
    """
    reader = Numbers(plain)
    count = reader.number("tuples", 0, _MOST)
    if count > max_edits(length):
        raise IntegrityError(f"{count} tuples for {length} bytes, at most {max_edits(length)}")
    adds, takes = (array("Q", (reader.number("tuples", 0, _MOST) for _ in range(count))) for _ in range(2))
    added = sum(adds)
    if added + sum(takes) != length:
        raise IntegrityError(f"tuples make {added + sum(takes)} bytes, the segment has {length}")
    pieces = bytearray()
    at = 0
    for add in adds:
        seek = reader.number("tuples", 0, _MOST)
        at += -(seek >> 1) if seek & 1 else seek >> 1
        if at < 0 or at + add > len(old):
            raise IntegrityError(f"a tuple adds to {add} bytes from {at}, the old ranges have {len(old)}")
        pieces += old[at : at + add]
        at += add
    rest = memoryview(plain)[reader.at :]
    to_add = rest[:added] if apart is None else memoryview(apart)
    rest = rest[added:] if apart is None else rest
    if len(to_add) != added or len(rest) != length - added:
        raise IntegrityError(f"tuples come with {len(to_add)} and {len(rest)} bytes for {length}, {added} to add")
    _sum(pieces, to_add)
    sums = memoryview(pieces)
    out = bytearray()
    from_sums = from_rest = 0
    for add, take in zip(adds, takes, strict=True):
        out += sums[from_sums : from_sums + add]
        out += rest[from_rest : from_rest + take]
        from_sums += add
        from_rest += take
    return out


def run_streams(runs: Sequence[Run], old: bytes, new: bytes, width: int) -> tuple[bytes, bytes, bytes]:
    """The three parts of the layout of `edits`: numbers, bytes to add, bytes to take."""
    numbers, adds, takes = bytearray(), bytearray(), bytearray()
    put(numbers, len(runs))
    for field in ("copy", "add", "take"):
        for run in runs:
            put(numbers, getattr(run, field))
    at = made = 0
    for run in runs:
        put(numbers, (abs(run.old - at) << 1) | (run.old < at))
        at = run.old + run.copy + run.add
        made += run.copy
        for begin, end, word in _words(made, run.add, width):
            adds += _minus(new[made + begin : made + end], old[at - run.add + begin : at - run.add + end], word)
        made += run.add
        takes += new[made : made + run.take]
        made += run.take
    return bytes(numbers), bytes(adds), bytes(takes)


def run_rebuilt(plain: bytes, old: bytes, length: int, width: int, apart: bytes | None = None) -> bytearray:
    """The new bytes of `edits`. If the bytes to add come `apart`, the layout is without them.

    Raises:
        IntegrityError: the layout is not one of so many bytes over this old content.
    """
    reader = Numbers(plain)
    count = reader.number("tuples", 0, _MOST)
    if count > max_edits(length):
        raise IntegrityError(f"{count} edits for {length} bytes, at most {max_edits(length)}")
    copies, adds, takes = (array("Q", (reader.number("tuples", 0, _MOST) for _ in range(count))) for _ in range(3))
    added, taken = sum(adds), sum(takes)
    if sum(copies) + added + taken != length:
        raise IntegrityError(f"edits make {sum(copies) + added + taken} bytes, the segment has {length}")
    seeks = array("Q", (reader.number("tuples", 0, _MOST) for _ in range(count)))
    rest = memoryview(plain)[reader.at :]
    to_add = rest[:added] if apart is None else memoryview(apart)
    rest = rest[added:] if apart is None else rest
    if len(to_add) != added or len(rest) != taken:
        raise IntegrityError(f"edits come with {len(to_add)} and {len(rest)} bytes, {added} to add and {taken} to take")
    before = memoryview(old)
    out = bytearray(length)
    at = made = from_adds = from_rest = 0
    for copy, add, take, seek in zip(copies, adds, takes, seeks, strict=True):
        at += -(seek >> 1) if seek & 1 else seek >> 1
        if at < 0 or at + copy + add > len(old):
            raise IntegrityError(f"an edit needs {copy + add} bytes from {at}, the old ranges have {len(old)}")
        out[made : made + copy] = before[at : at + copy]
        at += copy
        made += copy
        for begin, end, word in _words(made, add, width):
            out[made + begin : made + end] = _plus(
                before[at + begin : at + end], to_add[from_adds + begin : from_adds + end], word
            )
        at += add
        made += add
        from_adds += add
        out[made : made + take] = rest[from_rest : from_rest + take]
        made += take
        from_rest += take
    return out


def _words(made: int, add: int, width: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, width) of what is added at a place of the segment: whole words, and bytes before and behind."""
    first = min(add, -made % width)
    last = max(first, add - (made + add) % width)
    if first:
        yield 0, first, 1
    for begin in range(first, last, _STRIDE):
        yield begin, min(begin + _STRIDE, last), width
    if last < add:
        yield last, add, 1


def _plus(old: memoryview, folded: memoryview, width: int) -> bytes:
    """The sum of words, at most a stride of them; numpy would cost a process 20 MB."""
    a, b = int.from_bytes(old, "little"), int.from_bytes(folded, "little")
    low = _LOW_BITS[width]
    if width > 1:
        b = ((b >> 1) & low) ^ ((b & _ONES[width]) * ((1 << 8 * width) - 1))
    return (((a & low) + (b & low)) ^ ((a ^ b) & _TOP_BITS[width])).to_bytes(len(old), "little")


def _minus(new: bytes, old: bytes, width: int) -> bytes:
    """What `_plus` adds to the old words."""
    a, b = int.from_bytes(new, "little"), int.from_bytes(old, "little")
    size = 8 * len(new)
    low, top = _LOW_BITS[width] & ((1 << size) - 1), _TOP_BITS[width] & ((1 << size) - 1)
    step = ((a | top) - (b & low)) ^ ((a ^ b ^ top) & top)
    if width > 1:
        sign = (step >> (8 * width - 1)) & _ONES[width]
        step = ((step & low) << 1) ^ (sign * ((1 << 8 * width) - 1))
    return step.to_bytes(len(new), "little")


def first_number(plain: bytes) -> int:
    """The number that a layout begins with: how many tuples it has."""
    return Numbers(plain).number("tuples", 0, _MOST)


def _sum(one: bytearray, two: bytearray | memoryview) -> None:
    """Adds to each byte of the first that of the second, modulo 256; numpy would cost a process 20 MB."""
    for at in range(0, len(one), _STRIDE):
        size = min(_STRIDE, len(one) - at)
        a = int.from_bytes(one[at : at + size], "little")
        b = int.from_bytes(two[at : at + size], "little")
        total = ((a & _LOW_BITS[1]) + (b & _LOW_BITS[1])) ^ ((a ^ b) & _TOP_BITS[1])
        one[at : at + size] = total.to_bytes(size, "little")


def _negated(data: bytearray) -> bytearray:
    """Each byte's complement to 256."""
    return data.translate(_NEGATIVE)


_NEGATIVE = bytes(-value & 255 for value in range(256))
