"""A slot of the server: one release, loaded in a worker of its own, kept alive.

Readiness is earned at every load: the worker read bytes of the signed digest, the runtime took them, and every golden
request gave its expected outputs. A worker that ends is started again after a growing pause; a release whose bytes or
outputs are wrong is not.
"""

import asyncio
import platform
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from heliograph.blob import Digest
from heliograph.errors import (
    ConfigError,
    HeliographError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    TransportError,
    WaitError,
)
from heliograph.manifest import File, Manifest, Variant
from heliograph_site.holdings import Holding
from heliograph_site.serving import golden
from heliograph_site.serving.admission import Limits, admit
from heliograph_site.serving.inference import (
    DATATYPES,
    RequestError,
    Tensor,
    TensorSpec,
    check_raw,
    match_inputs,
)
from heliograph_site.serving.meter import Meter
from heliograph_site.serving.spawn import Forks, Reply, Worker, WorkerDiedError
from heliograph_site.serving.tuned import Tuned

State = Literal["loading", "ready", "restarting", "failed", "closed"]
_DEPTH = 4
"""Requests in a worker's socket at once: it never waits for the gateway between two."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_CALM_S = 60.0
"""A worker that ran so long before it ended starts again after the shortest pause."""


class UnavailableError(TransportError):
    """The model can't answer now; `reason` is for programs."""

    def __init__(self, reason: str, sentence: str, retry_after_s: int = 1) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ModelFailedError(HeliographError):
    """The runtime failed on a well-formed request."""


class Files(Protocol):
    """What a slot needs of the node's holdings."""

    def read(self, file: Digest) -> bytes:
        """The verified plain bytes of a file, or of a manifest."""

    def find(self, file: Digest) -> Holding | None:
        """Where the file lies, and what opens it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What loading showed."""

    cold_start_ms: float
    golden_max_error: float
    memory_bytes: int


@dataclass(slots=True, eq=False)
class _Job:
    head: dict[str, Any]
    parts: list[bytes | memoryview]
    future: asyncio.Future[Reply]
    sent: asyncio.Future[Reply] | None = field(default=None)


class Slot:
    """One release in one worker."""

    def __init__(self, release: Digest, manifest: Manifest, files: Files, forks: Forks, limits: Limits) -> None:
        self.release = release
        self.manifest = manifest
        self.state: State = "loading"
        self.reason = ""
        """Why it is not ready; empty when it is."""
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.runtime = ""
        self.measured: Measured | None = None
        self.meter = Meter()
        self.tuned = Tuned()
        """What it answers with; set before it answers."""
        self.began_ns = time.monotonic_ns()
        """When the meter began to count: two looks at one meter show the same."""
        self.restarts = 0
        self._turn = (0, 0)
        self._first_at: float | None = None
        self._files = files
        self._forks = forks
        self._limits = limits
        self._worker: Worker | None = None
        self._queue: deque[_Job] = deque()
        self._sent: deque[_Job] = deque()
        self._waiting = 0
        self._restart_at = 0.0
        self._stuck: asyncio.TimerHandle | None = None
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- life -----------------------------------------------------------------------------------------------------

    async def load(self) -> Measured:
        """Forks a worker, has it load the model, and runs the golden requests; ready when this returns.

        Raises:
            IntegrityError: bytes are not those the manifest names.
            RefusedError: the runtime refuses the model, a golden output is wrong, or this node can't run any variant.
            WorkerDiedError: the model crashed its worker.
            TransportError: no worker could be forked, the forkserver ended, or the node's key, which a confidential
                release needs, can't be had now; says nothing about the release.
        """
        variant = self._variant()
        model = self.manifest.file(variant.files[0])
        begin = time.monotonic()
        try:
            held, cases = await asyncio.to_thread(self._found, model)
        except NotFoundError as error:
            raise IntegrityError(f"{self.manifest.release}: {error}") from error
        except ConfigError as error:
            raise TransportError(f"{self.manifest.release} is sealed: {error}") from error
        worker = await self._forks.fork(self._answered)
        try:
            head, _ = await worker.call(
                {
                    "op": "load",
                    "path": str(held.path),
                    "key": held.key,
                    "sha256": model.sha256,
                    "length": model.length,
                    "threads": 1,
                }
            )
            self._raise_for(head)
            self.inputs, self.outputs = _specs(head.get("inputs")), _specs(head.get("outputs"))
            self.runtime = str(head.get("runtime"))[:80]
            cold_start_ms = (time.monotonic() - begin) * 1000
            worst = 0.0
            for at, case in enumerate(cases):
                try:
                    inputs = match_inputs(case.request, self.inputs)
                except RequestError as error:
                    raise golden.GoldenError(f"golden request {at}: {error}") from error
                future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
                worker.send(_infer_head(inputs), [tensor.data for tensor in inputs], future)
                outputs = self._outputs(await future)
                tolerance = self.manifest.golden.tolerance
                worst = max(worst, await asyncio.to_thread(golden.compare, at, case.expected, outputs, tolerance))
            measured = Measured(round(cold_start_ms, 1), worst, memory_bytes(worker.pid))
        except WorkerDiedError as error:
            raise WorkerDiedError(f"{error} while loading {self.manifest.release}") from error
        except BaseException:
            worker.kill("loading was given up")
            raise
        if self._closing.is_set():
            worker.kill("the slot was closed")
            raise RefusedError(f"{self.manifest.release} was dropped while it loaded")
        self._worker, self.measured, self.state, self.reason = worker, measured, "ready", ""
        self._pump()
        return measured

    async def keep(self) -> None:
        """Starts the worker again whenever it ends, until `close`. Call once, after a `load` that succeeded."""
        pause = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            if (worker := self._worker) is not None:
                began = loop.time()
                await worker.ended.wait()
                if self._closing.is_set():
                    return
                self._worker_ended(worker)
                if loop.time() - began >= _CALM_S:
                    pause = _FIRST_PAUSE_S
            self.restarts += 1
            self._restart_at = loop.time() + pause
            try:
                async with asyncio.timeout(pause):
                    await self._closing.wait()
                return
            except TimeoutError:
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            try:
                await self.load()
            except (WorkerDiedError, TransportError) as error:
                self.reason = str(error)
            except HeliographError as error:
                if not self._closing.is_set():
                    self.fail(str(error))
                return

    def interrupted(self, reason: str) -> None:
        """The first load ended by accident, not by a fault of the release: `keep` will try again."""
        self.state, self.reason = "restarting", reason

    def fail(self, reason: str) -> None:
        """The release does not serve: its bytes or its outputs are wrong."""
        self.state, self.reason = "failed", reason
        self._refuse_all("model-failed")

    def close(self) -> None:
        """Ends the worker; requests still here are told so. Idempotent."""
        if self.state != "closed":
            self.state, self.reason = "closed", "dropped"
            self._closing.set()
            if self._worker is not None:
                self._worker.kill("the release was dropped")
                self._worker = None
            self._refuse_all("dropped")

    async def drained(self) -> None:
        """Returns when no admitted request waits for an answer."""
        await self._idle.wait()

    def begin_turn(self) -> None:
        """From now on it is the one that answers."""
        self._turn, self._first_at = (self.meter.requests, self.meter.errors), None

    def turn(self) -> dict[str, Any]:
        """What became of the requests it got since then, and seconds since the first of them came (None: none did)."""
        requests, errors = self.meter.requests - self._turn[0], self.meter.errors - self._turn[1]
        return {
            "answered": requests - errors,
            "failed": errors,
            "in_flight": self._waiting,
            "first_request_s": None if self._first_at is None else round(time.monotonic() - self._first_at, 3),
        }

    @property
    def waiting(self) -> int:
        """Requests admitted and not answered."""
        return self._waiting

    @property
    def pid(self) -> int | None:
        """The worker's process, if it runs."""
        return self._worker.pid if self._worker is not None else None

    # --- requests -------------------------------------------------------------------------------------------------

    async def infer(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs in the model's order for inputs that `match_inputs` returned.

        Raises:
            UnavailableError: not now.
            ModelFailedError: the runtime failed on them.
            WaitError: no answer in time.
        """
        if self.state in ("failed", "closed"):
            raise UnavailableError(f"model-{self.state}", f"{self.manifest.release} does not serve: {self.reason}", 5)
        loop = asyncio.get_running_loop()
        refusal = admit(self.manifest.model, self._waiting, self._pause_left(), self._limits)
        if refusal is not None:
            raise UnavailableError(refusal.reason, refusal.sentence, refusal.retry_after_s)
        began = time.monotonic_ns()
        if self._first_at is None:
            self._first_at = began / 1e9
        job = _Job(_infer_head(inputs), [tensor.data for tensor in inputs], loop.create_future())
        self._waiting += 1
        self._idle.clear()
        self._queue.append(job)
        self._pump()
        try:
            async with asyncio.timeout(self._limits.request_s):
                reply = await job.future
            outputs = self._outputs(reply)
        except TimeoutError:
            self._forget(job)
            self.meter.failed(time.monotonic_ns() - began)
            raise WaitError(f"{self.manifest.model} gave no answer within {self._limits.request_s:g} s") from None
        except WorkerDiedError as error:
            self.meter.failed(time.monotonic_ns() - began)
            raise UnavailableError("worker-died", f"{self.manifest.release}: {error}") from error
        except RefusedError as error:
            self.meter.failed(time.monotonic_ns() - began)
            raise ModelFailedError(f"{self.manifest.release}: {error}") from error
        except (asyncio.CancelledError, UnavailableError):
            self._forget(job)
            self.meter.failed(time.monotonic_ns() - began)
            raise
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._idle.set()
        self.meter.answered(time.monotonic_ns() - began)
        return outputs

    def _pause_left(self) -> float:
        if self.state != "restarting":
            return 0.0
        return max(0.0, self._restart_at - asyncio.get_running_loop().time())

    def _pump(self) -> None:
        """Sends what the worker has room for."""
        worker = self._worker
        if worker is None or worker.ended.is_set():
            return
        while self._queue and len(self._sent) < _DEPTH:
            job = self._queue.popleft()
            if job.future.done():
                continue
            job.sent = asyncio.get_running_loop().create_future()
            self._sent.append(job)
            worker.send(job.head, job.parts, job.sent)
            if len(self._sent) == 1:
                self._watch(worker)

    def _answered(self) -> None:
        """The worker answered the oldest request sent (or, while loading, one that is none of ours)."""
        while self._sent and (sent := self._sent[0].sent) is not None and sent.done():
            job = self._sent.popleft()
            if sent.exception() is None and not job.future.done():
                job.future.set_result(sent.result())
        if self._worker is not None:
            self._watch(self._worker)
            self._pump()

    def _watch(self, worker: Worker) -> None:
        """The request at the head of the worker has `request_s` from now; a worker that takes longer is stuck."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        if self._sent:
            limit_s = self._limits.request_s
            self._stuck = asyncio.get_running_loop().call_later(
                limit_s, worker.kill, f"worker was busy with one request for more than {limit_s:g} s"
            )

    def _worker_ended(self, worker: Worker) -> None:
        """The request it worked at fails; those behind it wait for the next worker, none was begun."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        self._worker, self.state, self.reason = None, "restarting", worker.cause
        begun, *behind = self._sent or [None]
        self._sent.clear()
        for job in behind:
            assert job is not None and job.sent is not None
            job.sent.exception()  # seen: the job is sent again
            job.sent = None
        self._queue.extendleft(job for job in reversed(behind) if job is not None)
        if begun is not None:
            assert begun.sent is not None
            begun.sent.exception()
            if not begun.future.done():
                begun.future.set_exception(WorkerDiedError(worker.cause))

    def _forget(self, job: _Job) -> None:
        job.future.cancel()
        try:
            self._queue.remove(job)
        except ValueError:
            pass

    def _refuse_all(self, reason: str) -> None:
        for job in (*self._sent, *self._queue):
            if not job.future.done():
                sentence = f"{self.manifest.release} does not serve: {self.reason}"
                job.future.set_exception(UnavailableError(reason, sentence))
        self._queue.clear()
        self._sent.clear()

    # --- what loading needs ---------------------------------------------------------------------------------------

    def _variant(self) -> Variant:
        machine = platform.machine()
        for variant in self.manifest.variants:
            if (
                variant.runtime == "tflite"
                and variant.accelerator == "cpu"
                and (machine in (variant.arch or (machine,)))
            ):
                return variant
        raise RefusedError(f"{self.manifest.release} has no variant for tflite on {machine} without an accelerator")

    def _found(self, model: File) -> tuple[Holding, tuple[golden.Case, ...]]:
        """Where the model lies, and the golden requests."""
        held = self._files.find(Digest(model.sha256))
        if held is None:
            raise IntegrityError(f"{self.manifest.release}: {model.name} is not held, or not sealed to this node's key")
        return held, self._golden()

    def _golden(self) -> tuple[golden.Case, ...]:
        named = self.manifest.golden
        inputs, outputs = (self.manifest.file(name).sha256 for name in (named.inputs, named.outputs))
        return golden.parse(self._files.read(Digest(inputs)), self._files.read(Digest(outputs)))

    def _raise_for(self, head: dict[str, Any]) -> None:
        if "error" in head:
            sentence = f"{self.manifest.release}: {str(head['error'])[:400]}"
            raise IntegrityError(sentence) if head.get("kind") == "integrity" else RefusedError(sentence)

    def _outputs(self, reply: Reply) -> tuple[Tensor, ...]:
        """The tensors in a worker's answer, each checked against what the model said it gives."""
        head, body = reply
        self._raise_for(head)
        shapes, sizes = head.get("shapes"), head.get("sizes")
        if (
            not isinstance(shapes, list)
            or not isinstance(sizes, list)
            or not len(shapes) == len(sizes) == len(self.outputs)
            or not all(type(size) is int and size >= 0 for size in sizes)
            or sum(sizes) != len(body)
        ):
            raise RefusedError("the worker's answer does not hold the model's outputs")
        at, tensors = 0, []
        for spec, shape, size in zip(self.outputs, shapes, sizes, strict=True):
            if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
                raise RefusedError(f"the worker's answer gives no shape for output {spec.name}")
            check_raw(f"output {spec.name}", spec.datatype, shape, body[at : at + size])
            tensors.append(Tensor(spec.name, spec.datatype, tuple(shape), body[at : at + size]))
            at += size
        return tuple(tensors)


def memory_bytes(pid: int | None) -> int:
    """Proportional set size of a process; 0 if it is gone or the kernel doesn't tell."""
    if pid is None:
        return 0
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _infer_head(inputs: Sequence[Tensor]) -> dict[str, Any]:
    return {
        "op": "infer",
        "shapes": [tensor.shape for tensor in inputs],
        "sizes": [len(tensor.data) for tensor in inputs],
    }


def _specs(value: Any) -> tuple[TensorSpec, ...]:
    """Specs as a worker states them."""
    if not isinstance(value, list) or not value:
        raise RefusedError("the worker does not say what the model takes and gives")
    specs = []
    for item in value:
        match item:
            case [str(name), str(datatype), list(shape)] if datatype in DATATYPES and all(
                type(n) is int for n in shape
            ):
                specs.append(TensorSpec(name, datatype, tuple(shape)))
            case _:
                raise RefusedError("the worker does not say what the model takes and gives")
    return tuple(specs)
