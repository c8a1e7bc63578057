"""Levels of Sokoban: as text, drawn at random, and held out."""

from typing import NamedTuple

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.puzzles.splits import in_split

# What a cell shows.
FLOOR = 0
WALL = 1
TARGET = 2
BOX = 3
BOX_ON_TARGET = 4
PLAYER = 5
PLAYER_ON_TARGET = 6

MARKS = " #.$*@+"  # the usual notation, by code
CODES = {mark: code for code, mark in enumerate(MARKS)} | {"-": FLOOR, "_": FLOOR}


class Layout(NamedTuple):
    """What can't be moved, of one level [H, W] or of many [N, H, W]. The border is a wall."""

    walls: np.ndarray  # bool
    targets: np.ndarray  # bool


def layout_of(grid):
    """The Layout of grids of codes [..., H, W]."""
    return Layout(grid == WALL, np.isin(grid, (TARGET, BOX_ON_TARGET, PLAYER_ON_TARGET)))


# -------------------------------------------------------------------------------------------------
# Text


def to_text(grid):
    """A grid [H, W] of codes in the usual notation, with the border wall around it."""
    rows = np.pad(grid, 1, constant_values=WALL)
    return "\n".join("".join(MARKS[code] for code in row) for row in rows)


def from_text(text, size):
    """A level in the usual notation (# . $ * @ +): -> grid [size, size] uint8 of codes.

    Beyond the text is wall, and floor that the player can't reach becomes wall. Of a larger text
    the middle is taken, or the part with the level if it is elsewhere.
    Raises UsageError for what is no level of the size.
    """
    lines = [line.rstrip() for line in text.strip("\n").split("\n")]
    odd = sorted(set("".join(lines)) - set(CODES))
    if odd:
        raise UsageError(
            f"A level of Sokoban is written with # . $ * @ + and spaces, not {odd[0]!r}."
        )
    width = max(map(len, lines))
    marks = [[CODES[mark] for mark in line.ljust(width)] for line in lines]
    grid = np.array(marks, np.uint8).reshape(len(lines), width)
    _check_counts(grid)
    reached = reach(grid != WALL, np.isin(grid, (PLAYER, PLAYER_ON_TARGET)))
    grid[(grid == FLOOR) & ~reached] = WALL
    return _window(grid, size)


def _check_counts(grid):
    count = np.bincount(grid.reshape(-1), minlength=7)
    players = count[PLAYER] + count[PLAYER_ON_TARGET]
    boxes = count[BOX] + count[BOX_ON_TARGET]
    targets = count[TARGET] + count[BOX_ON_TARGET] + count[PLAYER_ON_TARGET]
    if players != 1:
        raise UsageError(f"A level of Sokoban has one player (@ or +), not {players}.")
    if boxes != targets or not boxes:
        raise UsageError(
            f"A level of Sokoban has as many boxes as targets and at least one, not {boxes} boxes "
            f"and {targets} targets."
        )


def _window(grid, size):
    """The part of a grid that is shown, [size, size]."""
    inside = np.argwhere(grid != WALL)
    low = inside.min(0)
    high = inside.max(0) + 1
    if (high - low > size).any():
        raise UsageError(
            f"The level has {high[0] - low[0]} x {high[1] - low[1]} cells inside its walls, which "
            f"do not fit in {size} x {size}; give the environment a larger size."
        )
    middle = (np.array(grid.shape) - size) // 2
    start = np.clip(middle, high - size, low) + size  # in the padded grid
    padded = np.pad(grid, size, constant_values=WALL)
    return padded[start[0] : start[0] + size, start[1] : start[1] + size].copy()


# -------------------------------------------------------------------------------------------------
# Drawing


def reach(floor, start):
    """The cells that can be walked to: bool [..., H, W], by the floor and where one starts."""
    reached = start & floor
    while True:
        grown = reached.copy()
        grown[..., 1:, :] |= reached[..., :-1, :]
        grown[..., :-1, :] |= reached[..., 1:, :]
        grown[..., 1:] |= reached[..., :-1]
        grown[..., :-1] |= reached[..., 1:]
        grown &= floor
        if (grown == reached).all():
            return reached
        reached = grown


def draw_layouts(rng, tries, *, size, boxes, walls, split):
    """Draw layouts and keep those of a set: -> Layout [N, size, size], N <= tries.

    walls: the probability of a wall in a cell. What can't be walked to from the targets becomes
    wall as well, so that no two layouts are the same but for cells without a meaning.
    """
    rank = rng.random((tries, size * size))
    floor = rng.random((tries, size * size)) >= walls
    rank[~floor] = 2.0
    first = np.zeros((tries, size, size), bool)
    first.reshape(tries, -1)[np.arange(tries), rank.argmin(1)] = True
    floor = reach(floor.reshape(first.shape), first)
    rank[~floor.reshape(tries, -1)] = 2.0
    chosen = np.argpartition(rank, boxes - 1, axis=1)[:, :boxes]
    targets = np.zeros_like(first)
    np.put_along_axis(targets.reshape(tries, -1), chosen, True, 1)
    wide = floor.sum((1, 2)) > boxes  # a cell is left for the player
    grids = np.where(targets, TARGET, np.where(floor, FLOOR, WALL)).astype(np.uint8)[wide]
    return layout_of(grids[in_split(grids, split)])
