"""Finds what the bytes of quantised weights are: blocks of a scale and the values it is for; pure but for numpy.

No table tells where in a segment a block begins, since segments are cut anywhere between bytes. But the upper byte of a
scale is of few kinds, and stands at the same place in all blocks: that is looked for, for each kind of block.
"""

from collections.abc import Sequence

import numpy as np

from heliograph.delta.dtypes import Dtype
from heliograph.delta.mixture import MAX_MIXED_BYTES, MAX_STRETCHES, MAX_TYPES, Mixture, Pattern, Stretch

LEAST_BYTES = 4096
_LOOKED_AT = 512
"""Blocks of the sample."""
_FEW_KINDS = 48
_KINDS: tuple[Pattern, ...] = (
    ((Dtype.F16, 2), (Dtype.I8, 32)),  # Q8_0
    ((Dtype.F16, 2), (Dtype.I4, 16)),  # Q4_0, IQ4_NL
)


def mixture_of(pieces: Sequence[tuple[Dtype, int]], new: bytes) -> Mixture | None:
    """What a segment of these pieces (what, bytes) is a mixture of; None if it isn't, or of too much."""
    if len(new) > MAX_MIXED_BYTES:
        return None
    stretches: list[Stretch] = []
    at = 0
    for dtype, length in pieces:
        pattern = _pattern(new[at : at + length]) if dtype == Dtype.U8 else None
        last = stretches[-1] if stretches else None
        if pattern is None and last is not None and [of for of, _ in last.parts] == [dtype]:
            stretches.pop()
            stretches.append(Stretch(last.length + length, ((dtype, last.length + length),)))
        else:
            stretches.append(Stretch(length, pattern or ((dtype, length),)))
        at += length
    mixture = Mixture(tuple(stretches))
    types = mixture.types
    if len(stretches) > MAX_STRETCHES or not 2 <= len(types) <= MAX_TYPES:
        return None
    if any(dtype.count(mixture.bytes_of(dtype)) < 1 for dtype in types):
        return None
    return mixture


def _pattern(text: bytes) -> Pattern | None:
    """The pattern of blocks, turned so that it begins where the text does."""
    found: tuple[int, int, Pattern] | None = None
    for kind in _KINDS:
        size = sum(length for _, length in kind)
        count = min(len(text) // size, _LOOKED_AT)
        if len(text) < LEAST_BYTES:
            continue
        columns = np.sort(np.frombuffer(text, np.uint8, count * size).reshape(count, size), axis=0)
        kinds = 1 + np.count_nonzero(np.diff(columns, axis=0), axis=0)
        upper = int(kinds.argmin())
        others = int(np.median(kinds))
        is_told = upper > 0 and kinds[upper] <= _FEW_KINDS and 2 * kinds[upper] < others
        if is_told and (found is None or kinds[upper] < found[0]):
            found = int(kinds[upper]), upper - 1, kind
    if found is None:
        return None
    _, before, ((scale, scale_bytes), (values, values_bytes)) = found
    if not before:
        return found[2]
    if before + scale_bytes >= values_bytes + scale_bytes:
        return (values, before), (scale, scale_bytes)
    return (values, before), (scale, scale_bytes), (values, values_bytes - before)
