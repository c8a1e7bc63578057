"""Many environments: the stream they give, worker processes, failures, and their states."""

import collections
import functools
import io
import multiprocessing
import os
import signal
import tempfile
import threading
import unittest
from contextlib import redirect_stderr

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.games.scripted import (
    Drawing,
    Failing,
    FailingReset,
    FailingState,
    Refusing,
    Remembering,
    Scripted,
    Spaces,
    follow,
    looks,
    vec_of,
)
from tests.helpers import slow
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.envs import env_info, info_of, make_env
from tfdqt.games.slots import REST
from tfdqt.games.state import NoState, env_state
from tfdqt.games.vec_envs import make_vec_env
from tfdqt.runs.checkpoint import load_checkpoint, save_checkpoint
from tfdqt.runs.cli import stop_on_signals


class Telling(gymnasium.Env):
    """Its infos, one a step, the first at the reset."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def __init__(self, infos):
        self.infos = infos

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return 0, self.infos[0]

    def step(self, action):
        self.at += 1
        return 0, 0.0, False, False, self.infos[self.at]


class Stream(unittest.TestCase):
    def test_terminated_truncated_and_resets(self):
        env = Scripted()
        vec = make_vec_env(lambda: env, env_info(env), 1, 0, workers=0)
        seen = follow(vec, np.array([[0], [1], [0], [1], [0], [1], [0]]))
        # Two episodes of two steps, the first terminated, the second truncated; a step that only
        # resets is behind each.
        for key, expected in dict(
            obs=[0, 1, 2, 10, 11, 12, 20, 21],
            first=[1, 0, 0, 1, 0, 0, 1, 0],
            reward=[0, 1, 2, 0, 3, 4, 0, 5],
            discount=[1, 1, 0, 1, 1, 1, 1, 1],
            ended=[0, 0, 1, 0, 0, 1, 0, 0],
            ret=[0, 1, 3, 0, 3, 7, 0, 5],
            length=[0, 1, 2, 0, 1, 2, 0, 1],
        ).items():
            np.testing.assert_array_equal(seen[key].reshape(-1), expected, err_msg=key)
        self.assertEqual(
            env.actions, [5, 6, 6, 5, 5]
        )  # the space starts at 5; none is taken in a reset

    def test_lost_lives(self):
        # In the third episode lives go 3, 2, 2, 0: one is lost at its second step and the rest at
        # its last.
        for life_loss_ends, discounts in ((False, [1, 1, 1, 1, 0]), (True, [1, 1, 0, 1, 0])):
            with self.subTest(life_loss_ends=life_loss_ends):
                vec = vec_of(self, Scripted, workers=0, life_loss_ends=life_loss_ends)
                seen = {
                    key: value[6:, 0] for key, value in follow(vec, np.zeros((10, 1), int)).items()
                }
                np.testing.assert_array_equal(seen["obs"][:, 0], [20, 21, 22, 23, 24])
                np.testing.assert_array_equal(seen["discount"], discounts)
                np.testing.assert_array_equal(seen["first"], [1, 0, 0, 0, 0])
                np.testing.assert_array_equal(seen["ended"], [0, 0, 0, 0, 1])
                np.testing.assert_array_equal(seen["ret"], [0, 5, 11, 18, 26])

    def test_lives_of_a_new_game_are_no_loss(self):
        # The first episode ends with 2 lives, the second is played with 5, the third begins with 3.
        vec = vec_of(self, Scripted, workers=0, life_loss_ends=True)
        np.testing.assert_array_equal(
            follow(vec, np.zeros((7, 1), int))["discount"][:, 0], [1, 1, 0, 1, 1, 1, 1, 1]
        )

    def test_lives_are_as_last_told(self):
        told = collections.OrderedDict  # of a subclass of dict they are read too
        for infos, discounts in (
            ([{}, told(lives=2), {}, told(lives=2), told(lives=1)], [1, 1, 1, 1, 0]),
            ([told(lives=3), told(lives=2), {}, dict(lives=None), {}], [1, 0, 1, 1, 1]),
        ):
            make = functools.partial(Telling, infos)
            vec = vec_of(self, make, workers=0, life_loss_ends=True)
            seen = follow(vec, np.zeros((len(infos) - 1, 1), int))
            np.testing.assert_array_equal(seen["discount"][:, 0], discounts)

    def test_a_mask_that_comes_late_is_seen_in_any_dict(self):
        infos = [{}, collections.OrderedDict(action_mask=np.array([1, 0], np.int8))]
        vec = vec_of(self, lambda: Telling(infos), workers=0)
        with self.assertRaisesRegex(EnvFailure, "legal .* only now"):
            vec.step(np.array([0]))

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
        env = Spaces(
            spaces.MultiDiscrete([3, 5], start=[1, 10]), spaces.Discrete(2), show=np.array([3, 10])
        )
        vec = make_vec_env(lambda: env, env_info(env), 1, 0, workers=0)
        np.testing.assert_array_equal(vec.out["obs"], [[2, 0]])

    def test_seeds(self):
        make = functools.partial(make_env, "CartPole-v1")
        first, same, other = (
            looks(vec_of(self, make, 3, seed, workers=0))["obs"] for seed in (7, 7, 8)
        )
        np.testing.assert_array_equal(first, same)
        self.assertEqual(len({row.tobytes() for row in np.concatenate([first, other])}), 6)


class Workers(unittest.TestCase):
    def test_a_run_repeats_if_it_draws_from_the_global_generators(self):
        shown = []
        for _ in range(2):
            vec = vec_of(self, Drawing, 2, workers=1)
            vec.step(np.zeros(2, int))
            shown.append(vec.out["obs"].tolist())
        self.assertEqual(*shown)
        self.assertNotEqual(shown[0][0], shown[0][1])

    def test_number_of_workers_changes_nothing(self):
        actions = np.random.default_rng(0).integers(2, size=(80, 3))
        streams = [
            follow(
                vec_of(self, functools.partial(make_env, "CartPole-v1"), 3, 7, workers=workers),
                actions,
            )
            for workers in (0, 1, 2)
        ]
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
        for value, expected in zip(
            follow(there, actions[20:]).values(), follow(here, actions[20:]).values()
        ):
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
            for fault, words in (
                ("raises", "the ball left the field"),
                ("ends", "StopIteration"),
                ("reward", "reward.*nan"),
                ("obs", "observation.*inf"),
            ):
                with self.subTest(fault=fault, workers=workers):
                    vec = vec_of(self, functools.partial(Failing, fault), 1, workers=workers)
                    with self.assertRaisesRegex(EnvFailure, words):
                        vec.step(np.zeros(1, int))

    def test_an_interruption_that_no_signal_made_is_its_failure(self):
        vec = vec_of(self, functools.partial(Failing, "interrupts"), 1, workers=0)
        with self.assertRaises(KeyboardInterrupt):  # whoever calls this handles no signals
            vec.step(np.zeros(1, int))
        with stop_on_signals() as stop:
            with self.assertRaisesRegex(EnvFailure, "KeyboardInterrupt"):
                vec.step(np.zeros(1, int))
            signal.raise_signal(signal.SIGINT)
            self.assertTrue(stop())
            with self.assertRaises(KeyboardInterrupt):  # a second Ctrl-C may be this one
                vec.step(np.zeros(1, int))

    def test_what_an_environment_of_ours_refuses_in_a_game_is_a_failure_too(self):
        # A run saves what was learned before a failure, and before nothing else.
        for workers in (0, 1):
            with self.subTest(workers=workers):
                vec = vec_of(self, Refusing, 1, workers=workers)
                with self.assertRaisesRegex(EnvFailure, "failed.*: there is no such level$"):
                    vec.step(np.zeros(1, int))

    def test_one_environment_in_the_place_of_many_is_refused(self):
        env = Scripted()
        with self.assertRaisesRegex(UsageError, "the same environment of .* at each call"):
            make_vec_env(lambda: env, info_of(Scripted), 2, 0, workers=0)
        with self.assertRaisesRegex(UsageError, "makes an environment, and is none itself"):
            info_of(env)

    def test_nan_observation(self):
        env = Spaces(
            Scripted.observation_space, spaces.Discrete(2), show=np.array([np.nan], np.float32)
        )
        with self.assertRaisesRegex(EnvFailure, "observation"):
            make_vec_env(lambda: env, env_info(env), 1, 0, workers=0)

    def test_environment_that_cannot_start(self):
        before = multiprocessing.active_children()
        for workers in (0, 1):
            with self.subTest(workers=workers), self.assertRaisesRegex(EnvFailure, "no ball"):
                make_vec_env(FailingReset, env_info(FailingReset()), 1, 0, workers=workers)
        self.assertEqual(len(multiprocessing.active_children()), len(before))

    def test_state_that_fails_is_none_and_told_once(self):
        for workers in (0, 1):
            with self.subTest(workers=workers), redirect_stderr(io.StringIO()) as told:
                vec = vec_of(self, FailingState, workers=workers)
                self.assertEqual([vec.states(), vec.states()], [[None], [None]])
                self.assertEqual(told.getvalue().count("no memory"), 1)

    def test_killed_worker_is_no_hang(self):
        before = {process.pid for process in multiprocessing.active_children()}
        vec = vec_of(self, functools.partial(make_env, "CartPole-v1"), 2, workers=2)
        ours = [
            process for process in multiprocessing.active_children() if process.pid not in before
        ]
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
    def check(self, env_fn, num_actions, *, before, behind, num_envs=2, info=None):
        """A second vector goes on from the states of the first, read back from a checkpoint."""
        rng = np.random.default_rng(0)
        first = vec_of(self, env_fn, num_envs, 3, info, workers=0)
        second = vec_of(self, env_fn, num_envs, 4, info, workers=0)
        follow(first, rng.integers(num_actions, size=(before, num_envs)))
        for _ in range(behind):  # the hardest moment: an episode has just ended
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
        expected = follow(first, actions)
        restored = follow(second, actions)
        self.assertGreater(expected["first"][2:].sum(), 0)
        for key, value in expected.items():
            np.testing.assert_array_equal(restored[key], value, err_msg=key)

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
        self.check(
            functools.partial(make_env, "Breakout-ram-v0"), 4, before=100, behind=500, num_envs=1
        )

    @slow("10 s: ten games of Breakout")
    def test_the_action_that_sticks_is_part_of_the_state(self):
        """ALE's own state leaves it out: an unlucky moment made a restored game go on otherwise."""
        make = functools.partial(make_env, "Breakout-ram-v0")
        info = info_of(make)  # once, for a game takes long to load
        for before in range(40, 90, 5):
            self.check(make, 4, before=before, behind=300, num_envs=1, info=info)

    def test_actions_stick_as_often_as_they_should(self):
        for name, often in (
            ("Breakout-ramNoFrameskip-v0", 0.25),
            ("Breakout-ramNoFrameskip-v4", 0.0),
        ):
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
            # The wanted action alternates, so what sticks is wrong only if the action before it was
            # right: q = p (1 - q).
            self.assertAlmostEqual(stuck / 2_000, often / (1 + often), delta=0.03)
            env.close()

    def test_a_game_made_without_us_has_no_state(self):
        env = gymnasium.make("Breakout-ram-v0")
        self.addCleanup(env.close)
        env.reset(seed=0)
        with self.assertRaisesRegex(NoState, "sticky"):
            env_state(env)

    def test_state_of_ones_own(self):
        self.check(Remembering, 2, before=7, behind=20, num_envs=1)

    def test_state_in_the_middle_of_a_game(self):
        # Random actions never bring MountainCar up: what ends its episodes is the limit of 200
        # steps, 110 after the restore.
        for name, num_actions, before in (
            ("CartPole-v1", 2, 5),
            ("MountainCar-v0", 3, 90),
            ("Breakout-ram-v0", 4, 90),
        ):
            with self.subTest(name=name):
                make, actions = (
                    functools.partial(make_env, name),
                    np.random.default_rng(1).integers(num_actions, size=(120, 2)),
                )
                first, second = (
                    vec_of(self, make, 2, 3, workers=0),
                    vec_of(self, make, 2, 4, workers=0),
                )
                follow(first, actions[:before])
                self.assertEqual(first.out["length"].tolist(), [before] * 2)
                second.restore(first.states())
                expected = follow(first, actions)
                restored = follow(second, actions)
                self.assertTrue(name != "MountainCar-v0" or expected["ended"][110].all())
                for key, value in expected.items():
                    np.testing.assert_array_equal(restored[key], value, err_msg=key)

    def test_no_state_is_a_fresh_episode(self):
        vec = vec_of(self, Scripted, workers=0)
        follow(vec, np.zeros((5, 1), int))
        vec.restore([None])  # the second episode had ended; the third begins
        self.assertEqual(
            {key: value.reshape(-1).tolist() for key, value in looks(vec).items()},
            dict(
                obs=[20], first=[True], reward=[0], discount=[1], ended=[False], ret=[0], length=[0]
            ),
        )
        vec.step([0])
        self.assertEqual(
            [vec.out["obs"][0, 0], vec.out["first"][0], vec.out["length"][0]], [21, False, 1]
        )


if __name__ == "__main__":
    unittest.main()
