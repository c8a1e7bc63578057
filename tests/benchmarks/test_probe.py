"""The probes of search: look-ahead against brute force, layers read early, and the statistics."""

import csv
import tempfile
import unittest
from pathlib import Path

import gymnasium
import numpy as np
import probe
import probe_plots

from tests.helpers import slow
from tfdqt.backend import keras
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import env_info
from tfdqt.games.flat import flatten_q
from tfdqt.games.networks import build_q
from tfdqt.games.spaces import EnvInfo
from tfdqt.games.window import Window

from . import script

NETWORK = NetworkConfig(context=2, layers=2, heads=2, width=16)
BOX = EnvInfo("Box", (3,), "float32", (), 2)


class Corridor(gymnasium.Env):
    """Cells 0 to 3; action 1 moves right, 0 left; reaching cell 3 pays 1 and ends."""

    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 0
        return self.cell, {}

    def step(self, action):
        self.cell = max(0, self.cell + (1 if action else -1))
        return self.cell, float(self.cell == 3), self.cell == 3, False, {}

    def get_state(self):
        return dict(cell=self.cell)

    def set_state(self, state):
        self.cell = state["cell"]


def windows_of(obs, first=None):
    """A Window of observations [N, C, F]; by default no step starts an episode."""
    obs = np.asarray(obs, "float32")
    none = np.zeros(obs.shape[:2], "int32")
    return Window(obs, none if first is None else np.asarray(first, "int32"), none)


class TestLookAhead(unittest.TestCase):
    def grown(self, count, depth, epsilon=0.1):
        """Roots in the corridor, and the tree from them."""
        env = Corridor()
        info = env_info(env, "Corridor")
        keras.utils.set_random_seed(0)
        net = flatten_q(build_q(info, NETWORK), info)
        roots = probe.roots_of(env, info, net, net.start, count, epsilon=epsilon, every=2)
        return probe.grow(env, info, roots, depth)

    def test_look_ahead_is_that_of_brute_force(self):
        gamma = 0.9
        depth = 3
        tree = self.grown(12, depth, epsilon=0.7)
        cells = tree.windows.obs[:, -1, 0]
        table = np.random.default_rng(0).normal(size=(4, 2))  # any values of the cells
        values = probe.look_ahead(tree, table[cells], 12, gamma)

        def value(cell, action, steps):
            if steps == 0:
                return table[cell, action]
            after = max(0, cell + (1 if action else -1))
            return 1.0 if after == 3 else gamma * max(value(after, b, steps - 1) for b in (0, 1))

        self.assertGreater(len(set(cells[:12])), 1)
        for steps in range(depth + 1):
            expected = [[value(cell, action, steps) for action in (0, 1)] for cell in cells[:12]]
            np.testing.assert_allclose(values[steps], expected)

    def test_leaves_are_shown_the_way_there(self):
        tree = self.grown(5, 2)
        for node, row in enumerate(tree.children):
            for action, child in enumerate(row):
                if child >= 0:
                    window = Window(*(part[child] for part in tree.windows))
                    self.assertEqual(window.obs[0, 0], tree.windows.obs[node, 1, 0])
                    self.assertEqual(window.prev_action[1], action)
                    self.assertEqual(window.first[1], 0)


class TestReading(unittest.TestCase):
    def test_a_block_that_adds_nothing_reads_the_same(self):
        model = build_q(BOX, NETWORK)
        rng = np.random.default_rng(0)
        windows = windows_of(rng.normal(size=(7, 2, 3)))
        for variable in model.trainable_variables:
            silent = "block1" in variable.path and "_out" in variable.path
            weights = rng.normal(size=variable.shape) * 0.3
            variable.assign(np.zeros(variable.shape) if silent else weights)
        lenses = probe.lenses(model, BOX, NETWORK)
        none, one, both = (probe.values_at(*lens, windows, batch=3) for lens in lenses)
        whole = flatten_q(model, BOX)
        np.testing.assert_allclose(both, probe.values_at(whole, whole.start, windows), atol=1e-5)
        np.testing.assert_allclose(one, both, atol=1e-5)
        self.assertGreater(abs(none - one).max(), 0.05)

        before, between, last = (
            probe.hidden_states(model, BOX, NETWORK, depth, windows) for depth in range(3)
        )
        kernel, bias = model.get_layer("q").get_weights()
        np.testing.assert_allclose(last @ kernel + bias, both, atol=1e-5)
        np.testing.assert_allclose(between, last, atol=1e-5)
        self.assertGreater(abs(before - last).max(), 0.05)

    def test_values_rest_on_the_features_they_are_made_of(self):
        obs = keras.Input((2, 3), name="obs")
        first = keras.Input((2,), dtype="int32", name="first")
        linear = keras.layers.Dense(2, use_bias=False)
        model = keras.Model(dict(obs=obs, first=first), linear(obs)[..., None])
        linear.set_weights([np.array([[1.0, -1.0], [0.0, 0.0], [0.1, -0.1]])])
        net = flatten_q(model, BOX)
        windows = windows_of(np.random.default_rng(0).normal(size=(400, 2, 3)))
        shares = probe.importance(net, net.start, windows)
        # The advantages are a x0 + b x2 with b = a / 10: exchanging x0 leaves a correlation near
        # b^2 / (a^2 + b^2).
        self.assertAlmostEqual(shares[0], 1 - 0.01 / 1.01, delta=0.12)
        self.assertAlmostEqual(shares[1], 0.0, places=6)
        self.assertAlmostEqual(shares[2], 0.01 / 1.01, delta=0.005)

    def test_attention_is_what_the_model_mixes_by(self):
        cfg = NetworkConfig(context=3, layers=1, heads=1, width=4)
        model = build_q(BOX, cfg)
        rng = np.random.default_rng(0)
        for variable in model.trainable_variables:
            variable.assign(rng.normal(size=variable.shape))
        first = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
        windows = windows_of(rng.normal(size=(4, 3, 3)), first)
        out = model.get_layer("block0_attention_out")
        kernel, bias = out.get_weights()
        for row in range(4):
            one = Window(*(part[row : row + 1] for part in windows))
            shares = probe.attention_weights(model, one, BOX, cfg)[0]
            self.assertAlmostEqual(shares.sum(), 1.0, places=5)
            inputs = dict(obs=one.obs, first=one.first)
            qkv = keras.Model(model.input, model.get_layer("block0_attention_qkv").output)(inputs)
            mixed = keras.Model(model.input, out.output)(inputs).numpy()[0, -1]
            value = qkv.numpy()[0, :, 8:]
            np.testing.assert_allclose(shares @ value @ kernel + bias, mixed, atol=1e-4)
        alone = Window(*(part[3:] for part in windows))
        self.assertEqual(probe.attention_weights(model, alone, BOX, cfg)[0].tolist(), [0, 0, 1])


class TestStatistics(unittest.TestCase):
    def test_agreement(self):
        q = np.array([[1.0, 3.0], [5.0, 1.0], [2.0, 0.0]])
        np.testing.assert_allclose(probe.agreement(q, q * 2 + 7), (1.0, 1.0))
        np.testing.assert_allclose(probe.agreement(q, -q), (-1.0, 0.0))
        # Advantages (-1, 1), (2, -2), (1, -1) against (-1, 1), (-1, 1), (0, 0).
        agreed = probe.agreement(q, np.array([[0.0, 2.0], [0.0, 2.0], [5.0, 5.0]]))
        np.testing.assert_allclose(agreed, ((2 - 4) / np.sqrt(12 * 4), 2 / 3))

    def test_a_linear_probe_reads_what_is_linear_and_nothing_else(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(600, 8))
        self.assertGreater(probe.linear_probe(x, x @ rng.normal(size=(8, 3))), 0.99)
        self.assertLess(abs(probe.linear_probe(x, rng.normal(size=(600, 3)))), 0.2)


class TestPictures(unittest.TestCase):
    def test_a_table_of_rows(self):
        rows = [
            dict(layer=layer, index=index, value=10 * layer + index)
            for index in (5, 2)
            for layer in (1, 0)
        ]
        table, layers, indices = probe_plots.table_of(rows)
        self.assertEqual((layers, indices), ([0, 1], [2, 5]))
        np.testing.assert_array_equal(table, [[2, 5], [12, 15]])


@slow("2 minutes: three trainings, two probes")
class TestCommand(unittest.TestCase):
    """Three trainings and two probes, about two minutes."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tmp = Path(folder.name)

    def train(self, name, *flags):
        run_dir = self.tmp / name
        sizes = ("--total-steps=1152", "--width=16")
        done = script("scripts/run_dqn.py", *sizes, *flags, f"--run-dir={run_dir}")
        self.assertEqual(done.returncode, 0, done.stderr)
        return run_dir

    def probe(self, run, out, *flags):
        command = (run, "--states=30", *flags, f"--out={self.tmp / out}")
        return script("benchmarks/probe/probe_search.py", *command)

    def test_the_whole_command(self):
        gpt = self.train("gpt")
        dense = self.train("dense", "--network=dense")
        done = self.probe(gpt, "out", "--depth=2", "--episodes=2", "--against", dense)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"dense of 2 layers +layer 2: ")
        for picture in ("probe.png", "reading.png"):
            self.assertGreater((self.tmp / "out" / picture).stat().st_size, 5_000)
        done = self.probe(dense, "none")
        self.assertEqual(done.returncode, 2)
        self.assertIn("dense network, which has no blocks", done.stderr)

    def test_which_features_are_attended_to(self):
        features = self.train("features", "--tokens=features")
        done = self.probe(features, "cells", "--depth=1", "--episodes=1")
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.tmp / "cells" / "reading.csv", newline="", encoding="utf-8") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if (row["who"], row["what"]) == ("trained", "attention to features")
            ]
        # CartPole's features, of the one block
        self.assertEqual([row["index"] for row in rows], list("0123"))
        self.assertAlmostEqual(sum(float(row["value"]) for row in rows), 1.0, places=5)


if __name__ == "__main__":
    unittest.main()
