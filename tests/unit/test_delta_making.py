"""Making a delta in a process of its own: made, or what it lacks is said in a sentence and nothing left behind."""

import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from heliograph.delta.file import apply_file
from heliograph.errors import RefusedError

MIB = 1 << 20


def made(tmp_path: Path, memory_bytes: int) -> tuple[int, str]:
    """The exit code and last line of the process that may take so much more memory, for weights trained on."""
    old, new, delta = (tmp_path / name for name in ("old", "new", "delta"))
    if not old.exists():
        weights = np.random.default_rng(5).normal(0, 0.05, 3 * MIB // 2).astype("<f4")
        old.write_bytes(weights.tobytes())
        new.write_bytes((weights * 1.0001).tobytes() + Random(5).randbytes(MIB))
    command = [sys.executable, "-P", "-m", "heliograph.delta.making", str(old), str(new), str(delta), str(memory_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        lines = child.stdout.read().decode().splitlines()
    return child.returncode, lines[-1]


@pytest.mark.parametrize("memory_bytes", [1, 4 * MIB, 12 * MIB, 24 * MIB, 48 * MIB, 96 * MIB])
def test_what_has_too_little_memory_is_refused_in_a_sentence_and_leaves_nothing(
    tmp_path: Path, memory_bytes: int
) -> None:
    said = made(tmp_path, memory_bytes)
    assert said == (RefusedError.exit_code, f"refused it takes more memory than the {memory_bytes} bytes it may")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_what_has_enough_memory_is_made(tmp_path: Path) -> None:
    assert made(tmp_path, 2 << 30) == (0, "made")
    apply_file(tmp_path / "old", tmp_path / "delta", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new").read_bytes()
