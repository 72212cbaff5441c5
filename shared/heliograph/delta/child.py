"""[IO] The process in which a codec meets patch bytes: few rights, low priority, bounds, one file at a time.

`python -P -m heliograph.delta.child BASE PATCH START MEMORY CPU SEALED ELEMENTS`: descriptors of base and patch for
reading, where the patch begins in its file, how many bytes of address space may be taken on top of what the loaded
program has, how many seconds of CPU one segment may cost, whether (0 or 1) any of the two is a sealed blob, and whether
segments on elements will come, for which numpy is loaded. It asks the kernel for these bounds before it reads a byte of
input. If one is sealed, stdin begins with `KEYS`: keys of no other blob, and no key that they come from, are ever here.

A request on stdin is a segment as an array; its answer on stdout is `STATUS`, a length and so many bytes:
the segment, or why there is none. It ends with its stdin. Whoever asked checks what comes (`heliograph.delta.apart`).
"""

import os
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgpack

from heliograph.delta.patch import rebuild_segment
from heliograph.delta.recipe import (
    MAX_OLD_BYTES,
    MAX_OLD_RANGES,
    MAX_PARAMS_BYTES,
    MAX_WITHIN_BYTES,
    Segment,
    UnknownOpError,
)
from heliograph.errors import IntegrityError
from heliograph.source import Source

KEYS = struct.Struct(">?32sQ?32sQ")
"""For base and for patch: whether it is a sealed blob, its leaf key, its plain length."""
REQUEST = struct.Struct(">I")
ANSWER = struct.Struct(">BI")
"""Status and length of what follows."""
DONE, WRONG, UNKNOWN, TOO_LARGE = range(4)
MAX_REQUEST_BYTES = MAX_PARAMS_BYTES + MAX_WITHIN_BYTES + 32 * MAX_OLD_RANGES + 256
MAX_REASON_BYTES = 1000
NICE = 10
"""Rebuilding can wait; what is served on the same machine can't."""


def request(segment: Segment) -> bytes:
    """What asks for a segment."""
    fields = [segment.length, segment.op, segment.old, segment.patch, segment.digest16, segment.params, segment.within]
    data = bytes(msgpack.packb(fields))
    return REQUEST.pack(len(data)) + data


def keys(base: Source, patch: Source) -> bytes:
    """What tells the child how to open what is sealed; a secret."""
    return KEYS.pack(bool(base.key), base.key, base.length, bool(patch.key), patch.key, patch.length)


def confine(memory_bytes: int) -> None:
    """Bounds this process for good: so much address space more than it has, no files written, no core, no children.

    It gives way to all others, too, unless the system lets no process do that.
    """
    with suppress(OSError):
        os.nice(NICE)
    pages = Path("/proc/self/statm")
    taken = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    bounds = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NPROC: 0}
    bounds[resource.RLIMIT_CORE] = resource.getrlimit(resource.RLIMIT_CORE)[1] and 1  # as `unix.forbid_core_dumps`
    if taken:  # elsewhere than on Linux nobody tells, and the bound would not be kept either
        bounds[resource.RLIMIT_AS] = taken + memory_bytes
    for name, bound in bounds.items():
        resource.setrlimit(name, (bound, bound))


def allow_cpu(seconds: int) -> None:
    """Has the kernel end this process (SIGXCPU) when it has computed for so many seconds more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))


def main() -> None:
    """Answers until stdin ends."""
    base_fd, patch_fd, start, memory_bytes, cpu_s, is_sealed, on_elements = map(int, sys.argv[1:8])
    if is_sealed:
        import heliograph.sealing  # loaded here, it isn't counted as what a segment takes
    if on_elements:
        try:
            import heliograph.delta.numeric  # noqa: F401 - and neither is this
        except ImportError:
            pass  # each such segment will be answered with that
    confine(memory_bytes)
    base, patch = Source(base_fd), Source(patch_fd, start)
    if is_sealed:
        of_base, base_key, base_length, of_patch, patch_key, length = KEYS.unpack(sys.stdin.buffer.read(KEYS.size))
        base = Source(base_fd, 0, base_key if of_base else b"", base_length)
        patch = Source(patch_fd, start, patch_key if of_patch else b"", length)
    while head := _read(sys.stdin.buffer, REQUEST.size):
        (length,) = REQUEST.unpack(head)
        allow_cpu(cpu_s)
        status, answer = _answered(_read(sys.stdin.buffer, length), base, patch)
        sys.stdout.buffer.write(ANSWER.pack(status, len(answer)))
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
        del answer  # or it would stand beside the next segment's


def _answered(data: bytes, base: Source, patch: Source) -> tuple[int, bytes | bytearray]:
    try:
        length, op, old, at, digest16, params, within = msgpack.unpackb(data)
        segment = Segment(length, op, tuple(tuple(span) for span in old), tuple(at), digest16, params, within)
        if sum(size for _, size in segment.old) > MAX_OLD_BYTES:
            raise IntegrityError("segment reads too much of its base")
        patch_bytes = patch.read(*segment.patch) if segment.patch[1] else b""
        return DONE, rebuild_segment(segment, base.read, patch_bytes)
    except UnknownOpError as error:
        return UNKNOWN, _reason(error)
    except IntegrityError as error:
        return WRONG, _reason(error)
    except MemoryError:
        return TOO_LARGE, b""


def _reason(error: IntegrityError) -> bytes:
    return str(error).encode()[:MAX_REASON_BYTES]


def _read(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    return data if len(data) == length else b""


if __name__ == "__main__":
    main()
