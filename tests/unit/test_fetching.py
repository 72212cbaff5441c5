"""Downloads over a link of the test's own: what is lost on the way out is asked for again, whoever lost it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from heliograph.blob import LEAF_BYTES, describe, page_of, sha256
from heliograph.deadlines import Deadlines
from heliograph.delta import recipe as recipes
from heliograph.delta.diff import make
from heliograph.delta.dtypes import Dtype
from heliograph.documents import Chunk, RecipeRef, Want, Way
from heliograph.errors import IntegrityError, TransportError
from heliograph.manifest import File, Golden, Manifest, Variant, manifest_digest
from heliograph.policy import Budget, Policy
from heliograph_site.allowance import Allowance
from heliograph_site.fetching import Downloads
from heliograph_site.journal import Journal
from heliograph_site.slots import Slots
from sealed import Vault
from waits import turns

DATA = b"a manifest"
QUICK = Deadlines(chunk_base_s=0.05, chunk_rtts=0.0)
SLOW = Deadlines(chunk_base_s=30.0)


async def answers(_timeout_s: float) -> bool:
    return True


@asynccontextmanager
async def running(send: Callable[[Want], Awaitable[None]], deadlines: Deadlines) -> AsyncIterator[Downloads]:
    downloads = Downloads(send, answers, Random(1), deadlines)
    task = asyncio.ensure_future(downloads.run())
    try:
        yield downloads
    finally:
        task.cancel()
        await asyncio.wait({task})


async def fetch(downloads: Downloads) -> bytes:
    async with asyncio.timeout(10):
        return await downloads.small(sha256(DATA), len(DATA))


def answer(want: Want) -> bytes:
    return Chunk(handle=want.handle, offset=0, bytes=DATA).encode()


def test_a_want_that_could_not_be_sent_is_sent_again_though_the_link_never_went_away() -> None:
    async def scenario() -> None:
        sent: list[Want] = []

        async def send(want: Want) -> None:
            sent.append(want)
            if len(sent) == 1:
                raise TransportError("the connection refuses to send just now")
            asyncio.get_running_loop().call_soon(lambda: arrived.append(asyncio.ensure_future(come(want))))

        async def come(want: Want) -> None:
            await downloads.on_chunk(answer(want))

        arrived: list[asyncio.Future[None]] = []
        async with running(send, QUICK) as downloads:
            await downloads.on_link(True)
            assert await fetch(downloads) == DATA
        assert len(sent) == 2

    asyncio.run(scenario())


def test_a_hub_that_is_back_is_asked_at_once_for_what_its_silence_put_off() -> None:
    async def scenario() -> None:
        wants: asyncio.Queue[Want] = asyncio.Queue()
        async with running(wants.put, Deadlines(chunk_base_s=0.2, chunk_rtts=0.0)) as downloads:
            await downloads.on_link(True)
            fetching = asyncio.ensure_future(fetch(downloads))
            for _ in range(5):  # 0.2 s, 0.4 s, 0.8 s, 1.6 s have passed; the next is due after 3.2 s
                async with asyncio.timeout(5):
                    want = await wants.get()
            downloads.on_hub_back()
            async with asyncio.timeout(3):
                want = await wants.get()
            await downloads.on_chunk(answer(want))
            assert await fetching == DATA

    asyncio.run(scenario())


def test_a_hub_that_was_not_silent_is_not_asked_twice() -> None:
    async def scenario() -> None:
        wants: asyncio.Queue[Want] = asyncio.Queue()
        async with running(wants.put, SLOW) as downloads:
            await downloads.on_link(True)
            fetching = asyncio.ensure_future(fetch(downloads))
            want = await wants.get()
            downloads.on_hub_back()
            await downloads.on_chunk(answer(want))
            assert await fetching == DATA
            assert wants.empty()

    asyncio.run(scenario())


class Metered:
    """A link on which so many bytes may still come."""

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.came: list[tuple[bytes, int]] = []

    def may_take(self) -> int | None:
        return self.left

    def took(self, release: bytes, size: int) -> None:
        self.came.append((release, size))
        if self.left is not None:
            self.left -= size


class Clocked:
    """The node's own meter, and the time it is told."""

    def __init__(self, folder: Path, day_bytes: int) -> None:
        self.now = 1_795_348_800  # noon, UTC
        policy = Policy(realm="lab", ring="canary", number=1, at=0, budget=Budget(day_bytes=day_bytes))
        journal = Journal(folder / "journal.sqlite")
        self.allowance = Allowance(journal, lambda: policy, dict, lambda: self.now)


def test_a_fetch_that_is_larger_than_a_days_budget_goes_on_by_itself_when_the_day_turns(tmp_path: Path) -> None:
    content = Random(6).randbytes(200_000)
    manifest, budget = release_of(content), 90_000
    clocked = Clocked(tmp_path, budget)

    async def scenario() -> None:
        wants: asyncio.Queue[Want] = asyncio.Queue()
        slots = Slots(tmp_path)
        downloads = Downloads(wants.put, answers, Random(1), SLOW, clocked.allowance)

        async def serve() -> None:
            while True:
                want = await wants.get()
                for page in want.pages:
                    await downloads.on_chunk(Chunk(handle=want.handle, page=page, bytes=page_of(content)).encode())
                for first, count in want.ranges:
                    data = content[first * LEAF_BYTES : (first + count) * LEAF_BYTES]
                    offset = first * LEAF_BYTES
                    await downloads.on_chunk(Chunk(handle=want.handle, offset=offset, bytes=data).encode())

        running = [asyncio.ensure_future(downloads.run()), asyncio.ensure_future(serve())]
        await downloads.on_link(True)
        way = Way(kind="full", blob=manifest.files[0].sha256, bytes=len(content))
        fetching = asyncio.ensure_future(downloads.release(slots, manifest, (way,), lambda held, of: None))
        turns = 0
        while not fetching.done():
            await soon(lambda: fetching.done() or clocked.allowance.why_not_fetch() is not None)
            assert clocked.allowance.spent().day <= budget
            if not fetching.done():
                clocked.now += 86400
                turns += 1
                downloads.look()
        assert await fetching == (way,) and turns == 2
        assert slots.store.read(manifest.files[0].sha256) == content  # type: ignore[arg-type]
        assert len(content) <= clocked.allowance.spent().month <= len(content) + 2 * LEAF_BYTES
        for task in running:
            task.cancel()
        await asyncio.wait(running)

    asyncio.run(scenario())


async def soon(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if condition():
            return
        await turns(1)
    raise AssertionError("it did not come to that")


def release_of(content: bytes) -> Manifest:
    digest, pages = describe(content)
    return Manifest(
        model="digits",
        version="1.0.0",
        files=(File(name="m", length=len(content), sha256=digest, pages=pages),),
        variants=(Variant(name="plain", files=("m",)),),
        golden=Golden(inputs="m", outputs="m"),
    )


def test_a_fetch_stops_short_of_the_budget_and_goes_on_when_there_is_more_of_it(tmp_path: Path) -> None:
    content = Random(5).randbytes(200_000)
    manifest, budget = release_of(content), 50_000
    pages = [page_of(content)]

    async def scenario() -> None:
        wants: asyncio.Queue[Want] = asyncio.Queue()
        meter, slots = Metered(budget), Slots(tmp_path)
        downloads = Downloads(wants.put, answers, Random(1), SLOW, meter)
        running = [asyncio.ensure_future(downloads.run())]

        async def serve() -> None:
            while True:
                want = await wants.get()
                for page in want.pages:
                    await downloads.on_chunk(Chunk(handle=want.handle, page=page, bytes=pages[page]).encode())
                for first, count in want.ranges:
                    data = content[first * LEAF_BYTES : (first + count) * LEAF_BYTES]
                    chunk = Chunk(handle=want.handle, offset=first * LEAF_BYTES, bytes=data)
                    await downloads.on_chunk(chunk.encode())

        running.append(asyncio.ensure_future(serve()))
        await downloads.on_link(True)
        way = Way(kind="full", blob=manifest.files[0].sha256, bytes=len(content))
        fetching = asyncio.ensure_future(downloads.release(slots, manifest, (way,), lambda held, of: None))
        await soon(lambda: sum(size for _, size in meter.came) > budget - LEAF_BYTES)
        for _ in range(50):  # nothing more comes, however often it is looked at
            downloads.look()
            await turns(1)
        assert not fetching.done() and 0 <= meter.left < LEAF_BYTES  # type: ignore[operator]
        assert {release for release, _ in meter.came} == {manifest_digest(manifest)}
        manifest_bytes = asyncio.ensure_future(downloads.small(sha256(DATA), len(DATA)))
        await soon(lambda: any(fetch.blob == sha256(DATA) for fetch in downloads._fetcher.fetches))
        async with asyncio.timeout(10):
            handle = next(f.handle for f in downloads._fetcher.fetches if f.blob == sha256(DATA))
            await downloads.on_chunk(Chunk(handle=handle, offset=0, bytes=DATA).encode())
            assert await manifest_bytes == DATA, "what is signed and small is never held back"
            meter.left = None
            downloads.look()
            await fetching
        assert slots.store.read(manifest.files[0].sha256) == content  # type: ignore[arg-type]
        for task in running:
            task.cancel()
        await asyncio.wait(running)

    asyncio.run(scenario())


OLD = Random(7).randbytes(40_000)
NEW = OLD[:30_000] + Random(8).randbytes(9_000)


def a_delta(vault: Vault, **told: Any) -> Way:
    """A delta that the link has, its last segment told as something else."""
    recipe, patch = make(OLD, NEW)
    recipe = replace(recipe, segments=(*recipe.segments[:-1], replace(recipe.segments[-1], **told)))
    encoded = recipes.encode(recipe)
    vault.blobs |= {sha256(encoded): encoded, sha256(patch): patch}
    named = RecipeRef(length=len(encoded), sha256=sha256(encoded))
    return Way(kind="delta", blob=sha256(NEW), bytes=1, base=sha256(OLD), recipe=named)


def fetched(
    slots: Slots, vault: Vault, manifest: Manifest, *ways: Way, told: Callable[[Downloads], object] = lambda _: None
) -> tuple[Way, ...]:
    """What a release came by, over a link that has what the vault has; `told` looks at the downloads after it."""

    async def scenario() -> tuple[Way, ...]:
        wants: asyncio.Queue[Want] = asyncio.Queue()
        downloads = Downloads(wants.put, answers, Random(1), SLOW)

        async def serve() -> None:
            while True:
                for chunk in vault.answers(await wants.get()):
                    await downloads.on_chunk(chunk.encode())

        running = [asyncio.ensure_future(downloads.run()), asyncio.ensure_future(serve())]
        await downloads.on_link(True)
        try:
            async with asyncio.timeout(30):
                gone = await downloads.release(slots, manifest, ways, lambda held, of: None)
                told(downloads)
                return gone
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    return asyncio.run(scenario())


@pytest.fixture
def vault() -> Vault:
    vault = Vault()
    vault.blobs[sha256(NEW)] = NEW
    return vault


FULL = Way(kind="full", blob=sha256(NEW), bytes=len(NEW))


def test_an_operation_of_a_later_version_means_that_the_next_way_is_gone(tmp_path: Path, vault: Vault) -> None:
    slots, later = Slots(tmp_path), a_delta(vault, op=200)
    slots.store.put(OLD)
    with pytest.raises(
        IntegrityError, match=r"no way .* leads to m: segment \d needs operation 200, which this version"
    ):
        fetched(slots, vault, release_of(NEW), later)
    known = a_delta(vault).model_copy(update={"bytes": 2})
    assert fetched(slots, vault, release_of(NEW), FULL, later, known) == (known,)
    slots.store.delete(sha256(NEW))
    assert fetched(slots, vault, release_of(NEW), FULL, later) == (FULL,)
    assert slots.store.read(sha256(NEW)) == NEW and list(slots.incoming.iterdir()) == []


def test_where_numpy_is_missing_a_delta_of_elements_means_that_the_next_way_is_gone(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")  # the child's
    slots = Slots(tmp_path / "site")
    slots.store.put(OLD)
    of_elements = a_delta(vault, op=recipes.SHUFFLE, old=(), params=bytes([Dtype.F32, 0]))
    with pytest.raises(
        IntegrityError, match=r"no way .* leads to m: segment needs operation 7, for which numpy is miss"
    ):
        fetched(slots, vault, release_of(NEW), of_elements)
    assert fetched(slots, vault, release_of(NEW), FULL, of_elements) == (FULL,)
    assert slots.store.read(sha256(NEW)) == NEW and list(slots.incoming.iterdir()) == []


def test_how_long_applying_took_is_counted_for_each_release(tmp_path: Path, vault: Vault) -> None:
    slots, took = Slots(tmp_path), []
    slots.store.put(OLD)

    def tell(downloads: Downloads) -> None:
        took.append(downloads.rebuild_s)

    delta = a_delta(vault)
    begun_s = time.monotonic()
    assert fetched(slots, vault, release_of(NEW), FULL, delta, told=tell) == (delta,)
    assert 0 < took[0] <= time.monotonic() - begun_s
    slots.store.delete(sha256(NEW))
    assert fetched(slots, vault, release_of(NEW), FULL, told=tell) == (FULL,)
    assert took[1] == 0
