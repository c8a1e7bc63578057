"""The mazes of LMRL-Gym (Abdulhai et al., 2023), rebuilt from its rules. Nothing is downloaded."""

import numpy as np

from tfdqt.text.methods import Data, to_go
from tfdqt.text.replay import Transition
from tfdqt.text.tasks.play import Game, TaskRecipe, refuse_tokenizer
from tfdqt.text.tokenizers import encode, make_tokenizer

MOVES = ("left", "right", "up", "down")
SHIFTS = np.array([(0, -1), (0, 1), (-1, 0), (1, 0)])
CELLS = np.array(
    sorted(
        {(1, c) for c in (*range(1, 6), *range(7, 12))}
        | {(r, c) for r in range(1, 6) for c in (3, 9)}
        | {(5, c) for c in range(3, 10)}
        | {(r, 6) for r in range(5, 9)}
    )
)
GOAL = (8, 6)
LONGEST = 100  # moves in a game
REMEMBERED = 3  # past steps told in the partially observed maze
REMEMBERED_CONFINED = 5  # the same with data confined to thirds, where fewer teach hardly anything
SOLVED = 0.15  # part of the data's moves that are the solver's
GAMES = 1_200  # of data


def _maze_tables():
    """NEXT [26, 4] the cell behind each move, WALLS [26] a bit a side, THIRD [26], goal's index."""
    index = {tuple(cell): i for i, cell in enumerate(CELLS.tolist())}
    behind = np.array(
        [
            [index.get((r + dr, c + dc), i) for dr, dc in SHIFTS.tolist()]
            for i, (r, c) in enumerate(CELLS.tolist())
        ]
    )
    walls = ((behind == np.arange(len(CELLS))[:, None]) << np.arange(4)).sum(axis=1)
    row, column = CELLS.T
    right = (row == 1) | (column > 7)
    left = (row == 1) & (column < 6) | (column < 5)
    return behind, walls, np.where(left, 0, np.where(right, 2, 1)), index[GOAL]


NEXT, WALLS, THIRD, GOAL_CELL = _maze_tables()
STARTS = np.flatnonzero(np.arange(len(CELLS)) != GOAL_CELL)


def maze_distances():
    """Fewest moves from every cell to the goal, [26].

    The optimal mean return is 1 less than their mean, negated.
    """
    moves = np.full(len(CELLS), 10_000)
    moves[GOAL_CELL] = 0
    for _ in CELLS:
        moves = np.minimum(moves, moves[NEXT].min(axis=1) + (np.arange(len(CELLS)) != GOAL_CELL))
    return moves


# -------------------------------------------------------------------------------------------------
# The data


def _solver():
    """The data's better moves, [26].

    Toward row 1 in the side thirds, which leads astray, toward the goal in the middle.
    """
    best = np.argmin(maze_distances()[NEXT], axis=1)
    return np.where(THIRD == 1, best, MOVES.index("up"))


def _maze_walk(rng, size, *, confined):
    """`size` trajectories of the data's policy, which follows the solver now and then.

    Yields (cells [S], moves [S], cells behind them [S], whether the goal was reached).

    confined: to the third of the maze that a trajectory starts in. A move out of it is kept as it
    is, and the trajectory goes on before it, so that the way from the side thirds to the goal must
    be pieced together.
    """
    solver = _solver()
    for _ in range(size):
        cell = int(rng.choice(STARTS))
        cells = []
        moves = []
        behind = []
        while len(moves) < LONGEST and cell != GOAL_CELL:
            cells.append(cell)
            moves.append(int(solver[cell] if rng.random() < SOLVED else rng.integers(4)))
            behind.append(int(NEXT[cell, moves[-1]]))
            if not confined or THIRD[behind[-1]] == THIRD[cell]:
                cell = behind[-1]
        yield np.array(cells), np.array(moves), np.array(behind), cell == GOAL_CELL


def _maze_rewards(count, done):
    """Rewards and discounts of a trajectory of `count` moves."""
    ends = np.arange(count) == count - 1 if done else np.zeros(count, bool)
    return np.where(ends, 0.0, -1.0), 1.0 - ends


def _maze_data(walks, gamma, tell):
    """Data of `_maze_walk`.

    tell: (cells [S], moves [S], cells behind [S]) -> the texts before and behind each move, each
    [S, length].
    """
    rows = []
    games = []
    for cells, moves, behind, done in walks:
        rewards, discounts = _maze_rewards(len(moves), done)
        texts, texts_behind = tell(cells, moves, behind)
        total = rewards.sum()
        games.append(total)
        transition = (texts, moves, rewards, texts_behind, discounts)
        rows.append((*transition, np.full(len(moves), total), to_go(rewards, gamma)))
    *fields, returns, left = map(np.concatenate, zip(*rows))
    return Data(Transition(*fields), returns, left, np.array(games))


# -------------------------------------------------------------------------------------------------
# The game


def _maze_boards(n, rng):
    return dict(
        cell=STARTS[np.arange(n) % len(STARTS)].copy(),
        done=np.zeros(n, bool),
        ended=np.zeros(n, bool),
        moves=np.zeros(n, int),
        past=[[] for _ in range(n)],  # (cell, move) of each step
    )


def _maze_step(boards, actions):
    playing = ~boards["done"]
    for i in np.flatnonzero(playing):
        boards["past"][i].append((boards["cell"][i], actions[i]))
    boards["cell"][playing] = NEXT[boards["cell"], actions][playing]
    boards["moves"] += playing
    reached = boards["cell"] == GOAL_CELL
    boards["ended"] |= reached
    # Cut short, the game has not ended: what follows has a value.
    boards["done"] |= reached | (boards["moves"] >= LONGEST)
    return np.where(playing & ~reached, -1.0, 0.0)


def _make_game(name, tokenizer, length, data, show, scores):
    return Game(
        name=name,
        tokenizer=tokenizer,
        actions=MOVES,
        length=length,
        causal=False,
        data=data,
        start=_maze_boards,
        show=show,
        step=_maze_step,
        turns=LONGEST,
        size=GAMES,
        scores=scores,
        quick_games=len(STARTS),
        chunk_games=len(STARTS),
    )


def make_maze(tokenizer=None):
    """The fully observed maze: a sentence names the goal, the cell and the walls beside it.

    Any tokenizer reads it.
    """
    numbers = [str(i) for i in range(12)]
    words = ["goal", "is", "at", "you", "are", ".", *numbers, *MOVES, "walls:", "none"]
    tokenizer = tokenizer or make_tokenizer(words)

    def sentence(cell):
        r, c = CELLS[cell]
        walls = [move for side, move in enumerate(MOVES) if WALLS[cell] >> side & 1] or ["none"]
        return f"goal is at {GOAL[0]} {GOAL[1]} . you are at {r} {c} . walls: {' '.join(walls)}"

    sentences = [sentence(cell) for cell in range(len(CELLS))]
    ids = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    length = 1 + max(map(len, ids))
    texts = encode(tokenizer, sentences, length)

    def tell(cells, moves, behind):
        return texts[cells], texts[behind]

    def data(rng, size, gamma):
        return _maze_data(_maze_walk(rng, size, confined=True), gamma, tell)

    def show(boards):
        return texts[boards["cell"]], None

    scores = {
        "optimum": -6.84,
        "ILQL": -6.97,
        "PPO": -37.7,
        "GPT-4": -39.7,
        "MC": -48.1,
        "BC": -72.1,
    }
    return _make_game("maze", tokenizer, length, data, show, scores)


def make_maze_po(tokenizer=None, *, confined=False, remembered=None):
    """The partially observed maze: only walls are seen.

    Those beside this cell and the last ones, and the moves between. Raises UsageError for another
    tokenizer than its own.

    confined: to thirds, as the fully observed maze's data. Without, trajectories are whole walks;
    their mean return, -80, is near the published -83. remembered: past moves told.
    """
    name = "maze-po-confined" if confined else "maze-po"
    if remembered is None:
        remembered = REMEMBERED_CONFINED if confined else REMEMBERED
    refuse_tokenizer(name, tokenizer)
    sides = [
        "wall" + "".join(f"-{move}" for side, move in enumerate(MOVES) if walls >> side & 1)
        for walls in range(16)
    ]
    tokenizer = make_tokenizer([*MOVES, *sides])
    move_ids = np.array(tokenizer.convert_tokens_to_ids(list(MOVES)))
    wall_ids = np.array(tokenizer.convert_tokens_to_ids(sides))
    length = 2 + 2 * remembered

    def write(cells, moves, cell):
        """[CLS] walls move walls move ... walls: [length] ids.

        Of the last `remembered` of cells [S] and moves [S], and of the cell that they led to.
        """
        past = min(remembered, len(moves))
        ids = np.zeros(length, np.int32)
        ids[0] = tokenizer.cls_token_id
        ids[1 : 1 + 2 * past : 2] = wall_ids[WALLS[cells[len(moves) - past :]]]
        ids[2 : 2 + 2 * past : 2] = move_ids[moves[len(moves) - past :]]
        ids[1 + 2 * past] = wall_ids[WALLS[cell]]
        return ids

    def tell(cells, moves, behind):
        before = [write(cells[:i], moves[:i], cell) for i, cell in enumerate(cells)]
        after = [write(cells[:i], moves[:i], cell) for i, cell in enumerate(behind, 1)]
        return np.array(before), np.array(after)

    def data(rng, size, gamma):
        return _maze_data(_maze_walk(rng, size, confined=confined), gamma, tell)

    def show(boards):
        lasts = [past[max(0, len(past) - remembered) :] for past in boards["past"]]
        pasts = [np.array(past, int).reshape(-1, 2) for past in lasts]
        texts = np.array(
            [write(past[:, 0], past[:, 1], cell) for past, cell in zip(pasts, boards["cell"])]
        )
        return texts, None

    scores = {
        "optimum": -25.75,
        "ILQL": -52.9,
        "BC": -79.5,
        "MC": -80.3,
        "GPT-4": -88.0,
        "PPO": -91.7,
    }
    return _make_game(name, tokenizer, length, data, show, scores)


_NETWORK = dict(width=64, hidden=(128,))
_TEXT = dict(batch_size=64, gamma=0.95, target_tau=0.05)

MAZE = TaskRecipe(
    name="maze",
    make=lambda tokenizer, run_dir, settings: make_maze(tokenizer),
    epochs=2,
    network=_NETWORK,
    text=_TEXT,
)
MAZE_PO = TaskRecipe(
    name="maze-po",
    make=lambda tokenizer, run_dir, settings: make_maze_po(tokenizer),
    epochs=8,
    network=_NETWORK,
    text=dict(
        **_TEXT,
        final_learning_rate=1e-5,
        huber_delta=100.0,
        max_grad_norm=100.0,
        greedy=False,
        temperature=0.3,
    ),
)
MAZE_PO_CONFINED = MAZE_PO._replace(
    name="maze-po-confined",
    make=lambda tokenizer, run_dir, settings: make_maze_po(tokenizer, confined=True),
    epochs=2,  # with eight it does worse
)
