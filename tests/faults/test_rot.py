"""Bytes that rot on a node's disk while it is off: they are never served, and what was good takes their place."""

from pathlib import Path

import pytest

from heliograph.errors import ConfigError
from heliograph.manifest import Manifest
from heliograph.names import Digest
from heliograph.objects import ObjectStore
from heliograph_site.status import status as node_status
from rigs import FIRST, SECOND, THIRD, Rig, rig


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x01]))


def weights(node: Rig, slot: str) -> Path:
    """The model file of the release in the slot."""
    store = ObjectStore(node.folder / "objects")
    digest = Digest(bytes.fromhex(node.model()[slot]["digest"]))
    data = store.read(digest)
    largest = max(Manifest.parse(data, digest, len(data)).files, key=lambda file: file.length)
    return store.path(Digest(largest.sha256))


def test_an_active_release_that_rotted_is_not_served_and_the_fallback_is(tmp_path: Path, prepared: Path) -> None:
    with rig(tmp_path / "realm", prepared) as node:
        node.roll_out(THIRD)
        node.await_rest(THIRD)
        node.stop()
        rotten = weights(node, "active")
        flip(rotten, 1_000_000)
        node.start()
        node.await_rest(FIRST)
        refused = node.model()["refused"][0]
        assert refused["release"] == f"digits@{THIRD}" and "is rotten" in refused["reason"]
        node.until(node.is_receipted, "the hub knows")
        assert "ActiveLost" in node.events()


@pytest.mark.full
def test_a_fallback_that_rotted_is_not_used_and_what_is_denied_serves_on_flagged(
    tmp_path: Path, prepared: Path
) -> None:
    with rig(tmp_path / "realm", prepared) as node:
        node.roll_out(THIRD)
        node.await_rest(THIRD)
        node.stop()
        flip(weights(node, "fallback"), 1_000_000)
        node.start()
        node.await_rest(THIRD)
        node.deny(f"digits@{THIRD}", 1)
        node.until(lambda: node.model()["flag"] and node.phase() == "idle", "nothing else is left")
        assert node.answer() == THIRD
        refused = [refusal["reason"] for refusal in node.model()["refused"] if refusal["release"] == f"digits@{FIRST}"]
        assert refused and "is rotten" in refused[0]
        node.until(node.is_receipted, "the hub knows")
        events = node.events()
        assert events[events.index("ActiveDenied") :][:3] == ["ActiveDenied", "ActiveLost", "Served"]
        node.deny(f"digits@{THIRD}", 2)
        final = [False, True]
        node.until(
            lambda: [body["is_final"] for body in node.records("incident", "denied")] == final, "the second is heard of"
        )
        assert node.answer() == THIRD and node.model()["flag"], "its fail mode is safe"


def is_there(path: Path, count: int) -> bool:
    """Whether so many bytes have come, leaf by leaf: the room for all of them is taken at once."""
    data = path.read_bytes()[:count]
    return len(data) == count and all(any(data[at : at + 4096]) for at in range(0, count, 4096))


def test_a_part_that_rotted_is_fetched_again_and_a_journal_that_did_is_told_in_one_sentence(
    tmp_path: Path, prepared: Path
) -> None:
    with rig(tmp_path / "realm", prepared, rate=60_000) as node:
        node.roll_out(SECOND)
        incoming = node.folder / "incoming"

        def part() -> Path | None:
            parts = [p for p in incoming.iterdir() if p.suffix in (".patch", ".part")]
            return parts[0] if parts and is_there(parts[0], 65_536) else None

        node.until(part, "a part of 1.1.0 is here")
        node.kill()
        path = part()
        assert path is not None
        flip(path, 5_000)
        flip(path, 40_000)
        node.start()
        node.until(lambda: node.phase() == "proving" and node.answer() == SECOND, "1.1.0 serves")
        node.stop()

        journal = node.folder / "journal.sqlite"
        whole = journal.read_bytes()
        for at in range(100, len(whole), 512):
            flip(journal, at)
        node.start()
        running = node.realm._nodes["shop/till"]
        assert running.process.wait(90) == 2, "only the operator can mend that"
        told = [line for line in node.log().splitlines() if "can't be used" in line]
        assert told and "move it away to start anew, or restore a copy" in told[-1]
        assert "Traceback" not in node.log()
        try:
            node_status(node.folder)
        except ConfigError as error:
            assert "can't be used" in str(error)
        else:
            raise AssertionError("status read a journal that is damaged")
        # Which release may serve stands in the journal alone: without it none does. With a copy, all is well.
        journal.write_bytes(whole)
        for name in ("journal.sqlite-wal", "journal.sqlite-shm"):
            (node.folder / name).unlink(missing_ok=True)
        node.start()
        node.until(lambda: node.answer() == SECOND, "1.1.0 serves again")
