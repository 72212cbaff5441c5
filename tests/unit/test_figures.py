"""What is told of a node's models, out of records that it signed."""

from typing import Any

import pytest

from heliograph.sketch import Sketch
from heliograph_hub.figures import NEWEST, figures

ONE, TWO = b"1" * 32, b"2" * 32


def sketch(*latencies_ms: int) -> bytes:
    sketch = Sketch()
    for latency in latencies_ms:
        sketch.add(latency * 1_000_000)
    return sketch.encode()


def body(requests: int, release: bytes = ONE, model: str = "digits", **changes: Any) -> dict[str, Any]:
    return {"model": model, "release": release, "requests": requests, "errors": 0, "restarts": 0} | changes


def test_percentiles_are_those_of_all_requests_and_not_of_the_records() -> None:
    quiet = body(2, latency=sketch(800, 900), errors=0)
    busy = body(99, latency=sketch(*[10] * 98), errors=1)
    (found,) = figures([(120, quiet), (60, busy)])["digits"]
    assert (found.requests, found.errors, found.records, found.begin, found.end) == (101, 1, 2, 60, 120)
    assert found.latency_ms(0.5) == pytest.approx(10, rel=0.01) == found.latency_ms(0.95)
    assert found.latency_ms(1) == pytest.approx(900, rel=0.01)


def test_each_release_of_each_model_is_told_the_newest_first() -> None:
    rows = [(4, body(1, TWO)), (3, body(1, ONE)), (2, body(5, ONE, "faces")), (1, body(1, TWO))]
    found = figures(rows)
    assert {model: [(f.release, f.requests) for f in releases] for model, releases in found.items()} == {
        "digits": [(TWO, 2), (ONE, 1)],
        "faces": [(ONE, 5)],
    }


def test_a_thinned_record_covers_its_span_and_one_without_latencies_has_none() -> None:
    (found,) = figures([(3600, body(7, span=[3600, 7140]))])["digits"]
    assert (found.begin, found.end, found.requests, found.latency_ms(0.95)) == (3600, 7140, 7, None)


def test_only_the_newest_records_of_a_model_count() -> None:
    rows = [(at, body(1, model=model)) for at in range(500, 500 - 2 * NEWEST, -1) for model in ("digits", "faces")]
    found = figures(rows)
    assert [(found[m][0].requests, found[m][0].begin) for m in found] == [(NEWEST, 501 - NEWEST)] * 2


# fmt: off
INSANE: dict[str, Any] = {
    "no fields":          "digits",
    "no model":           body(1, model=7),  # type: ignore[arg-type]
    "no release":         body(1, release="1" * 32),  # type: ignore[arg-type]
    "negative":           body(-1),
    "too much":           body(1 << 63),
    "no number":          body(1, errors="all"),
    "truth":              body(1, restarts=True),
    "no span":            body(1, span=[5]),
    "another span":       body(1, span={"from": 1}),
    "no sketch":          body(1, latency=b"\x93"),
    "sketch of one type": body(1, latency="c0"),
}
# fmt: on


@pytest.mark.parametrize("what", INSANE)
def test_a_record_of_another_shape_is_left_out(what: str) -> None:
    assert figures([(9, INSANE[what])]) == {}
    (found,) = figures([(9, INSANE[what]), (8, body(3))])["digits"]
    assert (found.requests, found.end) == (3, 8)
