"""How well environments are learned by the defaults alone: nothing is chosen by name.

    python benchmarks/defaults/defaults.py --out=runs/defaults --total-steps=200000
    python benchmarks/defaults/defaults.py --total-steps=200000 --report
    python benchmarks/defaults/defaults.py --suite=small --total-steps=100000 --epsilon=0
    python benchmarks/defaults/defaults.py --total-steps=200000 --also min-change=0 --report

The runs are those of run_dqn.py and its like, in folders under --out. A run that is done is not
trained again, so the command can be stopped and given again, and several can share --out: each
takes the environments that it is told. Adds a row to CSV for every run. `--report` prints the table
of the CSV for so many steps, games of Atari also as a part of a human's score and beside what
Dopamine's DQN had learned from pixels; `--plot` draws the learning curves of all algorithms, which
stand in curves.csv beside it. `--also` changes a default in all runs, which have rows of their own.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import start_or_resume
from tfdqt.runs.cli import run_main
from tfdqt.runs.evaluation import read_returns
from tfdqt.runs.folder import as_folder
from tfdqt.runs.log import add_row, add_rows, read_csv, read_rows
from tfdqt.runs.plots import band, make_figure
from tfdqt.runs.processes import run_script
from tfdqt.settings import words_of
from tfdqt.stats import confidence, decimals, interquartile_mean

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "scripts"
# Mean scores of random play and of a human (Mnih et al., 2015).
ATARI = {
    "Pong": (-20.7, 9.3),
    "Freeway": (0, 29.6),
    "SpaceInvaders": (148, 1_652),
    "MsPacman": (307, 15_693),
    "Seaquest": (68, 20_182),
    "Qbert": (164, 13_455),
    "BeamRider": (364, 5_775),
    "Enduro": (0, 310),
    "Asteroids": (719, 13_157),
    "Breakout": (1.7, 31.8),
}
# Mean returns of Dopamine's two DQN agents (Castro et al., 2018), in training from pixels with
# sticky actions at epsilon 0.01, five seeds each: of the games between the steps `from` and `to`.
# The one is as published in 2015, the other, their default since, has Adam and a squared error.
DOPAMINE = HERE / "dopamine.csv"
AGENTS = {"dqn": "DQN of 2015", "dqn-adam": "DQN with Adam"}
POINTS = 100  # of a learning curve
GAMES = {f"{game}-ram-v0": scores for game, scores in ATARI.items()}
# Small environments, each with the wrapper by which it can be read, or ends.
SMALL = {
    "Acrobot-v1": None,
    "MountainCar-v0": None,
    "LunarLander-v3": None,
    "Blackjack-v1": None,
    "FrozenLake-v1": None,
    "CliffWalking-v1": "gymnasium.wrappers:TimeLimit(max_episode_steps=200)",
    "Taxi-v4": None,
    "minigrid:MiniGrid-Empty-5x5-v0": "minigrid.wrappers:ImgObsWrapper",
    "minigrid:MiniGrid-DoorKey-5x5-v0": "minigrid.wrappers:ImgObsWrapper",
    "minigrid:MiniGrid-MemoryS7-v0": "minigrid.wrappers:ImgObsWrapper",
}
# MinAtar's games (Young and Tian, 2019), with all six actions as they were published.
MINATAR = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
SUITES = {
    "atari": tuple(GAMES),
    "small": tuple(SMALL),
    "minatar": tuple(f"benchmarks.defaults.minatar_envs:MinAtar/{game}-v0" for game in MINATAR),
}

# What each is called in a picture.
ALGORITHMS = {
    "dqn": "DQN",
    "ppo": "PPO",
    "pqn": "PQN",
    "sb3": "Stable-Baselines3's DQN",
    "dopamine": "Dopamine's DQN, from pixels",
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train on environments by the defaults, and play."""

    out: Path = Path("runs/defaults")
    """Folder of the runs."""
    csv: Path = HERE / "defaults.csv"
    """CSV of what came of them."""
    suite: Literal["atari", "small", "minatar"] = "atari"
    """Environments: ten games of Atari from the console's memory, ten small ones, or MinAtar's five
    (pip install --no-deps minatar)."""
    names: tuple[str, ...] = ()
    """Environments in the place of the suite's."""
    algorithm: Literal["dqn", "ppo", "pqn", "sb3"] = "dqn"
    """Algorithm; sb3: Stable-Baselines3's DQN, on games of Atari (see sb3_ram.py)."""
    bench_python: str | None = None
    """With --algorithm=sb3: the python of an environment of ../speed/requirements-bench.txt."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each."""
    total_steps: int = 1_000_000
    """Environment steps of each run."""
    episodes: int = 30
    """Games that are played after training."""
    epsilon: float = 0.05
    """Probability of a random action in these."""
    also: tuple[str, ...] = ()
    """Settings of every run that are not the defaults, without dashes, such as min-change=0, or
    "hidden 64 64" of several values."""
    report: bool = False
    """Whether to print what the CSV says instead."""
    plot: Path | None = None
    """PNG to draw learning curves to instead."""


def make_run(args, name, seed, folder):
    """Train one run, or go on with it, and play: writes its log.csv and evaluation.csv."""
    if args.algorithm == "sb3":
        rest = (name, folder, seed, args.total_steps, args.episodes, args.epsilon)
        run_script([args.bench_python, str(HERE / "sb3_ram.py"), *map(str, rest)])
        return
    flags = [f"--name={name}", f"--seed={seed}", f"--total-steps={args.total_steps}"]
    flags += words_of(args.also)
    flags += [f"--wrappers={SMALL[name]}"] if SMALL.get(name) else []
    flags = start_or_resume(folder, [*flags, "--workers=0", "--threads=1"])
    run_script([sys.executable, str(SCRIPTS / f"run_{args.algorithm}.py"), *flags])
    play = [str(folder), f"--episodes={args.episodes}", f"--epsilon={args.epsilon}"]
    run_script([sys.executable, str(SCRIPTS / "evaluate.py"), *play])


def train_and_play(args, name, seed):
    """Make one run, if it was not made before: -> (its row, its folder)."""
    parts = (as_folder(name), args.algorithm, args.total_steps, seed, *args.also)
    folder = args.out / "-".join(map(str, parts))
    if not (folder / "evaluation.csv").exists():
        make_run(args, name, seed, folder)
    returns = read_returns(folder)
    low, high = confidence(returns)
    log = read_csv(folder / "log.csv")
    row = dict(
        name=name,
        algorithm=args.algorithm,
        steps=args.total_steps,
        also=" ".join(args.also),
        seed=seed,
        games=len(returns),
        mean=float(np.mean(returns)),
        low=low,
        high=high,
        best=max(returns),
        training_mean=float(log["mean_return"][-1]),
        seconds=float(log["seconds"][-1]),
    )
    return row, folder


def add_curve(args, row, folder):
    """Add the mean returns of a run's log at POINTS steps to curves.csv."""
    steps, (means,) = band([read_csv(folder / "log.csv")], "mean_return", POINTS)
    about = {key: row[key] for key in ("name", "algorithm", "steps", "also", "seed")}
    points = [dict(about, step=int(step), mean=mean) for step, mean in zip(steps, means)]
    add_rows(args.csv.with_name("curves.csv"), points)


def check_sb3(args):
    """Raise UsageError for what Stable-Baselines3's DQN can't be asked."""
    if args.bench_python is None:
        raise UsageError(
            "Stable-Baselines3 runs in an environment of its own: python -m venv .bench && "
            ".bench/bin/pip install -r benchmarks/speed/requirements-bench.txt, then give "
            "--bench-python=.bench/bin/python."
        )
    odd = [name for name in args.names if name not in GAMES]
    if odd:
        raise UsageError(f"--algorithm=sb3 is for --suite=atari, not {odd[0]}.")
    if args.also:
        raise UsageError("--also changes settings of tfdqt; leave it out with --algorithm=sb3.")


def rows_of(args):
    """The rows of the CSV that are of this algorithm, so many steps and these settings."""
    rows = rows_of_all(args, args.csv)
    return [row for row in rows if row["algorithm"] == args.algorithm]


def rows_of_all(args, path):
    """The rows of a CSV that are of so many steps and these settings, by any algorithm."""
    wanted = (str(args.total_steps), " ".join(args.also))
    return [row for row in read_rows(path) if (row["steps"], row["also"]) == wanted]


def measure(args):
    """Train and play what has no row yet."""
    if args.algorithm == "sb3":
        check_sb3(args)
    elif args.bench_python is not None:
        raise UsageError("--bench-python is for --algorithm=sb3; leave it out.")
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.names:
            if (name, str(seed)) in {(row["name"], row["seed"]) for row in rows_of(args)}:
                continue
            row, folder = train_and_play(args, name, seed)
            add_row(args.csv, row)
            add_curve(args, row, folder)
            print("{name}, seed {seed}: {mean:.1f} [{low:.1f}, {high:.1f}]".format(**row))


def of_human(name, mean):
    """A mean score as a part of the way from random play to a human; NaN where none is known."""
    if name not in GAMES:
        return math.nan
    random, human = GAMES[name]
    return (mean - random) / (human - random)


def in_words(row):
    """The mean of a row with its interval."""
    mean, low, high = (float(row[key]) for key in ("mean", "low", "high"))
    digits = decimals([mean])
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def report(args):
    """A line of a Markdown table for every environment, then the median and middle half of all."""
    print(
        "| environment | " + " | ".join(f"seed {seed}" for seed in args.seeds) + " | of a human |"
    )
    print("|---" * (2 + len(args.seeds)) + "|")
    found = rows_of(args)
    parts = []
    for name in args.names:
        rows = {int(row["seed"]): row for row in found if row["name"] == name}
        cells = [in_words(rows[seed]) if seed in rows else "" for seed in args.seeds]
        part = of_human(name, np.mean([float(row["mean"]) for row in rows.values()] or [np.nan]))
        shown = "" if math.isnan(part) else f"{part:.0%}"
        parts += [] if math.isnan(part) else [part]
        print(f"| {name} | " + " | ".join(cells) + f" | {shown} |")
    if len(parts) > 1:
        middle = float(interquartile_mean(parts))
        low, high = confidence(parts, statistic=interquartile_mean)
        print(
            f"\nOf a human, over {len(parts)} games: median {np.median(parts):.0%}, mean of the "
            f"middle half {middle:.0%} [{low:.0%}, {high:.0%}]"
        )
    report_pixels(args)


def report_pixels(args):
    """A line of a Markdown table for every game: what Dopamine's agents had by then, and later."""
    names = args.names
    found = {}
    for row in read_rows(DOPAMINE):
        agent, name, to = row["agent"], row["name"], int(row["to"])
        if name in names and to >= args.total_steps:
            means = found.setdefault((agent, to), {})
            means.setdefault(name, []).append(float(row["mean"]))
    if not found:
        return
    heads = [f"{AGENTS[agent]}, {to:,} steps" for agent, to in found]
    print("\n| Dopamine, from pixels | " + " | ".join(heads) + " |")
    print("|---" * (1 + len(heads)) + "|")
    for name in names:
        each = [of_seeds(means.get(name, [])) for means in found.values()]
        if any(each):
            print(f"| {name} | " + " | ".join(each) + " |")


def of_seeds(means):
    """The mean over seeds, with the least and the greatest of them; nothing of none."""
    if not means:
        return ""
    digits = decimals([np.mean(means)])
    least, greatest = (f"{x:,.{digits}f}" for x in (min(means), max(means)))
    return f"{np.mean(means):,.{digits}f} ({least} to {greatest})"


def plot(args):
    """Draw the learning curves of all algorithms, a panel an environment, a line a run."""
    curves = {}
    for row in rows_of_all(args, args.csv.with_name("curves.csv")):
        curve = curves.setdefault((row["name"], row["algorithm"], row["seed"]), [])
        curve.append((float(row["step"]) / 1e3, float(row["mean"])))
    for row in read_rows(DOPAMINE) if curves else ():
        if row["agent"] == "dqn-adam" and int(row["to"]) <= args.total_steps:
            curve = curves.setdefault((row["name"], "dopamine", row["seed"]), [])
            curve.append(((int(row["from"]) + int(row["to"])) / 2e3, float(row["mean"])))
    names = [name for name in args.names if any(name == key[0] for key in curves)]
    if not names:
        raise UsageError("There is no curve of such runs yet; leave out --plot to train them.")
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, panels = make_figure(lines, columns, size=(3 * columns, 2.4 * lines), squeeze=False)
    colors = {algorithm: f"C{i}" for i, algorithm in enumerate(ALGORITHMS)}
    drawn = {}
    for axes, name in zip(panels.flat, names):
        for key in sorted(key for key in curves if key[0] == name):
            algorithm = key[1]
            steps, means = zip(*curves[key])
            (drawn[algorithm],) = axes.plot(steps, means, color=colors[algorithm], linewidth=1.2)
        axes.set_title(name.removesuffix("-ram-v0"), fontsize=10)
        axes.set_xlabel("1,000 steps", fontsize=8)
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    shown = [algorithm for algorithm in ALGORITHMS if algorithm in drawn]
    figure.legend(
        [drawn[algorithm] for algorithm in shown],
        [ALGORITHMS[algorithm] for algorithm in shown],
        loc="outside lower right",
        ncols=len(shown),
        frameon=False,
    )
    figure.savefig(args.plot, dpi=110)
    print(args.plot)


def main():
    args = tyro.cli(Args, description=__doc__)
    args = dataclasses.replace(args, names=args.names or SUITES[args.suite])
    if args.plot:
        plot(args)
    elif args.report:
        report(args)
    else:
        measure(args)


if __name__ == "__main__":
    run_main(main)
