"""[IO] Open-loop load on a node: requests leave when they are due, whether or not the ones before were answered."""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from heliograph.errors import NotFoundError, TransportError

MOST_WAITING = 256
"""Requests on their way at once; what is due beyond that has failed."""
PATIENCE_S = 10.0


@dataclass
class Outcome:
    """What became of the requests; latencies count from when each was due."""

    sent: int = 0
    failed: int = 0
    first_failure: str = ""
    took_ms: list[float] = field(default_factory=list)

    def fail(self, why: str) -> None:
        """Counts one more, and keeps the first reason."""
        self.failed += 1
        self.first_failure = self.first_failure or why

    def facts(self) -> dict[str, Any]:
        """Counts, p50 and p95 of what was answered (None without any)."""
        cuts = statistics.quantiles(self.took_ms, n=20, method="inclusive") if len(self.took_ms) > 1 else self.took_ms
        return {
            "sent": self.sent,
            "answered": len(self.took_ms),
            "failed": self.failed,
            "first_failure": self.first_failure or None,
            "p50_ms": round(statistics.median(self.took_ms), 3) if self.took_ms else None,
            "p95_ms": round(cuts[-1], 3) if cuts else None,
        }


class _Caller:
    """Keeps connections to one node and sends requests on them."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.host, self.port = place.hostname or "127.0.0.1", place.port or 80
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body. Raises OSError, also if the other side hung up."""
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection(self.host, self.port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nhost: node\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(answer.partition("content-length:")[2].split("\r\n")[0] or 0)
            data = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            writer.close()
            raise ConnectionError("it hung up in mid-answer") from error
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        return int(answer.split()[1]), data

    def close(self) -> None:
        """Closes what is free."""
        for _, writer in self._free:
            writer.close()


async def load(url: str, model: str, rps: float, seconds: float) -> Outcome:
    """Asks the model `rps` times a second with zeros of its own input shapes.

    Raises:
        NotFoundError: the node serves no such model now.
        TransportError: the node doesn't answer at all.
    """
    caller = _Caller(url)
    outcome = Outcome()
    try:
        body = await _request(caller, url, model)
        tasks: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(max(1, round(rps * seconds))):
                due = began + number / rps
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                outcome.sent += 1
                if len(tasks) >= MOST_WAITING:
                    outcome.fail(f"{MOST_WAITING} requests wait already")
                    continue
                task = group.create_task(_one(caller, f"/v2/models/{model}/infer", body, due, outcome))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    finally:
        caller.close()
    return outcome


async def _request(caller: _Caller, url: str, model: str) -> bytes:
    try:
        async with asyncio.timeout(PATIENCE_S):
            status, data = await caller.call("GET", f"/v2/models/{model}")
    except (OSError, TimeoutError) as error:
        raise TransportError(f"{url} does not answer: {error or 'no byte in time'}") from error
    if status != 200:
        raise NotFoundError(f"{url} serves no model {model} now")
    inputs = []
    for tensor in json.loads(data)["inputs"]:
        shape = [max(1, int(size)) for size in tensor["shape"]]
        count = 1
        for size in shape:
            count *= size
        zero: object = {"BYTES": "", "BOOL": False}.get(tensor["datatype"], 0)
        inputs.append({"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": [zero] * count})
    return json.dumps({"inputs": inputs}).encode()


async def _one(caller: _Caller, path: str, body: bytes, due: float, outcome: Outcome) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            status, data = await caller.call("POST", path, body)
    except (OSError, TimeoutError) as error:
        outcome.fail(str(error) or f"no answer within {PATIENCE_S:g} s")
        return
    if status != 200:
        outcome.fail(f"{status} {data[:200].decode(errors='replace')}")
        return
    outcome.took_ms.append((time.monotonic() - due) * 1000)
