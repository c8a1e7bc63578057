"""An environment's observations as rows of numbers, each held against its space."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from tfdqt.errors import EnvFailure
from tfdqt.games.spaces import GREATEST, as_array, in_short, parts_of, without_mask

WHOLE = 2**24  # from here on float32 does not tell whole numbers apart


class Reader(NamedTuple):
    """An environment's observations as rows of numbers."""

    read: Callable  # (observation) -> [F] of any dtype, without the mask; raises EnvFailure
    low: np.ndarray  # [F] float32, least number of each entry that is as it should be
    high: np.ndarray  # [F]
    names: list  # [F], what each entry is called in a message


def make_reader(info):
    """A Reader of the environments that `info` describes.

    `read` checks type and shape, and that the value can be kept: of categories and bytes their
    range, of whole numbers that float32 tells them apart. What lies beyond `low` and `high` is for
    the caller to find, for all environments at once.
    """
    space = without_mask(info.observation_space)
    parts = parts_of(space)
    readers = [_leaf_reader(part, info.obs_dtype) for part in parts]
    low = []
    high = []
    names = []
    for part in parts:
        bounds = _bounds(part, info.obs_dtype)
        low.append(bounds[0])
        high.append(bounds[1])
        names += [f"{part.path}[{i}]" for i in range(len(part.counts))]
    read = readers[0]
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        read = _joined(space, iter(readers), "")
    return Reader(read, np.concatenate(low), np.concatenate(high), names)


def _bounds(part, dtype):
    """The range of a leaf's entries as they are kept: (low, high), float32 each."""
    size = len(part.counts)
    if any(part.counts):
        return np.zeros(size, np.float32), np.float32(part.counts) - 1
    # Those without a bound must still be finite. Of float64 large numbers are worth a word.
    most = WHOLE if part.space.dtype == np.float64 else GREATEST
    low = np.clip(np.float64(part.space.low.reshape(-1)), -most, most)
    high = np.clip(np.float64(part.space.high.reshape(-1)), -most, most)
    if dtype == "float32" and part.space.dtype == np.uint8:  # see _box_reader
        return low / 128.0 - 1.0, high / 128.0 - 1.0
    return np.float32(low), np.float32(high)


def _joined(space, readers, path):
    """Reads a Dict or Tuple: takes one of `readers` for each of its leaves, in order."""
    named = isinstance(space, spaces.Dict)
    items = list(space.spaces.items() if named else enumerate(space.spaces))
    inner = []
    for key, part in items:
        nested = isinstance(part, (spaces.Dict, spaces.Tuple))
        inner.append((key, _joined(part, readers, f"{path}[{key}]") if nested else next(readers)))
    keys = {key for key, _ in items}
    kind = "a dict" if named else "a tuple"

    def read(value):
        if named and isinstance(value, dict):
            if not keys <= value.keys():
                raise EnvFailure(
                    f"it returned an observation{path and ' in '}{path} without "
                    f"{', '.join(sorted(map(str, keys - value.keys())))}"
                )
            return _row([one(value[key]) for key, one in inner])
        if not named and isinstance(value, (tuple, list)) and len(value) == len(inner):
            return _row([one(value[key]) for key, one in inner])
        raise EnvFailure(
            f"it returned the observation{path and ' in '}{path} {in_short(value)}, which is not "
            f"{kind} like its space {space}"
        )

    return read


def _row(parts):
    """Arrays one behind another; of an empty Dict or Tuple there are none."""
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _leaf_reader(part, dtype):
    if isinstance(part.space, spaces.Box):
        return _box_reader(part, dtype)
    if isinstance(part.space, spaces.Discrete):
        return _discrete_reader(part)
    return _categories_reader(part)


def _refused(value, part, why):
    where = f" in {part.path}" if part.path else ""
    return EnvFailure(f"it returned the observation{where} {in_short(value)}, {why} {part.space}")


def _array(value, part):
    """A value as an array of numbers, of the shape of its space."""
    array = as_array(value)
    if array.dtype.kind not in "biuf":
        raise _refused(value, part, "which is no numbers as promised by its space")
    if np.ma.is_masked(value):
        raise _refused(value, part, "of which some is masked, so that it has no value in")
    shape = part.space.shape
    if array.shape != shape and not array.size == math.prod(shape) == 1:
        raise _refused(value, part, f"of shape {array.shape}, not {shape} as promised by its space")
    return array.reshape(-1)


def _box_reader(part, dtype):
    space = part.space
    own = space.dtype
    shape = space.shape
    flat = len(shape) == 1
    scaled = dtype == "float32" and own == np.uint8  # beside other numbers; as bytes are read alone

    def read(value):
        if type(value) is np.ndarray and value.dtype == own and value.shape == shape:
            array = value if flat else value.reshape(-1)
        else:
            array = _array(value, part)
        if array.dtype == dtype and not scaled:
            return array
        if dtype == "uint8" and own != np.uint8:
            bits = array == 1
            if (array != bits).any():
                raise _refused(value, part, "which are not all 0 or 1 as promised by its space")
            return bits
        if own == np.uint8:
            with np.errstate(invalid="ignore"):  # NaN becomes some byte, which it does not equal
                bytes_ = array.astype(np.uint8)
            if (array != bytes_).any():
                raise _refused(
                    value, part, "which are no bytes (0 to 255) as promised by its space"
                )
            return array / 128.0 - 1.0 if scaled else array
        if own.kind in "biu" and array.dtype.kind == "f" and (array != np.round(array)).any():
            raise _refused(value, part, "which are no whole numbers as promised by its space")
        whole = any(one.kind in "iu" and one.itemsize > 2 for one in (own, array.dtype))
        if whole and ((array >= WHOLE) | (array <= -WHOLE)).any():
            raise _refused(
                value,
                part,
                f"with whole numbers of {WHOLE:,} and more, which float32 does not tell apart; "
                "scale them in a wrapper (--wrappers MODULE:FUNCTION); its space is",
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is found later
            return array.astype(np.float32)

    return read


def _discrete_reader(part):
    start = int(part.space.start)
    count = int(part.space.n)

    def read(value):
        if type(value) is not int:
            array = _array(value, part)
            if not np.isfinite(array[0]) or array[0] != np.round(array[0]):
                raise _refused(value, part, "which is no whole number as promised by its space")
            value = int(array[0])
        if not start <= value < start + count:
            raise _refused(value, part, "which does not lie in its space")
        return np.array([value - start], np.int32)

    return read


def _categories_reader(part):
    start = getattr(part.space, "start", np.zeros(part.space.shape, int)).reshape(-1)
    counts = np.asarray(part.counts)

    def read(value):
        array = _array(value, part)
        with np.errstate(invalid="ignore"):  # NaN becomes some number, which it does not equal
            codes = array.astype(np.int64) - start
        if (array != codes + start).any() or (codes < 0).any() or (codes >= counts).any():
            raise _refused(value, part, "which does not lie in its space")
        return codes

    return read


def out_of_range(reader, obs):
    """What is wrong with rows [N, F] of which some number lies beyond the reader's bounds.

    Returns (indices of all such entries, sentence). Raises EnvFailure if a number is not finite.
    """
    bad = ~((obs >= reader.low) & (obs <= reader.high))
    worst = ~np.isfinite(obs) if not np.isfinite(obs).all() else bad
    row, entry = (int(each[0]) for each in np.nonzero(worst))
    value = obs[row, entry]
    where = f"the observation's entry {reader.names[entry]}"
    if not np.isfinite(value):
        raise EnvFailure(
            f"it returned an observation that is no number in float32: {where} is {value}"
        )
    entries = np.flatnonzero(bad.any(axis=0))
    others = f" (and {len(entries) - 1:,} others are like it)" if len(entries) > 1 else ""
    low = reader.low[entry]
    high = reader.high[entry]
    if abs(high if value > high else low) == WHOLE:
        return entries, (
            f"{where} is {value:g}{others}; float32 keeps 7 digits of it, so scale it or take off "
            "what is constant in a wrapper if small changes matter."
        )
    return entries, (
        f"{where} is {value:.9g}, beyond the {low:.9g} to {high:.9g} of its space{others}; it is "
        "learned from as it is."
    )
