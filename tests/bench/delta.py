"""Delta size, CPU time and memory on real models: heliograph against ten other tools

    scripts/bench delta [--list] [--only PAIR]... [--peers TOOL,...] [--big] [--cache FOLDER] [--out FOLDER] [--docs]

Each tool makes and applies in processes of its own; CPU is user and system time of all of them, the interpreter's start
included; memory is VmHWM for Python tools, ru_maxrss for others (never less than the launcher's 12 MB). Every
result is compared with the new file. What others took is remembered in the cache by digests, version and options, and
ours by its source too; `--again` measures anew. Figures are for the pairs named and no others.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import heliograph.delta
from bench.deltas import entropy, flatbuffer, report
from bench.deltas.catalogue import Pair, pairs, parse
from bench.deltas.getting import Files, Getter, NotMadeError, digest, say
from bench.deltas.measuring import Bounds, Figures, measure
from bench.deltas.tools import MAKERS, OURS, Shed, Tool

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models.toml"
RESULTS = HERE / "delta.csv"
"""What the documents' table is made of."""


def source_digest() -> str:
    """Which of our code makes and applies deltas here."""
    sha = hashlib.sha256()
    folder = Path(heliograph.delta.__path__[0])
    for path in (*sorted(folder.rglob("*.py")), folder.parent / "blob.py", folder.parent / "wire.py"):
        sha.update(path.read_bytes())
    return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures pairs and remembers.

    Attributes:
        again: names of tools that are measured anew.
        recall: measure nothing, go by what is remembered of these files, also where tools or our source have changed.
    """

    cache: Path
    shed: Shed
    tools: dict[str, Tool]
    bounds: Bounds
    again: frozenset[str]
    recall: bool = False

    def rows(self, pair: Pair, files: Files) -> list[report.Row]:
        """All tools on one pair."""
        digests = f"{digest(files.old)} {digest(files.new)}"
        memory = self.cache / "results" / f"{pair.name}.json"
        known: dict[str, Any] = json.loads(memory.read_text()) if memory.exists() else {}
        if known.get("digests") != digests:
            known = {"digests": digests}
        if "limits" not in known and not (self.recall and len(known) == 1):
            known["limits"] = _limits(files)
        found = []
        for key, tool in self.tools.items():
            stamp = f"{tool.version} {tool.options} {self.bounds} {source_digest() if key == OURS else ''}"
            row = known.get(key, {})
            if self.recall and not row:
                continue
            if not self.recall and (row.get("stamp") != stamp or key in self.again):
                say(f"{pair.name}: {tool.name}")
                row = {"stamp": stamp, "figures": measure(tool, files, self.shed, self.bounds, self.cache).row()}
                known[key] = row
                _remember(memory, known, key)
            if key == OURS:
                tool = replace(tool, version=f"{tool.version}, source {row['stamp'].split()[-1][:8]}")
            found.append(_row(pair, files, digests, tool, known["limits"], Figures(**row["figures"])))
        return found


def _remember(memory: Path, known: dict[str, Any], key: str) -> None:
    """Writes what was found for one tool, beside what another run may have written meanwhile."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    have = json.loads(memory.read_text()) if memory.exists() else {}
    if have.get("digests") != known["digests"]:
        have = known
    part = memory.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(have | {"limits": known["limits"], key: known[key]}, indent=1))
    part.replace(memory)


def _limits(files: Files) -> list[int]:
    """The estimates of `entropy`, in bytes; zeros where nobody knows the tensors."""
    layout = files.layout
    if layout is None:
        layout = {side: flatbuffer.layout(path.read_bytes()) for side, path in (("old", files.old), ("new", files.new))}
        if [row[2:] for row in layout["old"]] != [row[2:] for row in layout["new"]] or not layout["old"]:
            return [0, 0]
    estimate = entropy.pair(files.old, files.new, layout)
    return [round(estimate.plain), round(estimate.learned)]


def _row(pair: Pair, files: Files, digests: str, tool: Tool, limits: list[int], figures: Figures) -> report.Row:
    old, new = (each[:16] for each in digests.split())
    lengths = files.old.stat().st_size, files.new.stat().st_size
    return report.Row(
        pair.name, pair.kind, pair.dtype, *lengths, old, new, limits[0], limits[1],
        tool.name, tool.version, tool.options, **figures.row(),
    )  # fmt: skip


def _started(bench: Bench) -> list[report.Row]:
    """What applying to one byte costs us."""
    if OURS not in bench.tools:
        return []
    tool = bench.tools[OURS]
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder) / "old", Path(folder) / "new", None)
        files.old.write_bytes(b"a")
        files.new.write_bytes(b"a")
        each = [measure(tool, files, bench.shed, bench.bounds) for _ in range(3)]
        least = min(each, key=lambda figures: figures.apply_cpu_s)
        return [_row(Pair("one-byte", report.START, ""), files, "- -", tool, [0, 0], least)]


def _tools(shed: Shed, wanted: list[str]) -> dict[str, Tool]:
    tools = {}
    for name in wanted:
        try:
            tools[name] = shed.get(name)
        except NotMadeError as error:
            say(f"{name}: not measured: {error}")
    return tools


def _listed(chosen: list[Pair]) -> None:
    for pair in chosen:
        print(f"{pair.name:<24} {pair.kind:<14} {pair.dtype or '-':<5} {pair.source}{' (--big)' if pair.big else ''}")


def _arguments() -> argparse.Namespace:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="scripts/bench delta", description=about)
    parser.add_argument("--list", action="store_true", help="name every pair, its kind and where it comes from")
    parser.add_argument("--only", action="append", default=[], metavar="PAIR", help="this pair; may be repeated")
    parser.add_argument("--pair", nargs=2, type=Path, action="append", default=[], metavar=("OLD", "NEW"),
                        help="measure these two files too")  # fmt: skip
    parser.add_argument("--peers", default=",".join(name for name in MAKERS if name != OURS), metavar="TOOL,...",
                        help="these other tools (default: all; empty: none)")  # fmt: skip
    parser.add_argument("--big", action="store_true", help="the images of 200 MB and 1 GB as well")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "heliograph-bench", metavar="FOLDER",
                        help="pairs, environments, what was measured (default: ~/.cache/heliograph-bench)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write delta.csv, delta.md and delta.png there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--docs", action="store_true", help=f"write {RESULTS.name} of the documents, and them")
    parser.add_argument("--again", action="append", default=[], metavar="TOOL", help="measure this tool anew")
    parser.add_argument("--recall", action="store_true", help="measure nothing: report what is remembered")
    parser.add_argument("--limit-s", type=int, default=900, metavar="S", help="CPU seconds a command may take (900)")
    parser.add_argument("--limit-gib", type=int, default=12, metavar="N", help="address space it may take (12)")
    return parser.parse_args()


def _chosen(args: argparse.Namespace) -> list[Pair]:
    every = {pair.name: pair for pair in pairs(MODELS)}
    unknown = set(args.only) - every.keys()
    if unknown:
        raise SystemExit(f"no such pair: {', '.join(sorted(unknown))}; --list names them")
    if args.only or args.pair:
        return [every[name] for name in args.only]
    return [pair for pair in every.values() if args.big or not pair.big]


def _write(args: argparse.Namespace, rows: list[report.Row], shed: Shed) -> None:
    if args.json:
        args.json.write_text(json.dumps([dict(zip(report.Row.__slots__, _values(row), strict=True)) for row in rows]))
    if args.docs:
        RESULTS.write_text(report.encode(rows))
        subprocess.run([sys.executable, str(HERE.parents[1] / "scripts" / "docs.py")], check=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "delta.csv").write_text(report.encode(rows))
        (args.out / "delta.md").write_text(report.markdown(rows))
        marks = [
            [result.first.pair, result.first.kind, result.ours.bytes, result.best_other.bytes, result.best_other.tool,
             result.first.limit_plain]
            for result in report.results(rows) if result.ours and result.best_other
        ]  # fmt: skip
        subprocess.run(
            [str(shed.peers_python()), str(HERE / "deltas" / "chart.py"), str(args.out / "delta.png")],
            input=json.dumps(marks), text=True, check=True,
        )  # fmt: skip


def _values(row: report.Row) -> list[object]:
    return [getattr(row, name) for name in report.Row.__slots__]


def main() -> None:
    """Measures, prints, and writes what was asked for."""
    args = _arguments()
    chosen = _chosen(args)
    if args.list:
        _listed(chosen if args.only else pairs(MODELS))
        return
    peers = [name for name in args.peers.split(",") if name]
    if set(peers) - MAKERS.keys():
        raise SystemExit(
            f"no such tool: {', '.join(sorted(set(peers) - MAKERS.keys()))}; there are {', '.join(MAKERS)}"
        )
    args.cache.mkdir(parents=True, exist_ok=True)
    shed = Shed(args.cache)
    bounds = Bounds(args.limit_s, args.limit_gib << 30)
    bench = Bench(args.cache, shed, _tools(shed, [OURS, *peers]), bounds, frozenset(args.again), args.recall)
    getter = Getter(args.cache, parse(MODELS.read_text(encoding="utf-8"))[1])
    rows = _started(bench)
    for pair in chosen:
        if args.recall and not (args.cache / "results" / f"{pair.name}.json").exists():
            continue
        try:
            rows += bench.rows(pair, getter.get(pair))
        except NotMadeError as error:
            say(f"{pair.name}: not measured: {error}")
    for old, new in args.pair:
        named = Pair(f"{old.name}-{new.name}", "own files", "")
        rows += bench.rows(named, Files(old, new, None))
    print(report.markdown(rows))
    print(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}")
    _write(args, rows, shed)


if __name__ == "__main__":
    main()
