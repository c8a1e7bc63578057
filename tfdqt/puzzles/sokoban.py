"""Sokoban: push every box onto a target. Boxes can't be pulled, so a push may lose the game."""

import numpy as np
from gymnasium import spaces

from tfdqt.errors import UsageError
from tfdqt.puzzles.levels import (
    BOX,
    BOX_ON_TARGET,
    FLOOR,
    PLAYER,
    PLAYER_ON_TARGET,
    TARGET,
    WALL,
    from_text,
    to_text,
)
from tfdqt.puzzles.puzzle import TILE, Puzzle, check_lengths, check_whole, picture
from tfdqt.puzzles.solver import STEPS, check_options, draw_level, moves_from
from tfdqt.puzzles.splits import check_split

# By the code of a cell.
FREE = (True, False, True, False, False, False, False)
HAS_BOX = (False, False, False, True, True, False, False)
BARE = (FLOOR, WALL, TARGET, FLOOR, TARGET, FLOOR, TARGET)
WITH_BOX = {FLOOR: BOX, TARGET: BOX_ON_TARGET}
WITH_PLAYER = {FLOOR: PLAYER, TARGET: PLAYER_ON_TARGET}

LONGEST = 100  # moves of a solution, to which a curriculum grows
# Of each number whose bits are legal moves.
MASKS = [np.array([bits >> move & 1 for move in range(4)], np.int8) for bits in range(16)]


class Sokoban(Puzzle):
    """Levels of size x size cells, drawn at random; each has a solution, and is new at each reset.

    size: cells of a side, without the wall around; boxes: and targets; walls: the probability of a
    wall in a cell; split: "train", "tune" or "test" layouts, which have none in common, symmetric
    ones included; least and most: moves of the shortest solution (most=None: any number);
    curriculum: starts are at most so many moves from the solution at first, one more after each
    episode that was solved and two fewer after one that was not (None: any number at once).
    See Puzzle for max_steps and step_cost.

    Observations [size, size] are codes of `levels`; actions are up, down, left, right. The
    `info["action_mask"]` [4] int8 tells which change something: there always is one.
    `reset(options={"level": text})` starts from a level in the usual notation.
    Raises UsageError for options and levels that can't be used.
    """

    NAME = "Sokoban"
    metadata = {**Puzzle.metadata, "picture_margin": 1}  # the walls around

    def __init__(
        self,
        size=5,
        boxes=1,
        walls=0.17,
        split="train",
        least=1,
        most=None,
        curriculum=None,
        max_steps=120,
        step_cost=0.0,
        render_mode=None,
    ):
        super().__init__(max_steps, step_cost, render_mode)
        check_options(size, boxes, walls)
        check_split(split)
        check_lengths(least, most)
        if curriculum is not None:
            check_whole("curriculum", curriculum, least, most)
        self.curriculum = curriculum
        self._longest = curriculum
        self._solved = None  # whether the episode before was
        self.size = int(size)
        self.drawn = dict(boxes=int(boxes), walls=walls, split=split, least=least, most=most)
        self.observation_space = spaces.MultiDiscrete(np.full((size, size), 7), dtype=np.uint8)
        self.action_space = spaces.Discrete(4)
        self._offsets = tuple(row * (self.size + 2) + column for row, column in STEPS)
        self._show(np.full((self.size, self.size), FLOOR, np.uint8), 0)

    def _show(self, grid, distance):
        """Start from a grid of codes."""
        self._cells = bytearray(np.pad(grid, 1, constant_values=WALL).tobytes())
        self._player = max(range(len(self._cells)), key=self._cells.__getitem__)
        self._missing = self._cells.count(BOX)  # boxes that are not on a target
        self.distance = distance
        self.steps = 0

    def _draw(self):
        return draw_level(self.np_random, size=self.size, **self._drawn_now())

    def _drawn_now(self):
        """The options of the level to come, by how the episode before ended."""
        if self.curriculum is None:
            return self.drawn
        if self._solved is not None:
            longest = self._longest + (1 if self._solved else -2)
            most = self.drawn["most"] or max(LONGEST, self.curriculum)
            self._longest = min(max(longest, self.curriculum), most)
        self._solved = False
        return dict(self.drawn, most=self._longest)

    def _given(self, text):
        grid = from_text(text, self.size)
        if not (grid == BOX).any():
            raise UsageError("The level of Sokoban is solved already; give one with a box to push.")
        distance = moves_from(grid)
        if distance == np.inf:
            raise UsageError("The level of Sokoban has no solution; give one that has.")
        return grid, int(distance)

    def step(self, action):
        if not 0 <= action < 4:
            raise ValueError(f"Sokoban has the actions 0 to 3, not {action}")
        cells = self._cells
        offset = self._offsets[action]
        ahead = self._player + offset
        code = cells[ahead]
        if HAS_BOX[code] and FREE[cells[ahead + offset]]:
            beyond = cells[ahead + offset]
            cells[ahead + offset] = WITH_BOX[beyond]
            self._missing += (code == BOX_ON_TARGET) - (beyond == TARGET)
            code = BARE[code]
        if FREE[code]:
            cells[ahead] = WITH_PLAYER[code]
            cells[self._player] = BARE[cells[self._player]]
            self._player = ahead
        self._solved = self._missing == 0
        return self.answer(self._solved)

    def grid(self):
        """The observation, [size, size] uint8."""
        side = self.size + 2
        return np.frombuffer(self._cells, np.uint8).reshape(side, side)[1:-1, 1:-1].copy()

    def _details(self):
        return {"action_mask": self._mask()}

    def _mask(self):
        cells = self._cells
        player = self._player
        bits = 0
        for move, offset in enumerate(self._offsets):
            code = cells[player + offset]
            if FREE[code] or HAS_BOX[code] and FREE[cells[player + 2 * offset]]:
                bits |= 1 << move
        return MASKS[bits].copy()

    def get_state(self):
        """Everything about the present state but the random generator. Cheap, for searches."""
        return dict(
            cells=bytes(self._cells),
            player=self._player,
            missing=self._missing,
            distance=self.distance,
            steps=self.steps,
            longest=self._longest,
            solved=self._solved,
        )

    def set_state(self, state):
        """Go on from what `get_state` gave, here or in another Sokoban of the same size."""
        if len(state["cells"]) != len(self._cells):
            raise ValueError("the state is one of Sokoban of another size")
        self._cells[:] = state["cells"]
        self._player = state["player"]
        self._missing = state["missing"]
        self.distance = state["distance"]
        self.steps = state["steps"]
        self._longest = state["longest"]
        self._solved = state["solved"]

    def text(self):
        return to_text(self.grid())

    def image(self):
        return picture(TILES, np.pad(self.grid(), 1, constant_values=WALL))


def _tiles():
    """A picture of each code: [7, TILE, TILE, 3] uint8."""
    row, column = np.mgrid[:TILE, :TILE] - (TILE - 1) / 2
    away = np.hypot(row, column)
    square = np.maximum(abs(row), abs(column))
    tiles = np.empty((7, TILE, TILE, 3), np.uint8)
    tiles[:] = (236, 230, 216)
    tiles[WALL] = (78, 84, 96)
    tiles[WALL][square > 0.46 * TILE] = (62, 67, 78)
    tiles[[TARGET, BOX_ON_TARGET, PLAYER_ON_TARGET]] = np.where(
        (away < 0.34 * TILE)[..., None] & (away > 0.24 * TILE)[..., None],
        (200, 60, 60),
        tiles[FLOOR],
    )
    for code, inside in ((BOX, (196, 140, 70)), (BOX_ON_TARGET, (110, 160, 80))):
        tiles[code][square < 0.4 * TILE] = (92, 62, 28)
        tiles[code][square < 0.34 * TILE] = inside
    for code in (PLAYER, PLAYER_ON_TARGET):
        tiles[code][away < (0.3 if code == PLAYER else 0.22) * TILE] = (40, 90, 170)
    return tiles


TILES = _tiles()
