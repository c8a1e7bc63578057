"""Rollouts: streams of steps as they were acted on, windows of them, and minibatches."""

import dataclasses
import unittest
from unittest import mock

import numpy as np

from tests.games.corridor import Numbered
from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.games import rollout
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import env_info
from tfdqt.games.flat import flatten_q
from tfdqt.games.loop import Progress, make_stepper
from tfdqt.games.networks import build_q
from tfdqt.games.ppo import PPOConfig
from tfdqt.games.window import Window

INFO = env_info(Numbered())
NETWORK = NetworkConfig(network="dense", context=3, hidden=(8,), prev_action=True, standardize=True)
STEPS = 32


class TestCollect(tf.test.TestCase):
    """Two rollouts in a row of four corridors, by actions that a generator draws."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.net = flatten_q(build_q(INFO, NETWORK), INFO)
        stepper = make_stepper(Numbered, INFO, NETWORK.context, 4, seed=0)
        rng = np.random.default_rng(0)
        cls.asked = []

        def decide(t, inputs):
            cls.asked.append((t, [tensor.numpy() for tensor in inputs]))
            return rng.integers(2, size=4), np.full((4, 2), t, np.float32)

        collect = rollout.make_collect(cls.net, stepper, STEPS)
        cls.before, cls.games_before = collect(decide)
        cls.asked.clear()
        cls.roll, cls.games = collect(decide)

    def test_a_rollout_is_a_stream(self):
        roll = self.roll
        before = NETWORK.context - 1
        self.assertGreater(len(self.games), 0)
        now = roll.stream.obs[:, before:-1, 0]
        behind = roll.stream.obs[:, before + 1 :, 0]
        last = roll.last[:, :-1]
        going = ~last
        # The step of a finished game only resets; every other one moves as its action says.
        self.assertAllEqual(behind[last], np.zeros(last.sum()))
        moved = np.maximum(0, now + 2 * roll.action[:, :-1] - 1)
        self.assertAllEqual(behind[going], moved[going])
        self.assertAllEqual(roll.reward[:, :-1][going], (behind == 3)[going])
        self.assertAllEqual(roll.discount[:, :-1][going], (behind != 3)[going])
        self.assertAllEqual(roll.stream.first[:, before + 1 :], last)

    def test_shapes(self):
        roll = self.roll
        self.assertEqual(roll.stream.obs.shape, (4, NETWORK.context - 1 + STEPS, 1))
        self.assertEqual(roll.stream.first.shape, (4, NETWORK.context - 1 + STEPS))
        for part in (roll.action, roll.reward, roll.discount, roll.last):
            self.assertEqual(part.shape, (4, STEPS))
        self.assertEqual(roll.outputs.shape, (4, STEPS + 1, 2))
        self.assertAllEqual(roll.outputs[:, :, 0], np.tile(np.arange(STEPS + 1), (4, 1)))

    def test_the_second_one_goes_on_where_the_first_ended(self):
        behind = NETWORK.context - 1
        for mine, theirs in zip(self.roll.stream, self.before.stream):
            self.assertAllEqual(mine[:, :behind], theirs[:, -behind:])

    def test_windows_are_those_that_were_acted_on(self):
        stream = tf.nest.map_structure(tf.constant, self.roll.stream)
        windows = rollout.windows_of(stream, tf.range(4 * STEPS), NETWORK.context)
        names = list(self.net.model.input)
        self.assertEqual([t for t, _ in self.asked], list(range(STEPS + 1)))
        for t, inputs in self.asked[:-1]:
            for name, acted_on in zip(names, inputs):
                learned_from = windows[name].numpy().reshape(4, STEPS, *acted_on.shape[1:])
                self.assertAllEqual(learned_from[:, t], acted_on, msg=f"{name} of step {t}")

    def test_games_are_told(self):
        ended = self.roll.last[:, 1:].sum() + self.before.last[:, 1:].sum()
        # The step behind a game's end is not in a rollout that ends with it.
        games = len(self.games) + len(self.games_before)
        self.assertLessEqual(abs(games - ended), 8)
        for ret, length in self.games:
            self.assertIn(ret, (0.0, 1.0))
            self.assertEqual(ret == 0, length == 20 and ret == 0)

    def test_one_that_does_not_fit_memory_is_refused(self):
        stepper = make_stepper(Numbered, INFO, NETWORK.context, 4, seed=0)
        # Three times 4 environments x 35 steps x 4 bytes.
        for room, refused in ((1_679, True), (1_680, False)):
            with mock.patch.object(memory, "available", return_value=room):
                if refused:
                    with self.assertRaisesRegex(UsageError, "4 env.*fewer --rollout-steps"):
                        rollout.make_collect(self.net, stepper, STEPS)
                else:
                    rollout.make_collect(self.net, stepper, STEPS)

    def test_layers_adapt_to_a_rollout(self):
        # To the steps of the first, not to the empty ones of a window before them.
        weights = rollout.adapted_weights(self.net, self.net.start, self.before)
        mean, scale = self.net.unflatten(weights)[1]
        cells = self.before.stream.obs[:, NETWORK.context - 1 :].reshape(-1)
        self.assertAllClose(mean, [cells.mean()], atol=1e-5)
        self.assertAllClose(scale, [cells.std()], atol=1e-5)
        self.assertAllEqual(weights[:-2], self.net.start[:-2])


class TestWindows(tf.test.TestCase):
    def test_by_hand(self):
        # Two environments with two steps before them, of three steps each.
        stream = Window(
            tf.constant([[[0], [1], [2], [3], [4]], [[10], [11], [12], [13], [14]]]),
            tf.constant([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]),
            tf.constant([[-1, 0, 1, -1, 1], [1, 1, 0, 0, 1]]),
        )
        windows = rollout.windows_of(stream, tf.constant([0, 2, 4]), 3)
        self.assertAllEqual(windows["obs"][..., 0], [[0, 1, 2], [2, 3, 4], [11, 12, 13]])
        self.assertAllEqual(windows["first"], [[1, 0, 0], [0, 1, 0], [0, 0, 0]])
        self.assertAllEqual(windows["prev_action"], [[-1, 0, 1], [-1, -1, 1], [-1, 0, 0]])


class TestRounds(tf.test.TestCase):
    cfg = PPOConfig(num_envs=4, rollout_steps=32, batch_size=64, update_epochs=3)

    def test_updates_are_counted(self):
        for steps, rollouts in ((1, 1), (128, 1), (129, 2), (1_280, 10)):
            cfg = dataclasses.replace(self.cfg, total_steps=steps)
            self.assertEqual(rollout.total_updates(cfg), 6 * rollouts)

    def test_a_run_that_ends_with_the_rollout_that_layers_adapt_to_is_refused(self):
        net = flatten_q(build_q(INFO, NETWORK), INFO)
        for steps, done, refused in ((128, 0, True), (129, 0, False), (200, 128, False)):
            cfg = dataclasses.replace(self.cfg, total_steps=steps)
            progress = Progress(done)
            if refused:
                with self.assertRaisesRegex(UsageError, "give --total-steps=129 or more"):
                    rollout.check_adapts(net, cfg, progress)
            else:
                rollout.check_adapts(net, cfg, progress)
        plain = flatten_q(build_q(INFO, dataclasses.replace(NETWORK, standardize=False)), INFO)
        rollout.check_adapts(plain, dataclasses.replace(self.cfg, total_steps=1), Progress())


class TestBatches(tf.test.TestCase):
    def test_every_step_is_learned_from_once_an_epoch(self):
        order = rollout.minibatches(np.random.default_rng(0), 12, 2, 4).numpy()
        self.assertEqual(order.shape, (6, 4))
        self.assertAllEqual(np.sort(order[:3].reshape(-1)), np.arange(12))
        self.assertAllEqual(np.sort(order[3:].reshape(-1)), np.arange(12))
        self.assertNotAllEqual(order[:3], order[3:])

    def test_batches_must_come_out_even(self):
        rollout.check_batches(PPOConfig(num_envs=4, rollout_steps=32, batch_size=64))
        for batch, better in ((100, 64), (500, 128), (63, 32)):
            cfg = PPOConfig(num_envs=4, rollout_steps=32, batch_size=batch)
            with self.assertRaisesRegex(UsageError, f"choose for example {better}"):
                rollout.check_batches(cfg)
            rollout.check_batches(dataclasses.replace(cfg, batch_size=better))


if __name__ == "__main__":
    unittest.main()
