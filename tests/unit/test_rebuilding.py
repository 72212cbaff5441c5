"""A delta whose result is sealed as it grows: the hub's very bytes, in any order, after any kill, nothing plain."""

import os
import select
import subprocess
import sys
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.blob import LEAF_BYTES, PAGE_SPAN_BYTES, describe, page_of, sha256, short_digest
from heliograph.delta.patch import rebuild_segment
from heliograph.delta.recipe import COPY, FULL, Recipe, Segment, encode, with_patch
from heliograph.documents import Chunk
from heliograph.errors import IntegrityError
from heliograph.sealing import PLAIN_LEAF_BYTES, describe_sealed, leaf_key
from heliograph.source import Source
from heliograph.transfer import Arrival, BlobFetch
from heliograph_site.holdings import Holdings
from heliograph_site.rebuilding import MAX_WAITING, Rebuild, SealedTarget
from heliograph_site.slots import PartialBlob, Slots
from sealed import NODE_KEY, Vault, leaks, noise, put

HANDLE = b"hndl"
OLD = noise(1, 40_000)
VAULT = Vault()
EDGES = [1, 2, 4079, 4080, 4081, 4096, 8159, 8160, 8161]


class Joined:
    """What a child would do, done here."""

    def __init__(self, base: Source, patch: Source | None) -> None:
        self._base, self._patch = base, patch

    def rebuild(self, segment: Segment) -> bytes | bytearray:
        data = b"" if self._patch is None or not segment.patch[1] else self._patch.read(*segment.patch)
        return rebuild_segment(segment, self._base.read, data)

    def close(self) -> None:
        pass


@dataclass
class Delta:
    """A delta of a file, made by hand so that its segments are as short or long as wanted."""

    recipe: Recipe
    patch: bytes
    new: bytes


def delta_of(lengths: list[int], copies: list[bool]) -> Delta:
    """Segments of these lengths: copies of what begins somewhere in OLD, or new bytes."""
    segments: list[Segment] = []
    patch, new = b"", b""
    for number, (length, is_copy) in enumerate(zip(lengths, copies, strict=True)):
        at = number * 997 % (len(OLD) - length)
        if is_copy:
            data, used = OLD[at : at + length], b""
        else:
            data = noise(1000 + number, length)
            used = zstandard.ZstdCompressor().compress(data)
        op, old = (COPY, ((at, length),)) if is_copy else (FULL, ())
        segments.append(Segment(length, op, old, (len(patch), len(used)), short_digest(data)))
        patch, new = patch + used, new + data
    digest, pages = describe(patch)
    recipe = Recipe(sha256(OLD), len(OLD), sha256(new), len(new), len(patch), digest, pages, tuple(segments))
    return Delta(recipe, patch, new)


class Site:
    """One node's disk, on which a rebuild is begun again after every kill."""

    def __init__(self, folder: Path, delta: Delta, *, is_base_sealed: bool = True) -> None:
        self.folder, self.delta = folder, delta
        self.holdings = Holdings(folder, NODE_KEY.open_box)
        if is_base_sealed:
            self.holdings.take(folder / f"{put(VAULT, folder, OLD).hex()}.part", sha256(OLD), len(OLD), VAULT.grant())
        else:
            self.holdings.store.put(OLD)
        self.key = leaf_key(VAULT.epoch_key, sha256(delta.new))
        self.patch_key = leaf_key(VAULT.epoch_key, delta.recipe.patch_sha256)
        blob, self.sealed_patch = describe_sealed(self.patch_key, delta.patch)
        self.part: PartialBlob | None = None
        if delta.patch:
            fetch = BlobFetch(blob.sealed, blob.length, blob.pages, HANDLE)
            self.part = PartialBlob(folder / "patch", folder / "patch-pages", fetch)
            self.part.open()
            for page in range(len(blob.pages)):
                data = page_of(self.sealed_patch[page * PAGE_SPAN_BYTES :][:PAGE_SPAN_BYTES])
                self.part.take(Arrival(fetch, fetch.accept(Chunk(handle=HANDLE, page=page, bytes=data))))

    def leaves(self) -> list[int]:
        return list(range(-(-len(self.sealed_patch) // LEAF_BYTES)))

    def give(self, leaf: int) -> None:
        assert self.part is not None
        data = self.sealed_patch[leaf * LEAF_BYTES :][:LEAF_BYTES]
        arrived = self.part.fetch.accept(Chunk(handle=HANDLE, offset=leaf * LEAF_BYTES, bytes=data))
        self.part.take(Arrival(self.part.fetch, arrived))

    def begin(self) -> Rebuild:
        """As after a start: what the one before had in memory is gone."""
        rebuild = Rebuild(
            self.folder / "out", self.delta.recipe, self.holdings, Joined, key=self.key, patch_key=self.patch_key
        )
        rebuild.open()
        return rebuild

    def plain(self) -> list[bytes]:
        return [self.delta.new, OLD, self.delta.patch]


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    length = st.one_of(st.sampled_from(EDGES), st.integers(1, 60), st.integers(1, 13_000))
    lengths = draw(st.lists(length, min_size=1, max_size=16))
    return delta_of(lengths, draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))


@settings(max_examples=60)
@given(delta=deltas(), seed=st.integers(0, 1 << 32), is_base_sealed=st.booleans())
def test_a_sealed_rebuild_is_the_hubs_sealed_blob_in_any_order_and_after_any_kill(
    delta: Delta, seed: int, is_base_sealed: bool
) -> None:
    rng = Random(seed)
    with TemporaryDirectory() as name:
        site = Site(Path(name), delta, is_base_sealed=is_base_sealed)
        coming = site.leaves()
        rng.shuffle(coming)
        rebuild, rounds = site.begin(), 0
        while not rebuild.is_complete:
            rounds += 1
            assert rounds < 500, "it goes on and on"
            for index in rebuild.ready(site.part)[: rng.randint(1, 4)]:
                rebuild.make(index, site.part)
            for _ in range(rng.randint(0, 3)):
                if coming:
                    site.give(coming.pop())
            if rng.random() < 0.2 and rounds < 200:
                rebuild = site.begin()  # the one before is not closed: it was killed
        assert (Path(name) / "out").read_bytes() == VAULT.sealed(delta.new)
        assert isinstance(rebuild._target, SealedTarget) and not rebuild._target._waiting
        rebuild.close()


@pytest.mark.parametrize("kill_after", range(8))
def test_nothing_plain_is_on_the_disk_wherever_a_rebuild_is_killed(tmp_path: Path, kill_after: int) -> None:
    delta = delta_of([5000, 3000, 80, 9000, 4080, 6000, 12_240, 2000], [True, False] * 4)
    site = Site(tmp_path, delta)
    rebuild = site.begin()
    for leaf in site.leaves():
        site.give(leaf)
    for _ in range(kill_after):
        rebuild.make(rebuild.ready(site.part)[0], site.part)
    assert leaks(tmp_path, site.plain()) == []
    again = site.begin()
    made = 0
    while not again.is_complete:
        again.make(again.ready(site.part)[0], site.part)
        made += 1
    ends = list(accumulate(segment.length for segment in delta.recipe.segments))
    held = (ends[kill_after - 1] if kill_after else 0) // PLAIN_LEAF_BYTES * PLAIN_LEAF_BYTES
    assert made == sum(end > held for end in ends), "only what shares a leaf with what was missing is made twice"
    assert (tmp_path / "out").read_bytes() == VAULT.sealed(delta.new)
    assert leaks(tmp_path, site.plain()) == []
    again.close()


def test_a_segment_waits_until_all_that_share_its_leaves_can_be_made(tmp_path: Path) -> None:
    delta = delta_of([5000, 5000, 5000], [True, False, True])
    site = Site(tmp_path, delta)
    rebuild = site.begin()
    assert rebuild.ready(site.part) == [], "both copies share leaves with what the patch has yet to bring"
    for leaf in site.leaves():
        site.give(leaf)
    assert rebuild.ready(site.part) == [0, 1, 2]
    for index in (0, 1, 2):
        rebuild.make(index, site.part)
    assert rebuild.is_complete
    rebuild.close()


def test_few_leaves_wait_in_memory_and_what_was_dropped_is_made_again(tmp_path: Path) -> None:
    count = 2 * MAX_WAITING
    delta = delta_of([PLAIN_LEAF_BYTES - 1] * count, [True] * count)
    site = Site(tmp_path, delta)
    rebuild = site.begin()
    for index in range(0, count, 2):
        rebuild.make(index, None)
        assert isinstance(rebuild._target, SealedTarget)
        assert len(rebuild._target._waiting) <= MAX_WAITING
    made = 0
    while not rebuild.is_complete:
        rebuild.make(rebuild.ready(None)[0], None)
        made += 1
    assert count // 2 < made < 2 * count
    assert (tmp_path / "out").read_bytes() == VAULT.sealed(delta.new)
    rebuild.close()


def test_bytes_that_rotted_in_what_stands_there_are_made_again(tmp_path: Path) -> None:
    delta = delta_of([9000, 9000], [True, True])
    site = Site(tmp_path, delta)
    rebuild = site.begin()
    for index in rebuild.ready(None):
        rebuild.make(index, None)
    rebuild.close()
    out = tmp_path / "out"
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    again = site.begin()
    assert again.ready(None) == [1]
    again.make(1, None)
    assert out.read_bytes() == VAULT.sealed(delta.new)
    again.close()


def test_a_base_that_is_gone_is_told_clearly(tmp_path: Path) -> None:
    delta = delta_of([100], [True])
    site = Site(tmp_path, delta)
    site.holdings.collect([])
    rebuild = site.begin()
    with pytest.raises(IntegrityError, match=r"base .* is gone"):
        rebuild.make(0, None)
    rebuild.close()


REBUILDS = """
import os, sys
from pathlib import Path
from heliograph.delta.recipe import parse
from heliograph_site.rebuilding import Rebuild
from heliograph_site.slots import Slots
slots, recipe = Slots(Path(sys.argv[1])), parse(Path(sys.argv[2]).read_bytes())
rebuild = Rebuild(slots.path(recipe.target, "out"), recipe, slots.holdings)
rebuild.open()
for index in rebuild.ready(None):
    rebuild.make(index, None)
    print(index, Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(), flush=True)
    sys.stdin.readline()
"""


def test_after_kill_9_only_what_was_not_written_is_rebuilt_and_no_process_is_left(tmp_path: Path) -> None:
    delta = delta_of([300] * 20, [number % 2 == 0 for number in range(20)])
    recipe, _ = with_patch(delta.recipe, delta.patch)
    (tmp_path / "recipe").write_bytes(encode(recipe))
    slots = Slots(tmp_path / "site")
    slots.store.put(OLD)
    command = [sys.executable, "-c", REBUILDS, str(tmp_path / "site"), str(tmp_path / "recipe")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None and node.stdout is not None
        for number in range(7):
            index, *children = map(int, node.stdout.readline().split())
            assert index == number
            if number < 6:
                node.stdin.write("\n")
                node.stdin.flush()
        (child,) = map(os.pidfd_open, children)
        node.kill()
    ended = select.poll()
    ended.register(child, select.POLLIN)
    assert ended.poll(30_000), "the child ends with the node"
    os.close(child)
    rebuild = Rebuild(slots.path(recipe.target, "out"), recipe, slots.holdings)
    rebuild.open()
    left = rebuild.ready(None)
    assert left == list(range(7, 20))
    for index in left:
        rebuild.make(index, None)
    rebuild.close()
    slots.settle(recipe.target, rebuild.path)
    assert slots.store.read(recipe.target) == delta.new and list(slots.incoming.iterdir()) == []
