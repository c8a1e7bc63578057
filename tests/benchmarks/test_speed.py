"""The speed benchmark: what a row costs by hand, the talk with a measured process, refusals."""

import sys
import unittest
from unittest import mock

import benchmark
import benchmark_text
import measured_process
import numpy as np
import rows

from tests.helpers import slow
from tests.text.helpers import without_xla
from tfdqt.errors import UsageError
from tfdqt.games.spaces import EnvInfo

from . import BENCHMARKS, ROOT, call

CARTPOLE = EnvInfo("CartPole", (4,), "float32", (), 2)
COUNTER = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS / "speed")!r})
from meter import make_meter
print("noise before it is warm")
tick = make_meter(dict(name="counter"), lambda: 5.0)
count = 0
while tick(count, 2 * count):
    count += 3
"""


class TestRows(unittest.TestCase):
    def test_matrix_products_of_a_dense_update(self):
        row = rows.make_rows()["dense-cartpole"]
        first = 4 * 256
        rest = 256 * 256 + 256 * 2
        # Forwards through the network and the target network; backwards the first layer has one
        # product, the others two.
        products = 2 * (first + rest) + first + 2 * rest
        self.assertEqual(rows.matmul_flops(row, CARTPOLE), 2 * 64 * products)

    def test_matrix_products_of_a_policys_update(self):
        row = rows.make_rows()["ppo-cartpole"]
        first = 4 * 64
        rest = 64 * 64 + 64 * 2
        products = (first + rest) + first + 2 * rest
        self.assertEqual(rows.matmul_flops(row, CARTPOLE), 2 * row.cfg.batch_size * products)

    def test_updates_in_a_call(self):
        every = rows.make_rows(num_envs=8)
        cfg = every["dense-cartpole"].cfg
        self.assertEqual(rows.updates_per_call(every["dense-cartpole"]), 0.5 * 8 * cfg.chunk)
        self.assertEqual(rows.updates_per_call(every["ppo-cartpole"]), 20 * 8 * 32 // 256)

    def test_each_is_described(self):
        for row in rows.make_rows().values():
            self.assertIn(row.env, rows.describe(row))


class TestTexts(unittest.TestCase):
    @slow("20 s: two updates are traced")
    def test_both_ways_to_learn_are_timed(self):
        tiny = ("--width=16", "--layers=1", "--length=8", "--batch-size=4", "--vocabulary=50")
        # The process's threads are set once, by whichever test starts TensorFlow.
        with without_xla(), mock.patch("tfdqt.backend.set_threads"):
            said = call(benchmark_text, "--repeats=1", "--updates=1", *tiny)
        self.assertRegex(said, r"whole texts: [\d,]+ transitions/s")
        self.assertRegex(said, r"each beginning alone: [\d,]+ transitions/s")


class TestConversation(unittest.TestCase):
    def test_a_process_is_measured_when_it_is_asked(self):
        process, about = measured_process.start([sys.executable, "-c", COUNTER], {})
        try:
            self.assertEqual(about, dict(name="counter"))
            answer = measured_process.ask(process, 10)
            self.assertEqual((answer["count"], answer["updates"]), (12, 24))
            self.assertEqual(answer["matmul_rate"], 5.0)
            self.assertEqual(measured_process.ask(process, 3)["count"], 3)
        finally:
            measured_process.stop(process)
        self.assertEqual(process.returncode, 0)

    def test_a_process_that_ends(self):
        with self.assertRaisesRegex(UsageError, "ended with exit code 3"):
            measured_process.start([sys.executable, "-c", "raise SystemExit(3)"], {})

    def test_a_python_that_is_not_there(self):
        with self.assertRaisesRegex(UsageError, "^no-python can't be started"):
            measured_process.start(["no-python", "x.py"], {})


class TestSummary(unittest.TestCase):
    def test_ratios_are_taken_pair_by_pair(self):
        row = rows.make_rows()["dense-cartpole"]
        speeds = dict(ours=(100, 300, 200), theirs=(50, 100, 200))
        entries = [
            dict(side=side, per_second=speed, floor_percent=1.0)
            for side, values in speeds.items()
            for speed in values
        ]
        line = benchmark.summary(row, entries)
        self.assertEqual(line[2:5], ["200", "100", "1.00 / 2.00 / 3.00"])
        self.assertEqual(line[-1], ">= 2.5x: missed")

    def test_both_sides_must_do_the_same(self):
        ours = dict(losses=[1.0, 2.0], updates_per_call=2)
        benchmark.check_losses(ours, dict(losses=[0.5, 1.5, 1.0, 3.0]))
        with self.assertRaisesRegex(UsageError, "not the same"):
            benchmark.check_losses(ours, dict(losses=[0.5, 1.5, 1.0, 4.0]))

    def test_refusals(self):
        for flags, message in (
            (["--repeats=0"], "--repeats must be at least 1"),
            (["--sb3-envs=3"], "can't keep 0.5 updates per step"),
            ([], "an environment of their own"),
            (["--bench-python=nowhere"], "can't be started"),
        ):
            with self.assertRaisesRegex(UsageError, message):
                call(benchmark, *flags)

    def test_the_command_it_names_is_there(self):
        words = benchmark.command_line(benchmark.Args(repeats=3)).split()
        self.assertTrue((ROOT / words[1]).is_file())
        self.assertEqual(words[-1], "--repeats=3")
        self.assertTrue(np.isin(benchmark.Args().rows, words).all())


if __name__ == "__main__":
    unittest.main()
