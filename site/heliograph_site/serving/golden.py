"""Golden requests: what a release must answer before it serves.

Pure. `parse` reads the two golden files of a bundle; `compare` judges one answer and tells the first mismatch in full:
which request, which output, which element, what was expected, what came, how far it may be off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heliograph.errors import RefusedError
from heliograph_site.serving.inference import (
    InferRequest,
    RequestError,
    Tensor,
    json_object,
    outputs_from_json,
    request_from_json,
    values_of,
)

MAX_REQUESTS = 1000


class GoldenError(RefusedError):
    """The golden files are unusable, or an answer is not the expected one."""


@dataclass(frozen=True, slots=True)
class Case:
    """One golden request and the outputs it must give."""

    request: InferRequest
    expected: tuple[Tensor, ...]


def parse(inputs: bytes, outputs: bytes) -> tuple[Case, ...]:
    """The cases in a pair of golden files.

    Raises:
        GoldenError: not such files, no requests, or another number of responses.
    """
    try:
        requests = json_object(inputs, "the golden inputs file").get("requests")
        responses = json_object(outputs, "the golden outputs file").get("responses")
        if not isinstance(requests, list) or not isinstance(responses, list):
            raise GoldenError('golden files hold {"requests": [...]} and {"responses": [...]}')
        if not requests or len(requests) > MAX_REQUESTS or len(requests) != len(responses):
            raise GoldenError(
                f"golden files hold {len(requests)} requests and {len(responses)} responses;"
                f" expected as many of both, 1 to {MAX_REQUESTS}"
            )
        cases = []
        for at, (request, answer) in enumerate(zip(requests, responses, strict=True)):
            if not isinstance(request, dict) or not isinstance(answer, dict):
                raise GoldenError(f"golden request {at} or its response is not an object")
            expected = outputs_from_json(answer, memoryview(b""))
            if not expected:
                raise GoldenError(f"golden response {at} holds no outputs")
            cases.append(Case(request_from_json(request, memoryview(b"")), expected))
        return tuple(cases)
    except RequestError as error:
        raise GoldenError(f"golden files: {error}") from error


def compare(at: int, expected: Sequence[Tensor], got: Sequence[Tensor], tolerance: float) -> float:
    """The largest absolute difference over all outputs of golden request `at`, which is within `tolerance`.

    NaN equals NaN only. Outputs that are not expected are not looked at.

    Raises:
        GoldenError: the first mismatch.
    """
    found = {tensor.name: tensor for tensor in got}
    worst = 0.0
    for want in expected:
        have = found.get(want.name)
        where = f"golden request {at}, output {want.name}"
        if have is None:
            raise GoldenError(f"{where}: the model has no such output")
        if have.datatype != want.datatype:
            raise GoldenError(f"{where}: expected datatype {want.datatype}, got {have.datatype}")
        if have.shape != want.shape:
            raise GoldenError(f"{where}: expected shape {list(want.shape)}, got {list(have.shape)}")
        if have.data == want.data:
            continue
        for index, (a, b) in enumerate(zip(values_of(want), values_of(have), strict=True)):
            off = _difference(a, b)
            if not off <= tolerance:
                raise GoldenError(f"{where}, element {index}: expected {a!r}, got {b!r}, tolerance {tolerance:g}")
            worst = max(worst, off)
    return worst


def _difference(a: float | bytes, b: float | bytes) -> float:
    if isinstance(a, bytes) or isinstance(b, bytes):
        return 0.0 if a == b else math.inf
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(float(a) - float(b)) if math.isfinite(a) and math.isfinite(b) else math.inf
