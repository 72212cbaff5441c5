"""A node's processes under a wall clock that is wrong by decades: they take releases, serve on, and say so."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from heliograph_site.status import status as node_status
from rigs import FIRST, MODEL, NODE, THIRD, VITAL, Load, Rig, rig

YEAR_1970, YEAR_2040 = 3_600, 2_208_988_800
CLOCK = """
import time

_true = time.time
time.time = lambda: _true() + {ahead_s}
time.time_ns = lambda: int(time.time() * 1e9)
"""
"""Read by every Python that starts with its folder on the path. (libfaketime breaks the sleeps of Python 3.11.)"""


@contextlib.contextmanager
def wall_clock(folder: Path, at: int) -> Iterator[None]:
    """What starts while this lasts reads this time from the wall clock, and the true one from the clock of the boot."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CLOCK.format(ahead_s=at - int(time.time())))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}".rstrip(os.pathsep)
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before
        if not before:
            del os.environ["PYTHONPATH"]


def takes(node: Rig, at: int, model: str, version: str) -> None:
    """Started anew at that time, the node serves what it did and takes what is new; its clock is told as wrong."""
    node.kill()
    with wall_clock(node.realm.folder / f"in-{at}", at):
        node.start()
    node.until(lambda: node.is_up() and node.answer() == FIRST, "it is connected and serves")
    with Load(node.realm.url(NODE)) as load:
        node.roll_out(version, model)
        node.await_rest(version, model)
        shown = "by what was signed: it is ignored"
        node.until(lambda: shown in node_status(node.folder)["trust"]["clock"], "it shows that its clock is ignored")
    assert not load.failures()


def test_a_node_that_boots_in_1970_and_then_in_2040_takes_what_is_new_and_serves_on(
    tmp_path: Path, prepared: Path
) -> None:
    with rig(tmp_path / "realm", prepared) as node:
        takes(node, YEAR_1970, VITAL, FIRST)
        takes(node, YEAR_2040, MODEL, THIRD)
        node.until(node.is_receipted, "every record is receipted")
        node.check_records_once()
