"""Tuning: every setting that is tried is one, trials go on where they were, the best is printed."""

import dataclasses
import importlib.util
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import unittest

from tests.helpers import ROOT, InFolder, refused, slow, succeeds
from tfdqt.errors import DIVERGED, UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.run import parse
from tfdqt.runs.log import write_rows

HAS_OPTUNA = importlib.util.find_spec("optuna") is not None
SCRIPT = ROOT / "scripts" / "tune.py"


@unittest.skipUnless(HAS_OPTUNA, "needs: pip install --no-deps -r requirements-tune.txt")
class TestTune(InFolder):
    def test_every_setting_is_a_flag_and_passes_the_checks(self):
        import optuna

        module = runpy.run_path(str(SCRIPT))
        args = module["Args"]("CartPole-v1")
        for name, algorithm in ALGORITHMS.items():
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            for _ in range(20):
                settings = module["settings_of"](study.ask(), name)
                command = module["command_of"](args, settings, "folder", 0)[2:]
                parsed, _ = parse(command, name, "")
                algorithm.check(parsed.network, parsed.settings)
                self.assertEqual(parsed.network.width, settings["width"])

    def test_what_every_trial_has_is_not_tuned(self):
        import optuna

        module = runpy.run_path(str(SCRIPT))
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        tried = module["settings_of"](trial, "dqn", ("width=8", "learning_rate=0.1"))
        self.assertEqual({"width", "learning-rate", "final-learning-rate"} & set(tried), set())
        self.assertIn("context", tried)
        for fault in ("total-steps=9", "total-steps 9"):
            refused(self, "--also can't set total-steps", "tune", "--name=CartPole-v1", "--also",
                    fault)  # fmt: skip

    def test_a_setting_may_have_several_values(self):
        module = runpy.run_path(str(SCRIPT))
        args = module["Args"]("CartPole-v1", also=("network=dense", "hidden 32 16", "residual"))
        parsed, _ = parse(module["command_of"](args, {}, "folder", 0)[2:], "dqn", "")
        self.assertEqual(parsed.network.hidden, (32, 16))
        self.assertTrue(parsed.network.residual)

    def test_no_trial_is_stopped_before_three_tenths(self):
        import optuna

        module = runpy.run_path(str(SCRIPT))
        study = optuna.create_study(direction="maximize", pruner=module["make_pruner"](optuna))
        for _ in range(5):
            good = study.ask()
            for tenth in (1, 2, 3):
                good.report(50.0, tenth)
            study.tell(good, 50.0)
        bad = study.ask()
        stopped = []
        for tenth in (1, 2, 3):
            bad.report(10.0, tenth)
            stopped.append(bad.should_prune())
        self.assertEqual(stopped, [False, False, True])

    def test_trials_are_compared_after_equal_parts_whatever_their_logs(self):
        at_tenths = runpy.run_path(str(SCRIPT))["at_tenths"]
        self.assertEqual(at_tenths(self.tmp, 1000), [])
        rows = [(64, "nan"), (128, 2.0), (192, 3.0), (256, 4.0), (320, 5.0)]
        (self.tmp / "config.json").write_text("{}")
        write_rows(self.tmp / "log.csv", [dict(step=s, mean_return=r) for s, r in rows])
        self.assertEqual(at_tenths(self.tmp, 1000), [2.0, 4.0, 5.0])

    def test_a_trial_that_says_much_ends(self):
        # A pipe that nobody reads holds 64 KiB.
        train = runpy.run_path(str(SCRIPT))["train"]
        for code, words in ((0, None), (2, "A trial failed: the last")):
            said = (
                f"sys.stderr.write('x' * 100_000 + chr(10) + 'error: the last'); sys.exit({code})"
            )
            command = [sys.executable, "-c", f"import sys; {said}"]
            if words is None:
                self.assertIsNone(train(command, self.tmp, None, 1000))
            else:
                with self.assertRaisesRegex(UsageError, words):
                    train(command, self.tmp, None, 1000)

    def test_what_diverges_is_a_trial_that_is_over(self):
        train = runpy.run_path(str(SCRIPT))["train"]
        command = [sys.executable, "-c", f"import sys; sys.exit('error: {DIVERGED} behind step 9')"]
        self.assertEqual(train(command, self.tmp, None, 1000), 0)

    def test_a_study_goes_on_as_it_was(self):
        import optuna

        module = runpy.run_path(str(SCRIPT))
        args = module["Args"]("CartPole-v1", also=("gamma=0.9",))
        for _ in range(2):
            module["open_study"]("tune", self.tmp, args, optuna)
        for change, words in (
            (dict(also=()), "--also gamma=0.9, not nothing"),
            (dict(episodes=3), "--episodes 20, not 3"),
            (dict(total_steps=500), "--total-steps 30000, not 500"),
        ):
            with self.assertRaisesRegex(UsageError, words):
                other = dataclasses.replace(args, **change)
                module["open_study"]("tune", self.tmp, other, optuna)
        (self.tmp / "study.db").write_text("no database")
        with self.assertRaisesRegex(UsageError, "can't be used .*choose another --out"):
            module["open_study"]("tune", self.tmp, args, optuna)

    def test_sigterm_ends_what_trains(self):
        module = runpy.run_path(str(SCRIPT))
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        module["RUNNING"].add(child)
        with self.assertRaises(KeyboardInterrupt), module["ended_by_sigterm"]():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        self.assertEqual(child.wait(10), -signal.SIGTERM)

    @slow("60 s: trains three runs")
    def test_trials_go_on_and_the_best_is_printed(self):
        flags = ["--name=CartPole-v1", "--total-steps=1200", "--episodes=2", f"--out={self.tmp}"]
        first = succeeds(self, "tune", *flags, "--trials=2").stdout
        self.assertEqual(re.findall(r"^trial (\d)", first, re.M), ["0", "1"])
        again = succeeds(self, "tune", *flags, "--trials=3").stdout
        tried = [
            json.loads((self.tmp / f"trial-00{i}" / "config.json").read_text()) for i in (0, 2)
        ]
        rates = {each["dqn"]["learning_rate"] for each in tried}
        self.assertEqual(len(rates), 2)  # what goes on draws anew
        self.assertEqual(re.findall(r"^trial (\d)", again, re.M), ["2"])
        self.assertTrue((self.tmp / "importance.png").exists())
        scores = [float(each) for each in re.findall(r"^trial \d: ([\d.]+)", first + again, re.M)]
        self.assertIn(f"Best of 3 trials, {max(scores):.2f}:", again)
        command = shlex.split(again.splitlines()[-1])
        parse(command[2:], "dqn", "")
        refused(self, "--also nothing, not gamma=0", "tune", *flags, "--also", "gamma=0")
        bad = ["--also", "replay-size=-1", f"--out={self.tmp / 'other'}"]
        refused(self, "A trial failed: .*replay-size", "tune", *flags, *bad)

    def test_what_can_not_be_is_said(self):
        refused(self, "--trials must be at least 1", "tune", "--name=CartPole-v1", "--trials=0")
        file = self.tmp / "file"
        file.write_text("")
        refused(self, "can't be written", "tune", "--name=CartPole-v1", f"--out={file}")


if __name__ == "__main__":
    unittest.main()
