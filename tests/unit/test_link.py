"""Asks and their offers, and what is refused, on a link whose connection is the test's own."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from heliograph.connection import UnwelcomeError
from heliograph.deadlines import Deadlines
from heliograph.documents import Ask, Certified, Offer
from heliograph.errors import TransportError
from heliograph.signing import PrivateKey
from heliograph_site.folder import NodeFile
from heliograph_site.link import LONGEST_REFUSED_S, Link
from unit.test_retry_storms import HOUR, VirtualLoop

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


class Refusing:
    """A connection to a broker that refuses what it is told to, and counts what is tried."""

    connected = True
    bytes_received = 0

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.reason = "Not authorized"
        self.tries: Counter[str] = Counter()

    async def publish(self, full: str, payload: bytes, *, qos: int) -> None:
        name = full.rpartition("/")[2]
        self.tries[name] += 1
        await asyncio.sleep(0.05)
        if name in self.refused:
            raise UnwelcomeError(f"broker refuses the message: {self.reason}")


async def publishing(link: Link, name: str) -> None:
    """Wants this sent every second, whatever became of the last one."""
    while True:
        try:
            await link.publish(name, b"")
        except UnwelcomeError:
            pass
        await asyncio.sleep(1)


async def asking(link: Link) -> None:
    """Asks as the machines' tasks do."""
    while True:
        try:
            await link.ask(question)
        except TransportError:
            await asyncio.sleep(1)


def live(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario)


def linked(broker: Refusing) -> Link:
    nobody: Any = None
    connection: Any = broker
    link = Link(FILE, PrivateKey.generate(bytes(32)), nobody, RUN, 0, Random(1), Deadlines())
    link._mqtt = connection
    link.on_change(True)
    return link


def test_what_the_broker_refuses_is_tried_ever_more_seldom_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        broker = Refusing("reported", "ask")
        link = linked(broker)
        works = [publishing(link, "reported"), publishing(link, "records"), asking(link), asking(link)]
        tasks = [asyncio.ensure_future(work) for work in works]
        await asyncio.sleep(HOUR)
        first = dict(broker.tries)
        assert 10 <= first["reported"] <= 22 and 10 <= first["ask"] <= 22, "two that ask count as one"
        assert first["records"] > 3000, "one that is refused keeps back no other"
        for name in ("reported", "ask"):
            assert [r.getMessage() for r in caplog.records].count(
                f"{name}: broker refuses the message: Not authorized; from now on tried ever more seldom"
            ) == 1
        await asyncio.sleep(3 * HOUR)
        assert broker.tries["reported"] - first["reported"] <= 3 * HOUR / 300 + 1
        link.on_change(False)
        link.on_change(True)
        before = dict(broker.tries)
        await asyncio.sleep(4)
        assert broker.tries["reported"] - before["reported"] >= 2, "on another connection it begins anew"
        assert broker.tries["ask"] - before["ask"] >= 2
        broker.reason = "Quota exceeded"
        await asyncio.sleep(HOUR)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    with caplog.at_level(logging.INFO):
        live(scenario())
    assert len(caplog.records) == 4, "each reason once, on however many connections"


def test_what_the_broker_takes_again_waits_no_longer() -> None:
    async def scenario() -> None:
        broker = Refusing("ask")
        link = linked(broker)
        task = asyncio.ensure_future(asking(link))
        await asyncio.sleep(HOUR)
        broker.refused.clear()
        await asyncio.sleep(LONGEST_REFUSED_S)
        broker.refused.add("ask")
        before = broker.tries["ask"]
        await asyncio.sleep(Deadlines().offer_s + 8)
        assert broker.tries["ask"] - before >= 3, "the back-off begins anew"
        task.cancel()
        await asyncio.wait({task})

    live(scenario())


class Due:
    """A certificate that is to be renewed, always."""

    has_tls = is_due = True

    def keep(self, certified: Certified) -> None:
        pytest.fail(f"nobody answered, and {certified} came")


def test_a_certificate_whose_renewal_got_lost_is_asked_for_again_soon_and_then_ever_more_seldom() -> None:
    async def scenario() -> None:
        broker, due = Refusing(), Due()
        link = linked(broker)
        credentials: Any = due
        link._credentials = credentials
        task = asyncio.ensure_future(link.keep_certified())
        await asyncio.sleep(5 * 60)
        assert 3 <= broker.tries["renew"] <= 6, "each is waited for, 30 s, and then as long again"
        await asyncio.sleep(HOUR)
        soon = broker.tries["renew"]
        assert soon <= 14
        await asyncio.sleep(10 * HOUR)
        assert 8 <= broker.tries["renew"] - soon <= 24
        task.cancel()
        await asyncio.wait([task])

    live(scenario())
