"""The gateway's side of its workers: starts the forkserver, has it fork, and speaks frames with each worker.

A worker that ends is an event: whoever waits for its answer gets `WorkerDiedError` with the cause, and `Worker.ended`
is set. A forkserver that ends takes its workers with it and is started again at the next fork.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from heliograph.errors import HeliographError, IntegrityError, TransportError
from heliograph.wire import unpack
from heliograph_site.serving.frames import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEAD_CONTAINERS, PREFIX, frame_head

Reply = tuple[dict[str, Any], memoryview]
_START_S = 30.0
_FORK_S = 10.0
_DEATH_NOTICE_S = 1.0


class WorkerDiedError(HeliographError):
    """The worker process ended, or said something that is no answer; the message says how."""


class Worker(asyncio.Protocol):
    """One worker process. Requests are answered in order; the first one sent is the one it works at."""

    def __init__(self, pid: int, on_answer: Callable[[], None]) -> None:
        self.pid = pid
        self.pending: deque[asyncio.Future[Reply]] = deque()
        self.ended = asyncio.Event()
        self.cause = ""
        """How it ended, once it has."""
        self._on_answer = on_answer
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._is_gone = False
        self._is_blameless = False

    def send(self, head: dict[str, Any], parts: list[bytes | memoryview], future: asyncio.Future[Reply]) -> None:
        """Sends a request; `future` gets its answer."""
        assert self._transport is not None
        self.pending.append(future)
        self._transport.writelines([frame_head(head, sum(map(len, parts))), *parts])

    async def call(self, head: dict[str, Any]) -> Reply:
        """One request without tensors and its answer.

        Raises:
            WorkerDiedError: there will be none.
            TransportError: there will be none, by no fault of the worker.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.send(head, [], future)
        return await future

    def kill(self, cause: str) -> None:
        """Ends the process now; `cause` is what waiting requests are told."""
        if self._is_gone:
            return
        self.cause = self.cause or cause
        if self._transport is not None:
            self._transport.abort()
        self.end()

    def end(self) -> None:
        """Kills the process, if it still runs; what it has written is still read."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def died(self, cause: str, *, is_blameless: bool = False) -> None:
        """The process is gone. Whoever waits is told once the answers it still gave have been read.

        Blameless is a worker that was taken along: its callers get `TransportError` instead of `WorkerDiedError`.
        """
        self._is_gone = True
        self._is_blameless = is_blameless and not self.cause
        self.cause = self.cause or cause
        if self._transport is None:
            self._bury()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        while (reply := self._next_reply()) is not None:
            if not self.pending:
                return self.kill("worker spoke out of turn")
            future = self.pending.popleft()
            if not future.done():
                future.set_result(reply)
            self._on_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        if self._is_gone:
            self._bury()
        else:  # its death is told by the forkserver, soon; a process that only closed its socket is of no use
            asyncio.get_running_loop().call_later(_DEATH_NOTICE_S, self.kill, "worker closed its socket")

    def _next_reply(self) -> Reply | None:
        if len(self._buffer) < PREFIX.size:
            return None
        head_length, body_length = PREFIX.unpack_from(self._buffer)
        if head_length > MAX_HEAD_BYTES or body_length > MAX_BODY_BYTES:
            self.kill(f"worker announced an answer of {head_length + body_length} bytes")
            return None
        end = PREFIX.size + head_length + body_length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[:end])
        del self._buffer[:end]
        try:
            head = unpack(
                frame[PREFIX.size : PREFIX.size + head_length],
                max_bytes=MAX_HEAD_BYTES,
                max_containers=MAX_HEAD_CONTAINERS,
            )
        except IntegrityError as error:
            self.kill(f"worker gave no answer but {error}")
            return None
        if not isinstance(head, dict):
            self.kill("worker gave an answer of another form")
            return None
        return head, memoryview(frame)[PREFIX.size + head_length :]

    def _bury(self) -> None:
        self.ended.set()
        while self.pending:
            future = self.pending.popleft()
            if not future.done():
                future.set_exception((TransportError if self._is_blameless else WorkerDiedError)(self.cause))
                future.exception()  # whoever waits for it is told; nobody has to


class Forks:
    """The forkserver, started when first needed."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.runtimes: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._answers: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._workers: dict[int, Worker] = {}
        self._early_deaths: dict[int, str] = {}
        self._lock = asyncio.Lock()

    async def fork(self, on_answer: Callable[[], None]) -> Worker:
        """A new worker, with nothing loaded; `on_answer` is called after each of its answers.

        Raises:
            TransportError: the forkserver does not start or does not answer.
        """
        async with self._lock:
            if self._socket is None:
                await self._start()
            assert self._socket is not None
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.setblocking(False)
            try:
                with theirs:
                    answer = self._expect()
                    try:
                        socket.send_fds(self._socket, [b"fork"], [theirs.fileno()])
                    except OSError as error:
                        raise TransportError(f"the forkserver does not take requests: {error.strerror}") from error
                pid = int((await self._within(answer, _FORK_S))["forked"])
                worker = Worker(pid, on_answer)
                await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
            except BaseException:
                ours.close()
                raise
            self._workers[pid] = worker
            if (cause := self._early_deaths.pop(pid, None)) is not None:
                self._dead(pid, cause)
            return worker

    async def close(self) -> None:
        """Ends the forkserver and all workers, and waits until it is gone."""
        self._lost("the server is stopping")
        if self._process is not None:
            if self._process.returncode is None:
                try:
                    self._process.kill()
                except ProcessLookupError:
                    pass
            await self._process.wait()

    async def _start(self) -> None:
        if self._process is not None:  # the last one is gone or going; leave no zombie
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "heliograph_site.serving.forkserver",
                str(theirs.fileno()),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # no threads before a fork
            )
        ours.setblocking(False)
        self._socket = ours
        self.pid = self._process.pid
        ready = self._expect()
        asyncio.get_running_loop().add_reader(ours, self._on_readable)
        self.runtimes = [str(name) for name in (await self._within(ready, _START_S))["ready"]]

    def _expect(self) -> asyncio.Future[dict[str, Any]]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers.append(future)
        return future

    async def _within(self, answer: asyncio.Future[dict[str, Any]], limit_s: float) -> dict[str, Any]:
        """Waits; without an answer the forkserver is given up, for answers could no longer be told apart."""
        try:
            async with asyncio.timeout(limit_s):
                return await answer
        except TimeoutError:
            self._lost("the forkserver hangs")
            raise TransportError(f"the forkserver gave no answer in {limit_s:g} s") from None

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            return self._lost("the forkserver ended")
        message = json.loads(data)
        if "died" in message:
            pid, status = message["died"]
            self._dead(pid, _cause(status))
        elif self._answers:
            self._early_deaths.pop(message.get("forked", 0), None)  # of an earlier process with the same number
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result(message)

    def _dead(self, pid: int, cause: str) -> None:
        worker = self._workers.pop(pid, None)
        if worker is None:
            self._early_deaths[pid] = cause
        else:
            worker.died(cause)

    def _lost(self, cause: str) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._early_deaths.clear()
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(TransportError(cause))
        for worker in list(self._workers.values()):
            worker.end()  # the kernel does it too, but for a worker that had not come to ask for that yet
            worker.died(f"worker ended: {cause}", is_blameless=True)
        self._workers.clear()


def _cause(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"worker exited with status {code}"
    try:
        return f"worker died by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"worker died by signal {-code}"
