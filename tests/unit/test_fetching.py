"""Downloads over a link of the test's own: what is lost on the way out is asked for again, whoever lost it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

from heliograph.blob import sha256
from heliograph.deadlines import Deadlines
from heliograph.documents import Chunk, Want
from heliograph.errors import TransportError
from heliograph_site.fetching import Downloads

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
            async with asyncio.timeout(1):
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
