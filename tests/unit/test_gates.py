"""Probation: what proves a release, what ends it, what is only missing."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from heliograph.manifest import GATES, File, Gate, Golden, Manifest, Soak, Variant
from heliograph.sketch import Sketch
from heliograph_site.gates import (
    DEFAULT_RATIO,
    MIN_BEFORE,
    Evidence,
    Look,
    Probation,
    Verdict,
    judge_load,
    look_from_row,
    unknown_gates,
)


def sketch(milliseconds: float, count: int, tail_ms: float | None = None) -> Sketch:
    """So many answers of the same latency; with `tail_ms`, every tenth took that."""
    made = Sketch()
    for n in range(count):
        made.add(int(1e6 * (milliseconds if tail_ms is None or n % 10 else tail_ms)))
    return made


def look(requests: int, errors: int = 0, restarts: int = 0, **more: Any) -> Look:
    return Look(requests=requests, errors=errors, restarts=restarts, **more)


def probation(min_s: int, max_s: int, *gates: Gate) -> Probation:
    return Probation(gates, Soak(min_s=min_s, max_s=max_s), 0.0)


def gate(name: str, limit: float, min_samples: int = 1) -> Gate:
    return Gate(name=name, limit=limit, min_samples=min_samples)


def word(verdict: Verdict | None) -> str | None:
    return verdict.word if verdict is not None else None


def judged(at: Probation, seen: Look, now: float = 1.0) -> Verdict | None:
    """What `seen` means when probation began with a silent worker."""
    at.judge(look(0, before=seen.before), 0.0)
    return at.judge(seen, now)


# --- the soak ---------------------------------------------------------------------------------------------------------


def test_only_time_with_traffic_counts_towards_proof() -> None:
    trial = probation(10, 1000)
    assert trial.judge(look(5), 1.0) is None
    for second in range(2, 60):
        assert trial.judge(look(5), float(second)) is None, "silence never proves"
    verdicts = [word(trial.judge(look(5 + n), 59.0 + n)) for n in range(1, 11)]
    assert verdicts[:-1] == [None] * 9 and verdicts[-1] == "proven"


def test_silence_to_the_end_is_unproven_and_says_what_was_missing() -> None:
    trial = probation(10, 60)
    assert trial.judge(look(0), 59.0) is None
    verdict = trial.judge(look(0), 60.0)
    assert verdict is not None and verdict.word == "unproven"
    assert verdict.reason == "after 60 s still missing: 0 of 10 s of traffic without errors"
    assert probation(0, 60).judge(look(0), 1.0) is None, "no minimum is no proof either"


def test_a_server_that_never_answers_leaves_the_release_unproven() -> None:
    trial = probation(1, 60)
    assert trial.judge(None, 59.0) is None
    verdict = trial.judge(None, 60.0)
    assert verdict is not None and verdict.word == "unproven" and "the server's first word of it" in verdict.reason


def test_a_failed_request_lets_the_soak_begin_anew() -> None:
    trial = probation(3, 1000)
    trial.judge(look(10), 0.0)
    for second in (1, 2):
        trial.judge(look(10 + 100 * second), float(second))
    assert trial.judge(look(310, errors=1), 3.0) is None
    assert [word(trial.judge(look(310 + n, errors=1), 3.0 + n)) for n in (1, 2, 3)] == [None, None, "proven"]


def test_requests_that_failed_prove_nothing_however_short_the_soak() -> None:
    trial = probation(0, 60)
    trial.judge(look(5, errors=2), 0.0)
    assert trial.judge(look(6, errors=3), 1.0) is None
    verdict = trial.judge(look(6, errors=3), 60.0)
    assert verdict is not None and verdict.word == "unproven"
    assert "traffic without errors" in verdict.reason
    trial = probation(0, 60)
    trial.judge(look(5, errors=2), 0.0)
    assert word(trial.judge(look(7, errors=3), 1.0)) == "proven", "one good answer is enough where no time is asked for"


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (look(100, errors=20), "20 of 100 requests failed during probation, over the limit of 5 %"),
        (look(5, errors=5), "5 of 5 requests failed"),
        (look(0, restarts=3), "worker died 3 times"),
        (look(0, state="failed", reason="it broke"), "it broke"),
        (look(0, state="failed"), "the server gave it up"),
    ],
)
def test_probation_ends_badly_for_what_the_release_does(seen: Look, says: str) -> None:
    verdict = judged(probation(10, 1000), seen)
    assert verdict is not None and verdict.word == "failed" and says in verdict.reason


@pytest.mark.parametrize("seen", [look(4, errors=4), look(200, errors=10), look(0, restarts=2)])
def test_probation_goes_on_after_few_failures(seen: Look) -> None:
    assert judged(probation(10, 1000), seen) is None


def test_errors_and_deaths_from_before_probation_are_not_held_against_it() -> None:
    trial = probation(1, 1000)
    assert trial.judge(look(100, errors=50, restarts=9), 0.0) is None
    assert word(trial.judge(look(101, errors=50, restarts=9), 1.0)) == "proven"


def test_a_server_that_began_anew_counts_from_its_new_beginning() -> None:
    trial = probation(2, 1000)
    trial.judge(look(1000), 0.0)
    trial.judge(None, 1.0)
    assert trial.judge(look(3), 2.0) is None
    assert word(trial.judge(look(4), 4.0)) == "proven"


def test_a_server_that_began_anew_unseen_and_has_caught_up_counts_from_its_new_beginning() -> None:
    trial = probation(10, 1000)
    trial.judge(look(10, errors=1, began_ns=5), 0.0)
    trial.judge(None, 1.0)
    anew = look(200, errors=100, restarts=9, began_ns=6)
    assert trial.judge(anew, 2.0) is None, "what was counted before the first look is held against nobody"
    assert trial.judge(replace(anew, requests=201), 11.0) is None, "nor for it: nobody saw how long it took"
    assert word(trial.judge(replace(anew, requests=202), 12.0)) == "proven"


# --- gates of the manifest --------------------------------------------------------------------------------------------

SLOW, TAIL = sketch(182, 40), sketch(5, 40, tail_ms=182)

# fmt: off
TRIPS: list[tuple[Gate, Look, str]] = [
    (gate("p95-ms", 60, 40), look(40, sketch=SLOW),
     "p95 182 ms over its limit of 60 ms in 40 samples"),
    (gate("p95-ms", 60), look(40, sketch=TAIL),
     "p95 182 ms over its limit of 60 ms in 40 samples"),
    (gate("p99-ms", 60), look(40, sketch=SLOW),
     "p99 182 ms over its limit of 60 ms in 40 samples"),
    (gate("p95-ratio", 3, 30), look(40, sketch=SLOW, before=sketch(4, 30)),
     "p95 182 ms is 46 times the 4 ms of the release before, over the limit of 3 times, in 40 samples"),
    (gate("error-share", 0.01, 100), look(100, errors=2),
     "2 of 100 requests failed during probation, over the limit of 1 %"),
    (gate("cold-start-ms", 500), look(0, cold_start_ms=912.5),
     "cold start 912.5 ms over its limit of 500 ms"),
    (gate("memory-bytes", 10**8), look(0, memory_bytes=412_123_136),
     "memory 412123136 bytes over its limit of 100000000 bytes"),
]
HOLDS: list[tuple[Gate, Look]] = [
    (gate("p95-ms", 60, 41),         look(40, sketch=SLOW)),
    (gate("p95-ms", 190),            look(40, sketch=SLOW)),
    (gate("p95-ms", 60),             look(0, sketch=Sketch())),
    (gate("p95-ms", 60),             look(40)),
    (gate("p99-ms", 190),            look(40, sketch=SLOW)),
    (gate("p95-ratio", 3, 30),       look(40, sketch=SLOW, before=sketch(4, 29))),
    (gate("p95-ratio", 3, 30),       look(29, sketch=sketch(182, 29), before=sketch(4, 100))),
    (gate("p95-ratio", 50, 30),      look(40, sketch=SLOW, before=sketch(4, 30))),
    (gate("p95-ratio", 3, 30),       look(40, sketch=SLOW)),
    (gate("error-share", 0.01, 101), look(100, errors=2)),
    (gate("error-share", 0.5, 1),    look(100, errors=50)),
    (gate("cold-start-ms", 500),     look(0, cold_start_ms=500.0)),
    (gate("cold-start-ms", 500),     look(0)),
    (gate("memory-bytes", 10**8),    look(0, memory_bytes=10**8)),
    (gate("memory-bytes", 10**8, 3), look(0, memory_bytes=10**9)),
]
# fmt: on


@pytest.mark.parametrize(("of", "seen", "says"), TRIPS, ids=[f"{g.name}-{n}" for n, (g, *_) in enumerate(TRIPS)])
def test_what_is_beyond_its_limit_with_enough_samples_ends_probation_at_once(of: Gate, seen: Look, says: str) -> None:
    verdict = judged(probation(10, 1000, of), seen)
    assert verdict is not None and (verdict.word, verdict.reason) == ("failed", says)
    rows = [row for row in verdict.evidence if row.tripped]
    assert [(row.gate, row.limit) for row in rows] == [(of.name, of.limit)]
    assert rows[0].measured is not None and rows[0].measured > of.limit


@pytest.mark.parametrize(("of", "seen"), HOLDS, ids=[f"{g.name}-{n}" for n, (g, _) in enumerate(HOLDS)])
def test_what_is_within_its_limit_or_has_few_samples_does_not(of: Gate, seen: Look) -> None:
    assert judged(probation(10, 1000, of), seen) is None


def test_every_gate_there_is_can_trip_and_is_named_in_the_manifest() -> None:
    assert {of.name for of, *_ in TRIPS} == {of.name for of, _ in HOLDS} == set(GATES)


def test_nothing_is_proven_before_every_gate_has_its_samples() -> None:
    trial = probation(2, 1000, gate("p95-ms", 60, 30))
    trial.judge(look(0, sketch=Sketch()), 0.0)
    for second in range(1, 10):
        assert trial.judge(look(3 * second, sketch=sketch(5, 3 * second)), float(second)) is None
    assert trial.waiting == "27 of 30 samples for p95-ms"
    verdict = trial.judge(look(30, sketch=sketch(5, 30)), 10.0)
    assert verdict is not None and verdict.word == "proven"
    row = next(row for row in verdict.evidence if row.gate == "p95-ms")
    assert row.measured == pytest.approx(5, rel=0.01) and (row.samples, row.tripped) == (30, False)


def test_too_few_samples_to_the_end_is_unproven_and_says_so() -> None:
    trial = probation(1, 60, gate("p95-ms", 60, 30), gate("cold-start-ms", 500))
    trial.judge(look(0), 0.0)
    trial.judge(look(10, sketch=sketch(5, 10)), 30.0)
    verdict = trial.judge(look(11, sketch=sketch(5, 11)), 60.0)
    assert verdict is not None and verdict.word == "unproven"
    assert verdict.reason == ("after 60 s still missing: 11 of 30 samples for p95-ms, 0 of 1 samples for cold-start-ms")


def test_latencies_from_before_probation_are_not_held_against_it() -> None:
    slow = sketch(500, 1000)
    trial = probation(1, 1000, gate("p95-ms", 60, 10))
    trial.judge(look(1000, sketch=slow), 0.0)
    verdict = trial.judge(look(1040, sketch=slow.merge(sketch(5, 40))), 1.0)
    assert verdict is not None and verdict.word == "proven"


# --- what is built in -------------------------------------------------------------------------------------------------


def test_a_release_far_slower_than_the_one_before_fails_without_any_gate_of_its_own() -> None:
    verdict = judged(probation(10, 1000), look(40, sketch=SLOW, before=sketch(4, MIN_BEFORE)))
    assert verdict is not None and "is 46 times the 4 ms of the release before" in verdict.reason


@pytest.mark.parametrize(
    "seen",
    [
        look(DEFAULT_RATIO.min_samples - 1, sketch=sketch(182, DEFAULT_RATIO.min_samples - 1), before=sketch(4, 200)),
        look(40, sketch=SLOW, before=sketch(4, MIN_BEFORE - 1)),
        look(40, sketch=sketch(5, 40), before=sketch(0.5, 200)),
        look(40, sketch=sketch(18, 40), before=sketch(4, 200)),
    ],
    ids=["few samples", "little before", "fast all the same", "not far slower"],
)
def test_the_built_in_ratio_is_slow_to_judge(seen: Look) -> None:
    assert judged(probation(10, 1000), seen) is None


def test_a_release_is_compared_before_it_is_proven_if_there_is_something_to_compare_with() -> None:
    trial = probation(1, 1000)
    before = sketch(4, MIN_BEFORE)
    trial.judge(look(0, before=before), 0.0)
    assert trial.judge(look(20, sketch=sketch(4, 20), before=before), 5.0) is None
    assert trial.waiting == f"20 of {DEFAULT_RATIO.min_samples} samples for p95-ratio"
    assert word(trial.judge(look(30, sketch=sketch(4, 30), before=None), 6.0)) == "proven", "the worker before may go"


def test_a_gate_of_the_manifest_replaces_the_built_in_one() -> None:
    loose = probation(10, 1000, gate("p95-ratio", 100, 10), gate("error-share", 0.5, 10))
    assert judged(loose, look(40, errors=10, sketch=SLOW, before=sketch(4, 200))) is None


# --- loading, rows, unknown gates -------------------------------------------------------------------------------------


def test_what_loading_showed_is_judged_before_the_release_answers() -> None:
    gates = (gate("cold-start-ms", 500), gate("memory-bytes", 10**8), gate("p95-ms", 1))
    assert judge_load(gates, 400.0, 10**7) is None
    assert judge_load(gates, None, 0) is None, "not told is not beyond"
    slow, large = judge_load(gates, 900.0, 10**7), judge_load(gates, 400.0, 10**9)
    assert slow is not None and slow.reason == "cold start 900 ms over its limit of 500 ms"
    assert large is not None and large.reason == "memory 1000000000 bytes over its limit of 100000000 bytes"
    assert judge_load((gate("memory-bytes", 10**8, 2),), 1.0, 10**9) is None, "two samples need a second look"


def test_a_row_of_the_server_is_read_as_it_is_written() -> None:
    row = {
        "state": "ready", "reason": "", "requests": 9, "errors": 1, "restarts": 2, "cold_start_ms": 80.5,
        "memory_bytes": 7, "sketch": sketch(4, 8).encode().hex(), "standby": {"sketch": sketch(3, 2).encode().hex()},
        "began_ns": 5,
    }  # fmt: skip
    assert look_from_row(row) == Look("ready", "", 9, 1, 2, sketch(4, 8), 80.5, 7, sketch(3, 2), 5)
    assert look_from_row({}) is None
    bare = look_from_row({"requests": 3, "standby": None, "sketch": "zz", "cold_start_ms": None})
    assert bare == replace(Look(), state="", requests=3)


def test_gates_that_this_version_can_not_judge_are_named() -> None:
    manifest = Manifest(
        model="digits",
        version="1.0.0",
        files=(File(name="m", length=0, sha256=bytes(32), pages=()),),
        variants=(Variant(name="plain", files=("m",)),),
        golden=Golden(inputs="m", outputs="m"),
        gates=(gate("p95-ms", 1), gate("temperature", 80)),
    )
    assert unknown_gates(manifest) == ("temperature",)
    assert unknown_gates(manifest.model_copy(update={"gates": ()})) == ()


def test_evidence_stands_in_records_as_plain_values() -> None:
    assert Evidence("p95-ms", 60.0, 182.0, 40, True).row() == ["p95-ms", 60.0, 182.0, 40, True]


def test_no_two_verdicts_come_out_of_the_same_measurements(seed: int) -> None:
    rng = Random(seed)
    values = [int(rng.lognormvariate(15, 0.5)) for _ in range(200)]
    whole, halves = Sketch(), (Sketch(), Sketch())
    for n, value in enumerate(values):
        whole.add(value)
        halves[n % 2].add(value)
    of = gate("p95-ms", 1)
    first = judged(probation(1, 9, of), look(200, sketch=whole))
    second = judged(probation(1, 9, of), look(200, sketch=halves[1].merge(halves[0])))
    assert first == second and first is not None and first.word == "failed"
