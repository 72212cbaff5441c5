"""What every test shares: one seed, printed, so that any run can be repeated; no process outlives its module; and files
in memory, where there is room: on a disk, what is written durably takes most of a test's time and shows no more.
"""

import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import warm
from heliograph.errors import NotFoundError
from heliograph.lab import find_mosquitto

DEFAULT_SEED = 20_261_122
MARK = "HELIOGRAPH_TEST_RUN"
"""In the environment of every program that a test starts, and so of all that those start."""
MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30
"""Files are kept in memory if so much is free there; all tests together need less than a quarter of that."""
ENDING_S = 5.0
"""How long a program that was told to end may take."""

# Shared machines are slow at times: no deadline per example. In CI the examples are the same in every run, and a
# failure prints the line that repeats it.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def _seed() -> int:
    return int(os.environ.get("HELIOGRAPH_SEED", DEFAULT_SEED))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mosquitto: shows what only Mosquitto does; skipped where it isn't installed")

    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and _has_room(MEMORY):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
    os.environ[MARK] = secrets.token_hex(8)
    signal.signal(signal.SIGTERM, _stop)  # whoever stops the run this way wants it to clean up too
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # So shells start what runs in the background; what tests interrupt would inherit it and go on.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _has_room(folder: Path) -> bool:
    """Whether tests may keep their files there; programs too, which they start."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    is_ours = os.access(folder, os.W_OK | os.X_OK) and not found.f_flag & os.ST_NOEXEC
    return is_ours and found.f_bavail * found.f_frsize >= ROOM_BYTES


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("mosquitto"):
        try:
            find_mosquitto()
        except NotFoundError as error:
            pytest.skip(str(error))


def pytest_report_header() -> str:
    return f"HELIOGRAPH_SEED={_seed()}"


def _left() -> dict[int, str]:
    """Programs of this run that are alive, whoever their parent is by now: number and command line."""
    mark, found = f"{MARK}={os.environ[MARK]}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) in warm.PIDS:
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(folder.name)] = line
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fails if a module's tests left programs running, after ending them."""
    yield
    deadline = time.monotonic() + ENDING_S
    while (left := _left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert not left, "left running by this module's tests: " + "; ".join(left.values())


@pytest.fixture
def seed() -> int:
    """Where all chance in a test comes from: HELIOGRAPH_SEED, or a fixed default."""
    return _seed()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds spent in each folder of tests, by all workers: none of them may take longer than three minutes."""
    seconds: dict[str, float] = {}
    tests: dict[str, set[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = "/".join(report.nodeid.split("/")[:2])
                seconds[folder] = seconds.get(folder, 0.0) + report.duration
                tests.setdefault(folder, set()).add(report.nodeid)
    for folder, spent in sorted(seconds.items()):
        terminalreporter.write_line(f"{folder}: {spent:.0f} s, {len(tests[folder])} tests")
