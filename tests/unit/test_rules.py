"""Every decision of a policy beside tuples and economy, as tables."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph import rules
from heliograph.manifest import Gate
from heliograph.policy import (
    Authority,
    Drills,
    Immediate,
    Limits,
    ModelRules,
    Policy,
    Staleness,
    Telemetry,
    WorkClass,
    no_policy,
)

NOW, HOUR, DAY = 1_795_000_000, 3600, 86_400
AUTHORITIES: tuple[Authority, ...] = get_args(Authority)
ACTIONS: tuple[rules.Action, ...] = get_args(rules.Action)


def a_policy(**fields: Any) -> Policy:
    return no_policy("demo", "general").model_copy(update={"number": 4, "at": NOW} | fields)


def for_digits(**fields: Any) -> dict[str, ModelRules]:
    return {"digits": ModelRules.model_validate(fields)}


# --- whose word counts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "ring", "model"),
    [
        ("authority", "central", "local"),
        ("fail_mode", "closed", "safe"),
        ("max_offline_s", HOUR, 0),
        ("at_max_offline", "stop", "fall-back"),
        ("unproven", "return", "extend"),
        ("cadence_s", DAY, 0),
    ],
)
def test_what_is_said_of_a_model_goes_before_what_is_said_of_the_ring(field: str, ring: object, model: object) -> None:
    policy = a_policy(**{field: ring}, models=for_digits(**{field: model}))
    assert getattr(rules.for_model(policy, "digits"), field) == model
    assert getattr(rules.for_model(policy, "faces"), field) == ring


def test_without_a_document_the_defaults_are_those_of_the_contract() -> None:
    found = rules.for_model(no_policy("demo", "canary"), "digits")
    assert (found.authority, found.fail_mode, found.max_offline_s) == ("hybrid", None, 30 * DAY)
    assert (found.at_max_offline, found.unproven, found.cadence_s, found.floor) == ("serve", "extend", 0, None)


@pytest.mark.parametrize(
    ("ring", "model", "manifest", "expected"),
    [
        (None, None, "safe", "safe"),
        (None, None, "closed", "closed"),
        ("closed", None, "safe", "closed"),
        ("closed", "safe", "closed", "safe"),
        (None, "closed", "safe", "closed"),
    ],
)
def test_the_fail_mode_of_a_policy_overrides_the_manifests(
    ring: str | None, model: str | None, manifest: Any, expected: str
) -> None:
    policy = a_policy(fail_mode=ring, models=for_digits(fail_mode=model))
    assert rules.fail_mode(policy, "digits", manifest) == expected


def test_unproven_is_extended_or_returned_as_the_policy_says() -> None:
    assert rules.unproven(a_policy(), "digits") == "extend"
    assert rules.unproven(a_policy(unproven="return"), "digits") == "return"
    assert rules.unproven(a_policy(unproven="return", models=for_digits(unproven="extend")), "digits") == "extend"


@pytest.mark.parametrize(
    ("floor", "version", "is_below"),
    [(None, "0.0.1", False), ("1.2.0", "1.2.0", False), ("1.2.0", "1.10.0", False), ("1.10.0", "1.9.9", True),
     ("2.0.0", "1.99.99", True)],
)  # fmt: skip
def test_a_floor_is_compared_by_number(floor: str | None, version: str, is_below: bool) -> None:
    why = rules.why_below_floor(a_policy(models=for_digits(floor=floor)), "digits", version)
    assert (why == f"digits@{version} is below the floor {floor} of policy 4") == is_below
    assert (why is None) != is_below


# --- off line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_offline_s", "away_s", "acts"),
    [(HOUR, 0, False), (HOUR, HOUR, False), (HOUR, HOUR + 1, True), (0, 1, True), (0, 0, False), (HOUR, -5, False)],
)
@pytest.mark.parametrize("action", ["serve", "fall-back", "stop"])
def test_after_too_long_without_the_hubs_word_the_node_does_what_its_policy_says(
    max_offline_s: int, away_s: int, acts: bool, action: Any
) -> None:
    policy = a_policy(max_offline_s=max_offline_s, at_max_offline=action)
    found = rules.offline_action(policy, "digits", NOW - away_s, NOW)
    if not acts:
        assert found is None
        return
    reason = f"{away_s} s without the hub's word, policy 4 allows {max_offline_s} s"
    assert found == rules.Offline(action, reason)


# --- authority ------------------------------------------------------------------------------------------------------

SITE_MAY = {
    "central": {"report"},
    "hybrid": {"report", "rollback", "hold", "abort", "forget"},
    "local": set(ACTIONS),
}


@pytest.mark.parametrize("authority", AUTHORITIES)
@pytest.mark.parametrize("action", ACTIONS)
def test_who_may_act_on_a_site(authority: Authority, action: rules.Action) -> None:
    assert rules.may_act(authority, "hub", action)
    assert rules.may_act(authority, "site", action) == (action in SITE_MAY[authority])
    why = rules.why_may_not(a_policy(authority=authority), "digits", "site", action)
    assert (why is None) == (action in SITE_MAY[authority])
    assert why is None or f"authority of digits is {authority} (policy 4)" in why


def test_the_authority_of_a_model_goes_before_the_rings() -> None:
    policy = a_policy(authority="central", models=for_digits(authority="local"))
    assert rules.why_may_not(policy, "digits", "site", "drill") is None
    assert rules.why_may_not(policy, "faces", "site", "rollback") is not None


# --- gates ----------------------------------------------------------------------------------------------------------


def gate(name: str, limit: float, min_samples: int = 1) -> Gate:
    return Gate(name=name, limit=limit, min_samples=min_samples)


@pytest.mark.parametrize(
    ("of_manifest", "of_policy", "expected"),
    [
        ([], [], []),
        ([gate("p95-ms", 20)], [], [gate("p95-ms", 20)]),
        ([gate("p95-ms", 20)], [gate("p95-ms", 15)], [gate("p95-ms", 15)]),
        ([gate("p95-ms", 20)], [gate("p95-ms", 25)], [gate("p95-ms", 20)]),
        ([gate("p95-ms", 20, 50)], [gate("p95-ms", 25, 90)], [gate("p95-ms", 20, 90)]),
        ([gate("p95-ms", 20, 50)], [gate("p95-ms", 15, 10)], [gate("p95-ms", 15, 50)]),
        ([gate("p95-ms", 20)], [gate("p99-ms", 40)], [gate("p95-ms", 20), gate("p99-ms", 40)]),
        ([], [gate("error-share", 0.5)], [gate("error-share", 0.05, 5)]),
        ([], [gate("error-share", 0.01, 3)], [gate("error-share", 0.01, 5)]),
        ([gate("error-share", 0.2)], [gate("error-share", 0.5)], [gate("error-share", 0.2)]),
    ],
)
def test_a_policy_tightens_gates_and_never_loosens_one(
    of_manifest: list[Gate], of_policy: list[Gate], expected: list[Gate]
) -> None:
    builtin = [gate("error-share", 0.05, 5)]
    assert list(rules.tightened(of_manifest, of_policy, builtin)) == expected


GATES = st.lists(
    st.builds(gate, st.sampled_from(["p95-ms", "p99-ms", "error-share"]), st.floats(0, 100), st.integers(0, 100)),
    max_size=3,
    unique_by=lambda gate: gate.name,
)


@given(GATES, GATES)
def test_whatever_a_policy_says_every_gate_is_at_least_as_strict_as_the_manifests(
    of_manifest: list[Gate], of_policy: list[Gate]
) -> None:
    found = {gate.name: gate for gate in rules.tightened(of_manifest, of_policy)}
    for one in [*of_manifest, *of_policy]:
        assert found[one.name].limit <= one.limit
        assert found[one.name].min_samples >= one.min_samples


# --- staleness ------------------------------------------------------------------------------------------------------

KNOWN = ["1.0.0", "1.0.9", "1.1.0", "1.2.0", "1.2.5", "2.0.0"]


@pytest.mark.parametrize(
    ("active", "allowed", "behind"),
    [
        ("1.0.0", 2, 3), ("1.0.9", 2, 3), ("1.0.9", 3, None), ("1.1.0", 1, 2), ("1.2.0", 0, 1), ("1.2.5", 1, None),
        ("2.0.0", 0, None), ("2.1.0", 0, None), ("1.0.0", None, None), (None, 0, None),
    ],
)  # fmt: skip
def test_versions_behind_are_counted_in_minor_versions_that_are_admissible(
    active: str | None, allowed: int | None, behind: int | None
) -> None:
    policy = a_policy(staleness=Staleness(max_minor_behind=allowed))
    found = rules.staleness(policy, "digits", active=active, known=KNOWN, now=NOW)
    said = (f"{active} is {behind} minor versions behind 2.0.0, policy 4 allows {allowed}",)
    assert found == (said if behind is not None else ())


@pytest.mark.parametrize(
    ("active", "directed", "age_s", "is_late"),
    [
        ("1.0.0", "1.1.0", DAY, False), ("1.0.0", "1.1.0", DAY + 1, True), (None, "1.1.0", DAY + 1, True),
        ("1.1.0", "1.1.0", 9 * DAY, False), ("1.0.0", None, 0, False),
    ],
)  # fmt: skip
def test_a_directed_release_must_serve_in_time(
    active: str | None, directed: str | None, age_s: int, is_late: bool
) -> None:
    policy = a_policy(staleness=Staleness(within_s=DAY))
    found = rules.staleness(
        policy, "digits", active=active, known=(), directed=directed, directed_at=NOW - age_s, now=NOW
    )
    said = (f"{directed} was directed {age_s} s ago and does not serve, policy 4 allows 86400 s",)
    assert found == (said if is_late else ())


@pytest.mark.parametrize(
    ("active", "age_s", "is_late"),
    [("1.1.9", DAY, False), ("1.1.9", DAY + 1, True), ("1.2.0", 9 * DAY, False), ("1.10.0", 9 * DAY, False),
     (None, DAY + 1, True)],
)  # fmt: skip
def test_a_security_release_or_a_newer_one_must_serve_in_time(active: str | None, age_s: int, is_late: bool) -> None:
    policy = a_policy(
        staleness=Staleness(security_within_s=DAY),
        models=for_digits(security={"1.2.0": NOW - age_s}),
    )
    found = rules.staleness(policy, "digits", active=active, known=(), now=NOW)
    assert bool(found) == is_late
    assert not found or found[0].startswith("security release 1.2.0 of 2026-11-1")
    assert rules.staleness(policy, "faces", active=active, known=(), now=NOW) == ()


def test_a_node_without_limits_is_never_stale() -> None:
    late = {"directed": "9.0.0", "directed_at": 0, "now": NOW}
    assert rules.staleness(a_policy(), "digits", active="0.1.0", known=KNOWN, **late) == ()  # type: ignore[arg-type]


# --- what must be in force soon, and drills -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_force", "age_s", "late"),
    [(3, 900, []), (3, 901, ["safety filter"]), (4, 9_999, []), (5, 9_999, []), (0, 7_201, ["safety filter", "audit"])],
)
def test_an_immediate_item_is_overdue_where_its_policy_is_not_in_force_in_time(
    in_force: int, age_s: int, late: list[str]
) -> None:
    items = (Immediate(item="safety filter", converge_s=900), Immediate(item="audit", converge_s=7_200))
    found = rules.overdue(a_policy(immediate=items), in_force, NOW + age_s)
    assert [sentence.split(":")[0] for sentence in found] == late
    assert all("policy 4 was due by 2026-11-1" in line and f"policy {in_force} is in force" in line for line in found)


@pytest.mark.parametrize(
    ("every_days", "age_s", "is_due"),
    [(None, 999 * DAY, False), (90, 90 * DAY - 1, False), (90, 90 * DAY, True)],
)
def test_a_drill_is_due_so_many_days_after_the_last(every_days: int | None, age_s: int, is_due: bool) -> None:
    why = rules.drill_due(a_policy(drills=Drills(every_days=every_days)), NOW - age_s, NOW)
    assert why == ("90 days since the last drill, policy 4 wants one every 90" if is_due else None)


# --- telemetry ------------------------------------------------------------------------------------------------------

BODY = {"who": "till-1", "p95_ms": 4.5, "more": {"who": "x", "n": 1}, "rows": [{"who": "y"}, 3]}


@pytest.mark.parametrize(
    ("lanes", "redact", "lane", "expected"),
    [
        (("audit",), (), "audit", BODY),
        (("audit",), (), "metric", None),
        ((), (), "audit", None),
        (("audit",), ("who",), "audit", {"p95_ms": 4.5, "more": {"n": 1}, "rows": [{}, 3]}),
        (("audit",), ("audit.who",), "audit", {"p95_ms": 4.5, "more": {"n": 1}, "rows": [{}, 3]}),
        (("audit",), ("metric.who", "more"), "audit", {"who": "till-1", "p95_ms": 4.5, "rows": [{"who": "y"}, 3]}),
        (("audit",), ("WHO", "wh", "audit."), "audit", BODY),
    ],
)
def test_what_may_not_leave_the_site_is_left_out_before_it_is_stored(
    lanes: Any, redact: tuple[str, ...], lane: Any, expected: dict[str, Any] | None
) -> None:
    assert rules.redacted(Telemetry(lanes=lanes, redact=redact), lane, BODY) == expected


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["who", "what"]), inner, max_size=2),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["who", "what", "n"]), JSON, max_size=3))
def test_a_redacted_name_is_nowhere_in_what_is_kept(body: dict[str, Any]) -> None:
    kept = rules.redacted(Telemetry(redact=("who",)), "sample", body)
    assert "'who':" not in repr(kept)
    assert kept is not None
    assert set(kept) == set(body) - {"who"}


def test_records_are_kept_for_as_many_days_as_the_policy_says() -> None:
    assert rules.keep_from(Telemetry(keep_days=90), NOW) == NOW - 90 * DAY
    assert rules.keep_from(Telemetry(), 5) == 0


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", get_args(WorkClass))
def test_every_class_of_work_has_the_limits_of_the_policy_or_none(work: WorkClass) -> None:
    own = Limits(concurrency=2, queue=0, deadline_ms=150)
    assert rules.limits(a_policy(limits={work: own}), work) == own
    assert rules.limits(a_policy(), work) == Limits(concurrency=None, queue=None, deadline_ms=None)
