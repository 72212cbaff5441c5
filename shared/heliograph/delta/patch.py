"""Rebuilds one segment of a target from the base and its patch bytes; pure, and exact or an error.

Memory is bounded by one segment whatever the image's size: old bytes (at most 8 MiB), patch bytes and result (at most
4 MiB each), and zstd's own copy of its dictionary.
"""

from collections.abc import Callable

import zstandard

from heliograph.blob import short_digest
from heliograph.delta.recipe import COPY, DICT, FULL, MAX_OLD_BYTES, Segment, UnknownOpError
from heliograph.errors import IntegrityError

ReadOld = Callable[[int, int], bytes]
"""(offset, length) -> that range of the base."""


def rebuild_segment(segment: Segment, read_old: ReadOld, patch_bytes: bytes) -> bytes:
    """The segment's bytes, verified by its digest. `patch_bytes` is its patch range, `segment.patch`.

    Raises:
        IntegrityError: base or patch bytes are not the ones the recipe was made for.
    """
    if len(patch_bytes) != segment.patch[1]:
        raise IntegrityError(f"segment got {len(patch_bytes)} patch bytes, expected {segment.patch[1]}")
    if segment.op == COPY:
        out = _read(read_old, segment.old[0])
    elif segment.op == DICT:
        out = _unzip(patch_bytes, segment.length, dictionary(_read(read_old, segment.old[0])))
    elif segment.op == FULL:
        out = _unzip(patch_bytes, segment.length, None)
    else:
        raise UnknownOpError(f"segment needs operation {segment.op}, which this version lacks")
    if len(out) != segment.length or short_digest(out) != segment.digest16:
        raise IntegrityError("a rebuilt segment does not match its digest: the base or the patch is not the right one")
    return out


def dictionary(old: bytes) -> zstandard.ZstdCompressionDict:
    """Old bytes as a zstd dictionary of raw content, whatever they begin with."""
    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _read(read_old: ReadOld, span: tuple[int, int]) -> bytes:
    data = read_old(*span)
    if len(data) != span[1]:
        raise IntegrityError(f"base gave {len(data)} bytes from {span[0]}, expected {span[1]}")
    return data


def _unzip(frame: bytes, length: int, old: zstandard.ZstdCompressionDict | None) -> bytes:
    try:
        stated = zstandard.frame_content_size(frame)
        if stated != length:
            raise IntegrityError(f"patch bytes unpack to {stated} bytes, the segment has {length}")
        codec = zstandard.ZstdDecompressor(dict_data=old, max_window_size=MAX_OLD_BYTES)
        return codec.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"patch bytes are not a zstd frame for this base: {error}") from error
