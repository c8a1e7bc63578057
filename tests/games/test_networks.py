"""Q-networks: shapes, what a step can and can't see, and numbers worked by hand."""

import functools
import unittest

import numpy as np

from tfdqt import gpt
from tfdqt.backend import keras, tf
from tfdqt.config import NetworkConfig, UsageError
from tfdqt.envs import EnvInfo

BOX = EnvInfo("Box", (3,), "float32", (), 2)
RAM = EnvInfo("Ram", (6,), "uint8", (), 4)
PLACES = EnvInfo("Places", (1,), "int32", (7,), 3)
PAIR = EnvInfo("Pair", (2,), "int32", (3, 5), 3)
SMALL = dict(context=4, layers=1, heads=2, width=8, hidden=(16, 8))
GPTS = (dict(), dict(layers=2, gru_gate=True, prev_action=True, dueling=True), dict(tokens="features", prev_action=True),
        dict(tokens="features", context=8, layers=2))


def build(info, seed=0, **settings):
    """A network with large random weights: at the start they are so small that little depends on anything."""
    cfg = NetworkConfig(**{**SMALL, **settings})
    model = gpt.build_q(info, cfg)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.5)
    return model, cfg


@functools.cache
def shared(info, settings):
    """One that no test changes."""
    return build(info, **dict(settings))


def window(info, context, batch=5, seed=1):
    """A window of random steps in which no episode starts but at its front."""
    rng = np.random.default_rng(seed)
    shape = (batch, context, *info.obs_shape)
    if info.nvec:
        obs = rng.integers(info.nvec, size=shape).astype("int32")
    else:
        obs = rng.integers(256, size=shape).astype("uint8") if info.obs_dtype == "uint8" else rng.normal(size=shape).astype("float32")
    first = np.zeros((batch, context), "int32")
    first[:, 0] = 1
    return dict(obs=obs, first=first, prev_action=rng.integers(-1, info.num_actions, (batch, context)).astype("int32"))


def q_of(model, inputs):
    return model({name: tf.constant(inputs[name]) for name in model.input}).numpy()


def changed(inputs, places, info, seed=2):
    """`inputs` with other observations and actions at `places`."""
    other = window(info, inputs["obs"].shape[1], len(inputs["obs"]), seed)
    result = {name: np.array(value) for name, value in inputs.items()}
    for name in ("obs", "prev_action"):
        result[name][:, places] = other[name][:, places]
    return result


class Shapes(tf.test.TestCase):

    def test_all_settings(self):
        for info, settings in (
                (BOX, {}), (BOX, dict(tokens="features")), (BOX, dict(standardize=True)), (BOX, dict(context=1)),
                (RAM, dict(min_change=0.01)),
                (BOX, dict(tokens="features", standardize=True, context=1)), (RAM, dict(ram_bits=True, prev_action=True)),
                (RAM, dict(tokens="features", prev_action=True)), (RAM, dict(gru_gate=True, dueling=True, layers=2)),
                (RAM, dict(ram_bits=True, standardize=True)), (PLACES, dict(dueling=True)), (PLACES, dict(tokens="features")),
                (PAIR, dict(tokens="features", gru_gate=True)), (PAIR, dict(standardize=True, prev_action=True)),
                (BOX, dict(network="dense")), (RAM, dict(network="dense", ram_bits=True, standardize=True, prev_action=True)),
                (PAIR, dict(network="dense", dueling=True, context=1)), (BOX, dict(quantiles=1)),
                (RAM, dict(quantiles=5, dueling=True)), (BOX, dict(quantiles=5, network="dense")),
                (RAM, dict(every_step=False, quantiles=5)), (PAIR, dict(network="dense", every_step=True, prev_action=True))):
            with self.subTest(info=info.name, **settings):
                model, cfg = build(info, **settings)
                q = q_of(model, window(info, cfg.context))
                quantiles = (cfg.quantiles,) if cfg.quantiles else ()
                steps = cfg.context if cfg.every_step or cfg.every_step is None and cfg.network == "gpt" else 1
                self.assertEqual(q.shape, (5, steps, info.num_actions, *quantiles))
                self.assertEqual(q.dtype, np.float32)
                self.assertAllInRange(q, -1e4, 1e4)  # finite
                self.assertGreater(np.ptp(q[:, -1], axis=0).min(), 1e-4)  # it depends on the window
                self.assertEqual("prev_action" in model.input, cfg.prev_action)

    def test_sizes_that_do_not_fit(self):
        for name in ("gpt", "dense"):
            with self.assertRaisesRegex(UsageError, "--width"):
                gpt.build_q(BOX, NetworkConfig(network=name, width=10, heads=4))
        with self.assertRaisesRegex(UsageError, "--context"):
            gpt.build_q(BOX, NetworkConfig(context=0))
        with self.assertRaisesRegex(UsageError, "--hidden"):
            gpt.build_q(BOX, NetworkConfig(network="dense", hidden=()))

    def test_first_values_are_small(self):
        for settings in ({}, dict(gru_gate=True), dict(tokens="features")):
            model = gpt.build_q(RAM, NetworkConfig(**{**SMALL, **settings}))
            self.assertAllInRange(q_of(model, window(RAM, 4)), -1.0, 1.0)


class ParameterCounts(tf.test.TestCase):

    def test_decoder_by_hand(self):
        # 3 features, 4 steps, width 8, 2 actions. Embeddings: 3*8 + 8 and 4*8. Block: two norms of 2*8, attention 8*24 + 24 and
        # 8*8 + 8, feed-forward 8*32 + 32 and 32*8 + 8. Then a norm of 2*8 and 8*2 + 2.
        plain = 32 + 32 + (2 * 16 + 216 + 72 + 288 + 264) + 16 + 18
        count = {}
        for key, settings in dict(plain={}, two=dict(layers=2), gate=dict(gru_gate=True), action=dict(prev_action=True),
                                  dueling=dict(dueling=True), heads=dict(heads=4), quantiles=dict(quantiles=5)).items():
            count[key] = build(BOX, **settings)[0].count_params()
        self.assertEqual(count, dict(
            plain=plain, two=plain + 872, heads=plain, action=plain + 2 * 8, dueling=plain + 8 + 1, quantiles=plain + 4 * (8 * 2 + 2),
            gate=plain + 2 * (6 * 8 * 8 + (8 * 8 + 8))))  # two gates of GTrXL's six matrices, and one more with a bias

    def test_dense_by_hand(self):
        # 4 steps of 3 features, 16 and 8 hidden, 2 actions.
        self.assertEqual(build(BOX, network="dense")[0].count_params(), 12 * 16 + 16 + 16 * 8 + 8 + 8 * 2 + 2)

    def test_inputs_by_hand(self):
        # What a further feature costs: a row of the embedding for a step's token.
        for info, settings, features in ((RAM, {}, 6), (RAM, dict(ram_bits=True), 6 * 9), (PLACES, {}, 7), (PAIR, {}, 8)):
            model, _ = build(info, **settings)
            self.assertEqual(model.get_layer("embed_obs").kernel.shape, (features, 8))


class Sight(tf.test.TestCase):
    """What a step sees: its own episode, up to itself."""

    def test_no_step_sees_a_later_one(self):
        for info in (BOX, RAM, PAIR):
            for settings in (*GPTS, dict(network="dense", every_step=True)):
                with self.subTest(info=info.name, **settings):
                    model, cfg = shared(info, tuple(settings.items()))
                    inputs = window(info, cfg.context)
                    q, other = q_of(model, inputs), q_of(model, changed(inputs, slice(2, 3), info))
                    self.assertAllClose(other[:, :2], q[:, :2], rtol=0, atol=1e-5)
                    moved = np.abs(other - q).max(axis=(0, 2))
                    self.assertGreater(moved[2:].min(), 1e-3)  # all from the changed step on see it

    def test_no_step_sees_behind_the_start_of_its_episode(self):
        for info in (BOX, RAM, PAIR):
            for settings in (*GPTS, dict(network="dense"), dict(network="dense", prev_action=True, standardize=True)):
                with self.subTest(info=info.name, **settings):
                    model, cfg = shared(info, tuple(settings.items()))
                    inputs = window(info, cfg.context)
                    unbroken = q_of(model, inputs) - q_of(model, changed(inputs, slice(0, 2), info))
                    self.assertGreater(np.abs(unbroken[:, -1]).max(), 1e-3)
                    inputs["first"][:, 2] = 1
                    other = changed(inputs, slice(0, 2), info)
                    other["first"][:, :2] = [0, 1]
                    begin = 0 if cfg.network == "dense" else 2
                    self.assertAllClose(q_of(model, other)[:, begin:], q_of(model, inputs)[:, begin:], rtol=0, atol=1e-5)

    def test_values_of_the_last_step_do_not_depend_on_whether_every_step_has_some(self):
        for info in (BOX, RAM, PAIR):
            for settings in (*GPTS, dict(network="dense"), dict(network="dense", prev_action=True)):
                with self.subTest(info=info.name, **settings):
                    last, cfg = shared(info, (*settings.items(), ("every_step", False)))
                    every, _ = shared(info, (*settings.items(), ("every_step", True)))
                    every.set_weights(last.get_weights())
                    inputs = window(info, cfg.context)
                    inputs["first"][1, 2] = 1
                    q = q_of(every, inputs)
                    self.assertAllClose(q[:, -1:], q_of(last, inputs), rtol=0, atol=1e-5)
                    # The second step's are those of a window that ends there, before which another episode ended.
                    early = {name: np.concatenate([part[:, 2:], part[:, :2]], axis=1) for name, part in inputs.items()}
                    early["first"][:, -2] = 1
                    self.assertAllClose(q[:, 1:2], q_of(last, early), rtol=0, atol=1e-5)

    def test_window_cut_by_a_reset_is_one_that_starts_there(self):
        for info in (BOX, RAM, PAIR):
            for settings in GPTS:
                with self.subTest(info=info.name, **settings):
                    model, cfg = shared(info, tuple(settings.items()))
                    cut = window(info, cfg.context)
                    cut["first"][:, 0], cut["first"][:, 2] = 0, 1
                    shown = cfg.context - 2
                    front = window(info, cfg.context, seed=3)
                    for name, value in front.items():
                        value[:, :shown] = cut[name][:, 2:]
                    expected = q_of(model, cut)[:, 2:]
                    self.assertAllClose(q_of(model, front)[:, :shown], expected, rtol=0, atol=1e-5)
                    front["first"][:, 0] = 0  # the front of a window is a start, whether or not an episode starts there
                    self.assertAllClose(q_of(model, front)[:, :shown], expected, rtol=0, atol=1e-5)

    def test_places_are_told_apart(self):
        for settings in ({}, dict(tokens="features")):
            model, _ = build(BOX, **settings)
            inputs = window(BOX, 4)
            inputs["obs"][:] = inputs["obs"][:, :1]  # the same observation at each step
            q = q_of(model, inputs)
            self.assertGreater(np.abs(np.diff(q, axis=1)).max(axis=(0, 2)).min(), 1e-3)

    def test_nothing_beside_the_weights_tells_two_builds_apart(self):
        for settings in (dict(tokens="features"), dict(network="dense"), dict(dueling=True, quantiles=4)):
            (one, cfg), (other, _) = build(RAM, **settings), build(RAM, **settings)
            other.set_weights(one.get_weights())
            inputs = window(RAM, cfg.context)
            self.assertAllEqual(q_of(one, inputs), q_of(other, inputs))

    def test_features_are_told_apart(self):
        # With one byte in all features but one, it matters in which.
        model, _ = build(RAM, tokens="features")
        inputs = window(RAM, 4, batch=6)
        inputs["obs"][:] = 7
        for row in range(6):
            inputs["obs"][row, :, row] = 200
        q = q_of(model, inputs)[:, -1]
        self.assertGreater(min(np.abs(q[i] - q[j]).max() for i in range(6) for j in range(i)), 1e-4)

    def test_same_episode_by_hand(self):
        self.assertAllEqual(gpt.same_episode(tf.constant([[0, 1, 0, 1]])),
                            [[[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]])


class Parts(tf.test.TestCase):

    def test_attention_agrees_with_keras(self):
        rng = np.random.default_rng(0)
        for length in (1, 5, 20):  # it is written in three ways, for windows of one step, a few and many
            x_in, visible_in = keras.Input((length, 8)), keras.Input((length, length))
            model = keras.Model([x_in, visible_in], gpt.attention(x_in, visible_in, heads=2, name="a", scale=0.02))
            for variable in model.trainable_variables:
                variable.assign(rng.normal(size=variable.shape) * 0.7)
            x = rng.normal(size=(3, length, 8)).astype("float32")
            visible = ((rng.random((3, length, length)) < 0.5) | np.eye(length, dtype=bool)).astype("float32")
            q, k, v = np.moveaxis(model.get_layer("a_qkv")(x).numpy().reshape(3, length, 3, 2, 4), 2, 0)
            mixed = keras.ops.dot_product_attention(q, k, v, mask=visible[:, None].astype(bool))
            expected = model.get_layer("a_out")(keras.ops.reshape(mixed, (3, length, 8)))
            self.assertAllClose(model([x, visible]), expected, rtol=1e-4, atol=1e-5, msg=f"length {length}")

    def test_bytes_and_bits_by_hand(self):
        obs = tf.constant([[[5, 255], [0, 128]]], tf.uint8)
        info = RAM._replace(obs_shape=(2,))
        self.assertAllClose(gpt.raw_scaled(obs, info, NetworkConfig()), [[[5 / 128 - 1, 255 / 128 - 1], [-1, 0]]])
        bits = gpt.raw_scaled(obs, info, NetworkConfig(ram_bits=True)).numpy()
        self.assertAllEqual(bits[0, :, 2:], [[1, 0, 1, 0, 0, 0, 0, 0] + [1] * 8, [0] * 8 + [0, 0, 0, 0, 0, 0, 0, 1]])
        self.assertAllClose(bits[0, :, :2], [[5 / 128 - 1, 255 / 128 - 1], [-1, 0]])

    def test_discrete_by_hand(self):
        one_hot = gpt.raw_scaled(tf.constant([[[2, 0]]]), PAIR, NetworkConfig())
        self.assertAllEqual(one_hot, [[[0, 0, 1, 1, 0, 0, 0, 0]]])

    def test_entries_have_values_of_their_own(self):
        # 3 values of the first entry, then 5 of the second: with the latter all alike, the second entry tells nothing.
        model, _ = build(PAIR, tokens="features")
        table = model.get_layer("embed_value").embeddings
        self.assertEqual(table.shape, (3 + 5, 8))
        table.assign(np.where(np.arange(8)[:, None] < 3, table, 0.0))
        inputs, first, second = (window(PAIR, 4) for _ in range(3))
        first["obs"][..., 0] = (first["obs"][..., 0] + 1) % 3
        second["obs"][..., 1] = (second["obs"][..., 1] + 1) % 5
        q = q_of(model, inputs)
        self.assertAllClose(q_of(model, second), q, rtol=0, atol=1e-5)
        self.assertGreater(np.abs(q_of(model, first) - q).max(), 1e-2)

    def test_what_seldom_changes_is_not_seen(self):
        for info, settings in ((BOX, {}), (RAM, dict(tokens="features")), (RAM, dict(ram_bits=True)), (RAM, dict(network="dense")),
                               (PAIR, {}), (PAIR, dict(network="dense", standardize=True))):
            with self.subTest(info=info.name, **settings):
                model, cfg = build(info, min_change=0.1, **settings)
                inputs = window(info, cfg.context)
                obs = inputs["obs"]
                obs[..., 0] = obs[..., 1] = 1
                q, slow, fast = q_of(model, inputs), obs.copy(), obs.copy()
                slow[..., 0], fast[..., 1] = 2, 2
                self.assertGreater(np.abs(q_of(model, dict(inputs, obs=slow)) - q).max(), 1e-4)  # at first all is shown
                model.get_layer("changing").rate.assign([0.09] + [0.1] * (obs.shape[-1] - 1))
                q = q_of(model, inputs)
                self.assertAllEqual(q_of(model, dict(inputs, obs=slow)), q)
                self.assertGreater(np.abs(q_of(model, dict(inputs, obs=fast)) - q).max(), 1e-4)

    def test_what_seldom_changes_is_seen_faintly(self):
        layer = gpt.Changing(0.1, 0.03)
        self.assertAllClose(layer(tf.constant([[100, 200]], tf.uint8)), [[100, 200]])  # at first all is shown
        layer.rate.assign([0.05, 0.1])
        self.assertAllClose(layer(tf.constant([[100, 200]], tf.uint8)), [[3, 200]])
        for info, settings, faint in ((RAM, {}, True), (BOX, {}, True), (RAM, dict(network="dense"), True), (PAIR, {}, False),
                                      (BOX, dict(tokens="features"), True), (RAM, dict(tokens="features"), False),
                                      (RAM, dict(ram_bits=True), False)):
            with self.subTest(info=info.name, **settings):
                model, cfg = build(info, min_change=0.1, hidden_scale=0.03, **settings)
                inputs = window(info, cfg.context)
                model.get_layer("changing").rate.assign([0.09] + [0.1] * (inputs["obs"].shape[-1] - 1))
                other = inputs["obs"].copy()
                inputs["obs"][..., 0], other[..., 0] = 1, 2 if info is PAIR else 100
                change = np.abs(q_of(model, dict(inputs, obs=other)) - q_of(model, inputs)).max()
                self.assertEqual(change > 0, faint)

    def test_standardize_by_hand(self):
        layer = gpt.Standardize()
        x = tf.constant([[1.0, 10.0], [2.0, -100.0]])
        self.assertAllClose(layer(x), [[1, 5], [2, -5]])  # before it is set, only clipped
        layer.mean.assign([1.0, 4.0])
        layer.scale.assign([0.5, 2.0])
        self.assertAllClose(layer(x), [[0, 3], [2, -5]])
        self.assertEqual((layer.trainable_variables, len(layer.non_trainable_variables)), ([], 2))

    def test_standardized_network_sees_the_same_after_a_change_of_units(self):
        for settings in ({}, dict(tokens="features"), dict(network="dense")):
            model, cfg = build(BOX, standardize=True, **settings)
            inputs = window(BOX, cfg.context)
            inputs["obs"] = inputs["obs"].clip(-2, 2)
            q = q_of(model, inputs)
            layer = model.get_layer("standardize")
            layer.mean.assign([100.0, 0.0, -3.0])
            layer.scale.assign([10.0, 0.5, 1.0])
            inputs["obs"] = (inputs["obs"] * [10, 0.5, 1] + [100, 0, -3]).astype("float32")
            self.assertAllClose(q_of(model, inputs), q, rtol=1e-3, atol=1e-3)

    def test_dueling_advantages_have_mean_zero(self):
        for settings in ({}, dict(network="dense")):
            model, cfg = build(RAM, dueling=True, **settings)
            inputs = window(RAM, cfg.context)
            value = keras.Model(model.input, model.get_layer("value").output)
            advantage = keras.Model(model.input, model.get_layer("q").output)
            q, v, a = q_of(model, inputs), q_of(value, inputs), q_of(advantage, inputs)
            self.assertAllClose(q.mean(axis=-1, keepdims=True), v, atol=1e-5)
            self.assertAllClose(np.diff(q), np.diff(a), atol=1e-5)
            self.assertGreater(np.abs(a.mean(axis=-1)).max(), 1e-2)

    def test_dueling_quantiles(self):
        model, cfg = build(RAM, dueling=True, quantiles=5)
        inputs = window(RAM, cfg.context)
        value = keras.Model(model.input, model.get_layer("value").output)
        self.assertAllClose(q_of(model, inputs).mean(axis=2), q_of(value, inputs), atol=1e-5)

    def test_closed_gate_keeps_and_open_gate_forgets(self):
        x_in, y_in = keras.Input((1, 4)), keras.Input((1, 4))
        model = keras.Model([x_in, y_in], gpt.residual(x_in, y_in, name="g", gate=True))
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(3, 1, 4)).astype("float32"), rng.normal(size=(3, 1, 4)).astype("float32")
        # sigmoid(-2) = 0.119: at the start the gate passes about an eighth of tanh(small), so x loses an eighth.
        self.assertAllClose(model([x, y]), 0.8808 * x, atol=0.05)
        bias = model.get_layer("g_z").bias
        bias.assign([-50.0] * 4)
        self.assertAllClose(model([x, y]), x, atol=1e-5)
        bias.assign([50.0] * 4)
        model.get_layer("g_y").kernel.assign(np.concatenate([np.zeros((4, 8)), np.eye(4)], axis=1))
        model.get_layer("g_h").kernel.assign(np.zeros((4, 4)))
        self.assertAllClose(model([x, y]), np.tanh(y), atol=1e-5)


if __name__ == "__main__":
    unittest.main()
