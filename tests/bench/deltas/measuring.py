"""Measures one tool on one pair: bytes, CPU seconds, memory, and whether the new file came back."""

import filecmp
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.deltas.getting import Files
from bench.deltas.launching import Bounds, launched
from bench.deltas.tools import Shed, Tool, Work

STEPS = Path(__file__).with_name("steps.py")


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
        rates: by operation the new bytes and the CPU seconds of making them, "copy 3000/0.01, sub 5000/0.2"
            (segments.py); empty for others, as are the next three.
        patch_bytes, first_bytes: of the patch, and how many had come when the first segment stood that needs any.
        late: of the segments that need any how many were made only when the last had come, "1 of 4".
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
    rates: str = ""
    patch_bytes: int = 0
    first_bytes: int = 0
    late: str = ""
    failed: str = ""

    def row(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


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
    """Makes, applies, compares; and has the tool's probe look closer, if it has one."""
    libraries = shed.libraries()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        work = Work(files.old.resolve(), files.new.resolve(), Path(folder) / "patch", Path(folder) / "out")
        steps: dict[str, Any] = {}
        for step, commands in (("make", tool.make(work)), ("apply", tool.apply(work)), ("probe", tool.probe(work))):
            if not commands:
                continue
            work.out.unlink(missing_ok=True)
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
            elif not work.out.exists() or not filecmp.cmp(work.out, work.new, shallow=False):
                return Figures(failed=f"{step}: what came out is not the new file")
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
        container_bytes=_container(made),
        ops=", ".join(f"{name} {count}" for name, count in sorted(ops.items()) if count),
        **(_looked_closer(steps["probe"][3]) if "probe" in steps else {}),
    )


def _container(made: dict[str, Any]) -> int:
    """Of our delta file, as `delta make --json` tells; the first engine told its recipe's alone."""
    if "container_bytes" in made:
        return int(made["container_bytes"])
    return made["recipe_bytes"] + 56 if "recipe_bytes" in made else -1


def _looked_closer(said: dict[str, Any]) -> dict[str, Any]:
    """What segments.py printed, as figures."""
    return {
        "rates": ", ".join(f"{name} {size}/{cpu_s}" for name, (size, cpu_s) in sorted(said["ops"].items())),
        "patch_bytes": said["patch_bytes"],
        "first_bytes": said["first_bytes"],
        "late": f"{said['late']} of {said['segments']}",
    }
