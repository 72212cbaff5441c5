"""Tables and verdicts out of what was measured; pure: rows in, text out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log

from bench.deltas import table

OURS = "heliograph"
START = "start"
"""Kind of the row that says what applying costs before the first byte."""
LARGE_BYTES = 900_000_000
LEAST_BYTES = 2_000_000
"""Rates of smaller files say more about the start of a process than about an operation."""
LEAF_BYTES = 4096
"""What comes at once: a patch of one leaf can't come in parts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One tool on one pair; fields as in `measuring.Figures`, limits as in `entropy` (0: not estimated).

    `measured` says when, and with which commit of this project.

    The digests are the first 16 hex digits: enough to see whether another machine made the same pair.
    """

    pair: str
    kind: str
    dtype: str
    old_bytes: int
    new_bytes: int
    old_sha256: str
    new_sha256: str
    limit_plain: int
    limit_learned: int
    tool: str
    version: str
    options: str
    bytes: int = 0
    make_cpu_s: float = 0.0
    apply_cpu_s: float = 0.0
    make_rss_bytes: int = 0
    apply_rss_bytes: int = 0
    make_above_bytes: int = -1
    apply_above_bytes: int = -1
    container_bytes: int = -1
    ops: str = ""
    rates: str = ""
    patch_bytes: int = 0
    first_bytes: int = 0
    late: str = ""
    failed: str = ""
    measured: str = ""


def encode(rows: Iterable[Row]) -> str:
    """As CSV."""
    return table.encode(Row, rows)


def parse(text: str) -> list[Row]:
    """The rows of `encode`."""
    return table.parse(Row, text)


def joined(fresh: Sequence[Row], kept: Iterable[Row], order: Sequence[str]) -> list[Row]:
    """What was measured now, and of what was kept all that still holds: other tools on the same files, other pairs.

    Args:
        fresh: of this run; they win.
        kept: of earlier ones.
        order: names of all pairs; kept rows of others are dropped.
    """
    now = {(row.pair, row.tool) for row in fresh}
    files = {row.pair: (row.old_sha256, row.new_sha256) for row in fresh}
    holds = [
        row for row in kept
        if (row.pair, row.tool) not in now
        and (row.pair in order or row.kind == START)
        and files.get(row.pair, files_of := (row.old_sha256, row.new_sha256)) == files_of
    ]  # fmt: skip
    rows = [*holds, *fresh]
    limits = {row.pair: (row.limit_plain, row.limit_learned) for row in rows if row.limit_plain}
    tools = list(dict.fromkeys([OURS, *(row.tool for row in rows)]))
    places = {name: at for at, name in enumerate(dict.fromkeys([*order, *(row.pair for row in rows)]))}
    rows.sort(key=lambda row: (row.kind != START, places[row.pair], tools.index(row.tool)))
    return [
        replace(row, limit_plain=limits[row.pair][0], limit_learned=limits[row.pair][1]) if row.pair in limits else row
        for row in rows
    ]


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers; 0 for none."""
    return exp(sum(map(log, values)) / len(values)) if values else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """All tools on one pair, those that gave the new file back; `first` is any of them."""

    first: Row
    tools: dict[str, Row]

    @property
    def ours(self) -> Row | None:
        """Our row."""
        return self.tools.get(OURS)

    @property
    def best_other(self) -> Row | None:
        """The row of the smallest other tool."""
        others = [row for name, row in self.tools.items() if name != OURS]
        return min(others, key=lambda row: row.bytes, default=None)

    @property
    def gain(self) -> float:
        """How many times smaller than the best other tool; 0 if either is missing."""
        if self.ours is None or self.best_other is None:
            return 0.0
        return self.best_other.bytes / self.ours.bytes


def results(rows: Iterable[Row]) -> list[Result]:
    """By pair, in the order in which the pairs first come."""
    found: dict[str, Result] = {}
    for row in rows:
        if row.kind != START:
            result = found.setdefault(row.pair, Result(row, {}))
            if not row.failed:
                result.tools[row.tool] = row
    return list(found.values())


def _table(lines: list[list[str]]) -> str:
    head, *body = lines
    rule = ["---"] * 2 + ["---:"] * (len(head) - 2)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body)) + "\n"


def sizes(rows: Sequence[Row]) -> str:
    """The table of bytes: a line a pair, a column a tool; the smallest of a line in bold."""
    tools = list(dict.fromkeys(row.tool for row in rows if row.kind != START))
    lines = [["pair", "kind", "new file", *tools, "limit", "times smaller"]]
    for result in results(rows):
        least = min((row.bytes for row in result.tools.values()), default=0)
        cells = []
        for tool in tools:
            row = result.tools.get(tool)
            cells.append("–" if row is None else f"**{row.bytes:,}**" if row.bytes == least else f"{row.bytes:,}")
        limit = f"{result.first.limit_plain:,}" if result.first.limit_plain else ""
        gain = f"{result.gain:.2f}" if result.gain else "–"
        lines.append([result.first.pair, result.first.kind, f"{result.first.new_bytes:,}", *cells, limit, gain])
    return _table(lines)


def costs(rows: Sequence[Row]) -> str:
    """The table of costs: a line a tool, over the pairs that every measured tool gave back."""
    found = results(rows)
    tools = {row.tool: row for row in rows if row.kind != START}
    common = [result for result in found if result.tools.keys() == tools.keys()]
    lines = [["tool", "version, options", "pairs", "size, geometric mean", "make CPU s per MB", "apply MB per CPU s",
              "make peak MB", "apply peak MB", "apply above bare MB", "measured"]]  # fmt: skip
    for tool, any_row in tools.items():
        have = [result.tools[tool] for result in common]
        measured = sum(tool in result.tools for result in found)
        versions = dict.fromkeys(row.version for row in rows if row.tool == tool and row.kind != START)
        cells = [tool, f"{' and '.join(versions)}; {any_row.options}", str(measured)]
        if have:
            whole = sum(row.new_bytes for row in have) / 1e6
            make, apply = sum(row.make_cpu_s for row in have), sum(row.apply_cpu_s for row in have)
            above = max(row.apply_above_bytes for row in have)
            cells += [
                f"{geometric_mean([row.bytes / row.new_bytes for row in have]):.1%}", f"{make / whole:.2f}",
                f"{whole / apply:.0f}" if apply else "–", f"{max(row.make_rss_bytes for row in have) / 1e6:.0f}",
                f"{max(row.apply_rss_bytes for row in have) / 1e6:.0f}", f"{above / 1e6:.0f}" if above >= 0 else "–",
            ]  # fmt: skip
        when = [row.measured for row in rows if row.tool == tool and row.kind != START]
        lines.append([*cells, *["–"] * (9 - len(cells)), _when(when)])
    return _table(lines)


def _when(words: Iterable[str]) -> str:
    """From when to when, to the day, and with which commits."""
    known = [word for word in words if word]
    days = sorted({word[:10] for word in known})
    commits = dict.fromkeys(word.partition(", ")[2] for word in known if ", " in word)
    return " to ".join(dict.fromkeys([*days[:1], *days[-1:]])) + (f"; {', '.join(commits)}" if commits else "")


def _rates_of(rows: Iterable[Row]) -> dict[str, dict[str, tuple[int, float]]]:
    """By operation and pair: new bytes, and the CPU seconds that they took."""
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for row in rows:
        for word in filter(None, row.rates.split(", ")):
            name, _, figures = word.rpartition(" ")
            size, _, cpu_s = figures.partition("/")
            found.setdefault(name, {})[row.pair] = int(size), float(cpu_s)
    return dict(sorted(found.items()))


def _rate(size: int, cpu_s: float) -> float:
    """MB per CPU second."""
    return size / 1e6 / max(cpu_s, 1e-6)


def operations(rows: Iterable[Row]) -> str:
    """The table of operations: what a node pays for each, decoding, both checks, the pipe and the write together."""
    lines = [["operation", "slowest on, of 2 MB and more", "MB per CPU s there", "pairs", "MB of new bytes",
              "MB per CPU s, all"]]  # fmt: skip
    for name, pairs in _rates_of(rows).items():
        large = {pair: _rate(*figures) for pair, figures in pairs.items() if figures[0] >= LEAST_BYTES}
        slowest = min(large, key=lambda pair: large[pair], default="–")
        size, cpu_s = sum(size for size, _ in pairs.values()), sum(cpu_s for _, cpu_s in pairs.values())
        lines.append([name, slowest, f"{large[slowest]:,.0f}" if large else "–", str(len(pairs)), f"{size / 1e6:,.1f}",
                      f"{_rate(size, cpu_s):,.0f}"])  # fmt: skip
    return _table(lines)


def images(rows: Sequence[Row]) -> str:
    """The table of the synthetic images: how each tool's costs grow with the file, and what it could not do."""
    lines = [["image", "tool", "bytes", "make CPU s", "apply CPU s", "make peak MB", "apply peak MB", "measured"]]
    for row in rows:
        if row.kind != "synthetic":
            continue
        cells = [row.failed or f"{row.bytes:,}", "–", "–", "–", "–"]
        if not row.failed:
            peaks = [f"{size / 1e6:,.0f}" for size in (row.make_rss_bytes, row.apply_rss_bytes)]
            cells = [f"{row.bytes:,}", f"{row.make_cpu_s:,.1f}", f"{row.apply_cpu_s:,.1f}", *peaks]
        lines.append([row.pair, row.tool, *cells, row.measured])
    return _table(lines) if len(lines) > 1 else ""


def missing(rows: Iterable[Row]) -> list[str]:
    """What was not measured, and why."""
    return [f"{row.tool} on {row.pair}: not measured: {row.failed}" for row in rows if row.failed]


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal, what came out, and whether it is met (None: nothing was measured for it)."""

    text: str
    found: str
    met: bool | None


def goals(rows: Sequence[Row], forced: Mapping[str, float] | None = None) -> list[Goal]:
    """The goals of the delta engine on these rows; `forced`: MB per CPU s of operations forced on a large input."""
    have = [result for result in results(rows) if result.gain]
    tuned = [result for result in have if result.first.kind == "fine-tune"]
    return [
        _none_lost(have),
        _mean("fine-tunes: geometric mean ≥ 1.45 times smaller than the best other tool of each pair (stretch 1.6)",
              {result.first.pair: result.gain for result in tuned}, 1.45),
        _mean("fine-tunes: geometric mean ≥ 1.6 times smaller than bsdiff4", {
            result.first.pair: result.tools["bsdiff4"].bytes / result.ours.bytes
            for result in tuned if result.ours and "bsdiff4" in result.tools
        }, 1.6),
        _entropy(tuned),
        _container(have),
        _memory(have),
        *_rates(have, [row for row in rows if row.kind == START], forced or {}),
        _making(have),
        _making_memory(have),
    ]  # fmt: skip


def _none_lost(have: list[Result]) -> Goal:
    text = "every pair: at most 1.01 times the best other tool"
    lost = [
        f"{result.first.pair} {1 / result.gain:.3f} ({result.best_other.tool})"
        for result in have if result.gain < 1 / 1.01 and result.best_other
    ]  # fmt: skip
    found = f"{len(have) - len(lost)} of {len(have)} pairs" + (f"; lost: {', '.join(lost)}" if lost else "")
    return Goal(text, found, not lost if have else None)


def _mean(text: str, ratios: dict[str, float], goal: float) -> Goal:
    if not ratios:
        return Goal(text, "not measured", None)
    mean = geometric_mean(list(ratios.values()))
    low, high = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
    ends = f"{ratios[low]:.2f} ({low}) to {ratios[high]:.2f} ({high})"
    return Goal(text, f"{mean:.2f} over {len(ratios)} pairs, {ends}", mean >= goal)


def _entropy(tuned: list[Result]) -> Goal:
    text = "bf16, f16 and int8 fine-tunes: within 5 % of the estimated conditional entropy, container included"
    over = {
        result.first.pair: result.ours.bytes / result.first.limit_plain
        for result in tuned
        if result.ours and result.first.limit_plain and result.first.dtype in {"bf16", "f16", "int8"}
    }
    if not over:
        return Goal(text, "not measured", None)
    above = [f"{name} {ratio - 1:+.1%}" for name, ratio in over.items() if ratio > 1.05]
    found = (
        f"{len(over) - len(above)} of {len(over)} pairs, geometric mean {geometric_mean(list(over.values())) - 1:+.1%}"
    )
    return Goal(text, found + (f"; above: {', '.join(above)}" if above else ""), not above)


def _container(have: list[Result]) -> Goal:
    text = "container: at most 0.5 % + 300 bytes"
    ours = [result.ours for result in have if result.ours and result.ours.container_bytes >= 0]
    above = [
        f"{row.pair} {row.container_bytes:,} of {row.bytes:,}" for row in ours
        if row.container_bytes > 0.005 * row.bytes + 300
    ]  # fmt: skip
    found = f"{len(ours) - len(above)} of {len(ours)} pairs" + (f"; above: {', '.join(above)}" if above else "")
    return Goal(text, found, not above if ours else None)


def _memory(have: list[Result]) -> Goal:
    ours = [result.ours for result in have if result.ours]
    text = "apply: the applying process peaks at 64 MiB or less"
    if not ours:
        return Goal(text, "not measured", None)
    worst = max(ours, key=lambda row: row.apply_rss_bytes)
    above = max(ours, key=lambda row: row.apply_above_bytes)
    largest = max(ours, key=lambda row: row.new_bytes)
    found = (
        f"{worst.apply_rss_bytes / 2**20:.1f} MiB at most ({worst.pair}), {above.apply_above_bytes / 2**20:.1f} above a"
        f" bare interpreter; {largest.apply_rss_bytes / 2**20:.1f} MiB on the largest file"
        f" ({largest.new_bytes / 1e6:,.0f} MB)"
    )
    return Goal(text, found, worst.apply_rss_bytes <= 64 << 20)


def _rates(have: list[Result], starts: list[Row], forced: Mapping[str, float]) -> list[Goal]:
    """What an operation was forced on counts where no pairs have much for it: small pieces say what a segment costs."""
    ours = [result.ours for result in have if result.ours]
    took = {
        name: (sum(size for size, _ in pairs.values()), sum(cpu_s for _, cpu_s in pairs.values()))
        for name, pairs in _rates_of(ours).items()
    }
    rates = {name: _rate(*figures) for name, figures in took.items()}
    counts = rates | {name: rate for name, rate in forced.items() if took.get(name, (0, 0.0))[0] < LEAST_BYTES}
    ends = []
    for text, goal, names in (
        ("apply: at least 60 MB per CPU s for sub, xor, dict and copy", 60, ("sub", "xor", "dict", "copy")),
        ("apply: at least 15 MB per CPU s for rans", 15, ("sub+rans", "mixed")),
    ):
        found = [f"{name} {rates[name]:,.0f}" if name in rates else f"{name} is in no pair" for name in names]
        large = [f"{name} {forced[name]:,.0f}" for name in names if name in forced]
        said = ", ".join(found) + (f"; forced on a large input, at least {', '.join(large)}" if large else "")
        known = [counts[name] for name in names if name in counts]
        ends.append(Goal(text, said if rates else "not measured", min(known) >= goal if known and rates else None))
    start = min((row.apply_cpu_s for row in starts if row.tool == OURS), default=0.0)
    whole = {
        row.pair: row.new_bytes / 1e6 / max(row.apply_cpu_s - start, 0.01)
        for row in ours if row.new_bytes >= LEAST_BYTES
    }  # fmt: skip
    if whole and rates:
        low = min(whole, key=lambda name: whole[name])
        more = (
            f"; whole files by the command, a start of {start:.2f} s taken off: {whole[low]:.0f} at least ({low}), "
            f"{geometric_mean(list(whole.values())):.0f} on average"
        )
        ends[-1] = Goal(ends[-1].text, ends[-1].found + more, ends[-1].met)
    return [*ends, _streamed(ours)]


def _streamed(ours: list[Row]) -> Goal:
    text = "apply: the first segment stands while later chunks are on the way"
    parted = {row.pair: row for row in ours if row.patch_bytes > LEAF_BYTES and not row.late.endswith(" of 1")}
    if not parted:
        return Goal(text, "not measured", None)
    shares = {name: row.first_bytes / row.patch_bytes for name, row in parted.items()}
    high = max(shares, key=lambda name: shares[name])
    many = [f"{name} {row.late}" for name, row in parted.items() if int(row.late.split()[0]) > 1]
    found = (
        f"{sum(share < 1 for share in shares.values())} of {len(shares)} pairs with several segments; the first stood "
        f"when {sum(shares.values()) / len(shares):.0%} of the patch had come on average, {shares[high]:.0%} at most "
        f"({high})" + (f"; several left at the end: {', '.join(many)}" if many else "")
    )
    return Goal(text, found, shares[high] < 1)


def _making(have: list[Result]) -> Goal:
    text = "make: at most 6 times the CPU of bsdiff4 on the same pair"
    times = {
        result.first.pair: max(result.ours.make_cpu_s, 0.01) / max(result.tools["bsdiff4"].make_cpu_s, 0.01)
        for result in have
        if result.ours and "bsdiff4" in result.tools and result.first.new_bytes >= LEAST_BYTES
    }
    if not times:
        return Goal(text, "not measured", None)
    above = [f"{name} {value:.1f}" for name, value in times.items() if value > 6]
    mean = geometric_mean(list(times.values()))
    found = f"{len(times) - len(above)} of {len(times)} pairs of 2 MB and more, geometric mean {mean:.1f}"
    return Goal(text, found + (f"; above: {', '.join(above)}" if above else ""), not above)


def _making_memory(have: list[Result]) -> Goal:
    text = "make: a pair of 1 GB in at most 4 GB of memory, the mapped files included"
    large = [result.ours for result in have if result.ours and result.first.new_bytes >= LARGE_BYTES]
    if not large:
        return Goal(text, "not measured", None)
    worst = max(large, key=lambda row: row.make_rss_bytes)
    grown = [result.ours for result in have if result.ours and result.first.kind == "synthetic"]
    shares = ", ".join(
        f"{row.make_rss_bytes / (row.old_bytes + row.new_bytes):.2f} for each byte of both files of {row.pair}"
        for row in grown
    )
    found = f"{worst.make_rss_bytes / 1e9:.2f} GB ({worst.pair})" + (f"; {shares}" if shares else "")
    return Goal(text, found, worst.make_rss_bytes <= 4_000_000_000)


def goal_list(rows: Sequence[Row], forced: Mapping[str, float] | None = None) -> str:
    """The goals as a Markdown list."""
    words = {True: "met", False: "not met", None: "open"}
    return "".join(f"- {goal.text}: **{words[goal.met]}**. {goal.found}\n" for goal in goals(rows, forced))


def markdown(rows: Sequence[Row], forced: Mapping[str, float] | None = None) -> str:
    """All of it."""
    parts = [sizes(rows), costs(rows), operations([row for row in rows if row.tool == OURS]), images(rows)]
    parts = [*filter(None, parts), goal_list(rows, forced)]
    gaps = missing(rows)
    if gaps:
        parts.append("".join(f"- {line}\n" for line in gaps))
    return "\n".join(parts)
