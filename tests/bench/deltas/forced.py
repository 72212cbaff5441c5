"""Operations that win only small pieces of any pair, forced on all of a large one: measured, and as a table."""

import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from bench.deltas import table
from bench.deltas.getting import Files, NotMadeError
from bench.deltas.launching import Bounds, launched
from bench.deltas.tools import SEGMENTS
from heliograph.blob import describe, sha256, short_digest
from heliograph.delta import file, numeric, recipe
from heliograph.delta.dtypes import Dtype
from heliograph.delta.patch import dictionary
from heliograph.delta.recipe import DICT, SUB, XOR, Recipe, Segment
from heliograph.wire import compress

OPERATIONS = {"sub": SUB, "xor": XOR, "dict": DICT}
PAIRS = {"minilm-f32-full": Dtype.F32, "minilm-bf16-full": Dtype.BF16, "minilm-int8-full": Dtype.I8}
"""Old and new file are laid out alike; and what most of the bytes are."""
LARGE_BYTES = 4 << 20
PIECE_BYTES = 4 << 10
_PIECES = 256
_LEVEL = 19


@dataclass(frozen=True, slots=True)
class Row:
    """One operation on one pair.

    Attributes:
        bytes: of the delta file.
        cpu_s: of all segments, of `LARGE_BYTES` each, as segments.py tells.
        piece_ms: CPU of a segment of `PIECE_BYTES`.
    """

    operation: str
    pair: str
    dtype: str
    new_bytes: int
    bytes: int
    cpu_s: float
    piece_ms: float
    measured: str


def made(operation: str, dtype: Dtype, old: bytes, new: bytes, size: int) -> bytes:
    """The delta file of segments of so many bytes, all of one operation; old and new are as long."""
    segments: list[Segment] = []
    patch = b""
    for at in range(0, len(new), size):
        before, after = old[at : at + size], new[at : at + size]
        if operation == "dict":
            packed = zstandard.ZstdCompressor(level=_LEVEL, dict_data=dictionary(before)).compress(after)
        else:
            plain = (numeric.sub_plain if operation == "sub" else numeric.xor_plain)(before, after, dtype)
            packed = compress(plain, _LEVEL)
        params = b"" if operation == "dict" else bytes([dtype])
        place = (len(patch), len(packed))
        segments.append(
            Segment(len(after), OPERATIONS[operation], ((at, len(after)),), place, short_digest(after), params)
        )
        patch += packed
    digest, pages = describe(patch)
    whole = Recipe(sha256(old), len(old), sha256(new), len(new), len(patch), digest, pages, tuple(segments))
    encoded = recipe.encode(whole)
    leading = file.MAGIC + bytes([file.VERSION]) + len(encoded).to_bytes(4, "big")
    return leading + short_digest(leading + encoded) + encoded + patch


def measure(operation: str, pair: str, dtype: Dtype, files: Files, scratch: Path, when: str) -> Row:
    """Makes and applies both, with large segments and with small ones.

    Raises:
        NotMadeError: it doesn't come back.
    """
    old, new = files.old.read_bytes(), files.new.read_bytes()
    few = _PIECES * PIECE_BYTES
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        size, large_s = _applied(operation, dtype, old, new, LARGE_BYTES, Path(folder))
        _, small_s = _applied(operation, dtype, old[:few], new[:few], PIECE_BYTES, Path(folder))
    pieces = -(-min(few, len(new)) // PIECE_BYTES)
    piece_ms = round(1000 * small_s / pieces, 3)
    return Row(operation, pair, dtype.name.lower(), len(new), size, round(large_s, 4), piece_ms, when)


def _applied(operation: str, dtype: Dtype, old: bytes, new: bytes, size: int, folder: Path) -> tuple[int, float]:
    """Bytes of the delta file, and the CPU seconds that its segments took: the least of three times."""
    names = before, delta, after = folder / "old", folder / "delta", folder / "new"
    before.write_bytes(old)
    delta.write_bytes(made(operation, dtype, old, new, size))
    times = []
    for _ in range(3):
        facts = launched([[sys.executable, "-P", str(SEGMENTS), *map(str, names)]], Bounds())
        if facts["failed"] or after.read_bytes() != new:
            raise NotMadeError(f"{operation}: {facts['failed'] or 'what came out is not the new file'}")
        times.append(json.loads(facts["said"])["ops"][operation][1])
        for left in folder.glob("new*"):
            left.unlink()
    return delta.stat().st_size, min(times)


def encode(rows: Iterable[Row]) -> str:
    """As CSV."""
    return table.encode(Row, rows)


def parse(text: str) -> list[Row]:
    """The rows of `encode`."""
    return table.parse(Row, text)


def rate(row: Row) -> float:
    """MB of new bytes per CPU second."""
    return row.new_bytes / 1e6 / max(row.cpu_s, 1e-6)


def slowest(rows: Iterable[Row]) -> dict[str, float]:
    """By operation, the rate on the pair where it is slowest."""
    found: dict[str, float] = {}
    for row in rows:
        found[row.operation] = min(rate(row), found.get(row.operation, rate(row)))
    return found


def markdown(rows: Iterable[Row]) -> str:
    """A table: a line an operation and pair."""
    lines = ["| operation | forced on | as | new bytes | delta | MB per CPU s | CPU ms for a piece of 4 KiB "
             "| measured |", "| --- | --- | --- |" + " ---: |" * 4 + " --- |"]  # fmt: skip
    for row in rows:
        cells = [row.operation, row.pair, row.dtype, f"{row.new_bytes:,}", f"{row.bytes:,}", f"{rate(row):,.0f}",
                 f"{row.piece_ms:.2f}", row.measured]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
