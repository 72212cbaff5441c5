"""Where the tensors of a tflite file stand: a reader of its own, so that the estimate doesn't trust the tool's."""

import struct
from typing import Any

_TYPES = {0: "f32", 1: "f16", 2: "i32", 3: "u8", 9: "i8"}


def _field(data: bytes, table: int, index: int) -> int:
    """Where a field of a table stands; 0 if it isn't there."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    at = 4 + 2 * index
    if at >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + at)[0]
    return table + offset if offset else 0


def _follow(data: bytes, at: int) -> int:
    return int(at + struct.unpack_from("<I", data, at)[0])


def _vector(data: bytes, table: int, index: int) -> tuple[int, int]:
    """Start and count of a vector field."""
    at = _field(data, table, index)
    if not at:
        return 0, 0
    start = _follow(data, at)
    return start + 4, struct.unpack_from("<I", data, start)[0]


def layout(data: bytes) -> list[list[Any]]:
    """[name, offset, length, dtype, shape] of every constant tensor with a dtype the estimate knows."""
    if data[4:8] != b"TFL3":
        return []
    model = _follow(data, 0)
    buffers, _ = _vector(data, model, 4)
    rows: list[list[Any]] = []
    graphs, count = _vector(data, model, 2)
    for graph in (_follow(data, graphs + 4 * index) for index in range(count)):
        tensors, size = _vector(data, graph, 0)
        for index in range(size):
            tensor = _follow(data, tensors + 4 * index)
            kind, number = _field(data, tensor, 1), _field(data, tensor, 2)
            buffer = struct.unpack_from("<I", data, number)[0] if number else 0
            start, length = _vector(data, _follow(data, buffers + 4 * buffer), 0)
            dtype = _TYPES.get(data[kind] if kind else 0)
            if length and dtype:
                shape, rank = _vector(data, tensor, 0)
                dims = list(struct.unpack_from(f"<{rank}i", data, shape)) if rank else []
                rows.append([f"{len(rows)}", start, length, dtype, dims])
    return rows
