"""Rush Hour: distances worked by hand and by a search of its own, states, bad input."""

import unittest
from unittest import mock

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.exact import state_fault
from tfdqt.puzzles import rush_solver as solver
from tfdqt.puzzles.rush_hour import RushHour, from_text

# The upright car must go down by two, then the red one right by two.
BLOCKED = "..B.\nAAB.\n....\n...."
# C left by one, B down by three, the red one right by four.
LONG = "...B..\n...B..\nAA.B..\n..CC..\n......\n......"
CLOSED = "..B.\nAAB.\n..C.\n..C."


def plain_distance(text):
    """Moves to the exit by a search over rows of letters, or None if there is no way."""
    size = len(text.split())
    front = ["".join(text.split())]
    seen = set(front)
    exit_place = ((size - 1) // 2 + 1) * size - 1
    moves = 0
    while front:
        if any(board[exit_place] == "A" for board in front):
            return moves
        moves += 1
        following = []
        for board in front:
            for mark in set(board) - {"."}:
                places = [i for i, other in enumerate(board) if other == mark]
                step = places[1] - places[0]
                for way in (-step, step):
                    new = [place + way for place in places]
                    inside = all(0 <= place < size * size for place in new)
                    if step == 1:
                        inside &= len({place // size for place in new}) == 1
                    if not inside or any(board[place] not in (".", mark) for place in new):
                        continue
                    moved = "".join(
                        mark if i in new else "." if i in places else other
                        for i, other in enumerate(board)
                    )
                    if moved not in seen:
                        seen.add(moved)
                        following.append(moved)
        front = following
    return None


class Solver(unittest.TestCase):
    def test_distances_worked_by_hand(self):
        for level, size, moves in (
            ("....\nAA..\n....\n....", 4, 2),
            (BLOCKED, 4, 4),
            (LONG, 6, 8),
            (CLOSED, 4, np.inf),
        ):
            self.assertEqual(solver.moves_from(from_text(level, size)), moves, level)

    def test_agrees_with_a_plain_search(self):
        known = []
        env = RushHour(size=4, cars=5, render_mode="ansi", least=3)
        env.reset(seed=0)
        for _ in range(8):
            env.reset()
            known.append(env.render())
        for level in known:
            expected = plain_distance(level)
            self.assertGreater(expected, 2)
            self.assertEqual(solver.moves_from(from_text(level, 4)), expected, level)

    def test_rows_say_what_an_environment_does(self):
        rows = solver.dataset(np.random.default_rng(0), 12, size=4, cars=4, states=4)
        self.assertEqual(set(rows["layout"].tolist()), {0, 1, 2})
        env = RushHour(size=4)
        for obs, legal, distance, after in zip(*(rows[key] for key in list(rows)[:4])):
            self.assertEqual(solver.moves_from(obs), distance)
            self.assertEqual(after.min(), distance - 1)
            for action in range(32):
                env._show(obs, 0)
                shown = env.step(action)[0]
                self.assertEqual((shown != obs).any(), legal[action])
                self.assertEqual(solver.moves_from(shown), after[action])


class Environment(unittest.TestCase):
    def test_a_game_worked_by_hand(self):
        env = RushHour(size=4, render_mode="ansi")
        obs, info = env.reset(options={"level": BLOCKED})
        self.assertEqual(obs.tolist(), [[0, 0, 4, 0], [7, 8, 6, 0], [0] * 4, [0] * 4])
        self.assertEqual(info["distance"], 4)
        self.assertEqual(np.flatnonzero(info["action_mask"]).tolist(), [5])  # cell 2, down
        self.assertEqual(env.render(), BLOCKED)
        env.step(4)  # up, where the border is
        for action in (5, 13, 9):
            self.assertEqual(env.step(action)[1:4], (0.0, False, False))
        obs, reward, terminated, _, info = env.step(11)
        self.assertEqual((reward, terminated), (1.0, True))
        self.assertEqual(env.render(), "....\n..AA\n..B.\n..B.")

    def test_masks_are_right(self):
        env = RushHour(size=5, cars=5)
        rng = np.random.default_rng(0)
        obs, info = env.reset(seed=0)
        for _ in range(100):
            state = env.get_state()
            for action, legal in enumerate(info["action_mask"]):
                self.assertEqual((env.step(action)[0] != obs).any(), legal)
                env.set_state(state)
            obs, _, terminated, _, info = env.step(rng.choice(np.flatnonzero(info["action_mask"])))
            if terminated:
                obs, info = env.reset()

    def test_levels_are_as_asked_for_and_sets_have_no_cars_in_common(self):
        seen = {}
        for split in ("train", "tune", "test"):
            env = RushHour(size=4, cars=3, split=split, least=2, most=4)
            env.reset(seed=0)
            answers = [env.reset() for _ in range(15)]
            self.assertLessEqual({info["distance"] for _, info in answers}, {2, 3, 4})
            cars = [solver.read_grid(grid)[0] for grid, _ in answers]
            seen[split] = {str(each) for each in cars}
        self.assertFalse(seen["train"] & seen["tune"] or seen["train"] & seen["test"])
        self.assertFalse(seen["tune"] & seen["test"])

    def test_what_is_the_same_upside_down_belongs_to_the_same_set(self):
        rng = np.random.default_rng(0)
        turned = np.array([0, 1, 2, 3, 6, 5, 4, 7, 8], np.uint8)
        for size in (5, 7):  # whose exit is in the middle row
            for _ in range(20):
                grid = solver.draw_cars(rng, size, 4)
                self.assertEqual(solver.form_of(grid), solver.form_of(turned[grid[::-1]]))
        grid = solver.draw_cars(rng, 6, 4)
        cars = solver.read_grid(grid)[0]
        known = np.array([cars.column, cars.line, cars.length], np.uint8).tobytes()
        self.assertEqual(solver.form_of(grid), known)

    def test_runs_go_on_exactly(self):
        env_fn = lambda **more: make_env("RushHour-v0", size=4, cars=4, **more)  # noqa: E731
        info = info_of(env_fn, "RushHour-v0")
        self.assertEqual((info.mask, info.num_actions, info.features), ("info", 32, 16))
        self.assertIsNone(state_fault(env_fn, info))
        with self.assertRaisesRegex(ValueError, "another size"):
            RushHour(size=5).set_state(env_fn().unwrapped.get_state())

    def test_pictures(self):
        env = RushHour(size=4, render_mode="rgb_array")
        env.reset(options={"level": BLOCKED})
        image = env.render()
        self.assertEqual((image.shape, image.dtype), ((128, 128, 3), np.uint8))
        self.assertTrue((image[48, 32] == image[48, 8]).all())  # no gap in the red car


class BadInput(unittest.TestCase):
    def test_options(self):
        for options, sentence in (
            (dict(size=8), "size is a whole number from 4 to 7, not 8"),
            (dict(cars=1), "cars is a whole number from 2 to 14, not 1"),
        ):
            with self.assertRaisesRegex(UsageError, sentence):
                make_env("RushHour-v0", **options)

    def test_levels(self):
        for level, sentence in (
            (CLOSED, "has no solution"),
            ("....\n..AA\n....\n....", "is solved already"),
            ("....\nAA..\n....", "is 4 rows of 4 letters"),
            ("....\nAA.B\n....\n....", "but 'B' is not"),
            ("...B\nAA..\n...B\n....", "but 'B' is not"),
            ("..BB\nAABB\n....\n....", "but 'B' is not"),
            ("....\n....\nAA..\n....", "two letters A in row 2"),
        ):
            with self.assertRaisesRegex(UsageError, sentence):
                RushHour(size=4).reset(options={"level": level})
        wide = ["......."] * 7
        for row, mark in enumerate("BCDAEFG"):
            wide[row] = mark * 2 + "....."
        with self.assertRaisesRegex(UsageError, "more than 100,000 arrangements"):
            RushHour(size=7).reset(options={"level": "\n".join(wide)})

    def test_levels_without_room(self):
        sentence = "none was a level of 4 x 4 cells with 14 cars"
        with (
            mock.patch.object(solver, "GIVE_UP", 100),
            self.assertRaisesRegex(UsageError, sentence),
        ):
            RushHour(size=4, cars=14).reset(seed=0)


if __name__ == "__main__":
    unittest.main()
