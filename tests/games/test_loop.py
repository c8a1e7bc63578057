"""The one training loop: how it ends, what it saves and when; and snapshots of a run."""

import math
import unittest
from typing import NamedTuple

import numpy as np

from tests.games.corridor import Corridor, Stateful
from tfdqt.backend import tf
from tfdqt.errors import Diverged, EnvFailure, UsageError
from tfdqt.games import loop
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.envs import env_info
from tfdqt.games.loop import Evaluation, Progress, train_loop

INFO = env_info(Corridor())


class Metrics(NamedTuple):
    step: int
    loss: float = 0.5
    grad_norm: float = 1.0
    updates: int = 1


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


class Iterations(unittest.TestCase):
    """Iterations of 8 steps, whose state is the number of iterations."""

    def setUp(self):
        super().setUp()
        self.logged = []
        self.kept = []

    def iterate(self, state, progress):
        progress = progress.after(8, [])
        return state + 1, progress, Metrics(progress.step)

    def log(self, metrics, **more):
        self.logged.append((metrics.step, *more.values()) if more else metrics.step)

    def snapshot(self, state, progress, envs=True):
        return dict(state=state, step=progress.step, envs=envs)

    def save(self, step, make, *, last):
        self.kept.append((step, make(), last))

    def run_loop(self, iterate=None, total=24, **more):
        more = dict(log=self.log, save=self.save, **more)
        return train_loop(iterate or self.iterate, self.snapshot, 0, Progress(), total, **more)


class TestLoop(Iterations):
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


class TestDiverging(Iterations):
    def diverge(self, **numbers):
        """Iterations of which the third gives these metrics."""

        def iterate(state, progress):
            state, progress, metrics = self.iterate(state, progress)
            return state, progress, metrics._replace(**numbers) if state == 3 else metrics

        return self.run_loop(iterate, total=40)

    def test_a_loss_or_gradient_that_is_not_finite_ends_it_at_the_last_finite_state(self):
        for numbers in (dict(loss=math.nan), dict(loss=-math.inf), dict(grad_norm=math.inf)):
            with self.subTest(numbers):
                self.kept.clear()
                self.logged.clear()
                with self.assertRaisesRegex(Diverged, "behind step 16 .*--learning-rate"):
                    self.diverge(**numbers)
                self.assertEqual(self.kept[-1], (16, dict(state=2, step=16, envs=False), True))
                self.assertEqual(self.logged, [8, 16])

    def test_before_the_first_update_there_is_no_loss(self):
        _, progress = self.diverge(loss=math.nan, grad_norm=math.nan, updates=0)
        self.assertEqual(progress.step, 40)

    def test_an_iteration_that_learned_nothing_has_no_loss(self):
        def iterate(state, progress):
            _, progress, metrics = self.iterate(state, progress)
            return state, progress, metrics._replace(loss=math.nan)

        self.assertEqual(self.run_loop(iterate)[1].step, 24)


class TestEvaluations(Iterations):
    """A run of five iterations of 8 steps that is evaluated every 16."""

    def setUp(self):
        super().setUp()
        self.played = []

    def play(self, net, state, progress):
        self.played.append((net, state, progress.step))
        return 10.0 * state, False

    def evaluated(self, play=None, total=40, **more):
        evaluation = Evaluation(16, play or self.play)
        return self.run_loop(total=total, evaluation=evaluation, net="net", **more)

    def test_they_come_every_so_many_steps_and_at_the_end(self):
        self.evaluated()
        self.assertEqual(self.played, [("net", 2, 16), ("net", 4, 32), ("net", 5, 40)])
        self.assertEqual(self.logged, [8, (16, 20.0), 24, (32, 40.0), (40, 50.0)])

    def test_the_last_checkpoint_is_written_before_the_last_one(self):
        def play(net, state, progress):
            if state == 5:
                self.assertEqual(self.kept[-1][::2], (40, True))
            return self.play(net, state, progress)

        self.evaluated(play)
        self.assertEqual(len(self.played), 3)

    def test_a_score_ends_it(self):
        state, progress = self.evaluated(lambda net, state, progress: (7.0, state == 4))
        self.assertEqual((state, progress.step), (4, 32))
        self.assertEqual(self.kept[-1][::2], (32, True))
        self.assertEqual(self.logged[-1], (32, 7.0))

    def test_what_was_learned_is_saved_before_it_fails(self):
        for error in (EnvFailure("fell over"), ZeroDivisionError(), SystemExit(0)):
            with self.subTest(error=type(error)):

                def play(net, state, progress, error=error):
                    raise error

                self.kept.clear()
                with self.assertRaises(type(error)):
                    self.evaluated(play)
                step, tree, last = self.kept[-1]
                self.assertEqual((step, tree["state"], tree["envs"], last), (16, 2, True, True))

    def test_one_that_is_missing_is_made_first(self):
        with self.assertRaises(ZeroDivisionError):
            self.evaluated(lambda net, state, progress: 1 / 0)
        _, saved, _ = self.kept[-1]
        more = dict(log=self.log, save=self.save, saved=saved)
        evaluation = Evaluation(16, self.play)
        snapshot = self.snapshot
        for given, logged in ((evaluation, (16, 20.0)), (None, 16)):
            self.logged.clear()
            train_loop(self.iterate, snapshot, 2, Progress(16), 24, evaluation=given, **more)
            self.assertEqual(self.logged[0], logged)
        self.assertEqual([step for _, _, step in self.played], [16, 24])

    def test_a_score_that_was_reached_ends_it_again(self):
        self.evaluated(lambda net, state, progress: (7.0, True))
        saved = self.kept[-1][1]
        evaluation = Evaluation(16, lambda net, state, progress: (7.0, True))
        state, progress = train_loop(
            self.iterate, self.snapshot, 2, Progress(16), 24, evaluation=evaluation, saved=saved
        )
        self.assertEqual((state, progress.step), (2, 16))

    def test_one_that_is_broken_off_is_missing(self):
        stop = []

        def play(net, state, progress):
            stop.append(True)

        self.evaluated(play, should_stop=lambda: bool(stop))
        step, tree, last = self.kept[-1]
        self.assertEqual((step, tree["unevaluated"]["step"], last), (16, 16, True))
        self.assertEqual(self.logged, [8])


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

    def test_what_an_older_version_did_not_save_stays_as_it_starts(self):
        saved = loop.learner_snapshot(dict(a=tf.ones(2)), Progress())
        again = loop.restore_state(saved, dict(a=tf.zeros(2), b=tf.constant(3)))
        self.assertAllEqual(again["a"], tf.ones(2))
        self.assertEqual(again["b"], 3)


if __name__ == "__main__":
    unittest.main()
