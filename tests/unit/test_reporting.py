"""What is sent when: lanes in the order of their worth, and no lane silenced by another for ever."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from heliograph.deadlines import DEADLINES
from heliograph.documents import Document, Lane, Records
from heliograph.names import Ring
from heliograph_site.journal import Journal
from heliograph_site.machine import Memory
from heliograph_site.outbox import Outbox
from heliograph_site.reporting import Reporter
from heliograph_site.tasks import Pace

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
