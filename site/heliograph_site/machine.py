"""The life of a release on a node: one table, one machine per model.

Rule 1: everything that decides what a node does next with a release is this table, its words (`memory`, `happenings`),
    and what its rows are made of: `weighing` (denials, documents, the fallback rule) and `changes` (what a row does).
    `classify` is its only way in: it names what happened, given what the machine remembers. `step` is its only way on:
    it looks the name up in the table. No choice is made between the two or after them.
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
from typing import Final

from heliograph.documents import Phase
from heliograph_site.changes import (
    clear_reason,
    close,
    condemn,
    count_cut,
    count_spoiled,
    count_try,
    demote,
    drop_denied,
    drop_resort,
    drop_target,
    fail_active,
    flag,
    flag_unfit,
    flag_unjudged,
    flip,
    give_up,
    give_way,
    keep,
    mark_healthy,
    note_reason,
    refuse_target,
    renumber,
    resume,
    retune,
    revive,
    settle,
    shut,
    stand_down,
    step_aside,
    stop_resort,
    take_target,
)
from heliograph_site.happenings import (
    Aborted,
    ActiveDenied,
    ActiveLost,
    ActiveUnfit,
    Admitted,
    Answer,
    Blocked,
    CalledOff,
    Declined,
    DenialsHeld,
    Directed,
    Event,
    Failed,
    FallbackDenied,
    Fetched,
    FitsAgain,
    GivenUp,
    Happening,
    Healthy,
    LastClosed,
    LastDenied,
    LastLost,
    LastStopped,
    LastUnfit,
    Matched,
    Passed,
    Postponed,
    Proved,
    Recalled,
    Renumbered,
    Restarted,
    RestartedAgain,
    RestartedHealthy,
    RestartedMidway,
    Resumed,
    Retuned,
    Returned,
    Served,
    Spoiled,
    Staged,
    StandIn,
    Started,
    SteppedAside,
    StoodDown,
    Stopped,
    TargetDenied,
    TriedEnough,
    Wanted,
    Withdrawn,
)
from heliograph_site.memory import UNDER_WAY, Memory
from heliograph_site.weighing import by_denials, by_documents

MAX_TRIES: Final = 5
"""Times that one target's bytes may spoil, or the disk take nothing, before the node gives it up."""
MAX_CUTS: Final = 3
"""Times that the node may stop out of the blue while it activates one target, before that is refused."""


class Command(Enum):
    """What the shell does next; each ends in events of its own epoch."""

    CHECK = "check"  # serve active; then get the manifest, judge it, ask for ways   -> Failed, Admitted | Declined
    FETCH = "fetch"  # get every blob by the offered ways                            -> Fetched | Spoiled | Blocked
    STAGE = "stage"  # verify the whole image in the spare slot                      -> Staged | Spoiled | Blocked
    ACTIVATE = "activate"  # a worker loads it and its golden outputs agree            -> Passed | Failed
    PROVE = "prove"  # serve active, then probation                                -> Healthy, then Proved | Failed
    SERVE = "serve"  # serve active, whatever ran before; none: serve nothing      -> Served | Stopped | Failed
    REST = "rest"  # stop working, drop what is half done


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
            return by_denials(memory, happening)
        case Matched():
            return by_documents(memory, happening)
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


def _given_up(memory: Memory, given_up: GivenUp) -> Event | None:
    active = memory.active
    if active is None or active.release != given_up.release or active.verdict == "failed":
        return None
    # Probation and a way back look for themselves.
    is_deaf = memory.phase in ("proving", "rolling-back")
    return None if is_deaf else _lost(memory, given_up.reason, answered=True)


def _answered(memory: Memory, answer: Answer) -> Event | None:
    match answer:
        case Spoiled() | Blocked() if memory.tries + 1 >= MAX_TRIES:
            return TriedEnough(f"given up after {MAX_TRIES} tries: {answer.reason}")
        case Passed() if answer.waits_for:
            return Postponed(answer.waits_for)
        case Failed() if memory.phase != "activating":
            return _lost(memory, answer.reason, answered=answer.answered)
        case Proved(verdict="unproven", returns=True) if memory.fallback is not None:
            return ActiveLost("not proven in its time: it returns, by policy")
        case _:
            return answer


def _lost(memory: Memory, reason: str, *, answered: bool) -> Event | None:
    if memory.active is None:
        return None
    resort = memory.resort
    may_resort = resort is not None and (resort.verdict != "failed" or resort.fail_mode == "safe")
    if memory.fallback is not None or may_resort:
        return ActiveLost(reason, answered)
    last = resort or memory.active
    return LastClosed(reason) if last.fail_mode == "closed" else LastLost(reason)


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
    Row("idle",         Stopped,          "idle",         stop_resort,   Command.REST),
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
    Row("rolling-back", Stopped,          "stuck",        stop_resort,   Command.REST),
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
