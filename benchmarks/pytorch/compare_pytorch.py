"""tfdqt and the legacy PyTorch proof of concept side by side, on speed and on learning.

    python -m venv .torch && .torch/bin/pip install -r old_pytorch/requirements.txt
    python benchmarks/pytorch/compare_pytorch.py --torch-python=.torch/bin/python --out=runs/pytorch

Both train the same GPT by the same update on as many environment steps: double Q, n-step returns,
batch, updates per step, rates and target are those of tfdqt's defaults for --name, without what the
proof of concept has not (quantiles, dueling, advantage learning, acting by an average of weights).
tfdqt steps its usual number of environments in worker processes, the proof of concept a single one.
They run in turn. Printed for each seed: environment steps a second over the last half of the run
(so that imports and compilation are left out), seconds of the whole, and mean return of the last
100 games.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import default_settings
from tfdqt.games.dqn import check_settings
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import read_csv, write_rows
from tfdqt.runs.plots import plot_learning
from tfdqt.settings import check_at_least_one

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("context", "layers", "heads", "width")
SHARED = (
    "total_steps",
    "batch_size",
    "learning_rate",
    "final_learning_rate",
    "learning_starts",
    "replay_size",
    "epsilon_fraction",
    "epsilon_end",
    "target_tau",
    "gamma",
    "n_step",
    "huber_delta",
    "adam_epsilon",
    "max_grad_norm",
    "life_loss_ends",
)
OFF = dict(  # what the proof of concept does not have
    quantiles=0,
    min_change=0.0,
    advantage_learning=0.0,
    target_epsilon=0.0,
    acting_tau=1.0,
)
SIDES = {"tfdqt": "tfdqt", "pytorch": "old_pytorch"}  # and what the picture calls them


@dataclasses.dataclass(frozen=True)
class Args:
    """Train tfdqt and the proof of concept from equal settings; compare speed and learning."""

    torch_python: str
    """The python of an environment made from old_pytorch/requirements.txt."""
    name: str = "CartPole-v1"
    """Environment."""
    seeds: int = 3
    """Runs of each side."""
    total_steps: int | None = None
    """Environment steps of each run, by default as many as the environment has by default."""
    threads: int = max(1, os.cpu_count() or 1)
    """Threads of TensorFlow."""
    torch_threads: int = 1
    """Threads of torch; more are slower on networks as small as these."""
    out: str = "runs/pytorch"
    """Folder of the runs, the CSV and the picture."""


def flags_of(**values):
    """Fields as the words of a command line."""
    return [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]


def commands(args, seed, folder):
    """The two command lines of a seed: dict side -> words."""
    network, cfg = default_settings(args.name, "dqn")
    cfg = dataclasses.replace(cfg, total_steps=args.total_steps or cfg.total_steps)
    check_settings(cfg)
    every = 1 / cfg.updates_per_step
    if every != int(every):
        raise UsageError(
            f"{args.name} learns {cfg.updates_per_step} times a step, but the proof of concept "
            "needs a whole number of steps per update; choose another --name."
        )
    both = {key: getattr(network, key) for key in SIZES}
    both |= {key: getattr(cfg, key) for key in SHARED}
    ours = dict(both, updates_per_step=cfg.updates_per_step, threads=args.threads, **OFF)
    del ours["life_loss_ends"]  # on and off are flags of their own
    theirs = dict(both, steps_per_update=int(every), threads=args.torch_threads)
    common = flags_of(name=args.name, seed=seed)
    return {
        "tfdqt": [
            sys.executable,
            "scripts/run_dqn.py",
            *common,
            *flags_of(run_dir=folder / "tfdqt", **ours),
            "--no-dueling",
            "--double",
            "--reward-transform=none",
            "--life-loss-ends" if cfg.life_loss_ends else "--no-life-loss-ends",
        ],
        "pytorch": [
            args.torch_python,
            "old_pytorch/gpt_dqn.py",
            *common,
            *flags_of(out=folder / "pytorch.csv", **theirs),
        ],
    }


def measure(log):
    """What a log says: steps a second over its last half, seconds in all, return at the end."""
    seconds = log["seconds"]
    step = log["step"]
    middle = np.searchsorted(step, step[-1] / 2)
    passed = seconds[-1] - seconds[middle]
    rate = (step[-1] - step[middle]) / passed if passed > 0 else float("nan")
    return dict(
        steps_per_second=float(rate),
        seconds=float(seconds[-1]),
        mean_return=float(log["mean_return"][-1]),
    )


def run_seed(args, seed, folder):
    """Train both sides from a seed, one after the other: dict side -> log.

    Raises UsageError if the folder is there already, or a side fails.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"{folder} can't be made ({error.strerror}); choose another --out."
        ) from None
    logs = {}
    for side, words in commands(args, seed, folder).items():
        words = [str(word) for word in words]
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or ["no message"]
            raise UsageError(f"{' '.join(words)} failed: {lines[-1]}")
        name = "pytorch.csv" if side == "pytorch" else "tfdqt/log.csv"
        logs[side] = read_csv(folder / name)
    return logs


def absolute_python(python):
    """The full path of a python. Raises UsageError if it is none."""
    path = shutil.which(python)
    if not path:
        raise UsageError(
            f"{python} is no python; make one with python -m venv and old_pytorch/requirements.txt."
        )
    # Not resolved: a link in a virtual environment is that environment's python.
    return os.path.abspath(path)


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "seeds", "total_steps", "threads", "torch_threads")
    args = dataclasses.replace(args, torch_python=absolute_python(args.torch_python))
    out = Path(args.out).absolute()
    rows = []
    curves = {label: [] for label in SIDES.values()}
    for seed in range(args.seeds):
        for side, log in run_seed(args, seed, out / f"seed-{seed}").items():
            curves[SIDES[side]].append(log)
            rows.append(dict(env=args.name, side=side, seed=seed, **measure(log)))
            print(
                "{env}, seed {seed}, {side:8} {steps_per_second:7,.0f} steps/s, {seconds:7.1f} s "
                "in all, mean return {mean_return:.1f}".format(**rows[-1]),
                flush=True,
            )
    rates = {
        side: np.array([row["steps_per_second"] for row in rows if row["side"] == side])
        for side in SIDES
    }
    ratios = rates["tfdqt"] / rates["pytorch"]
    print(
        f"tfdqt makes {ratios.min():.2f} to {ratios.max():.2f} (median {np.median(ratios):.2f}) "
        "times the environment steps a second."
    )

    write_rows(out / "pytorch.csv", rows)
    plot_learning(curves, out / "pytorch.png", title=args.name)
    print(out / "pytorch.png")
    return 0


if __name__ == "__main__":
    run_main(main)
