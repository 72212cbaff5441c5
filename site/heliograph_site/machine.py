"""The life of a release on a node: one table, one machine per model.

Rule 1: everything that decides what a node does next with a release is in this file. `classify` is its only way in: it
    names what happened, given what the machine remembers. `step` is its only way on: it looks the name up in the table.
    No choice is made between the two or after them.
Rule 2: the caller saves the new memory *before* it performs the command. A command names the state to reach, never a
    change relative to now, so performing it twice is harmless.
Rule 3: restart is an ordinary event. Whatever phase the memory was saved in has a row for `Restarted`.
Rule 4: exactly one task works for a machine. Each command that is started gets a new epoch; answers carry the epoch of
    their command, and a late answer changes nothing.
Rule 5: "not yet" is not "failed": what waits for the road has no failure row.
Rule 6: whatever the tasks answer, a machine comes to rest after a bounded number of commands, unless something new
    comes from outside: a directive, a denial, a restart.
Rule 7: what was lost is replaced by the one fallback rule (`fallbacks`), wherever it was lost and why.

A pair of phase and event that has no row is ignored on purpose; a test lists all of those.

`python -m heliograph_site.machine` prints the table as a Mermaid diagram.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Literal, Protocol

from heliograph.documents import Phase, Verdict

MAX_TRIES: Final = 5
"""Times that one target's bytes may spoil, or the disk take nothing, before the node gives it up."""
MAX_CUTS: Final = 3
"""Times that the node may stop out of the blue while it activates one target, before that is refused."""
MAX_REFUSED: Final = 16
REASON_LENGTH: Final = 400

FailMode = Literal["safe", "closed"]
Standing = Literal["", "once", "finally"]
"""Of what is active: not denied, denied by one signature, denied by as many as end it."""
Aside = Literal["", "fallback", "stopped"]
"""What stands in for a while for what is committed: nothing does, the fallback does, nothing serves."""


class Command(Enum):
    """What the shell does next; each ends in events of its own epoch."""

    CHECK = "check"  # serve active; then get the manifest, judge it, ask for ways   -> Failed, Admitted | Declined
    FETCH = "fetch"  # get every blob by the offered ways                            -> Fetched | Spoiled | Blocked
    STAGE = "stage"  # verify the whole image in the spare slot                      -> Staged | Spoiled | Blocked
    ACTIVATE = "activate"  # a worker loads it and its golden outputs agree            -> Passed | Failed
    PROVE = "prove"  # serve active, then probation                                -> Healthy, then Proved | Failed
    SERVE = "serve"  # serve active, whatever ran before; none: serve nothing      -> Served | Stopped | Failed
    REST = "rest"  # stop working, drop what is half done


@dataclass(frozen=True, slots=True)
class Target:
    """A release that a directive of this ring names."""

    release: bytes
    number: int
    path: str = ""
    """`<model>/<version>`, as it was listed when it was admitted."""
    vouchers: tuple[bytes, ...] = ()
    """Ids of the keys that signed or approved it then: the evidence that stays with it."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """One row of what serves or may serve again: the tuple as activated together, and why it was allowed."""

    release: bytes
    activated_at: int
    number: int = 0
    """Of the directive that brought it."""
    verdict: Verdict = "unproven"
    config: int = 0
    policy: int = 0
    path: str = ""
    vouchers: tuple[bytes, ...] = ()
    """Ids of the keys that signed or approved it when it was installed."""
    fail_mode: FailMode = "safe"
    proven: int = 0
    """Epoch of the machine when it was proven: an order that needs no clock; 0: never."""
    denied: Standing = ""
    """Other than empty only for the active release, where nothing else was left to serve."""
    is_unfit: bool = False
    """It fits nothing that may be in force, and serves because nothing else fits either; only of what is active."""
    passed_over: int = 0
    """Configs up to this number, its own aside, aren't taken for it: it was rolled back to from this one."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not to be tried again except by a directive with another number."""

    release: bytes
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """All that a machine knows; saved whole, in one transaction, before the command is performed."""

    model: str
    phase: Phase = "idle"
    epoch: int = 0
    target: Target | None = None
    full_only: bool = False
    """A delta spoiled this target once: ask for full images."""
    active: Pointer | None = None
    fallback: Pointer | None = None
    refused: tuple[Refused, ...] = ()
    reason: str = ""
    """Why the machine is in `stuck` or `rolling-back`; empty otherwise."""
    earlier: Pointer | None = None
    """The next best fallback; kept only until what is active is judged."""
    tries: int = 0
    """Times that this target's bytes spoiled or the disk took nothing."""
    cuts: int = 0
    """Times that the node stopped out of the blue while it activated, then while it proved, this target."""
    is_healthy: bool = False
    """The worker on probation has served without fault for a while."""
    resort: Pointer | None = None
    """What answers until `active` does, though it is no fallback: denied, failed or returned. Only if nothing else can
    be served it becomes active again, so that whatever answers is named, told and met by a denial."""

    aside: Aside = ""
    """`fallback`: active and fallback have changed places; `stopped`: what was active waits as `resort`. Nothing is
    refused for it, and it is undone as a whole."""

    policy: int = 0
    """Number of the policy in force for the model; in one ring it never goes back."""
    unfit: Pointer | None = None
    """What was active and, by its fail mode, stopped because nothing fits; it serves again once something does."""

    @property
    def line(self) -> tuple[Pointer, ...]:
        """Who serves instead, by the fallback rule, the best first."""
        return tuple(pointer for pointer in (self.fallback, self.earlier) if pointer is not None)

    @property
    def kept(self) -> tuple[Pointer, ...]:
        """Every release that was active here and may serve again, what is active first, the last resort last."""
        pointers = (self.active, *self.line, self.unfit, self.resort)
        return tuple(pointer for pointer in pointers if pointer is not None)

    @property
    def releases(self) -> tuple[bytes, ...]:
        """Digests of every release whose objects the machine needs, each once."""
        target = (self.target.release,) if self.target is not None else ()
        return tuple(dict.fromkeys((*(pointer.release for pointer in self.kept), *target)))

    @property
    def is_last_denied(self) -> bool:
        """Whether it serves a denied release because nothing else is left: to be flagged wherever it is told."""
        return self.active is not None and self.active.denied != ""

    @property
    def is_last_unfit(self) -> bool:
        """Whether it serves what fits no policy in force because nothing else fits: to be flagged as well."""
        return self.active is not None and self.active.is_unfit


# --- what may happen: given to `classify` ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The agent started with this memory.

    Attributes:
        was_orderly: its last life ended because it was asked to; else power, kernel or the process itself gave out.
    """

    was_orderly: bool = False


@dataclass(frozen=True, slots=True)
class Directed:
    """The newest directive of this ring, admissible if it installs, says this; repeated, since it is a level.

    Attributes:
        action: as in the directive; empty: none of this ring names the model.
    """

    action: str
    target: Target


@dataclass(frozen=True, slots=True)
class DenialsHeld:
    """Of the releases in this memory, these are denied by all that is held now; a level too. `weigh` makes it.

    Attributes:
        final: those of `denied` that may not even be the last to serve.
    """

    denied: frozenset[bytes] = frozenset()
    final: frozenset[bytes] = frozenset()


Fit = Literal["fits", "flagged", "stopped"]


@dataclass(frozen=True, slots=True)
class Matched:
    """What the configs and policies held make of what is active, or was last, and its fallbacks; a level too.

    Attributes:
        release: what is to serve.
        fit: with nothing that fits, the release is the last one, and its fail mode says whether it serves on.
        reason: why what is active doesn't fit, or what newer doesn't.
    """

    release: bytes
    config: int
    policy: int
    fit: Fit = "fits"
    fail_mode: FailMode = "safe"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The server has given up a release that it served: its worker died too often, or its bytes are rotten."""

    release: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class StandIn:
    """For a while this is to stand in for what is committed: a drill, or too long off line. A level; empty ends it."""

    aside: Aside
    reason: str


@dataclass(frozen=True, slots=True)
class Recalled:
    """A person wants what is active gone: its fallback is to serve, and it isn't tried again under its number."""

    reason: str


@dataclass(frozen=True, slots=True)
class CalledOff:
    """A person wants what is on its way stopped, and not tried again under its number."""

    reason: str


# --- events: the columns of the table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A directive of this ring names another release than the one active or under way."""

    target: Target


@dataclass(frozen=True, slots=True)
class Renumbered:
    """A directive with another number names what is active or under way: it is that which is obeyed now."""

    target: Target


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What is under way, or was given up, is directed no more: hold, return, superseded, or no longer admissible."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """The directive says return and names what is active, and there is a fallback: serve that."""

    reason: str = "returned by directive"


@dataclass(frozen=True, slots=True)
class Aborted:
    """What is on its way is called off by a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class SteppedAside:
    """The fallback is to serve for a while."""

    reason: str


@dataclass(frozen=True, slots=True)
class StoodDown:
    """Nothing is to serve for a while."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """What is committed is to serve again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """The agent started, and nothing is held against what was under way."""


@dataclass(frozen=True, slots=True)
class RestartedMidway:
    """The node stopped out of the blue while it activated the target, not yet too often."""


@dataclass(frozen=True, slots=True)
class RestartedHealthy:
    """The node stopped out of the blue for the first time in this probation, and the worker had been healthy."""


@dataclass(frozen=True, slots=True)
class RestartedAgain:
    """The node stopped out of the blue once too often for the target; on probation there is a fallback."""

    reason: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """CHECK: the release fits this node and at least one way to get it is offered."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Declined:
    """CHECK: this node will not run the release; the hub or the manifest says why."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """FETCH: every blob of the release is in the store, verified."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Spoiled:
    """FETCH, STAGE: bytes that were signed for did not verify, so the way they came is no good."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """FETCH, STAGE: the disk took nothing, or gave nothing."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class TriedEnough:
    """The target's bytes spoiled, or the disk took nothing, once too often."""

    reason: str


@dataclass(frozen=True, slots=True)
class Staged:
    """STAGE: the whole image stands verified in the spare slot."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Passed:
    """ACTIVATE: a worker holds the verified bytes and gave the golden outputs.

    Attributes:
        fail_mode: what its manifest wants when nothing good is left to serve.
        waits_for: what forbids activating at the moment the answer is heard; empty: nothing.
        config, policy: the numbers that go with it, chosen at that moment.
    """

    epoch: int
    at: int
    fail_mode: FailMode = "safe"
    waits_for: str = ""
    config: int = 0
    policy: int = 0


@dataclass(frozen=True, slots=True)
class Postponed:
    """The target passed, but meanwhile something came to light that forbids activating anything yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """ACTIVATE: the target does not do its job here. Of what is active: `classify` names what is left instead."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Healthy:
    """PROVE: the worker serves and has answered its first requests, or idled, without fault; probation goes on."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Proved:
    """PROVE: probation is over; `unproven` when there was no traffic to judge by."""

    epoch: int
    verdict: Verdict
    returns: bool = False
    """Whether an unproven release is to give way to its fallback."""


@dataclass(frozen=True, slots=True)
class Served:
    """SERVE: the server serves what `active` says."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """SERVE: nothing is active, and the server serves nothing of this model."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ActiveLost:
    """What is active failed, or did not get to serve in time; there is a fallback."""

    reason: str


@dataclass(frozen=True, slots=True)
class LastLost:
    """What is active failed and nothing else is left; its fail mode is safe: it stays, in case it still answers."""

    reason: str


@dataclass(frozen=True, slots=True)
class LastClosed:
    """What is active failed, or is denied finally, and nothing else is left; its fail mode is closed: stop serving."""

    reason: str


@dataclass(frozen=True, slots=True)
class TargetDenied:
    """What is under way is denied."""

    reason: str = "denied"


@dataclass(frozen=True, slots=True)
class FallbackDenied:
    """Releases that might have served again are denied."""

    releases: frozenset[bytes]
    reason: str = "denied"


@dataclass(frozen=True, slots=True)
class ActiveDenied:
    """What is active is denied; there is a fallback."""

    reason: str = "denied"


@dataclass(frozen=True, slots=True)
class LastDenied:
    """What is active is denied and nothing else is left: it serves on, flagged.

    Attributes:
        standing: `once`, or `finally` where its fail mode is safe all the same.
    """

    standing: Standing
    reason: str = "denied, and nothing else is left to serve"


@dataclass(frozen=True, slots=True)
class Retuned:
    """What is active goes on with another config or policy, or it fits again, or only the policy in force is newer."""

    config: int
    policy: int
    fail_mode: FailMode = "safe"


@dataclass(frozen=True, slots=True)
class ActiveUnfit:
    """What is active fits no config and policy that may be in force; this fallback does."""

    release: bytes
    config: int
    policy: int
    fail_mode: FailMode = "safe"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LastUnfit:
    """Nothing fits the policy in force, and the fail mode is safe: what is active serves on, flagged."""

    config: int
    policy: int
    fail_mode: FailMode = "safe"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LastStopped:
    """Nothing fits the policy in force, and the fail mode is closed: nothing serves until something fits."""

    policy: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FitsAgain:
    """What was stopped, or a fallback, fits now, or may serve on flagged."""

    release: bytes
    config: int
    policy: int
    fail_mode: FailMode = "safe"


Answer = (
    Admitted | Declined | Fetched | Spoiled | Blocked | Staged | Passed | Failed | Healthy | Proved | Served | Stopped
)
"""What a task says of its command; all carry its epoch."""
Event = (
    Answer
    | Wanted
    | Renumbered
    | Withdrawn
    | Returned
    | Aborted
    | SteppedAside
    | StoodDown
    | Resumed
    | Restarted
    | RestartedMidway
    | RestartedHealthy
    | RestartedAgain
    | TriedEnough
    | Postponed
    | ActiveLost
    | LastLost
    | LastClosed
    | TargetDenied
    | FallbackDenied
    | ActiveDenied
    | LastDenied
    | Retuned
    | ActiveUnfit
    | LastUnfit
    | LastStopped
    | FitsAgain
)
EVENTS: Final[tuple[type, ...]] = (
    Wanted, Renumbered, Withdrawn, Returned, Aborted, SteppedAside, StoodDown, Resumed, Restarted, RestartedMidway,
    RestartedHealthy, RestartedAgain, Admitted, Declined, Fetched, Spoiled, Blocked, TriedEnough, Staged, Passed,
    Postponed, Failed, Healthy, Proved, Served, Stopped, ActiveLost, LastLost, LastClosed, TargetDenied,
    FallbackDenied, ActiveDenied, LastDenied, Retuned, ActiveUnfit, LastUnfit, LastStopped, FitsAgain,
)  # fmt: skip
Happening = Started | Directed | DenialsHeld | Matched | GivenUp | StandIn | Recalled | CalledOff | Withdrawn | Answer

UNDER_WAY: Final[tuple[Phase, ...]] = ("checking", "fetching", "staging", "activating")
"""Phases in which the target is not active yet."""


# --- naming what happened --------------------------------------------------------------------------------------------


def classify(memory: Memory, happening: Happening) -> Event | None:
    """The event that `happening` is for a machine with this memory; None if it is nothing new.

    A level (`Directed`, `DenialsHeld`) is to be classified again after every step, until it is nothing new: one may
    stand for several events in turn.
    """
    match happening:
        case Started():
            return _started(memory, happening)
        case Directed():
            return _directed(memory, happening)
        case DenialsHeld():
            return _denied(memory, happening)
        case Matched():
            return _matched(memory, happening)
        case GivenUp():
            return _given_up(memory, happening)
        case StandIn():
            return _stand_in(memory, happening)
        case Recalled():
            is_open = memory.phase != "rolling-back" and not memory.aside and memory.active is not None
            return Returned(happening.reason) if is_open and memory.fallback is not None else None
        case CalledOff():
            return Aborted(happening.reason) if memory.phase in UNDER_WAY else None
        case Withdrawn():
            return happening
        case _:
            return _answered(memory, happening) if happening.epoch == memory.epoch else None


class Deny(Protocol):
    """The denials held, as far as the machine asks."""

    def is_denied(self, release: bytes, vouchers: tuple[bytes, ...]) -> object:
        """True in a condition if the release, or any key that vouched for it, is denied."""

    def is_final(self, release: bytes, vouchers: tuple[bytes, ...]) -> bool:
        """Whether by so many signatures that it may not even be the last to serve."""


def weigh(memory: Memory, deny: Deny) -> DenialsHeld:
    """What the denials held say of the releases in this memory, by the evidence kept with each."""
    known = {pointer.release: pointer.vouchers for pointer in memory.kept}
    if memory.target is not None:
        known.setdefault(memory.target.release, memory.target.vouchers)
    denied = frozenset(release for release, vouchers in known.items() if deny.is_denied(release, vouchers))
    return DenialsHeld(denied, frozenset(release for release in denied if deny.is_final(release, known[release])))


def _started(memory: Memory, started: Started) -> Event:
    if started.was_orderly or memory.phase not in ("activating", "proving"):
        return Restarted()
    if memory.phase == "activating":
        if memory.cuts + 1 < MAX_CUTS:
            return RestartedMidway()
        return RestartedAgain(f"the node stopped {MAX_CUTS} times while it was activated")
    if memory.fallback is None:
        return Restarted()  # nothing else could be served: it is judged to the end
    if memory.is_healthy and memory.cuts == 0:
        return RestartedHealthy()
    when = "again during its probation" if memory.is_healthy else "before its worker was seen healthy"
    return RestartedAgain(f"the node stopped {when}")


def _directed(memory: Memory, directed: Directed) -> Event | None:
    if memory.aside:
        return None
    active, target, wanted = memory.active, memory.target, directed.target
    is_active = active is not None and active.release == wanted.release
    is_sound = active is not None and active.verdict != "failed"
    # A target that is not active yet, or that was given up beside an active release that does its job.
    is_unfinished = memory.phase in UNDER_WAY or (memory.phase == "stuck" and is_sound)
    match directed.action:
        case "install":
            is_refused = any((r.release, r.number) == (wanted.release, wanted.number) for r in memory.refused)
            if target is not None and target.release == wanted.release:
                if target.number == wanted.number:
                    return None
            # Only a new number has a node try again what it failed to serve.
            elif active is not None and is_active and (is_sound or active.number == wanted.number):
                if is_unfinished:
                    return Withdrawn("superseded: what is active is directed again")
                return Renumbered(wanted) if active.number != wanted.number and not is_refused else None
            if is_refused:
                superseded = Withdrawn("superseded by a directive that was refused here already")
                return superseded if memory.phase in UNDER_WAY else None
            is_same = target is not None and target.release == wanted.release
            return Renumbered(wanted) if is_same else Wanted(wanted)
        case "hold":
            return Withdrawn("held by directive") if is_unfinished else None
        case "":
            return Withdrawn("no directive of this node's ring names the model") if is_unfinished else None
        case "return":
            if memory.phase in UNDER_WAY:
                return Withdrawn("returned by directive")
            if is_active and memory.fallback is not None:
                return Returned()
            return Withdrawn("returned by directive") if is_unfinished else None
        case _:
            return None


def _stand_in(memory: Memory, wanted: StandIn) -> Event | None:
    """What is on its way is withdrawn first, and nothing new is taken up until all is as it was (`_directed`)."""
    if wanted.aside == memory.aside:
        return None
    if memory.aside:
        return Resumed(wanted.reason) if memory.phase in ("idle", "stuck") else None
    is_able = memory.active is not None and (wanted.aside == "stopped" or memory.fallback is not None)
    if not is_able:
        return None
    if memory.phase in UNDER_WAY:
        return Withdrawn(wanted.reason)
    if wanted.aside == "stopped":
        return StoodDown(wanted.reason) if memory.phase in ("idle", "stuck") else None
    return SteppedAside(wanted.reason) if memory.phase == "idle" else None


def _denied(memory: Memory, held: DenialsHeld) -> Event | None:
    active = memory.active
    if memory.phase in UNDER_WAY and memory.target is not None and memory.target.release in held.denied:
        return TargetDenied()
    spare = frozenset(pointer.release for pointer in (*memory.line, memory.unfit) if pointer is not None)
    if spare & held.denied:
        return FallbackDenied(spare & held.denied)
    if active is None or active.release not in held.denied:
        return None
    resort = memory.resort
    is_less_denied = resort is not None and _denials(resort, held) < _denials(active, held)
    if memory.fallback is not None or (is_less_denied and resort is not None and resort.verdict != "failed"):
        return ActiveDenied()
    is_final = active.release in held.final
    if is_final and active.fail_mode == "closed":
        return LastClosed("denied finally, and nothing else is left to serve")
    standing: Standing = "finally" if is_final else "once"
    return LastDenied(standing) if active.denied not in (standing, "finally") else None


def _matched(memory: Memory, found: Matched) -> Event | None:
    active = memory.active
    numbers = (found.config, found.policy, found.fail_mode)
    if active is None:
        if memory.unfit is None:
            return None
        if found.fit != "stopped":
            return FitsAgain(found.release, *numbers)
        return Retuned(*numbers) if found.policy != memory.policy else None
    if found.release != active.release:
        return ActiveUnfit(found.release, *numbers, reason=found.reason)
    if found.fit == "stopped":
        return LastStopped(found.policy, found.reason)
    is_tuned = (active.config, active.policy, active.fail_mode) == numbers and memory.policy == found.policy
    if found.fit == "flagged":
        return None if is_tuned and active.is_unfit else LastUnfit(*numbers, reason=found.reason)
    return None if is_tuned and not active.is_unfit else Retuned(*numbers)


def _denials(pointer: Pointer, held: DenialsHeld) -> int:
    return (pointer.release in held.denied) + (pointer.release in held.final)


def _given_up(memory: Memory, given_up: GivenUp) -> Event | None:
    active = memory.active
    if active is None or active.release != given_up.release or active.verdict == "failed":
        return None
    # Probation and a way back look for themselves.
    return _lost(memory, given_up.reason) if memory.phase not in ("proving", "rolling-back") else None


def _answered(memory: Memory, answer: Answer) -> Event | None:
    match answer:
        case Spoiled() | Blocked() if memory.tries + 1 >= MAX_TRIES:
            return TriedEnough(f"given up after {MAX_TRIES} tries: {answer.reason}")
        case Passed() if answer.waits_for:
            return Postponed(answer.waits_for)
        case Failed() if memory.phase != "activating":
            return _lost(memory, answer.reason)
        case Proved(verdict="unproven", returns=True) if memory.fallback is not None:
            return ActiveLost("not proven in its time: it returns, by policy")
        case _:
            return answer


def _lost(memory: Memory, reason: str) -> Event | None:
    if memory.active is None:
        return None
    resort = memory.resort
    may_resort = resort is not None and (resort.verdict != "failed" or resort.fail_mode == "safe")
    if memory.fallback is not None or may_resort:
        return ActiveLost(reason)
    last = resort or memory.active
    return LastClosed(reason) if last.fail_mode == "closed" else LastLost(reason)


# --- what a row does to the memory, besides the phase ----------------------------------------------------------------


def keep(memory: Memory, event: Event) -> Memory:
    """Nothing changes but the phase."""
    return memory


def take_target(memory: Memory, event: Event) -> Memory:
    """The directive's release becomes the target; what was under way is forgotten."""
    assert isinstance(event, Wanted)
    return replace(drop_target(memory, event), target=event.target, earlier=None)


def renumber(memory: Memory, event: Event) -> Memory:
    """The number is the newer directive's, to be reported and refused by; the evidence is that of both."""
    assert isinstance(event, Renumbered)
    number, target, active = event.target.number, memory.target, memory.active
    if target is not None:
        vouchers = tuple(sorted({*target.vouchers, *event.target.vouchers}))
        target = replace(target, number=number, vouchers=vouchers)
    if active is not None and memory.phase not in UNDER_WAY:
        active = replace(active, number=number)
    return replace(memory, target=target, active=active)


def drop_target(memory: Memory, event: Event) -> Memory:
    """Nothing is under way."""
    return replace(memory, target=None, full_only=False, tries=0, cuts=0, is_healthy=False, reason="")


def refuse_target(memory: Memory, event: Event) -> Memory:
    """The target is remembered as refused, by release and number."""
    assert isinstance(event, Declined | Failed | RestartedAgain | TargetDenied | Aborted) and memory.target is not None
    return refuse(drop_target(memory, event), (memory.target,), event.reason)


def give_up(memory: Memory, event: Event) -> Memory:
    """The target is refused, and why is told for as long as the machine stays stuck."""
    assert isinstance(event, TriedEnough) and memory.target is not None
    refused = refuse(drop_target(memory, event), (memory.target,), event.reason)
    return replace(refused, reason=event.reason[:REASON_LENGTH])


def refuse(memory: Memory, subjects: tuple[Target | Pointer, ...], reason: str) -> Memory:
    """The subjects are refused, by release and number; the newest refusals are kept."""
    new = tuple(Refused(subject.release, subject.number, reason[:REASON_LENGTH]) for subject in subjects)
    named = {(refusal.release, refusal.number) for refusal in new}
    others = tuple(r for r in memory.refused if (r.release, r.number) not in named)
    return replace(memory, refused=(*new, *others)[:MAX_REFUSED])


def count_spoiled(memory: Memory, event: Event) -> Memory:
    """Deltas are out for this target, and one try is gone."""
    return replace(memory, full_only=True, tries=memory.tries + 1)


def count_try(memory: Memory, event: Event) -> Memory:
    """One try is gone."""
    return replace(memory, tries=memory.tries + 1)


def count_cut(memory: Memory, event: Event) -> Memory:
    """The node stopped out of the blue once more."""
    return replace(memory, cuts=memory.cuts + 1)


def mark_healthy(memory: Memory, event: Event) -> Memory:
    """The worker on probation has been seen to do its job."""
    return replace(memory, is_healthy=True)


def flip(memory: Memory, event: Event) -> Memory:
    """The pointer flips: the target is active, and its fallbacks are chosen by the one rule.

    What answered and is no fallback is the last resort.
    """
    assert isinstance(event, Passed) and memory.target is not None
    target = memory.target
    active = Pointer(
        target.release,
        event.at,
        target.number,
        path=target.path,
        vouchers=target.vouchers,
        fail_mode=event.fail_mode,
        config=event.config,
        policy=event.policy,
    )
    others = tuple(replace(pointer, is_unfit=False) for pointer in memory.kept if pointer.release != active.release)
    best = fallbacks(*others)
    return replace(
        memory,
        active=active,
        fallback=_at(best, 0),
        earlier=_at(best, 1),
        resort=memory.active
        if memory.active is not None and memory.active.release != active.release and not best
        else None,
        unfit=None,
        policy=event.policy,
        cuts=0,
        is_healthy=False,
        reason="",
    )


def retune(memory: Memory, event: Event) -> Memory:
    """Config and policy of what is active are others; the release is the same, and whatever is under way goes on."""
    assert isinstance(event, Retuned | LastUnfit)
    is_unfit = isinstance(event, LastUnfit)
    active = memory.active
    if active is not None:
        active = replace(active, config=event.config, policy=event.policy, fail_mode=event.fail_mode, is_unfit=is_unfit)
    return replace(memory, active=active, policy=event.policy)


def flag_unfit(memory: Memory, event: Event) -> Memory:
    """What is active is marked as outside of what policy allows, to be told wherever it is told."""
    return retune(memory, event)


def give_way(memory: Memory, event: Event) -> Memory:
    """The fallback that fits becomes active; what was active is refused for nothing and may be its fallback."""
    assert isinstance(event, ActiveUnfit) and memory.active is not None
    old = replace(memory.active, is_unfit=False)
    resort = memory.resort if memory.phase == "rolling-back" else old
    return _take_over(replace(memory, resort=resort), event, (old, *memory.line))


def revive(memory: Memory, event: Event) -> Memory:
    """What was stopped, or a fallback, is active."""
    assert isinstance(event, FitsAgain) and memory.unfit is not None
    return _take_over(memory, event, (memory.unfit, *memory.line))


def _take_over(memory: Memory, event: ActiveUnfit | FitsAgain, candidates: tuple[Pointer, ...]) -> Memory:
    chosen = next(pointer for pointer in candidates if pointer.release == event.release)
    best = fallbacks(*(pointer for pointer in candidates if pointer.release != event.release))
    reason = event.reason if isinstance(event, ActiveUnfit) else "documents that fit have come"
    resort = memory.resort
    return replace(
        drop_target(memory, event),
        active=replace(chosen, config=event.config, policy=event.policy, fail_mode=event.fail_mode),
        fallback=_at(best, 0),
        earlier=_at(best, 1),
        resort=None if resort is None or resort.release in {p.release for p in (chosen, *best[:2])} else resort,
        unfit=None,
        aside="",
        policy=event.policy,
        reason=reason[:REASON_LENGTH],
    )


def shut(memory: Memory, event: Event) -> Memory:
    """What is active fits nothing and stops, to serve again once something fits, unless it failed or is denied."""
    assert isinstance(event, LastStopped) and memory.active is not None
    is_sound = memory.active.verdict != "failed" and not memory.active.denied
    return replace(
        drop_target(memory, event),
        active=None,
        unfit=replace(memory.active, is_unfit=False) if is_sound else None,
        resort=None,
        aside="",
        policy=event.policy,
        reason=event.reason[:REASON_LENGTH],
    )


def settle(memory: Memory, event: Event) -> Memory:
    """The verdict is written beside the active release, which is no longer a target."""
    assert isinstance(event, Proved) and memory.active is not None
    proven = memory.epoch if event.verdict == "proven" else 0
    active = replace(memory.active, verdict=event.verdict, proven=proven)
    return replace(drop_target(memory, event), active=active, earlier=None, resort=None)


def demote(memory: Memory, event: Event) -> Memory:
    """What is active may serve no longer: it is refused, and the best fallback becomes active.

    What answered is the last resort until something else does; on a way back that is what the way began with.
    """
    assert isinstance(event, ActiveLost | ActiveDenied | Returned | RestartedAgain) and memory.active is not None
    refused = refuse(drop_target(memory, event), (memory.active,), event.reason)
    resort: Pointer | None = memory.active
    if isinstance(event, ActiveDenied):
        resort = replace(memory.active, denied=memory.active.denied or "once")
    elif not isinstance(event, Returned):
        resort = replace(memory.active, verdict="failed")
    if memory.phase == "rolling-back":
        resort = (memory.resort or resort) if memory.fallback is not None else None
    return replace(
        refused,
        active=_restored(memory.fallback, memory) or memory.resort,
        fallback=memory.earlier,
        earlier=None,
        resort=resort,
        reason=event.reason[:REASON_LENGTH],
        aside="",
    )


def step_aside(memory: Memory, event: Event) -> Memory:
    """Active and fallback change places for a while."""
    assert isinstance(event, SteppedAside) and memory.fallback is not None
    reason = event.reason[:REASON_LENGTH]
    return replace(memory, active=memory.fallback, fallback=memory.active, aside="fallback", reason=reason)


def stand_down(memory: Memory, event: Event) -> Memory:
    """What is active waits; its fallbacks are kept."""
    assert isinstance(event, StoodDown)
    reason = event.reason[:REASON_LENGTH]
    return replace(drop_target(memory, event), active=None, resort=memory.active, aside="stopped", reason=reason)


def resume(memory: Memory, event: Event) -> Memory:
    """What is committed is active again."""
    assert isinstance(event, Resumed)
    reason = event.reason[:REASON_LENGTH]
    if memory.aside == "stopped":
        return replace(memory, active=memory.resort, resort=None, aside="", reason=reason)
    return replace(memory, active=memory.fallback, fallback=memory.active, aside="")


def _restored(pointer: Pointer | None, memory: Memory) -> Pointer | None:
    """A fallback with the config that it had, and without those that came since; policy never goes back."""
    if pointer is None or memory.active is None:
        return pointer
    return replace(pointer, policy=memory.policy, passed_over=max(pointer.passed_over, memory.active.config))


def close(memory: Memory, event: Event) -> Memory:
    """What is active is refused and nothing takes its place."""
    assert isinstance(event, LastClosed) and memory.active is not None
    refused = refuse(drop_target(memory, event), (memory.active,), event.reason)
    return replace(refused, active=None, resort=None, reason=event.reason[:REASON_LENGTH])


def fail_active(memory: Memory, event: Event) -> Memory:
    """What is active has failed and stays for want of another; it is no fallback for anything."""
    assert isinstance(event, LastLost) and memory.active is not None
    return replace(memory, active=replace(memory.active, verdict="failed"))


def note_reason(memory: Memory, event: Event) -> Memory:
    """What is active has failed and stays for want of another; why is told for as long as the machine stays stuck."""
    assert isinstance(event, LastLost)
    return replace(fail_active(memory, event), reason=event.reason[:REASON_LENGTH])


def condemn(memory: Memory, event: Event) -> Memory:
    """What is active failed its probation and stays for want of another: refused, so that no serving redeems it."""
    assert isinstance(event, LastLost) and memory.active is not None
    return note_reason(refuse(drop_target(memory, event), (memory.active,), event.reason), event)


def clear_reason(memory: Memory, event: Event) -> Memory:
    """It serves: nothing is wrong now, and what only failed to serve before has yet to be proven again."""
    active = memory.active
    is_refused = active is not None and any(
        (r.release, r.number) == (active.release, active.number) for r in memory.refused
    )
    if active is not None and active.verdict == "failed" and not is_refused:
        active = replace(active, verdict="unproven", proven=0)
    return drop_resort(replace(memory, active=active, reason=""), event)


def drop_resort(memory: Memory, event: Event) -> Memory:
    """What is active answers."""
    return replace(memory, resort=None)


def drop_denied(memory: Memory, event: Event) -> Memory:
    """What is denied will not serve again; its bytes go when the machine rests."""
    assert isinstance(event, FallbackDenied)
    spare = (*memory.line, memory.unfit)
    gone = tuple(pointer for pointer in spare if pointer is not None and pointer.release in event.releases)
    best = fallbacks(*(pointer for pointer in memory.line if pointer not in gone))
    aside = "" if memory.aside == "fallback" and memory.fallback in gone else memory.aside
    unfit = None if memory.unfit in gone else memory.unfit
    refused = refuse(memory, gone, event.reason)
    return replace(refused, fallback=_at(best, 0), earlier=_at(best, 1), aside=aside, unfit=unfit)


def flag(memory: Memory, event: Event) -> Memory:
    """What is active is marked as denied, to be told wherever it is told, and to be no fallback for anything."""
    assert isinstance(event, LastDenied) and memory.active is not None
    return replace(memory, active=replace(memory.active, denied=event.standing))


def flag_unjudged(memory: Memory, event: Event) -> Memory:
    """What is on probation is marked as denied; there is nothing left to judge."""
    return drop_target(flag(memory, event), event)


def fallbacks(*candidates: Pointer) -> tuple[Pointer, ...]:
    """Who may serve instead, the best first, by the one fallback rule; `candidates` most recently active first.

    The most recently proven; if none, the most recently active one that is `unproven`; never a `failed` one, never a
    denied one. All were active here and were signed and approved when they were installed.
    """
    proven = sorted((c for c in candidates if c.verdict == "proven"), key=lambda c: c.proven, reverse=True)
    unproven = [c for c in candidates if c.verdict == "unproven"]
    return tuple(c for c in (*proven, *unproven) if not c.denied)


def _at(pointers: tuple[Pointer, ...], index: int) -> Pointer | None:
    return pointers[index] if index < len(pointers) else None


# --- the table --------------------------------------------------------------------------------------------------------

Update = Callable[[Memory, Event], Memory]


@dataclass(frozen=True, slots=True)
class Row:
    """In `phase`, on `event`: go to `goal`, change the memory by `update`, then start `command`.

    Without a command, the task that works for the machine goes on.
    """

    phase: Phase
    event: type
    goal: Phase
    update: Update
    command: Command | None


# fmt: off
TABLE: Final[tuple[Row, ...]] = (
    #   phase           event             goal            update         command
    Row("idle",         Wanted,           "checking",     take_target,   Command.CHECK),
    Row("idle",         Renumbered,       "idle",           renumber,      None),
    Row("idle",         Returned,         "rolling-back", demote,        Command.SERVE),
    Row("idle",         Restarted,        "idle",         keep,          Command.SERVE),
    Row("idle",         SteppedAside,     "rolling-back", step_aside,    Command.SERVE),
    Row("idle",         StoodDown,        "rolling-back", stand_down,    Command.SERVE),
    Row("idle",         Resumed,          "idle",         resume,        Command.SERVE),
    Row("idle",         Served,           "idle",         clear_reason,  Command.REST),
    Row("idle",         Stopped,          "idle",         keep,          Command.REST),
    Row("idle",         ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("idle",         LastLost,         "stuck",        note_reason,   None),
    Row("idle",         LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("idle",         FallbackDenied,   "idle",         drop_denied,   Command.SERVE),
    Row("idle",         ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("idle",         LastDenied,       "idle",         flag,          None),
    Row("idle",         Retuned,          "idle",         retune,        None),
    Row("idle",         ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("idle",         LastUnfit,        "idle",         flag_unfit,    None),
    Row("idle",         LastStopped,      "rolling-back", shut,          Command.SERVE),
    Row("idle",         FitsAgain,        "rolling-back", revive,        Command.SERVE),

    Row("checking",     Admitted,         "fetching",     drop_resort,   Command.FETCH),
    Row("checking",     Declined,         "idle",         refuse_target, Command.SERVE),
    Row("checking",     Wanted,           "checking",     take_target,   Command.CHECK),
    Row("checking",     Renumbered,       "checking",       renumber,      None),
    Row("checking",     Withdrawn,        "idle",         drop_target,   Command.SERVE),
    Row("checking",     Returned,         "rolling-back", demote,        Command.SERVE),
    Row("checking",     Aborted,          "idle",         refuse_target, Command.SERVE),
    Row("checking",     Restarted,        "checking",     keep,          Command.CHECK),
    Row("checking",     ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("checking",     LastLost,         "checking",     fail_active,   None),
    Row("checking",     LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("checking",     TargetDenied,     "idle",         refuse_target, Command.SERVE),
    Row("checking",     FallbackDenied,   "checking",     drop_denied,   None),
    Row("checking",     ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("checking",     LastDenied,       "checking",     flag,          None),
    Row("checking",     Retuned,          "checking",     retune,        None),
    Row("checking",     ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("checking",     LastUnfit,        "checking",     flag_unfit,    None),
    Row("checking",     LastStopped,      "rolling-back", shut,          Command.SERVE),
    Row("checking",     FitsAgain,        "rolling-back", revive,        Command.SERVE),

    Row("fetching",     Fetched,          "staging",      keep,          Command.STAGE),
    Row("fetching",     Spoiled,          "checking",     count_spoiled, Command.CHECK),
    Row("fetching",     Blocked,          "checking",     count_try,     Command.CHECK),
    Row("fetching",     TriedEnough,      "stuck",        give_up,       Command.REST),
    Row("fetching",     Wanted,           "checking",     take_target,   Command.CHECK),
    Row("fetching",     Renumbered,       "fetching",       renumber,      None),
    Row("fetching",     Withdrawn,        "idle",         drop_target,   Command.SERVE),
    Row("fetching",     Returned,         "rolling-back", demote,        Command.SERVE),
    Row("fetching",     Aborted,          "idle",         refuse_target, Command.SERVE),
    Row("fetching",     Restarted,        "checking",     keep,          Command.CHECK),
    Row("fetching",     ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("fetching",     LastLost,         "fetching",     fail_active,   None),
    Row("fetching",     LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("fetching",     TargetDenied,     "idle",         refuse_target, Command.SERVE),
    Row("fetching",     FallbackDenied,   "fetching",     drop_denied,   None),
    Row("fetching",     ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("fetching",     LastDenied,       "fetching",     flag,          None),
    Row("fetching",     Retuned,          "fetching",     retune,        None),
    Row("fetching",     ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("fetching",     LastUnfit,        "fetching",     flag_unfit,    None),
    Row("fetching",     LastStopped,      "rolling-back", shut,          Command.SERVE),
    Row("fetching",     FitsAgain,        "rolling-back", revive,        Command.SERVE),

    Row("staging",      Staged,           "activating",   keep,          Command.ACTIVATE),
    Row("staging",      Spoiled,          "checking",     count_spoiled, Command.CHECK),
    Row("staging",      Blocked,          "checking",     count_try,     Command.CHECK),
    Row("staging",      TriedEnough,      "stuck",        give_up,       Command.REST),
    Row("staging",      Wanted,           "checking",     take_target,   Command.CHECK),
    Row("staging",      Renumbered,       "staging",        renumber,      None),
    Row("staging",      Withdrawn,        "idle",         drop_target,   Command.SERVE),
    Row("staging",      Returned,         "rolling-back", demote,        Command.SERVE),
    Row("staging",      Aborted,          "idle",         refuse_target, Command.SERVE),
    Row("staging",      Restarted,        "staging",      keep,          Command.STAGE),
    Row("staging",      ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("staging",      LastLost,         "staging",      fail_active,   None),
    Row("staging",      LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("staging",      TargetDenied,     "idle",         refuse_target, Command.SERVE),
    Row("staging",      FallbackDenied,   "staging",      drop_denied,   None),
    Row("staging",      ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("staging",      LastDenied,       "staging",      flag,          None),
    Row("staging",      Retuned,          "staging",      retune,        None),
    Row("staging",      ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("staging",      LastUnfit,        "staging",      flag_unfit,    None),
    Row("staging",      LastStopped,      "rolling-back", shut,          Command.SERVE),
    Row("staging",      FitsAgain,        "rolling-back", revive,        Command.SERVE),

    Row("activating",   Passed,           "proving",      flip,          Command.PROVE),
    Row("activating",   Postponed,        "activating",   keep,          Command.ACTIVATE),
    Row("activating",   Failed,           "idle",         refuse_target, Command.SERVE),
    Row("activating",   Wanted,           "checking",     take_target,   Command.CHECK),
    Row("activating",   Renumbered,       "activating",     renumber,      None),
    Row("activating",   Withdrawn,        "idle",         drop_target,   Command.SERVE),
    Row("activating",   Returned,         "rolling-back", demote,        Command.SERVE),
    Row("activating",   Aborted,          "idle",         refuse_target, Command.SERVE),
    Row("activating",   Restarted,        "activating",   keep,          Command.ACTIVATE),
    Row("activating",   RestartedMidway,  "activating",   count_cut,     Command.ACTIVATE),
    Row("activating",   RestartedAgain,   "idle",         refuse_target, Command.SERVE),
    Row("activating",   ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("activating",   LastLost,         "activating",   fail_active,   None),
    Row("activating",   LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("activating",   TargetDenied,     "idle",         refuse_target, Command.SERVE),
    Row("activating",   FallbackDenied,   "activating",   drop_denied,   None),
    Row("activating",   ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("activating",   LastDenied,       "activating",   flag,          None),
    Row("activating",   Retuned,          "activating",   retune,        None),
    Row("activating",   ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("activating",   LastUnfit,        "activating",   flag_unfit,    None),
    Row("activating",   LastStopped,      "rolling-back", shut,          Command.SERVE),
    Row("activating",   FitsAgain,        "rolling-back", revive,        Command.SERVE),

    Row("proving",      Healthy,          "proving",      mark_healthy,  None),
    Row("proving",      Proved,           "idle",         settle,        Command.REST),
    Row("proving",      Returned,         "rolling-back", demote,        Command.SERVE),
    Row("proving",      Wanted,           "checking",     take_target,   Command.CHECK),
    Row("proving",      Renumbered,       "proving",        renumber,      None),
    Row("proving",      Restarted,        "proving",      keep,          Command.PROVE),
    Row("proving",      RestartedHealthy, "proving",      count_cut,     Command.PROVE),
    Row("proving",      RestartedAgain,   "rolling-back", demote,        Command.SERVE),
    Row("proving",      ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("proving",      LastLost,         "stuck",        condemn,       None),
    Row("proving",      LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("proving",      FallbackDenied,   "proving",      drop_denied,   None),
    Row("proving",      ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("proving",      LastDenied,       "idle",         flag_unjudged, Command.SERVE),
    Row("proving",      Retuned,          "proving",      retune,        None),
    Row("proving",      ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("proving",      LastUnfit,        "proving",      flag_unfit,    None),
    Row("proving",      LastStopped,      "rolling-back", shut,          Command.SERVE),

    Row("rolling-back", Served,           "idle",         clear_reason,  Command.REST),
    Row("rolling-back", Stopped,          "stuck",        keep,          Command.REST),
    Row("rolling-back", Restarted,        "rolling-back", keep,          Command.SERVE),
    Row("rolling-back", ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("rolling-back", LastLost,         "stuck",        note_reason,   None),
    Row("rolling-back", LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("rolling-back", FallbackDenied,   "rolling-back", drop_denied,   None),
    Row("rolling-back", ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("rolling-back", LastDenied,       "rolling-back", flag,          None),
    Row("rolling-back", Retuned,          "rolling-back", retune,        None),
    Row("rolling-back", ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("rolling-back", LastUnfit,        "rolling-back", flag_unfit,    None),
    Row("rolling-back", LastStopped,      "rolling-back", shut,          Command.SERVE),
    Row("rolling-back", FitsAgain,        "rolling-back", revive,        Command.SERVE),

    Row("stuck",        Wanted,           "checking",     take_target,   Command.CHECK),
    Row("stuck",        Withdrawn,        "idle",         drop_target,   Command.SERVE),
    Row("stuck",        Returned,         "rolling-back", demote,        Command.SERVE),
    Row("stuck",        StoodDown,        "rolling-back", stand_down,    Command.SERVE),
    Row("stuck",        Resumed,          "idle",         resume,        Command.SERVE),
    Row("stuck",        Restarted,        "rolling-back", keep,          Command.SERVE),
    Row("stuck",        ActiveLost,       "rolling-back", demote,        Command.SERVE),
    Row("stuck",        LastLost,         "stuck",        note_reason,   None),
    Row("stuck",        LastClosed,       "rolling-back", close,         Command.SERVE),
    Row("stuck",        FallbackDenied,   "stuck",        drop_denied,   Command.REST),
    Row("stuck",        ActiveDenied,     "rolling-back", demote,        Command.SERVE),
    Row("stuck",        LastDenied,       "stuck",        flag,          None),
    Row("stuck",        Retuned,          "stuck",        retune,        None),
    Row("stuck",        ActiveUnfit,      "rolling-back", give_way,      Command.SERVE),
    Row("stuck",        LastUnfit,        "stuck",        flag_unfit,    None),
    Row("stuck",        LastStopped,      "rolling-back", shut,          Command.SERVE),
    Row("stuck",        FitsAgain,        "rolling-back", revive,        Command.SERVE),
)
# fmt: on

_INDEX: Final[dict[tuple[Phase, type], Row]] = {(row.phase, row.event): row for row in TABLE}


def step(memory: Memory, event: Event) -> tuple[Memory, Command | None]:
    """What follows `event`: the memory to save, then the command to perform.

    Returns the very same memory and no command when the event changes nothing (no row, or an old epoch).
    """
    epoch: int | None = getattr(event, "epoch", None)
    row = _INDEX.get((memory.phase, type(event)))
    if row is None or (epoch is not None and epoch != memory.epoch):
        return memory, None
    after = row.update(memory, event)
    return replace(after, phase=row.goal, epoch=memory.epoch + (row.command is not None)), row.command


def settled(memory: Memory, happening: Happening) -> tuple[Memory, Command | None, tuple[Event, ...]]:
    """Where a level (`Directed`, `DenialsHeld`) leads: the last memory, the last command, every event on the way.

    Only the last command is worth performing; the caller saves the memory first, as for `step`.
    """
    command: Command | None = None
    events: list[Event] = []
    while (event := classify(memory, happening)) is not None:
        after, started = step(memory, event)
        if after is memory:
            break
        memory, command = after, started or command
        events.append(event)
    return memory, command, tuple(events)


def matched(memory: Memory, look: Callable[[Memory], Matched | None]) -> tuple[tuple[Memory, Event, Memory], ...]:
    """Every step that the documents held lead to; `look` says what they make of a memory. The last may have a command.

    They are to be saved with whatever brought the machine into this memory, so that no tuple on disk is unfit unseen.
    """
    steps: list[tuple[Memory, Event, Memory]] = []
    while (found := look(memory)) is not None and (event := classify(memory, found)) is not None:
        after, _ = step(memory, event)
        if after == memory:
            break
        steps.append((memory, event, after))
        memory = after
    return tuple(steps)


def end_of(
    steps: tuple[tuple[Memory, Event, Memory], ...], memory: Memory, command: Command | None
) -> tuple[Memory, Command | None]:
    """The memory that these steps on from `memory` end in, and the command to perform: the last one there was."""
    for before, event, after in steps:
        memory, command = after, step(before, event)[1] or command
    return memory, command


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    for row in TABLE:
        command = f" / {row.command.value}" if row.command else ""
        lines.append(
            f"    {row.phase} --> {row.goal}: {row.event.__name__}{command}".replace("rolling-back", "rolling_back")
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(mermaid(), end="")
