"""States of Sokoban with one box, and what their optimal solutions do: what plan.py looks for."""

from typing import NamedTuple

import numpy as np

from tfdqt.puzzles.levels import layout_of
from tfdqt.puzzles.solver import STEPS, dataset, state_of, tables

MOST_MOVES = 200  # of a solution; the longest of 5 x 5 cells has 37


class States(NamedTuple):
    """N states that can be solved, with C cells; directions and moves are up, down, left, right."""

    obs: np.ndarray  # [N, H, W] uint8, codes of the cells
    legal: np.ndarray  # [N, 4] bool
    distance: np.ndarray  # [N] moves to the solution
    next_distance: np.ndarray  # [N, 4] moves to it after each move, inf if there is none
    layout: np.ndarray  # [N] int, which states are of one layout
    plan: np.ndarray  # [N, C] int, 1 + direction of the first push off a cell; 0: none
    turn: np.ndarray  # [N, C] int, the number of that push in the solution, from 1; 0: none
    unique: np.ndarray  # [N] bool, whether all optimal solutions make the same pushes
    cost: np.ndarray  # [N, 4] moves to the solution if the first push is in each direction
    moves: np.ndarray  # [N, 4, 4] bool, the first moves of the shortest of those, by direction
    changed: np.ndarray  # [N, 4, C] int, their plans

    @property
    def box(self):
        """The cell of the box, [N] int."""
        return np.isin(self.obs, (3, 4)).reshape(len(self.obs), -1).argmax(1)

    def of(self, rows):
        """Some of the states."""
        return States(*(each[rows] for each in self))


def plans_of(table, cells):
    """One optimal solution of each state of a layout, the first move in order where several are.

    table: Tables of S states. Returns (plan, turn), both [S, C] int, see States; zeros for states
    that can't be solved.
    """
    count = len(table.distance)
    state = np.arange(count)
    alive = table.valid & np.isfinite(table.distance)
    following = table.distance[table.next_state]  # [S, 4]
    best = (table.legal & (following == table.distance[:, None] - 1)).argmax(1)
    plan = np.zeros((count, cells), int)
    turn = np.zeros((count, cells), int)
    pushes = np.zeros(count, int)
    for _ in range(MOST_MOVES):
        going = alive & (table.distance[state] > 0)
        if not going.any():
            return plan, turn
        move = best[state]
        after = np.where(going, table.next_state[state, move], state)
        box = state // cells
        pushed = after // cells != box
        pushes += pushed
        rows = np.flatnonzero(pushed & (plan[np.arange(count), box] == 0))
        plan[rows, box[rows]] = 1 + move[rows]
        turn[rows, box[rows]] = pushes[rows]
        state = after
    raise ValueError("a solution has no end")


def same_pushes(table, cells):
    """Whether all optimal solutions of a state make the same pushes: [S] bool."""
    count = len(table.distance)
    following = table.distance[table.next_state]
    optimal = table.legal & (following == table.distance[:, None] - 1)
    any_push = np.zeros((count, cells * 4), bool)  # of all optimal solutions
    every_push = np.ones((count, cells * 4), bool)
    every_push[table.distance == 0] = False
    finite = table.distance[np.isfinite(table.distance)]
    for distance in range(1, int(finite.max(initial=0)) + 1):
        for move in range(4):
            rows = np.flatnonzero((table.distance == distance) & optimal[:, move])
            after = table.next_state[rows, move]
            box = rows // cells
            made = np.zeros((len(rows), cells * 4), bool)
            made[np.arange(len(rows)), box * 4 + move] = after // cells != box
            any_push[rows] |= any_push[after] | made
            every_push[rows] &= every_push[after] | made
    return (any_push == every_push).all(1)


def first_pushes(table, cells):
    """What it costs to begin with a push in each direction.

    Returns (cost [S, 4], the moves to the solution by way of it, inf where there is none; moves
    [S, 4, 4] bool, the first moves of the shortest ways, by direction).
    """
    states = np.arange(len(table.distance))
    pushes = table.next_state // cells != states[:, None] // cells  # [S, 4]
    walks = table.legal & ~pushes
    pushed = np.where(pushes, 1 + table.distance[table.next_state], np.inf)
    cost = pushed
    while True:
        walked = np.where(walks[:, None], 1 + cost[table.next_state].transpose(0, 2, 1), np.inf)
        better = np.minimum(pushed, walked.min(-1))
        if (better == cost).all():
            break
        cost = better
    moves = walked == cost[..., None]  # [S, direction, move]
    both = np.arange(4)
    moves[:, both, both] |= pushed == cost
    return cost, moves & np.isfinite(cost)[..., None]


def changed_plans(plan, shape):
    """Plans [S, 4, C] that begin with a push in each direction and go on as `plan` [S, C] does."""
    cells = plan.shape[1]
    box = np.arange(len(plan)) // cells
    row, column = np.divmod(box, shape[1])
    changed = np.zeros((len(plan), 4, cells), int)
    for direction, (down, right) in enumerate(STEPS):
        inside = (0 <= row + down) & (row + down < shape[0])
        inside &= (0 <= column + right) & (column + right < shape[1])
        rows = np.flatnonzero(inside)
        beyond = (row + down)[rows] * shape[1] + (column + right)[rows]
        changed[rows, direction] = plan[beyond * cells + box[rows]]
        changed[rows, direction, box[rows]] = 1 + direction
    return changed


def draw_states(seed, count, *, size, split, each):
    """States of a set of levels that can be solved, `each` of a layout: -> States."""
    rng = np.random.default_rng(seed)
    data = dataset(rng, count, size=size, boxes=1, split=split, states=each, dead=0.0)
    cells = size * size
    extra = []
    for layout in np.unique(data["layout"]):
        rows = np.flatnonzero(data["layout"] == layout)
        numbers = [state_of(grid) for grid in data["obs"][rows]]
        table = tables(layout_of(data["obs"][rows[0]]), 1)
        plan, turn = plans_of(table, cells)
        cost, moves = first_pushes(table, cells)
        changed = changed_plans(plan, (size, size))
        whole = (plan, turn, same_pushes(table, cells), cost, moves, changed)
        extra.append([part[numbers] for part in whole])
    known = [data[key] for key in ("obs", "legal", "distance", "next_distance", "layout")]
    return States(*known, *(np.concatenate(parts) for parts in zip(*extra)))
