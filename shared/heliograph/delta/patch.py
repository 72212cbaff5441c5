"""Rebuilds one segment of a target from the base and its patch bytes; pure, and exact or an error.

Memory is bounded by one segment whatever the image's size: old bytes (at most 8 MiB), patch bytes and result (at most
4 MiB each), and a codec's own copy of its dictionary or tables. Operations on elements of tensors need numpy: it is
imported when the first such segment comes, and where there is none these are operations that this version lacks.
"""

from collections.abc import Callable

import zstandard

from heliograph.blob import short_digest
from heliograph.delta import edits
from heliograph.delta import mixture as mixtures
from heliograph.delta.dtypes import Dtype
from heliograph.delta.packing import Packing, unpacked, unzipped
from heliograph.delta.recipe import (
    COPY,
    DICT,
    EDITS,
    FULL,
    MIXED,
    ON_ELEMENTS,
    OPS,
    SHUFFLE,
    SUB,
    TUPLES,
    XOR,
    XZ,
    Segment,
    UnknownOpError,
)
from heliograph.errors import IntegrityError

APART_BYTES = 3
"""Of tuples or edits with their bytes to add apart: how long the first stream is."""
ReadOld = Callable[[int, int], bytes]
"""(offset, length) -> that range of the base."""


def rebuild_segment(segment: Segment, read_old: ReadOld, patch_bytes: bytes) -> bytes | bytearray:
    """The segment's bytes, verified by its digest. `patch_bytes` is its patch range, `segment.patch`;
    empty if the recipe has them.

    Raises:
        IntegrityError: base or patch bytes are not the ones the recipe was made for.
    """
    if segment.within and not patch_bytes:
        patch_bytes = segment.within
    if len(patch_bytes) != segment.patch_bytes:
        raise IntegrityError(f"segment got {len(patch_bytes)} patch bytes, expected {segment.patch_bytes}")
    length = segment.length
    if segment.op in OPS and not OPS[segment.op].is_shaped(segment):
        raise IntegrityError(f"segment has ranges or parameters that {OPS[segment.op].name} can't have")
    out: bytes | bytearray
    if segment.op == COPY:
        out = _read(read_old, segment.old[0])
    elif segment.op == DICT:
        out = unzipped(patch_bytes, length, length, dictionary(_read(read_old, segment.old[0])))
    elif segment.op == FULL:
        out = unzipped(patch_bytes, length, length)
    elif segment.op == XZ:
        out = unpacked(patch_bytes, Packing.LZMA, length, length)
    elif segment.op == TUPLES:
        plain, apart = _edits_unpacked(segment, patch_bytes, segment.params)
        out = edits.rebuilt(plain, _joined(read_old, segment), length, apart)
    elif segment.op == EDITS:
        plain, apart = _edits_unpacked(segment, patch_bytes, segment.params[1:])
        out = edits.run_rebuilt(plain, _joined(read_old, segment), length, segment.params[0], apart)
    elif segment.op in ON_ELEMENTS:
        out = _rebuild_elements(segment, read_old, patch_bytes)
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


def _joined(read_old: ReadOld, segment: Segment) -> bytes:
    """The old ranges, one behind the other."""
    return b"".join([_read(read_old, span) for span in segment.old])


def _edits_unpacked(segment: Segment, patch_bytes: bytes, packings: bytes) -> tuple[bytes, bytes | None]:
    """One stream; or that without the bytes to add, behind its packed length, and these."""
    length, apart = segment.length, None
    if len(packings) == 2:
        head = int.from_bytes(patch_bytes[:APART_BYTES], "little")
        behind = patch_bytes[APART_BYTES + head :]
        apart = unpacked(behind, Packing(packings[1]), 1, length)
        patch_bytes = patch_bytes[APART_BYTES : APART_BYTES + head]
    return unpacked(patch_bytes, Packing(packings[0]), 1, edits.max_plain_bytes(length)), apart


def _rebuild_elements(segment: Segment, read_old: ReadOld, patch_bytes: bytes) -> bytes | bytearray:
    try:
        from heliograph.delta import numeric
    except ImportError as error:
        raise UnknownOpError(f"segment needs operation {segment.op}, for which numpy is missing here") from error
    length = segment.length
    if segment.op == MIXED:
        mixture = mixtures.parse(segment.params, length)
        return numeric.mixed_rebuilt(_joined(read_old, segment), patch_bytes, length, mixture)
    dtype = Dtype(segment.params[0])
    if segment.op == SHUFFLE:
        return numeric.shuffle_rebuilt(patch_bytes, length, dtype, Packing(segment.params[1]))
    old = _joined(read_old, segment)
    if segment.op == SUB:
        return numeric.sub_rebuilt(old, patch_bytes, length, dtype)
    if segment.op == XOR:
        return numeric.xor_rebuilt(old, patch_bytes, length, dtype)
    return numeric.rans_rebuilt(old, patch_bytes, length, dtype, segment.params[1])
