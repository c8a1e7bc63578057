"""A run's folder: made for a new run, opened again, and freed if nothing was learned."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from pathlib import Path

from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import BEST, checkpoints, last_good, quoted
from tfdqt.scale.config import cluster_member
from tfdqt.settings import save_config

# What a run writes before its first checkpoint, by patterns in its folder. What tells that it is a
# run's folder comes last.
BEFORE_CHECKPOINTS = ("log.csv", "log.writing", "tensorboard/events.out.tfevents.*", "config.json")

# -------------------------------------------------------------------------------------------------
# One writer at a time

_locks = {}  # folder -> descriptor of its lock file, while this process holds it


def lock_file(path, *, wait):
    """Lock a file, which is made if it is missing, against other processes: -> descriptor.

    A record lock of POSIX: it goes with the process, however that ends, and no child inherits it.
    On a file system without such locks nothing is locked.

    Raises BlockingIOError if another process holds it and wait is False.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(handle)
            raise BlockingIOError(error.errno, error.strerror) from None
    return handle


@contextlib.contextmanager
def locked(path):
    """Within the block this process alone holds the lock file at `path`; the others wait."""
    handle = lock_file(path, wait=True)
    try:
        yield
    finally:
        os.close(handle)


def lock_run(run_dir):
    """Make this process the only one that trains in a folder, until it ends or `unlock_runs`.

    Raises UsageError if another one does.
    """
    key = str(Path(run_dir).resolve())
    path = Path(run_dir, ".lock")
    _unlock(key)
    try:
        handle = lock_file(path, wait=False)
    except BlockingIOError:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise UsageError(
            f"{run_dir} is in use: {holder} trains in it; wait until it has ended, or stop it, or "
            "choose another folder."
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _locks[key] = handle


def unlock_runs():
    """Let other processes train in the folders that this one has locked."""
    for key in list(_locks):
        _unlock(key)


def _unlock(key):
    if key in _locks:
        os.close(_locks.pop(key))  # which unlocks it


# -------------------------------------------------------------------------------------------------
# Made, and found again


def start_run(run_dir, **settings):
    """Make the folder of a new run, lock it and save its settings as config.json: -> its path.

    What an earlier attempt that came to no checkpoint left there is removed.

    Raises UsageError if the folder can't be written, is in use, or holds what would be lost.
    """
    run_dir = Path(run_dir).absolute()  # an environment may change the working directory
    _check_foreign(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock_run(run_dir)
        _check_learned(run_dir)
        clear(run_dir)
        (run_dir / "failure.txt").unlink(missing_ok=True)
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        save_config(run_dir / "config.json", **settings)
    except OSError as error:
        raise UsageError(
            f"The run folder {run_dir} can't be written ({error.strerror}); choose another "
            "--run-dir."
        ) from None
    return run_dir


def _settings_of(run_dir):
    """What stands in config.json if a run wrote it, else None."""
    try:
        plain = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(plain, dict) and "seed" in plain and ("name" in plain or "task" in plain)
    return plain if ours else None


def _check_foreign(run_dir):
    if (run_dir / "config.json").exists() and _settings_of(run_dir) is None:
        raise UsageError(
            f"{run_dir} holds a config.json that is no run's; choose another --run-dir."
        )


def _check_learned(run_dir):
    if not checkpoints(run_dir):
        return
    if not (run_dir / "config.json").exists():
        raise UsageError(
            f"{run_dir} holds the checkpoints of a run whose config.json is missing; choose "
            "another --run-dir."
        )
    if last_good(run_dir) is None:
        raise UsageError(
            f"{run_dir} holds a run whose checkpoints are all damaged; choose another --run-dir."
        )
    raise UsageError(
        f"{run_dir} already holds a run; go on with it by --resume={quoted(run_dir)}, or choose "
        "another --run-dir."
    )


def clear(run_dir):
    """Remove what a run wrote before its first checkpoint, and nothing that is another's.

    failure.txt stays, which the user was told to read.
    """
    run_dir = Path(run_dir)
    if _settings_of(run_dir) is None:
        return
    # A policy in best/ is of another run too: the new one's would be measured against it.
    for folder in ("tokenizer", "checkpoints/.writing", BEST):
        shutil.rmtree(run_dir / folder, ignore_errors=True)
    for pattern in BEFORE_CHECKPOINTS:
        for path in run_dir.glob(pattern):
            path.unlink()


def as_folder(name):
    """A name as that of one folder: "ALE/Pong-v5" -> "ALE-Pong-v5"."""
    return name.replace("/", "-").replace(":", "-")


def find_run(run_dir):
    """The path of an existing run. Raises UsageError if there is none."""
    run_dir = Path(run_dir).absolute()
    if not (run_dir / "config.json").is_file():
        raise UsageError(
            f"There is no run in {run_dir} (no config.json); give the folder that a run printed at "
            "its start."
        )
    return run_dir


def learner_folder(run_dir, scale):
    """Where this process keeps its part of a run.

    Of several learners that learn together, each but the first has a folder inside the run's.
    """
    index = cluster_member()[0] if scale.strategy == "multiworker" else 0
    return Path(run_dir, f"learner-{index}") if index else Path(run_dir)


@contextlib.contextmanager
def freed_if_nothing_is_learned(run_dir):
    """Let the folder be as before if the block fails before the first checkpoint."""
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        if not checkpoints(run_dir):
            clear(run_dir)
        raise
