"""A hub as a process with an operator in front of it, and a node played by hand."""

import asyncio
import base64
import contextlib
import functools
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import warm
from heliograph import documents as doc
from heliograph import trust, vouching
from heliograph.blob import sha256
from heliograph.connection import Broker
from heliograph.deny import DenySet
from heliograph.errors import TransportError, TrustError
from heliograph.lab import free_port, wait_until
from heliograph.mqtt import Mqtt
from heliograph.protocol import SCHEMAS, parse_topic, topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph.transfer import BlobFetch, Fetcher, Window
from heliograph.wire import unpack
from heliograph_hub.client import HubClient
from terminals import Typed, typed
from waits import turns

CLI = [sys.executable, "-m", "heliograph.cli"]
STEP_S = 60.0
HARDWARE = doc.Hardware(arch="x86_64", memory_bytes=1 << 30)


def in_loop(test):
    """Runs an async test."""

    @functools.wraps(test)
    def run(*arguments, **fixtures):
        asyncio.run(test(*arguments, **fixtures))

    return run


class Hub:
    """One hub folder, run as often as needed, and the operator in front of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "hub"
        self.log = folder / "hub.log"
        self.port = free_port()
        self.run = None
        done = typed("hub", "init", self.folder, "--realm", "test")
        assert "THIS IS A DEVELOPMENT REALM" in done.stderr

    def start(self, *options: str) -> None:
        before = self.log.read_text().count("operator API") if self.log.exists() else 0
        run = ["hub", "run", self.folder, "--plain-port", str(self.port), *options]
        self.run = warm.spawn("heliograph.cli", run, self.log)
        deadline = STEP_S
        while self.log.read_text().count("operator API") == before and deadline > 0 and self.run.is_alive:
            deadline -= 0.05
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run.process.wait(0.05)
        assert self.log.read_text().count("operator API") > before, self.log.read_text()
        # A broker that keeps nothing loses what is said before the hub listens; these tests say things once.
        client = HubClient(str(self.folder))
        wait_until(lambda: client.get("/v1/hub")["broker"]["link"] == "up", STEP_S, "the hub's link to its broker")

    def kill(self) -> None:
        self.run.process.send_signal(signal.SIGKILL)
        self.run.process.wait()

    def command(self, *words: str, code: int = 0) -> str:
        if words[:2] == ("hub", "run"):  # it would run for ever, if it didn't fail
            said = warm.spawn("heliograph.cli", words, self.folder.with_name(f"said-{secrets.token_hex(4)}.log"))
            done = Typed(said.process.wait(60.0), "", said.output())
        else:
            done = typed(*words, HELIOGRAPH_HUB=str(self.folder))
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        if code:
            assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("heliograph: ")
            return done.stderr
        return done.stdout

    def json(self, *words: str):
        return json.loads(self.command(*words, "--json"))

    def key(self, name: str) -> str:
        return str(self.folder / "keys" / f"{name}.key")

    def publish(self, release: Path, name: str) -> None:
        self.command("release", "add", str(release))
        self.command("release", "sign", name, "--key", self.key("sign-digits"))
        self.command(
            "release", "approve", name, "--key", self.key("approve-digits-1"), "--key", self.key("approve-digits-2")
        )


class ScriptedNode:
    """What a node says and believes, each step by hand: no memory on disk, no machine."""

    def __init__(self, join: str, key: PrivateKey | None = None) -> None:
        packed = join.removeprefix("heliograph1:")
        fields = unpack(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
        self.version, self.host, self.port, self.realm, self.site, self.node, self.token, self.root, _ = fields
        self.key = key or PrivateKey.generate(secrets.token_bytes(32))
        self.run, self.n = secrets.token_bytes(8), 0
        self.trusted: trust.TrustedSet | None = None
        self.desired: dict[str, tuple[bytes, ...]] = {}
        self.assignment: doc.Assignment | None = None
        self.inbox: asyncio.Queue[tuple[str, doc.Document]] = asyncio.Queue()
        self.chunks: asyncio.Queue[doc.Chunk] = asyncio.Queue()
        self.up = asyncio.Event()
        self.trusts = asyncio.Event()
        self.retained: dict[str, bytes] = {}
        self.denied = DenySet()
        self.told: list[str] = []
        self.content_bytes = 0

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["ScriptedNode"]:
        down = f"heliograph/v1/{self.realm}/node/{self.site}/{self.node}/down/+"
        retained = [topic(name).filter(self.realm) for name in ("deny", "root", "set", "desired")]
        gone = (topic("gone").build(self.realm, site=self.site, node=self.node), b"")
        self.mqtt = Mqtt(
            Broker(self.host, self.port),
            f"{self.site}/{self.node}",
            [(name, 1) for name in (*retained, down)],
            Random(1),
            self._on_message,
            self._on_link,
            gone,
        )
        task = asyncio.ensure_future(self.mqtt.run())
        try:
            async with asyncio.timeout(STEP_S):
                await self.up.wait()
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _on_link(self, is_up: bool) -> None:
        self.up.set() if is_up else self.up.clear()

    async def _on_message(self, full: str, payload: bytes, retained: bool) -> None:
        row, names = parse_topic(full, self.realm)
        self._take(row, names, payload)

    def _take(self, row, names, payload: bytes) -> None:
        if row.name == "chunk":
            self.chunks.put_nowait(doc.Chunk.decode(payload))
        elif row.name in ("root", "set"):
            self.told.append(row.name)
            self.retained[row.name] = payload
            if self.trusted is None and sha256(self.retained.get("root", b"")) == self.root:
                self.trusted = trust.bootstrap(self.retained["root"], self.root)
            if self.trusted is not None and "set" in self.retained:
                with contextlib.suppress(TrustError):  # an older one that was retained
                    self.trusted = trust.with_set(self.trusted, self.retained["set"], 1)
                    self.trusts.set()
        elif row.name == "deny":
            self.told.append("deny")
            head = self.trusted.heads.deny if self.trusted else doc.Denials()
            if self.trusted is not None and self.trusted.is_complete:
                self.denied = self.denied.with_list(payload, self.trusted, head)
        elif row.name == "desired":
            self.desired[names["ring"]] = tuple(unpack(payload))
        elif row.name != "refused":  # that is said to whoever joins under this name
            document = vouching.open_document(
                self.trusted, payload, row, names, site=self.site, node=self.node, key=self.key.keyid
            )
            if row.name == "assigned" and (self.assignment is None or document.number > self.assignment.number):
                self.assignment = document
            if row.name == "reply":
                for below, content in document.documents:
                    if below == "assigned":
                        self._take(topic("assigned"), names, content)
                    else:
                        self._take(*parse_topic(f"heliograph/v1/{self.realm}/{below}", self.realm), content)
            self.inbox.put_nowait((row.name, document))

    async def next(self, name: str) -> doc.Document:
        async with asyncio.timeout(STEP_S):
            while True:
                got, document = await self.inbox.get()
                if got == name:
                    return document

    async def say(self, name: str, payload: bytes) -> None:
        row = topic(name)
        while True:
            try:
                return await self.mqtt.publish(
                    row.build(self.realm, site=self.site, node=self.node), payload, qos=row.qos
                )
            except TransportError:  # the link broke: again when it is back, as a node does
                await turns(1)  # it is told that the link is down
                async with asyncio.timeout(STEP_S):
                    await self.up.wait()

    async def enroll(self) -> None:
        async with asyncio.timeout(STEP_S):
            await self.trusts.wait()
        request = doc.Enroll(token=self.token, key=self.key.public.raw, nonce=secrets.token_bytes(16))
        await self.say("enroll", request.encode())
        await self.next("assigned")

    async def hello(self) -> list[doc.Reply]:
        nonce = secrets.token_bytes(16)
        numbers = doc.Numbers(assignment=self.assignment.number if self.assignment else 0)
        hello = doc.Hello(
            run=self.run, nonce=nonce, agent="0", schemas=SCHEMAS, hardware=HARDWARE, numbers=numbers,
            tuf=self.trusted.versions if self.trusted else {}, deny=self.denied.head,
        )  # fmt: skip
        await self.say("hello", hello.encode())
        replies = [await self.next("reply")]
        while replies[-1].more:
            replies.append(await self.next("reply"))
        assert {reply.nonce for reply in replies} == {nonce}
        return replies

    async def ask(self, release: bytes, bases: tuple[bytes, ...] = ()) -> doc.Offer:
        self.n += 1
        ask = doc.Ask(run=self.run, n=self.n, model="digits", release=release, bases=bases, free_bytes=1 << 33)
        await self.say("ask", ask.encode())
        offer = await self.next("offer")
        assert (offer.run, offer.n, offer.release) == (self.run, self.n, release)
        return offer

    async def settled_offer(self, release: bytes, bases: tuple[bytes, ...] = ()) -> doc.Offer:
        while True:
            offer = await self.ask(release, bases)
            if offer.later_s is None:
                return offer
            await asyncio.sleep(min(offer.later_s, 0.2))  # the hub says how long, and tells of nothing

    async def fetch(self, blob: bytes, length: int, pages: tuple[bytes, ...] = ()) -> bytes:
        fetcher = Fetcher(Window())
        one = BlobFetch(blob, length, pages, secrets.token_bytes(4))
        fetcher.add(one)
        image = bytearray(length)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(3 * STEP_S):
            while not one.complete:
                for want in fetcher.wants(loop.time()):
                    await self.say("want", want.encode())
                due = fetcher.next_deadline(loop.time())
                try:
                    async with asyncio.timeout_at(due):
                        chunk = await self.chunks.get()
                except TimeoutError:
                    fetcher.on_time(loop.time())
                    continue
                self.content_bytes += len(chunk.bytes)
                arrival = fetcher.on_chunk(chunk, loop.time())
                for offset, run in arrival.runs if arrival else ():
                    image[offset : offset + len(run)] = run
        return bytes(image) if pages else one.finish()

    async def report(self, n: int, **models: doc.ModelReport) -> None:
        reported = doc.Reported(
            realm=self.realm, site=self.site, node=self.node, run=self.run, n=n, estimate=1, agent="0", schemas=SCHEMAS,
            ring=self.assignment.ring, assignment=self.assignment.number, tuf=self.trusted.versions,
            deny=self.denied.head, bytes_received=self.mqtt.bytes_received, models=models,
        )  # fmt: skip
        await self.say("reported", sign_statement("reported", reported.encode(), [self.key]))

    def records(self, first: int, count: int) -> bytes:
        return self.records_of("audit", first, tuple((1, "staged", 5, {"i": first + i}) for i in range(count)))

    def records_of(self, lane: doc.Lane, first: int, rows: tuple[doc.Row, ...]) -> bytes:
        batch = doc.Records(
            realm=self.realm, site=self.site, node=self.node, run=self.run, lane=lane, first=first, rows=rows
        )
        return sign_statement("records", batch.encode(), [self.key])
