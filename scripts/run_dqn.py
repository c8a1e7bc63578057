"""Train a Q-network on a gymnasium environment by DQN, or go on with a run.

    python scripts/run_dqn.py --name=CartPole-v1
    python scripts/run_dqn.py --name=Breakout-ram-v0 --seed=1 --run-dir=runs/breakout-1
    python scripts/run_dqn.py --resume=runs/breakout-1
"""

import dataclasses
import functools
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

import tfdqt
from tfdqt.config import DQNConfig, NetworkConfig, UsageError, check_dqn, check_network, default_config, load_config, save_config
from tfdqt.runs import (
    check_at_least_one,
    check_resume_flags,
    find_run,
    given_flags,
    given_value,
    load_checkpoint,
    make_logger,
    make_saver,
    run_main,
    start_run,
    stop_on_signals,
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a Q-network by DQN. The defaults shown are those of --name."""

    name: str = "CartPole-v1"
    """Environment, as gymnasium calls it; old Atari RAM names such as Breakout-ram-v0 work too."""
    seed: int = 0
    """Seeds weights, environments, exploration and replay; equal seeds give equal runs."""
    run_dir: str | None = None
    """Folder for settings, log and checkpoints; by default runs/NAME-SEED-TIME."""
    resume: str | None = None
    """Folder of a run to go on with; its own settings hold, only --total-steps, --workers, --threads can be given."""
    checkpoint: str | None = None
    """With --resume: the checkpoint to go on from, by default the newest."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints; there is always one at the end."""
    epochs: int = 1_000
    """Parts into which the progress line and the log divide the run."""
    workers: int = max(1, (os.cpu_count() or 2) - 1)
    """Processes that step the environments (0: none). The result does not depend on it."""
    threads: int = max(1, os.cpu_count() or 1)
    """Threads inside TensorFlow's operations."""
    network: Annotated[NetworkConfig, tyro.conf.arg(name="")] = NetworkConfig()
    dqn: Annotated[DQNConfig, tyro.conf.arg(name="")] = DQNConfig()


RESUME_FLAGS = {"resume", "checkpoint", "total-steps", "workers", "threads", "checkpoint-every"}


def parse(argv):
    """The arguments, with the defaults of the environment they name."""
    name = given_value(argv, "name", Args.name)
    network, dqn = default_config(name)
    args = tyro.cli(Args, args=argv, default=Args(name=name, network=network, dqn=dqn), description=__doc__)
    flags = given_flags(argv)
    check_resume_flags(flags, RESUME_FLAGS)
    return args, flags


def new_run(args):
    check_network(args.network)
    check_dqn(args.dqn)
    check_at_least_one(args, "epochs", "checkpoint_every", "threads")
    if args.workers < 0 or args.seed < 0:
        raise UsageError("--workers and --seed must be 0 or more.")
    from tfdqt.envs import env_info, make_env

    env = make_env(args.name)
    env_info(env, args.name)
    env.close()
    default = f"runs/{args.name.replace('/', '-').replace(':', '-')}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = start_run(args.run_dir or default, version=tfdqt.__version__, algorithm="dqn", name=args.name, seed=args.seed,
                        epochs=args.epochs, checkpoint_every=args.checkpoint_every, network=args.network, dqn=args.dqn)
    return run_dir, None, args


def old_run(args, flags):
    run_dir = find_run(args.resume)
    if load_config(run_dir / "config.json").get("algorithm") != "dqn":
        raise UsageError(f"{run_dir} is not a run of DQN; go on with it by the script that started it.")
    settings = load_config(run_dir / "config.json", network=NetworkConfig, dqn=DQNConfig)
    saved, path = load_checkpoint(run_dir, args.checkpoint)
    every = args.checkpoint_every if "checkpoint-every" in flags else settings["checkpoint_every"]
    dqn = settings["dqn"]
    if "total-steps" in flags:
        dqn = dataclasses.replace(dqn, total_steps=args.dqn.total_steps)
        check_dqn(dqn)
        save_config(run_dir / "config.json", **{**settings, "dqn": dqn})
    args = dataclasses.replace(args, name=settings["name"], seed=settings["seed"], epochs=settings["epochs"], checkpoint_every=every,
                               network=settings["network"], dqn=dqn)
    print(f"Going on from {path}.")
    if any(state is None for state in saved["envs"]):
        print("The environments' states are not in it: each starts a fresh episode, and the run differs from an unbroken one.")
    return run_dir, saved, args


def main():
    args, flags = parse(sys.argv[1:])
    run_dir, saved, args = new_run(args) if args.resume is None else old_run(args, flags)

    from tfdqt import backend

    backend.set_threads(args.threads)

    from tfdqt import dqn, gpt
    from tfdqt.envs import EnvFailure, make_env

    def q_fn(info):
        model = gpt.build_q(info, args.network)
        other = dataclasses.replace(args.network, network="dense" if args.network.network == "gpt" else "gpt")
        print(f"{args.name}: {info.num_actions} actions, observations {info.obs_shape} {info.obs_dtype}. "
              f"{args.network.network} network: {model.count_params():,} weights "
              f"({other.network} with these settings: {gpt.build_q(info, other).count_params():,}).")
        return model

    for part in (args.network, args.dqn):
        print("  ".join(f"{key}={value}" for key, value in dataclasses.asdict(part).items()))
    print(f"Run folder: {run_dir}", flush=True)
    step = saved["progress"]["step"] if saved else None
    log, close = make_logger(run_dir, dqn.Metrics._fields, args.dqn.total_steps, args.epochs, resume_step=step)
    save = make_saver(run_dir, args.checkpoint_every, resume_step=step or 0)
    with stop_on_signals() as stop:
        try:
            _, _, progress = dqn.dqn(functools.partial(make_env, args.name), q_fn, args.dqn, seed=args.seed, workers=args.workers,
                                     log=log, save=save, saved=saved, should_stop=stop)
        except EnvFailure as error:
            first, _, trace = str(error).partition("\n")
            Path(run_dir, "failure.txt").write_text(str(error), encoding="utf-8")
            raise UsageError(f"{first}; what was learned is saved, go on with --resume={run_dir} once the environment is "
                             f"mended (its traceback: {run_dir / 'failure.txt'}).") from None
        finally:
            close()
    mean = sum(progress.recent) / len(progress.recent) if progress.recent else float("nan")
    done = "Stopped" if stop() else "Done"
    print(f"{done} at step {progress.step}: {progress.games} games, mean return of the last {len(progress.recent)}: {mean:.1f}.")
    if stop():
        print(f"Go on with: python scripts/run_dqn.py --resume={run_dir}")
        return 128 + stop.signal
    print(f"Evaluate with: python scripts/evaluate.py {run_dir}")
    return 0


if __name__ == "__main__":
    run_main(main)
