"""What is made of games on held-out puzzles."""

import unittest

import numpy as np
import report

NEVER = dict(loops="", avoid_repeats="False", simulations="1", distances="3 9")


class Report(unittest.TestCase):
    def test_what_a_network_is_worth_by_hand(self):
        counts = [1, 4, 16]
        solved = [0.2, 0.4, 0.8]
        self.assertEqual(report.equivalent(counts, solved, 0.1), 1)
        self.assertEqual(report.equivalent(counts, solved, 0.2), 1)
        self.assertAlmostEqual(report.equivalent(counts, solved, 0.4), 4)
        self.assertAlmostEqual(report.equivalent(counts, solved, 0.6), 8)  # half of the way in log
        self.assertAlmostEqual(report.equivalent(counts, solved, 0.8), 16)
        self.assertEqual(report.equivalent(counts, solved, 0.9), np.inf)
        # More simulations that play worse are worth what fewer are.
        self.assertAlmostEqual(
            report.equivalent([1, 2, 4], [0.2, 0.6, 0.5], 0.55), 2 ** (0.35 / 0.4)
        )

    def test_rows_are_put_together_by_network(self):
        rows = [
            dict(NEVER, arm="blocks-1", seed="1", solved_levels="10"),
            dict(NEVER, arm="blocks-1", seed="0", solved_levels="01"),
            dict(NEVER, arm="loops-8", seed="0", solved_levels="111", loops="3"),
        ]
        groups, distances = report.solved_levels(rows)
        self.assertEqual(distances.tolist(), [3, 9])
        one = groups["blocks-1", "", False, 1]
        self.assertEqual(one.tolist(), [[False, True], [True, False]])
        self.assertEqual(groups["loops-8", "3", False, 1].shape, (1, 2))

    def test_a_network_twice_as_good_has_an_interval_that_excludes_one(self):
        rng = np.random.default_rng(0)
        groups = {
            ("blocks-1", "", False, 1): rng.random((3, 200)) < 0.3,
            ("blocks-1", "", False, 16): rng.random((3, 200)) < 0.9,
            ("blocks-8", "", False, 1): rng.random((3, 200)) < 0.6,
        }
        args = report.Args(rows="", samples=200)
        table = report.summarize(groups, np.full(200, 5), args)
        row = next(row for row in table if row["arm"] == "blocks-8")
        self.assertGreater(row["worth_low"], 2)
        self.assertLess(row["worth_high"], 8)
        self.assertAlmostEqual(row["worth"], 4, delta=1)
        same = dict(groups)
        same["blocks-8", "", False, 1] = groups["blocks-1", "", False, 1]
        table = report.summarize(same, np.full(200, 5), args)
        row = next(row for row in table if row["arm"] == "blocks-8")
        self.assertEqual(row["worth_low"], 1)  # a network is worth itself


if __name__ == "__main__":
    unittest.main()
