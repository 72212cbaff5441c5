"""Making a delta in a process of its own: made, or what it lacks is said in a sentence and nothing left behind."""

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from heliograph.delta.file import Facts, Progress, apply_file, make_file
from heliograph.delta.making import forked
from heliograph.errors import ConfigError, NotFoundError, RefusedError, StorageError

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


# --- in a fork ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["old", "new"])
def test_a_file_that_is_cut_short_while_a_fork_reads_it_is_told_of_in_a_sentence(tmp_path: Path, name: str) -> None:
    noise = Random(5).randbytes(3 * MIB)
    (tmp_path / "old").write_bytes(noise)
    (tmp_path / "new").write_bytes(noise[:MIB] + b"changed" * 1000 + noise[MIB:])

    def work(tell: Progress) -> Facts:
        faulthandler.disable()  # it would tell of this process's end at length

        def cut(done: int, whole: int) -> None:
            os.truncate(tmp_path / name, 0)
            tell(done, whole)

        return make_file(tmp_path / "old", tmp_path / "new", tmp_path / "delta", cut)

    with forked(work) as made, pytest.raises(ConfigError, match="cut short while it was read"):
        made(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_a_fork_gives_facts_tells_how_far_it_is_and_raises_what_was_raised_in_it() -> None:
    seen = []

    def work(tell: Progress) -> Facts:
        tell(1, 2)
        tell(2, 2)
        return {"pid": os.getpid()}

    with forked(work) as made:
        assert made(lambda done, whole: seen.append((done, whole)))["pid"] != os.getpid()
    assert seen == [(1, 2), (2, 2)]

    def fail(tell: Progress) -> Facts:
        raise NotFoundError("old is not there")

    with forked(fail) as made, pytest.raises(NotFoundError, match="old is not there"):
        made(None)

    def die(tell: Progress) -> Facts:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with forked(die) as made, pytest.raises(StorageError, match="ended with status -9"):
        made(None)


def test_a_fork_ends_with_its_block_and_leaves_ctrl_c_to_the_other_process() -> None:
    pids = []

    def work(tell: Progress) -> Facts:
        os.kill(os.getpid(), signal.SIGINT)
        tell(os.getpid(), 0)
        signal.pause()
        return {}

    def leave(pid: int, _: int) -> None:
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), forked(work) as made:
        made(leave)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
