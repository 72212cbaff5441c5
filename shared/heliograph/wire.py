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


def unpack(
    data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES, max_containers: int | None = None, max_elements: int = 4096
) -> Any:
    """The value in `data`: text is str, bytes are bytes, map keys are text or bytes.

    `max_containers` bounds how many maps and arrays it may hold in all, and each to `max_elements`: for messages that
    are few large byte strings, so that megabytes of empty maps are refused instead of built.

    Raises:
        IntegrityError: longer than `max_bytes`, more than `max_containers`, or not exactly one msgpack value.
    """
    if len(data) > max_bytes:
        raise IntegrityError(f"message of {len(data)} bytes exceeds {max_bytes}")
    try:
        if max_containers is not None:
            count = _ContainerCount(max_containers)
            return msgpack.unpackb(
                data,
                raw=False,
                strict_map_key=True,
                object_hook=count,
                list_hook=count,
                max_array_len=max_elements,
                max_map_len=max_elements,
            )
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise IntegrityError(f"not a msgpack message: {error}") from error


class _ContainerCount:
    """Passes each map and array through until there were too many."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed

    def __call__(self, container: Any) -> Any:
        self._allowed -= 1
        if self._allowed < 0:
            raise IntegrityError("message holds too many maps and arrays")
        return container


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


class Reader:
    """Reads one msgpack value piece by piece, where the caller states every shape and bound.

    For documents that are mostly arrays and may come from anywhere: nothing is built that was not asked for, so memory
    is what the caller keeps.
    """

    def __init__(self, data: bytes) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=True,
            max_buffer_size=max(len(data), 1),
            max_array_len=0,
            max_map_len=0,
            max_str_len=0,
            max_ext_len=0,
            max_bin_len=len(data),
        )
        self._unpacker.feed(data)
        self._length = len(data)

    def array(self, what: str, at_least: int, at_most: int) -> int:
        """The length of the array that begins here; its elements are read next.

        Raises:
            IntegrityError: no array, or a length out of bounds.
        """
        try:
            count = int(self._unpacker.read_array_header())
        except (ValueError, msgpack.UnpackException) as error:
            raise IntegrityError(f"{what}: not a list") from error
        if not at_least <= count <= at_most:
            raise IntegrityError(f"{what}: list of {count}, allowed are {at_least} to {at_most}")
        return count

    def integer(self, what: str, at_least: int, at_most: int) -> int:
        """The whole number here.

        Raises:
            IntegrityError: something else, or out of bounds.
        """
        value = self._scalar(what)
        if type(value) is not int or not at_least <= value <= at_most:
            shown = value if type(value) is int else type(value).__name__
            raise IntegrityError(f"{what}: {shown}, expected a whole number from {at_least} to {at_most}")
        return value

    def data(self, what: str, at_least: int, at_most: int) -> bytes:
        """The byte string here.

        Raises:
            IntegrityError: something else, or a length out of bounds.
        """
        value = self._scalar(what)
        if type(value) is not bytes or not at_least <= len(value) <= at_most:
            shown = len(value) if type(value) is bytes else type(value).__name__
            raise IntegrityError(f"{what}: {shown}, expected {at_least} to {at_most} bytes")
        return value

    def finish(self) -> None:
        """Raises IntegrityError unless everything was read."""
        if self._unpacker.tell() != self._length:
            raise IntegrityError(f"{self._length - self._unpacker.tell()} bytes follow the end")

    def _scalar(self, what: str) -> object:
        try:
            value: object = self._unpacker.unpack()
        except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
            raise IntegrityError(f"{what}: not a number or byte string, or cut short") from error
        return value
