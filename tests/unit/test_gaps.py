"""Where nodes differ from what they are told, and which of it their policy allows, as tables."""

from dataclasses import replace

import pytest

from heliograph.documents import Declined, Denials, ModelReport, Refusal, Reported, Tuple
from heliograph.policy import Immediate, ModelRules, Policy, Staleness
from heliograph_hub.gaps import Due, Facts, Told, drift, silent, stale

NOW = 1_800_000_000
HOUR, DAY = 3600, 86400
V10, V11, V12, STRANGE = (bytes([n]) * 32 for n in (0x10, 0x11, 0x12, 0x99))
NAMES = {V10: "1.0.0", V11: "1.1.0", V12: "1.2.0"}


def policy(number=3, **fields):
    return Policy(realm="dev", ring="general", number=number, at=NOW - DAY, **fields)


def report(release=V12, config=2, **fields):
    active = None if release is None else Tuple(release=release, config=config, policy=3)
    return ModelReport(**{"phase": "idle", "tuple": active} | fields)


def said(models=None, **fields):
    values = {
        "realm": "dev", "site": "lab", "node": "pi-1", "run": b"r" * 8, "n": 1, "estimate": NOW, "agent": "0.1.0",
        "schemas": {}, "ring": "general", "assignment": 5, "tuf": {}, "deny": Denials(), "bytes_received": 0,
        "policy": 3,        "models": {"digits": report()} if models is None else models,
    }  # fmt: skip
    return Reported(**values | fields)


def node(said_, **fields):
    values = {"is_silent": False, "last_heard": NOW, "assignment": 5, "pins": {}, "names": NAMES}
    return Facts("lab", "pi-1", "general", said=said_, **values | fields)


DUE = Due(
    policy(staleness=Staleness(max_minor_behind=1, within_s=DAY)),
    {"digits": Told(V12, "install", 7, NOW - HOUR)},
    {"digits": 2},
    {"digits": ("1.0.0", "1.1.0", "1.2.0")},
)


def test_a_node_with_all_that_it_is_told_has_no_gap_and_is_not_behind():
    assert drift(node(said()), DUE, NOW) == () and stale(node(said()), DUE, NOW) is None


def test_a_node_that_never_reported_is_not_guessed_at():
    assert drift(node(None), DUE, NOW) == () and stale(node(None), DUE, NOW) is None


@pytest.mark.parametrize(
    ("about", "has", "wanted", "why"),
    [
        (report(V11), "1.1.0", "1.2.0", "idle"),
        (report(None), "nothing", "1.2.0", "idle"),
        (report(STRANGE), STRANGE.hex()[:16], "1.2.0", "idle"),
        (report(V11, phase="fetching", waiting="a window"), "1.1.0", "1.2.0", "fetching, waits for a window"),
        (report(V11, held=(V12,)), "1.1.0", "1.2.0", "held on the node, idle"),
        (
            report(V11, refused=(Refusal(release=V12, number=7, reason="too slow"),)),
            "1.1.0",
            "1.2.0",
            "refused: too slow",
        ),
        (
            report(V11, refused=(Refusal(release=V12, number=6, reason="an older directive's"),)),
            "1.1.0",
            "1.2.0",
            "idle",
        ),
    ],
)
def test_a_release_that_is_not_the_one_directed_is_a_gap_with_what_the_node_says_of_it(about, has, wanted, why):
    (gap,) = drift(node(said({"digits": about})), DUE, NOW)
    assert (gap.what, gap.model, gap.has, gap.wanted, gap.why) == ("release", "digits", has, wanted, why)


def test_a_pin_is_the_reason_of_a_gap_and_excuses_nothing():
    (gap,) = drift(node(said({"digits": report(V10)}), pins={"digits": "1.0.0"}), DUE, NOW)
    assert gap.why == "pinned to 1.0.0"
    assert gap.against == ("1.0.0 is 2 minor versions behind 1.2.0, policy 3 allows 1",)


@pytest.mark.parametrize(
    ("action", "release", "gaps"),
    [("hold", V11, []), ("hold", V12, []), ("return", V11, []), ("return", V12, [("1.2.0", "its fallback")])],
)
def test_hold_asks_for_nothing_and_return_for_anything_else(action, release, gaps):
    due = replace(DUE, directives={"digits": Told(V12, action, 8, NOW)})
    found = drift(node(said({"digits": report(release)})), due, NOW)
    assert [(gap.has, gap.wanted) for gap in found] == gaps


def test_what_no_directive_names_is_a_gap_as_well():
    (gap,) = drift(node(said({"digits": report(), "faces": report(V11, 0)})), DUE, NOW)
    assert (gap.model, gap.has, gap.wanted) == ("faces", "1.1.0", "nothing")
    assert gap.why == "no directive of ring general names a release of it"


def test_a_model_that_is_directed_and_never_mentioned_is_a_gap():
    (gap,) = drift(node(said({})), DUE, NOW)
    assert (gap.has, gap.wanted, gap.why) == ("nothing", "1.2.0", "it has said nothing of this model")


def test_numbers_that_differ_are_gaps_and_declined_documents_say_why():
    declined = (
        Declined(document="policy", number=3, reason="needs field x"),
        Declined(document="config/digits", number=2, reason="needs agent 9"),
    )
    found = drift(node(said({"digits": report(config=1)}, policy=2, assignment=4, declined=declined)), DUE, NOW)
    assert [(g.what, g.has, g.wanted, g.why, g.against) for g in found] == [
        ("assignment", "4", "5", "it has not acknowledged it yet", ()),
        ("policy", "2", "3", "declined: needs field x", ()),
        ("config", "1", "2", "declined: needs agent 9", ()),
    ]
    held = drift(node(said({"digits": report(config=1)}, policy=2)), DUE, NOW)
    assert [g.why.partition(" fit")[0] for g in held] == ["held until what it runs", "held until it"]


def test_a_gap_is_within_policy_until_the_time_it_allows_is_over():
    lagging = node(said({"digits": report(V11)}))
    for at, against in (
        (NOW - HOUR + DAY, ()),
        (
            NOW - HOUR + DAY + 1,
            (f"1.2.0 was directed {DAY + 1} s ago and does not serve, policy 3 allows {DAY} s",),
        ),
    ):
        (gap,) = drift(lagging, DUE, at)
        assert gap.against == against
        behind = stale(lagging, DUE, at)
        assert (behind is None) if not against else behind.says == (("digits", against[0]),)


def test_a_policy_with_an_immediate_item_is_tolerated_only_until_its_time():
    due = replace(DUE, policy=policy(immediate=(Immediate(item="filter", converge_s=DAY),)))
    older = node(said(policy=2))
    (gap,) = drift(older, due, NOW)
    assert gap.against == () and stale(older, due, NOW) is None
    (gap,) = drift(older, due, NOW + 1)
    assert "filter: policy 3 was due by" in gap.against[0]
    assert stale(older, due, NOW + 1).says == (("policy", gap.against[0]),)


def test_security_releases_have_a_time_of_their_own():
    rules = {"digits": ModelRules(security={"1.2.0": NOW - 2 * DAY})}
    due = replace(DUE, policy=policy(staleness=Staleness(security_within_s=DAY), models=rules))
    assert stale(node(said()), due, NOW) is None
    behind = stale(node(said({"digits": report(V11)})), due, NOW)
    assert [sentence.partition(" of ")[0] for _, sentence in behind.says] == ["security release 1.2.0"]


def test_what_the_node_says_of_itself_is_shown_also_if_the_hub_sees_nothing():
    behind = stale(node(said({"digits": report(stale=("1 minor version behind",))})), DUE, NOW)
    assert (behind.says, behind.own) == ((), (("digits", "1 minor version behind"),))


def test_silent_nodes_are_shown_apart_longest_first_and_their_gaps_say_so():
    nodes = [
        replace(node(said({"digits": report(V11)})), node=name, is_silent=is_silent, last_heard=heard)
        for name, is_silent, heard in (("a", True, NOW - 5), ("b", False, NOW), ("c", True, None), ("d", True, NOW - 9))
    ]
    assert [n.node for n in silent(nodes)] == ["c", "d", "a"]
    assert [gap.silent for n in nodes for gap in drift(n, DUE, NOW)] == [True, False, True, True]


def test_reasons_are_short_enough_for_a_table():
    refused = (Refusal(release=V12, number=7, reason="x" * 400),)
    (gap,) = drift(node(said({"digits": report(V11, refused=refused)})), DUE, NOW)
    assert len(gap.why) == 200
