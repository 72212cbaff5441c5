"""Delta size, CPU time and memory on real models: heliograph against ten other tools

    scripts/bench delta [--list] [--only PAIR]... [--peers TOOL,...] [--big] [--cache FOLDER] [--out FOLDER] [--docs]

Each tool makes and applies in processes of its own; CPU is user and system time of all of them, the interpreter's start
included; memory is VmHWM for Python tools, ru_maxrss for others (never less than the launcher's 12 MB). Every
result is compared with the new file. What others took is remembered in the cache by digests, version and options, and
ours by its source too; `--again` measures anew. Figures are for the pairs named and no others.

`--docs` writes what this run found beside what delta.csv has of other tools and pairs, as far as the files are the
same.
`--forced` applies operations that win only small pieces, forced on all of three pairs.
`--hub` makes deltas in the hub's bounded child instead, with the memory it may take and with too little.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import heliograph.delta
from bench.deltas import entropy, flatbuffer, forced, hub, report
from bench.deltas.catalogue import Pair, pairs, parse
from bench.deltas.getting import Files, Getter, NotMadeError, digest, say
from bench.deltas.launching import Bounds, ended_by_signals
from bench.deltas.measuring import Figures, measure
from bench.deltas.tools import MAKERS, OURS, Shed, Tool

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models.toml"
RESULTS = HERE / "delta.csv"
"""What the documents' table is made of."""
HUB_RESULTS = HERE / "delta_hub.csv"
"""And the one of what hubs may take."""
FORCED_RESULTS = HERE / "delta_forced.csv"
"""And the one of operations where they are forced."""
MEASURES = "3"
"""Goes up when more is measured of ours than before, or otherwise."""


def source_digest() -> str:
    """Which of our code makes and applies deltas here."""
    sha = hashlib.sha256()
    folder = Path(heliograph.delta.__path__[0])
    for path in (*sorted(folder.rglob("*.py")), folder.parent / "blob.py", folder.parent / "wire.py"):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def measured_now() -> str:
    """When, to the minute, and with which commit; a plus: and something that wasn't committed."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + (f", {commit}" if commit else "")


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
        if "limits" not in known and OURS in self.tools and not self.recall:
            known["limits"] = _limits(files)
        found = []
        for key, tool in self.tools.items():
            stamp = f"{tool.version} {tool.options} {f'{MEASURES} {source_digest()}' if key == OURS else ''}"
            row = known.get(key, {})
            if tool.most_bytes and files.new.stat().st_size > tool.most_bytes:
                why = f"not begun on more than {tool.most_bytes / 1e6:.0f} MB"
                row = {"stamp": stamp, "figures": {"failed": why}}
            elif self.recall and not row:
                continue
            elif not self.recall and (self._is_stale(row, stamp) or key in self.again):
                say(f"{pair.name}: {tool.name}")
                found_now = measure(tool, files, self.shed, self.bounds, self.cache).row()
                bounds = list(astuple(self.bounds))
                row = {"stamp": stamp, "bounds": bounds, "when": measured_now(), "figures": found_now}
                known[key] = row
                _remember(memory, known, key)
            if key == OURS:
                tool = replace(tool, version=f"{tool.version}, source {row['stamp'].split()[-1][:8]}")
            figures = Figures(**row["figures"])
            found.append(_row(pair, files, digests, tool, known.get("limits", [0, 0]), figures, row.get("when", "")))
        return found

    def _is_stale(self, row: dict[str, Any], stamp: str) -> bool:
        """Whether a remembered row doesn't say what measuring would, or it failed within tighter bounds."""
        if row.get("stamp") != stamp:
            return True
        return bool(row["figures"]["failed"]) and self.bounds.allow_more_than(Bounds(*row["bounds"]))


def _remember(memory: Path, known: dict[str, Any], key: str) -> None:
    """Writes what was found for one tool, beside what another run may have written meanwhile."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    have = json.loads(memory.read_text()) if memory.exists() else {}
    if have.get("digests") != known["digests"]:
        have = known
    part = memory.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(have | {name: known[name] for name in ("limits", key) if name in known}, indent=1))
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


def _row(
    pair: Pair, files: Files, digests: str, tool: Tool, limits: list[int], figures: Figures, when: str
) -> report.Row:
    old, new = (each[:16] for each in digests.split())
    lengths = files.old.stat().st_size, files.new.stat().st_size
    return report.Row(
        pair.name, pair.kind, pair.dtype, *lengths, old, new, limits[0], limits[1],
        tool.name, tool.version, tool.options, measured=when, **figures.row(),
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
        return [_row(Pair("one-byte", report.START, ""), files, "- -", tool, [0, 0], least, measured_now())]


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
    parser.add_argument("--theirs", action="store_true", help="measure the other tools alone")
    parser.add_argument("--ours", action="store_true", help="measure ours alone, anew; the others stand in delta.csv")
    parser.add_argument("--hub", action="store_true", help="make the pairs' deltas as a hub does; see what it may take")
    parser.add_argument("--forced", action="store_true", help="apply operations forced on all of three pairs")
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
        _documents()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "delta.csv").write_text(report.encode(rows))
        (args.out / "delta.md").write_text(report.markdown(rows, _forced()))
        marks = [
            [result.first.pair, result.first.kind, result.ours.bytes, result.best_other.bytes, result.best_other.tool,
             result.first.limit_plain]
            for result in report.results(rows) if result.ours and result.best_other
        ]  # fmt: skip
        subprocess.run(
            [str(shed.peers_python()), str(HERE / "deltas" / "chart.py"), str(args.out / "delta.png")],
            input=json.dumps(marks), text=True, check=True,
        )  # fmt: skip


def _documents() -> None:
    subprocess.run([sys.executable, str(HERE.parents[1] / "scripts" / "docs.py")], check=True)


def _as_a_hub(args: argparse.Namespace, chosen: list[Pair], getter: Getter) -> None:
    """Measures and prints what hubs take."""
    kept = hub.parse(HUB_RESULTS.read_text()) if HUB_RESULTS.exists() else []
    found = []
    for pair in chosen:
        say(f"{pair.name}: as a hub does")
        found.append(hub.measure(pair.name, getter.get(pair), args.cache, measured_now()))
    rows = [*(row for row in kept if row.pair not in {pair.name for pair in chosen}), *found]
    print(hub.markdown(rows))
    if args.docs:
        HUB_RESULTS.write_text(hub.encode(sorted(rows, key=lambda row: row.new_bytes)))
        _documents()


def _as_forced(args: argparse.Namespace, getter: Getter) -> None:
    """Measures and prints how fast operations are where they are forced."""
    every = {pair.name: pair for pair in pairs(MODELS)}
    rows = []
    for name, dtype in forced.PAIRS.items():
        files = getter.get(every[name])
        for operation in forced.OPERATIONS:
            say(f"{name}: {operation}, forced")
            rows.append(forced.measure(operation, name, dtype, files, args.cache, measured_now()))
    rows.sort(key=lambda row: row.operation)
    print(forced.markdown(rows))
    if args.docs:
        FORCED_RESULTS.write_text(forced.encode(rows))
        _documents()


def _forced() -> dict[str, float]:
    """How fast operations were where they were forced."""
    return forced.slowest(forced.parse(FORCED_RESULTS.read_text()))


def _values(row: report.Row) -> list[object]:
    return [getattr(row, name) for name in report.Row.__slots__]


def main() -> None:
    """Measures, prints, and writes what was asked for."""
    args = _arguments()
    chosen = _chosen(args)
    if args.list:
        _listed(chosen if args.only else pairs(MODELS))
        return
    peers = [name for name in args.peers.split(",") if name and not args.ours]
    if set(peers) - MAKERS.keys():
        raise SystemExit(
            f"no such tool: {', '.join(sorted(set(peers) - MAKERS.keys()))}; there are {', '.join(MAKERS)}"
        )
    args.cache.mkdir(parents=True, exist_ok=True)
    getter = Getter(args.cache, parse(MODELS.read_text(encoding="utf-8"))[1])
    with ended_by_signals():
        if args.forced:
            _as_forced(args, getter)
        elif args.hub:
            _as_a_hub(args, chosen, getter)
        else:
            _side_by_side(args, chosen, peers, getter)


def _side_by_side(args: argparse.Namespace, chosen: list[Pair], peers: list[str], getter: Getter) -> None:
    """Measures and prints all tools on all pairs."""
    shed = Shed(args.cache)
    bounds = Bounds(args.limit_s, args.limit_gib << 30)
    tools = _tools(shed, [*([] if args.theirs else [OURS]), *peers])
    again = frozenset([*args.again, *([OURS] if args.ours else [])])
    bench = Bench(args.cache, shed, tools, bounds, again, args.recall)
    rows = [] if args.only or args.pair or args.recall else _started(bench)
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
    if (args.docs or args.ours) and RESULTS.exists():
        rows = report.joined(rows, report.parse(RESULTS.read_text()), [pair.name for pair in pairs(MODELS)])
    print(report.markdown(rows, _forced()))
    print(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}")
    _write(args, rows, shed)


if __name__ == "__main__":
    main()
