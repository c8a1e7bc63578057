"""Grids as tokens, and blocks that are run many times with the same weights."""

import json
import unittest
from pathlib import Path

import numpy as np
from gymnasium import spaces

from tests.games.toys import BOX, build, q_of, without_xla
from tests.helpers import refused, slow, succeeds
from tfdqt.backend import keras, tf
from tfdqt.errors import UsageError
from tfdqt.games import inside, networks
from tfdqt.games.blocks import AddPlaceBias, LoopLimit, Sight, attention
from tfdqt.games.config import NetworkConfig, check_network
from tfdqt.games.cost import check_tokens
from tfdqt.games.features import cells_as_numbers
from tfdqt.games.flat import draw_loops, flatten_model, with_loops
from tfdqt.games.spaces import describe, grid_of
from tfdqt.games.tokens import AddPlaces, relations
from tfdqt.games.trained import load_run

FOUR = spaces.Discrete(4)
BOARD = describe(spaces.MultiDiscrete(np.full((4, 5), 7)), FOUR, "Board", "info")
PLANES = describe(spaces.Box(0, 1, (4, 4, 3), bool), FOUR, "Planes")
IMAGE = describe(spaces.Box(0, 255, (4, 6, 3), np.uint8), FOUR, "Image")
HEIGHTS = describe(spaces.Box(-1, 1, (4, 4), np.float32), FOUR, "Heights")
# As MiniGrid shows it.
ROOM = describe(
    spaces.Dict(direction=FOUR, image=spaces.Box(0, 255, (3, 3, 2), np.uint8)), FOUR, "Room"
)
ALL = (BOARD, PLANES, IMAGE, HEIGHTS, ROOM)
CELLS = dict(tokens="cells", context=1)


def window(info, context=1, batch=3, seed=1):
    """Random steps of one episode, all actions legal."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((batch, context, *info.obs_shape), info.obs_dtype)
    space = info.observation_space
    space.seed(seed)
    flat = [
        np.concatenate(
            [np.ravel(part) for part in (one.values() if isinstance(one, dict) else [one])]
        )
        for one in (space.sample() for _ in range(batch * context))
    ]
    rows[..., : info.features] = np.reshape(flat, (batch, context, -1))
    if info.mask:
        rows[..., info.features :] = 1
    first = np.zeros((batch, context), "int32")
    first[:, 0] = 1
    action = rng.integers(-1, info.num_actions, (batch, context)).astype("int32")
    return dict(obs=rows, first=first, prev_action=action)


def numbers(obs, info, **settings):
    """Cells [H, W] or [H, W, C] as the network reads them."""
    cfg = NetworkConfig(**{**CELLS, **settings})
    row = np.reshape(obs, (1, 1, -1)).astype(info.obs_dtype)
    return cells_as_numbers(tf.constant(row), info, cfg).numpy()[0, 0]


class Cells(tf.test.TestCase):
    def test_a_grid_is_found_among_other_numbers(self):
        self.assertEqual(grid_of(BOARD), (0, 4, 5, 1, (7,), False))
        self.assertEqual(grid_of(PLANES), (0, 4, 4, 3, (2, 2, 2), False))
        self.assertEqual(grid_of(ROOM), (1, 3, 3, 2, (0, 0), True))
        self.assertIsNone(grid_of(BOX))
        two = spaces.Dict(a=spaces.MultiBinary([2, 2]), b=spaces.MultiBinary([2, 2]))
        self.assertIsNone(grid_of(describe(two, FOUR, "Two")))

    def test_they_are_kept_as_bytes_where_that_holds_them(self):
        self.assertEqual(
            [info.obs_dtype for info in ALL], ["uint8", "uint8", "uint8", "float32", "uint8"]
        )

    def test_all_settings(self):
        for info, settings in (
            *((info, {}) for info in ALL),
            (BOARD, dict(context=3, prev_action=True, dueling=True)),
            (BOARD, dict(readout="mean", quantiles=3)),
            (PLANES, dict(patch=2, layers=2)),
            (IMAGE, dict(patch=2, context=2, every_step=False)),
            (ROOM, dict(categories=11, patch=3)),
            (ROOM, dict(loops=3, loops_random=True)),
            (BOARD, dict(loops=2, layers=2, gru_gate=True, context=2)),
        ):
            with self.subTest(info=info.name, **settings):
                model, cfg = build(info, **{**CELLS, **settings})
                inputs = window(info, cfg.context)
                q = q_of(model, inputs)
                steps = 1 if cfg.every_step is False else cfg.context
                self.assertEqual(q.shape, (3, steps, 4, max(1, cfg.quantiles)))
                self.assertAllInRange(q, -1e4, 1e4)  # finite
                # Every cell is seen: one after another is changed, [entry, row, ...].
                entries = np.arange(info.features)
                most = (cfg.categories or 256) - 1  # above that all look alike
                other = window(info, cfg.context, seed=2)["obs"]
                many = {
                    name: np.repeat(part[None], len(entries), axis=0)
                    for name, part in inputs.items()
                }
                many["obs"][entries, :, -1, entries] = other[:, -1, entries].T
                differs = np.minimum(many["obs"], most) != np.minimum(inputs["obs"], most)
                rows = {name: part.reshape(-1, *part.shape[2:]) for name, part in many.items()}
                moved = np.abs(q_of(model, rows).reshape(len(entries), *q.shape) - q)[:, :, -1]
                differs = differs.reshape(len(entries), -1).any(axis=1)
                self.assertGreater(moved.reshape(len(entries), -1).max(axis=1)[differs].min(), 1e-5)

    def test_numbers_by_hand(self):
        board = np.zeros((4, 5), int)
        board[2, 3] = 6
        hot = numbers(board, BOARD)
        self.assertEqual(hot.shape, (4, 5, 7))
        self.assertAllEqual(hot[2, 3], [0, 0, 0, 0, 0, 0, 1])
        self.assertAllEqual(hot[0, 0], [1, 0, 0, 0, 0, 0, 0])
        image = np.arange(72).reshape(4, 6, 3)
        self.assertAllClose(numbers(image, IMAGE)[1, 2], [24 / 128 - 1, 25 / 128 - 1, 26 / 128 - 1])
        row = np.concatenate([[3], np.full(18, 2), []])
        row[2] = 200  # the second channel of the first cell
        hot = numbers(row, ROOM, categories=5)
        self.assertAllEqual(hot[0, 0], [0, 0, 1, 0, 0, 0, 0, 0, 0, 1])  # beyond: as the last
        self.assertAllEqual(hot[2, 2], [0, 0, 1, 0, 0, 0, 0, 1, 0, 0])

    def test_patches_by_hand(self):
        heights = np.arange(16).reshape(4, 4) / 16
        patches = numbers(heights, HEIGHTS, patch=2)
        self.assertAllClose(patches[0, 1] * 16, [2, 3, 6, 7])
        self.assertAllClose(patches[1, 0] * 16, [8, 9, 12, 13])

    def test_attention_agrees_with_keras(self):
        # One step, whose cells see each other, and two, of which the first does not see the second.
        rng = np.random.default_rng(0)
        for context in (1, 2):
            relation = relations(3, 3, context)
            length = len(relation)
            visible = np.kron(np.tril(np.ones((context, context))), np.ones((10, 10)))
            visible = visible[None].astype("float32")
            x_in = keras.Input((length, 8))
            seen = None if context == 1 else visible
            sight = Sight(seen, relation, int(relation.max()) + 1)
            out = attention(x_in, sight, heads=2, name="a", scale=0.02)
            model = keras.Model(x_in, out)
            for variable in model.trainable_variables:
                variable.assign(rng.normal(size=variable.shape))
            x = tf.constant(rng.normal(size=(3, length, 8)), tf.float32)
            grad = tf.constant(rng.normal(size=(3, length, 8)), tf.float32)
            bias = model.get_layer("a_bias").bias.value
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                q, k, v = tf.unstack(
                    tf.reshape(model.get_layer("a_qkv")(x), (3, -1, 3, 2, 4)), 3, 2
                )
                placed = tf.gather(bias, relation, axis=1)[None]
                mask = visible[:, None].astype(bool)
                mixed = keras.ops.dot_product_attention(q, k, v, bias=placed, mask=mask)
                expected = model.get_layer("a_out")(tf.reshape(mixed, (3, length, 8)))
                y = model(x)
            self.assertAllClose(y, expected, rtol=1e-5, atol=1e-5)
            for source in (x, bias):
                ours = tape.gradient(y, source, output_gradients=grad)
                theirs = tape.gradient(expected, source, output_gradients=grad)
                self.assertAllClose(ours, theirs, rtol=1e-4, atol=1e-4)

    def test_relations_by_hand(self):
        # Two cells side by side and the token of the step, in two steps. To the right is 0, itself
        # 1, to the left 2; a cell to the step 3, the step to a cell 4, to itself 5.
        one = [[1, 0, 3], [2, 1, 3], [4, 4, 5]]
        both = relations(1, 2, 2)
        self.assertAllEqual(both[:3, :3], one)
        self.assertAllEqual(both[3:, 3:], one)
        self.assertAllEqual(both[3:, :3], np.add(one, 6))  # a step before
        three = relations(3, 3, 1)
        self.assertEqual(three[0, 4], three[4, 8])  # down and right
        self.assertNotEqual(three[0, 4], three[4, 0])
        self.assertNotEqual(three[0, 1], three[0, 3])

    def test_only_places_tell_cells_apart(self):
        model, _ = build(HEIGHTS, **CELLS, layers=2)
        inputs = window(HEIGHTS)
        shuffled = dict(inputs, obs=inputs["obs"][..., np.random.default_rng(0).permutation(16)])
        self.assertGreater(np.abs(q_of(model, inputs) - q_of(model, shuffled)).max(), 5e-5)
        for layer in model.layers:
            if isinstance(layer, AddPlaces):
                layer.set_weights([0 * weight for weight in layer.get_weights()])
        self.assertGreater(np.abs(q_of(model, inputs) - q_of(model, shuffled)).max(), 5e-5)
        for layer in model.layers:
            if isinstance(layer, AddPlaceBias):
                layer.set_weights([0 * weight for weight in layer.get_weights()])
        self.assertAllClose(q_of(model, inputs), q_of(model, shuffled), rtol=0, atol=1e-5)

    def test_what_a_step_sees(self):
        model, _ = build(BOARD, **{**CELLS, "context": 3, "prev_action": True})
        inputs = window(BOARD, 3)
        other = window(BOARD, 3, seed=2)["obs"]
        q = q_of(model, inputs)

        def differences(step, **more):
            changed = {**inputs, **more}
            before = q_of(model, changed)
            obs = np.array(inputs["obs"])
            obs[:, step] = other[:, step]
            return np.abs(q_of(model, dict(changed, obs=obs)) - before).max(axis=(0, 2, 3)) > 1e-6

        self.assertAllEqual(differences(1), [False, True, True])
        first = np.array(inputs["first"])
        first[:, 2] = 1  # an episode starts
        self.assertAllEqual(differences(1, first=first), [False, True, False])
        self.assertEqual(q.shape[1], 3)


class Loops(tf.test.TestCase):
    def test_the_weights_are_those_of_one_loop(self):
        counts = {build(BOARD, **CELLS, loops=loops)[0].count_params() for loops in (1, 2, 5)}
        self.assertEqual(len(counts), 1)

    def test_a_lens_reads_between_loops(self):
        """Read after one loop it is the network of one; after two it is another."""
        model, cfg = build(BOARD, **CELLS, loops=2)
        inputs = window(BOARD)
        read = [
            inside.build_lens(model, BOARD, cfg, depth)({k: inputs[k] for k in model.input})
            for depth in (0, 1, 2)
        ]
        self.assertAllClose(read[2], q_of(model, inputs), atol=1e-5)
        self.assertGreater(np.abs(read[1] - read[2]).max(), 1e-3)
        self.assertGreater(np.abs(read[0] - read[1]).max(), 1e-3)
        one = networks.build_q(BOARD, NetworkConfig(**{**vars(cfg), "loops": 1}))
        one.set_weights(model.get_weights())
        self.assertAllClose(q_of(one, inputs), read[1], atol=1e-5)

    def test_the_stream_is_read_and_changed_between_blocks(self):
        for sizes in (dict(loops=2, layers=2), dict(layers=3), dict(loops=2, loops_random=True)):
            model, cfg = build(BOARD, **CELLS, **sizes)
            inputs = {name: window(BOARD)[name] for name in model.input}
            read = inside.build_stream(model, BOARD, cfg)(inputs)
            stream = read["stream"].numpy()
            self.assertEqual(stream.shape[1], 1 + cfg.layers * cfg.loops)
            self.assertAllClose(read["q"], q_of(model, inputs), atol=1e-5)
            edit = np.random.default_rng(0).normal(size=stream[:, 0].shape).astype("float32")
            changing = inside.build_stream(model, BOARD, cfg, edited=1)
            same = changing(dict(inputs, edit=np.zeros_like(edit)))
            self.assertAllClose(same["q"], read["q"], atol=1e-5)
            changed = changing(dict(inputs, edit=edit))
            after = changed["stream"].numpy()
            self.assertAllClose(after[:, 0], stream[:, 0], atol=1e-6)
            self.assertAllClose(after[:, 1], stream[:, 1] + edit, atol=1e-5)
            self.assertGreater(np.abs(changed["q"] - read["q"]).max(), 1e-3)

    def test_a_limit_stops_the_loops(self):
        """Three loops with a limit of two are two loops."""
        three, cfg = build(BOARD, **CELLS, loops=3, loops_random=True)
        two = networks.build_q(
            BOARD, NetworkConfig(**{**vars(cfg), "loops": 2, "loops_random": False})
        )
        net = flatten_model(three, BOARD)
        weights = flatten_model(three, BOARD).start
        weights = tf.where(tf.range(len(weights)) == net.loop_limit, 3.0, weights)
        inputs = {name: tf.constant(value) for name, value in window(BOARD).items()}
        plain = flatten_model(two, BOARD)
        same = np.delete(weights.numpy(), net.loop_limit)
        self.assertAllClose(
            net.apply(with_loops(net, weights, 2), inputs), plain.apply(same, inputs), atol=1e-5
        )
        difference = net.apply(weights, inputs) - plain.apply(same, inputs)
        self.assertGreater(np.abs(difference).max(), 1e-3)

    def test_loops_beyond_the_limit_are_not_computed(self):
        ran = []

        def block(inputs):
            ran.append(len(inputs))
            return inputs[0] + 1.0

        limit = LoopLimit([block], loops=3)
        x = tf.zeros((2, 3, 4))
        self.assertAllEqual(limit(x, 2.0 * tf.ones_like(x), x, index=0, loop=2), x + 3.0)
        self.assertEqual(ran, [2])
        limit.loop_limit.assign(2)
        self.assertAllEqual(limit(x, 2.0 * tf.ones_like(x), x, index=0, loop=2), x)
        self.assertEqual(ran, [2])
        self.assertAllEqual(limit(x, index=0, loop=1), x + 1.0)
        self.assertEqual(ran, [2, 1])

    def test_loops_are_drawn_by_the_count_of_updates(self):
        model = networks.build_q(BOARD, NetworkConfig(**CELLS, loops=4, loops_random=True, width=8))
        net = flatten_model(model, BOARD)
        self.assertEqual(net.start[net.loop_limit], 4)
        drawn = [
            int(draw_loops(net, net.start, tf.constant(i, tf.int64))[net.loop_limit])
            for i in range(60)
        ]
        self.assertEqual(set(drawn), {1, 2, 3, 4})
        again = draw_loops(net, net.start, tf.constant(7, tf.int64))
        self.assertEqual(int(again[net.loop_limit]), drawn[7])
        rest = np.delete(again.numpy() - net.start.numpy(), net.loop_limit)
        self.assertAllEqual(rest, np.zeros_like(rest))
        plain = flatten_model(networks.build_q(BOARD, NetworkConfig(**CELLS, width=8)), BOARD)
        self.assertIs(draw_loops(plain, plain.start, 0), plain.start)


class Runs(tf.test.TestCase):
    """Whole runs on a puzzle, with loops drawn in training."""

    def flags(self, folder):
        board = "--tokens=cells --context=1 --width=8 --heads=2 --layers=1 --loops=3 --loops-random"
        return ["--name=Sokoban-v0", f"--run-dir={folder}", *board.split(), "--num-envs=8"]

    def check(self, script, *flags):
        folder = f"{self.get_temp_dir()}/{script}"
        succeeds(self, script, *self.flags(folder), "--total-steps=512", "--workers=0", *flags)
        run = load_run(folder)
        self.assertEqual(run.weights[run.net.loop_limit], 3)  # acting keeps all loops
        self.assertNotAllClose(run.weights, run.net.start)
        more = load_run(folder, loops=5)
        self.assertEqual(more.weights[more.net.loop_limit], 5)
        flags = ["--episodes=2", "--simulations=2", "--max-steps=20"]
        said = succeeds(self, "evaluate", folder, "--loops=1", *flags).stdout
        self.assertIn("2 simulations a move", said)
        self.without_loops(folder)
        refused(self, "--loops is for runs trained with --loops", "evaluate", folder, "--loops=2")

    def without_loops(self, folder):
        """Let a run be one that was trained without loops."""
        path = Path(folder, "config.json")
        plain = json.loads(path.read_text())
        plain["network"]["loops"] = 1
        plain["network"]["loops_random"] = False
        path.write_text(json.dumps(plain))

    def test_dqn(self):
        with without_xla():
            self.check("run_dqn", "--learning-starts=128", "--replay-size=1000", "--chunk=1")

    @slow("networks are compiled")
    def test_ppo_and_pqn(self):
        self.check("run_ppo", "--rollout-steps=32", "--batch-size=64", "--update-epochs=1")
        self.check("run_pqn", "--rollout-steps=32", "--update-epochs=1")


class Sentences(unittest.TestCase):
    def test_what_cannot_be_read(self):
        image = describe(spaces.Box(0, 255, (210, 160, 3), np.uint8), FOUR, "Pong")
        below = spaces.Box(-3, 3, (4, 4), np.int32)
        odd = describe(spaces.Box(0, 255, (211, 163, 3), np.uint8), FOUR, "Odd")
        for info, settings, words in (
            (image, dict(), "Pong shows images of 210 x 160.*--tokens=cells --patch=10"),
            (image, dict(network="dense"), "--tokens=cells --patch=10"),
            (image, CELLS, "33,601 tokens a step.*18.1 GB.*--patch=10"),
            (odd, CELLS, "ResizeObservation.*--patch=7"),
            (PLANES, dict(CELLS, patch=3), "--patch=3 does not divide.* 4 x 4; give one of 2, 4"),
            (
                describe(below, FOUR, "Low"),
                dict(CELLS, categories=5),
                "--categories takes .* whole numbers from 0",
            ),
            (BOX, CELLS, "reads one grid.*--tokens=steps or features"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(UsageError, words):
                check_tokens(info, NetworkConfig(**settings))
        check_tokens(image, NetworkConfig(**CELLS, patch=10))

    def test_settings_that_do_not_fit(self):
        for settings, words in (
            (dict(loops=0), "--loops must be greater than 0"),
            (dict(patch=0), "--patch must be greater than 0"),
            (dict(categories=-1), "--categories"),
            (dict(loops_random=True), "--loops-random draws from 1 to --loops"),
            (dict(CELLS, min_change=0.1), "--min-change.*are for rows"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(UsageError, words):
                check_network(NetworkConfig(**settings))


if __name__ == "__main__":
    unittest.main()
