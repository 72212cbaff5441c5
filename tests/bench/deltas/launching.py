"""Has commands run by launch.py, which ends them with this process, however it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one command may take before it counts as not measured; 0: as much as it likes."""

    cpu_s: int = 0
    memory_bytes: int = 0

    def allow_more_than(self, other: "Bounds") -> bool:
        """Whether something may pass that those didn't let pass."""
        pairs = ((self.cpu_s, other.cpu_s), (self.memory_bytes, other.memory_bytes))
        return any(theirs and (mine > theirs or not mine) for mine, theirs in pairs)


def launched(commands: list[list[str]], bounds: Bounds, libraries: str = "") -> dict[str, Any]:
    """What the commands took (launch.py); none of them is left when this returns or raises."""
    command = [sys.executable, "-I", "-S", str(LAUNCH), str(bounds.cpu_s), str(bounds.memory_bytes)]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    if not libraries:
        del environment["LD_LIBRARY_PATH"]
    theirs, ours = os.pipe()  # closed by the kernel, if by nobody else
    try:
        launcher = subprocess.Popen(
            [*command, json.dumps(commands)],
            stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0,
        )  # fmt: skip
        try:
            said, errors = launcher.communicate()
        finally:
            if launcher.returncode != 0:  # it had no time to end what it ran
                with suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()
    finally:
        os.close(theirs)
        os.close(ours)
    if launcher.returncode:
        return {"failed": (errors.strip() or "the launcher failed").splitlines()[-1]}
    facts: dict[str, Any] = json.loads(said)
    return facts


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end this process as Ctrl-C does: what it runs is killed, temporary files go."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
