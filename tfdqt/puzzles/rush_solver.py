"""Rush Hour solved: the exact number of moves from every arrangement of the cars to the exit.

Cars stay in their row or column, so an arrangement is the position of each. All that can be come to
from one are listed by a breadth-first search on sets of cells as bits. Every move can be taken
back, so a second search, from those with the red car at the exit, gives all distances.
"""

from typing import NamedTuple

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.puzzles.puzzle import GIVE_UP, check_lengths, check_whole, no_level
from tfdqt.puzzles.splits import belongs, check_split

# What a cell shows; of a car its first cell is the left or top one.
EMPTY = 0
ROW_CAR = (1, 2, 3)  # first, middle and last cell of a car in a row
COLUMN_CAR = (4, 5, 6)
RED_CAR = (7, 8)

MOST_STATES = 100_000  # of one set of cars
LONG = 0.3  # share of cars of three cells
RADIX = 8  # positions of a car
MOST_CARS = 20  # whose positions fit in 63 bits


class Cars(NamedTuple):
    """The cars of a level, in the order of their rows and columns; the red one is the first."""

    size: int  # cells of a side
    column: np.ndarray  # [n] bool, whether a car stands in a column
    line: np.ndarray  # [n], which row or column
    length: np.ndarray  # [n] cells


class Tables(NamedTuple):
    """All arrangements of some cars that can be come to from one of them."""

    cars: Cars
    positions: np.ndarray  # [S, n] int8, of the first cell of each car in its line
    next_state: np.ndarray  # [S, 2n] int32, each car back and forth; itself if the move is illegal
    distance: np.ndarray  # [S] float32, moves until the red car is at the exit; inf if it can't


def exit_row(size):
    """The row of the red car, whose exit is on the right."""
    return (size - 1) // 2


def cells_of(cars, car, position):
    """The rows and columns of a car's cells."""
    along = np.arange(position, position + cars.length[car])
    across = np.full(len(along), cars.line[car])
    return (along, across) if cars.column[car] else (across, along)


def read_grid(grid):
    """A grid [H, H] of codes: -> (Cars, positions [n]), the red car first."""
    found = []
    for row, column in np.argwhere(np.isin(grid, (ROW_CAR[0], COLUMN_CAR[0], RED_CAR[0]))):
        upright = grid[row, column] == COLUMN_CAR[0]
        ends = (ROW_CAR[2], COLUMN_CAR[2], RED_CAR[1])
        behind = grid[row:, column] if upright else grid[row, column:]
        length = 1 + int(np.isin(behind, ends).argmax())
        line, position = (column, row) if upright else (row, column)
        red = grid[row, column] == RED_CAR[0]
        found.append((not red, bool(upright), int(line), int(position), length))
    _, column, line, position, length = map(np.array, zip(*sorted(found)))
    return Cars(len(grid), column, line, length), position


def observations(tables, states):
    """What states of Tables look like: -> [N, H, H] uint8 of codes."""
    cars = tables.cars
    grids = np.zeros((len(states), cars.size * cars.size), np.uint8)
    row = np.arange(len(states))
    for car, length in enumerate(cars.length):
        step = cars.size if cars.column[car] else 1
        start = cars.line[car] * (1 if cars.column[car] else cars.size)
        first = start + tables.positions[states, car].astype(int) * step
        codes = codes_of(cars, car)
        for i in range(length):
            grids[row, first + i * step] = codes[i]
    return grids.reshape(-1, cars.size, cars.size)


def codes_of(cars, car):
    """The codes of a car's cells, in their order."""
    if car == 0:
        return RED_CAR
    first, middle, last = COLUMN_CAR if cars.column[car] else ROW_CAR
    return (first, *[middle] * (cars.length[car] - 2), last)


# -------------------------------------------------------------------------------------------------
# Distances


def _bits(cars):
    """Cells as bits, by car and position.

    Returns (all [n, size], behind [n, size], before [n, size]) int64: the cells of a car, the cell
    that it needs to move back and forth, 0 at the border.
    """
    taken = np.zeros((len(cars.line), cars.size), np.int64)
    behind = np.zeros_like(taken)
    before = np.zeros_like(taken)
    for car, length in enumerate(cars.length):
        line = [
            1
            << int(
                i * cars.size + cars.line[car]
                if cars.column[car]
                else cars.line[car] * cars.size + i
            )
            for i in range(cars.size)
        ]
        for position in range(cars.size - length + 1):
            taken[car, position] = sum(line[position : position + length])
            behind[car, position] = line[position - 1] if position else 0
            end = position + length
            before[car, position] = line[end] if end < cars.size else 0
    return taken, behind, before


def _moves(codes, bits):
    """The codes after each move of arrangements [M] int64: -> [M, 2n], themselves if illegal."""
    taken, behind, before = bits
    count = len(taken)
    positions = codes[:, None] >> 3 * np.arange(count) & RADIX - 1
    car = np.arange(count)
    occupied = taken[car, positions].sum(1)[:, None]
    moved = np.repeat(codes, 2 * count).reshape(-1, 2 * count)
    step = np.int64(1) << 3 * car
    for way, needed, change in ((0, behind, -step), (1, before, step)):
        cell = needed[car, positions]
        moved[:, way::2] += np.where((cell > 0) & (cell & occupied == 0), change, 0)
    return moved


def tables(cars, positions):
    """All that can be come to from one arrangement, solved: -> Tables, or None if it is too much.

    positions: [n]. Too much is more than MOST_STATES states.
    """
    bits = _bits(cars)
    count = len(positions)
    start = (positions.astype(np.int64) << 3 * np.arange(count)).sum()
    levels = [np.zeros(0, np.int64), np.array([start])]
    moves = []
    total = 0
    while len(levels[-1]):
        total += len(levels[-1])
        if total > MOST_STATES:
            return None
        moves.append(_moves(levels[-1], bits))
        new = np.unique(moves[-1])
        # Moves can be taken back, so what is known of these is in the last two levels.
        known = np.concatenate(levels[-2:])
        levels.append(np.setdiff1d(new, known, assume_unique=True))
    codes = np.concatenate(levels)
    order = np.argsort(codes)
    codes = codes[order]
    following = np.searchsorted(codes, np.concatenate(moves)[order]).astype(np.int32)
    placed = (codes[:, None] >> 3 * np.arange(count) & RADIX - 1).astype(np.int8)
    solved = placed[:, 0] == cars.size - cars.length[0]
    return Tables(cars, placed, following, _distances(following, solved))


def _distances(following, solved):
    """Moves to the nearest solved state [S], where every move can be taken back."""
    distance = np.where(solved, 0, np.inf).astype(np.float32)
    front = np.flatnonzero(solved)
    moves = 0
    while len(front):
        moves += 1
        near = np.unique(following[front])
        front = near[np.isinf(distance[near])]
        distance[front] = moves
    return distance


def moves_from(grid):
    """Moves from the state that a grid [H, H] of codes shows to its solution; inf if none.

    Raises UsageError if there are too many arrangements of its cars.
    """
    cars, positions = read_grid(grid)
    found = tables(cars, positions) if len(positions) <= MOST_CARS else None
    if found is None:
        raise UsageError(
            f"The level of Rush Hour has more than {MOST_STATES:,} arrangements, which are too "
            "many to be solved; give one with less room."
        )
    return float(found.distance[(found.positions == positions).all(1)][0])


# -------------------------------------------------------------------------------------------------
# Drawing


def check_options(size, cars, split, least=1, most=None):
    """Raise UsageError if there are no such levels."""
    check_whole("size", size, 4, 7)
    check_whole("cars", cars, 2, 14)
    check_split(split)
    check_lengths(least, most)


def draw_cars(rng, size, count):
    """Place the red car and count - 1 others at random: -> grid [size, size] of codes, or None.

    None if there is no room for one. No other car is in the row of the red one, for it could not
    leave it.
    """
    grid = np.zeros((size, size), np.uint8)
    column = rng.integers(size - 1)
    grid[exit_row(size), column : column + 2] = RED_CAR
    for _ in range(count - 1):
        for _ in range(20):
            codes = ROW_CAR if rng.random() < LONG else ROW_CAR[::2]
            upright = rng.random() < 0.5
            line = rng.integers(size)
            position = rng.integers(size - len(codes) + 1)
            if not upright and line == exit_row(size):
                continue
            cells = (grid.T if upright else grid)[line, position : position + len(codes)]
            if not cells.any():
                cells[:] = codes
                if upright:
                    cells += COLUMN_CAR[0] - ROW_CAR[0]
                break
        else:
            return None
    return grid


def form_of(grid):
    """What a grid has in common with all that its cars can come to, as bytes.

    And, where the exit is in the middle of an odd number of rows, with all of that upside down.
    """
    grids = [grid]
    if exit_row(len(grid)) == len(grid) - 1 - exit_row(len(grid)):
        swapped = np.arange(1 + max(RED_CAR), dtype=np.uint8)
        swapped[list(COLUMN_CAR)] = COLUMN_CAR[::-1]
        grids.append(swapped[grid[::-1]])
    cars = (read_grid(each)[0] for each in grids)
    return min(np.array([c.column, c.line, c.length], np.uint8).tobytes() for c in cars)


def draw_tables(rng, *, size, cars, split):
    """Draw cars until they belong to a set and can be solved: -> Tables.

    Which cars there are and in which order they stand in their lines never changes in a game, so it
    tells the set. Raises UsageError if none is found.
    """
    for _ in range(GIVE_UP):
        grid = draw_cars(rng, size, cars)
        if grid is None:
            continue
        if belongs(form_of(grid), split):
            found = tables(*read_grid(grid))
            if found is not None and np.isfinite(found.distance[0]) and found.distance.any():
                return found
    raise no_level(f"a level of {size} x {size} cells with {cars} cars", split, 1, None)


def draw_level(rng, *, size, cars, split, least, most):
    """Draw a level with a solution of `least` to `most` moves (None: any number).

    Returns (grid [size, size] uint8, moves of its solution). Raises UsageError if none is found.
    """
    for _ in range(GIVE_UP // 10):
        found = draw_tables(rng, size=size, cars=cars, split=split)
        longest = np.inf if most is None else most
        good = np.flatnonzero((found.distance >= least) & (found.distance <= longest))
        if len(good):
            state = rng.choice(good, 1)
            return observations(found, state)[0], int(found.distance[state[0]])
    raise no_level(f"a level of {size} x {size} cells with {cars} cars", split, least, most)


def actions_of(tables, states):
    """The environment's action for each move of states [M]: -> [M, 2n] int."""
    cars = tables.cars
    along = tables.positions[states].astype(int)
    first = np.where(cars.column, along * cars.size + cars.line, cars.line * cars.size + along)
    return np.repeat(2 * first, 2, 1) + np.arange(2 * len(cars.line)) % 2


def dataset(rng, count, *, size=6, cars=6, split="train", states=256):
    """Draw states with the exact distance after each action, for learning offline.

    count: rows; states: that are drawn of a set of cars, with replacement. Solved states
    are left out.
    Returns a dict of obs [count, size, size] uint8, legal [count, A] bool, distance [count]
    float32, next_distance [count, A] float32 (the state's own where an action is illegal), and
    layout [count] int32, which tells rows of the same cars; A = 2 * size * size. Raises UsageError
    if there are no such levels.
    """
    check_options(size, cars, split)
    check_whole("count", count, 1)
    check_whole("states", states, 1)
    rows = []
    for layout in range(-(-count // states)):
        found = draw_tables(rng, size=size, cars=cars, split=split)
        state = rng.choice(np.flatnonzero(found.distance > 0), states)
        actions = actions_of(found, state)
        following = found.next_state[state]
        legal = np.zeros((states, 2 * size * size), bool)
        np.put_along_axis(legal, actions, following != state[:, None], 1)
        after = np.repeat(found.distance[state, None], legal.shape[1], 1)
        np.put_along_axis(after, actions, found.distance[following], 1)
        rows.append(
            dict(
                obs=observations(found, state),
                legal=legal,
                distance=found.distance[state],
                next_distance=after,
                layout=np.full(states, layout, np.int32),
            )
        )
    return {key: np.concatenate([row[key] for row in rows])[:count] for key in rows[0]}
