"""The operations on tensors' elements: sub, sub+rans, mixed, xor, shuffle. Pure but for numpy; layouts in FORMATS.md.

Only a process that meets such a segment imports this: numpy costs it 20 MB. What isn't a whole element at a segment's
end stands behind the elements as it is.
"""

import numpy as np

from heliograph.delta import rans
from heliograph.delta.contexts import Shape
from heliograph.delta.dtypes import Dtype
from heliograph.delta.elements import (
    Bytes,
    Ints,
    bytes_from,
    depths,
    elements_from,
    planes,
    residuals,
    restored,
)
from heliograph.delta.mixture import MAX_LANES_LOG2, Mixture
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


def rans_patch(
    old: bytes | bytearray, new: bytes | bytearray, dtype: Dtype, lanes_log2: int, behind: bytes = b""
) -> bytes:
    """The patch bytes of `sub+rans`, and in them what comes behind."""
    before, after = elements_from(old, dtype), elements_from(new, dtype)
    folded = residuals(before, after, dtype, is_along=dtype.is_float)
    shape = Shape(len(before), _bits(dtype), lanes_log2, dtype.is_float)
    return bytes(new[_whole(len(new), dtype) :]) + rans.encode(folded, depths(before, dtype), shape, behind)


def rans_rebuilt(old: bytes | bytearray, patch: bytes, length: int, dtype: Dtype, lanes_log2: int) -> bytearray:
    """The inverse of `rans_patch`, nothing behind."""
    out, behind = rans_opened(old, patch, length, dtype, lanes_log2)
    shape = Shape(dtype.count(length), _bits(dtype), lanes_log2, dtype.is_float)
    rans.check_end(memoryview(patch)[length % dtype.item_bytes :], behind, shape)
    return out


def rans_opened(
    old: bytes | bytearray, patch: bytes, length: int, dtype: Dtype, lanes_log2: int
) -> tuple[bytearray, bytes]:
    """The inverse of `rans_patch`: the elements, and what comes behind them, with some zeros if it is short."""
    tail = length % dtype.item_bytes
    count = dtype.count(length)
    if count == 0 or len(patch) < tail:
        raise IntegrityError(f"no coded stream of {length} bytes")
    shape = Shape(count, _bits(dtype), lanes_log2, dtype.is_float)
    depth = depths(elements_from(old, dtype), dtype) if dtype.is_float else None
    runs, behind = rans.opened(memoryview(patch)[tail:], depth, shape)
    out = bytearray(length)
    target = np.frombuffer(out, np.uint8)
    target[length - tail :] = np.frombuffer(patch, np.uint8, tail)
    at = 0
    for values in runs:
        end = at + (len(values) // 2 if dtype == Dtype.I4 else len(values) * dtype.item_bytes)
        before = elements_from(memoryview(old)[at:end], dtype)
        after = restored(before, values, dtype, is_along=dtype.is_float)
        target[at:end] = bytes_from(after, dtype)
        at = end
    return out, behind


# --- mixed -----------------------------------------------------------------------------------------------------------


def gathered(data: bytes | bytearray | memoryview, mixture: Mixture, dtype: Dtype) -> bytearray:
    """All bytes of one type."""
    out = bytearray(mixture.bytes_of(dtype))
    _move(np.frombuffer(data, np.uint8), np.frombuffer(out, np.uint8), mixture, dtype, is_back=False)
    return out


def _move(whole: Bytes, apart: Bytes, mixture: Mixture, dtype: Dtype, *, is_back: bool) -> None:
    """The bytes of one type from the whole to where they stand alone, or back."""
    done = 0
    for place in mixture.places(dtype):
        repeated = place.count * place.length
        end = place.at + place.count * place.period
        if place.count:
            # The last period may be cut short behind the part.
            last = place.at + (place.count - 1) * place.period + place.length
            there = np.lib.stride_tricks.as_strided(
                whole[place.at : last], (place.count, place.length), (place.period, 1), writeable=is_back
            )
            here = apart[done : done + repeated].reshape(place.count, place.length)
            if is_back:
                there[:] = here
            else:
                here[:] = there
        rest = slice(done + repeated, done + repeated + place.left)
        if is_back:
            whole[end : end + place.left] = apart[rest]
        else:
            apart[rest] = whole[end : end + place.left]
        done = rest.stop


def mixed_patch(old: bytes, new: bytes, mixture: Mixture) -> bytes:
    """The patch bytes of `mixed`: each type by `sub+rans`, the next ones behind it."""
    patch = b""
    for dtype, lanes in reversed(list(zip(mixture.types, mixture.lanes, strict=True))):
        patch = rans_patch(gathered(old, mixture, dtype), gathered(new, mixture, dtype), dtype, lanes, patch)
    return patch


def mixed_rebuilt(old: bytes, patch: bytes, length: int, mixture: Mixture) -> bytearray:
    """The inverse of `mixed_patch`."""
    out = bytearray(length)
    target = np.frombuffer(out, np.uint8)
    for dtype, lanes in zip(mixture.types, mixture.lanes, strict=True):
        before = gathered(old, mixture, dtype)
        after, patch = rans_opened(before, patch, len(before), dtype, lanes)
        _move(target, np.frombuffer(after, np.uint8), mixture, dtype, is_back=True)
    if any(patch) or len(patch) > 2 << MAX_LANES_LOG2:
        raise IntegrityError(f"{len(patch)} bytes follow the streams of a mixture")
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
