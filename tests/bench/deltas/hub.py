"""What making a delta takes in the hub's bounded child: measured, and as a table."""

import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.deltas import table
from bench.deltas.getting import Files
from bench.deltas.launching import Bounds, launched

HUBMADE = Path(__file__).with_name("hubmade.py")


@dataclass(frozen=True, slots=True)
class Row:
    """One pair; see hubmade.py.

    Attributes:
        bound_bytes, taken_bytes: address space it may take beyond the loaded program's, and took.
        resident_bytes: peak, mapped files included.
        refused: with so few bytes: what it said; empty if it didn't refuse in words, or left something behind;
        ended: then how it ended.
    """

    pair: str
    old_bytes: int
    new_bytes: int
    bytes: int
    bound_bytes: int
    taken_bytes: int
    resident_bytes: int
    cpu_s: float
    too_little_bytes: int
    refused: str
    ended: str
    failed: str
    measured: str


def measure(pair: str, files: Files, scratch: Path, when: str) -> Row:
    """Makes the pair's delta as a hub does."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = [sys.executable, "-P", str(HUBMADE), str(files.old), str(files.new), str(Path(folder) / "delta")]
        facts = launched([command], Bounds())
    lengths = files.old.stat().st_size, files.new.stat().st_size
    if facts["failed"]:
        return Row(pair, *lengths, 0, 0, 0, 0, 0.0, 0, "", "", facts["failed"], when)
    said = json.loads(facts["said"])
    is_polite = said["is_refused"] and said["said"].startswith("refused ") and not said["left"]
    refused = said["said"].removeprefix("refused ") if is_polite else ""
    ended = "" if is_polite else f"status {said['ended']}, {said['said']}; left {', '.join(said['left']) or 'nothing'}"
    return Row(
        pair, *lengths, said["bytes"], said["bound_bytes"], said["taken_bytes"], said["resident_bytes"], said["cpu_s"],
        said["too_little_bytes"], refused, ended, said["failed"], when,
    )  # fmt: skip


def encode(rows: Iterable[Row]) -> str:
    """As CSV."""
    return table.encode(Row, rows)


def parse(text: str) -> list[Row]:
    """The rows of `encode`."""
    return table.parse(Row, text)


def markdown(rows: Iterable[Row]) -> str:
    """A table: a line a pair."""
    lines = ["| pair | both files, MB | delta | may take, MB | took, MB | resident at most, MB | CPU s "
             "| with half of what it took | measured |", "| --- |" + " ---: |" * 6 + " --- | --- |"]  # fmt: skip
    for row in rows:
        sizes = [row.old_bytes + row.new_bytes, row.bound_bytes, row.taken_bytes, row.resident_bytes]
        both, bound, taken, resident = (f"{size / 1e6:,.0f}" for size in sizes)
        made = row.failed or f"{row.bytes:,}"
        refused = f"refused: {row.refused}" if row.refused else f"**not refused in words**: {row.ended}"
        cells = [row.pair, both, made, bound, taken, resident, f"{row.cpu_s:.0f}", refused, row.measured]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
