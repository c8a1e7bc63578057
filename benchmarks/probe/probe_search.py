"""Do the layers of a trained Transformer search?

    python benchmarks/probe/probe_search.py RUN --out=runs/probe

The Q-network of a DQN run is read after each of its blocks, by its own final norm and head (a
"logit lens") and by a linear map fitted to what the head reads there. Both are compared with
explicit look-ahead of each depth from the same states, made by stepping copies of the environment,
with the whole network's values at the leaves. If blocks were steps of a search, later blocks would
agree with deeper look-ahead, and one block's values would be a step of look-ahead over those of the
block before.

Controls: the same agreement for an untrained network, for shuffled states, and for other runs
(--against), such as a dense network or one with fewer layers. The return of acting by each block is
printed too.

Written to --out: probe.csv and probe.png, the agreements; reading.csv and reading.png, where each
block attends, in steps ago (with --tokens=features, to which features as well), and which features
of an observation (such as RAM bytes) the values after each block rest on: how far the advantages
change when that feature alone is another state's.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import probe
import tyro
from probe_plots import plot_probe, plot_reading

from tfdqt.backend import keras, tf
from tfdqt.errors import UsageError
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.envs import make_env
from tfdqt.games.play import play_episodes
from tfdqt.games.spaces import EnvInfo
from tfdqt.games.trained import Policy, load_run
from tfdqt.games.window import Window
from tfdqt.runs.cli import read_settings, run_main
from tfdqt.runs.folder import find_run
from tfdqt.runs.log import write_rows
from tfdqt.settings import check_at_least_one


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare the layers of a trained Q-network with explicit look-ahead."""

    run: tyro.conf.Positional[str]
    """Folder of a DQN run with --network=gpt."""
    out: str = "runs/probe"
    """Folder for the CSVs and the pictures."""
    states: int = 500
    """States to look ahead from."""
    depth: int = 4
    """Deepest look-ahead, in steps; its cost grows as the number of actions to this power."""
    episodes: int = 30
    """Games played by each layer."""
    epsilon: float = 0.05
    """Probability of a random action in those games."""
    against: tuple[str, ...] = ()
    """Other DQN runs on the same environment, whose values are compared with the same
    look-ahead."""
    seed: int = 0
    """Seeds states and games."""


class Setting(NamedTuple):
    """What every network is compared with: states, and look-ahead from them."""

    info: EnvInfo
    network: NetworkConfig  # of the run that is read
    gamma: float
    tree: probe.Tree  # from the states
    windows: Window  # of the states alone, N of them
    targets: np.ndarray  # [D + 1, N, A] values of look-ahead of each depth


# --------------------------------------------------------------------------------------------------
# The setting


def settings_of(run):
    """Of a run of DQN: -> (name of the environment, NetworkConfig, DQNConfig)."""
    folder = find_run(run)
    if read_settings(folder).get("algorithm") != "dqn":
        raise UsageError(f"{run} is not a run of DQN, whose Q-values are read here; give one.")
    settings = read_settings(folder, network=NetworkConfig, dqn=DQNConfig)
    return settings["name"], settings["network"], settings["dqn"]


def make_setting(args, trained, network, cfg):
    """Meet states by playing and look ahead from them with the trained network's values."""
    info = trained.info
    env = make_env(info.name)
    roots = probe.roots_of(env, info, trained.net, trained.weights, args.states, seed=args.seed)
    tree = probe.grow(env, info, roots, args.depth, life_loss_ends=cfg.life_loss_ends)
    env.close()
    leaves = probe.values_at(trained.net, trained.weights, tree.windows)
    return Setting(
        info=info,
        network=network,
        gamma=cfg.gamma,
        tree=tree,
        windows=Window(*(part[: len(roots)] for part in tree.windows)),
        targets=probe.look_ahead(tree, leaves, len(roots), cfg.gamma),
    )


def mean_return(args, trained):
    """Mean return of --episodes games played by a TrainedRun."""
    seed = args.seed + 1_000
    policy = Policy(trained, epsilon=args.epsilon, seed=seed)
    env_fn = functools.partial(make_env, trained.info.name)
    returns, _ = play_episodes(env_fn, policy, episodes=args.episodes, seed=seed)
    return float(returns.mean())


# --------------------------------------------------------------------------------------------------
# Rows of probe.csv


def agreement_rows(setting, who, layer, q, *, score=float("nan"), hidden=None, order=None):
    """How values [N, A] agree with look-ahead of each depth: rows, printed as well.

    Args:
      who: the network that the values are of, in words; layer: how many of its blocks were read.
      score: mean return of its games, if it played any.
      hidden: what the head read, [N, D], if a linear probe is to be fitted to it.
      order: the states whose look-ahead the values are compared with, in this order.
    """
    rows = []
    for depth, target in enumerate(setting.targets):
        target = target if order is None else target[order]
        correlation, same = probe.agreement(q, target)
        linear = float("nan") if hidden is None else probe.linear_probe(hidden, target)
        rows.append(row_of(who, layer, depth, correlation, same, linear, score))
    line = "  ".join(f"{row['correlation']:6.3f}/{row['same_action']:.2f}" for row in rows)
    print(f"{who:28} layer {layer}: {line}   return {score:.1f}", flush=True)
    return rows


def step_rows(setting, layer, q, before):
    """Is a block a step of look-ahead over the block before? Rows, printed as well.

    `q` [N, A] are the block's values at the states, `before` [M, A] those of the block before at
    every node of the tree.
    """
    who = "block on the block before"
    rows = []
    targets = probe.look_ahead(setting.tree, before, len(q), setting.gamma)
    for steps, target in enumerate(targets[:2]):
        correlation, same = probe.agreement(q, target)
        rows.append(row_of(who, layer, steps, correlation, same))
        print(
            f"{who:28} layer {layer}: {correlation:6.3f}/{same:.2f} after {steps} steps of "
            "look-ahead"
        )
    return rows


def row_of(who, layer, depth, correlation, same, linear=float("nan"), score=float("nan")):
    """A row of probe.csv."""
    return dict(
        who=who,
        layer=layer,
        depth=depth,
        correlation=correlation,
        same_action=same,
        probe=linear,
        mean_return=score,
    )


# --------------------------------------------------------------------------------------------------
# Rows of reading.csv


def importance_rows(setting, who, lens, layer, seed):
    """Which features the values after `layer` blocks rest on: rows, the first five printed."""
    shares = probe.importance(*lens, setting.windows, seed=seed)
    best = np.argsort(-np.nan_to_num(shares))[:5]
    line = ", ".join(f"{feature} ({shares[feature]:.2f})" for feature in best)
    print(f"{who:28} layer {layer}: rests on features {line}", flush=True)
    return [
        dict(who=who, what="importance", layer=layer, index=feature, value=share)
        for feature, share in enumerate(shares)
    ]


def attention_rows(setting, who, model):
    """Where each block of a network attends: rows; index counts steps ago, or features."""
    network = setting.network
    shares = probe.attention_weights(model, setting.windows, setting.info, network)
    shares = shares.reshape(network.layers, network.context, -1)  # [L, C, tokens of a step]
    tables = {"attention": shares.sum(axis=2)[:, ::-1]}
    if network.tokens == "features":
        tables["attention to features"] = shares.sum(axis=1)
    return [
        dict(who=who, what=what, layer=block + 1, index=index, value=share)
        for what, table in tables.items()
        for block, line in enumerate(table)
        for index, share in enumerate(line)
    ]


# --------------------------------------------------------------------------------------------------
# The networks


def read_trained(args, setting, trained):
    """The network of the run, block by block: -> (rows of probe.csv, rows of reading.csv)."""
    info = setting.info
    network = setting.network
    windows = setting.windows
    model = trained.net.model
    count = len(windows.first)
    shuffled = np.random.default_rng([args.seed, 8]).permutation(count)
    rows = []
    reading = []
    before = None
    for layer, lens in enumerate(probe.lenses(model, info, network)):
        nodes = probe.values_at(*lens, setting.tree.windows)
        q = nodes[:count]
        hidden = probe.hidden_states(model, info, network, layer, windows)
        score = mean_return(args, trained._replace(net=lens[0], weights=lens[1]))
        rows += agreement_rows(setting, "trained", layer, q, score=score, hidden=hidden)
        reading += importance_rows(setting, "trained", lens, layer, args.seed)
        rows += agreement_rows(
            setting, "trained, shuffled states", layer, q, hidden=hidden, order=shuffled
        )
        if before is not None:
            rows += step_rows(setting, layer, q, before)
        before = nodes
    return rows, reading + attention_rows(setting, "trained", model)


def read_untrained(args, setting):
    """A network of the same shape with other first weights: as `read_trained`."""
    from tfdqt.games.networks import build_q  # loads Keras

    keras.utils.set_random_seed(args.seed + 1)
    info = setting.info
    network = setting.network
    windows = setting.windows
    model = build_q(info, network)
    rows = []
    reading = []
    for layer, lens in enumerate(probe.lenses(model, info, network)):
        q = probe.values_at(*lens, windows)
        hidden = probe.hidden_states(model, info, network, layer, windows)
        rows += agreement_rows(setting, "untrained", layer, q, hidden=hidden)
        reading += importance_rows(setting, "untrained", lens, layer, args.seed)
    return rows, reading + attention_rows(setting, "untrained", model)


def read_other(args, setting, run):
    """The values of another run: rows of probe.csv."""
    other = load_run(run)
    context = other.net.context
    if context > setting.network.context:
        raise UsageError(
            f"{run} sees {context} steps, more than the {setting.network.context} of {args.run}; "
            "leave it out."
        )
    windows = Window(*(part[:, -context:] for part in setting.windows))  # what it can see of them
    _, network, _ = settings_of(run)
    layers = len(network.hidden) if network.network == "dense" else network.layers
    q = probe.values_at(other.net, other.weights, windows)
    score = mean_return(args, other)
    who = f"{network.network} of {layers} layers"
    return agreement_rows(setting, who, layers, q, score=score)


# --------------------------------------------------------------------------------------------------
# The command


def check_args(args):
    """Check the arguments and the runs they name: -> `settings_of` the run."""
    check_at_least_one(args, "states", "depth", "episodes")
    if args.seed < 0 or not 0 <= args.epsilon <= 1 or args.states < 30:
        raise UsageError(
            "--seed must be 0 or more, --epsilon between 0 and 1, and --states at least 30."
        )
    name, network, cfg = settings_of(args.run)
    if network.network != "gpt":
        raise UsageError(
            f"{args.run} has a {network.network} network, which has no blocks to read; give it to "
            "--against of a gpt run."
        )
    for other in args.against:
        if settings_of(other)[0] != name:
            raise UsageError(f"{other} is a run on another environment than {name}; leave it out.")
    return name, network, cfg


def write(out, name, rows, reading):
    """Write the CSVs and the pictures. Raises UsageError if the folder can't be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out / "probe.csv", rows)
        write_rows(out / "reading.csv", reading)
        plot_probe(rows, name, out / "probe.png")
        plot_reading(reading, name, out / "reading.png")
    except OSError as error:
        raise UsageError(
            f"{out} can't be written ({error.strerror or error}); choose another --out."
        ) from None


def main():
    args = tyro.cli(Args, description=__doc__)
    name, network, cfg = check_args(args)

    tf.get_logger().setLevel("ERROR")  # that every layer is compiled on its own is meant
    trained = load_run(args.run)
    setting = make_setting(args, trained, network, cfg)
    print(
        f"{name}: {args.states} states, {len(setting.tree.reward):,} nodes, look-ahead of 0 to "
        f"{args.depth} steps."
    )
    depths = ", ".join(str(depth) for depth in range(args.depth + 1))
    print(
        f"correlation of advantages / part of equal best actions, with look-ahead of {depths} steps"
    )
    rows, reading = read_trained(args, setting, trained)
    for part, more in zip((rows, reading), read_untrained(args, setting)):
        part += more
    for run in args.against:
        rows += read_other(args, setting, run)
    out = Path(args.out)
    write(out, name, rows, reading)
    print(out / "probe.png")
    return 0


if __name__ == "__main__":
    run_main(main)
