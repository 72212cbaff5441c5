"""What may happen to a machine, and the events that it is: the columns of `machine`'s table.

A happening is what reached the machine. An event is what that means to one with its memory, as `machine.classify` names
it; of a task's answer they are mostly the same. Some happenings are levels, repeated until they are nothing new.
"""

from dataclasses import dataclass
from typing import Final, Literal

from heliograph.documents import Verdict
from heliograph_site.memory import Aside, FailMode, Standing, Target


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
        ring: whose policy it is; empty with number 0.
    """

    release: bytes
    config: int
    policy: int
    fit: Fit = "fits"
    fail_mode: FailMode = "safe"
    reason: str = ""
    ring: str = ""


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
        config, policy: the numbers that go with it, chosen at that moment; `ring` is the policy's.
    """

    epoch: int
    at: int
    fail_mode: FailMode = "safe"
    waits_for: str = ""
    config: int = 0
    policy: int = 0
    ring: str = ""


@dataclass(frozen=True, slots=True)
class Postponed:
    """The target passed, but meanwhile something came to light that forbids activating anything yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """ACTIVATE: the target does not do its job here. Of what is active: `classify` names what is left instead.

    Attributes:
        answered: it was what answered when it failed, and not what should have.
    """

    epoch: int
    reason: str
    answered: bool = False


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
    """What is active failed, or did not get to serve in time; there is a fallback.

    Attributes:
        answered: it was what answered.
    """

    reason: str
    answered: bool = True


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
    ring: str = ""


@dataclass(frozen=True, slots=True)
class ActiveUnfit:
    """What is active fits no config and policy that may be in force; this fallback does."""

    release: bytes
    config: int
    policy: int
    fail_mode: FailMode = "safe"
    reason: str = ""
    ring: str = ""


@dataclass(frozen=True, slots=True)
class LastUnfit:
    """Nothing fits the policy in force, and the fail mode is safe: what is active serves on, flagged."""

    config: int
    policy: int
    fail_mode: FailMode = "safe"
    reason: str = ""
    ring: str = ""


@dataclass(frozen=True, slots=True)
class LastStopped:
    """Nothing fits the policy in force, and the fail mode is closed: nothing serves until something fits."""

    policy: int
    reason: str = ""
    ring: str = ""


@dataclass(frozen=True, slots=True)
class FitsAgain:
    """What was stopped, or a fallback, fits now, or may serve on flagged."""

    release: bytes
    config: int
    policy: int
    fail_mode: FailMode = "safe"
    ring: str = ""


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
