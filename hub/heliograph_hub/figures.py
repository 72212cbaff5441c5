"""What models answered on a node, out of its metric records: counters added up, latency sketches merged.

A record that isn't what this version writes is left out: a node signs its records, but nothing says that it is sane.
Pure: rows come in, figures go out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from heliograph.errors import IntegrityError
from heliograph.sketch import Sketch

NEWEST = 60
"""Records of a model that are looked at: an hour, as long as nothing was thinned."""
MAX_COUNT = 1 << 62


@dataclass(frozen=True, slots=True)
class Figures:
    """What one release of a model answered from `begin` to `end`, as `records` records tell."""

    release: bytes
    records: int
    begin: int
    end: int
    requests: int
    errors: int
    restarts: int
    latency: Sketch

    def latency_ms(self, share: float) -> float | None:
        """The quantile in milliseconds; None without any latency."""
        return round(self.latency.quantile(share) / 1e6, 3) if self.latency.count else None


def figures(rows: Iterable[tuple[int, Any]]) -> dict[str, list[Figures]]:
    """Per model its releases, the newest first, out of (at, body) of `serving` records, the newest first."""
    found: dict[str, dict[bytes, Figures]] = {}
    looked: dict[str, int] = {}
    for at, body in rows:
        told = _told(at, body)
        if told is None or looked.get(told[0], 0) >= NEWEST:
            continue
        model, new = told
        looked[model] = looked.get(model, 0) + 1
        releases = found.setdefault(model, {})
        known = releases.get(new.release)
        releases[new.release] = new if known is None else _both(known, new)
    return {model: list(releases.values()) for model, releases in sorted(found.items())}


def _told(at: int, body: Any) -> tuple[str, Figures] | None:
    """The model and what one record tells of it; None if it is none of ours."""
    if not isinstance(body, Mapping):
        return None
    model, release, span = body.get("model"), body.get("release"), body.get("span", [at, at])
    requests, errors, restarts = counts = [body.get(name, 0) for name in ("requests", "errors", "restarts")]
    if not (
        isinstance(model, str)
        and isinstance(release, bytes)
        and isinstance(span, list)
        and len(span) == 2
        and all(type(number) is int and 0 <= number <= MAX_COUNT for number in (*counts, *span))
    ):
        return None
    try:
        latency = Sketch.decode(body["latency"]) if "latency" in body else Sketch()
    except (IntegrityError, TypeError):
        return None
    return model, Figures(release, 1, span[0], span[1], requests, errors, restarts, latency)


def _both(one: Figures, other: Figures) -> Figures:
    return replace(
        one,
        records=one.records + other.records,
        begin=min(one.begin, other.begin),
        end=max(one.end, other.end),
        requests=one.requests + other.requests,
        errors=one.errors + other.errors,
        restarts=one.restarts + other.restarts,
        latency=one.latency.merge(other.latency),
    )
