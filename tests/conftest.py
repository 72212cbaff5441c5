"""What every test shares: one seed, printed, so that any run can be repeated."""

import os

import pytest
from hypothesis import settings

from heliograph.errors import NotFoundError
from heliograph.lab import find_mosquitto

DEFAULT_SEED = 20_261_122

# Shared machines are slow at times: no deadline per example. In CI the examples are the same in every run, and a
# failure prints the line that repeats it.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def _seed() -> int:
    return int(os.environ.get("HELIOGRAPH_SEED", DEFAULT_SEED))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mosquitto: shows what only Mosquitto does; skipped where it isn't installed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("mosquitto"):
        try:
            find_mosquitto()
        except NotFoundError as error:
            pytest.skip(str(error))


def pytest_report_header() -> str:
    return f"HELIOGRAPH_SEED={_seed()}"


@pytest.fixture
def seed() -> int:
    """Where all chance in a test comes from: HELIOGRAPH_SEED, or a fixed default."""
    return _seed()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds spent in each folder of tests: none of them may take longer than three minutes."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = "/".join(report.nodeid.split("/")[:2])
                seconds[folder] = seconds.get(folder, 0.0) + report.duration
    for folder, spent in sorted(seconds.items()):
        terminalreporter.write_line(f"{folder}: {spent:.0f} s")
