"""The one training loop: how it ends, what it saves and when; and snapshots of a run."""

import unittest

import numpy as np

from tests.games.corridor import Corridor, Stateful
from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games import loop
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.envs import env_info
from tfdqt.games.loop import Progress, train_loop

INFO = env_info(Corridor())


class TestProgress(unittest.TestCase):
    def test_games_are_counted_and_the_last_hundred_remembered(self):
        progress = Progress().after(8, []).after(8, [(1.0, 3), (2.0, 5)])
        self.assertEqual(progress, Progress(16, 2, (1.0, 2.0)))
        self.assertEqual(progress.metrics(), (16, 2, 1.5))
        progress = progress.after(8, [(float(i), 1) for i in range(99)])
        self.assertEqual((progress.games, len(progress.recent)), (101, 100))
        self.assertEqual(progress.recent[:2], (2.0, 0.0))

    def test_no_game_has_no_mean(self):
        self.assertTrue(np.isnan(Progress(8).mean_return()))

    def test_it_comes_back_from_a_snapshot(self):
        progress = Progress(8, 1, (2.5,))
        saved = dict(progress=dict(progress._asdict(), recent=[2.5]))
        self.assertEqual(loop.restore_progress(saved), progress)
        self.assertEqual(loop.restore_progress(None), Progress())


class TestLoop(unittest.TestCase):
    """Iterations of 8 steps, whose state is the number of iterations."""

    def setUp(self):
        super().setUp()
        self.logged = []
        self.kept = []

    def iterate(self, state, progress):
        progress = progress.after(8, [])
        return state + 1, progress, progress.step

    def snapshot(self, state, progress, envs=True):
        return dict(state=state, step=progress.step, envs=envs)

    def save(self, step, make, *, last):
        self.kept.append((step, make(), last))

    def run_loop(self, iterate=None, total=24, **more):
        more = dict(log=self.logged.append, save=self.save, **more)
        return train_loop(iterate or self.iterate, self.snapshot, 0, Progress(), total, **more)

    def test_until_all_steps_are_done(self):
        state, progress = self.run_loop(total=20)
        self.assertEqual((state, progress.step), (3, 24))
        self.assertEqual(self.logged, [8, 16, 24])
        self.assertEqual(
            [(step, last) for step, _, last in self.kept], [(8, False), (16, False), (24, True)]
        )
        self.assertEqual(self.kept[-1][1], dict(state=3, step=24, envs=True))

    def test_until_it_is_to_stop(self):
        answers = iter([False, True])
        state, progress = self.run_loop(should_stop=lambda: next(answers))
        self.assertEqual((state, progress.step), (2, 16))
        self.assertEqual([(step, last) for step, _, last in self.kept], [(8, False), (16, True)])

    def test_a_stop_of_any_process_stops_this_one(self):
        _, progress = self.run_loop(should_stop=lambda: False, any_of=lambda stop: True)
        self.assertEqual(progress.step, 8)

    def test_an_iteration_without_news_is_neither_logged_nor_saved(self):
        silent = iter([True, False, True, False, True, False])

        def iterate(state, progress):
            if next(silent):
                return state, progress, None
            return self.iterate(state, progress)

        self.run_loop(iterate)
        self.assertEqual(self.logged, [8, 16, 24])
        self.assertEqual([step for step, _, _ in self.kept], [8, 16, 24])

    def test_a_stop_without_news_is_saved(self):
        self.run_loop(lambda state, progress: (state, progress, None), should_stop=lambda: True)
        self.assertEqual(self.kept, [(0, dict(state=0, step=0, envs=True), True)])

    def test_when_an_environment_fails_the_state_before_that_is_saved_without_theirs(self):
        def iterate(state, progress):
            if progress.step == 16:
                raise EnvFailure("the robot fell over")
            return self.iterate(state, progress)

        with self.assertRaisesRegex(EnvFailure, "fell over"):
            self.run_loop(iterate, total=80)
        self.assertEqual(self.kept[-1], (16, dict(state=2, step=16, envs=False), True))
        self.assertEqual(self.logged, [8, 16])

    def test_when_a_state_can_not_be_read_the_rest_is_saved(self):
        def snapshot(state, progress, envs=True):
            if envs and progress.step == 16:
                raise EnvFailure("no memory")
            return dict(step=progress.step, envs=envs)

        with self.assertRaisesRegex(EnvFailure, "no memory"):
            train_loop(self.iterate, snapshot, 0, Progress(), 80, save=self.save)
        self.assertEqual(
            self.kept, [(8, dict(step=8, envs=True), False), (16, dict(step=16, envs=False), False)]
        )

    def test_nothing_is_to_be_done(self):
        state, progress = train_loop(
            self.iterate, self.snapshot, 5, Progress(80), 80, save=self.save
        )
        self.assertEqual((state, progress.step, self.kept), (5, 80, []))


class TestSnapshots(tf.test.TestCase):
    cfg = DQNConfig(num_envs=3)

    def stepper(self, env_fn, seed):
        made = loop.make_stepper(env_fn, INFO, 2, 3, seed=seed)
        self.addCleanup(made.vec.close)
        return made

    def walk(self, stepper, steps):
        """Random actions by the stepper's generator: all that is seen."""
        seen = []
        for _ in range(steps):
            action = stepper.rng.integers(2, size=3)
            stepper.vec.step(action)
            loop.push(stepper.window, stepper.vec.out["obs"], stepper.vec.out["first"], action)
            seen.append([part.copy() for part in stepper.window])
        return seen

    def test_a_stepper_goes_on_as_an_unbroken_one(self):
        whole = self.stepper(Stateful, 1)
        self.walk(whole, 30)
        saved = loop.run_snapshot(dict(w=tf.ones(2)), Progress(90), whole, more="beside")
        self.assertEqual(saved["more"], "beside")
        self.assertAllEqual(saved["learner"], [[1, 1]])
        self.assertEqual(saved["progress"], Progress(90)._asdict())
        expected = self.walk(whole, 30)
        other = self.stepper(Stateful, 2)
        self.walk(other, 5)
        loop.restore_stepper(saved, other)
        for one, two in zip(expected, self.walk(other, 30)):
            self.assertAllEqual(one[0], two[0])
            self.assertAllEqual(one[1], two[1])
            self.assertAllEqual(one[2], two[2])

    def test_environments_without_a_state_start_afresh(self):
        stepper = self.stepper(Stateful, 1)
        self.walk(stepper, 7)
        saved = loop.run_snapshot((), Progress(), stepper, envs=False)
        self.assertEqual(saved["envs"], [None] * 3)
        with loop.stepping(Corridor, INFO, 2, self.cfg, seed=3, workers=0, saved=saved) as other:
            self.assertAllEqual(other.window.obs[:, -1], np.zeros((3, 1)))
            self.assertAllEqual(other.window.first, np.ones((3, 2)))
            self.assertEqual(other.rng.bit_generator.state, stepper.rng.bit_generator.state)

    def test_a_learner_of_other_sizes_is_refused(self):
        state = dict(a=tf.ones(2), b=tf.constant(3))
        saved = loop.learner_snapshot(state, Progress())
        again = loop.restore_state(saved, state)
        tf.nest.map_structure(self.assertAllEqual, again, state)
        with self.assertRaisesRegex(UsageError, "other sizes"):
            loop.restore_state(saved, dict(a=tf.ones(3), b=tf.constant(3)))


if __name__ == "__main__":
    unittest.main()
