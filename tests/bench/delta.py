"""Delta size, CPU time and memory on real models: heliograph against bsdiff4 and zstd

Each tool makes and applies in processes of its own; CPU is user and system time of the whole process, the interpreter's
start included, and memory is its VmHWM. Every result is compared with the new file. Options and versions stand in the
output; figures are for the pairs named and no others.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

DIGITS = Path(__file__).parents[1] / "data" / "digits"
BASE, HEAD = DIGITS / "digits_base_int8.tflite", DIGITS / "digits_head_int8.tflite"


def _zstd_dict(old: bytes, new_length: int) -> tuple[Any, Any]:
    """What `zstd --patch-from` does: the whole old file as raw dictionary, window wide enough for both."""
    import zstandard

    window_log = max(10, (len(old) + new_length).bit_length())
    level = zstandard.ZstdCompressionParameters.from_level(
        19, source_size=new_length, dict_size=len(old), window_log=window_log, enable_ldm=True
    )
    return level, zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def make_bsdiff4(old: Path, new: Path, patch: Path) -> None:
    import bsdiff4

    bsdiff4.file_diff(str(old), str(new), str(patch))


def apply_bsdiff4(old: Path, patch: Path, new: Path) -> None:
    import bsdiff4

    bsdiff4.file_patch(str(old), str(new), str(patch))


def make_zstd(old: Path, new: Path, patch: Path) -> None:
    import zstandard

    patch.write_bytes(zstandard.ZstdCompressor(level=19).compress(new.read_bytes()))


def apply_zstd(old: Path, patch: Path, new: Path) -> None:
    import zstandard

    with patch.open("rb") as source, new.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)


def make_zstd_patch(old: Path, new: Path, patch: Path) -> None:
    import zstandard

    data = new.read_bytes()
    level, content = _zstd_dict(old.read_bytes(), len(data))
    patch.write_bytes(zstandard.ZstdCompressor(compression_params=level, dict_data=content).compress(data))


def apply_zstd_patch(old: Path, patch: Path, new: Path) -> None:
    import zstandard

    _, content = _zstd_dict(old.read_bytes(), 0)
    with patch.open("rb") as source, new.open("wb") as target:
        zstandard.ZstdDecompressor(dict_data=content, max_window_size=1 << 31).copy_stream(source, target)


Step = Callable[[Path, Path, Path], None]
OTHERS: dict[str, tuple[str, Step, Step]] = {
    "bsdiff4": ("bsdiff4, defaults (bzip2)", make_bsdiff4, apply_bsdiff4),
    "zstd-full": ("zstd -19 of the new file alone", make_zstd, apply_zstd),
    "zstd-patch-from": ("zstd -19 --long, old file as raw dictionary", make_zstd_patch, apply_zstd_patch),
}
OURS = "heliograph"


def child(tool: str, step: str, paths: list[Path]) -> None:
    """Runs one step of another tool in this process and prints its peak memory."""
    _, make, apply = OTHERS[tool]
    (make if step == "make" else apply)(*paths)
    from heliograph.delta.file import peak_rss_bytes

    print(json.dumps({"peak_rss_bytes": peak_rss_bytes()}))


def run(tool: str, step: str, *paths: Path) -> dict[str, Any]:
    """One step of one tool in a process of its own: CPU seconds and peak memory."""
    command = [sys.executable, str(Path(__file__)), "--child", tool, step]
    if tool == OURS:
        command = [sys.executable, "-m", "heliograph.cli", "delta", step, "--json"]
    with subprocess.Popen([*command, *map(str, paths)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{tool} {step} failed with exit code {process.returncode}")
    return {"cpu_s": round(usage.ru_utime + usage.ru_stime, 2), **json.loads(said)}


def measure(old: Path, new: Path, folder: Path) -> dict[str, Any]:
    """All tools on one pair."""
    rows: dict[str, Any] = {}
    for tool in (OURS, *OTHERS):
        patch, out = folder / "patch", folder / "out"
        made = run(tool, "make", old, new, patch)
        applied = run(tool, "apply", old, patch, out)
        if out.read_bytes() != new.read_bytes():
            raise SystemExit(f"{tool} did not give {new} back")
        rows[tool] = {
            "bytes": patch.stat().st_size,
            "make_cpu_s": made["cpu_s"],
            "apply_cpu_s": applied["cpu_s"],
            "apply_peak_rss_bytes": applied["peak_rss_bytes"],
        }
        patch.unlink()
        out.unlink()
    return {
        "old": old.name,
        "new": new.name,
        "old_bytes": old.stat().st_size,
        "new_bytes": new.stat().st_size,
        "tools": rows,
    }


def show(pairs: list[dict[str, Any]]) -> None:
    """Prints the table."""
    for pair in pairs:
        print(f"\n{pair['old']} -> {pair['new']} ({pair['new_bytes']:,} bytes)")
        print(f"  {'tool':<16} {'bytes':>11} {'share':>6} {'make CPU s':>11} {'apply CPU s':>12} {'apply peak MB':>14}")
        for tool, row in pair["tools"].items():
            print(
                f"  {tool:<16} {row['bytes']:>11,} {row['bytes'] / pair['new_bytes']:>6.1%} {row['make_cpu_s']:>11.2f}"
                f" {row['apply_cpu_s']:>12.2f} {row['apply_peak_rss_bytes'] / 1e6:>14.1f}"
            )


def main() -> None:
    """Measures, prints, and writes JSON if asked."""
    parser = argparse.ArgumentParser(prog="scripts/bench delta", description="Compares delta tools on model files.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--pair", nargs=2, type=Path, action="append", metavar=("OLD", "NEW"), help="measure these too")
    parser.add_argument("--child", nargs=5, metavar="ARG", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], [Path(path) for path in args.child[2:]])
        return
    with tempfile.TemporaryDirectory() as folder:
        wanted = [(BASE, HEAD), (HEAD, BASE), *(args.pair or [])]
        pairs = [measure(old, new, Path(folder)) for old, new in wanted]
    options = {name: row[0] for name, row in OTHERS.items()}
    versions = {name: version(name) for name in ("heliograph", "bsdiff4", "zstandard")}
    machine = f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
    show(pairs)
    print()
    for name, said in options.items():
        print(f"{name}: {said}")
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + f"; {machine}")
    if args.json:
        facts = {"pairs": pairs, "options": options, "versions": versions, "machine": machine}
        args.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
