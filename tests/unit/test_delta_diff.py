"""Making deltas: exact for any two byte strings, small where content is shared, within the recipe's bounds always."""

import hashlib
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.blob import describe
from heliograph.delta import diff, recipe
from heliograph.delta.patch import rebuild_segment
from heliograph.delta.recipe import OPS, Recipe, max_old_bytes

DIGITS = Path(__file__).parents[1] / "data" / "digits"
KIB, MIB = 1 << 10, 1 << 20


def remade(old: bytes, new: bytes) -> tuple[Recipe, bytes]:
    """Recipe and patch for `new`, after what a reader would do with them gave `new` back."""
    made, patch = diff.make(old, new)
    read = recipe.parse(recipe.encode(made))
    assert read == made
    assert (read.patch_sha256, read.patch_pages) == describe(patch)
    assert (read.base, read.target) == (hashlib.sha256(old).digest(), hashlib.sha256(new).digest())
    out = b"".join(
        rebuild_segment(part, lambda at, n: old[at : at + n], patch[part.patch[0] : sum(part.patch)])
        for part in read.segments
    )
    assert out == new
    return read, patch


def ops(made: Recipe) -> list[str]:
    return [OPS[part.op].name for part in made.segments]


small = st.binary(max_size=300)
piece = st.one_of(
    small,
    st.builds(lambda seed, length: random.Random(seed).randbytes(length), st.integers(0, 5), st.integers(0, 70 * KIB)),
    st.builds(lambda byte, length: byte * length, st.binary(min_size=1, max_size=3), st.integers(0, 40 * KIB)),
)
content = st.lists(piece, max_size=5).map(b"".join)


@given(small, small)
def test_any_two_small_byte_strings_give_the_second_back(old: bytes, new: bytes) -> None:
    remade(old, new)


@settings(max_examples=60)
@given(content, content)
def test_any_two_strings_of_shared_repeated_and_odd_pieces_give_the_second_back(old: bytes, new: bytes) -> None:
    remade(old, new)


@settings(max_examples=60)
@given(content, st.data())
def test_any_edit_of_a_string_gives_it_back(old: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(old)), min_size=2, max_size=2)))
    remade(old, old[: cuts[0]] + data.draw(small) + old[cuts[1] :])


def test_empty_files_need_no_segment_and_no_patch() -> None:
    for old in (b"", b"abc"):
        made, patch = remade(old, b"")
        assert (made.segments, patch) == ((), b"")
    made, _ = remade(b"", b"abc")
    assert ops(made) == ["full"]


@pytest.mark.parametrize("length", [1, 5000, 4 * MIB, 4 * MIB + 1])
def test_an_identical_file_is_copies_alone_as_few_as_can_be(length: int) -> None:
    old = random.Random(length).randbytes(length)
    made, patch = remade(old, old)
    assert ops(made) == ["copy"] * (1 + length // (4 * MIB + 1))
    assert patch == b""


NOISE = random.Random(3).randbytes(9 * MIB)


@pytest.mark.parametrize(
    ("new", "kinds", "most"),
    [
        (b"header" + NOISE, "edits copy copy", 40),
        (NOISE[11:], "copy copy copy", 0),
        (NOISE[: 2 * MIB] + b"!" + NOISE[2 * MIB :], "edits copy copy", 40),
        (NOISE[: 2 * MIB] + NOISE[2 * MIB + 7 :], "copy copy copy", 0),
        (NOISE[5 * MIB :] + NOISE[: 3 * MIB], "copy copy", 0),
        (NOISE[MIB : 2 * MIB] * 3, "copy copy copy", 0),
        (NOISE[: 3 * MIB] + random.Random(4).randbytes(100) + NOISE[3 * MIB + 100 :], "edits copy copy", 200),
    ],
    ids=["prepended", "cut from the front", "inserted", "deleted", "swapped", "repeated", "overwritten"],
)
def test_content_that_moved_is_copied(new: bytes, kinds: str, most: int) -> None:
    made, patch = remade(NOISE, new)
    assert sorted(ops(made)) == sorted(kinds.split())
    assert len(patch) <= most


def test_content_without_any_anchor_is_found_from_the_front_and_from_the_back() -> None:
    quiet = bytes(byte & 3 for byte in NOISE[:MIB])
    made, patch = remade(quiet, quiet[: MIB // 2] + b"in between" + quiet[MIB // 2 :])
    assert ops(made) == ["edits"] and len(made.segments[0].old) == 1
    assert len(patch) < 50


def test_few_changes_far_apart_cost_a_few_bytes_each_and_no_segment_of_their_own() -> None:
    old, places = NOISE[: 3 * MIB], random.Random(7)
    new = bytearray(old)
    for at in places.sample(range(len(new)), 40):
        new[at] ^= 1 << places.randrange(8)
    made, patch = remade(old, bytes(new))
    assert ops(made) == ["edits"]
    assert len(patch) < 40 * 8, "three for where it is, one for what"


def test_a_change_that_costs_much_is_not_packed_with_the_few_about_it() -> None:
    old = NOISE[:MIB]
    new = bytearray(old)
    new[400 * KIB : 464 * KIB] = random.Random(8).randbytes(64 * KIB)
    new[700 * KIB] ^= 1
    made, _ = remade(old, bytes(new))
    assert ops(made) == ["copy", "full", "edits"]


def test_a_run_is_found_to_the_byte_in_both_directions() -> None:
    old, new = random.Random(5).randbytes(MIB), random.Random(6).randbytes(MIB)
    new = new[:300_001] + old[500_123:600_077] + new[300_001:]
    made, _ = remade(old, new)
    (copy,) = (part for part in made.segments if OPS[part.op].name == "copy")
    assert (copy.old, copy.length) == (((500_123, 99_954),), 99_954)


def test_scattered_edits_of_shifted_content_are_found() -> None:
    # A change every 2 KiB leaves no run worth a copy; the old window must be the shifted one, far from the same offset.
    moved = bytearray(NOISE[6 * MIB : 7 * MIB])
    for at in range(0, len(moved), 2048):
        moved[at] ^= 0x55
    made, patch = remade(NOISE, bytes(moved))
    assert ops(made) == ["xor"]
    assert len(patch) < len(moved) // 50


def test_every_segment_keeps_to_what_it_may_read_of_the_base() -> None:
    # Tiny gaps between copies: each must get a small window, or applying would cost megabytes for each byte.
    new = bytearray(NOISE[: 3 * MIB])
    for at in range(40 * KIB, len(new), 40 * KIB):
        new[at : at + 200] = new[at - 200 : at]
    made, _ = remade(NOISE, bytes(new))
    assert ops(made).count("copy") > 50
    for part in made.segments:
        assert sum(length for _, length in part.old) <= max_old_bytes(part.length)


def test_code_that_moved_apart_and_whose_addresses_changed_is_one_segment_of_edits() -> None:
    # A few bytes put in every 3 KiB, and one byte of 64 raised by 16: at no shift is more than a small part alike.
    old = NOISE[: 400 * KIB]
    raised = bytearray(old)
    raised[::64] = bytes(byte + 16 & 255 for byte in raised[::64])
    put_in = random.Random(9)
    new = b"".join(
        put_in.randbytes(put_in.randrange(1, 9)) + raised[at : at + 3 * KIB] for at in range(0, len(raised), 3 * KIB)
    )
    made, patch = remade(old, new)
    assert ops(made) == ["edits"]
    assert len(patch) < len(old) // 64, "less than a byte for each that changed"


def test_the_same_inputs_give_the_same_bytes() -> None:
    new = NOISE[100:MIB] + b"x" * 5000 + NOISE[3 * MIB : 4 * MIB]
    first, again = diff.make(NOISE, new), diff.make(NOISE, new)
    assert first == again
    assert recipe.encode(first[0]) == recipe.encode(again[0])


def test_progress_rises_to_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    diff.make(NOISE, NOISE[: 5 * MIB] + b"new" * 1000, lambda done, whole: seen.append((done, whole)))
    assert seen == sorted(seen)
    assert seen[-1] == (5 * MIB + 3000, 5 * MIB + 3000)


def test_a_fine_tuned_last_layer_costs_a_small_share_of_the_whole_model() -> None:
    base, head = (DIGITS / f"digits_{name}_int8.tflite" for name in ("base", "head"))
    made, patch = remade(base.read_bytes(), head.read_bytes())
    whole = len(zstandard.ZstdCompressor(level=19).compress(head.read_bytes()))
    # Measured: 0.127 of what the whole takes (426,9 kB of 3,358 kB).
    assert len(patch) + len(recipe.encode(made)) < 0.2 * whole
    assert made.op_counts()["copy"] >= 1
