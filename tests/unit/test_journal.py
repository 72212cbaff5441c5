"""The journal: whole or not at all, old versions load, newer and damaged ones are refused in one sentence."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliograph.errors import ConfigError
from heliograph_site.journal import Held, Journal, TimeMark
from heliograph_site.machine import Memory, Pointer, Refused, Target

DATA = Path(__file__).parents[1] / "data"
A, B = b"a" * 32, b"b" * 32
FULL = Memory(
    "digits",
    "proving",
    7,
    Target(B, 3),
    True,
    Pointer(B, 1700000100, 3, "unproven", 1, 2),
    Pointer(A, 1700000000, 1, "proven"),
    (Refused(b"c" * 32, 2, "golden outputs differ"),),
    "because",
)

digests = st.binary(min_size=32, max_size=32)
pointers = st.builds(
    Pointer, digests, st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(["proven", "unproven", "failed"])
)
memories = st.builds(
    Memory,
    st.just("digits"),
    st.sampled_from(["idle", "fetching", "rolling-back", "stuck"]),
    st.integers(0, 2**40),
    st.none() | st.builds(Target, digests, st.integers(0, 2**40)),
    st.booleans(),
    st.none() | pointers,
    st.none() | pointers,
    st.lists(st.builds(Refused, digests, st.integers(0, 99), st.text(max_size=40)), max_size=4).map(tuple),
    st.text(max_size=40),
)


@given(memories)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_memory_comes_back_as_it_was_saved(tmp_path: Path, memory: Memory) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.save(memory)
        assert journal.load("digits") == memory
    with Journal(tmp_path / "j") as journal:
        assert journal.load("digits") == memory
        assert journal.models() == ("digits",)


def test_a_model_never_seen_has_an_empty_memory(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal.load("digits") == Memory("digits")
        assert journal.models() == ()


def test_a_crash_between_memory_and_pointers_leaves_both_as_before(tmp_path: Path) -> None:
    before = replace(FULL, phase="activating", active=FULL.fallback, fallback=None)
    with Journal(tmp_path / "j") as journal:
        journal.save(before)
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.execute("CREATE TRIGGER crash BEFORE INSERT ON pointer BEGIN SELECT RAISE(ABORT, 'power cut'); END")
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(sqlite3.IntegrityError, match="power cut"):
            journal.save(FULL)
        assert journal.load("digits") == before


def test_what_was_saved_survives_a_killed_process(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from heliograph_site.journal import Journal; from heliograph_site.machine import Memory\n"
        "journal = Journal(Path(sys.argv[1])); journal.save(Memory('digits', 'fetching', 9))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, os.fspath(tmp_path / "j")], check=False)
    assert done.returncode == -signal.SIGKILL
    with Journal(tmp_path / "j") as journal:
        assert (journal.load("digits").phase, journal.load("digits").epoch) == ("fetching", 9)


def test_every_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal._conn.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert journal._conn.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_the_server_reads_pointers_without_writing_while_the_agent_holds_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert Journal.pointers(path) == {}
    assert not path.exists()
    with Journal(path) as journal:
        assert Journal.pointers(path) == {}
        journal.save(FULL)
        assert Journal.pointers(path) == {"digits": FULL.active}
        assert Journal.pointers(path, "fallback") == {"digits": FULL.fallback}


def test_documents_and_counters_are_held_by_kind_and_name(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.hold(Held("directive", "digits", 1, b"one"), Held("directive", "tones", 1, b"two"))
        journal.hold(Held("directive", "digits", 2, b"three"), Held("assignment", "", 5, b"four"))
        assert journal.held("directive") == (
            Held("directive", "digits", 2, b"three"),
            Held("directive", "tones", 1, b"two"),
        )
        journal.drop("directive")
        assert journal.held("directive") == ()
        assert journal.held("assignment")[0].number == 5
        assert journal.counter("bytes_received") == 0
        journal.save_counters(bytes_received=12)
        journal.save_time(TimeMark(1700000000, "boot", 12.5))
        journal.save_trusted(b"state")
        journal.save_link(True)
        journal.save_waiting({"digits": "an offer"})
        journal.name_release(A, "digits", "1.0.0")
    with Journal(tmp_path / "j", read_only=True) as journal:
        assert journal.counter("bytes_received") == 12
        assert journal.time_mark() == TimeMark(1700000000, "boot", 12.5)
        assert (journal.trusted(), journal.link()) == (b"state", "up")
        assert journal.waiting() == {"digits": "an offer"}
        assert (journal.release_name(A), journal.release_name(B)) == ("digits@1.0.0", None)


def test_a_journal_of_version_1_loads(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.executescript((DATA / "journal-1.sql").read_text())
    with Journal(tmp_path / "j") as journal:
        assert journal.load("digits") == FULL
        assert journal.held("directive") == (Held("directive", "digits", 3, b"statement"),)
        assert journal.time_mark() == TimeMark(1700000000, "boot", 12.5)
        assert journal.release_name(B) == "digits@1.1.0"


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    Journal(tmp_path / "j").close()
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('journal', '0002', '')")
    before = (tmp_path / "j").read_bytes()
    for read_only in (False, True):
        with pytest.raises(
            ConfigError, match=r"j was written by a newer version \(schema 0002\): install that version"
        ):
            Journal(tmp_path / "j", read_only=read_only)
    with pytest.raises(ConfigError, match="newer version"):
        Journal.pointers(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_journal_is_named_in_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        for index in range(300):
            journal.name_release(index.to_bytes(32, "big"), "digits", f"1.0.{index}")
    with sqlite3.connect(path) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    at = 0 if damage == "header" else 4096 * 8
    data[at : at + 2000] = b"\xa5" * 2000
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"j can't be used: .*; move it away to start anew, or restore a copy"):
        Journal(path)


def test_reading_a_journal_that_is_not_there_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist: is this a node's folder"):
        Journal(tmp_path / "j", read_only=True)
