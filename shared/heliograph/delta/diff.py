"""Makes a recipe and a patch that rebuild one blob from another; pure over buffers, and deterministic.

How it decides, in three steps:

1. *Runs*: what stands unchanged in both, found by `heliograph.delta.anchors`.
2. *Pieces*: runs of 32 KiB and more become copies; the rest is cut into pieces of about 1 MiB. A shorter run is worth
   less than the two segments it would cost, and the dictionary below finds it anyway.
3. *Operations*: each piece is compressed alone and with the aligned window of the old blob as dictionary; the smaller
   is rebuilt, compared, and kept.

Memory: the two buffers (may be mmaps), the index (at most 2^18 anchors), one piece with its window, and the patch.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import zstandard

from heliograph.blob import Digest, describe, short_digest
from heliograph.delta.anchors import Buffer, Search
from heliograph.delta.patch import dictionary, rebuild_segment
from heliograph.delta.recipe import COPY, DICT, FULL, MAX_SEGMENT_BYTES, Recipe, Segment, max_old_bytes
from heliograph.errors import ConfigError
from heliograph.wire import compress

Progress = Callable[[int, int], None]
"""(bytes of the new blob done, bytes of the new blob)."""

MAX_TARGET_BYTES = 32 << 30
MIN_RUN_BYTES = 32 << 10
PIECE_BYTES = 1 << 20
WINDOW_BYTES = 4 << 20
"""Old bytes given to one piece as dictionary: within what a recipe allows, and small enough for a 1 GB gateway."""
LEVEL = 19


def make(old: Buffer, new: Buffer, progress: Progress | None = None) -> tuple[Recipe, bytes]:
    """The recipe that rebuilds `new` from `old`, and its patch. The same inputs and codec versions give the same bytes.

    Raises:
        ConfigError: `new` is larger than 32 GiB.
    """
    if len(new) > MAX_TARGET_BYTES:
        raise ConfigError(f"a target of {len(new)} bytes exceeds {MAX_TARGET_BYTES}: ship it in full")
    search = Search(old, new, max(MIN_RUN_BYTES, len(new) >> 11))
    # Bounds on segments hold up to 32 GiB: at most 2^11 runs and as many gaps, and one segment per piece.
    piece_bytes = PIECE_BYTES if len(new) <= 4 << 30 else MAX_SEGMENT_BYTES
    segments: list[Segment] = []
    patch = bytearray()
    done = 0
    for run in search.runs():
        for at, length in _pieces(done, run.new, piece_bytes):
            _append(segments, patch, *_best(old, new[at : at + length], search.old_place(at, length)))
            _tell(progress, at + length, len(new))
        for at, length in _pieces(run.new, run.new + run.length, MAX_SEGMENT_BYTES):
            out = new[at : at + length]
            _append(segments, patch, _segment(out, COPY, ((at + run.shift, length),), 0), b"")
        done = run.new + run.length
        _tell(progress, done, len(new))
    base, base_length = _name(old)
    target, target_length = _name(new)
    patch_bytes = bytes(patch)
    patch_sha256, patch_pages = describe(patch_bytes)
    recipe = Recipe(
        base, base_length, target, target_length, len(patch_bytes), patch_sha256, patch_pages, tuple(segments)
    )
    return recipe, patch_bytes


def _tell(progress: Progress | None, done: int, whole: int) -> None:
    if progress is not None:
        progress(done, whole)


def _name(buffer: Buffer) -> tuple[Digest, int]:
    """Digest and length, read in pieces so that an mmap isn't copied."""
    sha = hashlib.sha256()
    for at in range(0, len(buffer), PIECE_BYTES):
        sha.update(buffer[at : at + PIECE_BYTES])
    return Digest(sha.digest()), len(buffer)


def _pieces(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of nearly equal pieces of at most `most` bytes."""
    count = -(-(end - start) // most)
    for index in range(count):
        at = start + (end - start) * index // count
        yield at, start + (end - start) * (index + 1) // count - at


def _segment(out: bytes, op: int, spans: tuple[tuple[int, int], ...], patch_length: int) -> Segment:
    """A segment whose patch offset is not known yet."""
    return Segment(len(out), op, spans, (0, patch_length), short_digest(out))


def _append(segments: list[Segment], patch: bytearray, segment: Segment, patch_bytes: bytes) -> None:
    segments.append(replace(segment, patch=(len(patch), len(patch_bytes))))
    patch += patch_bytes


def _best(old: Buffer, out: bytes, old_place: int) -> tuple[Segment, bytes]:
    """The smallest way to make `out`, rebuilt and compared; `old_place` is where in the old blob its like stands."""
    frame = compress(out, LEVEL)
    winner = _segment(out, FULL, (), len(frame)), frame
    slack = max(min(WINDOW_BYTES, max_old_bytes(len(out))) - len(out), 0) // 2
    start = max(0, min(old_place - slack, len(old) - len(out) - 2 * slack))
    window = old[start : start + len(out) + 2 * slack]
    if window:
        level = zstandard.ZstdCompressionParameters.from_level(
            LEVEL,
            source_size=len(out),
            dict_size=len(window),
            window_log=max(10, (len(out) + len(window)).bit_length()),
        )
        codec = zstandard.ZstdCompressor(compression_params=level, dict_data=dictionary(window))
        frame = codec.compress(out)
        if len(frame) < len(winner[1]):
            winner = _segment(out, DICT, ((start, len(window)),), len(frame)), frame
    made = rebuild_segment(winner[0], lambda at, length: old[at : at + length], winner[1])
    if made != out:
        raise AssertionError("zstd gave back other bytes than it took")
    return winner
