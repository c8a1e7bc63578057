"""Exploration: the schedule and the choice."""

import types
import unittest

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.games.dqn import DQNConfig
from tfdqt.policy import (
    choose_actions,
    epsilon_at,
    epsilon_greedy,
    epsilon_ladder,
    hold_nothing,
    make_explore,
    narrow,
)


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


class Holding(unittest.TestCase):
    """Random actions that go on for a while."""

    info = types.SimpleNamespace(num_actions=5, parts=())

    def play(self, steps, longest, epsilon=0.2, first=None, legal=None, count=100):
        """Which steps were random, [steps, count], and the actions; a greedy one is -1."""
        explore = make_explore(self.info, longest)
        rng = np.random.default_rng(0)
        held = hold_nothing(count)
        first = np.zeros((steps, count), bool) if first is None else first
        greedy = np.full(count, -1)
        actions = [explore(rng, greedy, epsilon, held, first[t], legal) for t in range(steps)]
        return np.stack(actions) >= 0, np.stack(actions)

    def test_epsilon_stays_the_part_of_steps_that_are_random(self):
        for epsilon in (0.02, 0.2, 0.9):
            random, _ = self.play(4_000, 20, epsilon)
            self.assertAlmostEqual(random[200:].mean(), epsilon, delta=0.1 * epsilon)
        self.assertTrue(self.play(50, 20, 1.0)[0].all())
        self.assertFalse(self.play(50, 20, 0.0)[0].any())

    def test_how_long_is_by_the_square(self):
        random, actions = self.play(4_000, 3, epsilon=0.01)
        starts = random[1:-3] & ~random[:-4]
        lengths = 1 + random[2:-2][starts] + (random[2:-2] & random[3:-1])[starts]
        parts = np.bincount(lengths, minlength=4)[1:] / len(lengths)
        np.testing.assert_allclose(parts, np.array([36, 9, 4]) / 49, atol=0.03)
        same = (actions[1:-3] == actions[2:-2]) | ~random[2:-2]
        self.assertGreater(same[starts].mean(), 0.98)  # but where one follows the other

    def test_it_ends_with_the_episode_and_where_it_is_not_legal(self):
        explore = make_explore(self.info, 1_000)
        rng = np.random.default_rng(0)
        held = hold_nothing(3)
        held.action[...] = 2
        held.left[...] = 50
        legal = np.ones((3, 5), bool)
        legal[1, 2] = False
        greedy = np.full(3, -1)
        actions = explore(rng, greedy, 0.0, held, np.array([True, False, False]), legal)
        np.testing.assert_array_equal(actions, [-1, -1, 2])
        np.testing.assert_array_equal(held.left, [0, 0, 49])

    def test_too_long(self):
        with self.assertRaisesRegex(UsageError, "--hold must be at most 100,000, not 200,000"):
            make_explore(self.info, 200_000)

    def test_without_holding_it_is_epsilon_greedy(self):
        explored = self.play(1, 1)[1][0]
        plain = epsilon_greedy(np.random.default_rng(0), np.full(100, -1), 5, 0.2)
        np.testing.assert_array_equal(explored, plain)


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
