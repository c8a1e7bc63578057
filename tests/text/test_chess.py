"""King and queen against king: positions by hand, the table's known facts, and games by it."""

import unittest

import numpy as np

from tfdqt.text.tasks import chess
from tfdqt.text.tasks.chess_table import (
    NEVER,
    SQUARES,
    black_moves,
    in_check,
    table,
    white_moves,
)
from tfdqt.text.tasks.table import make_task


def place(*names):
    return [np.array([SQUARES.index(name)]) for name in names]


def moves_of(*names):
    return {chess.MOVES[i] for i in np.flatnonzero(white_moves(*place(*names))[0])}


def answers_of(*names):
    return {SQUARES[i] for i in np.flatnonzero(black_moves(*place(*names))[0])}


class TestRules(unittest.TestCase):
    def test_moves_by_hand(self):
        self.assertEqual(
            moves_of("a1", "b1", "c3"),  # the king keeps away from black's, and blocks the queen
            {"Ka2"}
            | {f"Q{square}" for square in ("c1", "d1", "e1", "f1", "g1", "h1", "a2")}
            | {f"Qb{row}" for row in range(2, 9)}
            | {f"Q{square}" for square in ("c2", "d3", "e4", "f5", "g6", "h7")},
        )
        self.assertNotIn("Qh4", moves_of("a1", "a4", "e4"))  # through the king
        self.assertEqual(answers_of("a1", "e4", "e5"), {"e4", "d6", "f6"})  # takes, or flees
        self.assertEqual(answers_of("d3", "e4", "e5"), {"d6", "f6"})  # it is protected
        self.assertTrue(in_check(*place("a1", "e1", "e8"))[0])
        self.assertFalse(in_check(*place("e4", "e1", "e8"))[0])  # the king stands between

    def test_mate_and_stalemate(self):
        lost = table().black
        mate = place("f6", "g7", "h8")
        self.assertEqual((answers_of("f6", "g7", "h8"), lost[tuple(mate)][0]), (set(), 0))
        stale = place("a1", "g6", "h8")
        self.assertEqual((answers_of("a1", "g6", "h8"), lost[tuple(stale)][0]), (set(), NEVER))
        self.assertFalse(in_check(*stale)[0])

    def test_the_table_agrees_with_what_is_known(self):
        """White mates in at most ten moves, and wins wherever the queen can't be taken at once."""
        won = table().white
        self.assertEqual(won[won < NEVER].max(), 19)
        king, queen, black = np.nonzero(won < NEVER)
        self.assertFalse(in_check(king, queen, black).any())  # black has just moved
        rng = np.random.default_rng(0)
        some = rng.choice(len(king), 200)
        for k, q, b in zip(king[some], queen[some], black[some]):
            at = [np.array([x]) for x in (k, q, b)]
            behind = []
            for move in np.flatnonzero(white_moves(*at)[0]):
                one, other = chess.play_white(k, q, move)
                behind.append(table().black[one, other, b])
            self.assertEqual(won[k, q, b], 1 + min(behind))


class TestGame(unittest.TestCase):
    def test_the_tables_moves_win_as_soon_as_they_can(self):
        task = make_task("chess")

        def scores(text, at=None):
            king, queen, black = (text[:, 2::2] - task.tokenizer.convert_tokens_to_ids("a1")).T
            return chess._best_moves(dict(king=king, queen=queen, black=black))

        (line,) = chess.tell(task, scores, games=100)
        self.assertRegex(
            line, r"100.0% won, in ([\d.]+) moves where the table takes \1; 0.0% drawn"
        )
        self.assertIn("0.0% lost by a move that can't be", line)
        (line,) = chess.tell(task, lambda text, at: np.eye(128)[np.zeros(len(text), int)], games=50)
        self.assertRegex(line, r" 0.0% won.* (\d{2}|100).0% lost by a move that can't be")  # Ka1

    def test_rewards(self):
        boards = chess._start(4, np.random.default_rng(0))
        positions = (
            ("f6", "a7", "h8"),  # Qg7 mates
            ("f6", "a7", "h8"),  # Kf7: no mate, black answers
            ("a1", "g5", "h8"),  # Qg6: stalemate
            ("f6", "a7", "h8"),  # Kh8 can't be
        )
        for name, column in zip(("king", "queen", "black"), zip(*positions)):
            boards[name] = np.array([SQUARES.index(square) for square in column])
        actions = [chess.MOVES.index(move) for move in ("Qg7", "Qb7", "Qg6", "Kh8")]
        rewards = chess._step(boards, np.array(actions))
        self.assertEqual(rewards.tolist(), [1, 0, 0, -1])
        self.assertEqual(boards["ended"].tolist(), [True, False, True, True])
        self.assertEqual(boards["won"].tolist(), [True, False, False, False])
        self.assertEqual(boards["illegal"].tolist(), [False, False, False, True])
        self.assertEqual(SQUARES[boards["black"][1]], "g8")  # its only square
        self.assertEqual([SQUARES[boards[key][3]] for key in ("king", "queen")], ["f6", "a7"])
        again = chess._step(boards, np.array(actions))
        self.assertEqual(again[[0, 2, 3]].tolist(), [0, 0, 0])  # they are over

    def test_a_queen_that_can_be_taken_is(self):
        boards = chess._start(1, np.random.default_rng(0))
        boards.update(zip(("king", "queen", "black"), place("a1", "e1", "e8")))
        rewards = chess._step(boards, np.array([chess.MOVES.index("Qe7")]))
        self.assertEqual((rewards[0], boards["ended"][0], boards["won"][0]), (0, True, False))

    def test_the_data_is_that_of_whole_games(self):
        data = make_task("chess").data(np.random.default_rng(0), 40, 0.5)
        items = data.items
        self.assertEqual(items.state.shape[1], 7)
        ends = items.discount == 0
        self.assertEqual(set(items.reward[~ends]) | {0}, {0})
        self.assertAlmostEqual(data.games.sum(), items.reward.sum())
        np.testing.assert_allclose(data.to_go[ends], items.reward[ends])
        self.assertGreaterEqual(data.returns.min(), data.games.min())


if __name__ == "__main__":
    unittest.main()
