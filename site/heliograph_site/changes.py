"""What a row of `machine`'s table does to the memory, besides the phase.

Each takes the memory and the event of its row, and gives the memory to save; `step` adds phase and epoch.
"""

from dataclasses import replace
from typing import Final

from heliograph_site.happenings import (
    Aborted,
    ActiveDenied,
    ActiveLost,
    ActiveUnfit,
    Declined,
    Event,
    Failed,
    FallbackDenied,
    FitsAgain,
    LastClosed,
    LastDenied,
    LastLost,
    LastStopped,
    LastUnfit,
    Passed,
    Proved,
    Renumbered,
    RestartedAgain,
    Resumed,
    Retuned,
    Returned,
    SteppedAside,
    StoodDown,
    TargetDenied,
    TriedEnough,
    Wanted,
)
from heliograph_site.memory import UNDER_WAY, Memory, Pointer, Refused, Target
from heliograph_site.weighing import fallbacks

REASON_LENGTH: Final = 400
MAX_REFUSED: Final = 16


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
    """The worker on probation has been seen to do its job, so what answered before doesn't."""
    is_spare = memory.resort is not None and memory.resort.release in {pointer.release for pointer in memory.line}
    return replace(memory, is_healthy=True, resort=None if is_spare else memory.resort)


def flip(memory: Memory, event: Event) -> Memory:
    """The pointer flips: the target is active, and its fallbacks are chosen by the one rule.

    What answered is the last resort until the target does, fallback or not.
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
        resort=_other(memory.active, active),
        unfit=None,
        policy=event.policy,
        ring=event.ring,
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
    return replace(memory, active=active, policy=event.policy, ring=event.ring)


def flag_unfit(memory: Memory, event: Event) -> Memory:
    """What is active is marked as outside of what policy allows, to be told wherever it is told."""
    return retune(memory, event)


def give_way(memory: Memory, event: Event) -> Memory:
    """The fallback that fits becomes active; what was active is refused for nothing and may be its fallback."""
    assert isinstance(event, ActiveUnfit) and memory.active is not None
    old = replace(memory.active, is_unfit=False)
    resort = memory.resort if memory.resort is not None and memory.resort.release != event.release else old
    return _take_over(replace(memory, resort=resort), event, (old, *memory.line))


def revive(memory: Memory, event: Event) -> Memory:
    """What was stopped, or a fallback, is active."""
    assert isinstance(event, FitsAgain) and memory.unfit is not None
    return _take_over(memory, event, (memory.unfit, *memory.line))


def _take_over(memory: Memory, event: ActiveUnfit | FitsAgain, candidates: tuple[Pointer, ...]) -> Memory:
    chosen = next(pointer for pointer in candidates if pointer.release == event.release)
    best = fallbacks(*(pointer for pointer in candidates if pointer.release != event.release))
    reason = event.reason if isinstance(event, ActiveUnfit) else "documents that fit have come"
    return replace(
        drop_target(memory, event),
        active=replace(chosen, config=event.config, policy=event.policy, fail_mode=event.fail_mode),
        fallback=_at(best, 0),
        earlier=_at(best, 1),
        resort=_other(memory.resort, chosen),
        unfit=None,
        aside="",
        policy=event.policy,
        ring=event.ring,
        reason=reason[:REASON_LENGTH],
    )


def shut(memory: Memory, event: Event) -> Memory:
    """What is active fits nothing and stops, to serve again once something fits, unless it failed or is denied.

    What answers does so until the server has stopped it.
    """
    assert isinstance(event, LastStopped) and memory.active is not None
    is_sound = memory.active.verdict != "failed" and not memory.active.denied
    return replace(
        drop_target(memory, event),
        active=None,
        unfit=replace(memory.active, is_unfit=False) if is_sound else None,
        resort=memory.resort or memory.active,
        aside="",
        policy=event.policy,
        ring=event.ring,
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
    old = memory.active
    if isinstance(event, ActiveDenied):
        old = replace(old, denied=old.denied or "once")
    elif not isinstance(event, Returned):
        old = replace(old, verdict="failed")
    is_last = memory.fallback is None
    active = _restored(memory.fallback, memory) or memory.resort
    resort: Pointer | None = old
    if memory.phase == "rolling-back" or (isinstance(event, ActiveLost) and not event.answered):
        resort = _other(memory.resort, active) or (None if is_last and isinstance(event, ActiveLost) else old)
    return replace(
        refused,
        active=active,
        fallback=memory.earlier,
        earlier=None,
        resort=resort,
        reason=event.reason[:REASON_LENGTH],
        aside="",
    )


def step_aside(memory: Memory, event: Event) -> Memory:
    """Active and fallback change places for a while."""
    assert isinstance(event, SteppedAside) and memory.fallback is not None
    return replace(_swapped(memory), aside="fallback", reason=event.reason[:REASON_LENGTH])


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
    return replace(_swapped(memory), aside="")


def _swapped(memory: Memory) -> Memory:
    return replace(memory, active=memory.fallback, fallback=memory.active, resort=memory.active)


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


def stop_resort(memory: Memory, event: Event) -> Memory:
    """Nothing answers; what stood down for a while waits where it is."""
    return memory if memory.aside == "stopped" else drop_resort(memory, event)


def drop_denied(memory: Memory, event: Event) -> Memory:
    """What is denied will not serve again, unless it is what answers; its bytes go when the machine rests."""
    assert isinstance(event, FallbackDenied)
    spare = (*memory.line, memory.unfit)
    gone = tuple(pointer for pointer in spare if pointer is not None and pointer.release in event.releases)
    best = fallbacks(*(pointer for pointer in memory.line if pointer not in gone))
    aside = "" if memory.aside == "fallback" and memory.fallback in gone else memory.aside
    unfit = None if memory.unfit in gone else memory.unfit
    resort = memory.resort
    if resort is not None and resort.release in event.releases:
        resort = replace(resort, denied=resort.denied or "once")
    refused = refuse(memory, gone, event.reason)
    return replace(refused, fallback=_at(best, 0), earlier=_at(best, 1), aside=aside, unfit=unfit, resort=resort)


def flag(memory: Memory, event: Event) -> Memory:
    """What is active is marked as denied, to be told wherever it is told, and to be no fallback for anything."""
    assert isinstance(event, LastDenied) and memory.active is not None
    return replace(memory, active=replace(memory.active, denied=event.standing))


def flag_unjudged(memory: Memory, event: Event) -> Memory:
    """What is on probation is marked as denied; there is nothing left to judge."""
    return drop_target(flag(memory, event), event)


def _other(pointer: Pointer | None, active: Pointer | None) -> Pointer | None:
    """The pointer, unless it is to what is active."""
    return None if pointer is None or (active is not None and pointer.release == active.release) else pointer


def _at(pointers: tuple[Pointer, ...], index: int) -> Pointer | None:
    return pointers[index] if index < len(pointers) else None
