"""Draws a table of the delta bench; in the peers' environment, needs matplotlib.

python chart.py PNG < JSON    [[pair, kind, ours, best other, its name, limit or 0], ...] in bytes
"""

import json
import sys

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot


def main() -> None:
    """Bars: our bytes as a share of the best other tool's, and the limit as a mark."""
    rows = json.load(sys.stdin)[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.28 * len(rows) + 1.4), layout="constrained")
    colours = {"fine-tune": "#2a6f97", "synthetic": "#7f8c8d", "public release": "#b5651d"}
    shares = [ours / best for _, _, ours, best, _, _ in rows]
    shown = [min(share, 1.6) for share in shares]  # one bad loss must not make the others unreadable
    axes.barh(range(len(rows)), shown, color=[colours.get(kind, "#6a4c93") for _, kind, *_ in rows], height=0.7)
    marks = [(limit / best, at) for at, (_, _, _, best, _, limit) in enumerate(rows) if limit]
    axes.plot([x for x, _ in marks], [y for _, y in marks], "k|", markersize=9, label="estimated conditional entropy")
    for at, (_, _, ours, _, name, _) in enumerate(rows):
        label = f"{ours:,} B; best other: {name}" + (f"; {shares[at]:.1f} times" if shares[at] > 1.6 else "")
        axes.text(shown[at] + 0.01, at, label, va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [f"{pair} ({kind})" for pair, kind, *_ in rows], fontsize=7)
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set_xlim(0, max([1.25, *(share + 0.6 for share in shown)]))
    axes.set_xlabel("heliograph's bytes as a share of the best other tool's (less is better)")
    if marks:
        axes.legend(loc="lower right", fontsize=7)
    figure.savefig(sys.argv[1], dpi=130)


if __name__ == "__main__":
    main()
