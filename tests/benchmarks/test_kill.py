"""How a run that was killed is compared with one that was not."""

import random
import subprocess
import unittest
from unittest import mock

import kill
import numpy as np

from tests.benchmarks import script
from tests.helpers import InFolder, slow
from tfdqt.runs.checkpoint import save_checkpoint

TREE = dict(learner=[np.arange(3.0)], progress=dict(step=8))


class Comparisons(InFolder):
    def made(self, name, tree=TREE, loss="0.5", seconds="1"):
        run = self.tmp / name
        save_checkpoint(run, 8, tree)
        (run / "log.csv").write_text(f"epoch,seconds,loss\n1,{seconds},{loss}\n")
        return run

    def test_the_same_bits_in_another_time(self):
        self.assertEqual(kill.compare(self.made("one"), self.made("two", seconds="2")), [])

    def test_a_bit_more_or_less(self):
        whole = self.made("whole")
        for tree, words in (
            (dict(TREE, learner=[np.arange(3.0) + 1e-12]), "/learner/0 differs by up to 1e-12"),
            (dict(TREE, life=1), "/life is new"),
            (dict(progress=TREE["progress"]), "/learner/0 is missing"),
        ):
            self.assertEqual(len(kill.compare(whole, self.made("broken", tree))), 1)
            self.assertIn(words, kill.compare(whole, self.made("broken", tree))[0])

    def test_another_log(self):
        (line,) = kill.compare(self.made("whole"), self.made("broken", loss="0.6"))
        self.assertIn("log.csv", line)
        broken = self.made("broken")
        (broken / "log.csv").write_text("epoch,seconds,loss\n")
        self.assertEqual(kill.compare(self.made("whole"), broken), ["log.csv has other rows"])


class Kills(InFolder):
    def test_a_run_is_gone_on_with_if_it_can_be(self):
        run = self.tmp / "run"
        with mock.patch.object(kill.subprocess, "Popen") as popen:
            kill.start(kill.RUNS["cartpole"], run)
            save_checkpoint(run, 8, TREE)
            kill.start(kill.RUNS["cartpole"], run)
        anew, on = (call.args[0] for call in popen.call_args_list)
        self.assertIn(f"--run-dir={run}", anew)
        self.assertIn("--total-steps=4096", anew)
        self.assertEqual(on[2:], [f"--resume={run}", "--workers=0", "--threads=1"])

    def test_a_moment_at_which_it_had_ended_is_no_kill(self):
        process = subprocess.Popen(["true"])
        self.assertIsNone(kill.kill(process, self.tmp, (0.5, 0.5), random.Random(0)))

    @slow("60 s: trains CartPole twice")
    def test_cartpole(self):
        flags = ["--only", "cartpole", "--kills=1", f"--folder={self.tmp}", f"--out={self.tmp}/x"]
        done = script("benchmarks/kill/kill.py", *flags)
        self.assertEqual(done.stdout.splitlines()[-1], "1 of 1 bit-identical", done.stderr)


if __name__ == "__main__":
    unittest.main()
