"""Measures one tool on one pair: bytes, CPU seconds, memory, and whether the new file came back."""

import filecmp
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.deltas.getting import Files
from bench.deltas.tools import Shed, Tool, Work

LAUNCH = Path(__file__).with_name("launch.py")
STEPS = Path(__file__).with_name("steps.py")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one command may take before it counts as not measured."""

    cpu_s: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured.

    Attributes:
        bytes: of all that must be sent to who has the old file; 0 when `failed`.
        make_cpu_s, apply_cpu_s: user and system time, interpreters' start included.
        make_rss_bytes, apply_rss_bytes: peak of the largest process, absolute.
        make_above_bytes, apply_above_bytes: for Python tools, that less a bare interpreter's; -1 for others.
        container_bytes: of `bytes`, what is not patch (our recipe and header); -1 for others.
        ops: our segments by operation, "copy 3, sub 5"; empty for others.
        failed: why there are no figures.
    """

    bytes: int = 0
    make_cpu_s: float = 0.0
    apply_cpu_s: float = 0.0
    make_rss_bytes: int = 0
    apply_rss_bytes: int = 0
    make_above_bytes: int = -1
    apply_above_bytes: int = -1
    container_bytes: int = -1
    ops: str = ""
    failed: str = ""

    def row(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def launched(commands: list[list[str]], bounds: Bounds, libraries: str) -> dict[str, Any]:
    """What the commands took (launch.py)."""
    command = [sys.executable, "-I", "-S", str(LAUNCH), str(bounds.cpu_s), str(bounds.memory_bytes)]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    if not libraries:
        del environment["LD_LIBRARY_PATH"]
    result = subprocess.run(
        [*command, json.dumps(commands)], capture_output=True, text=True, check=False, env=environment
    )
    if result.returncode:
        return {"failed": (result.stderr.strip() or "the launcher failed").splitlines()[-1]}
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def bare_bytes(python: str) -> int:
    """Peak memory of an interpreter that does nothing."""
    result = subprocess.run([python, "-I", str(STEPS), "bare"], capture_output=True, text=True, check=True)
    return int(json.loads(result.stdout)["peak_rss_bytes"])


def weigh(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _memory(facts: dict[str, Any], said: dict[str, Any], bare: int) -> tuple[int, int]:
    """Peak of the largest process, and that above a bare interpreter."""
    if "peak_rss_bytes" not in said:
        return facts["maxrss_bytes"], -1
    peak = max(said["peak_rss_bytes"], said.get("child_peak_rss_bytes", 0))
    return peak, max(0, peak - bare)


def measure(tool: Tool, files: Files, shed: Shed, bounds: Bounds, scratch: Path | None = None) -> Figures:
    """Makes, applies, compares."""
    libraries = shed.libraries()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        work = Work(files.old.resolve(), files.new.resolve(), Path(folder) / "patch", Path(folder) / "out")
        steps: dict[str, Any] = {}
        for step, commands in (("make", tool.make(work)), ("apply", tool.apply(work))):
            facts = launched(commands, bounds, libraries)
            if facts["failed"]:
                return Figures(failed=f"{step}: {facts['failed']}")
            said = json.loads(facts["said"]) if tool.speaks else {}
            bare = bare_bytes(commands[-1][0]) if tool.speaks else 0
            rss, above = _memory(facts, said, bare) if step == "apply" or "peak_rss_bytes" in said else (
                facts["maxrss_bytes"], max(0, facts["maxrss_bytes"] - bare) if tool.speaks else -1
            )  # fmt: skip
            steps[step] = facts["cpu_s"], rss, above, said
            if step == "make":
                tool.after(work)
        if not work.out.exists() or not filecmp.cmp(work.out, work.new, shallow=False):
            return Figures(failed="apply: what came out is not the new file")
        sent = weigh(work.patch)
    made = steps["make"][3]
    ops = made.get("segments", {})
    return Figures(
        bytes=sent,
        make_cpu_s=round(steps["make"][0], 2),
        apply_cpu_s=round(steps["apply"][0], 2),
        make_rss_bytes=steps["make"][1],
        apply_rss_bytes=steps["apply"][1],
        make_above_bytes=steps["make"][2],
        apply_above_bytes=steps["apply"][2],
        container_bytes=made["recipe_bytes"] + 56 if "recipe_bytes" in made else -1,
        ops=", ".join(f"{name} {count}" for name, count in sorted(ops.items()) if count),
    )
