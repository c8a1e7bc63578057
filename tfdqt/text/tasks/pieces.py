"""Texts as they stand, capitals and spaces included, read in sub-words of a tokenizer."""

import collections
import unicodedata
from typing import NamedTuple

from tfdqt.text.files import read_blocks, text_files

# Marks that say how a file was written, not what: of byte order, and of lines as Windows ends them.
_LINES = str.maketrans({"\ufeff": None, "\r": None})


def plain_text(text):
    """A text in NFC, without marks of byte order and carriage returns."""
    return unicodedata.normalize("NFC", text.translate(_LINES))


def read_pieces(folder):
    """The texts of all *.txt files under a folder, in pieces: yields (path, text).

    Each ends before a space, so that no word is cut, if there is one within a block.
    """
    for path in text_files(folder):
        rest = ""
        for text, last in read_blocks(path):
            text = plain_text(rest + text)
            cut = len(text) if last else max(text.rfind(" "), text.rfind("\n"))
            cut = cut if cut > 0 else len(text)
            rest = text[cut:]
            if text[:cut]:
                yield path, text[:cut]


def piece_windows(folder, length, tokenizer):
    """Windows of `length` token ids, lists, over the texts of a folder, each within one file.

    What is left of a file behind its last whole window is dropped.
    """
    before = None
    ids = []
    for path, text in read_pieces(folder):
        if path != before:
            ids = []
            before = path
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = len(ids) // length * length
        for i in range(0, whole, length):
            yield ids[i : i + length]
        ids = ids[whole:]


class PieceSurvey(NamedTuple):
    """What a folder of texts holds, in sub-words."""

    files: int
    characters: int
    tokens: int
    windows: int  # of so many tokens, those held out included


def survey_pieces(folder, length, tokenizer):
    """Read all texts of a folder once: -> PieceSurvey; windows are of `length` tokens."""
    characters = 0
    tokens = collections.Counter()
    for path, text in read_pieces(folder):
        characters += len(text)
        tokens[path] += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    windows = sum(count // length for count in tokens.values())
    return PieceSurvey(len(text_files(folder)), characters, tokens.total(), windows)
