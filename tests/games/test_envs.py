"""Environments: names, what a network is told of them, the stream they give, worker processes, and their states."""

import functools
import math
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import unittest

import gymnasium
import numpy as np
from gymnasium import spaces

from tfdqt.config import UsageError
from tfdqt.envs import EnvFailure, env_info, env_state, make_env
from tfdqt.runs import load_checkpoint, save_checkpoint
from tfdqt.vec_envs import REST, make_vec_env

GAMES = sorted(match[1] for match in (re.fullmatch(r"(\w+)NoFrameskip-v4", name) for name in gymnasium.registry) if match)


class Scripted(gymnasium.Env):
    """Plays episodes of (reward, terminated, truncated, lives); an observation tells episode and step, as 10 * episode + step."""

    episodes = (((1.0, False, False, 3), (2.0, True, False, 2)),
                ((3.0, False, False, 5), (4.0, False, True, 5)),
                ((5.0, False, False, 3), (6.0, False, False, 2), (7.0, False, False, 2), (8.0, True, False, 0)))
    action_space = spaces.Discrete(2, start=5)
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self):
        self.episode, self.place, self.actions = -1, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.place = (self.episode + 1) % len(self.episodes), 0
        return self.shown(), {}

    def step(self, action):
        self.actions.append(action)
        reward, terminated, truncated, lives = self.episodes[self.episode][self.place]
        self.place += 1
        return self.shown(), reward, terminated, truncated, dict(lives=lives)

    def shown(self):
        return np.array([10 * self.episode + self.place], np.float32)


class Remembering(Scripted):
    """One with a state of its own."""

    def get_state(self):
        return dict(episode=self.episode, place=np.array([self.place]))

    def set_state(self, state):
        self.episode, self.place = state["episode"], int(state["place"][0])


class Failing(Scripted):
    """Fails in the way it is told to."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def step(self, action):
        if self.fault == "raises":
            raise ZeroDivisionError("the ball left the field")
        if self.fault == "reward":
            return self.shown(), math.nan, False, False, {}
        return np.array([np.inf], np.float32), 0.0, False, False, {}


class FailingReset(Scripted):

    def reset(self, *, seed=None, options=None):
        raise ZeroDivisionError("no ball")


class FailingState(Remembering):

    def get_state(self):
        raise ZeroDivisionError("no memory")


class Spaces(gymnasium.Env):
    """Any spaces; shows what `show` says and remembers the actions that it got."""

    def __init__(self, obs, actions, show=None):
        self.observation_space, self.action_space, self.show, self.actions = obs, actions, show, []

    def reset(self, *, seed=None, options=None):
        return self.show, {}

    def step(self, action):
        self.actions.append(action)
        return self.show, 0.0, False, False, {}


def vec_of(test, env_fn, num_envs=1, seed=0, **options):
    """Environments that are closed behind the test."""
    vec = make_vec_env(env_fn, env_info(env_fn()), num_envs, seed, **options)
    test.addCleanup(vec.close)
    return vec


def looks(vec):
    return {key: np.array(value) for key, value in vec.out.items() if key != "action"}


def follow(vec, actions):
    """What `vec` shows now and after each vector of actions: dict of [S + 1, N, ...]."""
    seen = [looks(vec)]
    for action in actions:
        vec.step(action)
        seen.append(looks(vec))
    return {key: np.stack([one[key] for one in seen]) for key in seen[0]}


class Names(unittest.TestCase):

    def test_all_old_names_exist(self):
        self.assertGreater(len(GAMES), 50)
        names = [f"{game}-ram{kind}-{version}" for game in GAMES for kind in ("", "Deterministic", "NoFrameskip")
                 for version in ("v0", "v4")]
        self.assertEqual([name for name in names if name not in gymnasium.registry], [])

    def test_no_other_ram_names(self):
        pattern = re.compile(rf"({'|'.join(GAMES)})-ram(Deterministic|NoFrameskip)?-v[04]")
        odd = [name for name in gymnasium.registry if "-ram" in name and not pattern.fullmatch(name)]
        self.assertEqual(odd, [])

    def test_frameskip_and_sticky_actions(self):
        for name, frameskip, sticky in (
                ("Breakout-ram-v0", (2, 5), 0.25), ("Breakout-ram-v4", (2, 5), 0.0), ("Breakout-ramDeterministic-v0", 4, 0.25),
                ("Breakout-ramDeterministic-v4", 4, 0.0), ("Breakout-ramNoFrameskip-v0", 1, 0.25),
                ("Breakout-ramNoFrameskip-v4", 1, 0.0), ("SpaceInvaders-ramDeterministic-v4", 3, 0.0),
                ("SpaceInvaders-ram-v0", (2, 5), 0.25), ("ALE/Breakout-v5", 4, 0.25)):
            with self.subTest(name=name):
                env = make_env(name).unwrapped
                self.addCleanup(env.close)
                self.assertEqual(env._frameskip, frameskip)
                self.assertEqual(env.ale.getFloat("repeat_action_probability"), sticky)

    def test_breakout(self):
        env = make_env("Breakout-ram-v0")
        self.addCleanup(env.close)
        info = env_info(env)
        self.assertEqual(info, ("Breakout-ram-v0", (128,), "uint8", (), 4))
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
                (make_env("CartPole-v1"), ("CartPole-v1", (4,), "float32", (), 2)),
                (make_env("FrozenLake-v1"), ("FrozenLake-v1", (1,), "int32", (16,), 4)),
                (Spaces(spaces.MultiDiscrete([3, 5]), spaces.Discrete(7)), ("Spaces", (2,), "int32", (3, 5), 7)),
                (Spaces(spaces.Discrete(9, start=-4), spaces.Discrete(3, start=1)), ("Spaces", (1,), "int32", (9,), 3)),
                (Spaces(spaces.Box(0, 9, (3,), np.int64), spaces.Discrete(2)), ("Spaces", (3,), "float32", (), 2)),
                (Spaces(spaces.Box(0, 255, (3,), np.uint8), spaces.Discrete(2)), ("Spaces", (3,), "uint8", (), 2))):
            with self.subTest(expected=expected):
                info = env_info(env)
                self.assertEqual(info, expected)
                self.assertEqual({type(n) for n in (*info.nvec, info.num_actions)}, {int})

    def test_name_can_be_given(self):
        self.assertEqual(env_info(make_env("CartPole-v1"), "mine").name, "mine")

    def test_what_does_not_fit(self):
        vector, two = spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(2)
        for env, words in (
                (make_env("Breakout-v0"), "images.*`-ram`"), (make_env("Breakout-v4", obs_type="grayscale"), "images"),
                (make_env("Pendulum-v1"), "Discrete actions"), (Spaces(vector, spaces.MultiDiscrete([2, 2])), "Discrete actions"),
                (Spaces(spaces.Dict(a=vector), two), "FlattenObservation"), (Spaces(spaces.Tuple([two, two]), two), "Flatten"),
                (Spaces(spaces.MultiDiscrete([[2, 3], [4, 5]]), two), "Flatten"), (Spaces(spaces.MultiBinary(3), two), "Flatten"),
                (Spaces(spaces.Text(3), two), "Flatten")):
            with self.subTest(words=words), self.assertRaisesRegex(UsageError, words):
                env_info(env)


class Stream(unittest.TestCase):

    def test_terminated_truncated_and_resets(self):
        env = Scripted()
        vec = make_vec_env(lambda: env, env_info(env), 1, 0, workers=0)
        seen = follow(vec, np.array([[0], [1], [0], [1], [0], [1], [0]]))
        # Two episodes of two steps, the first terminated, the second truncated; a step that only resets is behind each.
        for key, expected in dict(
                obs=[0, 1, 2, 10, 11, 12, 20, 21], first=[1, 0, 0, 1, 0, 0, 1, 0], reward=[0, 1, 2, 0, 3, 4, 0, 5],
                discount=[1, 1, 0, 1, 1, 1, 1, 1], ended=[0, 0, 1, 0, 0, 1, 0, 0], ret=[0, 1, 3, 0, 3, 7, 0, 5],
                length=[0, 1, 2, 0, 1, 2, 0, 1]).items():
            np.testing.assert_array_equal(seen[key].reshape(-1), expected, err_msg=key)
        self.assertEqual(env.actions, [5, 6, 6, 5, 5])  # the space starts at 5; none is taken in a reset

    def test_lost_lives(self):
        # In the third episode lives go 3, 2, 2, 0: one is lost at its second step and the rest at its last.
        for life_loss_ends, discounts in ((False, [1, 1, 1, 1, 0]), (True, [1, 1, 0, 1, 0])):
            with self.subTest(life_loss_ends=life_loss_ends):
                vec = vec_of(self, Scripted, workers=0, life_loss_ends=life_loss_ends)
                seen = {key: value[6:, 0] for key, value in follow(vec, np.zeros((10, 1), int)).items()}
                np.testing.assert_array_equal(seen["obs"][:, 0], [20, 21, 22, 23, 24])
                np.testing.assert_array_equal(seen["discount"], discounts)
                np.testing.assert_array_equal(seen["first"], [1, 0, 0, 0, 0])
                np.testing.assert_array_equal(seen["ended"], [0, 0, 0, 0, 1])
                np.testing.assert_array_equal(seen["ret"], [0, 5, 11, 18, 26])

    def test_lives_of_a_new_game_are_no_loss(self):
        # The first episode ends with 2 lives, the second is played with 5, the third begins with 3.
        vec = vec_of(self, Scripted, workers=0, life_loss_ends=True)
        np.testing.assert_array_equal(follow(vec, np.zeros((7, 1), int))["discount"][:, 0], [1, 1, 0, 1, 1, 1, 1, 1])

    def test_spaces_that_do_not_start_at_zero(self):
        env = Spaces(spaces.Discrete(9, start=-4), spaces.Discrete(3, start=1), show=-2)
        vec = make_vec_env(lambda: env, env_info(env), 1, 0, workers=0)
        seen = follow(vec, np.array([[0], [2]]))
        np.testing.assert_array_equal(seen["obs"].reshape(-1), [2, 2, 2])
        self.assertEqual(seen["obs"].dtype, np.int32)
        self.assertEqual(env.actions, [1, 3])

    def test_an_environment_at_rest_stays_as_it_is(self):
        make = functools.partial(make_env, "CartPole-v1")
        moving, resting = vec_of(self, make, 2, 7, workers=0), vec_of(self, make, 2, 7, workers=0)
        for action in (0, 1, 0):
            moving.step(np.array([action, 1]))
            before = looks(resting)
            resting.step(np.array([action, REST]))
            for key, value in looks(resting).items():
                np.testing.assert_array_equal(value[0], looks(moving)[key][0], err_msg=key)
                np.testing.assert_array_equal(value[1], before[key][1], err_msg=key)

    def test_multi_discrete_with_starts(self):
        env = Spaces(spaces.MultiDiscrete([3, 5], start=[1, 10]), spaces.Discrete(2), show=np.array([3, 10]))
        vec = make_vec_env(lambda: env, env_info(env), 1, 0, workers=0)
        np.testing.assert_array_equal(vec.out["obs"], [[2, 0]])

    def test_seeds(self):
        make = functools.partial(make_env, "CartPole-v1")
        first, same, other = (looks(vec_of(self, make, 3, seed, workers=0))["obs"] for seed in (7, 7, 8))
        np.testing.assert_array_equal(first, same)
        self.assertEqual(len({row.tobytes() for row in np.concatenate([first, other])}), 6)


class Workers(unittest.TestCase):

    def test_number_of_workers_changes_nothing(self):
        actions = np.random.default_rng(0).integers(2, size=(80, 3))
        streams = [follow(vec_of(self, functools.partial(make_env, "CartPole-v1"), 3, 7, workers=workers), actions)
                   for workers in (0, 1, 2)]
        self.assertGreater(streams[0]["first"][1:].sum(), 3)
        for stream in streams[1:]:
            for key, value in streams[0].items():
                np.testing.assert_array_equal(stream[key], value, err_msg=key)

    def test_states_cross_processes(self):
        make = functools.partial(make_env, "FrozenLake-v1")
        actions = np.random.default_rng(0).integers(4, size=(40, 3))
        here, there = vec_of(self, make, 3, 7, workers=0), vec_of(self, make, 3, 99, workers=2)
        follow(here, actions[:20])
        there.restore(here.states())
        for value, expected in zip(follow(there, actions[20:]).values(), follow(here, actions[20:]).values()):
            np.testing.assert_array_equal(value, expected)

    def test_close_ends_the_processes(self):
        before = multiprocessing.active_children()
        vec = vec_of(self, functools.partial(make_env, "CartPole-v1"), 2, workers=2)
        self.assertEqual(len(multiprocessing.active_children()), len(before) + 2)
        vec.close()
        vec.close()  # a second time does nothing
        self.assertEqual(len(multiprocessing.active_children()), len(before))


class Failures(unittest.TestCase):

    def test_environment_that_fails(self):
        for workers in (0, 1):
            for fault, words in (("raises", "the ball left the field"), ("reward", "reward.*nan"), ("obs", "observation.*inf")):
                with self.subTest(fault=fault, workers=workers):
                    vec = vec_of(self, functools.partial(Failing, fault), 1, workers=workers)
                    with self.assertRaisesRegex(EnvFailure, words):
                        vec.step(np.zeros(1, int))

    def test_nan_observation(self):
        env = Spaces(Scripted.observation_space, spaces.Discrete(2), show=np.array([np.nan], np.float32))
        with self.assertRaisesRegex(EnvFailure, "observation"):
            make_vec_env(lambda: env, env_info(env), 1, 0, workers=0)

    def test_environment_that_cannot_start(self):
        before = multiprocessing.active_children()
        for workers in (0, 1):
            with self.subTest(workers=workers), self.assertRaisesRegex(EnvFailure, "no ball"):
                make_vec_env(FailingReset, env_info(FailingReset()), 1, 0, workers=workers)
        self.assertEqual(len(multiprocessing.active_children()), len(before))

    def test_state_that_fails(self):
        for workers in (0, 1):
            with self.subTest(workers=workers), self.assertRaisesRegex(EnvFailure, "no memory"):
                vec_of(self, FailingState, workers=workers).states()

    def test_killed_worker_is_no_hang(self):
        before = {process.pid for process in multiprocessing.active_children()}
        vec = vec_of(self, functools.partial(make_env, "CartPole-v1"), 2, workers=2)
        ours = [process for process in multiprocessing.active_children() if process.pid not in before]
        os.kill(ours[0].pid, signal.SIGKILL)
        raised = []

        def steps():
            try:
                vec.step(np.zeros(2, int))
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=steps, daemon=True)
        thread.start()
        thread.join(60)
        self.assertFalse(thread.is_alive())
        self.assertEqual([type(error) for error in raised], [EnvFailure])
        self.assertIn("exit code -9", str(raised[0]))


class States(unittest.TestCase):

    def check(self, env_fn, num_actions, *, before, behind, num_envs=2):
        """A second vector goes on from the states of the first, read back from a checkpoint."""
        rng = np.random.default_rng(0)
        first, second = vec_of(self, env_fn, num_envs, 3, workers=0), vec_of(self, env_fn, num_envs, 4, workers=0)
        follow(first, rng.integers(num_actions, size=(before, num_envs)))
        for _ in range(behind):  # the hardest place: an episode has just ended
            if first.out["ended"].any():
                break
            first.step(rng.integers(num_actions, size=num_envs))
        self.assertTrue(first.out["ended"].any())
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(folder, 1, first.states())
            states = load_checkpoint(folder)[0]
        actions = rng.integers(num_actions, size=(behind, num_envs))
        follow(second, actions[:7])
        second.restore(states)
        expected, found = follow(first, actions), follow(second, actions)
        self.assertGreater(expected["first"][2:].sum(), 0)
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)

    def test_cartpole(self):
        self.check(functools.partial(make_env, "CartPole-v1"), 2, before=30, behind=100)

    def test_cartpole_without_velocities(self):
        self.check(functools.partial(make_env, "CartPolePositions-v1"), 2, before=30, behind=100)
        whole, part = make_env("CartPole-v1"), make_env("CartPolePositions-v1")
        for env in (whole, part):
            self.addCleanup(env.close)
        np.testing.assert_array_equal(whole.reset(seed=1)[0][[0, 2]], part.reset(seed=1)[0])
        np.testing.assert_array_equal(whole.step(1)[0][[0, 2]], part.step(1)[0])

    def test_frozen_lake(self):
        self.check(functools.partial(make_env, "FrozenLake-v1"), 4, before=20, behind=60)

    def test_breakout(self):
        self.check(functools.partial(make_env, "Breakout-ram-v0"), 4, before=100, behind=500, num_envs=1)

    def test_the_action_that_sticks_is_part_of_the_state(self):
        """ALE's own state leaves it out, so a game restored beside an unlucky moment went on with another paddle."""
        for before in range(40, 90, 5):
            self.check(functools.partial(make_env, "Breakout-ram-v0"), 4, before=before, behind=300, num_envs=1)

    def test_actions_stick_as_often_as_they_should(self):
        for name, often in (("Breakout-ramNoFrameskip-v0", 0.25), ("Breakout-ramNoFrameskip-v4", 0.0)):
            env, stuck = make_env(name), 0
            env.reset(seed=0)
            for step in range(2_000):
                before, env_action = env.unwrapped.ale.last, 2 + step % 2
                if env.step(env_action)[2]:
                    env.reset()
                    continue
                wanted = env.unwrapped._action_set[env_action]
                self.assertIn(env.unwrapped.ale.last, (before, wanted))
                stuck += env.unwrapped.ale.last != wanted
            # The wanted action alternates, so what sticks is wrong only if the action before it was right: q = p (1 - q).
            self.assertAlmostEqual(stuck / 2_000, often / (1 + often), delta=0.03)
            env.close()

    def test_a_game_made_without_us_has_no_state(self):
        env = gymnasium.make("Breakout-ram-v0")
        self.addCleanup(env.close)
        env.reset(seed=0)
        self.assertIsNone(env_state(env))

    def test_state_of_ones_own(self):
        self.check(Remembering, 2, before=7, behind=20, num_envs=1)

    def test_state_in_the_middle_of_a_game(self):
        # Random actions never bring MountainCar up: what ends its episodes is the limit of 200 steps, 110 after the restore.
        for name, num_actions, before in (("CartPole-v1", 2, 5), ("MountainCar-v0", 3, 90), ("Breakout-ram-v0", 4, 90)):
            with self.subTest(name=name):
                make, actions = functools.partial(make_env, name), np.random.default_rng(1).integers(num_actions, size=(120, 2))
                first, second = vec_of(self, make, 2, 3, workers=0), vec_of(self, make, 2, 4, workers=0)
                follow(first, actions[:before])
                self.assertEqual(first.out["length"].tolist(), [before] * 2)
                second.restore(first.states())
                expected, found = follow(first, actions), follow(second, actions)
                self.assertTrue(name != "MountainCar-v0" or expected["ended"][110].all())
                for key, value in expected.items():
                    np.testing.assert_array_equal(found[key], value, err_msg=key)

    def test_no_state_is_a_fresh_episode(self):
        vec = vec_of(self, Scripted, workers=0)
        follow(vec, np.zeros((5, 1), int))
        self.assertEqual(vec.states(), [None])
        vec.restore([None])  # the second episode had ended; the third begins
        self.assertEqual({key: value.reshape(-1).tolist() for key, value in looks(vec).items()},
                         dict(obs=[20], first=[True], reward=[0], discount=[1], ended=[False], ret=[0], length=[0]))
        vec.step([0])
        self.assertEqual([vec.out["obs"][0, 0], vec.out["first"][0], vec.out["length"][0]], [21, False, 1])

    def test_unknown_wrapper_has_no_state(self):
        env = make_env("CartPole-v1")
        self.addCleanup(env.close)
        self.assertIsNone(env_state(gymnasium.wrappers.RecordEpisodeStatistics(env)))


if __name__ == "__main__":
    unittest.main()
