r"""What each setting of suite.py does, on copies of POPGym's games that its suite does not have.

    pip install --no-deps popgym mazelib cython
    python benchmarks/memory/ablation.py --out=runs/ablation

Each row of CSV is a run of run_dqn.py with one change to the settings, in a folder under --out. A
run that is done is not trained again, so the command can be stopped and given again, and several
can share --out and CSV. `--report` prints the table.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import tyro
from suite import (
    HERE,
    NETWORKS,
    SETTINGS,
    find_environments,
    greatest_mean,
    print_table,
    training,
)

from tfdqt.runs.cli import run_main
from tfdqt.runs.log import add_row, read_log, read_rows
from tfdqt.runs.processes import run_script

COPIES = ("RepeatPrevious16", "PositionOnlyCartPole300", "CountRecallSuits", "Battleship6")
# What suite.py has now came out of the table: CHOSEN, with twice as many updates, then STEADY.
FIRST = dict(gamma=0.9, huber_delta=1.0, updates_per_step=0.015625)
ONE_STEP = dict(n_step=1, n_step_if_steady=False)
SIZES = dict(context=32, total_steps=500_000, replay_size=500_000)
BASE = SETTINGS | NETWORKS["gpt"] | FIRST | ONE_STEP | SIZES
CHOSEN = {name: SETTINGS[name] for name in FIRST}
STEADY = {name: SETTINGS[name] for name in ONE_STEP}
CHANGES = {
    "none": {},
    "no-reward-units": dict(reward_units=False),
    "places=lag": dict(places="lag"),
    "places=history": dict(places="history"),
    "total-steps=62500": dict(
        num_envs=8, total_steps=62_500, replay_size=62_500, updates_per_step=0.125
    ),
    "gamma=0.99": dict(gamma=0.99),
    "value-scale=sqrt": dict(value_scale="sqrt"),
    "n-step=3": dict(n_step=3),
    "huber-delta=100": dict(huber_delta=100.0),
    "advantage-learning=0.5": dict(advantage_learning=0.5),
    "adam-epsilon=1e-5": dict(adam_epsilon=1e-5),
    "no-prev-action": dict(prev_action=False),
    "every-step=False": dict(every_step="False"),
    "network=gru": dict(NETWORKS["gru"], places="history"),
    "chosen": CHOSEN,
    "chosen-gamma=0.99": dict(CHOSEN, gamma=0.99),
    "chosen-n-step=2": dict(CHOSEN, n_step=2),
    "chosen-n-step=3-if-steady": CHOSEN | STEADY,
    "chosen-advantage-learning=0.5": dict(CHOSEN, advantage_learning=0.5),
    "chosen-advantage-learning=0.9": dict(CHOSEN, advantage_learning=0.9),
    "chosen-acting-tau=0.005": dict(CHOSEN, acting_tau=0.005),
    "chosen-target-tau=0.05": dict(CHOSEN, target_tau=0.05),
    "chosen-standardize": dict(CHOSEN, standardize=True),
    "chosen-target-epsilon=0.2": dict(CHOSEN, target_epsilon=0.2),
    "chosen-quantiles=16-huber-delta=1": dict(CHOSEN, quantiles=16, huber_delta=1.0),
    "chosen-quantiles=16-huber-delta=1-n-step=3": dict(
        CHOSEN, quantiles=16, huber_delta=1.0, n_step=3
    ),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train with one setting changed."""

    out: Path = Path("runs/ablation")
    """Folder of the runs."""
    csv: Path = HERE / "ablation.csv"
    """CSV of what came of them."""
    copies: tuple[Literal[COPIES], ...] = COPIES
    """Environments of copies.py."""
    changes: tuple[Literal[tuple(CHANGES)], ...] = tuple(CHANGES)
    """What is changed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each."""
    report: bool = False
    """Whether to print what the CSV says instead."""


def train(args, copy, change, seed):
    """Train one run and return its row."""
    folder = args.out / f"{copy}-{change}-{seed}"
    own = dict(name=f"copies:{copy}-v0", seed=seed)
    run_script(training(folder, BASE | CHANGES[change] | own))
    log = read_log(folder)
    return dict(
        copy=copy,
        change=change,
        seed=seed,
        mmer=greatest_mean(log),
        last=float(log["mean_return"][-1]),
        steps=int(log["step"][-1]),
        updates=int(log["updates"][-1]),
        seconds=float(log["seconds"][-1]),
    )


def measure(args):
    """Train what has no row yet."""
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    find_environments()
    for seed, copy, change in itertools.product(args.seeds, args.copies, args.changes):
        rows = read_rows(args.csv)
        done = {(row["copy"], row["change"], int(row["seed"])) for row in rows}
        if (copy, change, seed) not in done:
            row = train(args, copy, change, seed)
            add_row(args.csv, row)
            print("{copy} {change} {seed}: {mmer:.3f}".format(**row), flush=True)


def report(args):
    """A line of a Markdown table for every change, a column for every copy."""
    found = {}
    for row in read_rows(args.csv):
        found.setdefault((row["change"], row["copy"]), {})[int(row["seed"])] = float(row["mmer"])
    lines = {}
    for change in args.changes:
        seeds = [found.get((change, copy), {}) for copy in args.copies]
        lines[change] = [[each[seed] for seed in sorted(each)] for each in seeds]
    print_table("change", args.copies, lines)


def main():
    args = tyro.cli(Args, description=__doc__)
    if args.report:
        report(args)
    else:
        measure(args)


if __name__ == "__main__":
    run_main(main)
