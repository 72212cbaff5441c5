"""What a machine remembers of one model on a node; saved whole, in one transaction, before anything is done.

What changes it stands in `machine`'s table.
"""

from dataclasses import dataclass
from typing import Final, Literal

from heliograph.documents import Phase, Verdict

FailMode = Literal["safe", "closed"]
Standing = Literal["", "once", "finally"]
"""Of what is active: not denied, denied by one signature, denied by as many as end it."""
Aside = Literal["", "fallback", "stopped"]
"""What stands in for a while for what is committed: nothing does, the fallback does, nothing serves."""


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
    """What answers until `active` does: a fallback too, or what is none because it is denied, failed or returned. Only
    if nothing else can be served it becomes active again, so that whatever answers is named, told and met by a denial.
    """

    aside: Aside = ""
    """`fallback`: active and fallback have changed places; `stopped`: what was active waits as `resort`. Nothing is
    refused for it, and it is undone as a whole."""

    policy: int = 0
    """Number of the policy in force for the model; in one ring it never goes back."""
    ring: str = ""
    """The ring whose policy that is: this node's, or until one of that is in force the one it came from. Empty with
    number 0, and where an agent wrote it that didn't say."""
    unfit: Pointer | None = None
    """What was active and, by its fail mode, stopped because nothing fits; it serves again once something does."""

    @property
    def line(self) -> tuple[Pointer, ...]:
        """Who serves instead, by the fallback rule, the best first."""
        if self.earlier is None:
            return () if self.fallback is None else (self.fallback,)
        return (self.earlier,) if self.fallback is None else (self.fallback, self.earlier)

    @property
    def kept(self) -> tuple[Pointer, ...]:
        """Every release that was active here and may serve again, each once, what is active first."""
        pointers = (self.active, *self.line, self.unfit, self.resort)
        found: dict[bytes, Pointer] = {}
        for pointer in pointers:
            if pointer is not None:
                found.setdefault(pointer.release, pointer)
        return tuple(found.values())

    def is_stray(self, release: bytes) -> bool:
        """Whether a release that answers is named by nothing here, and nothing is about to take its place.

        So it is where what answered was denied while another took over, and in the end no other could be served.
        """
        is_over = self.active is not None and self.active.verdict == "failed"
        return is_over and all(pointer.release != release for pointer in self.kept)

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


UNDER_WAY: Final[tuple[Phase, ...]] = ("checking", "fetching", "staging", "activating")
"""Phases in which the target is not active yet."""
