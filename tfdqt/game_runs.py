"""What the scripts that train on games share: their arguments, starting a run, going on with one.

Imports TensorFlow only when it trains, so `--help` is instant.
"""

import dataclasses
import functools
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

import tfdqt
from tfdqt.checks import check_dqn, check_far, check_network, check_ppo, resumed_far
from tfdqt.config import (
    DQNConfig,
    FarConfig,
    NetworkConfig,
    PPOConfig,
    UsageError,
    default_config,
    default_parallel,
    load_config,
    save_config,
)
from tfdqt.runs import (
    check_at_least_one,
    check_resume_flags,
    common_checkpoint,
    connect_actors,
    find_run,
    freed_if_nothing_is_learned,
    given_flags,
    given_value,
    load_checkpoint,
    make_logger,
    make_saver,
    own_folder,
    start_run,
    stop_on_signals,
    strategy_of,
)

ALGORITHMS = {"dqn": (DQNConfig, check_dqn), "ppo": (PPOConfig, check_ppo)}
RESUME_FLAGS = {"resume", "checkpoint", "total-steps", "workers", "threads", "checkpoint-every", "actors", "ray-address",
                "broadcast-every", "strategy"}


@dataclasses.dataclass(frozen=True)
class GameArgs:
    """Arguments of every algorithm on games. A script adds a field of the algorithm's name with its settings.

    One whose algorithm can go past one process and one device adds `far`, a FarConfig.
    """

    name: str = "CartPole-v1"
    """Environment, as gymnasium calls it; old Atari RAM names such as Breakout-ram-v0 work too."""
    seed: int = 0
    """Seeds weights, environments, exploration and replay; equal seeds give equal runs."""
    run_dir: str | None = None
    """Folder for settings, log and checkpoints; by default runs/NAME-SEED-TIME."""
    resume: str | None = None
    """Folder of a run to go on with; its own settings hold, but for --total-steps, --checkpoint-every, --workers, --threads and how a
    DQN is spread (--actors, --ray-address, --broadcast-every, --strategy)."""
    checkpoint: str | None = None
    """With --resume: the checkpoint to go on from, by default the newest."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints; there is always one at the end."""
    epochs: int = 1_000
    """Parts into which the progress line and the log divide the run."""
    workers: int = default_parallel("")["workers"]
    """Processes that step the environments (0: none). The result does not depend on it."""
    threads: int = default_parallel("")["threads"]
    """Threads inside TensorFlow's operations."""
    network: Annotated[NetworkConfig, tyro.conf.arg(name="")] = NetworkConfig()


def parse(argv, args_class, algorithm, description):
    """The arguments, with the defaults of the environment they name: -> (args, names of the flags given)."""
    name = given_value(argv, "name", args_class.name)
    network, cfg = default_config(name, algorithm)
    default = args_class(name=name, network=network, **{algorithm: cfg}, **default_parallel(name, algorithm))
    args = tyro.cli(args_class, args=argv, default=default, description=description)
    flags = given_flags(argv)
    check_resume_flags(flags, RESUME_FLAGS)
    return args, flags


def far_of(args):
    """What the arguments ask for past one process and one device."""
    return getattr(args, "far", FarConfig())


def new_run(args, algorithm):
    """Check the arguments and make the folder of a run: -> (folder, None, args, strategy)."""
    cfg, far = getattr(args, algorithm), far_of(args)
    check_network(args.network)
    ALGORITHMS[algorithm][1](cfg)
    check_far(far, cfg.num_envs)
    default = f"runs/{args.name.replace('/', '-').replace(':', '-')}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = own_folder(args.run_dir or default, far)
    check_at_least_one(args, "epochs", "checkpoint_every", "threads")
    if args.workers < 0 or args.seed < 0:
        raise UsageError("--workers and --seed must be 0 or more.")
    from tfdqt.envs import env_info, make_env

    env = make_env(args.name)
    env_info(env, args.name)
    env.close()
    connect_actors(far)
    run_dir = start_run(folder, version=tfdqt.__version__, algorithm=algorithm, name=args.name, seed=args.seed,
                        epochs=args.epochs, checkpoint_every=args.checkpoint_every, network=args.network,
                        **{algorithm: cfg}, **({"far": far} if hasattr(args, "far") else {}))
    with freed_if_nothing_is_learned(run_dir):
        return run_dir, None, args, strategy_of(far_of(args), args.threads)


def old_run(args, flags, algorithm):
    """The run that --resume names: -> (folder, what its checkpoint holds, the arguments it was started with, strategy)."""
    cfg_class, check = ALGORITHMS[algorithm]
    run_dir = find_run(args.resume)
    plain = load_config(run_dir / "config.json")
    if plain.get("algorithm") != algorithm:
        raise UsageError(f"{run_dir} is not a run of {algorithm.upper()}; go on with it by the script that started it.")
    settings = load_config(run_dir / "config.json", network=NetworkConfig, **{algorithm: cfg_class},
                           **({"far": FarConfig} if "far" in plain else {}))
    chosen = resumed_far(run_dir, settings.get("far", FarConfig()), far_of(args), flags)
    check_far(chosen, settings[algorithm].num_envs)
    if chosen != FarConfig():
        args = dataclasses.replace(args, far=chosen)
    strategy = None
    if chosen.strategy == "multiworker":
        strategy = strategy_of(chosen, args.threads)
        args = dataclasses.replace(args, checkpoint=args.checkpoint or common_checkpoint(run_dir, strategy))
    saved, path = load_checkpoint(run_dir, args.checkpoint)
    connect_actors(chosen)
    every = args.checkpoint_every if "checkpoint-every" in flags else settings["checkpoint_every"]
    cfg = settings[algorithm]
    if "total-steps" in flags:
        cfg = dataclasses.replace(cfg, total_steps=getattr(args, algorithm).total_steps)
        check(cfg)
        save_config(run_dir / "config.json", **{**settings, algorithm: cfg})
    parallel = {key: value for key, value in default_parallel(settings["name"], algorithm).items() if key not in flags}
    args = dataclasses.replace(args, name=settings["name"], seed=settings["seed"], epochs=settings["epochs"], checkpoint_every=every,
                               network=settings["network"], **{algorithm: cfg}, **parallel)
    print(f"Going on from {path}.")
    if any(state is None for state in saved["envs"]):
        print("The environments' states are not in it: each starts a fresh episode, and the run differs from an unbroken one.")
    return run_dir, saved, args, strategy or strategy_of(far_of(args), args.threads)


def train(args_class, algorithm, description):
    """The script of an algorithm: parse the command line, start a run or go on with one, and train. Returns the exit code."""
    args, flags = parse(sys.argv[1:], args_class, algorithm, description)
    run_dir, saved, args, strategy = new_run(args, algorithm) if args.resume is None else old_run(args, flags, algorithm)
    cfg = getattr(args, algorithm)

    from tfdqt import backend

    if strategy is None:
        backend.set_threads(args.threads)

    from tfdqt import dqn, gpt, ppo
    from tfdqt.envs import EnvFailure, make_env
    from tfdqt.networks import features_shown

    learn, build, metrics = dict(dqn=(dqn.dqn, gpt.build_q, dqn.Metrics), ppo=(ppo.ppo, gpt.build_pi_v, ppo.Metrics))[algorithm]
    env_fn, far, play = functools.partial(make_env, args.name), far_of(args), dict(workers=args.workers)
    shared = dict(strategy=strategy) if strategy else {}
    if far.actors:
        from tfdqt import actors, apex

        make_pool = functools.partial(actors.make_game_pool, env_fn, functools.partial(build, cfg=args.network), cfg, actors=far.actors,
                                      seed=args.seed, address=far.ray_address)
        learn, metrics = apex.apex, apex.ApexMetrics
        play = dict(make_pool=make_pool, actors=far.actors, broadcast_every=far.broadcast_every)

    def network_fn(info):
        model = build(info, args.network)
        other = dataclasses.replace(args.network, network="dense" if args.network.network == "gpt" else "gpt")
        print(f"{args.name}: {info.num_actions} actions, observations {info.obs_shape} {info.obs_dtype}. "
              f"{args.network.network} network: {model.count_params():,} weights "
              f"({other.network} with these settings: {build(info, other).count_params():,}).")
        return model

    for part in (args.network, cfg, *([far] if far != FarConfig() else [])):
        print("  ".join(f"{key}={value}" for key, value in dataclasses.asdict(part).items()))
    print(f"Run folder: {run_dir}", flush=True)
    step = saved["progress"]["step"] if saved else None
    log, close = make_logger(run_dir, metrics._fields, cfg.total_steps, args.epochs, resume_step=step)
    save = make_saver(run_dir, args.checkpoint_every, resume_step=step or 0)
    with stop_on_signals() as stop, freed_if_nothing_is_learned(run_dir):
        try:
            _, networks, progress = learn(env_fn, network_fn, cfg, seed=args.seed, log=log, save=save, saved=saved, should_stop=stop,
                                          **play, **shared)
        except EnvFailure as error:
            first, _, trace = str(error).partition("\n")
            Path(run_dir, "failure.txt").write_text(str(error), encoding="utf-8")
            raise UsageError(f"{first}; what was learned is saved, go on with --resume={run_dir} once that is "
                             f"mended (more of it: {run_dir / 'failure.txt'}).") from None
        finally:
            close()
    stopped = progress.step < cfg.total_steps  # of several learners a signal to one stops all
    done = "Stopped" if stopped else "Done"
    print(f"{done} at step {progress.step}: {progress.games} games, mean return of the last {len(progress.recent)}: "
          f"{progress.mean_return():.1f}.")
    if stop() or stopped:
        print(f"Go on with: python scripts/run_{algorithm}.py --resume={run_dir}")
        return 128 + (stop.signal or signal.SIGTERM)
    shown = features_shown(networks.model)
    if shown is not None:
        print(f"{len(shown)} features changed by {args.network.min_change:g} of their range a step or more and were shown: "
              f"{', '.join(map(str, shown))}.")
    print(f"Evaluate with: python scripts/evaluate.py {run_dir}")
    return 0
