"""Where nodes differ from what their ring is told, and which of the differences its policy doesn't allow.

Rule 1: what a node runs is what it said last itself; a silent node's word is old, so it is shown apart.
Rule 2: a gap is tolerable as long as no sentence of `heliograph.rules` (staleness, immediate items) speaks against it:
    the hub asks the same functions as the node.
Rule 3: every gap has a reason if the node gave one: refused, declined, held, waiting; else how far it is.

Pure: what is known of nodes and rings comes in, rows for people go out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from heliograph.documents import ModelReport, Reported
from heliograph.names import Ring
from heliograph.policy import Policy
from heliograph.rules import overdue, staleness

MAX_REASON = 200


@dataclass(frozen=True, slots=True)
class Told:
    """The newest released directive of a ring for one model; `at` is when it was released."""

    release: bytes
    action: str
    number: int
    at: int


@dataclass(frozen=True, slots=True)
class Due:
    """What one ring is told.

    Attributes:
        policy: the published one, or number 0.
        configs: the newest number by model.
        known: by model, the versions that were directed to the ring and aren't denied.
    """

    policy: Policy
    directives: Mapping[str, Told] = field(default_factory=dict)
    configs: Mapping[str, int] = field(default_factory=dict)
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one node. `names` are versions by digest, of all releases there are."""

    site: str
    node: str
    ring: Ring
    is_silent: bool
    last_heard: int | None
    assignment: int
    pins: Mapping[str, str]
    said: Reported | None
    names: Mapping[bytes, str]

    def version(self, digest: bytes | None) -> str:
        """The version of a release, for people."""
        return "nothing" if digest is None else self.names.get(digest, digest.hex()[:16])


@dataclass(frozen=True, slots=True)
class Gap:
    """One difference between a node and what it is told.

    Attributes:
        what: `release`, `config`, `policy` or `assignment`.
        model: of a release or config; else empty.
        has, wanted: a version or a number.
        why: in the node's words where it gave any.
        against: why policy doesn't allow it; empty: it is within policy.
    """

    site: str
    node: str
    ring: Ring
    what: str
    model: str
    has: str
    wanted: str
    why: str
    against: tuple[str, ...] = ()
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Behind:
    """What policy doesn't allow of one node. `says` are (model or "policy", sentence); `own` is the node's own view."""

    site: str
    node: str
    ring: Ring
    silent: bool
    last_heard: int | None
    says: tuple[tuple[str, str], ...]
    own: tuple[tuple[str, str], ...] = ()


def drift(node: Facts, due: Due, now: int) -> tuple[Gap, ...]:
    """Each difference between a node and what its ring is told; a node that never reported differs in nothing known."""
    if node.said is None:
        return ()
    found: list[Gap] = []
    said = node.said
    if said.assignment != node.assignment:
        has = f"{said.assignment}"
        found.append(_gap(node, "assignment", "", has, f"{node.assignment}", "it has not acknowledged it yet"))
    if said.policy != due.policy.number:
        why = _declined(said, "policy", due.policy.number) or "held until what it runs fits, or on its way"
        against = overdue(due.policy, said.policy, now)
        found.append(_gap(node, "policy", "", f"{said.policy}", f"{due.policy.number}", why, against))
    for model in sorted({*due.directives, *said.models}):
        report, told = said.models.get(model), due.directives.get(model)
        found += _release_gap(node, model, report, told, due, now)
        number = due.configs.get(model, 0)
        if report is not None and report.tuple is not None and report.tuple.config != number:
            why = _declined(said, f"config/{model}", number) or "held until it fits what is active, or on its way"
            found.append(_gap(node, "config", model, f"{report.tuple.config}", f"{number}", why))
    return tuple(found)


def stale(node: Facts, due: Due, now: int) -> Behind | None:
    """What policy doesn't allow of a node any more; None: nothing, as far as it is known."""
    said = node.said
    if said is None:
        return None
    says = [
        (model, sentence)
        for model in sorted({*due.directives, *said.models})
        for sentence in _against(node, model, said.models.get(model), due, now)
    ]
    says += [("policy", sentence) for sentence in overdue(due.policy, said.policy, now)]
    own = tuple((model, sentence) for model, report in sorted(said.models.items()) for sentence in report.stale)
    if not says and not own:
        return None
    return Behind(node.site, node.node, node.ring, node.is_silent, node.last_heard, tuple(says), own)


def silent(nodes: Iterable[Facts]) -> tuple[Facts, ...]:
    """Nodes unheard past their deadline, longest first: what they run by now nobody knows."""
    return tuple(sorted((n for n in nodes if n.is_silent), key=lambda n: (n.last_heard or 0, n.site, n.node)))


def _release_gap(
    node: Facts, model: str, report: ModelReport | None, told: Told | None, due: Due, now: int
) -> list[Gap]:
    active = report.tuple.release if report is not None and report.tuple is not None else None
    if told is None:
        if active is None:
            return []
        why = f"no directive of ring {node.ring} names a release of it"
        return [
            _gap(node, "release", model, node.version(active), "nothing", why, _against(node, model, report, due, now))
        ]
    if told.action == "hold" or (told.action == "install") == (active == told.release):
        return []
    wanted = node.version(told.release) if told.action == "install" else "its fallback"
    against = _against(node, model, report, due, now)
    return [_gap(node, "release", model, node.version(active), wanted, _why(node, model, report, told), against)]


def _why(node: Facts, model: str, report: ModelReport | None, told: Told) -> str:
    """What keeps a node from what it is told."""
    wanted = node.version(told.release)
    pinned = node.pins.get(model)
    if pinned is not None and told.action == "install" and pinned != wanted:
        return f"pinned to {pinned}"
    if report is None:
        return "it has said nothing of this model"
    refused = next((r for r in report.refused if (r.release, r.number) == (told.release, told.number)), None)
    if refused is not None:
        return f"refused: {refused.reason}"
    doing = f"{report.phase}, waits for {report.waiting}" if report.waiting else report.phase
    return f"held on the node, {doing}" if told.release in report.held and report.phase == "idle" else doing


def _against(node: Facts, model: str, report: ModelReport | None, due: Due, now: int) -> tuple[str, ...]:
    """Why policy doesn't allow what a node serves of a model."""
    told = due.directives.get(model)
    installs = told if told is not None and told.action == "install" else None
    active = node.names.get(report.tuple.release) if report is not None and report.tuple is not None else None
    return staleness(
        due.policy,
        model,
        active=active,
        known=due.known.get(model, ()),
        directed=node.version(installs.release) if installs else None,
        directed_at=installs.at if installs else None,
        now=now,
    )


def _declined(said: Reported, document: str, number: int) -> str:
    reason = next((d.reason for d in said.declined if d.document == document and d.number == number), None)
    return "" if reason is None else f"declined: {reason}"


def _gap(node: Facts, what: str, model: str, has: str, wanted: str, why: str, against: tuple[str, ...] = ()) -> Gap:
    return Gap(node.site, node.node, node.ring, what, model, has, wanted, why[:MAX_REASON], against, node.is_silent)
