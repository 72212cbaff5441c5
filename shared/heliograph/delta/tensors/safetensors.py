"""Safetensors: a length of 8 bytes, so many bytes of JSON, the data.

Source: github.com/huggingface/safetensors, README.
"""

import json

from heliograph.delta.dtypes import Dtype
from heliograph.delta.tensors.table import MAX_TENSORS, U64, OddError, Tensor, View

MAX_HEADER_BYTES = 16 << 20
_DTYPES = {
    "F64": Dtype.F64, "F32": Dtype.F32, "F16": Dtype.F16, "BF16": Dtype.BF16, "I64": Dtype.I64, "I32": Dtype.I32,
    "I16": Dtype.I16, "I8": Dtype.I8, "U64": Dtype.U64, "U32": Dtype.U32, "U16": Dtype.U16, "U8": Dtype.U8,
    "BOOL": Dtype.U8, "F8_E4M3": Dtype.F8, "F8_E5M2": Dtype.F8,
}  # fmt: skip


def tensors(view: View) -> list[Tensor | None]:
    """The tensors of a file.

    Raises:
        OddError: it is none.
    """
    length = view.number(U64, 0)
    if length > MAX_HEADER_BYTES or view.read(8, 1) != b"{":
        raise OddError
    try:
        view.step(length // 16)
        header = json.loads(view.read(8, length))
    except (ValueError, RecursionError) as error:
        raise OddError from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise OddError
    return [_tensor(view, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]


def _tensor(view: View, name: str, entry: object, start: int) -> Tensor | None:
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            if kind in _DTYPES and all(type(size) is int for size in shape):
                return view.tensor(name, start + begin, end - begin, _DTYPES[kind], shape)
    return None
