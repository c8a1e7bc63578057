"""What steering is worth, by hand."""

import contextlib
import io
import math

import numpy as np
import worth

from tests.helpers import InFolder
from tfdqt.runs.log import write_rows


class TestWorth(InFolder):
    def test_best_of_all_is_the_best_and_of_one_is_any(self):
        args = worth.Args(texts=4, draws=50)
        texts = ["a b", "a b", "a c", "a d"]
        rewards = np.array([0.0, 1.0, 2.0, 3.0])
        nats = np.log([2.0, 4.0, 8.0, 16.0])
        one, two, four = worth.best_of(texts, rewards, nats, 0.5, [1, 2, 4], args)
        self.assertAlmostEqual(one["reward"], 1.5)
        self.assertAlmostEqual(one["perplexity"], np.exp(nats.mean()))
        self.assertEqual(one["distinct2"], 0.75)
        # The best of two is a 3 in every division, and what is best of the others: 1, 2 or 2.
        self.assertAlmostEqual(two["reward"], (3 + (1 + 2 + 2) / 3) / 2, delta=0.1)
        self.assertTrue(math.isnan(two["distinct2"]))  # of fewer texts than asked for
        self.assertEqual(four["reward"], 3)
        self.assertEqual([row["seconds"] for row in (one, two, four)], [0.5, 1, 2])
        self.assertAlmostEqual(four["perplexity"], 16)

    def test_worth_lies_between_the_numbers_that_were_measured(self):
        self.assertAlmostEqual(worth.equal_n([1, 2, 4], [0.0, 0.5, 0.6], 0.25), 2**0.5)
        self.assertEqual(worth.equal_n([1, 2, 4], [0.0, 0.5, 0.6], 0.7), np.inf)

    def test_report_and_picture(self):
        rows = [
            dict(
                beta=beta,
                n=n,
                reward=reward,
                error=0.01,
                perplexity=50 + n,
                distinct2=0.5,
                seconds=n / 4,
            )
            for beta, n, reward in [(0, 1, 0.1), (0, 2, 0.5), (4, 1, 0.3), (4, 2, 0.9)]
        ]
        about = dict(run="soft-0", seed=0, updates=9)
        write_rows(self.tmp / "worth.csv", [about | row for row in rows])
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            worth.main(worth.Args(report=True, out=self.tmp / "worth.csv"))
        *_, steered, best = told.getvalue().splitlines()
        self.assertIn("| 4 | 1 | 0.300 | 1 [1, 1] | 51.0, 51.5 | 0.500, 0.500 |", steered)
        self.assertIn("| 0.250, 0.354 |", steered)
        self.assertIn("| 4 | 2 | 0.900 | > 2 [> 2, > 2] | 52.0, 52.0 | 0.500, 0.500 |", best)
        worth.main(worth.Args(plot=self.tmp / "worth.png", out=self.tmp / "worth.csv"))
        self.assertGreater((self.tmp / "worth.png").stat().st_size, 1_000)
