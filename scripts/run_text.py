"""Train a pruned BERT and a Q-head on a text task, or go on with a run.

    python scripts/run_text.py
    python scripts/run_text.py --task=wordle --seed=1 --run-dir=runs/wordle-1
    python scripts/run_text.py --resume=runs/wordle-1
"""

import dataclasses
import functools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

import tfdqt
from tfdqt.checks import check_far, check_text, check_text_network, resumed_far
from tfdqt.config import METHODS, TEXT, FarConfig, TextConfig, TextNetworkConfig, UsageError, default_text_config, load_config, save_config
from tfdqt.runs import (
    check_at_least_one,
    check_resume_flags,
    common_checkpoint,
    connect_actors,
    find_run,
    freed_if_nothing_is_learned,
    given_flags,
    given_value,
    make_logger,
    make_saver,
    own_folder,
    run_main,
    start_run,
    stop_on_signals,
    strategy_of,
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a pruned BERT and a Q-head on a text task. The defaults shown are those of --task and --method."""

    task: Literal["maze", "maze-po", "wordle", "corpus"] = "maze"
    """What to learn. The games make their data themselves; corpus learns to write."""
    seed: int = 0
    """Seeds weights, data and replay; equal seeds give equal runs."""
    run_dir: str | None = None
    """Folder for settings, log and checkpoints; by default runs/TASK-SEED-TIME."""
    resume: str | None = None
    """Folder of a run to go on with; its own settings hold, but for --epochs, --checkpoint-every, --threads, --device and how it is spread
    (--actors, --ray-address, --broadcast-every, --strategy)."""
    checkpoint: str | None = None
    """With --resume: the checkpoint to go on from, by default the newest."""
    checkpoint_every: int = 1_000
    """Updates between two checkpoints; there is always one at the end."""
    epochs: int = 2
    """Passes over the data."""
    episodes: int = 0
    """Games of the data's own policy to learn from (0: as many as the task has by default)."""
    corpus: str | None = None
    """corpus: folder of .txt files; by default the King James Bible."""
    reward: str = "sentiment"
    """corpus: what a text is worth: sentiment, or module:function of a function text -> float."""
    vocabulary: int = 2_000
    """corpus: how many of its most frequent words are known (without --encoder, which brings its own)."""
    window: int = 32
    """corpus: words in a text."""
    new_items: int = 1_024
    """Transitions, or episodes, that enter the replay buffer at a time."""
    evaluate_every: int = 500
    """Updates between two evaluations."""
    games: int = 800
    """Games, or texts, in the last evaluation."""
    device: str = "cpu"
    """cpu, gpu, or a device's name in TensorFlow; with --strategy its devices are used."""
    threads: int = max(1, os.cpu_count() or 1)
    """Threads inside TensorFlow's operations."""
    network: Annotated[TextNetworkConfig, tyro.conf.arg(name="")] = TextNetworkConfig()
    text: Annotated[TextConfig, tyro.conf.arg(name="")] = TextConfig()
    far: Annotated[FarConfig, tyro.conf.arg(name="")] = FarConfig()


RESUME_FLAGS = {"resume", "checkpoint", "epochs", "threads", "checkpoint-every", "device", "actors", "ray-address", "broadcast-every",
                "strategy"}


def parse(argv):
    """The arguments, with the defaults of the task and method they name."""
    task = given_value(argv, "task", Args.task)
    method = given_value(argv, "method", None)
    amount, network, text = default_text_config(task, method if method in METHODS else None)
    default = Args(**amount, network=network, text=text)
    if task in TEXT:
        default = dataclasses.replace(default, task=task)
    args = tyro.cli(Args, args=argv, default=default, description=__doc__)
    flags = given_flags(argv)
    check_resume_flags(flags, RESUME_FLAGS)
    return args, flags


SAVED = ("task", "seed", "checkpoint_every", "epochs", "episodes", "corpus", "reward", "vocabulary", "window", "new_items",
         "evaluate_every", "games")


def check(args):
    """Raise UsageError for arguments that can't be."""
    check_text_network(args.network)
    check_text(args.text)
    check_far(args.far, args.far.actors or 1)
    if args.far.actors and args.text.method not in ("q", "implicit"):
        raise UsageError(f"--method={args.text.method} imitates or sums up the data's own games; --actors go with --method=q or implicit.")
    check_at_least_one(args, "epochs", "checkpoint_every", "new_items", "evaluate_every", "games", "threads", "vocabulary", "window")
    if args.seed < 0 or args.episodes < 0:
        raise UsageError("--seed and --episodes must be 0 or more.")
    if args.corpus is not None and not Path(args.corpus).exists():
        raise UsageError(f"--corpus={args.corpus} does not exist; give a folder of .txt files.")


def new_run(args):
    check(args)
    if args.corpus is not None:
        args = dataclasses.replace(args, corpus=str(Path(args.corpus).resolve()))
    folder = own_folder(args.run_dir or f"runs/{args.task}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}", args.far)
    connect_actors(args.far)
    run_dir = start_run(folder, version=tfdqt.__version__, algorithm="text", network=args.network, text=args.text, far=args.far,
                        **{name: getattr(args, name) for name in SAVED})
    with freed_if_nothing_is_learned(run_dir):
        return run_dir, None, args, strategy_of(args.far, args.threads)


def old_run(args, flags):
    run_dir = find_run(args.resume)
    plain = load_config(run_dir / "config.json")
    if plain.get("algorithm") != "text":
        raise UsageError(f"{run_dir} is not a text run; go on with it by the script that started it.")
    settings = load_config(run_dir / "config.json", network=TextNetworkConfig, text=TextConfig,
                           **({"far": FarConfig} if "far" in plain else {}))
    kept = {name: settings[name] for name in SAVED if name.replace("_", "-") not in flags}
    far = resumed_far(run_dir, settings.get("far", FarConfig()), args.far, flags)
    args = dataclasses.replace(args, network=settings["network"], text=settings["text"], far=far, **kept)
    check(args)
    connect_actors(far)
    strategy = strategy_of(far, args.threads)
    if far.strategy == "multiworker" and not args.checkpoint:
        args = dataclasses.replace(args, checkpoint=common_checkpoint(run_dir, strategy))
    from tfdqt.text_runs import load_text_checkpoint

    saved, path = load_text_checkpoint(run_dir, args.checkpoint)
    print(f"Going on from {path}.")
    if "epochs" in flags:
        save_config(run_dir / "config.json", **{**settings, "epochs": args.epochs})
    return run_dir, saved, args, strategy


def act_too(task, transformer, head, batches, args, saved, stop):
    """Start actors beside the data: -> (Pool, ActedBatches)."""
    from tfdqt import actors, text_runs
    from tfdqt.policy import epsilon_ladder

    done = saved["place"]["step"] if saved else 0
    shares = [[epsilon] for epsilon in epsilon_ladder(args.far.actors)]
    pool = actors.make_pool(functools.partial(text_runs.make_text_player, task, args.network, args.text), shares, [args.seed, 8, done],
                            address=args.far.ray_address)
    variables = [*transformer.variables, *head.variables]
    return pool, text_runs.ActedBatches(batches, pool, lambda: [variable.numpy() for variable in variables], args.text,
                                        broadcast_every=args.far.broadcast_every, done=done, should_stop=stop,
                                        skip=saved["place"]["batch"] if saved else 0)


def log_with(log, batches, metrics, **last):
    """Log what the actors did beside what was learned."""
    log(batches.metrics(metrics), **last)


def main():
    args, flags = parse(sys.argv[1:])
    run_dir, saved, args, strategy = new_run(args) if args.resume is None else old_run(args, flags)

    from tfdqt import backend

    if strategy is None:
        backend.set_threads(args.threads)

    from tfdqt import bert, text, text_runs
    from tfdqt.backend import tf
    from tfdqt.envs import EnvFailure
    from tfdqt.replay import ExperienceReplay

    cfg = args.text
    if args.device == "cpu" and strategy is None:
        tf.config.set_visible_devices([], "GPU")
    with freed_if_nothing_is_learned(run_dir):
        task, transformer, head = text_runs.make_networks(run_dir, args)
        batches, about = text_runs.make_data(task, args)
    for part in (args.network, cfg, *([args.far] if args.far != FarConfig() else [])):
        print("  ".join(f"{key}={value}" for key, value in dataclasses.asdict(part).items()))
    print(f"{args.task}: {about} Encoder {transformer.bert.count_params():,} weights, {bert.sparsity(transformer):.0%} of its kernels "
          f"zero; head {head.count_params():,}.")
    print(f"Run folder: {run_dir}", flush=True)

    scores = text_runs.make_run_scores(task, transformer, head, cfg)

    def evaluate():
        return text_runs.returns_of(task, scores, cfg, games=min(args.games, text_runs.QUICK[args.task]), seed=args.seed)[0].mean()

    total = args.epochs * len(batches) * cfg.updates_per_batch
    rate = tf.keras.optimizers.schedules.PolynomialDecay(cfg.learning_rate, total, cfg.final_learning_rate)
    step = saved["place"]["step"] if saved else None
    metrics = text_runs.ActedMetrics if args.far.actors else text.Metrics
    log, close = make_logger(run_dir, metrics._fields, total, min(1_000, total), resume_step=step)
    save = make_saver(run_dir, args.checkpoint_every, resume_step=step or 0)
    pool = None
    with stop_on_signals() as stop, freed_if_nothing_is_learned(run_dir):
        try:
            if args.far.actors:
                pool, batches = act_too(task, transformer, head, batches, args, saved, stop)
                log = functools.partial(log_with, log, batches)
            text.train_model(transformer, head, tf.keras.optimizers.Adam(rate), args.epochs, task.tokenizer, batches,
                             ExperienceReplay(cfg.replay_size), args.device, cfg=cfg, seed=args.seed, strategy=strategy,
                             evaluate=evaluate, evaluate_every=args.evaluate_every, log=log, save=save, saved=saved, should_stop=stop)
        except EnvFailure as error:
            raise UsageError(f"{str(error).splitlines()[0]}; go on from the last checkpoint with --resume={run_dir} once that is "
                             "mended.") from None
        finally:
            close()
            if pool:
                pool.close()
    others = args.far.strategy == "multiworker" and text_runs.load_text_checkpoint(run_dir)[0]["place"]["epoch"] < args.epochs
    if stop() or others:  # a signal to one learner stops all
        print(f"Stopped. Go on with: python scripts/run_text.py --resume={run_dir}")
        return 128 + (stop.signal or signal.SIGTERM)
    returns, texts = text_runs.returns_of(task, scores, cfg, games=args.games, seed=args.seed + 1)
    print(f"{args.task}, {cfg.method}: mean return {returns.mean():.2f} over {args.games} "
          f"({bert.sparsity(transformer):.0%} of the encoder's kernels zero). {text_runs.beside(task, texts)}")
    print(f"Evaluate with: python scripts/evaluate.py {run_dir}")
    return 0


if __name__ == "__main__":
    run_main(main)
