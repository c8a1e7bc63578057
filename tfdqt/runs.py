"""A run's folder: settings, log, progress line, checkpoints that survive a crash, and signals."""

import contextlib
import csv
import json
import math
import os
import shutil
import signal
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tfdqt.checks import cluster_place
from tfdqt.config import UsageError, save_config

KEPT = 2  # checkpoints: the newest, and the one before it


def run_main(main):
    """Call `main()` as a script: a UsageError becomes one sentence on standard error and exit code 2."""
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def given_flags(argv):
    """The names of the flags on a command line, spelled with dashes."""
    return [word[2:].split("=", 1)[0].replace("_", "-") for word in argv if word.startswith("--")]


def given_value(argv, flag, default):
    """What a command line gives for `flag` last, as --flag=value or --flag value; for defaults that depend on it."""
    for i, word in reversed(list(enumerate(argv))):
        if word == f"--{flag}":
            return (argv[i + 1:] or [""])[0]
        if word.startswith(f"--{flag}="):
            return word.split("=", 1)[1]
    return default


def check_resume_flags(flags, allowed):
    """Raise UsageError if --resume stands beside a flag that can't change on the way."""
    odd = [flag for flag in flags if flag not in allowed]
    if "resume" in flags and odd:
        raise UsageError(f"--resume goes on with the run's own settings; leave out --{odd[0]}, or start a new run with it.")


def check_at_least_one(args, *fields):
    """Raise UsageError unless each of these arguments is 1 or more; None counts as not given."""
    for field in fields:
        if getattr(args, field) is not None and getattr(args, field) < 1:
            raise UsageError(f"--{field.replace('_', '-')} must be at least 1, not {getattr(args, field)}.")


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def start_run(run_dir, **settings):
    """Make the folder of a new run and save its settings as config.json. Returns its path.

    Raises UsageError if the folder can't be written or holds a run already.
    """
    run_dir = Path(run_dir)
    if (run_dir / "config.json").exists():
        raise UsageError(f"{run_dir} already holds a run; go on with it by --resume={run_dir}, or choose another --run-dir.")
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_config(run_dir / "config.json", **settings)
    except OSError as error:
        raise UsageError(f"The run folder {run_dir} can't be written ({error.strerror}); choose another --run-dir.") from None
    return run_dir


def find_run(run_dir):
    """The path of an existing run. Raises UsageError if there is none."""
    run_dir = Path(run_dir)
    if not (run_dir / "config.json").is_file():
        raise UsageError(f"There is no run in {run_dir} (no config.json); give the folder that a run printed at its start.")
    return run_dir


# ---------------------------------------------------------------------------------------------------------------------
# The log


def make_logger(run_dir, fields, total_steps, epochs, *, resume_step=None, show=True):
    """`log(metrics)` for the CSV, TensorBoard and the progress line, and `close()`.

    `metrics` is a NamedTuple with `fields`, among them step, games, mean_return and loss. One row is written each
    epoch, `total_steps / epochs` steps, and one for log(metrics, last=True). After a resume the rows behind `resume_step`
    are dropped: they come again.
    """
    from tqdm import tqdm

    from tfdqt.backend import tf

    path, columns = Path(run_dir) / "log.csv", ("epoch", "seconds", *fields)
    rows = []
    if resume_step is not None and path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values() and int(row["step"]) <= resume_step]
    before = float(rows[-1]["seconds"]) if rows else 0.0
    aside = path.with_suffix(".writing")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, path)
    file = open(path, "a", newline="", encoding="utf-8")
    writer = csv.DictWriter(file, columns)
    board = tf.summary.create_file_writer(str(Path(run_dir) / "tensorboard"))
    started = time.monotonic()
    place = dict(epoch=int(rows[-1]["epoch"]) if rows else 0, games=int(rows[-1]["games"]) if rows else 0)
    bars = []  # made with the first line, below whatever was printed before

    def log(metrics, last=False):
        epoch = min(epochs, metrics.step * epochs // total_steps)
        if not bars:
            bars.append(tqdm(total=epochs, initial=place["epoch"], disable=not show, mininterval=0.2 if sys.stderr.isatty() else 30,
                             bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"))
        bar, = bars
        bar.set_description_str(f"Epoch: {epoch} | {metrics.step} | {metrics.loss:.3f} | {metrics.mean_return:.3f} | "
                                f"playing games: {metrics.games - place['games']}/{metrics.games}", refresh=False)
        if epoch == place["epoch"] and not last:
            bar.update(0)
            return
        bar.update(epoch - place["epoch"])
        place.update(epoch=epoch, games=metrics.games)
        row = dict(epoch=epoch, seconds=round(before + time.monotonic() - started, 2), **metrics._asdict())
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
        file.flush()
        with board.as_default(step=metrics.step):
            for key, value in metrics._asdict().items():
                if key != "step" and not (isinstance(value, float) and math.isnan(value)):
                    tf.summary.scalar(key, value)

    def close():
        for bar in bars:
            bar.refresh()
            bar.close()
        file.close()
        board.close()

    return log, close


def write_rows(path, rows):
    """Write dicts as a CSV with a column for every key, numbers to six digits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)


def read_log(run_dir):
    """The rows of a run's log.csv; see read_csv."""
    return read_csv(find_run(run_dir) / "log.csv")


def read_csv(path):
    """A CSV of numbers as a dict of float arrays, one per column. Raises UsageError if it has no rows."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
    except OSError as error:
        raise UsageError(f"{path} can't be read ({error.strerror}).") from None
    if not rows:
        raise UsageError(f"{path} has no rows yet; let the run train for longer.")
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: a tree of dicts, lists, tuples, plain values and arrays, without pickle


def _pack(tree, arrays):
    if isinstance(tree, np.ndarray) and not tree.dtype.hasobject:
        arrays[f"a{len(arrays)}"] = tree
        return {"__array__": f"a{len(arrays) - 1}"}
    if isinstance(tree, np.generic):
        return _pack(np.asarray(tree), arrays) if tree.dtype.kind not in "iufb" else tree.item()
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {key: _pack(value, arrays) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return {"__tuple__": [_pack(value, arrays) for value in tree]}
    if isinstance(tree, list):
        return [_pack(value, arrays) for value in tree]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint can't hold a {type(tree).__name__}")


def _unpack(tree, arrays):
    if isinstance(tree, dict) and "__array__" in tree:
        return arrays[tree["__array__"]]
    if isinstance(tree, dict) and "__tuple__" in tree:
        return tuple(_unpack(value, arrays) for value in tree["__tuple__"])
    if isinstance(tree, dict):
        return {key: _unpack(value, arrays) for key, value in tree.items()}
    return [_unpack(value, arrays) for value in tree] if isinstance(tree, list) else tree


def _checksum(path):
    total = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return dict(bytes=path.stat().st_size, crc32=total)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(run_dir):
    """The checkpoints of a run, oldest first."""
    return sorted((Path(run_dir) / "checkpoints").glob("step-*"))


def save_checkpoint(run_dir, step, tree):
    """Write `tree` aside, then rename it into place; the newest checkpoints before it stay whole whatever happens.

    Raises UsageError if it can't be written.
    """
    folder = Path(run_dir) / "checkpoints"
    aside, place = folder / ".writing", folder / f"step-{step:012d}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        arrays = {}
        packed = _pack(tree, arrays)
        (aside / "tree.json").write_text(json.dumps(packed), encoding="utf-8")
        with open(aside / "arrays.npz", "wb") as file:
            np.savez(file, **arrays)
        manifest = {name: _checksum(aside / name) for name in ("tree.json", "arrays.npz")}
        (aside / "manifest.json").write_text(json.dumps(dict(format="tfdqt-1", step=step, files=manifest)), encoding="utf-8")
        for file in (*aside.iterdir(), aside):
            _sync(file)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(aside, place)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        good = last_good(run_dir)
        kept = f"the last good one, {good}, is whole: make room and --resume={run_dir}" if good else "there is none before it"
        raise UsageError(f"The checkpoint at step {step} can't be written ({error.strerror or error}); {kept}.") from None
    found = checkpoints(run_dir)
    later = [path for path in found if path.name > place.name]  # of the future that was left by going on from an older one
    for old in (*found[:-KEPT - len(later)], *later):
        shutil.rmtree(old, ignore_errors=True)
    return place


def _fault(path):
    """What is wrong with the checkpoint at `path`, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != "tfdqt-1":
            return "it is not one of tfdqt's"
        for name, expected in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            found = _checksum(path / name)
            if found != expected:
                return f"{name} has {found['bytes']} bytes of {expected['bytes']}" if found["bytes"] != expected["bytes"] \
                    else f"the contents of {name} have changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "it has no readable manifest.json"
    return None


def last_good(run_dir):
    """The newest checkpoint that is whole, or None."""
    return next((path for path in reversed(checkpoints(run_dir)) if _fault(path) is None), None)


def load_checkpoint(run_dir, path=None):
    """The tree of the checkpoint at `path`, by default the run's newest. Returns (tree, path).

    Raises UsageError, naming the last good one, if it is damaged, foreign or missing.
    """
    found = checkpoints(run_dir)
    if path is None and not found:
        raise UsageError(f"{run_dir} has no checkpoint yet; start the run again in another folder.")
    path = Path(path) if path else found[-1]
    fault = _fault(path)
    if fault:
        good = last_good(run_dir)
        advice = f"the last good one is {good}: choose it with --checkpoint={good}" if good else "no other one is whole"
        raise UsageError(f"The checkpoint {path} can't be used because {fault}; {advice}.")
    try:
        with np.load(path / "arrays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"The checkpoint {path} can't be read ({error}).") from None
    return _unpack(json.loads((path / "tree.json").read_text(encoding="utf-8")), arrays), path


def make_saver(run_dir, every, *, resume_step=0):
    """`save(step, make, last=False)`: keeps a checkpoint of make() when `every` steps have passed, and the last one."""
    done = dict(step=resume_step)

    def save(step, make, *, last=False):
        if (last and step != done["step"]) or step // every > done["step"] // every:
            save_checkpoint(run_dir, step, make())
            done["step"] = step

    return save


# ---------------------------------------------------------------------------------------------------------------------
# Past one process


def own_folder(run_dir, far):
    """Where this process keeps its part of a run: of several learners that learn together, each but the first has a folder in the run's."""
    index = cluster_place()[0] if far.strategy == "multiworker" else 0
    return Path(run_dir, f"learner-{index}") if index else Path(run_dir)


@contextlib.contextmanager
def freed_if_nothing_is_learned(run_dir):
    """If the block raises a UsageError before the run's first checkpoint, let the folder be used for a better try."""
    try:
        yield
    except UsageError:
        if not checkpoints(run_dir):
            Path(run_dir, "config.json").unlink(missing_ok=True)
        raise


def strategy_of(far, threads):
    """The tf.distribute.Strategy that a FarConfig asks for, or None. Starts TensorFlow, with so many threads, if there is one."""
    if far.strategy == "none":
        return None
    from tfdqt import backend, distribute

    backend.set_threads(threads)
    return distribute.make_strategy(far.strategy)


def common_checkpoint(run_dir, strategy):
    """The newest checkpoint of a run of which every learner has one of the same step."""
    from tfdqt.distribute import make_team, newest_common

    return str(newest_common(run_dir, make_team(strategy)))


def connect_actors(far):
    """Start Ray, or join it, if a FarConfig has actors. Before `stop_on_signals`, for Ray takes signals for itself when it starts."""
    if far.actors:
        from tfdqt.actors import connect

        connect(far.actors, far.ray_address)


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@contextlib.contextmanager
def stop_on_signals():
    """Within the block, Ctrl-C and SIGTERM only set `stop.signal`; a second one ends the process as usual.

    Yields an object whose call tells whether a signal came.
    """

    def stop():
        return stop.signal is not None

    def handle(number, frame):
        stop.signal = number
        for name, handler in before.items():
            signal.signal(name, handler)

    stop.signal = None
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in before:
        signal.signal(name, handle)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
