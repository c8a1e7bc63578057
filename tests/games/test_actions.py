"""Actions that are illegal at times, and actions of several parts, learned by every algorithm."""

import functools
import types
import unittest

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.games.test_spaces import Legal
from tests.helpers import slow
from tfdqt import losses, policy
from tfdqt.backend import tf
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import info_of
from tfdqt.games.flat import flatten_q
from tfdqt.games.play import play_episodes
from tfdqt.games.trained import Policy, TrainedRun

SETTINGS = dict(
    dqn=dict(num_envs=8, chunk=4, learning_starts=256, batch_size=32, target_tau=0.05),
    ppo=dict(num_envs=8, rollout_steps=32, batch_size=64, update_epochs=8, entropy_weight=0.01),
    pqn=dict(num_envs=8, rollout_steps=32, batch_size=64, update_epochs=4, epsilon_end=0.02),
)
PARTS = (2, 3, 4)


class Joint(tf.test.TestCase):
    """Outputs of parts, against a table of all joint actions worked out by sums."""

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.q = rng.normal(size=(5, 9)).astype("float32")
        a, b, c = np.split(self.q, [2, 5], axis=-1)
        table = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]
        self.table = table.reshape(5, 24)
        self.actions = rng.integers(24, size=5).astype("int32")

    def test_values(self):
        taken = np.take_along_axis(self.table, self.actions[:, None], 1)[:, 0]
        self.assertAllClose(losses.select_actions(self.q, self.actions, PARTS), taken)
        self.assertAllClose(losses.best_values(self.q, PARTS), self.table.max(1))
        self.assertAllEqual(losses.best_actions(self.q, PARTS), self.table.argmax(1))
        self.assertAllEqual(policy.best_actions(self.q, PARTS), self.table.argmax(1))
        gap = np.minimum(self.table.max(1) - taken, 1.0)
        widened = losses.widen_gap(np.zeros((5, 1), "float32"), self.q, self.actions, 0.5, PARTS)
        self.assertAllClose(widened[:, 0], -0.5 * gap)
        cost = 0.1 * (self.table.max(1) - self.table.mean(1))
        self.assertAllClose(losses.exploration_cost(self.q, 0.1, parts=PARTS), cost)

    def test_double_and_quantiles(self):
        target = np.stack([self.q + 1, self.q - 1], axis=-1)
        online = tf.constant(np.stack([-self.q, -self.q], axis=-1))
        worst = self.table.min(1)
        values = losses.bootstrap_quantiles(target, online, PARTS)
        self.assertAllClose(values, np.stack([worst + 3, worst - 3], -1), rtol=1e-5, atol=1e-5)
        self.assertAllClose(losses.bootstrap_values(self.q, tf.constant(-self.q), PARTS), worst)

    def test_probabilities(self):
        expected = self.table - np.log(np.exp(self.table).sum(1, keepdims=True))
        log_p = losses.log_probabilities(self.q, PARTS)
        for action in range(24):
            taken = losses.select_actions(log_p, np.full(5, action), PARTS)
            self.assertAllClose(taken, expected[:, action], rtol=1e-5, atol=1e-5)
        terms = losses.ppo_losses(
            self.q,
            *[np.zeros(5, "f")] * 1,
            self.actions,
            *[np.zeros(5, "f")] * 4,
            np.ones(5, "f"),
            clip=0.2,
            parts=PARTS,
        )
        entropy = -(np.exp(expected) * expected).sum(1).mean()
        self.assertAllClose(terms["entropy"], entropy)

    def test_numbers_of_actions(self):
        values = losses.split_actions(tf.constant(self.actions), PARTS)
        self.assertAllEqual(values, np.unravel_index(self.actions, PARTS))
        self.assertAllEqual(losses.join_actions(values, PARTS), self.actions)

    def test_only_legal_ones_are_drawn_and_all_of_them(self):
        legal = np.tile([True, False, True, True, False, True, False, True, True], (4_000, 1))
        rng = np.random.default_rng(1)
        drawn = policy.epsilon_greedy(rng, np.zeros(4_000, int), 24, 1.0, legal, PARTS)
        counts = np.bincount(drawn, minlength=24)
        allowed = [0 + 4 * b + c for b in (0, 1) for c in (0, 2, 3)]
        self.assertEqual(np.flatnonzero(counts).tolist(), allowed)
        self.assertLess(np.abs(counts[allowed] - 4_000 / 6).max(), 110)
        flat = policy.epsilon_greedy(rng, np.zeros(4_000, int), 9, 1.0, legal)
        self.assertEqual(np.unique(flat).tolist(), np.flatnonzero(legal[0]).tolist())
        self.assertEqual(np.unique(policy.epsilon_greedy(rng, drawn, 9, 0.0, legal)).size, 6)

    def test_a_held_one_goes_on_while_each_of_its_parts_is_legal(self):
        info = types.SimpleNamespace(num_actions=24, parts=PARTS)
        explore = policy.make_explore(info, 1_000)
        held = policy.hold_nothing(3)
        held.action[...] = np.ravel_multi_index((1, 2, 3), PARTS)
        held.left[...] = 5
        legal = np.ones((3, 9), bool)
        legal[1, 2 + 2] = False  # the second part's value 2
        legal[2, 5 + 3] = False  # the third part's value 3
        rng = np.random.default_rng(0)
        greedy = np.full(3, -1)
        actions = explore(rng, greedy, 0.0, held, np.zeros(3, bool), legal)
        self.assertEqual(actions.tolist(), [held.action[0], -1, -1])
        random = explore(rng, greedy, 1.0, held, np.zeros(3, bool), legal)
        self.assertTrue(policy.is_legal(legal, random, PARTS).all())


class Board(gymnasium.Env):
    """Every square once; a taken one must not be taken again. Square s pays s more each turn."""

    action_space = spaces.Discrete(4)
    observation_space = spaces.Box(0, 1, (4,), np.float32)

    def shown(self):
        return self.free.astype("f"), dict(action_mask=self.free.copy())

    def reset(self, *, seed=None, options=None):
        self.free = np.ones(4, bool)
        return self.shown()

    def step(self, action):
        if not self.free[action]:
            raise ValueError(f"{action} is taken")
        turn = 4 - self.free.sum()
        self.free[action] = False
        obs, info = self.shown()
        return obs, float(action * turn) / 3, not self.free.any(), False, info


class Lock(gymnasium.Env):
    """A dial of seven wheels: each wheel that stands where it is shown pays. 2,187 actions."""

    action_space = spaces.MultiDiscrete([3] * 7, start=[1] * 7)
    observation_space = spaces.MultiDiscrete([3] * 7)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wheels = self.np_random.integers(3, size=7)
        return self.wheels, {}

    def step(self, action):
        assert self.action_space.contains(action)
        right = float((action - 1 == self.wheels).sum())
        return self.wheels, right, True, False, {}


class StiffLock(Lock):
    """The same, where a wheel behind one that is shown at 0 can't be put one too far."""

    def action_masks(self):
        legal = np.ones((7, 3), bool)
        behind = 1 + np.flatnonzero(self.wheels[:-1] == 0)
        legal[behind, (self.wheels[behind] + 1) % 3] = False
        return legal.reshape(-1)

    def step(self, action):
        legal = self.action_masks().reshape(7, 3)
        assert legal[np.arange(7), np.asarray(action) - 1].all()
        return super().step(action)


def played(name, env_fn, steps, episodes=40, **network):
    """Train and play greedily: -> mean return."""
    algorithm = ALGORITHMS[name]
    info = info_of(env_fn)
    size = dict(context=1, layers=1, heads=2, width=32, hidden=(64,), layer_norm=True)
    cfg = NetworkConfig(**{**size, **network})
    settings = algorithm.settings(total_steps=steps, learning_rate=2e-3, **SETTINGS[name])
    state, net, progress = algorithm.train(
        env_fn, functools.partial(algorithm.build, cfg=cfg), settings, workers=0
    )
    weights = getattr(state, algorithm.acting)
    run = TrainedRun(net, weights, info, algorithm, dict(name="x"), progress.step)
    return play_episodes(env_fn, Policy(run), episodes=episodes)[0].mean()


class Chosen(tf.test.TestCase):
    def test_of_many_environments_by_the_masks_in_their_observations(self):
        info = info_of(functools.partial(Legal, "observation"))
        algorithm = ALGORITHMS["dqn"]
        net = flatten_q(algorithm.build(info, NetworkConfig(network="dense", hidden=(4,))), info)
        policy = Policy(TrainedRun(net, net.start, info, algorithm, {}, 0))
        policy.reset(num_envs=3)
        obs = dict(observation=np.zeros((3, 2), "f"), action_mask=np.eye(3, dtype="int8"))
        self.assertAllEqual(policy(obs), [0, 1, 2])
        self.assertAllEqual(policy(obs, mask=np.eye(3)[::-1]), [2, 1, 0])


class Learned(tf.test.TestCase):
    @slow("half a minute: three algorithms learn a game of four moves")
    def test_legal_moves_by_all_algorithms(self):
        # The best order is 0, 1, 2, 3: (1 + 4 + 9) / 3.
        for name in ALGORITHMS:
            with self.subTest(algorithm=name):
                self.assertAllClose(played(name, Board, 6_144), 14 / 3)

    @slow("a minute: three algorithms learn a lock twice")
    def test_parts_by_all_algorithms(self):
        for name in ALGORITHMS:
            for env_fn in (Lock, StiffLock):
                with self.subTest(algorithm=name, env=env_fn):
                    best = played(name, env_fn, 24_576, dueling=name != "ppo", prev_action=True)
                    self.assertGreater(best, 6.5)


if __name__ == "__main__":
    unittest.main()
