"""The Open Inference Protocol v2 over HTTP: which path means what, and what goes back. Knows no HTTP library.

Every failure is `{"error": one sentence, "reason": a word for programs}`. Statuses: 400 the request is wrong, 404 no
such model, version or path, 403 loading and unloading (a release's life decides those), 408 slow, 413 too large, 415 a
coding we don't take, 500 the runtime failed, 503 with Retry-After not now, 504 no answer in time. Every inference names
the release that gave it (`model_version`, header `heliograph-release`) and the numbers of the config and policy that it
serves with (`heliograph-config`, `heliograph-policy`); `GET /v2/models/{m}/config` gives that config to programs.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import unquote

from heliograph import __version__
from heliograph.errors import WaitError
from heliograph_site.serving.asgi import Answer
from heliograph_site.serving.inference import (
    HEADER_LENGTH,
    RequestError,
    match_inputs,
    match_outputs,
    parse_request,
    response,
)
from heliograph_site.serving.slot import ModelFailedError, Slot, UnavailableError, memory_bytes

EXTENSIONS: Final = ("binary_tensor_data", "model_repository(index)", "statistics")


class Serving(Protocol):
    """What the gateway needs of the server."""

    def models(self) -> tuple[str, ...]:
        """Names of all models this node runs."""

    def active(self, model: str) -> Slot | None:
        """The slot that answers for a model; None when there is none."""

    def is_known(self, model: str) -> bool:
        """Whether it is a model of this node, be there something that answers for it or not."""

    def unreadable(self) -> Mapping[str, str]:
        """Models whose active release can't even be described, and why."""


class Gateway:
    """Answers requests of applications."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The answer to any request."""
        try:
            match method, [unquote(part) for part in path.strip("/").split("/")]:
                case "POST", ["v2", "models", model, "infer"]:
                    return await self._infer(model, None, headers, body)
                case "POST", ["v2", "models", model, "versions", version, "infer"]:
                    return await self._infer(model, version, headers, body)
                case "GET", ["v2"]:
                    return _json(200, {"name": "heliograph", "version": __version__, "extensions": list(EXTENSIONS)})
                case "GET", ["v2", "health", "live"]:
                    return _json(200, {"live": True})
                case "GET", ["v2", "health", "ready"]:
                    return self._health()
                case "GET", ["v2", "models", model]:
                    return self._metadata(self._slot(model, None))
                case "GET", ["v2", "models", model, "versions", version]:
                    return self._metadata(self._slot(model, version))
                case "GET", ["v2", "models", model, "config"]:
                    return self._config(self._slot(model, None))
                case "GET", ["v2", "models", model, "ready"]:
                    return self._ready(self._slot(model, None))
                case "GET", ["v2", "models", model, "versions", version, "ready"]:
                    return self._ready(self._slot(model, version))
                case "GET", ["v2", "models", "stats"]:
                    return self._stats(self._slots())
                case "GET", ["v2", "models", model, "stats"]:
                    return self._stats([self._slot(model, None)])
                case "GET", ["v2", "models", model, "versions", version, "stats"]:
                    return self._stats([self._slot(model, version)])
                case "POST", ["v2", "repository", "index"]:
                    return self._index()
                case "POST", ["v2", "repository", "models", _, ("load" | "unload") as act]:
                    return refusal(403, "not-offered", f"models don't {act} by request: a release's life decides that")
                case _:
                    return refusal(404, "no-such-path", f"there is no {method[:10]} {path[:200]} here; see /v2")
        except RequestError as error:
            return refusal(400, "bad-request", str(error))
        except _UnknownError as error:
            return refusal(404, "unknown-model", str(error))
        except UnavailableError as error:
            return refusal(503, error.reason, str(error), error.retry_after_s)
        except ModelFailedError as error:
            return refusal(500, "model-failed", str(error))
        except WaitError as error:
            return refusal(504, "timeout", str(error))

    async def _infer(self, model: str, version: str | None, headers: Mapping[str, str], body: bytes) -> Answer:
        slot = self._slot(model, version)
        if not slot.inputs:
            raise UnavailableError(f"model-{slot.state}", _why_not(slot), 2)
        if headers.get("content-encoding", "identity") != "identity":
            return refusal(415, "coding", f"content-encoding {headers['content-encoding'][:40]} is not taken here")
        request = parse_request(body, headers.get(HEADER_LENGTH))
        inputs = match_inputs(request, slot.inputs)
        wanted = match_outputs(request, slot.outputs)
        tuned = slot.tuned
        outputs = await slot.infer(inputs)
        content, json_length = response(model, slot.manifest.version, request.id, outputs, wanted)
        named = (("heliograph-release", slot.release.hex()), *tuned.headers)
        if json_length is None:
            return Answer(200, content, named)
        return Answer(200, content, (*named, (HEADER_LENGTH, str(json_length))), "application/octet-stream")

    def _slot(self, model: str, version: str | None) -> Slot:
        slot = self._serving.active(model)
        if slot is None:
            why = self._serving.unreadable().get(model)
            if why is not None:
                raise UnavailableError("model-failed", why, 5)
            names = self._serving.models()
            if not names:
                raise UnavailableError("nothing-loaded", "no release is active on this node yet", 5)
            if self._serving.is_known(model):
                raise UnavailableError(
                    "nothing-active", f"no release of {model} is active: it was stopped, or none has passed yet", 5
                )
            raise _UnknownError(f"there is no model {model[:80]!r} here; there is {', '.join(names)}")
        if version is not None and version != slot.manifest.version:
            raise _UnknownError(f"{model} {version[:40]!r} is not what serves; {slot.manifest.version} is")
        return slot

    def _health(self) -> Answer:
        slots = [self._serving.active(name) for name in self._serving.models()]
        reasons = [_why_not(slot) for slot in slots if slot is not None and slot.state != "ready"]
        reasons += self._serving.unreadable().values()
        if not slots:
            reasons = ["no release is active on this node yet"]
        if not reasons:
            return _json(200, {"ready": True})
        return _json(503, {"ready": False, "error": "; ".join(reasons), "reason": "not-ready"}, _retry(2))

    def _metadata(self, slot: Slot) -> Answer:
        if not slot.inputs:
            raise UnavailableError(f"model-{slot.state}", _why_not(slot), 2)
        specs = [
            [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in side]
            for side in (slot.inputs, slot.outputs)
        ]
        name, version = slot.manifest.model, slot.manifest.version
        described = {"name": name, "versions": [version], "platform": "tflite", "inputs": specs[0], "outputs": specs[1]}
        return _json(200, described)

    def _config(self, slot: Slot) -> Answer:
        tuned = slot.tuned
        said = {
            "name": slot.manifest.model,
            "version": slot.manifest.version,
            "release": slot.release.hex(),
            "config": tuned.config,
            "policy": tuned.policy,
            **tuned.content,
        }
        return _json(200, said, tuned.headers)

    def _ready(self, slot: Slot) -> Answer:
        if slot.state == "ready":
            return _json(200, {"name": slot.manifest.model, "ready": True})
        said = {"name": slot.manifest.model, "ready": False, "error": _why_not(slot), "reason": f"model-{slot.state}"}
        return _json(503, said, _retry(2))

    def _stats(self, slots: list[Slot]) -> Answer:
        return _json(200, {"model_stats": [_statistics(slot) for slot in slots]})

    def _index(self) -> Answer:
        rows = [
            {
                "name": slot.manifest.model,
                "version": slot.manifest.version,
                "state": "READY" if slot.state == "ready" else "UNAVAILABLE",
                "reason": slot.reason,
            }
            for slot in self._slots()
        ]
        for name, why in self._serving.unreadable().items():
            rows.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": why})
        return _json(200, rows)

    def _slots(self) -> list[Slot]:
        found = (self._serving.active(name) for name in self._serving.models())
        return [slot for slot in found if slot is not None]


class _UnknownError(Exception):
    """No such model or version here."""


def refusal(status: int, reason: str, sentence: str, retry_after_s: int = 1) -> Answer:
    """A failure as every caller gets it."""
    return _json(status, {"error": sentence, "reason": reason}, _retry(retry_after_s) if status == 503 else ())


def _why_not(slot: Slot) -> str:
    return f"{slot.manifest.release} is {slot.state}" + (f": {slot.reason}" if slot.reason else "")


def _statistics(slot: Slot) -> dict[str, Any]:
    """Triton's form, and what we know beyond it."""
    meter = slot.meter
    answered = meter.requests - meter.errors
    return {
        "name": slot.manifest.model,
        "version": slot.manifest.version,
        "inference_count": answered,
        "execution_count": answered,
        "inference_stats": {
            "success": {"count": answered, "ns": meter.busy_ns},
            "fail": {"count": meter.errors, "ns": meter.failed_ns},
        },
        "latency_ms": meter.latency_ms(),
        "restarts": slot.restarts,
        "memory_bytes": memory_bytes(slot.pid),
        "release": slot.release.hex(),
    }


def _retry(seconds: int) -> tuple[tuple[str, str], ...]:
    return (("retry-after", str(seconds)),)


def _json(status: int, value: Any, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, json.dumps(value, separators=(",", ":")).encode(), headers)
