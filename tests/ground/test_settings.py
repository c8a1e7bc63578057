"""Settings: checked, saved, read back strictly; and no TensorFlow for reading them."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

from tfdqt.checks import check_dqn, check_network, check_text, check_text_network
from tfdqt.config import (
    METHODS,
    TEXT,
    DQNConfig,
    NetworkConfig,
    UsageError,
    default_config,
    default_parallel,
    default_text_config,
    load_config,
    save_config,
)

ROOT = Path(__file__).resolve().parents[1]


class SaveAndLoad(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "config.json"

    def load(self):
        return load_config(self.path, network=NetworkConfig, dqn=DQNConfig)

    def write(self, *, network=None, dqn=None):
        plain = dict(network={**asdict(NetworkConfig()), **(network or {})}, dqn={**asdict(DQNConfig()), **(dqn or {})})
        self.path.write_text(json.dumps(plain))
        return plain

    def test_round_trip(self):
        network = NetworkConfig(network="dense", hidden=(8, 16, 4), dueling=True, context=3)
        dqn = DQNConfig(gamma=0.5, total_steps=7, reward_transform="sign")
        save_config(self.path, network=network, dqn=dqn, name="CartPole-v1", seed=3)
        self.assertEqual(self.load(), dict(network=network, dqn=dqn, name="CartPole-v1", seed=3))

    def test_defaults_round_trip(self):
        for name in ("CartPole-v1", "Breakout-ram-v0", "ALE/Breakout-v5", "FrozenLake-v1"):
            network, dqn = default_config(name)
            check_network(network)
            check_dqn(dqn)
            save_config(self.path, network=network, dqn=dqn)
            self.assertEqual(self.load(), dict(network=network, dqn=dqn), name)

    def test_processes_and_threads(self):
        with mock.patch("os.cpu_count", return_value=4):
            self.assertEqual(default_parallel("CartPole-v1"), dict(workers=3, threads=4))
            self.assertEqual(default_parallel("CartPole-v1", "ppo"), dict(workers=0, threads=1))
            self.assertEqual(default_parallel("ALE/Breakout-v5", "ppo"), dict(workers=4, threads=4))

    def test_whole_number_is_a_float(self):
        self.write(dqn=dict(gamma=1))
        self.assertEqual(self.load()["dqn"].gamma, 1)

    def test_unknown_field(self):
        self.write(dqn=dict(gama=0.9))
        with self.assertRaisesRegex(UsageError, "gama"):
            self.load()

    def test_a_field_that_came_after_the_run_is_at_its_default(self):
        plain = self.write(network=dict(width=32))
        del plain["network"]["min_change"], plain["dqn"]["target_epsilon"]
        self.path.write_text(json.dumps(plain))
        self.assertEqual(self.load(), dict(network=NetworkConfig(width=32), dqn=DQNConfig()))

    def test_mistyped_field(self):
        for part, field, value in (
                ("dqn", "gamma", "0.9"), ("dqn", "gamma", None), ("dqn", "gamma", True), ("dqn", "total_steps", 1.5),
                ("dqn", "total_steps", True), ("dqn", "double", 1), ("dqn", "reward_transform", "clip"),
                ("network", "network", "cnn"), ("network", "hidden", [8, "16"]), ("network", "hidden", 8),
                ("network", "width", [64])):
            with self.subTest(field=field, value=value):
                self.write(**{part: {field: value}})
                with self.assertRaisesRegex(UsageError, field):
                    self.load()

    def test_part_is_no_settings(self):
        for part in (None, 3, [], "gpt"):
            with self.subTest(part=part):
                self.path.write_text(json.dumps(dict(network=part, dqn=asdict(DQNConfig()))))
                with self.assertRaises(UsageError):
                    self.load()

    def test_missing_part(self):
        self.path.write_text(json.dumps(dict(network=asdict(NetworkConfig()))))
        with self.assertRaises(UsageError):
            self.load()

    def test_bad_json(self):
        for text in ('{"network": {"wid', "", "[1, 2]", "\x00\x01"):
            with self.subTest(text=text):
                self.path.write_text(text)
                with self.assertRaises(UsageError):
                    self.load()

    def test_no_text(self):
        self.path.write_bytes(b"\xff\xfe\xfa")
        with self.assertRaises(UsageError):
            self.load()

    def test_missing_file(self):
        with self.assertRaisesRegex(UsageError, re.escape(str(self.path))):
            self.load()


class Checks(unittest.TestCase):

    def test_networks_that_cannot_be_built(self):
        for fault, flag in ((dict(context=0), "--context"), (dict(width=10, heads=4), "--width"), (dict(heads=0), "--heads"),
                            (dict(layers=0), "--layers"), (dict(quantiles=-1), "--quantiles"), (dict(width=-4), "--width"),
                            (dict(min_change=-0.1), "--min-change"), (dict(min_change=2.0), "--min-change"),
                            (dict(network="dense", hidden=()), "--hidden"), (dict(network="dense", hidden=(8, 0)), "--hidden")):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                check_network(NetworkConfig(**fault))

    def test_suggested_width_works(self):
        for width, heads in ((10, 4), (3, 8), (100, 7)):
            with self.assertRaises(UsageError) as caught:
                check_network(NetworkConfig(width=width, heads=heads))
            check_network(NetworkConfig(width=int(re.search(r"such as (\d+)", str(caught.exception))[1]), heads=heads))

    def test_settings_dqn_cannot_run_with(self):
        for fault, flag in (
                (dict(total_steps=-1), "--total-steps"), (dict(num_envs=0), "--num-envs"), (dict(chunk=0), "--chunk"),
                (dict(batch_size=0), "--batch-size"), (dict(replay_size=0), "--replay-size"), (dict(n_step=0), "--n-step"),
                (dict(gamma=1.5), "--gamma"), (dict(gamma=float("nan")), "--gamma"), (dict(target_tau=-0.1), "--target-tau"),
                (dict(epsilon_start=2), "--epsilon-start"), (dict(epsilon_end=-1), "--epsilon-end"),
                (dict(epsilon_fraction=0), "--epsilon-fraction"), (dict(learning_starts=-1), "--learning-starts"),
                (dict(learning_rate=0.0), "--learning-rate"), (dict(learning_rate=float("nan")), "--learning-rate"),
                (dict(target_every=0), "--target-every"), (dict(huber_delta=0.0), "--huber-delta"),
                (dict(max_grad_norm=0.0), "--max-grad-norm"), (dict(updates_per_step=0.0), "--updates-per-step"),
                (dict(updates_per_step=float("inf")), "--updates-per-step")):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                check_dqn(replace(DQNConfig(), **fault))

    def test_updates_must_be_whole(self):
        for rate, envs, chunk in ((0.3, 1, 1), (0.1, 8, 8), (0.01, 3, 5), (0.25, 1, 2), (0.33333, 8, 8)):
            cfg = DQNConfig(updates_per_step=rate, num_envs=envs, chunk=chunk)
            with self.subTest(rate=rate, envs=envs, chunk=chunk):
                with self.assertRaisesRegex(UsageError, "whole number of updates") as caught:
                    check_dqn(cfg)
                flag, value = re.search(r"for example --([a-z-]+)=(\d+\.?\d*)", str(caught.exception)).groups()
                check_dqn(replace(cfg, **{flag.replace("-", "_"): float(value) if "." in value else int(value)}))

    def test_whole_updates_in_floats(self):
        check_dqn(DQNConfig(updates_per_step=0.1, num_envs=10, chunk=3))  # 0.1 * 10 * 3 is not 3 in floats

    def test_one_line(self):
        with self.assertRaises(UsageError) as caught:
            check_dqn(DQNConfig(gamma=7))
        self.assertNotIn("\n", str(caught.exception))


class NoTensorFlow(unittest.TestCase):

    def python(self, *words, **more):
        environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
        environment["PYTHONPATH"] = str(ROOT)
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=120, **more)

    def test_every_method_has_defaults_that_can_be_on_every_task(self):
        for task in TEXT:
            for method in METHODS:
                _, network, text = default_text_config(task, method)
                check_text_network(network)
                check_text(text)
                self.assertEqual(text.method, method)
            self.assertEqual(default_text_config(task, default_text_config(task)[2].method), default_text_config(task))
        self.assertIsNone(default_text_config("wordle", "clone")[2].beta)
        for method in ("q", "montecarlo"):
            self.assertEqual(default_text_config("corpus", method)[2].beta, default_text_config("corpus")[2].beta)

    def test_config_imports_no_tensorflow(self):
        code = "import sys, tfdqt.config; print(sorted({'tensorflow', 'keras', 'tf_agents'} & set(sys.modules)))"
        done = self.python("-c", code)
        self.assertEqual((done.returncode, done.stdout.strip()), (0, "[]"), done.stderr)

    def test_help_imports_no_tensorflow(self):
        done = self.python("-X", "importtime", str(ROOT / "scripts" / "run_dqn.py"), "--help")
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        self.assertIn("--total-steps", done.stdout)
        self.assertIn("tfdqt.config", imported)
        self.assertFalse({"tensorflow", "keras", "tf_agents", "gymnasium"} & imported)

    def test_tensorflow_with_the_wrong_keras_is_refused(self):
        done = self.python("-c", "import sys; sys.modules['tensorflow'] = sys; import tfdqt")
        self.assertEqual(done.returncode, 1)
        self.assertIn("ImportError: tfdqt: TensorFlow was imported without TF_USE_LEGACY_KERAS=1", done.stderr)


if __name__ == "__main__":
    unittest.main()
