"""A run's folder: made, found again, and given back if nothing was learned."""

import json
import re
import unittest
from unittest import mock

from tests.helpers import InFolder
from tfdqt.errors import UsageError
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.runs.checkpoint import save_checkpoint
from tfdqt.runs.folder import (
    find_run,
    freed_if_nothing_is_learned,
    learner_folder,
    start_run,
)
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
        with self.assertRaisesRegex(UsageError, "no checkpoint yet; delete the folder"):
            start_run(run, name="Breakout-ram-v0", seed=1)
        save_checkpoint(run, 1, dict(step=1))
        with self.assertRaisesRegex(UsageError, f"--resume={re.escape(str(run))}"):
            start_run(run, name="Breakout-ram-v0", seed=1)
        self.assertEqual((run / "config.json").read_bytes(), before)

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
