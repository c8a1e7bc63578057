"""A Keras model as a function of one flat weight vector."""

import dataclasses
import unittest
from unittest import mock

import numpy as np

from tests.games.toys import BOX, RAM, build, linear_net, random_window
from tfdqt import losses
from tfdqt.backend import keras, tf
from tfdqt.errors import UsageError
from tfdqt.games import cost, flat
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.spaces import EnvInfo


class TestFlatModel(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model, cls.cfg = build(BOX, standardize=True, min_change=0.1, quantiles=3)
        cls.net = flat.flatten_q(cls.model, BOX)
        cls.window = random_window(BOX, cls.cfg.context)

    def test_it_says_what_the_model_says(self):
        net = self.net
        self.assertEqual((net.context, net.positions), (4, 4))
        inputs = {name: self.window[name] for name in ("obs", "first")}
        q = net.apply(net.start, self.window)
        self.assertEqual(q.shape, (5, 4, 2, 3))
        self.assertAllClose(q, self.model(inputs))
        self.assertAllClose(net.apply(net.unflatten(net.start), self.window), q)

    def test_flatten_and_unflatten_are_inverse(self):
        net = self.net
        weights = tf.range(net.start.shape[0], dtype=tf.float32)
        trained, fixed = net.unflatten(weights)
        shapes = [variable.shape for variable in self.model.trainable_variables]
        self.assertEqual([part.shape for part in trained], shapes)
        self.assertEqual([part.shape for part in fixed], [(3,), (3,), (3,)])  # rate, mean, scale
        self.assertAllEqual(flat.flatten(net, trained, fixed), weights)
        # Trained weights stand in front; without fixed ones there are zeros behind.
        behind = flat.flatten(net, trained)
        self.assertAllEqual(behind[:-9], weights[:-9])
        self.assertAllEqual(behind[-9:], np.zeros(9))

    def test_fixed_weights_can_be_replaced(self):
        net = self.net
        fixed = [np.full(3, value, "float32") for value in (7, 8, 9)]
        weights = flat.with_fixed(net, net.start, fixed)
        self.assertAllEqual(weights[:-9], net.start[:-9])
        self.assertAllEqual(weights[-9:], np.repeat([7, 8, 9], 3))

    def test_weights_can_be_written_into_the_model(self):
        net = self.net
        self.addCleanup(flat.set_weights, net, net.start)
        flat.set_weights(net, net.start * 0.5)
        parts = (*self.model.trainable_variables, *self.model.non_trainable_variables)
        for variable, part in zip(parts, tf.nest.flatten(net.unflatten(net.start))):
            self.assertAllClose(variable, 0.5 * part)

    def test_layers_adapt_in_their_order(self):
        """The second layer is fed what the first one makes of the data: a hidden feature is 0."""
        model, _ = build(BOX, standardize=True, min_change=0.1)
        rng = np.random.default_rng(0)
        obs = rng.normal(size=(101, 3)).astype("float32") * [1, 2, 3] + [5, 6, 7]
        obs[:, 1] = np.arange(101)  # changes by a hundredth of its range
        obs = obs.astype("float32")
        first = np.arange(101) % 10 == 0
        rate, mean, scale = flat.adapt(flat.flatten_model(model), obs, first)
        self.assertLess(rate[1], 0.1)
        self.assertGreater(rate[[0, 2]].min(), 0.1)
        self.assertAllClose(mean, obs.mean(axis=0) * [1, 0, 1], rtol=1e-4)
        self.assertAllClose(scale, np.where([True, False, True], obs.std(axis=0), 0.1), rtol=1e-4)

    def test_networks_of_other_shapes_are_refused(self):
        def model(*shape, context=2):
            inputs = dict(obs=keras.Input((context, 3), name="obs"))
            size = int(np.prod(shape))
            x = keras.layers.Dense(size)(keras.layers.Flatten()(inputs["obs"]))
            return keras.Model(inputs, keras.layers.Reshape(shape)(x))

        flat.flatten_q(model(2, 2, 1), BOX)
        flat.flatten_q(model(1, 2, 7), BOX)
        flat.flatten_pi_v(model(1, 3), BOX)
        for shape, quantiles, words in (
            ((2, 2), None, "ends with an axis of size 1"),
            ((2, 3, 1), None, r"\(None, 2, 3, 1\), but \[batch, steps, 2 actions"),
            ((3, 2, 1), None, "of at most its 2 steps"),
            ((2, 2, 4), 1, "1 quantiles"),
        ):
            with self.subTest(shape=shape), self.assertRaisesRegex(UsageError, words):
                flat.flatten_q(model(*shape), BOX, quantiles)
        for shape in ((1, 2), (3, 3), (2, 3, 1)):
            with self.subTest(shape=shape), self.assertRaisesRegex(UsageError, "2 logits and a"):
                flat.flatten_pi_v(model(*shape), BOX)


class TestActing(tf.test.TestCase):
    def test_networks_that_can_not_be_fed_are_refused(self):
        layers = keras.layers

        def network(name="obs", steps=4, features=3, **more):
            obs = keras.Input((steps, features), name=name)
            x = layers.Dropout(0.1)(obs[:, -1:]) if more.pop("dropout", False) else obs[:, -1:]
            q = layers.Reshape((1, 2, 1))(layers.Dense(2)(x))
            return keras.Model({name: obs, **more}, q)

        obs = keras.Input((4, 3))
        for model, said in (
            (keras.Model(obs, layers.Dense(2)(obs)), "named inputs"),
            (None, "named inputs.*not NoneType"),
            (network("observation"), "reads obs and.*not observation"),
            (network(action=keras.Input((4,), name="action")), "not obs, action"),
            (network(steps=None), "of a fixed number of steps"),
            (network(features=7), "context, 3., of a fixed"),
            (network(dropout=True), "weights of a network are float32, but .* is int64"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                flat.flatten_q(model, BOX)
        flat.flatten_q(network(), BOX)

    def test_the_best_action_and_the_scores_are_those_of_the_last_step(self):
        model, cfg = build(RAM, quantiles=3)
        net = flat.flatten_q(model, RAM)
        inputs = {name: random_window(RAM, cfg.context)[name] for name in ("obs", "first")}
        q = np.mean(model(inputs), axis=-1)[:, -1]
        self.assertAllClose(flat.make_scores(net)(net.start, inputs), q, atol=1e-5)
        self.assertAllEqual(flat.make_act(net)(net.start, inputs), q.argmax(axis=-1))

    def test_illegal_actions_of_histograms_are_as_bad_as_any(self):
        info = EnvInfo("Masked", (3 + 2,), "float32", (), 2, mask="info")
        model, cfg = build(info, value_scale="log", bins=16)
        net = flat.flatten_q(model, info)
        inputs = {name: random_window(info, cfg.context)[name] for name in ("obs", "first")}
        inputs["obs"][..., 3:] = 0, 1
        q = net.apply(net.start, inputs).numpy()
        self.assertAllEqual(q[..., 0, 0], np.full(q.shape[:2], losses.ILLEGAL, "float32"))
        mean = net.histogram.mean(net.logits(net.start, inputs))
        self.assertAllClose(q[..., 1, 0], mean[..., 1])
        self.assertAllEqual(flat.make_act(net)(net.start, inputs), np.ones(len(q)))

    def test_a_value_behind_the_logits_is_not_chosen_from(self):
        outputs = tf.constant([[[1.0, 2.0, 9.0]]])
        self.assertAllEqual(flat.policy_logits(outputs), [[[1.0, 2.0]]])


class TestUpdates(tf.test.TestCase):
    cfg = DQNConfig(learning_rate=0.3, final_learning_rate=0.1, max_grad_norm=1.0, adam_epsilon=0.0)

    def step(self, gradient, part, cfg=cfg):
        zeros = tf.zeros(2)
        count = tf.constant(1, tf.int64)
        return flat.step_adam(
            zeros, (zeros, zeros), tf.constant(gradient), count, tf.constant(part), cfg
        )

    def test_the_rate_moves_in_a_straight_line_and_then_stays(self):
        # The first step of Adam is the rate, whatever the gradient's size.
        for part, rate in ((0.0, 0.3), (0.25, 0.25), (1.0, 0.1), (2.0, 0.1)):
            weights, _, _ = self.step([0.5, -0.5], part)
            self.assertAllClose(weights, [-rate, rate], rtol=1e-4, msg=f"part {part}")

    def test_the_norm_is_that_before_the_clip(self):
        _, moments, norm = self.step([3.0, 4.0], 0.0)
        self.assertAllClose(norm, 5.0)
        self.assertAllClose(moments[0], [0.1 * 0.6, 0.1 * 0.8])
        _, moments, _ = self.step([3.0, 4.0], 0.0, dataclasses.replace(self.cfg, max_grad_norm=9.0))
        self.assertAllClose(moments[0], [0.3, 0.4])

    def test_a_loop_of_updates_gives_the_means(self):
        def one(total, i):
            return total + tf.cast(i, tf.float32), dict(i=tf.cast(i, tf.float32), other=total)

        total, means = flat.repeat_update(one, tf.constant(10.0), 4, ("i",))
        self.assertAllEqual(total, 10 + 0 + 1 + 2 + 3)
        self.assertAllEqual(means, dict(i=1.5))

    def test_a_batch_in_parts_gives_the_means_of_all(self):
        net = linear_net(2, (1.0, 2.0))
        rng = np.random.default_rng(0)
        x = tf.constant(rng.normal(size=(8, 2)), tf.float32)
        mask = tf.constant([1.0, 1, 1, 0, 0, 0, 0, 0])  # one part in two has nothing to learn from

        def learned(batch):
            x, mask = batch
            count = tf.reduce_sum(mask)
            mean = tf.reduce_sum(mask[:, None] * x, axis=0) / tf.maximum(count, 1.0)
            return dict(gradient=mean, loss=tf.reduce_sum(mean), count=count, other=count)

        whole = flat.learn_in_parts(net, learned, (x, mask), 8, ("loss",))
        with mock.patch.object(cost, "LEAST_PART", 2):
            large = net._replace(attention=2**30)
            found = flat.learn_in_parts(large, learned, (x, mask), 8, ("loss",))
        self.assertEqual(set(found), {"gradient", "loss"})
        self.assertAllClose(found["gradient"], whole["gradient"])
        self.assertAllClose(found["loss"], whole["loss"])

    def test_a_linear_network_by_hand(self):
        net = linear_net(2, (1.0, 2.0))
        inputs = dict(obs=tf.constant([[[3.0], [5.0]]]), first=tf.constant([[1, 0]]))
        self.assertAllClose(net.apply(net.start, inputs)[..., 0], [[[3, 6], [5, 10]]])


if __name__ == "__main__":
    unittest.main()
