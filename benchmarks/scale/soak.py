"""Kill parts of a CartPole run with actors at random for half an hour: python benchmarks/soak.py --run-dir=runs/soak

Every --every seconds or so an actor is killed with SIGKILL, every fifth time the learner itself, which is then resumed. Memory of the
learner and of all of the run's processes is noted every five seconds in RUN/memory.csv, what was killed in RUN/kills.csv, and both are
drawn in RUN/soak.png. At the end the trained network plays 100 greedy games.
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

from tfdqt.runs import read_csv, read_log, run_main, write_rows

ROOT = Path(__file__).resolve().parent.parent


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


def processes_of(pid):
    """A process and those it started, and those they started: {pid: (command line, resident bytes)}."""
    parents, found = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    new = {pid}
    while new:
        for child in new:
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[child] = line, int(Path(f"/proc/{child}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:
                continue
        new = {child for child, parent in parents.items() if parent in new} - set(found)
    return found


def draw(run_dir):
    """Memory and training return over time, and when something was killed."""
    from matplotlib.figure import Figure

    memory, log, kills = read_csv(run_dir / "memory.csv"), read_log(run_dir), read_csv(run_dir / "kills.csv")
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=False)
    for key, label in (("learner", "learner"), ("all", "learner, actors and Ray")):
        above.plot(memory["minutes"], memory[key] / 2**20, label=label)
    for minute, learner in zip(kills["minutes"], kills["learner"]):
        above.axvline(minute, color="red" if learner else "grey", linewidth=0.7)
    above.set(xlabel="minutes (grey: an actor killed, red: the learner)", ylabel="resident memory, MiB", ylim=(0, None))
    above.legend()
    below.plot(log["step"], log["mean_return"])
    below.set(xlabel="environment steps", ylabel="mean return, last 100 games")
    figure.savefig(run_dir / "soak.png", dpi=120)


def main():
    args = tyro.cli(Args, description=__doc__)
    run_dir, rng = Path(args.run_dir), random.Random(args.seed)
    script, began = str(ROOT / "scripts" / "run_dqn.py"), time.monotonic()
    fresh = ["--name=CartPole-v1", f"--actors={args.actors}", f"--seed={args.seed}", f"--run-dir={run_dir}",
             f"--total-steps={args.total_steps}", "--final-learning-rate=1e-5", "--checkpoint-every=5000"]
    memory, kills, learner = [], [], None
    due = rng.expovariate(1 / args.every)
    while (passed := time.monotonic() - began) < 60 * args.minutes:
        if learner is None:
            saved = any((run_dir / "checkpoints").glob("step-*"))
            learner = subprocess.Popen([sys.executable, script, *([f"--resume={run_dir}"] if saved else fresh)], stdout=subprocess.DEVNULL)
        if learner.poll() is not None:
            break
        parts = processes_of(learner.pid)
        memory.append(dict(minutes=passed / 60, learner=parts.get(learner.pid, ("", 0))[1], all=sum(size for _, size in parts.values())))
        if passed > due:
            due = passed + rng.expovariate(1 / args.every)
            actors = [pid for pid, (line, _) in parts.items() if line.startswith("ray::Actor")]
            whole = len(kills) % 5 == 4 and any((run_dir / "checkpoints").glob("step-*"))
            if actors or whole:
                os.kill(learner.pid if whole else rng.choice(actors), signal.SIGKILL)
                kills.append(dict(minutes=passed / 60, learner=int(whole)))
            if whole:
                learner.wait()
                learner = None
        time.sleep(5)
    if learner is not None and learner.poll() is None:
        learner.terminate()
        learner.wait()
    write_rows(run_dir / "memory.csv", memory)
    write_rows(run_dir / "kills.csv", kills)
    draw(run_dir)
    print(f"{len(kills)} kills, {sum(kill['learner'] for kill in kills)} of them of the learner; step {read_log(run_dir)['step'][-1]:.0f}. "
          f"Picture: {run_dir / 'soak.png'}", flush=True)
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(run_dir), "--episodes=100"]).returncode


if __name__ == "__main__":
    run_main(main)
