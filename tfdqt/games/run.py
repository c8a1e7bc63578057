"""The script of an algorithm on games: its command line, a new run or one gone on with, training.

Imports TensorFlow only when it trains, so `--help` is instant.
"""

import dataclasses
import functools
import sys
import time
from typing import Annotated

import tyro

from tfdqt.games.algorithms import (
    ALGORITHMS,
    default_parallel,
    default_settings,
    settings_classes,
)
from tfdqt.games.config import EnvConfig, NetworkConfig
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.exact import state_fault
from tfdqt.games.spaces import info_from_json, info_to_json
from tfdqt.games.state import make_unsaved
from tfdqt.runs.cli import (
    check_goes_on,
    check_resume_flags,
    given_flags,
    given_value,
    new_run,
    old_run,
    read_settings,
    session,
    show_settings,
    stopped,
)
from tfdqt.runs.folder import find_run
from tfdqt.scale import ray_pool
from tfdqt.scale.config import ScaleConfig, check_scale
from tfdqt.settings import check_at_least_one, check_not_negative, save_config

RESUME_FLAGS = {"total-steps", "workers"}


@dataclasses.dataclass(frozen=True)
class GameArgs:
    """Arguments of every algorithm on games; `args_class` adds its settings."""

    name: str = "CartPole-v1"
    """Environment, as gymnasium calls it; old Atari RAM names such as Breakout-ram-v0 work too."""
    seed: int = 0
    """Seeds weights, environments, exploration and replay; equal seeds give equal runs."""
    run_dir: str | None = None
    """Folder for settings, log and checkpoints; by default runs/NAME-SEED-TIME."""
    resume: str | None = None
    """Folder of a run to go on with; its own settings hold, but for --total-steps,
    --checkpoint-every, --workers, --threads and how a DQN is spread (--actors, --ray-address,
    --broadcast-every, --strategy)."""
    checkpoint: str | None = None
    """With --resume: the checkpoint to go on from, by default the newest."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints; there is always one at the end."""
    log_lines: int = 1_000
    """Parts into which the progress line and log.csv divide the run; the line calls them epochs."""
    env: Annotated[EnvConfig, tyro.conf.arg(name="")] = EnvConfig()
    workers: int = 1
    """Processes that step the environments (0: none). The result does not depend on it."""
    threads: int = 1
    """Threads inside TensorFlow's operations."""
    network: Annotated[NetworkConfig, tyro.conf.arg(name="")] = NetworkConfig()


def args_class(algorithm):
    """The arguments of an algorithm's script, as a dataclass."""
    chosen = ALGORITHMS[algorithm]
    unnamed = tyro.conf.arg(name="")
    fields = [("settings", Annotated[chosen.settings, unnamed], chosen.settings())]
    if chosen.train_with_actors:
        fields.append(("scale", Annotated[ScaleConfig, unnamed], ScaleConfig()))
    made = dataclasses.make_dataclass("Args", fields, bases=(GameArgs,), frozen=True)
    made.__doc__ = f"Train by {algorithm.upper()}. The defaults shown are those of --name."
    return made


def parse(argv, algorithm, description):
    """The arguments, by default those of the environment they name: -> (args, flags given)."""
    name = given_value(argv, "name", GameArgs.name)
    network, settings = default_settings(name, algorithm)
    parallel = default_parallel(name, algorithm)
    cls = args_class(algorithm)
    default = cls(name=name, network=network, settings=settings, **parallel)
    args = tyro.cli(cls, args=argv, default=default, description=description)
    flags = given_flags(argv)
    check_resume_flags(flags, RESUME_FLAGS)
    check_at_least_one(args, "log_lines", "checkpoint_every", "threads")
    check_not_negative(args, "workers", "seed")
    return args, flags


def check(algorithm, network, settings, scale):
    """Raise UsageError for settings that can't be."""
    ALGORITHMS[algorithm].check(network, settings)
    check_scale(scale, settings.num_envs)


def start(args, algorithm):
    """Check the arguments and start a new run: -> Run."""
    scale = getattr(args, "scale", ScaleConfig())
    check(algorithm, args.network, args.settings, scale)
    info = info_of(functools.partial(make_env, args.name, args.env), args.name)
    plain_name = args.name.replace("/", "-").replace(":", "-")
    default = f"runs/{plain_name}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return new_run(
        args.run_dir or default,
        scale,
        args.threads,
        algorithm=algorithm,
        name=args.name,
        seed=args.seed,
        log_lines=args.log_lines,
        checkpoint_every=args.checkpoint_every,
        env=args.env,
        spaces=info_to_json(info),
        network=args.network,
        **{algorithm: args.settings},
    )


def resume(args, flags, algorithm):
    """Go on with the run that --resume names: -> (Run, the arguments it was started with)."""
    classes = settings_classes(algorithm, read_settings(find_run(args.resume)))

    def check_saved(settings, scale):
        check(algorithm, settings["network"], settings[algorithm], scale)

    run = old_run(args, flags, algorithm, check_saved, **classes)
    name = run.settings["name"]
    settings = run.settings[algorithm]
    every = args.checkpoint_every
    if "checkpoint-every" not in flags:
        every = run.settings["checkpoint_every"]
    if "total-steps" in flags:
        settings = dataclasses.replace(settings, total_steps=args.settings.total_steps)
        check(algorithm, run.settings["network"], settings, run.scale)
        check_goes_on(run.saved["progress"]["step"], settings.total_steps, "--total-steps")
        save_config(run.folder / "config.json", **{**run.settings, algorithm: settings})
    parallel = default_parallel(name, algorithm)
    args = dataclasses.replace(
        args,
        name=name,
        seed=run.settings["seed"],
        log_lines=run.settings.get("log_lines", run.settings.get("epochs")),  # epochs until 0.1
        checkpoint_every=every,
        env=run.settings.get("env", EnvConfig()),  # of its own since 0.2
        network=run.settings["network"],
        settings=settings,
        **{key: value for key, value in parallel.items() if key not in flags},
    )
    if any(state is None for state in run.saved["envs"]):
        print(
            "The environments' states are not in it: each starts a fresh episode, and the run "
            "differs from an unbroken one."
        )
    return run, args


def make_exact(args, settings):
    """`env_fn()` of a run's environment. If its state can't be saved, says so first."""
    env_fn = functools.partial(make_env, args.name, args.env)
    if "spaces" in settings:  # since 0.2
        info = info_from_json(settings["spaces"], args.name)
    else:
        info = info_of(env_fn, args.name)
    fault = state_fault(env_fn, info)
    if fault is None:
        return env_fn
    print(
        f"The state of {args.name} can't be saved: {fault}. A run that goes on starts fresh "
        "episodes, and differs from an unbroken one."
    )
    return functools.partial(make_unsaved, env_fn)


def trainer(args, algorithm, scale, strategy):
    """How an algorithm trains as its arguments say: -> (train, metrics)."""
    chosen = ALGORITHMS[algorithm]
    if scale.actors:
        make_pool = functools.partial(ray_pool.make_pool, address=scale.ray_address)
        train = functools.partial(
            chosen.train_with_actors,
            make_pool=make_pool,
            actors=scale.actors,
            broadcast_every=scale.broadcast_every,
            strategy=strategy,
        )
        return train, chosen.actor_metrics
    train = functools.partial(chosen.train, workers=args.workers)
    if strategy is not None:
        train = functools.partial(train, strategy=strategy)
    return train, chosen.metrics


def main(algorithm, description, argv=None):
    """Parse the command line, start a run or go on with one, and train. Returns the exit code."""
    args, flags = parse(sys.argv[1:] if argv is None else argv, algorithm, description)
    if args.resume is None:
        run = start(args, algorithm)
    else:
        run, args = resume(args, flags, algorithm)
    cfg = args.settings
    build = functools.partial(ALGORITHMS[algorithm].build, cfg=args.network)

    def network_fn(info):
        model = build(info)
        print(
            f"{args.name}: {info.num_actions} actions, observations {info.obs_shape} "
            f"{info.obs_dtype}. {args.network.network} network: {model.count_params():,} weights."
        )
        return model

    show_settings(args.network, cfg, run.scale)
    print(f"Run folder: {run.folder}", flush=True)
    train, metrics = trainer(args, algorithm, run.scale, run.strategy)
    step = run.saved["progress"]["step"] if run.saved else None
    log_settings = (metrics._fields, cfg.total_steps, args.log_lines, args.checkpoint_every)
    with session(run, *log_settings, step) as (log, save, stop):
        _, net, progress = train(
            make_exact(args, run.settings),
            build if run.scale.actors else network_fn,
            cfg,
            seed=args.seed,
            log=log,
            save=save,
            saved=run.saved,
            should_stop=stop,
        )
    unfinished = progress.step < cfg.total_steps  # of several learners a signal to one stops all
    print(
        f"{'Stopped' if unfinished else 'Done'} at step {progress.step}: {progress.games} games, "
        f"mean return of the last {len(progress.recent)}: {progress.mean_return():.1f}."
    )
    if stop() or unfinished:
        return stopped(f"run_{algorithm}", run.folder, stop)
    show_features(net.model, args.network)
    print(f"Evaluate with: python scripts/evaluate.py {run.folder}")
    return 0


def show_features(model, network):
    """Print which features of an observation were shown, if not all."""
    from tfdqt.games.features import features_shown  # loads Keras, as training has

    shown = features_shown(model)
    if shown is not None:
        print(
            f"{len(shown)} features changed by {network.min_change:g} of their range a step or "
            f"more and were shown: {', '.join(map(str, shown))}."
        )
