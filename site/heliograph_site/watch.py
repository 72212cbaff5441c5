"""Looks at the server process: counters for the hub, what it gave up, and whether it answers with the right numbers."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from heliograph.errors import RefusedError, TransportError
from heliograph_site.happenings import GivenUp
from heliograph_site.inbox import Answered, Inbox
from heliograph_site.machines import Machines
from heliograph_site.reporting import Reporter
from heliograph_site.serving.tuned import Tuned
from heliograph_site.surroundings import Pace, Server

log = logging.getLogger("heliograph.agent")


class Watch:
    """Compares what the server says with what the pointers say, often, and at once when a pointer changed.

    Args:
        tuned: what a model's active release is to answer with.
    """

    def __init__(
        self,
        server: Server,
        machines: Machines,
        reporter: Reporter,
        inbox: Inbox,
        tuned: Callable[[str], Tuned],
        untuned: asyncio.Event,
        pace: Pace,
    ) -> None:
        """`untuned` is set when a pointer's numbers changed."""
        self._server, self._machines, self._reporter, self._inbox = server, machines, reporter, inbox
        self._tuned, self._untuned, self._pace = tuned, untuned, pace

    async def run(self) -> None:
        """Looks again and again, for ever."""
        due = time.monotonic() + self._pace.metric_s
        while True:
            try:
                async with asyncio.timeout(self._pace.watch_s):
                    await self._untuned.wait()
            except TimeoutError:
                pass
            self._untuned.clear()
            try:
                rows = (await self._server.status()).get("models", {})
                await self.retune(rows)
            except TransportError:
                continue
            for model, memory in list(self._machines.memories.items()):
                row = rows.get(model) or {}
                active = memory.active
                if memory.is_stray(answers := bytes.fromhex(row.get("active") or "")):
                    await self._end(model, answers)
                if active is None or answers != active.release:
                    continue
                if row.get("state") == "failed":
                    reason = str(row.get("reason") or "the server gave it up")
                    await self._inbox.put(Answered(model, GivenUp(active.release, reason)))
            if time.monotonic() >= due:
                due = time.monotonic() + self._pace.metric_s
                self._reporter.metrics(rows)

    async def _end(self, model: str, release: bytes) -> None:
        log.warning("%s: %s answers, which nothing names any more: stopped", model, release.hex()[:12])
        try:
            await self._server.stop(model, release)
        except (RefusedError, TransportError) as error:
            log.info("not stopped: %s", error)  # another answers by now, or nobody does

    async def retune(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Has the server answer with the documents of the pointers, where it serves their releases with others.

        Raises:
            TransportError: no answer from the server; it is compared again.
        """
        for model, memory in list(self._machines.memories.items()):
            row, active = rows.get(model) or {}, memory.active
            if active is None or row.get("active") != active.release.hex():
                continue
            wanted = self._tuned(model)
            if row.get("tuned") != wanted.digest:
                try:
                    await self._server.tune(model, active.release, wanted)
                except RefusedError as error:
                    log.info("not tuned: %s", error)  # it serves another by now: that one came with its config
