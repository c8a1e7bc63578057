"""Train networks on the exact values of a puzzle's states: what a network can hold at best.

    KERAS_BACKEND=jax python benchmarks/search/regress.py --out=runs/search --size=5 --boxes=1

The networks are tfdqt's own, built by Keras for JAX, so that one compiled program trains all seeds
and learning rates of an arm at a time, on a GPU if there is one. Needs `pip install jax optax`.
States come from levels of the set "train"; the learning rate of an arm is the one with the least
loss on levels of the set "tune"; what is reported is of levels of the set "test".

Writes for every arm OUT/ARM.npz, the weights [seeds, W] of its best rate in the order of
`tfdqt.games.flat`, and rows of OUT/regress.csv.
"""

import dataclasses
import functools
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import numpy as np
import tyro
from arms import build_arm, puzzle_info

from tfdqt.puzzles.puzzle import optimal_q
from tfdqt.runs.log import write_rows


@dataclasses.dataclass(frozen=True)
class Args:
    """Regression on exact values."""

    out: str = "runs/search"
    """Folder of what is written."""
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


def _some_states(args, split, seed, count):
    rng = np.random.default_rng(seed)
    if not args.boxes:
        from tfdqt.puzzles.lights_solver import dataset

        return dataset(rng, count, size=args.size, split=split)
    from tfdqt.puzzles.solver import dataset

    return dataset(rng, count, size=args.size, boxes=args.boxes, split=split, states=128)


def make_data(args, split, count, seed):
    """Observations [n, F] uint8 with the mask, values [n, A] and legal actions [n, A] bool."""
    each = -(-count // args.workers)
    seeds = [(seed, i) for i in range(args.workers)]
    with ProcessPoolExecutor(args.workers) as pool:
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


def loss_of(q, target, legal):
    """The error of the mean of the values plus that of the advantages, by the state's value.

    q, target, legal: [B, A] -> [B]. The advantages count in states that can be solved, the more
    the less they are worth: where the solution is far all values are small.
    """
    import jax.numpy as jnp

    count = legal.sum(-1)
    error = jnp.where(legal, q - target, 0.0)
    mean = error.sum(-1) / count
    deviation = jnp.where(legal, error - mean[:, None], 0.0)
    value = jnp.where(legal, target, -jnp.inf).max(-1)
    spread = (deviation**2).sum(-1) / count
    return mean**2 + jnp.where(value > 0, 5 * spread / (value + 0.1) ** 2, 0.0)


def train_arm(args, name):
    """Train an arm at all rates and seeds: -> rows for the CSV; the weights are written."""
    import jax
    import jax.numpy as jnp
    import keras
    import optax

    from tfdqt.games.blocks import LoopLimit

    began = time.perf_counter()
    info = puzzle_info("sokoban" if args.boxes else "lights", args.size)
    starts = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        keras.utils.set_random_seed(seed)
        model = build_arm(name, info)
        starts.append([variable.value for variable in model.trainable_variables])
    fixed = [variable.value for variable in model.non_trainable_variables]
    limited = [layer for layer in model.layers if isinstance(layer, LoopLimit)]
    runs = [(rate, seed) for rate in args.rates for seed in range(args.seeds)]
    weights = [jnp.stack(part) for part in zip(*(starts[seed] for _, seed in runs))]
    rates = jnp.array([rate for rate, _ in runs])
    data = {
        split: {
            key: jax.device_put(np.load(f"{args.out}/{split}-{key}.npy"))
            for key in ("obs", "q", "legal")
        }
        for split in ("train", "tune", "test")
    }
    size = len(data["train"]["obs"])

    def values(weights, fixed, obs):
        inputs = dict(obs=obs[:, None], first=jnp.ones((len(obs), 1), jnp.int32))
        return model.stateless_call(weights, fixed, inputs)[0][:, 0, :, 0]

    def loss(weights, fixed, batch):
        q = values(weights, fixed, batch["obs"])
        return loss_of(q, batch["q"], batch["legal"]).mean()

    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(eps=1e-6))

    def update(run, state, key):
        weights, moments, count = state
        rows, loops = jax.random.split(key)
        chosen = jax.random.randint(rows, (args.batch,), 0, size)
        batch = {key: each[chosen] for key, each in data["train"].items()}
        now = fixed
        if limited:
            drawn = jax.random.randint(loops, (), 1, limited[0].loops + 1).astype(jnp.float32)
            now = [drawn]
        error, gradient = jax.value_and_grad(loss)(weights, now, batch)
        step, moments = adam.update(gradient, moments)
        part = count / args.updates
        rate = rates[run] * jnp.minimum(1, count / 500) * (0.51 + 0.49 * jnp.cos(jnp.pi * part))
        weights = [one - rate * by for one, by in zip(weights, step)]
        return (weights, moments, count + 1), error

    @jax.jit
    def train(which, states, keys):
        def one_run(run, state, keys):
            return jax.lax.scan(functools.partial(update, run), state, keys)

        states, errors = jax.vmap(one_run)(which, states, keys)
        return states, errors.mean(1)

    @jax.jit
    def examine(weights, batch):
        def one_run(weights):
            q = values(weights, fixed, batch["obs"])
            legal = batch["legal"]
            target = batch["q"]
            best = jnp.where(legal, target, -1).max(-1)
            chosen = jnp.where(legal, q, -jnp.inf).argmax(-1)
            got = jnp.take_along_axis(target, chosen[:, None], 1)[:, 0]
            return dict(
                loss=loss_of(q, target, legal).sum(),
                squared=jnp.where(legal, (q - target) ** 2, 0).sum(),
                optimal=jnp.where(best > 0, got == best, False).sum(),
            )

        return jax.vmap(one_run)(weights)

    def report(weights, split):
        held = data[split]
        rows = len(held["obs"])
        sums = {}
        for begin in range(0, rows, 2_000):
            part = {key: each[begin : begin + 2_000] for key, each in held.items()}
            for key, value in examine(weights, part).items():
                sums[key] = sums.get(key, 0) + np.asarray(value, np.float64)
        legal = np.asarray(held["legal"])
        target = np.asarray(held["q"])
        spread = ((target - target[legal].mean())[legal] ** 2).sum()
        alive = (np.where(legal, target, 0).max(-1) > 0).sum()
        return dict(
            loss=sums["loss"] / rows,
            r2=1 - sums["squared"] / spread,
            optimal=sums["optimal"] / alive,
        )

    # A GPU trains all side by side; to a CPU batches of matrix products are slow.
    at_once = len(runs) if jax.default_backend() == "gpu" else 1
    chunk = max(1, args.updates // 20)
    trained = []
    for begin in range(0, len(runs), at_once):
        which = jnp.arange(begin, begin + at_once)
        of_group = [part[begin : begin + at_once] for part in weights]
        state = (of_group, jax.vmap(adam.init)(of_group), jnp.zeros(at_once))
        keys = jnp.stack([jax.random.key(10_000 + args.first_seed + runs[i][1]) for i in which])
        for done in range(0, args.updates, chunk):
            of_chunk = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, done), chunk))
            state, errors = train(which, state, of_chunk(keys))
            seconds = time.perf_counter() - began
            print(f"{name} {done + chunk} {seconds:.1f}s {np.asarray(errors).round(4)}", flush=True)
        trained.append(state[0])
    weights = [jnp.concatenate(parts) for parts in zip(*trained)]
    tuned = report(weights, "tune")
    tested = report(weights, "test")
    by_rate = np.nan_to_num(tuned["loss"], nan=1e9).reshape(len(args.rates), args.seeds).mean(1)
    best = int(by_rate.argmin())
    kept = [best * args.seeds + seed for seed in range(args.seeds)]
    parts = [*weights, *(jnp.stack([each] * len(runs)) for each in fixed)]
    flat = np.concatenate([np.asarray(part).reshape(len(runs), -1) for part in parts], 1)
    np.savez(f"{args.out}/{name}.npz", weights=flat[kept], rate=args.rates[best])
    print(f"{name} done {time.perf_counter() - began:.1f}s", tested, flush=True)
    return [
        dict(
            arm=name,
            seed=args.first_seed + seed,
            rate=rate,
            kept=run in kept,
            weights=flat.shape[1],
            updates=args.updates,
            batch=args.batch,
            seconds=round(time.perf_counter() - began, 1),
            **{f"tune_{key}": float(value[run].round(5)) for key, value in tuned.items()},
            **{f"test_{key}": float(value[run].round(5)) for key, value in tested.items()},
        )
        for run, (rate, seed) in enumerate(runs)
    ]


def main(args):
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    sets = dict(train=(args.states, 1), tune=(args.held_out, 2), test=(args.held_out, 3))
    for split, (count, seed) in sets.items():
        if (folder / f"{split}-obs.npy").exists():
            continue
        made = make_data(args, split, count, seed)
        for key, value in made.items():
            np.save(folder / f"{split}-{key}.npy", value)
    print(f"data after {time.perf_counter() - began:.1f} s", flush=True)
    (folder / "args.json").write_text(json.dumps(dataclasses.asdict(args)))
    rows = []
    with ProcessPoolExecutor(args.jobs, max_tasks_per_child=1) as pool:
        started = [pool.submit(_try_arm, args, name) for name in args.arms]
        for done in as_completed(started):
            rows += done.result()
            write_rows(folder / "regress.csv", sorted(rows, key=lambda row: row["arm"]))


def _try_arm(args, name):
    try:
        return train_arm(args, name)
    except Exception as error:  # the others go on
        print(f"{name} failed: {error!r}"[:2000], flush=True)
        return []


if __name__ == "__main__":
    main(tyro.cli(Args))
