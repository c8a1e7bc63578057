"""Text games with published scores, rebuilt from the rules of LMRL-Gym (Abdulhai et al., 2023), and how each method learns from play.

Every game plays many boards side by side. `start(n, rng)` gives the boards, `show(boards)` the texts to act on, `step(boards,
actions)` plays; `data(rng)` makes what is learned from. Nothing is downloaded.
"""

from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

import numpy as np

from tfdqt.config import UsageError
from tfdqt.policy import choose
from tfdqt.reading import encode, make_tokenizer
from tfdqt.replay import Episode, Transition


class Data(NamedTuple):
    """What a task's own policy did."""

    items: tuple  # Transition or Episode of arrays [N, ...]
    returns: np.ndarray  # [N], of the whole game that each comes from
    to_go: np.ndarray  # discounted return from each decision on, of the shape of items.reward
    games: np.ndarray  # returns of all games, one each


class Task(NamedTuple):
    """A text game."""

    name: str
    tokenizer: object
    actions: tuple  # what each action is called
    length: int  # tokens the encoder sees
    causal: bool  # whether it learns from whole episodes in one pass
    data: Callable  # (rng, episodes, gamma) -> Data
    start: Callable  # (n, rng) -> boards; for the mazes board i starts in cell i, i + 25, ...
    show: Callable  # boards -> (texts [n, length], at [n])
    step: Callable  # (boards, actions [n]) -> rewards [n]; plays the boards not yet done
    turns: int  # decisions in the longest game
    size: int  # episodes of data by default
    scores: dict  # published mean returns
    features: np.ndarray | None = None  # [A, F] what each action is made of


# ---------------------------------------------------------------------------------------------------------------------
# The maze

MOVES = ("left", "right", "up", "down")
SHIFTS = np.array([(0, -1), (0, 1), (-1, 0), (1, 0)])
CELLS = np.array(sorted({(1, c) for c in (*range(1, 6), *range(7, 12))} | {(r, c) for r in range(1, 6) for c in (3, 9)} |
                        {(5, c) for c in range(3, 10)} | {(r, 6) for r in range(5, 9)}))
GOAL = (8, 6)
LONGEST = 100  # moves in a game
SEEN = 3  # past steps told in the partially observed maze


def _maze_tables():
    """NEXT [26, 4] the cell behind each move, WALLS [26] as a bit a side, THIRD [26] of the maze, and the goal's index."""
    index = {tuple(cell): i for i, cell in enumerate(CELLS.tolist())}
    behind = np.array([[index.get((r + dr, c + dc), i) for dr, dc in SHIFTS.tolist()] for i, (r, c) in enumerate(CELLS.tolist())])
    walls = ((behind == np.arange(len(CELLS))[:, None]) << np.arange(4)).sum(axis=1)
    row, column = CELLS.T
    third = np.where((row == 1) & (column < 6) | (column < 5), 0, np.where((row == 1) | (column > 7), 2, 1))
    return behind, walls, third, index[GOAL]


NEXT, WALLS, THIRD, GOAL_CELL = _maze_tables()
STARTS = np.flatnonzero(np.arange(len(CELLS)) != GOAL_CELL)


def maze_distances():
    """Fewest moves from every cell to the goal, [26]; the optimal mean return is 1 less than their mean, negated."""
    far = np.full(len(CELLS), 10_000)
    far[GOAL_CELL] = 0
    for _ in CELLS:
        far = np.minimum(far, far[NEXT].min(axis=1) + (np.arange(len(CELLS)) != GOAL_CELL))
    return far


def _solver():
    """The data's better moves, [26]: toward row 1 in the side thirds, which leads astray, toward the goal in the middle."""
    far = maze_distances()
    up = np.where(THIRD == 1, np.argmin(far[NEXT], axis=1), MOVES.index("up"))
    return up


def _maze_walk(rng, size, *, confined):
    """`size` trajectories, 15% of whose moves are the solver's, yielded as (cells [S], moves [S], cells behind them [S], whether
    the goal was reached).

    confined: to the third of the maze that a trajectory starts in. A move out of it is kept as it is, and the trajectory goes
    on before it, so that the way from the side thirds to the goal must be pieced together.
    """
    solver = _solver()
    for _ in range(size):
        cell = int(rng.choice(STARTS))
        cells, moves, behind = [], [], []
        while len(moves) < LONGEST and cell != GOAL_CELL:
            cells.append(cell)
            moves.append(int(solver[cell] if rng.random() < 0.15 else rng.integers(4)))
            behind.append(int(NEXT[cell, moves[-1]]))
            if not confined or THIRD[behind[-1]] == THIRD[cell]:
                cell = behind[-1]
        yield np.array(cells), np.array(moves), np.array(behind), cell == GOAL_CELL


def _maze_rewards(count, done):
    """Rewards and discounts of a trajectory of `count` moves."""
    ends = np.arange(count) == count - 1 if done else np.zeros(count, bool)
    return np.where(ends, 0.0, -1.0), 1.0 - ends


def to_go(rewards, gamma):
    """Discounted sums of what is still to come: [..., S] -> [..., S]."""
    total, sums = np.zeros(rewards.shape[:-1]), np.empty(rewards.shape)
    for i in reversed(range(rewards.shape[-1])):
        sums[..., i] = total = rewards[..., i] + gamma * total
    return sums


def _maze_data(walks, gamma, tell):
    """Data of `_maze_walk`; tell(cells [S], moves [S], cells behind [S]) -> the texts before and behind each move, [S, length]."""
    rows, games = [], []
    for cells, moves, behind, done in walks:
        rewards, discounts = _maze_rewards(len(moves), done)
        before, after = tell(cells, moves, behind)
        games.append(rewards.sum())
        rows.append((before, moves, rewards, after, discounts, np.full(len(moves), rewards.sum()), to_go(rewards, gamma)))
    *items, returns, rest = map(np.concatenate, zip(*rows))
    return Data(Transition(*items), returns, rest, np.array(games))


def _maze_boards(n, rng):
    return dict(cell=STARTS[np.arange(n) % len(STARTS)].copy(), done=np.zeros(n, bool), ended=np.zeros(n, bool), moves=np.zeros(n, int),
                past=[[] for _ in range(n)])


def _maze_step(boards, actions):
    playing = ~boards["done"]
    for i in np.flatnonzero(playing):
        boards["past"][i].append((boards["cell"][i], actions[i]))
    boards["cell"][playing] = NEXT[boards["cell"], actions][playing]
    boards["moves"] += playing
    reached = boards["cell"] == GOAL_CELL
    boards["ended"] |= reached
    boards["done"] |= reached | (boards["moves"] >= LONGEST)  # cut short, the game has not ended: what follows has a value
    return np.where(playing & ~reached, -1.0, 0.0)


def make_maze(tokenizer=None):
    """The fully observed maze: a sentence names the goal, the place and the walls beside it. Any tokenizer reads it."""
    numbers = [str(i) for i in range(12)]
    tokenizer = tokenizer or make_tokenizer(["goal", "is", "at", "you", "are", ".", *numbers, *MOVES, "walls:", "none"])

    def sentence(cell):
        r, c = CELLS[cell]
        walls = [move for side, move in enumerate(MOVES) if WALLS[cell] >> side & 1] or ["none"]
        return f"goal is at {GOAL[0]} {GOAL[1]} . you are at {r} {c} . walls: {' '.join(walls)}"

    sentences = [sentence(cell) for cell in range(len(CELLS))]
    length = 1 + max(map(len, tokenizer(sentences, add_special_tokens=False)["input_ids"]))
    texts = encode(tokenizer, sentences, length)

    def data(rng, size, gamma):
        return _maze_data(_maze_walk(rng, size, confined=True), gamma, lambda cells, moves, behind: (texts[cells], texts[behind]))

    def show(boards):
        return texts[boards["cell"]], np.zeros(len(boards["cell"]), np.int32)

    return Task("maze", tokenizer, MOVES, length, False, data, _maze_boards, show, _maze_step, LONGEST, 1_200,
                {"optimum": -6.84, "ILQL": -6.97, "PPO": -37.7, "GPT-4": -39.7, "MC": -48.1, "BC": -72.1})


def make_maze_po():
    """The partially observed maze: only the walls beside this place and the last SEEN places, and the moves between.

    Its trajectories are not confined, for a history that jumps would be none; their mean return, -80, is near the published -83.
    """
    sides = ["wall" + "".join(f"-{move}" for side, move in enumerate(MOVES) if walls >> side & 1) for walls in range(16)]
    tokenizer = make_tokenizer([*MOVES, *sides])
    move_ids = np.array(tokenizer.convert_tokens_to_ids(list(MOVES)))
    wall_ids = np.array(tokenizer.convert_tokens_to_ids(sides))
    length = 2 + 2 * SEEN

    def write(cells, moves, cell):
        """[CLS] walls move walls move ... walls, of the last SEEN of cells [S] and moves [S] and the cell they led to: [length]."""
        past = min(SEEN, len(moves))
        ids = np.zeros(length, np.int32)
        ids[0], ids[1 + 2 * past] = tokenizer.cls_token_id, wall_ids[WALLS[cell]]
        ids[1:1 + 2 * past:2] = wall_ids[WALLS[cells[len(moves) - past:]]]
        ids[2:2 + 2 * past:2] = move_ids[moves[len(moves) - past:]]
        return ids

    def tell(cells, moves, behind):
        texts = np.array([write(cells[:i], moves[:i], cell) for i, cell in enumerate([*cells, behind[-1]])])
        return texts[:-1], texts[1:]

    def data(rng, size, gamma):
        return _maze_data(_maze_walk(rng, size, confined=False), gamma, tell)

    def show(boards):
        pasts = [np.array(past[-SEEN:], int).reshape(-1, 2) for past in boards["past"]]
        texts = np.array([write(past[:, 0], past[:, 1], cell) for past, cell in zip(pasts, boards["cell"])])
        return texts, np.zeros(len(texts), np.int32)

    return Task("maze-po", tokenizer, MOVES, length, False, data, _maze_boards, show, _maze_step, LONGEST, 1_200,
                {"optimum": -25.75, "ILQL": -52.9, "BC": -79.5, "MC": -80.3, "GPT-4": -88.0, "PPO": -91.7})


# ---------------------------------------------------------------------------------------------------------------------
# Wordle

TURNS = 6
COLOURS = ("grey", "yellow", "green")


def wordle_words():
    """The 400 words, [400, 5] of letters 0 to 25."""
    words = resources.files("tfdqt").joinpath("wordle.txt").read_text(encoding="utf-8").split()
    return words, np.array([[ord(letter) - 97 for letter in word] for word in words])


def wordle_colours(guesses, hidden):
    """Colours of guesses for hidden words, [..., 5] letters each -> [..., 5]: 2 in place, 1 elsewhere, 0 not (again) there."""
    guesses, hidden = np.broadcast_arrays(guesses, hidden)
    colours = np.where(guesses == hidden, 2, 0)
    free = np.where(guesses == hidden, -1, hidden)  # letters of the hidden word not yet spoken for
    for i in range(5):
        match = (free == guesses[..., i:i + 1]) & (colours[..., i:i + 1] == 0)
        found = match.any(axis=-1)
        place = match.argmax(axis=-1)
        colours[..., i] = np.where(found, 1, colours[..., i])
        taken = np.where(found[..., None], -1, np.take_along_axis(free, place[..., None], -1))
        np.put_along_axis(free, place[..., None], taken, -1)
    return colours


def make_wordle():
    """Wordle over 400 words. The hidden word is drawn anew each turn among those that fit all that is known, so the game has no memory."""
    words, letters = wordle_words()
    colours = wordle_colours(letters[:, None], letters[None])  # [guess, hidden, 5]
    pattern = (colours * 3 ** np.arange(5)).sum(axis=-1)  # [guess, hidden]
    names = [f"{chr(97 + letter)}{place + 1}-{colour}" for letter in range(26) for place in range(5) for colour in COLOURS]
    tokenizer = make_tokenizer(names)
    base = len(tokenizer) - len(names)
    alphabet = np.eye(26)[letters]  # [word, place, letter]
    made_of = np.concatenate([alphabet.reshape(len(words), -1), alphabet.max(axis=1)], axis=1)
    length = 1 + 5 * (TURNS - 1)

    def tokens(guess, hidden):
        """[n], [n] -> [n, 5] token ids of a coloured guess."""
        return base + (letters[guess] * 5 + np.arange(5)) * 3 + colours[guess, hidden]

    def start(n, rng):
        done = np.zeros(n, bool)
        boards = dict(fits=np.ones((n, len(words)), bool), done=done, ended=done, turn=np.zeros(n, int), rng=rng,
                      text=np.zeros((n, 1 + 5 * TURNS), np.int32))
        boards["text"][:, 0] = tokenizer.cls_token_id
        return boards

    def step(boards, actions):
        playing = ~boards["done"]
        chance = boards["rng"].random(boards["fits"].shape) * boards["fits"]
        hidden = chance.argmax(axis=1)
        solved = actions == hidden
        rows = np.flatnonzero(playing)
        where = 1 + 5 * boards["turn"][rows, None] + np.arange(5)
        boards["text"][rows[:, None], where] = tokens(actions, hidden)[rows]
        boards["fits"][rows] &= (pattern[actions] == pattern[actions, hidden][:, None])[rows]
        boards["turn"] += playing
        boards["done"] |= solved | (boards["turn"] >= TURNS)
        return np.where(playing & ~solved, -1.0, 0.0)

    def data(rng, size, gamma):
        def guess(boards, text, at):
            fitting = (rng.random(boards["fits"].shape) * boards["fits"]).argmax(axis=1)
            n = len(fitting)
            return np.where(rng.random(n) < 0.66, rng.integers(len(words), size=n), fitting)

        parts, returns = zip(*(record(task, min(4_096, size - begin), rng, guess) for begin in range(0, size, 4_096)))
        items, returns = join(parts), np.concatenate(returns)
        return Data(items, returns, to_go(items.reward, gamma), returns)

    def show(boards):
        return boards["text"][:, :length], (5 * np.minimum(boards["turn"], TURNS - 1)).astype(np.int32)

    task = Task("wordle", tokenizer, tuple(words), length, True, data, start, show, step, TURNS, 100_000,
                {"best": -1.94, "ILQL": -2.04, "MC": -2.16, "PPO": -2.63, "BC": -2.81, "GPT-4": -5.42}, made_of)
    return task


MAKERS = {"maze": make_maze, "maze-po": make_maze_po, "wordle": make_wordle}


def make_task(name, tokenizer=None):
    """The task called `name`, its texts read by `tokenizer` or by one of its own. Raises UsageError for what can't be."""
    if name not in MAKERS:
        raise UsageError(f"There is no task {name}; choose one of {', '.join(MAKERS)}.")
    if tokenizer is None:
        return MAKERS[name]()
    if name != "maze":
        raise UsageError(f"The task {name} has words of its own, which a pretrained encoder does not know; leave out --encoder.")
    return make_maze(tokenizer)


# ---------------------------------------------------------------------------------------------------------------------
# Data as each method learns from it, and play


def join(parts):
    """Several Transition, or several Episode, as one."""
    return type(parts[0])(*map(np.concatenate, zip(*parts)))


def record(task, games, rng, act):
    """Play `games` games by act(boards, texts, at) -> actions [n], and keep every decision: -> (Transition or Episode, returns [n]).

    An Episode a game if the task learns from whole ones in one pass, otherwise a Transition a decision.
    """
    boards, turns = task.start(games, rng), []
    text, at = task.show(boards)
    text = text.copy()  # Wordle's boards go on writing in it
    while not boards["done"].all():
        playing = ~boards["done"]
        actions = act(boards, text, at)
        reward = task.step(boards, actions)
        turns.append([text, at, actions, reward, None, np.where(boards["ended"], 0.0, 1.0), playing])
        text, at = task.show(boards)
        text = text.copy()
        turns[-1][4] = text
    before, places, actions, rewards, behind, discounts, playing = map(np.array, zip(*turns))  # [turns, n, ...]
    returns = rewards.sum(axis=0)
    if not task.causal:
        return Transition(before[playing], actions[playing], rewards[playing], behind[playing], discounts[playing]), returns
    missing = task.turns - len(turns)

    def padded(array):
        return np.pad(array, ((0, missing), (0, 0))).T

    at = np.concatenate([places, np.repeat(at[None], missing + 1, axis=0)]).T
    return Episode(text, at, padded(actions * playing), padded(rewards), padded(discounts * playing), padded(playing)), returns


def prepare(data, method, *, keep_best=0.1):
    """The items of Data as a method of TextConfig learns from them: only the best for filtered, whole returns for montecarlo."""
    items = data.items
    if method == "montecarlo":
        return items._replace(reward=data.to_go)
    if method == "filtered":
        rows = data.returns >= np.quantile(data.games, 1 - keep_best)  # of equal games all are kept
        return type(items)(*(np.asarray(field)[rows] for field in items))
    return items


class Batches:
    """Items in batches, in one fixed shuffled order."""

    def __init__(self, items, size, seed=0):
        self.items, self.size = items, size
        self.order = np.random.default_rng([seed, 4]).permutation(len(items[0]))

    def __len__(self):
        return -(-len(self.order) // self.size)

    def __iter__(self):
        for begin in range(0, len(self.order), self.size):
            rows = self.order[begin:begin + self.size]
            yield type(self.items)(*(np.asarray(field)[rows] for field in self.items))


def play(task, scores, *, games, seed=0, greedy=True, side_by_side=1_024, **narrowing):
    """Play `games` whole games and return their returns, [games]. `scores` is from `writing.make_scores`, or (texts, at) -> [n, A]."""
    rng = np.random.default_rng([seed, 5])
    returns = []
    n = min(games, side_by_side)
    for _ in range(-(-games // n)):
        boards, total = task.start(n, rng), np.zeros(n)
        while not boards["done"].all():
            texts, at = task.show(boards)
            total += task.step(boards, choose(rng, np.asarray(scores(texts, at)), greedy=greedy, **narrowing))
        returns.append(total)
    return np.concatenate(returns)[:games]
