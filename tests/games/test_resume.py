"""A run that was killed with SIGKILL and resumed ends with the same bits as one that was never stopped."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np

from tfdqt.runs import checkpoints, load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--layers=1", "--heads=2", "--width=16", "--batch-size=8", "--checkpoint-every=512", "--threads=2"]
RUNS = {
    "CartPole-v1": ("run_dqn", "--name=CartPole-v1", "--total-steps=3072", "--learning-starts=256", *SMALL),
    "Breakout-ram-v0": ("run_dqn", "--name=Breakout-ram-v0", "--total-steps=3072", "--learning-starts=256", "--replay-size=2000", *SMALL),
    "PPO": ("run_ppo", "--name=Breakout-ram-v0", "--total-steps=3072", "--rollout-steps=16", *SMALL),
}


def start(script, *flags):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / f"{script}.py"), *flags], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def flat(tree, path=""):
    if isinstance(tree, dict):
        return {name: leaf for key, value in tree.items() for name, leaf in flat(value, f"{path}/{key}").items()}
    if isinstance(tree, (list, tuple)):
        return {name: leaf for i, value in enumerate(tree) for name, leaf in flat(value, f"{path}/{i}").items()}
    return {path: tree}


def log_without_time(run):
    rows = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    return [row[:1] + row[2:] for row in rows]


def compare(test, name, tmp):
    whole, broken = tmp / "whole", tmp / "broken"
    script, *flags = RUNS[name]
    first = start(script, f"--run-dir={whole}", *flags)
    second = start(script, f"--run-dir={broken}", *flags)
    deadline = time.monotonic() + 300
    while not checkpoints(broken) and second.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # somewhere between two checkpoints
    second.send_signal(signal.SIGKILL)
    test.assertEqual(second.wait(), -signal.SIGKILL, second.stdout.read())
    test.assertEqual(first.wait(), 0, first.stdout.read())
    stopped_at = load_checkpoint(broken)[0]["progress"]["step"]
    test.assertLess(stopped_at, 3072)

    third = start(script, f"--resume={broken}")
    output, _ = third.communicate()
    test.assertEqual(third.returncode, 0, output)
    one, two = flat(load_checkpoint(whole)[0]), flat(load_checkpoint(broken)[0])
    test.assertEqual(one.keys(), two.keys())
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)
    test.assertEqual(log_without_time(whole), log_without_time(broken))
    for process in (first, second, third):
        process.stdout.close()


class TestResume(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tmp = Path(folder.name)

    def test_cartpole_survives_sigkill(self):
        compare(self, "CartPole-v1", self.tmp)

    def test_breakout_survives_sigkill(self):
        compare(self, "Breakout-ram-v0", self.tmp)

    def test_ppo_survives_sigkill(self):
        compare(self, "PPO", self.tmp)

    def test_signals_save_and_tell_how_to_go_on(self):
        run = self.tmp / "run"
        process = start("run_dqn", f"--run-dir={run}", "--name=CartPole-v1", "--total-steps=1000000", "--learning-starts=256", *SMALL)
        deadline = time.monotonic() + 300
        while not checkpoints(run) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM, output)
        self.assertIn(f"--resume={run}", output)
        self.assertNotIn("Traceback", output)
        step = load_checkpoint(run)[0]["progress"]["step"]
        self.assertIn(f"Stopped at step {step}:", output)

        # A damaged newest checkpoint is refused, the one before it is named, and can be gone on with.
        newest, before = checkpoints(run)[-1], checkpoints(run)[-2]
        data = (newest / "arrays.npz").read_bytes()
        (newest / "arrays.npz").write_bytes(data[:len(data) // 2])
        refused = subprocess.run([sys.executable, str(ROOT / "scripts" / "run_dqn.py"), f"--resume={run}"], capture_output=True, text=True)
        self.assertEqual(refused.returncode, 2)
        self.assertIn(f"--checkpoint={before}", refused.stderr)
        self.assertEqual(len(refused.stderr.strip().splitlines()), 1)
        shutil.rmtree(newest)
        self.assertTrue(os.path.isdir(before))


if __name__ == "__main__":
    unittest.main()
