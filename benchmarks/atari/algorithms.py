"""DQN, PPO and PQN on Breakout in one picture, over steps and over wall clock.

    python benchmarks/atari/algorithms.py --measure    # on a quiet machine; writes rates.csv
    python benchmarks/atari/algorithms.py              # draws algorithms.png

The runs were trained at different times, on machines with other work, so that the seconds in their
logs can't be compared. Instead each algorithm's steps a second are measured here, one after the
other in one go, by the command that trained it, and the clock of the picture is steps divided by
that rate. What is measured is the time between two lines of the log, after learning has begun, so
imports and compilation are left out.
"""

import csv
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro

from tfdqt.runs.cli import run_main
from tfdqt.runs.log import read_log, write_rows
from tfdqt.runs.plots import band, make_figure

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
RUNS = dict(dqn="breakout", ppo="ppo-breakout", pqn="pqn-breakout")
LEVELS = {"human": 31.8, "random": 1.7}


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw the three algorithms over steps and over wall clock, or measure their speed."""

    measure: bool = False
    """Measure steps a second and write rates.csv, instead of drawing."""
    steps: int = 40_000
    """Environment steps measured, behind the first 20,000."""
    repeats: int = 3
    """Measurements of each, in turn."""


def runs_of(algorithm):
    """The logs of an algorithm's runs of seeds."""
    return [read_log(path) for path in sorted(FOLDER.joinpath(RUNS[algorithm]).glob("seed-*"))]


def steps_per_second(algorithm, steps):
    """Train by the default command and take the time of `steps` steps out of its log."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        script = ROOT / "scripts" / f"run_{algorithm}.py"
        total = 1_000_000  # schedules as in the whole run; it is stopped before its end
        command = [sys.executable, str(script), "--name=Breakout-ram-v0", f"--run-dir={run}"]
        process = subprocess.Popen(
            [*command, f"--total-steps={total}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while True:
                try:
                    process.wait(2)
                    raise SystemExit(f"{algorithm} ended before it was measured.")
                except subprocess.TimeoutExpired:
                    log = Path(run, "log.csv")
                    if log.exists() and last_step(log) >= 20_000 + steps:
                        break
        finally:
            process.kill()
            process.wait()
        rows = read_log(run)
    inside = (rows["step"] >= 20_000) & (rows["step"] <= 20_000 + steps)
    step = rows["step"][inside]
    seconds = rows["seconds"][inside]
    return float((step[-1] - step[0]) / (seconds[-1] - seconds[0]))


def last_step(log):
    """The step of the last whole row of a log, 0 without one."""
    with open(log, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return int(rows[-1]["step"]) if rows else 0


def measure(args):
    """Measure all algorithms in turn and write rates.csv."""
    rows = []
    for repeat in range(args.repeats):
        for algorithm in RUNS:
            rate = steps_per_second(algorithm, args.steps)
            rows.append(dict(algorithm=algorithm, repeat=repeat, steps_per_second=rate))
            print(f"{algorithm}: {rate:,.0f} steps/s", flush=True)
    write_rows(FOLDER / "rates.csv", rows)


def median_rates():
    """Steps a second of each algorithm, the median of rates.csv."""
    with open(FOLDER / "rates.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        algorithm: float(
            np.median(
                [float(row["steps_per_second"]) for row in rows if row["algorithm"] == algorithm]
            )
        )
        for algorithm in RUNS
    }


def draw(path):
    """Two panels: mean return of the last 100 games over steps and over minutes."""
    rates = median_rates()
    figure, axes = make_figure(1, 2, size=(10, 3.8), sharey=True)
    for algorithm in RUNS:
        runs = runs_of(algorithm)
        steps, values = band(runs, "mean_return")
        label = f"{algorithm.upper()}, {len(runs)} seeds"
        for panel, x in zip(axes, (steps, steps / rates[algorithm] / 60)):
            (line,) = panel.plot(x, values.mean(axis=0), label=label)
            low = values.min(axis=0)
            high = values.max(axis=0)
            panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for panel, xlabel in zip(axes, ("environment steps", "minutes on 2 cores, at rates.csv")):
        for label, height in LEVELS.items():
            panel.axhline(height, linestyle="--", color="grey", linewidth=1)
            panel.annotate(
                label,
                (1, height),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
                color="dimgrey",
            )
        panel.set(xlabel=xlabel)
        panel.grid(alpha=0.3)
    axes[0].set(ylabel="mean return of 100 games, training")
    axes[0].xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x else "0")
    axes[0].legend(frameon=False)
    figure.suptitle("Breakout-ram-v0: mean over a band from the lowest to the highest seed")
    figure.savefig(path, dpi=120)
    print(path)


def main():
    args = tyro.cli(Args, description=__doc__)
    if args.measure:
        measure(args)
    else:
        draw(FOLDER / "algorithms.png")


if __name__ == "__main__":
    run_main(main)
