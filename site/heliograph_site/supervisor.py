"""`node run`: keeps the agent and the server process of one folder running. Standard library only, so that it is small.

`python -m heliograph_site.supervisor DIR`. Either process is started again when it ends, with a back-off; the other is
left alone, so that a killed agent fails no request. SIGTERM or Ctrl-C stops both and ends with exit code 0. Where the
first start of one fails for a reason that only the operator can mend (exit code 2), both are stopped and that is the
exit code.
"""

import ctypes
import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

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
USAGE = 2
REFUSED = 4
_PR_SET_PDEATHSIG = 1


class _Child:
    """One process and its back-off."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._argv = [sys.executable, "-m", PROCESSES[name], str(folder)]
        self._pause_s = FIRST_PAUSE_S
        self._began = 0.0
        self._due = 0.0
        self.process: "subprocess.Popen[bytes] | None" = None  # noqa: UP037 - a generic class is no expression at run time

    def start_if_due(self) -> None:
        """Starts it, unless it runs or its back-off does."""
        if self.process is None and time.monotonic() >= self._due:
            self._began = time.monotonic()
            self.process = subprocess.Popen(self._argv, preexec_fn=_die_with_parent)  # no threads here

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


def supervise(folder: Path) -> int:
    """Runs until a signal; returns the exit code."""
    stopped: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    children = [_Child(name, folder) for name in PROCESSES]
    began, code = time.monotonic(), 0
    while not stopped and not code:
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
