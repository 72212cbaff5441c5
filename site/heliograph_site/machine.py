"""The life of a release on a node: one table, one machine per model.

Rule 1: everything that decides what a node does next with a release is in this file, and `step` is its only door.
Rule 2: the caller saves the new memory *before* it performs the command. A command names the state to reach, never a
    change relative to now, so performing it twice is harmless.
Rule 3: restart is an ordinary event. Whatever phase the memory was saved in has a row for `Restarted`.
Rule 4: exactly one task works for a machine. Each command that is started gets a new epoch; answers carry the epoch of
    their command, and a late answer changes nothing.
Rule 5: "not yet" is not "failed": what waits for the road has no failure row.

A pair of phase and event that has no row is ignored on purpose; a test lists all of those.

`python -m heliograph_site.machine` prints the table as a Mermaid diagram.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from heliograph.documents import Phase, Verdict


class Command(Enum):
    """What the shell does next; each ends in events of its own epoch."""

    CHECK = "check"  # get the manifest, judge it, ask until ways are offered        -> Admitted | Declined
    FETCH = "fetch"  # get every blob by the offered ways                            -> Fetched | Spoiled
    STAGE = "stage"  # verify the whole image in the spare slot                       -> Staged | Spoiled
    ACTIVATE = "activate"  # a worker loads it and its golden outputs agree             -> Passed | Failed
    PROVE = "prove"  # serve active, then probation                                 -> Proved | Failed
    SERVE = "serve"  # serve active, whatever ran before                            -> Served | Failed
    REST = "rest"  # stop working, drop what is half done


@dataclass(frozen=True, slots=True)
class Target:
    """A release that a directive of this ring names."""

    release: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Pointer:
    """One row of what serves or may serve again: the tuple as activated together."""

    release: bytes
    activated_at: int
    number: int = 0
    """Of the directive that brought it."""
    verdict: Verdict = "unproven"
    config: int = 0
    policy: int = 0


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


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A directive of this ring names another release than the one active or under way."""

    target: Target


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The directive now says hold, or the target is no longer admissible: stop what is under way."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """The directive says return and names what is active: serve the fallback."""

    reason: str = "returned by directive"


@dataclass(frozen=True, slots=True)
class Restarted:
    """The agent started with this memory."""


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
class Staged:
    """STAGE: the whole image stands verified in the spare slot."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Passed:
    """ACTIVATE: a worker holds the verified bytes and gave the golden outputs."""

    epoch: int
    at: int


@dataclass(frozen=True, slots=True)
class Failed:
    """ACTIVATE, PROVE, SERVE: the release does not do its job here."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Proved:
    """PROVE: probation is over; `unproven` when there was no traffic to judge by."""

    epoch: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Served:
    """SERVE: the server serves what `active` says."""

    epoch: int


Event = (
    Wanted
    | Withdrawn
    | Returned
    | Restarted
    | Admitted
    | Declined
    | Fetched
    | Spoiled
    | Staged
    | Passed
    | Failed
    | Proved
    | Served
)
EVENTS: Final[tuple[type, ...]] = (
    Wanted, Withdrawn, Returned, Restarted, Admitted, Declined, Fetched,
    Spoiled, Staged, Passed, Failed, Proved, Served,
)  # fmt: skip


# --- what a row does to the memory, besides the phase ----------------------------------------------------------------


def keep(memory: Memory, event: Event) -> Memory:
    """Nothing changes but the phase."""
    return memory


def take_target(memory: Memory, event: Event) -> Memory:
    """The directive's release becomes the target; what was under way is forgotten."""
    assert isinstance(event, Wanted)
    return replace(memory, target=event.target, full_only=False, reason="")


def drop_target(memory: Memory, event: Event) -> Memory:
    """Nothing is under way."""
    return replace(memory, target=None, full_only=False, reason="")


def refuse_target(memory: Memory, event: Event) -> Memory:
    """The target is remembered as refused, by release and number."""
    assert isinstance(event, Declined | Failed | Spoiled) and memory.target is not None
    refusal = Refused(memory.target.release, memory.target.number, event.reason[:400])
    others = tuple(r for r in memory.refused if r.release != refusal.release)
    return replace(drop_target(memory, event), refused=(refusal, *others)[:16])


def full_only(memory: Memory, event: Event) -> Memory:
    """Deltas are out for this target."""
    return replace(memory, full_only=True)


def flip(memory: Memory, event: Event) -> Memory:
    """The pointer flips: the target is active, and the fallback is chosen by the one rule."""
    assert isinstance(event, Passed) and memory.target is not None
    active = Pointer(memory.target.release, event.at, memory.target.number)
    others = (p for p in (memory.active, memory.fallback) if p is not None and p.release != active.release)
    return replace(memory, active=active, fallback=choose_fallback(*others), reason="")


def settle(memory: Memory, event: Event) -> Memory:
    """The verdict is written beside the active release, which is no longer a target."""
    assert isinstance(event, Proved) and memory.active is not None
    return replace(memory, active=replace(memory.active, verdict=event.verdict), target=None, full_only=False)


def demote(memory: Memory, event: Event) -> Memory:
    """The active release failed: it is refused and the fallback becomes active."""
    assert isinstance(event, Failed | Returned) and memory.active is not None
    refusal = Refused(memory.active.release, memory.active.number, event.reason[:400])
    others = tuple(r for r in memory.refused if r.release != refusal.release)
    return replace(
        memory,
        target=None,
        full_only=False,
        active=memory.fallback,
        fallback=None,
        refused=(refusal, *others)[:16],
        reason=event.reason[:400],
    )


def note_reason(memory: Memory, event: Event) -> Memory:
    """Why the machine is stuck; what should have served is no fallback for anything from now on."""
    assert isinstance(event, Failed)
    active = replace(memory.active, verdict="failed") if memory.active else None
    return replace(memory, active=active, reason=event.reason[:400])


def clear_reason(memory: Memory, event: Event) -> Memory:
    """Served again: nothing is wrong now, and what failed to serve before has yet to be proven again."""
    active = memory.active
    if active is not None and active.verdict == "failed":
        active = replace(active, verdict="unproven")
    return replace(memory, active=active, reason="")


def choose_fallback(*candidates: Pointer | None) -> Pointer | None:
    """The one fallback rule over releases that were active here, most recently active first.

    The most recently proven; if none, the most recently active one that is `unproven`; never a `failed` one.
    """
    present = [pointer for pointer in candidates if pointer is not None]
    proven = [pointer for pointer in present if pointer.verdict == "proven"]
    unproven = [pointer for pointer in present if pointer.verdict == "unproven"]
    return next(iter(proven + unproven), None)


# --- the table --------------------------------------------------------------------------------------------------------

Update = Callable[[Memory, Event], Memory]


@dataclass(frozen=True, slots=True)
class Row:
    """In `phase`, on `event`: go to `goal`, change the memory by `update`, then start `command`."""

    phase: Phase
    event: type
    goal: Phase
    update: Update
    command: Command | None


# fmt: off
TABLE: Final[tuple[Row, ...]] = (
    #   phase           event      goal            update         command
    Row("idle",         Wanted,    "checking",     take_target,   Command.CHECK),
    Row("idle",         Returned,  "rolling-back", demote,        Command.SERVE),
    Row("idle",         Failed,    "rolling-back", demote,        Command.SERVE),
    Row("idle",         Restarted, "idle",         keep,          Command.SERVE),

    Row("checking",     Admitted,  "fetching",     keep,          Command.FETCH),
    Row("checking",     Declined,  "idle",         refuse_target, Command.REST),
    Row("checking",     Wanted,    "checking",     take_target,   Command.CHECK),
    Row("checking",     Withdrawn, "idle",         drop_target,   Command.REST),
    Row("checking",     Restarted, "checking",     keep,          Command.CHECK),

    Row("fetching",     Fetched,   "staging",      keep,          Command.STAGE),
    Row("fetching",     Spoiled,   "checking",     full_only,     Command.CHECK),
    Row("fetching",     Wanted,    "checking",     take_target,   Command.CHECK),
    Row("fetching",     Withdrawn, "idle",         drop_target,   Command.REST),
    Row("fetching",     Restarted, "checking",     keep,          Command.CHECK),

    Row("staging",      Staged,    "activating",   keep,          Command.ACTIVATE),
    Row("staging",      Spoiled,   "checking",     full_only,     Command.CHECK),
    Row("staging",      Wanted,    "checking",     take_target,   Command.CHECK),
    Row("staging",      Withdrawn, "idle",         drop_target,   Command.REST),
    Row("staging",      Restarted, "staging",      keep,          Command.STAGE),

    Row("activating",   Passed,    "proving",      flip,          Command.PROVE),
    Row("activating",   Failed,    "idle",         refuse_target, Command.REST),
    Row("activating",   Wanted,    "checking",     take_target,   Command.CHECK),
    Row("activating",   Withdrawn, "idle",         drop_target,   Command.REST),
    Row("activating",   Restarted, "activating",   keep,          Command.ACTIVATE),

    Row("proving",      Proved,    "idle",         settle,        Command.REST),
    Row("proving",      Failed,    "rolling-back", demote,        Command.SERVE),
    Row("proving",      Returned,  "rolling-back", demote,        Command.SERVE),
    Row("proving",      Wanted,    "checking",     take_target,   Command.CHECK),
    Row("proving",      Restarted, "proving",      keep,          Command.PROVE),

    Row("rolling-back", Served,    "idle",         clear_reason,  Command.REST),
    Row("rolling-back", Failed,    "stuck",        note_reason,   None),
    Row("rolling-back", Restarted, "rolling-back", keep,          Command.SERVE),

    Row("stuck",        Wanted,    "checking",     take_target,   Command.CHECK),
    Row("stuck",        Restarted, "rolling-back", keep,          Command.SERVE),
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


def event_from_directive(memory: Memory, action: str, release: bytes, number: int) -> Event | None:
    """What an admissible directive of this ring means to this machine now; None when it is satisfied already.

    A release refused under the same number is not tried again; a reconnect repeats directives and changes nothing.
    """
    match action:
        case "install":
            active = memory.active
            if memory.target is not None:
                if release == memory.target.release:
                    return None
                if active is not None and release == active.release:
                    return Withdrawn("superseded by a directive that names what is active")
            elif (
                active is not None
                and release == active.release
                and (memory.phase != "stuck" or number == active.number)
            ):
                return None  # only a new number has a node try again what it failed to serve
            if any(r.release == release and r.number == number for r in memory.refused):
                return None
            return Wanted(Target(release, number))
        case "hold":
            return Withdrawn("held by directive") if memory.target is not None else None
        case "return":
            if memory.target is not None and memory.target.release == release and memory.phase != "proving":
                return Withdrawn("returned by directive")
            if memory.active is not None and memory.active.release == release and memory.fallback is not None:
                return Returned()
            return None
        case _:
            return None


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
