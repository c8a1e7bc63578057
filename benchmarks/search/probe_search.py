"""Do the layers of a trained Transformer search? python scripts/probe_search.py RUN --out=runs/probe

The Q-network of a DQN run is read after each of its blocks, by its own final norm and head (a "logit lens") and by a linear map
fitted to what stands there, and compared with explicit look-ahead of each depth from the same states, made by stepping copies of
the environment, with the whole network's values at the leaves. If blocks were steps of a search, later blocks would agree with
deeper look-ahead, and one block's values would be a step of look-ahead over those of the block before. Printed beside it: the
return of acting from each block; the same agreement for an untrained network, for shuffled states, and for other runs (--against),
such as a dense network or one with fewer layers. probe.csv and probe.png go to --out; reading.csv and reading.png beside them tell
where each block attends, in steps ago (with --tokens=features, to which features as well), and which features of an observation (such
as RAM bytes) the values after each block rest on: how far the advantages change when that feature alone is another state's.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import tyro

from tfdqt.config import DQNConfig, NetworkConfig, UsageError, load_config
from tfdqt.runs import check_at_least_one, find_run, run_main, write_rows


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare the layers of a trained Q-network with explicit look-ahead."""

    run: tyro.conf.Positional[str]
    """Folder of a DQN run with --network=gpt."""
    out: str = "runs/probe"
    """Folder for the CSV and the picture."""
    states: int = 500
    """States to look ahead from."""
    depth: int = 4
    """Deepest look-ahead, in steps; its cost grows as the number of actions to this power."""
    episodes: int = 30
    """Games played from each layer."""
    epsilon: float = 0.05
    """Probability of a random action in those games."""
    against: tuple[str, ...] = ()
    """Other DQN runs on the same environment, whose values are compared with the same look-ahead."""
    seed: int = 0
    """Seeds states and games."""


def settings_of(run):
    """NetworkConfig and DQNConfig of a run of DQN."""
    path = find_run(run) / "config.json"
    if load_config(path).get("algorithm") != "dqn":
        raise UsageError(f"{run} is not a run of DQN, which alone has Q-values; give one.")
    found = load_config(path, network=NetworkConfig, dqn=DQNConfig)
    return found["name"], found["network"], found["dqn"]


def hidden_states(networks, windows):
    """What stands at the last step before the head, [N, D]."""
    from tfdqt.acting import shown
    from tfdqt.backend import keras

    body = keras.Model(networks.model.input, networks.model.get_layer("norm").output)
    inputs = shown(windows)
    return body({name: inputs[name] for name in networks.model.input}).numpy()[:, -1]


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "states", "depth", "episodes")
    if args.seed < 0 or not 0 <= args.epsilon <= 1 or args.states < 30:
        raise UsageError("--seed must be 0 or more, --epsilon between 0 and 1, and --states at least 30.")
    name, network, cfg = settings_of(args.run)
    if network.network != "gpt":
        raise UsageError(f"{args.run} has a dense network, which has no blocks to read; give it to --against of a gpt run.")
    for other in args.against:
        if settings_of(other)[0] != name:
            raise UsageError(f"{other} is a run on another environment than {name}; leave it out.")

    from tfdqt import gpt, probe
    from tfdqt.acting import Window
    from tfdqt.backend import keras, tf
    from tfdqt.envs import make_env
    from tfdqt.evaluate import load_run, play
    from tfdqt.plots import plot_probe, plot_reading

    tf.get_logger().setLevel("ERROR")  # that every layer is compiled on its own is meant
    trained = load_run(args.run)
    info, env, env_fn = trained.info, make_env(name), functools.partial(make_env, name)
    roots = probe.roots_of(env, info, trained.networks, trained.weights, args.states, seed=args.seed)
    tree = probe.grow(env, info, roots, args.depth, life_loss_ends=cfg.life_loss_ends)
    env.close()
    count = len(roots)
    first = Window(*(part[:count] for part in tree.windows))
    targets = probe.look_ahead(tree, probe.values_at(trained.networks, trained.weights, tree.windows), count, cfg.gamma)  # [D + 1, N, A]
    shuffled = np.random.default_rng([args.seed, 8]).permutation(count)
    print(f"{name}: {count} states, {len(tree.reward):,} nodes, look-ahead of 0 to {args.depth} steps.")

    def returns(networks, weights):
        found, _ = play(env_fn, info, networks, weights, episodes=args.episodes, epsilon=args.epsilon, seed=args.seed + 1_000)
        return float(found.mean())

    rows, reading = [], []

    def read(who, model, lens, layer):
        """What the values after `layer` blocks rest on, and once for each model where its blocks attend."""
        shares = probe.importance(*lens, first, seed=args.seed)
        found = [dict(who=who, what="importance", layer=layer, place=place, value=share) for place, share in enumerate(shares)]
        if layer == 0:
            attention = probe.attention_weights(model, first, network).reshape(network.layers, network.context, -1)
            tables = {"attention": attention.sum(axis=2)[:, ::-1]}  # tokens of a step together
            if network.tokens == "features":
                tables["attention to features"] = attention.sum(axis=1)
            found += [dict(who=who, what=what, layer=block + 1, place=place, value=share)
                      for what, table in tables.items() for block, line in enumerate(table) for place, share in enumerate(line)]
        reading.extend(found)
        best = np.argsort(-np.nan_to_num(shares))[:5]
        print(f"{who:28} layer {layer}: rests on features " + ", ".join(f"{place} ({shares[place]:.2f})" for place in best), flush=True)

    def add(who, layer, q, *, score=float("nan"), x=None, order=slice(None)):
        for depth, target in enumerate(targets):
            correlation, same = probe.agreement(q, target[order])
            linear = float("nan") if x is None else probe.linear_probe(x, target[order])
            rows.append(dict(who=who, layer=layer, depth=depth, correlation=correlation, same_action=same, probe=linear, mean_return=score))
        row = "  ".join(f"{each['correlation']:6.3f}/{each['same_action']:.2f}" for each in rows[-len(targets):])
        print(f"{who:28} layer {layer}: {row}   return {score:.1f}", flush=True)

    print("correlation of advantages / part of equal best actions, with look-ahead of " +
          ", ".join(map(str, range(args.depth + 1))) + " steps")
    before = None
    for layer, lens in enumerate(probe.lenses(trained.networks.model, info, network)):
        q, x = probe.values_at(*lens, tree.windows), hidden_states(lens[0], first)
        add("trained", layer, q[:count], score=returns(*lens), x=x)
        read("trained", trained.networks.model, lens, layer)
        add("trained, shuffled states", layer, q[:count], x=x, order=shuffled)
        if before is not None:  # is a block a step of look-ahead over the block before?
            for steps, target in enumerate(probe.look_ahead(tree, before, count, cfg.gamma)[:2]):
                correlation, same = probe.agreement(q[:count], target)
                rows.append(dict(who="block on the block before", layer=layer, depth=steps, correlation=correlation, same_action=same,
                                 probe=float("nan"), mean_return=float("nan")))
                print(f"{'block on the block before':28} layer {layer}: {correlation:6.3f}/{same:.2f} after {steps} steps of look-ahead")
        before = q
    keras.utils.set_random_seed(args.seed + 1)
    fresh = gpt.build_q(info, network)
    for layer, lens in enumerate(probe.lenses(fresh, info, network)):
        add("untrained", layer, probe.values_at(*lens, first), x=hidden_states(lens[0], first))
        read("untrained", fresh, lens, layer)
    for run in args.against:
        other = load_run(run)
        windows = first
        if other.networks.context != network.context:  # it sees less, or what it can of as much
            if other.networks.context > network.context:
                raise UsageError(f"{run} sees {other.networks.context} steps, more than the {network.context} of {args.run}; leave it out.")
            windows = Window(*(part[:, -other.networks.context:] for part in first))
        kind = settings_of(run)[1]
        label = f"{kind.network} of {kind.layers if kind.network == 'gpt' else len(kind.hidden)} layers"
        add(label, kind.layers if kind.network == "gpt" else len(kind.hidden), probe.values_at(other.networks, other.weights, windows),
            score=returns(other.networks, other.weights))
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out / "probe.csv", rows)
        write_rows(out / "reading.csv", reading)
        plot_probe(rows, name, out / "probe.png")
        plot_reading(reading, name, out / "reading.png")
    except OSError as error:
        raise UsageError(f"{out} can't be written ({error.strerror or error}); choose another --out.") from None
    print(out / "probe.png")
    return 0


if __name__ == "__main__":
    run_main(main)
