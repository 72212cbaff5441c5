"""A broker connection with what it saw, for tests of the connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

from heliograph.connection import Broker, Timing
from heliograph.mqtt import Mqtt

QUICK = Timing(connect_s=15.0, publish_s=30.0, first_retry_s=0.05, longest_retry_s=0.2)


class Client:
    """An Mqtt with what it saw; `handle` may be replaced."""

    def __init__(self, port: int, name: str, *filters: str, timing: Timing = QUICK, user: str | None = None) -> None:
        self.got: list[tuple[str, bytes, bool]] = []
        self.links: list[bool] = []
        self.changed = asyncio.Condition()
        self.handle: Callable[[str, bytes], Awaitable[None]] | None = None
        broker = Broker("127.0.0.1", port, user, user and f"{user} secret")
        subscriptions = [(text, 1) for text in filters]
        self.mqtt = Mqtt(broker, name, subscriptions, Random(name), self._message, self._link, timing=timing)

    async def _message(self, topic: str, payload: bytes, retained: bool) -> None:
        if self.handle is not None:
            await self.handle(topic, payload)
        async with self.changed:
            self.got.append((topic, payload, retained))
            self.changed.notify_all()

    async def _link(self, up: bool) -> None:
        async with self.changed:
            self.links.append(up)
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)

    async def got_count(self, count: int) -> None:
        await self.until(lambda: len(self.got) >= count)

    @contextlib.asynccontextmanager
    async def running(self, *, wait: bool = True) -> AsyncIterator["Client"]:
        task = asyncio.create_task(self.mqtt.run())
        try:
            if wait:
                await self.until(lambda: self.links[-1:] == [True])
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
