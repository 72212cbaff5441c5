"""What the supervisor says before it starts anything."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from heliograph_site.supervisor import LOCK_FILE


@pytest.mark.parametrize(
    ("is_run", "code", "says"), [(True, 4, "is run already"), (False, 2, "is not a node's folder")]
)
def test_a_folder_that_can_not_be_run_is_told_in_one_sentence(
    tmp_path: Path, is_run: bool, code: int, says: str
) -> None:
    with (tmp_path / LOCK_FILE).open("a") as lock:
        if is_run:
            (tmp_path / "node.toml").touch()
            fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "heliograph_site.supervisor", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
