"""Lights Out: distances worked by hand and by a search over all boards, states, bad input."""

import itertools
import unittest

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.exact import state_fault
from tfdqt.puzzles.lights_out import LightsOut
from tfdqt.puzzles.lights_solver import dataset, equations, solve
from tfdqt.puzzles.splits import SPLITS, canonical, in_split

CROSS = ".#.\n###\n.#."


def pressed(board, cell):
    """A board [H, H] after a press, by its neighbours."""
    board = board.copy()
    row, column = divmod(cell, len(board))
    for down, right in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
        if 0 <= row + down < len(board) and 0 <= column + right < len(board):
            board[row + down, column + right] ^= 1
    return board


def all_distances(size):
    """Presses from every board that has a solution: {bytes: presses}, by a search from darkness."""
    front = [np.zeros((size, size), np.uint8)]
    found = {front[0].tobytes(): 0}
    for presses in itertools.count(1):
        following = []
        for board, cell in itertools.product(front, range(size * size)):
            new = pressed(board, cell)
            if new.tobytes() not in found:
                found[new.tobytes()] = presses
                following.append(new)
        if not following:
            return found
        front = following


class Solver(unittest.TestCase):
    def test_quiet_patterns(self):
        # As many as are known: 2**d of size 2 to 9, with d = 0, 0, 4, 2, 0, 0, 0, 8.
        counts = [len(equations(size).quiet) for size in range(2, 10)]
        self.assertEqual(counts, [1, 1, 16, 4, 1, 1, 1, 256])
        known = equations(5)
        self.assertFalse((known.quiet.astype(int) @ known.toggles % 2).any())
        self.assertEqual(len(np.unique(known.quiet, axis=0)), 4)

    def test_every_board_agrees_with_a_search(self):
        for size in (2, 3, 4):
            known = all_distances(size)
            bits = np.arange(2 ** (size * size))[:, None] >> np.arange(size * size) & 1
            boards = bits.reshape(-1, size, size).astype(np.uint8)
            if size == 4:
                boards = boards[::16]
            expected = [known.get(board.tobytes(), np.inf) for board in boards]
            np.testing.assert_array_equal(solve(boards).distance, expected)

    def test_presses_solve_and_are_the_fewest(self):
        for size in (4, 5, 9):
            rng = np.random.default_rng(0)
            rows = dataset(rng, 40, size=size)
            found = solve(rows["obs"])
            for board, distance, after, presses in zip(rows["obs"], *found):
                self.assertEqual(presses.sum(), distance)
                for cell in np.flatnonzero(presses):
                    board = pressed(board, cell)
                self.assertFalse(board.any())
                self.assertEqual(after.min(), distance - 1)

    def test_most_presses_of_the_toy(self):
        # No board of 5 x 5 that has a solution needs more than 15.
        rows = dataset(np.random.default_rng(0), 20_000)
        self.assertLessEqual(rows["distance"].max(), 15)
        self.assertGreaterEqual(rows["distance"].max(), 13)
        self.assertEqual(rows["distance"].min(), 1)


class DataSet(unittest.TestCase):
    def test_rows_say_what_an_environment_does(self):
        rows = dataset(np.random.default_rng(0), 30, size=4, split="test")
        self.assertTrue(in_split(rows["obs"], "test").all())
        env = LightsOut(size=4)
        for board, distance, after in zip(rows["obs"], rows["distance"], rows["next_distance"]):
            self.assertEqual(solve(board[None]).distance, distance)
            for cell in range(16):
                env._show(board, 0)
                self.assertEqual(solve(env.step(cell)[0][None]).distance, after[cell])

    def test_presses(self):
        self.assertEqual(set(dataset(np.random.default_rng(0), 50, presses=1)["distance"]), {1.0})


class Environment(unittest.TestCase):
    def test_a_game_worked_by_hand(self):
        env = LightsOut(size=3, step_cost=0.25, render_mode="ansi")
        obs, info = env.reset(options={"level": CROSS})
        self.assertEqual((obs.tolist(), info), ([[0, 1, 0], [1, 1, 1], [0, 1, 0]], {"distance": 1}))
        self.assertEqual(env.render(), CROSS)
        obs, *rest = env.step(0)
        self.assertEqual(obs.tolist(), [[1, 0, 0], [0, 1, 1], [0, 1, 0]])
        self.assertEqual(rest, [-0.25, False, False, {}])
        env.step(0)
        obs, reward, terminated, truncated, _ = env.step(4)
        self.assertEqual((obs.any(), reward, terminated, truncated), (False, 0.75, True, False))

    def test_it_ends_after_max_steps(self):
        env = LightsOut(size=3, max_steps=2)
        env.reset(options={"level": CROSS})
        self.assertEqual([env.step(0)[3] for _ in range(2)], [False, True])

    def test_boards_are_as_far_as_asked_for_and_sets_have_none_in_common(self):
        seen = {}
        for split in SPLITS:
            env = LightsOut(size=3, split=split, least=3, most=6)
            answers = [env.reset(seed=seed) for seed in range(40)]
            self.assertEqual({info["distance"] for _, info in answers} - {3, 4, 5, 6}, set())
            seen[split] = set(canonical(np.stack([board for board, _ in answers])))
        self.assertFalse(seen["train"] & seen["tune"] or seen["train"] & seen["test"])
        self.assertFalse(seen["tune"] & seen["test"])

    def test_states_are_restored(self):
        env = LightsOut()
        env.reset(seed=0)
        state = env.get_state()
        following = [env.step(cell)[0] for cell in range(9)]
        env.set_state(state)
        np.testing.assert_array_equal([env.step(cell)[0] for cell in range(9)], following)
        with self.assertRaisesRegex(ValueError, "another size"):
            LightsOut(size=3).set_state(state)

    def test_runs_go_on_exactly(self):
        env_fn = lambda **more: make_env("LightsOut-v0", **more)  # noqa: E731
        info = info_of(env_fn, "LightsOut-v0")
        self.assertEqual((info.mask, info.num_actions, info.features), (None, 25, 25))
        self.assertIsNone(state_fault(env_fn, info))

    def test_pictures(self):
        env = LightsOut(size=3, render_mode="rgb_array")
        env.reset(options={"level": CROSS})
        image = env.render()
        self.assertEqual((image.shape, image.dtype), ((96, 96, 3), np.uint8))
        self.assertEqual((image[16, 16, 0] < 100, image[16, 48, 0] > 200), (True, True))


class BadInput(unittest.TestCase):
    def test_options(self):
        for options, sentence in (
            (dict(size=11), "size is a whole number from 2 to 10, not 11"),
            (dict(presses=0), "presses is a whole number from 1 to 25, not 0"),
            (dict(split=1), "split is one of train, tune, test, not 1"),
            (dict(least=3, most=2), "most is a whole number of at least 3, not 2"),
        ):
            with self.assertRaisesRegex(UsageError, sentence):
                make_env("LightsOut-v0", **options)

    def test_boards(self):
        for level, sentence in (
            ("...\n...\n...", "is solved already"),
            ("...\n...", "is 3 rows of 3 marks"),
            ("...\n.x.\n...", "is 3 rows of 3 marks"),
        ):
            with self.assertRaisesRegex(UsageError, sentence):
                LightsOut(size=3).reset(options={"level": level})
        with self.assertRaisesRegex(UsageError, "has no solution"):
            LightsOut(size=4).reset(options={"level": "#...\n....\n....\n...."})

    def test_boards_that_are_too_rare(self):
        with self.assertRaisesRegex(UsageError, "none was a board of 3 x 3 lights .* 10 or more"):
            LightsOut(size=3, least=10).reset(seed=0)


if __name__ == "__main__":
    unittest.main()
