"""Rush Hour: cars go back and forth in their lines until the red one can leave on the right.

Every move can be taken back, but the way out may be long.
"""

import numpy as np
from gymnasium import spaces

from tfdqt.errors import UsageError
from tfdqt.puzzles.puzzle import TILE, Puzzle, picture
from tfdqt.puzzles.rush_solver import (
    COLUMN_CAR,
    EMPTY,
    RED_CAR,
    ROW_CAR,
    cells_of,
    check_options,
    draw_level,
    exit_row,
    moves_from,
    read_grid,
)

BORDER = 9  # never shown
FIRST = (ROW_CAR[0], COLUMN_CAR[0], RED_CAR[0])
LAST = (ROW_CAR[2], COLUMN_CAR[2], RED_CAR[1])


class RushHour(Puzzle):
    """Levels of size x size cells, drawn at random; each has a solution, and is new at each reset.

    size: cells of a side; cars: of two or three cells, with the red one; split: "train", "tune" or
    "test" sets of cars, which have none in common; least and most: moves of the shortest solution
    (most=None: any number). See Puzzle for max_steps and step_cost.

    Observations [size, size] are codes of `rush_solver`. Action 2 c moves the car whose first cell
    (left or top) is cell c, row by row, one cell back, action 2 c + 1 forth; `info["action_mask"]`
    [2 * size * size] int8 tells which of them there are. Any other changes nothing.
    `reset(options={"level": text})` starts from rows of letters, one a car, "A" the red one, with
    "." or "o" where there is none. Raises UsageError for options and levels that can't be used.
    """

    NAME = "Rush Hour"

    def __init__(
        self,
        size=6,
        cars=6,
        split="train",
        least=1,
        most=None,
        max_steps=120,
        step_cost=0.0,
        render_mode=None,
    ):
        super().__init__(max_steps, step_cost, render_mode)
        check_options(size, cars, split, least, most)
        self.size = int(size)
        self.drawn = dict(cars=int(cars), split=split, least=least, most=most)
        self.observation_space = spaces.MultiDiscrete(np.full((size, size), 9), dtype=np.uint8)
        self.action_space = spaces.Discrete(2 * self.size**2)
        side = self.size + 2
        self._places = [
            (row + 1) * side + column + 1 for row in range(size) for column in range(size)
        ]
        self._exit = self._places[(exit_row(self.size) + 1) * self.size - 1]
        self._show(np.full((self.size, self.size), EMPTY, np.uint8), 0)

    def _show(self, grid, distance):
        """Start from a grid of codes."""
        self._cells = bytearray(np.pad(grid, 1, constant_values=BORDER).tobytes())
        self.distance = distance
        self.steps = 0

    def _draw(self):
        return draw_level(self.np_random, size=self.size, **self.drawn)

    def _given(self, text):
        grid = from_text(text, self.size)
        distance = moves_from(grid)
        if distance == 0:
            raise UsageError("The level of Rush Hour is solved already; give one with a way to go.")
        if distance == np.inf:
            raise UsageError("The level of Rush Hour has no solution; give one that has.")
        return grid, int(distance)

    def _ends(self, place):
        """Of a car by the place of its first cell: the steps along it, and its last place."""
        cells = self._cells
        step = self.size + 2 if cells[place] == COLUMN_CAR[0] else 1
        last = place + step
        while cells[last] not in LAST:
            last += step
        return step, last

    def step(self, action):
        if not 0 <= action < 2 * len(self._places):
            raise ValueError(
                f"Rush Hour has the actions 0 to {2 * len(self._places) - 1}, not {action}"
            )
        cells = self._cells
        place = self._places[action >> 1]
        if cells[place] in FIRST:
            step, last = self._ends(place)
            if action & 1 and cells[last + step] == EMPTY:
                cells[place + step : last + step + 1 : step] = cells[place : last + 1 : step]
                cells[place] = EMPTY
            elif not action & 1 and cells[place - step] == EMPTY:
                cells[place - step : last - step + 1 : step] = cells[place : last + 1 : step]
                cells[last] = EMPTY
        solved = cells[self._exit] == RED_CAR[1]
        return self.answer(solved)

    def grid(self):
        """The observation, [size, size] uint8."""
        side = self.size + 2
        return np.frombuffer(self._cells, np.uint8).reshape(side, side)[1:-1, 1:-1].copy()

    def _details(self):
        return {"action_mask": self._mask()}

    def _mask(self):
        cells = self._cells
        mask = bytearray(2 * len(self._places))
        for i, place in enumerate(self._places):
            if cells[place] in FIRST:
                step, last = self._ends(place)
                mask[2 * i] = cells[place - step] == EMPTY
                mask[2 * i + 1] = cells[last + step] == EMPTY
        return np.frombuffer(mask, np.int8)

    def get_state(self):
        """Everything about the present state but the random generator. Cheap, for searches."""
        return dict(cells=bytes(self._cells), distance=self.distance, steps=self.steps)

    def set_state(self, state):
        """Go on from what `get_state` gave, here or in another RushHour of the same size."""
        if len(state["cells"]) != len(self._cells):
            raise ValueError("the state is one of Rush Hour of another size")
        self._cells[:] = state["cells"]
        self.distance = state["distance"]
        self.steps = state["steps"]

    def text(self):
        return to_text(self.grid())

    def image(self):
        return picture(TILES, self.grid())


# -------------------------------------------------------------------------------------------------
# Text


def to_text(grid):
    """A grid [H, H] of codes as rows of letters, one a car, "A" the red one."""
    cars, positions = read_grid(grid)
    marks = np.full(grid.shape, ".")
    for car, position in enumerate(positions):
        marks[cells_of(cars, car, position)] = chr(ord("A") + car)
    return "\n".join("".join(row) for row in marks)


def from_text(text, size):
    """The grid [size, size] uint8 of codes of rows of letters. Raises UsageError if it is none."""
    rows = text.split()
    if [len(row) for row in rows] != [size] * size:
        raise UsageError(f"A level of Rush Hour is {size} rows of {size} letters or dots.")
    marks = np.array([list(row) for row in rows])
    grid = np.zeros((size, size), np.uint8)
    for mark in sorted(set("".join(rows)) - set(".o")):
        cells = np.argwhere(marks == mark)
        low = cells.min(0)
        extent = cells.max(0) + 1 - low
        if extent.min() > 1 or extent.max() != len(cells) or len(cells) < 2:
            raise UsageError(
                f"A car of Rush Hour is two or more letters in a row or column, but {mark!r} is "
                "not."
            )
        first, middle, last = COLUMN_CAR if extent[0] > 1 else ROW_CAR
        codes = [first, *[middle] * (len(cells) - 2), last]
        if mark == "A" and extent[1] == 2 and low[0] == exit_row(size):
            codes = RED_CAR
        grid[tuple(cells.T)] = codes
    if not (grid == RED_CAR[0]).any():
        raise UsageError(
            f"A level of Rush Hour has a red car: two letters A in row {exit_row(size) + 1}."
        )
    return grid


def _tiles():
    """A picture of each code: [9, TILE, TILE, 3] uint8."""
    row, column = np.mgrid[:TILE, :TILE]
    edge = 3  # pixels around a car
    tiles = np.full((9, TILE, TILE, 3), 222, np.uint8)
    colours = [(78, 124, 178)] * 3 + [(104, 152, 96)] * 3 + [(204, 60, 52)] * 2
    for code, colour in enumerate(colours, 1):
        along, across = (row, column) if code in COLUMN_CAR else (column, row)
        body = (across >= edge) & (across < TILE - edge)
        body &= (along >= edge) | (code not in FIRST)
        body &= (along < TILE - edge) | (code not in LAST)
        tiles[code][body] = colour
    return tiles


TILES = _tiles()
