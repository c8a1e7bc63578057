"""The maths of Q-learning against numbers worked by hand and against Keras."""

import unittest

import numpy as np

from tfdqt import losses
from tfdqt.backend import keras, tf
from tfdqt.value_scale import SCALES


class NStepTargets(tf.test.TestCase):
    def test_three_steps_by_hand(self):
        rewards = tf.constant([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
        discounts = tf.constant([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
        values = tf.constant([[[8.0], [16.0]], [[8.0], [16.0]]])
        targets = losses.n_step_targets(rewards, discounts, values, gamma=0.5, n=3)
        # Row 0: 1 + (2 + (3 + 8/2)/2)/2 = 3.75 and 2 + (3 + (4 + 16/2)/2)/2 = 6.5.
        # Row 1 terminates after the second reward: 1 + 2/2 = 2 and 2.
        self.assertAllClose(targets[..., 0], [[3.75, 6.5], [2.0, 2.0]])

    def test_end_at_the_last_step_drops_only_the_value(self):
        targets = losses.n_step_targets(
            tf.constant([[1.0, 2.0, 4.0]]),
            tf.constant([[1.0, 1.0, 0.0]]),
            tf.constant([[[100.0]]]),
            gamma=0.5,
            n=3,
        )
        self.assertAllClose(targets, [[[3.0]]])  # 1 + 2/2 + 4/4

    def test_one_step_by_hand(self):
        targets = losses.n_step_targets(
            tf.constant([[1.0, -2.0]]),
            tf.constant([[1.0, 0.0]]),
            tf.constant([[[10.0], [20.0]]]),
            gamma=0.9,
            n=1,
        )
        self.assertAllClose(targets, [[[10.0], [-2.0]]])  # 1 + 0.9 * 10 and -2 alone

    def test_quantiles_by_hand(self):
        targets = losses.n_step_targets(
            tf.constant([[1.0, 2.0]]),
            tf.constant([[1.0, 1.0]]),
            tf.constant([[[4.0, 8.0]]]),
            gamma=0.5,
            n=2,
        )
        self.assertAllClose(targets, [[[3.0, 4.0]]])  # 1 + 2/2 + 4/4 and 1 + 2/2 + 8/4

    def test_shapes_are_checked(self):
        with self.assertRaises(ValueError):
            losses.n_step_targets(
                tf.zeros([2, 4]), tf.zeros([2, 4]), tf.zeros([2, 3, 1]), gamma=0.9, n=3
            )
        with self.assertRaises(ValueError):
            losses.n_step_targets(
                tf.zeros([2, 4]), tf.zeros([2, 3]), tf.zeros([2, 2, 1]), gamma=0.9, n=3
            )


class LambdaReturns(tf.test.TestCase):
    def test_by_hand(self):
        # gamma 0.5, lambda 0.5; from the back: G_2 = 3 + 8/2 = 7, G_1 = 2 + (4/2 + G_2/2)/2 = 4.75,
        # G_0 = 1 + (2/2 + G_1/2)/2 = 2.6875.
        # Row 1 terminates with step 0, so G_0 = 1; step 1 only resets, and G_2 is as above.
        # Row 2 is cut short after step 0, whose last observation is worth 2: G_0 = 1 + 2/2.
        # Row 3 loses a life with step 1: G_1 = 2, G_0 = 1 + (2/2 + 2/2)/2.
        rewards = tf.constant([[1.0, 2.0, 3.0]] * 4)
        values = tf.constant([[1.0, 2.0, 4.0, 8.0]] * 4)
        discounts = tf.constant(
            [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
        )
        last = tf.constant([[False] * 3, [False, True, False], [False, True, False], [False] * 3])
        returns = losses.lambda_returns(
            rewards, discounts, values, last, gamma=0.5, lam=0.5
        ).numpy()
        self.assertAllClose(returns[0], [2.6875, 4.75, 7.0])
        self.assertAllClose(returns[1][[0, 2]], [1.0, 7.0])
        self.assertAllClose(returns[2][[0, 2]], [2.0, 7.0])
        self.assertAllClose(returns[3], [2.0, 2.0, 7.0])

    def test_lambda_of_zero_is_one_step_and_of_one_the_whole_sum(self):
        rng = np.random.default_rng(0)
        rewards = rng.normal(size=(2, 5)).astype("float32")
        values = rng.normal(size=(2, 6)).astype("float32")
        discounts = np.ones((2, 5), "float32")
        discounts[1, 3] = 0  # the second row terminates
        last = np.zeros((2, 5), bool)
        last[1, 4] = True
        stream = [tf.constant(field) for field in (rewards, discounts, values, last)]
        one_step = losses.lambda_returns(*stream, gamma=0.9, lam=0.0)
        self.assertAllClose(one_step, rewards + 0.9 * discounts * values[:, 1:], atol=1e-5)
        whole = losses.lambda_returns(*stream, gamma=0.9, lam=1.0)
        first = sum(0.9**k * rewards[0, k] for k in range(5)) + 0.9**5 * values[0, 5]
        second = sum(0.9**k * rewards[1, k] for k in range(4))
        self.assertAllClose(whole[:, 0], [first, second], atol=1e-5)

    def test_they_are_the_advantages_of_values_as_well(self):
        """With the values of states, G - V is the generalised advantage estimate."""
        rng = np.random.default_rng(1)
        rewards = tf.constant(rng.normal(size=(4, 6)), tf.float32)
        values = tf.constant(rng.normal(size=(4, 7)), tf.float32)
        discounts = tf.constant(rng.random((4, 6)) > 0.2, tf.float32)
        last = tf.constant(rng.random((4, 6)) > 0.8)
        how = dict(gamma=0.9, lam=0.7)
        returns = losses.lambda_returns(rewards, discounts, values, last, **how)
        advantages = losses.gae(rewards, discounts, values, last, **how)
        self.assertAllClose(returns - values[:, :-1], advantages, atol=1e-5)

    def test_shapes_are_checked(self):
        with self.assertRaises(ValueError):
            losses.lambda_returns(
                tf.zeros([2, 4]),
                tf.ones([2, 4]),
                tf.zeros([2, 4]),
                tf.zeros([2, 4], tf.bool),
                gamma=0.9,
                lam=0.5,
            )


class BootstrapValues(tf.test.TestCase):
    def test_plain_takes_the_largest(self):
        self.assertAllClose(
            losses.bootstrap_values(tf.constant([[[1.0, 5.0, 3.0], [-1.0, -2.0, -3.0]]])),
            [[5.0, -1.0]],
        )

    def test_double_values_the_online_choice_by_the_target(self):
        q_target = tf.constant([[[1.0, 5.0, 3.0], [-1.0, -2.0, -3.0]]])
        q_online = tf.constant([[[0.0, 1.0, 2.0], [0.0, 3.0, 2.0]]])  # chooses 2, then 1
        self.assertAllClose(losses.bootstrap_values(q_target, q_online), [[3.0, -2.0]])

    def test_shapes_are_checked(self):
        with self.assertRaises(ValueError):
            losses.bootstrap_values(tf.zeros([2, 1, 3]), tf.zeros([2, 1, 4]))

    def test_quantiles_are_compared_by_their_means(self):
        # Means 2 and 3 by the target network, 5 and 1 by the online one.
        q_target = tf.constant([[[[1.0, 3.0], [0.0, 6.0]]]])
        q_online = tf.constant([[[[5.0, 5.0], [0.0, 2.0]]]])
        self.assertAllClose(losses.bootstrap_quantiles(q_target), [[[0.0, 6.0]]])
        self.assertAllClose(losses.bootstrap_quantiles(q_target, q_online), [[[1.0, 3.0]]])

    def test_action_out_of_range_selects_nothing(self):
        q = tf.constant([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
        self.assertAllClose(losses.select_actions(q, tf.constant([[1, 0, -1]])), [[2.0, 3.0, 0.0]])

    def test_quantiles_of_the_action(self):
        quantiles = tf.constant([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
        self.assertAllClose(
            losses.select_quantiles(quantiles, tf.constant([[1]])), [[[4.0, 5.0, 6.0]]]
        )


class TextTerms(tf.test.TestCase):
    mask = tf.constant([1.0, 1.0, 0.0])

    def test_widened_gap_by_hand(self):
        q = tf.constant([[1.0, 1.4], [1.0, 3.0], [2.0, -1.0]])
        targets = tf.constant([[7.0], [8.0], [9.0]])
        widened = losses.widen_gap(targets, q, tf.constant([0, 0, 0]), 0.5)
        self.assertAllClose(widened, [[7 - 0.5 * 0.4], [8 - 0.5 * 1.0], [9.0]])
        # a gap of 2 counts as 1

    def test_only_plausible_actions_keep_their_values(self):
        logits = tf.math.log([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]) + 5.0
        q = losses.mask_implausible(tf.constant([[1.0, 2.0, 9.0], [3.0, 9.0, -1.0]]), logits, 0.4)
        self.assertAllEqual(q, [[1.0, 2.0, q.dtype.min], [q.dtype.min, q.dtype.min, -1.0]])
        self.assertAllEqual(tf.argmax(q, -1), [1, 2])

    def test_exploration_cost_by_hand(self):
        q = tf.constant([[1.0, 3.0], [0.6, 1.0], [2.0, 2.0]])
        self.assertAllClose(
            losses.exploration_cost(q, 0.1), [0.1, 0.02, 0.0]
        )  # a tenth of the mean gap
        self.assertAllClose(
            losses.exploration_cost(q, 0.1, 0.5), [0.1 * 1.5 / 2, 0.1 * 0.2 / 2, 0.0]
        )  # gaps of 2 and 0.4 stand for 1.5 and 0.2
        best = tf.reduce_max(q, axis=-1)
        self.assertAllClose(
            best - losses.exploration_cost(q, 1.0), tf.reduce_mean(q, axis=-1)
        )  # always at random: the mean

    def test_the_logarithmic_scale(self):
        scale = SCALES["log"]
        self.assertAllClose(scale.shrink(tf.constant([np.e - 1, 1 - np.e, 0.0])), [1, -1, 0])
        values = tf.constant([-1e4, -1e-4, 0.0, 0.3, 7.0, 1e6])
        self.assertAllClose(scale.stretch(scale.shrink(values)), values, rtol=1e-5)

    def test_a_value_of_nothing_is_learned_from_on_every_scale(self):
        # The slope at 0 is that beside it.
        for name, slope in (("linear", 1), ("sqrt", 0.5), ("log", 1)):
            for function, expected in zip(SCALES[name], (slope, 1 / slope)):
                x = tf.constant([0.0, 1e-6, -1e-6])
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = function(x)
                self.assertAllClose(tape.gradient(y, x), [expected] * 3, msg=name)

    def test_whole_numbers_are_taken_as_floats(self):
        for name, scale in SCALES.items():
            for function in scale:
                expected = function(tf.constant([30.0, 3.0]))
                for x in (
                    [30, 3],
                    np.array([30, 3]),
                    np.array([30, 3], np.uint8),
                    np.array([30.0, 3.0]),
                    tf.constant([30, 3]),
                ):
                    self.assertAllClose(function(x), expected, rtol=1e-5, msg=f"{name} {x!r}")
        self.assertAllClose(SCALES["sqrt"].shrink(np.array([255], np.uint8)), [15.0])
        self.assertAllClose(SCALES["log"].shrink(100), np.log(101))

    def test_on_the_scale_of_roots(self):
        # 8 is learned as 2 and 3 as 1.
        scale = SCALES["sqrt"]
        self.assertAllClose(scale.shrink(tf.constant([8.0, -8.0, 3.0, 0.0])), [2, -2, 1, 0])
        values = tf.constant([-1e4, -1e-4, 0.0, 0.3, 7.0, 1e6])
        self.assertAllClose(scale.stretch(scale.shrink(values)), values, rtol=1e-5)

        q = tf.constant([[8.0, 3.0]])
        targets = tf.constant([[8.0]])
        widened = losses.widen_gap(targets, q, tf.constant([1]), 0.5, scale=scale)
        self.assertAllClose(widened, [[2.5**2 - 1]])  # of 1.5
        self.assertAllClose(losses.exploration_cost(q, 1.0, scale=scale), [5 / 2])
        # 1 that was widened by a half of 1 stands for 1.5.
        self.assertAllClose(losses.exploration_cost(q, 1.0, 0.5, scale=scale), [(8 - 5.25) / 2])

        q = tf.constant([[[[3.0]]]])
        action = tf.constant([[0]])
        mask = tf.ones([1, 1])
        loss, told = losses.td_loss(q, action, tf.constant([[[8.0]]]), mask, scale=scale)
        self.assertAllClose(loss, 0.5)
        self.assertAllClose(told["td_error"], 5.0)
        two = tf.constant([[[[3.0, 3.0]]]])
        loss, _ = losses.td_loss(two, action, tf.constant([[[8.0, 8.0]]]), mask, scale=scale)
        self.assertAllClose(loss, 0.25 * 0.5 + 0.75 * 0.5)

    def test_conservative_by_hand(self):
        q = tf.math.log([[1.0, 3.0], [2.0, 2.0], [9.0, 9.0]])
        self.assertAllClose(
            losses.conservative(q, tf.constant([1, 0, 0]), self.mask),
            (np.log(4 / 3) + np.log(2)) / 2,
        )

    def test_expectile_by_hand_and_least_where_it_should_be(self):
        terms = losses.expectile(
            tf.constant([1.0, 1.0, 5.0]), tf.constant([3.0, 0.0, 0.0]), self.mask, 0.75
        )
        self.assertAllClose(terms, (0.75 * 4 + 0.25 * 1) / 2)
        # Half of the targets 0, half 1: the 0.8-expectile v solves 0.8 (1 - v) = 0.2 v.
        targets, best = (
            tf.constant([0.0, 1.0]),
            losses.expectile(tf.fill([2], 0.8), tf.constant([0.0, 1.0]), tf.ones(2), 0.8),
        )
        for other in (0.75, 0.85):
            self.assertLess(
                float(best), float(losses.expectile(tf.fill([2], other), targets, tf.ones(2), 0.8))
            )

    def test_cloning_by_hand(self):
        logits = tf.math.log([[1.0, 3.0], [1.0, 1.0], [1.0, 99.0]])
        self.assertAllClose(
            losses.cloning(logits, tf.constant([1, 0, 0]), self.mask),
            (np.log(4 / 3) + np.log(2)) / 2,
        )
        weights = tf.constant([3.0, 1.0, 0.0])
        self.assertAllClose(
            losses.cloning(logits, tf.constant([1, 0, 0]), weights),
            (3 * np.log(4 / 3) + np.log(2)) / 4,
        )

    def test_better_actions_weigh_more_up_to_a_limit(self):
        advantages = tf.constant([0.0, 0.5, -0.5, 9.0])
        with tf.GradientTape() as tape:
            tape.watch(advantages)
            weights = losses.advantage_weights(advantages, 2.0)
        self.assertAllClose(weights, [1.0, np.e, 1 / np.e, 20.0])
        self.assertIsNone(tape.gradient(weights, advantages))


class PPOTerms(tf.test.TestCase):
    def test_gae_by_hand(self):
        # gamma 0.5, lambda 0.5. Row 0: errors 1 + 1 - 1 = 1, 2 + 2 - 2 = 2, 3 + 4 - 4 = 3; each
        # adds a quarter of the next sum.
        # Row 1: terminates with step 0, so step 0 is 1 - 1; step 1 only resets, and step 2 is 3 + 4
        # - 4.
        # Row 2: cut short after step 0, whose last observation is worth 4: 1 + 2 - 2.
        rewards = tf.constant([[1.0, 2.0, 3.0]] * 3)
        values = tf.constant([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0], [2.0, 4.0, 4.0, 8.0]])
        discounts = tf.constant([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
        last = tf.constant([[False, False, False], [False, True, False], [False, True, False]])
        terms = losses.gae(rewards, discounts, values, last, gamma=0.5, lam=0.5).numpy()
        self.assertAllClose(terms[0], [1 + (2 + 3 / 4) / 4, 2 + 3 / 4, 3])
        self.assertAllClose(terms[1][[0, 2]], [0, 3])
        self.assertAllClose(terms[2][[0, 2]], [1, 3])
        doubles = [tf.cast(each, tf.float64) for each in (rewards, discounts, values)]
        again = losses.gae(*doubles, last, gamma=0.5, lam=0.5)
        self.assertEqual(again.dtype, tf.float64)
        self.assertAllClose(again, terms)

    def test_gae_of_one_and_of_zero(self):
        """lambda 1: the discounted return less the value; lambda 0: the one-step error."""
        rng = np.random.default_rng(0)
        rewards, values = (
            rng.normal(size=(2, 5)).astype("float32"),
            rng.normal(size=(2, 6)).astype("float32"),
        )
        ones, last = tf.ones((2, 5)), tf.zeros((2, 5), tf.bool)
        returns = sum(0.9**k * rewards[:, k] for k in range(5)) + 0.9**5 * values[:, 5]
        self.assertAllClose(
            losses.gae(tf.constant(rewards), ones, tf.constant(values), last, gamma=0.9, lam=1.0)[
                :, 0
            ],
            returns - values[:, 0],
            atol=1e-5,
        )
        self.assertAllClose(
            losses.gae(tf.constant(rewards), ones, tf.constant(values), last, gamma=0.9, lam=0.0),
            rewards + 0.9 * values[:, 1:] - values[:, :-1],
            atol=1e-5,
        )

    def test_ppo_by_hand(self):
        # New probabilities 3/4, 1/4, 1/2 of the actions, old ones 1/2 each: ratios 1.5, 0.5, 1. The
        # last row is masked.
        logits = tf.math.log([[1.0, 3.0], [1.0, 3.0], [1.0, 1.0]])
        terms = losses.ppo_losses(
            logits,
            tf.constant([1.0, 0.0, 9.0]),
            tf.constant([1, 0, 0]),
            tf.fill([3], np.float32(np.log(0.5))),
            tf.constant([0.0, 0.0, 0.0]),
            tf.constant([2.0, -4.0, 99.0]),
            tf.constant([3.0, 0.5, 0.0]),
            tf.constant([1.0, 1.0, 0.0]),
            clip=0.2,
            value_clip=0.5,
        )
        # The gain of a likelier good action is cut at 1.2; of a rarer bad one at 0.8.
        self.assertAllClose(terms["policy_loss"], -(1.2 * 2 - 0.8 * 4) / 2)
        # Values: 1 against 3 is worse clipped to 0.5 (2.5 off); 0 against 0.5 is the same clipped
        # or not.
        self.assertAllClose(terms["value_loss"], 0.5 * (2.5**2 + 0.5**2) / 2)
        self.assertAllClose(terms["entropy"], 0.75 * np.log(4 / 3) + 0.25 * np.log(4))
        self.assertAllClose(terms["approx_kl"], ((0.5 - np.log(1.5)) + (-0.5 - np.log(0.5))) / 2)
        self.assertAllClose(terms["clip_fraction"], 1.0)

    def test_errors_of_values_by_hand_on_a_scale(self):
        # Of roots: 8 is 2, 3 is 1, 24 is 4, 0 is 0. Plain errors 2 - 4 and 1 - 0; clipped to 0.5
        # of the old ones, 1 and 0, 1.5 - 4 and 0.5 - 0.
        logits = tf.zeros([2, 2])
        rest = [tf.constant([0, 0]), tf.fill([2], np.float32(np.log(0.5)))]
        values = [tf.constant(each) for each in ([3.0, 0.0], [0.0, 0.0], [24.0, 0.0], [1.0, 1.0])]
        value = tf.constant([8.0, 3.0])
        for value_clip, errors in ((None, (2, 1)), (0.5, (2.5, 1))):
            terms = losses.ppo_losses(
                logits, value, *rest, *values, clip=0.2, value_clip=value_clip, scale=SCALES["sqrt"]
            )
            self.assertAllClose(terms["value_loss"], 0.5 * np.mean(np.square(errors)))

    def test_no_gradient_beyond_the_clip(self):
        logits = tf.Variable(tf.math.log([[1.0, 3.0], [1.0, 1.0]]))
        rest = [
            tf.constant([1, 0]),
            tf.fill([2], np.float32(np.log(0.5))),
            tf.zeros(2),
            tf.constant([2.0, 2.0]),
            tf.zeros(2),
            tf.ones(2),
        ]
        with tf.GradientTape() as tape:
            loss = losses.ppo_losses(logits, tf.zeros(2), *rest, clip=0.2)["policy_loss"]
        gradient = tape.gradient(loss, logits).numpy()
        self.assertAllEqual(gradient[0], [0, 0])
        self.assertAllClose(gradient[1], [-0.5, 0.5])  # -ratio x advantage / 2 x (1 - p)


class TDLoss(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        # Chosen: 3, 0, 2, 9. Errors: 0.5, -4, 1, and one that is masked.
        self.q = tf.constant([[[1.0, 3.0], [0.0, 7.0]], [[5.0, 2.0], [9.0, 9.0]]])[..., None]
        self.actions = tf.constant([[1, 0], [1, 0]])
        self.targets = tf.constant([[2.5, 4.0], [1.0, -1000.0]])[..., None]
        self.mask = tf.constant([[1.0, 1.0], [1.0, 0.0]])

    def test_masked_mean_by_hand(self):
        loss, diagnostics = losses.td_loss(self.q, self.actions, self.targets, self.mask)
        # Huber, delta 1: 0.125, 3.5, 0.5.
        self.assertAllClose(loss, 4.125 / 3)
        self.assertAllClose(diagnostics["q_mean"], 5.0 / 3)
        self.assertAllClose(diagnostics["td_error"], 5.5 / 3)

    def test_delta_by_hand(self):
        loss, _ = losses.td_loss(self.q, self.actions, self.targets, self.mask, delta=2.0)
        self.assertAllClose(loss, (0.125 + 2 * (4 - 1) + 0.5) / 3)

    def test_gradient_enters_chosen_values_only(self):
        with tf.GradientTape() as tape:
            tape.watch((self.q, self.targets))
            loss, _ = losses.td_loss(self.q, self.actions, self.targets, self.mask)
        to_q, to_targets = tape.gradient(loss, (self.q, self.targets))
        self.assertIsNone(to_targets)
        # The error, clipped to +-1, over the 3 steps that count, at the action taken.
        self.assertAllClose(to_q[..., 0], [[[0, 0.5 / 3], [-1 / 3, 0]], [[0, 1 / 3], [0, 0]]])

    def test_nothing_to_learn_is_zero(self):
        loss, diagnostics = losses.td_loss(self.q, self.actions, self.targets, tf.zeros([2, 2]))
        self.assertAllEqual([loss, diagnostics["q_mean"], diagnostics["td_error"]], [0.0, 0.0, 0.0])

    def test_shapes_are_checked(self):
        with self.assertRaises(ValueError):
            losses.td_loss(self.q, self.actions, self.targets[:, :1], self.mask)
        with self.assertRaises(ValueError):
            losses.td_loss(self.q, self.actions[:1], self.targets, self.mask)


class QuantileTDLoss(tf.test.TestCase):
    def test_by_hand(self):
        # Of action 1, at 0 and 1, with fractions 1/4 and 3/4. Errors to targets 2 and 1/2: 2, 1/2
        # and 1, -1/2.
        # Huber: 3/2, 1/8 and 1/2, 1/8. Weights: 1/4, 1/4 and 3/4, 1/4 (the last from above).
        # Means over the targets: 13/64 and 13/64; their sum is the step's loss. The second step is
        # masked.
        quantiles = tf.constant([[[[9.0, 9.0], [0.0, 1.0]], [[7.0, 7.0], [7.0, 7.0]]]])
        targets = tf.constant([[[2.0, 0.5], [100.0, 100.0]]])
        loss, diagnostics = losses.td_loss(
            quantiles, tf.constant([[1, 0]]), targets, tf.constant([[1.0, 0.0]])
        )
        self.assertAllClose(loss, 26 / 64)
        self.assertAllClose(diagnostics["q_mean"], 0.5)
        self.assertAllClose(diagnostics["td_error"], 0.75)

    def test_one_quantile_is_half_the_plain_loss(self):
        # The fraction is 1/2: either side weighs as much.
        rng = np.random.default_rng(0)
        q = tf.constant(rng.normal(size=(4, 3, 1)) * 3, tf.float32)
        targets = tf.constant(rng.normal(size=(4, 3, 1)) * 3, tf.float32)
        plain = losses.huber(targets - q)[..., 0]
        self.assertAllClose(losses.quantile_huber(q, targets), plain / 2)

    def test_least_at_the_quantiles(self):
        # 100 targets 0.005, 0.015, ... of a uniform distribution: its quantiles of 1/8, 3/8, 5/8,
        # 7/8 are those numbers.
        targets = tf.tile((tf.range(100.0) + 0.5)[:, None, None] / 100, [1, 1, 4])
        actions, mask = tf.zeros([100, 1], tf.int32), tf.ones([100, 1])

        def loss(at):
            quantiles = tf.tile(tf.constant(at, tf.float32)[None, None, None], [100, 1, 1, 1])
            return losses.td_loss(quantiles, actions, targets, mask, delta=1e-3)[0]

        best = np.array([0.125, 0.375, 0.625, 0.875])
        for i in range(4):
            for move in (-0.05, 0.05):
                self.assertGreater(loss(best + move * np.eye(4)[i]), loss(best))

    def test_no_gradient_through_targets(self):
        quantiles, targets = tf.constant([[[[0.0, 1.0], [2.0, 3.0]]]]), tf.constant([[[2.0, 0.5]]])
        with tf.GradientTape() as tape:
            tape.watch((quantiles, targets))
            loss, _ = losses.td_loss(quantiles, tf.constant([[0]]), targets, tf.ones([1, 1]))
        to_quantiles, to_targets = tape.gradient(loss, (quantiles, targets))
        self.assertIsNone(to_targets)
        # Clipped errors 1, 1/2 and 1, -1/2 with weights 1/4, 1/4 and 3/4, 1/4, the mean over the
        # targets.
        self.assertAllClose(to_quantiles, [[[[-0.1875, -0.3125], [0, 0]]]])


class HuberAndAdam(tf.test.TestCase):
    def test_huber_agrees_with_keras(self):
        errors = np.linspace(-5, 5, 41, dtype="float32")
        for delta in (0.3, 1.0, 2.5):
            # A row for each error, because Keras gives the mean of a row.
            expected = keras.losses.Huber(delta=delta, reduction=None)(
                np.zeros((41, 1), "float32"), errors[:, None]
            )
            self.assertAllClose(
                losses.huber(tf.constant(errors), delta), expected, msg=f"delta {delta}"
            )

    def test_adam_agrees_with_keras(self):
        # Where epsilon enters differs between the two; 1e-12 is as good as none.
        rng = np.random.default_rng(0)
        start = rng.normal(size=6).astype("float32")
        variable = keras.Variable(start)
        reference = keras.optimizers.Adam(0.05, beta_1=0.8, beta_2=0.95, epsilon=1e-12)
        weights, moments = tf.constant(start), (tf.zeros(6), tf.zeros(6))
        for count in range(1, 8):
            gradient = tf.constant(rng.normal(size=6) * 10.0 ** rng.integers(-3, 3, 6), tf.float32)
            reference.apply([gradient], [variable])
            weights, moments = losses.adam(
                weights,
                gradient,
                moments,
                tf.constant(count, tf.int64),
                rate=0.05,
                epsilon=1e-12,
                beta1=0.8,
                beta2=0.95,
            )
            self.assertAllClose(weights, variable.value, rtol=1e-5, atol=1e-6, msg=f"step {count}")
        self.assertGreater(np.abs(weights - start).max(), 0.05)

    def test_adam_first_step_by_hand(self):
        # Corrected, the moments of the first step are g and g^2: a step of rate * g / (|g| +
        # epsilon).
        weights, moments = losses.adam(
            tf.constant([1.0, 1.0]),
            tf.constant([3.0, -1.0]),
            (tf.zeros(2), tf.zeros(2)),
            tf.constant(1),
            rate=0.1,
            epsilon=1.0,
        )
        self.assertAllClose(weights, [1 - 0.1 * 3 / 4, 1 + 0.1 * 1 / 2])
        self.assertAllClose(moments, ([0.3, -0.1], [0.009, 0.001]))


if __name__ == "__main__":
    unittest.main()
