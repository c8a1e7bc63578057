"""The picture of compare.py. Imports no TensorFlow."""

import numpy as np

from tfdqt.runs.plots import make_figure

PANELS = (("mean_return", "return after training"), ("curve", "mean return while training"))


def plot_comparison(table, kinds, path):
    """Draw returns with their intervals over the size of networks into a PNG.

    Each environment has a column.

    Args:
      table: rows as `summarize` of compare.py makes them.
      kinds: dict from a kind of network to its name, in the order of the legend.
      path: the PNG to write.
    """
    envs = list(dict.fromkeys(row["env"] for row in table))
    size = (5 * len(envs), 7)
    figure, axes = make_figure(2, len(envs), size=size, sharex=True, squeeze=False)
    for column, env in enumerate(envs):
        for index, (kind, name) in enumerate(kinds.items()):
            rows = [row for row in table if (row["env"], row["kind"]) == (env, kind)]
            # Kinds of one size are drawn a little apart, so that all can be seen.
            shift = 1.02 ** (index - (len(kinds) - 1) / 2)
            weights = shift * np.array([row["weights"] for row in rows])
            for axis, (key, label) in zip(axes[:, column], PANELS):
                middle = np.array([row[key] for row in rows])
                ends = np.array([[row[f"{key}_low"], row[f"{key}_high"]] for row in rows])
                errors = np.abs(ends.reshape(-1, 2).T - middle)
                axis.errorbar(weights, middle, errors, fmt="o-", capsize=3, label=name)
                axis.set(xscale="log", ylabel=label)
                axis.grid(alpha=0.3)
        axes[0, column].set_title(env)
        axes[1, column].set_xlabel("weights")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=min(len(kinds), 2 * len(envs)),
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=120)
