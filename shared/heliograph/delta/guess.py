"""Guesses what the elements of bytes of no known type are, where that makes their differences smaller."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.delta.buffer import Buffer
from heliograph.delta.dtypes import Dtype

LEAST_BYTES = 64 << 10
"""Less isn't worth the look."""
_RUNS, _RUN_BYTES = 8, 8 << 10
_CLASSES = 16
_LEAST_GAIN = 0.95
_LEAST_CHANGED = 0.01
# Unsigned type; bits below the exponent, whose value says how large differences are; floats of half a word are told
# apart by which exponent says more.
_WIDE = (
    (Dtype.BF16, "<u2", 7), (Dtype.F16, "<u2", 10), (Dtype.F32, "<u4", 23), (Dtype.F64, "<u8", 52),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Guess:
    """Elements of `dtype`, the first of which begins `phase` bytes after the range does."""

    dtype: Dtype
    phase: int


def guessed(old: Buffer, old_at: int, new: Buffer, new_at: int, length: int) -> Guess | None:
    """What `new[new_at:new_at + length]`, aligned with `old[old_at:]`, is made of; None where that is of no use, and
    where nearly all is unchanged.

    The test is cheap: of 64 KiB, the entropy of the differences under each type and at each phase, given the old
    element's exponent. A type is named if it promises 5 % less than differences of bytes do, bytes (I8) if
    their differences promise 5 % less than they themselves.
    """
    if length < LEAST_BYTES:
        return None
    places = [(length - _RUN_BYTES) * index // (_RUNS - 1) // 8 * 8 for index in range(_RUNS)]
    olds, news = (
        [np.frombuffer(data[at + place : at + place + _RUN_BYTES], np.uint8) for place in places]
        for data, at in ((old, old_at), (new, new_at))
    )
    old_bytes, new_bytes = np.concatenate(olds), np.concatenate(news)
    if np.count_nonzero(old_bytes != new_bytes) < _LEAST_CHANGED * len(new_bytes):
        return None
    plain = _entropy(new_bytes)
    best, least = None, plain * _LEAST_GAIN
    differences = _entropy(new_bytes - old_bytes)
    if differences < least:
        best, least = Guess(Dtype.I8, 0), differences * _LEAST_GAIN
    for dtype, code, exponent in _WIDE:
        for phase in range(dtype.item_bytes):
            size = _RUN_BYTES - (dtype.item_bytes if phase else 0)
            one, other = (np.concatenate([run[phase : phase + size] for run in runs]) for runs in (olds, news))
            cost = _cost(one.view(code), other.view(code), exponent)
            if cost < least:
                best, least = Guess(dtype, phase), cost
    return best


def _cost(olds: NDArray[Any], news: NDArray[Any], exponent: int) -> float:
    """Bits a byte of the differences, given the class of the old element: how far it is below the largest."""
    width = olds.dtype.itemsize
    top = 8 * width - 1
    classes = (olds >> exponent).astype(np.int64) & ((1 << (top - exponent)) - 1)
    classes = np.minimum(classes.max() - classes, _CLASSES - 1)
    change = news - olds
    folded = (change << 1) ^ np.where(change >> top, ~np.zeros_like(change), 0)  # or the sign would be in every byte
    planes = folded.astype(olds.dtype).view(np.uint8).reshape(-1, width)
    return sum(_entropy(planes[:, plane], classes) for plane in range(width)) / width


def _entropy(symbols: NDArray[np.uint8], classes: NDArray[np.int64] | None = None) -> float:
    """Bits a symbol, given its class; corrected for what few samples hide (Miller and Madow)."""
    counts = np.bincount(symbols if classes is None else symbols + 256 * classes)
    whole, cells = _bits(counts), np.count_nonzero(counts)
    if classes is not None:
        by_class = np.bincount(classes)
        whole, cells = whole - _bits(by_class), cells - np.count_nonzero(by_class)
    return float(whole + cells / (2 * len(symbols) * math.log(2)))


def _bits(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
