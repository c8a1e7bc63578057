"""Kill parts of a CartPole run with actors at random for half an hour.

    python benchmarks/scale/soak.py --run-dir=runs/soak

Every --every seconds or so an actor is killed with SIGKILL, every fifth time the learner itself,
which is then resumed. Memory of the learner and of all of the run's processes is noted every five
seconds in RUN/memory.csv, what was killed in RUN/kills.csv, and both are drawn in RUN/soak.png. At
the end the trained network plays 100 greedy games.
"""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import tyro

from tfdqt.runs.checkpoint import checkpoints, start_or_resume
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import read_csv, read_log, write_rows
from tfdqt.runs.plots import make_figure

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@dataclasses.dataclass(frozen=True)
class Args:
    """Kill parts of a run at random and see what it comes to."""

    run_dir: str = "runs/soak"
    """Folder of the run."""
    minutes: float = 30
    """How long parts are killed."""
    every: float = 60
    """Mean seconds between two kills."""
    actors: int = 2
    """Actors of the run."""
    total_steps: int = 1_000_000
    """Environment steps of the run, should it get so far."""
    seed: int = 0
    """Seeds the run and the kills."""


# --------------------------------------------------------------------------------------------------
# Processes


def processes_of(pid):
    """A process, those it started, and those they started: {pid: (command line, bytes)}.

    The bytes are those resident in memory.
    """
    parents = _parents()
    processes = {}
    new = {pid}
    while new:
        for child in new:
            try:
                processes[child] = _command_line(child), _resident_bytes(child)
            except OSError:
                continue  # it has ended
        new = {child for child, parent in parents.items() if parent in new} - set(processes)
    return processes


def _parents():
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    return parents


def _command_line(pid):
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    return words.replace(b"\0", b" ").decode(errors="replace")


def _resident_bytes(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --------------------------------------------------------------------------------------------------
# The soak


def start_learner(args, run_dir):
    """Start the run, or go on with it: -> its process."""
    flags = [
        "--name=CartPole-v1",
        f"--actors={args.actors}",
        f"--seed={args.seed}",
        f"--total-steps={args.total_steps}",
        "--final-learning-rate=1e-5",
        "--checkpoint-every=5000",
    ]
    command = [sys.executable, str(SCRIPTS / "run_dqn.py"), *start_or_resume(run_dir, flags)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill_a_part(learner, processes, run_dir, rng, kills):
    """Kill an actor, every fifth time the learner: -> whether it was the learner, None if nothing.

    The learner is spared while it has no checkpoint to go on from.
    """
    actors = [pid for pid, (line, _) in processes.items() if line.startswith("ray::Actor")]
    whole = kills % 5 == 4 and bool(checkpoints(run_dir))
    if not actors and not whole:
        return None
    os.kill(learner.pid if whole else rng.choice(actors), signal.SIGKILL)
    if whole:
        learner.wait()
    return whole


def soak(args, run_dir):
    """Run and kill for --minutes, or until the run ends: -> (rows of memory, rows of kills)."""
    rng = random.Random(args.seed)
    began = time.monotonic()
    due = rng.expovariate(1 / args.every)  # seconds until the next kill
    memory = []
    kills = []
    learner = None
    while (passed := time.monotonic() - began) < 60 * args.minutes:
        if learner is None:
            learner = start_learner(args, run_dir)
        if learner.poll() is not None:
            break
        processes = processes_of(learner.pid)
        memory.append(
            dict(
                minutes=passed / 60,
                learner=processes.get(learner.pid, ("", 0))[1],
                all=sum(size for _, size in processes.values()),
            )
        )
        if passed > due:
            due = passed + rng.expovariate(1 / args.every)
            whole = kill_a_part(learner, processes, run_dir, rng, len(kills))
            if whole is not None:
                kills.append(dict(minutes=passed / 60, learner=int(whole)))
            if whole:
                learner = None
        time.sleep(5)
    if learner is not None and learner.poll() is None:
        learner.terminate()
        learner.wait()
    return memory, kills


def draw(run_dir):
    """Memory and training return over time, and when something was killed."""
    memory = read_csv(run_dir / "memory.csv")
    kills = read_csv(run_dir / "kills.csv")
    log = read_log(run_dir)
    figure, (above, below) = make_figure(2, size=(7, 5))
    for key, label in (("learner", "learner"), ("all", "learner, actors and Ray")):
        above.plot(memory["minutes"], memory[key] / 2**20, label=label)
    for minute, learner in zip(kills["minutes"], kills["learner"]):
        above.axvline(minute, color="red" if learner else "grey", linewidth=0.7)
    above.set(
        xlabel="minutes (grey: an actor killed, red: the learner)",
        ylabel="resident memory, MiB",
        ylim=(0, None),
    )
    above.legend()
    below.plot(log["step"], log["mean_return"])
    below.set(xlabel="environment steps", ylabel="mean return, last 100 games")
    figure.savefig(run_dir / "soak.png", dpi=120)


def main():
    args = tyro.cli(Args, description=__doc__)
    run_dir = Path(args.run_dir)
    memory, kills = soak(args, run_dir)
    write_rows(run_dir / "memory.csv", memory)
    write_rows(run_dir / "kills.csv", kills)
    draw(run_dir)
    print(
        f"{len(kills)} kills, {sum(kill['learner'] for kill in kills)} of them of the learner; "
        f"step {read_log(run_dir)['step'][-1]:.0f}. Picture: {run_dir / 'soak.png'}",
        flush=True,
    )
    evaluate = [sys.executable, str(SCRIPTS / "evaluate.py"), str(run_dir), "--episodes=100"]
    return subprocess.run(evaluate).returncode


if __name__ == "__main__":
    run_main(main)
