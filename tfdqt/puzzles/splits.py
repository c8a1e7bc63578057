"""Levels that are held out: to which of three sets a grid belongs is a matter of its hash."""

import hashlib

import numpy as np

from tfdqt.errors import UsageError

# Tenths of all levels.
SPLITS = {"train": range(8), "tune": range(8, 9), "test": range(9, 10)}


def check_split(split):
    """Raise UsageError if there is no such set of levels."""
    if not isinstance(split, str) or split not in SPLITS:
        raise UsageError(f"split is one of {', '.join(SPLITS)}, not {split!r}.")


def belongs(form, split):
    """Whether a level, by the bytes that are all it has of its own, is one of a set."""
    digest = hashlib.blake2b(form, digest_size=8).digest()
    return int.from_bytes(digest, "little") % 10 in SPLITS[split]


def canonical(grids):
    """What a grid has in common with its mirror images and rotations.

    grids: [N, H, H] uint8.
    Returns N bytes objects: the least of the 8 forms of each grid.
    """
    count, height, width = grids.shape
    size = height * width
    turned = [np.rot90(grids, quarter, axes=(1, 2)) for quarter in range(4)]
    forms = [*turned, *(each.transpose(0, 2, 1) for each in turned)]
    rows = np.stack(forms, 1).reshape(count * 8, size)
    data = rows.tobytes()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [min(pieces[8 * i : 8 * i + 8]) for i in range(count)]


def in_split(grids, split):
    """Which grids [N, H, H] uint8 belong to a set of SPLITS: -> bool [N].

    All 8 symmetric forms of a grid belong to the same one.
    """
    return np.array([belongs(form, split) for form in canonical(grids)], bool)
