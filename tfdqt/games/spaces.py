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
GREATEST = float(np.finfo(np.float32).max)
MASK_KEY = "action_mask"  # what a mask of actions is called by PettingZoo and sb3-contrib
OLD_GYM = "an environment of the old Gym needs a wrapper (--wrappers MODULE:FUNCTION)"


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


class Grid(NamedTuple):
    """The one part of an observation that has rows and columns, such as a board or an image."""

    start: int  # its first entry among those of the row
    height: int
    width: int
    channels: int
    counts: tuple  # number of categories of each channel, 0 of a number
    bytes: bool  # whether its space is of bytes

    @property
    def size(self):
        """Entries of the row that are of the grid."""
        return self.height * self.width * self.channels


MOST_CATEGORIES = 32  # whole numbers from 0 up to less than this are taken for categories in a grid


def grid_of(info):
    """The Grid of the observations that `info` describes; None if there is none, or several."""
    found = grid_part(info)
    if found is None:
        return None
    start, part = found
    height, width, *channels = part.space.shape
    depth = channels[0] if channels else 1
    counts = _channel_counts(part, depth)
    return Grid(start, height, width, depth, counts, _is_bytes(part.space))


def parts_seen(info):
    """The leaves of an observation without its mask; none where the space is not known."""
    if info.observation_space is None:
        return []
    return parts_of(without_mask(info.observation_space))


def grid_part(info):
    """(start, Part) of the one part with rows and columns; None if there is none, or several."""
    return _only_grid(parts_seen(info))


def _only_grid(parts):
    start = 0
    grids = []
    for part in parts:
        if len(part.space.shape or ()) in (2, 3):
            grids.append((start, part))
        start += len(part.counts)
    return grids[0] if len(grids) == 1 else None


def _channel_counts(part, channels):
    if any(part.counts):
        return tuple(int(n) for n in np.reshape(part.counts, (-1, channels)).max(axis=0))
    whole = part.space.dtype.kind in "biu"
    if whole and part.space.low.min() >= 0 and part.space.high.max() < MOST_CATEGORIES:
        return tuple(int(n) + 1 for n in part.space.high.reshape(-1, channels).max(axis=0))
    return (0,) * channels


def are_bits(info):
    """Whether observations are a grid of 0 and 1 alone, kept as bytes.

    Scaled as other bytes are the two would look the same.
    """
    return info.obs_dtype == "uint8" and _are_bits(parts_seen(info))


def _are_bits(parts):
    shown = [part for part in parts if part.counts]
    return _only_grid(shown) is not None and all(_is_bits(part.space) for part in shown)


def _is_bits(space):
    whole = isinstance(space, spaces.Box) and space.dtype.kind in "biu"
    return whole and space.low.min() >= 0 and space.high.max() <= 1


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


def _is_bytes(space):
    return isinstance(space, spaces.Box) and space.dtype == np.uint8


def _is_numbers(space):
    try:
        return bool(parts_of(space))
    except UsageError:
        return False


def _advice(space):
    """What a user can do about observations that can't be read."""
    if isinstance(space, spaces.Dict):
        good = [key for key, part in space.spaces.items() if _is_numbers(part)]
        if good:
            keys = ", ".join(f'"{key}"' for key in good)
            keep = f"gymnasium.wrappers:FilterObservation(filter_keys=[{keys}])"
            return f"leave out the rest with --wrappers '{keep}'"
    return "make it numbers in a wrapper of your own, and give that as --wrappers MODULE:FUNCTION"


def without_mask(space):
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
    read = without_mask(observation_space)
    try:
        parts = parts_of(read)
    except UsageError as error:
        raise UsageError(
            f"The observations of {name} can't be read, because {error}; "
            f"{_advice(observation_space)}."
        ) from None
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
    grid = any(len(part.space.shape or ()) > 1 for part in parts)
    parts = [part for part in parts if part.counts]
    if grid and all(_is_bytes(part.space) or 0 < max(part.counts) <= 256 for part in parts):
        return "uint8"
    if _are_bits(parts):  # of bool or int8, say
        return "uint8"
    if all(all(part.counts) for part in parts):
        return "int32"
    if all(_is_bytes(part.space) for part in parts):
        return "uint8"
    return "float32"


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


def as_array(value):
    """A value of a foreign environment as an array; of an object if it can't be one."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # such as rows of different lengths
        return np.asarray(None)


def in_short(value):
    """A value as a message shows it."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    array = as_array(mask)
    counts = choices_of(info.action_space)
    whole = info.outputs
    if array.dtype.kind not in "biuf" or array.size not in (whole, sum(counts)):
        raise EnvFailure(
            f"its {MASK_KEY} ({where}) is {in_short(mask)}, not {whole} zeros and ones, one an "
            "action"
        )
    legal = array.reshape(-1).astype(bool)
    if (legal != array.reshape(-1)).any():
        raise EnvFailure(f"its {MASK_KEY} ({where}) is {in_short(mask)}, not only zeros and ones")
    if len(counts) > 1 and not info.parts and legal.size == sum(counts):
        joint = np.ones((), bool)
        for part in np.split(legal, np.cumsum(counts)[:-1]):
            joint = joint[..., None] & part
        legal = joint.reshape(-1)
    return legal
