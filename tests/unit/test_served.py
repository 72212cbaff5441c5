"""What the server counted between two looks, whatever began anew meanwhile."""

from random import Random
from typing import Any

import pytest

from heliograph.sketch import Sketch
from heliograph.wire import pack, unpack
from heliograph_site.served import Counted, slots


def sketch_of(*values: int) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


def row(began_ns: int, requests: int, *values: int, errors: int = 0, restarts: int = 0) -> dict[str, Any]:
    return {
        "began_ns": began_ns, "requests": requests, "errors": errors, "restarts": restarts,
        "sketch": sketch_of(*values).encode().hex(),
    }  # fmt: skip


def since(now: dict[str, Any], before: dict[str, Any]) -> tuple[tuple[int, ...], Sketch | None]:
    grown = Counted.from_row(now).since(Counted.from_row(before))
    return grown.counts, grown.latency


def test_what_goes_on_counting_is_told_by_its_growth() -> None:
    counts, latency = since(row(7, 4, 10, 10, 5000, errors=1), row(7, 2, 10, 10))
    assert counts == (2, 1, 0)
    assert latency is not None and latency.buckets() == sketch_of(5000).buckets()


@pytest.mark.parametrize("requests", [1, 2, 3, 9])
def test_another_count_is_told_whole_however_high_it_stands(requests: int) -> None:
    values = [10] * requests
    assert since(row(8, requests, *values), row(7, 2, 10, 10)) == ((requests, 0, 0), sketch_of(*values))


# fmt: off
WENT_BACK = {
    "requests": (row(0, 2, 10, 10),           row(0, 3, 10, 10, 10)),
    "errors":   (row(0, 4, 10, 10, 10, 10),   row(0, 3, 10, errors=2)),
    "restarts": (row(0, 4, 10, 10, 10, 10),   row(0, 2, 10, 10, restarts=1)),
    "latency":  (row(0, 4, 10, 10, 10, 10),   row(0, 2, 90, 90)),
}
# fmt: on


@pytest.mark.parametrize("what", WENT_BACK)
def test_without_a_name_for_the_count_what_went_back_began_anew(what: str) -> None:
    now, before = WENT_BACK[what]
    whole = Counted.from_row(now)
    assert since(now, before) == (whole.counts, whole.latency)


@pytest.mark.parametrize("sketch", ["", "zz", "c0", "93"])
def test_a_sketch_that_can_not_be_read_leaves_the_counters(sketch: str) -> None:
    assert since(row(7, 5) | {"sketch": sketch}, row(7, 2, 10, 10)) == ((3, 0, 0), None)
    assert since(row(7, 5, 10, 10), row(7, 2) | {"sketch": sketch}) == ((3, 0, 0), None), "how much of it is new?"


@pytest.mark.parametrize("seed", range(10))
def test_intervals_add_up_to_what_was_counted(seed: int) -> None:
    rng, told, requests = Random(seed), Sketch(), 0
    whole, began_ns, counting = Sketch(), 1, Sketch()
    before: Counted | None = None
    for _ in range(60):
        if rng.random() < 0.1:
            began_ns, counting = began_ns + 1, Sketch()
        for _ in range(rng.randint(0, 30)):
            value = round(rng.lognormvariate(15, 1))
            counting.add(value)
            whole.add(value)
        sketch = counting.encode().hex()
        now = Counted.from_row({"began_ns": began_ns, "requests": counting.count, "sketch": sketch})
        grown = now.since(before)
        assert grown.latency is not None and grown.latency.count == grown.counts[0] >= 0
        told, requests = told.merge(Sketch.decode(grown.latency.encode())), requests + grown.counts[0]
        before = Counted.from_plain(unpack(pack(now.to_plain())))
    assert told.count == requests == whole.count
    assert told.quantile(0.95) == pytest.approx(whole.quantile(0.95), rel=0.05)


def test_a_release_that_stands_by_is_a_slot_of_its_own() -> None:
    rows: dict[str, Any] = {
        "a": {"active": "01", "standby": {"release": "02", "requests": 5}, "requests": 3},
        "b": {"active": None, "standby": None},
        "c": {"active": "03"},
    }
    found = [(model, release, slot.get("requests")) for model, release, slot in slots(rows)]
    assert found == [("a", "01", 3), ("a", "02", 5), ("c", "03", None)]
