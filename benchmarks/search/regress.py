"""Train networks on the exact values of a puzzle's states: what a network can hold at best.

    python benchmarks/search/regress.py --out=runs/search --size=5 --boxes=1

The networks are tfdqt's own, built by Keras. On a CPU TensorFlow trains them, one after another; on
a GPU use `--backend=jax` (`pip install jax optax`), which trains all seeds and learning rates of an
arm at a time. States come from levels of the set "train"; the learning rate of an arm is the one
with the least loss on levels of the set "tune"; what is reported is of levels of the set "test".

Writes for every arm OUT/ARM.npz, the weights [seeds, W] of its best rate in the order of
`tfdqt.games.flat`, and rows of OUT/regress.csv, where those of other arms stay.
"""

import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from arms import build_arm, puzzle_info

from tfdqt.backend import keras
from tfdqt.puzzles.puzzle import optimal_q
from tfdqt.runs.log import read_rows, write_rows

WARM_UP = 500  # updates in which the learning rate rises
MAX_NORM = 1.0  # of a gradient


@dataclasses.dataclass(frozen=True)
class Args:
    """Regression on exact values."""

    out: str = "runs/search"
    """Folder of what is written."""
    backend: Literal["tensorflow", "jax"] = "tensorflow"
    """What computes, see above."""
    arms: tuple[str, ...] = ("blocks-1", "loops-8", "blocks-8")
    """Networks, see arms.py."""
    size: int = 5
    """Cells of a side."""
    boxes: int = 1
    """Boxes in a level of Sokoban; 0: Lights Out."""
    rates: tuple[float, ...] = (1e-3, 2.5e-3)
    """Learning rates to choose from."""
    seeds: int = 3
    """Networks of each."""
    first_seed: int = 0
    """Seed of the first."""
    updates: int = 20_000
    """Updates of each."""
    batch: int = 128
    """States in an update."""
    states: int = 2_000_000
    """States to learn from."""
    held_out: int = 20_000
    """States of each of the two other sets."""
    discount: float = 0.9
    """Discount of the values."""
    jobs: int = 1
    """Arms that are trained at a time."""
    workers: int = os.cpu_count()
    """Processes that make states."""


# -------------------------------------------------------------------------------------------------
# Data


def _processes(count, **options):
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _end_with_parent, **options)


def _end_with_parent():
    """Let this process end when the one that started it does, however that is ended."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _some_states(args, split, seed, count):
    rng = np.random.default_rng(seed)
    if not args.boxes:
        from tfdqt.puzzles.lights_solver import dataset

        return dataset(rng, count, size=args.size, split=split)
    from tfdqt.puzzles.solver import dataset

    return dataset(rng, count, size=args.size, boxes=args.boxes, split=split, states=128)


def make_data(args, pool, split, count, seed):
    """Observations [n, F] uint8 with the mask, values [n, A] and legal actions [n, A] bool."""
    each = -(-count // args.workers)
    seeds = [(seed, i) for i in range(args.workers)]
    parts = list(
        pool.map(functools.partial(_some_states, args, split), seeds, [each] * args.workers)
    )
    obs, legal, following = (
        np.concatenate([part[key] for part in parts])[:count]
        for key in ("obs", "legal", "next_distance")
    )
    row = obs.reshape(count, -1)
    if args.boxes:
        row = np.concatenate([row, legal.astype(np.uint8)], axis=1)
    value = optimal_q(following, args.discount)
    return dict(obs=row, q=np.where(legal, value, 0).astype(np.float32), legal=legal)


# -------------------------------------------------------------------------------------------------
# Learning


def rate_after(count, updates):
    """The share of the learning rate after `count` of so many updates, a float tensor.

    It rises for WARM_UP updates, and falls by a cosine, to 2% at the end.
    """
    ops = keras.ops
    return ops.minimum(1.0, count / WARM_UP) * (0.51 + 0.49 * ops.cos(np.pi * count / updates))


def loss_of(q, target, legal):
    """The error of the mean of the values plus that of the advantages, by the state's value.

    q, target, legal: [B, A] -> [B]. The advantages count in states that can be solved, the more
    the less they are worth: where the solution is far all values are small.
    """
    ops = keras.ops
    legal = ops.cast(legal, "float32")
    count = ops.sum(legal, axis=-1)
    error = legal * (q - target)
    mean = ops.sum(error, axis=-1) / count
    deviation = legal * (error - mean[:, None])
    value = ops.max(legal * target, axis=-1)
    spread = ops.sum(deviation**2, axis=-1) / count
    return mean**2 + ops.where(value > 0, 5 * spread / (value + 0.1) ** 2, 0.0)


def judge(q, held):
    """How good values q [n, A] are on a set of states: dict of loss, r2 and optimal.

    r2: of the values of all legal actions; optimal: the share of the states that can be solved in
    which the best action by q is a best one.
    """
    target = held["q"]
    legal = held["legal"]
    spread = ((target - target[legal].mean())[legal] ** 2).sum()
    best = np.where(legal, target, -1).max(-1)
    chosen = np.where(legal, q, -np.inf).argmax(-1)
    got = target[np.arange(len(q)), chosen]
    return dict(
        loss=float(np.mean(loss_of(q, target, legal))),
        r2=1 - ((q - target)[legal] ** 2).sum() / spread,
        optimal=(got == best)[best > 0].mean(),
    )


def train_arm(args, name):
    """Train an arm at all rates and seeds: -> rows for the CSV; the weights are written."""
    learner = importlib.import_module(f"learn_{args.backend}")
    began = time.perf_counter()
    info = puzzle_info("sokoban" if args.boxes else "lights", args.size)
    data = {
        split: {key: np.load(f"{args.out}/{split}-{key}.npy") for key in ("obs", "q", "legal")}
        for split in ("train", "tune", "test")
    }
    runs = [(rate, args.first_seed + seed) for rate in args.rates for seed in range(args.seeds)]
    starts = []
    for _, seed in runs:
        keras.utils.set_random_seed(seed)
        model = build_arm(name, info)
        starts.append([np.asarray(variable) for variable in model.trainable_variables])

    def report(done, errors):
        seconds = time.perf_counter() - began
        print(f"{name} {done} {seconds:.1f}s {np.round(errors, 4)}", flush=True)

    weights = learner.learn(args, model, starts, runs, data["train"], report)
    values = learner.make_values(model)

    def said_of(held, each):
        parts = np.array_split(held["obs"], -(-len(held["obs"]) // 1_000))
        return judge(np.concatenate([values(each, part) for part in parts]), held)

    found = {split: [said_of(data[split], each) for each in weights] for split in ("tune", "test")}
    losses = np.array([one["loss"] for one in found["tune"]])
    best = int(np.nan_to_num(losses, nan=1e9).reshape(len(args.rates), args.seeds).mean(1).argmin())
    kept = range(best * args.seeds, (best + 1) * args.seeds)
    np.savez(f"{args.out}/{name}.npz", weights=weights[kept], rate=args.rates[best])
    return [
        dict(
            arm=name,
            seed=seed,
            rate=rate,
            kept=run in kept,
            weights=weights.shape[1],
            updates=args.updates,
            batch=args.batch,
            seconds=round(time.perf_counter() - began, 1),
            **{
                f"{split}_{key}": round(float(value), 5)
                for split, of_runs in found.items()
                for key, value in of_runs[run].items()
            },
        )
        for run, (rate, seed) in enumerate(runs)
    ]


def main(args):
    os.environ["KERAS_BACKEND"] = args.backend  # of the processes that it starts
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    sets = dict(train=(args.states, 1), tune=(args.held_out, 2), test=(args.held_out, 3))
    missing = [split for split in sets if not (folder / f"{split}-obs.npy").exists()]
    with _processes(args.workers) as pool:
        for split in missing:
            for key, value in make_data(args, pool, split, *sets[split]).items():
                np.save(folder / f"{split}-{key}.npy", value)
    print(f"data after {time.perf_counter() - began:.1f} s", flush=True)
    (folder / "args.json").write_text(json.dumps(dataclasses.asdict(args)))
    path = folder / "regress.csv"
    rows = [row for row in read_rows(path) if row["arm"] not in args.arms]
    with _processes(args.jobs, max_tasks_per_child=1) as pool:
        started = [pool.submit(_try_arm, args, name) for name in args.arms]
        for done in as_completed(started):
            rows += done.result()
            write_rows(path, sorted(rows, key=lambda row: row["arm"]))


def _try_arm(args, name):
    try:
        return train_arm(args, name)
    except Exception as error:  # the others go on
        print(f"{name} failed: {error!r}"[:2000], flush=True)
        return []


if __name__ == "__main__":
    main(tyro.cli(Args))
