"""A run's folder: made, found again, and given back if nothing was learned."""

import contextlib
import errno
import functools
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import unittest
from unittest import mock

import numpy as np

from tests.helpers import InFolder
from tfdqt.errors import UsageError
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.runs.checkpoint import BEST, save_checkpoint
from tfdqt.runs.evaluation import append_evaluation
from tfdqt.runs.folder import (
    find_run,
    freed_if_nothing_is_learned,
    learner_folder,
    lock_run,
    start_run,
    unlock_runs,
)
from tfdqt.runs.log import read_csv
from tfdqt.scale.config import ScaleConfig
from tfdqt.settings import load_config


class Starting(InFolder):
    def started(self, name="run"):
        return start_run(self.tmp / name, name="CartPole-v1", seed=0)

    def test_settings_are_kept(self):
        run = start_run(
            self.tmp / "some" / "run",
            name="CartPole-v1",
            network=NetworkConfig(width=8),
            dqn=DQNConfig(),
        )
        self.assertEqual(find_run(run), run)
        self.assertEqual(
            load_config(run / "config.json", network=NetworkConfig, dqn=DQNConfig),
            dict(name="CartPole-v1", network=NetworkConfig(width=8), dqn=DQNConfig()),
        )

    def test_existing_run_is_left_alone(self):
        run = self.started()
        before = (run / "config.json").read_bytes()
        save_checkpoint(run, 1, dict(step=1))
        with self.assertRaisesRegex(UsageError, f"--resume={re.escape(str(run))}"):
            start_run(run, name="Breakout-ram-v0", seed=1)
        self.assertEqual((run / "config.json").read_bytes(), before)

    def test_the_command_that_goes_on_is_quoted(self):
        run = self.started("a run; of mine")
        save_checkpoint(run, 1, dict(step=1))
        with self.assertRaises(UsageError) as caught:
            self.started("a run; of mine")
        (command,) = re.findall("by (--resume=.*), or choose", str(caught.exception))
        self.assertEqual(shlex.split(command), [f"--resume={run}"])

    def test_a_run_that_was_killed_before_its_first_checkpoint_is_no_obstacle(self):
        run = self.started()
        (run / "log.csv").write_text("epoch,step\n3,7\n")
        (run / "failure.txt").write_text("the robot fell over")
        (run / "tensorboard").mkdir()
        (run / "tensorboard" / "events.out.tfevents.1").write_text("of the first attempt")
        (run / "tokenizer").mkdir()
        (run / "tokenizer" / "vocab.txt").write_text("other words")
        (run / "checkpoints" / ".writing").mkdir()
        save_checkpoint(run, 5, dict(step=5, evaluation=475.0), folder=BEST, kept=1)
        (run / "notes.txt").write_text("mine")
        start_run(run, name="Breakout-ram-v0", seed=1)
        self.assertEqual(load_config(run / "config.json")["name"], "Breakout-ram-v0")
        files = {path.name for path in run.rglob("*") if path.is_file()}
        self.assertEqual(files, {"config.json", "notes.txt", ".lock"})
        self.assertEqual(list((run / "checkpoints").iterdir()), [])

    def test_what_is_no_run_is_left_alone(self):
        for text in ('{"architectures": ["BertModel"], "version": "1"}', "[1]", "no JSON"):
            (self.tmp / "config.json").write_text(text)
            (self.tmp / "log.csv").write_text("mine")
            with self.assertRaisesRegex(UsageError, "no run's; choose another --run-dir"):
                start_run(self.tmp, name="CartPole-v1", seed=0)
            self.assertEqual((self.tmp / "config.json").read_text(), text)
            self.assertEqual({each.name for each in self.tmp.iterdir()}, {"config.json", "log.csv"})

    def test_no_resume_is_promised_of_damaged_checkpoints(self):
        run = self.started()
        (save_checkpoint(run, 1, dict(step=1)) / "tree.json").write_text("{")
        with self.assertRaisesRegex(UsageError, "all damaged; choose another"):
            self.started()
        (run / "config.json").unlink()
        with self.assertRaisesRegex(UsageError, "config.json is missing; choose another"):
            self.started()

    def test_folder_that_cannot_be_written(self):
        (self.tmp / "file").write_text("I am no folder")
        for path in (self.tmp / "file" / "run", self.tmp / "file"):
            with self.assertRaisesRegex(UsageError, "can't be written"):
                start_run(path, name="CartPole-v1")

    def test_no_run(self):
        with self.assertRaisesRegex(UsageError, "no run in"):
            find_run(self.tmp)
        with self.assertRaisesRegex(UsageError, "no run in"):
            find_run(self.tmp / "nowhere")


class Locks(InFolder):
    """A folder in which another process trains."""

    def holder(self, code):
        """Another process that runs `code`, says so and waits."""
        setup = (
            "import os, sys, time\n"
            "from pathlib import Path\n"
            "from tfdqt.runs.folder import lock_file, lock_run, start_run\n"
            f"run = Path({str(self.tmp / 'run')!r})\n"
        )
        # In one write, which no other process's is mixed with.
        wait = "os.write(1, f'{os.getpid()}\\n'.encode())\ntime.sleep(1000)\n"
        process = subprocess.Popen(
            [sys.executable, "-c", f"{setup}{code}\n{wait}"], stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process, int(process.stdout.readline())

    def test_a_second_start_or_resume_is_refused_until_the_first_process_is_dead(self):
        # It has a child that lives on; the pid that is told of is the parent's.
        process, pid = self.holder("start_run(run, name='x', seed=0)\nif os.fork(): os.getppid()")
        self.addCleanup(unlock_runs)
        both = {pid, int(process.stdout.readline())}  # before one of them is killed
        before = (self.tmp / "run" / "config.json").read_bytes()
        for attempt in (
            lambda: start_run(self.tmp / "run", name="y", seed=1),
            lambda: lock_run(self.tmp / "run"),
        ):
            with self.assertRaisesRegex(UsageError, f"is in use: process {process.pid} on .*wait"):
                attempt()
        self.assertEqual((self.tmp / "run" / "config.json").read_bytes(), before)
        process.kill()
        process.wait()
        start_run(self.tmp / "run", name="y", seed=1)
        for each in both - {process.pid}:
            os.kill(each, signal.SIGKILL)

    def test_it_is_given_back(self):
        (self.tmp / "run").mkdir()
        lock_run(self.tmp / "run")
        lock_run(self.tmp / "run")  # the same process may
        unlock_runs()
        self.holder("lock_run(run)")
        with self.assertRaisesRegex(UsageError, "is in use"):
            lock_run(self.tmp / "run")

    def test_learners_that_learn_together_do_not_shut_each_other_out(self):
        self.holder("start_run(run, name='x', seed=0)")
        self.addCleanup(unlock_runs)
        own = start_run(self.tmp / "run" / "learner-1", name="x", seed=0)
        self.assertTrue((own / "config.json").exists())

    def test_a_file_system_without_locks_locks_nothing(self):
        with mock.patch("fcntl.lockf", side_effect=OSError(errno.ENOLCK, "No locks available")):
            lock_run(self.tmp)
        self.addCleanup(unlock_runs)

    def test_rows_that_two_evaluations_add_at_a_time_are_all_kept(self):
        (self.tmp / "run").mkdir()
        lock = "lock_file(run / '.evaluation.lock', wait=True)"
        process, _ = self.holder(lock)
        how = dict(epsilon=0.0)
        append = functools.partial(append_evaluation, self.tmp / "run", 10, 0, how)
        thread = threading.Thread(target=append, args=([1.0, 2.0], [5, 6]))
        thread.start()
        thread.join(0.2)
        self.assertTrue(thread.is_alive())  # it waits for the other one, which now adds its row
        path = self.tmp / "run" / "evaluation.csv"
        path.write_text("step,epsilon,seed,episode,return,length\n10,0,1,0,9,7\n")
        process.kill()
        thread.join(10)
        np.testing.assert_array_equal(read_csv(path)["return"], [9, 1, 2])

    def test_a_folder_that_can_not_be_written_loses_no_evaluation(self):
        said = io.StringIO()
        with (
            mock.patch("os.open", side_effect=PermissionError(13, "Permission denied")),
            contextlib.redirect_stderr(said),
        ):
            append_evaluation(self.tmp, 10, 0, dict(epsilon=0.0), [1.0], [5])
        self.assertRegex(said.getvalue(), "evaluation.csv can't be written .Permission denied")

    def test_what_is_no_csv_loses_no_evaluation(self):
        path = self.tmp / "evaluation.csv"
        path.write_bytes(b"\xff\xfeabc")
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            append_evaluation(self.tmp, 10, 0, dict(epsilon=0.0), [1.0], [5])
        self.assertRegex(said.getvalue(), "evaluation.csv is no CSV .*, move it away; what is")
        self.assertEqual(path.read_bytes(), b"\xff\xfeabc")

    def test_columns_that_only_some_evaluations_have_are_kept(self):
        plain = dict(epsilon=0.5)
        append_evaluation(self.tmp, 10, 0, plain, [1.0], [5])
        first = (self.tmp / "evaluation.csv").read_text()
        self.assertEqual(first, "step,epsilon,seed,episode,return,length\n10,0.5,0,0,1,5\n")
        more = dict(evaluations=[7, 8])
        append_evaluation(self.tmp, 10, 0, dict(plain, simulations=4), [2.0, 3.0], [6, 7], more)
        append_evaluation(self.tmp, 10, 0, plain, [4.0], [8])
        rows = read_csv(self.tmp / "evaluation.csv")
        nan = np.nan
        np.testing.assert_array_equal(rows["return"], [1, 2, 3, 4])
        np.testing.assert_array_equal(rows["simulations"], [nan, 4, 4, nan])
        np.testing.assert_array_equal(rows["evaluations"], [nan, 7, 8, nan])


class Freed(InFolder):
    def started(self):
        return start_run(self.tmp / "run", name="CartPole-v1", seed=0)

    def test_a_folder_in_which_nothing_was_learned_can_be_used_again(self):
        run = self.started()
        for fault in (UsageError("That can't be."), KeyboardInterrupt()):
            with self.assertRaises(type(fault)), freed_if_nothing_is_learned(run):
                raise fault
            self.assertEqual(self.started(), run)

    def test_one_with_a_checkpoint_is_kept(self):
        run = self.started()
        save_checkpoint(run, 1, dict(step=1))
        with self.assertRaises(UsageError), freed_if_nothing_is_learned(run):
            raise UsageError("That can't be.")
        self.assertEqual(find_run(run), run)

    def test_other_errors_leave_it(self):
        run = self.started()
        with self.assertRaises(ZeroDivisionError), freed_if_nothing_is_learned(run):
            raise ZeroDivisionError
        self.assertEqual(find_run(run), run)

    def test_each_of_several_learners_has_one_of_its_own(self):
        self.assertEqual(learner_folder(self.tmp, ScaleConfig()), self.tmp)
        cluster = dict(cluster=dict(worker=["a:1", "b:1"]), task=dict(type="worker", index=1))
        with mock.patch.dict("os.environ", TF_CONFIG=json.dumps(cluster)):
            several = ScaleConfig(strategy="multiworker")
            self.assertEqual(learner_folder(self.tmp, several), self.tmp / "learner-1")
            self.assertEqual(learner_folder(self.tmp, ScaleConfig()), self.tmp)


if __name__ == "__main__":
    unittest.main()
