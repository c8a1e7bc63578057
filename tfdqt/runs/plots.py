"""Learning curves. Imports no TensorFlow."""

import textwrap

import numpy as np

from tfdqt.errors import UsageError


def make_figure(*grid, size, **options):
    """A figure of `size` inches and its axes, as `pyplot.subplots` gives them, without a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(*grid, **options)


def as_it_is(text):
    """A text for a picture, in which matplotlib takes no part between dollars for mathematics."""
    return text.replace("$", r"\$")


def band(runs, column, points=400, *, x="step"):
    """Runs of one kind on common steps: (steps [T], values [runs, T]), until one ends.

    Raises UsageError if one ends before another begins.
    """
    end = min(run[x][-1] for run in runs)
    finite = [np.isfinite(run[column]) for run in runs]
    begin = max(run[x][rows][0] if rows.any() else end for run, rows in zip(runs, finite))
    if begin > end:
        raise UsageError(
            f"A run ends at {x} {end:g}, before another of its kind has a {column}, at {begin:g}; "
            "leave it out."
        )
    steps = np.linspace(begin, end, points)
    values = [np.interp(steps, run[x][rows], run[column][rows]) for run, rows in zip(runs, finite)]
    return steps, np.stack(values)


def plot_learning(
    groups, path, *, column="mean_return", title="", levels=None, x="step", xlabel=None
):
    """Draw learning curves: each group of runs as its mean over a band from lowest to highest seed.

    Args:
      groups: dict label -> list of logs, as `read_log` gives them.
      path: PNG to write.
      levels: dict label -> height, drawn as dashed lines to compare with.
      x: the column along the axis, step or seconds. xlabel: what it is called.

    Raises UsageError for a log without the column.
    """
    figure, axes = make_figure(size=(8, 4.5))
    for label, runs in groups.items():
        if not all(column in run for run in runs):
            raise UsageError(f"The log of {label} has no column {column}; choose one that it has.")
        if not all(np.isfinite(run[column]).any() for run in runs):
            raise UsageError(
                f"The log of {label} has no {column} yet; let the run train for longer."
            )
        steps, values = band(runs, column, x=x)
        label = f"{as_it_is(label)} ({len(runs)} seed{'s' * (len(runs) > 1)})"
        label = textwrap.fill(label, 110)
        (line,) = axes.plot(steps, values.mean(axis=0), label=label)
        low = values.min(axis=0)
        high = values.max(axis=0)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for label, height in (levels or {}).items():
        axes.axhline(height, linestyle="--", color="grey", linewidth=1)
        axes.annotate(
            as_it_is(label),
            (1, height),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color="dimgrey",
        )
    xlabel = xlabel or dict(step="environment steps", seconds="seconds").get(x, x)
    axes.set(xlabel=xlabel, ylabel=column.replace("_", " "), title=as_it_is(title))
    axes.xaxis.set_major_formatter(_short_number)
    figure.legend(
        loc="outside lower left", frameon=False, fontsize=8
    )  # where long labels have room
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _short_number(x, _):
    return f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}"
