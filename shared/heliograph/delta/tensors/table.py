"""What a tensor table says, and how the parsers of this package read: bounded, and headers only."""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from heliograph.delta.buffer import Buffer
from heliograph.delta.dtypes import Dtype

MAX_TENSORS = 1 << 16
MAX_STEPS = 1 << 21
"""Fields, values and members that one blob's headers may have: some seconds, in the worst case."""
MAX_NAME_BYTES = 4096
MAX_AXES = 16


class OddError(Exception):
    """Not this format, damaged, or beyond the bounds: the blob has no tensors."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor's elements stand in a blob.

    Attributes:
        name: the file's own; need not be unique.
        offset, length: bytes of the blob; length is at least 1, and whole elements.
        dtype: what the elements are. Blocks of quantised values are U8.
        shape: elements along each axis, outermost first; their product times the element's size is `length`. Where one
            element holds more or less than one value (blocks, packed integers), the last axis counts elements.
        kind: the format's own name for blocks, such as "Q4_K"; empty for plain elements.
        unit: bytes that belong together: a block, or an element.
        member: the bundle's member that it stands in; empty outside of bundles.
    """

    name: str
    offset: int
    length: int
    dtype: Dtype
    shape: tuple[int, ...]
    kind: str = ""
    unit: int = 1
    member: str = ""


class View:
    """A part of a blob, which is a bundle's member or the whole. Reads beyond it raise OddError."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.start, self.length = 0, len(data)
        self._left = [MAX_STEPS]

    def part(self, at: int, size: int) -> "View":
        """A member; its steps count against the whole's."""
        self.check(at, size)
        part = View(self.data)
        part.start, part.length, part._left = self.start + at, size, self._left
        return part

    def step(self, count: int = 1) -> None:
        """Counts fields, values and members; OddError when there have been too many."""
        self._left[0] -= count
        if self._left[0] < 0:
            raise OddError

    def check(self, at: int, size: int) -> None:
        """OddError unless `size` bytes from `at` are inside."""
        if at < 0 or size < 0 or at + size > self.length:
            raise OddError

    def read(self, at: int, size: int) -> bytes:
        """So many bytes."""
        self.check(at, size)
        return self.data[self.start + at : self.start + at + size]

    def number(self, kind: struct.Struct, at: int) -> int:
        """One integer."""
        self.check(at, kind.size)
        value = kind.unpack_from(self.data, self.start + at)[0]
        assert isinstance(value, int), "only integers are read so"
        return value

    def name(self, at: int, size: int) -> str:
        """A name, or so much of it as counts; bytes that aren't UTF-8 stay apart from each other."""
        self.check(at, size)
        return self.read(at, min(size, MAX_NAME_BYTES)).decode(errors="backslashreplace")

    def tensor(self, name: str, at: int, size: int, dtype: Dtype, shape: Iterable[int]) -> Tensor | None:
        """The tensor there; None if its bytes aren't inside, or aren't what the shape says."""
        shape = tuple(shape)
        item = dtype.item_bytes
        if size <= 0 or size % item or at < 0 or at + size > self.length or len(shape) > MAX_AXES:
            return None
        if dtype == Dtype.I4:
            shape = (*shape[:-1], shape[-1] // 2) if shape and shape[-1] % 2 == 0 else (size,)
        if min(shape, default=1) < 1 or math.prod(shape) * item != size:
            return None
        return Tensor(name, self.start + at, size, dtype, shape, unit=item)


U8, U16, U32, U64 = (struct.Struct(f"<{code}") for code in "BHIQ")
I32 = struct.Struct("<i")


def in_order(found: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    """The tensors by their place; of those that share bytes only the first is kept."""
    kept: list[Tensor] = []
    for tensor in sorted((tensor for tensor in found if tensor), key=lambda tensor: (tensor.offset, -tensor.length)):
        if not kept or tensor.offset >= kept[-1].offset + kept[-1].length:
            kept.append(tensor)
    return tuple(kept)


def of_member(tensors: Iterable[Tensor], member: str) -> list[Tensor]:
    """The same tensors as a bundle's."""
    return [replace(tensor, member=member) for tensor in tensors]
