"""Rollouts as functions of rows: numbers grow, rings follow one another, the newest rollout wins."""

import itertools

import pytest

from heliograph.documents import Directive, ModelReport, Refusal, Tuple
from heliograph.errors import NotFoundError, RefusedError
from heliograph.names import RINGS
from heliograph_hub.rollout import (
    DIRECTIVE_LIFE_S,
    ONLINE_RINGS,
    RENEW_BEFORE_S,
    Member,
    Signed,
    Worded,
    check_may_release,
    in_force,
    newest_signed,
    pause,
    promote,
    renewals,
    standings,
    start,
    stop,
    word,
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


def _member(name, *, active=None, refused=(), silent=False, heard=True, verdict=None):
    report = ModelReport(
        phase="idle",
        tuple=Tuple(release=active) if active else None,
        refused=tuple(Refusal(release=r, number=n, reason="golden outputs differ") for r, n in refused),
        verdict=verdict,
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


def test_only_what_came_through_its_probation_counts_as_proven_and_what_failed_does_not_count_as_serving():
    """Also where it failed and serves on, because nothing else is left."""
    members = [
        _member("on-probation", active=ONE, verdict="unproven"),
        _member("proven", active=ONE, verdict="proven"),
        _member("proven-and-silent", active=ONE, verdict="proven", silent=True),
        _member("proven-another", active=TWO, verdict="proven"),
        _member("failed", active=ONE, verdict="failed", refused=[(ONE, 1)]),
        _member("failed-under-an-older-number", active=ONE, verdict="unproven", refused=[(ONE, 7)]),
        _member("refused-and-told-again", active=ONE, verdict="proven", refused=[(ONE, 1)]),
    ]
    canary, *_ = standings([Signed("canary", "digits", 1, ONE, "install", True)], members, model="digits", release=ONE)
    assert canary.proven == ("lab/proven", "lab/refused-and-told-again")
    unjudged = ("lab/on-probation", "lab/failed-under-an-older-number")
    assert sorted(canary.serving) == sorted((*canary.proven, *unjudged))
    assert [name for name, _ in canary.refused] == ["lab/failed"]


@pytest.mark.parametrize("count", range(1, 4))
def test_every_order_of_rows_tells_the_rings_the_same(count):
    rows = []
    for number in range(count):
        rows += _rows(_start(rows, bytes([number]) * 32, f"1.{number}.0"), *ONLINE_RINGS[: number + 1])
    told = in_force(rows)
    for order in itertools.islice(itertools.permutations(rows), 200):
        assert in_force(order) == told
    assert "protected" in RINGS and "protected" not in told


# --- every state and every command ------------------------------------------------------------------------------------


def _row(ring, number, release=ONE, action="install", *, released=True):
    return Signed(ring, "digits", number, release, action, released)


STARTED = [_row("canary", 1), _row("early", 1, released=False), _row("general", 1, released=False)]
GENERAL = [_row(ring, 1) for ring in ONLINE_RINGS]
ASKED = [*GENERAL, _row("protected", 1, released=False)]
EVERYWHERE = [*GENERAL, _row("protected", 1)]
ABORTED = STARTED + [_row(ring, 2, action="hold") for ring in ONLINE_RINGS]
RETURNED = STARTED + [_row(ring, 2, action="return") for ring in ONLINE_RINGS]
ABORTED_LATE = [*ASKED, *(_row(ring, 2, action="hold", released=ring != "protected") for ring in RINGS)]
STOPPING = [*EVERYWHERE, *(_row(ring, 2, action="hold", released=ring != "protected") for ring in RINGS)]
STARTED_AGAIN = ABORTED_LATE + [_row(ring, 3, released=ring == "canary") for ring in ONLINE_RINGS]
SUPERSEDED = GENERAL + [_row(ring, 2, TWO, released=ring == "canary") for ring in ONLINE_RINGS]
GONE = GENERAL + [_row(ring, 2, TWO) for ring in ONLINE_RINGS]
STATES = {
    "none": [],
    "started": STARTED,
    "general": GENERAL,
    "asked": ASKED,
    "everywhere": EVERYWHERE,
    "aborted": ABORTED,
    "returned": RETURNED,
    "aborted late": ABORTED_LATE,
    "stopping": STOPPING,
    "started again": STARTED_AGAIN,
    "superseded": SUPERSEDED,
    "gone": GONE,
}
NAMES = {"realm": "dev", "model": "digits", "version": "1.0.0", "release": ONE}


def _short(found):
    """`ring number action`, with the release if it is another, and `*` for what waits."""
    if isinstance(found, str | Signed | Directive):
        found = (found,)
    lines = []
    for item in found:
        row = item.directive if isinstance(item, Worded) else item
        released = item.released if isinstance(item, Worded | Signed) else True
        other = "" if row.release == ONE else " other"
        lines.append(f"{row.ring} {row.number} {row.action}{other}{'' if released else '*'}")
    return ", ".join(lines)


def _do(command, rows):
    try:
        match command.split():
            case ["start"]:
                found = _start(rows, ONE)
            case ["promote", *to]:
                found = promote(rows, model="digits", version="1.0.0", release=ONE, to=to[0] if to else None)
            case ["pause"]:
                pause(rows, model="digits", version="1.0.0", release=ONE)
                return "may"
            case ["hold" | "return" as action, *ring]:
                found = stop(rows, **NAMES, action=action, ring=ring[0] if ring else None, now=NOW)
            case ["word", action]:
                found = word(rows, **NAMES, action=action, is_paused=False, now=NOW)
    except (RefusedError, NotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    return _short(found)


def _all(number, action):
    return ", ".join(f"{ring} {number} {action}" for ring in ONLINE_RINGS)


def _with(done, number, action):
    """And one of protected, unsigned."""
    return f"{done}, protected {number} {action}*"


def _behind(action):
    """In rings that wait for another release, that is signed anew behind the stop."""
    return ", ".join(f"{ring} 3 {action}, {ring} 4 install other*" for ring in ("early", "general"))


I1, I2, I3, I4 = (_all(number, "install") for number in (1, 2, 3, 4))
H2, H3, H4 = (_all(number, "hold") for number in (2, 3, 4))
R2, R3, R4 = (_all(number, "return") for number in (2, 3, 4))
NONE = "NotFoundError: digits@1.0.0 has no rollout"
ANEW = "rollout start digits@1.0.0 begins anew"
OLD = "not the newest rollout of digits"
YET = "not released to ring general yet"
HERE = "directive 1, install digits@1.0.0, already"
SIGN = "protected needs its offline signatures"
ZERO = "no directive of digits@1.0.0 that could be stopped"
ALL = "superseded in every ring"
P1, P2 = "protected 1 install", "protected 2 hold"
# fmt: off
TABLE = {
    #                 start, promote, pause, hold, return, word install, word hold
    "none":          (I1, NONE, NONE, NONE, NONE, NONE, NONE),
    "started":       (I2, "early 1 install*", "may", H2, R2, YET, ZERO),
    "general":       (I2, SIGN, "may", H2, R2, P1, ZERO),
    "asked":         (I2, SIGN, "may", _with(H2, 2, "hold"), _with(R2, 2, "return"), P1 + "*", P2),
    "everywhere":    (I2, SIGN, "may", _with(H2, 2, "hold"), _with(R2, 2, "return"), HERE, P2),
    "aborted":       (I3, ANEW, ANEW, "", R3, ANEW, ZERO),
    "returned":      (I3, ANEW, ANEW, H3, "", ANEW, ZERO),
    "aborted late":  (I3, ANEW, ANEW, "", _with(R3, 3, "return"), ANEW, P2 + "*"),
    "stopping":      (I3, ANEW, ANEW, "", _with(R3, 3, "return"), ANEW, P2 + "*"),
    "started again": (I4, "early 3 install*", "may", H4, _with(R4, 3, "return"), YET, P2 + "*"),
    "superseded":    (I3, OLD, OLD, _behind("hold"), _behind("return"), OLD, ZERO),
    "gone":          (I3, OLD, OLD, ALL, ALL, OLD, ZERO),
}
# fmt: on
COMMANDS = ("start", "promote", "pause", "hold", "return", "word install", "word hold")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_each_command_does_in_each_state(state, command):
    expected = TABLE[state][COMMANDS.index(command)]
    done = _do(command, STATES[state])
    assert done == expected or ("Error: " in done and expected and expected in done)


@pytest.mark.parametrize(
    ("state", "is_paused", "states"),
    [
        ("started", False, "released waiting waiting offline"),
        ("started", True, "paused waiting waiting offline"),
        ("asked", False, "released released released waiting"),
        ("everywhere", True, "paused paused paused paused"),
        ("aborted", False, "aborted aborted aborted offline"),
        ("returned", False, "returned returned returned offline"),
        ("aborted late", False, "aborted aborted aborted aborted"),
        ("stopping", False, "aborted aborted aborted released"),
        ("started again", False, "released waiting waiting aborted"),
        ("superseded", False, "superseded superseded superseded offline"),
    ],
)
def test_what_each_ring_is_said_to_be(state, is_paused, states):
    found = standings(STATES[state], [], model="digits", release=ONE, is_paused=is_paused)
    assert [standing.state for standing in found] == states.split()


@pytest.mark.parametrize("state", [name for name in STATES if name not in ("none", "gone")])
@pytest.mark.parametrize("action", ["hold", "return"])
def test_after_a_stop_nothing_signed_before_is_told_or_can_be_and_saying_it_again_changes_nothing(state, action):
    rows = STATES[state]
    worded = stop(rows, **NAMES, action=action, ring=None, now=NOW)
    after = rows + [
        Signed(w.directive.ring, "digits", w.directive.number, w.directive.release, w.directive.action, w.released)
        for w in worded
    ]
    for ring in ONLINE_RINGS:
        told = in_force(after).get(ring, {}).get("digits")
        assert told is None or told.release != ONE or told.action == action
        waiting = newest_signed(r for r in after if r.ring == ring).get(ring)
        assert waiting is None or waiting.released or waiting.release != ONE, "nothing of it waits"
    for row in rows:
        if row.ring == "protected" and not row.released and row.action == "install":
            with pytest.raises(RefusedError, match=r"void|aborted|returned"):
                check_may_release(after, row, name="digits@1.0.0", is_paused=False)
    assert stop(after, **NAMES, action=action, ring=None, now=NOW) == ()


def test_a_stop_in_one_ring_leaves_the_others_and_names_a_ring_that_exists():
    assert _do("return canary", GENERAL) == "canary 2 return"
    assert "no ring 'moon'" in _do("hold moon", GENERAL)
    assert "superseded in ring canary" in _do("hold canary", SUPERSEDED)


def test_what_waits_behind_a_stopped_older_release_can_still_be_promoted():
    worded = stop(SUPERSEDED, **NAMES, action="hold", ring="early", now=NOW)
    rows = SUPERSEDED + [
        Signed(w.directive.ring, "digits", w.directive.number, w.directive.release, w.directive.action, w.released)
        for w in worded
    ]
    (row,) = promote(rows, model="digits", version="2.0.0", release=TWO, to=None)
    assert (row.ring, row.number, row.release) == ("early", 4, TWO)


def test_while_it_is_paused_nothing_more_is_released_and_the_sentence_says_how_to_go_on():
    with pytest.raises(RefusedError, match=r"paused: heliograph rollout resume digits@1\.0\.0"):
        promote(STARTED, model="digits", version="1.0.0", release=ONE, to=None, is_paused=True)
    with pytest.raises(RefusedError, match="paused"):
        word(GENERAL, **NAMES, action="install", is_paused=True, now=NOW)
    with pytest.raises(RefusedError, match="paused"):
        check_may_release(ASKED, ASKED[-1], name="digits@1.0.0", is_paused=True)
    assert _short(word(ASKED, **NAMES, action="hold", is_paused=True, now=NOW)) == "protected 2 hold"


def test_directives_that_end_soon_are_signed_again_with_the_next_numbers_in_their_order():
    rows = [*SUPERSEDED, _row("protected", 1)]
    soon = NOW + RENEW_BEFORE_S - 1
    assert renewals([(row, NOW + RENEW_BEFORE_S) for row in rows], realm="dev", now=NOW) == ()
    renewed = renewals([(row, soon) for row in rows], realm="dev", now=NOW)
    assert _short(renewed) == (
        "canary 3 install other, early 3 install, early 4 install other*, general 3 install, general 4 install other*"
    )
    assert {w.directive.expires for w in renewed} == {NOW + DIRECTIVE_LIFE_S}
    old = [(row, soon if row.number == 1 else soon + 9) for row in rows if row.ring == "canary"]
    assert renewals(old, realm="dev", now=NOW) == (), "what was superseded is left to end"
