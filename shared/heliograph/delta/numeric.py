"""The operations on tensors' elements: sub, sub+rans, xor, shuffle. Pure but for numpy; layouts in FORMATS.md.

Only a process that meets such a segment imports this: numpy costs it 20 MB. What isn't a whole element at a segment's
end stands behind the elements as it is.
"""

import numpy as np

from heliograph.delta import rans
from heliograph.delta.dtypes import Dtype
from heliograph.delta.elements import (
    Ints,
    bytes_from,
    depths,
    elements_from,
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


def sub_rebuilt(old: bytes, patch: bytes, length: int, dtype: Dtype) -> bytearray:
    """The inverse of `sub_plain`, packed."""
    plain = unzipped(patch, length, length)
    whole = _whole(length, dtype)
    width = dtype.item_bytes
    shuffled = np.frombuffer(plain, np.uint8, whole).reshape(width, whole // width)
    out = bytearray(length)
    target = np.frombuffer(out, np.uint8)
    group_bytes = GROUP // 2 if dtype == Dtype.I4 else GROUP * width
    for at in range(0, whole, group_bytes):
        end = min(at + group_bytes, whole)
        before = elements_from(memoryview(old)[at:end], dtype)
        part = elements_from(shuffled[:, at // width : end // width].T.tobytes(), dtype)
        order = _order(before, dtype)
        if order is not None:
            grouped, part = part, np.empty_like(part)
            part[order] = grouped
        target[at:end] = bytes_from(restored(before, part, dtype, is_along=dtype.is_float), dtype)
    target[whole:] = np.frombuffer(plain, np.uint8)[whole:]
    return out


def _order(before: Ints, dtype: Dtype) -> "np.typing.NDArray[np.intp] | None":
    """Where the elements of a group come from, when those of one depth stand together; None: where they are."""
    depth = depths(before, dtype)
    return None if depth is None else np.argsort(depth, kind="stable")


# --- sub+rans --------------------------------------------------------------------------------------------------------


def rans_patch(old: bytes, new: bytes, dtype: Dtype, lanes_log2: int) -> bytes:
    """The patch bytes of `sub+rans`."""
    before, after = elements_from(old, dtype), elements_from(new, dtype)
    folded = residuals(before, after, dtype, is_along=dtype.is_float)
    shape = rans.Shape(len(before), _bits(dtype), lanes_log2, dtype.is_float)
    return new[_whole(len(new), dtype) :] + rans.encode(folded, depths(before, dtype), shape)


def rans_rebuilt(old: bytes, patch: bytes, length: int, dtype: Dtype, lanes_log2: int) -> bytearray:
    """The inverse of `rans_patch`."""
    tail = length % dtype.item_bytes
    count = dtype.count(length)
    if count == 0 or len(patch) < tail:
        raise IntegrityError(f"no coded stream of {length} bytes")
    shape = rans.Shape(count, _bits(dtype), lanes_log2, dtype.is_float)
    depth = depths(elements_from(old, dtype), dtype) if dtype.is_float else None
    runs = rans.decode(memoryview(patch)[tail:], depth, shape)
    out = bytearray(length)
    target = np.frombuffer(out, np.uint8)
    target[length - tail :] = np.frombuffer(patch, np.uint8, tail)
    at = 0
    for values in runs:
        end = at + (len(values) // 2 if dtype == Dtype.I4 else len(values) * dtype.item_bytes)
        before = elements_from(memoryview(old)[at:end], dtype)
        after = restored(before, values.astype(before.dtype), dtype, is_along=dtype.is_float)
        target[at:end] = bytes_from(after, dtype)
        at = end
    return out


# --- xor and shuffle -------------------------------------------------------------------------------------------------


def xor_plain(old: bytes, new: bytes, dtype: Dtype) -> bytes:
    """What `xor` packs: planes of old xor new."""
    whole = _whole(len(new), dtype)
    width = dtype.item_bytes
    differing = np.frombuffer(old, np.uint8, whole) ^ np.frombuffer(new, np.uint8, whole)
    return planes(differing.view(f"<u{width}")).tobytes() + new[whole:]


def xor_rebuilt(old: bytes, patch: bytes, length: int, dtype: Dtype) -> bytearray:
    """The inverse of `xor_plain`, packed."""
    out = _from_planes(unzipped(patch, length, length), length, dtype)
    whole = _whole(length, dtype)
    target = np.frombuffer(out, np.uint8, whole)
    target ^= np.frombuffer(old, np.uint8, whole)
    return out


def _from_planes(plain: bytes, length: int, dtype: Dtype) -> bytearray:
    """Elements from their planes, and what stands behind."""
    width = dtype.item_bytes
    whole = _whole(length, dtype)
    out = bytearray(length)
    target = np.frombuffer(out, np.uint8)
    target[:whole].reshape(-1, width)[:] = np.frombuffer(plain, np.uint8, whole).reshape(width, whole // width).T
    target[whole:] = np.frombuffer(plain, np.uint8)[whole:]
    return out


def shuffle_plain(new: bytes, dtype: Dtype) -> bytes:
    """What `shuffle` packs: planes of the new elements."""
    whole = _whole(len(new), dtype)
    return planes(np.frombuffer(new, f"<u{dtype.item_bytes}", whole // dtype.item_bytes)).tobytes() + new[whole:]


def shuffle_rebuilt(patch: bytes, length: int, dtype: Dtype, packing: Packing) -> bytearray:
    """The inverse of `shuffle_plain`, packed."""
    return _from_planes(unpacked(patch, packing, length, length), length, dtype)
