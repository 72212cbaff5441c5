"""Messages between gateway and worker: a small msgpack head, then raw tensor bytes.

    4 bytes head length | 4 bytes body length (both little-endian) | head | body

Requests are answered in their order. Heads:

    {"op": "load", "path", "sha256", "length", "threads"} -> {"inputs", "outputs", "runtime"} | {"error", "kind"}
    {"op": "infer", "shapes", "sizes"} + tensors joined   -> {"shapes", "sizes"} + tensors joined | {"error", "kind"}

A worker runs code on bytes that came from afar: the gateway bounds and checks all that it says.
"""

import struct
from typing import Any, Final

from heliograph.wire import pack

PREFIX: Final = struct.Struct("<II")
MAX_HEAD_BYTES = 1 << 20
MAX_HEAD_CONTAINERS = 4096
"""Maps and arrays in a head: of 256 tensors a shape each, and what stands around them."""
MAX_BODY_BYTES = 256 << 20


def frame_head(head: dict[str, Any], body_length: int) -> bytes:
    """The bytes that go before a body."""
    packed = pack(head)
    return PREFIX.pack(len(packed), body_length) + packed
