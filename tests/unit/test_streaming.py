"""A delta is applied as its patch comes: each segment as soon as it can be, again from there after a kill, into room
that was taken beforehand."""

import asyncio
import errno
import os
from pathlib import Path
from random import Random

import pytest
import zstandard

from heliograph.blob import LEAF_BYTES, describe, page_of, sha256, short_digest
from heliograph.deadlines import Deadlines
from heliograph.delta import recipe as recipes
from heliograph.delta.patch import rebuild_segment
from heliograph.delta.recipe import COPY, FULL, Recipe, Segment
from heliograph.documents import Chunk, RecipeRef, Want, Way
from heliograph.manifest import File, Golden, Manifest, Variant
from heliograph.objects import reserve
from heliograph.source import Source
from heliograph.transfer import Arrival, BlobFetch
from heliograph_site.fetching import Downloads
from heliograph_site.rebuilding import Rebuild
from heliograph_site.slots import PartialBlob, Slots
from limits import no_room_beyond
from sealed import noise

OLD = noise(1, 100_000)
SEGMENT_BYTES = 60_000
SLOW = Deadlines(chunk_base_s=60.0)


def _made() -> tuple[Recipe, bytes, bytes]:
    """A delta of six segments that the patch holds and one, in the middle, that the base does."""
    segments: list[Segment] = []
    patch = new = b""
    for number in range(7):
        data = OLD[100 : 100 + SEGMENT_BYTES] if number == 3 else noise(50 + number, SEGMENT_BYTES)
        used = b"" if number == 3 else zstandard.ZstdCompressor().compress(data)
        op, old = (COPY, ((100, SEGMENT_BYTES),)) if number == 3 else (FULL, ())
        segments.append(Segment(len(data), op, old, (len(patch), len(used)), short_digest(data)))
        patch, new = patch + used, new + data
    digest, pages = describe(patch)
    made = Recipe(sha256(OLD), len(OLD), sha256(new), len(new), len(patch), digest, pages, tuple(segments))
    return made, patch, new


RECIPE, PATCH, NEW = _made()
ENCODED = recipes.encode(RECIPE)
MANIFEST = Manifest(
    model="digits",
    version="1.1.0",
    files=(File(name="model.tflite", length=len(NEW), sha256=sha256(NEW), pages=describe(NEW)[1]),),
    variants=(Variant(name="plain", files=("model.tflite",)),),
    golden=Golden(inputs="model.tflite", outputs="model.tflite"),
)
WAY = Way(
    kind="delta",
    blob=sha256(NEW),
    bytes=len(ENCODED) + len(PATCH),
    base=sha256(OLD),
    recipe=RecipeRef(length=len(ENCODED), sha256=sha256(ENCODED)),
)


def standing(slots: Slots) -> list[int]:
    """Segments that stand in the file that grows."""
    path = slots.path(sha256(NEW), "out")
    if not path.exists():
        return [] if not slots.holdings.has(sha256(NEW)) else list(range(7))
    data = path.read_bytes()
    return [
        number
        for number, segment in enumerate(RECIPE.segments)
        if short_digest(data[number * SEGMENT_BYTES :][: segment.length]) == segment.digest16
    ]


def fetched(slots: Slots, until: int = 7) -> list[tuple[int, list[int]]]:
    """Fetches leaf by leaf, in order; as many segments as those allow must stand before the next leaf comes.

    Returns per leaf of the patch how many bytes had come and which segments stood then. Ends, as a kill would, when so
    many segments stand.
    """
    seen: list[tuple[int, list[int]]] = []
    ends = [sum(segment.patch) if segment.patch[1] else 0 for segment in RECIPE.segments]

    async def scenario() -> None:
        wants: asyncio.Queue[Want] = asyncio.Queue()
        made = asyncio.Event()

        async def probe(_timeout_s: float) -> bool:
            return True

        downloads = Downloads(wants.put, probe, Random(1), SLOW)
        come = 0

        async def give(want: Want, leaf: int) -> None:
            nonlocal come
            content = ENCODED if want.blob == sha256(ENCODED) else PATCH
            data = content[leaf * LEAF_BYTES : (leaf + 1) * LEAF_BYTES]
            made.clear()
            await downloads.on_chunk(Chunk(handle=want.handle, offset=leaf * LEAF_BYTES, bytes=data).encode())
            if content is PATCH:
                assert come == leaf * LEAF_BYTES, "they are asked for in order"
                come += len(data)
                due = [number for number, end in enumerate(ends) if end <= come]
                while not fetching.done() and not set(due) <= set(standing(slots)):
                    await made.wait()
                    made.clear()
                seen.append((come, standing(slots)))

        async def serve() -> None:
            while len(seen) == 0 or len(seen[-1][1]) < until:
                want = await wants.get()
                for page in want.pages:
                    data = page_of(PATCH[page << 20 : (page + 1) << 20])
                    await downloads.on_chunk(Chunk(handle=want.handle, page=page, bytes=data).encode())
                for first, count in want.ranges:
                    for leaf in range(first, first + count):
                        if len(seen) == 0 or len(seen[-1][1]) < until:
                            await give(want, leaf)

        running = asyncio.ensure_future(downloads.run())
        await downloads.on_link(True)
        fetching = asyncio.ensure_future(downloads.release(slots, MANIFEST, (WAY,), lambda held, of: made.set()))
        serving = asyncio.ensure_future(serve())
        async with asyncio.timeout(60):
            await asyncio.wait((serving, fetching), return_when=asyncio.FIRST_COMPLETED)
            if until >= 7 or not serving.done():
                await fetching
        for task in (running, serving, fetching):
            task.cancel()
        await asyncio.wait((running, serving, fetching))

    asyncio.run(scenario())
    return seen


def test_every_segment_but_the_last_is_rebuilt_before_the_last_chunk_comes(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.store.put(OLD)
    seen = fetched(slots)
    come, stood = seen[-2]
    assert len(PATCH) - come <= LEAF_BYTES and set(stood) >= set(range(6)), "one leaf is lacking, and one segment"
    first = next(come for come, stood in seen if 0 in stood)
    assert first < len(PATCH) / 5, "the first stands while most of the patch is on its way"
    assert 3 in seen[0][1], "a copy needs no patch"
    assert slots.store.read(sha256(NEW)) == NEW


class Counted:
    """What a child would do, done here, and for which segments."""

    def __init__(self, base: Source, patch: Source | None, made: list[Segment]) -> None:
        assert patch is not None
        self._base, self._patch, self.made = base, patch, made

    def rebuild(self, segment: Segment) -> bytes | bytearray:
        self.made.append(segment)
        return rebuild_segment(segment, self._base.read, self._patch.read(*segment.patch) if segment.patch[1] else b"")

    def close(self) -> None:
        pass


def test_after_a_kill_it_goes_on_with_the_segment_it_was_at(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.store.put(OLD)
    fetched(slots, until=4)
    stood = standing(slots)
    assert 4 <= len(stood) < 7
    for suffix, length in (("out", len(NEW)), ("patch", len(PATCH))):
        taken = slots.path(sha256(NEW), suffix).stat().st_blocks * 512
        assert taken >= length, "room for all of it is taken from the beginning"
    part = PartialBlob(
        slots.path(sha256(NEW), "patch"),
        slots.path(sha256(NEW), "patch-pages"),
        BlobFetch(RECIPE.patch_sha256, RECIPE.patch_length, RECIPE.patch_pages, b"hndl"),
    )
    leaves = part.open()
    assert leaves >= 3 * SEGMENT_BYTES // LEAF_BYTES, "and of the patch nothing comes twice"
    for leaf in range(leaves, -(-len(PATCH) // LEAF_BYTES)):
        data = PATCH[leaf * LEAF_BYTES :][:LEAF_BYTES]
        arrived = part.fetch.accept(Chunk(handle=b"hndl", offset=leaf * LEAF_BYTES, bytes=data))
        part.take(Arrival(part.fetch, arrived))
    counted: list[Segment] = []
    rebuild = Rebuild(
        slots.path(sha256(NEW), "out"), RECIPE, slots.holdings, lambda base, patch: Counted(base, patch, counted)
    )
    rebuild.open()
    for number in rebuild.ready(part):
        rebuild.make(number, part)
    assert rebuild.is_complete
    rebuild.close()
    part.close()
    assert counted == [segment for number, segment in enumerate(RECIPE.segments) if number not in stood]
    assert slots.path(sha256(NEW), "out").read_bytes() == NEW


# --- room -----------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_for_the_whole_file_is_found_before_a_leaf_is_asked_for(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.store.put(OLD)
    slots.keep(sha256(NEW), "recipe", ENCODED)
    sent: list[Want] = []

    async def scenario() -> None:
        async def send(want: Want) -> None:
            sent.append(want)

        async def probe(_timeout_s: float) -> bool:
            return True

        downloads = Downloads(send, probe, Random(1), SLOW)
        running = asyncio.ensure_future(downloads.run())
        await downloads.on_link(True)
        try:
            await downloads.release(slots, MANIFEST, (WAY,), lambda held, of: None)
        finally:
            running.cancel()

    with no_room_beyond(len(NEW) - 1), pytest.raises(OSError) as full:
        asyncio.run(scenario())
    assert full.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert sent == []
    assert slots.path(sha256(NEW), "out").stat().st_size == 0, "what it took it gave back"


def test_room_is_taken_for_all_of_a_file_and_what_stands_in_it_stays(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(b"begun")
        reserve(file.fileno(), 1 << 20)
        stat = os.fstat(file.fileno())
        assert stat.st_size == 1 << 20 <= stat.st_blocks * 512
        assert os.pread(file.fileno(), 8, 0) == b"begun\0\0\0"
        with no_room_beyond(1 << 20), pytest.raises(OSError):
            reserve(file.fileno(), 2 << 20)
        assert os.fstat(file.fileno()).st_size == 1 << 20
        reserve(file.fileno(), 3)
        assert os.pread(file.fileno(), 8, 0) == b"beg"
        reserve(file.fileno(), 0)
        assert os.fstat(file.fileno()).st_size == 0
