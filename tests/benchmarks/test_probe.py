"""The probes of search: look-ahead against brute force, layers read early, and the statistics."""

import csv
import tempfile
import unittest
from pathlib import Path

import numpy as np
import pytest
from test_ppo import Stateful
from test_scripts import refused, script

from tfdqt import gpt, probe
from tfdqt.acting import Window
from tfdqt.backend import keras
from tfdqt.config import NetworkConfig
from tfdqt.envs import EnvInfo, env_info
from tfdqt.networks import flatten_model

NETWORK = NetworkConfig(context=2, layers=2, heads=2, width=16)


class TestProbe(unittest.TestCase):

    def test_look_ahead_is_that_of_brute_force(self):
        env, gamma, depth = Stateful(), 0.9, 3
        info = env_info(env, "Corridor")
        keras.utils.set_random_seed(0)
        networks = flatten_model(gpt.build_q(info, NETWORK))
        roots = probe.roots_of(env, info, networks, networks.start, 12, epsilon=0.7, every=2)
        tree = probe.grow(env, info, roots, depth)
        cells = tree.windows.obs[:, -1, 0]
        table = np.random.default_rng(0).normal(size=(4, 2))  # any values of the cells
        found = probe.look_ahead(tree, table[cells], len(roots), gamma)

        def value(cell, action, steps):
            if steps == 0:
                return table[cell, action]
            behind = max(0, cell + (1 if action else -1))
            return 1.0 if behind == 3 else gamma * max(value(behind, other, steps - 1) for other in (0, 1))

        self.assertGreater(len(set(cells[:12])), 1)
        for steps in range(depth + 1):
            expected = [[value(cell, action, steps) for action in (0, 1)] for cell in cells[:12]]
            np.testing.assert_allclose(found[steps], expected)

    def test_leaves_are_shown_the_way_there(self):
        env = Stateful()
        info = env_info(env, "Corridor")
        networks = flatten_model(gpt.build_q(info, NETWORK))
        roots = probe.roots_of(env, info, networks, networks.start, 5, every=2)
        tree = probe.grow(env, info, roots, 2)
        for node, row in enumerate(tree.children):
            for action, child in enumerate(row):
                if child >= 0:
                    self.assertEqual(tree.windows.obs[child, 0, 0], tree.windows.obs[node, 1, 0])
                    self.assertEqual(tree.windows.prev_action[child, 1], action)
                    self.assertEqual(tree.windows.first[child, 1], 0)

    def test_a_block_that_adds_nothing_reads_the_same(self):
        info = EnvInfo("Box", (3,), "float32", (), 2)
        model = gpt.build_q(info, NETWORK)
        rng = np.random.default_rng(0)
        windows = Window(rng.normal(size=(7, 2, 3)).astype("float32"), np.zeros((7, 2), "int32"), np.zeros((7, 2), "int32"))
        for variable in model.trainable_variables:
            silent = "block1" in variable.path and "_out" in variable.path
            variable.assign(np.zeros(variable.shape) if silent else rng.normal(size=variable.shape) * 0.3)
        none, one, both = (probe.values_at(*lens, windows, batch=3) for lens in probe.lenses(model, info, NETWORK))
        whole = flatten_model(model)
        np.testing.assert_allclose(both, probe.values_at(whole, whole.start, windows), atol=1e-5)
        np.testing.assert_allclose(one, both, atol=1e-5)
        self.assertGreater(abs(none - one).max(), 0.05)

    def test_agreement(self):
        q = np.array([[1.0, 3.0], [5.0, 1.0], [2.0, 0.0]])
        np.testing.assert_allclose(probe.agreement(q, q * 2 + 7), (1.0, 1.0))
        np.testing.assert_allclose(probe.agreement(q, -q), (-1.0, 0.0))
        # Advantages (-1, 1), (2, -2), (1, -1) against (-1, 1), (-1, 1), (0, 0).
        found = probe.agreement(q, np.array([[0.0, 2.0], [0.0, 2.0], [5.0, 5.0]]))
        np.testing.assert_allclose(found, ((2 - 4) / np.sqrt(12 * 4), 2 / 3))

    def test_a_linear_probe_finds_what_is_linear_and_nothing_else(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(600, 8))
        self.assertGreater(probe.linear_probe(x, x @ rng.normal(size=(8, 3))), 0.99)
        self.assertLess(abs(probe.linear_probe(x, rng.normal(size=(600, 3)))), 0.2)

    def test_values_rest_on_the_features_they_are_made_of(self):
        inputs = dict(obs=keras.Input((2, 3), name="obs"), first=keras.Input((2,), dtype="int32", name="first"))
        layer = keras.layers.Dense(2, use_bias=False)
        model = keras.Model(inputs, layer(inputs["obs"]))
        layer.set_weights([np.array([[1.0, -1.0], [0.0, 0.0], [0.1, -0.1]])])
        networks = flatten_model(model)
        rng = np.random.default_rng(0)
        windows = Window(rng.normal(size=(400, 2, 3)).astype("float32"), np.zeros((400, 2), "int32"), np.zeros((400, 2), "int32"))
        shares = probe.importance(networks, networks.start, windows)
        # The advantages are a x0 + b x2 with b = a / 10: exchanging x0 leaves a correlation near b^2 / (a^2 + b^2).
        self.assertAlmostEqual(shares[0], 1 - 0.01 / 1.01, delta=0.12)
        self.assertAlmostEqual(shares[1], 0.0, places=6)
        self.assertAlmostEqual(shares[2], 0.01 / 1.01, delta=0.005)

    def test_attention_is_what_the_model_mixes_by(self):
        info, cfg = EnvInfo("Box", (3,), "float32", (), 2), NetworkConfig(context=3, layers=1, heads=1, width=4)
        model = gpt.build_q(info, cfg)
        rng = np.random.default_rng(0)
        for variable in model.trainable_variables:
            variable.assign(rng.normal(size=variable.shape))
        first = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "int32")
        windows = Window(rng.normal(size=(4, 3, 3)).astype("float32"), first, np.zeros((4, 3), "int32"))
        inputs = dict(obs=windows.obs, first=first)
        for row in range(4):
            one = Window(*(part[row:row + 1] for part in windows))
            found = probe.attention_weights(model, one, cfg)[0]
            self.assertAlmostEqual(found.sum(), 1.0, places=5)
            at = {key: value[row:row + 1] for key, value in inputs.items()}
            value = keras.Model(model.input, model.get_layer("block0_attention_qkv").output)(at).numpy()[0, :, 8:]
            mixed = keras.Model(model.input, model.get_layer("block0_attention_out").output)(at).numpy()[0, -1]
            kernel, bias = model.get_layer("block0_attention_out").get_weights()
            np.testing.assert_allclose(found @ value @ kernel + bias, mixed, atol=1e-4)
        self.assertEqual(probe.attention_weights(model, Window(*(part[3:] for part in windows)), cfg)[0].tolist(), [0, 0, 1])

    @pytest.mark.slow
    def test_the_whole_command(self):
        with tempfile.TemporaryDirectory() as folder:
            self.tmp = Path(folder)
            for name, *flags in (("gpt",), ("features", "--tokens=features"), ("dense", "--network=dense")):
                done = script("run_dqn", "--total-steps=1152", "--width=16", *flags, f"--run-dir={self.tmp / name}")
                self.assertEqual(done.returncode, 0, done.stderr)
            done = script("probe_search", self.tmp / "gpt", "--states=30", "--depth=2", "--episodes=2", f"--out={self.tmp / 'out'}",
                          "--against", self.tmp / "dense")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stderr, "")
            self.assertRegex(done.stdout, r"dense of 2 layers +layer 2: ")
            for picture in ("probe", "reading"):
                self.assertGreater((self.tmp / "out" / f"{picture}.png").stat().st_size, 5_000)
            refused(self, "dense network, which has no blocks", "probe_search", self.tmp / "dense")
            done = script("probe_search", self.tmp / "features", "--states=30", "--depth=1", "--episodes=1", f"--out={self.tmp / 'cells'}")
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(self.tmp / "cells" / "reading.csv", newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row["who"], row["what"]) == ("trained", "attention to features")]
            self.assertEqual([row["place"] for row in rows], list("0123"))  # CartPole's, of the one block
            self.assertAlmostEqual(sum(float(row["value"]) for row in rows), 1.0, places=5)


if __name__ == "__main__":
    unittest.main()
