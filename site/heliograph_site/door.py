"""Where a person at the site speaks to the running agent: `DIR/agent.sock`, for the folder's owner only.

One line of JSON in, `{"action", "model", "reason"}`, and one out, `{"ok": true, "outcome"}` or `{"ok": false,
"reason"}`. What may be done, and by whose authority, is decided in `orders`. Source: FORMATS.md, "agent.sock".
"""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from heliograph.errors import RefusedError, TransportError
from heliograph.unix import bind, short_path

DOOR_SOCKET = "agent.sock"
MAX_LINE_BYTES = 4096
READ_S = 5.0
ANSWER_S = 180.0
"""A drill goes back and forward again before it answers."""
_PEER = struct.Struct("3i")

Obey = Callable[[str, str, str], Awaitable[str]]
"""(action, model, reason) -> what came of it. Raises RefusedError."""


async def keep_door(folder: Path, obey: Obey) -> None:
    """Answers for ever, one line a connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_S):
                line = await reader.readline()
            said = await _answered(line, _uid(writer), obey)
            writer.write(json.dumps(said).encode() + b"\n")
            await writer.drain()
        except (TimeoutError, ValueError, OSError):
            pass  # whoever came says nothing, or too much, or has gone
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, sock=bind(folder / DOOR_SOCKET, 0o600), limit=MAX_LINE_BYTES)
    async with server:
        await server.serve_forever()


def knock(folder: Path, action: str, model: str, reason: str) -> str:
    """Tells the agent of the folder what is wanted, and returns what came of it.

    Raises:
        RefusedError: it isn't done; the message says why.
        TransportError: no agent runs on the folder, or it gave no answer.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(ANSWER_S)
    try:
        with short_path(folder / DOOR_SOCKET) as address:
            sock.connect(address)
        sock.sendall(json.dumps({"action": action, "model": model, "reason": reason}).encode() + b"\n")
        with sock.makefile("rb") as file:
            said: dict[str, Any] = json.loads(file.readline(1 << 16))
    except (OSError, ValueError) as error:
        raise TransportError(f"no agent answers on {folder}: run `heliograph node run` first") from error
    finally:
        sock.close()
    if not said.get("ok"):
        raise RefusedError(str(said.get("reason")))
    return str(said.get("outcome"))


async def _answered(line: bytes, uid: int, obey: Obey) -> dict[str, Any]:
    try:
        match json.loads(line):
            case {"action": str(action), "model": str(model), "reason": str(reason)}:
                return {
                    "ok": True,
                    "outcome": await obey(action, model, f"user {uid}: {reason}" if reason else f"user {uid}"),
                }
            case _:
                return {"ok": False, "reason": "say action, model and reason"}
    except RefusedError as error:
        return {"ok": False, "reason": str(error)}
    except (ValueError, RecursionError):
        return {"ok": False, "reason": "not a line of JSON"}


def _uid(writer: asyncio.StreamWriter) -> int:
    """The user at the other end."""
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(peer)[1])
