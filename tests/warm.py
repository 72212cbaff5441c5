"""Programs that are forked from a process which has loaded them: importing takes longer than what they do in tests.

Each is a process of its own, in a group of its own, that runs what the command line would have run. The process which
they are forked from (a nursery, one for each program) does nothing but fork, and ends with the tests.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heliograph.lab import Running

PROGRAMS = {
    "heliograph.cli": ("heliograph_hub.process", "heliograph_hub.commands.hub"),
    "heliograph_site.serving.__main__": (),
}
"""Modules that may be run, by their `main`, and what else is loaded before the fork."""
PIDS: set[int] = set()
"""Nurseries that run: they are left by a module's tests, and meant to be."""
_MESSAGE_BYTES = 1 << 17


def spawn(module: str, arguments: Sequence[str | Path], log: Path, cwd: Path | None = None) -> Running:
    """Starts `python -m MODULE ARGUMENTS`; both its outputs are appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    child = _nursery(module).fork([str(one) for one in arguments], log, cwd or Path.cwd())
    return Running(child, log)  # type: ignore[arg-type]  # it does what Popen does, as far as that is asked for


class Child:
    """A forked program, with what `subprocess.Popen` has."""

    def __init__(self, nursery: "_Nursery", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """How it ended; None if it runs."""
        self._nursery.hear(0.0, self)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left_s = 60.0 if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise subprocess.TimeoutExpired(["fork", str(self.pid)], timeout or 0.0)
            self._nursery.hear(min(left_s, 0.1), self)  # another thread may ask meanwhile
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """This side of a nursery: asks for forks, and hears how they end."""

    def __init__(self, module: str) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here, fd = str(Path(__file__).parent), theirs.fileno()
        program = f"import sys; sys.path.insert(0, {here!r}); import warm; warm.serve({module!r}, {fd})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[fd], start_new_session=True
        )
        theirs.close()
        PIDS.add(self._process.pid)
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        atexit.register(self._close)

    def fork(self, arguments: list[str], log: Path, cwd: Path) -> Child:
        """A new process."""
        asked = {"argv": arguments, "log": str(log.absolute()), "cwd": str(cwd), "env": dict(os.environ)}
        with self._lock:
            self._ours.send(json.dumps(asked).encode())
            while "forked" not in (said := self._next()):
                self._note(said)
            child = self._children[said["forked"]] = Child(self, said["forked"])
        return child

    def hear(self, timeout_s: float, child: Child) -> None:
        """Takes in what was said, waiting so long for the first of it, unless the child has ended."""
        with self._lock:
            while child.returncode is None and select.select([self._ours], [], [], timeout_s)[0]:
                self._note(self._next())
                timeout_s = 0.0

    def _next(self) -> dict[str, Any]:
        data = self._ours.recv(_MESSAGE_BYTES)
        assert data, "the nursery has ended"
        found: dict[str, Any] = json.loads(data)
        return found

    def _note(self, said: dict[str, Any]) -> None:
        self._children.pop(said["ended"]).returncode = said["code"]

    def _close(self) -> None:
        self._ours.close()
        self._process.wait()


@functools.cache
def _nursery(module: str) -> _Nursery:
    return _Nursery(module)


# --- the nursery's side -----------------------------------------------------------------------------------------------


def serve(module: str, fd: int) -> None:
    """Forks a program for each request until the other end is closed. Returns in each fork too, as it ends."""
    for name in (module, *PROGRAMS[module]):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = socket.socket(fileno=fd)
    woken, wake = socket.socketpair()
    for one in (woken, wake):
        one.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _tell_ended(asked)
        if asked in ready:
            data = asked.recv(_MESSAGE_BYTES)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (asked, woken, wake):
                    one.close()
                _become(module, **json.loads(data))
            asked.send(json.dumps({"forked": pid}).encode())


def _tell_ended(asked: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        asked.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become(module: str, argv: list[str], log: str, cwd: str, env: dict[str, str]) -> None:
    """Runs the program in a session of its own; ends the process."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    gc.unfreeze()
    sys.argv = [module, *argv]
    sys.exit(importlib.import_module(module).main())
