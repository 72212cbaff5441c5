"""The HTTP front as a thin ASGI application: reads a bounded body, calls a function, writes its answer.

Everything that knows the protocol is below (`gateway`, `steering`); another HTTP front calls the same functions.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

_DISCARD_S = 5.0
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"


@dataclass(slots=True)
class Bodies:
    """Bytes of request bodies held at once, and their bounds."""

    each: int
    all: int
    read_s: float
    """Longest that a caller may take to send a request."""
    held: int = field(default=0)


Handler = Callable[[str, str, Mapping[str, str], bytes], Awaitable[Answer]]
"""Called with method, path, headers (names in lower case) and body."""
Refuse = Callable[[int, str, str], Answer]
"""Makes the answer to a request that is not read: status, reason for programs, sentence."""


def application(handler: Handler, refuse: Refuse, bodies: Bodies) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI application that serves HTTP with `handler`."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        held = [0]
        body: bytes | tuple[int, str, str] | None
        try:
            try:
                async with asyncio.timeout(bodies.read_s):
                    body = await _read(headers, receive, bodies, held)
            except TimeoutError:
                body = (408, "slow", f"the request was not here within {bodies.read_s:g} s")
            if body is None:
                return
            if isinstance(body, tuple):
                answer, close = refuse(*body), True
            else:
                answer, close = await handler(scope["method"], scope["path"], headers, body), False
        finally:
            bodies.held -= held[0]
        lines = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers),
        ]
        if close:  # what was not read can't be told from a next request
            lines.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": lines})
        await send({"type": "http.response.body", "body": answer.body, "more_body": close})
        if close:
            await _discard(receive, bodies)
            await send({"type": "http.response.body", "body": b""})

    return serve


async def _discard(receive: Receive, bodies: Bodies) -> None:
    """Reads on without keeping, for a while: a caller that still sends would see a reset instead of the answer."""
    left = bodies.each
    try:
        async with asyncio.timeout(_DISCARD_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _read(
    headers: Mapping[str, str], receive: Receive, bodies: Bodies, held: list[int]
) -> bytes | tuple[int, str, str] | None:
    """The body, or why it is refused (status, reason, sentence), or None when the caller left."""
    too_large = (413, "too-large", f"the request has more than {bodies.each} bytes")
    stated = headers.get("content-length", "")
    if stated.isdigit() and (len(stated) > 18 or int(stated) > bodies.each):
        return too_large
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        parts.append(part)
        held[0] += len(part)
        bodies.held += len(part)
        if held[0] > bodies.each:
            return too_large
        if bodies.held > bodies.all:
            return (503, "too-much-data", "too many bytes of requests are held already; try again in a second")
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
