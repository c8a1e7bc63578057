"""Sokoban: distances worked by hand and by a search of its own, states, splits, bad input."""

import collections
import copy
import unittest
import warnings

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from tfdqt.errors import UsageError
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.exact import state_fault
from tfdqt.games.state import env_state, restore_env
from tfdqt.puzzles import levels, solver
from tfdqt.puzzles.levels import Layout, from_text, to_text
from tfdqt.puzzles.puzzle import optimal_q
from tfdqt.puzzles.sokoban import Sokoban
from tfdqt.puzzles.splits import SPLITS, canonical, in_split

UP, DOWN, LEFT, RIGHT = range(4)

PUSH = "#####\n#@$.#\n#####"
AROUND = "#####\n#@  #\n#.$ #\n#   #\n#####"
TWO = "#####\n#@$.#\n# $.#\n#   #\n#####"
CORNER = "#####\n#$  #\n# @.#\n#   #\n#####"


def plain_distances(grid):
    """Moves to the solution of all states with as many boxes, by a search from each solved one.

    Returns {(player, boxes): moves} of the states that have one.
    """
    floor = {tuple(map(int, cell)) for cell in np.argwhere(grid != levels.WALL)}
    goal = frozenset(tuple(map(int, cell)) for cell in np.argwhere(levels.layout_of(grid).targets))
    moves = {player: 0 for player in ((cell, goal) for cell in floor - goal)}
    queue = collections.deque(moves)
    while queue:
        player, boxes = queue.popleft()
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            ahead = (player[0] + down, player[1] + right)
            back = (player[0] - down, player[1] - right)
            if back not in floor or back in boxes:
                continue
            before = [(back, boxes)]  # walked
            if ahead in boxes:  # or pushed
                before.append((back, boxes - {ahead} | {player}))
            for state in before:
                if state not in moves:
                    moves[state] = moves[player, boxes] + 1
                    queue.append(state)
    return moves


class Solver(unittest.TestCase):
    def test_distances_worked_by_hand(self):
        for level, moves in ((PUSH, 1), (AROUND, 4), (TWO, 4), (CORNER, np.inf)):
            self.assertEqual(solver.moves_from(from_text(level, 3)), moves, level)

    def test_agrees_with_a_plain_search_in_every_state(self):
        rng = np.random.default_rng(0)
        for size, boxes in ((3, 1), (3, 2), (4, 1), (4, 2), (5, 1)):
            layouts = levels.draw_layouts(rng, 3, size=size, boxes=boxes, walls=0.2, split="train")
            for walls, targets in zip(*layouts):
                layout = Layout(walls, targets)
                table = solver.tables(layout)
                states = np.flatnonzero(table.valid)
                grids = solver.observations(layout, states)
                known = plain_distances(grids[0])
                self.assertGreater(len(known), 0)
                for state, grid in zip(states, grids):
                    cells = [tuple(map(int, cell)) for cell in np.argwhere(grid >= levels.PLAYER)]
                    at = np.isin(grid, (levels.BOX, levels.BOX_ON_TARGET))
                    set_of = frozenset(tuple(map(int, cell)) for cell in np.argwhere(at))
                    self.assertEqual((len(cells), len(set_of)), (1, boxes))
                    expected = known.pop((cells[0], set_of), np.inf)
                    self.assertEqual(table.distance[state], expected, to_text(grid))
                self.assertEqual(known, {})  # every state has a number

    def test_many_layouts_at_once_are_as_each_alone(self):
        rng = np.random.default_rng(1)
        layouts = levels.draw_layouts(rng, 8, size=4, boxes=2, walls=0.2, split="train")
        together = solver.distances(layouts, 2)
        for i, layout in enumerate(zip(*layouts)):
            np.testing.assert_array_equal(solver.tables(Layout(*layout)).distance, together[i, :-1])

    def test_values_worked_by_hand(self):
        steps = np.array([0, 2, np.inf])
        np.testing.assert_allclose(optimal_q(steps, 0.5), [1, 0.25, 0])
        # 1 - .1; .25 - .1 (1 + .5 + .25); -.1 / .5
        np.testing.assert_allclose(optimal_q(steps, 0.5, 0.1), [0.9, 0.075, -0.2])
        np.testing.assert_allclose(optimal_q(steps, 1.0, 0.1), [0.9, 0.7, -np.inf])


class DataSet(unittest.TestCase):
    def test_rows_say_what_an_environment_does(self):
        rng = np.random.default_rng(0)
        rows = solver.dataset(rng, 120, size=4, boxes=2, walls=0.1, states=8, dead=0.3)
        self.assertEqual(rows["obs"].dtype, np.uint8)
        env = Sokoban(size=4, boxes=2)
        for obs, legal, distance, after in zip(*(rows[k] for k in list(rows)[:4])):
            self.assertEqual(solver.moves_from(obs), distance)
            for move in range(4):
                env._show(obs, 0)
                shown = env.step(move)[0]
                self.assertEqual((shown != obs).any(), legal[move])
                self.assertEqual(solver.moves_from(shown), after[move])
            if np.isfinite(distance):
                self.assertEqual(after.min() + 1, distance)
        self.assertTrue(rows["legal"].any(1).all())
        self.assertTrue((rows["distance"] > 0).all())
        self.assertEqual(len(set(rows["layout"].tolist())), 1 + rows["layout"][-1])

    def test_as_many_are_dead_as_asked_for(self):
        for dead in (0.0, 0.5):
            rows = solver.dataset(np.random.default_rng(0), 4000, dead=dead)
            self.assertAlmostEqual(np.isinf(rows["distance"]).mean(), dead, delta=0.05)

    def test_layouts_belong_to_the_set(self):
        rows = solver.dataset(np.random.default_rng(0), 200, split="tune", states=8)
        layouts = levels.layout_of(rows["obs"])
        grids = np.where(layouts.walls, levels.WALL, layouts.targets * np.uint8(levels.TARGET))
        self.assertTrue(in_split(grids.astype(np.uint8), "tune").all())
        self.assertFalse(in_split(grids.astype(np.uint8), "train").any())


class Levels(unittest.TestCase):
    def test_text_and_back(self):
        env = Sokoban(size=6, boxes=2, render_mode="ansi")
        env.reset(seed=3)
        for _ in range(20):
            grid, _ = env.reset()
            np.testing.assert_array_equal(from_text(env.render(), 6), grid)

    def test_text_of_another_size_is_moved_into_the_grid(self):
        self.assertEqual(to_text(from_text(PUSH, 3)), "#####\n#####\n#@$.#\n#####\n#####")
        far = "#" * 12 + "\n#########@$.#\n" + "#" * 12
        self.assertEqual(from_text(far, 3)[1].tolist(), [5, 3, 2])

    def test_floor_out_of_reach_is_wall(self):
        grid = from_text("  #####\n  #@$.#\n  #####\n  # ###", 5)
        self.assertEqual((grid == levels.WALL).sum(), 22)

    def test_symmetric_forms_are_one(self):
        grid = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
        forms = np.concatenate(
            [np.rot90(each, k, (1, 2)) for each in (grid, grid[:, ::-1]) for k in range(4)]
        )
        self.assertEqual(len({form.tobytes() for form in forms}), 8)
        self.assertEqual(len(set(canonical(forms))), 1)

    def test_sets_have_no_level_in_common(self):
        seen = {}
        for split in SPLITS:
            env = Sokoban(size=3, walls=0.3, split=split)
            env.reset(seed=0)
            layouts = [levels.layout_of(env.reset()[0]) for _ in range(60)]
            grids = np.stack([walls * 1 + targets * 2 for walls, targets in layouts])
            seen[split] = set(canonical(grids.astype(np.uint8)))
            self.assertGreater(len(seen[split]), 3)
        self.assertEqual(seen["train"] & seen["test"], set())
        self.assertEqual(seen["train"] & seen["tune"], set())
        self.assertEqual(seen["tune"] & seen["test"], set())

    def test_a_level_stays_in_its_set(self):
        # Else a run would be tested on what an earlier version trained it on.
        grids = np.arange(25).reshape(5, 5) * np.arange(1, 41)[:, None, None] % 251
        grids = grids.astype(np.uint8)
        places = [[i for i in range(40) if in_split(grids, split)[i]] for split in ("tune", "test")]
        self.assertEqual(places, [[3, 8, 17, 28, 38], [15, 34, 37]])

    def test_sets_have_their_shares(self):
        grids = np.random.default_rng(0).integers(3, size=(3000, 5, 5)).astype(np.uint8)
        shares = [in_split(grids, split).mean() for split in SPLITS]
        np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)
        self.assertAlmostEqual(sum(shares), 1)


class Environment(unittest.TestCase):
    def test_a_game_worked_by_hand(self):
        env = Sokoban(size=3, step_cost=0.25)
        obs, info = env.reset(options={"level": AROUND})
        self.assertEqual(obs.tolist(), [[5, 0, 0], [2, 3, 0], [0, 0, 0]])
        self.assertEqual(info["distance"], 4)
        self.assertEqual(info["action_mask"].tolist(), [0, 1, 0, 1])
        for move in (RIGHT, RIGHT, DOWN):
            self.assertEqual(env.step(move)[1:4], (-0.25, False, False))
        obs, reward, terminated, truncated, info = env.step(LEFT)
        self.assertEqual((reward, terminated, truncated), (0.75, True, False))
        self.assertEqual(obs.tolist(), [[0, 0, 0], [4, 5, 0], [0, 0, 0]])
        self.assertEqual(info["action_mask"].tolist(), [1, 1, 0, 1])  # no push into the wall

    def test_a_player_on_a_target_and_a_box_pushed_off_one(self):
        env = Sokoban(size=4)
        obs, _ = env.reset(options={"level": "######\n#@   #\n# $. #\n#    #\n#    #\n######"})
        for move in (RIGHT, RIGHT, DOWN):
            obs = env.step(move)[0]
        self.assertEqual(obs[1].tolist(), [0, 3, 6, 0])
        env = Sokoban(size=4, boxes=2)
        env.reset(options={"level": "######\n#@* .#\n# $  #\n#    #\n#    #\n######"})
        obs, _, terminated, _, _ = env.step(RIGHT)
        self.assertEqual(obs[0].tolist(), [0, 6, 3, 2])
        self.assertFalse(terminated)

    def test_steps_are_those_of_the_tables(self):
        env = Sokoban(size=5, boxes=2, max_steps=30)
        rng = np.random.default_rng(0)
        for seed in range(6):
            obs, info = env.reset(seed=seed)
            layout = levels.layout_of(obs)
            table = solver.tables(layout)
            state = solver.state_of(obs)
            self.assertEqual(info["distance"], table.distance[state])
            for step in range(30):
                move = rng.integers(4)
                np.testing.assert_array_equal(info["action_mask"], table.legal[state])
                self.assertTrue(info["action_mask"].any())
                state = table.next_state[state, move]
                obs, reward, terminated, truncated, info = env.step(move)
                self.assertEqual(solver.state_of(obs), state)
                self.assertTrue(env.observation_space.contains(obs))
                self.assertEqual(terminated, table.distance[state] == 0)
                self.assertEqual(truncated, step == 29 and not terminated)
                self.assertEqual(reward, float(terminated))
                if terminated:
                    break

    def test_levels_are_as_far_from_the_solution_as_asked_for(self):
        env = Sokoban(least=5, most=6)
        moves = [env.reset(seed=seed)[1]["distance"] for seed in range(20)]
        self.assertEqual(set(moves), {5, 6})
        grid, info = env.reset(seed=0)
        self.assertEqual(solver.moves_from(grid), info["distance"])

    def test_seeds_repeat(self):
        env = Sokoban()
        one = [env.reset(seed=5)[0], env.reset()[0]]
        other = [env.reset(seed=5)[0], env.reset()[0]]
        np.testing.assert_array_equal(one, other)
        self.assertTrue((one[0] != one[1]).any())

    def test_states_are_restored(self):
        env = Sokoban(boxes=2, max_steps=25)
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        moves = rng.integers(4, size=20)
        for move in moves[:8]:
            env.step(move)
        state = env.get_state()
        first = [env.step(move)[:4] for move in moves[8:]]
        other = Sokoban(boxes=2, max_steps=25)
        for one in (env, other):
            one.set_state(state)
            for expected, move in zip(first, moves[8:]):
                obs, *rest = one.step(move)
                np.testing.assert_array_equal(obs, expected[0])
                self.assertEqual(tuple(rest), (*expected[1:],) + (rest[-1],))
        with self.assertRaisesRegex(ValueError, "another size"):
            Sokoban(size=6).set_state(state)

    def test_runs_go_on_exactly(self):
        env = make_env("Sokoban-v0")
        env.reset(seed=0)
        state = env_state(env)
        env.reset()
        following = env.reset()[0]
        restore_env(env, state)
        env.reset()
        np.testing.assert_array_equal(env.reset()[0], following)
        env_fn = lambda **more: make_env("Sokoban-v0", **more)  # noqa: E731
        info = info_of(env_fn, "Sokoban-v0")
        self.assertEqual((info.mask, info.num_actions, info.features), ("info", 4, 25))
        self.assertIsNone(state_fault(env_fn, info))

    def test_pictures(self):
        env = make_env("Sokoban-v0", render_mode="rgb_array")
        env.reset(seed=0)
        before = env.render()
        self.assertEqual((before.shape, before.dtype), ((224, 224, 3), np.uint8))
        env.reset(options={"level": PUSH})
        env.step(RIGHT)
        tiles = env.render().reshape(7, 32, 7, 32, 3).transpose(0, 2, 1, 3, 4)
        self.assertEqual(len(np.unique(tiles.reshape(49, -1), axis=0)), 4)  # wall, floor, @ and *


class All(unittest.TestCase):
    def test_they_keep_the_rules_of_gymnasium(self):
        for name in ("Sokoban-v0", "LightsOut-v0", "RushHour-v0"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                env = gymnasium.make(name).unwrapped
                check_env(env)
            env.reset(seed=1)
            pair = env, copy.deepcopy(env)  # as a search may do
            for action in range(4):
                one, other = (each.step(action)[0] for each in pair)
                np.testing.assert_array_equal(one, other)
            one, other = (each.reset()[0] for each in pair)
            np.testing.assert_array_equal(one, other)


class BadInput(unittest.TestCase):
    def test_options(self):
        for options, sentence in (
            (dict(size=2), "size is a whole number from 3 to 16, not 2"),
            (dict(size="5"), "size is a whole number from 3 to 16, not '5'"),
            (dict(boxes=0), "boxes is a whole number from 1 to 23, not 0"),
            (dict(size=8, boxes=5), "487,968,768 states"),
            (dict(walls=1.5), "walls is a number from 0 to 1, not 1.5"),
            (dict(split="valid"), "split is one of train, tune, test, not 'valid'"),
            (dict(least=0), "least is a whole number of at least 1, not 0"),
            (dict(least=5, most=4), "most is a whole number of at least 5, not 4"),
            (dict(max_steps=0), "max_steps is a whole number of at least 1, not 0"),
            (dict(step_cost=float("nan")), "step_cost is a number, not nan"),
            (dict(step_cost=True), "step_cost is a number, not True"),
            (dict(render_mode="svg"), "render_mode is ansi or rgb_array, not 'svg'"),
        ):
            with self.assertRaisesRegex(UsageError, sentence):
                make_env("Sokoban-v0", **options)

    def test_levels_that_are_too_rare(self):
        for walls in (0.95, 1):
            with self.assertRaisesRegex(UsageError, "none was a level"):
                Sokoban(walls=walls, split="test", least=9).reset(seed=0)
        with self.assertRaisesRegex(UsageError, "none was a level"):
            solver.dataset(np.random.default_rng(0), 1, walls=1)
        with self.assertRaisesRegex(UsageError, "none was a level of 3 x 3 cells .* 90 or more"):
            Sokoban(size=3, least=90).reset(seed=0)

    def test_levels(self):
        env = Sokoban(size=3)
        for level, sentence in (
            (CORNER, "has no solution"),
            ("#####\n#@* #\n#####", "is solved already"),
            ("#####\n#@$ #\n#####", "not 1 boxes and 0 targets"),
            ("#####\n#@  #\n#####", "at least one, not 0 boxes and 0 targets"),
            ("#####\n# $.#\n#####", "one player .* not 0"),
            ("#####\n#@x #\n#####", "is written with .* not 'x'"),
            ("######\n#@ $.#\n######", "1 x 4 cells .* do not fit in 3 x 3"),
            ("", "one player .* not 0"),
            (7, "is text, not 7"),
        ):
            with self.assertRaisesRegex(UsageError, sentence):
                env.reset(options={"level": level})
        with self.assertRaisesRegex(UsageError, "takes the option level, not 'lavel'"):
            env.reset(options={"lavel": PUSH})


class Curriculum(unittest.TestCase):
    """Starts that move away from the solution as levels are solved."""

    SOLVED = "     \n     \n @$. \n     \n     "

    def test_by_hand(self):
        env = Sokoban(curriculum=3)
        longest = []
        for solved in (True, True, True, False, False, True):
            env.reset(seed=0, options=dict(level=self.SOLVED))
            _, _, terminated, _, _ = env.step(3 if solved else 0)
            self.assertEqual(terminated, solved)
            _, info = env.reset()
            longest.append(env.get_state()["longest"])
            self.assertLessEqual(info["distance"], longest[-1])
            env.set_state(dict(env.get_state(), solved=None))  # as if nothing came before
        self.assertEqual(longest, [4, 5, 6, 4, 3, 4])

    def test_it_never_falls_below_its_start(self):
        env = Sokoban(curriculum=200)
        env.reset(seed=0, options=dict(level=self.SOLVED))
        env.step(3)
        env.reset()
        self.assertEqual(env.get_state()["longest"], 200)

    def test_it_goes_on_where_its_state_was_saved(self):
        env = Sokoban(curriculum=2)
        other = Sokoban(curriculum=2)
        env.reset(seed=1, options=dict(level=self.SOLVED))
        env.step(3)
        other.reset(seed=0)
        other.set_state(env.get_state())
        env.reset()
        other.reset()
        self.assertEqual(other.get_state()["longest"], 3)

    def test_what_it_cannot_be(self):
        for options in (dict(curriculum=0), dict(curriculum=2, least=3), dict(curriculum="far")):
            with (
                self.subTest(**options),
                self.assertRaisesRegex(UsageError, "curriculum is a whole"),
            ):
                Sokoban(**options)

    def test_a_limit_by_the_shortest_solution(self):
        env = Sokoban(max_steps=None)
        env.reset(seed=0, options=dict(level=self.SOLVED))  # one move
        ends = []
        for move in [0, 1] * 6:
            ends.append(env.step(move)[3])
        self.assertEqual(ends, 11 * [False] + [True])


if __name__ == "__main__":
    unittest.main()
