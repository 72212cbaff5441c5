"""What a node makes of what the link brings: documents, replies, answers, each as trust allows.

Rules 3, 4 and 6 of the agent are kept here: what a reply brings and what is retained goes the same way; what is hostile
or unknown is counted, recorded at a bounded rate and changes nothing; denials go first, and when the link is back,
directives wait for the hub's reply, or until it is late.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from heliograph.deadlines import Deadlines
from heliograph.documents import Certified, Numbers, Offer, OlderDenials, Receipt, Reply
from heliograph.errors import HeliographError, TrustError
from heliograph.names import Digest
from heliograph.protocol import below_realm, parse_topic, topic
from heliograph.vouching import UnknownTypeError, counted
from heliograph_site.belief import Belief, News
from heliograph_site.estimate import Estimate
from heliograph_site.fetching import Downloads
from heliograph_site.inbox import Inbox, Older, ReplyIsLate
from heliograph_site.link import Link
from heliograph_site.machines import Machines
from heliograph_site.orders import Orders
from heliograph_site.reporting import Incidents, Reporter
from heliograph_site.vigil import Vigil

log = logging.getLogger("heliograph.agent")


class Hearing:
    """Reads one message after the other, and has what it means done.

    Args:
        inbox: where what comes later goes.
        spawn: starts a task that ends with the agent.
    """

    def __init__(
        self,
        names: tuple[str, str, str],
        inbox: Inbox,
        time: Estimate,
        belief: Belief,
        machines: Machines,
        link: Link,
        downloads: Downloads,
        orders: Orders,
        vigil: Vigil,
        reporter: Reporter,
        incidents: Incidents,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        deadlines: Deadlines,
    ) -> None:
        self._realm, site, node = names
        self._names = {"site": site, "node": node}
        self._inbox, self._time, self._belief, self._machines = inbox, time, belief, machines
        self._link, self._downloads, self._orders, self._vigil = link, downloads, orders, vigil
        self._reporter, self._incidents, self._spawn, self._deadlines = reporter, incidents, spawn, deadlines
        self._told_lacks = Numbers()
        self._older: tuple[OlderDenials, asyncio.Task[None]] | None = None
        self._late: asyncio.Task[None] | None = None
        self._is_back = False
        """Whether all that was missed is known, or the hub is too late to tell."""
        self._missed: dict[str, bytes] = {}

    def on_link(self, is_up: bool) -> None:
        """The link came or went: directives wait for the reply to come."""
        self._is_back = False
        if is_up:
            if self._late is not None:
                self._late.cancel()  # it counted from an earlier connection
            self._late = self._spawn(self._wait_for_reply(), "first reply")

    def lacks(self) -> Numbers:
        """Older documents to ask for in the hello that is being made."""
        lacks = self._told_lacks = self._belief.rules.lacks(self._machines.memories.values())
        self._belief.rules.asked(lacks)
        return lacks

    async def guard(self, full: str, handling: Awaitable[None]) -> None:
        """Has a message handled; whatever is wrong with it is recorded and ends there."""
        try:
            await handling
        except UnknownTypeError as error:
            self._incidents.add("unknown", full, str(error))
        except HeliographError as error:
            self._incidents.add("refused", full, str(error))
        except sqlite3.Error:
            raise  # memory can't be kept: nothing may be done on it
        except Exception as error:  # no message may stop the agent, whatever it does to a parser
            log.exception("a message on %s met a fault of ours", full)
            self._incidents.add("fault", full, type(error).__name__)

    async def on_document(self, full: str, payload: bytes, is_live: bool = False, *, is_answer: bool = False) -> None:
        """Takes one message. `is_live`: sent just now; `is_answer`: it came in the reply to the last hello.

        Raises:
            HeliographError: it is refused; nothing changed.
        """
        found = parse_topic(full, self._realm)
        if found is None:
            raise UnknownTypeError("no such topic in this version")
        row, names = found
        if names.items() & self._names.items() != self._names.items() and "node" in names:
            raise TrustError("a topic of another node")
        match row.name:
            case "desired" if not self._is_back:
                if names["ring"] == self._belief.ring:  # one list, whatever else a broker sends
                    self._missed = {full: payload}
            case "deny" | "root" | "head" | "set" | "desired" | "assigned" | "policy" | "config":
                await self._on_news(self._belief.take(row, names, payload, is_answer=is_answer))
                if row.name == "head" and is_live:  # the hub repeats it whenever it comes back
                    self._link.on_hub_back()
                    self._downloads.on_hub_back()
            case "reply" | "offer" | "receipt" | "certified":
                document = self._belief.open(row, names, payload)
                if isinstance(document, Reply):
                    await self._on_reply(document, counted(self._belief.trusted, payload, "timestamp"))
                else:
                    self._on_answer(document)
            case _:
                raise UnknownTypeError(f"{row.name} is nothing that this version reads")

    async def _on_news(self, news: News) -> None:
        if news.denials is not None:
            await self._machines.obey(news.denials)
            self._reporter.say()
        if news.older is not None:
            self._fetch_older(news.older)
        if news.at is not None:
            self.see_time(*news.at)
            self._time.heard(news.at[0])
        self.see_time(self._belief.trusted.at, self._belief.trusted.told_by)
        self._time.heard(self._belief.trusted.at)
        if news.hello:
            self._link.greet_now()
        if news.assigned:
            self._orders.look()
            self._reporter.say()
        if news.ring:
            self._link.renew()
        if news.again is not None:
            await self.guard(news.again[0], self.on_document(*news.again))
        if news.models or news.assigned:
            await self._machines.derive_all()
            self._link.hear(self._belief.served_models)
            self._reporter.say()
            self.ask_for_older()

    def ask_for_older(self) -> None:
        """Says hello if it would ask for older documents than the last one did."""
        lacks = self._belief.rules.lacks(self._machines.memories.values())
        if lacks not in (self._told_lacks, Numbers()):
            self._link.greet_now()

    def _on_answer(self, document: object) -> None:
        match document:
            case Receipt(run=run, lane=lane, next=next_seq):
                self._reporter.on_receipt(run, lane, next_seq)
            case Certified():
                self._link.on_certified(document)
            case Offer():
                self._link.on_offer(document)
            case _:
                raise AssertionError("rows carry nothing else")

    def see_time(self, at: int, keyids: tuple[bytes, ...]) -> None:
        """Takes a time that these keys signed, and nothing more from keys that count no more."""
        if self._time.judge(*self._belief.trusted.role_keys("timestamp")):
            log.warning("the time that keys signed which count no more is forgotten")
        self._time.saw(at, keyids)
        if self._time.is_signed:
            self._belief.rules.restamp()

    async def _on_reply(self, reply: Reply, keyids: tuple[bytes, ...]) -> None:
        is_last = self._link.is_to_the_last_hello(reply)
        if is_last:  # one to an earlier hello may have been kept back: it brings news, but tells no time
            at = self._belief.trusted.within(reply.at)
            self.see_time(at, keyids)
            self._time.answered(reply.nonce, at, keyids)
            self._time.heard(self._time.now())
        for receipt in reply.acked:
            self._reporter.on_receipt(receipt.run, receipt.lane, receipt.next)
        prefix = topic("set").build(self._realm).removesuffix("tuf/set")
        deny = below_realm(topic("deny").build(self._realm))
        deny_first = sorted(reply.documents, key=lambda document: document[0] != deny)
        for below, payload in deny_first:
            own = topic("assigned").build(self._realm, **self._names)
            full = own if below == "assigned" else prefix + below
            found = parse_topic(full, self._realm)
            if found is not None and found[0].name in ("reply", "offer", "receipt", "certified"):
                self._incidents.add("refused", full, "a reply carries no answers")
                continue
            await self.guard(full, self.on_document(full, payload, is_answer=is_last))
        if is_last and not reply.more:
            self._link.answered()
            await self.catch_up()
            self._vigil.look(self._machines.memories.values())
            await self._machines.derive_all()  # by the time that the reply told

    async def _wait_for_reply(self) -> None:
        await asyncio.sleep(self._deadlines.reply_s)
        await self._inbox.put(ReplyIsLate())

    async def catch_up(self) -> None:
        """Takes the directives that waited for what goes before them."""
        self._is_back = True
        missed, self._missed = self._missed, {}
        for full, payload in missed.items():
            await self.guard(full, self.on_document(full, payload))

    def _fetch_older(self, older: OlderDenials) -> None:
        """Gets the blob that the newest list of denials names; that of an older list is of no more use."""
        if self._older is not None:
            named, task = self._older
            if named == older and not task.done():
                return
            task.cancel()

        async def fetch() -> None:
            blob = await self._downloads.small(Digest(older.sha256), older.length)
            await self._inbox.put(Older(blob))

        self._older = older, self._spawn(fetch(), "older denials")

    async def on_older(self, blob: bytes) -> None:
        """Takes the denials for which the list had no room."""
        await self._on_news(self._belief.with_older(blob))
