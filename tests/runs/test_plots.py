"""Learning curves."""

import unittest

import matplotlib.image
import numpy as np

from tests.helpers import InFolder
from tfdqt.errors import UsageError
from tfdqt.runs.plots import band, plot_learning


def log(steps, values):
    return dict(step=np.array(steps, float), mean_return=np.array(values, float))


class Band(unittest.TestCase):
    def test_seeds_of_different_lengths(self):
        runs = [log([0, 50, 100], [0, 50, 100]), log([0, 20, 60], [0, 40, 120])]
        steps, values = band(runs, "mean_return", points=4)
        # Up to the shorter run's end, 60; the values are the step and twice the step.
        np.testing.assert_allclose(steps, [0, 20, 40, 60])
        np.testing.assert_allclose(values, [[0, 20, 40, 60], [0, 40, 80, 120]])

    def test_begins_where_every_seed_has_a_value(self):
        runs = [log([0, 10, 20, 30], [0, 1, 2, 3]), log([0, 10, 20, 30], [np.nan, np.nan, 5, 6])]
        steps, values = band(runs, "mean_return", points=3)
        np.testing.assert_allclose(steps, [20, 25, 30])
        np.testing.assert_allclose(values, [[2, 2.5, 3], [5, 5.5, 6]])

    def test_a_column_with_gaps(self):
        runs = [log([0, 10, 20, 30], [np.nan, 2, np.nan, 6])]
        np.testing.assert_allclose(band(runs, "mean_return", points=3)[1], [[2, 4, 6]])

    def test_a_run_that_ends_before_another_begins(self):
        runs = [log([0, 10], [1, 2]), log([0, 20, 30], [np.nan, 5, 6])]
        with self.assertRaisesRegex(UsageError, "ends at step 10, before .* at 20; leave it out"):
            band(runs, "mean_return")

    def test_one_seed(self):
        steps, values = band([log([10, 20], [1, 3])], "mean_return", points=3)
        np.testing.assert_allclose(steps, [10, 15, 20])
        np.testing.assert_allclose(values, [[1, 2, 3]])


class Picture(InFolder):
    def setUp(self):
        super().setUp()
        self.path = self.tmp / "curves.png"

    def test_writes_a_png(self):
        steps = np.arange(0, 2_000_000, 10_000)
        groups = {
            "gpt": [log(steps, np.sqrt(steps)), log(steps[:150], np.sqrt(steps[:150]) + 50)],
            "dense": [log(steps, steps / 3e3)],
        }
        plot_learning(groups, self.path, title="Breakout", levels=dict(human=700))
        data = self.path.read_bytes()
        self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
        self.assertGreater(len(data), 10_000)
        picture = matplotlib.image.imread(self.path)
        colours = {
            tuple(colour) for colour in np.round(picture[..., :3].reshape(-1, 3) * 255).astype(int)
        }
        self.assertIn((31, 119, 180), colours)  # the first line of matplotlib's cycle
        self.assertIn((255, 127, 14), colours)  # the second

    def test_dollars_are_no_mathematics(self):
        for text in (r"a $\foo$ b", "$", "$x$ $"):
            groups = {text: [log([0, 10], [1, 2])]}
            plot_learning(groups, self.path, title=text, levels={text: 1})

    def test_nothing_to_draw(self):
        for runs in (
            [log([0, 10], [np.nan, np.nan])],
            [log([0, 10], [1, 2]), log([0, 10], [np.nan, np.nan])],
        ):
            with self.assertRaisesRegex(UsageError, "gpt"):
                plot_learning({"gpt": runs}, self.path)
        self.assertFalse(self.path.exists())


if __name__ == "__main__":
    unittest.main()
