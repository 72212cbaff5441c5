"""[IO] Makes a delta file in a process of its own: of low priority, of bounded memory, telling how far it is.

Making takes seconds to minutes of CPU and up to half a GB: a process that has more to do than that has it done here,
can stop it, and keeps none of its memory. The child ends with its parent, however that ends, because its stdin does.

`python -P -m heliograph.delta.making OLD NEW DELTA MEMORY`: paths, and how many bytes of address space it may take on
top of what the loaded program has. It writes to stdout, as text: `DONE WHOLE` (bytes of the new file) as it goes on,
and last `made`, or `refused` and a sentence.

A command makes it in a fork of its own (`forked`): a mapped file that somebody cuts short ends the process that reads
it, by a signal that nothing in it can survive.
"""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import zstandard

from heliograph.delta.file import Facts, Progress, make_file
from heliograph.errors import ConfigError, HeliographError, RefusedError, StorageError

NICE: Final = 10
MEMORY_BYTES: Final = 2 << 30
"""Address space that making may take whatever the files' size: sorting 32 MiB of old bytes takes a quarter of it."""
MEMORY_PER_BYTE: Final = 3
"""And for each byte of both files: one is the file itself, mapped; the others are what aligning knows of it."""
MAX_REASON: Final = 400
_TELL_EVERY_S = 0.5


class Making:
    """One delta file being made. `stop` may be called by another thread than the one that makes."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._is_stopped = False

    def make(self, old: Path, new: Path, delta: Path, progress: Progress | None = None) -> None:
        """Writes the delta file that makes `new` from `old`; on disk when this returns.

        Raises:
            RefusedError: it takes more memory than it may, was stopped, or the files can't be read or written.
            StorageError: no process could be started.
        """
        child = self._started(old, new, delta)
        assert child.stdout is not None and child.stdin is not None, "both are pipes"
        last = ""
        with child:
            for line in child.stdout:
                last = line.rstrip("\n")
                done, _, whole = last.partition(" ")
                if progress is not None and done.isdecimal() and whole.isdecimal():
                    progress(int(done), int(whole))
        with self._lock:
            self._child = None
        if last == "made" and child.returncode == 0:
            return
        word, _, why = last.partition(" ")
        if word != "refused":
            why = f"its process ended with status {child.returncode}: {last}"
        raise RefusedError("it was stopped" if self._is_stopped else why[:MAX_REASON])

    def stop(self) -> None:
        """Ends what is being made, for good."""
        with self._lock:
            self._is_stopped = True
            if self._child is not None:
                self._child.kill()

    def _started(self, old: Path, new: Path, delta: Path) -> "subprocess.Popen[str]":
        memory_bytes = MEMORY_BYTES + MEMORY_PER_BYTE * (old.stat().st_size + new.stat().st_size)
        with self._lock:
            if self._is_stopped:
                raise RefusedError("it was stopped")
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "heliograph.delta.making", *map(str, (old, new, delta, memory_bytes))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,  # the last line says why, whatever it is
                    text=True,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
                )
            except OSError as error:
                raise StorageError(f"no process to make a delta in: {error.strerror}") from error
            return self._child


@contextmanager
def forked(work: Callable[[Progress], Facts]) -> Iterator[Callable[[Progress | None], Facts]]:
    """Begins `work` in a fork of this process, which should have no other thread; gives what waits for its facts.

    The fork ends with the block, as by SIGTERM; it doesn't mind Ctrl-C, which this process gets.

    Raises:
        HeliographError, OSError: what `work` raised; ConfigError also if an input was cut short while it was read.
    """
    context = multiprocessing.get_context("fork")
    told, tell = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(work, told, tell), daemon=True)

    def heard(progress: Progress | None) -> Facts:
        while True:
            try:
                said = told.recv()
            except EOFError:
                child.join()
                raise _unsaid(child.exitcode) from None
            if isinstance(said, Exception):
                raise said
            if isinstance(said, dict):
                child.join()
                return said
            if progress is not None:
                progress(*said)

    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        tell.close()
        yield heard
    finally:
        if child.is_alive():
            child.terminate()
            child.join()
        told.close()


def _work(work: Callable[[Progress], Facts], told: Connection, tell: Connection) -> None:
    told.close()  # or nobody would notice that the other process is gone
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(BrokenPipeError):
        try:
            tell.send(work(lambda done, whole: tell.send((done, whole))))
        except (HeliographError, OSError) as error:
            tell.send(error)


def _unsaid(code: int | None) -> HeliographError:
    """Why a process that said nothing more has ended so."""
    if code == -signal.SIGBUS:
        return ConfigError(
            "one of the files was cut short while it was read, or its disk failed: make the delta again when nobody "
            "writes to it"
        )
    return StorageError(f"the process that makes the delta ended with status {code}")


def main() -> None:
    """Makes one delta file."""
    old, new, delta = map(Path, sys.argv[1:4])
    os.nice(NICE)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    _confine(int(sys.argv[4]))
    try:
        make_file(old, new, delta, _Teller())
    except HeliographError as error:
        print("refused", str(error).replace("\n", " "), flush=True)
        raise SystemExit(error.exit_code) from None
    except (MemoryError, OSError, zstandard.ZstdError) as error:
        if not _is_of_memory(error):
            raise
        print(f"refused it takes more memory than the {sys.argv[4]} bytes it may", flush=True)
        raise SystemExit(RefusedError.exit_code) from None
    print("made", flush=True)


def _is_of_memory(error: Exception) -> bool:
    """Whether memory ran out, as Python, the kernel (mapping a file) or zstd say it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or "memory" in str(error).lower()


class _Teller:
    """Prints how far it is, now and then."""

    def __init__(self) -> None:
        self._last_s = 0.0

    def __call__(self, done: int, whole: int) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= _TELL_EVERY_S or done == whole:
            self._last_s = now_s
            print(done, whole, flush=True)


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(1)


def _confine(memory_bytes: int) -> None:
    pages = Path("/proc/self/statm")
    bounds = {resource.RLIMIT_CORE: 0}
    if pages.exists():
        import heliograph.delta.diff  # noqa: F401 - loaded here, it isn't counted as what making takes

        taken = int(pages.read_text().split()[0]) * resource.getpagesize()
        bounds[resource.RLIMIT_AS] = taken + memory_bytes
    for name, bound in bounds.items():
        resource.setrlimit(name, (bound, bound))


if __name__ == "__main__":
    main()
