"""A node's timeline: what it told and what was done about it at the hub, in plain sentences and in order."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleets import NODE_KEY, NOW, RUN, TOKEN, request
from heliograph.documents import Records
from heliograph.errors import ConfigError, NotFoundError
from heliograph.signing import sign_statement
from heliograph_hub.acts import Concern, act
from heliograph_hub.api.application import application
from heliograph_hub.commands.fleet import fleet_show, fleet_timeline
from heliograph_hub.founding import init_hub
from heliograph_hub.service import Service
from heliograph_hub.telling import MAX_SAID, Told
from heliograph_hub.timeline import Act, joined, lines, moment, newest, once, returns
from listening import served

ONE, TWO, THREE = b"1" * 32, b"2" * 32, b"3" * 32
NAMES = {ONE: "digits@1.0.0", TWO: "digits@1.1.0", THREE: "digits@1.2.0"}
CONCERN = Concern(
    "lab", "pi-1", "early", frozenset({"digits"}), {digest.hex()[:16]: name for digest, name in NAMES.items()}
)
WENT = {
    "model": "digits", "release": ONE, "from": TWO, "reason": "error ratio 0.5 over its limit of 0.02",
    "duration_ms": 41.0, "answered": 37, "failed": 3, "in_flight": 1, "detect_ms": 230, "restore_ms": 410,
}  # fmt: skip
FELL = {"model": "digits", "from": "proving", "event": "ActiveLost", "to": "rolling-back", "release": TWO}
JUDGED = {
    "model": "digits", "release": TWO, "verdict": "failed", "reason": "error ratio 0.5 over its limit of 0.02",
    "traffic_s": 12.0, "evidence": [["worker-deaths", 3.0, 0, 0, False], ["error-ratio", 0.02, 0.5, 40, True]],
}  # fmt: skip


def told(kind: str, body: dict[str, Any], at: int = NOW, seq: int = 0, lane: str = "audit", count: int = 1) -> Told:
    return Told(RUN, lane, seq, count, kind, at, at + 60, body)


def said(records: list[Told], done: tuple[Act, ...] = ()) -> list[str]:
    return [f"{row.who}: {row.says}" for row in joined(records, done, CONCERN, NAMES)]


def one(kind: str, body: dict[str, Any], **changes: Any) -> str:
    (line,) = said([told(kind, body, **changes)])
    return line


def test_a_way_back_says_what_was_deployed_what_failed_the_threshold_who_began_and_what_serves_again() -> None:
    records = [told("verdict", JUDGED), told("transition", FELL, seq=1), told("rolled-back", WENT, seq=2)]
    records += [told("release-refused", FELL, lane="incident"), told("rolled-back", WENT, lane="incident", seq=1)]
    *_, row = joined(records, (), CONCERN, NAMES)
    assert row.says.split("; ") == [
        "ROLLED BACK from digits@1.1.0 to digits@1.0.0, which serves again: error ratio 0.5 over its limit of 0.02",
        "error-ratio measured 0.5, limit 0.02, 40 samples",
        "begun by the node itself, which saw it fail",
        "it had answered 37 requests, 3 failed, 1 were under way",
        "noticed after 230 ms",
        "restored after 410 ms",
    ]
    plain = row.plain(NAMES)["rollback"]
    assert (plain["left"], plain["resumed"], plain["left_digest"]) == ("digits@1.1.0", "digits@1.0.0", TWO.hex())
    assert plain["tripped"] == ({"gate": "error-ratio", "limit": 0.02, "measured": 0.5, "samples": 40},)
    assert (plain["begun_by"], plain["restore_ms"]) == ("the node itself, which saw it fail", 410.0)


# fmt: off
BEGUN = {
    "a denial":    ("ActiveDenied", "denied",                              "a denial"),
    "a directive": ("Returned",     "returned by directive",               "the directive of its ring"),
    "the site":    ("Returned",     "rolled back by the site: it smells",  "the site"),
    "an order":    ("Returned",     "rolled back by command 4",            "command 4"),
    "policy":      ("ActiveUnfit",  "digits@1.1.0 is below the floor",     "the policy in force"),
    "unknown":     ("Lightning",    "",                                    ""),
}
# fmt: on


@pytest.mark.parametrize(("event", "reason", "by"), BEGUN.values(), ids=BEGUN)
def test_who_or_what_began_a_way_back_is_told(event: str, reason: str, by: str) -> None:
    fell = told("transition", FELL | {"event": event, "reason": reason})
    *_, row = joined([fell, told("rolled-back", WENT | {"reason": reason}, seq=1)], (), CONCERN, NAMES)
    assert row.rollback is not None and row.rollback.begun_by == by
    assert ("begun by" in row.says) == bool(by)


def test_a_verdict_of_another_release_or_one_that_was_good_lends_no_threshold_to_a_way_back() -> None:
    for other in (JUDGED | {"release": THREE}, JUDGED | {"verdict": "proven"}, JUDGED | {"model": "faces"}):
        *_, row = joined([told("verdict", other), told("rolled-back", WENT, seq=1)], (), CONCERN, NAMES)
        assert row.rollback is not None and row.rollback.tripped == ()


# fmt: off
SENTENCES: dict[str, tuple[str, dict[str, Any], str]] = {
    "step":     ("transition", {"model": "digits", "event": "Staged", "to": "activating", "release": TWO, "reason": ""},
                 "node: the whole image of digits@1.1.0 stands verified"),
    "falls":    ("transition", FELL | {"reason": "its worker died"},
                 "node: digits goes back to its fallback: its worker died"),
    "stuck":    ("transition", FELL | {"event": "LastLost", "to": "stuck", "reason": "its worker died"},
                 "node: what is active of digits failed and nothing else is left: it stays: its worker died; STUCK, "
                 "people have to look"),
    "newer":    ("transition", FELL | {"event": "Teleported{0.__class__}", "to": "elsewhere"},
                 "node: digits@1.1.0: proving to elsewhere (Teleported{0.__class__})"),
    "refused":  ("release-refused", {"model": "digits", "event": "Declined", "release": TWO, "reason": "too large"},
                 "node: digits@1.1.0 is declined and refused: too large"),
    "denied":   ("denied", {"model": "digits", "release": THREE, "is_final": True, "reason": "backdoor"},
                 "node: digits@1.2.0 is denied, finally: backdoor"),
    "verdict":  ("verdict", JUDGED,
                 "node: digits@1.1.0 is judged failed: error ratio 0.5 over its limit of 0.02; error-ratio measured "
                 "0.5, limit 0.02, 40 samples"),
    "fetched":  ("fetched", {"model": "digits", "release": TWO, "bytes": 4096, "way": "delta"},
                 "node: digits@1.1.0 is fetched: 4096 bytes came (delta)"),
    "switched": ("switched", {"model": "digits", "release": TWO, "from": ONE, "duration_ms": 12.5, "failed": 0},
                 "node: digits@1.1.0 serves in place of digits@1.0.0; switched in 12.5 ms, 0 requests failed"),
    "order":    ("ordered", {"by": "hub", "number": 3, "command": "drill", "model": "digits", "outcome": "back"},
                 "node: order 3 of the hub, drill of digits: back"),
    "by hand":  ("ordered", {"by": "site", "number": 0, "command": "hold", "model": "digits", "outcome": "held"},
                 "site: ordered hold of digits at the site: held"),
    "drill":    ("drill", {"model": "digits", "release": TWO, "fallback": ONE, "back_ms": 8.0, "forward_ms": 9.0,
                           "failed": 0, "passed": True},
                 "node: drill of digits: digits@1.1.0 to digits@1.0.0 and forward again, back in 8 ms, forward in 9 "
                 "ms; 0 requests failed"),
    "no drill": ("drill-failed", {"model": "digits", "release": TWO, "fallback": ONE, "passed": False},
                 "node: drill of digits FAILED between digits@1.1.0 and digits@1.0.0"),
    "off line": ("offline-begun", {"model": "digits", "reason": "unheard for 3 days"},
                 "node: digits off line for longer than policy allows: unheard for 3 days"),
    "hung":     ("agent-silent", {"reason": "for 300 s"},
                 "node: the agent gave no sign of life and was killed: for 300 s"),
    "message":  ("message-refused", {"where": "heliograph/dev/desired", "reason": "no signature", "suppressed": 4},
                 "node: a message on heliograph/dev/desired was refused: no signature (4 more before it are not told)"),
    "unnamed":  ("fetched", {"model": "digits", "release": b"9" * 32, "bytes": 1},
                 "node: digits 3939393939393939 is fetched: 1 bytes came"),
    "new kind": ("moved", {"to": "the\ncellar", "key": b"k" * 32}, "node: moved to=the cellar key=6b6b6b6b6b6b6b6b"),
}
# fmt: on


@pytest.mark.parametrize(("kind", "body", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_each_record_is_one_plain_sentence(kind: str, body: dict[str, Any], sentence: str) -> None:
    assert one(kind, body) == sentence


def test_lost_records_show_as_a_row_that_counts_them() -> None:
    body = {"kinds": {"transition": 5, "verdict": 2}, "from": 0, "to": 60}
    assert one("gap", body, count=7) == (
        "node: 7 records lost: 5 transition, 2 verdict, from 1970-01-01 00:00:00 to 1970-01-01 00:01:00 UTC"
    )
    assert one("gap", {}, count=1) == "node: 1 record lost"
    assert len(said([told("gap", {}), told("gap", {}, lane="incident")])) == 2, "each lane has its own"


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in SENTENCES.values()} | {"rolled-back", "gap"}))
def test_attack_whatever_a_node_writes_is_one_bounded_line(kind: str) -> None:
    odd = (7, None, "\x1b[2J\n" * 999, b"x", float("inf"), float("nan"), -1, 1 << 63, [[]], {"a": {}}, True)
    fields = {name for _, body, _ in SENTENCES.values() for name in body} | WENT.keys() | JUDGED.keys() | {"kinds"}
    for value in odd:
        bodies: list[dict[str, Any]] = [
            dict.fromkeys(fields, value),
            {"evidence": [[value] * 5, ["x", value, value, value, True]], "kinds": {"x": value}, "verdict": "failed"},
        ]
        for body in bodies:
            (row,) = joined([told(kind, body)], (), CONCERN, NAMES)
            assert len(row.says) <= MAX_SAID and row.says.isprintable()
            json.dumps(row.plain(NAMES), allow_nan=False)


def test_what_is_told_in_two_lanes_is_one_row() -> None:
    refused = FELL | {"event": "Declined", "to": "idle", "reason": "too large"}
    records = [
        told("rolled-back", WENT, lane="incident"),
        told("rolled-back", WENT, NOW + 1),
        told("release-refused", refused, NOW + 5, lane="incident"),
        told("transition", refused, NOW + 5, seq=1),
        told("rolled-back", WENT, NOW + 90, seq=2),
    ]
    assert [(t.kind, t.at) for t in once(records)] == [
        ("rolled-back", NOW + 1), ("release-refused", NOW + 5), ("rolled-back", NOW + 90),
    ]  # fmt: skip


# fmt: off
ACTS: dict[str, tuple[str, str | None]] = {
    "added":      ("releases release=digits@1.1.0 digest=32", "added release digits@1.1.0"),
    "signed":     ("candidates/sign-digits@1.1.0", "signed release digits@1.1.0"),
    "approved":   ("candidates/approve-digits@1.1.0", "approved release digits@1.1.0"),
    "other":      ("candidates/approve-faces@1.1.0", None),
    "started":    ("rollouts release=digits@1.1.0", "started the rollout of digits@1.1.0"),
    "promoted":   ("rollouts/digits/1.1.0/promote to=early", "promoted digits@1.1.0 to ring early"),
    "next":       ("rollouts/digits/1.1.0/promote", "promoted digits@1.1.0 to the next ring"),
    "aborted":    ("rollouts/digits/1.1.0/abort", "aborted the rollout of digits@1.1.0 in every ring"),
    "elsewhere":  ("rollouts/digits/1.1.0/abort ring=canary", None),
    "returned":   ("rollouts/digits/1.1.0/return ring=early", "ordered the return from digits@1.1.0 in ring early"),
    "denied":     (f"denials type=deny releases {TWO.hex()[:16]}", "denied digits@1.1.0"),
    "denied key": ("denials type=deny-key keys 3f9c1d22a0b7e614", "denied key 3f9c1d22a0b7e614 and all that it "
                   "vouched for"),
    "policy":     ("documents kind=policy ring early, number 3", "set policy 3 of ring early"),
    "its not":    ("documents kind=policy ring canary, number 3", None),
    "config":     ("documents kind=config model digits, number 2", "set config 2 of digits"),
    "token":      ("fleet/tokens site=lab node=pi-1", "made a join string for it"),
    "neighbour":  ("fleet/tokens site=lab node=pi-2", None),
    "assigned":   ("fleet/assignments site=lab ring=early", "put site lab into ring early"),
    "pinned":     ("fleet/lab/pi-1/pins release=digits@1.0.0", "pinned it to digits@1.0.0"),
    "ordered":    ("fleet/lab/pi-1/commands kind=rollback model=digits", "ordered rollback of digits"),
    "removed":    ("fleet/lab/pi-1/remove", "removed it: its key counts no more"),
    "not it":     ("fleet/lab/pi-2/remove", None),
    "directive":  (f"signed directive: ring early, model digits, number 2, action install, release {TWO.hex()[:16]}",
                   "signed directive 2 of ring early: install digits@1.1.0"),
    "of others":  (f"signed directive: ring general, model digits, number 2, action hold, release {TWO.hex()[:16]}",
                   None),
    "assignment": ("signed assignment: site lab, node pi-1, ring early, number 4",
                   "signed its assignment 4: ring early"),
    "keys":       ("keys/rotations role=deny", None),
    "role":       ("tokens role=viewer", None),
}
# fmt: on


@pytest.mark.parametrize(("what", "sentence"), ACTS.values(), ids=ACTS)
def test_each_act_that_concerns_the_node_is_one_plain_sentence_and_no_other_is_told(
    what: str, sentence: str | None
) -> None:
    assert act(what, CONCERN) == sentence


def test_rows_stand_in_order_of_time_and_an_act_before_what_came_of_it() -> None:
    done = (Act(NOW, "operator", "fleet/lab/pi-1/commands kind=rollback model=digits"), Act(NOW + 9, "hub", "nothing"))
    ordered = {"by": "hub", "number": 3, "command": "rollback", "model": "digits", "outcome": "rolled back"}
    records = [told("ordered", ordered, seq=3), told("fetched", {"model": "digits"}, NOW - 1, seq=2)]
    assert said(records, done) == [
        "node: a release of digits is fetched: 0 bytes came",
        "operator: ordered rollback of digits",
        "node: order 3 of the hub, rollback of digits: rolled back",
    ]


def test_the_newest_rows_are_shown_and_a_source_that_was_cut_leaves_no_hole() -> None:
    rows = joined([told("fetched", {}, NOW + n, seq=n) for n in range(9)], (), CONCERN, NAMES)

    def kept(limit: int, since: int, whole_from: int = 0) -> tuple[list[int], bool]:
        found, is_cut = newest(rows, limit, since, whole_from)
        return [row.at - NOW for row in found], is_cut

    assert kept(3, NOW) == ([6, 7, 8], True)
    assert kept(9, NOW) == ([*range(9)], False)
    assert kept(9, NOW + 7) == ([7, 8], False)
    assert kept(9, NOW, NOW + 5) == ([5, 6, 7, 8], True)
    assert newest([], 3, 0, 0) == ([], False)


def test_returns_to_one_release_are_a_signal_from_the_second_on() -> None:
    ways = [(TWO, NOW), (THREE, NOW + 100), (THREE, NOW + 200)]
    records = [told("rolled-back", WENT | {"from": left}, at, seq=n) for n, (left, at) in enumerate(ways)]
    records += [told("rolled-back", WENT | {"from": TWO}, lane="incident")]  # the same as the first
    records += [told("rolled-back", WENT | {"model": "faces"}, NOW + 50, seq=9)]
    (found,) = returns(records)
    assert found.says(NAMES) == (
        "returned to digits@1.0.0 3 times since 2027-01-15 08:00:00 UTC: from 1.1.0, 1.2.0 (2 times)"
    )
    assert [(f.times) for f in returns(records[:2])] == [2]
    assert returns(records[:1]) == []


# fmt: off
MOMENTS = {
    "90m": NOW - 5400, "12h": NOW - 43200, "3d": NOW - 3 * 86400, "2w": NOW - 14 * 86400, "999999w": 0,
    "2027-01-15": 1_799_971_200, "2027-01-15T07:30": NOW - 1800, "2027-01-15 07:30:00Z": NOW - 1800,
    "2027-01-15T08:30+01:00": NOW - 1800,
}
# fmt: on


@pytest.mark.parametrize(("text", "at"), MOMENTS.items(), ids=MOMENTS)
def test_a_time_is_written_as_people_write_it(text: str, at: int) -> None:
    assert moment(text, NOW) == at


@pytest.mark.parametrize("text", ["", "yesterday", "3", "-3d", "3.5h", "2027-13-01", "٣d", "9" * 99 + "d", "1" * 999])
def test_what_is_no_time_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time: write 90m, 12h, 3d or 2w"):
        moment(text, NOW)


@pytest.mark.parametrize(("text", "why"), [("2999-01-01", "yet to come"), ("1969-12-31", "before 1970")])
def test_a_time_of_which_nothing_can_be_told_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        moment(text, NOW)


def test_people_read_a_row_a_line_and_the_signal_last() -> None:
    row = {"at": NOW, "who": "owner", "keys": ["ab" * 32], "says": "approved release digits@1.1.0"}
    answer = {"site": "lab", "node": "pi-1", "rows": [row], "is_cut": True, "told": 3, "returned": [{"says": "again"}]}
    assert lines(answer) == [
        "older rows are left out: --limit shows more of them, --until older ones",
        "2027-01-15 08:00:00  owner with key abababababababab: approved release digits@1.1.0",
        "again",
    ]
    empty = answer | {"is_cut": False, "returned": []}
    assert lines(empty | {"rows": []}) == ["nothing of lab/pi-1 in that time"]
    assert lines(empty | {"told": 0})[1:] == ["lab/pi-1 has told nothing yet"]


# --- with a hub -----------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """A hub over its API, with one node that has told nothing."""

    service: Service
    url: str
    next: dict[str, int] = field(default_factory=dict)

    def tell(self, kind: str, body: dict[str, Any], at: int, lane: str = "audit") -> None:
        first = self.next.get(lane, 0)
        self.next[lane] = first + 1
        batch = Records(
            realm="demo", site="lab", node="pi-1", run=RUN, lane=lane, first=first, rows=((1, kind, at, body),)
        )  # type: ignore[arg-type]
        self.service.fleet.take_records("lab", "pi-1", sign_statement("records", batch.encode(), [NODE_KEY]), at)


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Known]:
    now = int(time.time())
    init_hub(tmp_path / "hub", "demo", now)

    async def make() -> Service:
        return Service(tmp_path / "hub", 1)

    service = asyncio.run(make())
    service.enrolment.add_token("lab", "pi-1", TOKEN, now, 86400, protected=False)
    service.enrolment.enroll("lab", "pi-1", request(), now)
    with served(application(service)) as url:
        yield Known(service, url)
    service.database.close()


def test_operators_see_what_a_node_told_with_what_they_did_and_the_releases_it_returns_to(
    known: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    now = int(time.time()) - 600
    fleet_timeline("lab/pi-1", where=known.url)
    assert capsys.readouterr().out.endswith("lab/pi-1 has told nothing yet\n")
    httpx.post(f"{known.url}/v1/fleet/assignments", json={"site": "lab", "ring": "early"}).raise_for_status()
    for at, left in ((now - 3 * 86400, TWO), (now, THREE)):
        known.tell("verdict", JUDGED | {"release": left}, at)
        known.tell("transition", FELL | {"release": left}, at)
        known.tell("rolled-back", WENT | {"from": left}, at, "incident")
        known.tell("rolled-back", WENT | {"from": left}, at)
    known.tell("serving", {"model": "digits"}, now, "metric")
    fleet_timeline("lab/pi-1", since="1d", where=known.url)
    *rows, signal = capsys.readouterr().out.splitlines()
    assert [row.split("  ")[1].partition(":")[0] for row in rows[:3]] == ["node", "node", "node"]
    assert "ROLLED BACK from digits 3333333333333333 to digits 3131313131313131" in rows[2]
    assert "error-ratio measured 0.5, limit 0.02" in rows[2] and "begun by the node itself" in rows[2]
    assert any(row.endswith("owner: put site lab into ring early") for row in rows[3:])
    assert not any("serving" in row or "2222222222222222" in row for row in rows)
    assert signal.startswith("returned to digits 3131313131313131 2 times since ")
    fleet_show("lab/pi-1", where=known.url)
    assert signal in capsys.readouterr().out.splitlines()
    fleet_timeline("lab/pi-1", limit=1, as_json=True, where=known.url)
    answer = json.loads(capsys.readouterr().out)
    assert (len(answer["rows"]), answer["is_cut"], answer["told"], answer["returned"][0]["times"]) == (1, True, 8, 2)


def test_a_way_back_is_told_with_a_verdict_from_before_the_time_that_is_asked_for(
    known: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    now = int(time.time())
    known.tell("verdict", JUDGED, now - 1200)
    known.tell("rolled-back", WENT, now)
    known.tell("fetched", {"model": "digits"}, (1 << 40) - 1)
    fleet_timeline("lab/pi-1", since="10m", where=known.url)
    row, odd = [line for line in capsys.readouterr().out.splitlines() if "node: " in line]
    assert "error-ratio measured 0.5, limit 0.02" in row
    assert odd.startswith("second 1099511627775  node: "), "whatever its clock says"


def test_a_node_that_is_unknown_and_a_time_that_is_none_are_refused(known: Known) -> None:
    with pytest.raises(NotFoundError, match="no node lab/pi-9 is enrolled"):
        fleet_timeline("lab/pi-9", where=known.url)
    with pytest.raises(ConfigError, match="'soon' is no time"):
        fleet_timeline("lab/pi-1", since="soon", where=known.url)
    for query in ("since=x", "limit=-1", "until=٣"):
        assert httpx.get(f"{known.url}/v1/fleet/lab/pi-1/timeline?{query}").status_code == 400
