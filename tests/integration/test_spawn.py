"""The forkserver and a bare worker, without a model."""

import asyncio
import os
import signal

import pytest

from heliograph.errors import TransportError
from heliograph_site.serving.spawn import Forks, Reply, Worker, WorkerDiedError
from waits import turns

PATIENCE_S = 60.0
LOAD = {"op": "load", "path": "/nowhere", "key": b"", "sha256": bytes(32), "length": 1, "threads": 1}


async def asked(forks: Forks) -> tuple[Worker, asyncio.Task[Reply]]:
    """A worker that stands still with a request."""
    worker = await forks.fork(lambda: None)
    await worker.call(LOAD)  # it has begun its own life: a child just forked still holds its parent's sockets
    os.kill(worker.pid, signal.SIGSTOP)
    call = asyncio.create_task(worker.call(LOAD))
    await turns(1)
    assert len(worker.pending) == 1
    return worker, call


@pytest.mark.parametrize(
    ("whose", "error", "says"),
    [("worker", WorkerDiedError, "signal 9"), ("forkserver", TransportError, "forkserver ended")],
)
def test_a_worker_is_blamed_for_its_own_end_only(whose: str, error: type[Exception], says: str) -> None:
    async def story() -> None:
        forks = Forks()
        try:
            async with asyncio.timeout(PATIENCE_S):
                worker, call = await asked(forks)
                assert forks.pid is not None
                os.kill(worker.pid if whose == "worker" else forks.pid, signal.SIGKILL)
                with pytest.raises(error, match=says):
                    await call
                assert worker.ended.is_set()
                again = await forks.fork(lambda: None)
                head, _ = await again.call(LOAD)
                assert head["kind"] == "integrity", "a new worker answers"
        finally:
            await forks.close()

    asyncio.run(story())


def test_a_cancelled_fork_harms_no_other_worker() -> None:
    async def story() -> None:
        forks = Forks()
        try:
            async with asyncio.timeout(PATIENCE_S):
                first = await forks.fork(lambda: None)
                assert forks.pid is not None
                os.kill(forks.pid, signal.SIGSTOP)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await forks.fork(lambda: None)
                os.kill(forks.pid, signal.SIGCONT)
                second = await forks.fork(lambda: None)
                assert second.pid != first.pid
                for worker in (first, second):
                    assert (await worker.call(LOAD))[0]["kind"] == "integrity"
        finally:
            await forks.close()

    asyncio.run(story())
