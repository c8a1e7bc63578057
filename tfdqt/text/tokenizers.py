"""Texts as numbers: tokenizers, and rows of token ids."""

import contextlib
import re

import numpy as np

from tfdqt.backend import quiet
from tfdqt.errors import UsageError


def make_tokenizer(words):
    """A Hugging Face tokenizer over whole words, split at spaces.

    Ids are in the order of `words`, behind [PAD], [UNK], [CLS].

    >>> make_tokenizer(["red", "sun"])("red sun")["input_ids"]  # [3, 4]
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]")
    vocabulary = {word: i for i, word in enumerate((*special, *words))}
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
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(source):
    """The tokenizer of a hub name or folder. Raises UsageError if there is none."""
    from transformers import AutoTokenizer

    # Where files of the vocabulary are missing, transformers stumbles over None.
    with loading(
        f"There is no tokenizer with the encoder {source} (%s); give a folder that holds one.",
        TypeError,
        AttributeError,
    ):
        # Spaces are a text's own, though many a model's settings would take some out.
        return AutoTokenizer.from_pretrained(source, clean_up_tokenization_spaces=False)


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
            raise UsageError(sentence % line) from None


def start_of(tokenizer):
    """What every text begins with, a list: the id of [CLS], else of a text's beginning or its end.

    Qwen has no beginning, and puts the end between texts. Empty if the tokenizer has none of them.
    """
    ids = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [i for i in ids if i is not None][:1]


def check_list(texts):
    """Raise UsageError for a text where a list of them is asked for, and would be its letters."""
    if isinstance(texts, str):
        raise UsageError(f"A list of texts is asked for, not the text {texts[:40]!r}; give [text].")


def token_rows(tokenizer, texts):
    """Token ids of each text, as lists, behind what `start_of` gives."""
    check_list(texts)
    start = start_of(tokenizer)
    if not len(texts):  # which a tokenizer takes for a mistake
        return []
    return [start + ids for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def pad_rows(rows, length, pad):
    """Lists of ids, cut at the end or padded with `pad`: [N, length] int32."""
    padded = [(list(row) + [pad] * length)[:length] for row in rows]
    return np.array(padded, np.int32).reshape(-1, length)


def encode(tokenizer, texts, length):
    """The `token_rows` of texts, cut at the end and padded with the padding's id: [N, length]."""
    return pad_rows(token_rows(tokenizer, texts), length, tokenizer.pad_token_id or 0)
