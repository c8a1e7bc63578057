"""The text games follow their published rules, and their data is what it says it is."""

import tempfile
import unittest
from pathlib import Path

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text.encoder import PrunedTransformerModel
from tfdqt.text.generation import make_word_scores
from tfdqt.text.head import DeepQLearningModel
from tfdqt.text.methods import prepare
from tfdqt.text.replay import Episode, Transition
from tfdqt.text.tasks import maze
from tfdqt.text.tasks.play import Task, play_games, record
from tfdqt.text.tasks.table import TASKS, make_task
from tfdqt.text.tasks.wordle import TURNS, wordle_colours

import transformers  # isort: skip  (behind tfdqt, which sets the Keras it uses)


def cell(row, column):
    return next(i for i, at in enumerate(maze.CELLS.tolist()) if at == [row, column])


class TestMaze(tf.test.TestCase):
    def test_shape_walls_and_optimum(self):
        self.assertLen(maze.CELLS, 26)
        self.assertEqual(
            maze.NEXT[cell(1, 3)].tolist(), [cell(1, 2), cell(1, 4), cell(1, 3), cell(2, 3)]
        )
        moves = maze.maze_distances()
        self.assertEqual(moves[cell(1, 1)], 2 + 4 + 3 + 3)
        self.assertAlmostEqual(1 - moves[maze.STARTS].mean(), -6.84)  # the published optimum
        self.assertAllEqual(np.bincount(maze.THIRD), [10, 6, 10])

    def test_the_best_policy_scores_the_optimum_and_a_stubborn_one_the_worst(self):
        task, moves = make_task("maze"), maze.maze_distances()
        board = task.start(25, np.random.default_rng(0))
        total = 0
        while not board["done"].all():
            total = total + task.step(board, np.argmin(moves[maze.NEXT[board["cell"]]], axis=1))
        self.assertAlmostEqual(total.mean(), -6.84)
        up = play_games(task, lambda texts, at: np.tile([0, 0, 1, 0], (len(texts), 1)), games=25)
        self.assertAllEqual(up, np.full(25, -100.0))

    def test_the_sentence_tells_cell_goal_and_walls(self):
        task = make_task("maze")
        boards = task.start(1, np.random.default_rng(0))
        boards["cell"][:] = cell(5, 3)
        self.assertEqual(
            task.tokenizer.decode(task.show(boards)[0][0], skip_special_tokens=True),
            "goal is at 8 6 . you are at 5 3 . walls: left down",
        )

    def test_data_stays_in_its_third_and_keeps_the_crossing(self):
        crossed = 0
        for cells, moves, behind, done in maze._maze_walk(
            np.random.default_rng(0), 200, confined=True
        ):
            self.assertAllEqual(behind, maze.NEXT[cells, moves])
            self.assertLen(set(maze.THIRD[cells].tolist()), 1)
            crossed += np.sum(maze.THIRD[behind] != maze.THIRD[cells])
            self.assertEqual(done, behind[-1] == maze.GOAL_CELL)
        self.assertGreater(crossed, 100)
        data = make_task("maze").data(np.random.default_rng(0), 400, 0.99)
        self.assertIsInstance(data.items, Transition)
        self.assertBetween(data.games.mean(), -90, -78)  # published: -83
        self.assertAllEqual(data.items.reward == 0, data.items.discount == 0)

    def test_the_history_tells_only_walls_and_moves(self):
        task = make_task("maze-po")
        boards = task.start(2, np.random.default_rng(0))
        boards["cell"][:] = (
            cell(1, 1),
            cell(1, 7),
        )  # the left ends of the two upper corridors look alike
        for move in ("right", "right", "down"):
            texts, at = task.show(boards)
            self.assertAllEqual(texts[0], texts[1])
            task.step(boards, np.full(2, maze.MOVES.index(move)))
        expected = [
            "wall-left-up-down",
            "right",
            "wall-up-down",
            "right",
            "wall-up",
            "down",
            "wall-left-right",
        ]
        shown = task.tokenizer.decode(task.show(boards)[0][0], skip_special_tokens=True)
        self.assertEqual(shown.split(), expected[-1 - 2 * maze.REMEMBERED :])
        task.step(boards, np.full(2, maze.MOVES.index("left")))  # the oldest cell is forgotten
        shown = task.tokenizer.decode(task.show(boards)[0][0], skip_special_tokens=True)
        self.assertEqual(
            shown.split(), [*expected, "left", "wall-left-right"][-1 - 2 * maze.REMEMBERED :]
        )

    def test_data_of_the_partially_observed_maze_is_what_the_game_shows(self):
        task = make_task("maze-po")
        data = task.data(np.random.default_rng(0), 1_200, 0.99)
        self.assertBetween(data.games.mean(), -86, -76)  # published: -83
        boards, items = task.start(1, np.random.default_rng(0)), data.items
        cells, moves, *_ = next(maze._maze_walk(np.random.default_rng(0), 1, confined=False))
        boards["cell"][:] = cells[0]
        for i, move in enumerate(moves):
            self.assertAllEqual(items.state[i], task.show(boards)[0][0])
            self.assertEqual(items.action[i], move)
            self.assertEqual(items.reward[i], task.step(boards, np.array([move]))[0])
            self.assertAllEqual(items.next_state[i], task.show(boards)[0][0])

    def test_confined_a_move_out_of_a_third_is_kept_as_it_is(self):
        task = make_task("maze-po-confined")
        self.assertEqual(task.length, 2 + 2 * maze.REMEMBERED_CONFINED)
        items = task.data(np.random.default_rng(0), 40, 0.99).items
        at = 0
        crossed = 0
        for cells, moves, behind, _ in maze._maze_walk(np.random.default_rng(0), 40, confined=True):
            for i in range(len(moves)):
                past = list(zip(cells[:i], moves[:i]))
                boards = dict(past=[past], cell=cells[i : i + 1])
                self.assertAllEqual(items.state[at + i], task.show(boards)[0][0])
                boards = dict(past=[[*past, (cells[i], moves[i])]], cell=behind[i : i + 1])
                self.assertAllEqual(items.next_state[at + i], task.show(boards)[0][0])
                crossed += maze.THIRD[behind[i]] != maze.THIRD[cells[i]]
            at += len(moves)
        self.assertGreater(crossed, 10)


class TestWordle(tf.test.TestCase):
    def test_colours_by_hand(self):
        def colours(guess, hidden):
            return wordle_colours(
                *(np.array([ord(letter) for letter in word]) for word in (guess, hidden))
            ).tolist()

        self.assertEqual(colours("abbey", "abbey"), [2, 2, 2, 2, 2])
        self.assertEqual(colours("eerie", "geese"), [1, 2, 0, 0, 2])
        self.assertEqual(colours("allay", "llama"), [1, 2, 1, 1, 0])
        self.assertEqual(
            colours("speed", "abide"), [0, 0, 1, 0, 1]
        )  # one e in the hidden word, so only the first e is yellow

    def test_known_policies_score_as_published(self):
        task = make_task("wordle")
        self.assertLen(task.actions, 400)
        data = task.data(np.random.default_rng(0), 3_000, 0.99)
        self.assertAlmostEqual(data.games.mean(), -4.12, delta=0.15)
        rng, total = np.random.default_rng(1), 0
        boards = task.start(2_000, rng)
        while not boards["done"].all():
            total = total + task.step(
                boards, (rng.random(boards["fits"].shape) * boards["fits"]).argmax(axis=1)
            )
        self.assertAlmostEqual(total.mean(), -2.37, delta=0.1)
        self.assertEqual(
            play_games(
                task, lambda texts, at: np.eye(400)[np.zeros(len(texts), int)], games=50
            ).min(),
            -6,
        )

    def test_episodes_hold_what_the_game_shows(self):
        task = make_task("wordle")
        items = task.data(np.random.default_rng(0), 50, 0.99).items
        self.assertIsInstance(items, Episode)
        words = np.array(task.actions)
        for i in range(50):
            shown = task.tokenizer.convert_ids_to_tokens(items.text[i].tolist())
            turns = int(items.mask[i].sum())
            for turn in range(min(turns, TURNS - 1)):
                self.assertEqual(
                    "".join(token[0] for token in shown[1 + 5 * turn : 6 + 5 * turn]),
                    words[int(items.action[i, turn])],
                )
            self.assertEqual(items.discount[i, turns - 1], 0)


class TestRecord(tf.test.TestCase):
    def test_the_maze_move_by_move(self):
        task, moves = make_task("maze"), maze.maze_distances()
        items, returns = record(
            task,
            25,
            np.random.default_rng(0),
            lambda boards, text, at: np.argmin(moves[maze.NEXT[boards["cell"]]], axis=1),
        )
        self.assertAlmostEqual(returns.mean(), -6.84)
        self.assertLen(items.action, moves.sum())
        self.assertEqual((items.discount == 0).sum(), 25)
        self.assertAllEqual(items.reward == 0, items.discount == 0)
        starts = task.show(task.start(25, None))[0]
        self.assertAllEqual(items.state[:25], starts)
        self.assertFalse(
            (items.state == items.next_state).all(axis=1).any()
        )  # this policy never walks into a wall

    def test_a_game_cut_short_has_not_ended(self):
        task = make_task("maze-po")
        items, returns = record(
            task,
            2,
            np.random.default_rng(0),
            lambda boards, text, at: np.full(2, maze.MOVES.index("up")),
        )
        self.assertAllEqual(returns, [-100, -100])
        self.assertAllEqual(items.discount, np.ones(200))
        self.assertAllEqual(items.state[2:], items.next_state[:-2])  # two games, move by move

    def test_a_decoder_plays_by_the_whole_of_a_text(self):
        """As it learns: one that sees its first token alone would know nothing of the maze."""
        task = make_task("maze")
        config = transformers.GPT2Config(
            vocab_size=len(task.tokenizer), n_embd=16, n_layer=1, n_head=2, pad_token_id=0
        )
        transformer = PrunedTransformerModel(config, 0.0)
        head = DeepQLearningModel(16, 4, hidden=())
        self.assertTrue(transformer.causal)
        scores = make_word_scores(transformer, head)
        boards = task.start(25, np.random.default_rng(0))
        text, at = task.show(boards)
        expected = head(transformer(text)[:, -1])  # no sentence here is padded
        lengths = (text != 0).sum(axis=1)
        full = lengths == text.shape[1]
        self.assertGreater(full.sum(), 0)
        self.assertAllClose(scores(text, at)[full], expected[full], atol=1e-5)
        self.assertGreater(np.ptp(np.asarray(scores(text, at)), axis=0).max(), 1e-4)

    def test_wordle_game_by_game(self):
        task = make_task("wordle")
        items, returns = record(
            task,
            8,
            np.random.default_rng(0),
            lambda boards, text, at: boards["fits"].argmax(axis=1),
        )
        self.assertAllEqual(items.reward.sum(axis=1), returns)
        self.assertAllEqual(items.at.shape, [8, TURNS + 1])
        self.assertAllEqual(items.mask.sum(axis=1), np.minimum(1 - returns, TURNS))
        last = items.mask.sum(axis=1) - 1
        self.assertAllEqual(items.discount.sum(axis=1), last)
        self.assertAllEqual(items.at[:, :3], np.tile([0, 5, 10], (8, 1)))


class TestTable(tf.test.TestCase):
    def test_every_task_has_what_training_asks_of_it(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "a.txt").write_text("a good day . " * 40, encoding="utf-8")
            corpus = dict(corpus=folder, reward="sentiment", vocabulary=5, window=4)
            tasks = [make_task(name, run_dir=folder, settings=corpus) for name in TASKS]
            for task, name in zip(tasks, TASKS):
                self.assertEqual(task.name, name)
                for attribute in (*Task.__annotations__, *_methods(Task)):
                    self.assertTrue(hasattr(task, attribute), f"{name}.{attribute}")
                self.assertAllEqual(task.samples(2).shape, [2, task.length])


def _methods(cls):
    return [name for name, value in vars(cls).items() if callable(value) and name[0] != "_"]


class TestMethods(tf.test.TestCase):
    def test_filtered_keeps_the_best_and_montecarlo_sums(self):
        data = make_task("wordle").data(np.random.default_rng(0), 500, 0.5)
        best = prepare(data, "filtered", keep_best=0.1)
        self.assertLess(len(best.text), 300)
        self.assertGreaterEqual(best.reward.sum(axis=1).min(), np.quantile(data.returns, 0.9))
        maze = make_task("maze").data(np.random.default_rng(0), 400, 0.99)
        self.assertGreater(maze.returns[prepare(maze, "filtered").reward.size - 1] + 101, 0)
        self.assertLess(
            len(prepare(maze, "filtered", keep_best=0.1).action), 0.1 * len(maze.items.action)
        )
        sums = prepare(data, "montecarlo").reward
        row = int(np.argmin(data.returns))  # a lost game: -1 in each of six turns
        self.assertAllClose(sums[row], [-(2 - 0.5**k) for k in range(5, -1, -1)])

    def test_an_unknown_task_is_said(self):
        with self.assertRaisesRegex(UsageError, "choose one of maze"):
            make_task("go")
        for name in ("maze-po", "wordle", "chess"):
            with self.assertRaisesRegex(UsageError, "leave out --encoder"):
                make_task(name, tokenizer=make_task("maze").tokenizer)


if __name__ == "__main__":
    unittest.main()
