"""What the node tells: `reported` (its state, as often as it changes), and records out of the outbox until receipted.

Nothing here decides about releases. A report says what is, so that a lost one is made good by the next; a record is
sent again until the hub's receipt, which the outbox keeps through restarts, covers it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import heliograph
from heliograph.connection import UnwelcomeError
from heliograph.deadlines import Deadlines
from heliograph.documents import LANES, Denials, Document, Lane, ModelReport, Records, Refusal, Reported, Spent, Tuple
from heliograph.errors import TransportError
from heliograph.names import Ring
from heliograph.protocol import SCHEMAS
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory, Pointer
from heliograph_site.outbox import Outbox
from heliograph_site.rulebook import Rulebook
from heliograph_site.served import COUNTS, Counted, slots
from heliograph_site.surroundings import Pace

log = logging.getLogger("heliograph.agent")

BATCH_BYTES = 40 * 1024


class Node(Protocol):
    """What is told about."""

    journal: Journal
    outbox: Outbox
    run_id: bytes

    @property
    def memories(self) -> Mapping[str, Memory]:
        """What each machine remembers."""

    @property
    def names(self) -> tuple[str, str, str]:
        """Realm, site, node."""

    @property
    def ring(self) -> Ring | None:
        """The ring it is in."""

    @property
    def assignment(self) -> int:
        """Number of its assignment."""

    @property
    def metadata_versions(self) -> dict[str, int]:
        """Of the trusted set."""

    @property
    def denials(self) -> Denials:
        """In force here."""

    @property
    def bytes_received(self) -> int:
        """Since it was enrolled."""

    @property
    def spent(self) -> Spent:
        """Content that came on this day and in this month."""

    @property
    def clock(self) -> str:
        """Why the wall clock is ignored, if it is."""

    @property
    def done(self) -> int:
        """Highest number of a command that was carried out or refused."""

    def stale(self, model: str) -> tuple[str, ...]:
        """How a model is further behind than policy allows, in words."""

    def flag(self, model: str) -> str:
        """What people must know of a model that has been alone for too long."""

    @property
    def rules(self) -> Rulebook:
        """Policies and configs held."""

    @property
    def is_up(self) -> bool:
        """Whether there is a link."""

    def now(self) -> int:
        """The estimated time."""

    def save_counters(self) -> None:
        """Writes what is counted."""

    async def publish_signed(self, name: str, document: Document) -> None:
        """Signs with the node's key and sends."""


class Reporter:
    """Tells the hub, and writes for `node status` what is waited for."""

    def __init__(self, node: Node, deadlines: Deadlines, pace: Pace) -> None:
        self._node = node
        self._deadlines = deadlines
        self._pace = pace
        self._waiting: dict[str, str] = {}
        self._written: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._is_news = True
        self._numbers = 0
        self._unsent = asyncio.Event()
        self._in_flight: dict[Lane, tuple[bytes, int, float]] = {}
        self._hurried: set[Lane] = set()
        self._counted = node.journal.served()

    def loops(self) -> tuple[tuple[str, Coroutine[Any, Any, None]], ...]:
        """(name, coroutine) of what runs for ever."""
        return ("report", self._report()), ("records", self._send_records())

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        """What the model waits for; empty: nothing. Progress is written for people but is no news for the hub."""
        if self._waiting.get(model, "") == waiting:
            return
        if waiting:
            self._waiting[model] = waiting[:400]
        else:
            self._waiting.pop(model, None)
        self._is_news |= is_news
        self._changed.set()

    def say(self) -> None:
        """Something to report has changed, or may have got lost."""
        self._is_news = True
        self._changed.set()
        self._unsent.set()

    def on_link(self, is_up: bool) -> None:
        """What was on its way may be lost: it is sent again."""
        self._in_flight.clear()
        self._hurried.clear()
        if is_up:
            self.say()

    def on_receipt(self, run: bytes, lane: Lane, next_seq: int) -> None:
        """The hub holds these records."""
        self._node.outbox.receipt(run, lane, next_seq)
        flying = self._in_flight.get(lane)
        if flying is not None and flying[0] == run and next_seq >= flying[1]:
            del self._in_flight[lane]
            self._hurried.discard(lane)
        self._unsent.set()

    def metrics(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends what the server counted since the last time, per release that answered.

        How far it was counted is on disk before the records are: an interval can be lost with the power, but is never
        told twice, whichever of the two processes starts again.
        """
        counted: dict[tuple[str, str], Counted] = {}
        bodies = []
        for model, release, row in slots(rows):
            now = counted[model, release] = Counted.from_row(row)
            since = now.since(self._counted.get((model, release)))
            if any(since.counts):
                body: dict[str, Any] = dict(zip(COUNTS, since.counts, strict=True))
                body |= {"model": model, "release": bytes.fromhex(release), "state": str(row.get("state", ""))}
                if since.latency is not None and since.latency.count:
                    body["latency"] = since.latency.encode()
                bodies.append(body)
        if counted != self._counted:
            self._node.journal.save_served(counted)
            self._counted = counted
        for body in bodies:
            self._node.outbox.append("metric", "serving", self._node.now(), body)
        self._unsent.set()

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._waiting != self._written:
                self._node.journal.save_waiting(self._waiting)
                self._node.save_counters()
                self._written = dict(self._waiting)
            if self._is_news and self._node.is_up:
                self._is_news = False
                self._node.save_counters()
                try:
                    await self._node.publish_signed("reported", self._reported())
                except TransportError as error:
                    self._is_news = True  # said again when the link is back, or after the next hello
                    if not isinstance(error, UnwelcomeError):  # `Link.publish` has said so, once
                        log.info("not reported: %s", error)
            await asyncio.sleep(self._pace.report_s)

    def _reported(self) -> Reported:
        realm, site, name = self._node.names
        self._numbers += 1
        return Reported(
            realm=realm,
            site=site,
            node=name,
            run=self._node.run_id,
            n=self._numbers,
            estimate=self._node.now(),
            agent=heliograph.__version__,
            schemas=SCHEMAS,
            ring=self._node.ring,
            assignment=self._node.assignment,
            tuf=self._node.metadata_versions,
            deny=self._node.denials,
            bytes_received=self._node.bytes_received,
            spent=self._node.spent,
            done=self._node.done,
            clock=self._node.clock,
            policy=self._node.rules.node_policy_number(self._node.memories.values()),
            declined=self._node.rules.declined(),
            models={model: self._model(memory) for model, memory in self._node.memories.items()},
        )

    def _model(self, memory: Memory) -> ModelReport:
        return ModelReport(
            phase=memory.phase,
            tuple=_tuple(memory.active),
            since=memory.active.activated_at if memory.active else None,
            fallback=_tuple(memory.fallback),
            held=held(memory),
            refused=tuple(Refusal(release=r.release, number=r.number, reason=r.reason[:400]) for r in memory.refused),
            verdict=memory.active.verdict if memory.active else None,
            stale=tuple(sentence[:400] for sentence in self._node.stale(memory.model)),
            waiting=(
                flag(memory) or self._node.flag(memory.model) or memory.reason or self._waiting.get(memory.model, "")
            )[:400],
        )

    async def _send_records(self) -> None:
        while True:
            self._unsent.clear()
            if self._node.is_up:
                try:
                    for lane in LANES:
                        await self._send_lane(lane)
                        if lane in self._hurried:
                            break  # cheaper lanes wait for its first receipt, or for this batch to be sent again
                except UnwelcomeError:
                    pass  # `Link.publish` has said so, once
                except TransportError as error:
                    log.info("records not sent: %s", error)
            due = min((at for _, _, at in self._in_flight.values()), default=None)
            try:
                async with asyncio.timeout(None if due is None else max(0.05, due - time.monotonic())):
                    await self._unsent.wait()
            except TimeoutError:
                pass

    async def _send_lane(self, lane: Lane) -> None:
        """One batch of a lane is on its way at a time."""
        flying = self._in_flight.get(lane)
        if flying is not None and time.monotonic() < flying[2]:
            return
        batch = self._node.outbox.batch(lane, BATCH_BYTES)
        if batch is None:
            self._in_flight.pop(lane, None)
            self._hurried.discard(lane)
            return
        if flying is None:
            self._hurried.add(lane)
        else:
            self._hurried.discard(lane)  # a hub that won't take this lane must not silence the others
        self._in_flight[lane] = (batch.run, batch.next, time.monotonic() + self._deadlines.receipt_s)
        realm, site, name = self._node.names
        records = Records(
            realm=realm, site=site, node=name, run=batch.run, lane=lane, first=batch.first, rows=batch.rows
        )
        await self._node.publish_signed("records", records)


class Incidents:
    """Records what was refused, at a bounded rate; what is beyond it is counted into the next record."""

    PER_MINUTE = 10

    def __init__(self, outbox: Outbox, now: Callable[[], int]) -> None:
        self._outbox = outbox
        self._now = now
        self._left = float(self.PER_MINUTE)
        self._at = time.monotonic()
        self.suppressed = 0
        self.count = 0

    def add(self, kind: str, where: str, reason: str) -> None:
        """Something came that can't be believed or understood."""
        self.count += 1
        now = time.monotonic()
        self._left = min(self.PER_MINUTE, self._left + (now - self._at) * self.PER_MINUTE / 60)
        self._at = now
        if self._left < 1:
            self.suppressed += 1
            return
        self._left -= 1
        log.warning("%s: %s: %s", kind, where, reason)
        body = {"where": where[:200], "reason": reason[:400], "suppressed": self.suppressed}
        self._outbox.append("incident", f"message-{kind}", self._now(), body)
        self.suppressed = 0


def flag(memory: Memory) -> str:
    """What people must know at once about what is served; empty if nothing."""
    if memory.is_last_denied:
        return "serves a denied release, because nothing else is left"
    if memory.is_last_unfit:
        return "serves what fits no policy in force, because nothing else does"
    return ""


def held(memory: Memory) -> tuple[bytes, ...]:
    """Releases whose whole image stands verified, each once."""
    whole = [pointer.release for pointer in memory.kept]
    if memory.target is not None and memory.phase in ("activating", "proving"):
        whole.append(memory.target.release)
    return tuple(dict.fromkeys(whole))


def _tuple(pointer: Pointer | None) -> Tuple | None:
    if pointer is None:
        return None
    return Tuple(release=pointer.release, config=pointer.config, policy=pointer.policy)
