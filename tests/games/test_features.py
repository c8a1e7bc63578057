"""What is done to observations before a network reads them."""

import unittest

import numpy as np
from gymnasium import spaces

from tests.games.toys import BOX, PAIR, RAM, build, q_of, random_window
from tfdqt.backend import keras, tf
from tfdqt.errors import UsageError
from tfdqt.games import features, networks
from tfdqt.games.config import NetworkConfig
from tfdqt.games.flat import adapt, flatten_model
from tfdqt.games.spaces import EnvInfo, describe


class Features(tf.test.TestCase):
    def test_bytes_and_bits_by_hand(self):
        obs = tf.constant([[[5, 255], [0, 128]]], tf.uint8)
        info = RAM._replace(obs_shape=(2,))
        self.assertAllClose(
            features.as_numbers(obs, info, NetworkConfig()),
            [[[5 / 128 - 1, 255 / 128 - 1], [-1, 0]]],
        )
        bits = features.as_numbers(obs, info, NetworkConfig(ram_bits=True)).numpy()
        self.assertAllEqual(
            bits[0, :, 2:], [[1, 0, 1, 0, 0, 0, 0, 0] + [1] * 8, [0] * 8 + [0, 0, 0, 0, 0, 0, 0, 1]]
        )
        self.assertAllClose(bits[0, :, :2], [[5 / 128 - 1, 255 / 128 - 1], [-1, 0]])

    def test_bytes_of_zero_and_one_stay_so_in_a_grid(self):
        obs = tf.constant([[[0, 1]]], tf.uint8)
        scaled = [[[-1, 1 / 128 - 1]]]
        for high, shape, expected in (
            (1, (1, 2), [[[0, 1]]]),
            (2, (1, 2), scaled),
            (1, (2,), scaled),
        ):
            space = spaces.Box(0, high, shape, np.uint8)
            info = RAM._replace(obs_shape=(2,), observation_space=space)
            self.assertAllClose(features.as_numbers(obs, info, NetworkConfig()), expected)

    def test_discrete_by_hand(self):
        one_hot = features.as_numbers(tf.constant([[[2, 0]]]), PAIR, NetworkConfig())
        self.assertAllEqual(one_hot, [[[0, 0, 1, 1, 0, 0, 0, 0]]])

    def test_what_seldom_changes_is_not_seen(self):
        for info, settings in (
            (BOX, {}),
            (RAM, dict(tokens="features")),
            (RAM, dict(ram_bits=True)),
            (RAM, dict(network="dense")),
            (PAIR, {}),
            (PAIR, dict(network="dense", standardize=True)),
        ):
            with self.subTest(info=info.name, **settings):
                model, cfg = build(info, min_change=0.1, **settings)
                inputs = random_window(info, cfg.context)
                obs = inputs["obs"]
                obs[..., 0] = obs[..., 1] = 1
                q, slow, fast = q_of(model, inputs), obs.copy(), obs.copy()
                slow[..., 0], fast[..., 1] = 2, 2
                self.assertGreater(
                    np.abs(q_of(model, dict(inputs, obs=slow)) - q).max(), 1e-4
                )  # at first all is shown
                model.get_layer("hide_static").rate.assign([0.09] + [0.1] * (obs.shape[-1] - 1))
                q = q_of(model, inputs)
                self.assertAllEqual(q_of(model, dict(inputs, obs=slow)), q)
                self.assertGreater(np.abs(q_of(model, dict(inputs, obs=fast)) - q).max(), 1e-4)

    def test_what_seldom_changes_is_seen_faintly(self):
        layer = features.HideStatic(0.1, 0.03)
        self.assertAllClose(
            layer(tf.constant([[100, 200]], tf.uint8)), [[100, 200]]
        )  # at first all is shown
        layer.rate.assign([0.05, 0.1])
        self.assertAllClose(layer(tf.constant([[100, 200]], tf.uint8)), [[3, 200]])
        for info, settings, faint in (
            (RAM, {}, True),
            (BOX, {}, True),
            (RAM, dict(network="dense"), True),
            (PAIR, {}, False),
            (BOX, dict(tokens="features"), True),
            (RAM, dict(tokens="features"), False),
            (RAM, dict(ram_bits=True), False),
        ):
            with self.subTest(info=info.name, **settings):
                model, cfg = build(info, min_change=0.1, hidden_scale=0.03, **settings)
                inputs = random_window(info, cfg.context)
                model.get_layer("hide_static").rate.assign(
                    [0.09] + [0.1] * (inputs["obs"].shape[-1] - 1)
                )
                other = inputs["obs"].copy()
                inputs["obs"][..., 0], other[..., 0] = 1, 2 if info is PAIR else 100
                change = np.abs(q_of(model, dict(inputs, obs=other)) - q_of(model, inputs)).max()
                self.assertEqual(change > 0, faint)

    def test_standardize_by_hand(self):
        layer = features.Standardize()
        x = tf.constant([[1.0, 10.0], [2.0, -100.0]])
        # Before it is set, only what is beyond 5 is drawn in.
        self.assertAllClose(layer(x), [[1, 5 + np.log(6)], [2, -5 - np.log(96)]])
        layer.mean.assign([1.0, 4.0])
        layer.scale.assign([0.5, 2.0])
        self.assertAllClose(layer(x), [[0, 3], [2, -5 - np.log(48)]])
        self.assertEqual((layer.trainable_variables, len(layer.non_trainable_variables)), ([], 2))

    def test_standardize_takes_mean_and_deviation(self):
        # A number; one that hardly changes; one that has not changed; a category.
        x = np.array([[1, 5, 7, 1], [3, 5.004, 7, 0]], "float32")
        keep = [False, False, False, True]
        for shape in ((2, 4), (1, 2, 4)):  # steps [M, F], steps of cells [M, H, F]
            layer = features.Standardize(keep)
            layer(x)
            layer.adapt(x.reshape(shape), None)
            self.assertAllClose(layer.mean, [2, 5.002, 7, 0])
            self.assertAllClose(layer.scale, [1, 0.01, 0.1, 1])
            self.assertAllClose(
                layer(x + [[0, 0, 2, 19], [0, 0, 0, 0]]),
                [[-1, -0.2, 5 + np.log(16), 20], [1, 0.2, 0, 0]],
                atol=1e-4,
            )

    def test_standardize_is_exact_far_from_zero(self):
        noise = np.random.default_rng(0).normal(size=(20_000, 2))
        layer = features.Standardize()
        x = np.float32(1e6 + noise)
        layer(x)
        layer.adapt(x, None)
        self.assertAllClose(layer.mean, [1e6, 1e6], rtol=1e-7)
        self.assertAllClose(layer.scale, [1, 1], atol=0.02)

    def test_what_is_standardized(self):
        mixed = describe(
            spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2,), np.float32)),
            spaces.Discrete(2),
            "Mixed",
        )
        colours = describe(spaces.Box(0, 255, (2, 2, 1), np.uint8), spaces.Discrete(2), "Colours")
        cells = dict(tokens="cells", patch=2)
        for info, settings, name, kept in (
            (BOX, {}, "standardize", False),
            (
                RAM,
                dict(ram_bits=True),
                "standardize",
                [False] * RAM.features + [True] * 8 * RAM.features,
            ),
            (mixed, {}, "standardize", [True] * 3 + [False] * 2),
            (mixed, dict(tokens="features"), "standardize", [True, False, False]),
            (colours, {}, "standardize", False),
            (colours, cells, "standardize_cells", False),
        ):
            with self.subTest(info=info.name, **settings):
                model, _ = build(info, standardize=True, **settings)
                layer = model.get_layer(name)
                self.assertAllEqual(layer.keep, np.broadcast_to(kept, layer.keep.shape))
        model, _ = build(PAIR, standardize=True)  # categories alone
        self.assertFalse([layer for layer in model.layers if hasattr(layer, "adapt")])

    def test_standardized_network_sees_the_same_after_a_change_of_units(self):
        for settings in ({}, dict(tokens="features"), dict(network="dense")):
            model, cfg = build(BOX, standardize=True, **settings)
            inputs = random_window(BOX, cfg.context)
            inputs["obs"] = inputs["obs"].clip(-2, 2)
            q = q_of(model, inputs)
            layer = model.get_layer("standardize")
            layer.mean.assign([100.0, 0.0, -3.0])
            layer.scale.assign([10.0, 0.5, 1.0])
            inputs["obs"] = (inputs["obs"] * [10, 0.5, 1] + [100, 0, -3]).astype("float32")
            self.assertAllClose(q_of(model, inputs), q, rtol=1e-3, atol=1e-3)

    def test_how_often_features_change_by_hand(self):
        # Of three pairs of steps the second spans two episodes and does not count. The first
        # feature has a range of 4.
        obs = np.array([[4, 0], [1, 0], [2, 5], [0, 5]], "float32")
        first = np.array([True, False, True, False])
        self.assertAllEqual(features.change_rates(obs, first), [(3 + 2) / 2 / 4, 0])
        self.assertAllEqual(
            features.change_rates(obs.astype("uint8"), first), [(3 + 2) / 2 / 256, 0]
        )
        self.assertAllEqual(features.change_rates(obs, first, [True, False]), [1, 0])
        nothing_known = features.change_rates(obs, np.ones(4, bool))
        self.assertAllEqual(nothing_known, [1, 1])

    def test_what_is_a_category(self):
        # However it is kept: a grid of bits or of categories is as bytes.
        for space, expected in (
            (spaces.MultiBinary((2, 2)), [True] * 4),
            (spaces.MultiDiscrete([[3, 300]]), [True] * 2),
            (spaces.Box(0, 1, (1, 2), np.uint8), [True] * 2),
            (spaces.Box(0, 1, (1, 2), np.bool_), [True] * 2),
            (spaces.Box(0, 1, (2,), np.bool_), [False] * 2),
            (spaces.Box(0, 2, (1, 2), np.uint8), [False] * 2),
            (spaces.Box(0, 1, (2,), np.uint8), [False] * 2),
            (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,))), [True, False, False]),
        ):
            info = describe(space, spaces.Discrete(2), "Toy")
            self.assertAllEqual(features.are_categories(info), expected, msg=f"{space}")

    def test_categories_are_hidden_and_numbers_beside_them_are_faint(self):
        space = spaces.Dict(a=spaces.MultiDiscrete([9, 9]), b=spaces.Box(-9, 9, (2,), np.float32))
        info = describe(space, spaces.Discrete(2), "Toy")
        cfg = NetworkConfig(context=1, min_change=0.5, hidden_scale=0.25)
        hide = features.hide_static(keras.Input((1, 4)), info, cfg)
        layer = keras.Model(hide._keras_history.operation.input, hide).layers[-1]
        # A category that changes is at 1 each time; so it would be by its size only if it jumped.
        first = np.array([True, False, False])
        layer.adapt(np.array([[1, 0, 1, 0], [2, 0, 1, 8], [1, 0, 1, 0]], "float32"), first)
        self.assertAllEqual(layer.rate, [1, 0, 0, 1])
        self.assertAllEqual(layer(np.array([[[7.0, 8.0, 4.0, 2.0]]])), [[[7, 0, 1, 2]]])

    def test_hide_static_counts_changes(self):
        hiding = features.HideStatic(0.1)
        hiding.build((None, 2))
        obs = np.array([[4, 0], [1, 0], [2, 5], [0, 5]], "float32")
        first = np.array([True, False, True, False])
        hiding.adapt(obs, first)
        self.assertAllEqual(hiding.rate, [(3 + 2) / 2 / 4, 0])
        self.assertAllEqual(hiding.shown, [True, False])
        with self.assertRaisesRegex(UsageError, "lower --min-change"):
            features.HideStatic(0.1).adapt(np.zeros((4, 2), "float32"), first)

    def test_features_shown_of_a_network(self):
        info = EnvInfo("Pair", (2,), "float32", (), 2)
        small = NetworkConfig(context=1, layers=1, heads=1, width=4, min_change=0.1)
        net = flatten_model(networks.build_q(info, small))
        obs = np.array([[4, 0], [1, 0], [2, 5], [0, 5]], "float32")
        (rate,) = adapt(net, obs, np.array([True, False, True, False]))
        self.assertAllEqual(rate, [(3 + 2) / 2 / 4, 0])
        self.assertAllEqual(features.features_shown(net.model), [0])
        self.assertIsNone(features.features_shown(build(BOX)[0]))


if __name__ == "__main__":
    unittest.main()
