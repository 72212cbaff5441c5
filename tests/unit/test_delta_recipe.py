"""Recipes: the format holds, and a hostile one is refused before it costs anything."""

import hashlib
import re
import sys
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from heliograph.blob import describe
from heliograph.delta import diff
from heliograph.delta import mixture as mixtures
from heliograph.delta import recipe as recipes
from heliograph.delta.dtypes import Dtype
from heliograph.delta.mixture import Mixture, Stretch
from heliograph.delta.patch import rebuild_segment
from heliograph.delta.recipe import COPY, DICT, FULL, MAX_SEGMENT_BYTES, MIXED, XOR, Recipe, Segment, UnknownOpError
from heliograph.errors import ConfigError, IntegrityError
from heliograph.names import Digest

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "recipe.zst"
GOLDEN_2, GOLDEN_2_SMALL = GOLDEN.with_name("recipe-2.bin"), GOLDEN.with_name("recipe-2-small.bin")
MIB = 1 << 20


def digest(n: int) -> Digest:
    return Digest(bytes([n]) * 32)


EXAMPLE = Recipe(
    base=digest(0xB0),
    base_length=9 * MIB,
    target=digest(0xB1),
    target_length=6 * MIB + 5,
    patch_length=MIB + 700,
    patch_sha256=digest(0xC1),
    patch_pages=(bytes([0xD1]) * 16, bytes([0xD2]) * 16),
    segments=(
        Segment(4 * MIB, COPY, ((MIB, 4 * MIB),), (0, 0), bytes([1]) * 16),
        Segment(MIB, DICT, ((2 * MIB, 4 * MIB),), (0, 600), bytes([2]) * 16),
        Segment(MIB, FULL, (), (600, MIB + 50), bytes([3]) * 16),
        Segment(5, FULL, (), (MIB + 650, 50), bytes([4]) * 16),
    ),
)


SMALL = Recipe(
    base=digest(0xB0),
    base_length=9000,
    target=digest(0xB1),
    target_length=805,
    patch_length=0,
    patch_sha256=describe(b"")[0],
    patch_pages=(),
    segments=(
        Segment(700, XOR, ((8000, 300), (100, 400)), (0, 0), bytes([2]) * 16, b"\x02", b"in the recipe"),
        Segment(105, FULL, (), (0, 0), bytes([3]) * 16, within=b"this too"),
    ),
)
ALONE = replace(SMALL, segments=(replace(SMALL.segments[0], digest16=SMALL.target[:16]),), target_length=700)


def plain() -> Any:
    """The arrays of a recipe of format 1."""
    return msgpack.unpackb(zstandard.ZstdDecompressor().decompress(GOLDEN.read_bytes()))


def packed(value: Any) -> bytes:
    return zstandard.ZstdCompressor().compress(msgpack.packb(value))


def test_golden_recipes_read_as_they_were_written() -> None:
    assert recipes.parse(GOLDEN.read_bytes()) == EXAMPLE
    assert recipes.parse(GOLDEN_2.read_bytes()) == EXAMPLE
    assert recipes.parse(GOLDEN_2_SMALL.read_bytes()) == SMALL


def test_this_version_writes_the_golden_bytes() -> None:
    assert recipes.encode(EXAMPLE) == GOLDEN_2.read_bytes()
    assert recipes.encode(SMALL) == GOLDEN_2_SMALL.read_bytes()


def test_a_recipe_costs_what_it_has_to() -> None:
    digests = 32 + 32 + 32 + 2 * 16 + 4 * 16
    assert len(recipes.encode(EXAMPLE)) <= digests + 6 + 4 * 12
    assert recipes.parse(recipes.encode(ALONE)) == ALONE, "the digest of a segment alone is the target's"
    assert len(recipes.encode(ALONE)) == 1 + 32 + 2 + 32 + 1 + 14 + len(b"in the recipe")


def test_a_small_patch_stands_in_the_recipe_and_rebuilds_the_same() -> None:
    old, new = bytes(range(256)) * 16, bytes(range(255, -1, -1)) * 4
    made, patch = diff.make(old, new)
    one, none = recipes.with_patch(made, patch)
    assert none == b"" and patch and one.patch_length == 0
    read = recipes.parse(recipes.encode(one))
    assert read == one
    assert b"".join(rebuild_segment(part, lambda at, n: old[at : at + n], b"") for part in read.segments) == new
    large = bytes(recipes.MAX_WITHIN_BYTES + 1)
    assert recipes.with_patch(made, large) == (made, large)


#: What is wrong, and where the golden recipes of format 2 are changed: at a byte, to a byte.
CHANGED: dict[str, tuple[str, Recipe, int, bytes]] = {
    "format of tomorrow": ("recipe format 3 is not 2", SMALL, 0, b"\x03"),
    "format cut off": ("recipe format: a number is cut off", SMALL, 0, b"\x80" * 9),
    "base smaller than ranges": ("segment 0 old length: 300 is not from 1 to 1", SMALL, 33, b"\xc1\x3e"),
    "base smaller than offsets": ("segment 0 old offset: 8000", SMALL, 33, b"\x80\x01"),
    "a segment more": ("segment 2 ", SMALL, 67, b"\x06"),
    "a segment fewer": ("bytes follow the end", SMALL, 67, b"\x02"),
    "patch in a blob that isn't": ("patch digest: ", SMALL, 67, b"\x05"),
    "filled without ranges": ("segment 0 has a form that can't be", SMALL, 69, b"\x60"),
    "seventeen ranges": ("segment 0 form: 113 is not from 0 to 112", SMALL, 69, b"\x71"),
    "a segment of no bytes": ("segment 0 length: 0", SMALL, 70, b"\x80\x00"),
    "a segment too long": ("segment 0 length: ", SMALL, 70, b"\xff\xff"),
    "last range of no bytes": ("segment 0 old length: 0 is not from 1", SMALL, 70, b"\xac\x02"),
    "an offset below zero": ("segment 0 old offset: -6", SMALL, 72, b"\x8d\x00"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_recipe_of_format_2_that_breaks_a_rule_is_refused_for_that_rule(name: str) -> None:
    reason, recipe, at, new = CHANGED[name]
    encoded = recipes.encode(recipe)
    with pytest.raises(IntegrityError, match=re.escape(reason)) as caught:
        recipes.parse(encoded[:at] + new + encoded[at + len(new) :])
    assert not isinstance(caught.value, UnknownOpError)


def test_a_recipe_of_format_2_is_whole_and_ends_where_it_ends() -> None:
    for one in (EXAMPLE, SMALL, ALONE):
        encoded = recipes.encode(one)
        for length in range(len(encoded)):
            with pytest.raises(IntegrityError):
                recipes.parse(encoded[:length])
        with pytest.raises(IntegrityError, match="1 bytes follow the end"):
            recipes.parse(encoded + b"\0")


def test_an_unknown_operation_and_a_wrong_shape_are_told_apart_in_format_2_too() -> None:
    later = replace(SMALL, segments=(replace(SMALL.segments[0], op=200), SMALL.segments[1]))
    with pytest.raises(UnknownOpError, match="operation 200"):
        recipes.parse(recipes.encode(later))
    for changes in ({"op": COPY}, {"params": b"\x63"}, {"within": b""}):
        wrong = replace(SMALL, segments=(replace(SMALL.segments[0], **changes), SMALL.segments[1]))
        with pytest.raises(IntegrityError, match="segment 0 has ranges or parameters that"):
            recipes.parse(recipes.encode(wrong))
    much = replace(SMALL, segments=tuple(replace(s, within=bytes(2049)) for s in SMALL.segments))
    with pytest.raises(IntegrityError, match="4098 patch bytes in itself"):
        recipes.parse(recipes.encode(much))


def test_operation_numbers_are_fixed() -> None:
    assert {number: op.name for number, op in recipes.OPS.items()} == {
        1: "copy", 2: "dict", 3: "full", 4: "sub", 5: "sub+rans", 6: "xor", 7: "shuffle", 8: "tuples", 9: "xz",
        10: "edits", 11: "mixed",
    }  # fmt: skip


def test_the_formats_page_has_the_registry_of_operations_and_the_bounds() -> None:
    page = (Path(__file__).parents[2] / "shared" / "FORMATS.md").read_text()
    section = page.split("## Recipe, version 2")[1].split("\n## ")[0]
    listed = re.findall(r"^\| (\d+) \| ([\w+]+) \|", section.partition("| dtype | is |")[0], flags=re.MULTILINE)
    assert {int(number): name for number, name in listed} == {number: op.name for number, op in recipes.OPS.items()}
    assert f"2 MiB unpacked, {recipes.MAX_SEGMENTS:,} segments" in section
    assert recipes.MAX_UNPACKED_BYTES == 2 * MIB


SEGMENTS = 4

HOSTILE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "not a list": ("recipe: not a list", lambda r: {"format": 1}),
    "empty": ("recipe: list of 0", lambda r: []),
    "format of tomorrow": ("recipe format 2 is not 1, as these arrays", lambda r: [2, *r[1:]]),
    "format is true": ("recipe format: bool", lambda r: [True, *r[1:]]),
    "a part too many": ("recipe has 6 parts", lambda r: [*r, 0]),
    "a part too few": ("recipe has 4 parts", lambda r: r[:4]),
    "base digest short": ("recipe base digest: 31", lambda r: put(r, (1, 0), b"x" * 31)),
    "base digest text": ("recipe base digest: not a number", lambda r: put(r, (1, 0), "x" * 32)),
    "base length negative": ("recipe base length: -1", lambda r: put(r, (1, 1), -1)),
    "base length huge": ("recipe base length: 1125899906842624", lambda r: put(r, (1, 1), 1 << 50)),
    "base smaller than ranges": ("segment 0 old length: 4194304", lambda r: put(r, (1, 1), MIB)),
    "target length one more": (
        "segments make 6291461 bytes, the target has 6291462",
        lambda r: put(r, (2, 1), r[2][1] + 1),
    ),
    "target length one less": ("segment 3 goes beyond the target", lambda r: put(r, (2, 1), r[2][1] - 1)),
    "target length float": ("recipe target length: float", lambda r: put(r, (2, 1), float(r[2][1]))),
    "patch length one more": (
        "segments use 1049276 bytes of a patch of 1049277",
        lambda r: put(r, (3, 0), r[3][0] + 1),
    ),
    "patch length one less": ("segment 3 uses 50 patch bytes from 1049226", lambda r: put(r, (3, 0), r[3][0] - 1)),
    "patch digest missing": ("patch digest: 0", lambda r: put(r, (3, 1), b"")),
    "page digest missing": ("patch pages: 16", lambda r: put(r, (3, 2), r[3][2][:16])),
    "page digest too many": ("patch pages: 48", lambda r: put(r, (3, 2), r[3][2] + bytes(16))),
    "segments a map": ("segments: not a list", lambda r: put(r, (SEGMENTS,), {})),
    "segments none": ("segments make 0 bytes, the target has 6291461", lambda r: put(r, (SEGMENTS,), [])),
    "segment too short a list": ("segment 0: list of 5", lambda r: put(r, (SEGMENTS, 0), r[SEGMENTS][0][:5])),
    "segment empty": ("segment 3 length: 0", lambda r: put(r, (SEGMENTS, 3, 0), 0)),
    "segment too long": ("segment 0 length: 4194305", lambda r: put(r, (SEGMENTS, 0, 0), MAX_SEGMENT_BYTES + 1)),
    "segment twice": (
        "segment 4 goes beyond the target",
        lambda r: put(r, (SEGMENTS,), [*r[SEGMENTS], r[SEGMENTS][0]]),
    ),
    "segment digest short": ("segment 0 digest: 15", lambda r: put(r, (SEGMENTS, 0, 4), bytes(15))),
    "old range beyond the base": (
        "segment 0 old length: 4194304",
        lambda r: put(r, (SEGMENTS, 0, 2, 0), [6 * MIB, 4 * MIB]),
    ),
    "old range negative": ("segment 0 old offset: -1", lambda r: put(r, (SEGMENTS, 0, 2, 0), [-1, 4 * MIB])),
    "old range empty": ("segment 1 old length: 0", lambda r: put(r, (SEGMENTS, 1, 2, 0), [0, 0])),
    "old range too long": ("segment 1 old length: 8388609", lambda r: put(r, (SEGMENTS, 1, 2, 0), [0, (8 * MIB) + 1])),
    "old ranges too many": ("segment 1 old ranges: list of 17", lambda r: put(r, (SEGMENTS, 1, 2), [[0, 1]] * 17)),
    "old ranges too long together": (
        "segment 1 of 1048576 bytes reads more",
        lambda r: put(r, (SEGMENTS, 1, 2), [[0, 5 * MIB]] * 2),
    ),
    "copy of two ranges": (
        "segment 0 has ranges or parameters that copy can't have",
        lambda r: put(r, (SEGMENTS, 0, 2), [[0, 2 * MIB]] * 2),
    ),
    "copy of another length": (
        "segment 0 has ranges or parameters that copy can't have",
        lambda r: put(r, (SEGMENTS, 0, 2, 0), [0, 2 * MIB]),
    ),
    "copy with patch bytes": (
        "segment 0 has ranges or parameters that copy can't have",
        lambda r: put(put(r, (SEGMENTS, 0, 3), [0, 1]), (SEGMENTS, 1, 3), [1, 599]),
    ),
    "copy with params": (
        "segment 0 has ranges or parameters that copy can't have",
        lambda r: put(r, (SEGMENTS, 0, 5), b"x"),
    ),
    "dict without old range": (
        "segment 1 has ranges or parameters that dict can't have",
        lambda r: put(r, (SEGMENTS, 1, 2), []),
    ),
    "full with old range": (
        "segment 2 has ranges or parameters that full can't have",
        lambda r: put(r, (SEGMENTS, 2, 2), [[0, 1]]),
    ),
    "full without patch bytes": (
        "segment 3 has ranges or parameters that full can't have",
        lambda r: put(r, (SEGMENTS, 3, 3), [MIB + 650, 0]),
    ),
    "patch ranges overlap": (
        "segment 2 uses 1048627 patch bytes from 599",
        lambda r: put(r, (SEGMENTS, 2, 3), [599, MIB + 51]),
    ),
    "patch ranges leave a gap": (
        "segment 2 uses 1048626 patch bytes from 600",
        lambda r: put(r, (SEGMENTS, 1, 3), [0, 599]),
    ),
    "patch range too long": ("segment 1 patch length: 5242880", lambda r: put(r, (SEGMENTS, 1, 3), [0, 5 * MIB])),
    "params too long": ("segment 1 params: 4097", lambda r: put(r, (SEGMENTS, 1, 5), bytes(4097))),
    "params nested": ("segment 1 params: not a number", lambda r: put(r, (SEGMENTS, 1, 5), [[[]]])),
}


def put(value: Any, path: tuple[int, ...], new: Any) -> Any:
    value = deepcopy(value)
    place = value
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = new
    return value


@pytest.mark.parametrize("name", HOSTILE)
def test_a_recipe_that_breaks_a_rule_is_refused_for_that_rule(name: str) -> None:
    reason, mutated = HOSTILE[name]
    hostile = mutated(plain())
    assert packed(hostile) != packed(plain())
    with pytest.raises(IntegrityError, match=re.escape(reason)) as caught:
        recipes.parse(packed(hostile))
    assert not isinstance(caught.value, UnknownOpError)


def test_bytes_after_the_recipe_are_refused() -> None:
    assert recipes.parse(_bomb(msgpack.packb(plain()))) == EXAMPLE
    with pytest.raises(IntegrityError, match="1 bytes follow the end"):
        recipes.parse(_bomb(msgpack.packb(plain()) + b"\x00"))


def test_an_unknown_operation_has_its_own_error_so_that_the_next_offer_is_taken() -> None:
    # Shaped as a later version may shape it: several old ranges, and parameters.
    later = put(plain(), (SEGMENTS, 1), [MIB, 200, [[0, 9], [50, 9]], [0, 600], bytes(16), b"params"])
    with pytest.raises(UnknownOpError, match="operation 200"):
        recipes.parse(packed(later))


def test_a_small_segment_may_not_read_as_much_of_the_base_as_a_large_one() -> None:
    small = put(plain(), (SEGMENTS, 3), [5, DICT, [[0, 64 * 1024 + 80]], [MIB + 650, 50], bytes(16), b""])
    assert recipes.parse(packed(small)).segments[3].op == DICT
    with pytest.raises(IntegrityError, match="reads more"):
        recipes.parse(packed(put(small, (SEGMENTS, 3, 2, 0, 1), 64 * 1024 + 81)))


def _bomb(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


BOMBS = {
    "200 MiB of zeros": lambda: _bomb(bytes(200 * MIB)),
    "a million empty lists": lambda: _bomb(b"\xdd\x00\x10\x00\x00" + b"\x90" * MIB),
    "a million lists in lists": lambda: _bomb(b"\x91" * MIB),
    "four thousand million segments": lambda: _bomb(msgpack.packb(plain())[:-1] + b"\xdd\xff\xff\xff\xff"),
    "a list of four thousand million as digest": lambda: _bomb(b"\x95\x01\x92\xdd\xff\xff\xff\xff"),
    "two MiB of digest": lambda: _bomb(b"\x95\x01\x92\xc6\x00\x1f\xff\x00" + bytes(0x1FFF00)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(name: str) -> None:
    bomb = BOMBS[name]()
    assert len(bomb) < recipes.MAX_RECIPE_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            recipes.parse(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_a_recipe_longer_than_a_mebibyte_is_not_even_unpacked() -> None:
    with pytest.raises(IntegrityError, match="exceeds"):
        recipes.parse(bytes(recipes.MAX_RECIPE_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_our_error(data: bytes) -> None:
    for attempt in (
        data,
        recipes.encode(SMALL)[: len(data)] + data,
        _bomb(data),
        _bomb(msgpack.packb(plain())[: len(data)] + data),
    ):
        with pytest.raises(IntegrityError):
            recipes.parse(attempt)


def _many(count: int) -> Recipe:
    segments = tuple(
        Segment(MAX_SEGMENT_BYTES, COPY, ((n, MAX_SEGMENT_BYTES),), (0, 0), hashlib.sha256(b"%d" % n).digest()[:16])
        for n in range(count)
    )
    empty = Digest(hashlib.sha256(b"").digest())
    return Recipe(digest(1), 1 << 36, digest(2), count * MAX_SEGMENT_BYTES, 0, empty, (), segments)


def test_the_most_segments_a_recipe_can_have_fit_its_bounds_and_one_more_is_refused_when_made() -> None:
    most = _many(recipes.MAX_SEGMENTS)
    assert recipes.parse(recipes.encode(most)) == most
    with pytest.raises(ConfigError, match="in full"):
        recipes.encode(_many(recipes.MAX_SEGMENTS + 1))


def test_a_recipe_for_something_else_than_asked_is_refused() -> None:
    EXAMPLE.check_is_for(EXAMPLE.base, EXAMPLE.target, EXAMPLE.target_length)
    for base, target, length in (
        (digest(9), EXAMPLE.target, EXAMPLE.target_length),
        (EXAMPLE.base, digest(9), EXAMPLE.target_length),
        (EXAMPLE.base, EXAMPLE.target, 1),
    ):
        with pytest.raises(IntegrityError):
            EXAMPLE.check_is_for(base, target, length)


def test_the_most_parts_that_parameters_hold_are_looked_at_a_few_times_each() -> None:
    """A recipe of 2 KiB may unpack to half a million of them."""
    types = (Dtype.U8, Dtype.I8, Dtype.F16, Dtype.BF16)
    stretch = Stretch(64, tuple((types[place % 4], 4) for place in range(16)))
    mixture = Mixture((stretch,) * (recipes.MAX_PARAMS_BYTES // 34 - 1), (0,) * 4)
    length, params = 64 * len(mixture.stretches), mixtures.encode(mixture)
    assert len(params) <= recipes.MAX_PARAMS_BYTES
    segment = Segment(length, MIXED, ((0, length),), (0, 1), bytes(16), params)
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        assert recipes.OPS[MIXED].is_shaped(segment)
    finally:
        sys.setprofile(before)
    assert calls < 16 * 16 * len(mixture.stretches)
