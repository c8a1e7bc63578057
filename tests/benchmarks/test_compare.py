"""The comparison of networks: equal sizes, statistics by hand, and the whole command, toy size."""

import csv
import tempfile
import unittest
from pathlib import Path

import compare
import comparison_plot
import numpy as np
import tyro

from tests.helpers import slow
from tfdqt.errors import UsageError
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import env_info, make_env
from tfdqt.games.networks import build_q
from tfdqt.games.spaces import EnvInfo
from tfdqt.settings import load_config
from tfdqt.stats import confidence, improvement, interquartile_mean

from . import call, script

CARTPOLE = EnvInfo("CartPole", (4,), "float32", (), 2)
RAM = EnvInfo("RAM", (128,), "uint8", (), 4)


def row(env, kind, size, mean_return):
    """What `improvements` reads of a run."""
    return dict(env=env, kind=kind, size=size, mean_return=mean_return)


class TestSizes(unittest.TestCase):
    def test_networks_are_as_large_as_they_should_be(self):
        for info, kinds in ((CARTPOLE, compare.KINDS), (RAM, ("gpt-present", "dense-every"))):
            for kind in kinds:
                network, weights = compare.match(info, NetworkConfig(), kind, 25_000)
                self.assertEqual(weights, compare.count_weights(info, network))
                self.assertAlmostEqual(weights / 25_000, 1, delta=0.1)
                present = kind == "dense" or kind.endswith("-present")
                self.assertEqual(network.context, 1 if present else 4)
                name = kind.split("-")[0]
                self.assertEqual(network.network, name if name in ("gpt", "gru") else "dense")
                positions = build_q(info, network).output.shape[1]
                one = present or kind in ("gpt-last", "dense-history")
                self.assertEqual(positions, 1 if one else 4)

    def test_a_run_is_given_the_network_that_was_counted(self):
        # An environment's defaults may be other than what a kind has.
        base = NetworkConfig(layer_norm=True, dueling=True, context=4)
        for kind in compare.KINDS:
            network, _ = compare.match(CARTPOLE, NetworkConfig(), kind, 5_000)
            said = tyro.cli(NetworkConfig, args=compare.flags_of(network), default=base)
            self.assertEqual(said, network)

    def test_weights_on_hidden_features_are_not_counted(self):
        env = make_env("Breakout-ram-v0")
        info = env_info(env, "Breakout-ram-v0")
        shown = compare.features_that_change(env, info, 0.001)
        env.close()
        self.assertTrue(10 < shown < 30, shown)
        kinds = ("gpt", "dense-history")
        args = compare.Args(envs=("Breakout-ram-v0",), sizes=(25_000,), kinds=kinds)
        cells = compare.make_cells(args)
        for cell in cells:
            self.assertAlmostEqual(cell.weights / 25_000, 1, delta=0.1)
        hidden = [int(cell.flags[-1]) for cell in cells if cell.kind == "dense-history"]
        # 44 if weights on all 128 bytes of four steps were counted
        self.assertGreater(min(hidden), 100)


class TestStatistics(unittest.TestCase):
    def test_the_middle_half_and_how_sure_it_is(self):
        middle = interquartile_mean([1, 2, 3, 4, 1_000, -1_000, 2.5, 2.5])
        self.assertEqual(middle, np.mean([2, 2.5, 2.5, 3]))
        low, high = confidence(np.r_[np.zeros(50), np.ones(50)])
        self.assertAlmostEqual(low, 0.4, delta=0.02)
        self.assertAlmostEqual(high, 0.6, delta=0.02)
        self.assertEqual(confidence([7.0] * 5, statistic=interquartile_mean), (7.0, 7.0))

    def test_how_likely_one_is_better(self):
        self.assertEqual(improvement([([1, 2], [0])]), (1.0, 1.0, 1.0))
        probability, low, high = improvement([([3, 5], [3, 4]), ([1, 1], [2, 2])])
        self.assertEqual(probability, ((0.5 + 0 + 1 + 1) / 4 + 0) / 2)
        # All of one's draws 3 and the other's 4, or all 5.
        self.assertEqual((low, high), (0.0, 0.5))


class TestReport(unittest.TestCase):
    def test_a_run_beats_another_of_its_size(self):
        rows = [
            row("E", "gpt", 1, 5.0),
            row("E", "dense", 1, 4.0),
            row("E", "gpt", 2, 5.0),
            row("E", "dense", 2, 6.0),
            row("E", "dense", 3, 9.0),
            row("F", "dense", 1, 1.0),
        ]
        (line,) = compare.improvements(rows)
        self.assertEqual((line["env"], line["theirs"], line["sizes"]), ("E", "dense", 2))
        self.assertEqual(line["probability"], 0.5)
        self.assertEqual((line["our_runs"], line["their_runs"]), (2, 2))

    def test_summary(self):
        common = dict(env="E", size=100, kind="gpt", weights=90, rate=1e-3)
        returns = (10.0, 500.0, 20.0, 30.0, -99.0)
        rows = [
            dict(common, seed=seed, mean_return=value, curve=value / 2, seconds=seed)
            for seed, value in enumerate(returns)
        ]
        (line,) = compare.summarize(rows)
        self.assertEqual((line["seeds"], line["seconds"]), (5, 2))
        self.assertEqual((line["mean_return"], line["curve"]), (20.0, 10.0))
        self.assertLessEqual(line["mean_return_low"], 20.0)
        self.assertGreaterEqual(line["mean_return_high"], 20.0)

    def test_the_picture_has_a_column_for_each_environment(self):
        columns = ("mean_return", "mean_return_low", "mean_return_high")
        columns += ("curve", "curve_low", "curve_high")
        widths = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "comparison.png")
            for envs in ("E", "EF"):
                table = [
                    dict(env=env, kind="gpt", weights=weights, **dict.fromkeys(columns, 1.0))
                    for env in envs
                    for weights in (100, 1_000)
                ]
                comparison_plot.plot_comparison(table, {"gpt": "GPT"}, path)
                widths.append(int.from_bytes(path.read_bytes()[16:20], "big"))
        self.assertEqual(widths[1], 2 * widths[0])

    def test_runs_of_earlier_comparisons(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "runs.csv")
            path.write_text(
                "env,size,kind,weights,rate,seed,mean_return,curve,seconds\n"
                "E,100,gpt,90,0.001,0,5,4,3\n"
                "E,100,unheard-of,90,0.001,0,5,4,3\n"
            )
            (only,) = compare.rows_of(path)
            self.assertEqual((only["kind"], only["size"], only["rate"]), ("gpt", 100, 1e-3))
            path.write_text("a,b\n1,2\n")
            with self.assertRaisesRegex(UsageError, "no runs.csv of a comparison"):
                compare.rows_of(path)
            with self.assertRaisesRegex(UsageError, "can't be read"):
                compare.rows_of(Path(folder, "nowhere.csv"))

    def test_refusals(self):
        with tempfile.TemporaryDirectory() as folder:
            out = f"--out={folder}"
            for flags, message in (
                (["--seeds=0"], "--seeds must be at least 1"),
                (["--sizes", "10"], "must not be empty"),
                (["--epsilon=2"], "between 0 and 1"),
            ):
                with self.assertRaisesRegex(UsageError, message):
                    call(compare, out, *flags)


@slow("2 minutes: three trainings")
class TestCommand(unittest.TestCase):
    """Three trainings and their evaluations, about two minutes."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name)
        self.flags = [
            f"--out={self.out}", "--envs", "CartPolePositions-v1", "--sizes", "1000", "--seeds=1",
            "--tuning-seeds=1", "--rates", "1e-3", "3e-3", "--total-steps=1152", "--episodes=2",
            "--kinds", "dense", "dense-every", "gpt", "--also", "batch-size=16",
        ]  # fmt: skip

    def compare(self, *flags):
        return script("benchmarks/size/compare.py", *flags)

    def test_the_whole_command_and_going_on_with_it(self):
        done = self.compare(*self.flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.out / "runs.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([row["kind"] for row in rows], ["gpt", "dense-every", "dense"])
        for each in rows:
            self.check_run(each["kind"])
        self.assertGreater((self.out / "comparison.png").stat().st_size, 5_000)
        again = self.compare(*self.flags, "--report-only")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(again.stdout.splitlines()[-6:], done.stdout.splitlines()[-6:])
        other = self.compare(*self.flags[:-1], "batch-size=32")
        self.assertEqual(other.returncode, 2, other.stderr)
        self.assertIn("another --also", other.stderr)
        both = self.compare(
            f"--out={self.out}/both", "--envs", "CartPole-v1", "--kinds", "dense", "--sizes",
            "1000", "--report-only", "--earlier", self.out / "runs.csv",
        )  # fmt: skip
        self.assertEqual(both.returncode, 0, both.stderr)
        self.assertEqual(
            Path(self.out, "both", "runs.csv").read_text(), (self.out / "runs.csv").read_text()
        )

    def check_run(self, kind):
        """The run that is compared has the network and settings that it should have."""
        (run,) = self.out.glob(f"*-{kind}-1000-*-seed0")
        settings = load_config(run / "config.json", network=NetworkConfig)
        network = settings["network"]
        self.assertEqual(network.network, kind.split("-")[0])
        self.assertEqual(settings["dqn"]["batch_size"], 16)
        positions = build_q(CARTPOLE._replace(obs_shape=(2,)), network).output.shape[1]
        self.assertEqual(positions, 1 if kind == "dense" else 4)


if __name__ == "__main__":
    unittest.main()
