"""Settings of games: defaults can be, what can't be is refused, and no TensorFlow for them."""

import os
import re
import subprocess
import sys
import unittest
from dataclasses import replace
from unittest import mock

import numpy as np

from tests.helpers import ROOT, InFolder
from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS, default_parallel, default_settings
from tfdqt.games.config import NetworkConfig, check_network, environment_kind
from tfdqt.games.dqn import DQNConfig, check_settings
from tfdqt.settings import load_config, save_config


class Defaults(InFolder):
    def test_those_of_every_algorithm_can_be_and_round_trip(self):
        for algorithm, chosen in ALGORITHMS.items():
            for name in ("CartPole-v1", "Breakout-ram-v0", "ALE/Breakout-v5", "FrozenLake-v1"):
                with self.subTest(algorithm=algorithm, name=name):
                    network, settings = default_settings(name, algorithm)
                    chosen.check(network, settings)
                    path = self.tmp / "config.json"
                    save_config(path, network=network, settings=settings)
                    read = load_config(path, network=NetworkConfig, settings=chosen.settings)
                    self.assertEqual(read, dict(network=network, settings=settings))

    def test_every_algorithm_has_some_for_every_kind_of_environment(self):
        names = dict(atari="Pong-ram-v4", cartpole="CartPole-v0", other="MountainCar-v0")
        for kind, name in names.items():
            self.assertEqual(environment_kind(name), kind)
        for name in ("Breakout-ramDeterministic-v0", "mine:Pong-ramNoFrameskip-v4"):
            self.assertEqual(environment_kind(name), "atari")
        self.assertEqual(environment_kind("roads:Off-ramp-v0"), "other")
        for chosen in ALGORITHMS.values():
            self.assertEqual(set(chosen.defaults), set(names))

    def test_processes_and_threads(self):
        with mock.patch("os.cpu_count", return_value=4):
            self.assertEqual(default_parallel("CartPole-v1"), dict(workers=3, threads=4))
            self.assertEqual(default_parallel("Pong-ram-v0"), dict(workers=3, threads=4))
            self.assertEqual(default_parallel("CartPole-v1", "ppo"), dict(workers=0, threads=1))
            self.assertEqual(default_parallel("ALE/Breakout-v5", "ppo"), dict(workers=4, threads=4))
            for name in ("Sokoban-v0", "LightsOut-v0", "RushHour-v0"):
                self.assertEqual(default_parallel(name, "pqn"), dict(workers=0, threads=4))
        with mock.patch("os.cpu_count", return_value=2):
            self.assertEqual(default_parallel("CartPole-v1"), dict(workers=1, threads=2))
            self.assertEqual(default_parallel("Pong-ram-v0"), dict(workers=0, threads=2))


class Checks(unittest.TestCase):
    def test_networks_that_cannot_be_built(self):
        for fault, flag in (
            (dict(context=0), "--context"),
            (dict(width=10, heads=4), "--width"),
            (dict(heads=0), "--heads"),
            (dict(layers=0), "--layers"),
            (dict(quantiles=-1), "--quantiles"),
            (dict(bins=-1), "--bins"),
            (dict(bins=1, value_scale="log"), "--bins must be 0 or at least 16"),
            (dict(bins=32), "--bins is for --value-scale=log"),
            (dict(bins=32, value_scale="sqrt"), "--bins is for --value-scale=log"),
            (dict(bins=32, value_scale="log", quantiles=4), "without --quantiles"),
            (dict(width=-4), "--width"),
            (dict(min_change=-0.1), "--min-change"),
            (dict(min_change=2.0), "--min-change"),
            (dict(network="dense", hidden=()), "--hidden"),
            (dict(network="dense", hidden=(8, 0)), "--hidden"),
            (dict(network="lstm"), "--network must be one of gpt, dense, gru, not lstm"),
            (dict(network="dense", residual=True, hidden=(8,)), "give --hidden two or more sizes"),
            (dict(network="gpt", residual=True), "--residual is for --network=dense"),
            (dict(network="dense", tokens="cells"), "--tokens=cells and --loops are for"),
            (dict(network="dense", loops=3), "--tokens=cells and --loops are for"),
            (dict(patch=2), "--patch, --categories and --readout are for"),
            (dict(categories=7), "--patch, --categories and --readout are for"),
            (dict(readout="mean"), "--patch, --categories and --readout are for"),
            (dict(network="gru", patch=2), "--patch, --categories and --readout are for"),
            (dict(network="gru", tokens="features"), "leave them out with --network=gru"),
            (dict(network="gru", loops=2), "leave them out with --network=gru"),
            (dict(network="gru", gru_gate=True), "leave them out with --network=gru"),
            (dict(network="gru", width=0), "--width"),
            (dict(network="gru", places="lag"), "--places"),
            (dict(value_scale="log", bins=16, reward_units=True), "leave out --reward-units"),
            (dict(tokens="features", places="lag"), "--places"),
            (dict(tokens="cells", places="lag-start"), "--places"),
        ):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                check_network(NetworkConfig(**fault))

    def test_a_gru_has_no_heads_to_divide_its_width(self):
        check_network(NetworkConfig(network="gru", width=10, heads=4))

    def test_suggested_width_works(self):
        for width, heads in ((10, 4), (3, 8), (100, 7)):
            with self.assertRaises(UsageError) as caught:
                check_network(NetworkConfig(width=width, heads=heads))
            check_network(
                NetworkConfig(
                    width=int(re.search(r"such as (\d+)", str(caught.exception))[1]), heads=heads
                )
            )

    def test_settings_dqn_cannot_run_with(self):
        for fault, flag in (
            (dict(total_steps=-1), "--total-steps"),
            (dict(num_envs=0), "--num-envs"),
            (dict(chunk=0), "--chunk"),
            (dict(batch_size=0), "--batch-size"),
            (dict(replay_size=0), "--replay-size"),
            (dict(n_step=0), "--n-step"),
            (dict(gamma=1.5), "--gamma"),
            (dict(gamma=float("nan")), "--gamma"),
            (dict(target_tau=0.0), "--target-tau"),
            (dict(target_tau=1.5), "--target-tau"),
            (dict(acting_tau=0.0), "--acting-tau"),
            (dict(epsilon_start=2), "--epsilon-start"),
            (dict(epsilon_end=-1), "--epsilon-end"),
            (dict(epsilon_fraction=0), "--epsilon-fraction"),
            (dict(learning_starts=-1), "--learning-starts"),
            (dict(learning_rate=0.0), "--learning-rate"),
            (dict(learning_rate=float("nan")), "--learning-rate"),
            (dict(target_every=0), "--target-every"),
            (dict(huber_delta=0.0), "--huber-delta"),
            (dict(max_grad_norm=0.0), "--max-grad-norm"),
            (dict(updates_per_step=0.0), "--updates-per-step"),
            (dict(updates_per_step=float("inf")), "--updates-per-step"),
        ):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                check_settings(replace(DQNConfig(), **fault))

    def test_values_of_another_type(self):
        for cfg, check, said in (
            (DQNConfig(reward_transform="sgn"), check_settings, "--reward-transform must be one"),
            (DQNConfig(batch_size=8.5), check_settings, "--batch-size can't be 8.5; it takes int"),
            (DQNConfig(total_steps="240"), check_settings, "--total-steps can't be '240'"),
            (NetworkConfig(tokens="cell"), check_network, "--tokens must be one of steps, feat"),
            (NetworkConfig(value_scale="sqr"), check_network, "--value-scale must be one of lin"),
            (NetworkConfig(network="dense", hidden=64), check_network, "--hidden can't be 64"),
        ):
            with self.subTest(cfg=cfg), self.assertRaisesRegex(UsageError, said):
                check(cfg)
        check_network(NetworkConfig(network="dense", hidden=[64, np.int64(8)]))

    def test_updates_must_be_whole(self):
        for rate, envs, chunk in (
            (0.3, 1, 1),
            (0.1, 8, 8),
            (0.01, 3, 5),
            (0.25, 1, 2),
            (0.33333, 8, 8),
        ):
            cfg = DQNConfig(updates_per_step=rate, num_envs=envs, chunk=chunk)
            with self.subTest(rate=rate, envs=envs, chunk=chunk):
                with self.assertRaisesRegex(UsageError, "whole number of updates") as caught:
                    check_settings(cfg)
                flag, value = re.search(
                    r"for example --([a-z-]+)=(\d+\.?\d*)", str(caught.exception)
                ).groups()
                check_settings(
                    replace(
                        cfg,
                        **{flag.replace("-", "_"): float(value) if "." in value else int(value)},
                    )
                )

    def test_whole_updates_in_floats(self):
        check_settings(
            DQNConfig(updates_per_step=0.1, num_envs=10, chunk=3)
        )  # 0.1 * 10 * 3 is not 3 in floats

    def test_one_line(self):
        with self.assertRaises(UsageError) as caught:
            check_settings(DQNConfig(gamma=7))
        self.assertNotIn("\n", str(caught.exception))


class NoTensorFlow(unittest.TestCase):
    heavy = {"tensorflow", "keras", "tf_agents", "tf_keras"}

    def python(self, *words):
        hidden = ("TF_USE_LEGACY_KERAS",)
        environ = {key: value for key, value in os.environ.items() if key not in hidden}
        environ["PYTHONPATH"] = str(ROOT)
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, env=environ, timeout=120
        )

    def test_settings_and_the_table_of_algorithms_load_none(self):
        for module in ("tfdqt.games.config", "tfdqt.games.algorithms", "tfdqt.games.run"):
            done = self.python("-c", f"import sys, {module}; print(*sys.modules)")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(module, done.stdout.split())
            self.assertEqual(self.heavy & set(done.stdout.split()), set(), module)

    def test_help_loads_none(self):
        done = self.python("-X", "importtime", str(ROOT / "scripts" / "run_dqn.py"), "--help")
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        self.assertIn("--total-steps", done.stdout)
        self.assertIn("tfdqt.games.config", imported)
        self.assertFalse(self.heavy & imported)

    def test_a_lazy_module_loads_when_it_is_used(self):
        code = (
            "import sys; from tfdqt.backend import keras, tf\n"
            "assert not hasattr(tf, '__wrapped__') and 'keras' not in sys.modules\n"
            "assert int(tf.constant(3)) == 3\n"
            "import tensorflow; assert tf.Tensor is tensorflow.Tensor\n"
            "print(type(keras).__name__, keras.ops is sys.modules['keras'].ops)"
        )
        done = self.python("-c", code)
        self.assertEqual(
            (done.returncode, done.stdout.strip()), (0, "LazyModule True"), done.stderr
        )

    def test_tensorflow_with_the_wrong_keras_is_refused(self):
        done = self.python("-c", "import sys; sys.modules['tensorflow'] = sys; import tfdqt")
        self.assertEqual(done.returncode, 1)
        self.assertIn(
            "ImportError: tfdqt: TensorFlow was imported without TF_USE_LEGACY_KERAS=1", done.stderr
        )


if __name__ == "__main__":
    unittest.main()
