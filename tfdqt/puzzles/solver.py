"""Sokoban solved: the exact number of moves from every state of a layout to its solution.

A state is a number: the cell of the player and the set of cells of the boxes, of a grid without
walls. What can be moved to where is worked out once for all layouts of a size: in a layout those
moves are left that join two states without anything in a wall. Distances come from a breadth-first
search backwards from the solved states, in many layouts at once.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.puzzles.levels import (
    BOX,
    BOX_ON_TARGET,
    FLOOR,
    PLAYER,
    TARGET,
    WALL,
    Layout,
    draw_layouts,
    layout_of,
)
from tfdqt.puzzles.puzzle import GIVE_UP, check_share, check_whole, no_level
from tfdqt.puzzles.splits import check_split

MOVES = ("up", "down", "left", "right")
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # rows and columns of a move
MOST_STATES = 3_000_000  # of a layout; their tables take 50 bytes each
MANY = 200_000  # states that are solved at once


class StateSpace(NamedTuple):
    """The states of all layouts of a size: S = sets of boxes * cells. State S is none."""

    shape: tuple  # H, W
    boxes: np.ndarray  # [C, K] int16, ascending cells of each set of boxes
    open: np.ndarray  # [S + 1] bool, whether the player stands beside the boxes, not on one
    next: np.ndarray  # [S, 4] int32, state after each move without walls, S if it is impossible
    previous: np.ndarray  # [S + 1, 8] int32, states that a walk or push in each direction came from

    @property
    def cells(self):
        return self.shape[0] * self.shape[1]

    @property
    def size(self):
        return len(self.next)

    def index(self, player, boxes):
        """The state of a player [...] and boxes [..., K], in any order: -> [...] int."""
        ordered = np.sort(boxes, -1)
        table = _binomials(self.cells, ordered.shape[-1])
        rank = sum(table[ordered[..., i], i + 1] for i in range(ordered.shape[-1]))
        return rank * self.cells + player

    def valid(self, walls):
        """Which states of layouts hold nothing in a wall: walls [N, H, W] -> [N, S + 1] bool."""
        free = ~walls.reshape(len(walls), self.cells)
        boxes = free[:, self.boxes].all(-1)
        both = (boxes[:, :, None] & free[:, None, :]).reshape(len(walls), self.size)
        return np.pad(both, ((0, 0), (0, 1))) & self.open


@functools.cache
def _binomials(n, k):
    return np.array([[math.comb(i, j) for j in range(k + 1)] for i in range(n + 1)])


def count_states(height, width, boxes):
    """How many states a StateSpace has."""
    return math.comb(height * width, boxes) * height * width


@functools.lru_cache(maxsize=4)
def state_space(height, width, boxes):
    """The StateSpace of layouts of a size with a number of boxes.

    Raises UsageError if it is too large.
    """
    size = count_states(height, width, boxes)
    if size > MOST_STATES:
        raise UsageError(
            f"Sokoban of {height} x {width} cells with {boxes} boxes has {size:,} states, but "
            f"{MOST_STATES:,} are the most that are solved; take fewer boxes or a smaller size."
        )
    cells = height * width
    sets = np.array(list(itertools.combinations(range(cells), boxes)), np.int16)
    order = np.lexsort(sets.T)  # by the last box first, as `index` counts
    sets = sets[order]
    empty = StateSpace((height, width), sets, None, np.empty((size, 0)), None)
    player = np.tile(np.arange(cells), len(sets))
    number = np.arange(size)
    taken = np.zeros((len(sets), cells + 1), bool)
    np.put_along_axis(taken, sets.astype(int), True, 1)
    taken[:, cells] = True  # the wall around
    rank = number // cells
    beside = ~taken[rank, player]
    after = np.full((size, 4), size, np.int32)
    before = np.full((size + 1, 8), size, np.int32)
    for move, near in enumerate(_neighbours(height, width)):
        ahead = near[player]
        walks = np.flatnonzero(beside & ~taken[rank, ahead])
        after[walks, move] = rank[walks] * cells + ahead[walks]
        before[after[walks, move], move] = walks
        far = near[ahead]
        pushes = np.flatnonzero(beside & (ahead < cells) & taken[rank, ahead] & ~taken[rank, far])
        pushed = sets[rank[pushes]]
        pushed = np.where(pushed == ahead[pushes, None], far[pushes, None], pushed)
        after[pushes, move] = empty.index(ahead[pushes], pushed)
        before[after[pushes, move], 4 + move] = pushes
    return StateSpace((height, width), sets, np.append(beside, False), after, before)


def _neighbours(height, width):
    """The cell beyond each in each direction, [4, cells + 1]; number `cells` is the wall."""
    cells = np.arange(height * width).reshape(height, width)
    padded = np.pad(cells, 1, constant_values=height * width)
    found = [padded[1 + i : 1 + i + height, 1 + j : 1 + j + width].reshape(-1) for i, j in STEPS]
    return np.pad(np.array(found), ((0, 0), (0, 1)), constant_values=height * width)


# -------------------------------------------------------------------------------------------------
# Distances


def _many(layout):
    """Layouts [N, H, W] of one [H, W]."""
    return Layout(layout.walls[None], layout.targets[None])


def distances(layouts, boxes):
    """Moves from every state to the solution, under optimal play.

    layouts: Layout [N, H, W].
    Returns [N, S + 1] float32: inf where there is none, and for what is no state of the layout.
    """
    space = state_space(*layouts.walls.shape[1:], boxes)
    valid = space.valid(layouts.walls)
    on_target = layouts.targets.reshape(len(valid), space.cells)[:, space.boxes].all(-1)
    solved = np.pad(np.repeat(on_target, space.cells, 1), ((0, 0), (0, 1))) & valid
    found = np.full(valid.size, np.inf, np.float32)
    todo = (valid & ~solved).reshape(-1)
    front = np.flatnonzero(solved)
    found[front] = 0
    first = np.empty(valid.size, np.int32)
    moves = 0
    while len(front):
        moves += 1
        state = front % (space.size + 1)
        near = (space.previous[state] + (front - state)[:, None]).reshape(-1)
        near = near[todo[near]]
        turn = np.arange(len(near), dtype=np.int32)
        first[near] = turn  # each state once
        front = near[first[near] == turn]
        todo[front] = False
        found[front] = moves
    return found.reshape(valid.shape)


class Tables(NamedTuple):
    """All states of one layout."""

    next_state: np.ndarray  # [S, 4] int32, the state itself where a move changes nothing
    distance: np.ndarray  # [S] float32, moves to the solution; inf if there is none
    valid: np.ndarray  # [S] bool, whether a number is a state: nothing in walls or in each other

    @property
    def legal(self):
        """Which moves change something, [S, 4] bool."""
        return self.next_state != np.arange(len(self.next_state))[:, None]


def tables(layout, boxes=None):
    """Solve a layout: -> Tables.

    layout: Layout [H, W]; boxes: how many, or None for as many as targets.
    Raises UsageError if it has too many states.

    >>> table = tables(layout)
    >>> table.distance[table.next_state[state]]  # of the four moves
    """
    boxes = int(layout.targets.sum()) if boxes is None else boxes
    space = state_space(*layout.walls.shape, boxes)
    valid = space.valid(layout.walls[None])[0]
    moves = valid[space.next] & valid[:-1, None]
    following = np.where(moves, space.next, np.arange(space.size, dtype=np.int32)[:, None])
    return Tables(following, distances(_many(layout), boxes)[0, :-1], valid[:-1])


def observations(layout, states, boxes=None):
    """What states of a layout look like.

    layout: Layout [H, W], or one for each state [N, H, W]; states: [N].
    boxes: how many, or None for as many as targets.
    Returns [N, H, W] uint8, codes of `levels`.
    """
    walls = np.broadcast_to(layout.walls, (len(states), *layout.walls.shape[-2:]))
    targets = np.broadcast_to(layout.targets, walls.shape)
    boxes = int(layout.targets.reshape(-1, *walls.shape[1:])[0].sum()) if boxes is None else boxes
    space = state_space(*walls.shape[1:], boxes)
    grids = np.where(walls, WALL, np.where(targets, TARGET, FLOOR)).astype(np.uint8)
    flat = grids.reshape(len(states), space.cells)
    row = np.arange(len(states))
    player = states % space.cells
    flat[row, player] = PLAYER + (flat[row, player] == TARGET)
    for cell in space.boxes[states // space.cells].T:
        flat[row, cell] = BOX + (flat[row, cell] == TARGET)
    return grids


def state_of(grid):
    """The number of the state that a grid [H, W] of codes shows."""
    cells = grid.reshape(-1)
    boxes = np.flatnonzero(np.isin(cells, (BOX, BOX_ON_TARGET)))
    player = np.flatnonzero(cells >= PLAYER)[0]
    return int(state_space(*grid.shape, len(boxes)).index(player, boxes))


def moves_from(grid):
    """Moves from the state that a grid [H, W] of codes shows to its solution; inf if none."""
    boxes = int(np.isin(grid, (BOX, BOX_ON_TARGET)).sum())
    return float(distances(_many(layout_of(grid)), boxes)[0, state_of(grid)])


# -------------------------------------------------------------------------------------------------
# Drawing


def check_options(size, boxes, walls):
    """Raise UsageError if there are no such levels, or if they are too large to be solved."""
    check_whole("size", size, 3, 16)
    check_whole("boxes", boxes, 1, size * size - 2)
    check_share("walls", walls)
    state_space(size, size, boxes)


def draw_level(rng, *, size, boxes, walls, split, least, most):
    """Draw a level with a solution of `least` to `most` moves (None: any number).

    Returns (grid [size, size] uint8, moves of its solution). Raises UsageError if none is found.
    """
    states = count_states(size, size, boxes)
    at_once = 1
    tried = 0
    while tried < GIVE_UP:
        tries = 16 * at_once
        layouts = draw_layouts(rng, tries, size=size, boxes=boxes, walls=walls, split=split)
        tried += tries
        for i in range(0, len(layouts.walls), at_once):
            some = Layout(*(each[i : i + at_once] for each in layouts))
            moves = distances(some, boxes)
            good = (moves >= least) & (moves <= (np.inf if most is None else most))
            good &= np.isfinite(moves)
            for row in np.flatnonzero(good.any(1))[:1]:
                state = rng.choice(np.flatnonzero(good[row]))
                layout = Layout(*(each[row] for each in some))
                grid = observations(layout, np.array([state]), boxes)[0]
                return grid, int(moves[row, state])
        at_once = min(2 * at_once, max(1, MANY // states))
    raise no_level(f"a level of {size} x {size} cells", split, least, most)


def dataset(rng, count, *, size=5, boxes=1, walls=0.17, split="train", states=64, dead=0.25):
    """Draw states with the exact distance after each of the four moves, for learning offline.

    count: rows; states: that are drawn of a layout, with replacement; dead: the share of states
    without a solution (fewer if a layout has none). Solved states, and such without a move, are
    left out.
    Returns a dict of obs [count, size, size] uint8, legal [count, 4] bool, distance [count] float32
    (inf if dead), next_distance [count, 4] float32, and layout [count] int32, which tells rows of
    the same layout. Raises UsageError if there are no such levels.
    """
    check_options(size, boxes, walls)
    check_split(split)
    check_whole("count", count, 1)
    check_whole("states", states, 1)
    check_share("dead", dead)
    space = state_space(size, size, boxes)
    at_once = max(1, min(64, MANY // space.size))
    rows = []
    filled = 0
    layouts_before = 0
    in_vain = 0
    while filled < count:
        some = draw_layouts(rng, at_once, size=size, boxes=boxes, walls=walls, split=split)
        in_vain += at_once
        if len(some.walls):
            batch = _draw_states(rng, some, space, boxes, states, dead)
            batch["layout"] += layouts_before
            layouts_before += len(some.walls)
            rows.append(batch)
            filled += len(batch["obs"])
            in_vain = 0 if len(batch["obs"]) else in_vain
        if in_vain > GIVE_UP:
            raise no_level(f"a level of {size} x {size} cells", split, 1, None)
    return {key: np.concatenate([row[key] for row in rows])[:count] for key in rows[0]}


def _draw_states(rng, layouts, space, boxes, states, dead):
    """Rows of a data set from some layouts [N, H, W], of which those with a solution are used."""
    moves = distances(layouts, boxes)
    valid = space.valid(layouts.walls)
    alive = np.isfinite(moves) & (moves > 0)
    lost = valid & np.isinf(moves)
    lost[~lost.any(1)] = alive[~lost.any(1)]
    used = np.flatnonzero(alive.any(1))
    is_dead = rng.random((len(used), states)) < dead
    chance = rng.random(is_dead.shape)
    state = np.where(is_dead, _pick(lost[used], chance), _pick(alive[used], chance)).reshape(-1)
    layout = np.repeat(used, states)
    following = space.next[state]
    legal = valid[layout[:, None], following]
    some = legal.any(1)
    layout = layout[some]
    state = state[some]
    legal = legal[some]
    following = np.where(legal, following[some], state[:, None])
    walls = layouts.walls[layout]
    targets = layouts.targets[layout]
    return dict(
        obs=observations(Layout(walls, targets), state, boxes),
        legal=legal,
        distance=moves[layout, state],
        next_distance=moves[layout[:, None], following],
        layout=layout.astype(np.int32),
    )


def _pick(which, chance):
    """For each row of `which` [N, S] some of its true columns: chance [N, M] -> [N, M] int."""
    row, column = np.nonzero(which)
    count = np.bincount(row, minlength=len(which))
    start = np.cumsum(count) - count
    return column[start[:, None] + (chance * count[:, None]).astype(np.int64)]
