import json
import struct
from typing import Any

import pytest

from heliograph_site.serving.golden import GoldenError, compare, parse
from heliograph_site.serving.inference import Tensor

NAN = float("nan")


def fp32(*values: float, name: str = "y", shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor(name, "FP32", shape or (len(values),), struct.pack(f"<{len(values)}f", *values))


def files(requests: list[Any], responses: list[Any]) -> tuple[bytes, bytes]:
    return json.dumps({"requests": requests}).encode(), json.dumps({"responses": responses}).encode()


REQUEST = {"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}]}
RESPONSE = {"outputs": [{"name": "y", "datatype": "INT8", "shape": [1], "data": [2]}]}


def test_cases_pair_requests_with_their_responses() -> None:
    (case,) = parse(*files([REQUEST], [RESPONSE]))
    assert (case.request.inputs[0].data, case.expected[0].data) == (b"\x01", b"\x02")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (b"", b"{}"), (b"{}", b"{}"), files([], []), files([REQUEST], []), files([REQUEST], [{"outputs": []}]),
        files([1], [RESPONSE]), files([REQUEST] * 1001, [RESPONSE] * 1001), files([REQUEST], [{"outputs": [{}]}]),
    ],
)  # fmt: skip
def test_golden_files_that_prove_nothing_are_refused(inputs: bytes, outputs: bytes) -> None:
    with pytest.raises(GoldenError):
        parse(inputs, outputs)


def test_the_largest_difference_within_tolerance_is_returned() -> None:
    assert compare(0, [fp32(1.0, 2.0, 3.0)], [fp32(1.0, 2.25, 3.5)], 0.5) == 0.5


def test_the_first_mismatch_is_told_in_full() -> None:
    with pytest.raises(GoldenError) as caught:
        compare(3, [fp32(1.0, 2.0, 3.0)], [fp32(1.0, 2.75, 9.0)], 0.5)
    assert str(caught.value) == "golden request 3, output y, element 1: expected 2.0, got 2.75, tolerance 0.5"


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (fp32(1.0, name="z"), "no such output"),
        (fp32(1.0, shape=(1, 1)), r"expected shape \[1\], got \[1, 1\]"),
        (Tensor("y", "FP64", (1,), struct.pack("<d", 1.0)), "expected datatype FP32, got FP64"),
    ],
)
def test_another_name_shape_or_datatype_is_a_mismatch(got: Tensor, says: str) -> None:
    with pytest.raises(GoldenError, match=says):
        compare(0, [fp32(1.0)], [got], 100.0)


@pytest.mark.parametrize(("want", "got"), [(1.0, NAN), (NAN, 1.0), (1.0, float("inf")), (float("inf"), -float("inf"))])
def test_what_is_not_finite_is_within_no_tolerance(want: float, got: float) -> None:
    with pytest.raises(GoldenError):
        compare(0, [fp32(want)], [fp32(got)], 1e30)


def test_nan_equals_nan_of_other_bits() -> None:
    quiet, other = struct.pack("<I", 0x7FC00000), struct.pack("<I", 0x7FC00001)
    assert compare(0, [Tensor("y", "FP32", (1,), quiet)], [Tensor("y", "FP32", (1,), other)], 0.0) == 0.0


def test_text_outputs_must_be_equal() -> None:
    def text(word: bytes) -> Tensor:
        return Tensor("y", "BYTES", (1,), struct.pack("<I", len(word)) + word)

    assert compare(0, [text(b"cat")], [text(b"cat")], 0.0) == 0.0
    with pytest.raises(GoldenError, match="b'cat', got b'dog'"):
        compare(0, [text(b"cat")], [text(b"dog")], 100.0)
