"""The tree of a search, by numbers worked by hand."""

import math
import unittest

from tfdqt.errors import UsageError
from tfdqt.games.tree import BARRED, Step, Tree

# Deterministic: state -> {action: (next state, reward, over)}.
GRAPH = {
    "root": {0: ("left", 0.0, False), 1: ("right", 0.0, False)},
    "left": {0: ("end", 1.0, True), 1: ("end", 0.0, True)},
    "right": {0: ("end", 4.0, True), 1: ("end", 0.0, True)},
}
# What a network says: legal, prior, first values, value.
SAID = {
    "root": ([0, 1], [0.5, 0.5], [0.6, 0.2], 0.6),
    "left": ([0, 1], [0.5, 0.5], [0.5, 0.3], 0.5),
    "right": ([0, 1], [0.5, 0.5], [0.8, 0.1], 0.8),
}


def walk(state, action):
    after, reward, over = GRAPH[state][action]
    return Step(after, reward, 0.0 if over else 1.0, over)


def simulate(tree, said, count):
    for _ in range(count):
        leaf = tree.descend()
        if leaf is not None:
            tree.expand(leaf, *said[leaf.node.state])


class TestTree(unittest.TestCase):
    def grown(self, count, exploration=1.0):
        tree = Tree("root", walk, gamma=0.5, exploration=exploration)
        simulate(tree, SAID, count)
        return tree

    def test_the_root_alone_takes_the_best_first_value(self):
        tree = self.grown(1)
        self.assertEqual((tree.count, tree.root.visits), (1, [0, 0]))
        self.assertEqual(tree.choose(), 0)

    def test_what_is_known_of_a_leaf_may_come_one_by_one(self):
        trees = []
        for listed in (list, iter):
            tree = Tree("root", walk, gamma=0.5, exploration=1.0, met=listed(["root"]))
            for _ in range(3):
                leaf = tree.descend()
                legal, prior, first, value = SAID[leaf.node.state]
                tree.expand(leaf, listed(legal), listed(prior), listed(first), value)
            self.assertIn("root", tree.met)
            self.assertIn("root", tree.met)
            trees.append((tree.root.visits, tree.root.means, tree.low, tree.high))
        self.assertEqual(*trees)
        tree = Tree("root", walk, gamma=0.5, exploration=1.0)
        with self.assertRaisesRegex(UsageError, "one number of each legal action"):
            tree.expand(tree.descend(), [0, 1], [1.0], [0.5, 0.5], 0.5)

    def test_four_simulations_by_hand(self):
        # 2: the scores are 1 + 0.5 sqrt(2) and 0 + 0.5 sqrt(2): left, of value 0.5, which backs up
        # 0.5 * 0.5.
        tree = self.grown(2)
        self.assertEqual((tree.root.visits, tree.root.means), ([1, 0], [0.25, 0.2]))
        # 3: values lie in 0.2 to 0.6; left (0.25 - 0.2) / 0.4 + 0.5 sqrt(3) / 2 = 0.558, right
        # 0 + 0.5 sqrt(3) = 0.866: right, of value 0.8, which backs up 0.4.
        simulate(tree, SAID, 1)
        self.assertEqual((tree.root.visits, tree.root.means), ([1, 1], [0.25, 0.4]))
        # 4: 0.1 to 0.8 now; right is ahead by equal bonuses. In it 0.8 is the greatest: its first
        # action ends the game with 4, and backs up 2; the mean is 1.2.
        simulate(tree, SAID, 1)
        self.assertEqual(tree.root.visits, [1, 2])
        self.assertAlmostEqual(tree.root.means[1], 1.2)
        right = tree.root.edges[1].node
        self.assertEqual((right.count, right.visits, right.means), (2, [1, 0], [4.0, 0.1]))
        self.assertEqual((tree.low, tree.high), (0.1, 4.0))
        self.assertEqual(tree.choose(), 1)

    def test_the_simulation_that_chooses_counts(self):
        # The best score is 1 + 0.1 sqrt(N) or 0 + 0.9 sqrt(N): the latter from N = 2 on.
        said = {**SAID, "root": ([0, 1], [0.1, 0.9], [0.6, 0.2], 0.6)}
        tree = Tree("root", walk, gamma=0.5, exploration=1.0)
        simulate(tree, said, 2)
        self.assertEqual(tree.root.visits, [0, 1])

    def test_ties_of_visits_go_by_value_and_then_by_prior(self):
        tree = self.grown(3)
        self.assertEqual((tree.root.visits, tree.choose()), ([1, 1], 1))
        tree.root.means = [0.4, 0.4]
        tree.root.prior = [0.6, 0.4]
        self.assertEqual(tree.choose(), 0)

    def test_of_equal_actions_the_network_chooses(self):
        graph = {
            "root": {0: ("twin", 0.0, False), 1: ("twin", 0.0, False)},
            "twin": {0: ("end", 0.0, True), 1: ("end", 0.0, True)},
        }
        said = {
            "root": ([0, 1], [0.5, 0.5], [0.1, 0.6], 0.6),
            "twin": ([0, 1], [0.5, 0.5], [0.3, 0.4], 0.4),
        }

        def step(state, action):
            after, reward, over = graph[state][action]
            return Step(after, reward, 0.0 if over else 1.0, over)

        tree = Tree("root", step, gamma=0.5, exploration=1.0)
        simulate(tree, said, 3)  # 1 is 0.2 after its first visit, so that 0 is tried too
        self.assertEqual((tree.root.visits, tree.root.means), ([1, 1], [0.2, 0.2]))
        self.assertEqual(tree.choose(), 1)
        simulate(tree, said, 1)
        self.assertEqual((tree.root.visits, tree.choose()), ([1, 2], 1))

    def test_without_exploration_the_best_mean_is_followed(self):
        tree = self.grown(40, exploration=0.0)
        self.assertEqual((tree.root.visits, tree.choose()), ([39, 0], 0))

    def test_what_is_known_needs_no_network(self):
        tree = self.grown(40)
        asked = 0
        for _ in range(20):
            asked += tree.descend() is not None
        self.assertEqual((asked, tree.count), (0, 60))

    def test_a_game_that_is_cut_is_valued_once(self):
        def cut(state, action):
            return Step("cut", 1.0, 1.0, True)

        tree = Tree("root", cut, gamma=0.5, exploration=1.0)
        said = dict(root=([7], [1.0], [0.0], 0.0), cut=([7], [1.0], [3.0], 3.0))
        simulate(tree, said, 2)
        self.assertEqual(tree.root.means, [2.5])  # 1 + 0.5 * 3
        self.assertIsNone(tree.descend())
        self.assertEqual((tree.root.means, tree.root.visits), ([2.5], [2]))

    def test_chance_is_drawn_at_each_visit_and_has_a_child_an_outcome(self):
        coins = iter([0.0, 1.0] * 50)

        def toss(state, action):
            if action == 0:
                return Step("end", 0.45, 0.0, True)
            coin = next(coins)
            return Step(f"coin{coin}", coin, 0.0, True, True, coin)

        tree = Tree("root", toss, gamma=1.0, exploration=1.0)
        simulate(tree, dict(root=([0, 1], [0.5, 0.5], [0.0, 0.0], 0.0)), 60)
        self.assertEqual(set(tree.root.edges[1]), {0.0, 1.0})
        self.assertAlmostEqual(tree.root.means[1], 0.5, delta=0.04)
        self.assertAlmostEqual(tree.root.means[0], 0.45)

    def test_a_large_prior_is_tried_first(self):
        tree = Tree("root", walk, gamma=0.5, exploration=1.0)
        said = dict(SAID, root=([0, 1], [0.1, 0.9], [0.6, 0.6], 0.6))
        simulate(tree, said, 2)
        self.assertEqual(tree.root.visits, [0, 1])


class TestSeveralLeaves(unittest.TestCase):
    def test_waiting_leaves_are_charged_and_the_others_found(self):
        tree = Tree("root", walk, gamma=0.5, exploration=1.0)
        simulate(tree, SAID, 1)
        one = tree.descend(several=True)
        self.assertEqual(one.node.state, "left")
        self.assertEqual(tree.root.means, [0.2, 0.2])  # the least of the tree
        other = tree.descend(several=True)
        self.assertEqual(other.node.state, "right")
        self.assertIsNone(tree.descend(several=True))  # both wait
        self.assertEqual((tree.count, tree.root.visits), (3, [1, 1]))
        tree.expand(other, *SAID["right"])
        tree.expand(one, *SAID["left"])
        self.assertAlmostEqual(tree.root.means[0], 0.25)
        self.assertAlmostEqual(tree.root.means[1], 0.4)

    def test_what_is_taken_back_leaves_nothing(self):
        tree = Tree("root", lambda *_: Step("wait", 0.0, 1.0, False), gamma=1.0, exploration=1.0)
        simulate(tree, dict(root=([0], [1.0], [0.0], 0.0)), 1)
        self.assertIsNotNone(tree.descend(several=True))
        seen = (tree.count, list(tree.root.visits), list(tree.root.means))
        self.assertIsNone(tree.descend(several=True))
        self.assertEqual((tree.count, tree.root.visits, tree.root.means), seen)


class TestRoot(unittest.TestCase):
    def repeating(self, met, edges, said, count):
        def step(state, action):
            self.steps.append((state, action))
            return Step(*edges[state][action])

        self.steps = []
        tree = Tree("a", step, gamma=0.5, exploration=1.0, look=lambda state: state, met=met)
        simulate(tree, said, 1)
        tree.bar_repeats()
        simulate(tree, said, count - 1)
        return tree

    def test_the_root_takes_no_action_that_repeats(self):
        edges = dict(a=[("b", 0.0, 1.0, False), ("c", 0.0, 1.0, False), ("a", 1.0, 1.0, False)])
        said = {state: ([0, 1, 2], [0.3, 0.3, 0.4], [0.3, 0.1, 0.9], 0.9) for state in "abc"}
        tree = self.repeating({"a", "b"}, edges, said, 2)
        self.assertEqual((tree.root.legal, tree.root.visits, tree.choose()), ([1], [1], 1))
        self.assertEqual(self.steps, [("a", 0), ("a", 1), ("a", 2)])  # none of them twice
        everything = self.repeating({"a", "b", "c"}, edges, said, 1)
        self.assertEqual((everything.root.legal, everything.choose()), ([0, 1, 2], 2))

    def test_an_end_and_chance_are_no_repeats(self):
        edges = dict(a=[("a", 0.0, 0.0, True), ("a", 0.0, 1.0, False, True, "a")])
        tree = self.repeating({"a"}, edges, dict(a=([0, 1], [0.5, 0.5], [0.3, 0.1], 0.3)), 1)
        self.assertEqual(tree.root.legal, [0, 1])

    def test_neither_does_the_tree_but_where_nothing_else_is_left(self):
        edges = dict(
            a=[("b", 0.0, 1.0, False)],
            b=[("a", 0.0, 1.0, False), ("b", 0.0, 1.0, False), ("c", 0.0, 1.0, False)],
            c=[("b", 0.0, 1.0, False)],
        )
        said = dict(
            a=([0], [1.0], [0.9], 0.9),
            b=([0, 1, 2], [0.3, 0.3, 0.4], [0.9, 0.8, 0.1], 0.9),
            c=([0], [1.0], [0.5], 0.5),
        )
        tree = self.repeating({"a"}, edges, said, 3)
        b = tree.root.edges[0].node
        self.assertEqual((b.visits, b.means[:2]), ([0, 0, 1], [BARRED, BARRED]))
        self.assertEqual(tree.count, 3)
        simulate(tree, said, 1)
        c = b.edges[2].node
        self.assertEqual((c.visits, c.edges[0].node.look), ([1], "b"))
        self.assertGreater(tree.low, BARRED)

    def test_the_bonus_grows_with_the_root(self):
        tree = Tree("root", walk, gamma=0.5, exploration=2.0)
        simulate(tree, SAID, 1)
        tree.root.count = 9
        tree.root.visits = [8, 0]
        tree.root.means = [0.6, 0.2]
        # 1 + 2 * 0.5 * 3 / 9 = 1.33 against 0 + 2 * 0.5 * 3 = 3
        self.assertEqual(tree._best(tree.root), 1)
        tree.exploration = 0.7  # 1.12 against 1.05
        self.assertEqual(tree._best(tree.root), 0)
        self.assertTrue(math.isfinite(tree.low))


if __name__ == "__main__":
    unittest.main()
