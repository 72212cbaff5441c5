"""What the tests' own net catches: a program that a test forgot."""

import subprocess
import sys
from pathlib import Path

CAREFREE = """
import subprocess
from pathlib import Path

def test_starts_what_nobody_ends():
    forgotten = ["import os, time; os.setsid(); os.fork() and os._exit(0); open('pid', 'w').write(str(os.getpid()));"]
    subprocess.run(["python3", "-c", forgotten[0] + " time.sleep(1000)"], check=True)
    while not (Path("pid").exists() and Path("pid").read_text()):
        pass
"""


def test_a_program_that_a_test_leaves_behind_is_ended_and_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_carefree.py").write_text(CAREFREE)
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "conftest.py").symlink_to(Path(__file__).parents[1] / "conftest.py")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    argv += ["-o", f"pythonpath={Path(__file__).parents[1]}"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed, 1 error" in done.stdout
    assert "left running by this module's tests: " in done.stdout
    assert "python3 -c import os, time; os.setsid()" in done.stdout
    command = Path(f"/proc/{(tmp_path / 'pid').read_text()}/cmdline")
    assert not command.exists() or command.read_bytes() == b"", "it has ended, whether or not somebody waited for it"
