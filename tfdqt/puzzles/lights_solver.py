"""Lights Out solved: the least number of presses from every board, by linear algebra over GF(2).

The order of presses does not matter, and a second press of a cell undoes the first. So a board is
the product of a matrix and the presses, modulo 2. Two solutions differ by a quiet pattern, which
changes nothing (the null space), and there are few of those: the shortest solution is found by
trying them all (Anderson and Feil, 1998, "Turning Lights Out with Linear Algebra").
"""

import functools
from typing import NamedTuple

import numpy as np

from tfdqt.puzzles.puzzle import GIVE_UP, check_lengths, check_whole, no_level
from tfdqt.puzzles.splits import check_split, in_split

AT_ONCE = 2**22  # presses that are tried at once


class Equations(NamedTuple):
    """What holds for all boards of a size; n = cells."""

    toggles: np.ndarray  # [n, n] uint8, the cells that a press of each changes
    solve: np.ndarray  # [n, n] float32, a board times this, modulo 2, are presses that solve it
    parity: np.ndarray  # [n, d] float32, a board times this is even if it has a solution
    quiet: np.ndarray  # [2**d, n] uint8, presses that change nothing; the first is none at all


@functools.cache
def equations(size):
    """The Equations of boards [size, size]."""
    cells = size * size
    row, column = np.divmod(np.arange(cells), size)
    toggles = abs(row[:, None] - row) + abs(column[:, None] - column) <= 1
    left = toggles.copy()  # becomes the reduced echelon form
    right = np.eye(cells, dtype=bool)  # times toggles gives left
    pivots = []
    for each in range(cells):
        rank = len(pivots)
        candidates = np.flatnonzero(left[rank:, each])
        if not len(candidates):
            continue
        swap = [rank, rank + candidates[0]]
        left[swap] = left[swap[::-1]]
        right[swap] = right[swap[::-1]]
        others = left[:, each].copy()
        others[rank] = False
        left[others] ^= left[rank]
        right[others] ^= right[rank]
        pivots.append(each)
    rank = len(pivots)
    free = np.setdiff1d(np.arange(cells), pivots)
    basis = np.zeros((len(free), cells), np.uint8)
    basis[np.arange(len(free)), free] = 1
    basis[:, pivots] = left[:rank, free].T
    solve = np.zeros((cells, cells), np.float32)
    solve[:, pivots] = right[:rank].T
    chosen = np.arange(2 ** len(free))[:, None] >> np.arange(len(free)) & 1
    quiet = (chosen @ basis % 2).astype(np.uint8)
    return Equations(toggles.astype(np.uint8), solve, right[rank:].T.astype(np.float32), quiet)


class Solution(NamedTuple):
    """The shortest solutions of boards."""

    distance: np.ndarray  # [N] float32, presses; inf if there is no solution
    next_distance: np.ndarray  # [N, n] float32, the same after a press of each cell
    presses: np.ndarray  # [N, n] bool, the cells of a shortest solution; none if there is none


def solve(boards):
    """Solve boards [N, H, H] uint8 of 0 (off) and 1 (on): -> Solution."""
    count, size = boards.shape[:2]
    known = equations(size)
    step = max(1, AT_ONCE // known.quiet.size)
    if count > step:
        parts = [solve(boards[i : i + step]) for i in range(0, count, step)]
        return Solution(*(np.concatenate(part) for part in zip(*parts)))
    rows = boards.reshape(count, size * size).astype(np.float32)
    some = (rows @ known.solve % 2).astype(np.uint8)
    tried = some[:, None] ^ known.quiet  # [N, 2**d, n]
    lengths = tried.sum(-1, dtype=np.int16)
    best = lengths.argmin(1)
    distance = np.take_along_axis(lengths, best[:, None], 1)[:, 0].astype(np.float32)
    # A press of a cell is taken off a solution that has it, and added to one that has not.
    after = (lengths[..., None] + 1 - 2 * tried.astype(np.int16)).min(1).astype(np.float32)
    presses = tried[np.arange(count), best].astype(bool)
    unsolvable = (rows @ known.parity % 2).any(1)
    distance[unsolvable] = np.inf
    after[unsolvable] = np.inf
    presses[unsolvable] = False
    return Solution(distance, after, presses)


# -------------------------------------------------------------------------------------------------
# Drawing


def check_options(size, presses, split, least=1, most=None):
    """Raise UsageError if there are no such boards."""
    check_whole("size", size, 2, 10)
    if presses is not None:
        check_whole("presses", presses, 1, size * size)
    check_split(split)
    check_lengths(least, most)


def draw_boards(rng, tries, *, size, presses, split):
    """Draw boards by pressing distinct cells, and keep those of a set: -> [N, size, size] uint8.

    presses: how many, or None for a number drawn from 1 to all. N <= tries.
    """
    rank = rng.random((tries, size * size)).argsort(1).argsort(1)
    count = rng.integers(1, size * size + 1, (tries, 1)) if presses is None else presses
    pressed = (rank < count).astype(np.float32)
    boards = (pressed @ equations(size).toggles % 2).astype(np.uint8).reshape(-1, size, size)
    return boards[in_split(boards, split)]


def draw_board(rng, *, size, presses, split, least, most):
    """Draw a board with a shortest solution of `least` to `most` presses (None: any number).

    Returns (board [size, size] uint8, presses of its solution). Raises UsageError if none is found.
    """
    tried = 0
    tries = 16
    while tried < GIVE_UP:
        boards = draw_boards(rng, tries, size=size, presses=presses, split=split)
        tried += tries
        tries = min(2 * tries, 256)
        distance = solve(boards).distance
        good = np.flatnonzero((distance >= least) & (distance <= (most or np.inf)))
        if len(good):
            return boards[good[0]], int(distance[good[0]])
    raise no_level(f"a board of {size} x {size} lights", split, least, most)


def dataset(rng, count, *, size=5, presses=None, split="train"):
    """Draw boards with the exact distance after the press of each cell, for learning offline.

    See `draw_boards` for the options.
    Returns a dict of obs [count, size, size] uint8, legal [count, n] bool (all of them), distance
    [count] float32 and next_distance [count, n] float32; n = size * size. Solved boards are left
    out. Raises UsageError if there are no such boards.
    """
    check_options(size, presses, split)
    check_whole("count", count, 1)
    boards = np.zeros((0, size, size), np.uint8)
    in_vain = 0
    while len(boards) < count:
        tries = max(256, min(count, 65_536))
        some = draw_boards(rng, tries, size=size, presses=presses, split=split)
        some = some[some.any((1, 2))]
        in_vain = 0 if len(some) else in_vain + tries
        if in_vain > GIVE_UP:
            raise no_level(f"a board of {size} x {size} lights", split, 1, None)
        boards = np.concatenate([boards, some])[:count]
    solution = solve(boards)
    return dict(
        obs=boards,
        legal=np.ones(solution.next_distance.shape, bool),
        distance=solution.distance,
        next_distance=solution.next_distance,
    )
