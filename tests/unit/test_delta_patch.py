"""Rebuilding one segment: exact, or refused in bounded memory."""

import random
import tracemalloc

import pytest
import zstandard

from heliograph.blob import short_digest
from heliograph.delta.patch import dictionary, rebuild_segment
from heliograph.delta.recipe import COPY, DICT, FULL, Segment, UnknownOpError
from heliograph.errors import IntegrityError

MIB = 1 << 20
OLD = random.Random(7).randbytes(MIB)
NEW = OLD[5:70_000] + b"in between" + OLD[100_000:130_000]


def read_old(offset: int, length: int) -> bytes:
    return OLD[offset : offset + length]


def frame(content: bytes, old: bytes = b"") -> bytes:
    return zstandard.ZstdCompressor(dict_data=dictionary(old) if old else None).compress(content)


def segment(op: int, old: tuple[tuple[int, int], ...], patch: bytes, out: bytes = NEW) -> Segment:
    return Segment(len(out), op, old, (0, len(patch)), short_digest(out))


def test_each_operation_gives_back_its_bytes() -> None:
    by_dict, by_full = frame(NEW, OLD), frame(NEW)
    assert len(by_dict) < 200 < len(by_full)
    assert rebuild_segment(segment(DICT, ((0, MIB),), by_dict), read_old, by_dict) == NEW
    assert rebuild_segment(segment(FULL, (), by_full), read_old, by_full) == NEW
    copied = segment(COPY, ((10, 500),), b"", OLD[10:510])
    assert rebuild_segment(copied, read_old, b"") == OLD[10:510]


def test_old_bytes_that_look_like_a_trained_dictionary_are_taken_as_plain_content() -> None:
    old = b"\x37\xa4\x30\xec" + OLD[:70_000]
    packed = frame(old[100:60_000], old)
    made = rebuild_segment(segment(DICT, ((0, len(old)),), packed, old[100:60_000]), lambda at, n: old[at:][:n], packed)
    assert made == old[100:60_000]


def test_another_base_is_refused_for_every_operation_that_reads_it() -> None:
    packed = frame(NEW, OLD)
    for recipe, patch in (
        (segment(DICT, ((0, MIB),), packed), packed),
        (segment(COPY, ((10, 500),), b"", OLD[10:510]), b""),
    ):
        with pytest.raises(IntegrityError):
            rebuild_segment(recipe, lambda at, length: bytes(length), patch)
        with pytest.raises(IntegrityError, match="base gave"):
            rebuild_segment(recipe, lambda at, length: OLD[at : at + length - 1], patch)


def test_every_flipped_bit_of_a_patch_is_refused() -> None:
    out = OLD[:300] + b"between" * 5 + OLD[500:600]
    for op, span, packed in ((DICT, ((0, 4096),), frame(out, OLD[:4096])), (FULL, (), frame(out))):
        for at in range(len(packed) * 8):
            wrong = bytearray(packed)
            wrong[at // 8] ^= 1 << at % 8
            try:
                made = rebuild_segment(segment(op, span, packed, out), read_old, bytes(wrong))
            except IntegrityError:
                continue
            assert made == out  # a bit that zstd ignores: what comes out is right all the same


def test_patch_bytes_of_another_length_than_the_recipe_says_are_refused() -> None:
    packed = frame(NEW)
    for patch in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(IntegrityError, match="patch bytes, expected"):
            rebuild_segment(segment(FULL, (), packed), read_old, patch)


def test_a_frame_with_a_tail_is_refused() -> None:
    packed = frame(NEW) + frame(b"more")
    with pytest.raises(IntegrityError):
        rebuild_segment(segment(FULL, (), packed), read_old, packed)


def test_an_operation_of_a_later_version_has_its_own_error() -> None:
    with pytest.raises(UnknownOpError):
        rebuild_segment(segment(99, (), b""), read_old, b"")


def without_size(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(content)


def streamed(window_log: int) -> bytes:
    """A frame of one KiB that asks its reader for a window of 2 ** `window_log` bytes."""
    # Descriptor: 2-byte content size (value - 256), not a single segment; then the window; one raw block of 1 KiB.
    block = ((1024 << 3) | 1).to_bytes(3, "little") + bytes(1024)
    return b"\x28\xb5\x2f\xfd" + bytes([0x40, (window_log - 10) << 3]) + (1024 - 256).to_bytes(2, "little") + block


def test_the_hand_made_frame_is_right_but_for_its_window() -> None:
    patch = streamed(20)
    assert rebuild_segment(segment(FULL, (), patch, bytes(1024)), read_old, patch) == bytes(1024)


BOMBS = {
    "unpacks to 300 MiB": frame(bytes(300 * MIB)),
    "says nothing of its size": without_size(bytes(300 * MIB)),
    # Cut short, because zstd takes a whole frame without making its window.
    "wants a window of 16 MiB": streamed(24)[:-1],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory_even_if_it_begins_with_the_right_bytes(name: str) -> None:
    bomb = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match=r"unpack to|too much memory"):
            rebuild_segment(segment(FULL, (), bomb, bytes(1024)), read_old, bomb)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
