import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph_site.serving.inference import (
    DATATYPES,
    ITEM_BYTES,
    MAX_VARIABLE,
    RequestError,
    Tensor,
    TensorSpec,
    match_inputs,
    match_outputs,
    outputs_from_json,
    parse_request,
    response,
    tensor_from_values,
    values_of,
)

SPECS = (TensorSpec("x", "INT8", (-1, 3)), TensorSpec("mask", "BOOL", (2,)))
RANGES = {
    name: st.integers(*((0, 256**size - 1) if name[0] == "U" else (-(256**size) // 2, 256**size // 2 - 1)))
    for name, size in ITEM_BYTES.items()
    if "INT" in name
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **RANGES,
    "BOOL": st.booleans(),
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "BYTES": st.text(),
}


def body(**changes: Any) -> bytes:
    request = {
        "inputs": [
            {"name": "x", "datatype": "INT8", "shape": [1, 3], "data": [1, -2, 3]},
            {"name": "mask", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        ]
    }
    return json.dumps({**request, **changes}).encode()


def one(datatype: str, data: Any, shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": list(shape), "data": data}]}


def binary(head: dict[str, Any], raw: bytes) -> tuple[bytes, str]:
    encoded = json.dumps(head).encode()
    return encoded + raw, str(len(encoded))


def sentence(content: bytes, length: str | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        parse_request(content, length)
    return str(caught.value)


def test_every_datatype_has_a_strategy_here() -> None:
    assert set(VALUES) == set(DATATYPES)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_values_survive_json_and_raw_bytes_alike(datatype: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[datatype], max_size=8))
    tensor = tensor_from_values("y", datatype, (len(values),), values)
    back = values_of(tensor)
    assert [v.decode() for v in back] == values if datatype == "BYTES" else back == values
    wanted = match_outputs(parse_request(b'{"inputs": []}'), [TensorSpec("y", datatype, (-1,))])
    as_json, none = response("m", "1.0.0", "", [tensor], wanted)
    assert none is None
    assert outputs_from_json(json.loads(as_json), memoryview(b"")) == (tensor,)
    asked = parse_request(b'{"inputs": [], "parameters": {"binary_data_output": true}}')
    as_raw, length = response("m", "1.0.0", "", [tensor], match_outputs(asked, [TensorSpec("y", datatype, (-1,))]))
    assert outputs_from_json(json.loads(as_raw[:length]), memoryview(as_raw)[length:]) == (tensor,)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT8", 128), ("INT8", -129), ("UINT8", -1), ("INT16", 1 << 15), ("INT64", 1 << 63), ("UINT64", 1 << 64),
        ("FP16", 70000.0), ("FP32", 1e300), ("FP64", 10**400),
    ],
)  # fmt: skip
def test_a_value_beyond_its_datatype_is_named_with_its_place(datatype: str, value: Any) -> None:
    said = sentence(json.dumps(one(datatype, [0, value], (2,))).encode())
    assert said.startswith("input x value 1 is ") or "value 1" in said
    assert datatype in said


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", True), ("INT8", 1.0), ("INT8", "1"), ("BOOL", 1), ("FP32", "nan"), ("FP32", None), ("BYTES", 1),
     ("INT32", [1]), ("FP64", {})],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(datatype: str, value: Any) -> None:
    assert "input x" in sentence(json.dumps(one(datatype, [value])).encode())


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_no_json(word: str) -> None:
    raw = f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [1], "data": [{word}]}}]}}'.encode()
    assert word in sentence(raw)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", "not a JSON object"), (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"), (b"{}", "inputs is not an array"), (b'{"inputs": [1]}', "inputs"),
        (b'{"inputs": [{"name": 1}]}', "no name"), (body(id=7), "id is not text"),
        (b'{"inputs": [], "x": ' + b"9" * 5000 + b"}", "not JSON"),
        (body(parameters=[]), "parameters"), (body(parameters={"binary_data_output": 1}), "true or false"),
        (body(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification"),
        (b'{"inputs": [{"name": "x", "datatype": "INT4", "shape": [1], "data": [1]}]}', "INT4"),
        (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [-1], "data": [1]}]}', "no shape"),
        (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1.0], "data": [1]}]}', "no shape"),
        (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1]}]}', "neither data nor"),
        (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [2], "data": [1]}]}', "needs 2"),
        (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [2, 2], "data": [[1, 2], 3]}]}', "unevenly"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_one_sentence(content: bytes, says: str) -> None:
    said = sentence(content)
    assert says in said
    assert "\n" not in said


def test_nested_and_flat_data_are_the_same_tensor() -> None:
    nested = parse_request(json.dumps(one("INT8", [[[1], [2]], [[3], [4]]], (2, 2, 1))).encode())
    flat = parse_request(json.dumps(one("INT8", [1, 2, 3, 4], (2, 2, 1))).encode())
    assert nested == flat


def test_raw_tensors_follow_the_json_in_order() -> None:
    head = {
        "inputs": [
            {"name": "a", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}},
            {"name": "b", "datatype": "INT8", "shape": [1], "data": [5]},
            {"name": "c", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}},
        ]
    }
    raw = struct.pack("<hh", -1, 300) + struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
    a, b, c = parse_request(*binary(head, raw)).inputs
    assert (values_of(a), values_of(b), values_of(c)) == ([-1, 300], [5], [b"abc", b""])


@pytest.mark.parametrize(
    ("size", "raw", "says"),
    [
        (3, b"abc", "needs 4"), (4, b"abc", "only 3 bytes are left"), (4, b"abcde", "1 bytes of binary data belong"),
        (-4, b"abcd", "binary_data_size"), (True, b"a", "binary_data_size"), ("4", b"abcd", "binary_data_size"),
    ],
)  # fmt: skip
def test_raw_sizes_must_agree_with_shape_and_body(size: Any, raw: bytes, says: str) -> None:
    item = {"name": "x", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": size}}
    assert says in sentence(*binary({"inputs": [item]}, raw))


@pytest.mark.parametrize("length", ["-1", "999999", "1e1", "", "٣", "9" * 30])
def test_a_header_length_that_can_not_be_is_refused(length: str) -> None:
    assert "inference-header-content-length" in sentence(body(), length)


@pytest.mark.parametrize("raw", [b"\x05\0\0\0abc", b"\x01\0\0", b"\x01\0\0\0a\0\0\0\0", b""])
def test_raw_bytes_elements_that_do_not_add_up_are_refused(raw: bytes) -> None:
    item = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    assert "input x" in sentence(*binary({"inputs": [item]}, raw))


def test_raw_booleans_are_zero_or_one() -> None:
    item = {"name": "x", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}
    assert "BOOL" in sentence(*binary({"inputs": [item]}, b"\x01\x02"))


def test_inputs_come_in_the_models_order() -> None:
    request = parse_request(body())
    assert [t.name for t in match_inputs(request, SPECS)] == ["x", "mask"]
    assert [t.name for t in match_inputs(request, SPECS[::-1])] == ["mask", "x"]


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ((*SPECS, TensorSpec("z", "FP32", (1,))), "input z (FP32 [1]) is missing"),
        (SPECS[:1], "no input 'mask'; its inputs are x"),
        ((TensorSpec("x", "UINT8", (-1, 3)), SPECS[1]), "input x is INT8, the model takes UINT8"),
        ((TensorSpec("x", "INT8", (-1, 4)), SPECS[1]), "input x has shape [1, 3], the model takes [-1, 4]"),
        ((TensorSpec("x", "INT8", (3,)), SPECS[1]), "input x has shape [1, 3], the model takes [3]"),
    ],
)
def test_a_request_that_does_not_fit_the_model_is_told_why(specs: tuple[TensorSpec, ...], says: str) -> None:
    with pytest.raises(RequestError, match=says.replace("(", r"\(").replace("[", r"\[").replace(")", r"\)")):
        match_inputs(parse_request(body()), specs)


@pytest.mark.parametrize(("rows", "fits"), [(0, False), (1, True), (MAX_VARIABLE, True), (MAX_VARIABLE + 1, False)])
def test_an_open_dimension_is_bounded(rows: int, fits: bool) -> None:
    request = parse_request(json.dumps(one("INT8", [0] * 3 * rows, (rows, 3))).encode())
    if fits:
        assert match_inputs(request, SPECS[:1])[0].shape == (rows, 3)
    else:
        with pytest.raises(RequestError, match="1 to 64"):
            match_inputs(request, SPECS[:1])


def test_an_input_given_twice_is_refused() -> None:
    item = {"name": "x", "datatype": "INT8", "shape": [1, 3], "data": [1, 2, 3]}
    with pytest.raises(RequestError, match="twice"):
        match_inputs(parse_request(body(inputs=[item, item])), SPECS[:1])


def test_outputs_are_chosen_by_name_each_in_its_form() -> None:
    asked = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    wanted = match_outputs(
        parse_request(body(outputs=asked)), [TensorSpec("a", "INT8", (1,)), TensorSpec("b", "INT8", (1,))]
    )
    tensors = [Tensor("a", "INT8", (1,), b"\x01"), Tensor("b", "INT8", (1,), b"\x02")]
    content, length = response("m", "1.2.3", "q7", tensors, wanted)
    head = json.loads(content[:length])
    assert content[length:] == b"\x02"
    assert (head["id"], head["model_name"], head["model_version"]) == ("q7", "m", "1.2.3")
    assert [item["name"] for item in head["outputs"]] == ["b", "a"]
    assert head["outputs"][1]["data"] == [1]


@pytest.mark.parametrize("asked", [[{"name": "z"}], [{"name": "a"}, {"name": "a"}]])
def test_outputs_that_are_not_there_or_asked_twice_are_refused(asked: list[dict[str, str]]) -> None:
    with pytest.raises(RequestError):
        match_outputs(parse_request(body(outputs=asked)), [TensorSpec("a", "INT8", (1,))])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_json_can_not_say_asks_for_binary(value: float) -> None:
    tensor = Tensor("y", "FP32", (1,), struct.pack("<f", value))
    spec = [TensorSpec("y", "FP32", (1,))]
    with pytest.raises(RequestError, match="binary_data"):
        response("m", "1.0.0", "", [tensor], match_outputs(parse_request(body()), spec))
    asked = parse_request(body(parameters={"binary_data_output": True}))
    content, length = response("m", "1.0.0", "", [tensor], match_outputs(asked, spec))
    assert content[length:] == tensor.data


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 220).map(str)))
def test_any_bytes_are_a_request_or_a_request_error(content: bytes, length: str | None) -> None:
    try:
        parse_request(content, length)
    except RequestError as error:
        assert "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {"name": st.just("x")},
        optional={
            "datatype": st.sampled_from(DATATYPES) | JSON,
            "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
            "data": JSON,
            "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 9)}) | JSON,
        },
    ),
    st.binary(max_size=9),
)
def test_any_json_is_a_request_or_a_request_error(item: dict[str, Any], raw: bytes) -> None:
    try:
        tensor = parse_request(*binary({"inputs": [item]}, raw)).inputs[0]
    except RequestError:
        return
    assert len(values_of(tensor)) == math.prod(tensor.shape)
