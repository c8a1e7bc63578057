"""The pictures of probe_search.py. Imports no TensorFlow."""

import numpy as np

from tfdqt.runs.plots import make_figure

AGREEMENTS = (  # who, column of probe.csv, title
    ("trained", "correlation", "own head, correlation"),
    ("trained", "probe", "linear probe, held-out correlation"),
    ("untrained", "probe", "untrained, linear probe"),
    ("trained, shuffled states", "correlation", "shuffled states"),
)
READINGS = {  # what is told, and what its index counts
    "attention": "steps ago",
    "attention to features": "feature",
    "importance": "feature",
}


def draw_table(axis, table, *, vmin, cmap):
    """A table of numbers up to 1, each written on its colour."""
    axis.imshow(table, vmin=vmin, vmax=1, cmap=cmap, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if abs(value) > 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)


def plot_probe(rows, title, path):
    """Draw how each layer agrees with look-ahead of each depth into a PNG.

    A panel each for the network's own head, a linear probe, an untrained network and shuffled
    states. `rows` are those of probe.csv.
    """
    figure, axes = make_figure(1, len(AGREEMENTS), size=(4 * len(AGREEMENTS), 3.2))
    for axis, (who, key, label) in zip(axes, AGREEMENTS):
        chosen = [row for row in rows if row["who"] == who]
        layers = 1 + max(row["layer"] for row in chosen)
        depths = 1 + max(row["depth"] for row in chosen)
        table = np.full((layers, depths), np.nan)
        for row in chosen:
            table[row["layer"], row["depth"]] = row[key]
        draw_table(axis, table, vmin=-1, cmap="RdBu")
        axis.set(
            title=label,
            xlabel="steps of look-ahead",
            xticks=range(depths),
            yticks=range(layers),
        )
    axes[0].set_ylabel("blocks read")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def table_of(rows):
    """Rows of reading.csv of one kind as a table: -> (values [L, I], layers, indices)."""
    layers = sorted({row["layer"] for row in rows})
    indices = sorted({row["index"] for row in rows})
    table = np.empty((len(layers), len(indices)))
    for row in rows:
        table[layers.index(row["layer"]), indices.index(row["index"])] = row["value"]
    return table, layers, indices


def plot_reading(rows, title, path, *, most=12):
    """Draw what each block reads into a PNG: where it attends, and what its values rest on.

    Of features the `most` with the largest values are drawn. `rows` are those of reading.csv.
    """
    told = {row["what"] for row in rows}
    panels = {what: label for what, label in READINGS.items() if what in told}
    widths = (1, *[2] * (len(panels) - 1))
    figure, axes = make_figure(2, len(panels), size=(6 * len(panels), 6), width_ratios=widths)
    for line, who in zip(axes, ("trained", "untrained")):
        for axis, (what, label) in zip(line, panels.items()):
            chosen = [row for row in rows if (row["who"], row["what"]) == (who, what)]
            table, layers, names = table_of(chosen)
            if label == "feature":
                largest = np.argsort(-np.nan_to_num(table).max(axis=0))[:most]
                kept = np.sort(largest)
                table = table[:, kept]
                names = [names[index] for index in kept]
            draw_table(axis, table, vmin=0, cmap="Blues")
            axis.set(
                title=f"{who}: {what}",
                xlabel=label,
                ylabel="blocks read" if what == "importance" else "block",
                xticks=range(len(names)),
                xticklabels=names,
                yticks=range(len(layers)),
                yticklabels=layers,
            )
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
