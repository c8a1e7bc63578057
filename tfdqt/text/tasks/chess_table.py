"""King and queen against king, solved: legal moves, and how far from mate each position is.

Positions are (white king, queen, black king), squares from 0 (a1) to 63 (h8); arrays over all of
them are [64, 64, 64]. Moves of white are 0 to 63, the king to a square, and 64 to 127, the queen.
The table is made by retrograde analysis (Thompson, 1986), in seconds, when it is first asked for.
"""

import functools
from typing import NamedTuple

import numpy as np

SQUARES = [f"{column}{row}" for row in range(1, 9) for column in "abcdefgh"]
NEVER = 1_000  # plies to a mate that can be avoided


def _lines():
    """-> a king's steps [64, 64], a queen's on an empty board, and [a, b, c]: c between a and b."""
    row, column = np.divmod(np.arange(64), 8)
    rows = row[:, None] - row
    columns = column[:, None] - column
    far = np.maximum(abs(rows), abs(columns))
    near = far == 1
    line = (far > 0) & ((rows == 0) | (columns == 0) | (abs(rows) == abs(columns)))
    between = np.zeros((64, 64, 64), bool)
    for a, b in zip(*np.nonzero(line)):
        steps = np.arange(1, far[a, b])
        between[a, b, a + steps * ((b - a) // far[a, b])] = True
    return near, line, between


NEAR, LINE, BETWEEN = _lines()


def white_moves(king, queen, black):
    """Which of white's moves are legal in positions [n] each: [n, 128] bool."""
    squares = np.arange(64)
    free = (squares != king[:, None]) & (squares != queen[:, None]) & (squares != black[:, None])
    steps = NEAR[king] & free & ~NEAR[black]
    blocked = BETWEEN[queen[:, None], squares, king[:, None]]
    blocked |= BETWEEN[queen[:, None], squares, black[:, None]]
    return np.concatenate([steps, LINE[queen] & free & ~blocked], axis=1)


def black_moves(king, queen, black):
    """Which squares black's king may go to: [n, 64] bool. The queen's is one if it can be taken."""
    squares = np.arange(64)
    seen = LINE[queen] & ~BETWEEN[queen[:, None], squares, king[:, None]]
    return NEAR[black] & ~NEAR[king] & (squares != king[:, None]) & ~seen


def in_check(king, queen, black):
    """Whether the queen attacks black's king: [n] bool."""
    return LINE[queen, black] & ~BETWEEN[queen, black, king]


def play_white(king, queen, moves):
    """White's pieces behind moves [n]: -> (king, queen)."""
    return np.where(moves < 64, moves, king), np.where(moves < 64, queen, moves - 64)


class Table(NamedTuple):
    """Plies to mate by best play of both, NEVER where there is none or the position can't be."""

    white: np.ndarray  # [64, 64, 64] int16, white to move
    black: np.ndarray  # black to move; 0 is mate


@functools.cache
def table():
    """The Table of all positions."""
    king, queen, black = (each.ravel() for each in np.indices((64, 64, 64)))
    can_be = (king != queen) & (king != black) & (queen != black) & ~NEAR[king, black]
    answers = black_moves(king, queen, black)
    check = in_check(king, queen, black)
    mate = can_be & check & ~answers.any(axis=1)
    takes = answers & (np.arange(64) == queen[:, None])  # and it is a draw
    moves = white_moves(king, queen, black)
    moves[~can_be | check] = False  # black has just moved, and not into check
    answers[~can_be] = False
    shape = (64, 64, 64)
    won = np.full(shape, NEVER, np.int16)
    lost = np.where(mate, 0, NEVER).astype(np.int16).reshape(shape)
    white_open = np.flatnonzero(moves.any(axis=1))  # positions that are not solved yet
    black_open = np.flatnonzero(answers.any(axis=1) & ~takes.any(axis=1))
    for plies in range(1, NEVER, 2):
        some = (king[white_open], queen[white_open], black[white_open])
        mates = _any_leads(moves[white_open], lost, plies - 1, *some)
        won.ravel()[white_open[mates]] = plies
        white_open = white_open[~mates]
        some = (king[black_open], queen[black_open])
        squares = np.arange(64)
        behind = won[some[0][:, None], some[1][:, None], squares]
        mated = ~(answers[black_open] & (behind == NEVER)).any(axis=1)
        lost.ravel()[black_open[mated]] = plies + 1
        black_open = black_open[~mated]
        if not mates.any():
            return Table(won, lost)


def _any_leads(moves, lost, plies, king, queen, black):
    """Whether any of white's moves [n, 128] leads to a mate in so many plies: [n] bool."""
    found = np.zeros(len(king), bool)
    for square in range(64):
        found |= moves[:, square] & (lost[square, queen, black] == plies)
        found |= moves[:, 64 + square] & (lost[king, square, black] == plies)
    return found
