"""Checking a release: what is waited for, how long, and what is no reason to give up."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from heliograph.blob import describe
from heliograph.deadlines import Deadlines
from heliograph.documents import Hardware, Offer
from heliograph.manifest import File, Golden, Manifest, Variant, manifest_digest
from heliograph.names import Digest
from heliograph.objects import ObjectStore
from heliograph.trust import Target as Listed
from heliograph_site.machine import Command, Declined, Memory, Target
from heliograph_site.slots import Slots
from heliograph_site.tasks import Pace, Tasks

HERE = Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={"tflite": "2.14.0"})
CONTENT = b"model"
FILE = File(name="m", length=len(CONTENT), sha256=describe(CONTENT)[0], pages=describe(CONTENT)[1])
MANIFEST = Manifest(
    model="digits",
    version="1.0.0",
    files=(FILE,),
    variants=(Variant(name="plain", files=("m",)),),
    golden=Golden(inputs="m", outputs="m"),
)
RELEASE = manifest_digest(MANIFEST)
MEMORY = Memory("digits", "checking", 7, Target(RELEASE, 1))


class Surroundings:
    """An agent that lists the one release; offers come as the test says."""

    def __init__(self, *offers: Offer | None) -> None:
        self.offers = list(offers)
        self.waited_for: list[str] = []

    def target(self, model: str, release: bytes) -> Listed:
        size = len(MANIFEST.encode())
        return Listed("digits/1.0.0", "digits", "1.0.0", size, RELEASE, frozenset(), frozenset())

    async def ask(self, model: str, release: bytes) -> Offer | None:
        return self.offers.pop(0)

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        self.waited_for.append(waiting)

    def why_unsure(self) -> str | None:
        return None

    def named(self, release: bytes, manifest: Manifest) -> None:
        assert release == RELEASE

    async def small(self, digest: bytes, length: int) -> bytes:
        return MANIFEST.encode()


class FullAtFirst(ObjectStore):
    """A disk that takes nothing the first time."""

    refusals = 1

    def put(self, data: bytes) -> Digest:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().put(data)


def never() -> Offer:
    return Offer(
        realm="lab", site="shop", node="till", key=bytes(32), run=bytes(8), n=1, model="digits", release=RELEASE,
        expires=1, never=True, reason="the end of the test",
    )  # fmt: skip


def check(folder: Path, around: Surroundings, prepare: Callable[[Slots], None] = lambda slots: None) -> Any:
    slots = Slots(folder)
    prepare(slots)
    server: Any = None  # checking asks no server
    agent: Any = around
    pace = Pace(poll_s=0.001, retry_s=0.001)
    tasks = Tasks(agent, slots, agent, server, HERE, Random(1), Deadlines(), pace)

    async def perform() -> Any:
        async with asyncio.timeout(20):
            return await tasks.perform(Command.CHECK, MEMORY)

    return asyncio.run(perform())


def test_a_lost_ask_costs_its_own_time_and_no_second_minute(tmp_path: Path) -> None:
    around = Surroundings(None, None, None, never())
    assert check(tmp_path, around) == Declined(7, "the hub declines: the end of the test")
    assert around.waited_for.count("no answer from the hub") == 3


def test_a_disk_that_is_full_when_the_manifest_comes_is_waited_out(tmp_path: Path) -> None:
    def fill(slots: Slots) -> None:
        slots.store = FullAtFirst(slots.store.root)

    around = Surroundings(never())
    assert isinstance(check(tmp_path, around, fill), Declined)
    assert "the disk: No space left on device" in around.waited_for
    assert Slots(tmp_path).manifest(RELEASE) == MANIFEST
