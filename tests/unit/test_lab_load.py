"""`lab load`: requests leave when they are due, whatever becomes of those before, and each is counted once."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from heliograph.errors import NotFoundError, TransportError
from heliograph.lab import free_port
from heliograph.lab.load import Outcome, load

MODEL = {
    "inputs": [
        {"name": "image", "datatype": "FP32", "shape": [-1, 2, 2]},
        {"name": "word", "datatype": "BYTES", "shape": [1]},
        {"name": "flag", "datatype": "BOOL", "shape": [2]},
    ]
}
Answer = Callable[[dict[str, Any]], Awaitable[tuple[int, bytes] | None]]
"""What the node answers to a request: status and body; None: it hangs up in mid-answer."""


def loaded(answer: Answer, model: str = "digits", *, rps: float = 400.0, seconds: float = 0.05) -> Outcome:
    """What a load on a node made of this came to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                body = await reader.readexactly(int(head.partition("content-length: ")[2].split("\r\n")[0]))
                if head.startswith("GET"):
                    told = (200, json.dumps(MODEL).encode()) if "/v2/models/digits " in head else (404, b"{}")
                else:
                    assert head.startswith("POST /v2/models/digits/infer ")
                    found = await answer(json.loads(body))
                    if found is None:
                        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
                        return
                    told = found
                writer.write(f"HTTP/1.1 {told[0]} .\r\ncontent-length: {len(told[1])}\r\n\r\n".encode() + told[1])
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def run() -> Outcome:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await load(f"http://127.0.0.1:{port}", model, rps, seconds)

    return asyncio.run(run())


def test_requests_leave_when_they_are_due_whether_or_not_the_ones_before_were_answered() -> None:
    arrived: list[dict[str, Any]] = []
    all_there = asyncio.Event()

    async def answer(request: dict[str, Any]) -> tuple[int, bytes]:
        arrived.append(request)
        if len(arrived) == 20:
            all_there.set()
        await all_there.wait()
        return 200, b"{}"

    facts = loaded(answer).facts()
    assert (facts["sent"], facts["answered"], facts["failed"], facts["first_failure"]) == (20, 20, 0, None)
    assert 0 < facts["p50_ms"] <= facts["p95_ms"]
    assert arrived[0]["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": [1, 2, 2], "data": [0, 0, 0, 0]},
        {"name": "word", "datatype": "BYTES", "shape": [1], "data": [""]},
        {"name": "flag", "datatype": "BOOL", "shape": [2], "data": [False, False]},
    ]


def test_what_is_refused_or_broken_off_has_failed_and_the_first_reason_is_told() -> None:
    turn = iter(range(20))

    async def answer(_: dict[str, Any]) -> tuple[int, bytes] | None:
        match next(turn) % 4:
            case 0:
                return 503, b"overloaded"
            case 1:
                return None
            case _:
                return 200, b"{}"

    facts = loaded(answer).facts()
    assert (facts["sent"], facts["answered"], facts["failed"]) == (20, 10, 10)
    assert facts["first_failure"] in ("503 overloaded", "it hung up in mid-answer")


def test_of_several_reasons_the_first_is_kept() -> None:
    outcome = Outcome(sent=2)
    outcome.fail("503 overloaded")
    outcome.fail("it hung up in mid-answer")
    assert (outcome.failed, outcome.first_failure) == (2, "503 overloaded")


def test_without_an_answer_there_are_no_percentiles() -> None:
    async def answer(_: dict[str, Any]) -> tuple[int, bytes]:
        return 503, b""

    facts = loaded(answer, seconds=0.0).facts()
    assert (facts["sent"], facts["answered"], facts["p50_ms"], facts["p95_ms"]) == (1, 0, None, None)


def test_percentiles_are_those_of_what_was_answered() -> None:
    facts = Outcome(sent=101, took_ms=[float(number) for number in range(101)]).facts()
    assert (facts["p50_ms"], facts["p95_ms"]) == (50.0, 95.0)
    assert Outcome(sent=1, took_ms=[7.0]).facts()["p95_ms"] == 7.0


def test_a_node_that_is_not_there_and_a_model_that_it_does_not_serve_are_told() -> None:
    async def answer(_: dict[str, Any]) -> tuple[int, bytes]:
        raise AssertionError("nothing is asked of it")

    with pytest.raises(NotFoundError, match="serves no model faces now"):
        loaded(answer, "faces")
    with pytest.raises(TransportError, match=r"http://127\.0\.0\.1:\d+ does not answer"):
        asyncio.run(load(f"http://127.0.0.1:{free_port()}", "digits", 1, 1))
