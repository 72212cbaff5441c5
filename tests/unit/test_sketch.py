"""The latency sketch: its errors, its merging, its bytes, and what it refuses."""

import math
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import IntegrityError
from heliograph.sketch import MAX_BUCKETS, MAX_BYTES, MAX_NS, Sketch
from heliograph.wire import pack, unpack

ERROR = {scale: (2**2.0**-scale - 1) / (2**2.0**-scale + 1) for scale in range(-1, 7)}
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "sketch.msgpack"
VALUES = st.lists(st.integers(1, MAX_NS) | st.integers(10**6, 10**8), max_size=60)


def sketch_of(values: list[int]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


def exact(values: list[int], share: float) -> int:
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@given(VALUES.filter(bool), st.floats(0, 1))
def test_a_quantile_is_off_by_no_more_than_its_scale_allows(values: list[int], share: float) -> None:
    sketch = sketch_of(values)
    truth = exact(values, share)
    assert abs(sketch.quantile(share) - truth) <= ERROR[sketch.scale] * truth * (1 + 1e-9)


@given(st.lists(st.integers(10**5, 60_000 * 10**5), min_size=1, max_size=100), st.floats(0, 1))
def test_within_a_range_of_sixty_thousand_a_quantile_is_off_by_less_than_one_per_cent(
    values: list[int], share: float
) -> None:
    truth = exact(values, share)
    assert abs(sketch_of(values).quantile(share) - truth) <= 0.01 * truth


@given(VALUES, VALUES, VALUES)
def test_merging_is_associative_and_commutative_and_equals_adding(a: list[int], b: list[int], c: list[int]) -> None:
    x, y, z = sketch_of(a), sketch_of(b), sketch_of(c)
    assert x.merge(y) == y.merge(x)
    assert x.merge(y).merge(z) == x.merge(y.merge(z)) == sketch_of(a + b + c)
    assert (x, y, z) == (sketch_of(a), sketch_of(b), sketch_of(c)), "what was merged is unchanged"


@given(VALUES)
def test_bytes_come_back_as_the_same_sketch_or_a_coarser_one_of_the_same_values(values: list[int]) -> None:
    sketch = sketch_of(values)
    data = sketch.encode()
    back = Sketch.decode(data)
    assert len(data) <= MAX_BYTES and back.encode() == data
    assert (back.count, back.sum, back.min, back.max) == (len(values), sum(values), sketch.min, sketch.max)
    assert back == sketch or (back.scale < sketch.scale and len(values) > 20)
    for share in (0.5, 0.95, 0.99):
        if values:
            truth = exact(values, share)
            assert abs(back.quantile(share) - truth) <= ERROR[back.scale] * truth * (1 + 1e-9)


def test_usual_latencies_fit_at_full_resolution() -> None:
    rng = Random(1)
    values = [int(rng.lognormvariate(math.log(4e6), 0.3)) for _ in range(10_000)]
    data = sketch_of(values).encode()
    assert Sketch.decode(data).scale == 6 and len(data) <= MAX_BYTES
    hundred = [int(10 ** rng.uniform(4, 8.5)) for _ in range(100)]
    assert Sketch.decode(sketch_of(hundred).encode()).scale == 6


def test_the_worst_that_can_be_seen_still_fits() -> None:
    sketch = sketch_of([int(2 ** (n / 64)) for n in range(53 * 64)])
    for _ in range(36):
        sketch = sketch.merge(sketch)
    assert len(sketch.encode()) <= MAX_BYTES
    assert Sketch.decode(sketch.encode()).count == 53 * 64 * 2**36


@given(VALUES, VALUES)
def test_what_came_since_is_what_was_added_since(before: list[int], after: list[int]) -> None:
    earlier, now = sketch_of(before), sketch_of(before + after)
    since = now.since(earlier)
    assert (since.count, since.sum) == (len(after), sum(after))
    assert Sketch.decode(since.encode()).count == len(after)
    if after:
        truth = exact(after, 0.95)
        assert abs(since.quantile(0.95) - truth) <= 2 * ERROR[since.scale] * truth
        assert since.min <= min(after) and max(after) <= since.max


def test_what_is_no_former_state_is_not_taken_off() -> None:
    now = sketch_of([5, 6])
    assert now.since(sketch_of([5, 5])) == now == now.since(sketch_of([7, 8, 9]))


def test_buckets_are_those_of_otlp() -> None:
    sketch = sketch_of([1024, 1025])
    buckets = sketch.buckets()
    assert (buckets.scale, buckets.offset) == (6, 10 * 64 - 1), "a power of two is the upper end of its bucket"
    assert buckets.counts == (1, 1)
    assert Sketch().buckets().counts == ()
    for value in (1, 2, 3, 4, 5, 1000, 10**9, MAX_NS - 1, MAX_NS):
        lone = sketch_of([value]).buckets()
        low, high = (2 ** ((lone.offset + side) / 64) for side in (0, 1))
        assert low < value * (1 + 1e-12) and value <= high * (1 + 1e-12)


def test_resolution_halves_when_the_range_grows() -> None:
    sketch = sketch_of([1000, 1000 << 15])
    assert sketch.scale == 6
    sketch.add(1000 << 17)
    assert sketch.scale == 5
    sketch.add(MAX_NS)
    assert sketch.scale == 4 and len(sketch.buckets().counts) <= MAX_BUCKETS
    assert (sketch.count, sketch.min, sketch.max) == (4, 1000, MAX_NS)


def test_values_out_of_bounds_count_as_the_bound() -> None:
    sketch = sketch_of([-5, 0, 1 << 60])
    assert (sketch.min, sketch.max, sketch.count) == (1, MAX_NS, 3)


def test_a_sketch_of_nothing_is_zero_everywhere() -> None:
    assert Sketch().quantile(0.95) == 0.0
    assert Sketch.decode(Sketch().encode()) == Sketch()
    one = sketch_of([7])
    assert one.merge(Sketch()) == Sketch().merge(one) == one


GOOD = [1, 6, 3, 5100, 1000, 2100, 637, b"\x01\x00\x3f\x01\x00\x04\x01"]


# fmt: off
HOSTILE = {
    "empty":                  b"",
    "not msgpack":            b"\xc1",
    "too long":               pack([*GOOD[:7], bytes(500)]),
    "a map":                  pack(dict.fromkeys("abcdefgh", 1)),
    "too few":                pack(GOOD[:7]),
    "another version":        pack([2, *GOOD[1:]]),
    "scale too fine":         pack([1, 7, *GOOD[2:]]),
    "scale too coarse":       pack([1, -2, *GOOD[2:]]),
    "text for a number":      pack([1, 6, "3", *GOOD[3:]]),
    "true for a number":      pack([1, 6, True, *GOOD[3:]]),
    "another count":          pack([1, 6, 4, *GOOD[3:]]),
    "sum too small":          pack([*GOOD[:3], 2999, *GOOD[4:]]),
    "sum too large":          pack([*GOOD[:3], 6301, *GOOD[4:]]),
    "min in another bucket":  pack([*GOOD[:4], 900, *GOOD[5:]]),
    "max in another bucket":  pack([*GOOD[:5], 2200, *GOOD[6:]]),
    "moved":                  pack([*GOOD[:6], 638, GOOD[7]]),
    "an endless run":         pack([*GOOD[:7], b"\x01\x00\xff\xff\xff\x7f\x02"]),
    "an empty run":           pack([*GOOD[:7], b"\x01\x00\x00\x02"]),
    "a run at the beginning": pack([*GOOD[:7], b"\x00\x01\x03"]),
    "a run at the end":       pack([*GOOD[:7], b"\x03\x00\x05"]),
    "an open run":            pack([*GOOD[:7], b"\x03\x00"]),
    "cut short":              pack([*GOOD[:7], b"\x01\x80"]),
    "a padded number":        pack([*GOOD[:7], b"\x81\x80\x00"]),
    "a huge number":          pack([*GOOD[:7], b"\xff" * 9 + b"\x01"]),
    "values in an empty one": pack([1, 6, 0, 0, 5, 5, 0, b""]),
    "something behind":       Sketch().encode() + b"\x00",
}
# fmt: on


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    assert Sketch.decode(pack(GOOD)) == sketch_of([1000, 2000, 2100]), "what they are made of is good"
    with pytest.raises(IntegrityError, match=r"sketch|bytes follow"):
        Sketch.decode(data)


@given(st.binary(max_size=420))
def test_any_bytes_are_a_sketch_or_refused(data: bytes) -> None:
    try:
        sketch = Sketch.decode(data)
    except IntegrityError:
        return
    assert len(sketch.encode()) <= MAX_BYTES


@given(VALUES.filter(bool), st.integers(0, 399), st.integers(1, 255))
def test_a_changed_byte_never_gives_an_impossible_sketch(values: list[int], at: int, change: int) -> None:
    data = bytearray(sketch_of(values).encode())
    data[at % len(data)] ^= change
    try:
        sketch = Sketch.decode(bytes(data))
    except IntegrityError:
        return
    assert sum(sketch.buckets().counts) == sketch.count
    assert sketch.min <= sketch.quantile(0.5) <= sketch.max


def test_the_stored_sketch_is_read_for_ever() -> None:
    data = GOLDEN.read_bytes()
    assert Sketch.decode(data).encode() == data
    assert (Sketch.decode(data).count, Sketch.decode(data).min, Sketch.decode(data).max) == (64, 1_000_000, 90_000_000)
    assert data == sketch_of([1_000_000, 90_000_000, *range(3_000_000, 6_100_000, 50_000)]).encode()
    assert unpack(data)[0] == 1
