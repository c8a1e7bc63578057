"""The script of an algorithm on games: its command line, a new run or one gone on with, training.

Imports TensorFlow only when it trains, so `--help` is instant.
"""

import dataclasses
import functools
import math
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import (
    ALGORITHMS,
    default_parallel,
    default_settings,
    settings_classes,
)
from tfdqt.games.config import EnvConfig, NetworkConfig
from tfdqt.games.cost import attention_bytes, check_attention, check_ends, parts_of_batch
from tfdqt.games.envs import (
    check_goes_on_with,
    env_fn_of,
    info_of,
    make_env,
    saved_info,
    without_curriculum,
)
from tfdqt.games.exact import state_fault
from tfdqt.games.space_json import info_to_json
from tfdqt.games.state import make_unsaved
from tfdqt.runs.checkpoint import BEST, quoted
from tfdqt.runs.cli import (
    check_goes_on,
    check_resume_flags,
    given_flags,
    given_value,
    new_run,
    old_run,
    read_settings,
    saying_what_is_kept,
    session,
    show_settings,
    stopped,
)
from tfdqt.runs.folder import as_folder, find_run
from tfdqt.runs.log import EVALUATION
from tfdqt.scale import ray_pool
from tfdqt.scale.config import ScaleConfig, check_scale
from tfdqt.settings import check_at_least_one, check_not_negative, check_seed, save_config
from tfdqt.stats import decimals

# What says how a run is evaluated while it trains.
EVALUATION_FIELDS = ("evaluate_every", "evaluate_episodes", "stop_at_score")
RESUME_FLAGS = {
    "total-steps",
    "workers",
    "evaluate-every",
    "evaluate-episodes",
    "stop-at-score",
    "no-stop-at-score",
}


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
    --checkpoint-every, --evaluate-every, --evaluate-episodes, --stop-at-score, --workers, --threads
    and how a DQN is spread (--actors, --ray-address, --broadcast-every, --strategy)."""
    checkpoint: str | None = None
    """With --resume: the checkpoint to go on from, by default the newest."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints; there is always one at the end."""
    evaluate_every: int = 0
    """Environment steps between two evaluations, of whole games by the best actions (0: none);
    there is one at the end too. The best policy is kept as --checkpoint=best."""
    evaluate_episodes: int = 20
    """Games of such an evaluation."""
    stop_at_score: float | None = None
    """The run ends when the mean return of an evaluation reaches this."""
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
    check_not_negative(args, "workers")
    check_seed(args)
    if "evaluate-episodes" in flags and not {"evaluate-every", "resume"} & {*flags}:
        raise UsageError("--evaluate-episodes is of evaluations; give --evaluate-every too.")
    return args, flags


def check_evaluation(args):
    """Raise UsageError for evaluations that can't be."""
    check_not_negative(args, "evaluate_every")
    check_at_least_one(args, "evaluate_episodes")
    score = args.stop_at_score
    if score is not None and math.isnan(score):
        raise UsageError("--stop-at-score must be a number, not nan.")
    if score is not None and not args.evaluate_every:
        raise UsageError("--stop-at-score is asked of evaluations; give --evaluate-every too.")


def check(algorithm, network, settings, scale):
    """Raise UsageError for settings that can't be."""
    ALGORITHMS[algorithm].check(network, settings)
    check_scale(scale, settings.num_envs)


def start(args, algorithm):
    """Check the arguments and start a new run: -> Run."""
    scale = getattr(args, "scale", ScaleConfig())
    check(algorithm, args.network, args.settings, scale)
    check_evaluation(args)
    info = info_of(functools.partial(make_env, args.name, args.env), args.name)
    default = f"runs/{as_folder(args.name)}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
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
        **{field: getattr(args, field) for field in EVALUATION_FIELDS},
        network=args.network,
        **{algorithm: args.settings},
    )


def resume(args, flags, algorithm):
    """Go on with the run that --resume names: -> (Run, the arguments it was started with)."""
    classes = settings_classes(algorithm, read_settings(find_run(args.resume)))

    def check_saved(settings, scale):
        check(algorithm, settings["network"], settings[algorithm], scale)

    if args.checkpoint and BEST in (args.checkpoint, Path(args.checkpoint).parent.name):
        raise UsageError(
            "The best checkpoint holds a policy alone, to evaluate and to export; leave out "
            "--checkpoint to go on from the newest."
        )
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
    evaluation = evaluation_fields(args, flags, run.settings)
    check_evaluation(dataclasses.replace(args, **evaluation))
    check_goes_on_with(run.settings)  # a run that can't go on is not changed
    changed = {algorithm: settings, **(evaluation if given_evaluation(flags) else {})}
    if changed != {key: run.settings.get(key) for key in changed}:
        save_config(run.folder / "config.json", **{**run.settings, **changed})
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
        **evaluation,
        **{key: value for key, value in parallel.items() if key not in flags},
    )
    if any(state is None for state in run.saved["envs"]):
        print(
            "The environments' states are not in it: each starts a fresh episode, and the run "
            "differs from an unbroken one."
        )
    return run, args


def make_exact(run, info):
    """`env_fn()` of a run's environment. If its state can't be saved, says so first."""
    env_fn = env_fn_of(run.settings)
    if run.scale.actors:
        return env_fn  # no state is saved
    fault = state_fault(env_fn, info)
    if fault is None:
        return env_fn
    print(
        f"The state of {info.name} can't be saved: {fault}. A run that goes on starts fresh "
        "episodes, and differs from an unbroken one."
    )
    return functools.partial(make_unsaved, env_fn)


def evaluation_fields(args, flags, settings):
    """How a resumed run is evaluated: as the flags say that are given, and else as before: dict."""
    cls = type(args)
    before = {field: settings.get(field, getattr(cls, field)) for field in EVALUATION_FIELDS}
    return {**before, **{field: getattr(args, field) for field in given_evaluation(flags)}}


def given_evaluation(flags):
    """Which of EVALUATION_FIELDS are given on a command line."""
    names = {flag.removeprefix("no-").replace("-", "_") for flag in flags}
    return [field for field in EVALUATION_FIELDS if field in names]


def trainer(args, algorithm, scale, strategy, build):
    """How an algorithm trains as its arguments say: -> (train, metrics).

    build: what actors make their network by.
    """
    chosen = ALGORITHMS[algorithm]
    if scale.actors:
        make_pool = functools.partial(ray_pool.make_pool, address=scale.ray_address)
        train = functools.partial(
            chosen.train_with_actors,
            make_pool=make_pool,
            actors=scale.actors,
            broadcast_every=scale.broadcast_every,
            actor_q_fn=build,
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
        batch = cfg.batch_size
        if run.strategy is None:
            batch //= parts_of_batch(attention_bytes(info, args.network), batch)
        check_attention(info, args.network, max(batch, cfg.num_envs))
        check_ends(info, args.network, max(cfg.batch_size, cfg.num_envs))
        model = build(info)
        print(
            f"{args.name}: {info.num_actions} actions, observations {info.obs_shape} "
            f"{info.obs_dtype}. {args.network.network} network: {model.count_params():,} weights."
        )
        return model

    if args.env != EnvConfig():
        show_settings(args.env)
    show_settings(args.network, cfg, run.scale)
    print(f"Run folder: {run.folder}", flush=True)
    train, metrics = trainer(args, algorithm, run.scale, run.strategy, build)
    step = run.saved["progress"]["step"] if run.saved else None
    fields = metrics._fields + ((EVALUATION,) if args.evaluate_every else ())
    log_settings = (fields, cfg.total_steps, args.log_lines, args.checkpoint_every)
    with saying_what_is_kept(run.folder), session(run, *log_settings, step) as (log, save, stop):
        info = saved_info(run.settings)
        env_fn = make_exact(run, info)
        played = without_curriculum(run.settings)
        eval_fn = env_fn if played is run.settings else env_fn_of(played)
        evaluation = evaluator(args, algorithm, run.folder, eval_fn, info, stop)
        state, net, progress = train(
            env_fn,
            network_fn,
            cfg,
            info=info,
            seed=args.seed,
            log=log,
            save=save,
            saved=run.saved,
            should_stop=stop,
            evaluation=evaluation,
        )
    reached = evaluation is not None and evaluation.play.reached
    # Of several learners a signal to one stops all.
    unfinished = progress.step < cfg.total_steps and not reached
    print(f"{'Stopped' if unfinished else 'Done'} at step {progress.step}: {told(progress)}")
    if not int(state.updates):
        print("That was before the first update: nothing is learned yet.")
    if stop() or unfinished:
        return stopped(f"run_{algorithm}", run.folder, stop)
    if reached:
        print(f"The evaluation reached --stop-at-score={args.stop_at_score:g}.")
    if evaluation is not None:
        last, best = evaluation.play.last, evaluation.play.best
        digits = decimals((last, best))
        print(
            f"Evaluations: {last:.{digits}f} at last, {best:.{digits}f} at best, which is kept as "
            "--checkpoint=best."
        )
    show_features(net.model, args.network)
    show_reach(state, cfg)
    print(f"Evaluate with: python scripts/evaluate.py {quoted(run.folder)}")
    return 0


def evaluator(args, algorithm, folder, env_fn, info, should_stop):
    """The Evaluation that the arguments ask for, or None."""
    if not args.evaluate_every:
        return None
    from tfdqt.games.periodic import make_evaluation  # loads TensorFlow, as training does

    return make_evaluation(
        env_fn,
        info,
        ALGORITHMS[algorithm],
        args.network,
        folder,
        every=args.evaluate_every,
        episodes=args.evaluate_episodes,
        seed=args.seed,
        workers=args.workers,
        stop_at_score=args.stop_at_score,
        should_stop=should_stop,
    )


def told(progress):
    """What games a run has played, as a sentence."""
    if not progress.games:
        return "no game has ended yet."
    return (
        f"{progress.games} games, mean return of the last {len(progress.recent)}: "
        f"{progress.mean_return():.{decimals(progress.recent)}f}."
    )


def show_features(model, network):
    """Print which features of an observation were shown, if not all."""
    from tfdqt.games.features import features_shown  # loads Keras, as training has

    shown = features_shown(model)
    if shown is not None:
        print(
            f"{len(shown)} features changed by {network.min_change:g} of their range a step or "
            f"more and were shown: {', '.join(map(str, shown))}."
        )


def show_reach(state, cfg):
    """Print how many rewards DQN's targets sum, if the rewards decided."""
    if not getattr(cfg, "n_step_if_steady", False) or not int(state.updates):
        return
    rewards, count = ("differed", 1) if bool(state.one_step) else ("were the same", cfg.n_step)
    print(f"Rewards before the first update {rewards}: targets sum {count} of them.")
