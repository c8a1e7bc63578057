"""Does this checkout learn the same bits as another one?

    git worktree add ../before COMMIT
    python benchmarks/bits/same_bits.py ../before
    python benchmarks/bits/same_bits.py ../before --only cartpole maze --checks train

Short runs of one seed, on one machine. Four checks of each:

  train     Both checkouts train the run; the newest checkpoints hold the same, bit for bit.
  resume    Both go on with the other checkout's run; their newest checkpoints hold the same.
  evaluate  Both play the same games with the other checkout's network.
  export    This checkout writes the other's network as a SavedModel.

Printed is a line a check. The exit code is 1 if anything differs. The other checkout's runs stay in
--folder and are not trained again.
"""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

THIS = Path(__file__).resolve().parents[2]
CHECKS = ("train", "resume", "evaluate", "export")


class Run(NamedTuple):
    """A short run: its script, its flags, and those of `--resume` that make it longer."""

    script: str
    flags: tuple
    longer: tuple
    play: tuple = ("--episodes=5", "--workers=0")  # flags of evaluate.py


def game(script, name, *flags):
    """A run of a gymnasium environment for 3,072 steps, then for 6,144."""
    common = (f"--name={name}", "--total-steps=3072", "--threads=2", "--workers=0")
    return Run(script, (*common, *flags), ("--total-steps=6144", "--threads=2", "--workers=0"))


def text(*flags):
    """A run of a text task for one pass over its data, then for another."""
    common = ("--epochs=1", "--games=64", "--threads=2")
    return Run("run_text.py", (*flags, *common), ("--epochs=2", "--threads=2"), ("--episodes=64",))


RUNS = {
    "cartpole": game("run_dqn.py", "CartPole-v1"),
    "breakout": game("run_dqn.py", "Breakout-ram-v0", "--learning-starts=512"),
    "ppo-cartpole": game("run_ppo.py", "CartPole-v1"),
    "ppo-breakout": game("run_ppo.py", "Breakout-ram-v0"),
    "maze": text("--task=maze", "--episodes=300"),
    "wordle": text("--task=wordle", "--episodes=25000"),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train by this checkout and another one, and compare the bits."""

    other: tyro.conf.Positional[str]
    """Folder of the other checkout, usually an older one."""
    only: tuple[Literal[tuple(RUNS)], ...] = tuple(RUNS)
    """Runs to compare."""
    checks: tuple[Literal[CHECKS], ...] = CHECKS
    """What to check of them."""
    folder: str = "runs/bits"
    """Folder for all runs. Those of the other checkout are kept for the next call; delete the
    folder when that checkout changes."""


class Failed(Exception):
    """A script ended with an error; the message is its last line."""


# --------------------------------------------------------------------------------------------------
# Scripts of a checkout


def environ_of(checkout):
    """Environment variables with which a checkout's scripts import its own package."""
    return {**os.environ, "PYTHONPATH": str(checkout)}


def check_checkout(checkout):
    """Exit with a sentence unless `tfdqt` is the package of this checkout there."""
    code = "import tfdqt; print(tfdqt.__file__)"
    # -P: not from the folder this was called in, which a script does not look into either.
    command = [sys.executable, "-P", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, env=environ_of(checkout))
    if ended.returncode or not Path(ended.stdout.strip()).is_relative_to(checkout):
        sys.exit(f"{checkout} is no checkout of tfdqt; give the folder that holds tfdqt/.")


def call(checkout, script, *flags):
    """Run a script of a checkout. Raises Failed."""
    command = [sys.executable, str(checkout / "scripts" / script), *map(str, flags)]
    ended = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, env=environ_of(checkout)
    )
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no message"]
        raise Failed(f"{checkout.name}/scripts/{script} failed: {lines[-1]}")


def train(checkout, run, folder):
    """Train a run from its start."""
    shutil.rmtree(folder, ignore_errors=True)
    call(checkout, run.script, *run.flags, f"--run-dir={folder}")


def resume(checkout, run, start, folder):
    """Go on with a copy of the run in `start`."""
    copy(start, folder)
    call(checkout, run.script, f"--resume={folder}", *run.longer)


def evaluate(checkout, run, start, folder):
    """Play with a copy of the run in `start`."""
    copy(start, folder)
    call(checkout, "evaluate.py", folder, *run.play)


def copy(start, folder):
    """Copy a run, over an older copy."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)


# --------------------------------------------------------------------------------------------------
# Checkpoints


def leaves_of(tree, arrays, path=""):
    """The leaves of a checkpoint's tree: dict path -> array or plain value."""
    if isinstance(tree, dict) and "__array__" in tree:
        return {path: arrays[tree["__array__"]]}
    if isinstance(tree, dict) and "__tuple__" in tree:
        tree = tree["__tuple__"]
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {path: tree}
    leaves = {}
    for key, value in tree.items():
        leaves |= leaves_of(value, arrays, f"{path}/{key}")
    return leaves


def read_checkpoint(run_dir):
    """The leaves of a run's newest checkpoint, the same for every version of tfdqt."""
    newest = max((run_dir / "checkpoints").glob("step-*"))
    tree = json.loads((newest / "tree.json").read_text(encoding="utf-8"))
    with np.load(newest / "arrays.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return leaves_of(tree, arrays)


def without_env_states(leaves):
    """The leaves of a checkpoint but those of what environments keep inside."""
    return {
        path: leaf for path, leaf in leaves.items() if not re.match(r"/envs/\d+/env(/|$)", path)
    }


def equal(one, other):
    """Whether two leaves are the same bits; NaN equals NaN."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.tobytes() == other.tobytes()
    return type(one) is type(other) and repr(one) == repr(other)


def differences(theirs, ours):
    """How our leaves differ from theirs: list of sentences. What only we have is no difference."""
    lines = []
    for path, leaf in theirs.items():
        if path not in ours:
            lines.append(f"{path} is missing")
        elif not equal(leaf, ours[path]):
            lines.append(f"{path} {describe(leaf, ours[path])}")
    return lines


def describe(one, other):
    """How two leaves differ, in words."""
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return f"is {str(other)[:40]}, not {str(one)[:40]}"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"is {other.dtype} {other.shape}, not {one.dtype} {one.shape}"
    if one.dtype.kind not in "fiu":
        return "differs"
    return f"differs by up to {np.nanmax(np.abs(one.astype(float) - other.astype(float))):.3g}"


# --------------------------------------------------------------------------------------------------
# The checks: each returns (what was the same, list of differences)


def check_train(other, run, folder):
    """Both train; the other checkout only if it has not yet."""
    theirs = train_other(other, run, folder)
    ours = folder / "this-train"
    train(THIS, run, ours)
    return compare_checkpoints(theirs, ours)


def train_other(other, run, folder):
    """The other checkout's run, trained if it is not there: -> its folder."""
    theirs = folder / "other-train"
    if not (theirs / "done").exists():
        train(other, run, theirs)
        (theirs / "done").touch()
    return theirs


def check_resume(other, run, folder):
    """Both go on with the other's run."""
    start = train_other(other, run, folder)
    theirs = folder / "other-resume"
    if not (theirs / "resumed").exists():
        resume(other, run, start, theirs)
        (theirs / "resumed").touch()
    ours = folder / "this-resume"
    resume(THIS, run, start, ours)
    return compare_checkpoints(theirs, ours)


def compare_checkpoints(theirs, ours):
    """Compare the newest checkpoints of two runs."""
    # How an environment's own state is written is no part of what was learned. Whether it is the
    # same shows when this checkout goes on with the other's run.
    before = without_env_states(read_checkpoint(theirs))
    now = without_env_states(read_checkpoint(ours))
    arrays = sum(isinstance(leaf, np.ndarray) for leaf in before.values())
    same = f"{arrays} arrays and {len(before) - arrays} values"
    more = len(set(now) - set(before))
    if more:
        same += f"; {more} leaves are new"
    return same, differences(before, now)


def check_evaluate(other, run, folder):
    """Both play with the other's network."""
    start = train_other(other, run, folder)
    theirs = folder / "other-evaluate"
    ours = folder / "this-evaluate"
    evaluate(other, run, start, theirs)
    evaluate(THIS, run, start, ours)
    before = read_returns(theirs)
    now = read_returns(ours)
    lines = [] if before == now else [f"returns {now[:5]}, not {before[:5]}"]
    return f"{len(before)} returns", lines


def read_returns(run_dir):
    """The returns in a run's evaluation.csv, as they are written."""
    with open(run_dir / "evaluation.csv", newline="", encoding="utf-8") as file:
        return [row["return"] for row in csv.DictReader(file)]


def check_export(other, run, folder):
    """This checkout exports the other's network."""
    start = train_other(other, run, folder)
    out = folder / "saved_model"
    shutil.rmtree(out, ignore_errors=True)
    call(THIS, "export.py", start, out)
    missing = [] if (out / "saved_model.pb").exists() else ["no saved_model.pb was written"]
    return "a SavedModel", missing


def main():
    args = tyro.cli(Args, description=__doc__)
    other = Path(args.other).resolve()
    folder = Path(args.folder).resolve()
    for checkout in (other, THIS):
        check_checkout(checkout)
    check_functions = dict(
        train=check_train, resume=check_resume, evaluate=check_evaluate, export=check_export
    )
    failed = False
    for name in args.only:
        for check in args.checks:
            try:
                same, lines = check_functions[check](other, RUNS[name], folder / name)
            except Failed as error:
                same = ""
                lines = [str(error)]
            print(f"{name:14} {check:9} {'DIFFERENT' if lines else f'same, {same}'}", flush=True)
            for line in lines[:20]:
                print(f"    {line}", flush=True)
            if len(lines) > 20:
                print(f"    and {len(lines) - 20} more", flush=True)
            failed |= bool(lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
