"""What a task is, and how a text game is played.

A new task is a module with a TaskRecipe in it, and a line in `table`. A game fills in a `Game`,
whose boards are played side by side; whatever else has the methods of a `Task` is one too, see
`corpus`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.policy import choose_actions, epsilon_greedy
from tfdqt.text.methods import Data, prepare, to_go
from tfdqt.text.replay import Episode, Transition, take_rows, with_imitated

SIDE_BY_SIDE = 1_024  # games in an evaluation at a time


class TaskRecipe(NamedTuple):
    """A task by its name, before it is made: all that `--help` needs."""

    name: str
    make: Callable  # (tokenizer or None, run folder, settings of config.json) -> Task
    epochs: int  # passes over the data, by default
    network: dict  # fields of TextNetworkConfig that differ from its defaults
    text: dict  # fields of TextConfig
    episodes: int = 0  # games to learn from, by default (0: as many as the Game says)


class Task(Protocol):
    """What learning, acting and evaluation ask of a task."""

    name: str
    tokenizer: Any  # a Hugging Face one
    actions: tuple  # what each action is called
    length: int  # tokens the encoder sees
    causal: bool  # whether it learns from whole episodes in one pass
    writes: bool  # whether an action is the next word of a text
    features: np.ndarray | None  # [A, F] what each action is made of
    quick_games: int  # games, or texts, in an evaluation underway

    def load_data(self, settings):
        """What a run learns from, by its config.json: -> (batches, a sentence about them).

        The batches are of Transition or Episode; they have a length and come alike in every pass.
        """

    def evaluate(self, scores, cfg, *, games, seed, best_of=1):
        """Play, or write, so many: -> (returns [games], texts written or None).

        scores: from `generation.make_run_scores`. cfg: TextConfig, which says how actions are
        drawn. best_of: of so many texts the best counts.
        """

    def collect(self, scores, cfg, rng, epsilon):
        """A chunk of experience for an actor: -> (Transition or Episode, returns)."""

    def samples(self, count):
        """A few texts as the task shows them: [count, length] token ids."""

    def compare(self, texts):
        """A sentence to read the returns of `evaluate` beside."""

    def details(self, scores, transformer, head, cfg, returns, texts):
        """Lines with what else an evaluation by `scores` tells."""


def refuse_tokenizer(name, tokenizer):
    """Raise UsageError if a task with words of its own is to be read by an encoder's tokenizer."""
    if tokenizer is not None:
        raise UsageError(
            f"The task {name} has words of its own, which a pretrained encoder does not know; "
            "leave out --encoder."
        )


# -------------------------------------------------------------------------------------------------
# Games


class Game(NamedTuple):
    """A text game, whose boards are dicts of arrays [n, ...], among them done and ended.

    `ended` boards have no state behind the last; those that are only `done` were cut short.
    """

    name: str
    tokenizer: Any
    actions: tuple
    length: int
    causal: bool
    data: Callable  # (rng, games, gamma) -> Data, of the task's own policy
    start: Callable  # (n, rng) -> boards; for the mazes board i starts in cell i, i + 25, ...
    show: Callable  # boards -> (texts [n, length], at [n]), to act on; at None: the whole text
    step: Callable  # (boards, actions [n]) -> rewards [n]; plays the boards not yet done
    turns: int  # decisions in the longest game
    size: int  # games of data by default
    scores: dict  # published mean returns
    quick_games: int  # in an evaluation underway
    chunk_games: int  # in an actor's chunk
    features: np.ndarray | None = None
    tell: Callable | None = None  # scores -> lines with what else greedy play comes to

    writes = False

    def load_data(self, settings):
        cfg = settings["text"]
        rng = np.random.default_rng([settings["seed"], 6])
        data = self.data(rng, settings["episodes"] or self.size, cfg.gamma)
        items = prepare(data, cfg.method, keep_best=cfg.keep_best)
        batches = Batches(items, settings["new_items"], settings["seed"])
        kind = type(items).__name__.lower()
        return batches, (
            f"{len(batches.order):,} {kind}s to learn from, mean return of a game in the data "
            f"{data.games.mean():.2f}."
        )

    def evaluate(self, scores, cfg, *, games, seed, best_of=1):
        how = dict(greedy=cfg.greedy, temperature=cfg.temperature)
        return play_games(self, scores, games=games, seed=seed, **how), None

    def collect(self, scores, cfg, rng, epsilon):
        def act(boards, text, at):
            values = np.asarray(scores(text, at))
            actions = choose_actions(rng, values, greedy=cfg.greedy, temperature=cfg.temperature)
            return epsilon_greedy(rng, actions, len(self.actions), epsilon)

        return record(self, self.chunk_games, rng, act)

    def samples(self, count):
        boards = self.start(count, np.random.default_rng(0))
        rng = np.random.default_rng(1)
        for _ in range(3):
            self.step(boards, rng.integers(len(self.actions), size=count))
        return self.show(boards)[0]

    def compare(self, texts):
        if not self.scores:
            return ""
        return "Published: " + ", ".join(f"{k} {v:g}" for k, v in self.scores.items()) + "."

    def details(self, scores, transformer, head, cfg, returns, texts):
        return self.tell(scores) if self.tell else []


def play_games(game, scores, *, games, seed=0, greedy=True, **narrowing):
    """Play `games` whole games of a Game and return their returns, [games].

    scores: from `generation.make_word_scores`, or (texts [n, T], at [n]) -> [n, A]. narrowing: as
    for `policy.narrow`.
    """
    rng = np.random.default_rng([seed, 5])
    returns = []
    n = min(games, SIDE_BY_SIDE)
    for _ in range(-(-games // n)):
        boards = game.start(n, rng)
        total = np.zeros(n)
        while not boards["done"].all():
            values = np.asarray(scores(*game.show(boards)))
            total += game.step(boards, choose_actions(rng, values, greedy=greedy, **narrowing))
        returns.append(total)
    return np.concatenate(returns)[:games]


def record(game, games, rng, act):
    """Play `games` games by act(boards, texts, at) -> actions [n], and keep every decision.

    -> (Transition or Episode, returns [n]). An Episode a game if the task learns from whole ones in
    one pass, otherwise a Transition a decision.
    """
    items, returns, _ = _record(game, games, rng, act)
    return items, returns


def record_data(game, games, rng, act, gamma):
    """The same of a task that learns from Transitions, as Data."""
    items, returns, playing = _record(game, games, rng, act)
    rewards = np.zeros(playing.shape)
    rewards[playing] = items.reward
    left = to_go(rewards.T, gamma).T
    of_game = np.broadcast_to(returns, playing.shape)
    return Data(items, of_game[playing], left[playing], returns)


def _record(game, games, rng, act):
    """-> (items, returns [n], which games each turn was played in [turns, n])."""
    boards = game.start(games, rng)
    turns = []
    text, at = game.show(boards)
    text = text.copy()  # Wordle's boards go on writing in it
    while not boards["done"].all():
        playing = ~boards["done"]
        actions = act(boards, text, at)
        rewards = game.step(boards, actions)
        before = text
        before_at = at
        text, at = game.show(boards)
        text = text.copy()
        discounts = np.where(boards["ended"], 0.0, 1.0)
        turns.append((before, before_at, actions, rewards, text, discounts, playing))
    # [turns, n, ...]
    before, before_at, actions, rewards, behind, discounts, playing = map(np.array, zip(*turns))
    returns = rewards.sum(axis=0)
    if not game.causal:
        fields = (before, actions, rewards, behind, discounts)
        return Transition(*(field[playing] for field in fields)), returns, playing
    missing = game.turns - len(turns)

    def padded(array):
        return np.pad(array, ((0, missing), (0, 0))).T

    items = Episode(
        text=text,
        at=np.concatenate([before_at, np.repeat(at[None], missing + 1, axis=0)]).T,
        action=padded(actions * playing),
        reward=padded(rewards),
        discount=padded(discounts * playing),
        mask=padded(playing),
    )
    return items, returns, playing


class Batches:
    """Items in batches, in one fixed shuffled order."""

    def __init__(self, items, size, seed=0):
        self.items = with_imitated(items)  # once, not for each batch
        self.size = size
        self.order = np.random.default_rng([seed, 4]).permutation(len(items[0]))

    def __len__(self):
        return -(-len(self.order) // self.size)

    def __iter__(self):
        for begin in range(0, len(self.order), self.size):
            rows = self.order[begin : begin + self.size]
            yield take_rows(self.items, rows)
