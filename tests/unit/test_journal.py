"""The journal: whole or not at all, old versions load, newer and damaged ones are refused in one sentence."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliograph.errors import ConfigError
from heliograph_site.journal import Held, Journal, Paper
from heliograph_site.memory import Memory, Pointer, Refused, Target
from heliograph_site.reckoning import TimeMark

DATA = Path(__file__).parents[1] / "data"
A, B = b"a" * 32, b"b" * 32
V1 = Memory(
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
FULL = replace(
    V1,
    target=Target(B, 3, "digits/1.1.0", (b"k" * 32, b"l" * 32)),
    active=Pointer(B, 1700000100, 3, "unproven", 1, 2, "digits/1.1.0", (b"k" * 32, b"l" * 32), "closed", 0, "once"),
    fallback=Pointer(A, 1700000000, 1, "proven", 0, 0, "digits/1.0.0", (b"m" * 32,), "safe", 5),
    earlier=Pointer(b"d" * 32, 1600000000, 0, "unproven"),
    tries=2,
    cuts=1,
    is_healthy=True,
)
BARE: dict[str, Any] = {"path": "", "vouchers": (), "fail_mode": "safe", "proven": 0, "denied": ""}

digests = st.binary(min_size=32, max_size=32)
keyids = st.lists(digests, max_size=3).map(tuple)
pointers = st.builds(
    Pointer,
    digests,
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.sampled_from(["proven", "unproven", "failed"]),
    path=st.sampled_from(["", "digits/1.0.0"]),
    vouchers=keyids,
    fail_mode=st.sampled_from(["safe", "closed"]),
    proven=st.integers(0, 2**40),
    denied=st.sampled_from(["", "once", "finally"]),
)
memories = st.builds(
    Memory,
    st.just("digits"),
    st.sampled_from(["idle", "fetching", "rolling-back", "stuck"]),
    st.integers(0, 2**40),
    st.none() | st.builds(Target, digests, st.integers(0, 2**40), st.sampled_from(["", "digits/2.0.0"]), keyids),
    st.booleans(),
    st.none() | pointers,
    st.none() | pointers,
    st.lists(st.builds(Refused, digests, st.integers(0, 99), st.text(max_size=40)), max_size=4).map(tuple),
    st.text(max_size=40),
    st.none() | pointers,
    st.integers(0, 9),
    st.integers(0, 9),
    st.booleans(),
    st.none() | pointers,
    policy=st.integers(0, 9),
    ring=st.sampled_from(["", "canary"]),
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


def test_denials_and_what_every_machine_makes_of_them_are_saved_together_or_not_at_all(tmp_path: Path) -> None:
    other = replace(FULL, model="tones")
    with Journal(tmp_path / "j") as journal:
        journal.save(FULL, other, denials=b"one")
        moved = [
            replace(memory, phase="rolling-back", active=memory.fallback, fallback=None) for memory in (FULL, other)
        ]
        with sqlite3.connect(tmp_path / "j") as conn:
            conn.execute(
                "CREATE TRIGGER crash BEFORE INSERT ON pointer WHEN NEW.model = 'tones'"
                " BEGIN SELECT RAISE(ABORT, 'power cut'); END"
            )
        with pytest.raises(sqlite3.IntegrityError, match="power cut"):
            journal.save(*moved, denials=b"two")
        assert (journal.denials(), journal.load("digits"), journal.load("tones")) == (b"one", FULL, other)
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.execute("DROP TRIGGER crash")
    with Journal(tmp_path / "j") as journal:
        journal.save(*moved, denials=b"two")
        assert [journal.denials(), journal.load("digits"), journal.load("tones")] == [b"two", *moved]


def test_a_life_that_nobody_ended_was_not_orderly(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal.was_orderly()
        journal.save_life(True)
    with Journal(tmp_path / "j") as journal:
        assert not journal.was_orderly()
        journal.save_life(False)
        assert journal.was_orderly()


def test_what_was_saved_survives_a_killed_process(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from heliograph_site.journal import Journal; from heliograph_site.memory import Memory\n"
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
        assert FULL.active is not None and FULL.fallback is not None
        assert Journal.pointers(path) == {"digits": replace(FULL.active, **BARE)}
        assert Journal.pointers(path, "fallback") == {"digits": replace(FULL.fallback, **BARE)}


def test_documents_and_counters_are_held_by_kind_and_name(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.hold(Held("directive", "digits", 1, b"one"), Held("directive", "tones", 1, b"two"))
        journal.hold(Held("directive", "digits", 2, b"three"), Held("assignment", "", 5, b"four"))
        assert journal.held("directive") == (
            Held("directive", "digits", 2, b"three"),
            Held("directive", "tones", 1, b"two"),
        )
        journal.hold(Held("assignment", "", 6, b"five"), drop="directive")
        assert journal.held("directive") == ()
        assert journal.held("assignment")[0].number == 6
        assert journal.counter("bytes_received") == 0
        journal.save_counters(bytes_received=12)
        journal.save_times(TimeMark(1700000000, "boot", 12.5, (A,)))
        journal.save_trusted(b"state")
        journal.save_link(True)
        journal.save_waiting({"digits": "an offer"})
        journal.name_release(A, "digits", "1.0.0")
    with Journal(tmp_path / "j", read_only=True) as journal:
        assert journal.counter("bytes_received") == 12
        assert journal.time_mark() == TimeMark(1700000000, "boot", 12.5)
        assert journal.time_marks() == (TimeMark(1700000000, "boot", 12.5, (A,)),)
        assert (journal.trusted(), journal.link()) == (b"state", "up")
        assert journal.waiting() == {"digits": "an offer"}
        assert (journal.release_name(A), journal.release_name(B)) == ("digits@1.0.0", None)


def test_the_ring_of_a_policy_is_forgotten_once_an_agent_saved_another_number_without_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.save(Memory("digits", policy=3, ring="canary"))
        assert journal.load("digits").ring == "canary"
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.execute("UPDATE machine SET policy = 4")
    with Journal(tmp_path / "j") as journal:
        assert (journal.load("digits").policy, journal.load("digits").ring) == (4, "")


def test_a_journal_of_version_1_loads(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.executescript((DATA / "journal-1.sql").read_text())
    assert Journal.pointers(tmp_path / "j") == {"digits": V1.active}, "the server need not wait for the agent"
    with pytest.raises(ConfigError, match="older schema"):
        Journal(tmp_path / "j", read_only=True)
    with Journal(tmp_path / "j") as journal:
        assert journal.load("digits") == V1
        assert journal.denials() is None
        assert journal.was_orderly()
        assert journal.held("directive") == (Held("directive", "digits", 3, b"statement"),)
        assert journal.time_mark() == TimeMark(1700000000, "boot", 12.5)
        assert journal.release_name(B) == "digits@1.1.0"


def test_who_reads_waits_for_a_file_that_is_just_being_brought_up_to_date(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.executescript((DATA / "journal-1.sql").read_text())
    writer = threading.Timer(0.2, lambda: Journal(tmp_path / "j").close())
    writer.start()
    try:
        with Journal(tmp_path / "j", read_only=True) as journal:
            assert journal.load("digits") == V1
    finally:
        writer.join()


def test_a_journal_of_version_2_loads(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.executescript((DATA / "journal-2.sql").read_text())
    assert Journal.configs(tmp_path / "j") == {}
    with Journal(tmp_path / "j") as journal:
        assert journal.load("digits") == FULL
        assert journal.papers() == ()
        assert journal.denials() == b"denials"
        assert journal.release_name(B) == "digits@1.1.0"


PAPERS = (
    Paper("config", "digits", 3, b"a config", 1700000001, newest_until=4),
    Paper("policy", "canary", 5, b"a policy", 1700000002),
)


def test_a_journal_of_version_4_loads(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.executescript((DATA / "journal-4.sql").read_text())
    with Journal(tmp_path / "j") as journal:
        active = journal.load("digits").active
        assert active is not None
        assert FULL.active is not None
        assert journal.load("digits") == replace(FULL, policy=5, active=replace(FULL.active, passed_over=2))
        assert journal.papers() == PAPERS
        assert journal.spent("2026-11-22", "2026-11-23") == 4096


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    Journal(tmp_path / "j").close()
    with sqlite3.connect(tmp_path / "j") as conn:
        conn.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('journal', '9999', '')")
    before = (tmp_path / "j").read_bytes()
    for read_only in (False, True):
        with pytest.raises(
            ConfigError, match=r"j was written by a newer version \(schema 9999\): install that version"
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
