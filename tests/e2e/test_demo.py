"""The demonstration as a process of its own."""

import signal
import sys
from pathlib import Path

from heliograph.lab import spawn, wait_until

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"


def processes_of(folder: Path) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_an_interrupted_demo_says_so_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    work = tmp_path / "t"
    work.mkdir()
    demo = spawn([sys.executable, DEMO], tmp_path / "demo.log", env={"TMPDIR": str(work)})
    try:
        wait_until(lambda: any(work.glob("heliograph-demo-*/realm/hub/hub.sock")), 90, "the demo's hub")
        assert processes_of(work)
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(90) == 130
    finally:
        demo.kill()
    assert demo.output().splitlines() == ["stopping hub and nodes; nothing of the demo is kept"]
    assert list(work.iterdir()) == []
    wait_until(lambda: not processes_of(work), 30, "every process of the demo has ended")
