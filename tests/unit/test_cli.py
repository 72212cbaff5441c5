"""The command: one subcommand loaded, one line told, one exit code for each ending."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import heliograph

Run = Callable[..., subprocess.CompletedProcess[str]]

PROBE = """
import os, signal, sys
import typer
from heliograph.errors import NotFoundError, RefusedError, TrustError, WaitError
app = typer.Typer(help="Ends in every way there is.")

@app.command()
def refuse() -> None:
    print("data")
    raise RefusedError("the gate\\nsaid\\x1b[2J no")

@app.command()
def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()

@app.command()
def talk() -> None:
    while True:
        print("line after line")

@app.command()
def read() -> None:
    open("/nowhere/at/all")

@app.command()
def crash() -> None:
    raise ZeroDivisionError

@app.command()
def six() -> None:
    raise typer.Exit(6)

@app.command()
def loaded() -> None:
    print([name for name in sys.modules if name.startswith(("heliograph_", "heliograph.delta"))])
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs heliograph in a process where two more packages are installed: `probe`, and `ghost`, whose extra is not."""
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "heliograph_ghost").mkdir()
    (tmp_path / "heliograph_ghost" / "__init__.py").touch()
    (tmp_path / "heliograph_ghost" / "commands.py").write_text("import ectoplasm.pure\n")
    facts = tmp_path / "probe-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(
        "[heliograph.commands]\n"
        "probe = probe:app\n"
        "ghost = heliograph_ghost.commands:app\n"
        "lost = heliograph_lost.commands:app\n"
    )

    def go(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "heliograph.cli", *args],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )

    return go


def test_help_lists_every_subcommand_even_those_that_lack_their_extra(run: Run) -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].strip().splitlines()]
    assert listed == sorted(
        {point.name for point in entry_points(group="heliograph.commands")} | {"probe", "ghost", "lost"}
    )
    assert "Ends in every way there is." in done.stdout


def test_the_version_is_data(run: Run) -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"heliograph {heliograph.__version__}\n", "")


@pytest.mark.parametrize(
    "args", [[], ["nonsense"], ["--nonsense"], ["delta"], ["delta", "nonsense"], ["delta", "make", "one"]]
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(run: Run, args: list[str]) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: heliograph" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_ours_is_one_line_and_its_exit_code(run: Run) -> None:
    done = run("probe", "refuse")
    assert (done.returncode, done.stdout, done.stderr) == (4, "data\n", "heliograph: the gate said [2J no\n")


def test_an_error_of_the_operating_system_is_one_line(run: Run) -> None:
    done = run("probe", "read")
    assert (done.returncode, done.stderr) == (1, "heliograph: /nowhere/at/all: No such file or directory\n")


def test_a_programmers_error_crashes_with_its_traceback(run: Run) -> None:
    done = run("probe", "crash")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_an_exit_code_of_the_subcommand_is_kept(run: Run) -> None:
    assert run("probe", "six").returncode == 6


def test_ctrl_c_exits_130_with_one_line(run: Run) -> None:
    done = run("probe", "interrupt")
    assert (done.returncode, done.stderr) == (130, "heliograph: interrupted\n")


def test_ctrl_c_while_the_program_is_loaded_ends_it_alike(run: Run, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n")
    done = run("--version")
    assert (done.returncode, done.stderr) == (130, "heliograph: interrupted\n")


def test_the_entrance_loads_nothing_before_it_minds_ctrl_c() -> None:
    program = "import sys; before = {*sys.modules}; import heliograph.cli; print(sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['heliograph', 'heliograph.cli']\n"


def test_a_reader_that_goes_away_ends_the_command_quietly(run: Run, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "heliograph.cli", "probe", "talk"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(tmp_path)},
    ) as talker:
        assert talker.stdout is not None
        assert talker.stderr is not None
        assert talker.stdout.readline() == b"line after line\n"
        talker.stdout.close()
        assert talker.stderr.read() == b""
        assert talker.wait(timeout=60) == 1


@pytest.mark.parametrize("args", [["ghost"], ["ghost", "do", "--this"], ["ghost", "--help"]])
def test_a_missing_extra_is_named_in_one_sentence(run: Run, args: list[str]) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "heliograph: ghost needs ectoplasm: pip install 'heliograph[ghost]'\n"


def test_a_missing_module_of_ours_is_a_broken_installation(run: Run) -> None:
    done = run("lost")
    assert done.returncode == 2
    assert (
        done.stderr == "heliograph: lost can't run: the module heliograph_lost is missing; install heliograph again\n"
    )


def test_only_the_subcommand_asked_for_is_imported(run: Run) -> None:
    done = run("probe", "loaded")
    assert (done.returncode, done.stdout) == (0, "[]\n")
