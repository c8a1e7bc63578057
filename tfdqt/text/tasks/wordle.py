"""Wordle as LMRL-Gym plays it (Abdulhai et al., 2023), rebuilt from its rules, over 400 words."""

from importlib import resources

import numpy as np

from tfdqt.text.methods import Data, to_go
from tfdqt.text.replay import concatenate
from tfdqt.text.tasks.play import Game, TaskRecipe, record, refuse_tokenizer
from tfdqt.text.tokenizers import make_tokenizer

TURNS = 6
COLOURS = ("grey", "yellow", "green")
UNIFORM = 0.66  # part of the data's guesses that is any word; the others fit all that is known
AT_A_TIME = 4_096  # games of data played side by side


def wordle_words():
    """The words and their letters: list of 400 strings, [400, 5] of numbers from 0 to 25."""
    file = resources.files("tfdqt.text.tasks").joinpath("wordle.txt")
    words = file.read_text(encoding="utf-8").split()
    return words, np.array([[ord(letter) - 97 for letter in word] for word in words])


def wordle_colours(guesses, hidden):
    """Colours of guesses for hidden words, [..., 5] letters each -> [..., 5].

    2 at the right position, 1 elsewhere in the word, 0 not (again) in it.
    """
    guesses, hidden = np.broadcast_arrays(guesses, hidden)
    colours = np.where(guesses == hidden, 2, 0)
    free = np.where(guesses == hidden, -1, hidden)  # letters of the hidden word not yet spoken for
    for i in range(5):
        match = (free == guesses[..., i : i + 1]) & (colours[..., i : i + 1] == 0)
        elsewhere = match.any(axis=-1)
        position = match.argmax(axis=-1)[..., None]
        colours[..., i] = np.where(elsewhere, 1, colours[..., i])
        left = np.take_along_axis(free, position, -1)
        np.put_along_axis(free, position, np.where(elsewhere[..., None], -1, left), -1)
    return colours


def make_wordle(tokenizer=None):
    """Wordle over 400 words.

    The hidden word is drawn anew each turn among those that fit all that is known, so the game has
    no memory. Raises UsageError for another tokenizer than its own.
    """
    refuse_tokenizer("wordle", tokenizer)
    words, letters = wordle_words()
    colours = wordle_colours(letters[:, None], letters[None])  # [guess, hidden, 5]
    pattern = (colours * 3 ** np.arange(5)).sum(axis=-1)  # [guess, hidden]
    names = [
        f"{chr(97 + letter)}{position + 1}-{colour}"
        for letter in range(26)
        for position in range(5)
        for colour in COLOURS
    ]
    tokenizer = make_tokenizer(names)
    base = len(tokenizer) - len(names)
    alphabet = np.eye(26)[letters]  # [word, position, letter]
    # What a word is made of: a letter at a position, and a letter anywhere.
    features = np.concatenate([alphabet.reshape(len(words), -1), alphabet.max(axis=1)], axis=1)
    length = 1 + 5 * (TURNS - 1)

    def tokens(guess, hidden):
        """[n], [n] -> [n, 5] token ids of a coloured guess."""
        return base + (letters[guess] * 5 + np.arange(5)) * 3 + colours[guess, hidden]

    def start(n, rng):
        done = np.zeros(n, bool)
        text = np.zeros((n, 1 + 5 * TURNS), np.int32)
        text[:, 0] = tokenizer.cls_token_id
        return dict(
            fits=np.ones((n, len(words)), bool),  # words that the hidden one may be
            done=done,
            ended=done,  # no game is cut short
            turn=np.zeros(n, int),
            rng=rng,
            text=text,
        )

    def fitting(boards, rng):
        """A word for each board, drawn among those that the hidden one may be."""
        return (rng.random(boards["fits"].shape) * boards["fits"]).argmax(axis=1)

    def step(boards, actions):
        playing = ~boards["done"]
        hidden = fitting(boards, boards["rng"])
        solved = actions == hidden
        rows = np.flatnonzero(playing)
        columns = 1 + 5 * boards["turn"][rows, None] + np.arange(5)
        boards["text"][rows[:, None], columns] = tokens(actions, hidden)[rows]
        boards["fits"][rows] &= (pattern[actions] == pattern[actions, hidden][:, None])[rows]
        boards["turn"] += playing
        boards["done"] |= solved | (boards["turn"] >= TURNS)
        return np.where(playing & ~solved, -1.0, 0.0)

    def data(rng, size, gamma):
        def guess(boards, text, at):
            likely = fitting(boards, rng)
            n = len(likely)
            return np.where(rng.random(n) < UNIFORM, rng.integers(len(words), size=n), likely)

        counts = [min(AT_A_TIME, size - begin) for begin in range(0, size, AT_A_TIME)]
        parts, returns = zip(*(record(game, count, rng, guess) for count in counts))
        items = concatenate(parts)
        returns = np.concatenate(returns)
        return Data(items, returns, to_go(items.reward, gamma), returns)

    def show(boards):
        at = 5 * np.minimum(boards["turn"], TURNS - 1)
        return boards["text"][:, :length], at.astype(np.int32)

    game = Game(
        name="wordle",
        tokenizer=tokenizer,
        actions=tuple(words),
        length=length,
        causal=True,
        data=data,
        start=start,
        show=show,
        step=step,
        turns=TURNS,
        size=100_000,
        scores={
            "best": -1.94,
            "ILQL": -2.04,
            "MC": -2.16,
            "PPO": -2.63,
            "BC": -2.81,
            "GPT-4": -5.42,
        },
        quick_games=512,
        chunk_games=64,
        features=features,
    )
    return game


WORDLE = TaskRecipe(
    name="wordle",
    make=lambda tokenizer, run_dir, settings: make_wordle(tokenizer),
    epochs=6,
    episodes=1_000_000,
    network=dict(width=64, dueling=True, saturating=True),
    text=dict(
        batch_size=128,
        learning_rate=2e-3,
        final_learning_rate=1e-5,
        cloning=1.0,
        plausible=0.3,
        beta=12.0,
    ),
)
