"""An environment of one's own, from training to export, in a module in the current folder."""

import importlib
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np

import tfdqt
from tests.helpers import refused, succeeds
from tfdqt.errors import UsageError
from tfdqt.games.trained import load_run
from tfdqt.runs.checkpoint import load_checkpoint

MODULE = """
import gymnasium, numpy as np
from gymnasium import spaces

class Hall(gymnasium.Env):
    observation_space = spaces.Dict(at=spaces.Box(0, 9, (1,), np.float32), door=spaces.Discrete(2))
    action_space = spaces.MultiDiscrete([3, 2], start=[-1, 0])
    def look(self):
        free = [self.at > 0, True, True, True, self.door == 1]
        obs = dict(at=np.array([self.at], "f"), door=self.door)
        return obs, dict(action_mask=np.array(free, np.int8))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = options["at"]
        self.door = int(self.np_random.integers(2))
        return self.look()
    def step(self, action):
        step, use = action
        if step < 0 and self.at == 0 or use and not self.door:
            raise ValueError("illegal")
        self.at = min(9, self.at + step)
        obs, info = self.look()
        return obs, np.array([self.at / 9]), bool(use and self.at > 4), False, info

gymnasium.register("Hall-v0", Hall, max_episode_steps=12)

class Board(gymnasium.Env):
    observation_space = spaces.Box(0, 1, (3, 3), bool)
    action_space = spaces.Discrete(9)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.board = np.zeros(self.observation_space.shape, bool)
        return self.board.copy(), {}
    def step(self, action):
        fresh = not self.board.flat[action]
        self.board.flat[action] = True
        return self.board.copy(), float(fresh), bool(self.board.all()), False, {}

gymnasium.register("Board-v0", Board, max_episode_steps=12)

def doubled(env, by):
    return gymnasium.wrappers.TransformReward(env, lambda reward: by * reward)
"""
TINY = ["--network=dense", "--hidden", "16", "--context=2", "--batch-size=8", "--workers=0"]


class OwnEnvironment(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        made = tempfile.TemporaryDirectory()
        cls.addClassCleanup(made.cleanup)
        cls.home = Path(made.name, "at home")
        cls.away = Path(made.name, "away")
        for folder in (cls.home, cls.away):
            folder.mkdir()
        (cls.home / "my_halls.py").write_text(MODULE, encoding="utf-8")
        cls.addClassCleanup(os.chdir, os.getcwd())
        cls.addClassCleanup(sys.path.__setitem__, slice(None), list(sys.path))
        os.chdir(cls.home)
        cls.run_dir = cls.home / "run"
        cls.said = succeeds(
            cls(),
            "run_dqn",
            "--name=my_halls:Hall-v0",
            '--reset-options={"at": 3}',
            "--wrappers",
            "my_halls:doubled(by=2)",
            "--total-steps=256",
            "--learning-starts=64",
            f"--run-dir={cls.run_dir}",
            *TINY,
        ).stdout
        cls.forget()

    @classmethod
    def forget(cls):
        """As if the module had never been there."""
        sys.modules.pop("my_halls", None)
        for name in ("Hall-v0", "Board-v0"):
            gymnasium.registry.pop(name, None)

    def setUp(self):
        os.chdir(self.home)
        self.forget()

    def leave(self):
        os.chdir(self.away)
        sys.path[:] = [path for path in sys.path if path != str(self.home)]

    def test_what_is_said(self):
        self.assertIn("6 actions, observations (8,) float32", self.said)
        self.assertIn(f"evaluate.py '{self.run_dir}'", self.said)
        self.assertNotIn("can't be saved", self.said)
        self.assertNotIn(None, load_checkpoint(self.run_dir)[0]["envs"])

    def test_it_is_evaluated_with_its_wrappers_and_options(self):
        done = succeeds(self, "evaluate", self.run_dir, "--episodes=3", "--epsilon=0.5")
        self.assertIn("my_halls:Hall-v0 seed 0 after 256 steps: 3 games", done.stdout)

    def test_a_policy_without_the_environment_at_hand(self):
        self.leave()
        policy = tfdqt.load_policy(self.run_dir, epsilon=1.0)
        taken = set()
        for door in (0, 1) * 50:
            obs = dict(at=np.zeros(1, "f"), door=door)
            action = policy(obs, mask=[0, 1, 1, 1, door])
            taken.add((*action.tolist(), door))
        # Never back, and the door only where there is one.
        self.assertEqual(taken, {(0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)})
        policy.reset(num_envs=2)
        many = dict(at=np.zeros((2, 1), "f"), door=np.array([0, 1]))
        actions = policy(many, mask=[[0, 0, 1, 1, 0], [0, 1, 0, 0, 1]])
        self.assertEqual(actions.tolist(), [[1, 0], [0, 1]])
        for obs, mask, words in (
            (dict(at=np.zeros(1, "f"), door=2), [1] * 5, r"in \[door\] 2"),
            (dict(at=np.zeros(1, "f")), [1] * 5, "without door"),
            (dict(at=np.zeros(1, "f"), door=1), None, "give mask"),
            (dict(at=np.zeros(1, "f"), door=1), [1, 1], "action_mask"),
        ):
            policy.reset()
            with self.subTest(words=words), self.assertRaisesRegex(UsageError, words):
                policy(obs, mask=mask)

    def test_it_is_exported_without_the_environment_at_hand(self):
        self.leave()
        done = succeeds(self, "export", self.run_dir, self.away / "model")
        self.assertIn("inputs obs [None, 2, 8]", done.stdout)
        self.assertEqual(load_run(self.run_dir).info.observation_space["door"].n, 2)

    def test_where_it_is_missing_that_is_said(self):
        self.leave()
        refused(self, "my_halls:Hall-v0.*can't be made|No module", "evaluate", self.run_dir)
        config = (self.run_dir / "config.json").read_text()
        refused(
            self,
            "No module named 'my_halls'",
            "run_dqn",
            f"--resume={self.run_dir}",
            "--total-steps=512",
        )
        # A run that can't go on keeps its own settings.
        self.assertEqual((self.run_dir / "config.json").read_text(), config)

    def board_run(self):
        run_dir = self.home / self.id()
        flags = ("--total-steps=256", "--learning-starts=64", f"--run-dir={run_dir}", *TINY)
        succeeds(self, "run_dqn", "--name=my_halls:Board-v0", *flags)
        return run_dir

    def test_a_run_that_kept_a_board_as_numbers_goes_on(self):
        with mock.patch("tfdqt.games.spaces._are_bits", return_value=False):  # as it once was
            run_dir = self.board_run()
        config = json.loads((run_dir / "config.json").read_text())
        self.assertEqual(config["spaces"].pop("kept"), "float32")
        (run_dir / "config.json").write_text(json.dumps(config))
        done = succeeds(self, "run_dqn", f"--resume={run_dir}", "--total-steps=512")
        self.assertIn("observations (9,) float32", done.stdout)
        self.assertEqual(load_checkpoint(run_dir)[0]["progress"]["step"], 512)
        succeeds(self, "evaluate", run_dir, "--episodes=2")

    def test_an_environment_that_has_changed_is_not_gone_on_with(self):
        run_dir = self.board_run()
        module = self.home / "my_halls.py"
        self.addCleanup(module.write_text, MODULE, encoding="utf-8")
        module.write_text(MODULE.replace("(3, 3), bool", "(4, 4, 1), bool"), encoding="utf-8")
        self.forget()
        importlib.invalidate_caches()
        refused(
            self,
            r"shows Box\(False, True, \(4, 4, 1\), bool\) .* now, .* as it was",
            "run_dqn",
            f"--resume={run_dir}",
            "--total-steps=512",
        )

    def test_wrappers_stay_with_a_run(self):
        refused(
            self, "leave out --wrappers", "run_dqn", f"--resume={self.run_dir}", "--wrappers", "x:y"
        )


if __name__ == "__main__":
    unittest.main()
