"""Pictures of runs. Imports no TensorFlow."""

import textwrap

import numpy as np

from tfdqt.config import UsageError


def _subplots(*grid, size, **options):
    """A figure of `size` inches and its axes, as pyplot's `subplots` gives them, drawn without a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(*grid, **options)


def band(runs, column, points=400):
    """Runs of one kind on common steps: (steps [T], values [runs, T]), up to the shortest run's last step."""
    end = min(run["step"][-1] for run in runs)
    begin = max(run["step"][np.isfinite(run[column])][0] if np.isfinite(run[column]).any() else end for run in runs)
    steps = np.linspace(begin, end, points)
    return steps, np.stack([np.interp(steps, *_known(run, column)) for run in runs])


def _known(run, column):
    known = np.isfinite(run[column])
    return run["step"][known], run[column][known]


def plot_learning(groups, path, *, column="mean_return", title="", levels=None, steps="environment steps"):
    """Learning curves: each group of runs as its mean over a band from lowest to highest seed.

    Args:
      groups: dict label -> list of logs, as `runs.read_log` gives them.
      path: PNG to write.
      levels: dict label -> height, drawn as dashed lines to compare with. steps: what a log's steps are.
    """
    figure, axes = _subplots(size=(8, 4.5))
    for label, runs in groups.items():
        if not all(np.isfinite(run[column]).any() for run in runs):
            raise UsageError(f"The log of {label} has no {column} yet; let the run train for longer.")
        x, values = band(runs, column)
        label = textwrap.fill(f"{label} ({len(runs)} seed{'s' * (len(runs) > 1)})", 110)
        line, = axes.plot(x, values.mean(axis=0), label=label)
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)
    for label, height in (levels or {}).items():
        axes.axhline(height, linestyle="--", color="grey", linewidth=1)
        axes.annotate(label, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color="dimgrey")
    axes.set(xlabel=steps, ylabel=column.replace("_", " "), title=title)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)  # below, where long labels have room
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_pruning(rows, path):
    """Draw the mean return of runs (dots) and the compressed size of their encoders over sparsity into a PNG, a column for each task.

    `rows` are dicts with task, sparsity, mean_return and gzip_bytes, as `scripts/plot_pruning.py` makes them.
    """
    names = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = _subplots(2, len(names), size=(5 * len(names), 6), sharex=True, squeeze=False)
    for (above, below), name in zip(axes.T, names):
        shown = sorted((row for row in rows if row["task"] == name), key=lambda row: row["sparsity"])
        x = [100 * row["sparsity"] for row in shown]
        above.plot(x, [row["mean_return"] for row in shown], "o", alpha=0.6)
        above.set(title=name, ylabel="mean return")
        below.plot(x, [row["gzip_bytes"] / 1_000 for row in shown], "o-")
        below.set(xlabel="zeros in the encoder's kernels, %", ylabel="kernels after gzip, kB", ylim=(0, None))
    for place in axes.flat:
        place.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_comparison(table, kinds, path):
    """Draw returns with their confidence intervals over the size of networks into a PNG, a column for each environment.

    `table` has rows as `scripts/compare.py` makes them; `kinds` maps a kind of network to its name.
    """
    envs = list(dict.fromkeys(row["env"] for row in table))
    figure, axes = _subplots(2, len(envs), size=(5 * len(envs), 7), sharex=True, squeeze=False)
    for column, env in enumerate(envs):
        for shift, (kind, name) in enumerate(kinds.items()):
            rows = [row for row in table if (row["env"], row["kind"]) == (env, kind)]
            for line, (key, label) in enumerate((("mean_return", "return after training"), ("curve", "mean return while training"))):
                middle = np.array([row[key] for row in rows])
                ends = np.abs(np.array([[row[f"{key}_low"], row[f"{key}_high"]] for row in rows]).reshape(-1, 2).T - middle)
                place = axes[line, column]
                weights = np.array([row["weights"] for row in rows]) * 1.02 ** (shift - (len(kinds) - 1) / 2)  # so that all are seen
                place.errorbar(weights, middle, ends, fmt="o-", capsize=3, label=name)
                place.set(xscale="log", ylabel=label)
                place.grid(alpha=0.3)
        axes[0, column].set_title(env)
        axes[1, column].set_xlabel("weights")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(kinds), 2 * len(envs)),
                  frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def _heat(place, table, *, vmin, cmap):
    """A table of numbers up to 1, each written on its colour."""
    place.imshow(table, vmin=vmin, vmax=1, cmap=cmap, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        place.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else "black")


def plot_probe(rows, title, path):
    """Draw how each layer agrees with look-ahead of each depth into a PNG: by the network's own head, by a linear probe, and untrained.

    `rows` are dicts as `scripts/probe_search.py` makes them.
    """
    panels = (("trained", "correlation", "own head, correlation"), ("trained", "probe", "linear probe, held-out correlation"),
              ("untrained", "probe", "untrained, linear probe"), ("trained, shuffled states", "correlation", "shuffled states"))
    figure, axes = _subplots(1, len(panels), size=(4 * len(panels), 3.2))
    for place, (who, key, label) in zip(axes, panels):
        chosen = [row for row in rows if row["who"] == who]
        table = np.full((1 + max(row["layer"] for row in chosen), 1 + max(row["depth"] for row in chosen)), np.nan)
        for row in chosen:
            table[row["layer"], row["depth"]] = row[key]
        _heat(place, table, vmin=-1, cmap="RdBu")
        place.set(title=label, xlabel="steps of look-ahead", xticks=range(table.shape[1]), yticks=range(table.shape[0]))
    axes[0].set_ylabel("blocks read")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_reading(rows, title, path, *, most=12):
    """Draw what each block reads into a PNG: where it attends, and the `most` features that the values after it rest on.

    `rows` are dicts as `scripts/probe_search.py` writes them into reading.csv.
    """
    panels = {"attention": "steps ago", "attention to features": "feature", "importance": "feature"}
    panels = {what: label for what, label in panels.items() if any(row["what"] == what for row in rows)}
    figure, axes = _subplots(2, len(panels), size=(6 * len(panels), 6), width_ratios=(1, *[2] * (len(panels) - 1)))
    for line, who in zip(axes, ("trained", "untrained")):
        for place, (what, label) in zip(line, panels.items()):
            chosen = [row for row in rows if (row["who"], row["what"]) == (who, what)]
            names, layers = (sorted({row[key] for row in chosen}) for key in ("place", "layer"))
            table = np.array([[row["value"] for row in sorted(chosen, key=lambda row: row["place"]) if row["layer"] == layer]
                              for layer in layers])
            if label == "feature":
                kept = np.sort(np.argsort(-np.nan_to_num(table).max(axis=0))[:most])
                table, names = table[:, kept], [names[index] for index in kept]
            _heat(place, table, vmin=0, cmap="Blues")
            place.set(title=f"{who}: {what}", xlabel=label, ylabel="blocks read" if what == "importance" else "block",
                      xticks=range(len(names)), xticklabels=names, yticks=range(len(table)), yticklabels=layers)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
