"""GGUF, versions 2 and 3, little-endian: typed metadata, the table, the data. Source: ggml, docs/gguf.md.

Blocks of quantised values (one scale, many small integers) are bytes here, aligned by whole blocks.
"""

import math
import struct

from heliograph.delta.dtypes import Dtype
from heliograph.delta.tensors.table import MAX_AXES, MAX_TENSORS, U32, U64, OddError, Tensor, View

_DTYPES = {
    0: Dtype.F32, 1: Dtype.F16, 24: Dtype.I8, 25: Dtype.I16, 26: Dtype.I32, 27: Dtype.I64, 28: Dtype.F64,
    30: Dtype.BF16,
}  # fmt: skip
# Type: its name, values of a block, bytes of a block. Source: ggml, gguf-py/gguf/constants.py, GGML_QUANT_SIZES.
_BLOCKS = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
# Bytes of a metadata value by its type; 8 is a string, 9 an array.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_MAX_DEPTH = 4


def tensors(view: View) -> list[Tensor | None]:
    """The tensors of a file.

    Raises:
        OddError: it is none, or of another version.
    """
    if view.read(0, 4) != b"GGUF" or view.number(U32, 4) not in (2, 3):
        raise OddError
    count, values = view.number(U64, 8), view.number(U64, 16)
    if max(count, values) > MAX_TENSORS:
        raise OddError
    at, alignment = 24, 32
    for _ in range(values):
        view.step()
        length = view.number(U64, at)
        key = view.read(at + 8, length) if length < 100 else b""
        at += 8 + length
        kind = view.number(U32, at)
        if key == b"general.alignment" and kind == _UINT32:
            alignment = view.number(U32, at + 4)
        at = _after(view, at + 4, kind, 0)
    found = []
    for _ in range(count):
        view.step()
        length = view.number(U64, at)
        name = view.name(at + 8, length)
        at += 8 + length
        axes = view.number(U32, at)
        if axes > MAX_AXES:
            raise OddError
        shape = struct.unpack(f"<{axes}Q", view.read(at + 4, 8 * axes))[::-1]
        at += 4 + 8 * axes
        found.append((name, shape, view.number(U32, at), view.number(U64, at + 4)))
        at += 12
    if alignment < 1:
        raise OddError
    start = -(-at // alignment) * alignment
    return [_tensor(view, name, shape, kind, start + offset) for name, shape, kind, offset in found]


def _after(view: View, at: int, kind: int, depth: int) -> int:
    """Where the value at `at` ends."""
    if kind in _VALUE_BYTES:
        return at + _VALUE_BYTES[kind]
    if kind == _STRING:
        return at + 8 + view.number(U64, at)
    if kind != _ARRAY or depth == _MAX_DEPTH:
        raise OddError
    inner, count = view.number(U32, at), view.number(U64, at + 4)
    at += 12
    if inner in _VALUE_BYTES:
        return at + count * _VALUE_BYTES[inner]
    for _ in range(min(count, view.length)):
        view.step()
        at = _after(view, at, inner, depth + 1)
    return at


def _tensor(view: View, name: str, shape: tuple[int, ...], kind: int, at: int) -> Tensor | None:
    if kind in _DTYPES:
        dtype = _DTYPES[kind]
        return view.tensor(name, at, math.prod(shape) * dtype.item_bytes, dtype, shape)
    if kind not in _BLOCKS or not shape or shape[-1] % _BLOCKS[kind][1]:
        return None
    block, values, size = _BLOCKS[kind]
    shape = (*shape[:-1], shape[-1] // values * size)
    tensor = view.tensor(name, at, math.prod(shape), Dtype.U8, shape)
    return tensor and Tensor(tensor.name, tensor.offset, tensor.length, Dtype.U8, shape, kind=block, unit=size)
