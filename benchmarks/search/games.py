"""How well trained runs play CartPole and Breakout by themselves and with a tree search.

    python benchmarks/search/games.py runs/cartpole-* --simulations 1 4 16 64
    python benchmarks/search/games.py runs/breakout-* --simulations 1 4 16 --max-steps=500
    python benchmarks/search/games.py --report

Each run plays the same games with every number of simulations. Adds a row to OUT for every run and
number; a row that is there already is not measured again. `--report` prints what the rows say: mean
returns, and the gain over the network alone with its interval over runs and games.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
import tyro

from tfdqt.backend import set_threads
from tfdqt.runs.log import add_row, read_rows

OUT = Path(__file__).parent / "games" / "games.csv"
# What must agree for a row to be the same measurement.
KEYS = ("run", "step", "simulations", "exploration", "leaves", "episodes", "max_steps", "game_seed")


@dataclasses.dataclass(frozen=True)
class Args:
    """Play games with the given runs."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of runs."""
    out: Path = OUT
    """CSV of what came of it."""
    simulations: tuple[int, ...] = (1, 4, 16)
    """Simulations of a move, its root included; 1: the network alone."""
    episodes: int = 20
    """Games."""
    max_steps: int = 500
    """A longer game counts as it stands then."""
    exploration: float = 1.25
    """c of PUCT."""
    leaves: int = 1
    """States of one game that are valued at a time."""
    seed: int = 1_000
    """Seeds the games."""
    report: bool = False
    """Whether to print what OUT says instead."""


def play(args, run_dir, run, simulations):
    """One row of the CSV."""
    from tfdqt.games.envs import env_fn_of
    from tfdqt.games.search import play_searched

    began = time.process_time()
    games = play_searched(
        env_fn_of(run.settings),
        run,
        episodes=args.episodes,
        simulations=simulations,
        exploration=args.exploration,
        leaves=args.leaves,
        seed=args.seed,
        max_steps=args.max_steps,
    )
    moves = games.lengths.sum()
    return dict(
        run=run_dir.name,
        env=run.settings["name"],
        algorithm=run.settings["algorithm"],
        layers=run.settings["network"].layers,
        width=run.settings["network"].width,
        seed=run.settings["seed"],
        step=run.step,
        simulations=simulations,
        exploration=f"{args.exploration:g}",
        leaves=args.leaves,
        episodes=args.episodes,
        max_steps=args.max_steps,
        game_seed=args.seed,
        mean_return=games.returns.mean(),
        mean_length=games.lengths.mean(),
        cut=games.cut,
        evaluations_a_move=games.evaluations.sum() / moves,
        ms_a_move=1000 * games.seconds.sum() / moves,
        cpu_seconds=time.process_time() - began,
        returns=" ".join(f"{each:g}" for each in games.returns),
    )


def measure(args):
    """Add to OUT what is missing there."""
    from tfdqt.games.trained import load_run

    set_threads(1, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for run_dir in map(Path, args.runs):
        run = load_run(run_dir)
        for simulations in args.simulations:
            settings = (simulations, f"{args.exploration:g}", args.leaves)
            key = (run_dir.name, run.step, *settings, args.episodes, args.max_steps, args.seed)
            there = {tuple(row[name] for name in KEYS) for row in read_rows(args.out)}
            if tuple(map(str, key)) in there:
                continue
            row = play(args, run_dir, run, simulations)
            add_row(args.out, row)
            print(
                f"{row['run']} N {simulations}: mean return {row['mean_return']:.1f}, "
                f"{row['evaluations_a_move']:.1f} evaluations and {row['ms_a_move']:.2f} ms a move",
                flush=True,
            )


# -------------------------------------------------------------------------------------------------
# What the rows say


def interval_over_runs(values, draws=10_000):
    """The 95% interval of the mean of `values` [runs, games], drawn anew over both."""
    rng = np.random.default_rng(0)
    runs, games = values.shape
    run = rng.integers(runs, size=(draws, runs, 1))
    game = rng.integers(games, size=(draws, runs, games))
    return np.quantile(values[run, game].mean((1, 2)), (0.025, 0.975))


def report(args):
    """A line of a Markdown table for the runs of an environment, size, length and c."""
    groups = {}
    for row in read_rows(args.out):
        kind = (row["env"], row["algorithm"], row["layers"], row["width"], row["step"])
        group = groups.setdefault((*kind, row["exploration"], row["max_steps"]), {})
        returns = np.array(row["returns"].split(), float)
        group.setdefault(int(row["simulations"]), {})[row["run"]] = returns
    numbers = sorted({number for group in groups.values() for number in group})
    print("| " + " | ".join(["", "runs", *(f"N = {number}" for number in numbers)]) + " |")
    print("|---" * (2 + len(numbers)) + "|")
    for kind, group in groups.items():
        cells = [_cell(group, number) for number in numbers]
        env, algorithm, layers, width, step, exploration, max_steps = kind
        name = f"{env} {algorithm} {layers} x {width}, {step} steps"
        name += f", c {exploration}, {max_steps} moves at most"
        print("| " + " | ".join([name, str(max(map(len, group.values()))), *cells]) + " |")


def _cell(group, number):
    """The mean return at a number of simulations, and its gain over 1 where runs have both."""
    if number not in group:
        return ""
    mean = np.mean([returns.mean() for returns in group[number].values()])
    both = [run for run in group[number] if run in group.get(1, {})]
    if number == 1 or not both:
        games = min(map(len, group[number].values()))
        returns = np.array([returns[:games] for returns in group[number].values()])
        low, high = interval_over_runs(returns)
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    games = min(len(group[n][run]) for n in (1, number) for run in both)  # the first are the same
    gains = np.array([group[number][run][:games] - group[1][run][:games] for run in both])
    low, high = interval_over_runs(gains)
    return f"{mean:.1f}, {gains.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def main(args):
    if args.report:
        report(args)
    else:
        measure(args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
