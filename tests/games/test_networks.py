"""Q-networks: shapes, what a step can and can't see, and numbers worked by hand."""

import functools
import tempfile
import unittest

import numpy as np
from gymnasium import spaces

from tests.games.toys import (
    BOX,
    CELLS,
    PAIR,
    RAM,
    SMALL,
    build,
    q_of,
    random_window,
    shared,
)
from tfdqt.backend import keras, quick_gradients, tf
from tfdqt.errors import UsageError
from tfdqt.games import blocks, networks, tokens
from tfdqt.games.config import NetworkConfig
from tfdqt.games.flat import adapt, flatten_q
from tfdqt.games.recurrent import FEW_STEPS, ResettingGRU
from tfdqt.games.spaces import describe

GPTS = (
    dict(),
    dict(layers=2, gru_gate=True, prev_action=True, dueling=True),
    dict(tokens="features", prev_action=True),
    dict(tokens="features", context=8, layers=2),
)
GRUS = (dict(network="gru"), dict(network="gru", layers=2, prev_action=True, layer_norm=True))
RESIDUAL = dict(network="dense", residual=True, hidden=(8, 16, 12))


def changed(inputs, steps, info, seed=2):
    """`inputs` with other observations and actions at `steps`."""
    other = random_window(info, inputs["obs"].shape[1], len(inputs["obs"]), seed)
    result = {name: np.array(value) for name, value in inputs.items()}
    for name in ("obs", "prev_action"):
        result[name][:, steps] = other[name][:, steps]
    return result


def pulled(network, layer, x, pull):
    """What a network says of x, and the gradients of its sum times `pull` by x and the layer's
    weights."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        said = network(x)
        loss = tf.reduce_sum(said * pull)
    weights = [weight.value for weight in layer.trainable_variables]
    by_x, by_weights = tape.gradient(loss, [x, weights])
    return said, by_x, by_weights


class Shapes(tf.test.TestCase):
    def test_all_settings(self):
        for info, settings in (
            (BOX, {}),
            (BOX, dict(tokens="features")),
            (BOX, dict(standardize=True)),
            (BOX, dict(context=1)),
            (RAM, dict(min_change=0.01)),
            (BOX, dict(tokens="features", standardize=True, context=1)),
            (RAM, dict(ram_bits=True, prev_action=True)),
            (RAM, dict(tokens="features", prev_action=True)),
            (RAM, dict(gru_gate=True, dueling=True, layers=2)),
            (RAM, dict(ram_bits=True, standardize=True)),
            (CELLS, dict(dueling=True)),
            (CELLS, dict(tokens="features")),
            (PAIR, dict(tokens="features", gru_gate=True)),
            (PAIR, dict(standardize=True, prev_action=True)),
            (BOX, dict(network="dense")),
            (RAM, dict(network="dense", ram_bits=True, standardize=True, prev_action=True)),
            (PAIR, dict(network="dense", dueling=True, context=1)),
            (BOX, dict(quantiles=1)),
            (RAM, dict(quantiles=5, dueling=True)),
            (BOX, dict(quantiles=5, network="dense")),
            (RAM, dict(every_step=False, quantiles=5)),
            (PAIR, dict(network="dense", every_step=True, prev_action=True)),
            (BOX, dict(network="gru")),
            (RAM, dict(network="gru", layers=2, ram_bits=True, prev_action=True, quantiles=5)),
            (PAIR, dict(network="gru", every_step=False, dueling=True, layer_norm=True, width=7)),
            (BOX, dict(network="gru", context=1, standardize=True)),
            (BOX, dict(RESIDUAL)),
            (RAM, dict(RESIDUAL, every_step=True, prev_action=True, quantiles=5, dueling=True)),
        ):
            with self.subTest(info=info.name, **settings):
                model, cfg = build(info, **settings)
                q = q_of(model, random_window(info, cfg.context))
                steps = (
                    cfg.context
                    if cfg.every_step or cfg.every_step is None and cfg.network != "dense"
                    else 1
                )
                self.assertEqual(q.shape, (5, steps, info.num_actions, max(1, cfg.quantiles)))
                self.assertEqual(q.dtype, np.float32)
                self.assertAllInRange(q, -1e4, 1e4)  # finite
                self.assertGreater(np.ptp(q[:, -1], axis=0).min(), 1e-4)  # it depends on the window
                self.assertEqual("prev_action" in model.input, cfg.prev_action)

    def test_sizes_that_do_not_fit(self):
        with self.assertRaisesRegex(UsageError, "--width"):
            networks.build_q(BOX, NetworkConfig(width=10, heads=4))
        networks.build_q(BOX, NetworkConfig(network="dense", width=10, heads=4))  # has no heads
        with self.assertRaisesRegex(UsageError, "--context"):
            networks.build_q(BOX, NetworkConfig(context=0))
        with self.assertRaisesRegex(UsageError, "--hidden"):
            networks.build_q(BOX, NetworkConfig(network="dense", hidden=()))
        with self.assertRaisesRegex(UsageError, "--network must be one of gpt, dense, gru"):
            networks.build_q(BOX, NetworkConfig(network="lstm"))

    def test_first_values_are_small(self):
        for settings in ({}, dict(gru_gate=True), dict(tokens="features")):
            model = networks.build_q(RAM, NetworkConfig(**{**SMALL, **settings}))
            self.assertAllInRange(q_of(model, random_window(RAM, 4)), -1.0, 1.0)


class ParameterCounts(tf.test.TestCase):
    def test_decoder_by_hand(self):
        # 3 features, 4 steps, width 8, 2 actions. Embeddings: 3*8 + 8 and 4*8. Block: two norms of
        # 2*8, attention 8*24 + 24 and 8*8 + 8, feed-forward 8*32 + 32 and 32*8 + 8. Then a norm of
        # 2*8 and 8*2 + 2.
        plain = 32 + 32 + (2 * 16 + 216 + 72 + 288 + 264) + 16 + 18
        count = {}
        for key, settings in dict(
            plain={},
            two=dict(layers=2),
            gate=dict(gru_gate=True),
            action=dict(prev_action=True),
            dueling=dict(dueling=True),
            heads=dict(heads=4),
            quantiles=dict(quantiles=5),
        ).items():
            count[key] = build(BOX, **settings)[0].count_params()
        self.assertEqual(
            count,
            dict(
                plain=plain,
                two=plain + 872,
                heads=plain,
                action=plain + 2 * 8,
                dueling=plain + 8 + 1,
                quantiles=plain + 4 * (8 * 2 + 2),
                gate=plain + 2 * (6 * 8 * 8 + (8 * 8 + 8)),
            ),
        )  # two gates of GTrXL's six matrices, and one more with a bias

    def test_dense_by_hand(self):
        # 4 steps of 3 features, 16 and 8 hidden, 2 actions.
        self.assertEqual(
            build(BOX, network="dense")[0].count_params(), 12 * 16 + 16 + 16 * 8 + 8 + 8 * 2 + 2
        )

    def test_layer_norm_by_hand(self):
        # A scale and a shift for each of 16 and 8 hidden units; a gpt is as it was.
        for network, more in (("dense", 2 * 16 + 2 * 8), ("gpt", 0)):
            plain = build(BOX, network=network)[0].count_params()
            normed = build(BOX, network=network, layer_norm=True)[0].count_params()
            self.assertEqual(normed - plain, more, network)

    def test_gru_by_hand(self):
        # Three parts, each with 8 weights for every one of 3 inputs and of 8 states, and two
        # biases; the second layer has 8 inputs.
        head = 8 * 2 + 2
        one = 3 * (3 * 8 + 8 * 8 + 2 * 8)
        two = 3 * (8 * 8 + 8 * 8 + 2 * 8)
        for settings, expected in (
            (dict(layers=1), one + head),
            (dict(layers=2), one + two + head),
            (dict(layers=2, layer_norm=True), one + two + head + 2 * 16),
        ):
            model, _ = build(BOX, network="gru", **settings)
            self.assertEqual(model.count_params(), expected, settings)

    def test_residual_by_hand(self):
        # 4 steps of 3 features to 8; blocks of 16 and 12 with a norm each; a norm, 2 actions.
        blocks = (16 + 8 * 16 + 16 + 16 * 8 + 8) + (16 + 8 * 12 + 12 + 12 * 8 + 8)
        expected = 12 * 8 + 8 + blocks + 16 + 8 * 2 + 2
        self.assertEqual(build(BOX, **RESIDUAL)[0].count_params(), expected)

    def test_inputs_by_hand(self):
        # What a further feature costs: a row of the embedding for a step's token.
        for info, settings, features in (
            (RAM, {}, 6),
            (RAM, dict(ram_bits=True), 6 * 9),
            (CELLS, {}, 7),
            (PAIR, {}, 8),
        ):
            model, _ = build(info, **settings)
            self.assertEqual(model.get_layer("embed_obs").kernel.shape, (features, 8))


class Sight(tf.test.TestCase):
    """What a step sees: its own episode, up to itself."""

    def test_no_step_sees_a_later_one(self):
        for info in (BOX, RAM, PAIR):
            for settings in (
                *GPTS,
                *GRUS,
                dict(network="dense", every_step=True),
                dict(RESIDUAL, every_step=True),
            ):
                with self.subTest(info=info.name, **settings):
                    model, cfg = shared(info, tuple(settings.items()))
                    inputs = random_window(info, cfg.context)
                    q, other = q_of(model, inputs), q_of(model, changed(inputs, slice(2, 3), info))
                    self.assertAllClose(other[:, :2], q[:, :2], rtol=0, atol=1e-5)
                    moved = np.abs(other - q).max(axis=(0, 2, 3))
                    self.assertGreater(moved[2:].min(), 1e-3)  # all from the changed step on see it

    def test_no_step_sees_behind_the_start_of_its_episode(self):
        for info in (BOX, RAM, PAIR):
            for settings in (
                *GPTS,
                *GRUS,
                dict(network="dense"),
                dict(network="dense", prev_action=True, standardize=True),
                RESIDUAL,
            ):
                with self.subTest(info=info.name, **settings):
                    model, cfg = shared(info, tuple(settings.items()))
                    inputs = random_window(info, cfg.context)
                    unbroken = q_of(model, inputs) - q_of(model, changed(inputs, slice(0, 2), info))
                    self.assertGreater(np.abs(unbroken[:, -1]).max(), 1e-3)
                    inputs["first"][:, 2] = 1
                    other = changed(inputs, slice(0, 2), info)
                    other["first"][:, :2] = [0, 1]
                    begin = 0 if cfg.network == "dense" else 2
                    self.assertAllClose(
                        q_of(model, other)[:, begin:],
                        q_of(model, inputs)[:, begin:],
                        rtol=0,
                        atol=1e-5,
                    )

    def test_values_of_the_last_step_do_not_depend_on_whether_every_step_has_some(self):
        for info in (BOX, RAM, PAIR):
            for settings in (
                *GPTS,
                *GRUS,
                dict(network="dense"),
                dict(network="dense", prev_action=True),
                RESIDUAL,
            ):
                with self.subTest(info=info.name, **settings):
                    last, cfg = shared(info, (*settings.items(), ("every_step", False)))
                    every, _ = shared(info, (*settings.items(), ("every_step", True)))
                    every.set_weights(last.get_weights())
                    inputs = random_window(info, cfg.context)
                    inputs["first"][1, 2] = 1
                    q = q_of(every, inputs)
                    self.assertAllClose(q[:, -1:], q_of(last, inputs), rtol=0, atol=1e-5)
                    # The second step's are those of a window that ends there, before which another
                    # episode ended.
                    early = {
                        name: np.concatenate([part[:, 2:], part[:, :2]], axis=1)
                        for name, part in inputs.items()
                    }
                    early["first"][:, -2] = 1
                    self.assertAllClose(q[:, 1:2], q_of(last, early), rtol=0, atol=1e-5)

    def test_window_cut_by_a_reset_is_one_that_starts_there(self):
        for info in (BOX, RAM, PAIR):
            for settings in (*GPTS, *GRUS):
                with self.subTest(info=info.name, **settings):
                    model, cfg = shared(info, tuple(settings.items()))
                    cut = random_window(info, cfg.context)
                    cut["first"][:, 0], cut["first"][:, 2] = 0, 1
                    shown = cfg.context - 2
                    front = random_window(info, cfg.context, seed=3)
                    for name, value in front.items():
                        value[:, :shown] = cut[name][:, 2:]
                    expected = q_of(model, cut)[:, 2:]
                    self.assertAllClose(q_of(model, front)[:, :shown], expected, rtol=0, atol=1e-5)
                    # The front of a window is a start, whether or not an episode starts there.
                    front["first"][:, 0] = 0
                    self.assertAllClose(q_of(model, front)[:, :shown], expected, rtol=0, atol=1e-5)

    def test_how_long_ago_an_episode_began_is_told_where_its_start_is_seen(self):
        for places, told in (("history", False), ("lag", False), ("lag-start", True)):
            model, _ = build(BOX, places=places)
            inputs = random_window(BOX, 4)
            started = q_of(model, inputs)
            inputs["first"][:, 0] = 0
            moved = np.abs(q_of(model, inputs) - started).max(axis=(0, 2, 3))
            self.assertAllEqual(moved > 1e-3, [told] * 4)

    def test_steps_are_told_apart(self):
        for settings in ({}, dict(tokens="features")):
            model, _ = build(BOX, **settings)
            inputs = random_window(BOX, 4)
            inputs["obs"][:] = inputs["obs"][:, :1]  # the same observation at each step
            q = q_of(model, inputs)
            self.assertGreater(np.abs(np.diff(q, axis=1)).max(axis=(0, 2, 3)).min(), 1e-3)

    def test_nothing_beside_the_weights_tells_two_builds_apart(self):
        for settings in (
            dict(tokens="features"),
            dict(network="dense"),
            dict(dueling=True, quantiles=4),
        ):
            (one, cfg), (other, _) = build(RAM, **settings), build(RAM, **settings)
            other.set_weights(one.get_weights())
            inputs = random_window(RAM, cfg.context)
            self.assertAllEqual(q_of(one, inputs), q_of(other, inputs))

    def test_values_are_what_was_learned_stretched(self):
        for settings in (dict(), dict(dueling=True, quantiles=4, context=9)):
            (plain, cfg), (scaled, _) = (
                build(RAM, value_scale=scale, **settings) for scale in ("linear", "sqrt")
            )
            scaled.set_weights(plain.get_weights())
            inputs = random_window(RAM, cfg.context)
            q = q_of(plain, inputs)
            self.assertAllClose(q_of(scaled, inputs), np.sign(q) * ((np.abs(q) + 1) ** 2 - 1))

    def test_of_a_policy_the_value_alone_is_stretched(self):
        outputs = {}
        for scale in ("linear", "sqrt"):
            keras.utils.set_random_seed(0)
            model = networks.build_pi_v(BOX, NetworkConfig(**SMALL, value_scale=scale))
            outputs[scale] = model(random_window(BOX, 4)).numpy()
        plain, value = outputs["linear"][..., :-1], outputs["linear"][..., -1]
        self.assertAllEqual(outputs["sqrt"][..., :-1], plain)
        stretched = np.sign(value) * ((np.abs(value) + 1) ** 2 - 1)
        self.assertAllClose(outputs["sqrt"][..., -1], stretched)

    def test_the_unit_of_values_is_the_size_of_a_reward(self):
        model, _ = build(BOX, reward_units=True)
        plain, _ = build(BOX)
        inputs = random_window(BOX, 4)
        self.assertAllClose(q_of(model, inputs), q_of(plain, inputs))
        net = flatten_q(model, BOX)
        for rewards, unit in (((), 1.0), ((0, 0), 1.0), ((0, 3, -3, 0), 3.0), ((0, 1, 7), 5.0)):
            fixed = adapt(net, np.zeros((1, 3), "float32"), np.ones(1), rewards)
            self.assertAllEqual(fixed, [unit])
        self.assertAllClose(q_of(model, inputs), 5 * q_of(plain, inputs))

    def test_features_are_told_apart(self):
        # With one byte in all features but one, it matters in which.
        model, _ = build(RAM, tokens="features")
        inputs = random_window(RAM, 4, batch=6)
        inputs["obs"][:] = 7
        for row in range(6):
            inputs["obs"][row, :, row] = 200
        q = q_of(model, inputs)[:, -1]
        self.assertGreater(min(np.abs(q[i] - q[j]).max() for i in range(6) for j in range(i)), 1e-4)

    def test_same_episode_by_hand(self):
        self.assertAllEqual(
            tokens.same_episode(tf.constant([[0, 1, 0, 1]])),
            [[[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]],
        )


class Parts(tf.test.TestCase):
    def test_attention_agrees_with_keras(self):
        rng = np.random.default_rng(0)
        # It is written in four ways: for windows of one step, a few, many, and so many that queries
        # are taken in parts.
        for length in (1, 5, 20, 130, 260):
            x_in, visible_in = keras.Input((length, 8)), keras.Input((length, length))
            model = keras.Model(
                [x_in, visible_in],
                blocks.attention(
                    x_in, blocks.Sight(visible_in, backwards=True), heads=2, name="a", scale=0.02
                ),
            )
            for variable in model.trainable_variables:
                variable.assign(rng.normal(size=variable.shape) * 0.7)
            x = rng.normal(size=(3, length, 8)).astype("float32")
            visible = (rng.random((3, length, length)) < 0.5) | np.eye(length, dtype=bool)
            visible = np.tril(visible).astype("float32")
            q, k, v = np.moveaxis(
                model.get_layer("a_qkv")(x).numpy().reshape(3, length, 3, 2, 4), 2, 0
            )
            mixed = keras.ops.dot_product_attention(q, k, v, mask=visible[:, None].astype(bool))
            expected = model.get_layer("a_out")(keras.ops.reshape(mixed, (3, length, 8)))
            self.assertAllClose(
                model([x, visible]), expected, rtol=1e-4, atol=1e-5, msg=f"length {length}"
            )

    def test_a_narrowing_map_and_its_gradient_agree_with_keras(self):
        rng = np.random.default_rng(0)
        for shape in ((6, 8), (3, 5, 8)):
            for units in (2, 8, 12):
                layer = blocks.Linear(units, activation="relu")
                other = keras.layers.Dense(units, activation="relu")
                for each in (layer, other):
                    each.build((None, *shape[1:]))
                weights = [rng.normal(size=weight.shape) for weight in other.get_weights()]
                layer.set_weights(weights)
                other.set_weights(weights)
                x = tf.constant(rng.normal(size=shape), tf.float32)
                pull = tf.constant(rng.normal(size=(*shape[:-1], units)), tf.float32)
                expected, *gradients = pulled(other, other, x, pull)
                ours = functools.partial(pulled, layer, layer)
                for quick in (False, True):
                    for way in (ours, tf.function(ours), tf.function(ours, jit_compile=True)):
                        with quick_gradients(quick):
                            said, *found = way(x, pull)
                        self.assertAllClose(said, expected, atol=1e-5, msg=f"{shape} to {units}")
                        self.assertAllClose(found, gradients, atol=1e-5, msg=f"{shape} to {units}")

    def test_a_network_is_saved_and_loaded_by_keras(self):
        model, cfg = shared(BOX, ())
        inputs = random_window(BOX, cfg.context)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/q.keras"
            model.save(path)
            loaded = keras.models.load_model(path)
        self.assertAllEqual(q_of(loaded, inputs), q_of(model, inputs))

    def test_random_loops_of_steps_are_learned_in_what_xla_compiles(self):
        for context in (4, 16):  # few steps, and many
            sizes = dict(context=context, loops=2, loops_random=True, width=8, heads=2)
            model, _ = build(BOX, **sizes)
            net = flatten_q(model, BOX)
            inputs = random_window(BOX, context)

            def gradient(net=net, inputs=inputs):
                trained, fixed = net.unflatten(net.start)
                with tf.GradientTape() as tape:
                    tape.watch(trained)
                    loss = tf.reduce_sum(net.apply((trained, fixed), inputs) ** 2)
                return tape.gradient(loss, trained)

            for of_xla, plain in zip(tf.function(gradient, jit_compile=True)(), gradient()):
                self.assertAllClose(of_xla, plain, rtol=1e-3, atol=1e-5)

    def test_what_is_not_visible_weighs_nothing(self):
        scores = np.array([[3.0, -80.0, 3000.0]], np.float32)
        visible = np.array([[1, 1, 0]], np.float32)
        added = blocks.unseen(tf.constant(visible)).numpy()
        self.assertAllEqual(added[visible == 1], [0.0, 0.0])
        self.assertAllEqual(tf.nn.softmax(scores + added)[0, 2], 0.0)

    def test_gru_and_its_gradient_agree_with_keras(self):
        rng = np.random.default_rng(0)
        for length in (5, FEW_STEPS + 4):  # unrolled, and in a loop
            x_in = keras.Input((length, 3))
            first_in = keras.Input((length,), dtype="int32")
            model = keras.Model([x_in, first_in], ResettingGRU(7)(x_in, first_in))
            other = keras.layers.GRU(7, return_sequences=True)
            other.build((None, length, 3))
            weights = [rng.normal(size=weight.shape) for weight in other.get_weights()]
            model.set_weights(weights)
            other.set_weights(weights)
            x = tf.constant(rng.normal(size=(2, length, 3)), tf.float32)
            pull = tf.constant(rng.normal(size=(2, length, 7)), tf.float32)
            first = np.zeros((2, length), np.int32)
            first[0, 0] = first[1, [2, 4]] = 1

            def by_pieces(x, other=other, length=length):
                """Keras' own; a start in the middle is a start, whatever came before."""
                cuts = ((0, 2), (2, 4), (4, length))
                pieces = [other(x[1:, begin:end]) for begin, end in cuts]
                return tf.concat([other(x[:1]), tf.concat(pieces, axis=1)], axis=0)

            expected, *gradients = pulled(by_pieces, other, x, pull)
            with_starts = functools.partial(lambda m, f, x: m([x, f]), model, tf.constant(first))
            ours = functools.partial(pulled, with_starts, model)
            for way in (ours, tf.function(ours, jit_compile=True)):
                said, *found = way(x, pull)
                self.assertAllClose(said, expected, atol=1e-6, msg=f"length {length}")
                self.assertAllClose(found, gradients, atol=1e-5, msg=f"length {length}")

    def test_nothing_of_another_episode_is_left_in_a_gru(self):
        model, cfg = shared(BOX, (("network", "gru"), ("layers", 2)))
        inputs = random_window(BOX, cfg.context)
        inputs["first"][:, 2] = 1
        other = changed(inputs, slice(0, 2), BOX)
        self.assertAllEqual(q_of(model, other)[:, 2:], q_of(model, inputs)[:, 2:])

    def test_residual_dense_is_a_gpt_without_attention(self):
        gpt, cfg = build(BOX, context=1, layers=2)
        dense, _ = build(BOX, network="dense", residual=True, context=1, hidden=(8, 32, 32))
        for block in ("block0", "block1"):
            out = gpt.get_layer(f"{block}_attention_out")
            out.set_weights([np.zeros(weight.shape) for weight in out.get_weights()])
            dense.get_layer(f"{block}_norm").set_weights(
                gpt.get_layer(f"{block}_norm2").get_weights()
            )
            for part in ("mlp_in", "mlp_out"):
                name = f"{block}_{part}"
                dense.get_layer(name).set_weights(gpt.get_layer(name).get_weights())
        for name in ("embed_obs", "norm", "q"):
            dense.get_layer(name).set_weights(gpt.get_layer(name).get_weights())
        place = gpt.get_layer("embed_place")  # all see one step, which the dense network isn't told
        place.kernel.assign(np.zeros(place.kernel.shape))
        inputs = random_window(BOX, cfg.context)
        self.assertAllClose(q_of(dense, inputs), q_of(gpt, inputs), atol=1e-5)

    def test_residual_dense_starts_as_a_gpt(self):
        sizes = []
        for settings in (dict(network="gpt"), dict(network="dense", residual=True)):
            keras.utils.set_random_seed(0)
            model = networks.build_q(
                RAM, NetworkConfig(context=1, layers=2, width=64, hidden=(64, 256, 256), **settings)
            )
            names = ("embed_obs", "block0_mlp_in", "block0_mlp_out", "block1_mlp_out", "q")
            sizes.append([np.std(model.get_layer(name).get_weights()[0]) for name in names])
        self.assertAllClose(*sizes, rtol=0.2)  # 256 draws for each deviation at least

    def test_entries_have_values_of_their_own(self):
        # 3 values of the first entry, then 5 of the second: with the latter all alike, the second
        # entry tells nothing.
        model, _ = build(PAIR, tokens="features")
        table = model.get_layer("embed_value").embeddings
        self.assertEqual(table.shape, (3 + 5, 8))
        table.assign(np.where(np.arange(8)[:, None] < 3, table, 0.0))
        inputs, first, second = (random_window(PAIR, 4) for _ in range(3))
        first["obs"][..., 0] = (first["obs"][..., 0] + 1) % 3
        second["obs"][..., 1] = (second["obs"][..., 1] + 1) % 5
        q = q_of(model, inputs)
        self.assertAllClose(q_of(model, second), q, rtol=0, atol=1e-5)
        self.assertGreater(np.abs(q_of(model, first) - q).max(), 1e-2)

    def test_entries_of_both_kinds_without_xla(self):
        # Behind the last category stands a number, which is looked up nowhere. XLA would not tell.
        space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2,), np.float32))
        info = describe(space, spaces.Discrete(2), "Toy")
        model, _ = build(info, tokens="features")
        inputs = random_window(info._replace(nvec=()), 4)
        inputs["obs"][..., 0] = 2
        compiled = tf.function(model, jit_compile=True)
        named = {name: tf.constant(inputs[name]) for name in model.input}
        self.assertAllClose(q_of(model, inputs), compiled(named), rtol=1e-4)

    def test_bytes_beside_categories_are_scaled(self):
        space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 255, (1, 2), np.uint8))
        info = describe(space, spaces.Discrete(2), "Toy")
        self.assertEqual(info.obs_dtype, "uint8")
        model, cfg = build(info, tokens="features", context=1)
        read = keras.Model(model.input, model.get_layer("embed_value").output)
        inputs = dict(obs=np.array([[[2, 0, 192]]], "uint8"), first=np.ones((1, 1), "int32"))
        directions = model.get_layer("embed_value").kernel  # [F, D]
        expected = np.array([0, -1, 192 / 128 - 1])[:, None] * directions
        self.assertAllClose(read(inputs)[0, 0], expected, rtol=1e-5)

    def test_what_tokens_of_features_do_not_read_is_refused(self):
        for info, settings, said in (
            (BOX, dict(ram_bits=True), "observations of Box have none"),
            (PAIR, dict(ram_bits=True), "observations of Pair have none"),
            (RAM, dict(ram_bits=True, tokens="features"), "--tokens=features have none"),
        ):
            with self.subTest(info=info.name, **settings), self.assertRaisesRegex(UsageError, said):
                networks.build_q(info, NetworkConfig(**settings))

    def test_dueling_advantages_have_mean_zero(self):
        for settings in ({}, dict(network="dense")):
            model, cfg = build(RAM, dueling=True, **settings)
            inputs = random_window(RAM, cfg.context)
            value = keras.Model(model.input, model.get_layer("value").output)
            advantage = keras.Model(model.input, model.get_layer("q").output)
            q, v, a = q_of(model, inputs), q_of(value, inputs), q_of(advantage, inputs)
            self.assertAllClose(q.mean(axis=2), v, atol=1e-5)
            self.assertAllClose(np.diff(q[..., 0]), np.diff(a), atol=1e-5)
            self.assertGreater(np.abs(a.mean(axis=-1)).max(), 1e-2)

    def test_dueling_quantiles(self):
        model, cfg = build(RAM, dueling=True, quantiles=5)
        inputs = random_window(RAM, cfg.context)
        value = keras.Model(model.input, model.get_layer("value").output)
        self.assertAllClose(q_of(model, inputs).mean(axis=2), q_of(value, inputs), atol=1e-5)

    def test_layer_norm_is_of_what_enters_the_activation(self):
        # Multiplied weights of a hidden layer change nothing behind its norm but for epsilon.
        model, cfg = build(BOX, network="dense", layer_norm=True)
        inputs = random_window(BOX, cfg.context)
        q = q_of(model, inputs)
        x = keras.Model(model.input, model.get_layer("hidden0_norm").output)
        normed = x({name: inputs[name] for name in model.input}).numpy()[:, 0]
        norm = model.get_layer("hidden0_norm")
        plain = (normed - norm.beta.numpy()) / norm.gamma.numpy()
        self.assertAllClose(plain.mean(axis=-1), np.zeros(5), atol=1e-4)
        self.assertAllClose(plain.std(axis=-1), np.ones(5), atol=1e-3)
        model.get_layer("hidden0").kernel.assign(model.get_layer("hidden0").kernel * 100.0)
        model.get_layer("hidden0").bias.assign(model.get_layer("hidden0").bias * 100.0)
        self.assertAllClose(q_of(model, inputs), q, rtol=1e-3, atol=1e-3)

    def test_closed_gate_keeps_and_open_gate_forgets(self):
        x_in, y_in = keras.Input((1, 4)), keras.Input((1, 4))
        model = keras.Model([x_in, y_in], blocks.residual(x_in, y_in, name="g", gate=True))
        rng = np.random.default_rng(0)
        x, y = (
            rng.normal(size=(3, 1, 4)).astype("float32"),
            rng.normal(size=(3, 1, 4)).astype("float32"),
        )
        # sigmoid(-2) = 0.119: at the start the gate passes about an eighth of tanh(small), so x
        # loses an eighth.
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
