"""Exact Q-learning on a table, by hand."""

import contextlib
import io
import unittest

import numpy as np
import tabular

from tests.helpers import InFolder
from tfdqt.text.replay import Transition


class TestTabular(InFolder):
    def test_values_by_hand(self):
        """Move 2 leads from text 1 to text 2 or to one never left; there move 0 ends the game."""
        items = Transition(
            state=np.array([[1], [1], [2], [2]], np.int32),
            action=np.array([2, 2, 0, 3]),
            reward=np.array([-1.0, -1.0, 0.0, -1.0]),
            next_state=np.array([[2], [3], [9], [2]], np.int32),
            discount=np.array([1.0, 1.0, 0.0, 1.0]),
        )
        table = tabular.learn(items)
        one, two = (table[np.array([i], np.int32).tobytes()] for i in (1, 2))
        np.testing.assert_allclose(two, [0, -np.inf, -np.inf, -1])
        np.testing.assert_allclose(one, [-np.inf, -np.inf, -1, -np.inf])

    def test_whole_walks_can_be_stitched_of_two_moves(self):
        args = tabular.Args(
            remembered=(2,), temperatures=(0.1,), seeds=(0,), plays=2, out=self.tmp / "rows.csv"
        )
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            tabular.main(args)
        *_, whole, confined = told.getvalue().splitlines()
        for line, low, high in ((whole, -9, -7), (confined, -90, -75)):
            self.assertTrue(low < float(line.split("|")[3]) < high, line)


if __name__ == "__main__":
    unittest.main()
