"""Records from node to hub in bad weather, with both real databases: every record counted once, at both ends alike.

A world appends, sends, replays, receipts, kills (node and hub, between and within transactions), changes runs and
presses on the cap, at random from its seed. What must hold after every step is in `World.check`, at the end in
`World.settle`.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sqlalchemy as sa

from heliograph.documents import LANES, Enroll, Lane, LaneReceipt, Records
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import parse
from heliograph.wire import pack
from heliograph_hub.assigning import Assignments
from heliograph_hub.database import Database
from heliograph_hub.enrolment import Enrolment
from heliograph_hub.fleet import Fleet
from heliograph_site.outbox import GAP, Batch, Outbox

SHM = Path("/dev/shm")
KEY = PrivateKey.generate(b"n" * 32)
NODE = {"realm": "dev", "site": "lab", "node": "pi-1"}
MIN_CAP = 72 * 1024
"""Hardly more than an outbox without records takes."""


class Killed(BaseException):
    """The process is gone; nothing catches this."""


class MortalDatabase(Database):
    """A hub's database whose process can die just before it commits."""

    dies = False

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """As ever, or dead with nothing committed."""
        with super().write() as connection:
            yield connection
            if self.dies:
                raise Killed


class World:
    """One node's outbox, its hub, and the road between them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = Random(seed)
        self.folder = folder
        self.cap = self.rng.choice([MIN_CAP, 96 * 1024, 8 << 20])
        self.trace: list[str] = []
        self.runs = self.lives = 0
        self.clock = self.rng.randrange(10**9)
        self.written: Counter[Lane] = Counter()
        self.requests = 0
        self.sent: list[Batch] = []
        self.receipts: list[LaneReceipt] = []
        self.told: dict[tuple[bytes, Lane, int], bytes] = {}
        self.path = folder / "outbox-0"
        self.outbox = self.open_outbox()
        self.open_hub()
        assignments = Assignments(
            self.database, "dev", lambda told: sign_statement("assignment", told.encode(), [KEY]), lambda: (1, {})
        )
        enrolment = Enrolment(self.database, assignments)
        enrolment.add_token("lab", "pi-1", b"t" * 32, 1, 86400)
        enrolment.enroll("lab", "pi-1", Enroll(token=b"t" * 32, key=KEY.public.raw, nonce=b"x" * 16), 1)

    def open_outbox(self) -> Outbox:
        return Outbox(self.path, b"%08d" % self.runs, self.cap)

    def open_hub(self) -> None:
        self.database = MortalDatabase(self.folder / "hub.sqlite")
        self.fleet = Fleet(self.database, "dev")

    # --- what happens -------------------------------------------------------------------------------------------------

    def append(self) -> None:
        """A burst of records: only bursts press on a cap of pages."""
        more: tuple[Lane, ...] = ("metric", "metric", "sample")
        lane = self.rng.choice(LANES + more)
        for _ in range(self.rng.choice([1, 3, 40])):
            self.clock += self.rng.choice([0, 20, 60, 3600])
            kind, body = self.record(lane)
            self.outbox.append(lane, kind, self.clock, body)
            self.written[lane] += 1

    def record(self, lane: Lane) -> tuple[str, dict[str, Any]]:
        if lane == "metric" and self.rng.random() < 0.9:
            counts = {"requests": self.rng.randrange(9), "errors": 1, "restarts": 0}
            self.requests += counts["requests"]
            return "serving", {"model": self.rng.choice("ab"), "release": b"r" * 32, "state": "ready", **counts}
        return self.rng.choice(["x", "y"]), {"text": "x" * self.rng.choice([0, 30, 600])}

    def send(self) -> None:
        batch = self.outbox.batch(self.rng.choice(LANES), self.rng.choice([1, 300, 4000, 40_000]))
        if batch is not None:
            self.remember(batch)
            if self.rng.random() < 0.7:
                self.arrive(batch)

    def remember(self, batch: Batch) -> None:
        """What leaves the node: under one number never two things."""
        self.sent.append(batch)
        seq = batch.first
        for row in batch.rows:
            what = pack([seq, *row])
            for number in range(seq, seq + row[0]):
                assert self.told.setdefault((batch.run, batch.lane, number), what) == what, self.trace
            seq += row[0]

    def replay(self) -> None:
        if self.sent:
            self.arrive(self.rng.choice(self.sent[-30:]))

    def arrive(self, batch: Batch) -> None:
        """At the hub, which may die before its commit, or after it and before the receipt is out."""
        said = Records(**NODE, run=batch.run, lane=batch.lane, first=batch.first, rows=batch.rows)
        statement = sign_statement("records", said.encode(), [KEY])
        assert parse(statement).payload == said.encode()
        fate = self.rng.random()
        self.database.dies = fate < 0.1
        try:
            receipt = self.fleet.take_records("lab", "pi-1", statement)
        except Killed:
            self.trace.append("hub died before its commit")
            self.open_hub()
            return
        if fate < 0.2:
            self.trace.append("hub died after its commit")
            self.open_hub()
            return
        self.receipts.append(receipt)
        if fate < 0.7:
            self.outbox.receipt(receipt.run, receipt.lane, receipt.next)

    def receipt(self) -> None:
        """One from any time, or one from nowhere."""
        if self.receipts:
            receipt = self.rng.choice(self.receipts[-30:])
            self.outbox.receipt(receipt.run, receipt.lane, receipt.next)
        self.outbox.receipt(b"stranger", "audit", self.rng.randrange(9))

    def kill(self) -> None:
        """Between two transactions: the file and its log as they lie there."""
        self.revive(self.copy())

    def kill_within(self) -> None:
        """At a statement of an append, a batch or a receipt, committed or not yet."""
        action = self.rng.choice([self.one_append, self.one_batch, self.one_receipt])
        statement, copies = self.rng.randrange(30), []
        seen = 0

        def trace(_: str) -> None:
            nonlocal seen
            if seen == statement:
                copies.append(self.copy())
            seen += 1

        before = Counter(self.written)
        self.outbox._conn.set_trace_callback(trace)
        action()
        self.outbox._conn.set_trace_callback(None)
        if copies:
            self.revive(copies[0])
            for lane, status in self.outbox.status().items():
                assert status.written in (before[lane], self.written[lane]), self.trace
                self.written[lane] = status.written

    def one_append(self) -> None:
        lane = self.rng.choice(LANES)
        self.outbox.append(lane, "x", self.clock, {"text": "x" * 300})
        self.written[lane] += 1

    def one_batch(self) -> None:
        """Its bytes are never handed out: the process dies in it."""
        self.outbox.batch(self.rng.choice(LANES), 4000)

    def one_receipt(self) -> None:
        if self.receipts:
            receipt = self.receipts[-1]
            self.outbox.receipt(receipt.run, receipt.lane, receipt.next)

    def copy(self) -> Path:
        self.lives += 1
        target = self.folder / f"outbox-{self.lives}"
        for end in ("", "-wal"):
            source = self.path.with_name(self.path.name + end)
            if source.exists():
                shutil.copyfile(source, target.with_name(target.name + end))
        return target

    def revive(self, path: Path) -> None:
        self.outbox.close()
        self.path = path
        self.runs += self.rng.random() < 0.8
        self.outbox = self.open_outbox()

    # --- what must hold -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        for lane, status in self.outbox.status().items():
            whole = status.kept + status.merged + status.lost + status.receipted
            assert whole == status.written == self.written[lane], (lane, status, self.trace)
            assert lane == "metric" or status.merged == 0
            assert min(status.kept, status.merged, status.lost, status.receipted) >= 0
        on_the_way = 4 * 50_000
        assert self.outbox.used_bytes() <= self.cap + on_the_way
        for name, counts in self.fleet.lanes("lab", "pi-1").items():
            assert counts["missing"] == 0, (name, self.trace)
        for receipt in self.receipts[-1:]:
            assert (receipt.run, receipt.lane, receipt.next - 1) in self.told, "never more than was sent"

    def settle(self) -> None:
        """Good weather at last: everything is sent, and both ledgers say the same."""
        for lane in LANES:
            while (batch := self.outbox.batch(lane, 10_000)) is not None:
                self.remember(batch)
                said = Records(**NODE, run=batch.run, lane=lane, first=batch.first, rows=batch.rows)
                receipt = self.fleet.take_records("lab", "pi-1", sign_statement("records", said.encode(), [KEY]))
                assert receipt.next >= batch.next and self.outbox.receipt(receipt.run, lane, receipt.next) > 0
        self.check()
        hub = self.fleet.lanes("lab", "pi-1")
        for lane, status in self.outbox.status().items():  # the hub's ledger and the node's
            counts = hub.get(lane, {"kept": 0, "merged": 0, "lost": 0, "missing": 0, "dropped": 0})
            told = {"kept": status.receipted, "merged": status.merged, "lost": status.lost, "missing": 0, "dropped": 0}
            assert (counts, status.kept) == (told, 0), (lane, self.trace)
            assert sum(counts.values()) == status.written == status.receipted + status.merged + status.lost
            rows = self.fleet.records("lab", "pi-1", lane, 10**6)
            assert len({(row["run"], row["seq"]) for row in rows}) == len(rows)
            assert sum(row["count"] for row in rows) == status.written
            assert sum(row["count"] for row in rows if row["kind"] == GAP) == status.lost
            for row in rows:
                body = row["body"]
                if row["kind"] == GAP:
                    assert sum(body["kinds"].values()) == row["count"] and body["from"] <= body["to"]
                else:
                    assert (row["count"] > 1) == ("span" in body)
            if lane == "metric" and status.lost == 0:
                assert sum(row["body"].get("requests", 0) for row in rows) == self.requests, "what was counted adds up"


ACTIONS: list[tuple[int, Callable[[World], None]]] = [
    (6, World.append), (5, World.send), (2, World.replay), (2, World.receipt), (1, World.kill), (2, World.kill_within),
]  # fmt: skip


def world_of(folder: Path, seed: int, steps: int) -> World:
    """A world that has lived `steps` steps and settled, with all that must hold checked."""
    world = World(folder, seed)
    choices, weights = [action for _, action in ACTIONS], [weight for weight, _ in ACTIONS]
    for _ in range(steps):
        action = world.rng.choices(choices, weights)[0]
        world.trace.append(action.__name__)
        action(world)
        world.check()
    world.settle()
    return world


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place: who dies here leaves files as they lie, and waits for no disk."""
    with TemporaryDirectory(prefix="records-", dir=SHM if SHM.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("seed", range(30))
def test_every_record_is_counted_once_and_alike_at_both_ends(folder: Path, seed: int) -> None:
    world_of(folder, seed, 120)


def test_the_worlds_are_bad_enough(folder: Path) -> None:
    """They merge, lose, replay, die on both sides and change runs: else the test above proves little."""
    merged, lost, runs, died = 0, Counter[Lane](), 0, Counter[str]()
    for seed in range(100, 104):
        (folder / str(seed)).mkdir()
        world = world_of(folder / str(seed), seed, 100)
        for lane, status in world.outbox.status().items():
            merged += status.merged
            lost[lane] += status.lost
        runs += world.runs
        died.update(step for step in world.trace if step.startswith("hub died"))
    assert merged > 100 and lost["sample"] > 100 and lost["metric"] > 0 and runs > 20 and len(died) == 2
