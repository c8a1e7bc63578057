"""What every training script does around the learning: start a run, go on with one, stop, fail."""

import contextlib
import dataclasses
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from tfdqt import backend
from tfdqt.errors import Diverged, EnvFailure, UsageError, first_line
from tfdqt.runs.checkpoint import (
    checkpoints,
    load_checkpoint,
    make_saver,
    newest_common,
    quoted,
)
from tfdqt.runs.folder import (
    clear,
    find_run,
    freed_if_nothing_is_learned,
    learner_folder,
    lock_run,
    start_run,
    unlock_runs,
)
from tfdqt.runs.log import make_logger
from tfdqt.runs.processes import a_script, end_in_time, take_signals
from tfdqt.scale import distribute, ray_pool
from tfdqt.scale.config import ScaleConfig, resumed_scale
from tfdqt.settings import check_left_out, load_config
from tfdqt.version import __version__


def run_main(main):
    """Call `main()` as a script: what a user can mend becomes one sentence and exit code 2."""
    code = 1  # of a traceback
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal's letters are few
    try:
        with a_script():
            code = main() or 0
    except (UsageError, EnvFailure) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        code = 128 + signal.SIGPIPE
    finally:
        unlock_runs()
        end_in_time(code)
    sys.exit(code)


def _nobody_reads():
    """Whether what is printed has no reader any more, as behind `| head`; then it goes nowhere."""
    try:
        number = sys.stdout.fileno()
    except OSError:  # it is no file
        return False
    poll = select.poll()
    poll.register(number, 0)  # errors are told without being asked for
    gone = bool(poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return gone


# -------------------------------------------------------------------------------------------------
# The command line

# Flags that may stand beside --resume in every script, besides its own.
RESUME_FLAGS = {
    "resume",
    "checkpoint",
    "checkpoint-every",
    "threads",
    "actors",
    "ray-address",
    "broadcast-every",
    "strategy",
}


def given_flags(argv):
    """The names of the flags on a command line, spelled with dashes."""
    return [word[2:].split("=", 1)[0].replace("_", "-") for word in argv if word.startswith("--")]


def given_value(argv, flag, default):
    """What a command line gives for `flag` last; for defaults that depend on it."""
    for i, word in reversed(list(enumerate(argv))):
        if word == f"--{flag}":
            return (argv[i + 1 :] or [""])[0]
        if word.startswith(f"--{flag}="):
            return word.split("=", 1)[1]
    return default


def check_resume_flags(flags, own):
    """Raise UsageError if --resume stands beside a flag that can't change on the way."""
    odd = [flag for flag in flags if flag not in RESUME_FLAGS | own]
    if "resume" in flags and odd:
        raise UsageError(
            f"--resume goes on with the run's own settings; leave out --{odd[0]}, or start a new "
            "run with it."
        )
    if "checkpoint" in flags and "resume" not in flags:
        raise UsageError("--checkpoint says where --resume goes on; give --resume=RUN too.")


# -------------------------------------------------------------------------------------------------
# A run, new or gone on with


class Run(NamedTuple):
    """A run that is about to learn."""

    folder: Path
    settings: dict  # of config.json, its dataclasses made
    scale: ScaleConfig
    strategy: object  # tf.distribute.Strategy, or None
    saved: dict | None  # what the checkpoint holds that it goes on from


def new_run(run_dir, scale, threads, **settings):
    """Make the folder of a new run, and what its ScaleConfig needs: -> Run."""
    if not scale.actors:
        check_left_out(scale, "is for actors; add --actors=N, or leave it out", "broadcast_every")
    folder = learner_folder(run_dir, scale)
    connect_actors(scale)
    settings = dict(version=__version__, **settings, scale=scale)
    folder = start_run(folder, **settings)
    with freed_if_nothing_is_learned(folder):
        return Run(folder, settings, scale, start_backend(scale, threads), None)


def old_run(args, flags, algorithm, check, **classes):
    """The Run that `args.resume` names, which a script of `algorithm` started.

    check: (settings, ScaleConfig) -> None, raises UsageError for what can't be. classes: as for
    `load_config`.
    """
    folder = find_run(args.resume)
    try:
        lock_run(folder)
    except OSError as error:
        raise UsageError(
            f"The run folder {folder} can't be written ({error.strerror}); go on with a copy of it."
        ) from None
    settings = read_settings(folder)
    if settings.get("algorithm") != algorithm:
        raise UsageError(
            f"{folder} is not a run of {algorithm.upper()}; go on with it by the script that "
            "started it."
        )
    settings = read_settings(folder, **classes)
    check_complete(folder, settings)
    scale = resumed_scale(folder, settings["scale"], getattr(args, "scale", ScaleConfig()), flags)
    check(settings, scale)
    strategy = None
    checkpoint = args.checkpoint
    if scale.strategy == "multiworker":
        strategy = start_backend(scale, args.threads)
        checkpoint = checkpoint or newest_common(folder, distribute.make_group(strategy))
    saved, path = load_checkpoint(folder, checkpoint)
    connect_actors(scale)
    print(f"Going on from {path}.")
    return Run(folder, settings, scale, strategy or start_backend(scale, args.threads), saved)


def check_complete(folder, settings):
    """Raise UsageError for a config.json without a value that every run has."""
    learned = ("name", "task")  # by games, by texts
    lines = ("log_lines", "epochs")  # epochs until 0.1, and of texts
    for names in (learned, lines, ("seed",), ("checkpoint_every",)):
        if not any(name in settings for name in names):
            raise UsageError(
                f"{folder / 'config.json'} has no {names[0]}; put back what the run was started "
                "with."
            )


def check_goes_on(done, total, flag):
    """Raise UsageError unless a resumed run has more to do than it has done."""
    if total <= done:
        raise UsageError(f"{flag}={total} is no more than the {done} that the run has done.")


def read_settings(run_dir, **classes):
    """A run's config.json, with a ScaleConfig as `scale` whether or not there is one in it."""
    path = Path(run_dir) / "config.json"
    plain = load_config(path)
    key = next((key for key in ("scale", "far") if key in plain), None)  # "far" until 0.1
    settings = load_config(path, **classes, **({key: ScaleConfig} if key else {}))
    scale = settings.pop(key) if key else ScaleConfig()
    return dict(settings, scale=scale)


def start_backend(scale, threads):
    """Start TensorFlow with so many threads: -> the strategy of a ScaleConfig, or None."""
    backend.set_threads(threads)
    return distribute.make_strategy(scale.strategy)


def connect_actors(scale):
    """Start Ray, or join it, if a ScaleConfig has actors.

    Before `stop_on_signals`, for Ray takes signals for itself when it starts.
    """
    if scale.actors:
        ray_pool.connect(scale.actors, scale.ray_address)


# -------------------------------------------------------------------------------------------------
# Learning


class Session(NamedTuple):
    """What a learner is given to report to."""

    log: object  # called as log(metrics)
    save: object  # called as save(step, make, last=...)
    stop: object  # asked as stop(); stop.signal is the signal that came, or None


@contextlib.contextmanager
def session(run, fields, total_steps, lines, checkpoint_every, step=None):
    """A Session for the block that learns; `step` is the one that a resumed run goes on from.

    An EnvFailure becomes a UsageError, its traceback in failure.txt. So does SystemExit: whoever
    asks for the end of the process in the midst of learning is no part of this package.
    """
    folder = run.folder
    log, close = make_logger(folder, fields, total_steps, lines, resume_step=step)
    save = make_saver(folder, checkpoint_every, resume_step=step or 0)
    with stop_on_signals() as stop, freed_if_nothing_is_learned(folder):
        try:
            yield Session(log, save, stop)
        except (EnvFailure, SystemExit) as error:
            failure = Path(folder, "failure.txt")
            text = str(error)
            if isinstance(error, SystemExit):
                text = f"Something called sys.exit({error.code!r})\n{traceback.format_exc()}"
            with contextlib.suppress(OSError):  # a full disk must not hide what failed
                failure.write_text(text, encoding="utf-8")
            advice = "nothing was learned yet, start again"
            if checkpoints(folder):
                advice = f"what was learned is saved, go on with --resume={quoted(folder)}"
            raise UsageError(
                f"{first_line(text)}; {advice} once that is mended (more of it: {failure})."
            ) from None
        finally:
            close()
            unlock_runs()


def stopped(script, run_dir, stop):
    """Tell how to go on with a run that was stopped: -> exit code."""
    if checkpoints(run_dir) and not Path(run_dir, "config.json").exists():
        print(
            f"{quoted(run_dir)} was moved while it trained: put what is left there, the newest "
            "checkpoint among it, back beside config.json, then --resume that."
        )
    elif checkpoints(run_dir):
        print(f"Go on with: python scripts/{script}.py --resume={quoted(run_dir)}")
    else:
        clear(run_dir)
        print("Nothing was learned yet; start again.")
    return 128 + (stop.signal or signal.SIGTERM)


@contextlib.contextmanager
def saying_what_is_kept(run_dir, until="then"):
    """Add to a Diverged of the block what there is to go on with: what was learned `until`."""
    try:
        yield
    except Diverged as error:
        sentence = str(error).rstrip(".")
        if not checkpoints(run_dir):
            raise Diverged(f"{sentence}; nothing of the run is kept.") from None
        run = quoted(run_dir)
        raise Diverged(
            f"{sentence}; what was learned until {until} is saved: python "
            f"scripts/evaluate.py {run} evaluates it, and --resume={run} goes on from it."
        ) from None


def show_settings(*parts):
    """Print dataclasses of settings, a line each; a ScaleConfig only if it says something."""
    for part in parts:
        if part != ScaleConfig():
            print("  ".join(f"{key}={value}" for key, value in dataclasses.asdict(part).items()))


@contextlib.contextmanager
def stop_on_signals():
    """Within the block, Ctrl-C and SIGTERM only set `stop.signal`; a second one ends the process.

    Children of this process know nothing of that: they have the handlers from before the block.

    Yields an object whose call tells whether a signal came.
    """

    def stop():
        return stop.signal is not None

    def handle(number, frame):
        stop.signal = number
        give_back()

    stop.signal = None
    give_back = take_signals(handle)
    try:
        yield stop
    finally:
        give_back()
