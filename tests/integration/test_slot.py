"""One slot with a real worker, without HTTP: time limits and back-off, shortened."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import bundles
from heliograph.errors import WaitError
from heliograph_hub.bundle import pack
from heliograph_site.holdings import Holdings
from heliograph_site.serving.admission import Limits
from heliograph_site.serving.inference import Tensor, match_inputs, parse_request
from heliograph_site.serving.slot import Slot, UnavailableError
from heliograph_site.serving.spawn import Forks
from waits import until

PATIENCE_S = 60.0


@asynccontextmanager
async def a_slot(folder: Path, limits: Limits) -> AsyncIterator[Slot]:
    """A loaded and kept slot of digits@1.0.0."""
    holdings = Holdings(folder)
    store = holdings.store
    bundle = pack(bundles.digits_bundle(folder / "bundle", "1.0.0"))
    for path in bundle.paths.values():
        store.put_file(path)
    forks = Forks()
    slot = Slot(store.put(bundle.manifest.encode()), bundle.manifest, holdings, forks, limits)
    try:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            await slot.load()
            tasks.create_task(slot.keep())
            yield slot
            slot.close()
    finally:
        await forks.close()


def inputs(slot: Slot) -> tuple[Tensor, ...]:
    return match_inputs(parse_request(json.dumps(bundles.sample_request()).encode()), slot.inputs)


async def until_restarted(slot: Slot, restarts: int) -> int:
    """The pid of the worker that came after so many restarts."""
    await until(lambda: slot.restarts >= restarts and slot.state == "ready" and slot.pid, "ready again")
    assert slot.pid is not None
    return slot.pid


def test_a_worker_that_hangs_is_killed_and_its_caller_told_in_time(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_slot(tmp_path, Limits(request_s=2.0)) as slot:
            stuck = slot.pid
            assert stuck is not None
            os.kill(stuck, signal.SIGSTOP)
            with pytest.raises((WaitError, UnavailableError), match=r" 2 s"):
                await slot.infer(inputs(slot))
            assert await until_restarted(slot, 1) != stuck
            (output,) = await slot.infer(inputs(slot))
            assert output.shape == (1, 10)
            assert (slot.meter.requests, slot.meter.errors) == (2, 1)

    asyncio.run(story())


def test_a_worker_that_keeps_dying_is_started_after_growing_pauses(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_slot(tmp_path, Limits()) as slot:
            loop = asyncio.get_running_loop()
            pauses = []
            for death in range(1, 5):
                pid = slot.pid
                assert pid is not None
                began = loop.time()
                os.kill(pid, signal.SIGKILL)
                await until_restarted(slot, death)
                pauses.append(loop.time() - began)
            assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True)), pauses
            pid = slot.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: slot.restarts == 5, "started five times")
            with pytest.raises(UnavailableError) as caught:
                await slot.infer(inputs(slot))
            assert (caught.value.reason, caught.value.retry_after_s) == ("worker-restarting", 2)
            assert "signal 9" in slot.reason

    asyncio.run(story())


def test_a_closed_slot_ends_its_worker_and_answers_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_slot(tmp_path, Limits()) as slot:
            pid, given = slot.pid, inputs(slot)
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            waiting = asyncio.create_task(slot.infer(given))
            await until(lambda: slot.waiting, "somebody waits")
            slot.close()
            with pytest.raises(UnavailableError, match="dropped"):
                await waiting
            with pytest.raises(UnavailableError, match="dropped"):
                await slot.infer(given)
            await until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended")

    asyncio.run(story())
