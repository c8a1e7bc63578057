"""The pictures of plan.py, from its CSVs. Imports no TensorFlow.

python benchmarks/search/plan_plots.py runs/search/plan
"""

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from tfdqt.runs.plots import make_figure

PERFECT = 99  # sweeps that have converged


def read(path):
    """The rows of a CSV as dicts; what is a number is a float."""

    def number(text):
        try:
            return float(text)
        except ValueError:
            return text

    with open(path, newline="", encoding="utf-8") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def pick(rows, **wanted):
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def over_seeds(rows, x, y):
    """Means over seeds: -> (values of x in their order, mean, least, most)."""
    values = list(dict.fromkeys(row[x] for row in rows))
    each = [[row[y] for row in rows if row[x] == value] for value in values]
    return values, *(np.array([one(part) for part in each]) for one in (np.mean, min, max))


def draw(axis, rows, x, y, **style):
    """Means over seeds as a line, their range as a band."""
    values, mean, least, most = over_seeds(rows, x, y)
    (line,) = axis.plot(values, mean, marker="o", markersize=3, **style)
    axis.fill_between(values, least, most, color=line.get_color(), alpha=0.15, linewidth=0)


def colours(count):
    """Colours from dark to light."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, count))


# -------------------------------------------------------------------------------------------------
# Panels


def plot_distances(axis, rows, arm):
    """The share of optimal moves by distance, a line for each block."""
    rows = [row for row in pick(rows, arm=arm, who="trained", by="head") if row["distance"] != "1+"]
    blocks = sorted({row["k"] for row in rows})
    for k, colour in zip(blocks, colours(len(blocks))):
        draw(axis, pick(rows, k=k), "distance", "optimal", color=colour, label=f"{k:.0f}")
    values, chance, _, _ = over_seeds(pick(rows, k=0.0), "distance", "chance")
    axis.plot(values, chance, "k--", label="chance")
    axis.set(title=f"{arm}: moves read after k", xlabel="moves to the solution", ylim=(0.2, 1.02))
    axis.set_ylabel("share of optimal moves")
    axis.legend(title="k", fontsize=7, ncols=2)


def plot_agreement(axis, rows, arm):
    """The correlation of the reading after each block with value iteration of each depth."""
    rows = pick(rows, arm=arm, who="trained", by="head")
    blocks = sorted({row["k"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    table = np.array(
        [
            [np.mean([row["advantages"] for row in pick(rows, k=k, depth=d)]) for d in depths]
            for k in blocks
        ]
    )
    axis.imshow(table, vmin=-1, vmax=1, cmap="RdBu", origin="lower", aspect="auto")
    axis.plot(table.argmax(1), range(len(blocks)), "k*", label="best depth")
    for row, best in enumerate(table.argmax(1)):
        axis.text(best - 0.3, row, f"{table[row, best]:.2f}", ha="right", va="center", fontsize=7)
    names = ["all" if d == PERFECT else f"{d:.0f}" for d in depths]
    axis.set(
        title="correlation with searches (advantages)",
        xlabel="sweeps of value iteration",
        ylabel="k",
        xticks=range(len(depths)),
        yticks=range(len(blocks)),
    )
    axis.set_xticklabels(names, fontsize=7)


def plot_settled(axis, rows, arm):
    """From which block on it is right, by distance."""
    labels = {
        "optimal": "move is optimal",
        "next push": "next push is read",
        "all pushes": "all pushes are read",
    }
    for stays, label in labels.items():
        chosen = pick(rows, arm=arm, who="trained", stays=stays)
        counts = Counter(row["distance"] for row in chosen)  # seeds with enough such states
        chosen = [row for row in chosen if counts[row["distance"]] == max(counts.values())]
        if chosen:
            draw(axis, chosen, "distance", "k", label=label)
    axis.set(title="first k from which on", xlabel="moves to the solution", ylabel="k", ylim=(0, 8))
    axis.legend(fontsize=7)


def plot_probe(axis, rows, arm):
    """How well the plan is read in the cells after each block."""
    for who in ("trained", "shuffled", "untrained"):
        chosen = pick(rows, arm=arm, who=who, states="unique")
        if chosen:
            draw(axis, chosen, "k", "f1_later", label=who)
    for row in pick(rows, arm="board", states="unique"):
        axis.axhline(row["f1_later"], color="k", ls="--", label="whole board, linear")
    axis.set(title=f"{arm}: later pushes read in cells", xlabel="k", ylabel="F1", ylim=(0, 1))
    axis.legend(fontsize=7)


def plot_turns(axis, rows, arm, way):
    """Which of the pushes are read after each block."""
    rows = pick(rows, arm=arm, who="trained", counted_from=way)
    numbers = sorted({row["push"] for row in rows})
    for number, colour in zip(numbers, colours(len(numbers))):
        draw(axis, pick(rows, push=number), "k", "recall", color=colour, label=f"{number:.0f}")
    axis.set(title=f"pushes read, from the {way}", xlabel="k", ylabel="recall", ylim=(0, 1))
    axis.legend(fontsize=7, ncols=2)


def plot_changes(axis, rows, arm, cells):
    """How often the network follows a plan that was changed after each block."""
    rows = pick(rows, arm=arm, detour="0-8")
    scale = max(row["scale"] for row in rows)
    labels = dict(probe="towards the new plan", third="towards a third", random="random")
    for way, label in labels.items():
        chosen = pick(rows, cells=cells, direction=way, scale=scale)
        draw(axis, chosen, "k", "follows", label=label)
    axis.set(
        title=f"{cells} changed after k, size {scale:g}",
        xlabel="k",
        ylabel="follows the new plan",
        ylim=(0, 1),
    )
    axis.legend(fontsize=7)


# -------------------------------------------------------------------------------------------------
# Pictures


def plot(folder):
    """Draw reading.png and plan.png into the folder of the CSVs."""
    names = ("reading", "agreement", "settle", "probe", "turn", "change")
    tables = {name: read(Path(folder) / f"{name}.csv") for name in names}
    trained = [row["arm"] for row in tables["change"] if row["k"] > 1]
    arms = list(dict.fromkeys(trained))
    first, axes = make_figure(len(arms), 3, size=(15, 4.2 * len(arms)), squeeze=False)
    for line, arm in zip(axes, arms):
        plot_distances(line[0], tables["reading"], arm)
        plot_agreement(line[1], tables["agreement"], arm)
        plot_settled(line[2], tables["settle"], arm)
    first.savefig(Path(folder) / "reading.png", dpi=100)
    second, axes = make_figure(len(arms), 5, size=(20, 3.8 * len(arms)), squeeze=False)
    for line, arm in zip(axes, arms):
        plot_probe(line[0], tables["probe"], arm)
        plot_turns(line[1], tables["turn"], arm, "start")
        plot_turns(line[2], tables["turn"], arm, "end")
        plot_changes(line[3], tables["change"], arm, "next push")
        plot_changes(line[4], tables["change"], arm, "whole plan")
    second.savefig(Path(folder) / "plan.png", dpi=90)


if __name__ == "__main__":
    plot(sys.argv[1])
