"""Texts as numbers: tokenizers, folders of texts read as a stream, and every word of a text as a decision."""

import codecs
import collections
import itertools
import re
from pathlib import Path

import numpy as np

from tfdqt.backend import tf
from tfdqt.config import UsageError
from tfdqt.replay import Episode

BLOCK = 1 << 20  # bytes of a file read at a time


def make_tokenizer(words):
    """A Hugging Face tokenizer over whole words, split at spaces: ids in the order of `words`, behind [PAD], [UNK], [CLS]."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*special, *words))}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")


def words_of(text):
    """A text in lower case as words and punctuation marks: "Go, Joe!" -> ["go", ",", "joe", "!"]."""
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text.lower())


def read_texts(folder):
    """Stream the words of all *.txt files under a folder (or of one file), in the order of their names, a piece at a time.

    Yields (path, words); memory does not grow with a file's size. Raises UsageError for a folder without text and, with file
    and offset, for bytes that are not UTF-8.
    """
    folder = Path(folder)
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.txt"))
    if not paths:
        raise UsageError(f"There are no .txt files under {folder}; give a folder with texts.")
    for path in paths:
        decoder, rest, offset = codecs.getincrementaldecoder("utf-8")(), "", 0
        with open(path, "rb") as file:
            while True:
                block = file.read(BLOCK)
                held = len(decoder.getstate()[0])
                try:
                    rest += decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise UsageError(f"{path} is not UTF-8 at byte {offset - held + error.start}; convert it, for example by "
                                     f"iconv -t utf-8, or take it out.") from None
                offset += len(block)
                # The last word may go on in the next block, unless it is longer than any word.
                cut = len(rest) if not block else 1 + max(rest.rfind(space) for space in " \n\t")
                if cut == 0 and len(rest) > BLOCK:
                    cut = len(rest)
                words, rest = words_of(rest[:cut]), rest[cut:]
                if words:
                    yield path, words
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
                if heldout is None or heldout == (number % 20 == 19):
                    yield " ".join(words[i:i + length])
                number += 1
            left = words[whole:]


def text_loader(folder, length, batch_size, *, heldout=None):
    """A tf.data.Dataset over a folder of texts: batches of strings, each `length` words in a row of one file.

    The texts are streamed in a fixed order; what is left of a file behind its last whole window is dropped. Every twentieth
    window is held out: heldout=True gives only those, False only the others.
    """
    return tf.data.Dataset.from_generator(lambda: text_windows(folder, length, heldout),
                                          output_signature=tf.TensorSpec((), tf.string)).batch(batch_size).prefetch(2)


def token_rows(tokenizer, texts):
    """Token ids of each text, as lists, behind a [CLS] if the tokenizer has one."""
    start = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    return [start + ids for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def encode(tokenizer, texts, length):
    """The `token_rows` of texts, cut at the end and padded with the padding's id: [N, length]."""
    pad = tokenizer.pad_token_id or 0
    return np.array([(ids + [pad] * length)[:length] for ids in token_rows(tokenizer, texts)], np.int32).reshape(-1, length)


def episodes(tokenizer, texts, length, reward_fn):
    """Every word of each text as a decision: Episode of [N, ...] with T = length, P = length - 1.

    A word's reward is what it adds to `reward_fn` (text -> float), so that rewards sum to the worth of the whole text. Words
    that the tokenizer does not know are read, but nothing is learned about writing them.
    """
    ids = encode(tokenizer, texts, length)
    pad, unknown = tokenizer.pad_token_id or 0, tokenizer.unk_token_id
    written = (ids[:, 1:] != pad).astype(np.float32)
    worth = np.zeros(ids.shape, np.float32)
    for row, line in enumerate(ids):
        i = 0
        for i in range(1, 1 + int(written[row].sum())):
            worth[row, i] = reward_fn(tokenizer.decode(line[:i + 1], skip_special_tokens=True))
        worth[row, i + 1:] = worth[row, i]
    if not np.isfinite(worth).all():
        raise UsageError("reward_fn gave a value that is not finite; it must give a finite number for every text.")
    discount = np.ones_like(written)
    discount[np.arange(len(ids)), np.maximum(written.sum(axis=1).astype(int) - 1, 0)] = 0.0
    at = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    return Episode(ids, at, ids[:, 1:] * (written > 0), np.diff(worth, axis=1), discount, written * (ids[:, 1:] != unknown))
