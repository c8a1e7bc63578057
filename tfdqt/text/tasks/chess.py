"""King and queen against king, told in text, after LMRL-Gym (Abdulhai et al., 2023).

White learns; black is played by an exact table, which puts off the mate as long as it can.
"""

import numpy as np

from tfdqt.text.methods import Data
from tfdqt.text.replay import concatenate
from tfdqt.text.tasks.chess_table import (
    NEVER,
    SQUARES,
    black_moves,
    in_check,
    play_white,
    table,
    white_moves,
)
from tfdqt.text.tasks.play import Game, TaskRecipe, record_data, refuse_tokenizer
from tfdqt.text.tokenizers import make_tokenizer

LONGEST = 40  # moves of white; a mate takes ten at most
# Parts of the data's moves that are the table's, and that are any, which often can't be made; the
# others are any that can.
BEST = 0.5
ANY = 0.1
MOVES = tuple(f"{piece}{square}" for piece in "KQ" for square in SQUARES)
AT_A_TIME = 1_000  # games of data played side by side


def _start(n, rng):
    """Boards [n] with white to move, all of them won; drawn evenly among such positions."""
    won = np.flatnonzero(table().white < NEVER)
    king, queen, black = np.unravel_index(rng.choice(won, n), (64, 64, 64))
    return dict(
        king=king,
        queen=queen,
        black=black,
        done=np.zeros(n, bool),
        ended=np.zeros(n, bool),
        won=np.zeros(n, bool),
        moves=np.zeros(n, int),
        illegal=np.zeros(n, bool),  # whether a move could not be
        rng=rng,
    )


def _place(boards):
    return boards["king"], boards["queen"], boards["black"]


def _step(boards, actions):
    """White's moves and black's answers: rewards 1 for mate, -1 for a move that can't be.

    The game is over with either; so a value lies between -1 and 1.
    """
    playing = ~boards["done"]
    legal = white_moves(*_place(boards))[np.arange(len(actions)), actions]
    moved = playing & legal
    king, queen = play_white(boards["king"], boards["queen"], actions)
    boards["king"] = np.where(moved, king, boards["king"])
    boards["queen"] = np.where(moved, queen, boards["queen"])
    answers = black_moves(*_place(boards))
    stuck = moved & ~answers.any(axis=1)
    mate = stuck & in_check(*_place(boards))
    taken = np.zeros(len(actions), bool)
    answering = np.flatnonzero(moved & ~stuck)
    if len(answering):
        square = _answer(boards, answers, answering)
        boards["black"][answering] = square
        taken[answering] = square == boards["queen"][answering]
    boards["moves"] += playing
    boards["illegal"] |= playing & ~legal
    boards["won"] |= mate
    # A queen taken and a king without a move are draws.
    boards["ended"] |= stuck | taken | boards["illegal"]
    # Cut short, the game has not ended: what follows has a value.
    boards["done"] |= boards["ended"] | (boards["moves"] >= LONGEST)
    return mate.astype(float) - (playing & ~legal)


def _answer(boards, answers, rows):
    """Squares that black's king goes to on boards `rows`: mate as late as can be."""
    king, queen, _ = (each[rows, None] for each in _place(boards))
    squares = np.arange(64)
    later = table().white[king, queen, squares].astype(float)
    later = np.where(squares == queen, NEVER, later)
    # Those that are as good are as likely.
    later = later + boards["rng"].random(later.shape) / 2
    return np.where(answers[rows], later, -1).argmax(axis=1)


def _best_moves(boards):
    """White's moves of the quickest mate, [n, 128] bool."""
    legal = white_moves(*_place(boards))
    behind = np.full(legal.shape, NEVER)
    for move in range(legal.shape[1]):
        king, queen = play_white(boards["king"], boards["queen"], np.full(len(legal), move))
        behind[:, move] = table().black[king, queen, boards["black"]]
    behind[~legal] = NEVER
    return behind == behind.min(axis=1, keepdims=True)


def _drawn(rng, chances):
    """An index of a row each, drawn evenly among those that are true: [n, A] -> [n]."""
    return (rng.random(chances.shape) * chances).argmax(axis=1)


def make_chess(tokenizer=None):
    """The endgame. Raises UsageError for another tokenizer than its own."""
    refuse_tokenizer("chess", tokenizer)
    tokenizer = make_tokenizer([*"KQk", *SQUARES])
    pieces = tokenizer.convert_tokens_to_ids(list("KQk"))
    squares = np.array(tokenizer.convert_tokens_to_ids(SQUARES))

    def show(boards):
        """[CLS] K e1 Q d4 k e8"""
        text = np.zeros((len(boards["king"]), 7), np.int32)
        text[:, 0] = tokenizer.cls_token_id
        text[:, 1::2] = pieces
        text[:, 2::2] = squares[np.stack(_place(boards), axis=1)]
        return text, None

    def data(rng, size, gamma):
        def move(boards, text, at):
            best = _drawn(rng, _best_moves(boards))
            other = _drawn(rng, white_moves(*_place(boards)))
            anything = rng.integers(len(MOVES), size=len(best))
            part = rng.random(len(best))
            return np.where(part < BEST, best, np.where(part < BEST + ANY, anything, other))

        counts = [min(AT_A_TIME, size - begin) for begin in range(0, size, AT_A_TIME)]
        parts = [record_data(game, count, rng, move, gamma) for count in counts]
        items, *rest = zip(*parts)
        return Data(concatenate(items), *map(np.concatenate, rest))

    game = Game(
        name="chess",
        tokenizer=tokenizer,
        actions=MOVES,
        length=7,
        causal=False,
        data=data,
        start=_start,
        show=show,
        step=_step,
        turns=LONGEST,
        size=20_000,
        scores={},
        quick_games=256,
        chunk_games=64,
        tell=lambda scores: tell(game, scores),
    )
    return game


def tell(game, scores, games=1_000):
    """What greedy play by scores comes to, in a line, beside the table's; `games` are played."""
    boards = _start(games, np.random.default_rng(11))
    needed = (table().white[_place(boards)] + 1) // 2  # moves of white
    while not boards["done"].all():
        game.step(boards, np.asarray(scores(*game.show(boards))).argmax(axis=1))
    won = boards["won"]
    cut = ~boards["ended"]
    moves = boards["moves"][won].mean() if won.any() else float("nan")
    best = needed[won].mean() if won.any() else float("nan")
    illegal = boards["illegal"]
    drawn = boards["ended"] & ~won & ~illegal
    return [
        f"Greedy, {games:,} games: {won.mean():.1%} won, in {moves:.2f} moves where the table "
        f"takes {best:.2f}; {drawn.mean():.1%} drawn, {cut.mean():.1%} not over after {LONGEST} "
        f"moves, {illegal.mean():.1%} lost by a move that can't be."
    ]


CHESS = TaskRecipe(
    name="chess",
    make=lambda tokenizer, run_dir, settings: make_chess(tokenizer),
    epochs=6,
    network=dict(layers=3, width=64, hidden=(256,)),
    text=dict(
        method="implicit",
        batch_size=128,
        updates_per_batch=20,
        gamma=0.9,
        target_tau=0.05,
        learning_rate=2e-3,
        expectile=0.9,
        cloning=1.0,
        beta=4.0,
    ),
)
