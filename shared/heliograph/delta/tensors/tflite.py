"""TensorFlow Lite: a flatbuffer; tensors name buffers, which stand inside it or, in large files, behind it.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs and the FlatBuffers internals document.
"""

import struct
from collections.abc import Iterator

from heliograph.delta.dtypes import Dtype
from heliograph.delta.tensors.table import I32, MAX_AXES, MAX_TENSORS, U8, U16, U32, U64, OddError, Tensor, View

_DTYPES = {
    0: Dtype.F32, 1: Dtype.F16, 2: Dtype.I32, 3: Dtype.U8, 4: Dtype.I64, 6: Dtype.U8, 7: Dtype.I16, 9: Dtype.I8,
    10: Dtype.F64, 12: Dtype.U64, 15: Dtype.U32, 16: Dtype.U16, 17: Dtype.I4, 18: Dtype.BF16,
}  # fmt: skip
_MANY_SCALES = 256
# Places of fields in their tables.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS = 0
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME = range(4)
_TENSOR_QUANTIZATION, _QUANTIZATION_SCALE = 4, 2
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = range(3)


def tensors(view: View) -> list[Tensor | None]:
    """The tensors of a model.

    Raises:
        OddError: it is none.
    """
    if view.read(4, 4) != b"TFL3":
        raise OddError
    model = view.number(U32, 0)
    buffers = list(_tables(view, model, _MODEL_BUFFERS))
    found: list[Tensor | None] = []
    for subgraph in _tables(view, model, _MODEL_SUBGRAPHS):
        for table in _tables(view, subgraph, _SUBGRAPH_TENSORS):
            if len(found) >= MAX_TENSORS:
                raise OddError
            found.append(_tensor(view, table, buffers))
            found.append(_scales(view, table))
    return found


def _tensor(view: View, table: int, buffers: list[int]) -> Tensor | None:
    buffer = _scalar(view, table, _TENSOR_BUFFER, U32)
    dtype = _DTYPES.get(_scalar(view, table, _TENSOR_TYPE, U8))
    if dtype is None or buffer >= len(buffers):
        return None
    name = _vector(view, table, _TENSOR_NAME)
    at, count = _vector(view, table, _TENSOR_SHAPE)
    if count > MAX_AXES:
        return None
    shape = struct.unpack(f"<{count}i", view.read(at, 4 * count))
    return view.tensor(view.name(*name), *_placed(view, buffers[buffer]), dtype, shape)


def _scales(view: View, table: int) -> Tensor | None:
    """What the values of a tensor are multiplied by, channel by channel, where these are many."""
    quantization = _field(view, table, _TENSOR_QUANTIZATION)
    if quantization is None:
        return None
    at, count = _vector(view, quantization + view.number(U32, quantization), _QUANTIZATION_SCALE)
    if count < _MANY_SCALES:
        return None
    name = view.name(*_vector(view, table, _TENSOR_NAME))
    return view.tensor(f"{name}/scale", at, 4 * count, Dtype.F32, (count,))


def _placed(view: View, buffer: int) -> tuple[int, int]:
    """Where a buffer's bytes stand, and how many there are."""
    offset, size = _scalar(view, buffer, _BUFFER_OFFSET, U64), _scalar(view, buffer, _BUFFER_SIZE, U64)
    return (offset, size) if offset > 1 else _vector(view, buffer, _BUFFER_DATA)


def _tables(view: View, table: int, index: int) -> Iterator[int]:
    """Where the tables of a vector field stand."""
    at, count = _vector(view, table, index)
    if count > MAX_TENSORS:
        raise OddError
    for place in range(at, at + 4 * count, 4):
        view.step()
        yield place + view.number(U32, place)


def _vector(view: View, table: int, index: int) -> tuple[int, int]:
    """Where the elements of a vector field begin, and how many there are; (0, 0) without one."""
    at = _field(view, table, index)
    if at is None:
        return 0, 0
    at += view.number(U32, at)
    return at + 4, view.number(U32, at)


def _scalar(view: View, table: int, index: int, kind: struct.Struct) -> int:
    at = _field(view, table, index)
    return 0 if at is None else view.number(kind, at)


def _field(view: View, table: int, index: int) -> int | None:
    """Where a table keeps a field; None if it has its default."""
    vtable = table - view.number(I32, table)
    if 4 + 2 * index + 2 > view.number(U16, vtable):
        return None
    offset = view.number(U16, vtable + 4 + 2 * index)
    return table + offset if offset else None
