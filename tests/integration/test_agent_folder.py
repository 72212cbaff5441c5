"""An agent's folder and its process: joining, keys, status, one agent at a time, and the supervisor."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents import QUICK, Hub, enrol
from heliograph.cli import main
from heliograph.errors import HeliographError, IntegrityError, RefusedError, TransportError
from heliograph.lab import spawn
from heliograph_hub.client import HubClient
from heliograph_site.folder import agent_lock
from heliograph_site.joining import join
from heliograph_site.journal import JOURNAL_FILE, Journal
from heliograph_site.serving.control import ServerControl
from rigs import children, command_line
from waits import until, until_asked

IMPATIENT = """
import sys
from pathlib import Path
from heliograph_site.supervisor import supervise
sys.exit(supervise(Path(sys.argv[1]), silence_s=5.0))
"""
"""A supervisor that a short silence is too long for."""


@pytest.fixture(scope="module")
def quiet_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One hub for tests that roll nothing out: a ring's releases are meant for every node in it."""
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


def test_a_second_agent_on_the_same_folder_is_refused(
    quiet_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(quiet_hub, tmp_path, capsys, "twice")
    with agent_lock(node.folder):
        argv = [sys.executable, "-m", "heliograph_site.agent", str(node.folder)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "an agent runs on" in done.stderr and "already: stop it first" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_agent_loads_no_model_runtime_and_no_command_line_library() -> None:
    unwanted = ("numpy", "tflite_runtime", "ai_edge_litert", "typer", "rich", "starlette", "uvicorn", "sqlalchemy")
    program = f"import sys, heliograph_site.agent; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_status_says_everything_while_the_agent_is_stopped(
    quiet_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(quiet_hub, tmp_path, capsys, "status")
    capsys.readouterr()
    assert main(["node", "status", str(node.folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {
        "site", "node", "link", "bytes_received", "models", "trust", "documents", "outbox", "http", "certificate",
    }  # fmt: skip
    assert (facts["site"], facts["node"], facts["link"], facts["models"]) == ("status", "n1", "down", {})
    assert facts["trust"]["deny"] == {"count": 0, "digest": None}
    assert facts["trust"]["versions"]["root"] == 1
    zeros = {"next_seq": 0, "acked_seq": 0, "kept": 0, "merged": 0, "lost": 0}
    assert facts["outbox"] == dict.fromkeys(("incident", "audit", "metric", "sample"), zeros)
    assert main(["node", "status", str(node.folder)]) == 0
    assert "status/n1: link down" in capsys.readouterr().out


def test_the_key_is_the_owners_only_and_joining_twice_harms_nothing(
    quiet_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(quiet_hub, tmp_path, capsys, "joins")
    assert (node.folder / "node.key").stat().st_mode & 0o777 == 0o600
    before = (node.folder / "node.key").read_bytes()
    string = quiet_hub.token(capsys, "joins/n1")
    with pytest.raises(RefusedError, match="has joined already"):
        asyncio.run(join(string, node.folder, 0, Random(1), QUICK))
    assert (node.folder / "node.key").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node"]


@pytest.mark.parametrize(
    ("change", "family", "says"),
    [
        ({"root": b"r" * 32}, IntegrityError, "the root of realm lab is not the one that the join string names"),
        ({"token": b"t" * 32}, RefusedError, "errs/n1 brought a token that is not its own; print a new one with"),
        ({"realm": "other"}, TransportError, "the broker holds nothing of realm other: check that its hub is running"),
        ({"port": 1}, TransportError, "no hub answers at 127.0.0.1:1 within 5 s"),
    ],
)
def test_joining_fails_in_one_sentence_and_leaves_nothing(
    quiet_hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    family: type[HeliographError],
    says: str,
) -> None:
    string = replace(quiet_hub.token(capsys, "errs/n1"), **change)
    soon = QUICK if family is RefusedError else replace(QUICK, enroll_s=5.0)  # what never comes is waited for so long
    with pytest.raises(family) as failure:
        asyncio.run(join(string, tmp_path / "node", 0, Random(1), soon))
    assert says in str(failure.value)
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_good_once(quiet_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    string = quiet_hub.token(capsys, "once/n1")
    asyncio.run(join(string, tmp_path / "first", 0, Random(1), QUICK))
    with pytest.raises(RefusedError, match="once/n1 brought a token that was used before"):
        asyncio.run(join(string, tmp_path / "second", 0, Random(1), QUICK))
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_the_supervisor_restarts_a_killed_agent_and_stops_cleanly(
    quiet_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(quiet_hub, tmp_path, capsys, "watched")
    running = spawn([sys.executable, "-m", "heliograph_site.supervisor", node.folder], tmp_path / "run.log")

    def agent_pid() -> int | None:
        mine = children(running.process.pid)
        return next((pid for pid in mine if "heliograph_site.agent" in command_line(pid)), None)

    async def live() -> None:
        await until(lambda: "link is up" in running.output(), "the agent is up")
        first = agent_pid()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: agent_pid() not in (None, first), "another agent runs")
        await until(lambda: running.output().count("link is up") >= 2, "and is up")

    try:
        asyncio.run(live())
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
    finally:
        running.kill()
    with Journal(node.folder / JOURNAL_FILE, read_only=True) as journal:
        assert journal.link() == "down"


def test_an_agent_that_hangs_is_replaced_and_tells_the_hub_while_the_server_goes_on(
    quiet_hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(quiet_hub, tmp_path, capsys, "hangs")
    running = spawn([sys.executable, "-c", IMPATIENT, node.folder], tmp_path / "run.log")
    server = ServerControl(node.folder / "control.sock")

    def agent_pid() -> int | None:
        mine = children(running.process.pid)
        return next((pid for pid in mine if "heliograph_site.agent" in command_line(pid)), None)

    def incidents() -> list[str]:
        rows = HubClient(str(quiet_hub.folder)).get("/v1/fleet/hangs/n1/records/incident")
        return [row["kind"] for row in rows]

    def is_serving() -> bool:
        try:
            return bool(asyncio.run(server.status()))
        except TransportError:
            return False

    async def live() -> None:
        await until(lambda: "link is up" in running.output(), "the agent is up")
        await until_asked(is_serving, "the server is up")
        before = await server.status()
        frozen = agent_pid()
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
        answered = 0
        while agent_pid() == frozen:
            assert (await server.status())["pid"] == before["pid"]
            answered += 1
        assert answered > 10
        await until_asked(lambda: "agent-silent" in incidents(), "the one after it tells the hub")
        assert (await server.status())["pid"] == before["pid"], "serving isn't touched"

    try:
        asyncio.run(live())
        assert "the agent gave no sign of life for 5 s: killed" in running.output()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
    finally:
        running.kill()
