"""Rollouts as functions of rows: numbers grow, rings follow one another, the newest rollout wins."""

import itertools

import pytest

from heliograph.documents import ModelReport, Refusal, Tuple
from heliograph.errors import NotFoundError, RefusedError
from heliograph.names import RINGS
from heliograph_hub.rollout import (
    DIRECTIVE_LIFE_S,
    ONLINE_RINGS,
    Member,
    Signed,
    in_force,
    promote,
    standings,
    start,
)

ONE, TWO = b"\1" * 32, b"\2" * 32
NOW = 1_800_000_000


def _start(rows, release, version="1.0.0", *, signed=True, approved=True):
    return start(
        rows, realm="dev", model="digits", version=version, release=release, signed=signed, approved=approved, now=NOW
    )


def _rows(directives, *released):
    return [Signed(d.ring, d.model, d.number, d.release, d.action, d.ring in released) for d in directives]


def test_a_start_signs_for_every_ring_whose_key_the_hub_holds():
    directives = _start([], ONE)
    assert [(d.ring, d.number, d.action, d.release) for d in directives] == [
        ("canary", 1, "install", ONE),
        ("early", 1, "install", ONE),
        ("general", 1, "install", ONE),
    ]
    assert {d.expires for d in directives} == {NOW + DIRECTIVE_LIFE_S} and {d.realm for d in directives} == {"dev"}


@pytest.mark.parametrize(("signed", "approved", "word"), [(False, True, "signed"), (True, False, "approved")])
def test_what_lacks_a_duty_does_not_start_and_the_sentence_names_the_command(signed, approved, word):
    with pytest.raises(RefusedError, match=f"digits@1.0.0 is not {word}: heliograph release") as refused:
        _start([], ONE, signed=signed, approved=approved)
    assert refused.value.exit_code == 4


def test_numbers_grow_per_ring_and_model_and_start_again_only_in_new_ones():
    rows = [
        Signed("canary", "digits", 7, ONE, "install", True),
        Signed("early", "digits", 3, ONE, "install", False),
        Signed("canary", "other", 90, ONE, "install", True),
    ]
    assert {d.ring: d.number for d in _start(rows, TWO)} == {"canary": 8, "early": 4, "general": 1}


def test_promotion_releases_one_ring_after_the_other_then_says_that_nothing_waits():
    rows = _rows(_start([], ONE), "canary")
    for ring in ("early", "general"):
        (row,) = promote(rows, model="digits", version="1.0.0", release=ONE, to=None)
        assert row.ring == ring
        rows = [Signed(r.ring, r.model, r.number, r.release, r.action, r.released or r.ring == ring) for r in rows]
    with pytest.raises(RefusedError, match="protected needs its offline signatures"):
        promote(rows, model="digits", version="1.0.0", release=ONE, to=None)


def test_promotion_to_a_ring_releases_those_before_it_too():
    rows = _rows(_start([], ONE), "canary")
    assert [r.ring for r in promote(rows, model="digits", version="1.0.0", release=ONE, to="general")] == [
        "early",
        "general",
    ]
    assert [r.ring for r in promote(rows, model="digits", version="1.0.0", release=ONE, to="early")] == ["early"]


@pytest.mark.parametrize(
    ("to", "family", "words"),
    [
        ("protected", RefusedError, "its offline signatures"),
        ("moon", NotFoundError, "no ring 'moon'"),
        ("canary", RefusedError, "released to ring canary already"),
    ],
)
def test_a_ring_that_can_not_be_promoted_to_is_refused(to, family, words):
    with pytest.raises(family, match=words):
        promote(_rows(_start([], ONE), "canary"), model="digits", version="1.0.0", release=ONE, to=to)


def test_a_newer_rollout_supersedes_and_the_older_one_can_not_be_promoted():
    old = _rows(_start([], ONE), "canary", "early")
    rows = old + _rows(_start(old, TWO, "1.1.0"), "canary")
    with pytest.raises(RefusedError, match=r"digits@1.0.0 is not the newest rollout"):
        promote(rows, model="digits", version="1.0.0", release=ONE, to=None)
    told = {ring: models["digits"].release for ring, models in in_force(rows).items()}
    assert told == {"canary": TWO, "early": ONE}, "early keeps what was released to it; general was never told"
    states = {s.ring: s.state for s in standings(rows, [], model="digits", release=ONE)}
    assert states == {"canary": "superseded", "early": "superseded", "general": "superseded", "protected": "offline"}


def test_a_release_without_a_rollout_has_no_promotion_and_no_status():
    with pytest.raises(NotFoundError, match=r"rollout start digits@1\.0\.0"):
        promote([], model="digits", version="1.0.0", release=ONE, to=None)
    with pytest.raises(NotFoundError):
        standings(_rows(_start([], ONE)), [], model="digits", release=TWO)


def _member(name, *, active=None, refused=(), silent=False, heard=True):
    report = ModelReport(
        phase="idle",
        tuple=Tuple(release=active) if active else None,
        refused=tuple(Refusal(release=r, number=n, reason="golden outputs differ") for r, n in refused),
    )
    return Member("lab", name, "canary", silent, report if heard else None)


def test_each_node_of_a_ring_is_counted_exactly_once_by_what_it_said():
    members = [
        _member("serves", active=ONE),
        _member("refused", refused=[(ONE, 2)]),
        _member("refused-before", refused=[(ONE, 1)]),
        _member("silent", active=ONE, silent=True),
        _member("other", active=TWO),
        _member("never-reported", heard=False),
    ]
    rows = [Signed("canary", "digits", n, ONE, "install", True) for n in (1, 2)]
    canary, early, *_ = standings(rows, members, model="digits", release=ONE)
    assert canary.state == "released" and canary.number == 2
    assert canary.serving == ("lab/serves",)
    assert canary.refused == (("lab/refused", "golden outputs differ"),)
    assert canary.silent == ("lab/silent",)
    assert canary.under_way == ("lab/refused-before", "lab/other", "lab/never-reported")
    assert (early.serving, early.under_way) == ((), ())


@pytest.mark.parametrize("count", range(1, 4))
def test_every_order_of_rows_tells_the_rings_the_same(count):
    rows = []
    for number in range(count):
        rows += _rows(_start(rows, bytes([number]) * 32, f"1.{number}.0"), *ONLINE_RINGS[: number + 1])
    told = in_force(rows)
    for order in itertools.islice(itertools.permutations(rows), 200):
        assert in_force(order) == told
    assert "protected" in RINGS and "protected" not in told
