"""Transformer against dense and recurrent networks of equal size.

    python benchmarks/size/compare.py --out=runs/compare

Every environment is learned by several kinds of network, each at several sizes in weights (weights
on features that --min-change hides are not counted), by default four: a GPT, two dense networks
that see the same history, and a dense network that sees the present step only. Of the two with
history one learns Q at every step of a window, as the GPT does, and one at its last step only, so
that the network's form and the number of targets in an update are told apart. Between the GPT and
the dense network lie one whose layers are normalised (norm) and one of residual blocks, which are
the GPT's without attention (residual); a GRU carries the same history in a state (gru).

The learning rate of each is chosen among --rates by the return after training of --tuning-seeds
runs, whose seeds are not compared. The runs are those of run_dqn.py, in folders under --out; a run
that is there already is not trained again, so the command can be stopped and given again.

Reported for each network: the interquartile mean over seeds of the mean return of --episodes games
after training, the same of the mean return while it trained (sample efficiency), both with 95%
bootstrap intervals, and seconds of wall clock; then how likely a run of the GPT is to play better
than a run of each other kind of its size.
"""

import collections
import csv
import dataclasses
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from comparison_plot import plot_comparison

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import default_settings
from tfdqt.games.envs import env_info, make_env
from tfdqt.runs.checkpoint import start_or_resume
from tfdqt.runs.cli import run_main
from tfdqt.runs.evaluation import read_returns
from tfdqt.runs.log import read_log, write_rows
from tfdqt.runs.processes import run_script
from tfdqt.settings import check_at_least_one, load_config, words_of
from tfdqt.stats import confidence, improvement, interquartile_mean

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "gpt": "GPT",
    "gpt-last": "GPT, at last step",
    "gpt-present": "GPT, present step",
    "gru": "GRU, same history, at every step",
    "residual": "residual dense, same history, at every step",
    "residual-present": "residual dense, present step",
    "norm": "normalised dense, same history, at every step",
    "dense-every": "dense, same history, at every step",
    "dense-history": "dense, same history, at last step",
    "dense": "dense, present step",
}
# The settings of a kind, but for its size.
SETTINGS = {
    "gpt": dict(network="gpt"),
    "gpt-last": dict(network="gpt", every_step=False),
    "gpt-present": dict(network="gpt", context=1),
    "gru": dict(network="gru"),
    "residual": dict(network="dense", every_step=True, residual=True),
    "residual-present": dict(network="dense", context=1, residual=True),
    "norm": dict(network="dense", every_step=True, layer_norm=True),
    "dense-every": dict(network="dense", every_step=True),
    "dense-history": dict(network="dense"),
    "dense": dict(network="dense", context=1),
}
SWITCHES = ("dueling", "residual", "layer_norm")
TUNING_SEED = 1_000  # the first seed of the runs that choose a learning rate


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare a GPT with other networks of equal size, with and without its history."""

    out: str = "runs/compare"
    """Folder of the runs, the CSVs and the picture."""
    envs: tuple[str, ...] = ("CartPole-v1", "CartPolePositions-v1")
    """Environments."""
    sizes: tuple[int, ...] = (5_000, 25_000, 100_000)
    """Sizes in weights; each network is made as near to them as it can be."""
    kinds: tuple[Literal[tuple(KINDS)], ...] = ("gpt", "dense-every", "dense-history", "dense")
    """Networks: gpt, gru, residual, norm and dense-every learn Q at every step of a window,
    gpt-last and dense-history at its last; gpt-present, residual-present and dense have no history,
    and gpt-present no use for queries and keys, which are counted."""
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
    """Whether to report on the runs that are there, and train nothing."""
    earlier: tuple[str, ...] = ()
    """runs.csv of earlier comparisons, whose rows are reported with this one's."""


class Cell(NamedTuple):
    """One network on one environment, of which several runs are trained."""

    env: str
    kind: str
    size: int  # weights it should have
    weights: int  # weights it has
    flags: tuple  # of run_dqn.py, which make it
    steps: int  # environment steps of a run

    @property
    def label(self):
        """The cell in a word, as folders are named."""
        return f"{self.env}-{self.kind}-{self.size}"


# --------------------------------------------------------------------------------------------------
# What is compared


def features_that_change(env, info, least, steps=5_000):
    """How many features of an observation change by `least` of their range a step, in random play.

    Those are the features that a network with --min-change=least is shown.
    """
    from tfdqt.games.features import are_categories, change_rates  # loads Keras

    env.action_space.seed(0)
    obs = np.zeros((steps, *info.obs_shape), info.obs_dtype)
    first = np.zeros(steps, bool)
    over = True
    for i in range(steps):
        first[i] = over
        if over:
            obs[i], _ = env.reset(seed=None if i else 0)
            over = False
        else:
            obs[i], _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
    return int((change_rates(obs, first, are_categories(info)) >= least).sum())


def count_weights(info, network):
    """Weights of a Q-network that sees all of what `info` describes."""
    from tfdqt.games.networks import build_q  # loads Keras

    return build_q(info, network).count_params()


def match(info, base, kind, size):
    """The NetworkConfig of a kind whose number of weights is nearest to `size`, and that number.

    A GPT has two layers and a width that its heads divide, a GRU two layers; a dense network has
    two hidden layers of one size, or two residual blocks with an inner layer four times as wide, as
    the GPT's are. `base` is the NetworkConfig that gives everything else.
    """
    base = dataclasses.replace(
        base, **dict(every_step=None, residual=False, layer_norm=False) | SETTINGS[kind]
    )

    def network(units):
        if base.network == "gpt":
            return dataclasses.replace(base, layers=2, width=base.heads * units)
        if base.network == "gru":
            return dataclasses.replace(base, layers=2, width=units)
        hidden = (units, 4 * units, 4 * units) if base.residual else (units, units)
        return dataclasses.replace(base, hidden=hidden)

    # Weights grow as a polynomial of degree 2, so that three small networks tell of all others.
    one, two, three = (count_weights(info, network(units)) for units in (1, 2, 3))

    def count(units):
        n = units - 1
        return one + n * (two - one) + n * (n - 1) // 2 * (three - 2 * two + one)

    high = 2
    while count(high) < size:
        high += 1
    candidates = [(network(units), count(units)) for units in (high - 1, high)]
    return min(candidates, key=lambda pair: abs(pair[1] - size))


def flags_of(network):
    """The flags of run_dqn.py that make a network of `match`."""
    fields = ("network", "context", "every_step", "layers", "width", "quantiles", "hidden_scale")
    flags = [f"--{field.replace('_', '-')}={getattr(network, field)}" for field in fields]
    flags += [
        f"--{'' if getattr(network, field) else 'no-'}{field.replace('_', '-')}"
        for field in SWITCHES
    ]
    return (*flags, "--hidden", *map(str, network.hidden))


def make_cells(args):
    """Everything that is compared: a list of Cells."""
    cells = []
    for name in args.envs:
        env = make_env(name)
        info = env_info(env, name)
        base, cfg = default_settings(name, "dqn")
        base = dataclasses.replace(base, quantiles=0, dueling=False, hidden_scale=0.0)
        if base.min_change:  # weights on features that read 0 do nothing and are not counted
            shown = features_that_change(env, info, base.min_change)
            info = info._replace(obs_shape=(shown,))
            print(
                f"{name}: {shown} features change enough to be shown; only their weights are "
                "counted."
            )
        env.close()
        for size, kind in itertools.product(args.sizes, args.kinds):
            network, weights = match(info, base, kind, size)
            steps = args.total_steps or cfg.total_steps
            cells.append(Cell(name, kind, size, weights, flags_of(network), steps))
    return cells


# --------------------------------------------------------------------------------------------------
# Runs


def training_command(args, cell, rate, seed, folder):
    """The words that train one run, or go on with it."""
    flags = [
        f"--name={cell.env}",
        f"--seed={seed}",
        f"--total-steps={cell.steps}",
        f"--learning-rate={rate}",
        f"--final-learning-rate={rate / 10}",
        *cell.flags,
        *words_of(args.also),
    ]
    return ["run_dqn.py", *start_or_resume(folder, flags)]


def run(args, cell, rate, seed):
    """Train one run and evaluate it, unless that is done: -> its folder.

    Raises UsageError, with the last line of what was written, if a script fails.
    """
    folder = Path(args.out, f"{cell.label}-rate{rate:g}-seed{seed}".replace("/", "-"))
    if (folder / "evaluation.csv").exists() or args.report_only:
        return folder
    train = training_command(args, cell, rate, seed, folder)
    games = [f"--episodes={args.episodes}", f"--epsilon={args.epsilon}"]
    evaluate = ["evaluate.py", str(folder), *games]
    print(f"{cell.label}, rate {rate:g}, seed {seed}", flush=True)
    for script, *flags in (train, evaluate):
        run_script([sys.executable, str(ROOT / "scripts" / script), *flags])
    return folder


def score(folder):
    """What came of a run: a dict, or None if it is not evaluated yet.

    mean_return: of games after training; curve: mean return while it trained; seconds: of training.
    """
    returns = read_returns(Path(folder))
    if not returns:
        return None
    log = read_log(folder)
    curve = log["mean_return"][np.isfinite(log["mean_return"])]
    return dict(
        mean_return=float(np.mean(returns)),
        curve=float(curve.mean()) if len(curve) else float("nan"),
        seconds=float(log["seconds"][-1]),
    )


def chosen_rate(args, cell):
    """The learning rate whose runs of the tuning seeds score best after training.

    None if no rate has all of them yet.
    """
    if len(args.rates) == 1:
        return args.rates[0]
    means = {}
    for rate in args.rates:
        seeds = range(TUNING_SEED, TUNING_SEED + args.tuning_seeds)
        scores = [score(run(args, cell, rate, seed)) for seed in seeds]
        if all(scores):
            means[rate] = np.mean([each["mean_return"] for each in scores])
    return max(means, key=means.get) if means else None


def run_all(args, cells):
    """Choose the rates, train and evaluate everything: -> the rows of runs.csv."""
    with ThreadPoolExecutor(args.jobs) as pool:
        rates = list(pool.map(lambda cell: chosen_rate(args, cell), cells))
        wanted = [
            (cell, rate, seed)
            for cell, rate in zip(cells, rates)
            for seed in range(args.seeds)
            if rate is not None
        ]
        folders = list(pool.map(lambda each: run(args, *each), wanted))
    rows = []
    for (cell, rate, seed), folder in zip(wanted, folders):
        result = score(folder)
        if result:
            about = {key: getattr(cell, key) for key in ("env", "size", "kind", "weights")}
            rows.append(about | dict(rate=rate, seed=seed) | result)
    return rows


# --------------------------------------------------------------------------------------------------
# The report


def summarize(rows):
    """One row for each network on each environment, from the rows of its runs."""
    table = []
    for _, group in itertools.groupby(rows, key=lambda row: (row["env"], row["size"], row["kind"])):
        group = list(group)
        line = {key: group[0][key] for key in ("env", "size", "kind", "weights", "rate")}
        line["seeds"] = len(group)
        for column in ("mean_return", "curve"):
            values = np.array([row[column] for row in group])
            low, high = confidence(values, statistic=interquartile_mean)
            line[column] = float(interquartile_mean(values))
            line[f"{column}_low"] = low
            line[f"{column}_high"] = high
        line["seconds"] = float(np.median([row["seconds"] for row in group]))
        table.append(line)
    return table


def improvements(rows, ours="gpt"):
    """How likely a run of one kind is to beat one of each other kind of its size (Agarwal, 2021).

    A row for each environment and other kind.
    """
    returns = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        returns[row["env"], row["kind"]][row["size"]].append(row["mean_return"])
    table = []
    for (env, kind), theirs in returns.items():
        mine = returns.get((env, ours), {})
        pairs = [(mine[size], theirs[size]) for size in theirs if size in mine]
        if kind == ours or not pairs:
            continue
        probability, low, high = improvement(pairs)
        table.append(
            dict(
                env=env,
                ours=ours,
                theirs=kind,
                sizes=len(pairs),
                our_runs=sum(len(runs) for runs, _ in pairs),
                their_runs=sum(len(runs) for _, runs in pairs),
                probability=probability,
                low=low,
                high=high,
            )
        )
    return table


def rows_of(path):
    """The rows of a runs.csv, as `report` takes them. Raises UsageError if it is none."""
    numbers = dict(
        size=int, weights=int, seed=int, rate=float, mean_return=float, curve=float, seconds=float
    )
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                row | {key: number(row[key]) for key, number in numbers.items()}
                for row in csv.DictReader(file)
                if row["kind"] in KINDS
            ]
    except OSError as error:
        raise UsageError(
            f"{path} can't be read ({error.strerror}); give --earlier the runs.csv of a comparison."
        ) from None
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is no runs.csv of a comparison ({error}); give --earlier one."
        ) from None


def print_tables(table, better):
    """Print what `summarize` and `improvements` say."""
    for line in table:
        print(
            "{env:24} {size:>7} {name:35} {weights:>7} weights, rate {rate:g}, {seeds} seeds: "
            "return {mean_return:.1f} [{mean_return_low:.1f}, {mean_return_high:.1f}], "
            "while training {curve:.1f} [{curve_low:.1f}, {curve_high:.1f}], "
            "{seconds:.0f} s".format(name=KINDS[line["kind"]], **line)
        )
    for line in better:
        print(
            "{env:24} a run of the GPT beats one of equal size of ({name}) with probability "
            "{probability:.2f} [{low:.2f}, {high:.2f}]; sizes {sizes}, runs {our_runs} against "
            "{their_runs}".format(name=KINDS[line["theirs"]], **line)
        )


def report(args, rows):
    """Write the CSVs and comparison.png, and print the tables.

    improvement.csv is only there if there are GPTs to compare with.
    """
    envs = list(dict.fromkeys(row["env"] for row in rows))
    kinds = list(KINDS)

    def order(row):
        return envs.index(row["env"]), row["size"], kinds.index(row["kind"]), row["seed"]

    rows = sorted(rows, key=order)
    table = summarize(rows)
    better = improvements(rows)
    for name, lines in (("runs.csv", rows), ("summary.csv", table), ("improvement.csv", better)):
        if lines:
            write_rows(Path(args.out, name), lines)
        else:
            Path(args.out, name).unlink(missing_ok=True)
    print_tables(table, better)
    there = {row["kind"] for row in rows}
    names = {kind: name for kind, name in KINDS.items() if kind in there}
    plot_comparison(table, names, Path(args.out, "comparison.png"))
    print(Path(args.out, "comparison.png"))


# --------------------------------------------------------------------------------------------------
# The command


def check_args(args):
    """Raise UsageError for arguments that can't work."""
    check_at_least_one(args, "seeds", "tuning_seeds", "episodes", "jobs", "total_steps")
    lists = args.envs and args.kinds and args.sizes and args.rates
    if not lists or min(args.sizes) < 100 or min(args.rates) <= 0:
        raise UsageError(
            "--envs, --kinds, --sizes (of at least 100) and --rates (above 0) must not be empty."
        )
    if not 0 <= args.epsilon <= 1:
        raise UsageError(f"--epsilon lies between 0 and 1, not at {args.epsilon:g}.")


def keep_command(args):
    """Write the arguments to OUT/command.json.

    Raises UsageError if the folder can't be written, or holds runs of other settings.
    """
    path = Path(args.out, "command.json")
    if path.exists() and not args.report_only:
        before = load_config(path)
        for flag, value in (("total-steps", args.total_steps), ("also", list(args.also))):
            if (before.get(flag.replace("-", "_")) or None) != (value or None):
                raise UsageError(
                    f"{args.out} holds runs with another --{flag}; give the same, or another --out."
                )
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(args), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{args.out} can't be written ({error.strerror}); choose another --out."
        ) from None


def main():
    args = tyro.cli(Args, description=__doc__)
    check_args(args)
    keep_command(args)
    cells = make_cells(args)
    for cell in cells:
        print(f"{cell.label}: {cell.weights:,} weights")
    rows = [row for path in args.earlier for row in rows_of(path)] + run_all(args, cells)
    if not rows:
        raise UsageError(f"There are no finished runs in {args.out} yet; leave out --report-only.")
    report(args, rows)
    return 0


if __name__ == "__main__":
    run_main(main)
