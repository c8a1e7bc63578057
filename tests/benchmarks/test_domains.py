"""Environments that ask for memory: games by hand, and that they are what gymnasium asks for."""

import unittest

import domains
import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env


def played(env, actions):
    """Take actions one after another: -> the last step's (obs, reward, terminated)."""
    for action in actions:
        obs, reward, terminated, _, _ = env.step(action)
    return obs, reward, terminated


class Domains(unittest.TestCase):
    def test_they_are_environments(self):
        for env in domains.LIMITS:
            with self.subTest(env.__name__):
                check_env(env(), skip_render_check=True)

    def test_games_are_cut(self):
        env = gym.make("HeavenHell-v0")
        env.reset(seed=0)
        ends = [env.step(0)[2:4] for _ in range(100)]
        self.assertEqual(set(ends[:-1]), {(False, False)})
        self.assertEqual(ends[-1], (False, True))


class CarFlag(unittest.TestCase):
    def test_the_side_is_told_near_a_half_alone(self):
        env = domains.CarFlag()
        env.reset(seed=0)
        seen = []
        ended = False
        while not ended:
            obs, reward, ended, _, _ = env.step(2)
            seen.append(obs)
        told = np.array([obs[2] for obs in seen])
        position = np.array([obs[0] for obs in seen])
        inside = (position >= 0.3) & (position <= 0.7)
        np.testing.assert_array_equal(told, np.where(inside, env.good, 0))
        self.assertGreater(inside.sum(), 3)
        self.assertEqual(reward, env.good)  # it went to the right
        self.assertLessEqual(max(obs[1] for obs in seen), np.float32(0.07))

    def test_the_good_flag_is_on_either_side(self):
        env = domains.CarFlag()
        sides = set()
        for seed in range(10):
            env.reset(seed=seed)
            sides.add(env.good)
            _, reward, ended = played(env, [0] * 100)[0:3]
            self.assertTrue(ended)
            self.assertEqual(reward, -env.good)
        self.assertEqual(sides, {-1.0, 1.0})


class MemoryCards(unittest.TestCase):
    def test_who_knows_the_cards_takes_all(self):
        env = domains.MemoryCards()
        obs, _ = env.reset(seed=1)
        for turn in range(5):
            shown = int(np.flatnonzero((obs > 0) & (obs < 6))[0])
            self.assertEqual(obs[shown], env.cards[shown])
            self.assertEqual((obs == 6).sum(), 2 * turn)
            other = [i for i in range(10) if env.cards[i] == obs[shown] and i != shown]
            obs, reward, ended, _, _ = env.step(other[0])
            self.assertEqual((reward, ended), (0.0, turn == 4))
        np.testing.assert_array_equal(obs, np.full(10, 6))

    def test_others_cost_a_point(self):
        env = domains.MemoryCards()
        env.reset(seed=1)
        pair = np.flatnonzero(env.cards == env.cards[env.shown])
        unlike = int(np.flatnonzero(env.cards != env.cards[env.shown])[0])
        self.assertEqual(env.step(unlike)[1:3], (-1.0, False))
        self.assertEqual(env.step(env.shown)[1:3], (-1.0, False))  # the card itself
        env.shown = int(pair[0])
        env.step(int(pair[1]))
        self.assertEqual(env.step(int(pair[0]))[1:3], (-1.0, False))  # one that is taken
        self.assertEqual(env.left.sum(), 8)


class HeavenHell(unittest.TestCase):
    def test_the_priest_tells_the_way(self):
        env = domains.HeavenHell()
        north, south, east, west = range(4)
        told = set()
        for seed in range(10):
            self.assertEqual(env.reset(seed=seed)[0], 0)
            self.assertEqual(played(env, [south, east, east])[0], 12)
            priest = played(env, [east])[0]
            told.add(priest)
            self.assertEqual(played(env, [west] * 3 + [north] * 4), (3, 0.0, False))
            way = west if priest == 13 else east
            self.assertEqual(played(env, [way] * 3)[1:], (0.0, False))
            self.assertEqual(played(env, [north])[1:], (1.0, True))
        self.assertEqual(told, {13, 14})

    def test_the_other_end_is_hell_and_walls_hold(self):
        env = domains.HeavenHell()
        env.reset(seed=0)
        env.heaven = env.ends[0]
        self.assertEqual(played(env, [2, 3, 0, 0, 0, 0])[0], 3)  # east and west of 0 are walls
        self.assertEqual(played(env, [2, 2, 2])[0], 9)
        self.assertEqual(played(env, [3])[1:], (-1.0, True))


class GridMemory(unittest.TestCase):
    def test_a_walk_by_hand(self):
        """Down to a beacon, up again and to the exit of its colour."""
        env = domains.GridMemory()
        forward, back, left, right, turn_left, turn_right = range(6)
        for seed in range(6):
            obs, _ = env.reset(seed=seed)
            np.testing.assert_array_equal(obs, [[0, 1, 0], [0, 1, 0]])
            obs, reward, _ = played(env, [back, back])
            self.assertEqual(reward, -0.05)
            np.testing.assert_array_equal(obs, [[0, 1, 0], [1, 1, 1]])
            obs, _, _ = played(env, [turn_left, forward])
            np.testing.assert_array_equal(obs[0, [0, 2]], [0, 0])
            beacon = obs[0, 1]
            self.assertGreaterEqual(beacon, 6)
            obs, _, _ = played(env, [back, turn_right, *[forward] * 4, left])
            np.testing.assert_array_equal(obs[1, 1:], [1, 1])
            exit_left = obs[1, 0]
            self.assertTrue(2 <= exit_left < 6)
            leave = [left] if exit_left - 2 == beacon - 6 else [right] * 3
            _, reward, ended = played(env, leave)
            self.assertTrue(ended)
            self.assertAlmostEqual(reward, 4.95)

    def test_the_other_exit_costs(self):
        env = domains.GridMemory(size=5)
        env.reset(seed=0)
        self.assertEqual(played(env, [0, 0, 0])[1], -0.05)  # a wall holds
        step = 3 if env.good[1] == 1 else 2
        _, reward, ended = played(env, [step])
        self.assertTrue(ended)
        self.assertAlmostEqual(reward, -5.05)

    def test_a_right_exit_is_a_success_and_a_wrong_one_is_none(self):
        least = domains.SUCCESS["GridMemory-v0"]
        self.assertGreater(5 - 0.05 * 199, least)
        self.assertLess(-5 - 0.05, least)

    def test_sizes_that_have_no_middle(self):
        with self.assertRaisesRegex(ValueError, "size must be odd"):
            domains.GridMemory(size=6)
        with self.assertRaisesRegex(ValueError, "length must be at least 1"):
            domains.HeavenHell(length=0)
        with self.assertRaisesRegex(ValueError, "pairs must be at least 1"):
            domains.MemoryCards(pairs=0)


if __name__ == "__main__":
    unittest.main()
