"""How long an outbox can be away from its hub: days of metrics at one record a minute and model, before each loss.

`python tests/bench/outbox.py` measures and prints the table of FORMATS.md, "Away from the hub". A small outbox is
filled until something merges, and another, with two records a day, until something is lost: what a row costs there
says how many fit the default cap.
"""

import tempfile
from pathlib import Path
from typing import Any

from heliograph.sketch import MAX_BYTES, Sketch
from heliograph_site.outbox import DEFAULT_CAP_BYTES, RESERVED_SHARES, Outbox

CAP_BYTES = 256 * 1024
SHARE = 1 - sum(RESERVED_SHARES.values())
DAY_S = 86400


def bodies() -> dict[str, dict[str, Any]]:
    """What a minute of serving says: counters alone, and with a sketch as large as sketches get."""
    plain = {"model": "digits", "release": b"\xa1" * 32, "state": "ready", "requests": 600, "errors": 1, "restarts": 0}
    sketch = Sketch()
    for n in range(3000):
        sketch.add(int(10**6 * 1.002**n) + n * n)
    assert 0.6 * MAX_BYTES < len(sketch.encode()) <= MAX_BYTES
    return {"counters": plain, "with a sketch": plain | {"latency": sketch.encode()}}


def rows_that_fit(path: Path, body: dict[str, Any], apart_s: int, until: str) -> int:
    """How many rows the default cap has place for, when metrics begin to be merged or lost."""
    with Outbox(path, b"bench-01", CAP_BYTES) as outbox:
        empty, number = outbox.used_bytes(), 0
        while True:
            before = outbox.status()["metric"]
            for _ in range(10):
                outbox.append("metric", "serving", number * apart_s, body)
                number += 1
            if getattr(outbox.status()["metric"], until):
                break
            if until == "lost" and before.written > 4 * before.kept + 1000:
                raise AssertionError("it merges and merges, and loses nothing")
        row_bytes = (SHARE * CAP_BYTES - empty) / before.kept
    return int((SHARE * DEFAULT_CAP_BYTES - empty) / row_bytes)


def table() -> str:
    """The table, in Markdown: two digits of each figure, for that is what they are good for."""
    lines = ["| records | models | minutes, days | hours, days | first loss, days |", "| --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, body) in enumerate(bodies().items()):
            minutes = rows_that_fit(Path(folder) / f"minutes-{number}", body, 60, "merged")
            days = rows_that_fit(Path(folder) / f"days-{number}", body, DAY_S // 2, "lost")
            for models in (1, 3, 10):
                figures = (minutes / 1440 / models, days / 24 / models, days / models)
                cells = " | ".join(f"{float(f'{figure:.2g}'):g}" for figure in figures)
                lines.append(f"| {name} | {models} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
