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
    axes.barh(range(len(rows)), shares, color=[colours.get(kind, "#6a4c93") for _, kind, *_ in rows], height=0.7)
    marks = [(limit / best, at) for at, (_, _, _, best, _, limit) in enumerate(rows) if limit]
    axes.plot([x for x, _ in marks], [y for _, y in marks], "k|", markersize=9, label="estimated conditional entropy")
    for at, (_, _, ours, _, name, _) in enumerate(rows):
        axes.text(shares[at] + 0.01, at, f"{ours:,} B; best other: {name}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [f"{pair} ({kind})" for pair, kind, *_ in rows], fontsize=7)
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set_xlim(0, max([1.25, *(share + 0.6 for share in shares)]))
    axes.set_xlabel("heliograph's bytes as a share of the best other tool's (less is better)")
    if marks:
        axes.legend(loc="lower right", fontsize=7)
    figure.savefig(sys.argv[1], dpi=130)


if __name__ == "__main__":
    main()
