"""What tests of texts share: tiny networks, and trained runs."""

import atexit
import contextlib
import functools
import tempfile
from pathlib import Path
from unittest import mock

from tests.helpers import call, script
from tfdqt.backend import tf
from tfdqt.text import generation, learn, stepwise
from tfdqt.text.config import TextNetworkConfig

NETWORK = TextNetworkConfig(layers=1, heads=2, width=16, hidden=(16,), pruning_amount=0.5)
TINY = ["--layers=1", "--heads=2", "--width=16", "--hidden", "16", "--batch-size=16"]
MAZE = [
    "--episodes=30",
    "--new-items=256",
    "--epochs=2",
    "--checkpoint-every=16",
    "--games=25",
    *TINY,
]
VERSE = (
    "the lord is good and his mercy is great . he shall destroy the wicked in his anger and love "
    "the meek .\n"
)


def without_xla():
    """Within the block nothing is compiled by XLA, which takes longer than a few updates do."""
    stack = contextlib.ExitStack()
    for module in (learn, generation, stepwise):
        stack.enter_context(mock.patch.object(module, "JIT", False))
    return stack


@contextlib.contextmanager
def eager():
    """Within the block no function is traced, which takes as long as ten updates."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@functools.cache
def folder():
    """A folder for all tests of this process."""
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    return Path(made.name)


@functools.cache
def texts():
    """A folder with a text of a few words."""
    made = folder() / "texts"
    made.mkdir()
    (made / "a.txt").write_text(VERSE * 60, encoding="utf-8")
    return made


@functools.cache
def corpus_run():
    """A run that learned to write, by the script in a process of its own: -> (folder, Done)."""
    run_dir = folder() / "corpus"
    done = script(
        "run_text",
        "--task=corpus",
        f"--corpus={texts()}",
        "--vocabulary=30",
        "--window=6",
        "--new-items=64",
        "--games=8",
        f"--run-dir={run_dir}",
        *TINY,
    )
    return run_dir, done


@functools.cache
def maze_run():
    """A run that learned the maze, a little: -> folder."""
    run_dir = folder() / "maze"
    with without_xla():
        done = call("run_text", *MAZE, f"--run-dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir
