"""What denials and documents mean to a machine, and who may serve instead: the one fallback rule.

`by_denials` and `by_documents` are parts of `machine.classify`: they name the event, and the table says what follows.
"""

from typing import Protocol

from heliograph_site.happenings import (
    ActiveDenied,
    ActiveUnfit,
    DenialsHeld,
    Event,
    FallbackDenied,
    FitsAgain,
    LastClosed,
    LastDenied,
    LastStopped,
    LastUnfit,
    Matched,
    Retuned,
    TargetDenied,
)
from heliograph_site.memory import UNDER_WAY, Memory, Pointer, Standing


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


def fallbacks(*candidates: Pointer) -> tuple[Pointer, ...]:
    """Who may serve instead, the best first, by the one fallback rule; `candidates` most recently active first.

    The most recently proven; if none, the most recently active one that is `unproven`; never a `failed` one, never a
    denied one. All were active here and were signed and approved when they were installed.
    """
    proven = sorted((c for c in candidates if c.verdict == "proven"), key=lambda c: c.proven, reverse=True)
    unproven = [c for c in candidates if c.verdict == "unproven"]
    return tuple(c for c in (*proven, *unproven) if not c.denied)


def by_denials(memory: Memory, held: DenialsHeld) -> Event | None:
    """The event that the denials held are for this memory; None: nothing new."""
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


def by_documents(memory: Memory, found: Matched) -> Event | None:
    """The event that the configs and policies held are for this memory; None: nothing new."""
    active = memory.active
    numbers = (found.config, found.policy, found.fail_mode)
    is_other = (memory.policy, memory.ring) != (found.policy, found.ring)
    if active is None:
        if memory.unfit is None:
            return None
        if found.fit != "stopped":
            return FitsAgain(found.release, *numbers, ring=found.ring)
        return Retuned(*numbers, ring=found.ring) if is_other else None
    if found.release != active.release:
        return ActiveUnfit(found.release, *numbers, reason=found.reason, ring=found.ring)
    if found.fit == "stopped":
        return LastStopped(found.policy, found.reason, found.ring)
    is_tuned = (active.config, active.policy, active.fail_mode) == numbers and not is_other
    if found.fit == "flagged":
        return None if is_tuned and active.is_unfit else LastUnfit(*numbers, reason=found.reason, ring=found.ring)
    return None if is_tuned and not active.is_unfit else Retuned(*numbers, ring=found.ring)


def _denials(pointer: Pointer, held: DenialsHeld) -> int:
    return (pointer.release in held.denied) + (pointer.release in held.final)
