"""PQN: targets and losses by hand, an environment with a known answer, equal runs, exact resume."""

import dataclasses
import functools
from unittest import mock

import numpy as np

from tests.games.corridor import Corridor, Failing, Forever, Numbered
from tests.games.toys import NUMBER, linear_net, without_xla
from tests.helpers import slow
from tfdqt.backend import keras, tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games import cost, pqn, rollout
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import env_info
from tfdqt.games.flat import flatten_q, mean_q
from tfdqt.games.loop import make_stepper
from tfdqt.games.networks import build_q
from tfdqt.games.pqn import PQNConfig
from tfdqt.games.rollout import Rollout
from tfdqt.games.window import Window, make_window, network_inputs, push
from tfdqt.value_scale import SCALES

NETWORK = NetworkConfig(context=2, layers=1, heads=2, width=16, layer_norm=True)
DENSE = NetworkConfig(network="dense", context=1, hidden=(32,), layer_norm=True)
CFG = PQNConfig(
    total_steps=4_096,
    num_envs=4,
    rollout_steps=32,
    batch_size=64,
    gamma=0.5,
    learning_rate=3e-3,
    final_learning_rate=3e-4,
    epsilon_end=0.5,
)


def train(env_fn=Corridor, cfg=CFG, network=DENSE, workers=0, **more):
    return pqn.pqn(env_fn, functools.partial(build_q, cfg=network), cfg, workers=workers, **more)


def rollout_of(q, action, reward, discount, last, stream=None):
    """A Rollout of tensors, whose values q are [N, T + 1, A]."""
    return Rollout(
        stream,
        tf.constant(action, tf.int32),
        tf.constant(q, tf.float32),
        tf.constant(reward, tf.float32),
        tf.constant(discount, tf.float32),
        tf.constant(np.array(last, bool)),
    )


class TestTargets(tf.test.TestCase):
    """Two steps of one environment, gamma 0.5 and lambda 0.5, worked by hand."""

    # Values of the three states: 3, 4, 8. Actions 1 and 0 are taken.
    q = [[[1, 3], [4, 0], [6, 8]]]

    def targets(self, reward=(1, 2), discount=(1, 1), last=(0, 0), **settings):
        steps = rollout_of(self.q, [[1, 0]], [reward], [discount], [last])
        cfg = PQNConfig(**dict(dict(gamma=0.5, q_lambda=0.5), **settings))
        return pqn.q_targets(steps, cfg).numpy()[0]

    def test_lambda_returns_of_the_best_values(self):
        # G_1 = 2 + 8/2 = 6 and G_0 = 1 + (4/2 + 6/2)/2 = 3.5.
        self.assertAllClose(self.targets(), [3.5, 6])
        self.assertAllClose(self.targets(q_lambda=0.0), [1 + 4 / 2, 6])
        self.assertAllClose(self.targets(q_lambda=1.0), [1 + 6 / 2, 6])

    def test_termination_and_truncation(self):
        self.assertAllClose(self.targets(discount=(0, 1)), [1, 6])
        # Cut short after step 0, whose last observation is worth 4.
        self.assertAllClose(self.targets(last=(0, 1))[0], 1 + 4 / 2)

    def test_signs_of_rewards(self):
        signed = self.targets(reward=(7, -3), reward_transform="sign")
        self.assertAllClose(signed, self.targets(reward=(1, -1)))

    def test_advantage_learning_lowers_the_target_of_the_worse_action(self):
        # Both actions taken are the best of their states; with the others, gaps of 2 and 4 count as
        # 1.
        self.assertAllClose(self.targets(advantage_learning=0.5), [3.5, 6])
        steps = rollout_of(self.q, [[0, 1]], [[1, 2]], [[1, 1]], [[0, 0]])
        cfg = PQNConfig(gamma=0.5, q_lambda=0.5, advantage_learning=0.5)
        self.assertAllClose(pqn.q_targets(steps, cfg), [[3.5 - 0.5, 6 - 0.5]])

    def test_the_gap_is_widened_on_the_scale_of_values(self):
        # G_1 = 2 + 8/2 = 6; at it, a gap of 4 is one of 1.24 on the scale of roots and counts as 1.
        steps = rollout_of(self.q, [[1, 1]], [[1, 2]], [[1, 1]], [[0, 0]])
        cfg = PQNConfig(gamma=0.5, q_lambda=0.5, advantage_learning=0.5)
        targets = pqn.q_targets(steps, cfg, scale=SCALES["sqrt"])
        self.assertAllClose(targets, [[3.5, (7**0.5 - 0.5) ** 2 - 1]])

    def test_slips_lower_the_value_of_the_state_ahead(self):
        # Mean gaps of 2 and 1 cost a tenth in the states ahead: values 3.8 and 7.9.
        slips = self.targets(target_epsilon=0.1)
        last = 2 + 7.9 / 2
        self.assertAllClose(slips, [1 + (3.8 / 2 + last / 2) / 2, last])


class TestLearn(tf.test.TestCase):
    """Q(s, a) = slopes[a] * s at every step, with two steps before the rollout of three."""

    cfg = PQNConfig(
        num_envs=2, rollout_steps=3, batch_size=2, gamma=0.5, q_lambda=0.0, huber_delta=1e6
    )
    action = np.array([[0, 1, 0], [1, 1, 0]])
    reward = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def loss(self, order, positions=3, before=(0.0, 0.0), last=((0, 0, 0), (0, 0, 0)), parts=1):
        """The loss of one update whose windows end with the steps `order`."""
        net = linear_net(3, (1.0, 2.0))
        if positions == 1:
            model = net.model
            net = flatten_q(keras.Model(model.input, model.output[:, -1:]), NUMBER)
        obs = np.concatenate([np.tile(before, (2, 1)), [[1, 2, 3], [4, 5, 6]]], axis=1)
        first = np.zeros((2, 5), np.int32)
        stream = Window(
            tf.constant(obs[..., None], tf.float32), tf.constant(first), tf.constant(first)
        )
        # A discount of 0 makes rewards the targets.
        steps = rollout_of(
            np.zeros((2, 4, 2)), self.action, self.reward, np.zeros((2, 3)), last, stream
        )
        if parts > 1:
            net = net._replace(attention=2**30)
        with without_xla(), mock.patch.object(cost, "LEAST_PART", 2 // parts):
            learn = pqn.make_learn(net, self.cfg)
            state, diagnostics = learn(pqn.first_state(net), steps, tf.constant([order]))
        self.assertEqual(int(state.updates), 1)
        return float(diagnostics["loss"])

    def test_by_hand(self):
        # Errors of row 0: 1 - 1, 4 - 2, 3 - 3; of row 1: 8 - 4, 10 - 5, 6 - 6; squared and halved.
        each = np.array([[0, 2, 0], [8, 12.5, 0]])
        # The window that ends with step 2 holds all three steps, that with step 3 the first of row
        # 1.
        self.assertAllClose(self.loss([2, 3]), (each[0].sum() + each[1, 0]) / 4)
        self.assertAllClose(self.loss([1, 5]), (each[0, :2].sum() + each[1].sum()) / 5)
        # At the last step of a window alone, each step is learned from once.
        self.assertAllClose(self.loss([2, 4], positions=1), (each[0, 2] + each[1, 1]) / 2)

    def test_in_parts(self):
        self.assertAllClose(self.loss([1, 5], parts=2), self.loss([1, 5]))

    def test_steps_before_the_rollout_do_not_enter(self):
        self.assertAllClose(self.loss([0, 3], before=(100.0, -70.0)), (0 + 8) / 2)

    def test_the_step_that_only_resets_does_not_enter(self):
        self.assertAllClose(self.loss([2, 5], last=((0, 1, 0), (0, 0, 0))), (0 + 0 + 8 + 12.5) / 5)


class TestActing(tf.test.TestCase):
    def test_what_was_said_is_what_the_network_says_of_the_windows(self):
        network = dataclasses.replace(NETWORK, context=3, prev_action=True)
        info = env_info(Corridor())
        net = flatten_q(build_q(info, network), info)
        weights = net.start * 8.0  # so that states differ
        stepper = make_stepper(Corridor, info, 3, CFG.num_envs, seed=0)
        act = pqn.make_act(net, stepper, info, CFG)
        collect = rollout.make_collect(net, stepper, CFG.rollout_steps)
        collect(act(weights, 0))
        roll, _ = collect(act(weights, CFG.total_steps))
        stream = tf.nest.map_structure(tf.constant, roll.stream)
        windows = rollout.windows_of(stream, tf.range(roll.action.size), 3)
        q = mean_q(net.apply(weights, windows))[:, -1].numpy()
        acted_on = roll.outputs[:, :-1].reshape(-1, 2)
        self.assertGreater(acted_on.std(), 0.01)
        self.assertAllClose(q, acted_on, atol=1e-5)
        # With epsilon 0.5 three of four actions are the best.
        best = (roll.action.reshape(-1) == acted_on.argmax(axis=-1)).mean()
        self.assertBetween(best, 0.6, 0.9)


class TestTraining(tf.test.TestCase):
    def values(self, env_fn, **more):
        state, net, progress = train(env_fn, **more)
        window = make_window(env_info(env_fn()), 3, net.context)
        push(window, np.arange(3)[:, None], np.ones(3), -1)
        return mean_q(net.apply(state.weights, network_inputs(window)))[:, -1].numpy(), progress

    @slow("10 s: test_dqn has it")
    def test_known_values_of_a_corridor(self):
        # One step from the end 1, then 1/2, then 1/4; a step left costs two steps.
        expected = [[0.125, 0.25], [0.125, 0.5], [0.25, 1.0]]
        # With lambda above 0, exploring actions would enter the returns.
        cfg = dataclasses.replace(CFG, q_lambda=0.0)
        for network in (NETWORK, DENSE):
            with self.subTest(network=network.network):
                q, progress = self.values(Corridor, cfg=cfg, network=network)
                self.assertAllClose(q, expected, atol=0.06)
                self.assertGreater(progress.games, 50)

    @slow("10 s: test_known_values_of_a_corridor has other networks")
    def test_known_values_by_a_gru(self):
        cfg = dataclasses.replace(CFG, q_lambda=0.0, learning_rate=1e-2, total_steps=8_192)
        network = NetworkConfig(network="gru", context=2, layers=1, width=16)
        q, _ = self.values(Corridor, cfg=cfg, network=network)
        self.assertAllClose(q, [[0.125, 0.25], [0.125, 0.5], [0.25, 1.0]], atol=0.1)

    def test_learns_the_way_through_a_corridor(self):
        cfg = dataclasses.replace(CFG, epsilon_end=0.05)
        q, progress = self.values(Corridor, cfg=cfg)
        self.assertAllEqual(q.argmax(axis=-1), [1, 1, 1])
        self.assertAllClose(q[:, 1], [0.25, 0.5, 1.0], atol=0.12)
        self.assertGreater(progress.mean_return(), 0.99)

    def test_truncation_does_not_end_the_return(self):
        q, _ = self.values(Forever)
        self.assertAllClose(q, np.full((3, 2), 2.0), atol=0.15)

    @slow("10 s: three trainings; test_dqn and test_ppo have it")
    def test_same_seed_same_run_whatever_the_workers(self):
        cfg = dataclasses.replace(CFG, total_steps=512)
        logs = []
        states = []
        for workers, seed in ((0, 3), (2, 3), (0, 4)):
            rows = []
            with without_xla():
                states.append(train(cfg=cfg, seed=seed, workers=workers, log=rows.append)[0])
            logs.append([tuple(row) for row in rows])
        self.assertAllEqual(states[0].weights, states[1].weights)
        np.testing.assert_equal(logs[0], logs[1])
        self.assertNotAllEqual(states[0].weights, states[2].weights)

    @slow("15 s: test_algorithms has it by scripts")
    def test_resume_equals_an_unbroken_run(self):
        cfg = dataclasses.replace(CFG, total_steps=1_024, hold=9)
        network = dataclasses.replace(NETWORK, standardize=True, value_scale="sqrt")
        kept = {}
        rows = []

        def save(step, make, last=False):
            if step == 512:
                kept.update(make())

        with without_xla():
            whole, _, end = train(Numbered, cfg, network, save=save, log=rows.append)
            again, _, end2 = train(Numbered, cfg, network, saved=kept)
        for one, two in zip(tf.nest.flatten(whole), tf.nest.flatten(again)):
            self.assertAllEqual(one, two)
        self.assertEqual(end, end2)
        # Layers adapt to the first rollout, which is not learned from.
        self.assertEqual([row.updates for row in rows], [8 * i for i in range(8)])
        self.assertTrue(np.isnan(rows[0].loss))

    def test_an_action_that_is_not_taken_is_not_held(self):
        # A rollout asks for one action behind its last step, and the next asks anew.
        cfg = dataclasses.replace(CFG, hold=9, epsilon_start=1.0, epsilon_end=1.0)
        info = env_info(Corridor())
        net = flatten_q(build_q(info, DENSE), info)
        stepper = make_stepper(Corridor, info, DENSE.context, 4, seed=0)
        decide = pqn.make_act(net, stepper, info, cfg)(net.start, 0)
        inputs = [network_inputs(stepper.window)[name] for name in net.model.input]
        stepper.vec.out["first"][...] = False
        stepper.held.action[...] = 1
        stepper.held.left[...] = 3
        for t, left in ((cfg.rollout_steps, 3), (0, 2), (1, 1), (cfg.rollout_steps, 1)):
            self.assertAllEqual(decide(t, inputs)[0], [1] * 4)
            self.assertAllEqual(stepper.held.left, [left] * 4)

    def test_a_failing_environment_stops_the_run_after_saving(self):
        saves = []

        def save(step, make, last=False):
            if last:
                saves.append((step, make()))

        with without_xla(), self.assertRaisesRegex(EnvFailure, "the robot fell over"):
            train(Failing, save=save)
        ((step, tree),) = saves
        self.assertEqual(tree["envs"], [None] * 4)
        self.assertEqual(tree["progress"]["step"], step)

    def test_what_can_not_be(self):
        for fault, flag in (
            (dict(batch_size=100), "for example 64"),
            (dict(q_lambda=1.5), "--q-lambda"),
            (dict(rollout_steps=0), "--rollout-steps"),
            (dict(gamma=-1.0), "--gamma"),
            (dict(huber_delta=0.0), "--huber-delta"),
            (dict(epsilon_fraction=0.0), "--epsilon-fraction"),
            (dict(final_learning_rate=0.0), "--final-learning-rate"),
        ):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                train(cfg=dataclasses.replace(CFG, **fault))
        for network in (NetworkConfig(quantiles=8), NetworkConfig(reward_units=True)):
            with self.assertRaisesRegex(UsageError, "--bins and --reward-units are for DQN"):
                pqn.check_pqn(network, CFG)
        pqn.check_pqn(NetworkConfig(quantiles=1), CFG)
        with self.assertRaisesRegex(UsageError, "1 quantiles"):
            train(network=dataclasses.replace(DENSE, quantiles=8))
        with self.assertRaisesRegex(UsageError, "--context"):
            pqn.check_pqn(NetworkConfig(context=0), CFG)
        with self.assertRaisesRegex(UsageError, "--reward-units are for DQN"):
            train(network=dataclasses.replace(DENSE, reward_units=True))

    def test_what_python_can_not_start_with(self):
        for wrong, said in (
            (dict(seed=-1), "seed must be a whole number of at least 0, not -1"),
            (dict(seed="1"), "seed must be a whole number of at least 0, not '1'"),
            (dict(seed=1 << 40), "seed must be less than 4294967296"),
            (dict(workers=1.5), "workers must be a whole number of at least 0, not 1.5"),
            (dict(cfg=PQNConfig), "Give PQNConfig.. with its settings"),
        ):
            with self.subTest(**wrong), self.assertRaisesRegex(UsageError, said):
                train(**wrong)
        model = build_q(env_info(Corridor()), DENSE)
        with self.assertRaisesRegex(UsageError, "lambda info: model"):
            pqn.pqn(Corridor, model, CFG, workers=0)

    def test_a_checkpoint_of_another_number_of_environments_is_refused(self):
        """numpy would give the one window of the checkpoint to all."""
        one = dataclasses.replace(CFG, total_steps=64, num_envs=1, rollout_steps=64)
        trees = []

        def save(step, make, last):
            if last:
                trees.append(make())

        with without_xla():
            train(cfg=one, save=save)
            with self.assertRaisesRegex(UsageError, "of another number of environments"):
                train(cfg=dataclasses.replace(CFG, total_steps=256), saved=trees[0])


if __name__ == "__main__":
    tf.test.main()
