"""Texts as numbers: tokenizers, and rows of token ids."""

import collections
import collections.abc
import contextlib
import json
import re
from pathlib import Path

import numpy as np

from tfdqt.backend import quiet
from tfdqt.errors import UsageError, first_line

SHOWN = 300  # characters of a library's error that are passed on
# What is learned from as one word: the time it takes grows with the square of its length.
LONG_RUN = re.compile(r"\S{256}|\s{256}")


def make_tokenizer(words):
    """A Hugging Face tokenizer over whole words, split at spaces.

    Ids are in the order of `words`, behind [PAD], [UNK], [CLS]. Raises UsageError for a word that
    comes twice.

    >>> make_tokenizer(["red", "sun"])("red sun")["input_ids"]  # [3, 4]
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]")
    known = [*special, *as_list(words)]
    ((word, count),) = collections.Counter(known).most_common(1)
    if count > 1:
        raise UsageError(f"The word {word!r} comes {count} times; give each once.")
    vocabulary = {word: i for i, word in enumerate(known)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )


def train_tokenizer(texts, vocabulary):
    """A byte-level BPE tokenizer (Sennrich et al., 2016) learned from an iterator over texts.

    It has `vocabulary` tokens at most, [PAD], [UNK] and [CLS] and all bytes among them, so that
    nothing is unknown to it. Raises UsageError for a vocabulary that has no room for more.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(special) + len(alphabet) + 1
    if vocabulary < least:
        raise UsageError(
            f"Sub-words begin with the 256 bytes; give a --vocabulary of at least {least}, not "
            f"{vocabulary}."
        )
    inner = Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(_without_long_runs(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        clean_up_tokenization_spaces=False,
    )


def _without_long_runs(texts):
    """The texts, cut within what has no space, or nothing else, for too long."""
    for text in texts:
        begin = 0
        for run in LONG_RUN.finditer(text):
            yield text[begin : run.end()]
            begin = run.end()
        yield text[begin:]


def load_tokenizer(source, sentence=None):
    """The tokenizer of a hub name or folder.

    Raises UsageError if there is none, by `sentence`, in which the reason stands for %s.
    """
    from transformers import AutoTokenizer

    sentence = sentence or (
        f"There is no tokenizer with the encoder {source} (%s); give a folder that holds one."
    )
    folder = Path(source)
    if folder.is_dir() and not (
        tells_kind(folder / "tokenizer_config.json", "tokenizer_class")
        or tells_kind(folder / "config.json", "model_type")
    ):
        raise UsageError(sentence % "neither tokenizer_config.json nor config.json says its kind")
    # Where files of the vocabulary are missing, transformers stumbles over None; of damaged ones
    # the tokenizers library raises a bare Exception.
    with loading(sentence, Exception):
        # Spaces are a text's own, though many a model's settings would take some out.
        return AutoTokenizer.from_pretrained(source, clean_up_tokenization_spaces=False)


def tells_kind(file, key):
    """Whether a JSON file tells a kind, by `key` or as code of its own, or can't be read.

    Of a folder that tells none transformers guesses, by words such as bert in its path.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True  # which transformers says better
    return not isinstance(found, dict) or bool({key, "auto_map"} & {*found})


@contextlib.contextmanager
def loading(sentence, *errors):
    """What bad input raises while transformers loads it becomes a UsageError.

    The error's first line stands for the %s of the sentence; transformers' noise is held back.
    errors: what is raised besides OSError, ValueError, KeyError and ImportError.
    """
    with quiet():
        try:
            yield
        except (OSError, ValueError, KeyError, ImportError, *errors) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            line = re.sub(r"^\{\{.*?\}\} ", "", line)  # where in TensorFlow it came up
            line = line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
            raise UsageError(sentence % line) from None


def start_of(tokenizer):
    """What every text begins with, a list: the id of [CLS], else of a text's beginning or its end.

    Qwen has no beginning, and puts the end between texts. Empty if the tokenizer has none of them.
    """
    ids = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [i for i in ids if i is not None][:1]


def as_list(texts):
    """Texts of any iterable as a list.

    Raises UsageError for one text, of which it would be the letters, and for a dict or a table, of
    which it would be the names of columns.
    """
    if isinstance(texts, str):
        raise UsageError(f"A list of texts is asked for, not the text {texts[:40]!r}; give [text].")
    named = isinstance(texts, collections.abc.Mapping) or hasattr(texts, "columns")
    if named or not isinstance(texts, collections.abc.Iterable):
        raise UsageError(
            f"A list of texts is asked for, not something of type {type(texts).__name__}; of a "
            "dict or a table give the column of texts, such as batch['text']."
        )
    return list(texts)


def token_rows(tokenizer, texts):
    """Token ids of each text, as lists, behind what `start_of` gives.

    Raises UsageError for a text that is not Unicode, as bytes in another encoding make it.
    """
    texts = as_list(texts)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"The text {text[:40]!r} is not Unicode; give it in UTF-8.") from None
    start = start_of(tokenizer)
    return [start + ids for ids in read_ids(tokenizer, texts)]


def read_ids(tokenizer, texts):
    """Token ids of each text as it stands: "[PAD]" in it is no padding, but five characters."""
    if not len(texts):  # which a tokenizer takes for a mistake
        return []
    how = dict(add_special_tokens=False, split_special_tokens=True)
    try:
        return tokenizer(list(texts), **how)["input_ids"]
    except Exception as error:
        if type(error) is not Exception:  # which the library raises for what it does not know
            raise
        raise UsageError(
            f"The tokenizer can't read a text ({first_line(error)}); give it a token for what it "
            "does not know (unk_token), or choose another --encoder."
        ) from None


def pad_rows(rows, length, pad):
    """Lists of ids, cut at the end or padded with `pad`: [N, length] int32."""
    padded = [(list(row) + [pad] * length)[:length] for row in rows]
    return np.array(padded, np.int32).reshape(-1, length)


def padded(tokenizer, rows, length):
    """The `pad_rows` with a tokenizer's padding: [N, length] int32."""
    return pad_rows(rows, length, tokenizer.pad_token_id or 0)


def encode(tokenizer, texts, length):
    """The `token_rows` of texts, cut at the end and padded with the padding's id: [N, length].

    Raises UsageError for a tokenizer that has no padding if a text ends in what stands for it, the
    token 0, for then it could not be told where the text ends.
    """
    texts = as_list(texts)
    rows = token_rows(tokenizer, texts)
    if tokenizer.pad_token_id is None:
        for text, row in zip(texts, rows):
            if row[:length][-1:] == [0]:
                raise UsageError(
                    f"The text {text[:40]!r} ends in the token 0, which stands for the padding "
                    "that this tokenizer lacks; give it a pad_token, and its id to the encoder's "
                    "config."
                )
    return padded(tokenizer, rows, length)
