"""What time it may be on a node whose clock nobody vouches for: a span, from signatures and from what has passed.

Pure: seconds since boot, the boot's name and the wall clock are arguments. All times are whole seconds since 1970.

Rule 1: it is not earlier than the greatest time that a signature stated, plus what has passed on this boot's clock
    since (`earliest`, the estimate). Only signatures move that by a jump, and nothing moves it back but rule 2. Time
    with the power off doesn't count, as nothing measures it. Before any signature it is a time before this version.
Rule 2: a signed time stands with the ids of the keys that signed it. Once those no longer reach their role's threshold,
    what they said is gone: one stolen key moves the time until its rotation and no longer.
Rule 3: the wall clock can only add: it counts from the estimate to as much later as a node may be off line, and as the
    hub's answer in this boot leaves open: no later than what the hub signed plus all that passed since it was asked
    (`latest`). Outside it is ignored, and suspect.
Rule 4: what ends (metadata, a directive) is judged by `latest`, what begins by `earliest`, and whether to go on serving
    by `earliest` alone: so a wrong wall clock can make a node careful, never careless, and never stops it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

BUILT_AT = 1_735_689_600
"""2025-01-01T00:00:00Z: no version of this was made before. Moving it on at a release is safe, never beyond today."""
TOLERANCE_S = 300
"""Two sound clocks may differ by so much."""
DRIFT = 1000
"""And by one second more in so many."""
MAX_MARKS = 8
"""Sets of signers remembered."""


@dataclass(frozen=True, slots=True)
class TimeMark:
    """That it was `at`, at a reading of the boot's clock (seconds, CLOCK_BOOTTIME).

    Attributes:
        boot: names the boot that the reading is of.
        keyids: who signed it, sorted; none: from before that was written down.
    """

    at: int
    boot: str
    boottime_s: float
    keyids: tuple[bytes, ...] = ()

    def reads(self, boottime_s: float) -> int:
        """The time by this mark; a clock that goes back adds nothing."""
        return self.at + max(0, int(boottime_s - self.boottime_s))


@dataclass(frozen=True, slots=True)
class Reckoning:
    """All that is known of the time.

    Attributes:
        marks: what was signed; of one set of signers only the latest.
        proof: the hub's last answer in this boot: what it signed, beside when the node asked.
    """

    marks: tuple[TimeMark, ...] = ()
    proof: TimeMark | None = None

    @property
    def is_signed(self) -> bool:
        """Whether any signature that counts has told the time."""
        return bool(self.marks)

    def earliest(self, boottime_s: float) -> int:
        """The estimate: it is at least so late."""
        return max((mark.reads(boottime_s) for mark in self.marks), default=BUILT_AT)

    def bound(self, boottime_s: float, max_offline_s: int) -> int:
        """A wall clock that says more than this is wrong, or nobody can tell that it is right."""
        now = self.earliest(boottime_s)
        by_policy = now + max_offline_s
        if self.proof is None:
            return by_policy
        asked = self.proof.reads(boottime_s)
        return min(by_policy, max(now, asked) + TOLERANCE_S + max(0, asked - self.proof.at) // DRIFT)

    def latest(self, boottime_s: float, wall: int | None, max_offline_s: int) -> int:
        """It may be so late: the wall clock's time where that counts, else the estimate."""
        now = self.earliest(boottime_s)
        return wall if wall is not None and now <= wall <= self.bound(boottime_s, max_offline_s) else now

    def suspicion_s(self, boottime_s: float, wall: int | None, max_offline_s: int) -> int:
        """By how much the wall clock is wrong, as far as anybody can tell; negative: behind; 0: it may be right."""
        if wall is None:
            return 0
        now = self.earliest(boottime_s)
        if wall < now - TOLERANCE_S:
            return wall - now
        return wall - now if wall > self.bound(boottime_s, max_offline_s) else 0

    def signed(self, at: int, keyids: Iterable[bytes], boot: str, boottime_s: float) -> "Reckoning":
        """After these keys signed this time, verified. The same if it is no later than what they said before."""
        signers = tuple(sorted(keyids))
        marks = {mark.keyids: mark for mark in self.marks}
        before = marks.get(signers)
        if at <= (before.reads(boottime_s) if before else 0):
            return self
        # What was stored before anybody's ids were is taken for theirs who are heard first.
        unknown = marks.pop((), None) if signers else None
        at = max(at, unknown.reads(boottime_s) if unknown else 0)
        marks[signers] = TimeMark(at, boot, boottime_s, signers)
        greatest = sorted(marks.values(), key=lambda mark: mark.reads(boottime_s), reverse=True)
        return replace(self, marks=tuple(greatest[:MAX_MARKS]))

    def answered(self, at: int, keyids: Iterable[bytes], boot: str, asked_s: float) -> "Reckoning":
        """After the hub signed `at` in answer to what this node asked at a reading of its boot's clock."""
        return replace(self, proof=TimeMark(at, boot, asked_s, tuple(sorted(keyids))))

    def judged(self, threshold: int, keyids: Collection[bytes]) -> "Reckoning":
        """Without what was signed by keys that, of these, don't reach the threshold."""

        def counts(mark: TimeMark) -> bool:
            return not mark.keyids or sum(keyid in keyids for keyid in mark.keyids) >= threshold

        marks = tuple(mark for mark in self.marks if counts(mark))
        proof = self.proof if self.proof is not None and counts(self.proof) else None
        return self if (marks, proof) == (self.marks, self.proof) else Reckoning(marks, proof)

    def carried(self, boottime_s: float) -> "Reckoning":
        """The same time, with what has passed since written into it: to be stored."""

        def carry(mark: TimeMark) -> TimeMark:
            passed_s = max(0, int(boottime_s - mark.boottime_s))
            return replace(mark, at=mark.at + passed_s, boottime_s=mark.boottime_s + passed_s)

        return replace(self, marks=tuple(carry(mark) for mark in self.marks))

    def started(self, boot: str, boottime_s: float) -> "Reckoning":
        """What is left of it at a start: after a boot its clock begins anew; nothing is known of the time between."""

        def move(mark: TimeMark) -> TimeMark:
            is_same = mark.boot == boot and mark.boottime_s <= boottime_s
            return mark if is_same else replace(mark, boot=boot, boottime_s=boottime_s)

        return Reckoning(tuple(move(mark) for mark in self.marks))
