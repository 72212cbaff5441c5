"""How much alike tensors are, by samples: which of the old tensors, or of its rows, a new one was made from.

Likeness is the correlation of elements at the same places, floats taken by their bits as integers (first the sign,
then the exponent): 1 for the same, near 1 for what was trained on, and near 0 for what has nothing to do with it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.delta.buffer import Buffer
from heliograph.delta.dtypes import Dtype

SAMPLED = 512
"""Elements of a tensor that are looked at."""
ALIKE = 0.3
"""Least likeness of tensors that belong together: seven times what chance gives to 512 elements."""
LEAST_ELEMENTS = 64
"""Tensors of fewer are alike by chance."""
ROW_ALIKE = 0.7
"""The same for rows, of which only 64 elements are looked at, among at most 2^17."""
_ROW_SAMPLED = 64
_MAX_ROWS = 1 << 17
_MAX_SEARCHES = 400
_RUNS = 16
_TYPES: dict[Dtype, str] = {
    Dtype.U8: "u1", Dtype.I8: "i1", Dtype.I4: "u1", Dtype.F8: "i1",
    Dtype.U16: "<u2", Dtype.I16: "<i2", Dtype.F16: "<i2", Dtype.BF16: "<i2",
    Dtype.U32: "<u4", Dtype.I32: "<i4", Dtype.F32: "<i4",
    Dtype.U64: "<u8", Dtype.I64: "<i8", Dtype.F64: "<i8",
}  # fmt: skip

Floats = NDArray[np.float32]


def sample(data: Buffer, at: int, length: int, dtype: Dtype) -> Floats:
    """At most 512 elements of a tensor, from 16 places: unit length, mean 0; all 0 if all are the same."""
    elements = length // dtype.item_bytes
    if elements <= SAMPLED:
        return _one(data[at : at + length], dtype)
    size = SAMPLED // _RUNS
    parts = []
    for index in range(_RUNS):
        start = at + (elements - size) * index // (_RUNS - 1) * dtype.item_bytes
        parts.append(data[start : start + size * dtype.item_bytes])
    return _one(b"".join(parts), dtype)


def _one(text: bytes, dtype: Dtype) -> Floats:
    out: Floats = _normal(_values(text, dtype)[None])[0]
    return out


def likeness(one: Floats, other: Floats) -> float:
    """Of two samples, -1 to 1."""
    return float(one @ other)


def best_pairs(news: Sequence[Floats], olds: Sequence[Floats]) -> list[tuple[int, int]]:
    """Which new and which old samples belong together, the most alike first and each once; of equals the first."""
    scores = np.stack(news) @ np.stack(olds).T
    pairs = []
    order = np.argsort(-scores, axis=None, kind="stable")
    used_new, used_old = np.zeros(len(news), np.bool_), np.zeros(len(olds), np.bool_)
    for place in order[: np.count_nonzero(scores >= ALIKE)].tolist():
        one, other = divmod(place, len(olds))
        if not used_new[one] and not used_old[other]:
            used_new[one] = used_old[other] = True
            pairs.append((one, other))
    return pairs


def row_runs(
    old: Buffer, old_at: int, old_rows: int, new: Buffer, new_at: int, new_rows: int, row_bytes: int, dtype: Dtype
) -> list[tuple[int, int, int]]:
    """(first new row, its old row, rows) of runs of rows that belong together, where rows were put in or taken out.

    Looks at some rows of the new tensor, finds each among all the old ones, and halves what lies between two that
    aren't at the same distance. Nothing, where there are more than 2^17 rows, or where the first rows are alike and
    all others follow.
    """
    if not 0 < old_rows <= _MAX_ROWS or not new_rows or row_bytes < LEAST_ELEMENTS * dtype.item_bytes:
        return []
    columns = np.arange(_ROW_SAMPLED) * (row_bytes // dtype.item_bytes - 1) // (_ROW_SAMPLED - 1)
    olds = np.empty((old_rows, _ROW_SAMPLED), np.float32)
    for first in range(0, old_rows, 256):
        count = min(256, old_rows - first)
        olds[first : first + count] = _rows(old, old_at + first * row_bytes, count, row_bytes, dtype, columns)
    searches = 0
    known: dict[int, int | None] = {}

    def shift_at(row: int) -> int | None:
        """Old row minus new row, of the most alike."""
        nonlocal searches
        if row not in known:
            searches += 1
            scores = olds @ _rows(new, new_at + row * row_bytes, 1, row_bytes, dtype, columns)[0]
            best = int(np.argmax(scores))
            known[row] = best - row if scores[best] >= ROW_ALIKE else None
        return known[row]

    probes = sorted({(new_rows - 1) * index // 32 for index in range(33)})
    waiting = list(pairwise(probes))[::-1] or [(0, 0)]
    runs: list[tuple[int, int, int]] = []

    def append(row: int, rows: int) -> None:
        shift = shift_at(row)
        if shift is None or not rows:
            return
        if runs and runs[-1][0] + runs[-1][2] == row and runs[-1][1] - runs[-1][0] == shift:
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + rows)
        else:
            runs.append((row, row + shift, rows))

    while waiting:
        low, high = waiting.pop()
        if high - low > 1 and shift_at(low) != shift_at(high) and searches < _MAX_SEARCHES:
            middle = (low + high) // 2
            waiting += [(middle, high), (low, middle)]
        elif shift_at(low) == shift_at(high) or high - low <= 1:
            append(low, high - low)
    append(new_rows - 1, 1)
    return [(row, there, min(rows, old_rows - there)) for row, there, rows in runs]


def _rows(
    data: Buffer, at: int, count: int, row_bytes: int, dtype: Dtype, columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Samples of so many rows from `at`, each normal."""
    text = data[at : at + count * row_bytes]
    return _normal(_values(text, dtype, (count, row_bytes // dtype.item_bytes), columns))


def _values(
    text: bytes, dtype: Dtype, shape: tuple[int, int] | None = None, columns: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Elements as numbers."""
    raw: NDArray[Any] = np.frombuffer(text, np.dtype(_TYPES[dtype]))
    if shape is not None and columns is not None:
        raw = raw.reshape(shape)[:, columns]
    if dtype == Dtype.I4:
        raw = np.concatenate([raw & 15 ^ 8, raw >> 4 ^ 8], axis=-1)  # two's complement, in order
    out: NDArray[np.float32] = raw.astype(np.float32)
    return out


def _normal(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of mean 0 and length 1; a row all of whose elements are the same is 0."""
    centred = values - values.mean(axis=1, keepdims=True)
    lengths = np.sqrt((centred * centred).sum(axis=1, keepdims=True))
    out: NDArray[np.float32] = np.where(lengths > 1e-6, centred / np.maximum(lengths, 1e-6), 0)
    return out
