"""A run that was killed and gone on with ends with the same bits as one that was never stopped."""

import shutil
import signal
import time
import unittest

from tests.helpers import (
    InFolder,
    assert_same_tree,
    end,
    log_without_time,
    refused,
    slow,
    start,
    wait_for,
)
from tfdqt.runs.checkpoint import checkpoints, load_checkpoint

STEPS = 3_072
SMALL = ["--layers=1", "--heads=2", "--width=16", "--batch-size=8", "--checkpoint-every=512"]


class TestResume(InFolder):
    def compare(self, script, *flags):
        flags = [f"--total-steps={STEPS}", "--threads=2", *SMALL, *flags]
        whole = self.tmp / "whole"
        broken = self.tmp / "broken"
        first = start(script, f"--run-dir={whole}", *flags)
        second = start(script, f"--run-dir={broken}", *flags)
        wait_for(lambda: checkpoints(broken), second)
        time.sleep(0.3)  # somewhere between two checkpoints
        second.send_signal(signal.SIGKILL)
        end(self, second, -signal.SIGKILL)
        end(self, first)
        self.assertLess(load_checkpoint(broken)[0]["progress"]["step"], STEPS)

        end(self, start(script, f"--resume={broken}"))
        assert_same_tree(self, load_checkpoint(whole)[0], load_checkpoint(broken)[0])
        self.assertEqual(log_without_time(whole), log_without_time(broken))

    @slow("25 s: three processes; test_algorithms has it in one, benchmarks/kill a hundred times")
    def test_cartpole_survives_sigkill(self):
        # A dense network is compiled soonest.
        dense = ["--network=dense", "--hidden", "16"]
        self.compare("run_dqn", "--name=CartPole-v1", "--learning-starts=256", *dense)

    @slow("45 s: three processes play Breakout")
    def test_breakout_survives_sigkill(self):
        flags = ["--name=Breakout-ram-v0", "--learning-starts=256", "--replay-size=2000"]
        self.compare("run_dqn", *flags)

    @slow("40 s: three processes play Breakout")
    def test_ppo_survives_sigkill(self):
        self.compare("run_ppo", "--name=Breakout-ram-v0", "--rollout-steps=16")

    @slow("40 s: three processes play Breakout")
    def test_pqn_survives_sigkill(self):
        self.compare("run_pqn", "--name=Breakout-ram-v0", "--rollout-steps=16")

    @slow("15 s: processes of two algorithms")
    def test_signals_save_and_tell_how_to_go_on(self):
        run = self.tmp / "run"
        endless = ["--name=CartPole-v1", "--total-steps=1000000", "--learning-starts=256", *SMALL]
        process = start("run_dqn", f"--run-dir={run}", *endless)
        wait_for(lambda: len(checkpoints(run)) > 1, process)
        process.send_signal(signal.SIGTERM)
        output = end(self, process, 128 + signal.SIGTERM, seconds=60)
        self.assertIn(f"--resume={run}", output)
        self.assertNotIn("Traceback", output)
        step = load_checkpoint(run)[0]["progress"]["step"]
        self.assertIn(f"Stopped at step {step}:", output)

        # A damaged newest checkpoint is refused; the one before it is named and can be gone on
        # with.
        before, newest = checkpoints(run)
        data = (newest / "arrays.npz").read_bytes()
        (newest / "arrays.npz").write_bytes(data[: len(data) // 2])
        refused(self, f"--checkpoint={before}", "run_dqn", f"--resume={run}")
        shutil.rmtree(newest)
        self.assertTrue(before.is_dir())


if __name__ == "__main__":
    unittest.main()
