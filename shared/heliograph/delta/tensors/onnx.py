"""ONNX: protobuf messages; initializers and constants of the graph and of the graphs within its nodes.

Values stand as `raw_data`, or packed in the field of their type; those of varints have no fixed width and are left
out, as are values in other files. Source: github.com/onnx/onnx, onnx/onnx.proto.
"""

import math
from collections.abc import Iterator

from heliograph.delta.dtypes import Dtype
from heliograph.delta.tensors.table import MAX_AXES, MAX_TENSORS, OddError, Tensor, View

_DTYPES = {
    1: Dtype.F32, 2: Dtype.U8, 3: Dtype.I8, 4: Dtype.U16, 5: Dtype.I16, 6: Dtype.I32, 7: Dtype.I64, 9: Dtype.U8,
    10: Dtype.F16, 11: Dtype.F64, 12: Dtype.U32, 13: Dtype.U64, 16: Dtype.BF16, 17: Dtype.F8, 18: Dtype.F8,
    19: Dtype.F8, 20: Dtype.F8, 21: Dtype.I4, 22: Dtype.I4,
}  # fmt: skip
_MAX_DEPTH = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Numbers of fields, by message.
_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_FUNCTION_NODE = 7
_NODE_OUTPUT, _NODE_NAME, _NODE_ATTRIBUTE = 2, 3, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_DIMS, _DATA_TYPE, _FLOATS, _NAME, _RAW, _DOUBLES = 1, 2, 4, 8, 9, 10

_Field = tuple[int, int, int, int]
"""Number, wire type, and the value, or where it stands and how long it is."""


def tensors(view: View) -> list[Tensor | None]:
    """The tensors of a model.

    Raises:
        OddError: it is none.
    """
    if view.read(0, 1) != b"\x08":  # ir_version stands first in whatever protobuf writes
        raise OddError
    found: list[Tensor | None] = []
    for number, wire, at, size in list(_fields(view, 0, view.length)):
        if number == _MODEL_GRAPH and wire == _BYTES:
            _graph(view, at, size, "", found, 0)
        elif number == _MODEL_FUNCTION and wire == _BYTES:
            for inner, kind, begin, length in _fields(view, at, size):
                if inner == _FUNCTION_NODE and kind == _BYTES:
                    _node(view, begin, length, "", found, 1)
    return found


def _graph(view: View, at: int, size: int, path: str, found: list[Tensor | None], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise OddError
    for number, wire, begin, length in _fields(view, at, size):
        if number == _GRAPH_INITIALIZER and wire == _BYTES:
            _append(found, _tensor(view, begin, length, path))
        elif number == _GRAPH_NODE and wire == _BYTES:
            _node(view, begin, length, path, found, depth)


def _node(view: View, at: int, size: int, path: str, found: list[Tensor | None], depth: int) -> None:
    """What the attributes of a node hold; names of theirs begin with the node's own, or with that of its output."""
    fields = [field for field in _fields(view, at, size) if field[1] == _BYTES]
    attributes = [field for field in fields if field[0] == _NODE_ATTRIBUTE]
    if not attributes:
        return
    names = {number: (begin, length) for number, _, begin, length in reversed(fields)}
    place = names.get(_NODE_NAME, (0, 0))
    place = place if place[1] else names.get(_NODE_OUTPUT, (0, 0))
    inner = f"{path}{view.name(*place)}/"
    if len(inner) > 1 << 14:
        raise OddError
    for _, _, begin, length in attributes:
        for number, wire, start, count in _fields(view, begin, length):
            if wire != _BYTES:
                continue
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                _append(found, _tensor(view, start, count, inner))
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                _graph(view, start, count, inner, found, depth + 1)


def _append(found: list[Tensor | None], tensor: Tensor | None) -> None:
    if tensor is not None:
        found.append(tensor)
    if len(found) > MAX_TENSORS:
        raise OddError


def _tensor(view: View, at: int, size: int, path: str) -> Tensor | None:
    shape: list[int] = []
    kind, name = 0, ""
    data: list[tuple[int, int]] = []
    for number, wire, begin, length in _fields(view, at, size):
        if number == _DIMS and wire == _VARINT:
            shape.append(begin)
        elif number == _DIMS and wire == _BYTES:
            end = begin + length
            while begin < end and len(shape) <= MAX_AXES:
                value, begin = _varint(view, begin, end)
                shape.append(value)
        elif number == _DATA_TYPE and wire == _VARINT:
            kind = begin
        elif number == _NAME and wire == _BYTES:
            name = view.name(begin, length)
        elif number in (_RAW, _FLOATS, _DOUBLES) and wire == _BYTES:
            data.append((begin, length))
        if len(shape) > MAX_AXES:
            raise OddError
    if len(data) != 1 or kind not in _DTYPES:
        return None
    dtype = _DTYPES[kind]
    if dtype == Dtype.I4 and math.prod(shape) % 2:
        return None
    return view.tensor(path + name, *data[0], dtype, shape)


def _fields(view: View, at: int, size: int) -> Iterator[_Field]:
    """The fields of one message."""
    view.check(at, size)
    end = at + size
    data, start, step = view.data, view.start, view.step
    while at < end:
        step()
        key, at = (data[start + at], at + 1) if data[start + at] < 128 else _varint(view, at, end)
        wire = key & 7
        if wire == _BYTES:
            length, at = _varint(view, at, end)
        elif wire == _VARINT:
            value, at = _varint(view, at, end)
            yield key >> 3, wire, value, 0
            continue
        elif wire in (_FIXED32, _FIXED64):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise OddError
        if at + length > end:
            raise OddError
        yield key >> 3, wire, at, length
        at += length


def _varint(view: View, at: int, end: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, and where it ends."""
    value = shift = 0
    data, start = view.data, view.start
    if at < end and data[start + at] < 128:
        return data[start + at], at + 1
    while at < end and shift < 70:
        byte = data[start + at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise OddError
