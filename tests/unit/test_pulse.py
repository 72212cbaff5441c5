"""The agent's sign of life: what names the pipe, and that giving one neither waits nor fails."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph_site.pulse import VARIABLE, Pulse


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Reading end, and a writing end that children inherit."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # a test did


def test_the_pipe_named_in_the_environment_takes_the_signs_and_is_kept_from_children(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    monkeypatch.setenv(VARIABLE, f"{writer} 30 300")
    pulse = Pulse.inherited()
    assert (pulse.every_s, pulse.silent_s) == (30, 300)
    assert VARIABLE not in os.environ and not os.get_inheritable(writer)
    pulse.beat()
    pulse.beat()
    assert os.read(reader, 9) == b"\0\0"


def test_a_supervisor_that_does_not_read_or_is_gone_holds_nobody_up(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    monkeypatch.setenv(VARIABLE, f"{writer} 30 0")
    pulse = Pulse.inherited()
    for _ in range(room + 10):
        pulse.beat()
    assert len(os.read(reader, 2 * room)) == room
    pulse.beat()
    assert os.read(reader, 9) == b"\0", "it is heard again"
    os.close(reader)
    pulse.beat()
    pulse.beat()


@pytest.mark.parametrize("said", ["", "x 30 0", "{pipe}", "{pipe} 0 0", "{pipe} 30 nan", "{file} 30 0", "4095 30 0"])
def test_without_a_pipe_no_sign_is_given(
    said: str, pipe: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    with (tmp_path / "file").open("wb") as file:
        monkeypatch.setenv(VARIABLE, said.format(pipe=writer, file=file.fileno()))
        pulse = Pulse.inherited()
        pulse.beat()
    assert pulse.every_s > 1e9 and pulse.silent_s == 0
    assert (tmp_path / "file").read_bytes() == b""
    with pytest.raises(BlockingIOError):
        os.read(reader, 9)
