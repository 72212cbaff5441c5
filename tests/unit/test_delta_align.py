"""Alignment: which old bytes each part of a new blob got, in model files of every kind and in bytes of none."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import modelfiles as files
from heliograph.delta.align import Span, aligned
from heliograph.delta.dtypes import Dtype
from heliograph.delta.shifts import Piece, untangled
from heliograph.delta.tensors import Tensor, tables
from modelfiles import Array

DIGITS = Path(__file__).parents[1] / "data" / "digits"
KIB, MIB = 1 << 10, 1 << 20
CHANCE = np.random.default_rng(11)

Floats = NDArray[np.float32]


def weights(*shape: int) -> Floats:
    return (CHANCE.standard_normal(shape) * 0.05).astype(np.float32)


def trained(values: Floats) -> Floats:
    """The same after some steps: no element keeps all of its bits."""
    return (values + 0.002 * CHANCE.standard_normal(values.shape)).astype(np.float32)


def array(name: str, values: Floats, kind: str = "F32") -> Array:
    match kind:
        case "F32":
            data = values.tobytes()
        case "F64":
            data = (values.astype(np.float64) * 0.7).tobytes()
        case "F16":
            data = values.astype(np.float16).tobytes()
        case "BF16":
            data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        case _:
            data = np.clip(values * 500, -127, 127).round().astype(np.int8).tobytes()
    return Array(name, kind, values.shape, data)


def spans_of(old: bytes, new: bytes) -> list[Span]:
    """The spans, which tile the new blob and stand inside of the old one, between elements."""
    spans = aligned(old, new)
    at = 0
    for span in spans:
        assert span.new == at
        assert span.length > 0
        assert span.old is None or 0 <= span.old <= len(old) - span.length
        assert span.dtype is None or span.length % span.dtype.item_bytes == 0
        at += span.length
    assert at == len(new)
    return spans


def found(old: bytes, new: bytes) -> dict[str, str | None]:
    """Name of each new tensor to that of the old one whose place it got as a whole."""
    there = {(tensor.offset, tensor.length): tensor.name for tensor in tables(old)}
    spans = {span.new: span for span in spans_of(old, new)}
    out: dict[str, str | None] = {}
    for tensor in tables(new):
        span = spans.get(tensor.offset)
        is_whole = span is not None and (span.length, span.dtype) == (tensor.length, tensor.dtype)
        out[tensor.name] = there.get((span.old, span.length)) if span is not None and is_whole and span.old else None
    return out


def named(data: bytes, name: str) -> Tensor:
    return next(tensor for tensor in tables(data) if tensor.name == name)


LAYERS = {f"layer.{number}": weights(64, 40 + 8 * (number % 2)) for number in range(6)} | {
    "norm": 1 + weights(200),
    "bias": weights(10),
}
TUNED = {name: trained(values) for name, values in LAYERS.items()}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "I8"])
@pytest.mark.parametrize("write", [files.safetensors, files.gguf, files.onnx, files.tflite])
def test_a_tensor_gets_the_one_of_its_name_wherever_it_went(write: object, kind: str) -> None:
    if (write, kind) == (files.tflite, "BF16"):
        kind = "F16"
    old = write([array(name, values, kind) for name, values in LAYERS.items()])  # type: ignore[operator]
    moved = dict(sorted(TUNED.items(), reverse=True))
    new = write([array(name, values, kind) for name, values in moved.items()])  # type: ignore[operator]
    assert found(old, new) == {name: name for name in LAYERS}


def test_renamed_and_permuted_tensors_get_those_they_were_made_from() -> None:
    old = files.safetensors(array(name, values) for name, values in LAYERS.items())
    order = list(LAYERS)
    random.Random(3).shuffle(order)
    new = files.safetensors(array(f"model.{number}.weight", TUNED[name]) for number, name in enumerate(order))
    assert found(old, new) == {f"model.{number}.weight": name for number, name in enumerate(order)}


def test_names_that_moved_to_other_tensors_are_seen_through() -> None:
    # A layer is put in front, and all are numbered anew: each name but the last now says what was one before.
    old = files.onnx([array(f"t.{number}", LAYERS[f"layer.{2 * number}"]) for number in range(3)])
    new = files.onnx([array("t.0", weights(64, 40)), *(array(f"t.{n + 1}", TUNED[f"layer.{2 * n}"]) for n in range(3))])
    assert found(old, new) == {"t.0": None, "t.1": "t.0", "t.2": "t.1", "t.3": "t.2"}


def test_a_name_is_believed_where_nothing_is_alike() -> None:
    old = files.safetensors([array("a", weights(64, 64)), array("b", weights(64, 64))])
    new = files.safetensors([array("b", weights(64, 64)), array("c", weights(64, 64))])
    assert found(old, new) == {"b": "b", "c": None}


def test_one_old_tensor_is_the_like_of_one_new_one_the_most_alike() -> None:
    base = weights(64, 64)
    old = files.safetensors([array("a", base)])
    new = files.safetensors([array("b", trained(base)), array("c", base), array("d", trained(base))])
    assert found(old, new) == {"b": None, "c": "a", "d": None}


def test_another_type_is_no_like() -> None:
    old = files.safetensors([array("a", LAYERS["layer.0"], "F32")])
    new = files.safetensors([array("a", LAYERS["layer.0"], "BF16")])
    assert found(old, new) == {"a": None}


def test_formats_may_differ() -> None:
    old = files.safetensors(array(name, values) for name, values in LAYERS.items())
    new = files.tar([("m.onnx", files.onnx([array(f"onnx::{n}", v) for n, v in TUNED.items()]))])
    # Of few elements nothing is known but their shape.
    assert found(old, new) == {f"onnx::{name}": name for name in LAYERS}


def test_members_of_bundles_are_told_apart_by_name_and_by_content() -> None:
    one, two = ({"w": weights(64, 64)} for _ in range(2))
    old = files.tar([(n, files.safetensors([array("w", v["w"])])) for n, v in (("a", one), ("b", two))])
    for names in (("a", "b"), ("a-2", "b-2")):
        members = [(names[1], trained(two["w"])), (names[0], trained(one["w"]))]
        new = files.tar([(n, files.safetensors([array("w", v)])) for n, v in members])
        spans = {span.new: span.old for span in spans_of(old, new)}
        (first, second), (wanted_b, wanted_a) = tables(old), tables(new)
        assert (spans[wanted_b.offset], spans[wanted_a.offset]) == (second.offset, first.offset)


# --- resized ----------------------------------------------------------------------------------------------------------


def rows(spans: Sequence[Span], old: Tensor, new: Tensor) -> list[tuple[int, int | None, int]]:
    """(first new row, old row, rows) of the spans within a tensor."""
    size = new.length // new.shape[0]
    inside = [span for span in spans if new.offset <= span.new < new.offset + new.length]
    return [
        ((span.new - new.offset) // size, None if span.old is None else (span.old - old.offset) // size,
         span.length // size) for span in inside
    ]  # fmt: skip


def test_grown_rows_are_aligned_by_the_leading_ones() -> None:
    base = weights(500, 64)
    grown = np.concatenate([trained(base), weights(20, 64)])
    for names in (("embed", "embed"), ("embed", "another")):
        old, new = files.safetensors([array(names[0], base)]), files.safetensors([array(names[1], grown)])
        where = rows(spans_of(old, new), named(old, names[0]), named(new, names[1]))
        assert where[0] == (0, 0, 500)
        assert sum(count for _, _, count in where) == 520


def test_a_tensor_is_the_like_of_one_grown_one() -> None:
    base = weights(100, 64)
    old = files.safetensors([array("a", base)])
    new = files.safetensors([array(name, np.concatenate([trained(base), weights(9, 64)])) for name in "bc"])
    first, second = (rows(spans_of(old, new), named(old, "a"), named(new, name)) for name in "bc")
    assert first[0] == (0, 0, 100)
    assert {there for _, there, _ in second} == {None}


def test_rows_taken_out_and_put_in_are_found() -> None:
    base = weights(900, 300)
    pieces = [trained(base[:150]), weights(7, 300), trained(base[150:400]), trained(base[480:])]
    old, new = files.gguf([array("embed", base)]), files.gguf([array("embed", np.concatenate(pieces))])
    where = [run for run in rows(spans_of(old, new), named(old, "embed"), named(new, "embed")) if run[1] is not None]
    assert where == [(0, 0, 150), (157, 150, 250), (407, 480, 420)]


def test_rows_that_moved_within_a_tensor_of_one_size_are_found() -> None:
    base = weights(300, 80)
    old = files.gguf([array("embed", base)])
    new = files.gguf([array("embed", np.concatenate([weights(20, 80), trained(base[:280])]))])
    where = rows(spans_of(old, new), named(old, "embed"), named(new, "embed"))
    assert where == [(0, None, 20), (20, 0, 280)]


def test_rows_that_became_longer_are_aligned_one_by_one() -> None:
    base = weights(40, 300)
    wider = np.concatenate([trained(base), weights(40, 20)], axis=1)
    old, new = files.onnx([array("dense", base)]), files.onnx([array("dense", wider)])
    one, other = named(old, "dense"), named(new, "dense")
    spans = [span for span in spans_of(old, new) if span.old is not None and span.dtype == Dtype.F32]
    assert [(s.new - other.offset, s.old - one.offset, s.length) for s in spans if s.old is not None] == [
        (row * 1280, row * 1200, 1200) for row in range(40)
    ]


# --- bytes of no known format -----------------------------------------------------------------------------------------

NOISE = random.Random(7).randbytes(2 * MIB)


def shifts(old: bytes, new: bytes) -> list[tuple[int, int, int | None]]:
    """(start, end, shift) of runs of one shift, whatever the type."""
    out: list[tuple[int, int, int | None]] = []
    for span in spans_of(old, new):
        shift = None if span.old is None else span.old - span.new
        if out and out[-1][2] == shift:
            out[-1] = (out[-1][0], span.new + span.length, shift)
        else:
            out.append((span.new, span.new + span.length, shift))
    return out


def test_unknown_bytes_are_found_to_the_byte_wherever_they_went() -> None:
    assert shifts(NOISE, NOISE) == [(0, 2 * MIB, 0)]
    new = NOISE[:700_001] + b"seven b" + NOISE[700_001:]
    assert shifts(NOISE, new) == [(0, 700_001, 0), (700_001, len(new), -7)]
    strange = random.Random(8).randbytes(12_345)
    assert shifts(NOISE, strange + NOISE) == [(0, 12_345, None), (12_345, 12_345 + 2 * MIB, -12_345)]
    order = range(31, -1, -1)
    blocks = b"".join(NOISE[index * 64 * KIB : (index + 1) * 64 * KIB] for index in order)
    assert shifts(NOISE, blocks) == [
        (place * 64 * KIB, (place + 1) * 64 * KIB, (index - place) * 64 * KIB) for place, index in enumerate(order)
    ]
    twice = NOISE[: 300 * KIB] + NOISE[MIB : MIB + 99_999] + NOISE[: 300 * KIB]
    end = 12_345 + len(twice)
    assert shifts(twice, strange + twice + strange[::-1] * 2) == [
        (0, 12_345, None), (12_345, end, -12_345), (end, end + 24_690, None)
    ]  # fmt: skip
    assert shifts(NOISE, NOISE[:500_000] + random.Random(13).randbytes(200_000) + NOISE[700_000:]) == [(0, 2 * MIB, 0)]
    assert shifts(NOISE, random.Random(10).randbytes(MIB)) == [(0, MIB, None)]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", Dtype.F32), ("F16", Dtype.F16), ("BF16", Dtype.BF16), ("I8", Dtype.I8), ("F64", Dtype.F64)],
)
def test_a_dump_of_weights_all_of_which_changed_is_found_and_its_type_guessed(kind: str, dtype: Dtype) -> None:
    base = weights(MIB // 2)
    old = array("", base, kind).data
    half, item = len(old) // 2, dtype.item_bytes
    new = array("", trained(base), kind).data
    strange = random.Random(12).randbytes(9_999)
    new = b"head: " * 99 + new[half:] + strange + new[:half]
    spans = [span for span in spans_of(old, new) if span.dtype is not None and span.length > 100 * KIB]
    assert {span.dtype for span in spans} == {dtype}
    assert {(span.old - span.new) for span in spans if span.old is not None} == {half - 594, -half - 594 - 9_999}
    assert sum(span.length for span in spans) > 0.98 * len(old)
    assert len(spans_of(old, new)) <= 6
    assert all(span.old is not None and span.old % item == 0 for span in spans)


def test_blocks_of_a_dump_that_changed_places_are_cut_between_elements() -> None:
    old, new = array("", base := weights(MIB // 2)).data, array("", trained(base)).data
    size = 256 * KIB
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    spans = spans_of(old, b"".join(new[index * size : (index + 1) * size] for index in order))
    assert [span.dtype for span in spans] == [Dtype.F32] * 8
    for span, place, index in zip(spans, range(8), order, strict=True):
        assert span.old is not None
        assert span.old - span.new == (index - place) * size
        assert abs(span.new - place * size) <= 64


def test_what_stands_between_two_blocks_of_one_shift_keeps_its_own() -> None:
    old, new = array("", base := weights(4 * MIB), "I8").data, array("", trained(base), "I8").data
    size = 512 * KIB
    order = [1, 0, 3, 2, 5, 4, 7, 6]  # every second block is at the same shift
    got = shifts(old, b"".join(new[index * size : (index + 1) * size] for index in order))
    assert [shift for _, _, shift in got] == [(index - place) * size for place, index in enumerate(order)]


def test_unchanged_and_unlike_bytes_have_no_type() -> None:
    assert {span.dtype for span in spans_of(NOISE, NOISE[5:])} == {None}
    assert aligned(b"", NOISE) == [Span(0, len(NOISE), None, None)]
    assert aligned(NOISE, b"") == []


def test_content_that_went_into_another_tensor_is_found_there() -> None:
    parts = [weights(300 + 7 * index, 128) for index in range(6)]
    old = files.safetensors(array(name, values) for name, values in zip("tcaebd", parts, strict=True))
    new = files.safetensors([array("fused", np.concatenate([trained(parts[index]) for index in (3, 1, 5, 0, 4, 2)]))])
    fused = named(new, "fused")
    inside = [span for span in spans_of(old, new) if span.new >= fused.offset and span.old is not None]
    assert sum(span.length for span in inside) == fused.length
    assert {span.dtype for span in inside} == {Dtype.F32}


def test_a_real_model_that_was_trained_on_is_aligned_tensor_by_tensor() -> None:
    old, new = ((DIGITS / f"digits_{name}_int8.tflite").read_bytes() for name in ("base", "head"))
    names = {tensor.name for tensor in tables(new)}
    assert found(old, new) == {name: name for name in names}
    assert all(span.old is not None for span in spans_of(old, new))


def test_the_same_model_with_another_graph_around_it_is_aligned_by_name() -> None:
    old, new = ((DIGITS / f"digits_{name}_int8.tflite").read_bytes() for name in ("base", "slow"))
    got = found(old, new)
    assert sum(1 for name, other in got.items() if name == other) >= 20


small = st.binary(max_size=300)
piece = st.one_of(
    small,
    st.builds(lambda seed, length: random.Random(seed).randbytes(length), st.integers(0, 5), st.integers(0, 70 * KIB)),
    st.builds(lambda byte, length: byte * length, st.binary(min_size=1, max_size=3), st.integers(0, 40 * KIB)),
    st.sampled_from([files.safetensors([array("a", LAYERS["bias"])]), files.gguf([array("b", TUNED["norm"])])]),
)
content = st.lists(piece, max_size=5).map(b"".join)


@settings(max_examples=100)
@given(content, content)
def test_any_two_strings_are_tiled(old: bytes, new: bytes) -> None:
    spans_of(old, new)


shapes = st.lists(
    st.tuples(st.integers(0, 7), st.integers(1, 300), st.booleans()), max_size=4, unique_by=lambda shape: shape[0]
)


@settings(max_examples=60)
@given(shapes, shapes)
def test_any_two_tables_are_tiled(one: list[tuple[int, int, bool]], other: list[tuple[int, int, bool]]) -> None:
    def file(tensors: list[tuple[int, int, bool]]) -> bytes:
        made = [
            (f"t{name}", np.resize(LAYERS["layer.0"], (size, 7) if flat else (3, size))) for name, size, flat in tensors
        ]
        return files.safetensors(array(name, np.ascontiguousarray(values)) for name, values in made)

    spans_of(file(one), file(other))


def test_the_same_blobs_give_the_same_spans() -> None:
    new = NOISE[100:MIB] + array("", weights(50_000)).data + NOISE[MIB:]
    assert aligned(NOISE, new) == aligned(NOISE, new)


def test_pieces_whose_edges_crossed_tile_all_the_same() -> None:
    # The one of shift 3 begins behind where it was found to end.
    crossed = [Piece(0, 50, 0), Piece(50, 70, None), Piece(70, 60, 3), Piece(60, 90, None)]
    assert untangled(crossed, 0) == [Piece(0, 50, 0), Piece(50, 70, None), Piece(70, 90, None)]
