"""What only Unix has: sockets in the folder of a hub or a node, however long its path is, and no core dumps.

A socket's path may have 107 bytes. A longer one is reached through `/proc/self/fd/N`, N being the open folder.
"""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 100


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket address, while the block runs."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def bind(path: Path, mode: int) -> socket.socket:
    """A socket bound at `path` with `mode`, not listening yet; replaces a socket that a dead process left."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(path) as address:
        sock.bind(address)
    path.chmod(mode)  # nobody can connect before it listens
    sock.setblocking(False)
    return sock


def forbid_core_dumps() -> None:
    """From now on this process, and those that it starts, give their memory to no file and no program when they crash.

    Source: core(5), and fs/coredump.c of Linux: a program that the kernel pipes cores to is run even at limit 0, which
    is for files, but not at limit 1; no file is written at either.
    """
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1] and 1  # 0 can't be raised
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
