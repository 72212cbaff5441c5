"""The control process of a node: `python -m heliograph_site.agent DIR`.

It feeds the machines (one per model), saves what they remember, and has their commands performed. Decisions are made in
`machine.step`, belief in `heliograph.trust`; here they are wired to the link, the disk and the server process.

Rule 1: one inbox, one consumer. Only chunks bypass it: they are content, not news.
Rule 2: memory is on disk before its command starts. One task works for a machine; a new command cancels the old one and
    waits for its end.
Rule 3: level, not edge. Directives are held as signed; what they mean is worked out again after every change of
    metadata, directive, assignment or time, and whenever a machine comes to rest.
Rule 4: what a reply brings and what is retained is the same document and goes the same way.
Rule 5: what is hostile or unknown is counted, recorded at a bounded rate, and changes nothing.
Rule 6: nothing here stops what is served: the server process is another.
"""

import asyncio
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom

import heliograph
from heliograph.deadlines import DEADLINES, Deadlines
from heliograph.documents import (
    Ask,
    Document,
    Hello,
    LaneReceipt,
    Offer,
    Receipt,
    Reply,
    Want,
)
from heliograph.errors import HeliographError, RefusedError, TransportError, TrustError
from heliograph.manifest import Manifest
from heliograph.mqtt import Broker, Mqtt, Timing
from heliograph.names import Ring
from heliograph.protocol import SCHEMAS, parse_topic, topic
from heliograph.signing import sign_statement
from heliograph.trust import Target
from heliograph.vouching import UnknownTypeError
from heliograph_site import hardware
from heliograph_site.belief import Belief, News
from heliograph_site.estimate import Estimate
from heliograph_site.fetching import Downloads
from heliograph_site.folder import agent_lock, read_key, read_node_file
from heliograph_site.journal import JOURNAL_FILE, Journal
from heliograph_site.machine import (
    Command,
    Event,
    Failed,
    Memory,
    Restarted,
    step,
)
from heliograph_site.outbox import OUTBOX_FILE, Outbox
from heliograph_site.reporting import Incidents, Reporter
from heliograph_site.serving.control import ServerControl
from heliograph_site.slots import Slots
from heliograph_site.tasks import Pace, Server, Tasks

log = logging.getLogger("heliograph.agent")

INBOX_LENGTH = 256
DOWN_KINDS = ("assigned", "offer", "receipt", "reply")
CONTROL_SOCKET = "control.sock"
TICK_S = 30.0
"""How often directives are looked at again because time has passed."""


@dataclass(frozen=True, slots=True)
class _Message:
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Link:
    is_up: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    model: str
    event: Event


@dataclass(frozen=True, slots=True)
class _Tick:
    pass


class _StopRequestedError(Exception):
    """SIGTERM or SIGINT: leave the task group."""


class Agent:
    """One node's control process."""

    def __init__(
        self,
        folder: Path,
        *,
        rng: Random | None = None,
        server: Server | None = None,
        deadlines: Deadlines = DEADLINES,
        pace: Pace | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Opens the folder's files; `run` does the rest. The caller holds the folder's lock."""
        self._rng = rng or SystemRandom()
        self._deadlines, self._pace, self._timing = deadlines, pace or Pace(), timing
        self._file = read_node_file(folder)
        self._key = read_key(folder)
        self._names = {"site": self._file.site, "node": self._file.node}
        self.run_id = os.urandom(8)
        self.journal = Journal(folder / JOURNAL_FILE)
        self.outbox = Outbox(folder / OUTBOX_FILE, self.run_id)
        self._time = Estimate(self.journal)
        self._belief = Belief(self.journal, self.names, self._key.keyid, self.now)
        self._memories: dict[str, Memory] = {model: self.journal.load(model) for model in self.journal.models()}
        self._slots = Slots(folder)
        self._server: Server = server or ServerControl(folder / CONTROL_SOCKET)
        self._hardware = hardware.detect()
        self._downloads = Downloads(self._send_want, self._probe, self._rng, deadlines)
        self._incidents = Incidents(self.outbox, self.now)
        self._reporter = Reporter(self, deadlines, self._pace)
        self._tasks = Tasks(
            self, self._slots, self._downloads, self._server, self._hardware, self._rng, deadlines, self._pace
        )
        self._inbox: asyncio.Queue[_Message | _Link | _Answer | _Tick] = asyncio.Queue(INBOX_LENGTH)
        self._group: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._asks: dict[int, asyncio.Future[Offer]] = {}
        self._asked = 0
        self._link_up = asyncio.Event()
        self._nonce: bytes | None = None
        self._hello_now = asyncio.Event()
        self._reconnect = asyncio.Event()
        self._unanswered = 0
        self._received_before = self.journal.counter("bytes_received")
        self._mqtt: Mqtt | None = None

    # --- what others ask of it ----------------------------------------------------------------------------------------

    @property
    def ring(self) -> Ring | None:
        """The ring this node is in; None before its assignment."""
        return self._belief.ring

    @property
    def names(self) -> tuple[str, str, str]:
        """Realm, site, node."""
        return self._file.realm, self._file.site, self._file.node

    @property
    def assignment(self) -> int:
        """Number of the assignment in force; 0 before the first."""
        return self._belief.assignment.number if self._belief.assignment else 0

    @property
    def metadata_versions(self) -> dict[str, int]:
        """Version of each trusted metadata file."""
        return self._belief.trusted.versions

    @property
    def memories(self) -> dict[str, Memory]:
        """What each model's machine remembers."""
        return self._memories

    @property
    def bytes_received(self) -> int:
        """MQTT payload bytes since the node was enrolled."""
        return self._received_before + (self._mqtt.bytes_received if self._mqtt else 0)

    @property
    def is_up(self) -> bool:
        """Whether there is a link to the broker."""
        return self._mqtt is not None and self._mqtt.connected

    def now(self) -> int:
        """The estimated time, seconds since 1970."""
        return self._time.now()

    def target(self, model: str, release: bytes) -> Target | None:
        """The manifest's entry in the trusted metadata."""
        return self._belief.trusted.target(model, release)

    def named(self, release: bytes, manifest: Manifest) -> None:
        """Remembers what a release is called."""
        self.journal.name_release(release, manifest.model, manifest.version)

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        """What the model waits for, for people and for the hub."""
        self._reporter.note(model, waiting, is_news=is_news)

    def collect(self) -> None:
        """Drops from the disk what no model needs. Never in a thread: nothing may be stored meanwhile."""
        needed: list[bytes] = []
        for memory in self._memories.values():
            needed += [pointer.release for pointer in (memory.active, memory.fallback) if pointer is not None]
            needed += [memory.target.release] if memory.target else []
        gone = self._slots.collect(needed)
        if gone:
            log.info("removed %d objects that no release needs", gone)

    def why_not_yet(self, model: str, release: bytes) -> str | None:
        """What forbids activating the release now."""
        return self._belief.why_not_yet(model, release)

    async def ask(self, model: str, release: bytes) -> Offer | None:
        """One ask, as soon as there is a link; its offer, or None if none came in time.

        Raises:
            TransportError: the link went away meanwhile.
        """
        await self._link_up.wait()
        memory = self._memories[model]
        releases = [pointer.release for pointer in (memory.active, memory.fallback) if pointer is not None]
        self._asked += 1
        number = self._asked
        ask = Ask(
            run=self.run_id,
            n=number,
            model=model,
            release=release,
            bases=self._slots.bases(releases),
            free_bytes=self._slots.free_bytes(),
        )
        answer: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        self._asks[number] = answer
        try:
            async with asyncio.timeout(self._deadlines.offer_s):
                await self.publish("ask", ask.encode())
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asks[number]

    async def publish(self, name: str, payload: bytes) -> None:
        """Sends one message of this node.

        Raises:
            TransportError: no link, or the broker did not take it.
        """
        if self._mqtt is None:
            raise TransportError("no link yet")
        row = topic(name)
        await self._mqtt.publish(row.build(self._file.realm, **self._names), payload, qos=row.qos)

    async def publish_signed(self, name: str, document: Document) -> None:
        """Signs with the node's key and sends.

        Raises:
            TransportError: as `publish`.
        """
        statement = topic(name).statement
        assert statement is not None, "only statements are signed"
        await self.publish(name, sign_statement(statement, document.encode(), [self._key]))

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; whatever is under way then is resumed by the next start."""
        try:
            async with asyncio.TaskGroup() as self._group:
                spawn = self._group.create_task
                spawn(self._consume(), name="inbox")
                spawn(self._connect(), name="link")
                spawn(self._downloads.run(), name="downloads")
                spawn(self._greet(), name="hello")
                spawn(self._tick(), name="time")
                spawn(self._watch(), name="watch")
                for name, work in self._reporter.loops():
                    spawn(work, name=name)
                await stop.wait()
                raise _StopRequestedError
        except* _StopRequestedError:
            log.info("stopped")
        finally:
            self.save_counters()
            self.journal.save_link(False)
            self._time.save()
            self.journal.close()
            self.outbox.close()

    async def _connect(self) -> None:
        """Keeps one connection; made anew when the ring changes, since the ring's topic does."""
        while True:
            self._reconnect.clear()
            realm, names = self._file.realm, self._names
            filters = [(topic(name).filter(realm), topic(name).qos) for name in ("root", "set", "head")]
            if self.ring is not None:
                filters.append((topic("desired").filter(realm, ring=self.ring), 1))
            filters += [(topic(name).filter(realm, **names), topic(name).qos) for name in (*DOWN_KINDS, "chunk")]
            user = f"{self._file.site}/{self._file.node}"
            mqtt = Mqtt(
                Broker(self._file.host, self._file.port, user),
                user,
                filters,
                self._rng,
                self._on_message,
                self._on_link,
                will=(topic("gone").build(realm, **names), b""),
                timing=self._timing,
            )
            self._mqtt = mqtt
            running = asyncio.ensure_future(mqtt.run())
            try:
                changed = asyncio.ensure_future(self._reconnect.wait())
                await asyncio.wait({running, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if running.done():
                    running.result()
            finally:
                running.cancel()
                await asyncio.wait({running})
                self.save_counters()
                self._received_before, self._mqtt = self.bytes_received, None
                await self._downloads.on_link(False)

    def save_counters(self) -> None:
        """Writes what is counted."""
        self.journal.save_counters(bytes_received=self.bytes_received)

    async def _on_message(self, full: str, payload: bytes, retained: bool) -> None:
        found = parse_topic(full, self._file.realm)
        if found is not None and found[0].name == "chunk":
            await self._downloads.on_chunk(payload)
        else:
            await self._inbox.put(_Message(full, payload))

    async def _on_link(self, is_up: bool) -> None:
        await self._downloads.on_link(is_up)
        await self._inbox.put(_Link(is_up))

    async def _send_want(self, want: Want) -> None:
        await self.publish("want", want.encode())

    async def _probe(self, timeout_s: float) -> None:
        if self._mqtt is not None:
            await self._mqtt.probe(timeout_s)

    async def _greet(self) -> None:
        """Says hello on every connect, at check-in, when asked to, and again when no reply came."""
        while True:
            self._hello_now.clear()
            if self.is_up:
                try:
                    await self._hello()
                except TransportError as error:
                    log.info("no hello: %s", error)
            if self._nonce is not None and self.is_up:
                self._unanswered += 1
                wait_s = min(self._deadlines.reply_s * 2.0 ** min(self._unanswered - 1, 10), self._deadlines.check_in_s)
            else:
                wait_s = self._deadlines.check_in_s
            try:
                async with asyncio.timeout(wait_s * self._rng.uniform(0.9, 1.1)):
                    await self._hello_now.wait()
            except TimeoutError:
                pass

    async def _hello(self) -> None:
        self._nonce = os.urandom(16)
        acked = {
            lane: LaneReceipt(run=run, lane=lane, next=next_seq)
            for lane, (run, next_seq) in self.outbox.acked().items()
        }
        hello = Hello(
            run=self.run_id,
            nonce=self._nonce,
            agent=heliograph.__version__,
            schemas=SCHEMAS,
            hardware=self._hardware,
            tuf=self.metadata_versions,
            numbers=self._belief.numbers(),
            acked=acked,
        )
        await self.publish("hello", hello.encode())
        self._reporter.say()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(TICK_S, self._deadlines.check_in_s))
            await self._inbox.put(_Tick())

    async def _watch(self) -> None:
        """Looks at the server: counters for the hub, and what it gave up for the machine."""
        due = time.monotonic() + self._pace.metric_s
        while True:
            await asyncio.sleep(self._pace.watch_s)
            try:
                rows = (await self._server.status()).get("models", {})
            except TransportError:
                continue
            for model, memory in list(self._memories.items()):
                row = rows.get(model) or {}
                active = memory.active
                if active is None or row.get("active") != active.release.hex() or memory.phase != "idle":
                    continue
                if row.get("state") == "failed":
                    reason = str(row.get("reason") or "the server gave it up")
                    await self._inbox.put(_Answer(model, Failed(memory.epoch, reason)))
            if time.monotonic() >= due:
                due = time.monotonic() + self._pace.metric_s
                self._reporter.metrics(rows)

    # --- the one consumer ---------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        for model in tuple(self._memories):
            await self._step(model, Restarted())
        await self._derive_all()
        while True:
            match await self._inbox.get():
                case _Message(full, payload):
                    await self._guard(full, self._on_document(full, payload))
                case _Link(is_up):
                    log.info("link is %s", "up" if is_up else "down")
                    self.journal.save_link(is_up)
                    self.save_counters()
                    if is_up:
                        self._unanswered = 0
                        self._link_up.set()
                        self._hello_now.set()
                    else:
                        self._link_up.clear()
                        for ask in self._asks.values():
                            if not ask.done():
                                ask.set_exception(TransportError("the link went away"))
                    self._reporter.on_link(is_up)
                case _Answer(model, event):
                    await self._step(model, event)
                case _Tick():
                    self._time.save()
                    await self._derive_all()

    async def _guard(self, full: str, handling: Awaitable[None]) -> None:
        """Has a message handled; whatever is wrong with it is recorded and ends there."""
        try:
            await handling
        except UnknownTypeError as error:
            self._incidents.add("unknown", full, str(error))
        except HeliographError as error:
            self._incidents.add("refused", full, str(error))
        except sqlite3.Error:
            raise  # memory can't be kept: nothing may be done on it
        except Exception as error:  # the one place: no message may stop the agent, whatever it does to a parser
            log.exception("a message on %s met a fault of ours", full)
            self._incidents.add("fault", full, type(error).__name__)

    async def _on_document(self, full: str, payload: bytes) -> None:
        found = parse_topic(full, self._file.realm)
        if found is None:
            raise UnknownTypeError("no such topic in this version")
        row, names = found
        if names.items() & self._names.items() != self._names.items() and "node" in names:
            raise TrustError("a topic of another node")
        match row.name:
            case "root" | "head" | "set" | "desired" | "assigned":
                await self._on_news(self._belief.take(row, names, payload))
            case "reply" | "offer" | "receipt":
                document = self._belief.open(row, names, payload)
                if isinstance(document, Reply):
                    await self._on_reply(document)
                else:
                    self._on_answer(document)
            case _:
                raise UnknownTypeError(f"{row.name} is nothing that this version reads")

    async def _on_news(self, news: News) -> None:
        self._time.saw(self._belief.trusted.at)
        if news.hello:
            self._hello_now.set()
        if news.assigned:
            self._reporter.say()
        if news.ring:
            self._reconnect.set()
        if news.again is not None:
            await self._guard(news.again[0], self._on_document(*news.again))
        if news.models:
            await self._derive_all()

    def _on_answer(self, document: object) -> None:
        match document:
            case Receipt(run=run, lane=lane, next=next_seq):
                self._reporter.on_receipt(run, lane, next_seq)
            case Offer():
                answer = self._asks.get(document.n)
                if document.run != self.run_id or answer is None or answer.done():
                    return  # of an ask given up, or an earlier life: nobody waits for it
                if document.expires <= self.now():
                    raise RefusedError(f"offer {document.n} expired before it came")
                answer.set_result(document)
            case _:
                raise AssertionError("rows carry nothing else")

    async def _on_reply(self, reply: Reply) -> None:
        if reply.nonce != self._nonce:
            raise TrustError("a reply to another hello")
        self._time.saw(reply.at)
        for receipt in reply.acked:
            self._reporter.on_receipt(receipt.run, receipt.lane, receipt.next)
        prefix = topic("set").build(self._file.realm).removesuffix("tuf/set")
        for below, payload in reply.documents:
            own = topic("assigned").build(self._file.realm, **self._names)
            full = own if below == "assigned" else prefix + below
            found = parse_topic(full, self._file.realm)
            if found is not None and found[0].name in ("reply", "offer", "receipt"):
                self._incidents.add("refused", full, "a reply carries no answers")
                continue
            await self._guard(full, self._on_document(full, payload))
        if not reply.more:
            self._nonce, self._unanswered = None, 0

    # --- machines -----------------------------------------------------------------------------------------------------

    async def _derive_all(self) -> None:
        for model in self._belief.models:
            await self._derive(model)

    async def _derive(self, model: str) -> None:
        """Tells the model's machine what its directive means now."""
        event = self._wanted(model)
        if event is not None:
            await self._step(model, event)

    def _wanted(self, model: str) -> Event | None:
        memory = self._memories.get(model) or self.journal.load(model)
        event, waiting = self._belief.wanted(model, memory)
        if memory.phase in ("idle", "stuck"):
            self._reporter.note(model, waiting)
        if event is not None:
            self._memories.setdefault(model, memory)
        return event

    async def _step(self, model: str, event: Event) -> None:
        """Saves what follows, then has it done; comes to rest, then looks at the directive again."""
        todo: Event | None = event
        while todo is not None:
            before = self._memories[model]
            after, command = step(before, todo)
            if after is before:
                return
            self.journal.save(after)
            self._memories[model] = after
            self._time.save()
            self._record(before, todo, after)
            if command is not None:
                await self._start(command, after)
            todo = self._wanted(model) if after.phase in ("idle", "stuck") and not isinstance(todo, Restarted) else None

    async def _start(self, command: Command, memory: Memory) -> None:
        old = self._running.pop(memory.model, None)
        if old is not None:
            old.cancel()
            await asyncio.wait({old})
        assert self._group is not None, "only while running"
        task = self._group.create_task(self._perform(command, memory), name=f"{memory.model} {command.value}")
        self._running[memory.model] = task

    async def _perform(self, command: Command, memory: Memory) -> None:
        event = await self._tasks.perform(command, memory)
        if event is not None:
            await self._inbox.put(_Answer(memory.model, event))

    def _record(self, before: Memory, event: Event, after: Memory) -> None:
        subject = after.target or before.target or after.active or before.active
        release = subject.release if subject else b""
        reason = str(getattr(event, "reason", ""))
        name = self.journal.release_name(release) or release.hex()[:16]
        log.info("%s: %s -> %s (%s %s) %s", after.model, before.phase, after.phase, type(event).__name__, name, reason)
        body = {
            "model": after.model,
            "from": before.phase,
            "event": type(event).__name__,
            "to": after.phase,
            "release": release,
            "reason": reason[:400],
        }
        self.outbox.append("audit", "transition", self.now(), body)
        if len(after.refused) and after.refused != before.refused:
            self.outbox.append("incident", "release-refused", self.now(), body)
        self._reporter.say()


def main() -> int:
    """Runs the agent of the folder in argv until SIGTERM; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("tuf").setLevel(logging.WARNING)  # it tells of every key that did not sign
    if len(sys.argv) != 2:
        print("usage: python -m heliograph_site.agent DIR", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Agent(folder).run(stop)

    try:
        read_node_file(folder)
        with agent_lock(folder):
            asyncio.run(run())
    except HeliographError as error:
        print(f"heliograph: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
