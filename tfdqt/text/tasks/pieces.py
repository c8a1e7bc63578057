"""Texts as they stand, capitals and spaces included, read in sub-words of a tokenizer."""

import collections
import unicodedata
from typing import NamedTuple

from tfdqt.text.files import read_blocks, text_files
from tfdqt.text.tokenizers import read_ids

MARK = "\ufeff"  # of byte order


def plain_text(text):
    r"""A text in NFC, without marks of byte order, its lines ended by \n alone."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text.replace(MARK, ""))


def read_pieces(folder):
    """The texts of all *.txt files under a folder, in pieces: yields (path, text).

    Each ends before a space, so that no word is cut, if there is one within a block.
    """
    for path in text_files(folder):
        rest = ""
        for text, last in read_blocks(path):
            text = rest + text
            held = "\r" if text.endswith("\r") and not last else ""  # a \n may stand behind it
            text = plain_text(text.removesuffix(held))
            cut = len(text) if last else max(text.rfind(" "), text.rfind("\n"))
            cut = cut if cut > 0 else len(text)
            rest = text[cut:] + held
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
        ids += read_ids(tokenizer, [text])[0]
        whole = len(ids) // length * length
        for i in range(0, whole, length):
            yield ids[i : i + length]
        ids = ids[whole:]


class PieceSurvey(NamedTuple):
    """What a folder of texts holds, in sub-words."""

    files: int
    characters: int
    tokens: int
    unknown: int  # of the tokens
    unread: int  # of the characters but blanks, which no token stands for
    windows: int  # of so many tokens, those held out included


def survey_pieces(folder, length, tokenizer):
    """Read all texts of a folder once: -> PieceSurvey; windows are of `length` tokens."""
    characters = 0
    unknown = 0
    unread = 0
    tokens = collections.Counter()
    for path, text in read_pieces(folder):
        characters += len(text)
        (ids,) = read_ids(tokenizer, [text])
        if tokenizer.unk_token_id is None:
            unread += _unread(tokenizer, text, ids)
        tokens[path] += len(ids)
        unknown += ids.count(tokenizer.unk_token_id)
    windows = sum(count // length for count in tokens.values())
    files = len(text_files(folder))
    return PieceSurvey(files, characters, tokens.total(), unknown, unread, windows)


def _unread(tokenizer, text, ids):
    """How many characters, but blanks, do not come back from its ids, whatever their case."""
    whole, back = (collections.Counter(each.casefold()) for each in (text, tokenizer.decode(ids)))
    return sum(count for letter, count in (whole - back).items() if not letter.isspace())
