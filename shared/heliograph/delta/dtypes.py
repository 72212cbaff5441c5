"""What the elements of tensors are, as deltas see them: how wide, and which bits say what. Little-endian, all of them.

The numbers stand in recipes: never used again for something else. What isn't here (bool, complex, strings) has no
dtype: such content is taken as bytes.
"""

from enum import IntEnum


class Dtype(IntEnum):
    """The elements of one span. Spans begin and end between elements."""

    U8 = 1
    I8 = 2
    I4 = 3
    """Two 4-bit integers in a byte: its element, for spans, is that byte."""
    U16 = 4
    I16 = 5
    F16 = 6
    BF16 = 7
    U32 = 8
    I32 = 9
    F32 = 10
    U64 = 11
    I64 = 12
    F64 = 13
    F8 = 14
    """Any float of 8 bits whose first is the sign: E4M3 and E5M2 alike."""

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return _ITEM_BYTES[self]

    def count(self, length: int) -> int:
        """How many whole elements so many bytes hold; 4-bit integers are told one by one."""
        return 2 * length if self == Dtype.I4 else length // self.item_bytes

    @property
    def is_float(self) -> bool:
        """Whether the first bit is a sign and the others a magnitude."""
        return self in _FLOATS


_FLOATS = frozenset({Dtype.F8, Dtype.F16, Dtype.BF16, Dtype.F32, Dtype.F64})
_ITEM_BYTES = {
    Dtype.U8: 1, Dtype.I8: 1, Dtype.I4: 1, Dtype.F8: 1,
    Dtype.U16: 2, Dtype.I16: 2, Dtype.F16: 2, Dtype.BF16: 2,
    Dtype.U32: 4, Dtype.I32: 4, Dtype.F32: 4,
    Dtype.U64: 8, Dtype.I64: 8, Dtype.F64: 8,
}  # fmt: skip
