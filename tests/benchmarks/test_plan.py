"""Plans in networks that play Sokoban: what is looked for, by levels and numbers made by hand."""

import json
import unittest

import numpy as np
import plan_cells
import plan_change
import plan_reading
import plan_sample
from plan_states import changed_plans, draw_states, first_pushes, plans_of, same_pushes

from tests.helpers import InFolder, slow
from tfdqt.puzzles.levels import from_text, layout_of
from tfdqt.puzzles.solver import state_of, tables

from . import script

UP, DOWN, LEFT, RIGHT = range(4)
# The box goes down and right, or by a detour of two moves right and down.
OPEN = """
######
#-@--#
#-$--#
#--.-#
#----#
######
"""


class TestStates(unittest.TestCase):
    def setUp(self):
        self.grid = from_text(OPEN, 4)
        self.table = tables(layout_of(self.grid))
        self.state = state_of(self.grid)

    def test_the_pushes_of_a_solution(self):
        plan_, turn = plans_of(self.table, 16)
        self.assertEqual(self.table.distance[self.state], 4)
        wanted = np.zeros(16, int)
        wanted[[5, 9]] = 1 + DOWN, 1 + RIGHT
        np.testing.assert_array_equal(plan_[self.state], wanted)
        wanted[[5, 9]] = 1, 2
        np.testing.assert_array_equal(turn[self.state], wanted)
        self.assertTrue(same_pushes(self.table, 16)[self.state])
        corner = state_of(from_text(OPEN.replace("-@--", "@---"), 4))  # both ways take 5 moves
        self.assertEqual(self.table.distance[corner], 5)
        self.assertFalse(same_pushes(self.table, 16)[corner])

    def test_what_another_first_push_costs(self):
        cost, moves = first_pushes(self.table, 16)
        np.testing.assert_array_equal(cost[self.state], [np.inf, 4, np.inf, 6])
        wanted = np.zeros((4, 4), bool)
        wanted[DOWN, DOWN] = True
        wanted[RIGHT, LEFT] = True  # round the box
        np.testing.assert_array_equal(moves[self.state], wanted)
        changed = changed_plans(plans_of(self.table, 16)[0], (4, 4))[self.state, RIGHT]
        wanted = np.zeros(16, int)
        wanted[[5, 6]] = 1 + RIGHT, 1 + DOWN
        np.testing.assert_array_equal(changed, wanted)


class TestReadings(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.states = draw_states(0, 240, size=4, split="train", each=4)
        cls.sample = plan_sample.Resample(cls.states.layout, 20)

    def test_a_search_of_a_depth_is_told(self):
        q = 3 * plan_reading.swept(self.states, 0.9, 4) - 1
        for correlations in plan_reading.agreements(self.states, q, self.sample, 0.9):
            self.assertEqual(plan_reading.best_depth(correlations)[0], 4)
            self.assertAlmostEqual(correlations[0].max(), 1)
        right = self.states.distance <= 4
        found = plan_reading.reach(
            right, np.full(len(right), 0.5), self.states.distance, self.sample
        )
        self.assertEqual(found, (5, 5, 5))

    def test_exact_values_are_right_at_every_distance(self):
        q = plan_reading.truth(self.states, 0.9)
        for row in plan_reading.reading_rows(self.states, q, self.sample, 0.9)[:3]:
            self.assertEqual((row["optimal"], row["r2"], row["r2_advantage"]), (1, 1, 1))
            self.assertLess(row["chance"], 0.9)

    def test_states_whose_plan_can_be_changed(self):
        q = plan_reading.truth(self.states, 0.9)
        rows, other, detour = plan_change.to_change(self.states, q, 50)
        self.assertGreater(len(rows), 10)
        part = self.states.of(rows)
        index = np.arange(len(rows))
        np.testing.assert_array_equal(part.cost[index, other], part.distance + detour)
        move = plan_reading.greedy(q[rows], part.legal)
        self.assertFalse(part.moves[index, other, move].any())
        self.assertTrue((part.changed[index, other, part.box] == 1 + other).all())

    def test_by_which_block_most_is_gained(self):
        shares = (0.5, 0.9, 0.6, 0.96, 1.0)  # 0, 0.4, 0.1, 0.46 and 0.5 over chance
        known = dict(by="head", distance="1-2", chance=0.5)
        (row,) = plan_reading.gain_rows(
            [dict(known, k=k, optimal=share) for k, share in enumerate(shares)]
        )
        self.assertEqual((row["k"], row["gained"]), (3, 0.5))

    def test_from_which_block_on(self):
        good = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]], bool)
        np.testing.assert_array_equal(plan_reading.first_lasting(good), [1, 2, 3, 0])
        # Every two moves of distance take a block more; the second way is told by chance alone.
        k = np.minimum((self.states.distance // 2).astype(int), 8)
        good = np.arange(9) >= k[:, None]
        chance = np.zeros(len(k), int)
        ways = dict(one=(good, k > 0, chance), two=(good, k > 0, self.states.distance.astype(int)))
        tables = plan_reading.settle_rows(self.states, ways, self.sample)
        by_distance = {row["distance"]: row["k"] for row in tables["settle"]}
        self.assertEqual([by_distance[d] for d in (2, 3, 4, 6)], [1, 1, 2, 3])
        self.assertGreater(tables["order"][0]["rank"], 0.9)
        self.assertTrue(np.isnan(tables["order"][2]["rank"]))


class TestPlans(unittest.TestCase):
    def test_a_linear_probe_reads_what_is_there(self):
        rng = np.random.default_rng(0)
        label = rng.integers(0, 3, 600)
        x = np.eye(3)[label] @ rng.normal(size=(3, 4)) * 5 + 0.1 * rng.normal(size=(600, 4)) + 7
        kernel, bias = plan_cells.logistic(x[:400].astype("float32"), label[:400], 3)
        np.testing.assert_array_equal((x[400:] @ kernel + bias).argmax(1), label[400:])
        self.assertEqual(
            plan_cells.area(np.array([1.0, 2, 3, 4]), np.array([0, 1, 0, 1], bool)), 0.75
        )

    def test_f1_is_the_mean_of_four_directions(self):
        sample = plan_sample.Resample(np.arange(2), 10)
        label = np.array([[1, 2, 3, 4], [1, 2, 0, 0]])
        said = np.array([[1, 2, 3, 0], [1, 0, 3, 0]])  # F1 of 1, 2/3, 2/3 and 0
        everywhere = np.ones(label.shape, bool)
        self.assertAlmostEqual(plan_cells.f1_of(said, label, sample, everywhere)[0], 7 / 12)

    def test_an_edit_goes_from_the_old_push_to_the_new_one(self):
        kernel = np.eye(5)
        x = np.full((1, 3, 5), 2.0)  # of size sqrt(20)
        old = np.array([[1, 2, 0]])
        new = np.array([[3, 2, 4]])
        everywhere = np.ones((1, 3), bool)
        edit = plan_change.edits(x, kernel, old, new, everywhere, 0.5, "probe")
        step = 0.5 * np.sqrt(20 / 2)
        np.testing.assert_allclose(edit[0, 0], [0, -step, 0, step, 0])
        np.testing.assert_allclose(edit[0, 1], 0)
        np.testing.assert_allclose(edit[0, 2], [-step, 0, 0, 0, step])
        np.testing.assert_array_equal(plan_change.third(old, new), [[2, 1, 1]])
        for way in ("third", "random"):
            other = plan_change.edits(x, kernel, old, new, everywhere, 0.5, way)
            size = np.linalg.norm(edit, axis=-1)
            np.testing.assert_allclose(np.linalg.norm(other, axis=-1), size)
            self.assertGreater(np.abs(other - edit).max(), 0.1)


class TestScript(InFolder):
    @slow("90 s: reads two untrained networks")
    def test_it_reads_networks(self):
        from arms import build_arm, puzzle_info

        from tfdqt.games.flat import flatten_model

        info = puzzle_info("sokoban", 4)
        start = flatten_model(build_arm("loops-2", info), info).start.numpy()
        np.savez(self.tmp / "loops-2.npz", weights=np.stack([start, start]))
        settings = dict(size=4, boxes=1, discount=0.9)
        (self.tmp / "args.json").write_text(json.dumps(settings))
        out = self.tmp / "out"
        done = script(
            "benchmarks/search/plan.py", f"--weights={self.tmp}", f"--out={out}", "--arms",
            "loops-2", "--seeds", "0", "1", "--states=200", "--fitted=100", "--changed=60",
            "--draws=20",
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in ("reading.png", "plan.png"):
            self.assertGreater((out / name).stat().st_size, 5_000)


if __name__ == "__main__":
    unittest.main()
