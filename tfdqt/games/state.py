"""The state of an environment: saved as plain values and arrays, and put back into another one.

Known by name is only ALE, whose state is inside its emulator. Any other environment is taken apart
by the attributes of its Python objects, wrappers included, unless it offers `get_state() -> dict`
and `set_state(dict)` of its own. Whether that is all of its state is not taken on trust: see
`exact`.
"""

import collections
import enum
import functools
import inspect
import logging
import pathlib
import random
import re
import sys
import types

import ale_py
import gymnasium
import numpy as np

MOST_BYTES = 16 * 2**20  # of the state of one environment
MOST_VALUES = 100_000

GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_PLAIN = (type(None), bool, int, float, str)
# What is left as a new environment has it, if it has the same there.
_FIXED = (
    type,
    types.ModuleType,
    types.MappingProxyType,
    logging.Logger,
    pathlib.PurePath,
    re.Pattern,
    np.dtype,
    np.ufunc,
    gymnasium.envs.registration.EnvSpec,
)


class NoState(Exception):
    """Why an environment's state can't be saved, or put back."""


class Unsaved(gymnasium.Wrapper):
    """An environment whose state is not to be saved."""


def make_unsaved(env_fn):
    """One of env_fn's environments, whose state is not to be saved."""
    return Unsaved(env_fn())


def env_state(env):
    """The state of `env` as a tree of plain values and arrays. Raises NoState if it has none."""
    return _captured(env)[1]


def env_state_and_chance(env):
    """The state of `env`, and the parts of it that are states of random generators, in order.

    Raises NoState, also if such a part stands among the plain values of `get_state()`.
    """
    capture, tree = _captured(env)
    if capture.foreseen:
        raise NoState(
            "its get_state() holds the state of a random generator, by which a search would see "
            "what is drawn (draw from self.np_random, which is saved by itself, and leave that out)"
        )
    return tree, capture.generators


def _captured(env):
    if isinstance(env, Unsaved):
        raise NoState("it is not to be saved")
    capture = _Capture()
    try:
        return capture, capture.tree(env, "")
    except RecursionError:
        raise NoState("its objects are nested too deeply") from None


def holds_generator(state, *, plain=False):
    """Whether what `get_state()` gives holds a random generator, or the state of one.

    plain: only its state as plain values, as numpy's and Python's own give it.
    """
    if isinstance(state, GENERATORS):
        return not plain
    if isinstance(state, dict):
        parts = list(state.values())
        found = "bit_generator" in state
    elif isinstance(state, (tuple, list)):
        parts = state
        found = _is_old_state(parts)
    else:
        return False
    return found or any(holds_generator(part, plain=plain) for part in parts)


def _is_old_state(parts):
    """Whether this is what `RandomState.get_state()` or `random.getstate()` gives."""
    if len(parts) == 3:
        return isinstance(parts[1], tuple) and len(parts[1]) == 625  # MT19937's words and place
    return len(parts) == 5 and isinstance(parts[0], str) and parts[0] == "MT19937"


def reseed(generator, rng):
    """Let a part that `env_state_and_chance` gave stand for a generator seeded by another one."""
    seed = int(rng.integers(2**63))
    if generator[0] == "generator":
        fresh = getattr(np.random, generator[1])(seed)
        generator[2] = _plain_arrays(fresh.state)
    elif generator[0] == "random_state":
        fresh = np.random.RandomState(seed % 2**32)
        generator[1] = _plain_arrays(fresh.get_state(legacy=False))
    else:
        state = random.Random(seed).getstate()
        generator[1] = list(state[1])
        generator[2] = state[2]


def restore_env(env, state, *, reset=True):
    """Put `env` into a state that `env_state` gave. Raises NoState if it does not fit.

    reset=False saves time for an env that has been reset before.
    """
    if reset:
        env.reset()
    try:
        if isinstance(state, dict):
            _restore_before_0_2(env, state)
        else:
            _Restore().value(state, env)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise NoState(f"it does not fit ({error})") from None


def _restore_before_0_2(env, state):
    """The same from a run of an earlier version, which named what it saved."""
    while isinstance(env, gymnasium.Wrapper):
        if type(env).__name__ in state["wrappers"]:
            env._elapsed_steps = state["wrappers"][type(env).__name__]
        env = env.env
    if "ale" in state:
        env.restore_state(ale_py.ALEState(state["ale"].tobytes()))
        env.ale.last = ale_py.Action(state["sticky"])
    elif "own" in state:
        env.set_state(state["own"])
    else:
        for key, value in state["plain"].items():
            setattr(env, key, value)
    env.np_random.bit_generator.state = state["rng"]


# -------------------------------------------------------------------------------------------------
# Kinds of objects


def _is_python(cls):
    """Whether the whole state of instances of a class is in their attributes."""
    for base in cls.__mro__[:-1]:
        file = getattr(sys.modules.get(base.__module__), "__file__", None) or ""
        compiled = file.endswith((".so", ".pyd")) or base.__module__ in sys.builtin_module_names
        if compiled or not base.__flags__ & (1 << 9) or base.__dict__.get("__slots__"):
            return False  # 1 << 9: Py_TPFLAGS_HEAPTYPE, of classes that Python code made
    return True


def _class_name(cls):
    return [cls.__module__, cls.__qualname__]


def _class_of(name, kind):
    """The class of a name that `_class_name` gave, of a module that is loaded already."""
    module, path = name
    found = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, kind)):  # nothing else is ever called
        raise ValueError(f"{path} is no {kind.__name__}")
    return found


def _label(value):
    """What tells one thing that is left as it is from another."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (types.ModuleType, logging.Logger)):
        return value.__name__ if isinstance(value, types.ModuleType) else value.name
    return str(value) if isinstance(value, (pathlib.PurePath, re.Pattern, np.dtype)) else ""


def _ordered(values, path):
    """The values of a set, if they come in the same order in every process."""
    flat = list(values)
    while flat:
        value = flat.pop()
        if type(value) is tuple:
            flat += value
        elif not isinstance(value, (int, float, np.number)):  # by address, or hashed by chance
            raise NoState(
                f"its {path.lstrip('.')} is a set with a {type(value).__name__}, and comes in "
                "another order in another process"
            )
    return values


def has_own_state(env):
    """Whether an object has `get_state()` and `set_state(state)` as we know them."""
    if not isinstance(env, gymnasium.Env) or isinstance(env, gymnasium.Wrapper):
        return False
    try:
        inspect.signature(env.get_state).bind()
        inspect.signature(env.set_state).bind({})
    except (AttributeError, TypeError, ValueError):
        return False
    return True


# -------------------------------------------------------------------------------------------------
# Saving

# A tree holds plain values and arrays as they are; anything else is a list that begins with its
# kind. What can change in place is numbered in the order it is met, so that a second reference to
# it is the same object again.


class _Capture:
    def __init__(self):
        self.seen = {}  # id -> (number, the object, which keeps its id from another one)
        self.bytes = 0
        self.values = 0
        self.generators = []
        self.foreseen = False  # whether there are states of others that can't be told apart

    def tree(self, value, path):
        self.values += 1
        if self.values > MOST_VALUES:
            raise NoState(f"it holds more than {MOST_VALUES:,} values")
        cls = type(value)
        if cls in _PLAIN:
            return value
        if isinstance(value, enum.Enum):
            return ["enum", _class_name(cls), value.name]
        if isinstance(value, np.generic) and value.dtype.kind in "biufU":
            return ["number", str(value.dtype), value.item()]
        if isinstance(value, _FIXED):
            return ["fixed", _label(value)]
        if isinstance(value, (types.BuiltinFunctionType, types.MethodType)):
            if isinstance(value.__self__, types.ModuleType) or value.__self__ is None:
                return ["fixed", _label(value)]
            return ["method", self.tree(value.__self__, f"{path}.__self__"), value.__name__]
        if cls is functools.partial:
            parts = (value.func, value.args, value.keywords)
            return ["partial", [self.tree(part, path) for part in parts]]
        if cls is tuple:
            return ["tuple", self.items(value, path)]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ["named", _class_name(cls), self.items(value, path)]
        if cls is bytes:
            return ["bytes", self.tree(np.frombuffer(value, np.uint8), path)]
        if cls is frozenset:
            return ["frozenset", self.items(_ordered(value, path), path)]
        if id(value) in self.seen:
            return ["same", self.seen[id(value)][0]]
        self.seen[id(value)] = (len(self.seen), value)
        tree = self.mutable(value, path)
        if isinstance(value, GENERATORS):
            self.generators.append(tree)
        return tree

    def items(self, values, path):
        return [self.tree(value, f"{path}[{i}]") for i, value in enumerate(values)]

    def mutable(self, value, path):
        cls = type(value)
        if cls is np.ndarray:
            self.bytes += value.nbytes
            if self.bytes > MOST_BYTES:
                raise NoState(f"it takes more than {MOST_BYTES >> 20} MiB")
            if value.dtype.hasobject:
                return ["objects", self.items(value.reshape(-1).tolist(), path), list(value.shape)]
            return ["array", value.copy()]
        if cls is list:
            return ["list", self.items(value, path)]
        if cls is set:
            return ["set", self.items(_ordered(value, path), path)]
        if cls is bytearray:
            return ["bytearray", np.frombuffer(bytes(value), np.uint8)]
        if cls is types.FunctionType:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return ["function", _label(value), self.items(cells, f"{path}()")]
        if cls is collections.deque:
            return ["deque", self.items(value, path), value.maxlen]
        if cls in (dict, collections.defaultdict, collections.OrderedDict, collections.Counter):
            keys = self.items(value, f"{path} key")
            values = [self.tree(part, f"{path}[{key}]") for key, part in value.items()]
            return ["dict", keys, values, cls.__name__]
        if cls is np.random.Generator:
            generator = value.bit_generator
            return ["generator", type(generator).__name__, _plain_arrays(generator.state)]
        if cls is np.random.RandomState:
            return ["random_state", _plain_arrays(value.get_state(legacy=False))]
        if cls is random.Random:
            return ["random", list(value.getstate()[1]), value.getstate()[2]]
        if isinstance(value, gymnasium.spaces.Space):
            return ["space", self.tree(value._np_random, f"{path}.np_random")]
        if isinstance(value, ale_py.env.AtariEnv):
            return self.atari(value, path)
        if has_own_state(value):
            rng = self.tree(value.np_random, f"{path}.np_random")
            state = value.get_state()
            self.foreseen |= holds_generator(state, plain=True)
            return ["own", self.tree(state, f"{path}.get_state()"), rng]
        if hasattr(value, "__dict__") and _is_python(cls):
            attributes = {
                name: self.tree(part, f"{path}.{name}") for name, part in vars(value).items()
            }
            return ["object", _class_name(cls), attributes]
        raise NoState(
            f"its {path.lstrip('.') or 'environment'} is a {cls.__module__}.{cls.__name__}"
        )

    def atari(self, env, path):
        if not hasattr(env.ale, "last"):  # of StickyActions
            raise NoState("its sticky actions are drawn where they can't be saved")
        emulator = np.frombuffer(env.clone_state(include_rng=True).serialize(), np.uint8)
        rng = self.tree(env.np_random, f"{path}.np_random")
        return ["ale", emulator, int(env.ale.last.value), rng]


def _plain_arrays(state):
    """The state of a numpy generator: a dict of dicts, plain values and arrays."""
    return {
        key: _plain_arrays(value) if isinstance(value, dict) else value
        for key, value in state.items()
    }


# -------------------------------------------------------------------------------------------------
# Putting back


class _Restore:
    def __init__(self):
        self.made = []
        self.used = {}  # what of the fresh environment has been changed, by its id

    def value(self, tree, now):
        """What a tree stands for; `now` is what a fresh environment has there, changed in place."""
        if type(tree) in _PLAIN:
            return tree
        kind = tree[0]
        if kind == "fixed":
            if _label(now) != tree[1]:
                raise ValueError(f"{tree[1]} is not there")
            return now
        if kind == "method":
            return getattr(self.value(tree[1], getattr(now, "__self__", None)), tree[2])
        if kind == "partial":
            fresh = (now.func, now.args, now.keywords)
            func, args, keywords = map(self.value, tree[1], fresh)
            return functools.partial(func, *args, **keywords)
        if kind == "same":
            return self.made[tree[1]]
        if kind == "enum":
            return _class_of(tree[1], enum.Enum)[tree[2]]
        if kind == "number":
            return np.dtype(tree[1]).type(tree[2])
        if kind == "bytes":
            return self.value(tree[1], None).tobytes()
        if kind in ("tuple", "frozenset"):
            return dict(tuple=tuple, frozenset=frozenset)[kind](self.items(tree[1], now))
        if kind == "named":
            return _class_of(tree[1], tuple)(*self.items(tree[2], now))
        if id(now) in self.used:  # what was one object there need not be one here
            now = None
        self.used[id(now)] = now
        return getattr(self, f"_{kind}")(now, *tree[1:])

    def items(self, trees, now):
        """Of an ordered collection, each beside what the fresh one has at its place."""
        ordered = isinstance(now, (tuple, list, collections.deque)) and len(now) == len(trees)
        return [
            self.value(tree, each)
            for tree, each in zip(trees, now if ordered else [None] * len(trees))
        ]

    def put(self, made):
        self.made.append(made)
        return made

    def _array(self, now, saved):
        fits = type(now) is np.ndarray and now.shape == saved.shape and now.dtype == saved.dtype
        if fits and now.flags.writeable:
            now[...] = saved
            return self.put(now)
        return self.put(saved.copy())

    def _objects(self, now, saved, shape):
        made = self.put(np.empty(shape, object))
        made.reshape(-1)[:] = self.items(saved, None)
        return made

    def _list(self, now, saved):
        made = self.put(now if type(now) is list else [])
        made[:] = self.items(saved, list(made))
        return made

    def _bytearray(self, now, saved):
        return self.put(bytearray(saved.tobytes()))

    def _function(self, now, label, cells):
        if _label(now) != label or len(now.__closure__ or ()) != len(cells):
            raise ValueError(f"{label} is not there")
        self.put(now)
        for cell, tree in zip(now.__closure__ or (), cells):
            cell.cell_contents = self.value(tree, cell.cell_contents)
        return now

    def _set(self, now, saved):
        made = self.put(set())
        made.update(self.items(saved, None))
        return made

    def _deque(self, now, saved, maxlen):
        made = self.put(collections.deque(maxlen=maxlen))
        made.extend(self.items(saved, now))
        return made

    def _dict(self, now, keys, values, kind):
        if type(now).__name__ != kind:
            now = dict(dict=dict, OrderedDict=collections.OrderedDict, Counter=collections.Counter)[
                kind
            ]()
        made = self.put(now)
        before = dict(made)
        keys = self.items(keys, None)
        values = [self.value(tree, before.get(key)) for key, tree in zip(keys, values)]
        made.clear()
        made.update(zip(keys, values))
        return made

    def _generator(self, now, kind, state):
        if type(now) is not np.random.Generator or type(now.bit_generator).__name__ != kind:
            now = np.random.Generator(getattr(np.random, kind)())
        now.bit_generator.state = state
        return self.put(now)

    def _random_state(self, now, state):
        made = self.put(now if type(now) is np.random.RandomState else np.random.RandomState())
        made.set_state(state)
        return made

    def _random(self, now, state, gauss):
        made = self.put(now if type(now) is random.Random else random.Random())
        made.setstate((3, tuple(state), gauss))
        return made

    def _space(self, now, generator):
        self.put(now)
        now._np_random = self.value(generator, now._np_random)
        return now

    def _ale(self, now, emulator, last, rng):
        self.put(now)
        now.restore_state(ale_py.ALEState(emulator.tobytes()))
        now.ale.last = ale_py.Action(last)
        now.np_random = self.value(rng, now.np_random)
        return now

    def _own(self, now, state, rng):
        self.put(now)
        # In the order in which they were met.
        now.np_random = self.value(rng, now.np_random)
        now.set_state(self.value(state, None))
        return now

    def _object(self, now, name, attributes):
        cls = _class_of(name, object)
        if type(now) is not cls:
            if not _is_python(cls):
                raise ValueError(f"no {name[1]} can be made")
            now = object.__new__(cls)
        self.put(now)
        for key in set(vars(now)) - set(attributes):
            del vars(now)[key]
        for key, tree in attributes.items():
            vars(now)[key] = self.value(tree, vars(now).get(key))
        return now
