"""Drawn spaces, and environments that keep their word or break it: nothing wrong gets through."""

import unittest

import gymnasium
import numpy as np
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import slow
from tfdqt.errors import EnvFailure
from tfdqt.games.envs import info_of
from tfdqt.games.vec_envs import make_vec_env

NUMBERS = (np.int8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64)
LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


# -------------------------------------------------------------------------------------------------
# Spaces


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from((np.uint8, np.bool_, *NUMBERS)))
    ranks = 1 if dtype == np.uint8 else 2
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=ranks)))
    if dtype == np.bool_:
        return spaces.Box(0, 1, shape, dtype)
    if dtype == np.uint8:
        return spaces.Box(0, draw(st.sampled_from((7, 255))), shape, dtype)
    if np.dtype(dtype).kind == "f" and draw(st.booleans()):
        return spaces.Box(-np.inf, np.inf, shape, dtype)
    return spaces.Box(-draw(st.integers(0, 100)), draw(st.integers(1, 100)), shape, dtype)


@st.composite
def discretes(draw):
    return spaces.Discrete(draw(st.integers(1, 6)), start=draw(st.integers(-3, 3)))


@st.composite
def multi_discretes(draw, most=5):
    nvec = draw(st.lists(st.integers(1, most), min_size=1, max_size=3))
    return spaces.MultiDiscrete(nvec, start=[draw(st.integers(-2, 2)) for _ in nvec])


@st.composite
def multi_binaries(draw):
    return spaces.MultiBinary(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))


def joined(parts):
    some = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        some.map(lambda each: spaces.Dict({f"k{i}": part for i, part in enumerate(each)})),
        some.map(spaces.Tuple),
    )


leaves = st.one_of(boxes(), discretes(), multi_discretes(), multi_binaries())
observations = st.recursive(leaves, joined, max_leaves=5)
actions = st.one_of(discretes(), multi_discretes(most=4), multi_binaries())


# -------------------------------------------------------------------------------------------------
# What the learner must be given of an observation: worked out here on its own


def parts(space, value):
    """The leaves of a space with what an observation has there."""
    if isinstance(space, spaces.Dict):
        return [leaf for key in space for leaf in parts(space[key], value[key])]
    if isinstance(space, spaces.Tuple):
        return [leaf for part, one in zip(space, value) for leaf in parts(part, one)]
    return [(space, value)]


def is_bytes(leaf):
    return isinstance(leaf, spaces.Box) and leaf.dtype == np.uint8


def choices(leaf):
    """How many values an entry of a leaf can have at most."""
    if isinstance(leaf, spaces.Discrete):
        return leaf.n
    if isinstance(leaf, spaces.MultiDiscrete):
        return leaf.nvec.max()
    return 2 if isinstance(leaf, spaces.MultiBinary) else np.inf


def expected(space, value):
    found = parts(space, value)
    kept_as_bytes = all(is_bytes(leaf) for leaf, _ in found) or (
        any(len(leaf.shape) > 1 for leaf, _ in found)  # a grid
        and all(is_bytes(leaf) or choices(leaf) <= 256 for leaf, _ in found)
    )
    rows = []
    for leaf, one in found:
        row = np.ravel(np.asarray(one, np.float64))
        if isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete)):
            row = row - np.ravel(leaf.start)
        elif is_bytes(leaf) and not kept_as_bytes:
            row = row / 128 - 1
        rows.append(row)
    return np.concatenate(rows).astype(np.float32)


# -------------------------------------------------------------------------------------------------
# Words kept, and broken


def otherwise_written(value, draw):
    """The same observation in other types."""
    if isinstance(value, dict):
        return {key: otherwise_written(part, draw) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(otherwise_written(part, draw) for part in value)
    kind = draw(st.sampled_from(("same", "list", "float64", "float32", "numpy")))
    if kind == "list":
        return np.asarray(value).tolist()
    if kind == "float64":
        return np.asarray(value, np.float64)
    if kind == "float32" and np.asarray(value).dtype != np.float64:
        return np.asarray(value, np.float32)
    return np.asarray(value) if kind == "numpy" else value


def broken_leaf(space, value, draw):
    """Something that does not lie in a leaf, and that no rounding explains."""
    array = np.array(value)
    wrong = [None, "word", {"a": 1}, np.zeros((*array.shape, 2)), np.zeros(99), object()]
    if isinstance(space, spaces.Box):
        wrong += [np.full(array.shape, bad) for bad in (np.nan, np.inf, -np.inf, 1e300)]
        if space.dtype == np.uint8:
            wrong += [np.full(array.shape, bad) for bad in (-1, 256, 0.5)]
        if space.dtype.kind == "i":
            wrong += [np.full(array.shape, bad, np.int64) for bad in (2**24, -(2**40), -(2**63))]
    else:
        low = np.asarray(getattr(space, "start", 0))
        count = getattr(space, "n", 2) if isinstance(space, spaces.Discrete) else 2
        count = space.nvec if isinstance(space, spaces.MultiDiscrete) else count
        shape = np.shape(value)
        wrong += [np.broadcast_to(low - 1, shape), np.broadcast_to(low + count, shape)]
        wrong += [np.broadcast_to(low + 0.5, shape), np.broadcast_to(low + 2**32, shape)]
        wrong += [np.full(shape, np.nan)]
    return draw(st.sampled_from(wrong))


def broken(space, value, draw):
    """An observation that does not lie in a space, in one place."""
    if isinstance(space, LEAVES):
        return broken_leaf(space, value, draw)
    named = isinstance(space, spaces.Dict)
    keys = list(space.spaces) if named else list(range(len(space)))
    key = draw(st.sampled_from(keys))
    how = draw(st.sampled_from(("inside", "inside", "inside", "missing", "array", "none")))
    if how == "array":
        return np.zeros(3)
    if how == "none":
        return None
    changed = dict(value) if named else dict(enumerate(value))
    if how == "missing":
        del changed[key]
    else:
        changed[key] = broken(space[key], value[key], draw)
    return changed if named else tuple(changed.values())


class Drawn(gymnasium.Env):
    """Plays what was drawn: `shown` observations, a reward, and how its word is broken."""

    def __init__(self, observation_space, action_space, shown, breach, when):
        self.observation_space = observation_space
        self.action_space = action_space
        self.shown = shown
        self.breach = breach
        self.when = when
        self.at = 0

    def now(self, breach):
        return self.breach == breach and self.at == self.when

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return (self.shown[0],) if self.now("reset") else (self.shown[0], {})

    def step(self, action):
        assert self.action_space.contains(action), action
        self.at += 1
        if self.now("raise"):
            raise KeyError("level")
        if self.now("exit"):
            raise SystemExit(0)
        reward = 1.5
        if isinstance(self.breach, tuple) and self.at == self.when:
            reward = self.breach[1]
        answer = (self.shown[self.at], reward, self.at == 3, False, {})
        return answer[:-1] if self.now("four") else answer


REWARDS = (None, "1", np.ones(2), np.nan, np.inf, 1e39, [[1], [2, 3]], object())


class Fuzz(unittest.TestCase):
    @slow("500 environments are drawn")
    @settings(
        max_examples=500,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def test_only_what_was_shown_is_learned_from(self, data):
        draw = data.draw
        space = draw(observations)
        action_space = draw(actions)
        space.seed(draw(st.integers(0, 999)))
        truth = [space.sample() for _ in range(4)]
        shown = [otherwise_written(value, draw) for value in truth]
        breach = draw(
            st.sampled_from(
                (None, None, "obs", "obs", "obs", "raise", "exit", "four", "reset", "reward")
            )
        )
        when = draw(st.integers(1, 3))
        if breach == "reward":
            breach = ("reward", draw(st.sampled_from(REWARDS)))
        if breach == "reset":
            when = 0
        if breach == "obs":
            when = draw(st.integers(0, 3))
            shown[when] = broken(space, truth[when], draw)

        def env_fn():
            return Drawn(space, action_space, shown, breach, when)

        at = 0
        vec = None
        try:
            info = info_of(env_fn)
            vec = make_vec_env(env_fn, info, 1, 0, workers=0)
            row = vec.out["obs"][0].astype(np.float32)
            np.testing.assert_array_equal(row, expected(space, truth[0]))
            for at in (1, 2, 3):
                vec.step([draw(st.integers(0, info.num_actions - 1))])
                row = vec.out["obs"][0].astype(np.float32)
                np.testing.assert_array_equal(row, expected(space, truth[at]))
                self.assertEqual(vec.out["reward"][0], 1.5)
                self.assertEqual([vec.out["ended"][0], vec.out["discount"][0]], [at == 3, at != 3])
        except EnvFailure as error:
            self.assertIsNotNone(breach, error)
            self.assertEqual(at, when)
            sentence, _, traceback = str(error).strip().partition("\n")
            self.assertLess(len(sentence), 700)
            self.assertEqual("Traceback" in traceback, breach in ("raise", "exit"))
        else:
            self.assertIsNone(breach)
        finally:
            if vec is not None:
                vec.close()


if __name__ == "__main__":
    unittest.main()
