"""msgpack with bounds: the only place that unpacks bytes from outside.

Memory while unpacking is at most about 80 times the input (every container element costs at least one input byte), so
callers bound the input first. zstd frames are decompressed only to a stated size.
"""

from typing import Any

import msgpack
import zstandard

from heliograph.errors import IntegrityError

MAX_MESSAGE_BYTES = 64 * 1024
"""Largest MQTT payload (portable subset)."""


def pack(value: Any) -> bytes:
    """msgpack bytes of plain values: maps keep their order, text and bytes stay apart."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """The value in `data`: text is str, bytes are bytes, map keys are text or bytes.

    Raises:
        IntegrityError: longer than `max_bytes`, or not exactly one msgpack value.
    """
    if len(data) > max_bytes:
        raise IntegrityError(f"message of {len(data)} bytes exceeds {max_bytes}")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise IntegrityError(f"not a msgpack message: {error}") from error


def compress(data: bytes, level: int = 10) -> bytes:
    """A zstd frame that states its content size."""
    return zstandard.ZstdCompressor(level=level).compress(data)


def decompress(data: bytes, *, max_bytes: int) -> bytes:
    """The content of one zstd frame.

    Raises:
        IntegrityError: not a frame, states no size, or would exceed `max_bytes`.
    """
    try:
        size = zstandard.frame_content_size(data)
        if size < 0 or size > max_bytes:
            raise IntegrityError(f"compressed content states {size} bytes, allowed are 0 to {max_bytes}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(size, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"not a zstd frame: {error}") from error
