"""Packs and unpacks patch bytes, by zstd, LZMA2 or bzip2; pure. What unpacks is bounded by what the caller expects."""

import bz2
import lzma
from enum import IntEnum

import zstandard

from heliograph.errors import IntegrityError

LZMA_DICT_BYTES = 4 << 20
"""What a reader of LZMA2 keeps: as much as the largest segment."""
WINDOW_BYTES = 8 << 20
_SHORT_BYTES = 64 << 10
_MODELS = ((3, 0, 2), (1, 0, 0), (0, 0, 0), (0, 1, 1))
"""How many bits of the byte before a byte is told by, and how many of its place; of the place anything else is."""


class Packing(IntEnum):
    """How bytes are packed. The numbers stand in recipes."""

    ZSTD = 0
    """One zstd frame that states its size."""
    LZMA = 1
    """A raw LZMA2 stream with a dictionary of 4 MiB, and nothing behind its end."""
    BZIP2 = 2
    """One bzip2 stream, and nothing behind its end."""


def is_packing(number: int) -> bool:
    """Whether there is one of this number."""
    return number in tuple(Packing)


def unpacked(data: bytes, packing: Packing, least: int, most: int) -> bytes:
    """The bytes packed in `data`: from `least` to `most` of them.

    Raises:
        IntegrityError: not packed like this, or of another length.
    """
    if packing == Packing.ZSTD:
        return unzipped(data, least, most)
    return _unlzma(data, least, most) if packing == Packing.LZMA else _unbzip2(data, least, most)


def unzipped(frame: bytes, least: int, most: int, old: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """The bytes of a zstd frame, made with `old` as dictionary: from `least` to `most` of them.

    Raises:
        IntegrityError: not one frame, or of another length.
    """
    try:
        stated = zstandard.frame_content_size(frame)
        if not least <= stated <= most:
            raise IntegrityError(f"patch bytes unpack to {stated} bytes, expected {least} to {most}")
        codec = zstandard.ZstdDecompressor(dict_data=old, max_window_size=WINDOW_BYTES)
        data = codec.decompress(frame, max_output_size=stated, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"patch bytes are not a zstd frame for this base: {error}") from error
    return data


def _unlzma(data: bytes, least: int, most: int) -> bytes:
    codec = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": LZMA_DICT_BYTES}])
    try:
        out = codec.decompress(data, most + 1)
    except lzma.LZMAError as error:
        raise IntegrityError(f"patch bytes are not an LZMA2 stream: {error}") from error
    if not least <= len(out) <= most or not codec.eof or codec.unused_data:
        raise IntegrityError(f"patch bytes unpack to {len(out)} bytes, expected {least} to {most} and no more")
    return out


def _unbzip2(data: bytes, least: int, most: int) -> bytes:
    codec = bz2.BZ2Decompressor()
    try:
        out = codec.decompress(data, most + 1)
    except (OSError, ValueError) as error:
        raise IntegrityError(f"patch bytes are not a bzip2 stream: {error}") from error
    if not least <= len(out) <= most or not codec.eof or codec.unused_data:
        raise IntegrityError(f"patch bytes unpack to {len(out)} bytes, expected {least} to {most} and no more")
    return out


def lzma_packed(data: bytes) -> bytes:
    """The LZMA2 stream of `data`; of short data the smallest in some models, which the stream names."""
    models = _MODELS if len(data) < _SHORT_BYTES else _MODELS[:1]
    return min((_in_model(data, *model) for model in models), key=len)


def _in_model(data: bytes, literal_context: int, literal_place: int, place: int) -> bytes:
    chain = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": LZMA_DICT_BYTES,
            "lc": literal_context,
            "lp": literal_place,
            "pb": place,
        }
    ]
    return lzma.compress(data, lzma.FORMAT_RAW, filters=chain)
