"""Measure tfdqt's speed side by side with Stable-Baselines3 and eager PyTorch, on the CPU.

    python -m venv .bench
    .bench/bin/pip install -r benchmarks/speed/requirements-bench.txt
    python benchmarks/speed/benchmark.py --bench-python=.bench/bin/python
    python benchmarks/speed/benchmark.py --rows gpt-breakout

Each row is a pair of processes that both warm up (imports, compilation, the start of learning) and
then measure in turn, A B A B: while one works, the other waits. Ratios are taken pair by pair.

  dense-cartpole  Our dense DQN against Stable-Baselines3's: same network, batch, updates per step,
  dense-breakout  replay size, target network, fixed epsilon. What is timed is the training loop
                  itself, between two calls of its callback. Ours is measured as it is meant to be
                  used: --num-envs environments in processes of their own, which step them while the
                  learner learns. Stable-Baselines3's DQN works in one process (torch's threads
                  aside), in its usual form with one environment; --sb3-envs gives it more of them.
  gpt-update      Our update of the GPT (target network, double Q, gradient, clipping, Adam, Polyak)
                  against the same in eager PyTorch, from the same weights on the same batches; that
                  their losses agree is checked first. Ours does as many updates in a call as
                  training does.
  ppo-cartpole    Our PPO against Stable-Baselines3's: same dense network under policy and value,
  ppo-breakout    environments, rollouts, batch and passes over them; theirs in its usual
                  DummyVecEnv, ours with as many processes as run_ppo.py takes.
  gpt-breakout    Our training run of the GPT on Breakout-ram-v0, at what its target is stated for
                  (one update per 4 steps, batch 32, context 4) and otherwise with the default
                  settings.

The arithmetic floor is the time that an update's matrix products alone would take at the rate of a
large float32 matrix product, measured in the same process after each measurement. Elementwise work,
lookups and environments are not in it.
"""

import dataclasses
import functools
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import tyro
from measured_process import ask, machine, other_environ, start, stop
from rows import RowName, describe, make_rows, matmul_flops, updates_per_call

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS, default_parallel
from tfdqt.games.envs import info_of, make_env
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import write_rows
from tfdqt.settings import check_at_least_one

HERE = Path(__file__).resolve().parent
INSTALL = (
    "make one by `python -m venv .bench && .bench/bin/pip install -r "
    "benchmarks/speed/requirements-bench.txt` and give --bench-python=.bench/bin/python, or choose "
    "--rows gpt-breakout."
)
HEADER = (
    "row", "unit", "ours", "theirs", "ratio min/median/max", "floor ours", "floor theirs", "target"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure tfdqt's speed side by side with Stable-Baselines3 and eager PyTorch."""

    bench_python: str | None = None
    """The python of an environment made from requirements-bench.txt; gpt-breakout needs none."""
    rows: tuple[RowName, ...] = get_args(RowName)
    """What to measure."""
    repeats: int = 5
    """Measurements of each side."""
    steps: int = 10_000
    """Environment steps per measurement; gpt-update does the updates that belong to them."""
    out: str = "benchmarks/speed/speed.csv"
    """CSV of every measurement; an older one is replaced."""
    num_envs: int | None = None
    """Environments of our side in the dense DQN rows, by default as many as tfdqt's default
    settings for them have."""
    sb3_envs: int = 1
    """Environments of Stable-Baselines3's DQN, in its DummyVecEnv."""
    workers: int | None = None
    """Processes that step the environments of our side, by default as many as the training scripts
    have; 0: none."""
    threads: int | None = None
    """Threads inside TensorFlow's operations, by default as many as the training scripts have."""
    torch_threads: int = 0
    """Threads of torch (0: as many as torch chooses or one, whichever a short try finds faster)."""


# --------------------------------------------------------------------------------------------------
# Arguments


def check_args(args):
    """The rows to measure. Raises UsageError for arguments that can't work."""
    check_at_least_one(args, "repeats", "steps", "num_envs", "sb3_envs", "threads")
    if args.workers is not None and args.workers < 0:
        raise UsageError("--workers must be 0 or more.")
    if args.torch_threads < 0:
        raise UsageError(f"--torch-threads must be 0 or more, not {args.torch_threads}.")
    if not args.rows:
        raise UsageError("--rows must name at least one row.")
    every = make_rows(args.num_envs)
    rows = [every[name] for name in args.rows]
    for row in rows:
        ALGORITHMS[row.algorithm].check(row.network, row.cfg)
        if row.algorithm == "dqn" and row.theirs == "sb3.py":
            check_sb3_envs(args.sb3_envs, row.cfg.updates_per_step)
    if any(row.theirs for row in rows):
        check_bench_python(args.bench_python)
    return rows


def check_sb3_envs(envs, updates_per_step):
    """Raise UsageError unless so many environments can keep the ratio of updates to steps."""
    each = updates_per_step * envs
    updates = each * max(1, round(1 / each))
    if abs(updates - round(updates)) > 1e-6:
        raise UsageError(
            f"--sb3-envs={envs} can't keep {updates_per_step:g} updates per step; choose 1 or a "
            f"multiple of {round(1 / updates_per_step)}."
        )


def check_bench_python(python):
    """Raise UsageError if `python` can't import what we measure against."""
    if python is None:
        raise UsageError(
            "Stable-Baselines3 and PyTorch are measured in an environment of their own: " + INSTALL
        )
    command = [python, "-c", "import torch, stable_baselines3, gymnasium, ale_py"]
    try:
        subprocess.run(command, check=True, capture_output=True, env=other_environ())
    except OSError as error:
        raise UsageError(
            f"--bench-python={python} can't be started ({error.strerror}): {INSTALL}"
        ) from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise UsageError(
            f"--bench-python={python} can't import stable_baselines3 ({lines[-1]}): {INSTALL}"
        ) from None


def command_line(args):
    """The command, without what is particular to one machine."""
    left_out = ("bench_python", "rows", "out")
    flags = [
        f"--{field.name.replace('_', '-')}={getattr(args, field.name)}"
        for field in dataclasses.fields(args)
        if field.name not in left_out and getattr(args, field.name) != field.default
    ]
    return shlex.join(["python", "benchmarks/speed/benchmark.py", "--rows", *args.rows, *flags])


# --------------------------------------------------------------------------------------------------
# Measuring


def settings_of(row, args, info, folder):
    """What both sides of a row are told."""
    warm_up = 1_000
    if row.algorithm == "dqn":
        warm_up += row.cfg.learning_starts
    settings = dict(
        env=row.env,
        theirs_env=row.theirs_env,
        unit=row.unit,
        network=dataclasses.asdict(row.network),
        algorithm=row.algorithm,
        cfg=dataclasses.asdict(row.cfg),
        actions=info.num_actions,
        torch_threads=args.torch_threads,
        sb3_envs=args.sb3_envs,
        warm_up=warm_up,
        updates_per_call=updates_per_call(row),
        exchange=str(Path(folder, "update.npz")),
        **default_parallel(row.env, row.algorithm),
    )
    for key in ("workers", "threads"):
        if getattr(args, key) is not None:
            settings[key] = getattr(args, key)
    return settings


def check_losses(ours, theirs):
    """Raise UsageError unless both sides, from equal weights and batches, had equal losses."""
    theirs = np.reshape(theirs["losses"], (-1, ours["updates_per_call"])).mean(axis=1)
    if not np.allclose(ours["losses"], theirs, rtol=1e-2):
        raise UsageError(
            f"The two GPT updates are not the same: mean losses {ours['losses']} against "
            f"{theirs.tolist()}; compare tfdqt/games/networks.py and tfdqt/games/dqn.py with "
            "benchmarks/speed/torch_update.py."
        )


def entry_of(row, repeat, side, answer, about, flops):
    """One measurement as a row of the CSV."""
    about = {key: about[key] for key in about if key not in ("losses", "updates_per_call")}
    floor = flops * answer["updates"] / answer["matmul_rate"]
    return dict(
        row=row.name,
        repeat=repeat,
        side=side,
        unit=row.unit,
        **answer,
        per_second=answer["count"] / answer["seconds"],
        matmul_flops_per_update=flops,
        floor_percent=100 * floor / answer["seconds"],
        **about,
    )


def measure(row, args, info):
    """Measure one row: -> list of dicts, one a measurement, ours and theirs in turn."""
    flops = matmul_flops(row, info)
    goal = args.steps
    if row.unit == "updates":
        goal = max(1, round(args.steps * row.cfg.updates_per_step))
    entries = []
    sides = []
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(row, args, info, folder)
        try:
            ours = [sys.executable, str(HERE / "ours.py")]
            sides.append(("ours", *start(ours, settings)))
            if row.theirs:
                theirs = [args.bench_python, str(HERE / row.theirs)]
                sides.append(("theirs", *start(theirs, settings, other_environ())))
            if row.unit == "updates":
                check_losses(sides[0][2], sides[1][2])
            for repeat in range(args.repeats):
                for side, process, about in sides:
                    answer = ask(process, goal)
                    entries.append(entry_of(row, repeat, side, answer, about, flops))
                rates = [entry["per_second"] for entry in entries[-len(sides) :]]
                line = " against ".join(f"{rate:,.0f}" for rate in rates) + f" {row.unit}/s"
                if row.theirs:
                    line += f", {rates[0] / rates[1]:.2f}x"
                print(f"  {repeat + 1}/{args.repeats}: {line}", flush=True)
        finally:
            for _, process, _ in sides:
                stop(process)
    return entries


# --------------------------------------------------------------------------------------------------
# Telling


def summary(row, entries):
    """One line of the table, with the columns of HEADER."""

    def column(side, key):
        return np.array([entry[key] for entry in entries if entry["side"] == side])

    sides = ("ours", "theirs") if row.theirs else ("ours",)
    none = ["-"] * (2 - len(sides))
    medians = [f"{np.median(column(side, 'per_second')):,.0f}" for side in sides] + none
    floors = [f"{np.median(column(side, 'floor_percent')):.1f}%" for side in sides] + none
    if row.theirs:
        ratios = column("ours", "per_second") / column("theirs", "per_second")
        reached = np.median(ratios)
        ratio = f"{ratios.min():.2f} / {reached:.2f} / {ratios.max():.2f}"
        target = f">= {row.target:g}x"
    else:
        reached = np.median(column("ours", "per_second"))
        ratio = "-"
        target = f">= {row.target:g}"
    target += ": met" if reached >= row.target else ": missed"
    return [row.name, f"{row.unit}/s", *medians, ratio, *floors, target]


def write(path, entries):
    """Write all measurements so far."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, entries)
    except OSError as error:
        raise UsageError(
            f"{path} can't be written ({error.strerror}); choose another --out."
        ) from None


def print_table(lines):
    """Columns as wide as their widest entry."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip())


def main():
    args = tyro.cli(Args, description=__doc__)
    rows = check_args(args)

    about = dict(machine(), command=command_line(args))
    print(f"{about['cpu']}, {about['cores']} cores, {about['date']}")
    entries = []
    lines = [HEADER]
    for row in rows:
        print(f"{row.name}: {describe(row)}", flush=True)
        info = info_of(functools.partial(make_env, row.env), row.env)
        measured = measure(row, args, info)
        entries += [dict(entry, **about) for entry in measured]
        write(args.out, entries)
        lines.append(summary(row, measured))
    print(
        "\nMedians. Floor: the part of the time that the update's matrix products alone would take."
    )
    if any(row.theirs == "sb3.py" and row.algorithm == "dqn" for row in rows):
        print(
            "Dense DQN rows: ours steps the environments while the learner learns; "
            f"Stable-Baselines3's DQN steps {args.sb3_envs} in its only process."
        )
    print_table(lines)
    print(f"Every measurement: {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
