"""The hub that every test of faults begins with."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from rigs import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once per run, whichever of its workers wants it first; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prepared"
    shared.mkdir(exist_ok=True)
    made = shared / "realm.is-made"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(shared / "realm", ignore_errors=True)  # another worker failed to make it
            prepare(shared / "realm")
            made.touch()
    return shared / "realm"
