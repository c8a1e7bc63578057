"""A text run from its command line to its end: started or gone on with, trained, evaluated.

Imports TensorFlow only when it trains, so `--help` is instant.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.policy import epsilon_ladder
from tfdqt.runs.checkpoint import quoted
from tfdqt.runs.cli import (
    check_goes_on,
    check_resume_flags,
    first_line,
    given_flags,
    given_value,
    new_run,
    old_run,
    saying_what_is_kept,
    session,
    show_settings,
    stopped,
)
from tfdqt.runs.folder import freed_if_nothing_is_learned
from tfdqt.runs.log import read_log
from tfdqt.scale.config import ScaleConfig, check_scale
from tfdqt.scale.ray_pool import make_pool
from tfdqt.settings import (
    check_at_least_one,
    check_left_out,
    check_not_negative,
    check_seed,
    load_config,
    save_config,
)
from tfdqt.text.config import (
    METHODS,
    TextConfig,
    TextNetworkConfig,
    check_text,
    check_text_network,
)
from tfdqt.text.tasks.table import TASKS, default_text_config
from tfdqt.text.words import RAW

LOG_LINES = 1_000  # into which the progress line and log.csv divide a run, if it has the updates
OWN_RESUME_FLAGS = {"epochs", "device"}


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a pruned BERT and a Q-head on a text task; --task and --method set the defaults."""

    task: Literal[tuple(TASKS)] = "maze"
    """What to learn. The games make their data themselves; corpus learns to write."""
    seed: int = 0
    """Seeds weights, data and replay; equal seeds give equal runs."""
    run_dir: str | None = None
    """Folder for settings, log and checkpoints; by default runs/TASK-SEED-TIME."""
    resume: str | None = None
    """Folder of a run to go on with; its own settings hold, but for --epochs, --checkpoint-every,
    --threads, --device and how it is spread (--actors, --ray-address, --broadcast-every,
    --strategy)."""
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
    tokenizer: Literal["words", "bpe"] | None = None
    """corpus: words: whole words, in lower case. bpe: sub-words learned from the corpus, whose text
    is read as it stands, in any script. None: words, or with --encoder its own sub-words."""
    vocabulary: int = 2_000
    """corpus: how many of its most frequent words are known, or sub-words learned (without
    --encoder, which brings its own)."""
    window: int = 32
    """corpus: words, or sub-words, in a text."""
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
    scale: Annotated[ScaleConfig, tyro.conf.arg(name="")] = ScaleConfig()


# What a run keeps in its config.json, besides its dataclasses.
KEPT = (
    "task",
    "seed",
    "checkpoint_every",
    "epochs",
    "episodes",
    "corpus",
    "reward",
    "vocabulary",
    "window",
    "new_items",
    "evaluate_every",
    "games",
)

# -------------------------------------------------------------------------------------------------
# The command line


def parse(argv, description):
    """The arguments, by default those of the task and method they name: -> (args, flags given)."""
    task = given_value(argv, "task", Args.task)
    method = given_value(argv, "method", None)
    amounts, network, text = default_text_config(task, method if method in METHODS else None)
    default = Args(**amounts, network=network, text=text)
    if task in TASKS:
        default = dataclasses.replace(default, task=task)
    args = tyro.cli(Args, args=argv, default=default, description=description)
    flags = given_flags(argv)
    check_resume_flags(flags, OWN_RESUME_FLAGS)
    return args, flags


def check(args):
    """Raise UsageError for arguments that can't be."""
    check_text_network(args.network)
    check_text(args.text)
    check_scale(args.scale, args.scale.actors or 1)
    if args.scale.actors and args.text.method not in ("q", "implicit"):
        raise UsageError(
            f"--method={args.text.method} imitates or sums up the data's own games; --actors go "
            "with --method=q or implicit."
        )
    check_at_least_one(
        args,
        "epochs",
        "checkpoint_every",
        "new_items",
        "evaluate_every",
        "games",
        "threads",
        "vocabulary",
        "window",
    )
    if args.tokenizer and (args.network.encoder or args.task != "corpus"):
        raise UsageError(
            "--tokenizer is for --task=corpus without --encoder, which brings its own; leave it "
            "out."
        )
    if args.task != "corpus":
        why = "is for --task=corpus; give that too, or leave it out"
        check_left_out(args, why, "corpus", "reward", "vocabulary", "window")
        check_left_out(args.text, why, "reward_at")
    if args.task == "corpus" and args.scale.actors and args.text.greedy:
        raise UsageError(
            "Of a corpus --actors explore by drawing words; give --no-greedy, its default."
        )
    check_not_negative(args, "episodes")
    check_seed(args)
    if args.corpus == "":
        raise UsageError("--corpus is empty; give a folder of .txt files, or leave it out.")
    if args.corpus is not None and not Path(args.corpus).exists():
        raise UsageError(
            f"--corpus={args.corpus} does not exist; give a folder of .txt files."
            if args.resume is None
            else f"{args.corpus}, the corpus of the run, is gone; put it back to go on."
        )


def start(args):
    """Check the arguments and start a new run: -> Run."""
    check(args)
    # Of folders the whole path is kept, for the run may be looked at from another one.
    if args.corpus is not None:
        args = dataclasses.replace(args, corpus=str(Path(args.corpus).resolve()))
    encoder = args.network.encoder
    if encoder is not None and Path(encoder).is_dir():
        network = dataclasses.replace(args.network, encoder=str(Path(encoder).resolve()))
        args = dataclasses.replace(args, network=network)
    default = f"runs/{args.task}-{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    return new_run(
        args.run_dir or default,
        args.scale,
        args.threads,
        algorithm="text",
        network=args.network,
        text=args.text,
        # The rule by which texts are taken apart; runs of before have none.
        words=RAW if args.tokenizer == "bpe" or args.network.encoder else "unicode",
        **{name: getattr(args, name) for name in KEPT},
    )


def resume(args, flags):
    """Go on with the run that --resume names: -> Run, with the arguments that may change."""

    def changed(settings):
        """The run's settings, with what stands beside --resume instead."""
        given = {name: getattr(args, name) for name in KEPT if name.replace("_", "-") in flags}
        return {**settings, **given}

    def check_saved(settings, scale):
        settings = changed(settings)
        kept = {name: settings[name] for name in (*KEPT, "network", "text")}
        check(dataclasses.replace(args, scale=scale, **kept))

    run = old_run(args, flags, "text", check_saved, network=TextNetworkConfig, text=TextConfig)
    if "weights" not in run.saved:
        raise UsageError(
            f"{args.checkpoint} is not a checkpoint of a text run; give one from {run.folder}."
        )
    if "epochs" in flags:
        check_goes_on(run.saved["place"]["epoch"], args.epochs, "--epochs")
    return run._replace(settings=changed(run.settings))


# -------------------------------------------------------------------------------------------------
# Training


def main(description=__doc__, argv=None):
    """Parse the command line, start a run or go on with one, and train. Returns the exit code."""
    args, flags = parse(sys.argv[1:] if argv is None else argv, description)
    run = start(args) if args.resume is None else resume(args, flags)
    if args.device == "cpu" and run.strategy is None:
        hide_gpus()
    return train(run, args.device)


def hide_gpus():
    """Keep TensorFlow off the GPUs, whose memory it would take."""
    with contextlib.suppress(RuntimeError):  # it runs already, and whoever started it chose
        tf.config.set_visible_devices([], "GPU")


def train(run, device):
    """Train a Run, evaluate it and say so. Returns the exit code."""
    # These modules load TensorFlow, whose threads were set while the run was started.
    from tfdqt.text import actors, learn
    from tfdqt.text.encoder import sparsity
    from tfdqt.text.evaluate import load_text_checkpoint, make_networks
    from tfdqt.text.generation import make_run_scores
    from tfdqt.text.replay import ExperienceReplay
    from tfdqt.text.reward import RewardFailure

    settings = run.settings
    cfg = settings["text"]
    seed = settings["seed"]
    with freed_if_nothing_is_learned(run.folder):
        task, transformer, head = make_networks(run.folder, settings)
        check_room(transformer.bert, head)
        batches, about = task.load_data(settings)
        updates = settings["epochs"] * len(batches) * cfg.updates_per_batch
        network = settings["network"]
        if updates <= transformer.pruned_after:
            raise UsageError(
                f"--pruning-schedule=polynomial would zero no weight in the {updates} updates of "
                f"this run; give a smaller --pruning-end than {network.pruning_end}, more --epochs "
                "or --pruning-amount=0."
            )
        if run.saved:  # nothing is refused any more, so --epochs holds
            config = run.folder / "config.json"
            save_config(config, **{**load_config(config), "epochs": settings["epochs"]})
    show_settings(settings["network"], cfg, run.scale)
    print(
        f"{task.name}: {about} Encoder {transformer.bert.count_params():,} weights, "
        f"{sparsity(transformer):.0%} of its kernels zero; head {head.count_params():,}."
    )
    print(f"Run folder: {run.folder}", flush=True)

    if network.pruning_schedule == "polynomial" and updates < network.pruning_end:
        print(
            f"Note: --pruning-end={network.pruning_end} lies behind the last of {updates} updates, "
            f"so less than {network.pruning_amount:.0%} will be pruned."
        )
    scores = make_run_scores(transformer, head, cfg)

    def evaluate():
        games = min(settings["games"], task.quick_games)
        return task.evaluate(scores, cfg, games=games, seed=seed)[0].mean()

    step = run.saved["place"]["step"] if run.saved else None
    finished = step is not None and _is_over(run.saved["place"], settings["epochs"], len(batches))
    if finished:
        print(
            f"Nothing is left to learn, for all {settings['epochs']} epochs are done; give more by "
            "--epochs. What was learned is evaluated."
        )
    metrics = actors.ActedMetrics if run.scale.actors else learn.TextMetrics
    lines = min(LOG_LINES, updates)
    every = settings["checkpoint_every"]
    kept = saying_what_is_kept(run.folder, until="its last checkpoint")
    with kept, session(run, metrics._fields, updates, lines, every, step) as (log, save, stop):
        with acting(run, task, transformer, head, batches, log, stop) as (batches, log):
            learn.train_model(
                transformer,
                head,
                None,
                settings["epochs"],
                task.tokenizer,
                batches,
                ExperienceReplay(cfg.replay_size),
                device,
                cfg=cfg,
                seed=seed,
                strategy=run.strategy,
                evaluate=evaluate,
                evaluate_every=settings["evaluate_every"],
                log=None if finished and _evaluation_is_logged(run.folder, step) else log,
                save=save,
                saved=run.saved,
                should_stop=stop,
            )
    unfinished = False
    if run.scale.strategy == "multiworker":  # a signal to one learner stops all
        saved, _ = load_text_checkpoint(run.folder)
        unfinished = not _is_over(saved["place"], settings["epochs"], len(batches))
    if stop() or unfinished:
        print("Stopped.", end=" ")
        return stopped("run_text", run.folder, stop)
    games = settings["games"]
    try:
        returns, texts = task.evaluate(scores, cfg, games=games, seed=seed + 1)
    except KeyboardInterrupt:
        print("Stopped while it was evaluated; all is learned.", end=" ")
        print(f"Evaluate with: python scripts/evaluate.py {quoted(run.folder)}")
        return 128 + signal.SIGINT
    except RewardFailure as error:
        raise UsageError(
            f"{first_line(error)}; what was learned is saved in {run.folder}, evaluate it once "
            "that is mended."
        ) from error
    print(
        f"{task.name}, {cfg.method}: mean return {returns.mean():.2f} over {games} "
        f"({sparsity(transformer):.0%} of the encoder's kernels zero). {task.compare(texts)}"
    )
    print(f"Evaluate with: python scripts/evaluate.py {quoted(run.folder)}")
    return 0


def check_room(*networks):
    """Raise UsageError unless what learning needs beside networks fits memory.

    A target of each, the gradient and Adam's two moments.
    """
    weights = sum(network.count_params() for network in networks)
    memory.check_fits(
        4 * 4 * weights,
        f"To learn with {weights:,} weights takes another",
        lambda room: "give a smaller --encoder.",
    )


def _is_over(place, epochs, batches):
    """Whether a run that is at `place` has learned from all of its batches.

    A checkpoint that is due at the last update comes before that pass is counted.
    """
    return place["epoch"] + (place["batch"] >= batches) >= epochs


def _evaluation_is_logged(run_dir, step):
    """Whether the log of a run that ended at `step` has the row of its last evaluation.

    It comes behind that of the last update, and behind the last checkpoint: a run that was killed
    between them lacks it.
    """
    rows = read_log(run_dir)["step"] if (run_dir / "log.csv").exists() else []
    return sum(row == step for row in rows) > 1


@contextlib.contextmanager
def acting(run, task, transformer, head, batches, log, stop):
    """Within the block, the run's actors play, if it has any.

    Yields (batches, log): those given, with what is played beside the data, and told of.
    """
    if not run.scale.actors:
        yield batches, log
        return
    from tfdqt.text import actors  # loads TensorFlow

    settings = run.settings
    cfg = settings["text"]
    progress = run.saved["place"] if run.saved else dict(step=0, batch=0)
    pool = make_pool(
        functools.partial(actors.make_text_collect, task, settings["network"], cfg),
        [[epsilon] for epsilon in epsilon_ladder(run.scale.actors)],
        [settings["seed"], 8, progress["step"]],
        address=run.scale.ray_address,
    )
    variables = [*transformer.variables, *head.variables]
    batches = actors.ActedBatches(
        batches,
        pool,
        lambda: [variable.numpy() for variable in variables],
        cfg,
        broadcast_every=run.scale.broadcast_every,
        updates=progress["step"],
        skip=progress["batch"],
        should_stop=stop,
    )

    def log_with_actors(metrics, **last):
        log(batches.metrics(metrics), **last)

    try:
        yield batches, log_with_actors
    finally:
        pool.close()
