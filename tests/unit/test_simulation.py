"""What a document would do to the fleet, as a table; who has not taken what must be in force soon."""

from typing import Any

import pytest

from heliograph.documents import Declined, Denials, ModelReport, Refusal, Reported, Spent, Tuple
from heliograph.manifest import Compatible
from heliograph.policy import Config, Policy
from heliograph.tuples import HeldRelease
from heliograph_hub.simulation import Install, Seen, World, acknowledged, missing, simulate

NOW = 1_795_000_000
OLD, NEW, NEXT = b"o" * 32, b"n" * 32, b"x" * 32


def release(digest, version, *, config=(0, None), policy=(0, None), generations=(), fail_mode="safe"):
    spans = {name: {"min": span[0], "max": span[1]} for name, span in (("config", config), ("policy", policy))}
    return HeldRelease(digest, version, Compatible.model_validate(spans), generations, fail_mode)


def policy(number=1, **fields):
    return Policy.model_validate({"realm": "demo", "ring": "general", "number": number, "at": NOW} | fields)


def config(number=1, **fields):
    return Config.model_validate({"realm": "demo", "model": "digits", "number": number, "at": NOW} | fields)


def reported(ring="general", number=0, **fields: Any):
    models = fields.pop("models", {})
    given = {
        "realm": "demo", "site": "lab", "node": "pi", "run": b"r" * 8, "n": 1, "estimate": NOW, "agent": "0",
        "schemas": {}, "ring": ring, "assignment": 1, "tuf": {}, "deny": Denials(), "bytes_received": 0,
        "policy": number, "models": models,
    }  # fmt: skip
    return Reported(**(given | fields))


def node(name="lab/pi", active=NEW, fallback=OLD, held=(), numbers=(0, 0), ring="general", silent=False, **fields):
    """A node that serves `active` with these numbers of config and policy."""
    model = ModelReport(
        phase="idle",
        tuple=Tuple(release=active, config=numbers[0], policy=numbers[1]) if active else None,
        fallback=Tuple(release=fallback) if fallback else None,
        held=held,
        refused=fields.pop("refused", ()),
        waiting=fields.pop("waiting", ""),
    )
    return Seen(name, ring, reported(ring, numbers[1], models={"digits": model}, **fields), silent)


def world(*releases, directed=None, at=NOW, policies=(), configs=()):
    return World(
        {one.digest: one for one in releases or (release(OLD, "1.0.0"), release(NEW, "1.1.0"))},
        {"general": {"digits": Install(directed, 7, at)}} if directed else {},
        {"general": {"digits": tuple(one.version for one in releases)}},
        {"general": {one.number: one for one in policies}},
        {"digits": {one.number: one for one in configs}},
    )


FLOOR = {"digits": {"floor": "1.1.0"}}
STRICT = {"digits": {"floor": "2.0.0"}}
ONLY_OLD = {"digits": {"compatible": {"1.1.0": {"policy": {"max": 0}}}}}

# fmt: off
TABLE = [
    # what is said                        document                          node                        world
    ("a policy that fits is taken",
     policy(),                             node(),                           world(),
     "takes", "takes", None, False, ()),
    ("a floor above all there is: held, then flagged",
     policy(models=STRICT),                node(),                           world(),
     "held", "flagged", 3600, False, ("release digits@1.1.0 is 1.1.0, models.digits.floor of policy 1 wants 2.0.0",)),
    ("the same, and the manifest says closed",
     policy(models=STRICT),                node(),
     world(release(NEW, "1.1.0", fail_mode="closed"), release(OLD, "1.0.0")),
     "held", "stopped", 3600, True, ("wants 2.0.0",)),
    ("the same, and the policy's fail mode overrides the manifest's",
     policy(models=STRICT, fail_mode="safe"), node(),
     world(release(NEW, "1.1.0", fail_mode="closed"), release(OLD, "1.0.0")),
     "held", "flagged", 3600, False, ("wants 2.0.0",)),
    ("the same without any time to hold it",
     policy(models=STRICT, hold_max_s=0, fail_mode="closed"), node(),        world(),
     "stopped", "stopped", None, True, ("wants 2.0.0",)),
    ("only the fallback fits",
     policy(models=ONLY_OLD, hold_max_s=60), node(),                         world(),
     "held", "falls-back", 60, False, ("policy is 1, policy's compatible.1.1.0.policy.max of digits@1.1.0 wants 0",)),
    ("only the fallback fits, at once",
     policy(models=ONLY_OLD, hold_max_s=0), node(),                          world(),
     "falls-back", "falls-back", None, False, ()),
    ("the directed release is there and fits: it was to serve anyway",
     policy(models={"digits": {"floor": "1.2.0"}}), node(held=(NEXT,)),
     world(release(OLD, "1.0.0"), release(NEW, "1.1.0"), release(NEXT, "1.2.0"), directed=NEXT),
     "takes", "takes", None, False, ()),
    ("the directed release would fit and isn't there yet",
     policy(models={"digits": {"floor": "1.2.0"}}), node(),
     world(release(OLD, "1.0.0"), release(NEW, "1.1.0"), release(NEXT, "1.2.0"), directed=NEXT),
     "held", "flagged", 3600, False, ("wants 1.2.0",)),
    ("a policy that was held back already is not news",
     policy(2),                            node(),                           world(policies=[policy(1, models=STRICT)]),
     "takes", "takes", None, False, ()),
    ("what is stopped already loses nothing",
     policy(2, models=STRICT, fail_mode="closed"), node(numbers=(0, 1)),
     world(policies=[policy(1, models=STRICT, fail_mode="closed")]),
     "stopped", "stopped", None, False, ("policy 2 is held back",)),
    ("stale: too many minor versions behind",
     policy(staleness={"max_minor_behind": 1}), node(active=OLD, fallback=None),
     world(release(OLD, "1.0.0"), release(NEW, "1.1.0"), release(NEXT, "1.2.0"), directed=NEXT),
     "takes", "takes", None, False, ("stale: 1.0.0 is 2 minor versions behind 1.2.0, policy 1 allows 1",)),
    ("stale: not serving in time what was directed",
     policy(staleness={"within_s": 60}),   node(),
     world(release(NEW, "1.1.0"), release(OLD, "1.0.0"), release(NEXT, "1.2.0"), directed=NEXT, at=NOW - 61),
     "takes", "takes", None, False, ("stale: 1.2.0 was directed 61 s ago and does not serve",)),
    ("stale: a security release that is out too long",
     policy(staleness={"security_within_s": 60}, models={"digits": {"security": {"1.2.0": NOW - 61}}}), node(), world(),
     "takes", "takes", None, False, ("stale: security release 1.2.0",)),
    ("over budget already",
     policy(budget={"day_bytes": 10, "month_bytes": 1000}), node(spent=Spent(day=11, month=11)), world(),
     "takes", "takes", None, False, ("over budget: 11 bytes are fetched, budget.day_bytes is 10",)),
    ("a config that fits is taken",
     config(),                             node(),                           world(),
     "takes", "takes", None, False, ()),
    ("a config that doesn't fit the release is kept unused",
     config(5),                            node(),
     world(release(NEW, "1.1.0", config=(0, 4)), release(OLD, "1.0.0")),
     "passed-over", "passed-over", None, False,
     ("config/digits 5 is held back: config/digits is 5, compatible.config.max of digits@1.1.0 wants 4 or older",)),
    ("a config of a generation that the release doesn't accept",
     config(1, generation=3),              node(),
     world(release(NEW, "1.1.0", generations=(1, 2))),
     "passed-over", "passed-over", None, False, ("schema.generations of digits@1.1.0 wants 1 or 2",)),
    ("a release that the hub doesn't know fits as nothing does",
     policy(models=FLOOR, hold_max_s=0),   node(active=b"?" * 32, fallback=None), world(),
     "flagged", "flagged", None, False, ("wants 1.1.0",)),
]
# fmt: on


@pytest.mark.parametrize(
    ("document", "seen", "there", "state", "finally_", "until", "loses", "why"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_what_a_document_does_to_a_node(document, seen, there, state, finally_, until, loses, why):
    (effect,) = simulate(document, [seen], there, NOW)
    assert (effect.state, effect.finally_) == (state, finally_)
    assert effect.until == (None if until is None else NOW + until)
    assert effect.loses_service == loses
    if why:
        assert all(any(part in text for text in effect.why) for part in why), effect.why
    else:
        assert effect.why == ()
    if state == "takes":
        number = effect.after.policy if isinstance(document, Policy) else effect.after.config
        assert number == document.number
    if state == "held":
        assert effect.after == seen.report.models["digits"].tuple
    if state == "stopped":
        assert effect.after is None


def test_only_the_ring_of_a_policy_and_the_model_of_a_config_are_affected():
    nodes = [
        node("lab/a"),
        node("lab/b", ring="early"),
        Seen("lab/c", "general", None),
        Seen("lab/d", "general", reported()),
        node("lab/e", silent=True),
    ]
    assert [effect.node for effect in simulate(policy(), nodes, world(), NOW)] == ["lab/a", "lab/e"]
    assert [effect.node for effect in simulate(config(), nodes, world(), NOW)] == ["lab/a", "lab/b", "lab/e"]
    assert simulate(config(model="faces"), nodes, world(), NOW) == []
    assert [effect.is_silent for effect in simulate(policy(), nodes, world(), NOW)] == [False, True]


@pytest.mark.parametrize(("number", "finally_"), [(7, "flagged"), (6, "takes")])
def test_a_release_that_a_node_refused_is_not_counted_on_until_a_directive_with_another_number(number, finally_):
    there = world(release(OLD, "1.0.0"), release(NEW, "1.1.0"), release(NEXT, "1.2.0"), directed=NEXT)
    refused = (Refusal(release=NEXT, number=number, reason="golden"),)
    floor = policy(models={"digits": {"floor": "1.2.0"}})
    (effect,) = simulate(floor, [node(held=(NEXT,), refused=refused)], there, NOW)
    assert effect.finally_ == finally_


# --- convergence ------------------------------------------------------------------------------------------------------

FILTER = ({"item": "safety filter", "converge_s": 600}, {"item": "notice", "converge_s": 60})


def test_a_node_has_acknowledged_a_policy_when_all_it_serves_is_under_it():
    assert acknowledged(None, "general") == 0
    assert acknowledged(reported(number=3), "general") == 3
    assert acknowledged(reported(number=3), "early") == 0, "another ring's number says nothing"
    two = {
        "digits": ModelReport(phase="idle", tuple=Tuple(release=NEW, policy=3)),
        "faces": ModelReport(phase="idle", tuple=Tuple(release=OLD, policy=2)),
        "none": ModelReport(phase="fetching"),
    }
    assert acknowledged(reported(number=3, models=two), "general") == 2


def test_who_lacks_an_immediate_policy_is_named_with_what_is_late_and_why():
    urgent = policy(3, immediate=FILTER)
    nodes = [
        node("lab/z", numbers=(0, 2), silent=True),
        node("lab/has", numbers=(0, 3)),
        node("lab/newer", numbers=(0, 4)),
        node("lab/no", numbers=(0, 2), declined=(Declined(document="policy", number=3, reason="needs agent 2"),)),
        node("lab/old", numbers=(0, 2), declined=(Declined(document="policy", number=2, reason="needs agent 1"),)),
        node("lab/slow", numbers=(0, 2), waiting="policy 3 is held back"),
        node("lab/else", numbers=(0, 1), ring="early"),
        Seen("lab/mute", "general", None),
    ]
    rows = missing(urgent, nodes, NOW + 60)
    assert [(row.node, row.number, row.why) for row in rows] == [
        ("lab/mute", 0, "it has never reported"),
        ("lab/no", 2, "declined: needs agent 2"),
        ("lab/old", 2, ""),
        ("lab/slow", 2, "digits: policy 3 is held back"),
        ("lab/z", 2, "silent"),
    ]
    assert {(row.late, row.due) for row in rows} == {((), (("safety filter", NOW + 600), ("notice", NOW + 60)))}
    assert {row.late for row in missing(urgent, nodes, NOW + 61)} == {("notice",)}
    assert {(row.late, row.due) for row in missing(urgent, nodes, NOW + 601)} == {(("safety filter", "notice"), ())}
    assert missing(policy(3), nodes, NOW + 10_000) == [], "nothing in it is urgent"


@pytest.mark.parametrize("document", [policy(7, min_agent="0.3"), config(7, min_agent="0.3")])
def test_a_node_whose_agent_is_too_old_is_shown_as_declining_with_both_versions(document):
    old, young = node("lab/old", agent="0.2.9"), node("lab/young", agent="0.3.0")
    effects = simulate(document, [old, young], world(), NOW)
    assert [effect.state for effect in effects] == ["declined", "takes"]
    assert effects[0].why == (f"{type(document).__name__.lower()} 7 needs agent 0.3, this is 0.2.9",)
    assert effects[0].before == effects[0].after
