"""Folders of text files, read a block at a time, whatever they hold."""

import codecs
import itertools
import os
import zlib
from pathlib import Path

from tfdqt.errors import UsageError

BLOCK = 1 << 20  # bytes of a file read at a time


def text_files(folder):
    """All *.txt files under a folder (or *.TXT), or the file itself.

    Hidden files and folders are left out, and folders with a config.json: runs and models, whose
    files are no texts. Raises UsageError if there are none, or a folder can't be read.
    """
    folder = Path(folder)
    paths = sorted(_texts_under(folder)) if folder.is_dir() else [folder]
    if not paths:
        raise UsageError(f"There are no .txt files under {folder}; give a folder with texts.")
    return paths


def _texts_under(folder):
    for here, folders, names in os.walk(folder, onerror=_refuse):
        here = Path(here)
        if here != folder and "config.json" in names:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(".txt") and not name.startswith("."):
                yield here / name


def _refuse(error, path=None):
    """Raise UsageError for a file or folder that can't be read; path None: the error names it."""
    path = path or error.filename
    raise UsageError(
        f"{path} can't be read ({error.strerror or error}); mend that, or take it out."
    ) from None


def fingerprint(folder):
    """A number that changes when a text under a folder does, or when one comes, goes or is renamed.

    Raises UsageError for a file that can't be read.
    """
    folder = Path(folder)
    total = 0
    for path in text_files(folder):
        total = zlib.crc32(os.fsencode(path.relative_to(folder)), total)
        for block in _blocks(path):
            total = zlib.crc32(block, total)
    return total


def _blocks(path):
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        _refuse(error, path)


def read_blocks(path, *, nul=False):
    """Yields (text, whether it is the last) a block of a file in UTF-8.

    nul: whether NULs may be in it. Raises UsageError for a file that can't be read and, with the
    offset, for bytes that are not such text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    for block in itertools.chain(_blocks(path), [b""]):
        text = _decode(decoder, block, path, offset)
        if "\0" in text and not nul:
            raise UsageError(
                f"{path} is not text: it has a NUL at byte {offset + block.find(0)}; convert it to "
                "UTF-8, or take it out."
            )
        offset += len(block)
        yield text, not block


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
