"""Spaces of gymnasium as a network needs them: observations as one row of numbers, checked.

A space is taken apart into its leaves in the order of `gymnasium.spaces.flatten`. Numbers (Box)
stay numbers; what is discrete (Discrete, MultiDiscrete, MultiBinary) becomes categories that count
from 0. Actions are one choice: of a MultiDiscrete space, of the product of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from tfdqt.errors import EnvFailure, UsageError

MOST_JOINT = 256  # actions of several parts that are one choice of their product
MOST_ACTIONS = 2**31 - 1  # that can be counted
WHOLE = 2**24  # from here on float32 does not tell whole numbers apart
GREATEST = float(np.finfo(np.float32).max)
MASK_KEY = "action_mask"  # what a mask of actions is called by PettingZoo and sb3-contrib


class EnvInfo(NamedTuple):
    """What a network must know of an environment."""

    name: str
    obs_shape: tuple  # of one observation, one axis; the last entries are the mask, if there is one
    obs_dtype: str  # how the replay buffer keeps it: uint8, int32 or float32
    nvec: tuple  # number of values of each entry, 0 of a number; () if all are numbers
    num_actions: int
    mask: str | None = None  # where it says which actions are legal: info, method, observation
    parts: tuple = ()  # number of values of each part of an action, if each has outputs of its own
    observation_space: spaces.Space | None = None
    action_space: spaces.Space | None = None

    @property
    def outputs(self):
        """Outputs of a network for an action: one an action, or one a value of each part."""
        return sum(self.parts) or self.num_actions

    @property
    def features(self):
        """Entries of an observation besides the mask."""
        return self.obs_shape[0] - (self.outputs if self.mask else 0)


def legal_actions(info, obs):
    """Which actions are legal by observations [..., F]: bool [..., A], or None if all always are.

    A: `info.outputs`. For numpy and for tensors.
    """
    return obs[..., info.features :] > 0 if info.mask else None


# -------------------------------------------------------------------------------------------------
# Observations


class Part(NamedTuple):
    """One leaf of a space of observations."""

    path: str  # where it is: "", "[hand]", "[hand][0]"
    space: spaces.Space
    counts: tuple  # number of values of each entry, 0 of a number


def parts_of(space, path=""):
    """The leaves of a space, in gymnasium's order. Raises UsageError for what is no numbers."""
    if isinstance(space, spaces.Dict):
        found = [parts_of(part, f"{path}[{key}]") for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        found = [parts_of(part, f"{path}[{i}]") for i, part in enumerate(space.spaces)]
    else:
        return [Part(path, space, _counts(space, path))]
    return [part for parts in found for part in parts]


def _counts(space, path):
    if isinstance(space, spaces.Box):
        return (0,) * math.prod(space.shape)
    counts = choices_of(space)
    if counts is None:
        raise UsageError(f"{path or 'it'} is {space}, which is no numbers")
    return counts


def choices_of(space):
    """The number of values of each entry of a discrete space, or None if it is not discrete."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        return (2,) * math.prod(space.shape)
    return None


def _is_image(space):
    if not isinstance(space, spaces.Box):
        return False
    return len(space.shape) > 2 or len(space.shape) == 2 and space.dtype == np.uint8


def _is_numbers(space):
    try:
        return bool(parts_of(space))
    except UsageError:
        return False


def _advice(space):
    """What a user can do about observations that can't be read."""
    masked = isinstance(space, spaces.Dict) and MASK_KEY in space.spaces
    flatten = "gymnasium.wrappers:FlattenObservation"
    if isinstance(space, spaces.Dict) and not _is_numbers(space):
        good = [key for key, part in space.spaces.items() if _is_numbers(part)]
        images = any(_is_image(part.space) for key in good for part in parts_of(space[key]))
        if good and not (masked and images):
            keys = ", ".join(f'"{key}"' for key in good)
            keep = f"gymnasium.wrappers:FilterObservation(filter_keys=[{keys}])"
            return f"leave out the rest with --wrappers '{keep}'" + f" {flatten}" * images
    if _is_numbers(space) and not masked:
        return f"make it a row with --wrappers {flatten}, or choose an Atari game's `-ram` name"
    return "make it numbers in a wrapper of your own, and give that as --wrappers MODULE:FUNCTION"


def _without_mask(space):
    """A Dict space without its action_mask; any other space as it is."""
    if isinstance(space, spaces.Dict) and MASK_KEY in space.spaces:
        return spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK_KEY})
    return space


def describe(observation_space, action_space, name, mask=None):
    """The EnvInfo of an environment's spaces. mask: "info" or "method" if legal actions come so.

    Raises UsageError for spaces that can't be read, with what to do.
    """
    if isinstance(observation_space, spaces.Dict) and MASK_KEY in observation_space.spaces:
        mask = "observation"
    read = _without_mask(observation_space)
    try:
        parts = parts_of(read)
    except UsageError as error:
        raise UsageError(
            f"The observations of {name} can't be read, because {error}; "
            f"{_advice(observation_space)}."
        ) from None
    image = next((part for part in parts if _is_image(part.space)), None)
    if image:
        raise UsageError(
            f"{name} shows images or grids of shape {image.space.shape}{image.path and ' in '}"
            f"{image.path}, but tfdqt reads rows of numbers; {_advice(observation_space)}."
        )
    counts = tuple(n for part in parts for n in part.counts)
    if not counts:
        raise UsageError(f"The observations of {name} are empty ({observation_space}).")
    dtype = _kept_as(parts)
    actions = count_actions(action_space, name)
    choices = choices_of(action_space)
    choices = choices if len(choices) > 1 and actions > MOST_JOINT else ()
    return EnvInfo(
        name,
        (len(counts) + ((sum(choices) or actions) if mask else 0),),
        dtype,
        counts if any(counts) else (),
        actions,
        mask,
        choices,
        observation_space,
        action_space,
    )


def _kept_as(parts):
    """How observations are kept: as uint8 or int32 if that holds all parts."""
    if all(all(part.counts) for part in parts if part.counts):
        return "int32"
    if all(isinstance(part.space, spaces.Box) and part.space.dtype == np.uint8 for part in parts):
        return "uint8"
    return "float32"


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
    space = _without_mask(info.observation_space)
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
            return np.concatenate([one(value[key]) for key, one in inner])
        if not named and isinstance(value, (tuple, list)) and len(value) == len(inner):
            return np.concatenate([one(value[key]) for key, one in inner])
        raise EnvFailure(
            f"it returned the observation{path and ' in '}{path} {_short(value)}, which is not "
            f"{kind} like its space {space}"
        )

    return read


def _leaf_reader(part, dtype):
    if isinstance(part.space, spaces.Box):
        return _box_reader(part, dtype)
    if isinstance(part.space, spaces.Discrete):
        return _discrete_reader(part)
    return _categories_reader(part)


def _refused(value, part, why):
    where = f" in {part.path}" if part.path else ""
    return EnvFailure(f"it returned the observation{where} {_short(value)}, {why} {part.space}")


def _array(value, part):
    """A value as an array of numbers, of the shape of its space."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # such as rows of different lengths
        array = np.asarray(None)
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
            if array.dtype.kind == "f" and array[0] != np.round(array[0]):
                raise _refused(value, part, "which is no whole number as promised by its space")
            value = int(array[0]) if np.isfinite(array[0]) else -1
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


def _short(value):
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def out_of_range(reader, obs):
    """What is wrong with rows [N, F] of which some number lies beyond the reader's bounds.

    Returns (index of the entry, sentence). Raises EnvFailure if the number is not finite.
    """
    bad = ~((obs >= reader.low) & (obs <= reader.high))
    row, entry = (int(each[0]) for each in np.nonzero(bad))
    value = obs[row, entry]
    where = f"the observation's entry {reader.names[entry]}"
    if not np.isfinite(value):
        raise EnvFailure(
            f"it returned an observation that is no number in float32: {where} is {value}"
        )
    low = reader.low[entry]
    high = reader.high[entry]
    if -low == high == WHOLE:
        return entry, (
            f"{where} is {value:g}; float32 keeps 7 digits of it, so scale it or take off what is "
            "constant in a wrapper if small changes matter."
        )
    return entry, (
        f"{where} is {value:.9g}, beyond the {low:.9g} to {high:.9g} of its space; it is learned "
        "from as it is."
    )


# -------------------------------------------------------------------------------------------------
# Actions


def count_actions(space, name):
    """How many actions there are. Raises UsageError if they are none of a list."""
    counts = choices_of(space)
    if counts is None:
        advice = (
            "--wrappers 'gymnasium.wrappers:DiscretizeAction(bins=5)' makes them so"
            if isinstance(space, spaces.Box)
            else "make them so in a wrapper of your own, given as --wrappers MODULE:FUNCTION"
        )
        raise UsageError(
            f"{name} has the action space {space}, but tfdqt chooses among Discrete, MultiDiscrete "
            f"and MultiBinary actions; {advice}."
        )
    actions = math.prod(counts)
    if actions > MOST_ACTIONS:
        raise UsageError(
            f"{name} has {actions:,} actions by {space}; up to {MOST_ACTIONS:,} can be counted, so "
            "offer fewer in a wrapper, given as --wrappers MODULE:FUNCTION."
        )
    return actions


def make_action(space) -> Callable:
    """`action_of(index) -> what env.step takes`, of the actions of `space` counted from 0."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda index: int(index) + start
    counts = choices_of(space)
    start = getattr(space, "start", 0)
    return lambda index: (
        np.reshape(np.unravel_index(int(index), counts), space.shape) + start
    ).astype(space.dtype)


def read_mask(mask, info, where):
    """Which actions a mask calls legal, bool [A]. Raises EnvFailure if it does not fit.

    Of actions of several parts it is those of its parts one behind another, as in sb3-contrib, or
    by its size one of the whole product, if that is one choice. A: `info.outputs`.
    """
    try:
        array = np.asarray(mask)
    except ValueError:
        array = np.asarray(None)
    counts = choices_of(info.action_space)
    whole = info.outputs
    if array.dtype.kind not in "biuf" or array.size not in (whole, sum(counts)):
        raise EnvFailure(
            f"its {MASK_KEY} ({where}) is {_short(mask)}, not {whole} zeros and ones, one an action"
        )
    legal = array.reshape(-1).astype(bool)
    if (legal != array.reshape(-1)).any():
        raise EnvFailure(f"its {MASK_KEY} ({where}) is {_short(mask)}, not only zeros and ones")
    if len(counts) > 1 and not info.parts and legal.size == sum(counts):
        joint = np.ones((), bool)
        for part in np.split(legal, np.cumsum(counts)[:-1]):
            joint = joint[..., None] & part
        legal = joint.reshape(-1)
    return legal


# -------------------------------------------------------------------------------------------------
# In a run's config.json


def space_to_json(space):
    """A space that can be read, as plain values for JSON."""
    plain = dict(kind=type(space).__name__)
    if isinstance(space, spaces.Box):
        bounds = dict(low=_bound_to_json(space.low), high=_bound_to_json(space.high))
        return dict(plain, shape=list(space.shape), dtype=str(space.dtype), **bounds)
    if isinstance(space, spaces.Discrete):
        return dict(plain, n=int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return dict(plain, nvec=space.nvec.tolist(), start=space.start.tolist())
    if isinstance(space, spaces.MultiBinary):
        return dict(plain, shape=list(space.shape))
    if isinstance(space, spaces.Dict):
        return dict(
            plain, parts=[[_key(key), space_to_json(part)] for key, part in space.spaces.items()]
        )
    return dict(plain, parts=[space_to_json(part) for part in space.spaces])


def _key(key):
    return int(key) if isinstance(key, (int, np.integer)) else str(key)


def _bound_to_json(bound):
    """One value if all are the same; numbers that JSON has not are words."""
    values = [value if math.isfinite(value) else str(value) for value in bound.reshape(-1).tolist()]
    return values[0] if len(set(values)) == 1 else values


def space_from_json(plain):
    """The space that `space_to_json` wrote.

    Raises KeyError, TypeError or ValueError if it did not.
    """
    kind = plain["kind"]
    if kind == "Box":
        shape = tuple(plain["shape"])
        dtype = np.dtype(plain["dtype"])
        bounds = [_bound_from_json(plain[key], shape, dtype) for key in ("low", "high")]
        return spaces.Box(*bounds, shape, dtype)
    if kind == "Discrete":
        return spaces.Discrete(plain["n"], start=plain["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(plain["nvec"], start=plain["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(plain["shape"])
    if kind == "Dict":
        return spaces.Dict([(key, space_from_json(part)) for key, part in plain["parts"]])
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in plain["parts"]])
    raise ValueError(f"unknown space {kind}")


def _bound_from_json(bound, shape, dtype):
    if not isinstance(bound, list):
        bound = [bound] * math.prod(shape)
    number = float if dtype.kind == "f" else int
    return np.array([number(value) for value in bound], dtype).reshape(shape)


def info_to_json(info):
    """The spaces of an EnvInfo as plain values for config.json."""
    return dict(
        observation=space_to_json(info.observation_space),
        action=space_to_json(info.action_space),
        mask=info.mask,
    )


def info_from_json(plain, name):
    """The EnvInfo whose spaces `info_to_json` wrote. Raises UsageError if it did not."""
    try:
        observations = space_from_json(plain["observation"])
        actions = space_from_json(plain["action"])
        mask = plain["mask"]
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"The spaces in the config.json of this run of {name} can't be read ({error}); put "
            "back the file that the run was started with."
        ) from None
    return describe(observations, actions, name, mask)
