"""Regression on exact values: the loss by hand, what is said of a network, and that one learns."""

import unittest

import measure
import numpy as np
import regress
from measure import load_arm, load_player, make_puzzle

from tests.benchmarks import script
from tests.games.toys import without_xla
from tests.helpers import InFolder, slow, succeeds
from tfdqt.runs.log import read_rows


class Loss(unittest.TestCase):
    def test_by_hand(self):
        q = np.array([[0.5, 0.1, 9.0], [0.3, 0.1, 0.0]], np.float32)
        target = np.array([[0.9, 0.1, 0.0], [0.0, 0.0, 0.0]], np.float32)
        legal = np.array([[True, True, False], [True, True, True]])
        # Errors -.4 and 0: mean -.2, deviations -.2 and .2, weighted by 5 / (.9 + .1)^2. The
        # second state can't be solved: the mean error alone.
        right = [0.04 + 5 * 0.04, (0.4 / 3) ** 2]
        np.testing.assert_allclose(regress.loss_of(q, target, legal), right, rtol=1e-5)

    def test_what_is_said_of_values(self):
        held = dict(
            q=np.array([[0.9, 0.1], [0.0, 0.8], [0.0, 0.0]], np.float32),
            legal=np.array([[True, True], [False, True], [True, True]]),
        )
        said = regress.judge(np.array([[0.1, 0.9], [5.0, 0.8], [0.0, 0.0]], np.float32), held)
        self.assertEqual(said["optimal"], 0.5)  # of the two states that can be solved
        spread = sum((value - 0.36) ** 2 for value in (0.9, 0.1, 0.8, 0.0, 0.0))
        self.assertAlmostEqual(said["r2"], 1 - 2 * 0.8**2 / spread, places=5)


class Learning(InFolder):
    @slow("8 s: two networks")
    def test_a_network_learns_and_can_be_played(self):
        flags = "--arms dense-32 --rates 1e-2 --seeds=2 --size=3 --workers=1 --batch=64".split()
        sizes = ("--states=20000", "--held-out=1000", "--updates=1000")
        done = script("benchmarks/search/regress.py", f"--out={self.tmp}", *flags, *sizes)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = read_rows(self.tmp / "regress.csv")
        self.assertEqual([row["seed"] for row in rows], ["0", "1"])
        for row in rows:
            self.assertGreater(float(row["test_r2"]), 0.5)
        net, weights, info, settings = load_arm(self.tmp, "dense-32", 1)
        env = make_puzzle(settings, "test")
        obs, details = env.reset(seed=0)
        row = np.concatenate([obs.ravel(), details["action_mask"]])[None, None].astype(np.uint8)
        q = net.apply(weights, dict(obs=row, first=np.ones((1, 1), np.int32)))
        self.assertEqual(q.shape, (1, 1, info.num_actions, 1))

    @slow("6 s: a training")
    def test_runs_that_learned_from_play_are_measured_alike(self):
        options = '{"size": 4, "boxes": 1, "curriculum": 2}'
        network = "--tokens=cells --context=1 --width=8 --heads=2 --layers=1 --loops=3".split()
        sizes = "--total-steps=512 --num-envs=8 --rollout-steps=32 --batch-size=64 --workers=0"
        with without_xla():
            succeeds(
                self,
                "run_ppo",
                "--name=Sokoban-v0",
                f"--env-options={options}",
                f"--run-dir={self.tmp}/loops-3-1",
                "--gamma=0.93",
                *network,
                *sizes.split(),
            )
            player = load_player(self.tmp, "loops-3", 1, loops=2)
            self.assertEqual(player.rules.gamma, 0.93)
            self.assertEqual(player.run.settings["network"].loops, 2)
            args = measure.Args(weights=str(self.tmp), levels=3)
            row = measure.play(args, "loops-3", 1, None, 2)
        self.assertEqual(len(row["solved_levels"]), 3)
        self.assertGreater(row["evaluations_a_move"], 1)
        self.assertGreater(max(map(int, row["distances"].split())), 2)  # without the curriculum


if __name__ == "__main__":
    unittest.main()
