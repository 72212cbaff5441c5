"""What the supervisor says before it starts anything, and what it does about an agent that goes on and does nothing."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph.lab import spawn
from heliograph_site.supervisor import LOCK_FILE, _Agent
from waits import eventually

AGENT = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
said = os.environ["HELIOGRAPH_PULSE"]
with open(sys.argv[1] + "/lives", "a") as file:
    print(os.getpid(), said, file=file)
while True:
    signal.sigwait([signal.SIGUSR1])
    os.write(int(said.split()[0]), b"x")
"""
SERVER = "import signal; signal.pause()"
SUPERVISOR = """
import sys
from pathlib import Path
from heliograph_site.supervisor import supervise
sys.exit(supervise(Path(sys.argv[1]), 0.5, float(sys.argv[2]), {"agent": "an_agent", "server": "a_server"}))
"""


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


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an agent that gives a sign of life whenever it is sent SIGUSR1, and writes of its lives."""
    (tmp_path / "an_agent.py").write_text(AGENT)
    (tmp_path / "a_server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return tmp_path


def lives(folder: Path) -> list[list[str]]:
    """Of each life the process, the pipe, how often a sign is expected, and how long the last agent was silent."""
    path = folder / "lives"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def agent(programs: Path) -> Iterator[_Agent]:
    """Runs, and may be silent for 300 s, before its first sign for 600 s."""
    agent = _Agent("an_agent", programs, 300.0, 600.0)
    agent.start_if_due()
    eventually(lambda: lives(programs), "the agent runs")
    yield agent
    if agent.process is not None:
        agent.process.kill()
        agent.process.wait()


def let_pass(agent: _Agent, seconds: int) -> None:
    for _ in range(seconds):
        agent.end_if_silent(1.0)


def give_sign(agent: _Agent) -> None:
    assert agent.process is not None
    agent._silent_s += 0.5  # else nobody could see that it came
    agent.process.send_signal(signal.SIGUSR1)

    def is_heard() -> bool:
        agent.end_if_silent(0.0)
        return agent._silent_s == 0

    eventually(is_heard, "the sign is heard")


def test_an_agent_that_gives_signs_stays_and_one_that_gives_none_any_more_is_killed_and_started_again(
    agent: _Agent, programs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert agent.process is not None
    for _ in range(3):
        give_sign(agent)
        let_pass(agent, 299)
    assert agent.process.poll() is None and capfd.readouterr().err == ""
    let_pass(agent, 1)
    assert agent.process.wait(60) == -signal.SIGKILL
    assert capfd.readouterr().err == "heliograph: the agent gave no sign of life for 300 s: killed\n"
    assert agent.ended() == -signal.SIGKILL
    agent._due = 0.0
    agent.start_if_due()
    eventually(lambda: len(lives(programs)) == 2, "another one runs")
    assert [life[2:] for life in lives(programs)] == [["30", "0"], ["30", "300"]], "it knows why"
    give_sign(agent)
    assert agent._killed_after_s == 0, "and the one after it isn't told again"


def test_before_its_first_sign_an_agent_has_longer(agent: _Agent) -> None:
    assert agent.process is not None
    let_pass(agent, 599)
    assert agent.process.poll() is None
    let_pass(agent, 1)
    assert agent.process.wait(60) == -signal.SIGKILL


def test_time_that_the_supervisor_did_not_live_through_is_no_silence(agent: _Agent) -> None:
    assert agent.process is not None
    give_sign(agent)
    for _ in range(100):
        agent.end_if_silent(86400.0)
    assert agent.process.poll() is None
    assert agent._silent_s == 100


def test_a_frozen_agent_is_replaced_while_the_server_goes_on(programs: Path) -> None:
    running = spawn([sys.executable, "-c", SUPERVISOR, programs, "3600"], programs / "run.log")
    try:
        eventually(lambda: lives(programs), "the agent runs")
        os.kill(int(lives(programs)[0][0]), signal.SIGUSR1)  # its only sign
        eventually(lambda: len(lives(programs)) == 2, "another one runs")
        assert lives(programs)[1][2:] == ["0.05", "0.5"]
        running.process.terminate()
        assert running.process.wait(60) == 0
    finally:
        running.kill()
    told = [line for line in running.output().splitlines() if line.startswith("heliograph:")]
    assert told == [
        "heliograph: the agent gave no sign of life for 0.5 s: killed",
        "heliograph: the agent ended (SIGKILL)",
    ]
