"""Tensor tables: where tensors stand in every format, and nothing at all in what is odd."""

import io
import math
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelfiles as files
from heliograph.delta.dtypes import Dtype
from heliograph.delta.tensors import Tensor, tables
from modelfiles import Array

DIGITS = Path(__file__).parents[1] / "data" / "digits"
NOISE = random.Random(1).randbytes(1 << 16)


def array(name: str, kind: str, *shape: int, item: int) -> Array:
    size = math.prod(shape) * item
    start = sum(name.encode()) % 1000
    return Array(name, kind, shape, NOISE[start : start + size])


FLOATS = array("layer.0/weight", "F32", 8, 5, item=4)
HALVES = array("layer.1/weight", "F16", 3, 7, item=2)
BYTES = array("layer.2/weight", "I8", 9, 2, item=1)
SCALAR = array("scale", "F32", item=4)


def seen(data: bytes, tensors: tuple[Tensor, ...]) -> dict[str, tuple[Dtype, tuple[int, ...], bytes]]:
    return {t.member + ":" + t.name: (t.dtype, t.shape, data[t.offset : t.offset + t.length]) for t in tensors}


def expected(*arrays: Array, member: str = "") -> dict[str, tuple[Dtype, tuple[int, ...], bytes]]:
    return {f"{member}:{one.name}": (Dtype[one.kind], one.shape, one.data) for one in arrays}


PLAIN = {
    "safetensors": files.safetensors([FLOATS, HALVES, BYTES, SCALAR], "a note"),
    "gguf": files.gguf([FLOATS, HALVES, BYTES, SCALAR], words=["a", "word", "märz"]),
    "gguf 2": files.gguf([FLOATS, HALVES, BYTES, SCALAR], version=2, alignment=64),
    "onnx": files.onnx([FLOATS, HALVES, BYTES, SCALAR]),
    "onnx, typed": files.onnx([FLOATS, HALVES, BYTES, SCALAR], is_typed=True),
    "tflite": files.tflite([FLOATS, HALVES, BYTES, SCALAR]),
    "tflite, buffers outside": files.tflite([FLOATS, HALVES, BYTES, SCALAR], is_outside=True),
}


@pytest.mark.parametrize("name", PLAIN)
def test_every_tensor_is_found_with_its_name_type_shape_and_bytes(name: str) -> None:
    data = PLAIN[name]
    assert seen(data, tables(data)) == expected(FLOATS, HALVES, BYTES, SCALAR)


def test_a_real_model_is_nearly_all_tensors() -> None:
    data = (DIGITS / "digits_base_int8.tflite").read_bytes()
    found = tables(data)
    assert len([tensor for tensor in found if not tensor.name.endswith("/scale")]) == 25
    scales = [tensor for tensor in found if tensor.name == "functional_1/dense_1/MatMul/scale"]
    assert [(tensor.dtype, tensor.shape) for tensor in scales] == [(Dtype.F32, (1024,))]
    assert 0 < struct.unpack_from("<f", data, scales[0].offset)[0] < 0.1
    assert sum(tensor.length for tensor in found) > 0.96 * len(data)
    dense = next(tensor for tensor in found if tensor.name == "functional_1/dense_1/MatMul")
    assert (dense.dtype, dense.shape) == (Dtype.I8, (1024, 512))


def test_blocks_of_quantised_values_are_bytes_of_a_named_kind() -> None:
    blocks = Array("blk.0", "Q4_0", (4, 64), NOISE[: 4 * 2 * 18])
    large = Array("blk.1", "Q6_K", (2, 256), NOISE[: 2 * 210])
    broken = Array("blk.2", "Q4_0", (4, 33), NOISE[:80])  # no whole number of blocks in a row
    data = files.gguf([blocks, large, broken])
    first, second = tables(data)
    assert (first.dtype, first.shape, first.kind, first.unit) == (Dtype.U8, (4, 36), "Q4_0", 18)
    assert (second.dtype, second.shape, second.kind, second.unit) == (Dtype.U8, (2, 210), "Q6_K", 210)
    assert data[second.offset :][: second.length] == large.data


@pytest.mark.parametrize("write", [files.onnx, files.tflite])
def test_packed_integers_are_counted_in_bytes(write: object) -> None:
    even, odd = Array("even", "I4", (3, 8), NOISE[:12]), Array("odd", "I4", (2, 2, 3), NOISE[12:18])
    found = {tensor.name: tensor for tensor in tables(write([even, odd]))}  # type: ignore[operator]
    assert (found["even"].dtype, found["even"].shape) == (Dtype.I4, (3, 4))
    assert found["odd"].shape == (6,)


def test_constants_of_nested_graphs_are_found_but_not_at_any_depth() -> None:
    inner = array("constant", "F32", 4, 4, item=4)
    (one,) = tables(files.onnx([], [inner]))
    assert (one.name, one.shape) == ("loop/out/constant", (4, 4))
    assert len(tables(files.onnx([FLOATS], [inner], deep=5))) == 2
    assert tables(files.onnx([FLOATS], [inner], deep=500)) == ()


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_is_looked_into(kind: int) -> None:
    name = "folder/" * 20 + "model.onnx"  # longer than the field for it
    data = files.tar([("note.txt", b"hello"), (name, PLAIN["onnx"]), ("b.gguf", PLAIN["gguf"])], kind)
    both = expected(FLOATS, HALVES, BYTES, SCALAR, member=name)
    both |= expected(FLOATS, HALVES, BYTES, SCALAR, member="b.gguf")
    assert seen(data, tables(data)) == both


@pytest.mark.parametrize("is_large", [False, True])
def test_stored_members_of_a_zip_are_looked_into(is_large: bool) -> None:
    data = files.zipped([("note.txt", b"hello"), ("m/model", PLAIN["safetensors"])], is_large=is_large)
    assert zipfile.ZipFile(io.BytesIO(data)).read("m/model") == PLAIN["safetensors"]
    assert seen(data, tables(data)) == expected(FLOATS, HALVES, BYTES, SCALAR, member="m/model")


def test_compressed_members_and_bundles_in_bundles_hold_none() -> None:
    assert tables(files.zipped([("model", PLAIN["safetensors"])], is_stored=False)) == ()
    assert tables(files.tar([("inner.tar", files.tar([("model", PLAIN["onnx"])]))])) == ()


def test_what_stands_before_the_damage_of_a_bundle_is_found() -> None:
    data = files.tar([("a", PLAIN["safetensors"]), ("b", PLAIN["gguf"])])
    cut = data.index(b"GGUF") + 100
    assert seen(data, tables(data[:cut])) == expected(FLOATS, HALVES, BYTES, SCALAR, member="a")


def test_tensors_that_share_bytes_are_one() -> None:
    data = bytearray(files.safetensors([Array("aaa", "U8", (8,), bytes(8)), Array("bbb", "U8", (8,), bytes(8))]))
    at = data.index(b"[8, 16]")
    data[at : at + 7] = b"[0, 8] "
    assert [tensor.name for tensor in tables(bytes(data))] == ["aaa"]


def test_a_tensor_that_is_not_what_its_shape_says_is_none() -> None:
    for shape in ((7,), (-8,), (8, 0), (1 << 70,)):
        data = files.safetensors([FLOATS, Array("odd", "U8", shape, bytes(8))])
        assert [tensor.name for tensor in tables(data)] == [FLOATS.name]


BUNDLES = [files.tar([("m", PLAIN["onnx"])]), files.zipped([("m", PLAIN["gguf"])]), *PLAIN.values()]


@settings(max_examples=150)
@given(st.sampled_from(BUNDLES), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), max_size=4),
       st.floats(0, 1))  # fmt: skip
def test_spoilt_files_give_tensors_inside_of_them_or_none(
    good: bytes, edits: list[tuple[float, bytes]], kept: float
) -> None:
    data = bytearray(good)
    for at, text in edits:
        place = int(at * len(data))
        data[place : place + len(text)] = text
    data = data[: int(kept * len(data))] if kept < 0.5 else data
    end = 0
    for tensor in tables(bytes(data)):
        assert tensor.offset >= end
        end = tensor.offset + tensor.length
        assert math.prod(tensor.shape) * tensor.dtype.item_bytes == tensor.length >= tensor.unit
        assert tensor.length % tensor.unit == 0
    assert end <= len(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"GGUF\3\0\0\0", b"\x08\x08\x3a", b"\x1c\0\0\0TFL3", b"PK\5\6"]))
def test_any_bytes_are_taken(data: bytes, head: bytes) -> None:
    tables(head + data)


def test_promises_of_much_end_soon() -> None:
    endless = [
        b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 8, 1 << 62) + bytes(1 << 22),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + bytes(100),
        struct.pack("<Q", 1 << 22) + b"{" + b"[" * (1 << 22),
        b"\x08\x08" + b"\x3a\x80\x80\x80\x08" + b"\x0a\x00" * (1 << 23),
    ]  # fmt: skip
    for data in endless:
        assert tables(data) == ()
