"""Small model files of every format that deltas look into, written byte by byte, without the frameworks' writers."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Array:
    """A tensor to write. `kind` is a name of safetensors, or a block type of GGUF."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: bytes


_ONNX = {"F32": 1, "U8": 2, "I8": 3, "I32": 6, "I64": 7, "F16": 10, "F64": 11, "BF16": 16, "I4": 22}
_GGUF = {"F32": 0, "F16": 1, "Q4_0": 2, "Q6_K": 14, "I8": 24, "F64": 28, "BF16": 30}
_TFLITE = {"F32": 0, "F16": 1, "I32": 2, "U8": 3, "I8": 9, "I4": 17}


def safetensors(arrays: Iterable[Array], note: str = "") -> bytes:
    """A file whose data stands in the order given."""
    header: dict[str, object] = {"__metadata__": {"note": note}}
    data = b""
    for array in arrays:
        offsets = [len(data), len(data) + len(array.data)]
        header[array.name] = {"dtype": array.kind, "shape": array.shape, "data_offsets": offsets}
        data += array.data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def gguf(arrays: Iterable[Array], version: int = 3, alignment: int = 32, words: Iterable[str] = ()) -> bytes:
    """A file with a vocabulary in its metadata."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    words, arrays = list(words), list(arrays)
    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.alignment") + struct.pack("<II", 4, alignment),
        text("tokenizer.tokens") + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(map(text, words)),
        text("tokenizer.scores") + struct.pack("<IIQ", 9, 6, len(words)) + bytes(4 * len(words)),
        text("llama.rope") + struct.pack("<If", 6, 0.5),
    ]
    out = b"GGUF" + struct.pack("<IQQ", version, len(arrays), len(values)) + b"".join(values)
    data = b""
    for array in arrays:
        data += bytes(-len(data) % alignment)
        out += text(array.name) + struct.pack(f"<I{len(array.shape)}Q", len(array.shape), *array.shape[::-1])
        out += struct.pack("<IQ", _GGUF[array.kind], len(data))
        data += array.data
    return out + bytes(-len(out) % alignment) + data


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _onnx_tensor(array: Array, *, is_typed: bool) -> bytes:
    dims = b"".join(_field(1, size) for size in array.shape)
    number = {"F32": 4, "F64": 10}.get(array.kind, 9) if is_typed else 9
    return dims + _field(2, _ONNX[array.kind]) + _field(8, array.name.encode()) + _field(number, array.data)


def onnx(arrays: Iterable[Array], inner: Iterable[Array] = (), *, is_typed: bool = False, deep: int = 1) -> bytes:
    """A model with initializers, and `inner` as constants of a graph so many levels inside a node named `loop`."""
    graph = b"".join(
        _field(1, _field(2, b"out") + _field(5, _field(1, b"value") + _field(5, _onnx_tensor(array, is_typed=False))))
        for array in inner
    )
    for level in range(deep):
        node = _field(3, b"loop") + _field(4, b"Loop") + _field(5, _field(1, b"body") + _field(6, graph))
        graph = _field(1, node)
        if level == deep - 1:
            graph += b"".join(_field(5, _onnx_tensor(array, is_typed=is_typed)) for array in arrays)
    return _field(1, 8) + _field(2, b"writer") + _field(7, graph + _field(2, b"main")) + _field(14, b"x" * 20)


def tflite(arrays: Iterable[Array], *, is_outside: bool = False) -> bytes:
    """A model of one subgraph; buffers inside, or behind the flatbuffer as in files of more than 2 GB."""
    out = bytearray(b"\0\0\0\0TFL3")

    def put(data: bytes) -> int:
        out.extend(bytes(-len(out) % 8) + data)
        return len(out) - len(data)

    def table(fields: list[tuple[str, int]]) -> tuple[int, list[int]]:
        """Where it stands, and where its fields do; fields are aligned as their size asks."""
        places, at = [], 4
        for code, _ in fields:
            size = struct.calcsize(f"<{code}")
            at += -at % size
            places.append(at)
            at += size
        vtable = put(struct.pack(f"<HH{len(fields)}H", 4 + 2 * len(fields), at, *places))
        body = bytearray(at)
        for (code, value), place in zip(fields, places, strict=True):
            struct.pack_into(f"<{code}", body, place, value)
        start = put(bytes(body))
        struct.pack_into("<i", out, start, start - vtable)
        return start, [start + place for place in places]

    def point(at: int, target: int) -> None:
        struct.pack_into("<I", out, at, target - at)

    def vector(code: str, values: Iterable[int]) -> int:
        values = list(values)
        return put(struct.pack(f"<I{len(values)}{code}", len(values), *values))

    arrays = list(arrays)
    model, (_, _, subgraphs, _, buffers) = table([("I", 3), ("I", 0), ("I", 0), ("I", 0), ("I", 0)])
    struct.pack_into("<I", out, 0, model)
    point(buffers, place := vector("I", [0] * (len(arrays) + 1)))
    point(place + 4, table([("I", 0)])[0])
    outside = []
    for number, array in enumerate(arrays):
        start, fields = table([("I", 0), ("Q", 1), ("Q", 0)] if is_outside else [("I", 0)])
        point(place + 8 + 4 * number, start)
        if is_outside:
            point(fields[0], vector("B", b""))
            outside.append((fields[1], array.data))
        else:
            point(fields[0], vector("B", array.data))
    point(subgraphs, only := vector("I", [0]))
    subgraph, (tensors,) = table([("I", 0)])
    point(only + 4, subgraph)
    point(tensors, place := vector("I", [0] * len(arrays)))
    for number, array in enumerate(arrays):
        start, (shape, _, _, name) = table([("I", 0), ("B", _TFLITE[array.kind]), ("I", number + 1), ("I", 0)])
        point(place + 4 + 4 * number, start)
        point(shape, vector("i", array.shape))
        point(name, vector("B", array.name.encode()))
    for at, data in outside:
        struct.pack_into("<QQ", out, at, put(data), len(data))
    return bytes(out)


def tar(members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar without compression."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members: Iterable[tuple[str, bytes]], *, is_stored: bool = True, is_large: bool = False) -> bytes:
    """A zip; `is_large` writes the fields of members beyond 4 GB."""
    if not is_large:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED) as file:
            for name, data in members:
                file.writestr(name, data)
        return out.getvalue()
    local, directory, count = b"", b"", 0
    for name, data in members:
        text, check, count = name.encode(), zlib.crc32(data), count + 1
        sizes = struct.pack("<QQ", len(data), len(data))
        extra = struct.pack("<HH", 1, 24) + sizes + struct.pack("<Q", len(local))
        facts = struct.pack("<HHHHIIIH", 0, 0, 0, 0, check, 0xFFFFFFFF, 0xFFFFFFFF, len(text))
        directory += b"PK\1\2" + struct.pack("<HH", 45, 45) + facts
        directory += struct.pack("<HHHHII", len(extra), 0, 0, 0, 0, 0xFFFFFFFF) + text + extra
        local += (
            b"PK\3\4"
            + struct.pack("<H", 45)
            + facts
            + struct.pack("<H", 20)
            + text
            + struct.pack("<HH", 1, 16)
            + sizes
            + data
        )
    end = len(local) + len(directory)
    large = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(directory), len(local))
    where = b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    tail = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + directory + large + where + tail
