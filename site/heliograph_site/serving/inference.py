"""The Open Inference Protocol v2 as bytes: requests in, responses out, with the binary tensor extension.

Pure: no numpy, no I/O. A tensor is a name, a datatype, a shape and its raw little-endian bytes; nothing between HTTP
and the worker looks inside those bytes, except where a caller speaks JSON. Every fault of a caller becomes a
`RequestError` whose message is the one sentence that goes back with status 400.

Rules:
- What a request says is checked before anything is allocated for it: counts and sizes are those of bytes that are here.
- JSON is strict: NaN and Infinity are no JSON, integers are no floats with a point, booleans are no integers.
- BYTES elements are length-prefixed (4 bytes, little-endian), in the raw form as in the extension.

Source: kserve/open-inference-protocol, "inference_rest.md"; triton-inference-server/server, "extension_binary_data.md".
"""

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from heliograph.errors import RefusedError

_CODES: Final = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I",
    "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
ITEM_BYTES: Final[dict[str, int]] = {name: struct.calcsize("<" + code) for name, code in _CODES.items()}
"""Bytes of one element; BYTES is not here, its elements have their own lengths."""
DATATYPES: Final[tuple[str, ...]] = (*_CODES, "BYTES")
MAX_TENSORS = 256
MAX_CONTAINERS = 1 << 18
"""Arrays and objects in one JSON: a bracket of 2 bytes costs 64 in memory."""
MAX_RANK = 16
MAX_VARIABLE = 64
"""Largest size of a dimension that the model leaves open (-1): what a worker allocates grows with it."""
HEADER_LENGTH = "inference-header-content-length"
"""Name of the HTTP header that says where JSON ends and raw tensors begin."""


class RequestError(RefusedError):
    """The request is not one the model can answer; the message says why."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model; -1 in `shape` is a dimension the caller chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor and its raw bytes, whose length has been checked against datatype and shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output the caller asks for, and whether as raw bytes."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request as parsed; not yet matched with a model."""

    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Wanted, ...]
    """Empty: all, each as `binary_default` says."""
    binary_default: bool = False


# --- tensors as values --------------------------------------------------------------------------------------------


def element_count(shape: Sequence[int]) -> int:
    """Elements in a tensor of `shape`."""
    return math.prod(shape)


def tensor_from_values(name: str, datatype: str, shape: tuple[int, ...], values: Any) -> Tensor:
    """A tensor from JSON values, flat or nested in row-major order.

    Raises:
        RequestError: another count than the shape says, or a value that the datatype does not hold.
    """
    count = element_count(shape)
    flat = _flatten(name, values, count, len(shape))
    if len(flat) != count:
        raise RequestError(f"{name} holds {len(flat)} values, its shape {list(shape)} needs {count}")
    if datatype == "BYTES":
        parts: list[bytes] = []
        for at, value in enumerate(flat):
            if not isinstance(value, str):
                raise RequestError(f"input {name} value {at} is {_shown(value)}, BYTES needs text")
            try:
                encoded = value.encode()
            except UnicodeEncodeError:
                raise RequestError(f"input {name} value {at} is not valid Unicode text") from None
            parts += (struct.pack("<I", len(encoded)), encoded)
        return Tensor(name, datatype, shape, b"".join(parts))
    allowed: tuple[type, ...] = (bool,) if datatype == "BOOL" else (int, float) if datatype[:2] == "FP" else (int,)
    for at, value in enumerate(flat):
        if type(value) not in allowed:
            raise RequestError(f"input {name} value {at} is {_shown(value)}, which {datatype} does not hold")
    try:
        return Tensor(name, datatype, shape, struct.pack(f"<{count}{_CODES[datatype]}", *flat))
    except (struct.error, OverflowError):
        at = next(at for at, value in enumerate(flat) if not _fits(datatype, value))
        raise RequestError(f"input {name} value {at} is {_shown(flat[at])}, beyond the range of {datatype}") from None


def values_of(tensor: Tensor) -> list[Any]:
    """The elements in row-major order; BYTES elements as bytes."""
    if tensor.datatype != "BYTES":
        return list(struct.unpack(f"<{element_count(tensor.shape)}{_CODES[tensor.datatype]}", tensor.data))
    values, view, at = [], memoryview(tensor.data), 0
    while at < len(view):
        (length,) = struct.unpack_from("<I", view, at)
        values.append(view[at + 4 : at + 4 + length].tobytes())
        at += 4 + length
    return values


def check_raw(what: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> None:
    """Checks that raw bytes are a tensor of `datatype` and `shape`; `what` begins the message.

    Raises:
        RequestError: otherwise.
    """
    count = element_count(shape)
    if datatype == "BYTES":
        found, at, view = 0, 0, memoryview(data)
        while at < len(view) and found <= count:
            end = at + 4 + (struct.unpack_from("<I", view, at)[0] if at + 4 <= len(view) else len(view))
            if end > len(view):
                raise RequestError(f"{what} ends in the middle of element {found}")
            at, found = end, found + 1
        if found != count:
            raise RequestError(f"{what} holds another number of elements than the {count} of shape {list(shape)}")
        return
    expected = count * ITEM_BYTES[datatype]
    if len(data) != expected:
        raise RequestError(f"{what} has {len(data)} bytes, {datatype} of shape {list(shape)} needs {expected}")
    if datatype == "BOOL" and bytes(data).translate(None, b"\0\1"):
        raise RequestError(f"{what} holds a byte other than 0 and 1, which BOOL does not know")


def _flatten(name: str, values: Any, count: int, rank: int) -> list[Any]:
    if not isinstance(values, list):
        raise RequestError(f"input {name} data is {_shown(values)}, expected an array")
    level = values
    for _ in range(rank - 1):
        if not level or not isinstance(level[0], list):
            break
        flat: list[Any] = []
        for row in level:
            if not isinstance(row, list) or len(flat) > count:
                raise RequestError(f"input {name} data is nested unevenly or holds more than {count} values")
            flat += row
        level = flat
    return level


def _fits(datatype: str, value: Any) -> bool:
    try:
        struct.pack("<" + _CODES[datatype], value)
    except (struct.error, OverflowError):
        return False
    return True


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            try:
                return repr(value)[:40]
            except ValueError:  # an integer too long to print
                return "a very large integer"


# --- requests -----------------------------------------------------------------------------------------------------


def json_object(data: bytes | memoryview, what: str) -> dict[str, Any]:
    """A JSON object from bytes of a caller.

    Raises:
        RequestError: not strict JSON, or not an object.
    """
    text = bytes(data)
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise RequestError(
            f"{what} nests more than {MAX_CONTAINERS} arrays and objects; send tensors flat, or as binary data"
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{what} is not JSON: {_json_fault(error)}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{what} is not a JSON object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number; send it as binary data")


def _json_fault(error: Exception) -> str:
    match error:
        case RecursionError():
            return "nested too deeply"
        case json.JSONDecodeError():
            return f"{error.msg.lower()} at byte {error.pos}"
        case UnicodeDecodeError():
            return "the bytes are not UTF-8"
        case _:
            return str(error)[:200]


def parse_request(body: bytes, header_length: str | None = None) -> InferRequest:
    """A request from an HTTP body; `header_length` is the value of the header `HEADER_LENGTH`, if it came.

    Raises:
        RequestError: the body is no infer request.
    """
    view = memoryview(body)
    if header_length is None:
        return request_from_json(json_object(view, "the request"), view[:0])
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 12:
        raise RequestError(f"header {HEADER_LENGTH} is {header_length[:40]!r}, expected a number of bytes")
    length = int(header_length)
    if length > len(view):
        raise RequestError(f"header {HEADER_LENGTH} says {length} bytes, the request has {len(view)}")
    return request_from_json(json_object(view[:length], "the request"), view[length:])


def request_from_json(value: dict[str, Any], raw: memoryview) -> InferRequest:
    """A request from its JSON object and the raw tensors behind it; `raw` must be used up exactly.

    Raises:
        RequestError: otherwise.
    """
    request_id = value.get("id", "")
    if not isinstance(request_id, str):
        raise RequestError("id is not text")
    parameters = _parameters(value, "the request")
    at, tensors = 0, []
    for item in _objects(value, "inputs", required=True):
        tensor, used = _tensor(item, raw[at:], "input")
        tensors.append(tensor)
        at += used
    if at != len(raw):
        raise RequestError(f"{len(raw) - at} bytes of binary data belong to no input")
    default = _flag(parameters, "binary_data_output", "the request", False)
    outputs = []
    for item in _objects(value, "outputs", required=False):
        name = _name(item, "output")
        asked = _parameters(item, f"output {name}")
        for unsupported in ("classification", "shared_memory_region"):
            if asked.get(unsupported):
                raise RequestError(f"output {name} asks for {unsupported}, which is not offered here")
        outputs.append(Wanted(name, _flag(asked, "binary_data", f"output {name}", default)))
    return InferRequest(request_id, tuple(tensors), tuple(outputs), default)


def match_inputs(request: InferRequest, specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """The request's tensors in the model's order.

    Raises:
        RequestError: a name, datatype or shape that is not the model's, or an input missing or given twice.
    """
    given: dict[str, Tensor] = {}
    known = {spec.name: spec for spec in specs}
    for tensor in request.inputs:
        spec = known.get(tensor.name)
        if spec is None:
            raise RequestError(f"the model has no input {tensor.name!r}; its inputs are {', '.join(known)}")
        if tensor.name in given:
            raise RequestError(f"input {tensor.name} is given twice")
        if tensor.datatype != spec.datatype:
            raise RequestError(f"input {tensor.name} is {tensor.datatype}, the model takes {spec.datatype}")
        if len(tensor.shape) != len(spec.shape) or any(
            have != need and need != -1 for have, need in zip(tensor.shape, spec.shape, strict=True)
        ):
            raise RequestError(
                f"input {tensor.name} has shape {list(tensor.shape)}, the model takes {list(spec.shape)}"
            )
        for have, need in zip(tensor.shape, spec.shape, strict=True):
            if need == -1 and not 1 <= have <= MAX_VARIABLE:
                raise RequestError(
                    f"input {tensor.name} has shape {list(tensor.shape)},"
                    f" where the model says -1 it takes 1 to {MAX_VARIABLE}"
                )
        given[tensor.name] = tensor
    for spec in specs:
        if spec.name not in given:
            raise RequestError(f"input {spec.name} ({spec.datatype} {list(spec.shape)}) is missing")
    return tuple(given[spec.name] for spec in specs)


def match_outputs(request: InferRequest, specs: Sequence[TensorSpec]) -> tuple[Wanted, ...]:
    """The outputs to answer with, in the caller's order, or all in the model's.

    Raises:
        RequestError: an output the model does not have, or asked for twice.
    """
    if not request.outputs:
        return tuple(Wanted(spec.name, request.binary_default) for spec in specs)
    known = [spec.name for spec in specs]
    seen: set[str] = set()
    for wanted in request.outputs:
        if wanted.name not in known:
            raise RequestError(f"the model has no output {wanted.name!r}; its outputs are {', '.join(known)}")
        if wanted.name in seen:
            raise RequestError(f"output {wanted.name} is asked for twice")
        seen.add(wanted.name)
    return request.outputs


def _tensor(item: dict[str, Any], raw: memoryview, kind: str) -> tuple[Tensor, int]:
    """The tensor an item describes, and how many bytes of `raw` are its own."""
    name = _name(item, kind)
    datatype = item.get("datatype")
    if datatype not in DATATYPES:
        raise RequestError(f"{kind} {name} has datatype {_shown(datatype)}, known are {', '.join(DATATYPES)}")
    shape = item.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(size) is int and 0 <= size < 1 << 31 for size in shape)
    ):
        raise RequestError(f"{kind} {name} has no shape: expected up to {MAX_RANK} sizes of 0 or more")
    parameters = _parameters(item, f"{kind} {name}")
    if "shared_memory_region" in parameters:
        raise RequestError(f"{kind} {name} asks for shared_memory_region, which is not offered here")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise RequestError(f"{kind} {name} has neither data nor binary_data_size")
        return tensor_from_values(name, datatype, tuple(shape), item["data"]), 0
    if "data" in item:
        raise RequestError(f"{kind} {name} has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise RequestError(f"{kind} {name} has binary_data_size {_shown(size)}, expected a number of bytes")
    if size > len(raw):
        raise RequestError(f"{kind} {name} has binary_data_size {size}, only {len(raw)} bytes are left")
    data = raw[:size]
    check_raw(f"{kind} {name}", datatype, shape, data)
    return Tensor(name, datatype, tuple(shape), data), size


def _objects(value: dict[str, Any], key: str, *, required: bool) -> Iterable[dict[str, Any]]:
    items = value.get(key)
    if items is None and not required:
        return ()
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RequestError(f"{key} is not an array of objects")
    if len(items) > MAX_TENSORS:
        raise RequestError(f"{key} has {len(items)} items, at most {MAX_TENSORS} are taken")
    return items


def _name(item: dict[str, Any], kind: str) -> str:
    name = item.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 400:
        raise RequestError(f"an {kind} has no name")
    return name


def _parameters(item: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(f"parameters of {what} are not an object")
    return parameters


def _flag(parameters: dict[str, Any], key: str, what: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RequestError(f"{key} of {what} is {_shown(value)}, expected true or false")
    return value


# --- responses ----------------------------------------------------------------------------------------------------


def response(
    model: str, version: str, request_id: str, outputs: Sequence[Tensor], wanted: Sequence[Wanted]
) -> tuple[bytes, int | None]:
    """The body of an infer response, and the length of its JSON if raw tensors follow it.

    Raises:
        RequestError: a value is NaN or infinite, or bytes are not text, and the caller asked for JSON.
    """
    found = {tensor.name: tensor for tensor in outputs}
    items: list[dict[str, Any]] = []
    raw: list[bytes | memoryview] = []
    for want in wanted:
        tensor = found[want.name]
        item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if want.binary:
            item["parameters"] = {"binary_data_size": len(tensor.data)}
            raw.append(tensor.data)
        else:
            item["data"] = _json_values(tensor)
        items.append(item)
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": items}
    if request_id:
        head["id"] = request_id
    encoded = json.dumps(head, allow_nan=False, separators=(",", ":")).encode()
    return (b"".join((encoded, *raw)), len(encoded)) if raw else (encoded, None)


def outputs_from_json(value: dict[str, Any], raw: memoryview) -> tuple[Tensor, ...]:
    """The output tensors of an infer response.

    Raises:
        RequestError: not a response.
    """
    at, tensors = 0, []
    for item in _objects(value, "outputs", required=True):
        tensor, used = _tensor(item, raw[at:], "output")
        tensors.append(tensor)
        at += used
    return tuple(tensors)


def _json_values(tensor: Tensor) -> list[Any]:
    values = values_of(tensor)
    if tensor.datatype == "BYTES":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError:
            raise RequestError(f"output {tensor.name} is not text; ask for it with binary_data true") from None
    if tensor.datatype[:2] == "FP" and not all(map(math.isfinite, values)):
        raise RequestError(
            f"output {tensor.name} holds NaN or infinity, which JSON can't say; ask for it with binary_data true"
        )
    return values
