"""How few bytes the tensors of a pair could take: estimated conditional entropy of new values given the old ones.

For each tensor that both files have: the residual of the new value against the old one on an integer scale that keeps
the order of floats, and the *class* of the old value: its exponent (floats) or its sign and bit length (integers).

- `plain`: order-0 entropy of the residual given the class; the goal speaks of it. It knows the frequencies for nothing,
  so a small tensor with many values seems cheaper than any coder can make it.
- `learned`: what an ideal adaptive coder pays that learns these frequencies on the way: Krichevsky-Trofimov estimates
  at each bit of the residual, from the highest, a tree a class.

Either is the smaller of this and the same for the new value alone, so a retrained tensor counts as what it is. 32-bit
values: sign, length and the first bits of the residual are counted so, and the bits below as they are. Values that have
no partner count in full. Bytes that are in no tensor count nothing.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Layout = list[list[Any]]
_HEAD_BITS = 7
_MOST_COUNTERS = 1 << 23
"""Numbers are counted in a table of at most so many."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes."""

    plain: float = 0.0
    learned: float = 0.0

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.plain + other.plain, self.learned + other.learned)


def ordered(bits: Array) -> Array:
    """The bits of floats (unsigned) as signed integers in the floats' order; both zeros are neighbours."""
    width = bits.dtype.itemsize * 8
    magnitude = (bits & np.array((1 << (width - 1)) - 1, bits.dtype)).astype(np.int64)
    return np.where(bits >> np.array(width - 1, bits.dtype), -1 - magnitude, magnitude)


def float_class(bits: Array, mantissa_bits: int) -> Array:
    """The exponents of floats, from their bits."""
    exponent_bits = bits.dtype.itemsize * 8 - 1 - mantissa_bits
    return (bits.astype(np.int64) >> mantissa_bits) & ((1 << exponent_bits) - 1)


def integer_class(values: Array) -> Array:
    """Sign and bit length of small integers: 0 for 0, then 1, 2, ... for 1, 2-3, ... and -1, -2, ... below."""
    lengths = np.frexp(np.abs(values.astype(np.float64)))[1]
    return np.where(values < 0, -lengths, lengths)


def plain_bits(symbols: Array, classes: Array) -> float:
    """Order-0 entropy of all symbols given their classes, in bits."""
    if not symbols.size:
        return 0.0
    joint = (classes - classes.min()).astype(np.int64) * (np.int64(np.ptp(symbols)) + 1) + (symbols - symbols.min())
    return _total_bits(_counts(joint)) - _total_bits(_counts(classes - classes.min()))


def _counts(numbers: Array) -> Array:
    """How often each of these non-negative numbers occurs that does."""
    if int(numbers.max()) >= _MOST_COUNTERS:
        return np.unique(numbers, return_counts=True)[1]
    counts = np.bincount(numbers)
    return counts[counts > 0]


def _total_bits(counts: Array) -> float:
    """n * entropy of a histogram."""
    total = counts.sum()
    return float(total * np.log2(total) - (counts * np.log2(counts)).sum())


def learned_bits(symbols: Array, classes: Array, width: int) -> float:
    """Bits of an adaptive binary coder (Krichevsky-Trofimov) over symbols of `width` bits, a tree a class.

    Args:
        symbols: integers; only their lowest `width` bits count.
        classes: one a symbol.
        width: bits, at most 16.
    """
    if not symbols.size:
        return 0.0
    shifted = (symbols.astype(np.int64) + (1 << (width - 1))) & ((1 << width) - 1)
    table = _ones_half(int(symbols.size))
    bits = 0.0
    low = classes.min()
    found = np.flatnonzero(np.bincount(classes - low)) + low
    at_once = max(1, _MOST_COUNTERS >> width)
    for first in range(0, found.size, at_once):
        trees = found[first : first + at_once]
        ours = np.isin(classes, trees) if found.size > at_once else slice(None)
        joint = (np.searchsorted(trees, classes[ours]) << width) + shifted[ours]
        counts = np.bincount(joint, minlength=trees.size << width).reshape(trees.size, -1)
        while counts.shape[1] > 1:
            left, right = counts[:, 0::2], counts[:, 1::2]
            used = left + right > 0
            left, right = left[used], right[used]
            bits += float((table[1][left + right] - table[0][left] - table[0][right]).sum())
            counts = counts[:, 0::2] + counts[:, 1::2]
    return bits


@lru_cache(1)
def _ones_half(count: int) -> tuple[Array, Array]:
    """log2 of (1/2)(3/2)...(k - 1/2), and of k!, for k up to `count`."""
    steps = np.arange(1, count + 1, dtype=np.float64)
    zero = np.zeros(1)
    return np.concatenate([zero, np.log2(steps - 0.5).cumsum()]), np.concatenate([zero, np.log2(steps).cumsum()])


def _wide(symbols: Array, classes: Array) -> Estimate:
    """Of residuals of 32 bits and more: sign, length and the first bits by frequency, the rest as they are."""
    lengths = np.frexp(np.abs(symbols.astype(np.float64)))[1].astype(np.int64)
    below = np.maximum(lengths - 1 - _HEAD_BITS, 0)
    head = (np.abs(symbols) >> below) & ((1 << _HEAD_BITS) - 1)
    signed = np.where(symbols < 0, -lengths, lengths)
    raw = float(below.sum())
    joint = (classes - classes.min()) * 130 + signed + 65
    plain = plain_bits(signed, classes) + plain_bits(head, joint)
    learned = learned_bits(signed, classes, 7) + learned_bits(head - (1 << _HEAD_BITS - 1), signed, _HEAD_BITS)
    return Estimate((plain + raw) / 8, (learned + raw) / 8)


def values(new: Array, old: Array, classes: Array, width: int) -> Estimate:
    """Of new values given old ones of the same scale.

    Args:
        new, old: int64, of one length, within `width` bits.
        classes: of the old values.
        width: bits of a value.
    """
    none = np.zeros_like(classes)
    found = []
    for symbols, given in ((new - old, classes), (new, none)):
        if width > 16:
            found.append(_wide(symbols, given))
            continue
        half = 1 << (width - 1)
        folded = ((symbols + half) & ((1 << width) - 1)) - half
        found.append(Estimate(plain_bits(folded, given) / 8, learned_bits(folded, given, width) / 8))
    return Estimate(min(row.plain for row in found), min(row.learned for row in found))


def _columns(data: bytes, dtype: str) -> list[tuple[str, Array]]:
    """A tensor's bytes as arrays of one kind of number: blocks of quantised formats are taken apart."""
    if dtype in {"q8_0", "q4_0"}:
        block = np.frombuffer(data, np.uint8).reshape(-1, 34 if dtype == "q8_0" else 18)
        scales = np.ascontiguousarray(block[:, :2]).view(np.uint16).ravel()
        quants = np.ascontiguousarray(block[:, 2:]).ravel()
        if dtype == "q8_0":
            return [("f16", scales), ("i8", quants.view(np.int8))]
        return [("f16", scales), ("i4", (quants & 15).astype(np.int64) - 8), ("i4", (quants >> 4).astype(np.int64) - 8)]
    kinds = {"f32": np.uint32, "bf16": np.uint16, "f16": np.uint16, "i8": np.int8, "u8": np.uint8, "i32": np.int32}
    return [(dtype, np.frombuffer(data, kinds[dtype]))]


_MANTISSAS = {"f32": 23, "bf16": 7, "f16": 10}
_WIDTHS = {"f32": 32, "i32": 32, "bf16": 16, "f16": 16, "i8": 8, "u8": 8, "i4": 4}


def tensor(old: bytes, new: bytes, dtype: str, old_shape: list[int], new_shape: list[int]) -> Estimate:
    """Of one tensor, given the one of the same name before."""
    total = Estimate()
    for (kind, before), (_, after) in zip(_columns(old, dtype), _columns(new, dtype), strict=True):
        if before.size != after.size and len(old_shape) == len(new_shape):
            common = tuple(slice(min(pair)) for pair in zip(old_shape, new_shape, strict=True))
            rest = np.ones(new_shape, bool)
            rest[common] = False
            alone = after.reshape(new_shape)[rest]
            before, after = before.reshape(old_shape)[common].ravel(), after.reshape(new_shape)[common].ravel()
            total += _same(alone, alone, kind, False)
        total += _same(before, after, kind, before.size == after.size)
    return total


def _same(before: Array, after: Array, kind: str, known: bool) -> Estimate:
    """Of arrays of one length; `before` is of no use unless `known`."""
    if kind in _MANTISSAS:
        classes, old, new = float_class(before, _MANTISSAS[kind]), ordered(before), ordered(after)
    else:
        old, new = before.astype(np.int64), after.astype(np.int64)
        classes = integer_class(old)
    if not known:
        old, classes = np.zeros_like(new), np.zeros_like(new)
    return values(new, old, classes, _WIDTHS[kind])


def pair(old: Path, new: Path, layout: dict[str, Layout]) -> Estimate:
    """Of all tensors of a pair, read one by one."""
    before = {row[0]: row for row in layout["old"]}
    total = Estimate()
    with old.open("rb") as old_file, new.open("rb") as new_file:
        for name, offset, length, dtype, shape in layout["new"]:
            new_file.seek(offset)
            data = new_file.read(length)
            known = before.get(name)
            if known is None or known[3] != dtype:
                for kind, array in _columns(data, dtype):
                    total += _same(array, array, kind, False)
                continue
            old_file.seek(known[1])
            total += tensor(old_file.read(known[2]), data, dtype, known[4], shape)
    return total
