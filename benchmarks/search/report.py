"""N: how many simulations of a tree search a deeper or looped network is worth.

    python benchmarks/search/report.py benchmarks/search/sokoban-5-1.csv --out=benchmarks/search

Reads the rows of measure.py. N of a network is the number of simulations with which the baseline,
one block, solves as many levels as that network does in one pass, between those measured in a
straight line over log N. Intervals are 95% of a bootstrap over levels, the same for all networks,
and over seeds.
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import tyro

from tfdqt.runs.log import read_rows

BINS = ((1, 4), (5, 9), (10, 19), (20, 99))  # shortest solutions, in moves


@dataclasses.dataclass(frozen=True)
class Args:
    """Report on rows of measure.py."""

    rows: tyro.conf.Positional[str]
    """CSV that measure.py wrote."""
    out: str = "."
    """Folder of the table and the picture."""
    baseline: str = "blocks-1"
    """The network that searches."""
    samples: int = 2_000
    """Of the bootstrap."""


def equivalent(simulations, solved, target):
    """The simulations with which a network solves `target` of the levels.

    simulations [K] ascending from 1, solved [K] the share of levels that it solves with each. A
    share that falls with more simulations counts as that before. Returns 1 if one simulation is
    enough and inf if the most are not.
    """
    solved = np.maximum.accumulate(solved)
    if target <= solved[0]:
        return 1.0
    if target > solved[-1]:
        return np.inf
    after = int(np.argmax(solved >= target))
    before = after - 1
    part = (target - solved[before]) / (solved[after] - solved[before])
    low, high = np.log2([simulations[before], simulations[after]])
    return float(2 ** (low + part * (high - low)))


def solved_levels(rows):
    """(arm, loops, avoid_repeats, simulations) -> which levels were solved, [seeds, levels] bool.

    Of all the first levels that every row has.
    """
    levels = min(len(row["solved_levels"]) for row in rows)
    groups = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        key = (
            row["arm"],
            row["loops"],
            row["avoid_repeats"] == "True",
            int(row["simulations"]),
        )
        won = np.array(list(row["solved_levels"][:levels])) == "1"
        groups.setdefault(key, []).append(won)
    distances = np.array(rows[0]["distances"].split()[:levels], int)
    return {key: np.stack(each) for key, each in groups.items()}, distances


def interval(values):
    """The 2.5th and 97.5th of 100 parts of bootstrap samples; inf is allowed."""
    ordered = np.sort(values)
    return ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered))]


def resamples(count, seeds, levels, rng):
    """`count` draws with replacement: [count, seeds], [count, levels]."""
    return rng.integers(seeds, size=(count, seeds)), rng.integers(levels, size=(count, levels))


def shares(won, draws):
    """The share of levels solved in each draw of (seeds, levels): won [S, L] -> [count]."""
    by_seed, by_level = draws
    return np.array([won[some % len(won)][:, rows].mean() for some, rows in zip(by_seed, by_level)])


def summarize(groups, distances, args):
    """Rows of the table."""
    levels = len(distances)
    table = []
    for (arm, loops, avoid, simulations), won in sorted(groups.items()):
        rng = np.random.default_rng(0)  # the same draws for all rows
        ours = resamples(args.samples, len(won), levels, rng)
        sampled = shares(won, ours)
        curve = {
            n: theirs
            for (name, other, avoids, n), theirs in groups.items()
            if name == args.baseline and avoids == avoid and not other
        }
        counts = np.array(sorted(curve))
        theirs = resamples(args.samples, max(map(len, curve.values())), levels, rng)
        theirs = theirs[0], ours[1]  # the same levels
        curves = np.stack([shares(curve[n], theirs) for n in counts], 1)
        worth = [equivalent(counts, one, share) for one, share in zip(curves, sampled)]
        means = [curve[n].mean() for n in counts]
        row = dict(
            arm=arm,
            loops=loops,
            avoid_repeats=avoid,
            simulations=simulations,
            levels=levels,
            seeds=len(won),
            solved=won.mean(),
            solved_low=interval(sampled)[0],
            solved_high=interval(sampled)[1],
            by_seed=" ".join(f"{share:.3f}" for share in won.mean(1)),
        )
        if arm != args.baseline:
            row.update(
                worth=equivalent(counts, means, won.mean()),
                worth_low=interval(worth)[0],
                worth_high=interval(worth)[1],
            )
        for low, high in BINS:
            some = (distances >= low) & (distances <= high)
            row[f"solved_{low}_{high}"] = won[:, some].mean() if some.any() else ""
        table.append(row)
    return table


def in_words(row):
    """A row of the table as a line."""
    how = "no repeats" if row["avoid_repeats"] else ""
    share = f"{row['solved']:.3f} [{row['solved_low']:.3f}, {row['solved_high']:.3f}]"
    line = f"{row['arm']:9} {row['loops']:>2} {how:10} {row['simulations']:>3}: {share}"
    if "worth" not in row:
        return line
    return f"{line}  N {row['worth']:.1f} [{row['worth_low']:.1f}, {row['worth_high']:.1f}]"


def draw(rows, args, path):
    """Share of levels solved over simulations and over the time of a move, one panel each."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(11, 7), sharey=True, layout="constrained")
    arms = sorted({row["arm"] for row in rows}, key=lambda arm: (arm != args.baseline, arm))
    colors = dict(zip(arms, plt.cm.tab20.colors))
    for line, avoid in enumerate(("False", "True")):
        for column, key in enumerate(("simulations", "ms_a_move")):
            panel = panels[line, column]
            for arm in arms:
                some = [
                    row
                    for row in rows
                    if row["arm"] == arm and row["avoid_repeats"] == avoid and not row["loops"]
                ]
                points = {}
                for row in some:
                    points.setdefault(int(row["simulations"]), []).append(
                        (float(row[key]), float(row["solved"]))
                    )
                ordered = [np.mean(points[n], 0) for n in sorted(points)]
                for n in points:
                    panel.plot(*np.transpose(points[n]), ".", color=colors[arm], alpha=0.4)
                panel.plot(*np.transpose(ordered), "o-", color=colors[arm], label=arm)
            panel.set_xscale("log", base=2)
            panel.set_xlabel("simulations a move" if column == 0 else "milliseconds a move")
            panel.set_ylabel("levels solved" + (", no position twice" * (avoid == "True")))
            panel.grid(alpha=0.3)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)


def draw_depth(table, args, path):
    """Levels solved in one pass over depth, beside what the baseline solves by search."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    own = [row for row in table if not row["loops"]]
    kinds = {}
    for row in own:
        if row["simulations"] == 1:
            kind, size = row["arm"].split("-")
            kinds.setdefault(kind, []).append((int(size), row))
    deepest = max((s for kind in ("blocks", "loops") for s, _ in kinds.get(kind, ())), default=1)
    depths = [2**i for i in range(deepest.bit_length())]
    for panel, avoid in zip(panels, (False, True)):
        searched = {
            row["simulations"]: row["solved"]
            for row in own
            if row["arm"] == args.baseline and row["avoid_repeats"] == avoid
        }
        panel.hlines(list(searched.values()), 0.9, 1.1 * deepest, color="gray", lw=0.8, ls=":")
        names = [f"{args.baseline}, N = {simulations}" for simulations in searched]
        right = panel.secondary_yaxis("right")
        right.set_yticks(list(searched.values()), names, fontsize=7)
        panel.set_xlim(0.9, 1.1 * deepest)
        for color, (kind, each) in zip(plt.cm.tab10.colors, sorted(kinds.items())):
            some = sorted(
                (size, row["solved"]) for size, row in each if row["avoid_repeats"] == avoid
            )
            if kind in ("blocks", "loops"):
                start = [] if kind == "blocks" else [(1, searched[1])]
                panel.plot(*zip(*start, *some), "o-", color=color, label=f"{kind}-L")
            else:
                for size, solved in some:
                    depth = 1 if kind in ("dense", "wide") else size
                    panel.plot(depth, solved, "s", color=color, label=f"{kind}-{size}")
        panel.set(
            title="no position twice" if avoid else "", xlabel="depth: blocks, or loops of one"
        )
        panel.set_xscale("log", base=2)
        panel.set_xticks(depths, depths)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("levels solved in one pass")
    panels[0].legend()
    figure.savefig(path, dpi=110)


def main(args):
    rows = [row for row in read_rows(args.rows) if row["split"] == "test"]
    table = summarize(*solved_levels(rows), args)
    name = Path(args.rows).stem
    path = Path(args.out) / f"{name}-table.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in table
        )
    for row in table:
        print(in_words(row))
    draw(rows, args, Path(args.out) / f"{name}.png")
    draw_depth(table, args, Path(args.out) / f"{name}-depth.png")


if __name__ == "__main__":
    main(tyro.cli(Args))
