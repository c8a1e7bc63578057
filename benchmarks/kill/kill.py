"""Does a run that is killed again and again end with the same bits as an unbroken one?

    python benchmarks/kill/kill.py
    python benchmarks/kill/kill.py --only cartpole --kills 2

Each run is first trained unbroken. Then it is killed with SIGKILL, gone on with, killed again and
so on, until it ends; or started anew in its folder if it has no checkpoint yet. At its end every
array and value of its newest checkpoint and its log, but for the seconds, are compared with those
of the unbroken one. Then the next such chain begins, until there were --kills of them.

A fifth of the kills come at any time after the start of the process, a third while a checkpoint is
written, the others at any time after learning has begun. Printed is a line a chain; the exit code
is 1 if anything differs.
"""

import csv
import dataclasses
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.with_name("bits")))
from same_bits import THIS, describe, differences, environ_of, read_checkpoint  # noqa: E402

from tfdqt.runs.checkpoint import checkpoints, start_or_resume  # noqa: E402
from tfdqt.runs.log import write_rows  # noqa: E402

MOMENTS = {"start": 0.2, "checkpoint": 0.33, "learning": 0.47}  # with their probabilities
SECONDS = 600  # for which a process is waited for


class Run(NamedTuple):
    """A short run: its script, its flags, and those that stand beside --resume too."""

    script: str
    flags: tuple
    always: tuple


SMALL = ("--layers=1", "--heads=2", "--width=16")
DQN = ("--learning-starts=256", "--batch-size=8", "--replay-size=3000", "--checkpoint-every=256")
ALONE = ("--workers=0", "--threads=1")
MAZE = ("--task=maze", "--episodes=60", "--epochs=2", "--new-items=256", "--hidden=16")
RUNS = {
    "cartpole": Run("run_dqn", ("--name=CartPole-v1", "--total-steps=4096", *DQN, *SMALL), ALONE),
    "breakout": Run(
        "run_dqn",
        ("--name=Breakout-ram-v0", "--total-steps=3072", *DQN, *SMALL),
        ("--workers=1", "--threads=1"),
    ),
    "ppo": Run(
        "run_ppo",
        (
            "--name=CartPole-v1",
            "--total-steps=8192",
            "--num-envs=8",
            "--rollout-steps=32",
            "--checkpoint-every=512",
            *SMALL,
        ),
        ALONE,
    ),
    "maze": Run(
        "run_text",
        (*MAZE, "--batch-size=16", "--evaluate-every=40", "--checkpoint-every=16", "--games=16")
        + SMALL,
        ("--threads=1",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Kill runs at random moments and compare their ends with unbroken ones."""

    only: tuple[Literal[tuple(RUNS)], ...] = tuple(RUNS)
    """Runs to kill."""
    kills: int = 25
    """How often each is killed."""
    seed: int = 0
    """Seeds the moments."""
    folder: str = "runs/kill"
    """Folder for all runs; those of an earlier call are removed from it."""
    out: str = str(HERE / "kill.csv")
    """CSV to write, a row a kill."""


# --------------------------------------------------------------------------------------------------
# Processes


def start(run, folder):
    """Start a run, or go on with it if there is a checkpoint: -> Popen."""
    flags = start_or_resume(folder, run.flags)
    script = THIS / "scripts" / f"{run.script}.py"
    with open(f"{folder}.txt", "a", encoding="utf-8") as said:
        return subprocess.Popen(
            [sys.executable, str(script), *flags, *run.always],
            cwd=THIS,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environ_of(THIS),
        )


def wait(process, condition, seconds=SECONDS):
    """Wait for condition(), for so long at most: -> whether the process still runs."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return process.poll() is None


def ended(process, folder):
    """Wait for the end of a process. Exits with what it said unless it ended well."""
    if process.wait(SECONDS):
        sys.exit(f"A run of {folder} failed: {Path(f'{folder}.txt').read_text().strip()[-2000:]}")


def began(folder):
    """When the process that trains in a folder began to learn, or None: it makes its log anew."""
    log = folder / "log.csv"
    return log.stat().st_mtime_ns if log.exists() else None


def train_unbroken(run, folder):
    """Train a run from start to end: -> (seconds in all, seconds since learning began)."""
    started = time.monotonic()
    process = start(run, folder)
    wait(process, lambda: began(folder))
    learning = time.monotonic()
    ended(process, folder)
    return time.monotonic() - started, time.monotonic() - learning


def kill(process, folder, seconds, rng):
    """Kill a process at a random moment: -> a row that tells when, or None if it ended before that.

    seconds: (in all, since learning began) that an unbroken run takes.
    """
    started = time.monotonic()
    before = began(folder)
    (moment,) = rng.choices(list(MOMENTS), MOMENTS.values())
    delay = rng.random()
    writing = folder / "checkpoints" / ".writing"
    if moment == "start":
        wait(process, lambda: False, delay * seconds[0])
    else:
        wait(process, lambda: began(folder) != before)
        wait(process, lambda: False, delay * seconds[1])
    if moment == "checkpoint":
        wait(process, writing.exists)
        wait(process, lambda: False, 0.005 * rng.random())
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    steps = [int(path.name.removeprefix("step-")) for path in checkpoints(folder)]
    return dict(
        moment=moment,
        seconds=round(time.monotonic() - started, 3),
        checkpoint=steps[-1] if steps else "",
        half_written=int(writing.exists()),
    )


# --------------------------------------------------------------------------------------------------
# Comparisons


def read_log(folder):
    """The rows of a log without the seconds."""
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def compare(whole, broken):
    """How the end of a broken run differs from that of a whole one: list of sentences."""
    theirs = read_checkpoint(whole)
    ours = read_checkpoint(broken)
    lines = differences(theirs, ours) + [f"{path} is new" for path in ours.keys() - theirs.keys()]
    if read_log(whole) != read_log(broken):
        rows = zip(read_log(whole), read_log(broken))
        first = next((describe(*pair) for pair in rows if pair[0] != pair[1]), "has other rows")
        lines.append(f"log.csv {first}")
    return lines


def chain(run, whole, folder, seconds, kills, rng):
    """Train a run through up to so many kills and compare: -> (rows, list of differences)."""
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.txt").unlink(missing_ok=True)
    rows = []
    while len(rows) < kills:
        process = start(run, folder)
        row = kill(process, folder, seconds, rng)
        if row is None:
            break
        rows.append(row)
    else:
        process = start(run, folder)
    ended(process, folder)
    return rows, compare(whole, folder)


def main():
    args = tyro.cli(Args, description=__doc__)
    folder = Path(args.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.only:
        rng = random.Random(f"{args.seed} {name}")
        whole = folder / f"{name}-whole"
        shutil.rmtree(whole, ignore_errors=True)
        seconds = train_unbroken(RUNS[name], whole)
        print(f"{name}: unbroken in {seconds[0]:.0f} s", flush=True)
        left = args.kills
        chains = 0
        while left:
            broken = folder / f"{name}-broken"
            killed, lines = chain(RUNS[name], whole, broken, seconds, left, rng)
            left -= len(killed)
            if len(killed) < 3:  # the machine has become faster: moments come too late
                seconds = tuple(0.7 * each for each in seconds)
            chains += 1
            result = "DIFFERENT" if lines else "bit-identical"
            print(f"{name}: chain {chains}, {len(killed)} kills: {result}", flush=True)
            for line in lines[:20]:
                print(f"    {line}", flush=True)
            same = dict(identical=int(not lines))
            rows += [dict(run=name, chain=chains, **row, **same) for row in killed]
            if rows:
                write_rows(args.out, rows)
    same = sum(row["identical"] for row in rows)
    print(f"{same} of {len(rows)} bit-identical")
    return int(same < len(rows))


if __name__ == "__main__":
    sys.exit(main())
