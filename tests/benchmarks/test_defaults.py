"""What is learned by the defaults: runs that are not made twice, and the table."""

import csv
import unittest
from unittest import mock

import defaults

from tests.helpers import InFolder, slow
from tfdqt.errors import UsageError

from . import call


class TestTable(InFolder):
    def rows(self, *rows):
        path = self.tmp / "defaults.csv"
        fields = ["name", "algorithm", "steps", "also", "seed", "mean", "low", "high"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([fields, *rows])
        return f"--csv={path}"

    def test_a_human_is_one_and_random_play_nothing(self):
        self.assertAlmostEqual(defaults.of_human("Breakout-ram-v0", 31.8), 1)
        self.assertAlmostEqual(defaults.of_human("Pong-ram-v0", -20.7), 0)

    def test_of_so_many_steps_and_one_algorithm(self):
        path = self.rows(
            ["Pong-ram-v0", "dqn", 1000, "", 0, 9.3, 8, 10],
            ["Freeway-ram-v0", "dqn", 1000, "", 0, 14.8, 14, 15],
            ["Freeway-ram-v0", "dqn", 1000, "", 2, 29.6, 28, 31],
            ["Freeway-ram-v0", "dqn", 1000, "width=8", 1, 3, 3, 3],
            ["Freeway-ram-v0", "dqn", 2000, "", 1, 1, 1, 1],
            ["Freeway-ram-v0", "ppo", 1000, "", 1, 1, 1, 1],
            ["CartPole-v1", "dqn", 1000, "", 0, 500, 500, 500],
        )
        names = ["--names", "Pong-ram-v0", "Freeway-ram-v0", "CartPole-v1"]
        said = call(defaults, path, "--total-steps=1000", "--report", *names)
        self.assertIn("| Pong-ram-v0 | 9.300 [8.000, 10.000] |  |  | 100% |", said)
        self.assertIn("| Freeway-ram-v0 | 14.8 [14.0, 15.0] |  | 29.6 [28.0, 31.0] | 75% |", said)
        self.assertIn("| CartPole-v1 | 500.0 [500.0, 500.0] |  |  |  |", said)
        other = call(defaults, path, "--total-steps=1000", "--report", "--also", "width=8")
        self.assertIn("| Freeway-ram-v0 |  | 3.000 [3.000, 3.000] |  |", other)
        self.assertIn("over 2 games: median 88%, mean of the middle half 88% [75%, 100%]", said)

    def test_what_dopamine_had_by_then_stands_beside_it(self):
        self.assertEqual(defaults.of_seeds([1, 2, 6]), "3.000 (1.000 to 6.000)")
        self.assertEqual(defaults.of_seeds([]), "")
        names = ["--names", "Pong-ram-v0", "CartPole-v1"]
        said = call(defaults, self.rows(), "--total-steps=1000000", "--report", *names)
        *_, head, _, row = said.splitlines()
        self.assertEqual(head.count("1,000,000 steps"), 2)
        self.assertEqual(head.count("10,000,000 steps"), 2)
        self.assertEqual(row.count("|"), head.count("|"))
        self.assertTrue(row.startswith("| Pong-ram-v0 | -16.6 (-20.1 to -14.5) |"), row)

    def test_what_stable_baselines3_is_not_asked(self):
        for flags, sentence in (
            ((), "give --bench-python"),
            (("--bench-python=no", "--suite=small"), "is for --suite=atari, not Acrobot-v1"),
            (("--bench-python=no", "--also", "hold=1"), "--also changes settings of tfdqt"),
            (("--bench-python=no",), "no can't be started"),
        ):
            with self.assertRaisesRegex(UsageError, sentence):
                call(defaults, self.rows(), f"--out={self.tmp}", "--algorithm=sb3", *flags)
        with self.assertRaisesRegex(UsageError, "--bench-python is for --algorithm=sb3"):
            call(defaults, self.rows(), "--bench-python=no")

    @slow("25 s: a run of CartPole")
    def test_what_has_a_row_or_was_played_is_not_made_again(self):
        path = self.rows(["CartPole-v1", "pqn", 2048, "", 1, 500, 500, 500])
        flags = [path, f"--out={self.tmp}", "--algorithm=pqn", "--total-steps=2048"]
        flags += ["--names", "CartPole-v1", "--episodes=2", "--seeds"]
        said = call(defaults, *flags, "0", "1")
        self.assertIn("CartPole-v1, seed 0:", said)
        self.assertNotIn("seed 1", said)
        picture = self.tmp / "curves.png"
        self.assertIn(str(picture), call(defaults, *flags, "0", f"--plot={picture}"))
        self.assertGreater(picture.stat().st_size, 5_000)
        self.rows()
        with mock.patch.object(defaults, "run_script", side_effect=AssertionError):
            self.assertEqual(call(defaults, *flags, "0"), said)


if __name__ == "__main__":
    unittest.main()
