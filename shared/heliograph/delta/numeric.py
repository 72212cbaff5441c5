"""The operations on tensors' elements: sub, sub+rans, xor, shuffle. Pure but for numpy; layouts in FORMATS.md.

Only a process that meets such a segment imports this: numpy costs it 20 MB. What isn't a whole element at a segment's
end stands behind the elements as it is.
"""

import numpy as np

from heliograph.delta import rans
from heliograph.delta.dtypes import Dtype
from heliograph.delta.elements import (
    Bytes,
    Ints,
    bytes_from,
    depths,
    elements_from,
    from_planes,
    planes,
    residuals,
    restored,
)
from heliograph.delta.packing import Packing, unpacked, unzipped
from heliograph.errors import IntegrityError

GROUP = 1 << 17
"""Elements that are ordered by depth together."""


def _whole(length: int, dtype: Dtype) -> int:
    return length - length % dtype.item_bytes


def _bits(dtype: Dtype) -> int:
    return 4 if dtype == Dtype.I4 else 8 * dtype.item_bytes


# --- sub -------------------------------------------------------------------------------------------------------------


def sub_plain(old: bytes, new: bytes, dtype: Dtype) -> bytes:
    """What `sub` packs."""
    before, after = elements_from(old, dtype), elements_from(new, dtype)
    folded = np.empty_like(before)
    for at in range(0, len(before), GROUP):
        group = slice(at, at + GROUP)
        folded[group] = residuals(before[group], after[group], dtype, is_along=dtype.is_float)
        order = _order(before[group], dtype)
        if order is not None:
            folded[group] = folded[group][order]
    shuffled = bytes_from(folded, dtype) if dtype == Dtype.I4 else planes(folded)
    return shuffled.tobytes() + new[_whole(len(new), dtype) :]


def sub_rebuilt(old: bytes, patch: bytes, length: int, dtype: Dtype) -> bytes:
    """The inverse of `sub_plain`, packed."""
    plain = unzipped(patch, length, length)
    whole = _whole(length, dtype)
    before = elements_from(old, dtype)
    folded = _folded(plain, whole, dtype)
    out = np.empty(length, np.uint8)
    for at in range(0, len(before), GROUP):
        group = slice(at, at + GROUP)
        part = folded[group]
        order = _order(before[group], dtype)
        if order is not None:
            part = np.empty_like(part)
            part[order] = folded[group]
        _put(out, at, restored(before[group], part, dtype, is_along=dtype.is_float), dtype)
    out[whole:] = np.frombuffer(plain, np.uint8)[whole:]
    return out.tobytes()


def _order(before: Ints, dtype: Dtype) -> "np.typing.NDArray[np.intp] | None":
    """Where the elements of a group come from, when those of one depth stand together; None: where they are."""
    depth = depths(before, dtype)
    return None if depth is None else np.argsort(depth, kind="stable")


def _folded(plain: bytes, whole: int, dtype: Dtype) -> Ints:
    if dtype == Dtype.I4:
        return elements_from(plain[:whole], dtype)
    return from_planes(plain, whole // dtype.item_bytes, dtype.item_bytes)


def _put(out: Bytes, at: int, elements: Ints, dtype: Dtype) -> None:
    """Stands elements from the `at`th on."""
    data = bytes_from(elements, dtype)
    begin = at // 2 if dtype == Dtype.I4 else at * dtype.item_bytes
    out[begin : begin + len(data)] = data


# --- sub+rans --------------------------------------------------------------------------------------------------------


def rans_patch(old: bytes, new: bytes, dtype: Dtype, lanes_log2: int) -> bytes:
    """The patch bytes of `sub+rans`."""
    before, after = elements_from(old, dtype), elements_from(new, dtype)
    folded = residuals(before, after, dtype, is_along=dtype.is_float)
    shape = rans.Shape(len(before), _bits(dtype), lanes_log2, dtype.is_float)
    return new[_whole(len(new), dtype) :] + rans.encode(folded, depths(before, dtype), shape)


def rans_rebuilt(old: bytes, patch: bytes, length: int, dtype: Dtype, lanes_log2: int) -> bytes:
    """The inverse of `rans_patch`."""
    whole = _whole(length, dtype)
    before = elements_from(old, dtype)
    if len(before) == 0 or len(patch) < length - whole:
        raise IntegrityError(f"no coded stream of {length} bytes")
    out = np.empty(length, np.uint8)
    out[whole:] = np.frombuffer(patch, np.uint8, length - whole)
    shape = rans.Shape(len(before), _bits(dtype), lanes_log2, dtype.is_float)
    at = 0
    for values in rans.decode(patch[length - whole :], depths(before, dtype), shape):
        part = before[at : at + len(values)]
        _put(out, at, restored(part, values.astype(part.dtype), dtype, is_along=dtype.is_float), dtype)
        at += len(values)
    return out.tobytes()


# --- xor and shuffle -------------------------------------------------------------------------------------------------


def xor_plain(old: bytes, new: bytes, dtype: Dtype) -> bytes:
    """What `xor` packs: planes of old xor new."""
    whole = _whole(len(new), dtype)
    width = dtype.item_bytes
    differing = np.frombuffer(old, np.uint8, whole) ^ np.frombuffer(new, np.uint8, whole)
    return planes(differing.view(f"<u{width}")).tobytes() + new[whole:]


def xor_rebuilt(old: bytes, patch: bytes, length: int, dtype: Dtype) -> bytes:
    """The inverse of `xor_plain`, packed."""
    plain = unzipped(patch, length, length)
    whole = _whole(length, dtype)
    out = from_planes(plain, whole // dtype.item_bytes, dtype.item_bytes).view(np.uint8)
    out ^= np.frombuffer(old, np.uint8, whole)
    return out.tobytes() + plain[whole:]


def shuffle_plain(new: bytes, dtype: Dtype) -> bytes:
    """What `shuffle` packs: planes of the new elements."""
    whole = _whole(len(new), dtype)
    return planes(np.frombuffer(new, f"<u{dtype.item_bytes}", whole // dtype.item_bytes)).tobytes() + new[whole:]


def shuffle_rebuilt(patch: bytes, length: int, dtype: Dtype, packing: Packing) -> bytes:
    """The inverse of `shuffle_plain`, packed."""
    plain = unpacked(patch, packing, length, length)
    whole = _whole(length, dtype)
    return from_planes(plain, whole // dtype.item_bytes, dtype.item_bytes).tobytes() + plain[whole:]
