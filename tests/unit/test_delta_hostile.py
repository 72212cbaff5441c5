"""A delta file with every operation, on every dtype: what is damaged or lies is refused, or harms nothing.

What comes out is the right bytes or nothing, in the memory of a segment, whatever was changed: in the patch, in the
recipe with all its digests right, or in the base.
"""

import bz2
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.blob import describe, sha256, short_digest
from heliograph.delta import edits, file, numeric, recipe
from heliograph.delta import mixture as mixtures
from heliograph.delta.apart import Apart
from heliograph.delta.dtypes import Dtype
from heliograph.delta.edits import Edit, Run
from heliograph.delta.file import apply_file, show_file
from heliograph.delta.mixture import Mixture, Stretch
from heliograph.delta.packing import Packing, lzma_packed
from heliograph.delta.patch import dictionary
from heliograph.delta.recipe import (
    COPY,
    DICT,
    EDITS,
    FULL,
    MIXED,
    OPS,
    SHUFFLE,
    SUB,
    SUB_RANS,
    TUPLES,
    XOR,
    XZ,
    Recipe,
    Segment,
)
from heliograph.errors import HeliographError, IntegrityError
from heliograph.source import Source
from heliograph.wire import compress

MIB = 1 << 20
PIECE = 800
"""Bytes of each segment."""
OLD = random.Random(1).randbytes(64 * PIECE)


def _edited(old: bytes, chance: random.Random) -> bytes:
    out = bytearray(old)
    for at in range(0, len(out), 9):
        out[at] = (out[at] + chance.randrange(3)) % 256
    return bytes(out)


def _made() -> tuple[Recipe, bytes, bytes]:
    """Recipe, patch and new file: every operation, forced, on every dtype, and in every packing it can have."""
    chance = random.Random(2)
    segments: list[Segment] = []
    patch = new = b""

    def add(op: int, params: bytes, data: bytes, out: bytes, *spans: tuple[int, int]) -> None:
        nonlocal patch, new
        segments.append(Segment(len(out), op, spans, (len(patch), len(data)), short_digest(out), params))
        assert OPS[op].is_shaped(segments[-1])
        patch, new = patch + data, new + out

    for number, dtype in enumerate(Dtype):
        at = number * PIECE
        old, out, param = OLD[at : at + PIECE], _edited(OLD[at : at + PIECE], chance), bytes([dtype])
        halves = ((at, 300), (at + 300, PIECE - 300))
        add(SUB, param, compress(numeric.sub_plain(old, out, dtype), 3), out, *halves)
        add(XOR, param, compress(numeric.xor_plain(old, out, dtype), 3), out, (at, PIECE))
        lanes = number % 4
        add(SUB_RANS, param + bytes([lanes]), numeric.rans_patch(old, out, dtype, lanes), out, *halves)
        plain = numeric.shuffle_plain(out, dtype)
        add(SHUFFLE, param + bytes([Packing.ZSTD]), compress(plain, 3), out)
        add(SHUFFLE, param + bytes([Packing.LZMA]), lzma_packed(plain), out)
    at = 20 * PIECE
    old, out = OLD[at : at + PIECE], _edited(OLD[at : at + PIECE], chance)
    add(COPY, b"", b"", old, (at, PIECE))
    add(FULL, b"", compress(out, 3), out)
    add(XZ, b"", lzma_packed(out), out)
    add(DICT, b"", zstandard.ZstdCompressor(dict_data=dictionary(old)).compress(out), out, (at, PIECE))
    plain = edits.encoded([Edit(0, PIECE // 2, 0), Edit(PIECE // 4, PIECE // 4, PIECE // 4)], old, out)
    add(TUPLES, bytes([Packing.ZSTD]), compress(plain, 3), out, (at, PIECE))
    add(TUPLES, bytes([Packing.LZMA]), lzma_packed(plain), out, (at, PIECE // 2), (at + PIECE // 2, PIECE // 2))
    blocks = Stretch(PIECE - 700, ((Dtype.I8, 5), (Dtype.F16, 2), (Dtype.I8, 27)))
    mixture = Mixture((blocks, Stretch(700, ((Dtype.F32, 700),))), (2, 0, 1))
    add(
        MIXED, mixtures.encode(mixture), numeric.mixed_patch(old, out, mixture), out, (at, 700), (at + 700, PIECE - 700)
    )
    runs = [Run(0, PIECE // 4, PIECE // 4, 0), Run(PIECE // 4, 0, PIECE // 4, PIECE // 4)]
    for width in edits.WIDTHS:
        numbers, adds, takes = edits.run_streams(runs, old, out, width)
        apart = compress(numbers + takes, 3)
        apart = len(apart).to_bytes(3, "little") + apart + bz2.compress(adds)
        spans = ((at, PIECE // 2), (at + PIECE // 2, PIECE // 2))
        add(
            EDITS,
            bytes([width, Packing.LZMA]),
            lzma_packed(numbers + adds + takes),
            old[: PIECE // 4] + out[PIECE // 4 :],
            *spans,
        )
        add(
            EDITS,
            bytes([width, Packing.ZSTD, Packing.BZIP2]),
            apart,
            old[: PIECE // 4] + out[PIECE // 4 :],
            (at, PIECE),
        )
    digest, pages = describe(patch)
    made = Recipe(sha256(OLD), len(OLD), sha256(new), len(new), len(patch), digest, pages, tuple(segments))
    return made, patch, new


MADE, PATCH, NEW = _made()


def sealed(made: Recipe, patch: bytes) -> bytes:
    """A delta file with a right digest around anything."""
    encoded = recipe.encode(made)
    leading = file.MAGIC + bytes([file.VERSION]) + len(encoded).to_bytes(4, "big")
    return leading + short_digest(leading + encoded) + encoded + patch


def starts() -> list[int]:
    return [sum(segment.length for segment in MADE.segments[:number]) for number in range(len(MADE.segments))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "patch").write_bytes(sealed(MADE, PATCH))
    return tmp_path


class Bench:
    """Base and patch in files that can be changed under the one child that reads them."""

    def __init__(self, folder: Path) -> None:
        (folder / "base").write_bytes(OLD)
        (folder / "raw").write_bytes(PATCH)
        self.base = os.open(folder / "base", os.O_RDWR)
        self.patch = os.open(folder / "raw", os.O_RDWR)
        self.apart = Apart(Source(self.base), Source(self.patch))
        self.peak_bytes = 0

    @contextmanager
    def flipped(self, fd: int, at: int, bits: int) -> Iterator[None]:
        byte = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([byte[0] ^ bits]), at)
        try:
            yield
        finally:
            os.pwrite(fd, byte, at)

    def refuses(self, segment: Segment, right: bytes) -> bool:
        """Whether a segment is refused; else it must be right."""
        try:
            out = self.apart.rebuild(segment)
        except IntegrityError as error:
            assert "\n" not in str(error)
            return True
        finally:
            self.peak_bytes = max(self.peak_bytes, self.apart.peak_rss_bytes())
        assert out == right
        return False

    def close(self) -> None:
        self.apart.close()
        os.close(self.base)
        os.close(self.patch)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


def test_every_operation_on_every_dtype_comes_back_through_a_delta_file(folder: Path) -> None:
    assert {segment.op for segment in MADE.segments} == set(OPS), "a new operation belongs here too"
    facts = apply_file(folder / "old", folder / "patch", folder / "out")
    assert (folder / "out").read_bytes() == NEW
    assert facts["segments"] == MADE.op_counts()
    parts = show_file(folder / "patch")["parts"]
    assert isinstance(parts, list)
    shown = [(part["new_at"], part["op"], part["patch_bytes"], len(part["old"])) for part in parts]
    assert shown == [
        (at, OPS[segment.op].name, segment.patch[1], len(segment.old))
        for at, segment in zip(starts(), MADE.segments, strict=True)
    ]
    assert all(part["why"] for part in parts)


def test_flipped_patch_bytes_give_the_right_bytes_or_none_whatever_the_operation(bench: Bench) -> None:
    chance = random.Random(3)
    refused = dict.fromkeys(OPS, 0)
    tried = dict(refused)
    for at, segment in zip(starts(), MADE.segments, strict=True):
        right = NEW[at : at + segment.length]
        begin, length = segment.patch
        for place in {begin, begin + 1, begin + length - 1, *(begin + chance.randrange(length or 1) for _ in range(3))}:
            if length:
                with bench.flipped(bench.patch, place, 1 << chance.randrange(8)):
                    tried[segment.op] += 1
                    refused[segment.op] += bench.refuses(segment, right)
        assert not bench.refuses(segment, right), "and the next segment comes"
    assert all(refused[op] > 0.9 * tried[op] > 0 for op in OPS if op != COPY), (refused, tried)
    assert 0 < bench.peak_bytes <= 64 * MIB


def test_a_base_that_differs_gives_the_right_bytes_or_none_whatever_the_operation(bench: Bench) -> None:
    chance = random.Random(4)
    for at, segment in zip(starts(), MADE.segments, strict=True):
        if segment.old:
            begin, length = segment.old[-1]
            with bench.flipped(bench.base, begin + chance.randrange(length), 0x55):
                is_refused = bench.refuses(segment, NEW[at : at + segment.length])
                assert is_refused or segment.op in (DICT, TUPLES, EDITS), "these need not read all of it"


def _changed(segment: Segment, chance: random.Random) -> Segment:
    """One field of a segment, changed to something that may be refused at once, or may not."""
    number = chance.choice([0, 1, 2, PIECE - 1, PIECE + 1, 4 * MIB, 1 << 40, (1 << 63) - 1])
    changes: list[Callable[[], Segment]] = [
        lambda: replace(segment, length=number),
        lambda: replace(segment, op=chance.randrange(0, len(OPS) + 3)),
        lambda: replace(segment, old=((number, PIECE),)),
        lambda: replace(segment, old=((0, number),) * chance.randrange(1, 20)),
        lambda: replace(segment, old=()),
        lambda: replace(segment, patch=(number, segment.patch[1])),
        lambda: replace(segment, patch=(segment.patch[0], number)),
        lambda: replace(segment, digest16=chance.randbytes(16)),
        lambda: replace(segment, params=chance.randbytes(chance.randrange(4))),
        lambda: replace(segment, params=bytes([chance.randrange(18), chance.randrange(14)])),
    ]
    return chance.choice(changes)()


@settings(max_examples=150)
@given(st.integers(0, 1 << 32), st.integers(0, len(MADE.segments) - 1))
def test_a_segment_that_lies_is_refused_before_or_after_the_codec_and_costs_no_more(
    bench: Bench, seed: int, number: int
) -> None:
    segment = MADE.segments[number]
    lying = _changed(segment, random.Random(seed))
    right = NEW[starts()[number] :][: segment.length]
    segments = (*MADE.segments[:number], lying, *MADE.segments[number + 1 :])
    try:
        parsed = recipe.parse(recipe.encode(replace(MADE, segments=segments)))
    except (HeliographError, OverflowError):
        parsed = None
    # A recipe that no parser let through meets the child's own checks.
    for one in (lying, *(parsed.segments[number : number + 1] if parsed else ())):
        if one.length <= 4 * MIB and all(0 <= value < 1 << 63 for span in (*one.old, one.patch) for value in span):
            bench.refuses(one, right)
    assert bench.peak_bytes <= 64 * MIB


# --- the whole file -------------------------------------------------------------------------------------------------


def refused(folder: Path, patch: bytes, base: str = "old") -> str:
    (folder / "bad").write_bytes(patch)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(IntegrityError) as caught:
        apply_file(folder / base, folder / "bad", folder / "out")
    assert sorted(path.name for path in folder.iterdir()) == before, "nothing is left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_with_every_operation_is_refused_when_cut_anywhere_or_with_any_byte_changed(folder: Path) -> None:
    whole, chance = (folder / "patch").read_bytes(), random.Random(5)
    for at in {0, 8, 12, 16, 24, 55, 56, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(150))}:
        refused(folder, whole[:at])
        refused(folder, whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :])


def test_a_file_whose_last_segment_lies_leaves_nothing_of_the_ones_before(folder: Path) -> None:
    last = MADE.segments[-1]
    lying = replace(MADE, segments=(*MADE.segments[:-1], replace(last, digest16=bytes(16))))
    assert "does not match" in refused(folder, sealed(lying, PATCH))
    (folder / "other").write_bytes(OLD[:-1] + b"?")
    assert "is not the file this delta starts from" in refused(folder, sealed(MADE, PATCH), "other")
    wrong = OLD[:PIECE] + bytes([OLD[PIECE] ^ 1]) + OLD[PIECE + 1 :]
    (folder / "other").write_bytes(wrong)
    assert "does not match" in refused(folder, sealed(replace(MADE, base=sha256(wrong)), PATCH), "other")


@settings(max_examples=15)
@given(st.binary(max_size=3000), st.binary(max_size=3000), st.binary(max_size=500))
def test_any_two_byte_strings_come_back_from_their_delta_file(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, common: bytes
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    (folder / "old").write_bytes(old + common)
    (folder / "new").write_bytes(new + common)
    file.make_file(folder / "old", folder / "new", folder / "patch")
    apply_file(folder / "old", folder / "patch", folder / "out")
    assert (folder / "out").read_bytes() == new + common
