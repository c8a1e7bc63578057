"""What tests of several parts share: scripts called as a user calls them, checkpoints compared."""

import contextlib
import io
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def slow(reason):
    """A decorator of tests, or classes of them, that take long: `@slow("70 s: trains two runs")`.

    Both runners leave them out by default; `python -m pytest -m slow` and
    `TFDQT_SLOW=1 python -m unittest` run them.
    """
    # Pytest, which is known by this variable, chooses by the mark itself.
    chosen = "PYTEST_VERSION" in os.environ or os.environ.get("TFDQT_SLOW") == "1"

    def mark(test):
        test = unittest.skipUnless(chosen, f"slow ({reason}); TFDQT_SLOW=1 runs it")(test)
        return pytest.mark.slow(test)

    return mark


class InFolder(unittest.TestCase):
    """Tests that write; each has an empty folder of its own, `self.tmp`."""

    def setUp(self):
        super().setUp()
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp, ignore_errors=True)


# -------------------------------------------------------------------------------------------------
# Scripts


class Done(NamedTuple):
    """What came of a script."""

    returncode: int
    stdout: str
    stderr: str


def call(name, *flags):
    """scripts/NAME.py in this process: -> Done.

    TensorFlow takes the number of its threads at its start alone, so that is left as it is.
    """
    path = str(ROOT / "scripts" / f"{name}.py")
    out = io.StringIO()
    err = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [path, *map(str, flags)]),
        mock.patch("tfdqt.backend.set_threads"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(path, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return Done(code, out.getvalue(), err.getvalue())


def succeeds(test, name, *flags):
    """`call`, where the script must end well: -> Done."""
    done = call(name, *flags)
    test.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    return done


def refused(test, message, name, *flags):
    """The script answers in one sentence, with exit code 2."""
    done = call(name, *flags)
    test.assertEqual(done.returncode, 2, done.stdout + done.stderr)
    test.assertNotIn("Traceback", done.stderr)
    test.assertRegex(done.stderr.strip(), message)
    test.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)


def script(name, *flags, cwd=None):
    """scripts/NAME.py in a process of its own, as a user calls it."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)


def start(name, *flags, **environ):
    """Start scripts/NAME.py in a process of its own, which says all in its stdout: -> Popen."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environ},
    )


def wait_for(condition, *processes, seconds=300):
    """Wait until condition() is true; raise AssertionError if it takes long or a process ends."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or any(one.poll() is not None for one in processes):
            for process in processes:
                process.kill()
            said = "\n".join(process.communicate()[0] for process in processes)
            raise AssertionError(f"it never came to that:\n{said}")
        time.sleep(0.02)


def end(test, process, code=0, seconds=400):
    """Wait for a process to end with `code`: -> what it said."""
    output, _ = process.communicate(timeout=seconds)
    test.assertEqual(process.returncode, code, output)
    return output


# -------------------------------------------------------------------------------------------------
# What runs leave behind


def flat(tree, path=""):
    """The leaves of nested dicts, lists and tuples by their paths."""
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, (list, tuple)):
        pairs = enumerate(tree)
    else:
        return {path: tree}
    return {
        name: leaf for key, value in pairs for name, leaf in flat(value, f"{path}/{key}").items()
    }


def assert_same_tree(test, one, other):
    """Two checkpoints hold the same bits."""
    one = flat(one)
    other = flat(other)
    test.assertEqual(one.keys(), other.keys())
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def log_without_time(run):
    """The lines of a run's log, without the seconds."""
    rows = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    return [row[:1] + row[2:] for row in rows]


def call_alone(test, saved_model, values, *, signature="q_values", **inputs):
    """What a SavedModel gives in a process with TensorFlow alone: q, by the name `values`, and a.

    test: has a folder `tmp`.
    """
    np.savez(test.tmp / "inputs.npz", **inputs)
    code = (
        "import numpy as np, tensorflow as tf, sys\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "x = {k: tf.constant(v) for k, v in np.load(sys.argv[2]).items()}\n"
        f"q = model.signatures['{signature}'](**x)['{values}']\n"
        "a = model.signatures['action'](**x)['action']\n"
        "assert not any(name.startswith('tfdqt') for name in sys.modules)\n"
        "np.savez(sys.argv[3], q=q, a=a)\n"
    )
    hidden = ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    paths = [str(saved_model), str(test.tmp / "inputs.npz"), str(test.tmp / "q.npz")]
    command = [sys.executable, "-c", code, *paths]
    alone = subprocess.run(command, capture_output=True, text=True, env=env, cwd=test.tmp)
    test.assertEqual(alone.returncode, 0, alone.stderr)
    return np.load(test.tmp / "q.npz")
