"""Is a network that plays Sokoban a search? It is read, and changed, after each of its blocks.

    python benchmarks/search/plan.py --weights=runs/search --out=runs/search/plan

Looks at networks of regress.py for levels with one box. Writes of every network and block k (or
loop k), on levels of the set "test":

- reading.csv: Q read after k, by the network's own head and by a linear one: the share of optimal
  moves and the variance explained, by the exact distance of the state.
- agreement.csv, depth.csv: how that Q agrees with value iteration from zero after d sweeps; the d
  that it agrees with best; and how far from the solution its moves are still half as good as
  perfect ones.
- gain.csv: by which k nine tenths of what is gained over random moves are gained, by distance.
- settle.csv, order.csv: from which k on the chosen move stays the optimal one, or the one of the
  end, and the plan that is read stays the right one; by distance, and the rank correlation of both.
- probe.csv, turn.csv: whether the plan is written in the cells: a linear probe for the direction
  in which the box will be pushed off each cell.
- change.csv: how often the network follows when that plan is changed by hand after k.

Rows of networks that are there already are kept, and those networks left out.
Intervals are 95% of a bootstrap over layouts. Linear maps are fitted on levels of the set "tune".
Controls: untrained networks, whose blocks add little as yet; trained ones with the weights of every
array shuffled, whose blocks add as much as theirs; for the probe also the board itself.
"""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from arms import arm, build_arm
from measure import load_arm
from plan_cells import read_board, read_plan
from plan_change import change_rows
from plan_plots import plot, read
from plan_reading import move_ways, read_q, settle_rows
from plan_sample import Resample
from plan_states import draw_states

from tfdqt.backend import keras, set_threads, tf
from tfdqt.errors import UsageError
from tfdqt.runs.log import write_rows


@dataclasses.dataclass(frozen=True)
class Args:
    """Read and change networks between their blocks."""

    weights: str = "runs/search"
    """Folder with the weights that regress.py wrote."""
    out: str = "runs/search/plan"
    """Folder of what is written."""
    arms: tuple[str, ...] = ("loops-8", "blocks-8")
    """Networks, see arms.py: decoders."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Which of the networks of an arm."""
    controls: tuple[Literal["shuffled", "untrained"], ...] = ("shuffled", "untrained")
    """Kinds of networks of the same arms to compare with."""
    fitted: int = 1_200
    """States that linear maps are fitted on."""
    states: int = 2_000
    """States that are reported on."""
    changed: int = 150
    """States in which the plan is changed, at most."""
    scales: tuple[float, ...] = (2.0,)
    """How large a change is, in sizes of what stands there."""
    draws: int = 500
    """Draws of a bootstrap."""


# -------------------------------------------------------------------------------------------------
# Networks


class Look:
    """What a network makes of states.

    q: [N, K + 1, 4], read by its head after every block, the tokens first; value: [N, K + 1, D],
    the token that the head reads; cells: [N, K + 1, C, D]; blocks: K.
    """

    def __init__(self, model, info, cfg, states):
        self.build = lambda edited=None: _stream(model, info, cfg, edited)
        self.states = states
        whole = self.build()
        run = tf.function(whole, reduce_retracing=True)
        stream = np.concatenate([run(part)["stream"].numpy() for part in _batches(states)])
        self.blocks = stream.shape[1] - 1
        self.cells = stream[:, :, :-1]
        self.value = stream[:, :, -1]
        normed = whole.get_layer("norm")(self.value)
        self.q = whole.get_layer("q")(normed).numpy()

    def editor(self, k):
        """A function of states and an edit [M, C, D] after block k.

        It returns the values [M, 4], and the cells [M, C, D] after the last block.
        """
        whole = tf.function(self.build(k), reduce_retracing=True)

        def run(states, edit):
            padded = np.pad(edit, ((0, 0), (0, 1), (0, 0))).astype("float32")
            begin = 0
            q = []
            cells = []
            for part in _batches(states):
                count = len(part["obs"])
                part["edit"] = padded[begin : begin + count]
                begin += count
                out = whole(part)
                q.append(out["q"].numpy()[:, 0, :, 0])
                cells.append(out["stream"].numpy()[:, -1, :-1])
            return np.concatenate(q), np.concatenate(cells)

        return run


def _stream(model, info, cfg, edited):
    from tfdqt.games.inside import build_stream  # loads Keras

    return build_stream(model, info, cfg, edited)


def _batches(states, size=500):
    """The inputs of a network, `size` states at a time."""
    rows = [states.obs.reshape(len(states.obs), -1), states.legal.astype(np.uint8)]
    obs = np.concatenate(rows, 1)[:, None]
    first = np.ones((len(obs), 1), np.int32)
    for begin in range(0, len(obs), size):
        yield dict(obs=obs[begin : begin + size], first=first[begin : begin + size])


def trained(args, name, seed):
    """A network of regress.py: (keras.Model, EnvInfo, settings)."""
    from tfdqt.games.flat import set_weights  # loads TensorFlow

    net, weights, info, settings = load_arm(args.weights, name, seed)
    set_weights(net, weights)
    return net.model, info, settings


def look_at(args, model, info, name, parts):
    """What a network makes of the states to report on and of those to fit on."""
    return [Look(model, info, arm(name), states) for states in parts]


def read_network(args, name, seed, who, parts, sample, discount):
    """Everything that is told of one network: dict of rows by file."""
    model, info, _ = trained(args, name, seed)
    if who == "untrained":
        keras.utils.set_random_seed(100 + seed)
        model = build_arm(name, info)
    elif who == "shuffled":
        rng = np.random.default_rng(100 + seed)
        for variable in model.trainable_variables:
            weights = variable.numpy()
            variable.assign(rng.permutation(weights.reshape(-1)).reshape(weights.shape))
    net, fitted = look_at(args, model, info, name, parts)
    tables = read_q(net, parts[0], sample, fitted, discount)
    plans, maps, ways = read_plan(net, parts[0], sample, fitted)
    tables |= plans | settle_rows(parts[0], move_ways(parts[0], net.q) | ways, sample)
    if who == "trained" and net.blocks > 1:
        tables["change"] = change_rows(net, parts[0], maps, args)
    return tables


def check(args):
    """The settings of the networks; raises UsageError if they can't be read here."""
    for name in args.arms:
        if not (Path(args.weights) / f"{name}.npz").exists():
            raise UsageError(f"{args.weights} has no {name}.npz; train it with regress.py.")
        if name.startswith(("dense", "drc", "mean")):
            raise UsageError(f"{name} has no token to read after each block; take loops or blocks.")
    _, _, settings = trained(args, args.arms[0], args.seeds[0])
    if settings["boxes"] != 1:
        raise UsageError("Plans are told of levels with one box; give weights of --boxes=1.")
    return settings


def network_of(row):
    """Which network a row is of."""
    return row["arm"], row["who"], int(row["seed"])


def earlier(out):
    """Rows of earlier calls by file, of the networks that they were done with; and which those are.

    order.csv is written last.
    """
    tables = {path.stem: read(path) for path in sorted(out.glob("*.csv"))}
    done = {network_of(row) for row in tables.get("order", [])}
    kept = {file: [row for row in rows if network_of(row) in done] for file, rows in tables.items()}
    return kept, done


def add_rows(out, tables, network, found):
    """Add what was told of a network to the tables and their files."""
    known = dict(zip(("arm", "who", "seed"), network))
    for file in sorted(found, key=lambda file: file == "order"):
        tables.setdefault(file, []).extend(dict(known, **row) for row in found[file])
        write_rows(out / f"{file}.csv", tables[file])


def main(args):
    set_threads(1, 1)
    settings = check(args)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tables, done = earlier(out)
    drawn = dict(size=settings["size"], each=4)
    states = draw_states(11, args.states, split="test", **drawn)
    fitted = draw_states(12, args.fitted, split="tune", **drawn)
    sample = Resample(states.layout, args.draws)
    add_rows(out, tables, ("board", "control", 0), read_board(states, sample, fitted))
    kinds = ("trained", *args.controls)
    for who, name, seed in itertools.product(kinds, args.arms, args.seeds):
        if (name, who, seed) in done:
            continue
        found = read_network(args, name, seed, who, (states, fitted), sample, settings["discount"])
        add_rows(out, tables, (name, who, seed), found)
        print(f"{name} {who} {seed} after {time.perf_counter() - began:.0f} s", flush=True)
    plot(out)


if __name__ == "__main__":
    main(tyro.cli(Args))
