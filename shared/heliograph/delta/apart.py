"""[IO] Rebuilds segments in a child process, so that patch bytes can't cost this one more than a segment.

One child serves one file, from its first segment that needs a codec until `close`; copies never need one. What comes
back is believed only when it has the length and digest that the recipe states: a child that patch bytes have taken over
can give nothing but right bytes or none. What ends it, whatever that is, is an `IntegrityError` that says which bound
it met. Threads may not share one of these.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from heliograph.blob import short_digest
from heliograph.delta.child import ANSWER, DONE, MAX_REASON_BYTES, TOO_LARGE, UNKNOWN, keys, request
from heliograph.delta.patch import rebuild_segment
from heliograph.delta.recipe import COPY, ON_ELEMENTS, Segment, UnknownOpError
from heliograph.errors import IntegrityError, StorageError
from heliograph.source import Source


@dataclass(frozen=True, slots=True)
class Bounds:
    """What rebuilding one segment may take.

    Attributes:
        memory_bytes: address space on top of the loaded program's; the largest segment of any operation fits.
        cpu_s: seconds of CPU; the largest segment needs less than one on the slowest gateway.
        wall_s: seconds until it is given up, though it computes nothing: a disk may be slow, a descriptor dead.
    """

    memory_bytes: int = 48 << 20
    cpu_s: int = 20
    wall_s: float = 300.0


BOUNDS = Bounds()
_PIPE_BYTES = 1 << 18


class Apart:
    """The base and patch of one file, and the child that joins them.

    The descriptors of both are the caller's to close, and used until `close`. Keys of sealed ones go to the child over
    its stdin, never in argv or the environment.
    """

    def __init__(self, base: Source, patch: Source | None, bounds: Bounds = BOUNDS) -> None:
        self._base, self._patch, self._bounds = base, patch, bounds
        self._child: subprocess.Popen[bytes] | None = None
        self._on_elements = False
        self._peak_bytes = 0

    def rebuild(self, segment: Segment) -> bytes | bytearray:
        """The segment, verified.

        Raises:
            IntegrityError: base or patch are not those the recipe was made for, or the patch costs more than it may.
            UnknownOpError: the recipe names an operation that this version lacks.
            StorageError: no child could be started.
        """
        if segment.op == COPY:
            return rebuild_segment(segment, self._base.read, b"")
        if segment.op in ON_ELEMENTS and not self._on_elements:
            peak_bytes = self.peak_rss_bytes()
            self.close()
            self._peak_bytes = peak_bytes
            self._on_elements = True  # until this file is whole; those before need not pay for numpy
        child = self._child = self._child or self._started()
        assert child.stdin is not None and child.stdout is not None, "both are pipes"
        deadline = time.monotonic() + self._bounds.wall_s
        try:
            child.stdin.write(request(segment))  # short enough to go at once
            status, length = ANSWER.unpack(_read(child.stdout.fileno(), ANSWER.size, deadline))
            if length > (segment.length if status == DONE else MAX_REASON_BYTES):
                raise IntegrityError(f"rebuilding gave {length} bytes for a segment of {segment.length}")
            answer = _read(child.stdout.fileno(), length, deadline)
        except (_SilentError, BrokenPipeError):
            raise IntegrityError(f"a segment could not be rebuilt: {self._ended()}") from None
        except IntegrityError:
            self.close()
            raise
        if status == TOO_LARGE:
            raise IntegrityError(f"a segment needs more memory than the {self._bounds.memory_bytes} bytes it may take")
        if status != DONE:
            raise (UnknownOpError if status == UNKNOWN else IntegrityError)(answer.decode(errors="replace"))
        if len(answer) != segment.length or short_digest(answer) != segment.digest16:
            raise IntegrityError("a rebuilt segment doesn't match its digest: base or patch is not the right one")
        return answer

    def peak_rss_bytes(self) -> int:
        """The most memory a child has had resident so far; 0 without one, or where the kernel doesn't say."""
        if self._child is None:
            return self._peak_bytes
        try:
            with open(f"/proc/{self._child.pid}/status", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs more
                now = next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:")), 0)
                return max(now, self._peak_bytes)
        except OSError:
            return self._peak_bytes

    def close(self) -> None:
        """Ends the child. Idempotent."""
        self._peak_bytes = 0
        if self._child is not None:
            self._child.kill()
            self._ended()

    def _started(self) -> subprocess.Popen[bytes]:
        sources = (self._base, self._patch or self._base)
        is_sealed = any(source.key for source in sources)
        fds = tuple(source.fd for source in sources)
        numbers = (
            *fds,
            sources[1].start,
            self._bounds.memory_bytes,
            self._bounds.cpu_s,
            int(is_sealed),
            int(self._on_elements),
        )
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "heliograph.delta.child", *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pipesize=_PIPE_BYTES,
                stderr=subprocess.DEVNULL,
                pass_fds=fds,
                env={
                    **os.environ,
                    "MALLOC_ARENA_MAX": "1",
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
        except OSError as error:
            raise StorageError(f"no process to rebuild segments in: {error.strerror}") from error
        if is_sealed:
            assert child.stdin is not None, "it is a pipe"
            with suppress(BrokenPipeError):  # the first request will say how it ended
                child.stdin.write(keys(*sources))
        return child

    def _ended(self) -> str:
        """Ends the child, if it hasn't yet, and says how it did."""
        child, self._child = self._child, None
        assert child is not None and child.stdin is not None and child.stdout is not None, "there is one"
        try:
            code = child.wait(0.5)
            why = f"its process ended with status {code}"
            if code == -signal.SIGXCPU:
                why = f"it took more than {self._bounds.cpu_s} seconds of CPU"
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            why = f"it took more than {self._bounds.wall_s:g} seconds"
        child.stdout.close()
        try:
            child.stdin.close()
        except BrokenPipeError:
            pass
        return why


class _SilentError(Exception):
    """Nothing more comes."""


def _read(source: int, length: int, deadline: float) -> bytearray:
    """So many bytes of a pipe."""
    data = bytearray(length)
    at = 0
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while at < length:
        if not poll.poll(max(0, int(1000 * (deadline - time.monotonic())))):
            raise _SilentError
        with memoryview(data) as view:
            read = os.readv(source, [view[at:]])
        if not read:
            raise _SilentError
        at += read
    return data
