"""Reads and writes safetensors files, and narrows float32 to bfloat16, with numpy alone."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "I64": np.int64}
_NAMES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int8): "I8"}


def read(path: Path) -> dict[str, Array]:
    """The tensors of a file by name; bfloat16 as uint16."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    tensors = {}
    for name, row in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in row["data_offsets"])
            kind = _TYPES[row["dtype"]]
            tensors[name] = np.frombuffer(data[start:end], kind).reshape(row["shape"]).copy()
    return tensors


def write(path: Path, tensors: dict[str, Array], bf16: bool = False) -> list[list[Any]]:
    """Writes tensors in the order given and returns [name, offset, length, dtype, shape] of each."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        kind = "BF16" if bf16 and array.dtype == np.uint16 else _NAMES[array.dtype]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    encoded = json.dumps(head, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
    start = 8 + len(encoded)
    return [
        [name, start + row["data_offsets"][0], tensors[name].nbytes, row["dtype"].lower(), row["shape"]]
        for name, row in head.items()
        if name != "__metadata__"
    ]


def bfloat16(array: Array) -> Array:
    """Float32 rounded to the nearest bfloat16, ties to even, as its 16 bits."""
    bits = array.astype(np.float32).view(np.uint32)
    rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
