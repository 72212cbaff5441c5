"""What a policy or config would do to the fleet, as nodes last reported, and who has not taken what must be soon.

Every node is asked the node's own question (`heliograph.tuples.choose`) twice: with what it holds, and with the new
document too. What it holds is what it reported, with the newest documents that are published for it. A node that is
silent, or reported long ago, may do otherwise: it is marked.

Pure: reports, manifests and documents come in, rows for people go out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from heliograph.documents import ModelReport, Reported, Spent, Tuple
from heliograph.names import Ring
from heliograph.policy import Config, Policy, no_policy
from heliograph.rules import staleness
from heliograph.tuples import (
    Choice,
    Held,
    HeldConfig,
    HeldPolicy,
    HeldRelease,
    choose,
    held_config,
    held_policy,
)
from heliograph.versions import why_too_old

State = Literal["takes", "held", "falls-back", "flagged", "stopped", "passed-over", "declined"]
"""What a node does with the document: takes it with what serves; holds it back until `until`; takes it with another
release; has nothing that fits and serves on flagged, or stops; keeps it unused; is too old to obey it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as it last reported."""

    name: str
    ring: Ring
    report: Reported | None
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class Install:
    """The newest directive of a ring that installs: the release's digest, its number, and when it was released."""

    release: bytes
    number: int
    at: int


@dataclass(frozen=True, slots=True)
class World:
    """What there is beside the nodes.

    Attributes:
        releases: what the rule needs of each release, by digest.
        directed: what is installed, per ring and model.
        known: per ring and model, the versions that were directed to it and aren't denied.
        policies: every published policy, by ring and number.
        configs: every published config, by model and number.
    """

    releases: Mapping[bytes, HeldRelease]
    directed: Mapping[Ring, Mapping[str, Install]]
    known: Mapping[Ring, Mapping[str, tuple[str, ...]]]
    policies: Mapping[Ring, Mapping[int, Policy]]
    configs: Mapping[str, Mapping[int, Config]]


@dataclass(frozen=True, slots=True)
class Effect:
    """What the document does to one model on one node.

    Attributes:
        before, after: (release, config, policy) that serves now, and at once under the document; None: nothing serves.
        state: see `State`.
        until: when a policy that is held back comes into force whatever fits it.
        finally_: what happens at `until`; as `state` otherwise.
        why: what doesn't fit, and what else is wrong with the node under this document.
    """

    node: str
    ring: Ring
    model: str
    before: Tuple | None
    after: Tuple | None
    state: State
    until: int | None
    finally_: State
    why: tuple[str, ...]
    is_silent: bool

    @property
    def loses_service(self) -> bool:
        """Whether the model stops, and served before."""
        return self.before is not None and "stopped" in (self.state, self.finally_)


@dataclass(frozen=True, slots=True)
class Missing:
    """A node that has not acknowledged a policy with immediate items.

    Attributes:
        number: of the policy it has in force, at least for one model.
        late: the items whose time is over.
        due: the items whose time runs on, each with its end.
        why: what the node said of it, or that it is silent.
    """

    node: str
    number: int
    late: tuple[str, ...]
    due: tuple[tuple[str, int], ...]
    why: str


def simulate(document: Policy | Config, nodes: Iterable[Seen], world: World, now: int) -> list[Effect]:
    """What the document does to each model on each node that it reaches, by node and model."""
    effects = []
    for node in nodes:
        for model, report in sorted(node.report.models.items() if node.report else ()):
            if _reaches(document, node.ring, model) and (report.tuple is not None or report.fallback is not None):
                effects.append(_effect(document, node, model, report, world, now))
    return effects


def _reaches(document: Policy | Config, ring: Ring, model: str) -> bool:
    return document.ring == ring if isinstance(document, Policy) else document.model == model


def _effect(document: Policy | Config, node: Seen, model: str, report: ModelReport, world: World, now: int) -> Effect:
    before = _held(node, model, report, world, now)
    kind = "policy" if isinstance(document, Policy) else "config"
    too_old = why_too_old(f"{kind} {document.number}", document.min_agent, node.report.agent if node.report else "")
    if too_old is not None:
        stays = report.tuple if choose(before, now).standing != "stopped" else None
        return Effect(
            node.name, node.ring, model, stays, stays, "declined", None, "declined", (too_old,), node.is_silent
        )
    if isinstance(document, Policy):
        after = replace(before, policies=(*before.policies, held_policy(document, model, now)))
    else:
        after = replace(before, configs=(*before.configs, held_config(document)))
    old, new = choose(before, now), choose(after, now)
    state = _state(document, report, old, new)
    until, finally_, last = None, state, new
    if state == "held":
        until = now + document.hold_max_s if isinstance(document, Policy) else None
        if until is not None:
            last = choose(after, until)
            finally_ = _state(document, report, old, last)
    why = [text for text in dict.fromkeys((*new.waits, *last.waits)) if text not in old.waits]
    serving = report.tuple if old.standing != "stopped" else None
    if isinstance(document, Policy):
        why += _breaches(document, node, model, report, world, now)
    return Effect(node.name, node.ring, model, serving, _tuple(new), state, until, finally_, tuple(why), node.is_silent)


def _state(document: Policy | Config, report: ModelReport, old: Choice, new: Choice) -> State:
    if new.standing != "fits":
        return "flagged" if new.standing == "flagged" else "stopped"
    is_taken = (new.in_force if isinstance(document, Policy) else new.config) == document.number
    if not is_taken:
        return "held" if isinstance(document, Policy) else "passed-over"
    serving = report.tuple.release if report.tuple is not None else old.release
    return "takes" if new.release == serving or new.release == old.release else "falls-back"


def _held(node: Seen, model: str, report: ModelReport, world: World, now: int) -> Held:
    """What the node holds of a model, as far as the hub knows."""
    releases = world.releases

    def known(value: Tuple | None) -> HeldRelease | None:
        if value is None:
            return None
        release = releases.get(value.release, HeldRelease(value.release, "0.0.0"))
        return replace(release, config=value.config)

    active, fallback = known(report.tuple), known(report.fallback)
    install = world.directed.get(node.ring, {}).get(model)
    directed = releases.get(install.release) if install is not None and not _is_refused(report, install) else None
    if directed is not None:
        is_here = directed.digest in report.held or (active is not None and active.digest == directed.digest)
        directed = replace(directed, is_staged=is_here, config=active.config if active and is_here else None)
    used = [value for value in (report.tuple, report.fallback) if value is not None]
    policies = world.policies.get(node.ring, {})
    configs = world.configs.get(model, {})
    in_force = report.tuple.policy if report.tuple is not None else 0
    policy_numbers = {in_force, *(n for n in (max(policies, default=0),) if n >= in_force)}
    config_numbers = {*(value.config for value in used), max(configs, default=0)}
    return Held(
        model=model,
        active=active,
        directed=directed,
        fallbacks=(fallback,) if fallback is not None else (),
        configs=tuple(_config(configs, number) for number in sorted(config_numbers) if number),
        policies=tuple(_policy(policies, node.ring, number, model) for number in sorted(policy_numbers) if number),
        in_force=in_force,
    )


def _config(configs: Mapping[int, Config], number: int) -> HeldConfig:
    return held_config(configs[number]) if number in configs else HeldConfig(number)


def _policy(policies: Mapping[int, Policy], ring: Ring, number: int, model: str) -> HeldPolicy:
    document = policies.get(number, no_policy("unknown", ring).model_copy(update={"number": number}))
    return held_policy(document, model, document.at)


def _is_refused(report: ModelReport, install: Install) -> bool:
    """Whether the node takes it no more; a directive with another number for the same release begins anew."""
    return any((one.release, one.number) == (install.release, install.number) for one in report.refused)


def _tuple(choice: Choice) -> Tuple | None:
    if choice.release is None or choice.standing == "stopped":
        return None
    return Tuple(release=choice.release, config=choice.config, policy=choice.in_force)


def _breaches(policy: Policy, node: Seen, model: str, report: ModelReport, world: World, now: int) -> Iterator[str]:
    """What else is wrong with a node under a policy: behind, or over its budget."""
    active = world.releases.get(report.tuple.release) if report.tuple is not None else None
    install = world.directed.get(node.ring, {}).get(model)
    directed = world.releases.get(install.release) if install is not None else None
    late = staleness(
        policy,
        model,
        active=active.version if active is not None else None,
        known=world.known.get(node.ring, {}).get(model, ()),
        directed=directed.version if directed is not None else None,
        directed_at=install.at if directed is not None and install is not None else None,
        now=now,
    )
    yield from (f"stale: {sentence}" for sentence in late)
    spent = node.report.spent if node.report is not None else Spent()
    budget = policy.budget
    for has, of, name in ((spent.day, budget.day_bytes, "day_bytes"), (spent.month, budget.month_bytes, "month_bytes")):
        if of is not None and has > of:
            yield f"over budget: {has} bytes are fetched, budget.{name} is {of}"


# --- convergence ------------------------------------------------------------------------------------------------------


def acknowledged(report: Reported | None, ring: Ring) -> int:
    """Number of the ring's policy that a node has in force for everything it serves; 0: of none, or of another ring."""
    if report is None or report.ring != ring:
        return 0
    active = [model.tuple.policy for model in report.models.values() if model.tuple is not None]
    return min(active, default=report.policy)


def missing(policy: Policy, nodes: Sequence[Seen], now: int) -> list[Missing]:
    """Nodes of the ring that have not acknowledged a policy with immediate items, those in time too, by name.

    A policy without immediate items may take as long as it takes: nobody is missing.
    """
    if not policy.immediate:
        return []
    found = []
    for node in sorted(nodes, key=lambda node: node.name):
        number = acknowledged(node.report, policy.ring)
        if node.ring != policy.ring or number >= policy.number:
            continue
        ends = [(item.item, policy.at + item.converge_s) for item in policy.immediate]
        late = tuple(item for item, end in ends if now > end)
        due = tuple((item, end) for item, end in ends if now <= end)
        found.append(Missing(node.name, number, late, due, _excuse(node, policy)))
    return found


def _excuse(node: Seen, policy: Policy) -> str:
    declined = [d for d in (node.report.declined if node.report else ()) if d.document == "policy"]
    reason = next((d.reason for d in declined if d.number == policy.number), None)
    if reason is not None:
        return f"declined: {reason}"
    if node.report is None:
        return "it has never reported"
    if node.is_silent:
        return "silent"
    waits = [f"{model}: {report.waiting}" for model, report in node.report.models.items() if report.waiting]
    return "; ".join(waits)[:400]
