"""Exploration: the schedule and the choice."""

import unittest

import numpy as np

from tfdqt.games.dqn import DQNConfig
from tfdqt.policy import choose_actions, epsilon_at, epsilon_greedy, epsilon_ladder, narrow


class Schedule(unittest.TestCase):
    def test_straight_line_then_flat(self):
        cfg = DQNConfig(total_steps=1_000, epsilon_fraction=0.2, epsilon_start=0.9, epsilon_end=0.1)
        # It falls over the first 200 steps.
        for step, expected in (
            (0, 0.9),
            (50, 0.7),
            (100, 0.5),
            (200, 0.1),
            (201, 0.1),
            (1_000, 0.1),
            (5_000, 0.1),
        ):
            self.assertAlmostEqual(epsilon_at(step, cfg), expected, msg=f"step {step}")

    def test_over_the_whole_run(self):
        cfg = DQNConfig(total_steps=400, epsilon_fraction=1.0, epsilon_start=1.0, epsilon_end=0.0)
        self.assertAlmostEqual(epsilon_at(300, cfg), 0.25)


class Choice(unittest.TestCase):
    def test_never_random(self):
        greedy = np.arange(1_000) % 4
        np.testing.assert_array_equal(
            epsilon_greedy(np.random.default_rng(0), greedy, 4, 0.0), greedy
        )

    def test_always_random_is_uniform(self):
        actions = epsilon_greedy(np.random.default_rng(0), np.zeros(10_000, int), 4, 1.0)
        # 2500 each; the standard deviation is sqrt(10000 * 1/4 * 3/4) = 43.
        counts = np.bincount(actions, minlength=4)
        self.assertEqual(len(counts), 4)
        self.assertLess(np.abs(counts - 2_500).max(), 5 * 43)

    def test_frequency(self):
        actions = epsilon_greedy(np.random.default_rng(1), np.full(10_000, 2), 4, 0.2)
        # 0.8 greedy and a quarter of the rest: 0.85, standard deviation sqrt(0.85 * 0.15 / 10000) =
        # 0.0036.
        self.assertAlmostEqual(np.mean(actions == 2), 0.85, delta=5 * 0.0036)
        self.assertAlmostEqual(np.mean(actions == 0), 0.05, delta=5 * 0.0022)

    def test_generator_decides(self):
        first, same, other = (
            epsilon_greedy(np.random.default_rng(seed), np.zeros(50, int), 3, 0.5)
            for seed in (5, 5, 6)
        )
        np.testing.assert_array_equal(first, same)
        self.assertTrue((first != other).any())

    def test_the_ladder_of_epsilons(self):
        np.testing.assert_allclose(epsilon_ladder(8)[[0, 7]], [0.4, 0.4**8])
        np.testing.assert_allclose(epsilon_ladder(3), [0.4, 0.4**4.5, 0.4**8])
        np.testing.assert_allclose(epsilon_ladder(1), [0.4])


class Drawing(unittest.TestCase):
    logits = np.log([[0.5, 0.3, 0.2]])

    def test_narrowed_probabilities_by_hand(self):
        np.testing.assert_allclose(narrow(self.logits), [[0.5, 0.3, 0.2]])
        np.testing.assert_allclose(narrow(self.logits, top_k=2), [[0.625, 0.375, 0]])
        np.testing.assert_allclose(narrow(self.logits, top_p=0.5), [[1, 0, 0]])
        np.testing.assert_allclose(narrow(self.logits, top_p=0.51), [[0.625, 0.375, 0]])
        half = np.sqrt([[0.5, 0.3, 0.2]])
        np.testing.assert_allclose(narrow(self.logits, temperature=2.0), half / half.sum())

    def test_the_best_or_as_often_as_likely(self):
        logits = np.repeat(self.logits, 10_000, axis=0)
        rng = np.random.default_rng(0)
        np.testing.assert_array_equal(choose_actions(rng, logits), np.zeros(10_000))
        drawn = np.bincount(choose_actions(rng, logits, greedy=False)) / 10_000
        # Standard deviations of at most 0.005.
        np.testing.assert_allclose(drawn, [0.5, 0.3, 0.2], atol=5 * 0.005)


if __name__ == "__main__":
    unittest.main()
