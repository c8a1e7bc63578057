"""The latest steps of environments, as a network is shown them."""

import unittest

import numpy as np

from tests.games.toys import CELLS
from tfdqt.games.window import forget_history, make_window, network_inputs, push


class TestWindow(unittest.TestCase):
    def pushed(self):
        """Two environments, three steps; the second one starts an episode with the last step."""
        window = make_window(CELLS, 2, 3)
        push(window, np.array([[1], [2]]), np.array([True, True]), -1)
        push(window, np.array([[3], [4]]), np.array([False, False]), np.array([0, 1]))
        push(window, np.array([[5], [6]]), np.array([False, True]), np.array([2, 0]))
        return window

    def test_an_empty_window_has_no_history(self):
        window = make_window(CELLS, 2, 3)
        np.testing.assert_array_equal(window.first, np.ones((2, 3)))
        np.testing.assert_array_equal(window.prev_action, -np.ones((2, 3)))
        self.assertEqual((window.obs.dtype, window.obs.shape), (np.int32, (2, 3, 1)))

    def test_the_oldest_step_goes_and_no_action_is_before_an_episode(self):
        window = self.pushed()
        np.testing.assert_array_equal(window.obs[..., 0], [[1, 3, 5], [2, 4, 6]])
        np.testing.assert_array_equal(window.first, [[1, 0, 0], [1, 0, 1]])
        np.testing.assert_array_equal(window.prev_action, [[-1, 0, 2], [-1, 1, -1]])
        push(window, np.array([[7], [8]]), np.array([False, False]), np.array([1, 1]))
        np.testing.assert_array_equal(window.obs[..., 0], [[3, 5, 7], [4, 6, 8]])

    def test_the_action_before_the_window_is_hidden_from_the_network_alone(self):
        window = self.pushed()
        push(window, np.array([[7], [8]]), np.array([False, False]), np.array([1, 1]))
        np.testing.assert_array_equal(
            network_inputs(window)["prev_action"], [[-1, 2, 1], [-1, -1, 1]]
        )
        np.testing.assert_array_equal(window.prev_action, [[0, 2, 1], [1, -1, 1]])

    def test_a_row_can_be_started_afresh(self):
        window = self.pushed()
        forget_history(window, 0, np.array([4]))
        np.testing.assert_array_equal(window.obs[..., 0], [[0, 0, 4], [2, 4, 6]])
        np.testing.assert_array_equal(window.first, [[1, 1, 1], [1, 0, 1]])
        np.testing.assert_array_equal(window.prev_action, [[-1, -1, -1], [-1, 1, -1]])


if __name__ == "__main__":
    unittest.main()
