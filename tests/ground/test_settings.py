"""Settings: saved, read back strictly, and the checks that all of them share."""

import dataclasses
import json
import re
import unittest
from dataclasses import asdict

import numpy as np

from tests.helpers import InFolder
from tfdqt import settings
from tfdqt.errors import UsageError
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.settings import load_config, save_config


class SaveAndLoad(InFolder):
    def setUp(self):
        super().setUp()
        self.path = self.tmp / "config.json"

    def load(self):
        return load_config(self.path, network=NetworkConfig, dqn=DQNConfig)

    def write(self, *, network=None, dqn=None):
        plain = dict(
            network={**asdict(NetworkConfig()), **(network or {})},
            dqn={**asdict(DQNConfig()), **(dqn or {})},
        )
        self.path.write_text(json.dumps(plain))
        return plain

    def test_round_trip(self):
        network = NetworkConfig(network="dense", hidden=(8, 16, 4), dueling=True, context=3)
        dqn = DQNConfig(gamma=0.5, total_steps=7, reward_transform="sign")
        save_config(self.path, network=network, dqn=dqn, name="CartPole-v1", seed=3)
        self.assertEqual(self.load(), dict(network=network, dqn=dqn, name="CartPole-v1", seed=3))

    def test_numbers_of_numpy_are_kept(self):
        network = NetworkConfig(min_change=np.float32(0.5), hidden=(np.int64(8),))
        save_config(self.path, network=network, dqn=DQNConfig(), seed=np.int64(3))
        found = self.load()
        self.assertEqual((found["network"], found["seed"]), (network, 3))
        before = self.path.read_text()
        with self.assertRaisesRegex(TypeError, "set can't be kept"):
            save_config(self.path, seed={3})
        self.assertEqual(self.path.read_text(), before)
        self.assertEqual(list(self.path.parent.glob("*.writing")), [])

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
            ("dqn", "gamma", "0.9"),
            ("dqn", "gamma", None),
            ("dqn", "gamma", True),
            ("dqn", "total_steps", 1.5),
            ("dqn", "total_steps", True),
            ("dqn", "double", 1),
            ("dqn", "reward_transform", "clip"),
            ("network", "network", "cnn"),
            ("network", "hidden", [8, "16"]),
            ("network", "hidden", 8),
            ("network", "width", [64]),
        ):
            with self.subTest(field=field, value=value):
                self.write(**{part: {field: value}})
                with self.assertRaisesRegex(UsageError, field):
                    self.load()

    def test_plain_values_are_read_strictly(self):
        good = dict(name="CartPole-v1", seed=3, log_lines=10, checkpoint_every=5, corpus=None)
        self.path.write_text(json.dumps(dict(good, other=[1])))
        self.assertEqual(load_config(self.path), dict(good, other=[1]))
        for key, value in (
            ("name", 3),
            ("name", None),
            ("seed", "0"),
            ("seed", -1),
            ("seed", 1.5),
            ("log_lines", 0),
            ("log_lines", True),
            ("checkpoint_every", 0),
            ("checkpoint_every", None),
            ("algorithm", ["dqn"]),
            ("version", 0.2),
            ("corpus", 3),
            ("epochs", "2"),
            ("words", "thai"),
        ):
            with self.subTest(key=key, value=value):
                self.path.write_text(json.dumps({**good, key: value}))
                with self.assertRaisesRegex(UsageError, f"config.json: {key} "):
                    load_config(self.path)

    def test_what_a_setting_takes_is_told_in_words(self):
        for key, value, takes in (
            ("seed", "0", "a whole number."),
            ("corpus", 3, "a text or null."),
            ("words", "thai", "'unicode' or 'plain' or 'raw'."),
        ):
            self.path.write_text(json.dumps({key: value}))
            with self.assertRaisesRegex(UsageError, f"it takes {takes}$"):
                load_config(self.path)
        self.write(network=dict(hidden=[8, "16"]))
        with self.assertRaisesRegex(UsageError, "it takes a list, each of a whole number.$"):
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
    @dataclasses.dataclass(frozen=True)
    class Settings:
        some_steps: float = 1
        width: int = 8
        heads: int = 2

    def refused(self, check, flag, *fields, **values):
        with self.assertRaisesRegex(UsageError, flag) as caught:
            check(self.Settings(**values), *fields)
        self.assertNotIn("\n", str(caught.exception))

    def test_numbers_out_of_bounds_name_their_flag(self):
        for check, good, bad in (
            (settings.check_positive, (1, 0.1, 1e9), (0, -1, float("nan"), float("inf"))),
            (settings.check_not_negative, (0, 0.5), (-1, -1e-9, float("nan"))),
            (settings.check_fractions, (0, 0.5, 1), (-0.1, 1.1, float("nan"))),
            (settings.check_at_least_one, (1, 7, None), (0, -1)),
        ):
            with self.subTest(check=check.__name__):
                for value in good:
                    check(self.Settings(some_steps=value, width=1), "width", "some_steps")
                for value in bad:
                    self.refused(check, "--some-steps", "some_steps", some_steps=value)

    def test_heads_must_divide_the_width(self):
        settings.check_heads(self.Settings(width=12, heads=3))
        for width, heads in ((10, 4), (3, 8), (100, 7)):
            with self.assertRaisesRegex(UsageError, "--width") as caught:
                settings.check_heads(self.Settings(width=width, heads=heads))
            better = int(re.search(r"such as (\d+)", str(caught.exception))[1])
            settings.check_heads(self.Settings(width=better, heads=heads))


if __name__ == "__main__":
    unittest.main()
