"""POPGym's suite, one change of its settings at a time, and the questions to a GPU."""

import functools
import importlib.util
import tempfile
import unittest
from pathlib import Path

import ablation
import gpu
import gymnasium
import numpy as np
import suite

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.run import parse
from tfdqt.runs.log import write_rows

from . import call


class TestSuite(unittest.TestCase):
    def test_the_greatest_mean_is_of_fifty_games_or_more(self):
        log = dict(
            games=np.array([3, 49, 50, 90, 150]),
            mean_return=np.array([1.0, 0.9, 0.2, 0.5, 0.4]),
        )
        self.assertEqual(suite.greatest_mean(log), 0.5)
        early = {key: column[:2] for key, column in log.items()}
        self.assertTrue(np.isnan(suite.greatest_mean(early)))

    def test_every_environment_is_given_the_same(self):
        def given(env):
            command = suite.command_of(suite.Args(), env, "gru", 1, Path("none"))
            return [word for word in command if not word.startswith("--name")]

        self.assertEqual(given("popgym-RepeatFirstEasy-v0"), given("popgym-BattleshipHard-v0"))
        self.assertIn("--network=gru", given("popgym-RepeatFirstEasy-v0"))
        more = set(given("popgym-PositionOnlyPendulumEasy-v0")) - set(
            given("popgym-RepeatFirstEasy-v0")
        )
        self.assertEqual(more, {f"--wrappers={suite.TORQUES}"})
        for domain in suite.SUCCESS:  # DTQN's discount, and random actions to the end
            other = set(given(domain)) - set(given("popgym-RepeatFirstEasy-v0"))
            self.assertEqual(other, {"--gamma=0.99", "--epsilon-end=0.1"})
        also = suite.Args(also=("hold=4", "epsilon-fraction=1"))
        command = suite.command_of(also, "HeavenHell-v0", "gpt", 1, Path("none"))
        self.assertEqual(command[-2:], ["--hold=4", "--epsilon-fraction=1"])  # the last word counts

    def test_the_report_has_a_column_for_each_number_of_steps(self):
        same = dict(network="gpt", steps=9, context=50, also="")
        rows = [
            dict(same, env="CarFlag-v0", mmer=0.1, success=0.75),
            dict(same, env="CarFlag-v0", mmer=0.2, success=0.5),
            dict(same, env="CarFlag-v0", context=72, mmer=0.3, success=0.1),
            dict(same, env="CarFlag-v0", also="hold=4", mmer=0.3, success=0.2),
            dict(same, env="HeavenHell-v0", mmer=0.4, success=0.2),
            dict(same, env="popgym-RepeatFirstEasy-v0", mmer=0.5),
            dict(same, env="popgym-RepeatFirstEasy-v0", steps=18, mmer=0.75),
            dict(same, env="popgym-RepeatFirstHard-v0", mmer=0.25),
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "suite.csv")
            write_rows(path, rows)
            flags = ("--report", f"--csv={path}", "--context=50")
            said = call(suite, *flags, "--domains", "CarFlag-v0")
            self.assertEqual(said.splitlines()[2:], ["| CarFlag | 0.750, 0.500 |"])
            said = call(suite, *flags, "--domains", "CarFlag-v0", "--also", "hold=4")
            self.assertEqual(said.splitlines()[2:], ["| CarFlag | 0.200 |"])
            said = call(suite, *flags)
            lines = [
                "| RepeatFirstEasy | 0.500 | 0.750 | 1.000 | 1.000 |",
                "| RepeatFirstHard | 0.250 |  | 0.940 | 0.969 |",
            ]
            self.assertEqual(said.splitlines()[2:4], lines)
            self.assertIn("gpt: 0.500", said)
            self.assertIn("over 2 of them: 0.500, published GRU 0.970", said)

    def test_what_is_published_is_of_environments_of_the_suite(self):
        self.assertLessEqual(set(suite.published()), set(suite.environments(suite.Args())))

    def test_a_run_that_came_to_no_checkpoint_is_started_again(self):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            (run / "checkpoints").mkdir()
            given = functools.partial(suite.command_of, suite.Args(), "env", "gpt", 0, run)
            self.assertIn("--seed=0", given())
            (run / "checkpoints" / "step-8").mkdir()
            self.assertEqual(given()[2:], [f"--resume={run}"])


class TestAblation(unittest.TestCase):
    def test_every_change_is_a_run_of_other_settings(self):
        base = ablation.BASE
        for change, settings in ablation.CHANGES.items():
            with self.subTest(change):
                command = suite.training(Path("none"), dict(base, name="CartPole-v1", **settings))
                given, _ = parse(command[2:], "dqn", "")
                ALGORITHMS["dqn"].check(given.network, given.settings)
                updates = given.settings.updates_per_step * given.settings.total_steps
                self.assertAlmostEqual(updates, 15625 if "chosen" in change else 7812.5)
                self.assertEqual(bool(settings), change != "none")

    def test_the_report_has_a_column_for_every_copy(self):
        rows = [
            dict(copy="Battleship6", change="none", seed=1, mmer=0.25),
            dict(copy="Battleship6", change="none", seed=0, mmer=0.5),
            dict(copy="RepeatPrevious16", change="gamma=0.99", seed=0, mmer=-0.125),
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "ablation.csv")
            write_rows(path, rows)
            flags = ("--changes", "none", "gamma=0.99", "--copies", "Battleship6")
            said = call(ablation, "--report", f"--csv={path}", *flags, "RepeatPrevious16")
        lines = ["| none | 0.500, 0.250 |  |", "| gamma=0.99 |  | -0.125 |"]
        self.assertEqual(said.splitlines()[2:], lines)

    @unittest.skipUnless(importlib.util.find_spec("popgym"), "needs popgym, mazelib and cython")
    def test_the_copies_are_those_that_are_measured(self):
        import copies

        names = [f"{copy}-v0" for copy in ablation.COPIES]
        self.assertEqual(list(copies.COPIES), names)
        lengths = [gymnasium.make(name).unwrapped.max_episode_length for name in names]
        self.assertEqual(lengths, [51, 300, 51, 36])


class TestGpu(unittest.TestCase):
    def test_without_one_it_says_so(self):
        if gpu.tf.config.list_physical_devices("GPU"):
            self.skipTest("there is a GPU")
        with self.assertRaisesRegex(UsageError, "finds no GPU"):
            call(gpu)


if __name__ == "__main__":
    unittest.main()
