"""What a policy decides beside tuples and economy: one pure function for each decision.

A node and the hub ask the same functions, so that what the hub shows is what the node does. Answers that people read
are sentences, with the document and both values; empty or None means that nothing is wrong. Nothing here acts.

Rules:
1. What a policy says of one model goes before what it says of the ring (`for_model`).
2. A policy may tighten what a manifest promises, never loosen it: gates count with the stricter of the values, and what
    is built in counts like a manifest's.
3. What keeps a node safe by itself (a denial, a fallback after a failure) asks nobody: authority is about people.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from heliograph.documents import LAST_S, Lane
from heliograph.manifest import Gate
from heliograph.names import version_key
from heliograph.policy import (
    DAY_S,
    Authority,
    FailModeRule,
    Limits,
    ModelRules,
    OfflineAction,
    Policy,
    Telemetry,
    UnprovenAction,
    WorkClass,
)

Who = Literal["hub", "site"]
"""`site`: a person or a program at the node itself, or at its site's console."""
Action = Literal["rollback", "hold", "abort", "drill", "forget", "report"]


NO_RULES = ModelRules()


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for one model of a ring, with nothing left open but the fail mode that a manifest may set."""

    authority: Authority
    fail_mode: FailModeRule | None
    max_offline_s: int
    at_max_offline: OfflineAction
    unproven: UnprovenAction
    cadence_s: int
    floor: str | None
    security: Mapping[str, int]
    gates: tuple[Gate, ...]


def for_model(policy: Policy, model: str) -> Rules:
    """The policy as it holds for one model."""
    own = policy.models.get(model, NO_RULES)
    return Rules(
        authority=own.authority or policy.authority,
        fail_mode=own.fail_mode or policy.fail_mode,
        max_offline_s=policy.max_offline_s if own.max_offline_s is None else own.max_offline_s,
        at_max_offline=own.at_max_offline or policy.at_max_offline,
        unproven=own.unproven or policy.unproven,
        cadence_s=policy.cadence_s if own.cadence_s is None else own.cadence_s,
        floor=own.floor,
        security=own.security,
        gates=own.gates,
    )


def fail_mode(policy: Policy, model: str, of_manifest: FailModeRule) -> FailModeRule:
    """What the model does with nothing left that may serve."""
    return for_model(policy, model).fail_mode or of_manifest


def unproven(policy: Policy, model: str) -> UnprovenAction:
    """What follows a probation without enough traffic."""
    return for_model(policy, model).unproven


def why_below_floor(policy: Policy, model: str, version: str) -> str | None:
    """Why a version may neither be activated nor fallen back to."""
    floor = for_model(policy, model).floor
    if floor is None or version_key(version) >= version_key(floor):
        return None
    return f"{model}@{version} is below the floor {floor} of policy {policy.number}"


# --- off line ---------------------------------------------------------------------------------------------------------


class Offline(NamedTuple):
    """A node was without the hub's word for too long: what it does, and why in words."""

    action: OfflineAction
    reason: str


def offline_action(policy: Policy, model: str, heard_at: int, now: int) -> Offline | None:
    """What the model does for want of the hub's word; None: nothing yet. A clock that goes back decides nothing.

    `heard_at` is the newest time that the hub vouched for.
    """
    own = policy.models.get(model, NO_RULES)
    away_s = now - heard_at
    allowed_s = policy.max_offline_s if own.max_offline_s is None else own.max_offline_s
    if away_s <= allowed_s:  # asked after every step, so nothing else is worked out for it
        return None
    reason = f"{away_s} s without the hub's word, policy {policy.number} allows {allowed_s} s"
    return Offline(own.at_max_offline or policy.at_max_offline, reason)


# --- authority --------------------------------------------------------------------------------------------------------

# What a site may do by itself; the hub may do all of it. Whatever is chosen must be admissible: signed, approved,
# directed to the ring, not denied, not below the floor.
_SITE_MAY: dict[Authority, frozenset[Action]] = {
    "central": frozenset({"report"}),
    "hybrid": frozenset({"report", "rollback", "hold", "abort", "forget"}),
    "local": frozenset({"report", "rollback", "hold", "abort", "forget", "drill"}),
}


def may_act(authority: Authority, who: Who, action: Action) -> bool:
    """Whether this party may do this to a model."""
    return who == "hub" or action in _SITE_MAY[authority]


def why_may_not(policy: Policy, model: str, who: Who, action: Action) -> str | None:
    """Why this party may not do this; None if it may."""
    authority = for_model(policy, model).authority
    if may_act(authority, who, action):
        return None
    return f"{action} by the {who} is not allowed: authority of {model} is {authority} (policy {policy.number})"


# --- proving ----------------------------------------------------------------------------------------------------------


def tightened(of_manifest: Sequence[Gate], of_policy: Sequence[Gate], builtin: Sequence[Gate] = ()) -> tuple[Gate, ...]:
    """The gates that count: the manifest's first, each with the stricter limit and the larger number of samples.

    `builtin` are gates that count while nobody names them: a policy can't loosen them by naming them.
    """
    named = {gate.name: gate for gate in of_manifest}
    hidden = {gate.name: gate for gate in builtin}
    for gate in of_policy:
        base = named.get(gate.name) or hidden.get(gate.name)
        if base is not None:
            gate = Gate(
                name=gate.name,
                limit=min(base.limit, gate.limit),
                min_samples=max(base.min_samples, gate.min_samples),
            )
        named[gate.name] = gate
    return tuple(named.values())


# --- staleness --------------------------------------------------------------------------------------------------------


def staleness(
    policy: Policy,
    model: str,
    *,
    active: str | None,
    known: Iterable[str],
    directed: str | None = None,
    directed_at: int | None = None,
    now: int,
) -> tuple[str, ...]:
    """How far the model is further behind than the policy allows, a sentence for each way.

    Args:
        active: version that serves; None: none does.
        known: versions of the model that are admissible, as far as known.
        directed: version that the newest directive installs, and when it came (`directed_at`).
    """
    found = []
    allowed = policy.staleness
    newer = [version for version in known if active is not None and version_key(version) > version_key(active)]
    minors = {version_key(version)[:2] for version in newer}
    behind = len(minors - {version_key(active)[:2]}) if active is not None else 0
    if allowed.max_minor_behind is not None and behind > allowed.max_minor_behind:
        newest = max(newer, key=version_key)
        found.append(
            f"{active} is {behind} minor versions behind {newest}, policy {policy.number} allows "
            f"{allowed.max_minor_behind}"
        )
    if allowed.within_s is not None and directed is not None and directed_at is not None and directed != active:
        late_s = now - directed_at
        if late_s > allowed.within_s:
            found.append(
                f"{directed} was directed {late_s} s ago and does not serve, policy {policy.number} allows "
                f"{allowed.within_s} s"
            )
    if allowed.security_within_s is not None:
        found += _insecure(policy, model, active, allowed.security_within_s, now)
    return tuple(found)


def _insecure(policy: Policy, model: str, active: str | None, within_s: int, now: int) -> list[str]:
    security = for_model(policy, model).security
    return [
        f"security release {version} of {_day(at)} is {now - at} s old and neither it nor a newer one serves, "
        f"policy {policy.number} allows {within_s} s"
        for version, at in sorted(security.items(), key=lambda item: version_key(item[0]))
        if now - at > within_s and (active is None or version_key(active) < version_key(version))
    ]


def overdue(policy: Policy, in_force: int, now: int) -> tuple[str, ...]:
    """Immediate items of the policy that a node should have in force by now and hasn't: `in_force` is what it said."""
    if in_force >= policy.number:
        return ()
    return tuple(
        f"{item.item}: policy {policy.number} was due by {_time(policy.at + item.converge_s)}, policy {in_force} is in "
        "force"
        for item in policy.immediate
        if now > policy.at + item.converge_s
    )


def drill_due(policy: Policy, last_at: int, now: int) -> str | None:
    """Why a site's drill is due; `last_at` is its last drill, or when it joined."""
    every_days = policy.drills.every_days
    days = (now - last_at) // DAY_S
    if every_days is None or days < every_days:
        return None
    return f"{days} days since the last drill, policy {policy.number} wants one every {every_days}"


# --- telemetry --------------------------------------------------------------------------------------------------------


def redacted(telemetry: Telemetry, lane: Lane, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record's body as it may be kept; None if records of this lane may not be. Asked before anything is stored."""
    if lane not in telemetry.lanes:
        return None
    prefix = f"{lane}."
    names = {name.removeprefix(prefix) for name in telemetry.redact if name.startswith(prefix) or "." not in name}
    return {key: _without(value, names) for key, value in body.items() if key not in names}


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item, names) for key, item in value.items() if key not in names}
    if isinstance(value, list | tuple):
        return [_without(item, names) for item in value]
    return value


def keep_from(telemetry: Telemetry, now: int) -> int:
    """Records older than this are dropped."""
    return max(now - telemetry.keep_days * DAY_S, 0)


# --- shown, and asked when serving deepens ----------------------------------------------------------------------------


def limits(policy: Policy, work: WorkClass) -> Limits:
    """What one class of work may take; None in a field: no limit."""
    return policy.limits.get(work, Limits())


def _day(at: int) -> str:
    return datetime.fromtimestamp(min(at, LAST_S), UTC).strftime("%Y-%m-%d")


def _time(at: int) -> str:
    return datetime.fromtimestamp(min(at, LAST_S), UTC).strftime("%Y-%m-%d %H:%M:%SZ")
