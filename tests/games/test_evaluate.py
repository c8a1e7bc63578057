"""A trained network as a policy: of one environment and of many, and whole games played with it."""

import random
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np

from tests.games.corridor import Corridor
from tests.games.scripted import Spaces
from tests.games.toys import without_xla
from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.games import periodic, play
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import env_info, make_env
from tfdqt.games.flat import flatten_model, mean_q
from tfdqt.games.play import play_episodes, play_games
from tfdqt.games.spaces import describe
from tfdqt.games.trained import Policy, TrainedRun
from tfdqt.games.vec_envs import make_vec_env
from tfdqt.games.window import make_window, network_inputs, push

NETWORK = NetworkConfig(context=3, layers=1, heads=2, width=8, prev_action=True)


class Shifted(Corridor):
    """A corridor whose cells are 5 to 8 and whose actions are 2, left, and 3, right."""

    observation_space = gymnasium.spaces.Discrete(4, start=5)
    action_space = gymnasium.spaces.Discrete(2, start=2)

    def reset(self, **more):
        return super().reset(**more)[0] + 5, {}

    def step(self, action):
        obs, *rest = super().step(action - 2)
        return obs + 5, *rest


class Blind(Corridor):
    """A corridor that says it draws pictures, and draws none, or something else than bytes."""

    metadata = dict(render_modes=["rgb_array"])
    render_mode = "rgb_array"

    def __init__(self, picture=None):
        super().__init__()
        self.picture = picture

    def render(self):
        return self.picture


class Noisy(Corridor):
    """A corridor that pays by its own generator."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, self.np_random.normal(), *rest


class Heavy(Corridor):
    """A corridor with a map of 40 MB."""

    alive = 0

    def __init__(self):
        self.map = np.ones(40 * 10**6, np.uint8)
        Heavy.alive += 1

    def close(self):
        Heavy.alive -= 1


def untrained(info, algorithm="dqn", network=NETWORK, seed=3):
    """A run that has learned nothing, but whose actions depend on what it sees."""
    chosen = ALGORITHMS[algorithm]
    net = flatten_model(chosen.build(info, network))
    rng = np.random.default_rng(seed)
    weights = tf.constant(rng.normal(size=net.start.shape) * 0.5, tf.float32)
    return TrainedRun(net, weights, info, chosen, dict(name=info.name), 0)


def walk(policy, env, steps, seed=0):
    """The actions of a policy in one environment, reset where an episode ends: [steps]."""
    actions = []
    obs, _ = env.reset(seed=seed)
    policy.reset()
    for _ in range(steps):
        actions.append(policy(obs))
        obs, _, terminated, truncated, _ = env.step(actions[-1])
        if terminated or truncated:
            obs, _ = env.reset()
            policy.reset()
    return actions


class TestPolicy(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.info = env_info(Corridor())
        cls.trained = untrained(cls.info)
        with without_xla():
            cls.policy = Policy(cls.trained)

    def test_the_window_is_kept_inside(self):
        """As if the network were given its windows by hand."""
        trained = self.trained
        env = Corridor()
        obs, _ = env.reset()
        first = True
        action = -1
        window = make_window(self.info, 1, NETWORK.context)
        self.policy.reset()
        chosen = []
        for _ in range(50):
            push(window, np.array([[obs]]), np.array([first]), np.array([action]))
            q = mean_q(trained.net.apply(trained.weights, network_inputs(window)))[0, -1]
            action = self.policy(obs)
            self.assertIs(type(action), int)
            self.assertEqual(action, np.argmax(q))
            chosen.append(action)
            obs, _, terminated, truncated, _ = env.step(action)
            first = terminated or truncated
            if first:
                obs, _ = env.reset()
                self.policy.reset()
        self.assertEqual(set(chosen), {0, 1})

    def test_many_environments_act_as_each_by_itself(self):
        count = 3
        envs = [Corridor() for _ in range(count)]
        for i, env in enumerate(envs):
            env.limit = 4 + 3 * i  # episodes of different lengths
        obs = np.array([env.reset()[0] for env in envs])
        first = np.ones(count, bool)
        self.policy.reset(num_envs=count)
        together = []
        for _ in range(30):
            action = self.policy(obs, first=first)
            self.assertEqual((action.shape, action.dtype.kind), ((count,), "i"))
            together.append(action)
            for i, env in enumerate(envs):
                obs[i], _, terminated, truncated, _ = env.step(action[i])
                first[i] = terminated or truncated
                if first[i]:
                    obs[i], _ = env.reset()
        for i, env in enumerate(envs):
            self.assertEqual(walk(self.policy, env, 30), [row[i] for row in together])

    def test_spaces_that_do_not_start_at_zero(self):
        with without_xla():
            shifted = Policy(self.trained._replace(info=env_info(Shifted())))
        plain = walk(self.policy, Corridor(), 20)
        self.assertEqual(walk(shifted, Shifted(), 20), [action + 2 for action in plain])
        shifted.reset(num_envs=2)
        self.policy.reset(num_envs=2)
        cells = np.array([0, 1])
        self.assertAllEqual(shifted(cells + 5), self.policy(cells) + 2)

    def test_multi_discrete_with_starts(self):
        space = gymnasium.spaces.MultiDiscrete([3, 5], start=[1, 10])
        info = env_info(Spaces(space, gymnasium.spaces.Discrete(3)))
        with without_xla():
            policy = Policy(untrained(info))
        policy.reset(num_envs=2)
        again = policy._window.obs
        policy(np.array([[1, 10], [3, 14]]))
        self.assertAllEqual(again[:, -1], [[0, 0], [2, 4]])

    def test_other_shapes_are_refused(self):
        self.policy.reset()
        for obs in (np.zeros(2, int), np.zeros((3, 1), int), 4, -1, 0.5, None, "0"):
            with self.assertRaisesRegex(UsageError, r"given what its environment never shows"):
                self.policy(obs)
        self.policy.reset(num_envs=3)
        for obs in (0, np.zeros(2, int), np.zeros((3, 2), int)):
            with self.assertRaisesRegex(UsageError, "3 observations|never shows"):
                self.policy(obs)
        with self.assertRaisesRegex(UsageError, "first must tell of each of 3"):
            self.policy(np.zeros(3, int), first=True)
        for epsilon in (1.5, "x", None):
            with self.assertRaisesRegex(UsageError, "epsilon must lie between 0 and 1"):
                Policy(self.trained, epsilon=epsilon)
        for seed in (-1, 0.5, None):
            with self.assertRaisesRegex(UsageError, "seed must be a whole number"):
                Policy(self.trained, seed=seed)
        with self.assertRaisesRegex(UsageError, "num_envs must be a whole number"):
            Policy(self.trained).reset(num_envs=1.5)
        # A Discrete observation may be a number or a vector of one.
        self.assertAllEqual(self.policy(np.zeros(3, int)).shape, (3,))
        self.assertAllEqual(self.policy(np.zeros((3, 1), int)).shape, (3,))

    def test_observations_of_many_come_as_a_list_a_tuple_or_by_parts(self):
        box = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
        rows = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
        two = gymnasium.spaces.Discrete(2)
        parts = gymnasium.spaces.Tuple([two, box])
        named = gymnasium.spaces.Dict(at=two, seen=box)
        at = np.array([0, 1, 1])
        for space, given in (
            (box, (rows, list(rows), tuple(rows))),
            (parts, ((at, rows), list(zip(at, rows)))),
            (named, (dict(at=at, seen=rows), [dict(at=i, seen=row) for i, row in zip(at, rows)])),
        ):
            with without_xla():
                policy = Policy(untrained(describe(space, two, "Many")))
            shown = []
            for obs in given:
                policy.reset(num_envs=3)
                policy(obs)
                shown.append(policy._window.obs[:, -1].copy())
                self.assertAllEqual(shown[0], shown[-1])
            self.assertAllEqual(shown[0][:, -3:], rows)
        with self.assertRaisesRegex(UsageError, "different numbers of rows: 3, 2"):
            policy(dict(at=at, seen=rows[:2]))

    def test_games_that_can_not_be_are_refused(self):
        for wrong in (
            dict(episodes=2.5),
            dict(at_once=1.5),
            dict(seed=-1),
            dict(workers=-1),
            dict(max_steps=0),
            dict(max_steps=2.5),
        ):
            ((name, value),) = wrong.items()
            with self.assertRaisesRegex(UsageError, f"{name} must be a whole .*, not {value}"):
                play_games(Corridor, self.policy, **dict(episodes=2) | wrong)

    def test_numbers_that_are_none_and_masks_that_nobody_asked_for_are_refused(self):
        with without_xla():
            box = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
            policy = Policy(untrained(describe(box, gymnasium.spaces.Discrete(2), "Box")))
        for wrong in (np.nan, np.inf):
            with self.assertRaisesRegex(UsageError, "never shows.*not finite"):
                policy(np.array([0.0, wrong], "float32"))
        with self.assertRaisesRegex(UsageError, "leave out mask"):
            policy(np.zeros(2, "float32"), mask=[1, 0])

    def test_an_end_without_a_legal_action(self):
        # gymnasium's vectors show it, and ignore what is done there.
        box = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
        info = describe(box, gymnasium.spaces.Discrete(2), "Masked", "info")
        with without_xla():
            policy = Policy(untrained(info))
        policy.reset(num_envs=3)
        masks = [[0, 1], [1, 0], [0, 0]]
        for mask in (masks, iter(masks), np.array(masks)):
            actions = policy(np.zeros([3, 1], "float32"), mask=mask)
            self.assertAllEqual(actions[:2], [1, 0])
        for mask in ({"a": masks[0]}, 1):
            with self.assertRaisesRegex(UsageError, "mask must hold one of each of 3"):
                policy(np.zeros([3, 1], "float32"), mask=mask)

    def test_epsilon_and_seed(self):
        with without_xla():
            always, same, other = (
                Policy(self.trained, epsilon=1.0, seed=seed) for seed in (3, 3, 4)
            )
        actions = walk(always, Corridor(), 200)
        self.assertBetween(np.mean(actions), 0.35, 0.65)
        self.assertEqual(walk(same, Corridor(), 200), actions)
        self.assertNotEqual(walk(other, Corridor(), 200), actions)

    def test_actions_are_drawn_from_a_policy(self):
        trained = untrained(self.info, "ppo")
        with without_xla():
            policy = Policy(trained, sample=True, seed=1)
        window = make_window(self.info, 4_000, NETWORK.context)
        push(window, np.zeros((4_000, 1)), np.ones(4_000, bool), -1)
        logits = trained.net.apply(trained.weights, network_inputs(window))[0, -1, :-1]
        policy.reset(num_envs=4_000)
        p = float(tf.nn.softmax(logits)[1])
        # Standard deviation at most 0.008.
        self.assertAlmostEqual(policy(np.zeros(4_000, int)).mean(), p, delta=5 * 0.008)


class TestGames(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        info = env_info(Corridor())
        with without_xla():
            cls.policy = Policy(untrained(info), epsilon=0.5)
            cls.greedy = Policy(untrained(info))

    def test_a_game_in_each_environment(self):
        returns, lengths = play_episodes(Corridor, self.policy, episodes=40, seed=1)
        self.assertEqual((returns.shape, lengths.shape), ((40,), (40,)))
        self.assertAllInSet(returns, (0.0, 1.0))
        # Who arrives takes at least 3 steps, and who does not is cut after 20.
        self.assertAllInRange(lengths, 3, 20)
        self.assertAllEqual(lengths[returns == 0], np.full((returns == 0).sum(), 20))
        self.assertBetween(returns.mean(), 0.1, 1.0)

    def test_it_does_not_depend_on_the_workers(self):
        one = play_episodes(Corridor, self.greedy, episodes=5, seed=1)
        two = play_episodes(Corridor, self.greedy, episodes=5, seed=1, workers=2)
        self.assertAllEqual(one, two)

    def test_a_longer_game_counts_as_it_stands(self):
        returns, lengths = play_episodes(Corridor, self.policy, episodes=5, seed=1, max_steps=2)
        self.assertAllEqual(returns, np.zeros(5))
        self.assertAllEqual(lengths, np.full(5, 2))

    def test_some_at_a_time_are_the_same_games(self):
        """Each in a fresh environment with its own seed."""
        seen = []

        class Seeded(Noisy):
            def reset(self, *, seed=None, options=None):
                seen.append((id(self), seed))
                return super().reset(seed=seed, options=options)

        whole = play_games(Seeded, self.greedy, episodes=7, seed=1)
        seeds = [seed for _, seed in seen]
        self.assertLen(set(seeds), 7)
        seen.clear()
        parts = play_games(Seeded, self.greedy, episodes=7, seed=1, at_once=3)
        self.assertEqual([seed for _, seed in seen], seeds)
        self.assertAllEqual(parts.returns, whole.returns)
        self.assertAllEqual(parts.lengths, whole.lengths)
        self.assertGreater(np.std(whole.returns), 0)

    def test_games_that_do_not_end_are_counted(self):
        class Endless(Corridor):
            limit = np.inf

            def step(self, action):
                return super().step(0)

        options = dict(episodes=3, seed=1, max_steps=play.longest_game(Endless) // 100)
        games = play_games(Endless, self.greedy, at_once=2, **options)
        self.assertEqual(games.cut, 3)
        self.assertAllEqual(games.lengths, np.full(3, 300))
        self.assertEqual(play_games(Corridor, self.greedy, episodes=2, max_steps=20).cut, 0)

    def test_the_longest_game_is_longer_than_those_of_known_environments(self):
        limits = {
            name: play.longest_game(lambda name=name: make_env(name))
            for name in ("CartPole-v1", "Breakout-ramNoFrameskip-v4", "ALE/Pong-v5")
        }
        # ALE counts frames, of which a step of NoFrameskip is one.
        expected = {name: 30_000 if name == "CartPole-v1" else 108_000 for name in limits}
        self.assertEqual(limits, expected)

    def test_it_is_broken_off(self):
        asked = iter([False, False, True])
        self.assertIsNone(
            play_games(Corridor, self.greedy, episodes=2, should_stop=lambda: next(asked))
        )

    def fitting(self, env_fn, count, network=NETWORK):
        return play.games_that_fit(env_fn, count, self.greedy.info, network)

    def test_attention_counts(self):
        network = NetworkConfig(context=1_000, heads=5)
        with mock.patch.object(memory, "available", return_value=10**9):
            count, size = self.fitting(Corridor, 100, network)
        # Twice [5, 1000, 1000] of 4 bytes.
        self.assertAlmostEqual(size, 40 * 10**6, delta=2 * 10**6)
        self.assertEqual(count, int(0.8 * 10**9 / size))

    def test_as_many_copies_as_fit(self):
        with mock.patch.object(memory, "available", return_value=200 * 10**6):
            count, size = self.fitting(Heavy, 100)
        self.assertBetween(size, 39 * 10**6, 45 * 10**6)
        self.assertEqual(count, int(0.8 * 200 / (size / 1e6)))
        with mock.patch.object(memory, "available", return_value=20 * 10**6):
            self.assertEqual(self.fitting(Heavy, 100)[0], 1)
        self.assertEqual(self.fitting(Corridor, 100)[0], 100)
        with mock.patch.object(memory, "available", return_value=None):
            self.assertEqual(self.fitting(Heavy, 100)[0], 100)
        self.assertEqual(Heavy.alive, 0)

    def test_what_fails_when_it_is_made_is_left_to_playing(self):
        for error in (ZeroDivisionError, SystemExit):
            env_fn = mock.Mock(side_effect=error)
            self.assertEqual(self.fitting(env_fn, 9), (9, 0))

    def test_playing_is_calling_the_policy(self):
        _, lengths = play_episodes(Corridor, self.greedy, episodes=1, seed=1)
        vec = make_vec_env(Corridor, self.greedy.info, 1, 0, workers=0)
        self.greedy.reset(num_envs=1)
        steps = 0
        while not vec.out["ended"][0]:
            vec.step(self.greedy(vec.out["obs"], first=vec.out["first"]))
            steps += 1
        self.assertEqual(steps, lengths[0])

    def test_pictures_of_floats_give_no_film(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(UsageError, "pictures of float64, not of uint8"):
                play.film(lambda: Blind(np.ones((16, 16, 3))), self.policy, folder)

    def test_a_film_has_a_speed_if_the_environment_has_none(self):
        for fps, known in ((None, 30), (12, 12), ("fast", 30), (0, 30), (np.nan, 30)):
            env = Blind()
            env.metadata = dict(env.metadata, render_fps=fps)
            self.assertEqual(play.fps_of(env), known)

    def test_an_environment_that_draws_nothing_gives_no_film(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "before.mp4").write_bytes(b"a film of before")
            with self.assertRaisesRegex(UsageError, "No film was written: .* leave out --video"):
                play.film(lambda: Blind(), self.policy, folder)

    def test_global_generators_are_put_back(self):
        random.seed(1)
        np.random.seed(1)
        expected = random.random(), np.random.rand()
        random.seed(1)
        np.random.seed(1)
        with self.assertRaises(ZeroDivisionError), periodic.generators_kept():
            random.random()
            np.random.rand()
            raise ZeroDivisionError
        self.assertEqual((random.random(), np.random.rand()), expected)


if __name__ == "__main__":
    unittest.main()
