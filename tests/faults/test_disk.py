"""A node's folder on a small file system that fills up: it waits, serves, counts, and goes on by itself.

Each test runs in a thread with a mount namespace of its own, so that nothing of the machine sees the file system.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest

from heliograph_site.status import status as node_status
from rigs import AGENT, FIRST, SECOND, Rig, rig

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000
SMALL_BYTES = 48 << 20


def with_a_small_disk(test: Callable[[Path, Path, Path], None]) -> Callable[[Path, Path], None]:
    """Calls the test with a folder on a tmpfs that only its thread and what that starts can see."""

    @wraps(test)
    def wrapped(tmp_path: Path, prepared: Path) -> None:
        failures: list[BaseException] = []
        small = tmp_path / "small"
        small.mkdir()

        def run() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            try:
                if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None):
                    pytest.skip("needs root for a mount namespace")
                if libc.mount(b"tmpfs", str(small).encode(), b"tmpfs", 0, f"size={SMALL_BYTES}".encode()):
                    pytest.skip(f"can't mount a tmpfs here: {os.strerror(ctypes.get_errno())}")
                test(tmp_path, prepared, small)
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    del wrapped.__wrapped__  # type: ignore[attr-defined]  # pytest would look there for the arguments
    return wrapped


def fill(folder: Path, leave: int = 0) -> Path:
    """Takes all space but `leave` bytes; what takes it is to be removed."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        stat = os.statvfs(folder)
        try:
            for _ in range(max(0, stat.f_bavail * stat.f_frsize - leave) // 4096):
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


def waits_for_disk(node: Rig) -> bool:
    return "more bytes of free disk" in node.model()["waiting"]


@pytest.mark.full  # it looks for room every half minute
@with_a_small_disk
def test_a_release_waits_for_room_and_a_disk_that_fills_up_on_the_way_is_waited_out(
    tmp_path: Path, prepared: Path, small: Path
) -> None:
    with rig(tmp_path / "realm", prepared, rate=60_000, node_dir=small / "till") as node:
        ballast = fill(small, leave=8 << 20)
        node.roll_out(SECOND)
        node.until(lambda: waits_for_disk(node), "it says what it waits for")
        assert node.phase() == "checking"
        assert node.answer() == FIRST
        known = node.realm.cli_json("fleet", "show", "shop/till")
        assert "more bytes of free disk" in str(known) or known["link"] == "up"
        ballast.unlink()
        # It looks again by itself, every half minute.
        node.until(lambda: node.phase() == "fetching", "it goes on by itself")
        ballast = fill(small)
        node.until(lambda: node.phase() != "fetching" or node.log().count("the agent ended"), "the disk takes nothing")
        assert node.answer() == FIRST
        ballast.unlink()
        node.until(lambda: node.phase() == "proving" and node.answer() == SECOND, "1.1.0 serves", 120)
        assert (node.model()["fallback"] or {})["release"] == f"digits@{FIRST}"
        node.until(node.is_receipted, "every record is receipted")
        node.check_records_once()


@with_a_small_disk
def test_a_node_that_starts_on_a_full_disk_serves_and_counts_what_it_could_not_keep(
    tmp_path: Path, prepared: Path, small: Path
) -> None:
    with rig(tmp_path / "realm", prepared, node_dir=small / "till") as node:
        for end in (node.kill, node.stop):
            end()
            ballast = fill(small)
            node.start()
            node.until(lambda: node.answer() == FIRST, f"1.0.0 serves on a full disk after {end.__name__}")
            assert node.realm._nodes["shop/till"].is_alive
            ballast.unlink()
            node.until(lambda: node.is_up() and node.pid(AGENT), "the agent is back by itself")
        node.until(node.is_receipted, "every record is receipted")
        node.check_records_once()
        lanes = node_status(node.folder)["outbox"]
        assert {lane: facts["lost"] for lane, facts in lanes.items()} == dict.fromkeys(lanes, 0)
        assert node.rests_on(FIRST)
