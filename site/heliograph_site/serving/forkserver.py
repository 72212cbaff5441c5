"""The forkserver: has numpy and the runtimes loaded once, and forks a worker in milliseconds.

`python -m heliograph_site.serving.forkserver FD PARENT`: FD is a SOCK_SEQPACKET socket to the gateway, whose pid is
PARENT. A message with a socket attached asks for a worker on that socket. Answers are JSON: `{"ready": [runtimes]}`
once, `{"forked": pid}` per request in order, `{"died": [pid, wait status]}` whenever a worker ends. When the gateway
goes, so do forkserver and workers.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from types import FrameType

from heliograph_site.serving import runtime, worker


def main() -> None:
    """Runs until the gateway closes its end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    worker.die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C goes to the whole terminal; the gateway decides
    me = os.getpid()
    found = runtime.preload()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, _note_child)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()  # collections in a worker would copy shared pages
    _tell(control, {"ready": found})
    while True:
        readable, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
            _reap(control)
        if control.fileno() in readable:
            message, fds, _, _ = socket.recv_fds(control, 64, 4)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for fd in (wake_read, wake_write, control.fileno()):
                    os.close(fd)
                _work(fds[0], me)
            for fd in fds:
                os.close(fd)
            _tell(control, {"forked": pid})


def _work(fd: int, parent: int) -> None:
    """The child's whole life."""
    status = 1
    try:
        worker.confine(parent)
        worker.main(socket.socket(fileno=fd))
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0
    except BaseException:  # noqa: BLE001 - the last thing this process does is to say why it ends
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(control, {"died": [pid, status]})


def _tell(control: socket.socket, message: dict[str, object]) -> None:
    try:
        control.send(json.dumps(message).encode())
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _note_child(signum: int, frame: FrameType | None) -> None:
    """Only there so that the wake-up descriptor is written."""


if __name__ == "__main__":
    main()
