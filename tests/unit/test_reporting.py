"""What is sent when, no lane silenced by another for ever; and what is told of the server's counts."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from heliograph.deadlines import DEADLINES
from heliograph.documents import Document, Lane, Records
from heliograph.names import Ring
from heliograph.sketch import Sketch
from heliograph_site.decay import KINDS
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory
from heliograph_site.outbox import Outbox
from heliograph_site.reporting import Reporter
from heliograph_site.surroundings import Pace

RUN = b"run-0001"


class Talker:
    """A node that has records only; what it publishes is put into `said`."""

    run_id = RUN
    names = ("dev", "lab", "pi-1")
    ring: Ring | None = None
    assignment = 0
    bytes_received = 0
    is_up = True

    def __init__(self, folder: Path) -> None:
        self.memories: Mapping[str, Memory] = {}
        self.metadata_versions: dict[str, int] = {}
        self.journal = Journal(folder / "journal.sqlite")
        self.outbox = Outbox(folder / "outbox.sqlite", RUN)
        self.said: asyncio.Queue[Records] = asyncio.Queue()

    def now(self) -> int:
        return 1

    def save_counters(self) -> None:
        """It has none."""

    async def publish_signed(self, name: str, document: Document) -> None:
        assert isinstance(document, Records)
        self.said.put_nowait(document)

    async def heard(self) -> tuple[Lane, int]:
        """Lane and number of rows of the next batch."""
        async with asyncio.timeout(10):
            batch = await self.said.get()
        return batch.lane, len(batch.rows)


@asynccontextmanager
async def talking(folder: Path, **deadlines: float) -> AsyncIterator[tuple[Talker, Reporter]]:
    """A node whose records are being sent."""
    node = Talker(folder)
    changed: dict[str, Any] = deadlines
    reporter = Reporter(node, dataclasses.replace(DEADLINES, **changed), Pace())
    for lane in ("sample", "metric", "incident"):
        node.outbox.append(lane, "x", 1, {})
    loops = dict(reporter.loops())
    loops.pop("report").close()
    task = asyncio.create_task(loops["records"])
    try:
        yield node, reporter
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        node.outbox.close()
        node.journal.close()


def test_a_lane_waits_for_the_receipts_of_dearer_ones(tmp_path: Path) -> None:
    asyncio.run(dearer_first(tmp_path))


async def dearer_first(folder: Path) -> None:
    async with talking(folder) as (node, reporter):
        assert await node.heard() == ("incident", 1)
        reporter.say()
        node.outbox.append("incident", "x", 2, {})
        reporter.on_receipt(RUN, "incident", 1)
        assert await node.heard() == ("incident", 1), "the new one goes before the others"
        reporter.on_receipt(RUN, "incident", 2)
        assert await node.heard() == ("metric", 1)
        node.outbox.append("incident", "x", 3, {})
        reporter.say()
        assert await node.heard() == ("incident", 1), "it does not wait for cheaper ones"
        reporter.on_receipt(RUN, "incident", 3)
        reporter.on_receipt(RUN, "metric", 1)
        assert await node.heard() == ("sample", 1)


def test_a_lane_without_receipts_does_not_silence_the_others(tmp_path: Path) -> None:
    asyncio.run(none_silenced(tmp_path))


async def none_silenced(folder: Path) -> None:
    async with talking(folder, receipt_s=0.05) as (node, _):
        heard = [await node.heard() for _ in range(3)]
        while heard[-1] != ("sample", 1):
            heard.append(await node.heard())
        assert heard[0] == ("incident", 1) and ("metric", 1) in heard


# --- what the server counted ------------------------------------------------------------------------------------------

ONE, TWO = "01" * 32, "02" * 32
MS = 1_000_000


def served(began_ns: int, latencies_ms: list[int], errors: int = 0) -> dict[str, Any]:
    sketch = Sketch()
    for latency in latencies_ms:
        sketch.add(latency * MS)
    requests = len(latencies_ms) + errors
    return {
        "began_ns": began_ns, "state": "ready", "requests": requests, "errors": errors, "restarts": 0,
        "sketch": sketch.encode().hex(),
    }  # fmt: skip


def status(active: str, row: dict[str, Any], standby: str = "", waiting: dict[str, Any] | None = None) -> Any:
    """Rows of a server that serves `active` and keeps `standby` warm."""
    return {"digits": {"active": active, **row, "standby": waiting and {"release": standby, **waiting}}}


class Counting:
    """The lives of an agent: what its records tell of each release."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begin()

    def begin(self) -> None:
        """The agent starts."""
        self.node = Talker(self.folder)
        self.reporter = Reporter(self.node, DEADLINES, Pace())

    def end(self) -> None:
        """The agent ends."""
        self.node.outbox.close()
        self.node.journal.close()

    def told(self) -> dict[str, tuple[int, int, int]]:
        """Release → requests, errors and latencies in all records."""
        batch = self.node.outbox.batch("metric", 1 << 20)
        sums: dict[str, tuple[int, int, int]] = {}
        for _, kind, _, body in batch.rows if batch else ():
            assert kind == "serving" and min(body["requests"], body["errors"], body["restarts"]) >= 0
            latencies = Sketch.decode(body["latency"]).count if "latency" in body else 0
            new = (body["requests"], body["errors"], latencies)
            old = sums.get(body["release"].hex(), (0, 0, 0))
            sums[body["release"].hex()] = (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        return sums


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Counting]:
    counting = Counting(tmp_path)
    yield counting
    counting.end()


def test_a_record_holds_the_latencies_of_its_interval(counting: Counting) -> None:
    slow = [900] * 10
    counting.reporter.metrics(status(ONE, served(1, slow)))
    counting.reporter.metrics(status(ONE, served(1, [*slow, 5, 5, 5], errors=1)))
    counting.reporter.metrics(status(ONE, served(1, [*slow, 5, 5, 5], errors=1)))
    counting.reporter.metrics(status(ONE, served(1, [*slow, 5, 5, 5], errors=2)))
    batch = counting.node.outbox.batch("metric", 1 << 20)
    assert batch is not None
    bodies = [body for _, _, _, body in batch.rows]
    assert [body["requests"] for body in bodies] == [10, 4, 1], "nothing is told of a minute without requests"
    first, second = (Sketch.decode(body["latency"]) for body in bodies[:2])
    assert first.quantile(0.5) / MS == pytest.approx(900, rel=0.01)
    assert second.quantile(0.95) / MS == pytest.approx(5, rel=0.01), "of the interval, not of all"
    assert "latency" not in bodies[2], "a request that failed has none"
    assert all(KINDS["serving"].fields.keys() | {"model", "release"} >= body.keys() for body in bodies), "they merge"


def test_a_server_that_starts_again_is_counted_from_zero(counting: Counting) -> None:
    counting.reporter.metrics(status(ONE, served(1, [5] * 3)))
    counting.reporter.metrics(status(ONE, served(2, [5] * 7)))
    counting.reporter.metrics(status(ONE, served(3, [5] * 2)))
    assert counting.told() == {ONE: (12, 0, 12)}


def test_an_agent_that_starts_again_tells_nothing_twice(counting: Counting) -> None:
    counting.reporter.metrics(status(ONE, served(1, [5] * 3)))
    counting.end()
    counting.begin()
    counting.reporter.metrics(status(ONE, served(1, [5] * 4)))
    assert counting.told() == {ONE: (4, 0, 4)}


def test_a_release_that_answers_again_is_not_told_twice(counting: Counting) -> None:
    metrics = counting.reporter.metrics
    metrics(status(ONE, served(1, [5] * 3)))
    metrics(status(TWO, served(2, [9] * 2), ONE, served(1, [5] * 6)))
    metrics(status(ONE, served(1, [5] * 7), TWO, served(2, [9] * 3, errors=1)))
    assert counting.told() == {ONE: (7, 0, 7), TWO: (4, 1, 3)}, "with what came just before each switch"
