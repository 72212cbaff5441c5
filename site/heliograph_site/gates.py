"""Whether a release has proven itself here. Pure: what was measured and the time come as arguments.

Rules:
1. Only time with traffic counts towards the soak, and a failed request lets it begin anew. Silence proves nothing.
2. A gate is judged from its `min_samples` on, not before; then the first measurement beyond its limit ends probation.
3. Proven is what soaked long enough and met every gate with enough samples. What still lacks something when the soak's
   longest time is over is unproven, and the verdict says what was missing.
4. A manifest's gate replaces the built-in one of the same name. Built in are a share of failed requests, deaths of the
   worker, and p95 against the release that answered before, if that answered enough to be compared with.
5. What happened before probation, or before the server last started, is held against nobody.

Golden outputs are no gate: they are compared at every load, before a release answers anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heliograph.documents import Verdict as Word
from heliograph.errors import IntegrityError
from heliograph.manifest import GATES, Gate, Manifest, Soak
from heliograph.sketch import Sketch

MAX_DEATHS = 3
"""Deaths of the worker during probation that end it."""
DEFAULT_ERRORS = Gate(name="error-share", limit=0.05, min_samples=5)
MIN_ERRORS = 5
"""The built-in share of errors is judged once so many requests failed."""
DEFAULT_RATIO = Gate(name="p95-ratio", limit=5.0, min_samples=30)
BUILT_IN = (DEFAULT_ERRORS, DEFAULT_RATIO)
"""Gates that count where nobody names them."""
MIN_BEFORE = 100
"""Answers of the release before that the built-in ratio needs."""
SLACK_MS = 5.0
"""The built-in ratio lets p95 grow by so much, whatever the ratio: very fast answers vary by more than that factor."""


@dataclass(frozen=True, slots=True)
class Look:
    """The server's counts of the active release at one moment; they begin anew whenever the server does."""

    state: str = "ready"
    reason: str = ""
    requests: int = 0
    errors: int = 0
    restarts: int = 0
    sketch: Sketch | None = None
    cold_start_ms: float | None = None
    memory_bytes: int = 0
    before: Sketch | None = None
    """Of the release that answered before, if its worker is still there."""
    began_ns: int = 0
    """Names the count: another number is another count, which began anew; 0: unknown."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One gate, what was measured for it, and whether that is beyond the limit."""

    gate: str
    limit: float
    measured: float | None
    samples: int
    tripped: bool

    def row(self) -> list[str | float | int | bool | None]:
        """As it stands in a record."""
        return [self.gate, self.limit, self.measured, self.samples, self.tripped]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How probation ended: in one word, in one sentence, and by what measurements."""

    word: Word
    reason: str
    traffic_s: float = 0.0
    evidence: tuple[Evidence, ...] = ()


def look_from_row(row: Mapping[str, Any]) -> Look | None:
    """What a model's row of the server's status says; None if it has none."""
    if not row:
        return None
    cold_start_ms = row.get("cold_start_ms")
    return Look(
        state=str(row.get("state", "")),
        reason=str(row.get("reason") or ""),
        requests=int(row.get("requests", 0)),
        errors=int(row.get("errors", 0)),
        restarts=int(row.get("restarts", 0)),
        sketch=_sketch(row),
        cold_start_ms=float(cold_start_ms) if cold_start_ms is not None else None,
        memory_bytes=int(row.get("memory_bytes", 0)),
        before=_sketch(row.get("standby") or {}),
        began_ns=int(row.get("began_ns") or 0),
    )


def _sketch(row: Mapping[str, Any]) -> Sketch | None:
    try:
        return Sketch.decode(bytes.fromhex(str(row.get("sketch") or "")))
    except (ValueError, IntegrityError):
        return None


def unknown_gates(manifest: Manifest) -> tuple[str, ...]:
    """Names of gates that this version can't judge."""
    return tuple(gate.name for gate in manifest.gates if gate.name not in GATES)


def judge_load(gates: Sequence[Gate], cold_start_ms: float | None, memory_bytes: int) -> Verdict | None:
    """Failed if what loading showed is beyond a limit already: then the release never answers. None otherwise."""
    rows = [
        _measured_once(gate, cold_start_ms if gate.name == "cold-start-ms" else memory_bytes or None, 1)
        for gate in gates
        if gate.name in ("cold-start-ms", "memory-bytes")
    ]
    return _failed(rows, {}, 0.0)


class Probation:
    """Judges the active release by one look after another."""

    def __init__(self, gates: Sequence[Gate], soak: Soak, now: float) -> None:
        named = {gate.name for gate in gates}
        self._gates = tuple(gates)
        self._builtin = tuple(gate for gate in BUILT_IN if gate.name not in named)
        self._soak = soak
        self._began = self._looked = now
        self._base: Look | None = None
        self._last: Look | None = None
        self._before: Sketch | None = None
        self._looks = 0
        self._memory_bytes = 0
        self._traffic_s = 0.0
        self._missing: tuple[str, ...] = ("the server's first word of it",)

    @property
    def waiting(self) -> str:
        """What is still missing, in words."""
        return ", ".join(self._missing)

    def judge(self, look: Look | None, now: float) -> Verdict | None:
        """The verdict; None: not yet. Without a look (no server to ask) only time passes."""
        passed_s, self._looked = now - self._looked, now
        evidence: list[Evidence] = []
        if look is not None:
            if look.state == "failed":
                return Verdict("failed", look.reason or "the server gave it up", self._traffic_s)
            self._count(look, passed_s)
            evidence, said = self._measure(look)
            failed = _failed(evidence, said, self._traffic_s)
            if failed is not None:
                return failed
            self._missing = tuple(self._lacks(look, evidence))
            if not self._missing:
                return Verdict("proven", "", self._traffic_s, tuple(evidence))
        if now - self._began >= self._soak.max_s:
            reason = f"after {self._soak.max_s} s still missing: {self.waiting}"
            return Verdict("unproven", reason, self._traffic_s, tuple(evidence))
        return None

    def _count(self, look: Look, passed_s: float) -> None:
        last = self._last
        if self._base is None or last is None or look.began_ns != last.began_ns or look.requests < last.requests:
            self._base = last = look
        if look.before is not None and (self._before is None or look.before.count > self._before.count):
            self._before = look.before
        if look.errors > last.errors or look.restarts > last.restarts:
            self._traffic_s = 0.0
        elif look.requests > last.requests:
            self._traffic_s += passed_s
        self._last = look
        self._looks += look.memory_bytes > 0
        self._memory_bytes = max(self._memory_bytes, look.memory_bytes)

    def _measure(self, look: Look) -> tuple[list[Evidence], dict[str, str]]:
        """A row of evidence per gate, and the sentence for each that would trip."""
        assert self._base is not None, "counted before"
        requests, errors = look.requests - self._base.requests, look.errors - self._base.errors
        deaths = look.restarts - self._base.restarts
        sketch = Sketch()
        if look.sketch is not None:
            sketch = look.sketch.since(self._base.sketch) if self._base.sketch is not None else look.sketch
        rows = [Evidence("worker-deaths", MAX_DEATHS, deaths, deaths, deaths >= MAX_DEATHS)]
        said = {"worker-deaths": f"its worker died {deaths} times during probation"}
        for gate in (*self._gates, *self._builtin):
            is_builtin = gate in self._builtin
            match gate.name:
                case "p95-ms" | "p99-ms":
                    share = 0.95 if gate.name == "p95-ms" else 0.99
                    value = sketch.quantile(share) / 1e6
                    rows.append(_measured(gate, value if sketch.count else None, sketch.count))
                    said[gate.name] = (
                        f"{gate.name[:3]} {_shown(value)} ms over its limit of {gate.limit:g} ms "
                        f"in {sketch.count} samples"
                    )
                case "p95-ratio":
                    ratio, sentence = self._ratio(gate, sketch, is_builtin)
                    if ratio is not None:
                        rows.append(ratio)
                        said[gate.name] = sentence
                case "error-share":
                    row = _measured(gate, errors / requests if requests else None, requests)
                    if is_builtin and errors < MIN_ERRORS:
                        row = replace(row, tripped=False)
                    rows.append(row)
                    said[gate.name] = (
                        f"{errors} of {requests} requests failed during probation, "
                        f"over the limit of {100 * gate.limit:g} %"
                    )
                case "cold-start-ms":
                    rows.append(_measured_once(gate, look.cold_start_ms, 1))
                case "memory-bytes":
                    rows.append(_measured_once(gate, self._memory_bytes or None, self._looks))
        return rows, said

    def _ratio(self, gate: Gate, sketch: Sketch, is_builtin: bool) -> tuple[Evidence | None, str]:
        """p95 as a multiple of what the release before had; no row if there is nothing to compare with."""
        before = self._before
        if before is None or before.count < (MIN_BEFORE if is_builtin else max(gate.min_samples, 1)):
            # What came first has nothing before it: that can't keep it from being proven.
            return None, ""
        was_ms, is_ms = before.quantile(0.95) / 1e6, sketch.quantile(0.95) / 1e6
        row = _measured(gate, is_ms / was_ms if sketch.count else None, sketch.count)
        if is_builtin and is_ms - was_ms <= SLACK_MS:
            row = replace(row, tripped=False)
        return row, (
            f"p95 {_shown(is_ms)} ms is {_shown(is_ms / was_ms)} times the {_shown(was_ms)} ms of the release before, "
            f"over the limit of {gate.limit:g} times, in {sketch.count} samples"
        )

    def _lacks(self, look: Look, evidence: Sequence[Evidence]) -> list[str]:
        assert self._base is not None, "counted before"
        lacks = []
        answered = look.requests - look.errors - (self._base.requests - self._base.errors)
        if self._traffic_s < self._soak.min_s or answered <= 0:
            lacks.append(f"{self._traffic_s:.0f} of {self._soak.min_s} s of traffic without errors")
        # The built-in share of errors needs no samples of its own: each failure already stops the soak.
        needed = {gate.name: gate.min_samples for gate in (DEFAULT_RATIO, *self._gates)}
        lacks += [
            f"{row.samples} of {needed[row.gate]} samples for {row.gate}"
            for row in evidence
            if row.gate in needed and row.samples < needed[row.gate]
        ]
        return lacks


def _measured(gate: Gate, value: float | None, samples: int) -> Evidence:
    rounded = None if value is None else round(value, 4)
    tripped = value is not None and samples >= gate.min_samples and value > gate.limit
    return Evidence(gate.name, gate.limit, rounded, samples, tripped)


def _measured_once(gate: Gate, value: float | None, samples: int) -> Evidence:
    return _measured(gate, value, samples if value is not None else 0)


def _shown(number: float) -> str:
    """Two significant digits, and never an exponent."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _failed(rows: Sequence[Evidence], said: Mapping[str, str], traffic_s: float) -> Verdict | None:
    for row in rows:
        if row.tripped:
            what, _, unit = row.gate.rpartition("-")
            sentence = f"{what.replace('-', ' ')} {row.measured:.12g} {unit} over its limit of {row.limit:.12g} {unit}"
            return Verdict("failed", said.get(row.gate, sentence), traffic_s, tuple(rows))
    return None
