"""Writes synthetic images of any size, in pieces; runs in the throw-away environment, needs numpy.

    python synthetic.py MEGABYTES SEED OUT_FOLDER

A safetensors file of bfloat16 matrices of 8 MB. In the new one a third of them is unchanged, the others have got an
update as of a fine-tune: noise of a thousandth to a hundredth of their spread, rounded. After the first matrix the new
file has a tensor more, so that all the rest stands elsewhere.
"""

import json
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safe

ROWS, COLUMNS = 2048, 2048
EXTRA_ROWS = 13


def head(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, list[list[object]]]:
    """The header of a safetensors file, and where the tensors stand."""
    rows: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, at = [], 0
    for name, shape in shapes.items():
        length = 2 * int(np.prod(shape))
        rows[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + length]}
        places.append((name, at, length, list(shape)))
        at += length
    encoded = json.dumps(rows, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)
    return struct.pack("<Q", len(encoded)) + encoded, [
        [name, start + at, size, "bf16", shape] for name, at, size, shape in places
    ]


def write(old: BinaryIO, new: BinaryIO, count: int, seed: int) -> dict[str, list[list[object]]]:
    """Both files."""
    rng = np.random.Generator(np.random.PCG64(seed))
    shapes: dict[str, tuple[int, ...]] = {f"layers.{index}.weight": (ROWS, COLUMNS) for index in range(count)}
    first, *rest = shapes
    more = {first: shapes[first], "adapter.weight": (EXTRA_ROWS, COLUMNS)} | {name: shapes[name] for name in rest}
    old_head, old_layout = head(shapes)
    new_head, new_layout = head(more)
    old.write(old_head)
    new.write(new_head)
    for index in range(count):
        weights = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32) * np.float32(0.02)
        old.write(safe.bfloat16(weights).tobytes())
        if index % 3:
            step = np.float32(0.02 * 10 ** (-3 + (index % 7) / 6))
            weights += rng.standard_normal((ROWS, COLUMNS), dtype=np.float32) * step
        new.write(safe.bfloat16(weights).tobytes())
        if index == 0:
            new.write(safe.bfloat16(rng.standard_normal((EXTRA_ROWS, COLUMNS), dtype=np.float32)).tobytes())
    return {"old": old_layout, "new": new_layout}


def main() -> None:
    """Writes one pair."""
    megabytes, seed, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    count = max(2, megabytes * 1_000_000 // (2 * ROWS * COLUMNS))
    with (out / "old").open("wb") as old, (out / "new").open("wb") as new:
        layout = write(old, new, count, seed)
    (out / "layout.json").write_text(json.dumps(layout))


if __name__ == "__main__":
    main()
