"""The control process of a node: `python -m heliograph_site.agent DIR`.

It wires the machines (one per model) to the link, the disk and the server process. Decisions are made in
`machine.step`, belief in `heliograph.trust`; `machines` saves what they remember and has their commands performed.

Rule 1: one inbox, one consumer. Only chunks bypass it: they are content, not news.
Rule 2: level, not edge. Directives are held as signed; what they mean is worked out again after every change of
    metadata, directive, assignment or time.
Rule 3: what a reply brings and what is retained is the same document and goes the same way.
Rule 4: what is hostile or unknown is counted, recorded at a bounded rate, and changes nothing.
Rule 5: nothing here stops what is served but a machine's command: the server process is another.
Rule 6: denials go first: they are subscribed to first and taken first out of a reply. What a broker kept comes in any
    order, so that whenever the link is back, directives wait for the hub's reply, or until it is late.
"""

import asyncio
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import heliograph
from heliograph.connection import Timing
from heliograph.deadlines import DEADLINES, Deadlines
from heliograph.documents import (
    Ask,
    Assignment,
    Denials,
    Document,
    Hello,
    Lane,
    LaneReceipt,
    Offer,
    Spent,
)
from heliograph.economy import Wait
from heliograph.errors import HeliographError, StorageError, TransportError
from heliograph.manifest import Manifest
from heliograph.names import Digest, Ring
from heliograph.policy import Policy
from heliograph.protocol import SCHEMAS, parse_topic
from heliograph.trust import Target
from heliograph.unix import forbid_core_dumps
from heliograph_site import hardware
from heliograph_site.allowance import Allowance
from heliograph_site.belief import Belief
from heliograph_site.door import keep_door
from heliograph_site.estimate import Estimate
from heliograph_site.fetching import Downloads
from heliograph_site.folder import agent_lock, read_node_file
from heliograph_site.happenings import Answer, Happening, StandIn, Started
from heliograph_site.hearing import Hearing
from heliograph_site.identity import Credentials, KeyStore, key_store
from heliograph_site.inbox import Answered, Inbox, LinkChanged, LookAgain, Message, Older, Ordered, ReplyIsLate, Ticked
from heliograph_site.journal import JOURNAL_FILE, Journal
from heliograph_site.link import Link
from heliograph_site.machines import Machines
from heliograph_site.memory import Memory
from heliograph_site.orders import DRILL_BEGUN, Orders
from heliograph_site.outbox import OUTBOX_FILE, Outbox
from heliograph_site.pulse import Pulse
from heliograph_site.reporting import Incidents, Reporter
from heliograph_site.rulebook import Rulebook
from heliograph_site.serving.control import ServerControl
from heliograph_site.serving.tuned import Tuned, tuned
from heliograph_site.slots import Slots
from heliograph_site.surroundings import Pace, Server, Switched
from heliograph_site.tasks import Tasks
from heliograph_site.vigil import Vigil
from heliograph_site.watch import Watch

log = logging.getLogger("heliograph.agent")

CONTROL_SOCKET = "control.sock"
TICK_S = 30.0
"""How often directives are looked at again because time has passed."""


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
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] | None = None,
        keys: KeyStore | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        """Opens the folder's files; `run` does the rest. The caller holds the folder's lock.

        `clock` carries the estimate of the time; left out: seconds since boot. `wall` is the wall clock, which may be
        wrong by any amount; left out: there is none. `pulse` takes the signs of life of the one consumer.
        """
        self._rng = rng or SystemRandom()
        self._deadlines, self._pace = deadlines, pace or Pace()
        self._pulse = pulse or Pulse()
        self._folder = folder
        self._file = read_node_file(folder)
        key = (keys or key_store(folder, self._file.key_store)).load()
        self._keyid = key.keyid
        self._names = {"site": self._file.site, "node": self._file.node}
        self.run_id = os.urandom(8)
        self.journal = Journal(folder / JOURNAL_FILE)
        self.outbox = Outbox(folder / OUTBOX_FILE, self.run_id)
        self._time = Estimate(self.journal, clock, wall)
        self._slots = Slots(folder, key.open_box)
        self._slots.holdings.clean()
        self._belief = Belief(
            self.journal,
            self.names,
            key.keyid,
            self.now,
            for_protected=self._file.protected,
            manifests=lambda release: self._slots.manifest(Digest(release)),
            latest=lambda: self._time.latest(self.policy.max_offline_s),
        )
        self._untuned = asyncio.Event()
        self._server: Server = server or ServerControl(folder / CONTROL_SOCKET)
        self._hardware = hardware.detect()
        received_before = self.journal.counter("bytes_received")
        self.credentials = Credentials(folder, self._file, key, self.now)
        self._link = Link(
            self._file, key, self, self.run_id, received_before, self._rng, deadlines, timing, self.credentials
        )
        self._allowance = Allowance(self.journal, lambda: self.policy, lambda: self.labels, self.now)
        self._downloads = Downloads(self._link.send_want, self._link.probe, self._rng, deadlines, self._allowance)
        self._incidents = Incidents(self.outbox, self.now)
        self._reporter = Reporter(self, deadlines, self._pace)
        self._tasks = Tasks(
            self, self._slots, self._downloads, self._server, self._hardware, self._rng, deadlines, self._pace
        )
        self._inbox = Inbox()
        self._group: asyncio.TaskGroup | None = None
        self._machines = Machines(
            self.journal,
            self.outbox,
            self._time,
            self._belief,
            self._reporter,
            self._tasks,
            self._spawn,
            self.tell,
            self._untuned.set,
            self._stands_in,
            lambda model, happening: self._orders.why_restricted(model, happening),
        )
        self.outbox.telemetry = self.policy.telemetry  # before anything is recorded
        self._vigil = Vigil(self.journal, self._time, self._belief, self.policy_of, self.record, self._why_suspect)
        self._orders = Orders(self, self._order, deadlines, self._pace)
        self._hearing = Hearing(
            self.names,
            self._inbox,
            self._time,
            self._belief,
            self._machines,
            self._link,
            self._downloads,
            self._orders,
            self._vigil,
            self._reporter,
            self._incidents,
            self._spawn,
            deadlines,
        )
        self._hearing.see_time(self._belief.trusted.at, self._belief.trusted.told_by)  # newer than stored, perhaps
        self._time.heard(self._belief.trusted.at)
        self._watch = Watch(
            self._server, self._machines, self._reporter, self._inbox, self.tuned, self._untuned, self._pace
        )

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
        """Number of the assignment held, as long as its signatures count; 0 before the first."""
        return self._belief.numbers().assignment

    @property
    def labels(self) -> Mapping[str, str]:
        """What its assignment says of the node."""
        return self._belief.assignment.labels if self._belief.assignment else {}

    @property
    def policy(self) -> Policy:
        """What counts for the node as a whole."""
        return self._belief.rules.node_policy(self._machines.memories.values())

    @property
    def clock(self) -> str:
        """Why the wall clock is ignored; empty: it may be right."""
        return self._vigil.clock

    def _why_suspect(self) -> str:
        return self._time.why_suspect(self.policy.max_offline_s)

    @property
    def spent(self) -> Spent:
        """Content that came on this day and in this month of the site's."""
        return self._allowance.spent()

    def policy_of(self, model: str) -> Policy:
        """The policy in force for the model; before there is one, the node's."""
        memory = self._machines.memories.get(model)
        if memory is None or not memory.policy:
            return self.policy
        return self._belief.rules.policy(memory.policy, memory.ring)

    def why_not_fetch(self) -> Wait | None:
        """What fetching waits for by policy."""
        return self._allowance.why_not_fetch()

    def why_not_activate(self, model: str, version: str, activated_at: int | None) -> Wait | None:
        """What a new release waits for by policy before it is activated."""
        return self._allowance.why_not_activate(model, version, activated_at)

    @property
    def assigned(self) -> Assignment | None:
        """Its assignment."""
        return self._belief.assignment

    @property
    def assigned_by(self) -> tuple[bytes, ...]:
        """The ids of the keys that signed it, if they still may."""
        return self._belief.assigned_by

    def may_assign(self, keyids: Collection[bytes]) -> bool:
        """Whether these keys together may say what this node is."""
        return self._belief.may_assign(keyids)

    @property
    def switched(self) -> Mapping[str, Switched]:
        """The last switch of each model."""
        return self._tasks.switched

    @property
    def done(self) -> int:
        """Highest number of a command that was carried out or refused."""
        return self._orders.done

    def stale(self, model: str) -> tuple[str, ...]:
        """How a model is further behind than policy allows, in words."""
        return self._vigil.stale(self._machines.memories[model])

    def flag(self, model: str) -> str:
        """What people must know of a model that has been alone for too long."""
        return self._vigil.flag(model)

    async def tell_all(self) -> None:
        """Has everything reported now: counters, records, state."""
        try:
            self._reporter.metrics((await self._server.status()).get("models", {}))
        except TransportError:
            pass  # what it counted is told when it is back
        self._reporter.say()

    async def derive(self) -> None:
        """Has the levels of every model looked at again."""
        await self._inbox.put(LookAgain())

    def _stands_in(self, model: str) -> StandIn:
        return StandIn("fallback", DRILL_BEGUN) if self._orders.is_drilling(model) else self._vigil.stand_in(model)

    async def _order(self, model: str, happening: Happening) -> bool:
        followed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._inbox.put(Ordered(model, happening, followed))
        return await followed

    def took_for(self, release: bytes) -> int:
        """Content that came for the release."""
        return self._allowance.took_for(release)

    @property
    def metadata_versions(self) -> dict[str, int]:
        """Version of each trusted metadata file."""
        return self._belief.trusted.versions

    @property
    def denials(self) -> Denials:
        """How many denials are in force here, and their digest."""
        return self._belief.denials.head

    @property
    def rules(self) -> Rulebook:
        """Policies and configs held."""
        return self._belief.rules

    @property
    def models(self) -> tuple[str, ...]:
        """Models whose configs matter here."""
        return self._belief.served_models

    @property
    def memories(self) -> dict[str, Memory]:
        """What each model's machine remembers."""
        return self._machines.memories

    @property
    def bytes_received(self) -> int:
        """MQTT payload bytes since the node was enrolled."""
        return self._link.bytes_received

    @property
    def is_up(self) -> bool:
        """Whether there is a link to the broker."""
        return self._link.is_up

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
        coming: list[bytes] = []
        for memory in self._machines.memories.values():
            needed += [pointer.release for pointer in memory.kept]
            coming += [memory.target.release] if memory.target else []
        gone = self._slots.collect(needed, coming)
        if gone:
            log.info("removed %d objects that no release needs", gone)

    def why_not_yet(self, model: str, release: bytes) -> str | None:
        """What forbids activating the release now."""
        return self._belief.why_not_yet(model, release) or self.why_unfit(model)

    def why_unfit(self, model: str) -> str | None:
        """Which documents the target waits for."""
        memory = self._machines.memories[model]
        return self._belief.rules.why_unfit(memory) if memory.target is not None else None

    def tuned(self, model: str) -> Tuned:
        """What the active release is to answer with, at this moment."""
        active = self._machines.memories[model].active
        if active is None:
            return Tuned()
        return tuned(active.config, active.policy, self._belief.rules.config(model, active.config))

    def why_unsure(self) -> str | None:
        """What is missing to know what is denied."""
        return self._belief.why_unsure()

    def is_recipe_denied(self, recipe: bytes) -> bool:
        """Whether a way by this recipe is not to be used."""
        return self._belief.denials.is_recipe_denied(recipe) is not None

    async def tell(self, model: str, answer: Answer) -> None:
        """A task's answer, taken by the model's machine when its turn comes."""
        await self._inbox.put(Answered(model, answer))

    def record(self, lane: Lane, kind: str, body: dict[str, Any]) -> None:
        """Keeps for the hub what happened."""
        self.outbox.append(lane, kind, self.now(), body)
        self._reporter.say()

    async def ask(self, model: str, release: bytes) -> Offer | None:
        """One ask, as soon as there is a link; its offer, or None if none came in time.

        Raises:
            TransportError: the link went away meanwhile.
        """

        def question(number: int) -> Ask:
            memory = self._machines.memories[model]
            releases = [pointer.release for pointer in memory.kept]
            return Ask(
                run=self.run_id,
                n=number,
                model=model,
                release=release,
                bases=self._slots.bases(releases),
                free_bytes=self._slots.free_bytes(),
                link=self._allowance.link,
                budget_left=self._allowance.budget_left(),
            )

        return await self._link.ask(question)

    async def publish_signed(self, name: str, document: Document) -> None:
        """Signs with the node's key and sends.

        Raises:
            TransportError: no link, or the broker did not take it.
        """
        await self._link.publish_signed(name, document)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; whatever is under way then is resumed by the next start."""
        try:
            async with asyncio.TaskGroup() as self._group:
                spawn = self._group.create_task
                spawn(self._consume(), name="inbox")
                spawn(self._link.run(), name="link")
                spawn(self._downloads.run(), name="downloads")
                spawn(self._link.greet(), name="hello")
                spawn(self._link.keep_certified(), name="certificate")
                spawn(self._tick(), name="time")
                spawn(self._watch.run(), name="watch")
                spawn(self._orders.run(), name="orders")
                spawn(keep_door(self._folder, self._orders.by_site), name="door")
                for name, work in self._reporter.loops():
                    spawn(work, name=name)
                await stop.wait()
                raise _StopRequestedError
        except* _StopRequestedError:
            self.journal.save_life(False)
            log.info("stopped")
        finally:
            self.save_counters()
            self.journal.save_link(False)
            self._allowance.flush()
            self._time.save()
            self.journal.close()
            self.outbox.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._group is not None, "only while running"
        return self._group.create_task(work, name=name)

    def save_counters(self) -> None:
        """Writes what is counted."""
        self.journal.save_counters(bytes_received=self.bytes_received)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(min(TICK_S, self._deadlines.check_in_s, self._pulse.every_s))
            await self._inbox.put(Ticked())

    # --- what the link brings -----------------------------------------------------------------------------------------

    async def on_message(self, full: str, payload: bytes, retained: bool) -> None:
        """Chunks go where they are awaited, all else to the inbox."""
        found = parse_topic(full, self._file.realm)
        if found is not None and found[0].name == "chunk":
            await self._downloads.on_chunk(payload)
        else:
            await self._inbox.put(Message(full, payload, not retained))

    async def on_link(self, is_up: bool) -> None:
        """The link came or went."""
        await self._downloads.on_link(is_up)
        await self._inbox.put(LinkChanged(is_up))

    async def on_cut(self) -> None:
        """A connection is over."""
        self.save_counters()
        await self._downloads.on_link(False)

    def hello(self, nonce: bytes) -> Hello:
        """What this node is and has."""
        acked = {
            lane: LaneReceipt(run=run, lane=lane, next=next_seq)
            for lane, (run, next_seq) in self.outbox.acked().items()
        }
        self._time.asked(nonce)
        return Hello(
            run=self.run_id,
            nonce=nonce,
            agent=heliograph.__version__,
            schemas=SCHEMAS,
            hardware=self._hardware,
            tuf=self.metadata_versions,
            deny=self.denials,
            numbers=self._belief.numbers(),
            acked=acked,
            lacks=self._hearing.lacks(),
            key=self._keyid,
        )

    def greeted(self) -> None:
        """After hello the hub is told what is."""
        self._reporter.say()

    # --- the one consumer ---------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        started = Started(self.journal.was_orderly())
        self.journal.save_life(True)
        self.journal.save_link(False)  # if the power failed it says what was before
        if self._pulse.silent_s:
            reason = f"the agent gave no sign of life for {self._pulse.silent_s:g} s, and was killed"
            self.record("incident", "agent-silent", {"reason": reason})
        await self._machines.begin(started)
        while True:
            if not self._machines.is_wedged:
                self._pulse.beat()
            self.outbox.telemetry = self.policy.telemetry
            match await self._inbox.get():
                case Message(full, payload, is_live):
                    await self._hearing.guard(full, self._hearing.on_document(full, payload, is_live))
                case LinkChanged(is_up):
                    log.info("link is %s", "up" if is_up else "down")
                    self.journal.save_link(is_up)
                    self.save_counters()
                    self._link.on_change(is_up)
                    self._reporter.on_link(is_up)
                    self._hearing.on_link(is_up)
                case Answered(model, happening):
                    await self._machines.step(model, self._machines.as_heard(model, happening))
                case Older(blob):
                    await self._hearing.guard("deny/all", self._hearing.on_older(blob))
                case ReplyIsLate():
                    await self._hearing.catch_up()
                case Ordered(model, happening, followed):
                    before = self._machines.memories[model]
                    await self._machines.step(model, happening)
                    if not followed.done():
                        followed.set_result(self._machines.memories[model] != before)
                case LookAgain():
                    await self._machines.derive_all()
                case Ticked():
                    self._time.save_if_due()
                    self._allowance.flush()
                    self.outbox.expire(self.now())
                    if self._vigil.look(self._machines.memories.values()):
                        self._reporter.say()
                    await self._machines.derive_all()
                    self._hearing.ask_for_older()


def main() -> int:
    """Runs the agent of the folder in argv until SIGTERM; returns the exit code."""
    forbid_core_dumps()
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
        await Agent(folder, wall=time.time, pulse=Pulse.inherited()).run(stop)

    try:
        try:
            read_node_file(folder)
            with agent_lock(folder):
                asyncio.run(run())
        except* sqlite3.Error as group:
            raise _stored_nothing(folder, group) from group
    except HeliographError as error:
        print(f"heliograph: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _stored_nothing(folder: Path, group: BaseExceptionGroup[sqlite3.Error]) -> HeliographError:
    """In one sentence why the agent can't keep its memory, and so can't go on. Damage is found at the next start."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return StorageError(
        f"{folder} takes no more of the node's memory: {error}; see to the disk, its space and its rights"
    )


if __name__ == "__main__":
    sys.exit(main())
