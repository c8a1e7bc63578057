"""Checkpoints: a tree of dicts, lists, tuples, plain values and arrays, without pickle.

A checkpoint is written to a temporary folder and renamed, with a checksum of every file, so that
the newest whole one survives `kill -9`, a full disk or a power cut.
"""

import json
import os
import shlex
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tfdqt.errors import UsageError

KEPT = 2  # checkpoints: the newest, and the one before it
BEST = "best"  # the folder of the one that played best, and the name by which it is chosen
MARKS = {"__array__", "__tuple__"}  # keys of tree.json that no tree may have itself


def _pack(tree, arrays):
    plain = isinstance(tree, np.ndarray) and not isinstance(tree, np.ma.MaskedArray)
    if plain and not tree.dtype.hasobject:
        arrays[f"a{len(arrays)}"] = tree
        return {"__array__": f"a{len(arrays) - 1}"}
    if isinstance(tree, np.generic):
        return _pack(np.asarray(tree), arrays) if tree.dtype.kind not in "iufb" else tree.item()
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree) and not MARKS & {*tree}:
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


def packable(tree):
    """Whether a checkpoint can hold `tree`: dicts with keys of text, lists, tuples, plain values
    and arrays without objects.

    >>> packable(dict(x=1.5, board=np.zeros([3, 3])))
    True
    >>> packable({1: "a key that is no text"})
    False
    """
    try:
        json.dumps(_pack(tree, {}))
    except (TypeError, ValueError, RecursionError):  # objects; endless integers; circles
        return False
    return True


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


def quoted(path):
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def checkpoints(run_dir, folder="checkpoints"):
    """The checkpoints in a folder of a run, oldest first."""
    return sorted((Path(run_dir) / folder).glob("step-*"))


def start_or_resume(run_dir, flags):
    """The flags of a script that go on with the run in a folder, or that start it there: a list.

    flags: what else it is started with. One that came to no checkpoint is started again.
    """
    if checkpoints(run_dir):
        return [f"--resume={run_dir}"]
    return [f"--run-dir={run_dir}", *flags]


def save_checkpoint(run_dir, step, tree, *, folder="checkpoints", kept=KEPT):
    """Write `tree` to a temporary folder, then rename that into place.

    The newest `kept` - 1 checkpoints before it stay whole whatever happens.

    Raises UsageError if it can't be written.
    """
    where = folder
    folder = Path(run_dir) / where
    temporary = folder / ".writing"
    target = folder / f"step-{step:012d}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        arrays = {}
        packed = _pack(tree, arrays)
        (temporary / "tree.json").write_text(json.dumps(packed), encoding="utf-8")
        with open(temporary / "arrays.npz", "wb") as file:
            np.savez(file, **arrays)
        manifest = {name: _checksum(temporary / name) for name in ("tree.json", "arrays.npz")}
        (temporary / "manifest.json").write_text(
            json.dumps(dict(format="tfdqt-1", step=step, files=manifest)), encoding="utf-8"
        )
        for file in (*temporary.iterdir(), temporary):
            _sync(file)
        # Those of the future that was left by going on from an older checkpoint: the newest is
        # what is gone on from.
        for path in reversed(checkpoints(run_dir, where)):
            if path.name >= target.name:
                shutil.rmtree(path, ignore_errors=True)
        os.rename(temporary, target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        good = last_good(run_dir)
        kept = (
            f"the last good one, {good}, is whole: make room and --resume={quoted(run_dir)}"
            if good
            else "there is none before it"
        )
        raise UsageError(
            f"The checkpoint at step {step} can't be written ({error.strerror or error}); {kept}."
        ) from None
    for old in checkpoints(run_dir, where)[:-kept]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _fault(path):
    """What is wrong with the checkpoint at `path`, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != "tfdqt-1":
            return "it is not one of tfdqt's"
        for name, expected in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            actual = _checksum(path / name)
            if actual["bytes"] != expected["bytes"]:
                return f"{name} has {actual['bytes']} bytes of {expected['bytes']}"
            if actual != expected:
                return f"the contents of {name} have changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "it has no readable manifest.json"
    return None


def last_good(run_dir):
    """The newest checkpoint that is whole, or None."""
    return next((path for path in reversed(checkpoints(run_dir)) if _fault(path) is None), None)


def load_checkpoint(run_dir, path=None, *, best_too=False):
    """The tree of the checkpoint at `path`, by default the run's newest. Returns (tree, path).

    best_too: whether it may be the best one, which holds the policy alone; its name is "best", and
    it is taken where there is no other, as in an exported policy.

    Raises UsageError, naming the last good one, if it is damaged, foreign or missing.
    """
    existing = checkpoints(run_dir)
    if path is None and best_too and not existing and checkpoints(run_dir, BEST):
        path = BEST
    if path is None and not existing:
        advice = (
            "there is nothing to play with; let it train for longer"
            if best_too
            else "there is nothing to go on from; start the run again without --resume, in the "
            "same folder if you like"
        )
        raise UsageError(f"{run_dir} has no checkpoint yet, so {advice}.")
    if best_too and str(path) == BEST:
        existing = checkpoints(run_dir, BEST)
        if not existing:
            raise UsageError(
                f"{run_dir} has no best checkpoint, which a run keeps with --evaluate-every; leave "
                "out --checkpoint=best to take the newest."
            )
        path = None
    path = Path(path) if path else existing[-1]
    folders = ["checkpoints", *([BEST] if best_too else [])]
    if path.resolve().parent not in [(Path(run_dir) / folder).resolve() for folder in folders]:
        raise UsageError(
            f"The checkpoint {path} is not one of {run_dir}; give a folder of its checkpoints/."
        )
    fault = _fault(path)
    if fault:
        good = last_good(run_dir)
        advice = (
            f"the last good one is {good}: choose it with --checkpoint={quoted(good)}"
            if good
            else "no other one is whole"
        )
        raise UsageError(f"The checkpoint {path} can't be used because {fault}; {advice}.")
    try:
        with np.load(path / "arrays.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"The checkpoint {path} can't be read ({error}).") from None
    return _unpack(json.loads((path / "tree.json").read_text(encoding="utf-8")), arrays), path


def make_saver(run_dir, every, *, resume_step=0):
    """`save(step, make, last=False)`: a checkpoint of make() every so many steps.

    And of the last one.
    """
    done = dict(step=resume_step)

    def save(step, make, *, last=False):
        if (last and step != done["step"]) or step // every > done["step"] // every:
            save_checkpoint(run_dir, step, make())
            done["step"] = step

    return save


def newest_common(run_dir, group):
    """The newest checkpoint of which every process of a `scale.distribute.ProcessGroup` has one."""
    own = [int(path.name.partition("-")[2]) for path in checkpoints(run_dir)[-KEPT:]]
    steps = np.zeros([group.size, KEPT])
    steps[group.rank, : len(own)] = own
    steps = group.all_sum(steps)
    common = set(own).intersection(*map(set, steps.astype(int).tolist())) - {0}
    if not common:
        raise UsageError(
            "No step has a checkpoint of every learner (this one's: "
            f"{', '.join(map(str, own)) or 'none'}); start a new run."
        )
    return Path(run_dir) / "checkpoints" / f"step-{max(common):012d}"
