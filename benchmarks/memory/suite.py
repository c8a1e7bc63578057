r"""POPGym's environments by one set of settings, three networks beside.

    pip install --no-deps popgym mazelib cython
    python benchmarks/memory/suite.py --out=runs/suite
    python benchmarks/memory/suite.py --context=50 \
        --domains CarFlag-v0 MemoryCards-v0 HeavenHell-v0 GridMemory-v0

The runs are those of run_dqn.py, in folders under --out. A run that is done is not trained again,
so the command can be stopped and given again, and several can share --out: each takes the
environments that it is told. Adds a row to CSV for every run. `--report` prints the table.

MMER, as the paper has it (Morad et al., 2023): the greatest mean return while training, here of the
last 100 games, once 50 are done. A return lies between -1 and 1 in all of these environments.
Torques of the pendulums, which are continuous, are chosen of five.

`--domains` takes environments of domains.py instead, and plays 200 games afterwards; `success` is
the share of them that end well.
"""

import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from domains import SUCCESS

from tfdqt.runs.checkpoint import start_or_resume
from tfdqt.runs.cli import run_main
from tfdqt.runs.evaluation import read_returns
from tfdqt.runs.log import add_row, read_log, read_rows
from tfdqt.runs.processes import run_script
from tfdqt.settings import words_of
from tfdqt.stats import confidence

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GAMES = (
    "RepeatPrevious",
    "RepeatFirst",
    "CountRecall",
    "Autoencode",
    "HigherLower",
    "Concentration",
    "Battleship",
    "MineSweeper",
    "MultiarmedBandit",
    "PositionOnlyCartPole",
    "NoisyPositionOnlyCartPole",
    "VelocityOnlyCartpole",
    "PositionOnlyPendulum",
    "NoisyPositionOnlyPendulum",
    "LabyrinthEscape",
    "LabyrinthExplore",
)
TORQUES = "gymnasium.wrappers:DiscretizeAction(bins=5)"
LEVELS = ("Easy", "Medium", "Hard")
# MMER of a GRU and of the best of 13 models after 15,000,000 steps of PPO, where it is at hand
# (Morad et al., 2023, table 3).
PUBLISHED = HERE / "published.csv"
GAMES_OF_MEAN = 50  # that must be done; a mean_return of a log is of the last 100
EPISODES = 200  # played afterwards
# Chosen on copies of three games in sizes that are not in the suite, see README.md.
SETTINGS = dict(
    num_envs=64,
    n_step=3,
    n_step_if_steady=True,
    gamma=0.95,
    value_scale="linear",
    reward_units=True,
    standardize=False,
    huber_delta=100.0,
    batch_size=16,
    learning_rate=1e-3,
    final_learning_rate=1e-4,
    target_tau=0.01,
    advantage_learning=0.0,
    updates_per_step=0.03125,
    epsilon_fraction=0.3,
    epsilon_end=0.01,
    prev_action=True,
    workers=0,
    threads=1,
)
# What domains take in their place, as DTQN does: they pay at the end of a game, and what is learned
# of them is lost again where hardly an action is random, see tried.md.
DOMAIN_SETTINGS = dict(gamma=0.99, epsilon_end=0.1)
NETWORKS = {
    "gpt": dict(places="lag-start"),
    "gru": dict(network="gru", width=90),  # as many weights as the gpt
    "dense": dict(network="dense"),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train networks on POPGym's environments."""

    out: Path = Path("runs/suite")
    """Folder of the runs."""
    csv: Path = HERE / "suite.csv"
    """CSV of what came of them."""
    games: tuple[Literal[GAMES], ...] = GAMES
    """Games."""
    levels: tuple[Literal[LEVELS], ...] = LEVELS
    """Levels of each."""
    domains: tuple[Literal[tuple(SUCCESS)], ...] = ()
    """Environments of domains.py, in the place of POPGym's."""
    context: int = 72
    """Steps of history."""
    networks: tuple[Literal[tuple(NETWORKS)], ...] = ("gpt",)
    """Networks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each."""
    total_steps: int = 500_000
    """Environment steps of each run."""
    also: tuple[str, ...] = ()
    """Settings of every run that are not those above, without dashes, such as hold=4."""
    report: bool = False
    """Whether to print what the CSV says instead."""


def settings_of(env):
    """What every network is given in an environment."""
    if env in SUCCESS:
        return SETTINGS | DOMAIN_SETTINGS
    if "Pendulum" in env:
        return SETTINGS | dict(wrappers=TORQUES)
    return SETTINGS


def command_of(args, env, network, seed, folder):
    """The words that train a run, or go on with it."""
    settings = dict(
        name=f"{'domains' if env in SUCCESS else 'popgym'}:{env}",
        context=args.context,
        seed=seed,
        total_steps=args.total_steps,
        replay_size=args.total_steps,
    )
    return training(folder, settings_of(env) | NETWORKS[network] | settings, args.also)


def training(folder, settings, also=()):
    """The words that train a run in a folder by settings of run_dqn.py, or go on with it."""
    flags = [_flag(key.replace("_", "-"), value) for key, value in settings.items()]
    flags += words_of(also)
    script = str(ROOT / "scripts" / "run_dqn.py")
    return [sys.executable, script, *start_or_resume(folder, flags)]


def _flag(name, value):
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def find_environments():
    """Let runs find the modules of environments that lie here."""
    paths = (str(HERE), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def greatest_mean(log):
    """The MMER of a log as `read_log` gives it, or NaN if there were too few games."""
    means = log["mean_return"][log["games"] >= GAMES_OF_MEAN]
    return float(means.max()) if len(means) else float("nan")


def succeeded(env, folder):
    """The share of EPISODES greedy games of a run that end well, by SUCCESS."""
    script = str(ROOT / "scripts" / "evaluate.py")
    run_script([sys.executable, script, str(folder), f"--episodes={EPISODES}"])
    returns = np.array(read_returns(folder)[-EPISODES:])
    return float(np.mean(returns > SUCCESS[env]))


def train(args, env, network, seed):
    """Train one run and return its row."""
    parts = (env, network, args.context, args.total_steps, seed, *args.also)
    folder = args.out / "-".join(map(str, parts))
    run_script(command_of(args, env, network, seed, folder))
    log = read_log(folder)
    return dict(
        env=env,
        network=network,
        seed=seed,
        steps=args.total_steps,
        gamma=settings_of(env)["gamma"],
        context=args.context,
        also=" ".join(args.also),
        mmer=greatest_mean(log),
        last=float(log["mean_return"][-1]),
        success=succeeded(env, folder) if env in SUCCESS else "",
        games=int(log["games"][-1]),
        seconds=float(log["seconds"][-1]),
    )


def environments(args):
    """Names of what is trained on, without their module."""
    if args.domains:
        return args.domains
    return [f"popgym-{game}{level}-v0" for level in args.levels for game in args.games]


def measure(args):
    """Train what has no row yet."""
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    find_environments()
    also = " ".join(args.also)
    names = ("env", "network", "seed", "steps", "context", "also")
    for seed, env, network in itertools.product(args.seeds, environments(args), args.networks):
        key = (env, network, *map(str, (seed, args.total_steps, args.context)), also)
        if key in {tuple(row[name] for name in names) for row in read_rows(args.csv)}:
            continue
        row = train(args, env, network, seed)
        add_row(args.csv, row)
        print("{env} {network} {seed}: {mmer:.3f}".format(**row), flush=True)


def published():
    """environment -> (the GRU's published MMER, the best model's or None)."""
    return {
        row["env"]: (float(row["gru"]), float(row["best"]) if row["best"] else None)
        for row in read_rows(PUBLISHED)
    }


def report(args):
    """A line of a Markdown table for every environment, and of POPGym's the means over them.

    A mean over environments takes of each the runs of the most steps.
    """
    wanted = [str(args.context), " ".join(args.also)]
    rows = [row for row in read_rows(args.csv) if [row["context"], row["also"]] == wanted]
    key = "success" if args.domains else "mmer"
    found = {}
    for row in rows:
        if row["env"] in environments(args):
            of = found.setdefault(row["env"], {}).setdefault(row["network"], {})
            of.setdefault(int(row["steps"]), []).append(float(row[key]))
    named = [env for env in environments(args) if env in found]
    columns = [
        (network, steps)
        for network in NETWORKS
        for steps in sorted({steps for of in found.values() for steps in of.get(network, ())})
    ]
    elsewhere = () if args.domains else ("published: GRU", "best")
    known = published() if elsewhere else {}
    lines = {}
    for env in named:
        cells = [found[env].get(network, {}).get(steps, ()) for network, steps in columns]
        others = known.get(env, (None,) * len(elsewhere))
        cells += [() if figure is None else (figure,) for figure in others]
        lines[env.removeprefix("popgym-").removesuffix("-v0")] = cells
    titles = [f"{network}, {steps:,}" for network, steps in columns]
    print_table("environment", [*titles, *elsewhere], lines)
    for network in NETWORKS if elsewhere else ():
        runs = {env: found[env][network] for env in named if network in found[env]}
        means = {env: np.mean(of[max(of)]) for env, of in runs.items()}
        if means:
            _print_mean(network, means, {env: known[env][0] for env in means if env in known})


def _print_mean(name, means, gru):
    """The mean over environments, and that over those in `gru`, a GRU's published MMER, beside it.

    means and gru: environment -> MMER.
    """
    low, high = confidence(list(means.values()))
    mean = np.mean(list(means.values()))
    print(f"\n{name}: {mean:.3f} [{low:.3f}, {high:.3f}] over {len(means)}")
    if gru:
        ours = np.mean([means[env] for env in gru])
        theirs = np.mean(list(gru.values()))
        print(f"over {len(gru)} of them: {ours:.3f}, published GRU {theirs:.3f}")


def print_table(title, columns, lines):
    """Print a Markdown table; lines: first cell -> the numbers of each column, of one seed each."""
    print("| " + " | ".join([title, *columns]) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for first, cells in lines.items():
        told = [", ".join(f"{value:.3f}" for value in values) for values in cells]
        print("| " + " | ".join([first, *told]) + " |")


def main():
    args = tyro.cli(Args, description=__doc__)
    if args.report:
        report(args)
    else:
        measure(args)


if __name__ == "__main__":
    run_main(main)
