"""The comparison of networks: equal sizes, statistics by hand, and the whole command at toy size."""

import csv
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import pytest
from test_scripts import ROOT, script

from tfdqt import gpt
from tfdqt.config import NetworkConfig, load_config
from tfdqt.envs import EnvInfo, env_info, make_env
from tfdqt.stats import confidence, improvement, interquartile_mean

sys.path.insert(0, str(ROOT / "scripts"))
import compare  # noqa: E402


class TestCompare(unittest.TestCase):

    def test_networks_are_as_large_as_they_should_be(self):
        for info in (EnvInfo("CartPole", (4,), "float32", (), 2), EnvInfo("RAM", (128,), "uint8", (), 4)):
            for kind in compare.KINDS:
                network, weights = compare.match(info, NetworkConfig(), kind, 25_000)
                self.assertEqual(weights, compare.count_weights(info, network))
                self.assertAlmostEqual(weights / 25_000, 1, delta=0.1)
                self.assertEqual(network.context, 1 if kind in ("gpt-present", "dense") else 4)
                self.assertEqual(network.network, kind.split("-")[0])
                self.assertEqual(gpt.build_q(info, network).output.shape[1], 4 if kind in ("gpt", "dense-every") else 1)

    def test_weights_on_hidden_features_are_not_counted(self):
        args = compare.Args(envs=("Breakout-ram-v0",), sizes=(25_000,))
        env = make_env("Breakout-ram-v0")
        shown = compare.features_that_change(env, env_info(env, "Breakout-ram-v0"), 0.001)
        env.close()
        self.assertTrue(10 < shown < 30, shown)
        cells = compare.make_cells(args)
        for cell in cells:
            self.assertAlmostEqual(cell["weights"] / 25_000, 1, delta=0.1)
        hidden = [int(cell["flags"][-1]) for cell in cells if cell["kind"] == "dense-history"]
        self.assertGreater(min(hidden), 100)  # 44 if weights on all 128 bytes of four steps were counted

    def test_the_middle_half_and_how_sure_it_is(self):
        self.assertEqual(interquartile_mean([1, 2, 3, 4, 1_000, -1_000, 2.5, 2.5]), np.mean([2, 2.5, 2.5, 3]))
        low, high = confidence(np.r_[np.zeros(50), np.ones(50)])
        self.assertAlmostEqual(low, 0.4, delta=0.02)
        self.assertAlmostEqual(high, 0.6, delta=0.02)
        self.assertEqual(confidence([7.0] * 5, statistic=interquartile_mean), (7.0, 7.0))

    def test_how_likely_one_is_better(self):
        self.assertEqual(improvement([([1, 2], [0])]), (1.0, 1.0, 1.0))
        probability, low, high = improvement([([3, 5], [3, 4]), ([1, 1], [2, 2])])
        self.assertEqual(probability, ((0.5 + 0 + 1 + 1) / 4 + 0) / 2)
        self.assertEqual((low, high), (0.0, 0.5))  # all of one's draws 3 and the other's 4, or all 5
        rows = [dict(env=env, kind=kind, size=size, mean_return=value) for env, kind, size, value in (
            ("E", "gpt", 1, 5.0), ("E", "dense", 1, 4.0), ("E", "gpt", 2, 5.0), ("E", "dense", 2, 6.0), ("E", "dense", 3, 9.0),
            ("F", "dense", 1, 1.0))]
        line, = compare.improvements(rows)
        self.assertEqual((line["env"], line["theirs"], line["sizes"], line["probability"]), ("E", "dense", 2, 0.5))
        self.assertEqual((line["our_runs"], line["their_runs"]), (2, 2))

    def test_summary(self):
        rows = [dict(env="E", size=100, kind="gpt", weights=90, rate=1e-3, seed=seed, mean_return=value, curve=value / 2, seconds=seed)
                for seed, value in enumerate((10.0, 500.0, 20.0, 30.0, -99.0))]
        line, = compare.summarize(rows)
        self.assertEqual((line["seeds"], line["mean_return"], line["curve"], line["seconds"]), (5, 20.0, 10.0, 2))
        self.assertLessEqual(line["mean_return_low"], 20.0)
        self.assertGreaterEqual(line["mean_return_high"], 20.0)

    @pytest.mark.slow
    def test_the_whole_command_and_going_on_with_it(self):
        with tempfile.TemporaryDirectory() as folder:
            flags = [f"--out={folder}", "--envs", "CartPolePositions-v1", "--sizes", "1000", "--seeds=1", "--tuning-seeds=1",
                     "--rates", "1e-3", "3e-3", "--total-steps=1152", "--kinds", "dense", "dense-every", "gpt",
                     "--episodes=2", "--also", "batch-size=16"]
            done = script("compare", *flags)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(Path(folder, "runs.csv"), newline="") as file:
                rows = list(csv.DictReader(file))
            self.assertEqual([row["kind"] for row in rows], ["gpt", "dense-every", "dense"])
            for row in rows:
                run, = Path(folder).glob(f"*-{row['kind']}-1000-*-seed0")
                network = load_config(run / "config.json", network=NetworkConfig)["network"]
                self.assertEqual(network.network, row["kind"].split("-")[0])
                info = EnvInfo("CartPolePositions", (2,), "float32", (), 2)
                self.assertEqual(gpt.build_q(info, network).output.shape[1], 1 if row["kind"] == "dense" else 4)
            self.assertEqual({load_config(path)["dqn"]["batch_size"] for path in Path(folder).glob("*/config.json")}, {16})
            self.assertGreater(Path(folder, "comparison.png").stat().st_size, 5_000)
            other = script("compare", *flags[:-1], "batch-size=32")
            self.assertEqual(other.returncode, 2, other.stderr)
            self.assertIn("another --also", other.stderr)
            again = script("compare", *flags, "--report-only")
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertEqual(again.stdout.splitlines()[-6:], done.stdout.splitlines()[-6:])
            beside = script("compare", f"--out={folder}/both", "--envs", "CartPole-v1", "--kinds", "dense", "--sizes", "1000",
                            "--report-only", "--beside", Path(folder, "runs.csv"))
            self.assertEqual(beside.returncode, 0, beside.stderr)
            self.assertEqual(Path(folder, "both", "runs.csv").read_text(), Path(folder, "runs.csv").read_text())
            wrong = script("compare", "--report-only", f"--out={folder}/wrong", "--beside", Path(folder, "summary.csv"))
            self.assertEqual(wrong.returncode, 2, wrong.stderr)
            self.assertIn("no runs.csv", wrong.stderr)


if __name__ == "__main__":
    unittest.main()
