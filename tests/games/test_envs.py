"""Environments: their names, wrappers and options."""

import functools
import json
import os
import re
import sys
import tempfile
import unittest
from pathlib import Path

import gymnasium
import numpy as np

from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.config import EnvConfig
from tfdqt.games.envs import (
    check_goes_on_with,
    env_fn_of,
    env_info,
    info_of,
    make_env,
    with_env_options,
    without_curriculum,
)
from tfdqt.games.space_json import info_to_json

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
        self.assertEqual(info[:6], ("Breakout-ram-v0", (128,), "uint8", (), 4, None))
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


class Here(unittest.TestCase):
    """Modules in the current folder, options and wrappers, as a command line names them."""

    MODULE = """
import gymnasium, numpy as np
class Level(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, size=1):
        self.size = size
    def reset(self, *, seed=None, options=None):
        return np.full(2, options["level"], "f"), {}
    def step(self, action):
        return np.zeros(2, "f"), 0.0, True, False, {}
gymnasium.register("Level-v0", Level)
def twice(env, by=2):
    return gymnasium.wrappers.TransformReward(env, lambda reward: by * reward)
def nothing(env):
    pass
def leaves(env):
    raise SystemExit("gone")
"""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        Path(folder.name, "mine_at_hand.py").write_text(self.MODULE, encoding="utf-8")
        before = os.getcwd(), list(sys.path)
        self.addCleanup(os.chdir, before[0])
        self.addCleanup(sys.path.__setitem__, slice(None), before[1])
        self.addCleanup(sys.modules.pop, "mine_at_hand", None)
        self.addCleanup(gymnasium.registry.pop, "Level-v0", None)
        os.chdir(folder.name)

    def test_a_module_in_the_current_folder(self):
        cfg = EnvConfig(env_options='{"size": 3}', reset_options='{"level": 7}')
        env = make_env("mine_at_hand:Level-v0", cfg)
        self.assertEqual(env.unwrapped.size, 3)
        self.assertEqual(env.reset()[0].tolist(), [7, 7])
        self.assertEqual(env.reset(options=dict(level=2))[0].tolist(), [2, 2])

    def test_wrappers(self):
        wrappers = ("mine_at_hand:twice(5)", "gymnasium.wrappers:TimeLimit(max_episode_steps=1)")
        env = make_env("CartPole-v1", EnvConfig(wrappers=wrappers))
        self.addCleanup(env.close)
        env.reset(seed=0)
        self.assertEqual(env.step(0)[1:4], (5.0, False, True))

    def test_options_over_those_of_a_run(self):
        run = dict(name="Sokoban-v0", env=EnvConfig(env_options='{"size": 4, "split": "train"}'))
        env = env_fn_of(with_env_options(run, '{"split": "test", "boxes": 2}'))()
        self.assertEqual(env.spec.kwargs, dict(size=4, split="test", boxes=2))
        self.assertEqual(env_fn_of(run)().spec.kwargs, dict(size=4, split="train"))
        before = with_env_options(dict(name="Sokoban-v0"), '{"size": 3}')  # a run from before 0.2
        self.assertEqual(env_fn_of(before)().spec.kwargs, dict(size=3))

    def test_a_run_goes_on_with_its_own_spaces_only(self):
        spaces = info_to_json(info_of(env_fn_of(dict(name="CartPole-v1"))))
        settings = dict(name="CartPole-v1", spaces=spaces)
        check_goes_on_with(settings)
        settings["spaces"] = dict(spaces, observation=spaces["observation"] | dict(dtype="float64"))
        with self.assertRaisesRegex(UsageError, "go on with the environment as it was"):
            check_goes_on_with(settings)

    def test_what_cannot_be_used_is_one_sentence(self):
        for wrapper, words in (
            ("twice", "MODULE:FUNCTION"),
            ("mine_at_hand:twice(", "MODULE:FUNCTION"),
            ("mine_at_hand:twice(by=open)", "MODULE:FUNCTION"),
            ("mine_at_hand:twice(by=2)(by=3)", "MODULE:FUNCTION"),
            ("mine_at_hand:twice({[]: 1})", "MODULE:FUNCTION"),
            ("mine_at_hand:twice(by=2).x(by=3)", "MODULE:FUNCTION"),
            ("mine_at_hand:none", "AttributeError"),
            ("no_such_module:x", "ModuleNotFoundError"),
            ("mine_at_hand:leaves", "gone"),
            ("mine_at_hand:nothing", "no environment"),
            ("gymnasium.wrappers:NormalizeObservation", "--standardize"),
            ("gymnasium.wrappers:NormalizeReward", "statistics"),
        ):
            with self.subTest(wrapper=wrapper), self.assertRaisesRegex(UsageError, words) as caught:
                make_env("CartPole-v1", EnvConfig(wrappers=(wrapper,)))
            self.assertNotIn("\n", str(caught.exception))
        for options in ("{", "[1]", "3"):
            with self.subTest(options=options), self.assertRaisesRegex(UsageError, "JSON"):
                make_env("CartPole-v1", EnvConfig(reset_options=options))

    def test_an_environment_that_cannot_be_reset(self):
        with self.assertRaisesRegex(EnvFailure, "first reset: .*subscriptable"):
            info_of(functools.partial(make_env, "mine_at_hand:Level-v0"))

        class Old(gymnasium.Env):
            def reset(self):
                raise AssertionError

        with self.assertRaisesRegex(EnvFailure, "first reset: .*'seed'; .*old Gym.*--wrappers"):
            info_of(lambda: gymnasium.wrappers.OrderEnforcing(Old()))

    def test_evaluations_leave_a_curriculum_out(self):
        options = EnvConfig(env_options='{"size": 4, "curriculum": 2}')
        settings = dict(name="Sokoban-v0", env=options, more=1)
        played = without_curriculum(settings)
        self.assertEqual(json.loads(played["env"].env_options), {"size": 4, "curriculum": None})
        self.assertEqual(played["more"], 1)
        for other in (dict(name="Sokoban-v0"), dict(settings, name="CartPole-v1")):
            self.assertIs(without_curriculum(other), other)


if __name__ == "__main__":
    unittest.main()
