"""Control tuples: add so many old bytes, take so many new ones, go on elsewhere; pure, and without numpy.

The operation `tuples`. Layout in FORMATS.md: the count of tuples, all their adds, all their takes, all their seeks,
then the bytes to add and the bytes to take. The bytes to add may be packed apart.
"""

from array import array
from dataclasses import dataclass

from heliograph.errors import IntegrityError

_STRIDE = 1 << 16
_LOW_BITS = int.from_bytes(b"\x7f" * _STRIDE, "little")
_TOP_BITS = int.from_bytes(b"\x80" * _STRIDE, "little")


@dataclass(frozen=True, slots=True)
class Edit:
    """Add `add` bytes to as many of the old ones at `old`, then take `take` bytes as they are."""

    old: int
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
    _put(numbers, len(edits))
    for edit in edits:
        _put(numbers, edit.add)
    for edit in edits:
        _put(numbers, edit.take)
    at = 0
    for edit in edits:
        _put(numbers, (abs(edit.old - at) << 1) | (edit.old < at))
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
    reader = _Numbers(plain)
    count = reader.next()
    if count > max_edits(length):
        raise IntegrityError(f"{count} tuples for {length} bytes, at most {max_edits(length)}")
    adds, takes = (array("Q", (reader.next() for _ in range(count))) for _ in range(2))
    added = sum(adds)
    if added + sum(takes) != length:
        raise IntegrityError(f"tuples make {added + sum(takes)} bytes, the segment has {length}")
    pieces = bytearray()
    at = 0
    for add in adds:
        seek = reader.next()
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


class _Numbers:
    """Reads integers of seven bits a byte, the lowest first; the last byte has no top bit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def next(self) -> int:
        value = shift = 0
        while self.at < len(self._data) and shift < 35:
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise IntegrityError("a tuple's number is cut off or too large")


def _put(out: bytearray, value: int) -> None:
    while value >= 128:
        out.append(128 | (value & 127))
        value >>= 7
    out.append(value)


def _sum(one: bytearray, two: bytearray | memoryview) -> None:
    """Adds to each byte of the first that of the second, modulo 256; numpy would cost a process 20 MB."""
    for at in range(0, len(one), _STRIDE):
        size = min(_STRIDE, len(one) - at)
        a = int.from_bytes(one[at : at + size], "little")
        b = int.from_bytes(two[at : at + size], "little")
        total = ((a & _LOW_BITS) + (b & _LOW_BITS)) ^ ((a ^ b) & _TOP_BITS)
        one[at : at + size] = total.to_bytes(size, "little")


def _negated(data: bytearray) -> bytearray:
    """Each byte's complement to 256."""
    return data.translate(_NEGATIVE)


_NEGATIVE = bytes(-value & 255 for value in range(256))
