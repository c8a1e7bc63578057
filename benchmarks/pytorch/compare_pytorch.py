"""tfdqt beside the legacy PyTorch proof of concept, on speed and on learning, from equal settings.

    python -m venv .torch && .torch/bin/pip install -r old_pytorch/requirements.txt
    python scripts/compare_pytorch.py --torch-python=.torch/bin/python --name=CartPole-v1 --out=runs/pytorch

Both train the same GPT by the same update on as many environment steps: double Q, n-step returns, batch, updates per step, rates
and target are those of tfdqt's defaults for --name, without what the proof of concept has not (quantiles, dueling, advantage
learning, acting by an average of weights). tfdqt steps its usual number of environments in worker processes, the proof of concept a
single one. They run in turn, one after the other. Printed for each seed: environment steps a second over the last half of the run
(so that imports and compilation are left out), seconds of the whole, and mean return of the last 100 games.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro

from tfdqt.checks import check_dqn
from tfdqt.config import UsageError, default_config
from tfdqt.runs import check_at_least_one, read_csv, run_main, write_rows

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("context", "layers", "heads", "width")
SHARED = ("total_steps", "batch_size", "learning_rate", "final_learning_rate", "learning_starts", "replay_size", "epsilon_fraction",
          "epsilon_end", "target_tau", "gamma", "n_step", "huber_delta", "adam_epsilon", "max_grad_norm", "life_loss_ends")
SIDES = {"tfdqt": "tfdqt", "pytorch": "old_pytorch"}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train tfdqt and the PyTorch proof of concept from equal settings, and compare speed and learning."""

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
    network, cfg = default_config(args.name)
    cfg = dataclasses.replace(cfg, total_steps=args.total_steps or cfg.total_steps)
    check_dqn(cfg)
    every = 1 / cfg.updates_per_step
    if every != int(every):
        raise UsageError(f"{args.name} learns {cfg.updates_per_step} times a step, but the proof of concept needs a whole number of "
                         "steps per update; choose another --name.")
    both = {key: getattr(network, key) for key in SIZES} | {key: getattr(cfg, key) for key in SHARED}
    ours = {key: value for key, value in both.items() if key != "life_loss_ends"}
    flag = "--life-loss-ends" if cfg.life_loss_ends else "--no-life-loss-ends"
    return {
        "tfdqt": [sys.executable, "scripts/run_dqn.py", *flags_of(name=args.name, seed=seed, threads=args.threads, quantiles=0,
                  min_change=0.0, advantage_learning=0.0, target_epsilon=0.0, acting_tau=1.0, updates_per_step=cfg.updates_per_step,
                  run_dir=folder / "tfdqt", **ours), "--no-dueling", "--double", "--reward-transform=none", flag],
        "pytorch": [args.torch_python, "old_pytorch/gpt_dqn.py", *flags_of(name=args.name, seed=seed, threads=args.torch_threads,
                    steps_per_update=int(every), out=folder / "pytorch.csv", **both)],
    }


def measure(log):
    """What a log says: steps a second over its last half, seconds in all, mean return at the end."""
    seconds, step = log["seconds"], log["step"]
    middle = np.searchsorted(step, step[-1] / 2)
    rate = (step[-1] - step[middle]) / (seconds[-1] - seconds[middle]) if seconds[-1] > seconds[middle] else float("nan")
    return dict(steps_per_second=float(rate), seconds=float(seconds[-1]), mean_return=float(log["mean_return"][-1]))


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "seeds", "total_steps", "threads", "torch_threads")
    out = Path(args.out).absolute()
    python = shutil.which(args.torch_python)
    if not python:
        raise UsageError(f"{args.torch_python} is no python; make one with python -m venv and old_pytorch/requirements.txt.")
    args = dataclasses.replace(args, torch_python=os.path.abspath(python))  # not resolved: a link in an environment is that environment's
    rows, logs = [], {label: [] for label in SIDES.values()}
    for seed in range(args.seeds):
        folder = out / f"seed-{seed}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"{folder} can't be made ({error.strerror}); choose another --out.") from None
        for side, words in commands(args, seed, folder).items():
            ended = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True)
            if ended.returncode:
                raise UsageError(f"{' '.join(map(str, words))} failed: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
            log = read_csv(folder / "pytorch.csv" if side == "pytorch" else folder / "tfdqt" / "log.csv")
            logs[SIDES[side]].append(log)
            rows.append(dict(env=args.name, side=side, seed=seed, **measure(log)))
            print("{env}, seed {seed}, {side:8} {steps_per_second:7,.0f} steps/s, {seconds:7.1f} s in all, mean return {mean_return:.1f}"
                  .format(**rows[-1]), flush=True)
    by_side = {side: np.array([row["steps_per_second"] for row in rows if row["side"] == side]) for side in SIDES}
    ratios = by_side["tfdqt"] / by_side["pytorch"]
    print(f"tfdqt makes {ratios.min():.2f} to {ratios.max():.2f} (median {np.median(ratios):.2f}) times the environment steps a second.")

    from tfdqt.plots import plot_learning

    write_rows(out / "pytorch.csv", rows)
    plot_learning(logs, out / "pytorch.png", title=args.name)
    print(out / "pytorch.png")
    return 0


if __name__ == "__main__":
    run_main(main)
