"""What requests and answers are made of: bodies, their fields, errors."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from heliograph.errors import ConfigError, HeliographError, RefusedError

MAX_BODY_BYTES = 160 * 1024
"""Room for the largest policy in hex, with its signatures."""
_STATUS = {2: 400, 3: 404, 4: 409, 5: 504}
"""HTTP status by the family's exit code; 503 otherwise."""

Answer = Any
Action = Callable[[Request, dict[str, Any]], Awaitable[Answer]]
Routes = list[tuple[str, str, Action]]
"""Method, path, and what does it with the request and its body."""


def endpoint(action: Action) -> Callable[[Request], Awaitable[Response]]:
    """An action as an ASGI endpoint."""

    async def answer(request: Request) -> Response:
        body = await _body(request) if request.method == "POST" else {}
        return JSONResponse(await action(request, body))

    return answer


async def _body(request: Request) -> dict[str, Any]:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise ConfigError(f"request body exceeds {MAX_BODY_BYTES} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError("request body is not JSON") from error
    if not isinstance(value, dict):
        raise ConfigError("request body is not a JSON object")
    return value


async def on_error(_request: Request, error: Exception) -> Response:
    """A refusal of ours, with its family."""
    assert isinstance(error, HeliographError)
    status = _STATUS.get(error.exit_code, 503)
    # Families of the hub's own are sent as the shared one they belong to.
    kind = next(c.__name__ for c in type(error).__mro__ if c.__module__ == HeliographError.__module__)
    return JSONResponse({"error": str(error), "kind": kind}, status)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses."""
    assert isinstance(error, HTTPException)
    message = f"the hub's API has no {request.method} {request.url.path}"
    return JSONResponse({"error": message, "kind": "NotFoundError"}, error.status_code)


def text(body: dict[str, Any], name: str) -> str:
    """A field that must be text."""
    value = body.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"{name} is missing from the request")
    return value


def optional_text(body: dict[str, Any], name: str) -> str | None:
    """A field that is text, or is left out."""
    return None if body.get(name) is None else text(body, name)


def texts(body: dict[str, Any], name: str) -> list[str]:
    """A field that must be a list of text."""
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} is not a list of text")
    return value


def bytes_of(name: str) -> bytes:
    """The bytes that `name` is the lower-case hex of, or none."""
    return bytes.fromhex(name) if re.fullmatch(r"([0-9a-f]{2})*", name) else b""


def hex_of(body: dict[str, Any], name: str, length: int | None = None) -> bytes:
    """A field that must be hex, of so many bytes."""
    try:
        value = bytes.fromhex(text(body, name))
    except ValueError as error:
        raise ConfigError(f"{name[:100]} is not hex") from error
    if length is not None and len(value) != length:
        raise RefusedError(f"{name} has {len(value)} bytes, expected {length}")
    return value


def number(request: Request, name: str, default: int, most: int) -> int:
    """A number of the query, at most so large.

    Raises:
        ConfigError: it is none.
    """
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 30:
        raise ConfigError(f"{name} is not a number of 0 or more")
    return min(int(text), most)


def now() -> int:
    """This second."""
    import time

    return int(time.time())


def link(is_up: bool) -> str:
    """A link, for people."""
    return "up" if is_up else "down"
