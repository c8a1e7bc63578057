"""Environments: their names, and what a network is told of them."""

import re
import unittest

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.games.scripted import Spaces
from tfdqt.errors import UsageError
from tfdqt.games.envs import env_info, make_env

GAMES = sorted(
    match[1]
    for match in (re.fullmatch(r"(\w+)NoFrameskip-v4", name) for name in gymnasium.registry)
    if match
)


class Names(unittest.TestCase):
    def test_all_old_names_exist(self):
        self.assertGreater(len(GAMES), 50)
        names = [
            f"{game}-ram{kind}-{version}"
            for game in GAMES
            for kind in ("", "Deterministic", "NoFrameskip")
            for version in ("v0", "v4")
        ]
        self.assertEqual([name for name in names if name not in gymnasium.registry], [])

    def test_no_other_ram_names(self):
        pattern = re.compile(rf"({'|'.join(GAMES)})-ram(Deterministic|NoFrameskip)?-v[04]")
        odd = [
            name for name in gymnasium.registry if "-ram" in name and not pattern.fullmatch(name)
        ]
        self.assertEqual(odd, [])

    def test_frameskip_and_sticky_actions(self):
        for name, frameskip, sticky in (
            ("Breakout-ram-v0", (2, 5), 0.25),
            ("Breakout-ram-v4", (2, 5), 0.0),
            ("Breakout-ramDeterministic-v0", 4, 0.25),
            ("Breakout-ramDeterministic-v4", 4, 0.0),
            ("Breakout-ramNoFrameskip-v0", 1, 0.25),
            ("Breakout-ramNoFrameskip-v4", 1, 0.0),
            ("SpaceInvaders-ramDeterministic-v4", 3, 0.0),
            ("SpaceInvaders-ram-v0", (2, 5), 0.25),
            ("ALE/Breakout-v5", 4, 0.25),
        ):
            with self.subTest(name=name):
                env = make_env(name).unwrapped
                self.addCleanup(env.close)
                self.assertEqual(env._frameskip, frameskip)
                self.assertEqual(env.ale.getFloat("repeat_action_probability"), sticky)

    def test_breakout(self):
        env = make_env("Breakout-ram-v0")
        self.addCleanup(env.close)
        info = env_info(env)
        self.assertEqual(info, ("Breakout-ram-v0", (128,), "uint8", (), 4, 0, 0))
        self.assertEqual([env.reset()[0].shape, env.reset()[0].dtype], [(128,), np.uint8])

    def test_unknown_name_tells_the_nearest(self):
        with self.assertRaisesRegex(UsageError, "Breakout-ram-v0"):
            make_env("Brekout-ram-v0")
        with self.assertRaisesRegex(UsageError, "CartPole-v1"):
            make_env("CartPole-v7")
        with self.assertRaisesRegex(UsageError, "pprint_registry"):
            make_env("qqqqqqqqqqqqqqqqqq-v0")

    def test_names_that_cannot_be_made(self):
        for name in ("", "no such/thing:x", "nomodule:CartPole-v1", "ALE/CartPole-v1"):
            with self.subTest(name=name), self.assertRaises(UsageError) as caught:
                make_env(name)
            self.assertNotIn("\n", str(caught.exception))
        with self.assertRaisesRegex(UsageError, "nonsense"):
            make_env("CartPole-v1", nonsense=1)


class Info(unittest.TestCase):
    def test_what_a_network_is_told(self):
        for env, expected in (
            (make_env("CartPole-v1"), ("CartPole-v1", (4,), "float32", (), 2, 0, 0)),
            (make_env("FrozenLake-v1"), ("FrozenLake-v1", (1,), "int32", (16,), 4, 0, 0)),
            (
                Spaces(spaces.MultiDiscrete([3, 5]), spaces.Discrete(7)),
                ("Spaces", (2,), "int32", (3, 5), 7, (0, 0), 0),
            ),
            (
                Spaces(spaces.Discrete(9, start=-4), spaces.Discrete(3, start=1)),
                ("Spaces", (1,), "int32", (9,), 3, -4, 1),
            ),
            (
                Spaces(spaces.Box(0, 9, (3,), np.int64), spaces.Discrete(2)),
                ("Spaces", (3,), "float32", (), 2, 0, 0),
            ),
            (
                Spaces(spaces.Box(0, 255, (3,), np.uint8), spaces.Discrete(2)),
                ("Spaces", (3,), "uint8", (), 2, 0, 0),
            ),
        ):
            with self.subTest(expected=expected):
                info = env_info(env)
                self.assertEqual(info, expected)
                self.assertEqual({type(n) for n in (*info.nvec, info.num_actions)}, {int})

    def test_name_can_be_given(self):
        self.assertEqual(env_info(make_env("CartPole-v1"), "mine").name, "mine")

    def test_what_does_not_fit(self):
        vector, two = spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(2)
        for env, words in (
            (make_env("Breakout-v0"), "images.*`-ram`"),
            (make_env("Breakout-v4", obs_type="grayscale"), "images"),
            (make_env("Pendulum-v1"), "Discrete actions"),
            (Spaces(vector, spaces.MultiDiscrete([2, 2])), "Discrete actions"),
            (Spaces(spaces.Dict(a=vector), two), "FlattenObservation"),
            (Spaces(spaces.Tuple([two, two]), two), "Flatten"),
            (Spaces(spaces.MultiDiscrete([[2, 3], [4, 5]]), two), "Flatten"),
            (Spaces(spaces.MultiBinary(3), two), "Flatten"),
            (Spaces(spaces.Text(3), two), "Flatten"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(UsageError, words):
                env_info(env)


if __name__ == "__main__":
    unittest.main()
