"""Vectors whose environments start processes, or do not end: whatever they do, close() ends."""

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

from tests.runs.children import Children, is_running
from tfdqt.errors import EnvFailure
from tfdqt.games.envs import env_info
from tfdqt.games.vec_envs import make_vec_env
from tfdqt.runs.processes import CLOSE_SECONDS, take_signals

CHILDREN = env_info(Children())


class Ends(unittest.TestCase):
    """Environments that start processes, ask for the end of this one, or don't end themselves."""

    def setUp(self):
        super().setUp()
        self.pids = Path(self.enterContext(tempfile.TemporaryDirectory()), "pids")
        # As in a run, whose signals are its own; a shell may have this process ignore SIGINT.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        self.addCleanup(take_signals(lambda number, frame: None))
        self.said = self.enterContext(contextlib.redirect_stderr(io.StringIO()))

    def vec(self, kind, workers, num_envs=1, **environ):
        environ = dict(KIND=kind, PIDS=str(self.pids), **environ)
        with mock.patch.dict(os.environ, environ):
            vec = make_vec_env(Children, env_info(Children()), num_envs, 0, workers=workers)
        self.addCleanup(vec.close, 1)
        return vec

    def children(self):
        return [int(pid) for pid in self.pids.read_text().split()]

    def assertEnded(self, pids, seconds=5):
        deadline = time.monotonic() + seconds
        while any(map(is_running, pids)):
            self.assertLess(time.monotonic(), deadline, "it runs on")
            time.sleep(0.02)

    def test_children_that_close_ends(self):
        for kind, workers in (("fork", 0), ("fork", 1), ("interrupt", 0), ("program", 1)):
            with self.subTest(kind=kind, workers=workers):
                self.pids.unlink(missing_ok=True)
                vec = self.vec(kind, workers, num_envs=2)
                (one, two) = self.children()
                self.assertTrue(is_running(one) and is_running(two))
                before = time.monotonic()
                vec.close()
                self.assertLess(time.monotonic() - before, 2.5)
                self.assertEqual(self.said.getvalue(), "")
                self.assertEnded([one, two])

    def test_children_that_close_leaves(self):
        vec = self.vec("leave", workers=1)
        before = time.monotonic()
        vec.close()
        self.assertLess(time.monotonic() - before, 4)
        self.assertEnded(self.children())

    def test_a_close_that_does_not_end_or_fails(self):
        for kind, words in (
            ("hang", "it did not end"),
            ("stubborn", "it did not end"),
            ("close raises", "EOFError: the simulator is gone"),
            ("close exits", "SystemExit: 0"),
        ):
            for workers in (0, 2) if kind == "hang" else (0,):
                with self.subTest(kind=kind, workers=workers):
                    self.said.truncate(0)
                    vec = self.vec(kind, workers, num_envs=4)
                    before = time.monotonic()
                    vec.close(2)
                    self.assertLess(time.monotonic() - before, 6)  # not two seconds for each
                    told = "Closing an environment of Children failed: it"
                    self.assertIn(told, self.said.getvalue())
                    self.assertIn(words, self.said.getvalue())
                    self.assertIn("(and 3 more)", self.said.getvalue())

    def test_a_worker_that_does_not_even_answer_is_killed(self):
        before = {process.pid for process in multiprocessing.active_children()}
        vec = self.vec("leave", workers=1)
        (worker,) = (each for each in multiprocessing.active_children() if each.pid not in before)
        os.kill(worker.pid, signal.SIGSTOP)
        vec.close(0.5)
        self.assertEnded([worker.pid, *self.children()])
        self.assertIn("it did not end in time", self.said.getvalue())

    def test_exit_is_a_failure(self):
        for workers in (0, 1):
            for kind, words in (
                ("constructor exits", "SystemExit: 0"),
                ("reset exits", "SystemExit: 0"),
                ("step exits", "SystemExit: 0"),
                ("step raises", "EOFError: the simulator is gone"),  # that is not the learner's
            ):
                with self.subTest(kind=kind, workers=workers):
                    with mock.patch.dict(os.environ, KIND=kind):
                        with self.assertRaisesRegex(EnvFailure, words):
                            vec = make_vec_env(Children, CHILDREN, 1, 0, workers=workers)
                            self.addCleanup(vec.close)
                            vec.step(np.zeros(1, int))

    def test_environments_behind_a_failed_start_are_closed(self):
        class Second(Children):
            made = []

            def __init__(self):
                super().__init__()
                self.made.append(self)
                self.kind = "reset raises" if len(self.made) == 2 else "fork"

        with mock.patch.dict(os.environ, PIDS=str(self.pids)):
            with self.assertRaisesRegex(EnvFailure, "the simulator is gone"):
                make_vec_env(Second, CHILDREN, 2, 0, workers=0)
        self.assertEnded(self.children())

    def test_a_killed_worker_with_a_child_is_no_hang(self):
        before = {process.pid for process in multiprocessing.active_children()}
        vec = self.vec("leave", workers=1)
        (worker,) = (each for each in multiprocessing.active_children() if each.pid not in before)
        worker.kill()
        with self.assertRaisesRegex(EnvFailure, "exit code -9"):
            vec.step(np.zeros(1, int))
        vec.close()
        self.assertEnded(self.children())

    def test_workers_end_with_their_children_when_the_learner_is_killed(self):
        code = (
            "import os, signal, threading\n"
            "from tests.games.test_vec_ends import CHILDREN, Children, make_vec_env\n"
            "if __name__ == '__main__':\n"
            "    vec = make_vec_env(Children, CHILDREN, 1, 0, workers=1)\n"
            "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
            "    while True:\n"
            "        vec.step([0])\n"
        )
        path = self.pids.with_name("learner.py")
        path.write_text(code)
        for kind, seconds in (("leave", 5), ("step hangs", CLOSE_SECONDS + 5)):
            with self.subTest(kind=kind):
                self.pids.unlink(missing_ok=True)
                environ = dict(KIND=kind, PIDS=str(self.pids), PYTHONPATH=os.pathsep.join(sys.path))
                subprocess.run([sys.executable, path], env={**os.environ, **environ}, timeout=60)
                self.assertEnded(self.children(), seconds)


if __name__ == "__main__":
    unittest.main()
