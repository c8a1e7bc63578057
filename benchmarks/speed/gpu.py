"""What `gpu.sh` asks of a GPU: learning, the update at five shapes, one mirror, equal bits.

    python benchmarks/speed/gpu.py --out=runs/gpu

Writes OUT/gpu.json and prints a line for each question. Ends with exit code 1 if an answer is no.
`--device=CPU` asks a CPU the same, which tells whether this script works.

- CartPole-v1 by run_dqn.py: the last 100 games of 10,000 steps are longer than 40 on average, twice
  what random actions give.
- Milliseconds of an update on the device and on the CPU, medians, and whether the losses of both
  agree to 1e-3 of their size over the first updates.
- `--strategy=mirrored` with one device learns the same losses as without, to 1e-3.
- Two equal runs of 2,000 steps end with the same bits.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from meter import versions
from ours import random_steps
from rows import gpt_update

from tfdqt.backend import keras, tf
from tfdqt.errors import UsageError
from tfdqt.games import dqn
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.flat import flatten_q
from tfdqt.runs.checkpoint import load_checkpoint
from tfdqt.runs.cli import run_main
from tfdqt.runs.folder import locked
from tfdqt.runs.log import read_rows
from tfdqt.runs.processes import run_script

RUN_DQN = Path(__file__).resolve().parents[2] / "scripts" / "run_dqn.py"
SHAPES = {  # context, width, blocks, batch
    "CartPole's": (4, 32, 1, 64),
    "Breakout's": (4, 64, 2, 32),
    "DTQN's": (50, 128, 2, 32),
    "long": (256, 128, 2, 32),
    "wide": (16, 512, 4, 256),
}
UNTIMED = 2  # calls of an update, which compile
TIMED = 20  # calls after those
COMPARED = 3  # losses of the first calls
TOLERANCE = 1e-3  # part of a loss: products on a GPU add up in another order


@dataclasses.dataclass(frozen=True)
class Args:
    """Ask a device whether tfdqt works on it."""

    out: Path = Path("runs/gpu")
    """Folder of what is written."""
    device: Literal["GPU", "CPU"] = "GPU"
    """Which kind of device is asked."""
    shapes: tuple[Literal[tuple(SHAPES)], ...] = tuple(SHAPES)
    """Shapes of the update."""


def time_update(shape, device, turn):
    """Milliseconds of an update at a shape on a device, and the losses of the first calls.

    turn: path of a file; who holds its lock is timed, while the others compile.
    """
    from tfdqt.games.networks import build_q  # loads Keras

    context, width, layers, batch = SHAPES[shape]
    row = gpt_update()
    network = dataclasses.replace(row.network, context=context, width=width, layers=layers)
    cfg = dataclasses.replace(row.cfg, batch_size=batch, num_envs=4, chunk=1, updates_per_step=1.0)
    info = info_of(lambda: make_env(row.env))
    with tf.device(f"/{device}:0"):
        keras.utils.set_random_seed(0)
        net = flatten_q(build_q(info, network), info)
        state = dqn.first_state(net)
        update = dqn.make_update(net, cfg)
        steps = random_steps(info, cfg, 1, 4, context + cfg.n_step)
        steps = tf.nest.map_structure(lambda field: tf.constant(field[0]), steps)
        losses = []

        def call():
            nonlocal state
            start = time.perf_counter()
            state, diagnostics = update(state, steps)
            losses.append(float(diagnostics["loss"]))
            return 1000 * (time.perf_counter() - start) / 4

        for _ in range(UNTIMED):
            call()
        with locked(turn):
            taken = [call() for _ in range(TIMED)]
    return float(np.median(taken)), losses[:COMPARED]


def ask_updates(args):
    """Rows of every shape: milliseconds on both, and whether they agree."""
    asked = [(shape, device) for shape in args.shapes for device in (args.device, "CPU")]
    context = multiprocessing.get_context("spawn")
    ask = functools.partial(time_update, turn=args.out / "turn.lock")
    with ProcessPoolExecutor(min(len(asked), os.cpu_count()), mp_context=context) as pool:
        answers = dict(zip(asked, pool.map(ask, *zip(*asked))))
    rows = {}
    for shape in args.shapes:
        ms, losses = answers[shape, args.device]
        cpu_ms, cpu_losses = answers[shape, "CPU"]
        worst = float(np.max(np.abs(np.subtract(losses, cpu_losses)) / np.abs(cpu_losses)))
        rows[shape] = dict(
            shape=SHAPES[shape], ms=ms, cpu_ms=cpu_ms, worst=worst, holds=worst < TOLERANCE
        )
        print(f"update, {shape} shape: {ms:.2f} ms, CPU {cpu_ms:.2f}, losses differ by {worst:.1e}")
    return rows


def train(out, name, steps, *flags):
    """Train on CartPole-v1 in the folder OUT/NAME, by one thread: -> the rows of its log."""
    folder = out / name
    command = [sys.executable, str(RUN_DQN), "--name=CartPole-v1", f"--run-dir={folder}"]
    command += [f"--total-steps={steps}", "--workers=0", "--seed=0", *flags]
    run_script(command)
    return read_rows(folder / "log.csv")


def weights_of(folder):
    """The weights that act, of a run's last checkpoint."""
    saved, _ = load_checkpoint(folder)
    return ALGORITHMS["dqn"].acting_weights(saved)


def ask_runs(args):
    """What four runs, side by side, say: learning, equal bits, one mirror."""
    runs = (("learn", 10_000), ("one", 2_000), ("again", 2_000), ("mirrored", 2_000))
    flags = dict(mirrored=["--strategy=mirrored"])
    with ThreadPoolExecutor(len(runs)) as pool:
        started = {
            name: pool.submit(train, args.out, name, steps, *flags.get(name, ()))
            for name, steps in runs
        }
        logs = {name: run.result() for name, run in started.items()}
    last = float(logs["learn"][-1]["mean_return"])
    seconds = float(logs["learn"][-1]["seconds"])
    print(f"CartPole-v1, 10,000 steps: {last:.0f} in {seconds:.0f} s, beside the others")
    bits = np.array_equal(weights_of(args.out / "one"), weights_of(args.out / "again"))
    print(f"two equal runs end with the same bits: {bits}")
    first = next(i for i, row in enumerate(logs["one"]) if np.isfinite(float(row["loss"])))
    losses = [float(logs[name][first]["loss"]) for name in ("one", "mirrored")]
    worst = abs(losses[0] - losses[1]) / abs(losses[0])
    print(f"--strategy=mirrored with one device: losses differ by {worst:.1e}")
    return dict(
        learns=dict(mean_return=last, seconds=seconds, holds=last > 40),
        exact=dict(holds=bool(bits)),
        mirrored=dict(worst=worst, holds=worst < TOLERANCE),
    )


def main():
    args = tyro.cli(Args, description=__doc__)
    found = tf.config.list_physical_devices(args.device)
    if not found:
        raise UsageError(
            "TensorFlow finds no GPU; install NVIDIA's driver, or try --device=CPU to see what this"
            " would ask."
        )
    if (args.out / "learn").exists():
        raise UsageError(f"{args.out} holds an earlier answer; give another --out.")
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # several processes share it
    about = tf.config.experimental.get_device_details(found[0])
    answer = dict(
        device=about.get("device_name", platform.processor()),
        versions=versions("tensorflow", "keras", "numpy", "gymnasium"),
    )
    for ask in (lambda: dict(updates=ask_updates(args)), lambda: ask_runs(args)):
        answer |= ask()
        (args.out / "gpu.json").write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    asked = [*answer["updates"].values(), answer["learns"], answer["exact"], answer["mirrored"]]
    return 0 if all(each["holds"] for each in asked) else 1


if __name__ == "__main__":
    run_main(main)
