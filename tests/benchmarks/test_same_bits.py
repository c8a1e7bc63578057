"""How checkpoints of two checkouts are compared."""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
import same_bits

from tfdqt.runs.checkpoint import save_checkpoint

TREE = dict(
    learner=[np.arange(3.0), np.array([np.nan, 1.0], "float32")],
    progress=dict(step=7, recent=(1.5, float("nan"))),
    envs=[None, dict(name="x")],
)
PATHS = [
    "/learner/0", "/learner/1", "/progress/step", "/progress/recent/0", "/progress/recent/1",
    "/envs/0", "/envs/1/name",
]  # fmt: skip


def leaves(tree, step=7):
    """The leaves of a tree that was saved as a checkpoint and read again."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, step, tree)
        return same_bits.read_checkpoint(Path(folder))


class TestSameBits(unittest.TestCase):
    def test_a_tree_as_its_leaves(self):
        self.assertEqual(list(leaves(TREE)), PATHS)
        self.assertEqual(same_bits.differences(leaves(TREE), leaves(TREE)), [])

    def test_a_bit_that_differs(self):
        other = dict(TREE, learner=[np.arange(3.0) + 1e-12, TREE["learner"][1]])
        (line,) = same_bits.differences(leaves(TREE), leaves(other))
        self.assertRegex(line, "/learner/0 differs by up to 1e-12")

    def test_other_kinds_shapes_and_values(self):
        other = dict(
            learner=[np.arange(3.0, dtype="float32"), np.array([np.nan], "float32")],
            progress=dict(step=7.0, recent=(1.5, float("nan"))),
            envs=[None, dict(name="y")],
        )
        lines = same_bits.differences(leaves(TREE), leaves(other))
        self.assertEqual(
            [line.split()[0] for line in lines],
            ["/learner/0", "/learner/1", "/progress/step", "/envs/1/name"],
        )

    def test_only_what_is_missing_here_is_a_difference(self):
        more = dict(TREE, life=1)
        self.assertEqual(same_bits.differences(leaves(TREE), leaves(more)), [])
        self.assertEqual(same_bits.differences(leaves(more), leaves(TREE)), ["/life is missing"])

    def test_it_reads_without_tfdqt(self):
        source = Path(same_bits.__file__).read_text()
        self.assertNotIn("import tfdqt\n", source.replace('"import tfdqt;', ""))
        self.assertNotIn("from tfdqt", source)
        self.assertTrue(json.dumps(list(same_bits.RUNS)))


if __name__ == "__main__":
    unittest.main()
