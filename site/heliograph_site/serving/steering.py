"""The control API as functions: what the agent may ask of the server, over `DIR/control.sock` only.

    POST /control/check {"model", "release", "files"?, "timeout_s"?} -> {"ok": true, "cold_start_ms",
                                                "golden_max_error", "memory_bytes"} | {"ok": false, "reason"}
    POST /control/serve {"model", "release", "timeout_s"?, TUNED?}   -> {"ok": true, "duration_ms", "failed", "before"}
                                                                        | {"ok": false, "reason"}
    POST /control/tune  {"model", "release", TUNED}                  -> {"ok": true} | {"ok": false, "reason"}
    POST /control/drop  {"model", "release"}                         -> {"ok": true} | {"ok": false, "reason"}
    POST /control/stop  {"model", "release"?}                        -> {"ok": true} | {"ok": false, "reason"}
    GET  /control/status                                             -> {"pid", "http", "models": {…}}

A release is named by the hex digest of its manifest; to stop, where no other is meant. TUNED is `"config", "policy",
"content"`: the numbers of the tuple and what the config says; left out, there are no documents. What is not of this
form is answered with 400; 503 says nothing about the release: the server itself is in trouble, ask again.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from heliograph.errors import ConfigError, HeliographError, TransportError
from heliograph.names import check_name
from heliograph_site.serving.asgi import Answer, Handler
from heliograph_site.serving.gateway import refusal
from heliograph_site.serving.inference import RequestError, json_object
from heliograph_site.serving.server import Server
from heliograph_site.serving.tuned import parse_tuned

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_DEFAULT_S = 60.0
_LONGEST_S = 600.0


def steering(server: Server, facts: Mapping[str, Any]) -> Handler:
    """A handler for the control socket; `facts` are added to the status."""

    async def check(body: dict[str, Any]) -> dict[str, Any]:
        files = body.get("files")
        if files is not None:
            if not isinstance(files, dict):
                raise RequestError("files is not an object")
            files = {name: _digest(value, f"file {name}") for name, value in files.items()}
        return await server.check(*_named(body), files, _seconds(body))

    async def serve(body: dict[str, Any]) -> dict[str, Any]:
        return await server.serve(*_named(body), _seconds(body), parse_tuned(body))

    async def tune(body: dict[str, Any]) -> dict[str, Any]:
        await server.tune(*_named(body), parse_tuned(body))
        return {}

    async def drop(body: dict[str, Any]) -> dict[str, Any]:
        await server.drop(*_named(body))
        return {}

    async def stop(body: dict[str, Any]) -> dict[str, Any]:
        await server.stop(_model(body), _digest(body["release"], "release") if "release" in body else None)
        return {}

    acts: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
        "/control/check": check, "/control/serve": serve, "/control/drop": drop,
        "/control/stop": stop, "/control/tune": tune,
    }  # fmt: skip

    async def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if method == "GET" and path == "/control/status":
            return _json(200, {**server.status(), **facts})
        if method != "POST" or path not in acts:
            return refusal(404, "no-such-path", f"there is no {method[:10]} {path[:200]} on the control socket")
        try:
            return _json(200, {"ok": True, **await acts[path](json_object(body, "the request"))})
        except RequestError as error:
            return refusal(400, "bad-request", str(error))
        except TransportError as error:
            return refusal(503, "try-again", str(error))
        except HeliographError as error:
            return _json(200, {"ok": False, "reason": str(error)})

    return answer


def _named(body: dict[str, Any]) -> tuple[str, bytes]:
    return _model(body), _digest(body.get("release"), "release")


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str):
        raise RequestError("model is not text")
    try:
        return check_name(model, "model")
    except ConfigError as error:
        raise RequestError(str(error)) from error


def _digest(value: Any, what: str) -> bytes:
    if not isinstance(value, str) or not _HEX_DIGEST.fullmatch(value):
        raise RequestError(f"{what} is not named by 64 hex digits")
    return bytes.fromhex(value)


def _seconds(body: dict[str, Any]) -> float:
    value = body.get("timeout_s", _DEFAULT_S)
    if type(value) not in (int, float) or not 0 < value <= _LONGEST_S:
        raise RequestError(f"timeout_s is not a number of seconds up to {_LONGEST_S:g}")
    return float(value)


def _json(status: int, value: dict[str, Any]) -> Answer:
    return Answer(status, json.dumps(value, separators=(",", ":")).encode())
