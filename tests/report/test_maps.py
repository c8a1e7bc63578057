"""Maps over the entries of an observation: what they hold by hand, and where they are drawn."""

import unittest

import numpy as np
from gymnasium import spaces

from tests.games.toys import BOX
from tfdqt.games.config import NetworkConfig
from tfdqt.games.spaces import describe
from tfdqt.report import film
from tfdqt.report.explained import Explained
from tfdqt.report.maps import Maps, attention_maps, changes, in_rows, influence_maps

GRID = describe(spaces.Box(0, 9, (2, 3, 2), np.float32), spaces.Discrete(2), "Grid")


class Influence(unittest.TestCase):
    def maps(self, obs, score, info=BOX, **how):
        inputs = dict(obs=np.array(obs, np.float32), first=np.ones((len(obs), 1), np.int32))
        return influence_maps(score, inputs, info, None, **{"policy": False, **how})

    def test_by_hand(self):
        """Of two steps each is exchanged with the other."""

        def score(inputs):
            a, _, c = np.moveaxis(inputs["obs"][:, -1], -1, 0)
            return np.stack([c + a, c - a], axis=1)

        found = self.maps([[[1, 5, 2]], [[3, 6, 2.5]]], score)
        # Entry 0 turns (3, 1) into (5, -1) and back, entry 2 moves both by half.
        np.testing.assert_allclose(found.values[:, 0, 0], [[2, 0, 0], [2, 0, 0]])
        np.testing.assert_allclose(found.values[:, 1, 0], [[2, 0, 0.5], [2, 0, 0.5]])
        self.assertEqual((found.strongest(0, 0), found.strongest(0, 1)), ("0", "0, 2"))

    def test_the_whole_window_is_exchanged(self):
        obs = [[[1, 0, 0], [2, 0, 0]], [[5, 0, 0], [7, 0, 0]]]
        found = self.maps(obs, lambda inputs: inputs["obs"][:, 0, :1] * [1.0, 0.0])
        np.testing.assert_allclose(found.values[0, 1, 0], [4, 0, 0])

    def test_entries_of_a_cell_go_together(self):
        obs = np.zeros((2, 1, 12))
        obs[1, 0, 8:10] = 1.0, 1.0  # both channels of row 1, column 1
        found = self.maps(
            obs, lambda inputs: inputs["obs"][:, -1, 8:10].prod(axis=1)[:, None] * [1.0, -1.0], GRID
        )
        self.assertEqual(found.values.shape, (2, 2, 2, 3))
        np.testing.assert_allclose(found.values[0, 0], [[0, 0, 0], [0, 1, 0]])
        self.assertEqual(found.strongest(1, 0), "(1, 1)")

    def test_of_a_policy_there_is_no_value(self):
        found = self.maps(np.eye(3)[:, None], lambda inputs: inputs["obs"][:, -1, :2], policy=True)
        self.assertEqual(found.names, ("which action",))

    def test_none_where_there_is_nothing_to_exchange(self):
        self.assertIsNone(self.maps([[[1, 2, 3]]], None))

    def test_what_is_not_legal_counts_for_nothing(self):
        scores = np.array([[3.0, 0.0, np.nan], [1.0, 2.0, np.nan], [1.0, 0.0, np.nan]])
        # About their mean 1.5, -1.5 and -0.5, 0.5 where they were 0.5, -0.5.
        np.testing.assert_allclose(changes(scores), [[1.0, 1.0], [2.0, 1.0]])

    def test_parts_of_an_action_are_compared_by_themselves(self):
        scores = np.array([[1.0, 0.0, 7.0, 5.0], [0.0, 0.0, 5.0, 5.0]])
        # By a half each of two and by 1 each of two; the best by 1 and by 2.
        np.testing.assert_allclose(changes(scores, (2, 2)), [[np.sqrt(2.5 / 4)], [3.0]])


class Attention(unittest.TestCase):
    def test_steps_are_added_up(self):
        shares = np.arange(12.0).reshape(1, 2, 6)  # two steps of three features
        network = NetworkConfig(tokens="features", context=2)
        found = attention_maps(shares, BOX, network, 0)
        np.testing.assert_allclose(found.values[0, :, 0], [[3, 5, 7], [15, 17, 19]])
        self.assertEqual((found.names, found.margin), (("block 1", "block 2"), None))

    def test_cells_without_the_token_of_the_step(self):
        network = NetworkConfig(tokens="cells", context=1)
        found = attention_maps(np.arange(7.0)[None, None], GRID, network, 1)
        np.testing.assert_allclose(found.values[0, 0], [[0, 1, 2], [3, 4, 5]])
        self.assertEqual(found.margin, 1)
        self.assertIn("over the picture: block 1", found.title)

    def test_whole_steps_have_no_map(self):
        self.assertIsNone(attention_maps(np.ones((1, 1, 4)), BOX, NetworkConfig(), 0))

    def test_a_margin_that_patches_do_not_divide_is_not_drawn_over(self):
        network = NetworkConfig(tokens="cells", context=1, patch=2)
        square = describe(spaces.Box(0, 9, (4, 4), np.float32), spaces.Discrete(2), "Square")
        for margin, known in ((1, None), (2, 1), (0, 0)):
            found = attention_maps(np.ones((1, 1, 5)), square, network, margin)
            self.assertEqual(found.margin, known)


class Drawn(unittest.TestCase):
    def test_rows_are_filled_up(self):
        rows = in_rows(np.arange(20.0))
        self.assertEqual(rows.shape, (2, 16))
        self.assertEqual(np.isnan(rows).sum(), 12)

    def test_from_nothing_to_full(self):
        values = np.zeros((4, 1, 1, 2))
        values[:, 0, 0, 1] = 1, 2, 3, 4  # of the median step 2.5
        drawn = Maps("", ("one",), values, False, None).scaled()
        np.testing.assert_allclose(drawn[:, 0, 0], [[0, 0.4], [0, 0.8], [0, 1], [0, 1]])
        values[:3] = 0.0  # a single step with anything is full, and without there is nothing
        drawn = Maps("", ("one",), values, False, None).scaled()
        np.testing.assert_allclose(drawn[:, 0, 0], [[0, 0]] * 3 + [[0, 1]])
        self.assertFalse(Maps("", ("one",), 0 * values, False, None).scaled().any())

    def test_tiles_are_as_large_as_there_is_room_for(self):
        self.assertEqual(film.tiling((2, 8, 16), 316, 110), (9, 2))
        self.assertEqual(film.tiling((2, 5, 5), 316, 300), (16, 2))
        self.assertIsNone(film.tiling((16, 30, 30), 316, 200))

    def test_a_map_lies_over_its_cells_in_the_picture(self):
        maps = Maps("Cells", ("block 1",), np.zeros((1, 1, 2, 2)), True, 1)
        maps.values[0, 0, 0, 1] = 1.0  # in a picture of 4 x 4 cells: row 1, column 2
        game = Explained(
            frames=[np.zeros((40, 40, 3), np.uint8)],
            scores=np.zeros((1, 2)),
            quantiles=None,
            chosen=np.array([[True, False]]),
            rewards=np.zeros(1),
            life_lost=np.zeros(1, bool),
            attention=None,
            maps=maps,
            names=("0", "1"),
            ended=False,
        )
        picture = film.Panel(game).draw(0)[:, : film.HEIGHT]
        side = film.HEIGHT // 4
        middles = picture[side // 2 :: side, side // 2 :: side].any(axis=-1)
        self.assertEqual(np.argwhere(middles[:4, :4]).tolist(), [[1, 2]])


if __name__ == "__main__":
    unittest.main()
