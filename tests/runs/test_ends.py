"""Runs of environments with processes of their own, from their start to their end."""

import os
import signal
import time
import unittest

from tests.helpers import ROOT, InFolder, end, slow, start, wait_for
from tests.runs.children import is_running
from tfdqt.runs.checkpoint import checkpoints

FLAGS = (
    "--name=tests.runs.children:Children-v0",
    "--num-envs=4",
    "--network=dense",
    "--hidden=8",
    "--learning-starts=600",
    "--checkpoint-every=256",
    "--threads=1",
)


@slow("120 s: ten processes train")
class TestEnds(InFolder):
    def start(self, kind, workers, *flags, total_steps=1024):
        self.pids = self.tmp / "pids"
        environ = dict(KIND=kind, PIDS=str(self.pids), FAIL_AFTER="150", PYTHONPATH=str(ROOT))
        own = (f"--total-steps={total_steps}", f"--run-dir={self.tmp / 'a run'}", *FLAGS)
        process = start("run_dqn", *(flags or own), f"--workers={workers}", **environ)
        self.addCleanup(process.kill)
        return process

    def checked(self, process, code, *words):
        output = end(self, process, code, seconds=120)
        self.assertNotIn("Traceback", output)
        for word in words:
            self.assertIn(word, output)

    def test_training_ends_whatever_close_does(self):
        for kind, word in (
            ("fork", "Done at step 1024"),
            ("hang", "did not end within"),
            ("leave", "Done at step 1024"),
            ("close exits", "SystemExit: 0"),
        ):
            started = []
            for workers in (0, 2):  # side by side, each in a folder of its own
                self.setUp()
                process = self.start(kind, workers)
                started.append((workers, process, self.tmp / "a run", self.pids))
            for workers, process, run, pids in started:
                with self.subTest(kind=kind, workers=workers):
                    wait_for(lambda: len(checkpoints(run)) > 1, process)
                    before = time.monotonic()
                    self.checked(process, 0, word, "Done at step 1024")
                    self.assertLess(time.monotonic() - before, 90)
                    if kind in ("fork", "leave"):
                        left = filter(is_running, map(int, pids.read_text().split()))
                        self.assertEqual(list(left), [])

    def test_exit_in_a_step_saves_what_was_learned(self):
        sentence = f"what was learned is saved, go on with --resume='{self.tmp}/a run' once"
        self.checked(self.start("step exits", 0), 2, "SystemExit: 0", sentence)

    def test_a_run_that_was_killed_early_is_started_anew_and_ctrl_c_stops_it(self):
        run = self.tmp / "a run"
        process = self.start("fork", 1, total_steps=10**8)
        wait_for((run / "config.json").exists, process)
        self.checked(self.start("fork", 1), 2, f"is in use: process {process.pid} on")
        process.kill()
        process.wait()
        process = self.start("fork", 1, total_steps=10**8)
        wait_for(lambda: checkpoints(run), process)
        os.kill(process.pid, signal.SIGINT)
        self.checked(process, 130, f"scripts/run_dqn.py --resume='{run}'\n")


if __name__ == "__main__":
    unittest.main()
