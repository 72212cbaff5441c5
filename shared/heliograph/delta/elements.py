"""Elements of tensors as integers whose order is that of the values, and the residuals between two of them.

Pure but for numpy, and exact: integer arithmetic alone, every array little-endian. How it goes:

1. *ordered*: a signed integer for each element. Floats: the bits, those below the sign flipped where the sign is set,
   so that neighbouring values are neighbouring integers (NaNs and infinities are values like any). Unsigned: the first
   bit flipped. 4-bit integers are taken out of their byte, the low half first.
2. *residual*: new minus old, modulo the width, negated where the old one is negative if the caller wants it told along
   the old value's own direction; then *folded*: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4.
3. *depth*: how many powers of two an old float lies below the large ones of its segment; 0 for integers.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from heliograph.delta.dtypes import Dtype

Ints: TypeAlias = NDArray[Any]
"""One unsigned integer an element, of the dtype's width."""
Signed: TypeAlias = NDArray[Any]
"""The same, signed."""
Bytes: TypeAlias = NDArray[np.uint8]
Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_DEPTH = 40
_FEW = 64
"""A power of two that fewer elements than one in this many reach doesn't count as large: one odd value says nothing."""
_RUN = 1 << 16
_MANTISSA_BITS = {Dtype.F8: 3, Dtype.F16: 10, Dtype.BF16: 7, Dtype.F32: 23, Dtype.F64: 52}


def elements_from(data: Buffer, dtype: Dtype) -> Ints:
    """The whole elements of `data`, not copied unless they are smaller than a byte; what stands behind is left."""
    if dtype == Dtype.I4:
        packed = np.frombuffer(data, np.uint8)
        halves = np.empty((len(packed), 2), np.uint8)
        np.bitwise_and(packed, 15, out=halves[:, 0])
        np.right_shift(packed, 4, out=halves[:, 1])
        return halves.reshape(-1)
    width = dtype.item_bytes
    return np.frombuffer(data, f"<u{width}", len(data) // width)


def bytes_from(elements: Ints, dtype: Dtype) -> Bytes:
    """The inverse of `elements_from`."""
    if dtype == Dtype.I4:
        halves = elements.reshape(-1, 2)
        packed: Bytes = halves[:, 0] | (halves[:, 1] << 4)
        return packed
    return elements.view(np.uint8)


def ordered(elements: Ints, dtype: Dtype) -> Signed:
    """Signed integers in the order of the values. Its own inverse but for 4 bits, where `residuals` needs none."""
    if dtype == Dtype.I4:  # sign-extended within its byte
        extended: Signed = ((elements ^ 8) - np.uint8(8)).view(np.int8)
        return extended
    width = elements.dtype.itemsize
    bits: Signed = elements.view(f"<i{width}")
    if dtype.is_float:
        below = np.iinfo(bits.dtype).max
        bits = bits ^ ((bits >> (8 * width - 1)) & below)
    elif dtype in (Dtype.U8, Dtype.U16, Dtype.U32, Dtype.U64):
        bits = bits ^ np.iinfo(bits.dtype).min
    return bits


def residuals(old: Ints, new: Ints, dtype: Dtype, *, is_along: bool) -> Ints:
    """Folded residuals, as wide as the elements (4 bits: 0 to 15)."""
    base = ordered(old, dtype)
    step = _wrapped(ordered(new, dtype) - base, dtype)
    if is_along:
        sign = base >> _top(base)
        step = _wrapped((step ^ sign) - sign, dtype)
    folded: Ints = ((step << 1) ^ (step >> _top(step))).view(old.dtype)
    return folded & 15 if dtype == Dtype.I4 else folded


def restored(old: Ints, folded: Ints, dtype: Dtype, *, is_along: bool) -> Ints:
    """The inverse of `residuals`: the new elements."""
    base = ordered(old, dtype)
    step = ((folded >> 1) ^ (0 - (folded & 1))).view(base.dtype)
    if is_along:
        sign = base >> _top(base)
        step = (step ^ sign) - sign
    step += base
    if dtype == Dtype.I4:
        return step.view(np.uint8) & 15
    return ordered(step.view(old.dtype), dtype).view(old.dtype)


def depths(old: Ints, dtype: Dtype) -> Bytes | None:
    """For floats, each one's depth, at most `MAX_DEPTH`; None for integers."""
    if not dtype.is_float:
        return None
    runs = range(0, len(old), _RUN)
    counts = np.zeros(1 << 11, np.int64)
    for at in runs:
        counts += np.bincount(_exponents(old[at : at + _RUN], dtype), minlength=len(counts))
    reached = np.cumsum(counts[::-1])[::-1]  # by how many elements, each exponent
    high = int(np.flatnonzero(reached * _FEW >= len(old))[-1])
    out = np.empty(len(old), np.uint8)
    for at in runs:
        out[at : at + _RUN] = np.clip(high - _exponents(old[at : at + _RUN], dtype), 0, MAX_DEPTH)
    return out


def _exponents(old: Ints, dtype: Dtype) -> NDArray[np.int16]:
    """At least 1: denormals stand as close together as the smallest normal values."""
    mantissa = _MANTISSA_BITS[dtype]
    exponents = (old >> mantissa) & ((1 << (8 * old.dtype.itemsize - 1 - mantissa)) - 1)
    return np.maximum(exponents.astype(np.int16), 1)


def planes(elements: Ints) -> Bytes:
    """All first bytes, then all second ones, and so on."""
    width = elements.dtype.itemsize
    return np.ascontiguousarray(elements.view(np.uint8).reshape(-1, width).T).reshape(-1)


def _top(values: Signed) -> int:
    return 8 * values.dtype.itemsize - 1


def _wrapped(step: Signed, dtype: Dtype) -> Signed:
    """Modulo the dtype's width, which numpy does by itself except for 4 bits."""
    return ((step & 15) ^ 8) - np.int8(8) if dtype == Dtype.I4 else step
