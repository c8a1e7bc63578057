"""Lights Out: a press of a cell switches it and its neighbours; put all lights out.

Every press can be taken back and their order does not matter, so no plan is needed: the control
beside Sokoban.
"""

import numpy as np
from gymnasium import spaces

from tfdqt.errors import UsageError
from tfdqt.puzzles.lights_solver import check_options, draw_board, equations, solve
from tfdqt.puzzles.puzzle import TILE, Puzzle, picture

MARKS = ".#"  # off, on


class LightsOut(Puzzle):
    """Boards of size x size lights, drawn at random; each has a solution, and is new at each reset.

    size: lights of a side; presses: of distinct cells that a board is made by, or None for a number
    drawn from 1 to all; split: "train", "tune" or "test" boards to start from, which have none in
    common, symmetric ones included (those met on the way may be of any); least and most: presses of
    the shortest solution (most=None: any number). See Puzzle for max_steps and step_cost.

    Observations [size, size] are 0 (off) and 1 (on); action i presses cell i, row by row.
    `reset(options={"level": text})` starts from rows of "." (off) and "#" (on).
    Raises UsageError for options and boards that can't be used.
    """

    NAME = "Lights Out"

    def __init__(
        self,
        size=5,
        presses=None,
        split="train",
        least=1,
        most=None,
        max_steps=60,
        step_cost=0.0,
        render_mode=None,
    ):
        super().__init__(max_steps, step_cost, render_mode)
        check_options(size, presses, split, least, most)
        self.size = int(size)
        self.drawn = dict(presses=presses, split=split, least=least, most=most)
        self.observation_space = spaces.MultiDiscrete(np.full((size, size), 2), dtype=np.uint8)
        self.action_space = spaces.Discrete(self.size**2)
        self._toggles = equations(self.size).toggles
        self._show(np.zeros((self.size, self.size), np.uint8), 0)

    def _show(self, board, distance):
        """Start from a board."""
        self._board = board.reshape(-1).copy()
        self.distance = distance
        self.steps = 0

    def _draw(self):
        return draw_board(self.np_random, size=self.size, **self.drawn)

    def _given(self, text):
        rows = text.split()
        if [len(row) for row in rows] != [self.size] * self.size or set("".join(rows)) - set(MARKS):
            raise UsageError(
                f"A board of Lights Out is {self.size} rows of {self.size} marks, . (off) or # "
                "(on)."
            )
        board = np.array([[MARKS.index(mark) for mark in row] for row in rows], np.uint8)
        distance = solve(board[None]).distance[0]
        if distance == 0:
            raise UsageError("The board of Lights Out is solved already; give one with a light on.")
        if distance == np.inf:
            raise UsageError("The board of Lights Out has no solution; give one that has.")
        return board, int(distance)

    def step(self, action):
        if not 0 <= action < len(self._toggles):
            raise ValueError(
                f"Lights Out has the actions 0 to {len(self._toggles) - 1}, not {action}"
            )
        self._board ^= self._toggles[action]
        return self.answer(not self._board.any())

    def grid(self):
        """The observation, [size, size] uint8."""
        return self._board.reshape(self.size, self.size).copy()

    def get_state(self):
        """Everything about the present state but the random generator. Cheap, for searches."""
        return dict(board=self._board.tobytes(), distance=self.distance, steps=self.steps)

    def set_state(self, state):
        """Go on from what `get_state` gave, here or in another LightsOut of the same size."""
        if len(state["board"]) != len(self._board):
            raise ValueError("the state is one of Lights Out of another size")
        self._board[:] = np.frombuffer(state["board"], np.uint8)
        self.distance = state["distance"]
        self.steps = state["steps"]

    def text(self):
        return "\n".join("".join(MARKS[light] for light in row) for row in self.grid())

    def image(self):
        return picture(TILES, self.grid())


def _tiles():
    """A picture of a light that is off, and of one that is on: [2, TILE, TILE, 3] uint8."""
    away = np.abs(np.mgrid[:TILE, :TILE] - (TILE - 1) / 2).max(0)
    tiles = np.full((2, TILE, TILE, 3), 40, np.uint8)
    tiles[:, away < 0.44 * TILE] = np.array([(84, 90, 102), (250, 208, 80)])[:, None]
    return tiles


TILES = _tiles()
