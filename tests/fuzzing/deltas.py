"""What is fuzzed of deltas: recipes, patches and the tables of model files."""

from functools import cache
from pathlib import Path

import zstandard

import modelfiles
from heliograph.blob import sha256, short_digest
from heliograph.delta import diff, numeric
from heliograph.delta import mixture as mixtures
from heliograph.delta import recipe as recipes
from heliograph.delta.dtypes import Dtype
from heliograph.delta.edits import Edit, Run, encoded, run_streams
from heliograph.delta.packing import lzma_packed
from heliograph.delta.patch import dictionary, rebuild_segment

_OPS = (
    recipes.SUB, recipes.SUB_RANS, recipes.XOR, recipes.SHUFFLE, recipes.TUPLES, recipes.XZ, recipes.EDITS,
    recipes.MIXED,
)  # fmt: skip


@cache
def a_delta() -> tuple[recipes.Recipe, bytes, bytes]:
    old = b"".join(sha256(bytes([n % 250, n // 250])) for n in range(3000))
    new = old[:40_000] + b"changed" * 300 + old[42_000:]
    recipe, patch = diff.make(old, new)
    return recipe, patch, old


def first_recipe() -> bytes:
    return (Path(__file__).parents[1] / "data" / "golden" / "recipe.zst").read_bytes()


def apply_patch(data: bytes) -> object:
    """The first byte says how long the segment is to be, and whether it has a dictionary."""
    old = a_delta()[2]
    length = 1 << (data[0] % 23 if data else 0)
    op, spans = (recipes.DICT, ((0, min(len(old), 60_000)),)) if data[:1] > b"\x80" else (recipes.FULL, ())
    segment = recipes.Segment(length, op, spans, (0, len(data[1:])), short_digest(bytes(length)))
    return rebuild_segment(segment, lambda at, size: old[at : at + size], data[1:])


def _mixed(dtype: int, length: int, lanes: int) -> bytes:
    """Parameters of a mixture of blocks: 16 bits and 5 of some type."""
    parts = ((Dtype.F16, 2), (Dtype(1 + dtype % 14), 5))
    types = len({of for of, _ in parts})
    return mixtures.encode(mixtures.Mixture((mixtures.Stretch(length, parts),), (lanes % 6,) * types))


def read_mixture(data: bytes) -> object:
    """The first two bytes say how long the segment is, less one and in thirds of a KiB."""
    return mixtures.parse(data[2:], 1 + 341 * int.from_bytes(data[:2], "little"))


def mixture_seeds() -> list[bytes]:
    return [bytes([thirds, 0]) + _mixed(dtype, 1 + 341 * thirds, 2) for thirds in (3, 90) for dtype in range(14)]


def rebuild_elements(data: bytes) -> object:
    """The first bytes say which operation, over which elements, how many bytes of them, and their second parameter."""
    op, dtype, size, param, *_ = data[:4].ljust(4, b"\0")
    op = _OPS[op % len(_OPS)]
    old = a_delta()[2]
    length = 1 + 37 * size
    params = {
        recipes.TUPLES: bytes([param % 2]),
        recipes.EDITS: bytes([1 << param % 3, param % 2]),
        recipes.XZ: b"",
        recipes.MIXED: _mixed(dtype, length, param),
        recipes.SHUFFLE: bytes([1 + dtype % 14, param % 2]),
    }
    one = bytes([1 + dtype % 14]) + (bytes([param % 13]) if op == recipes.SUB_RANS else b"")
    spans: tuple[tuple[int, int], ...] = ((0, length),) if length <= 100 else ((0, 100), (7, length - 100))
    if op in (recipes.SHUFFLE, recipes.XZ):
        spans = ()
    segment = recipes.Segment(length, op, spans, (0, len(data[4:])), short_digest(bytes(length)), params.get(op, one))
    return rebuild_segment(segment, lambda at, count: old[at : at + count], data[4:])


def elements_seeds() -> list[bytes]:
    new = bytes(1 + 37 * 60)
    old = a_delta()[2][:100] + a_delta()[2][7 : 7 + len(new) - 100]
    frame = zstandard.ZstdCompressor().compress

    def begin(op: int, dtype: Dtype, param: int = 0) -> bytes:
        return bytes([op, dtype - 1, 60, param])

    dtypes = (Dtype.I8, Dtype.I4, Dtype.BF16, Dtype.F32, Dtype.F64)
    coded = [begin(1, dtype, 2) + numeric.rans_patch(old, new, dtype, 2) for dtype in dtypes]
    subs = [begin(0, dtype) + frame(numeric.sub_plain(old, new, dtype)) for dtype in dtypes]
    xors = [begin(2, dtype) + frame(numeric.xor_plain(old, new, dtype)) for dtype in dtypes]
    moved = [
        begin(6, Dtype.U8, param)
        + pack(b"".join(run_streams([Run(0, 9, 2000, 212)], old, old[:9] + new[9:], 1 << param % 3)))
        for param, pack in ((0, frame), (1, lzma_packed), (2, frame))
    ]
    mixed = []
    for lanes in (0, 3):
        mixture = mixtures.parse(_mixed(Dtype.I8 - 1, len(new), lanes), len(new))
        mixed.append(begin(7, Dtype.I8, lanes) + numeric.mixed_patch(old, new, mixture))
    tuples = begin(4, Dtype.U8) + frame(encoded([Edit(0, 2000, 221)], old, new))
    return [
        *coded,
        *subs,
        *xors,
        *moved,
        *mixed,
        begin(3, Dtype.F32) + frame(new),
        tuples,
        begin(5, Dtype.U8) + lzma_packed(new),
    ]


def patch_seeds() -> list[bytes]:
    out = bytes(1 << 16)
    by_dict = zstandard.ZstdCompressor(dict_data=dictionary(a_delta()[2][:60_000]))
    return [b"\x10" + zstandard.ZstdCompressor().compress(out), b"\x94" + by_dict.compress(bytes(1 << 10))]


def model_files() -> list[bytes]:
    arrays = [modelfiles.Array(f"layer.{n}", "F32", (4, n), bytes(16 * n)) for n in range(1, 9)]
    plain = [modelfiles.safetensors(arrays), modelfiles.gguf(arrays, words=["a", "b"]), modelfiles.tflite(arrays),
             modelfiles.tflite(arrays, is_outside=True), modelfiles.onnx(arrays, arrays, deep=3)]  # fmt: skip
    members = [(f"{number}.model", data) for number, data in enumerate(plain)]
    return [*plain, modelfiles.tar(members), modelfiles.zipped(members), modelfiles.zipped(members, is_large=True)]
