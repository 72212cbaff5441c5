"""The agent's line to the server: HTTP and JSON over `DIR/control.sock`.

Calls name the state to reach, so that making one twice is harmless. None of them is on the path of a request.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heliograph.errors import RefusedError, TransportError
from heliograph.unix import short_path
from heliograph_site.serving.tuned import Tuned

_ANSWER_S = 5.0
"""On top of what the call itself may take."""
_MAX_ANSWER_BYTES = 4 << 20


class ServerControl:
    """Steers the server process."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    async def check(
        self, model: str, release: bytes, files: Mapping[str, bytes] | None = None, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """Loads the release into a spare worker and runs its golden requests; the worker stays warm.

        Args:
            model: whose release it is.
            release: digest of its manifest, which stands in the object store with all its files.
            files: digests by file name, if they are to be compared with the manifest's.
            timeout_s: loading and golden requests together.

        Returns:
            `cold_start_ms`, `golden_max_error` and `memory_bytes` (PSS of the worker).

        Raises:
            RefusedError: the release does not load or does not answer as it must; the message says why.
            TransportError: no answer from the server: it is down, or was restarted meanwhile.
        """
        body = {"model": model, "release": release.hex(), "timeout_s": timeout_s}
        if files is not None:
            body["files"] = {name: digest.hex() for name, digest in files.items()}
        return await self._call("POST", "/control/check", body, timeout_s)

    async def serve(
        self, model: str, release: bytes, timeout_s: float = 60.0, tuned: Tuned | None = None
    ) -> dict[str, Any]:
        """Makes the release the one that answers, with its config. The one before stays warm; no request fails.

        Returns:
            `duration_ms` (null if it answered already), `failed` requests of the release before during the switch, and
            `before`: its `release`, and the requests it got in its turn: `answered`, `failed`, `in_flight`.

        Raises:
            RefusedError: it can't serve; what answered before goes on.
            TransportError: no answer from the server.
        """
        body = {"model": model, "release": release.hex(), "timeout_s": timeout_s, **(tuned or Tuned()).row()}
        return await self._call("POST", "/control/serve", body, timeout_s)

    async def tune(self, model: str, release: bytes, tuned: Tuned) -> None:
        """Has the release, which answers, answer with this config from now on.

        Raises:
            RefusedError: another release answers.
            TransportError: no answer from the server.
        """
        await self._call("POST", "/control/tune", {"model": model, "release": release.hex(), **tuned.row()}, 0.0)

    async def drop(self, model: str, release: bytes) -> dict[str, Any]:
        """Ends the spare or standby worker of the release, if there is one.

        Raises:
            RefusedError: it is the active one.
            TransportError: no answer from the server.
        """
        return await self._call("POST", "/control/drop", {"model": model, "release": release.hex()}, 0.0)

    async def stop(self, model: str, release: bytes | None = None) -> None:
        """Has nothing of the model answer any more; done already if nothing does.

        Args:
            model: which.
            release: only if this is what answers.

        Raises:
            RefusedError: another release answers than the one named.
            TransportError: no answer from the server.
        """
        body = {"model": model} if release is None else {"model": model, "release": release.hex()}
        await self._call("POST", "/control/stop", body, 0.0)

    async def status(self) -> dict[str, Any]:
        """What the server serves, and how.

        Raises:
            TransportError: no answer from the server.
        """
        return await self._call("GET", "/control/status", {}, 0.0)

    async def _call(self, method: str, path: str, body: Mapping[str, Any], takes_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(takes_s + _ANSWER_S):
                status, answer = await self._exchange(method, path, json.dumps(body).encode())
        except TimeoutError:
            raise TransportError(f"the server gave no answer to {path} in {takes_s + _ANSWER_S:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise TransportError(f"the server can't be reached at {self._path}: {error}") from error
        if status >= 500:
            raise TransportError(f"the server can't now: {answer.get('error')}")
        if status >= 400 or answer.get("ok") is False:
            raise RefusedError(str(answer.get("reason") or answer.get("error") or f"the server answered {status}"))
        return answer

    async def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        with short_path(self._path) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        try:
            head = (
                f"{method} {path} HTTP/1.1\r\nhost: server\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            length = int(headers["content-length"])
            if length > _MAX_ANSWER_BYTES:
                raise ValueError(f"an answer of {length} bytes")
            answer = json.loads(await reader.readexactly(length))
        except (KeyError, IndexError, asyncio.LimitOverrunError) as error:
            raise ValueError(f"not an answer: {error}") from error
        finally:
            writer.close()
        if not isinstance(answer, dict):
            raise ValueError("not an answer: no object")
        return int(lines[0].split(" ")[1]), answer
