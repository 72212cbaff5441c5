"""Asks and their offers, on a link whose connection is the test's own."""

import asyncio
from random import Random
from typing import Any

import pytest

from heliograph.deadlines import Deadlines
from heliograph.documents import Ask, Offer
from heliograph.errors import TransportError
from heliograph.signing import PrivateKey
from heliograph_site.folder import NodeFile
from heliograph_site.link import Link

FILE = NodeFile(realm="lab", site="shop", node="till", host="127.0.0.1", port=1, root="0" * 64)
RUN = b"r" * 8
RELEASE = b"d" * 32


class Silent(Link):
    """Sends into the void, and remembers what."""

    def __init__(self, deadlines: Deadlines) -> None:
        listener: Any = None  # nobody is called: nothing connects
        super().__init__(FILE, PrivateKey.generate(bytes(32)), listener, RUN, 0, Random(1), deadlines)
        self.sent: asyncio.Queue[str] = asyncio.Queue()

    async def publish(self, name: str, payload: bytes) -> None:
        self.sent.put_nowait(name)


def question(number: int) -> Ask:
    return Ask(run=RUN, n=number, model="digits", release=RELEASE, free_bytes=1)


def offer(**change: Any) -> Offer:
    content: dict[str, Any] = {"run": RUN, "n": 1, "model": "digits", "release": RELEASE, "expires": 1000} | change
    return Offer(realm="lab", site="shop", node="till", key=bytes(32), **content)


async def asked(link: Silent) -> "asyncio.Task[Offer | None]":
    link.on_change(True)
    task = asyncio.ensure_future(link.ask(question))
    assert await link.sent.get() == "ask"
    return task


def test_an_ask_ends_with_the_offer_that_names_it_and_with_no_other() -> None:
    async def scenario() -> None:
        link = Silent(Deadlines())
        task = await asked(link)
        for stranger in (offer(n=2), offer(run=b"x" * 8)):
            link.on_offer(stranger)
        link.on_offer(offer())
        link.on_offer(offer(reason="again"))
        assert await task == offer()

    asyncio.run(scenario())


def test_an_offer_that_comes_after_its_ask_was_given_up_finds_nobody() -> None:
    async def scenario() -> None:
        link = Silent(Deadlines(offer_s=0.01))
        assert await (await asked(link)) is None
        link.on_offer(offer())

    asyncio.run(scenario())


def test_an_offer_is_taken_whatever_its_hub_and_this_node_think_that_the_time_is() -> None:
    async def scenario() -> None:
        link = Silent(Deadlines())
        task = await asked(link)
        link.on_offer(offer(expires=0))
        assert await task == offer(expires=0)

    asyncio.run(scenario())


def test_an_ask_that_got_lost_is_given_up_when_the_hub_is_known_to_be_back() -> None:
    async def scenario() -> None:
        link = Silent(Deadlines(chunk_base_s=0.0))
        task = await asked(link)
        link.on_hub_back()
        with pytest.raises(TransportError, match="the hub did not answer"):
            await task

    asyncio.run(scenario())


def test_an_ask_that_may_still_be_answered_waits_on() -> None:
    async def scenario() -> None:
        link = Silent(Deadlines())
        task = await asked(link)
        link.on_hub_back()
        link.on_offer(offer())
        assert await task == offer()

    asyncio.run(scenario())


def test_an_ask_ends_with_its_link_and_with_its_time() -> None:
    async def scenario() -> None:
        link = Silent(Deadlines())
        task = await asked(link)
        link.on_change(False)
        with pytest.raises(TransportError, match="the link went away"):
            await task
        hasty = Silent(Deadlines(offer_s=0.0))
        assert await (await asked(hasty)) is None

    asyncio.run(scenario())
