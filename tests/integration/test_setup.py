"""What the scripts set up on a machine: run with programs that stand for apt-get, pip and Python's venv."""

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A Python that answers questions truly, and makes an environment whose pip only writes down what it was asked.
PYTHON = """#!/bin/sh
case "$*" in
*"-m venv"*)
    for target; do :; done
    mkdir -p "$target/bin"
    : >"$target/pyvenv.cfg"
    echo "venv" >>"$LOG"
    [ -z "$FAIL_VENV" ] || exit 1
    cp "$0" "$target/bin/python"
    ;;
*"-m pip --version"*) echo pip ;;
*"-m pip install"*)
    echo "pip install $*" >>"$LOG"
    [ -z "$FAIL_PIP" ] || exit 1
    ;;
*) exec REAL "$@" ;;
esac
"""
APT = """#!/bin/sh
echo "apt-get $*" >>"$LOG"
[ -z "$FAIL_APT" ] || { echo "no route to host"; exit 1; }
case "$*" in *install*mosquitto*) printf '#!/bin/sh\\n' >"$BIN/mosquitto"; chmod +x "$BIN/mosquitto" ;; esac
"""


@dataclass
class Machine:
    """A project folder with a space in its path, and a PATH with nothing on it but what a test puts there."""

    folder: Path
    env: dict[str, str]

    def run(self, script: str, **env: str) -> subprocess.CompletedProcess[str]:
        # Mosquitto is looked for on this machine's PATH only; services and /usr/sbin are left alone.
        source = (
            f'. {shlex.quote(str(self.folder / "scripts" / "_env"))}; policy_file="$BIN/policy"; usual_mosquitto=; '
        )
        source += 'as_root() { "$@"; }; '
        return subprocess.run(
            ["bash", "-c", source + script], cwd="/", env=self.env | env, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip

    def log(self) -> list[str]:
        log = Path(self.env["LOG"])
        return log.read_text().splitlines() if log.exists() else []

    def has(self, name: str, text: str) -> Path:
        path = Path(self.env["BIN"]) / name
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    folder, programs = tmp_path / "the project", tmp_path / "bin"
    (folder / "scripts").mkdir(parents=True)
    programs.mkdir()
    (folder / "scripts" / "_env").write_bytes((ROOT / "scripts" / "_env").read_bytes())
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    needed = "bash sh cat cut env rm mkdir mktemp sha256sum dirname tail tee chmod ls cp"
    for name in needed.split():
        found = shutil.which(name)
        assert found, name
        (programs / name).symlink_to(found)
    env = {"PATH": str(programs), "BIN": str(programs), "LOG": str(tmp_path / "log"), "HOME": str(tmp_path)}
    made = Machine(folder, env)
    python = made.has("python3.11", PYTHON.replace("REAL", shlex.quote(sys.executable)))
    made.has("id", "#!/bin/sh\necho ${WHO:-1000}\n")
    made.env["HELIOGRAPH_PYTHON"] = str(python)
    return made


def test_without_the_right_to_install_the_wheel_broker_is_used_and_its_cost_is_told(machine: Machine) -> None:
    result = machine.run("setup")
    assert result.returncode == 0, result.stderr
    assert "in memory" in result.stderr
    assert [line for line in machine.log() if "pip install" in line and "[hub,site,dev,iotcore]" in line]


def test_a_mosquitto_that_may_not_be_run_is_none(machine: Machine) -> None:
    machine.has("mosquitto", "").chmod(0o644)
    assert machine.run("has_mosquitto").returncode == 1
    machine.has("mosquitto", "").chmod(0o755)
    assert machine.run("has_mosquitto").returncode == 0


def test_root_installs_mosquitto_says_so_and_uses_no_wheel(machine: Machine) -> None:
    machine.has("apt-get", APT)
    result = machine.run("setup", WHO="0")
    assert result.returncode == 0, result.stderr
    assert "installing Debian's mosquitto" in result.stderr
    assert "apt-get update" in machine.log()[0]
    assert machine.log()[1].endswith("install -o DPkg::Lock::Timeout=120 -y -q --no-install-recommends mosquitto")
    assert "iotcore" not in "".join(machine.log())
    assert not (Path(machine.env["BIN"]) / "policy").exists()


def test_passwordless_sudo_may_install_and_a_sudo_that_asks_may_not(machine: Machine) -> None:
    machine.has("apt-get", APT)
    machine.has("sudo", "#!/bin/sh\nexit 1\n")
    assert machine.run("may_install").returncode == 1
    machine.has("sudo", "#!/bin/sh\nexit 0\n")
    assert machine.run("may_install").returncode == 0
    assert machine.run("may_install", HELIOGRAPH_NO_APT="1").returncode == 1


def test_an_install_that_fails_falls_back_and_shows_why(machine: Machine) -> None:
    machine.has("apt-get", APT)
    result = machine.run("setup", WHO="0", FAIL_APT="1")
    assert result.returncode == 0, result.stderr
    assert "no route to host" in result.stderr
    assert "could not be installed" in result.stderr
    assert "iotcore" in machine.log()[-1]


def test_a_second_run_does_nothing_and_a_changed_pyproject_installs_again(machine: Machine) -> None:
    machine.has("mosquitto", "#!/bin/sh\n")
    assert machine.run("setup").returncode == 0
    first = machine.log()
    second = machine.run("setup")
    assert (second.returncode, second.stderr) == (0, "")
    assert machine.log() == first
    with (machine.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert machine.run("setup").returncode == 0
    added = machine.log()[len(first) :]
    assert len(added) == 1
    assert added[0].startswith("pip install")


@pytest.mark.parametrize("interrupted", ["FAIL_VENV", "FAIL_PIP"])
def test_an_interrupted_environment_is_finished_by_the_next_run(machine: Machine, interrupted: str) -> None:
    machine.has("mosquitto", "#!/bin/sh\n")
    assert machine.run("setup", **{interrupted: "1"}).returncode != 0
    again = machine.run("setup")
    assert again.returncode == 0, again.stderr
    assert machine.log()[-1].startswith("pip install")
    assert machine.log().count("venv") == (2 if interrupted == "FAIL_VENV" else 1)


def test_a_folder_that_is_no_environment_is_never_removed(machine: Machine, tmp_path: Path) -> None:
    machine.has("mosquitto", "#!/bin/sh\n")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    result = machine.run("setup", HELIOGRAPH_VENV=str(precious))
    assert result.returncode == 1
    assert "is no Python environment" in result.stderr
    assert (precious / "thesis.txt").exists()


def test_a_python_that_is_too_old_gives_one_clear_sentence(machine: Machine) -> None:
    machine.has("mosquitto", "#!/bin/sh\n")
    machine.has("python3.11", "#!/bin/sh\nexit 1\n")
    machine.has("python3", '#!/bin/sh\ncase "$1" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac\n')
    result = machine.run("setup")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer; found Python 3.9.2" in result.stderr


def test_a_missing_venv_module_is_installed_or_asked_for(machine: Machine) -> None:
    machine.has("mosquitto", "#!/bin/sh\n")
    python = PYTHON.replace("REAL", shlex.quote(sys.executable))
    lacking = python.replace('case "$*" in', 'case "$*" in *ensurepip*) exit 1 ;; esac\ncase "$*" in', 1)
    machine.has("python3.11", lacking)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    result = machine.run("setup")
    assert result.returncode == 1
    assert f"ask an administrator for: apt-get install python{version}-venv" in result.stderr
    machine.has("apt-get", APT)
    result = machine.run("setup", WHO="0")
    assert result.returncode == 0, result.stderr
    assert machine.log()[1].endswith(f"python{version}-venv")
