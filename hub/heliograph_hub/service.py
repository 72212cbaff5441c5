"""[IO] The hub, open: its parts, wired to one another and to the broker, and what happens on each message.

Rule 1: state is committed before it is announced, and everything announced is a function of what is committed, so the
    hub may be killed at any time: the next start announces the same.
Rule 2: no message stops the service. What can't be believed or understood is counted with its node and answered by
    nothing; only the hub's own disk or database failing ends the process.
Rule 3: what blocks for long (packing, sealing) runs in a thread, diffs in a process of low priority; rows and
    signatures are quick enough for the loop.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from random import SystemRandom
from zoneinfo import ZoneInfo

from heliograph.connection import Broker
from heliograph.documents import (
    Ask,
    Assignment,
    Document,
    Hello,
    LaneReceipt,
    ModelReport,
    Receipt,
    Reply,
    Spent,
    Want,
)
from heliograph.economy import zone
from heliograph.errors import (
    HeliographError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    TransportError,
    TrustError,
)
from heliograph.mosquitto import CLIENT_PREFIX
from heliograph.mqtt import Mqtt
from heliograph.names import Digest, Ring
from heliograph.objects import ObjectStore
from heliograph.protocol import STATEMENTS, TOPICS, parse_topic, topic
from heliograph.sender import Sender
from heliograph.vouching import PROTECTED_ROLE, UnknownTypeError, counted
from heliograph_hub.access import HOST, Access, Doors, open_access
from heliograph_hub.admission import Admission
from heliograph_hub.announcing import Announcing
from heliograph_hub.assigning import Assigned, Assignments
from heliograph_hub.assignment import TIME_ZONE
from heliograph_hub.authority import Authority
from heliograph_hub.broker import near
from heliograph_hub.control import Control
from heliograph_hub.database import DATABASE_FILE, Database
from heliograph_hub.denial import Denials
from heliograph_hub.desired import Desired
from heliograph_hub.distribution import Distribution, Purpose, answer
from heliograph_hub.duties import Duties
from heliograph_hub.enrolment import Enrolment
from heliograph_hub.epochs import Epochs
from heliograph_hub.fleet import Fleet, Node, ReplayError
from heliograph_hub.ledger import Ledger
from heliograph_hub.news import News
from heliograph_hub.operators import Tokens
from heliograph_hub.reception import Reception
from heliograph_hub.registry import Registry
from heliograph_hub.retention import drop_unnamed
from heliograph_hub.rollout import Signed, in_force
from heliograph_hub.rollouts import Rollouts
from heliograph_hub.rotation import Rotation
from heliograph_hub.seals import Seals
from heliograph_hub.workshop import Workshop

log = logging.getLogger("heliograph.hub")

NO_RELEASE = Digest(bytes(32))
"""What bytes are counted for that belong to no release: blobs of denials."""


class Service:
    """A realm's hub, open: its parts, and what happens on each message. The operator API calls its parts directly."""

    def __init__(
        self,
        folder: Path,
        port: int,
        rate: int | None = None,
        node_rate: int | None = None,
        doors: Doors | None = None,
    ) -> None:
        """`doors`: how nodes come in by TLS; None: a broker without, on the loopback."""
        self.folder = folder
        self.port = port
        self.authority = Authority(folder)
        self.realm = self.authority.realm
        self.database = Database(folder / DATABASE_FILE)
        self.duties = Duties(self.database)
        self.authority.on_signed = self._note_signed
        self.rotation = Rotation(self.authority)
        self.objects = ObjectStore(folder / "objects")
        self.registry = Registry(self.database, self.objects)
        self.desired = Desired(self.database)
        self.denials = Denials(self.database, self.objects, self.authority)
        self.denials.note_vouchers(self.authority.set.models)
        self.control = Control(self.database, self.authority)
        self.announcing = Announcing(self.authority, self.denials, self.desired, self.control)
        self.news = News(self.authority, self.denials, self.desired, self.control)
        self.named_denials = self.authority.set.heads.deny.count
        """What the timestamp on disk named when this began: more than the database has, if that is an older copy."""
        self.unsigned = ""
        """Why nothing could be signed anew when this began; empty if it could."""
        self.fleet = Fleet(self.database, self.realm)
        self.assignments = Assignments(
            self.database,
            self.realm,
            self._sign_assignment,
            lambda: self.authority.set.statement_keys(PROTECTED_ROLE),
        )
        self.enrolment = Enrolment(self.database, self.assignments)
        self.operators = Tokens()
        self.access: Access | None = None
        address = Broker(HOST, port)
        if doors is not None:
            self.access = open_access(folder, self.database, self.realm, port, doors, _now())
            address = Broker(near(doors.listen), port, tls=self.access.hub_tls(_now))
        root = bytes(self.authority.root_digest)
        self.reception = Reception(self.realm, root, (HOST, port), self.enrolment, self.fleet, self.access, self._sign)
        epochs = Epochs(self.database, folder / "keys" / "epochs", self._note_epoch)
        seals = Seals(self.database, self.objects, self.registry, epochs)
        self.workshop = Workshop(self.registry, self.fleet, seals, self._directed, _now)
        self.ledger = Ledger(self.database, self._report_of)
        self.rollouts = Rollouts(self.desired, self.ledger, self.authority)
        policy_of, chance = self.control.policy_of, SystemRandom().random
        self.admission = Admission(self.ledger, policy_of, self.zone_of, chance, self._said_by)
        self.distribution = Distribution(self.registry, Sender(rate, node_rate), self._on_sent)
        self.told: dict[Ring, dict[str, Signed]] = in_force(self.desired.rows())
        """What each ring is told of each model, as of the last commit that was announced."""
        self._to_send = asyncio.Event()
        self._door = topic("enroll").filter(self.realm).removesuffix("+/+")
        """What whoever has no certificate may write to begins with this."""
        heard = [row for row in TOPICS if row.reader == "hub"]
        subscriptions = [(row.filter(self.realm), row.qos) for row in heard if row.sender != "new"]
        subscriptions.append((f"{self._door}#", topic("enroll").qos))
        self.mqtt = Mqtt(
            address,
            f"{CLIENT_PREFIX}hub-{self.realm}" if doors else f"hub-{self.realm}",
            subscriptions,
            SystemRandom(),
            self._on_message,
            self._on_link,
        )

    # --- what is announced ------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Signs what changed and has it published; call after every commit that changes what nodes should know."""
        self._obey_directives()
        self.announcing.announce(_now())

    def begin(self) -> None:
        """Announces what is committed, as `announce`; if nothing can be signed anew, what was signed before goes on.

        A hub that doesn't begin would keep even denials from the nodes, and its broker. What a hub was writing when it
        was killed is removed, in time.
        """
        try:
            if dropped := drop_unnamed(self.database, self.objects, _now()):
                log.info("dropped %d objects that nothing names: left by a hub that was killed", dropped)
        except OSError as error:
            log.warning("objects that nothing names stay until the next start: %s", error)
        try:
            self.sign_again()
            self.announce()
        except HeliographError as error:
            self.unsigned = str(error)
            self.announcing.announce_as_signed()

    def sign_again(self) -> list[Assigned]:
        """Has all that the hub signed by itself vouched for by the keys in force; the assignments that are to be sent.

        What offline keys signed waits for them (`heliograph hub sign-request`).

        Raises:
            RefusedError: the online keys are not here.
        """
        trusted = self.authority.set
        self.rollouts.sign_again()
        return self.assignments.sign_again(lambda data, role: bool(counted(trusted, data, role)))

    def _note_epoch(self, now: int, model: str, number: int, why: str) -> None:
        self.duties.note_later(now, "hub", f"began epoch {number} of {model}: {why}")
        log.info("began epoch %d of %s: %s", number, model, why)

    def _note_signed(self, type_: str, payload: bytes, keyids: list[bytes]) -> None:
        self.duties.note_signed(_now(), type_, payload, keyids)

    def _obey_directives(self) -> None:
        """Sends no more of what is queued for rings that are told otherwise now, or stand still."""
        self.told = in_force(self.desired.rows())
        self.distribution.drop(lambda purpose: not self._is_open(purpose))

    def _is_open(self, purpose: Purpose) -> bool:
        release = purpose.release
        return release is None or self.admission.is_open(purpose.ring, release, self.told)

    def zone_of(self, site: str) -> ZoneInfo:
        """The time zone that a site's label names."""
        return zone(self.assignments.site_label(site, TIME_ZONE)).tz

    def _report_of(self, site: str, node: str, model: str) -> ModelReport | None:
        try:
            reported = self.fleet.node(site, node).reported
        except (NotFoundError, RefusedError):
            return None
        return reported.models.get(model) if reported else None

    def _said_by(self, site: str) -> list[tuple[Spent, int]]:
        reports = [node.reported for node in self.fleet.nodes(site=site)]
        return [(reported.spent, reported.estimate) for reported in reports if reported is not None]

    def _on_sent(self, site: str, node: str, purpose: Purpose, count: int) -> None:
        self.ledger.note_sent(site, node, purpose.ring, purpose.release or NO_RELEASE, count, _now())

    def _on_want(self, node: Node, want: Want) -> None:
        """Queues what a node wants, if it may have it now; what it may not it asks for again, ever more slowly."""
        now_s = time.monotonic()
        release = self.admission.purpose(node, self.registry.owners(Digest(want.blob)), self.told)
        purpose = Purpose(release, node.ring)
        is_document = release is None or release == want.blob  # never held back, a manifest neither
        if not is_document and (not self._is_open(purpose) or self.admission.is_spent(node, _now(), now_s)):
            return
        if self.distribution.take(node.site, node.node, want, now_s, purpose):
            self._to_send.set()

    async def send_assignments(self, changed: Iterable[Assigned]) -> None:
        """Tells nodes what they are, if they listen now; else their next hello or report brings it."""
        for assigned in changed:
            if assigned.statement and assigned.proposed is None:
                with contextlib.suppress(TransportError):
                    await self._send("assigned", assigned.site, assigned.node, assigned.statement)

    def _directed(self) -> set[bytes]:
        """Releases that some ring is to install."""
        return {row.release for models in self.told.values() for row in models.values() if row.action == "install"}

    def _sign_assignment(self, assignment: Assignment) -> bytes:
        return self.authority.sign_statement("assign", "assignment", assignment)

    def _sign(self, kind: str, document: Document) -> bytes:
        return self.authority.sign_statement(STATEMENTS[kind], kind, document)

    async def _send(self, name: str, site: str, node: str, payload: bytes) -> None:
        await self.announcing.is_named.wait()  # or a node would refuse what new keys signed
        row = topic(name)
        await self.mqtt.publish(row.build(self.realm, site=site, node=node), payload, qos=row.qos)

    # --- what arrives -----------------------------------------------------------------------------------------------

    async def _on_link(self, is_up: bool) -> None:
        log.info("link to the broker is %s", "up" if is_up else "down")
        self.announcing.link(is_up)

    async def _on_message(self, full: str, payload: bytes, retained: bool) -> None:
        if full.startswith(self._door):
            if not payload:
                return  # what was cleared below
            await self._take(full, payload)
            # It may have been sent to be retained, which doesn't show: nobody leaves anything at the broker.
            await self.mqtt.publish(full, b"", qos=0, retain=True)
            return
        await self._take(full, payload)

    async def _take(self, full: str, payload: bytes) -> None:
        found = parse_topic(full, self.realm)
        if found is None or "site" not in found[1]:
            self.fleet.count("", "", "on unknown topics", full[:100])
            return
        row, names = found
        site, node = names["site"], names["node"]
        try:
            await self._handle(row.name, site, node, payload)
        except TransportError:
            raise  # the broker went away while we answered: it sends the message again
        except ReplayError as error:
            self.fleet.count(site, node, "replayed", str(error))
        except UnknownTypeError as error:
            self.fleet.count(site, node, "of no use to this version", f"{row.name}: {error}")
        except TrustError as error:
            self.fleet.count(site, node, "not signed by the node", f"{row.name}: {error}")
        except IntegrityError as error:
            self.fleet.count(site, node, "malformed", f"{row.name}: {error}")
        except NotFoundError as error:
            self.fleet.count(site, node, "about unknown things", f"{row.name}: {error}")
        except RefusedError as error:
            self.fleet.count(site, node, "refused", f"{row.name}: {error}")

    async def _handle(self, name: str, site: str, node: str, payload: bytes) -> None:
        if name == "enroll":
            await self._on_enroll(site, node, payload)
            return
        member = self.fleet.node(site, node)
        if name == "gone":
            self.fleet.gone(site, node, _now())
            self.distribution.forget(site, node)
            return
        match name:
            case "renew" | "again":
                answer = self.reception.certify(member, name, payload, _now())
                await self._send(answer.topic, site, node, answer.payload)
                if name == "again":
                    return  # at the door, on a connection that ends: it says nothing of the node's own
            case "hello":
                hello = Hello.decode(payload)
                self.fleet.check_hello(member, hello.key)
                self.fleet.watch(member, hello)
                await self._on_hello(member, hello)
            case "ask":
                await self._on_ask(member, Ask.decode(payload))
            case "want":
                self._on_want(member, Want.decode(payload))
            case "reported":
                reported = self.fleet.take_reported(site, node, payload)
                changed = self.assignments.follow(site, node, reported.assignment)
                changed += self.assignments.done(site, node, reported.done, _now())
                await self.send_assignments(changed)
                if not changed and member.assigned and reported.assignment != member.assignment:
                    await self._send("assigned", site, node, member.assigned)
            case "records":
                done = self.fleet.take_records(site, node, payload, _now())
                receipt = Receipt(
                    realm=self.realm,
                    site=site,
                    node=node,
                    key=member.keyid,
                    run=done.run,
                    lane=done.lane,
                    next=done.next,
                )
                self.fleet.heard(site, node, _now())
                await self._send("receipt", site, node, self._sign("receipt", receipt))
            case _:
                self.fleet.count(site, node, "of no use to this version", name)
        self.fleet.heard(site, node, _now())

    async def _on_enroll(self, site: str, node: str, payload: bytes) -> None:
        answer = self.reception.enroll(site, node, payload, _now(), time.monotonic())
        if answer.is_replaced:
            self.settle()
        if answer.payload:
            await self._send(answer.topic, site, node, answer.payload)
        if answer.refused is not None:
            raise answer.refused
        log.info("enrolled %s/%s", site, node)

    def settle(self) -> None:
        """Keeps out whoever was removed or replaced; call after the commit that did it."""
        if self.access is not None:
            self.access.settle(_now())
        self.workshop.seal_again()

    async def _on_hello(self, node: Node, hello: Hello) -> None:
        self.rollouts.heard(node.ring, hello.numbers.directives)
        acked = list(self.fleet.receipts(node.site, node.node, hello.run))
        for receipt in hello.acked.values():
            if receipt.run != hello.run:
                acked += self.fleet.receipts(node.site, node.node, receipt.run)
        for reply in self.replies(node, hello, tuple(acked)):
            await self._send("reply", node.site, node.node, self._sign("reply", reply))

    def replies(self, node: Node, hello: Hello, acked: tuple[LaneReceipt, ...]) -> list[Reply]:
        """All that is newer than what the hello names, in as few replies as its size allows."""
        return self.news.replies(node, hello, acked, self.announcing.retained, _now())

    async def _on_ask(self, node: Node, ask: Ask) -> None:
        rings = in_force(self.desired.rows())
        now, now_s = _now(), time.monotonic()
        # Reads manifests and rows: in a thread, so that chunks go on meanwhile.
        offer = await asyncio.to_thread(
            answer,
            self.registry,
            self.workshop.recipes,
            self.realm,
            node,
            ask,
            rings,
            now,
            now_s,
            self.denials,
            self.admission,
            self.workshop.seals,
        )
        if offer.later_s is not None:
            self.workshop.wake()
        await self._send("offer", node.site, node.node, self._sign("offer", offer))

    # --- the tasks --------------------------------------------------------------------------------------------------

    async def send_chunks(self) -> None:
        """Sends queued chunks at the allowed rates, for ever."""
        while True:
            self._to_send.clear()
            outgoing = self.distribution.next(time.monotonic())
            if outgoing is not None:
                # A chunk that is lost is asked for again.
                with contextlib.suppress(TransportError):
                    await self._send("chunk", outgoing.site, outgoing.node, outgoing.payload)
                await asyncio.sleep(0)
                continue
            due = self.distribution.next_time(time.monotonic())
            wait_s = None if due is None else max(due - time.monotonic(), 0.001)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._to_send.wait()

    def add_token(self, site: str, node: str, life_s: int, *, protected: bool = False) -> tuple[str, int, bool]:
        """The join string for one node, good once, when it expires, and whether it says protected."""
        return self.reception.add_token(site, node, secrets.token_bytes(32), life_s, _now(), protected=protected)


def _now() -> int:
    return int(time.time())
