"""Transformer against dense networks of equal size: python scripts/compare.py --out=runs/compare

Every environment is learned by a GPT, by a dense network that sees the same history, and by a dense network that sees only the
present step, each at several sizes in weights (those on features that --min-change hides are not counted). The dense network with
history is there twice: learning Q at every step of a window, as the GPT does, and at its last only, so that the network's form and the
number of targets in an update are told apart. The learning rate of each is chosen among --rates by the return after training of
--tuning-seeds runs whose seeds are not compared. The runs are those of run_dqn.py, in folders under --out; what is there already is
not run again, so that the command can be stopped and given again. Then the report: for each, the interquartile mean over seeds of the
mean return of --episodes games after training, the same of the mean return while it trained (sample efficiency), with 95% bootstrap
confidence intervals, and seconds of wall clock; then how likely a run of the GPT is to play better than one of each other kind of its
size.
"""

import collections
import csv
import dataclasses
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from tfdqt.config import UsageError, default_config, load_config
from tfdqt.runs import check_at_least_one, checkpoints, read_log, run_main, write_rows

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"gpt": "GPT", "gpt-last": "GPT, at last step", "gpt-present": "GPT, present step",
         "dense-every": "dense, same history, at every step", "dense-history": "dense, same history, at last step",
         "dense": "dense, present step"}
TUNING_SEED = 1_000


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare a GPT with dense networks of equal size, with and without its history."""

    out: str = "runs/compare"
    """Folder of the runs, the CSVs and the picture."""
    envs: tuple[str, ...] = ("CartPole-v1", "CartPolePositions-v1")
    """Environments."""
    sizes: tuple[int, ...] = (5_000, 25_000, 100_000)
    """Sizes in weights; each network is made as near to them as it can be."""
    kinds: tuple[Literal[tuple(KINDS)], ...] = ("gpt", "dense-every", "dense-history", "dense")
    """Networks: gpt and dense-every learn Q at every step of a window, gpt-last and dense-history at its last; gpt-present and dense have
    no history, and gpt-present no use for queries and keys, which are counted."""
    seeds: int = 5
    """Runs of each."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates to choose from; a single one is taken as it is."""
    tuning_seeds: int = 2
    """Runs of each learning rate to choose it by."""
    total_steps: int | None = None
    """Environment steps of each run, by default as many as the environment has by default."""
    also: tuple[str, ...] = ()
    """More settings of every run, such as batch-size=128: run_dqn.py's, without their dashes."""
    episodes: int = 100
    """Games after training."""
    epsilon: float = 0.0
    """Probability of a random action in them."""
    jobs: int = 1
    """Runs at a time."""
    report_only: bool = False
    """Whether to report on the runs that are there, and run nothing."""
    beside: tuple[str, ...] = ()
    """runs.csv of other comparisons, which are reported on beside this one's."""


class Cell(dict):
    """One thing compared: env, kind, size, and the flags that make it."""

    @property
    def label(self):
        return f"{self['env']}-{self['kind']}-{self['size']}"


def features_that_change(env, info, least, steps=5_000):
    """How many features of an observation change by `least` of their range a step or more, in random play: those a network is shown."""
    from tfdqt.networks import change_rates

    env.action_space.seed(0)
    obs, first = np.zeros((steps, *info.obs_shape), info.obs_dtype), np.zeros(steps, bool)
    over = True
    for i in range(steps):
        first[i] = over
        if over:
            obs[i], over = env.reset(seed=None if i else 0)[0], False
        else:
            obs[i], _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
    return int((change_rates(obs, first) >= least).sum())


def count_weights(info, network):
    """Weights of a Q-network that sees all of what `info` describes."""
    from tfdqt import gpt

    return gpt.build_q(info, network).count_params()


def match(info, base, kind, size):
    """The NetworkConfig of a kind whose number of weights is nearest to `size`: -> (config, weights).

    A GPT has two layers and a width that its heads divide; a dense network has two hidden layers of one size.
    """
    context = 1 if kind in ("gpt-present", "dense") else base.context
    base = dataclasses.replace(base, every_step={"gpt-last": False, "dense-every": True}.get(kind), context=context)

    def network(step):
        if kind.startswith("gpt"):
            return dataclasses.replace(base, network="gpt", layers=2, width=base.heads * step)
        return dataclasses.replace(base, network="dense", hidden=(step, step))

    low, high = 1, 2
    while count_weights(info, network(high)) < size:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_weights(info, network(middle)) < size else (low, middle)
    found = [(network(step), count_weights(info, network(step))) for step in (low, high)]
    return min(found, key=lambda pair: abs(pair[1] - size))


def make_cells(args):
    """Everything that is compared."""
    from tfdqt.envs import env_info, make_env

    cells = []
    for name in args.envs:
        env = make_env(name)
        info = env_info(env, name)
        base, cfg = default_config(name)
        base = dataclasses.replace(base, quantiles=0, dueling=False, hidden_scale=0.0)
        if base.min_change:  # weights on features that read 0 do nothing and are not counted
            info = info._replace(obs_shape=(features_that_change(env, info, base.min_change),))
            print(f"{name}: {info.obs_shape[0]} features change enough to be shown; only their weights are counted.")
        env.close()
        for size, kind in itertools.product(args.sizes, args.kinds):
            network, weights = match(info, base, kind, size)
            flags = [f"--{key.replace('_', '-')}={getattr(network, key)}"
                     for key in ("network", "context", "every_step", "layers", "width", "quantiles", "hidden_scale")]
            flags += ["--no-dueling", "--hidden", *map(str, network.hidden)]
            cells.append(Cell(env=name, kind=kind, size=size, weights=weights, flags=flags,
                              steps=args.total_steps or cfg.total_steps))
    return cells


def run(args, cell, rate, seed):
    """Train one run unless it is done, and evaluate it: -> its folder."""
    folder = Path(args.out, f"{cell.label}-rate{rate:g}-seed{seed}".replace("/", "-"))
    done = folder / "evaluation.csv"
    if done.exists() or args.report_only:
        return folder
    if checkpoints(folder):
        command = ["run_dqn.py", f"--resume={folder}"]
    else:
        (folder / "config.json").unlink(missing_ok=True)  # it never reached its first checkpoint
        command = ["run_dqn.py", f"--name={cell['env']}", f"--run-dir={folder}", f"--seed={seed}", f"--total-steps={cell['steps']}",
                   f"--learning-rate={rate}", f"--final-learning-rate={rate / 10}", *cell["flags"],
                   *(f"--{setting}" for setting in args.also)]
    print(f"{cell.label}, rate {rate:g}, seed {seed}", flush=True)
    for words in (command, ["evaluate.py", str(folder), f"--episodes={args.episodes}", f"--epsilon={args.epsilon}"]):
        ended = subprocess.run([sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]], capture_output=True, text=True)
        if ended.returncode:
            raise UsageError(f"{' '.join(words)} failed: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
    return folder


def score(folder):
    """What came of a run: -> dict, or None if it is not done. return: of games after training; curve: mean return while it trained."""
    path = Path(folder, "evaluation.csv")
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        returns = [float(row["return"]) for row in csv.DictReader(file)]
    log = read_log(folder)
    curve = log["mean_return"][np.isfinite(log["mean_return"])]
    return dict(mean_return=float(np.mean(returns)), curve=float(curve.mean()) if len(curve) else float("nan"),
                seconds=float(log["seconds"][-1]))


def chosen_rate(args, cell):
    """The learning rate whose runs of the tuning seeds score best after training, or None if no rate has all of them yet."""
    if len(args.rates) == 1:
        return args.rates[0]
    found = {}
    for rate in args.rates:
        scores = [score(run(args, cell, rate, TUNING_SEED + index)) for index in range(args.tuning_seeds)]
        if all(scores):
            found[rate] = np.mean([each["mean_return"] for each in scores])
    return max(found, key=found.get) if found else None


def summarize(rows):
    """One row for each thing compared, from the rows of its runs."""
    from tfdqt.stats import confidence, interquartile_mean

    table = []
    for _, group in itertools.groupby(rows, key=lambda row: (row["env"], row["size"], row["kind"])):
        group = list(group)
        line = {key: group[0][key] for key in ("env", "size", "kind", "weights", "rate")} | dict(seeds=len(group))
        for column in ("mean_return", "curve"):
            values = np.array([row[column] for row in group])
            low, high = confidence(values, statistic=interquartile_mean)
            line.update({column: float(interquartile_mean(values)), f"{column}_low": low, f"{column}_high": high})
        table.append(line | dict(seconds=float(np.median([row["seconds"] for row in group]))))
    return table


def improvements(rows, ours="gpt"):
    """How likely a run of one kind is to beat one of each other kind of its size: a row for each environment and other kind."""
    from tfdqt.stats import improvement

    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        found[row["env"], row["kind"]][row["size"]].append(row["mean_return"])
    table = []
    for (env, kind), theirs in found.items():
        pairs = [(found[env, ours][size], theirs[size]) for size in theirs if size in found.get((env, ours), ())]
        if kind != ours and pairs:
            runs = [sum(map(len, side)) for side in zip(*pairs)]
            table.append(dict(zip(("env", "ours", "theirs", "sizes", "our_runs", "their_runs", "probability", "low", "high"),
                                  (env, ours, kind, len(pairs), *runs, *improvement(pairs)))))
    return table


def rows_of(path):
    """The rows of a runs.csv, as `report` takes them. Raises UsageError if it is none."""
    kinds = dict(size=int, weights=int, seed=int, rate=float, mean_return=float, curve=float, seconds=float)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row | {key: kind(row[key]) for key, kind in kinds.items()} for row in csv.DictReader(file) if row["kind"] in KINDS]
    except OSError as error:
        raise UsageError(f"{path} can't be read ({error.strerror}); give --beside the runs.csv of a comparison.") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no runs.csv of a comparison ({error}); give --beside one.") from None
    return rows


def report(args, rows):
    """Write runs.csv, summary.csv, improvement.csv (if there are GPTs) and comparison.png, and print the tables."""
    from tfdqt.plots import plot_comparison

    order, envs = list(KINDS), list(dict.fromkeys(row["env"] for row in rows))
    rows = sorted(rows, key=lambda row: (envs.index(row["env"]), row["size"], order.index(row["kind"]), row["seed"]))
    table, better = summarize(rows), improvements(rows)
    for name, lines in (("runs.csv", rows), ("summary.csv", table), ("improvement.csv", better)):
        if lines:
            write_rows(Path(args.out, name), lines)
        else:
            Path(args.out, name).unlink(missing_ok=True)
    for line in table:
        print(f"{line['env']:24} {line['size']:>7} {KINDS[line['kind']]:35} {line['weights']:>7} weights, rate {line['rate']:g}, "
              f"{line['seeds']} seeds: return {line['mean_return']:.1f} [{line['mean_return_low']:.1f}, {line['mean_return_high']:.1f}], "
              f"while training {line['curve']:.1f} [{line['curve_low']:.1f}, {line['curve_high']:.1f}], {line['seconds']:.0f} s")
    for line in better:
        print(f"{line['env']:24} a run of the GPT beats one of equal size of ({KINDS[line['theirs']]}) with probability "
              f"{line['probability']:.2f} [{line['low']:.2f}, {line['high']:.2f}]; sizes {line['sizes']}, runs {line['our_runs']} "
              f"against {line['their_runs']}")
    there = {row["kind"] for row in rows}
    plot_comparison(table, {kind: name for kind, name in KINDS.items() if kind in there}, Path(args.out, "comparison.png"))
    print(Path(args.out, "comparison.png"))


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "seeds", "tuning_seeds", "episodes", "jobs", "total_steps")
    if not (args.envs and args.kinds and args.sizes and args.rates) or min(args.sizes) < 100 or min(args.rates) <= 0:
        raise UsageError("--envs, --kinds, --sizes (of at least 100) and --rates (above 0) must not be empty.")
    if not 0 <= args.epsilon <= 1:
        raise UsageError(f"--epsilon lies between 0 and 1, not at {args.epsilon:g}.")
    command = Path(args.out, "command.json")
    if command.exists() and not args.report_only:
        before = load_config(command)
        for flag, value in (("total-steps", args.total_steps), ("also", list(args.also))):
            if (before.get(flag.replace("-", "_")) or None) != (value or None):
                raise UsageError(f"{args.out} holds runs with another --{flag}; give the same, or another --out.")
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        command.write_text(json.dumps(dataclasses.asdict(args), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{args.out} can't be written ({error.strerror}); choose another --out.") from None
    cells = make_cells(args)
    for cell in cells:
        print(f"{cell.label}: {cell['weights']:,} weights")
    with ThreadPoolExecutor(args.jobs) as pool:
        rates = list(pool.map(lambda cell: chosen_rate(args, cell), cells))
        wanted = [(cell, rate, seed) for cell, rate in zip(cells, rates) for seed in range(args.seeds) if rate is not None]
        folders = list(pool.map(lambda each: run(args, *each), wanted))
    rows = [dict(env=cell["env"], size=cell["size"], kind=cell["kind"], weights=cell["weights"], rate=rate, seed=seed, **found)
            for (cell, rate, seed), folder in zip(wanted, folders) if (found := score(folder))]
    rows = [row for path in args.beside for row in rows_of(path)] + rows
    if not rows:
        raise UsageError(f"There are no finished runs in {args.out} yet; leave out --report-only.")
    report(args, rows)
    return 0


if __name__ == "__main__":
    run_main(main)
