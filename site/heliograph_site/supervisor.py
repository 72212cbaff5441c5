"""`node run`: keeps the agent and the server process of one folder running. Standard library only, so that it is small.

`python -m heliograph_site.supervisor DIR`. Either process is started again when it ends, with a back-off; the other is
left alone, so that a killed agent fails no request. SIGTERM or Ctrl-C stops both and ends with exit code 0. Where the
first start of one fails for a reason that only the operator can mend (exit code 2), both are stopped and that is the
exit code.

An agent may also go on and do nothing any more. It gives signs of life (`pulse`); where none comes for too long, it is
killed, and started again as ever. That time is counted in looks, so that what this process didn't live through, because
the machine slept or all of it was stopped, is nobody's silence.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from heliograph_site.pulse import VARIABLE

PROCESSES = {"agent": "heliograph_site.agent", "server": "heliograph_site.serving"}
LOCK_FILE = "run.lock"
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
CALM_S = 30.0
"""A process that ran so long is started again without waiting."""
STARTING_S = 20.0
"""So long after the start an exit code 2 is the operator's to mend."""
GRACE_S = 15.0
LOOK_S = 0.1
LONGEST_LOOK_S = 1.0
"""More than this no look adds to an agent's silence."""
SILENCE_S = 300.0
"""An agent is killed when it gave no sign for so long. A sound one is held up by a transaction on a worn card, for some
seconds, or by metadata to verify on a slow processor; whatever reads or writes images does so in threads."""
STARTUP_S = 600.0
"""The same before its first sign, for which it has to be loaded, and its journal opened and brought up to date."""
SIGNS = 10
"""A sign is asked for so many times in the time in which one must come."""
USAGE = 2
REFUSED = 4
_PR_SET_PDEATHSIG = 1


class _Child:
    """One process and its back-off."""

    def __init__(self, name: str, program: str, folder: Path) -> None:
        self.name = name
        self._argv = [sys.executable, "-m", program, str(folder)]
        self._pause_s = FIRST_PAUSE_S
        self._began = 0.0
        self._due = 0.0
        self.process: "subprocess.Popen[bytes] | None" = None  # noqa: UP037 - a generic class is no expression at run time

    def start_if_due(self) -> None:
        """Starts it, unless it runs or its back-off does."""
        if self.process is None and time.monotonic() >= self._due:
            self._began = time.monotonic()
            self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        return self._popen(os.environ)

    def _popen(self, env: Mapping[str, str], *fds: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._argv, env=env, pass_fds=fds, preexec_fn=_die_with_parent)  # no threads here

    def ended(self) -> int | None:
        """Its exit code, once, if it has ended; the back-off begins."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        if time.monotonic() - self._began >= CALM_S:
            self._pause_s = FIRST_PAUSE_S
        self._due = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return code

    def stop(self, deadline: float) -> None:
        """Ends it, by force after the deadline."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Agent(_Child):
    """The agent, and how long it has been silent."""

    def __init__(self, program: str, folder: Path, silence_s: float, startup_s: float) -> None:
        super().__init__("agent", program, folder)
        self._silence_s, self._startup_s = silence_s, startup_s
        self._limit_s = startup_s
        self._silent_s = 0.0
        self._killed_after_s = 0.0
        """Until another one has given a sign: it has kept by then why the last one ended."""
        self._pulse: int | None = None

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._pulse is not None:
            os.close(self._pulse)
        self._pulse, theirs = os.pipe()
        os.set_blocking(self._pulse, False)
        self._limit_s, self._silent_s = self._startup_s, 0.0
        said = f"{theirs} {self._silence_s / SIGNS:g} {self._killed_after_s:g}"
        try:
            return self._popen({**os.environ, VARIABLE: said}, theirs)
        finally:
            os.close(theirs)

    def end_if_silent(self, passed_s: float) -> None:
        """Listens for signs; kills it if the last one is too long ago. `passed_s`: since the last look."""
        if self.process is None or self._pulse is None:
            return
        try:
            is_alive = bool(os.read(self._pulse, 1 << 16))
        except BlockingIOError:
            is_alive = False
        if is_alive:
            self._limit_s, self._silent_s, self._killed_after_s = self._silence_s, 0.0, 0.0
            return
        self._silent_s += min(passed_s, LONGEST_LOOK_S)
        if self._silent_s >= self._limit_s:
            _say(f"the agent gave no sign of life for {self._limit_s:g} s: killed")
            self._killed_after_s, self._silent_s = self._limit_s, 0.0
            self.process.kill()  # what has stopped turning heeds nothing else


def supervise(
    folder: Path,
    silence_s: float = SILENCE_S,
    startup_s: float = STARTUP_S,
    programs: Mapping[str, str] = PROCESSES,
) -> int:
    """Runs until a signal; returns the exit code.

    Args:
        folder: the node's.
        silence_s: an agent that gives no sign of life for so long is killed.
        startup_s: the same before its first one.
        programs: the modules of `agent` and `server`.
    """
    stopped: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    agent = _Agent(programs["agent"], folder, silence_s, startup_s)
    children = [agent, _Child("server", programs["server"], folder)]
    began, code = time.monotonic(), 0
    looked = began
    while not stopped and not code:
        now = time.monotonic()
        agent.end_if_silent(now - looked)
        looked = now
        for child in children:
            child.start_if_due()
            ended = child.ended()
            if ended is None:
                continue
            _say(f"the {child.name} ended ({_how(ended)})")
            if ended == USAGE and time.monotonic() - began < STARTING_S:
                code = USAGE
        if not stopped and not code:
            time.sleep(LOOK_S)
    for child in children:
        if child.process is not None:
            child.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for child in children:
        child.stop(deadline)
    return code


def main() -> int:
    """Supervises the folder in argv; returns the exit code."""
    if len(sys.argv) != 2:
        _say("usage: python -m heliograph_site.supervisor DIR")
        return USAGE
    folder = Path(sys.argv[1])
    if not (folder / "node.toml").is_file():
        _say(f"{folder} is not a node's folder: run `heliograph node join` first")
        return USAGE
    with (folder / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{folder} is run already: stop that first, or look with `heliograph node status`")
            return REFUSED
        return supervise(folder)


def _die_with_parent() -> None:
    """In the child: a supervisor that is killed leaves nobody behind who would hold its locks."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _say(text: str) -> None:
    print(f"heliograph: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
