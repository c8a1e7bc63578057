"""tfdqt and the PyTorch proof of concept side by side.

PyTorch is not among tfdqt's requirements. The long test runs where this python has it, or with
OLD_PYTORCH_PYTHON=.torch/bin/python, a python made from old_pytorch/requirements.txt.
"""

import csv
import importlib.util
import os
import sys
import tempfile
import unittest
from pathlib import Path

import compare_pytorch
import numpy as np

from tfdqt.errors import UsageError

from . import call, script

HAS_TORCH = importlib.util.find_spec("torch") is not None
PYTHON = os.environ.get("OLD_PYTORCH_PYTHON") or (sys.executable if HAS_TORCH else None)


class TestComparePyTorch(unittest.TestCase):
    def test_no_python(self):
        with self.assertRaisesRegex(UsageError, "is no python; make one"):
            call(compare_pytorch, "--torch-python=nowhere/python")

    def test_both_are_given_the_same(self):
        args = compare_pytorch.Args(torch_python="python", total_steps=1_000)
        sides = compare_pytorch.commands(args, 3, Path("out"))
        for flag in ("--seed=3", "--total-steps=1000", "--batch-size=64", "--width=32"):
            for words in sides.values():
                self.assertIn(flag, words)
        self.assertIn("--updates-per-step=0.5", sides["tfdqt"])
        self.assertIn("--steps-per-update=2", sides["pytorch"])

    def test_what_a_log_says(self):
        log = dict(
            step=np.array([0.0, 50.0, 100.0]),
            seconds=np.array([5.0, 10.0, 20.0]),
            mean_return=np.array([1.0, 2.0, 3.0]),
        )
        said = compare_pytorch.measure(log)
        self.assertEqual(said, dict(steps_per_second=5.0, seconds=20.0, mean_return=3.0))

    @unittest.skipIf(PYTHON is None, "needs PyTorch; see old_pytorch/requirements.txt")
    def test_side_by_side(self):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out")
            done = script(
                "benchmarks/pytorch/compare_pytorch.py", f"--torch-python={PYTHON}", "--seeds=1",
                "--total-steps=1280", f"--out={out}",
            )  # fmt: skip
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(out / "pytorch.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            self.assertEqual([row["side"] for row in rows], ["tfdqt", "pytorch"])
            for row in rows:
                self.assertGreater(float(row["steps_per_second"]), 0)
                self.assertGreaterEqual(float(row["mean_return"]), 8)
            self.assertGreater((out / "pytorch.png").stat().st_size, 5_000)


if __name__ == "__main__":
    unittest.main()
