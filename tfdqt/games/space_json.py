"""Spaces as plain values in a run's config.json, and back."""

import math

import numpy as np
from gymnasium import spaces

from tfdqt.errors import UsageError
from tfdqt.games.spaces import are_bits, describe, grid_of, parts_seen

KINDS = (
    spaces.Box,
    spaces.Discrete,
    spaces.MultiDiscrete,
    spaces.MultiBinary,
    spaces.Dict,
    spaces.Tuple,
)


def space_to_json(space, bounds=True):
    """A space that can be read, as plain values for JSON; a subclass is written as its kind.

    bounds: whether those of numbers are among them.
    """
    plain = dict(kind=next(kind.__name__ for kind in KINDS if isinstance(space, kind)))
    if isinstance(space, spaces.Box):
        plain.update(shape=list(space.shape), dtype=str(space.dtype))
        if bounds:
            plain.update(low=_bound_to_json(space.low), high=_bound_to_json(space.high))
        return plain
    if isinstance(space, spaces.Discrete):
        return dict(plain, n=int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return dict(plain, nvec=space.nvec.tolist(), start=space.start.tolist())
    if isinstance(space, spaces.MultiBinary):
        return dict(plain, shape=list(space.shape))
    if isinstance(space, spaces.Dict):
        parts = [[_key(key), space_to_json(part, bounds)] for key, part in space.spaces.items()]
        return dict(plain, parts=parts)
    return dict(plain, parts=[space_to_json(part, bounds) for part in space.spaces])


def _key(key):
    if isinstance(key, str):
        return str.__str__(key)  # of an Enum its value, to which it is equal
    if isinstance(key, (int, np.integer)):
        return int(key)
    raise UsageError(
        f"The observation has a part called {key!r}, which is neither text nor a whole number; "
        "rename it in a wrapper (--wrappers MODULE:FUNCTION)."
    )


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
        kept=info.obs_dtype,
    )


def told_apart(info):
    """What must not differ between environments that a network is to play, as plain values.

    The parts in their order and how each is read, and what an action means. Bounds of numbers are
    not among it, but what they say of bits and categories is.
    """
    # However the observations of a run are kept.
    info = describe(info.observation_space, info.action_space, info.name, info.mask)
    grid = grid_of(info)
    return dict(
        observation=space_to_json(info.observation_space, bounds=False),
        action=space_to_json(info.action_space),
        mask=info.mask,
        counts=(are_bits(info), info.nvec, grid and grid.counts),
    )


def info_from_json(plain, name):
    """The EnvInfo whose spaces `info_to_json` wrote. Raises UsageError if it did not."""
    try:
        observations = space_from_json(plain["observation"])
        actions = space_from_json(plain["action"])
        mask = plain["mask"]
        info = describe(observations, actions, name, mask)
        kept = plain.get("kept", _kept_before(info))
        if kept not in (info.obs_dtype, _kept_before(info)):
            raise ValueError(f"kept as {kept}")
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"The spaces in the config.json of this run of {name} can't be read ({error}); put "
            "back the file that the run was started with."
        ) from None
    return info._replace(obs_dtype=kept)


def _kept_before(info):
    """How a run that does not say it kept observations: bits as numbers, if they are no bytes."""
    bytes_ = all(part.space.dtype == np.uint8 for part in parts_seen(info) if part.counts)
    return "float32" if are_bits(info) and not bytes_ else info.obs_dtype
