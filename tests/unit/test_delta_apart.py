"""Patch bytes meet codecs in a child: what they cost is bounded there, and what comes back is checked here."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import zstandard

from heliograph.blob import short_digest
from heliograph.delta.apart import BOUNDS, Apart, Bounds
from heliograph.delta.child import NICE
from heliograph.delta.diff import make
from heliograph.delta.patch import dictionary
from heliograph.delta.recipe import COPY, DICT, FULL, Segment, UnknownOpError
from heliograph.errors import IntegrityError
from heliograph.sealing import seal_range
from heliograph.source import Source

MIB = 1 << 20
OLD = Random(1).randbytes(9 * MIB)
OLD_KEY, PATCH_KEY = b"o" * 32, b"p" * 32


class Pair:
    """A base and a patch on disk."""

    def __init__(self, folder: Path) -> None:
        self.fds: list[int] = []
        self.folder = folder

    def sealed(self, old: bytes, patch: bytes, bounds: Bounds = BOUNDS) -> Apart:
        """Both as a node keeps those of a confidential release."""
        for name, key, data in (("old", OLD_KEY, old), ("patch", PATCH_KEY, patch)):
            (self.folder / name).write_bytes(seal_range(key, 0, data))
            self.fds.append(os.open(self.folder / name, os.O_RDONLY))
        base, other = self.fds[-2:]
        return Apart(Source(base, 0, OLD_KEY, len(old)), Source(other, 0, PATCH_KEY, len(patch)), bounds)

    def apart(self, old: bytes, patch: bytes, bounds: Bounds = BOUNDS, start: int = 0) -> Apart:
        for name, data in (("old", old), ("patch", patch)):
            (self.folder / name).write_bytes(data)
            self.fds.append(os.open(self.folder / name, os.O_RDONLY))
        return Apart(Source(self.fds[-2]), Source(self.fds[-1], start), bounds)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    for fd in pair.fds:
        os.close(fd)


def largest() -> tuple[Segment, bytes]:
    """A segment that takes as much as any may: 4 MiB that don't compress, with 8 MiB of base as dictionary."""
    out = Random(2).randbytes(4 * MIB)
    frame = zstandard.ZstdCompressor(level=1, dict_data=dictionary(OLD[: 8 * MIB])).compress(out)
    return Segment(len(out), DICT, ((0, 8 * MIB),), (0, len(frame)), short_digest(out)), frame


def test_segments_come_out_as_they_would_without_a_child_and_one_child_makes_them_all(pair: Pair) -> None:
    new = OLD[: 3 * MIB] + Random(3).randbytes(MIB) + OLD[2 * MIB : 5 * MIB] + bytes(MIB)
    recipe, patch = make(OLD, new)
    apart = pair.apart(OLD, b"head" + patch, start=4)
    assert b"".join(apart.rebuild(segment) for segment in recipe.segments) == new
    assert 0 < apart.peak_rss_bytes() <= 64 * MIB
    apart.close()
    apart.close()
    assert apart.peak_rss_bytes() == 0


def test_copies_need_no_child(pair: Pair) -> None:
    apart = pair.apart(OLD, b"")
    assert apart.rebuild(Segment(100, COPY, ((50, 100),), (0, 0), short_digest(OLD[50:150]))) == OLD[50:150]
    with pytest.raises(IntegrityError, match="does not match its digest"):
        apart.rebuild(Segment(100, COPY, ((51, 100),), (0, 0), short_digest(OLD[50:150])))
    assert apart.peak_rss_bytes() == 0


def test_the_largest_segment_fits_the_bounds_and_one_that_needs_more_is_refused_clearly(pair: Pair) -> None:
    segment, frame = largest()
    apart = pair.apart(OLD, frame)
    assert len(apart.rebuild(segment)) == 4 * MIB
    assert apart.peak_rss_bytes() <= 64 * MIB
    apart.close()
    tight = pair.apart(OLD, frame, Bounds(memory_bytes=6 * MIB))
    with pytest.raises(IntegrityError, match="needs more memory than the 6291456 bytes it may take"):
        tight.rebuild(segment)
    tight.close()


def test_sealed_bases_and_patches_are_opened_in_the_child_within_the_same_bounds(pair: Pair) -> None:
    segment, frame = largest()
    apart = pair.sealed(OLD, frame)
    copy = Segment(5000, COPY, ((4000, 5000),), (0, 0), short_digest(OLD[4000:9000]))
    assert apart.rebuild(copy) == OLD[4000:9000]
    assert short_digest(apart.rebuild(segment)) == segment.digest16
    assert apart.peak_rss_bytes() <= 64 * MIB
    assert apart._child is not None
    for name in ("cmdline", "environ"):
        told = Path(f"/proc/{apart._child.pid}/{name}").read_bytes()
        assert OLD_KEY not in told and PATCH_KEY not in told
    apart.close()


def test_a_sealed_patch_that_was_garbled_is_refused_clearly(pair: Pair) -> None:
    out = b"right" * 1000
    frame = zstandard.ZstdCompressor().compress(out)
    apart = pair.sealed(OLD, frame)
    segment = Segment(len(out), FULL, (), (0, len(frame)), short_digest(out))
    (pair.folder / "patch").write_bytes(bytes(len(frame) + 16))
    with pytest.raises(IntegrityError, match="sealed leaf 0 doesn't open with this key"):
        apart.rebuild(segment)
    apart.close()


def test_wrong_bytes_are_refused_and_the_next_segment_still_comes(pair: Pair) -> None:
    out = b"right" * 1000
    frame = zstandard.ZstdCompressor().compress(out)
    bomb = zstandard.ZstdCompressor().compress(bytes(4 * MIB))
    apart = pair.apart(OLD, frame + bomb)
    right = Segment(len(out), FULL, (), (0, len(frame)), short_digest(out))
    for wrong, why in (
        (Segment(len(out), FULL, (), (len(frame), len(bomb)), short_digest(out)), "unpack to 4194304 bytes"),
        (Segment(len(out), FULL, (), (1, len(frame)), short_digest(out)), "not a zstd frame|unpack to"),
        (Segment(len(out), FULL, (), (0, len(frame)), bytes(16)), "does not match its digest"),
        (Segment(len(out), FULL, (), (len(frame), 1 << 20), short_digest(out)), "file ends at"),
    ):
        with pytest.raises(IntegrityError, match=why):
            apart.rebuild(wrong)
    with pytest.raises(UnknownOpError, match="operation 99"):
        apart.rebuild(Segment(len(out), 99, (), (0, 0), bytes(16)))
    assert apart.rebuild(right) == out
    apart.close()


def test_a_child_that_gives_nothing_is_ended_and_told_of(pair: Pair) -> None:
    segment, frame = largest()
    apart = pair.apart(OLD, frame, Bounds(wall_s=0.0))
    with pytest.raises(IntegrityError, match="took more than 0 seconds"):
        apart.rebuild(segment)
    assert apart.peak_rss_bytes() == 0, "it is gone"


def confined(program: str) -> subprocess.CompletedProcess[bytes]:
    """What becomes of a codec that patch bytes have taken over."""
    begin = "from heliograph.delta.child import allow_cpu, confine\nconfine(48 << 20); allow_cpu(0)\n"
    return subprocess.run([sys.executable, "-c", begin + program], capture_output=True, timeout=60)


def test_a_bomb_meets_the_kernels_bounds_in_the_child(tmp_path: Path) -> None:
    # Some patch formats made 2 GB of 872 bytes; whatever a codec does, this is all it gets.
    assert b"MemoryError" in confined("bytearray(2 << 30)").stderr
    assert b"MemoryError" in confined("held = []\nwhile True: held.append(bytes(1 << 16))").stderr
    assert confined("while True: pass").returncode == -signal.SIGXCPU
    assert b"File too large" in confined(f"import os; os.write(os.open({str(tmp_path / 'x')!r}, 65), b'x')").stderr


def test_the_child_stands_under_its_bounds_while_it_works(pair: Pair) -> None:
    segment, frame = largest()
    apart = pair.apart(OLD, frame)
    apart.rebuild(segment)
    assert apart._child is not None
    niceness = os.getpriority(os.PRIO_PROCESS, apart._child.pid)
    assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE), "what is served goes first"
    limits = Path(f"/proc/{apart._child.pid}/limits").read_text()
    bounds = {}
    for name in ("Max cpu time", "Max address space", "Max file size", "Max core file size"):
        line = next(line for line in limits.splitlines() if line.startswith(name))
        bounds[name] = line.removeprefix(name).split()[0]
        assert bounds[name] != "unlimited", line
    assert bounds["Max core file size"] == "1", "what was opened for it goes to no file and no program when it crashes"
    apart.close()
