"""What a node's audit and incident records say, each as one plain sentence.

Rule 1: a record is a node's word: signed, and not sane for that. What isn't as this version writes it is told as it
    came, in bounded words without control characters.
Rule 2: kinds and events that this version doesn't know are told by their names, never left out.

Pure: records come in, sentences for people go out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from heliograph.errors import shown

GAP: Final = "gap"
ROLLED_BACK: Final = "rolled-back"
MAX_SAID: Final = 1200
"""Characters of one sentence."""
MAX_WORDS: Final = 400
"""Characters of what one field adds to it."""
MAX_LISTED: Final = 8
"""Of a list, as many are told one by one."""

_FELL: Final = {
    "ActiveLost": "the node itself, which saw it fail",
    "RestartedAgain": "the node itself, which stopped out of the blue with it",
    "ActiveDenied": "a denial",
    "ActiveUnfit": "the policy in force",
    "Returned": "the directive of its ring",
}
"""Events that take what is active out of use: who began it. Such a record doesn't say which release it was."""
_EVENTS: Final = {
    "Wanted": "{it} is wanted by a directive of its ring and is looked at",
    "Renumbered": "{it} goes on under a newer directive",
    "Withdrawn": "what was under way of {model} is directed no more",
    "Aborted": "{it} is called off",
    "SteppedAside": "the fallback of {model} serves for a while",
    "StoodDown": "{model} serves nothing for a while",
    "Resumed": "what is committed of {model} is to serve again",
    "Restarted": "the agent started",
    "RestartedMidway": "the node stopped out of the blue while it activated {it}",
    "RestartedHealthy": "the node stopped out of the blue while {it} was on probation",
    "Admitted": "{it} fits this node and is fetched",
    "Declined": "{it} is declined",
    "Fetched": "every byte of {it} is here and verified",
    "Spoiled": "bytes of {it} did not verify",
    "Blocked": "the disk took nothing of {it}, or gave nothing",
    "TriedEnough": "{it} is given up",
    "Staged": "the whole image of {it} stands verified",
    "Passed": "{it} gave the promised outputs and is activated",
    "Postponed": "{it} passed its checks and waits",
    "Failed": "{it} doesn't do its job here",
    "Healthy": "{it} answers without fault; its probation goes on",
    "Proved": "the probation of {it} is over",
    "Served": "the server serves what is active of {model}",
    "Stopped": "the server serves nothing of {model}",
    "LastLost": "what is active of {model} failed and nothing else is left: it stays",
    "LastClosed": "what was active of {model} is out and nothing else is left: nothing serves",
    "TargetDenied": "{it}, which was under way, is denied",
    "FallbackDenied": "releases of {model} that might have served again are denied",
    "LastDenied": "what is active of {model} is denied and nothing else is left: it serves on, flagged",
    "Retuned": "{it} goes on with another config or policy",
    "LastUnfit": "nothing of {model} fits the policy in force: what is active serves on, flagged",
    "LastStopped": "nothing of {model} fits the policy in force: nothing serves",
    "FitsAgain": "{it} fits the policy in force and serves",
}
_MOVES: Final = ("transition", "release-refused")
"""Kinds of records that say how a machine moved; the second where it refused a release by that, as an incident."""
_BEGUN: Final = {
    "offline": ("off line for longer than policy allows", "on line again, after"),
    "stale": ("further behind than policy allows", "no longer behind: it was"),
    "clock-suspect": ("the wall clock is off", "the wall clock is right again: it was"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """One record of a node's, as the hub keeps it.

    Attributes:
        seq, count: its number within (run, lane), and how many records it stands for.
        at: when it happened by the node's estimate; seconds since 1970.
        heard_at: when it came to the hub.
        body: whatever the node wrote.
    """

    run: bytes
    lane: str
    seq: int
    count: int
    kind: str
    at: int
    heard_at: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """One threshold that was passed."""

    gate: str
    limit: float
    measured: float | None
    samples: int


@dataclass(frozen=True, slots=True)
class Rollback:
    """A way back that was gone: what failed and why, who began it, what serves again, whom it cost how much.

    Attributes:
        left, resumed: digests of the release that was given up (empty: not told) and of the one that serves again.
        begun_by: in words; empty if no record at hand tells.
        tripped: thresholds of the verdict that led to it.
        answered, failed, in_flight: requests that `left` got, by what became of them.
        detect_ms, restore_ms: until it was noticed, and from then until `resumed` served; None: not told.
    """

    model: str
    left: bytes
    resumed: bytes
    reason: str
    begun_by: str
    tripped: tuple[Measured, ...]
    answered: int
    failed: int
    in_flight: int
    detect_ms: float | None
    restore_ms: float | None


def rollback(told: Told, earlier: list[Told]) -> Rollback:
    """What a `rolled-back` record tells, with what records before it tell of the verdict and of who began.

    Args:
        told: the record.
        earlier: records up to it, oldest first.
    """
    body, model = told.body, words(told.body.get("model"))
    left, reason = digest(body.get("from")), words(body.get("reason"))
    same = [one for one in reversed(earlier) if one.run == told.run and words(one.body.get("model")) == model]
    fell = next((one for one in same if one.kind in _MOVES and one.body.get("to") == "rolling-back"), None)
    verdict = next((one for one in same if one.kind == "verdict" and digest(one.body.get("release")) == left), None)
    failed = verdict is not None and verdict.body.get("verdict") == "failed"
    return Rollback(
        model,
        left,
        digest(body.get("release")),
        reason,
        _begun_by(words(fell.body.get("event")) if fell is not None else "", reason),
        tripped(verdict.body) if verdict is not None and failed else (),
        _count(body.get("answered")),
        _count(body.get("failed")),
        _count(body.get("in_flight")),
        _number(body.get("detect_ms")),
        _number(body.get("restore_ms")),
    )


def rollback_words(went: Rollback, names: Mapping[bytes, str]) -> str:
    """A way back in one sentence."""
    said = [f"ROLLED BACK from {name_of(went.left, names, went.model)} to {name_of(went.resumed, names, went.model)}"]
    said[0] += ", which serves again" + (f": {went.reason}" if went.reason else "")
    said += [measured_words(one) for one in went.tripped[:MAX_LISTED]]
    said += [f"begun by {went.begun_by}"] if went.begun_by else []
    said += [f"it had answered {went.answered} requests, {went.failed} failed, {went.in_flight} were under way"]
    said += [f"noticed after {went.detect_ms:g} ms"] if went.detect_ms is not None else []
    said += [f"restored after {went.restore_ms:g} ms"] if went.restore_ms is not None else []
    return "; ".join(said)[:MAX_SAID]


def sentence(told: Told, names: Mapping[bytes, str]) -> str:
    """What a record says, for people; `rolled-back` has words of its own.

    Args:
        told: the record.
        names: of releases, by digest.
    """
    body, model = told.body, words(told.body.get("model"))
    it = name_of(digest(body.get("release")), names, model)
    reason = words(body.get("reason"))
    because = f": {reason}" if reason else ""
    match told.kind:
        case "gap":
            said = f"{told.count} record{'s' if told.count > 1 else ''} lost{_lost(body)}"
        case kind if kind in _MOVES:
            said = _transition(told.kind, body, it, model, because)
        case "agent-silent":
            said = f"the agent gave no sign of life and was killed{because}"
        case "denied":
            said = f"{it} is denied{', finally' if body.get('is_final') is True else ''}{because}"
        case "verdict":
            said = f"{it} is judged {words(body.get('verdict'))}{because}"
            said = "; ".join([said, *(measured_words(one) for one in tripped(body)[:MAX_LISTED])])
        case "fetched":
            way = words(body.get("way"))
            said = f"{it} is fetched: {_count(body.get('bytes'))} bytes came" + (f" ({way})" if way else "")
        case "switched":
            before = digest(body.get("from"))
            took, failed = _number(body.get("duration_ms")), _count(body.get("failed"))
            said = f"{it} serves" + (f" in place of {name_of(before, names, model)}" if before else "")
            said += f"; switched in {took:g} ms, {failed} requests failed" if took is not None else ""
        case "ordered":
            said = _ordered(body, model)
        case "drill" | "drill-failed":
            said = _drill(body, names, model, it)
        case _:
            said = _other(told.kind, body, model, because)
    return said[:MAX_SAID]


def who(told: Told) -> str:
    """Who it is that a record tells of: the node, or a person at its site."""
    return "site" if told.kind == "ordered" and told.body.get("by") == "site" else "node"


def tripped(body: Mapping[str, Any]) -> tuple[Measured, ...]:
    """The thresholds that a `verdict` record says were passed."""
    rows = body.get("evidence")
    found = []
    for row in rows if isinstance(rows, list) else ():
        match row:
            case [str(gate), limit, measured, samples, True] if (bound := _number(limit)) is not None:
                found.append(Measured(words(gate), bound, _number(measured), _count(samples)))
            case _:
                pass
    return tuple(found)


def measured_words(one: Measured) -> str:
    """A threshold that was passed, in words."""
    value = "nothing" if one.measured is None else f"{one.measured:g}"
    return f"{one.gate} measured {value}, limit {one.limit:g}, {one.samples} samples"


def name_of(release: bytes, names: Mapping[bytes, str], model: str = "") -> str:
    """A release for people: its name, else its digest, else its model alone."""
    if release:
        return names.get(release) or f"{model} {release.hex()[:16]}".strip()
    return f"a release of {model}" if model else "nothing known"


def digest(value: Any) -> bytes:
    """The digest of a release; empty if it is none."""
    return value if isinstance(value, bytes) and len(value) == 32 else b""


def words(value: Any) -> str:
    """Text of a record, bounded, in one line; empty if it is none."""
    return shown(value[:MAX_WORDS]) if isinstance(value, str) else ""


def when(at: int) -> str:
    """A time in UTC."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a node may say any number
        return f"second {at}"


def _begun_by(event: str, reason: str) -> str:
    if event == "Returned" and reason.startswith("rolled back "):
        return reason.removeprefix("rolled back ").removeprefix("by ").partition(":")[0]  # a person's order
    return _FELL.get(event, "")


def _transition(kind: str, body: Mapping[str, Any], it: str, model: str, because: str) -> str:
    event, to = words(body.get("event")), words(body.get("to"))
    if event in _FELL:
        then = "goes back to its fallback" if to == "rolling-back" else f"is {to}"
        return f"{model} {then}{because}"
    plain = f"{it}: {words(body.get('from'))} to {to} ({event})"
    known = _EVENTS.get(event)
    said = plain if known is None else known.format(it=it, model=model or "a model")
    if kind == "release-refused":
        said += " and refused"
    return said + because + ("; STUCK, people have to look" if to == "stuck" else "")


def _ordered(body: Mapping[str, Any], model: str) -> str:
    asked = words(body.get("command")) + (f" of {model}" if model else "")
    number, outcome = _count(body.get("number")), words(body.get("outcome"))
    begun = f"order {number} of the hub, {asked}" if body.get("by") == "hub" else f"ordered {asked} at the site"
    return f"{begun}: {outcome}"


def _drill(body: Mapping[str, Any], names: Mapping[bytes, str], model: str, it: str) -> str:
    fallback = name_of(digest(body.get("fallback")), names, model)
    back, forward = _number(body.get("back_ms")), _number(body.get("forward_ms"))
    if body.get("passed") is not True:
        return f"drill of {model} FAILED between {it} and {fallback}"
    took = ", ".join(f"{what} in {ms:g} ms" for what, ms in (("back", back), ("forward", forward)) if ms is not None)
    failed = _count(body.get("failed"))
    return f"drill of {model}: {it} to {fallback} and forward again, {took or 'not timed'}; {failed} requests failed"


def _lost(body: Mapping[str, Any]) -> str:
    kinds, begin, end = body.get("kinds"), body.get("from"), body.get("to")
    listed = [f"{n} {words(kind)}" for kind, n in kinds.items() if type(n) is int] if isinstance(kinds, dict) else []
    said = f": {', '.join(listed[:MAX_LISTED])}" if listed else ""
    if type(begin) is int and type(end) is int:
        said += f", from {when(begin)} to {when(end)} UTC"
    return said


def _other(kind: str, body: Mapping[str, Any], model: str, because: str) -> str:
    name, _, end = kind.rpartition("-")
    if name in _BEGUN and end in ("begun", "ended"):
        begun, ended = _BEGUN[name]
        about = f"{model} " if model else ""
        return about + (begun + because if end == "begun" else f"{ended} {words(body.get('reason'))}".rstrip())
    if name == "message":
        more = _count(body.get("suppressed"))
        said = {"refused": "was refused", "unknown": "is of an unknown topic", "fault": "could not be handled"}
        what = f"a message on {words(body.get('where'))} {said.get(end, words(end))}{because}"
        return what + (f" ({more} more before it are not told)" if more else "")
    plain = [f"{words(key)}={_plain(value)}" for key, value in list(body.items())[:MAX_LISTED]]
    return " ".join([words(kind), *plain])


def _plain(value: Any) -> str:
    return value.hex()[:16] if isinstance(value, bytes) else shown(str(value)[:60])


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) < 1e15 else None
