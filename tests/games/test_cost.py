"""What a network will take of memory."""

import contextlib
import io
import unittest
from unittest import mock

from tfdqt import memory
from tfdqt.errors import UsageError
from tfdqt.games.config import NetworkConfig
from tfdqt.games.cost import attention_bytes, check_attention, check_ends, parts_of_batch
from tfdqt.games.spaces import EnvInfo

RAM = EnvInfo("Ram", (128,), "uint8", (), 4)


class TestEnds(unittest.TestCase):
    def test_what_grows_without_a_bound(self):
        state = EnvInfo("State", (1,), "int32", (10**8,), 4)
        arms = EnvInfo("Arms", (1,), "float32", (), 10**8)
        with (
            mock.patch.object(memory, "available", return_value=24 * 10**9),
            contextlib.redirect_stdout(io.StringIO()) as said,
        ):
            check_ends(EnvInfo("Small", (1,), "int32", (10**4,), 4), NetworkConfig(), 32)
            self.assertEqual(said.getvalue(), "")
            for info in (state, arms):
                for network in ("gpt", "dense", "gru"):
                    with self.assertRaisesRegex(UsageError, "100,000,000.*but 24.0 GB"):
                        check_ends(info, NetworkConfig(network=network), 32)

    def test_first_and_last_layer_by_hand(self):
        # Weights count seven times. Besides, with their gradients, 10**6 categories in 4 steps and
        # 10**4 values at each step that is learned from.
        info = EnvInfo("State", (1,), "int32", (10**6,), 10**4)
        for settings, first, last, positions in (
            (dict(width=8, heads=2), 8, 8, 4),
            (dict(network="gru", width=8), 3 * 8, 8, 4),
            (dict(network="gru", width=8, every_step=False), 3 * 8, 8, 1),
            (dict(network="dense", hidden=(8, 16)), 4 * 8, 16, 1),
            (dict(network="dense", hidden=(8, 16), every_step=True), 4 * 8, 16, 4),
            (dict(network="dense", hidden=(8, 16), residual=True), 4 * 8, 8, 1),
        ):
            weights = first * 10**6 + last * 10**4
            size = 4 * (7 * weights + 2 * 32 * (4 * 10**6 + positions * 10**4))
            with (
                self.subTest(**settings),
                mock.patch.object(memory, "check_fits") as check_fits,
                contextlib.redirect_stdout(io.StringIO()),
            ):
                check_ends(info, NetworkConfig(**settings), 32)
                self.assertEqual(check_fits.call_args[0][0], size)


class TestAttention(unittest.TestCase):
    def test_by_hand(self):
        steps = NetworkConfig(context=10, heads=2)
        self.assertEqual(attention_bytes(RAM, steps), 4 * 2 * 10 * 10)
        features = NetworkConfig(context=10, heads=2, tokens="features")
        self.assertEqual(attention_bytes(RAM, features), 4 * 2 * 1_280 * 1_280)
        self.assertEqual(attention_bytes(RAM, NetworkConfig(network="dense")), 0)

    def check(self, context, room, **network):
        said = io.StringIO()
        cfg = NetworkConfig(context=context, layers=2, heads=4, **network)
        with (
            mock.patch.object(memory, "available", return_value=room),
            contextlib.redirect_stdout(said),
        ):
            check_attention(RAM, cfg, 32)
        return said.getvalue()

    def test_little_is_not_worth_telling(self):
        self.assertEqual(self.check(4, 0), "")

    def test_much_is_told(self):
        said = self.check(8, 4 * 10**9, tokens="features")
        self.assertIn("8 steps x 128 features, 32 at a time, takes at least 3.2 GB", said)

    def test_batches_are_split_where_attention_is_large(self):
        for attention, size, parts in (
            (0, 32, 1),
            (2**16 - 1, 32, 1),  # 2 MB of attention weights, nearly
            (2**16, 32, 2),
            (2**18, 32, 8),
            (2**30, 32, 8),  # no part is of less than 4 windows
            (2**30, 20, 4),
            (2**30, 6, 1),
        ):
            self.assertEqual(parts_of_batch(attention, size), parts, msg=f"{attention} {size}")

    def test_what_does_not_fit_is_refused(self):
        with self.assertRaisesRegex(UsageError, "3.2 GB .* give .* or --context=4 or --tokens=st"):
            self.check(8, 10**9, tokens="features")
        with self.assertRaisesRegex(UsageError, r"of 1000 steps.*; give .* or --context=500\."):
            self.check(1_000, 768 * 10**6)  # a quarter of what it takes


if __name__ == "__main__":
    unittest.main()
