"""The partially observed maze by exact Q-learning on a table: what its data can teach at all.

    python benchmarks/text/tabular.py
    python benchmarks/text/tabular.py --report

A row of the table is a text that the game shows: walls of the last cells and the moves between. Its
values are those of the best policy that takes moves of the data only, found by sweeps over all of
it. Moves are drawn from exp(Q / temperature); of a text that the data do not have, any. Writes a
row to OUT for whole walks and confined ones, every number of past moves that a text tells,
temperature and seed.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import tyro

from tfdqt.errors import UsageError
from tfdqt.policy import choose_actions
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import read_rows, write_rows
from tfdqt.text.tasks.maze import STARTS, make_maze_po
from tfdqt.text.tasks.play import record

OUT = Path(__file__).parent / "tabular.csv"
GAMMA = 0.95  # as in the task's defaults
SWEEPS = 300  # of which each looks one move further


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure what tables learn."""

    out: Path = OUT
    """CSV of what came of it."""
    remembered: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Past moves that a text tells."""
    temperatures: tuple[float, ...] = (0.01, 0.1, 0.3, 0.5)
    """How evenly moves are drawn."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the data."""
    episodes: int = 1_200
    """Games of data, as many as a run has."""
    plays: int = 8
    """Games from each of the 25 starts."""
    report: bool = False
    """Whether to print what OUT says instead."""


def learn(items):
    """Values of a Transition of the game: {text as bytes: [4]}, -inf for moves not in the data."""
    texts, now = np.unique(items.state, axis=0, return_inverse=True)
    index = {text.tobytes(): i for i, text in enumerate(texts)}
    # Texts that nothing is done from are worth 0, as those of the goal.
    behind = np.array([index.get(text.tobytes(), len(texts)) for text in items.next_state])
    entry = 4 * now.reshape(-1) + items.action
    counts = np.bincount(entry, minlength=4 * len(texts))
    q = np.where(counts, 0.0, -np.inf)
    for _ in range(SWEEPS):
        value = np.append(q.reshape(-1, 4).max(axis=1), 0.0)
        target = items.reward + GAMMA * items.discount * value[behind]
        total = np.bincount(entry, target, minlength=len(q))
        q = np.where(counts, total / np.maximum(counts, 1), -np.inf)
    return dict(zip(index, q.reshape(-1, 4)))


def play(task, table, temperature, plays, rng):
    """Mean return of a table's moves, from every start."""

    def choose(boards, text, at):
        values = np.array([table.get(row.tobytes(), np.zeros(4)) for row in text])
        return choose_actions(rng, values, greedy=False, temperature=temperature)

    _, returns = record(task, plays * len(STARTS), rng, choose)
    return float(np.mean(returns))


def measure(args):
    """Rows of the CSV."""
    for confined, remembered in itertools.product((False, True), args.remembered):
        task = make_maze_po(confined=confined, remembered=remembered)
        for seed in args.seeds:
            rng = np.random.default_rng(seed)
            table = learn(task.data(rng, args.episodes, GAMMA).items)
            for temperature in args.temperatures:
                mean = play(task, table, temperature, args.plays, rng)
                yield dict(
                    confined=confined,
                    remembered=remembered,
                    temperature=temperature,
                    seed=seed,
                    texts=len(table),
                    mean=mean,
                )
        print(f"{task.name}, {remembered} past moves: done", flush=True)


def report(args):
    """A Markdown table: the mean returns of the seeds."""
    cells = {}
    for row in read_rows(args.out):
        data = "confined" if row["confined"] == "True" else "whole walks"
        key = (data, row["remembered"])
        means = cells.setdefault(key, {}).setdefault(row["temperature"], [])
        means.append(f"{float(row['mean']):.1f}")
    if not cells:
        raise UsageError(f"{args.out} does not exist; leave out --report to measure.")
    temperatures = list(next(iter(cells.values())))
    print(f"| data | past moves | {' | '.join(temperatures)} |")
    print("|---" * (2 + len(temperatures)) + "|")
    for (data, remembered), means in cells.items():
        each = [", ".join(means[temperature]) for temperature in temperatures]
        print(f"| {data} | {remembered} | {' | '.join(each)} |")


def main(args):
    if not args.report:
        write_rows(args.out, measure(args))
    report(args)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Args, description=__doc__)))
