"""What the server counted, cut into intervals: what came since the last look, never negative and never twice.

A loaded release counts from zero until it is dropped or its server ends, also while another answers; `began_ns` of a
status row tells one such count from the next. Where it can't be told, what went back began anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from heliograph.errors import IntegrityError
from heliograph.sketch import Sketch

COUNTS: Final = ("requests", "errors", "restarts")


@dataclass(frozen=True, slots=True)
class Counted:
    """Where one count stands, or what it grew by: the numbers of `COUNTS`, and the latencies, None if unknown."""

    began_ns: int
    counts: tuple[int, ...]
    latency: Sketch | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """What a slot's status row says."""
        try:
            latency = Sketch.decode(bytes.fromhex(str(row.get("sketch") or "")))
        except (ValueError, IntegrityError):
            latency = None
        counts = tuple(int(row.get(name) or 0) for name in COUNTS)
        return cls(int(row.get("began_ns") or 0), counts, latency)

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Self:
        """The inverse of `to_plain`."""
        began_ns, counts, latency = plain
        return cls(began_ns, tuple(counts), None if latency is None else Sketch.decode(latency))

    def to_plain(self) -> list[Any]:
        """For msgpack."""
        return [self.began_ns, list(self.counts), None if self.latency is None else self.latency.encode()]

    def since(self, before: "Counted | None") -> "Counted":
        """What was counted after `before`; all, if that was another count."""
        if before is None or before.began_ns != self.began_ns:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        if any(count < 0 for count in counts):
            return self
        if self.latency is None or before.latency is None:
            return Counted(self.began_ns, counts, None)
        latency = self.latency.since(before.latency)
        if latency.count != self.latency.count - before.latency.count:
            return self
        return Counted(self.began_ns, counts, latency)


def slots(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(model, release in hex, status row) of every release that answers, or answered and stands by."""
    for model, row in rows.items():
        standby = row.get("standby") or {}
        for release, slot in ((row.get("active"), row), (standby.get("release"), standby)):
            if release:
                yield model, str(release), slot
