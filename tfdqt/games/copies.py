"""States of an environment, saved and put back often: what a search tries its moves on.

`state` takes any environment apart, object by object, which takes 50 to 1,000 microseconds. Three
kinds are known well enough to do it in a few: those with `get_state()` and `set_state(dict)` of
their own, ALE's emulator, and gymnasium's classic control and toy text. Around them only wrappers
are known that keep no more than a number of steps; anything else is saved as `state` does it.

Random numbers are not put back: a trial never learns what the game will draw. Each trial goes on
with the numbers of a generator that is given, and it is seen whether it drew any.
"""

import copy

import ale_py
import gymnasium
import numpy as np
from gymnasium import wrappers

from tfdqt.games.envs import Positions, ResetOptions
from tfdqt.games.state import (
    NoState,
    Unsaved,
    env_state_and_chance,
    has_own_state,
    holds_generator,
    reseed,
    restore_env,
)

# Wrappers of which a step changes nothing, and those of which it changes a number of steps.
_CONSTANT = (
    Positions,
    ResetOptions,
    wrappers.ClipReward,
    wrappers.DiscretizeAction,
    wrappers.DtypeObservation,
    wrappers.FilterObservation,
    wrappers.FlattenObservation,
    wrappers.OrderEnforcing,  # its reset was long ago
    wrappers.RescaleObservation,
    wrappers.ReshapeObservation,
)
_COUNTING = (wrappers.TimeLimit,)

_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
_KNOWN_HOMES = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")
# Of those: what no step changes, besides spaces and the like; P is toy text's table of transitions.
_FIXED_NAMES = ("P", "spec", "_np_random", "_np_random_seed")


# -------------------------------------------------------------------------------------------------
# Environments of a known kind: save() and restore(saved) of what is inside all wrappers


class _Own:
    """One with `get_state()` and `set_state(dict)`."""

    def __init__(self, base):
        self.base = base
        if holds_generator(base.get_state()):
            raise NoState("its get_state() holds a random generator")

    def save(self):
        return _copied(self.base.get_state())

    def restore(self, saved):
        self.base.set_state(_copied(saved))


def _copied(value):
    """A state with arrays and collections of its own, since either side may change them."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is np.ndarray:
        return value.copy()
    if kind is dict:
        return {key: _copied(part) for key, part in value.items()}
    if kind is list:
        return [_copied(part) for part in value]
    if kind is tuple:
        return tuple(_copied(part) for part in value)
    if isinstance(value, np.generic):
        return value
    return copy.deepcopy(value)


class _Emulator:
    """ALE. Its own random numbers serve sticky actions alone, which `StickyActions` draws."""

    def __init__(self, base):
        self.base = base
        if not hasattr(base.ale, "last"):  # of StickyActions
            raise NoState("its sticky actions are drawn where they can't be saved")

    def save(self):
        return self.base.ale.cloneState(), self.base.ale.last

    def restore(self, saved):
        self.base.ale.restoreState(saved[0])
        self.base.ale.last = saved[1]


class _Attributes:
    """One of gymnasium's own whose state is in a few plain attributes."""

    def __init__(self, base):
        self.base = base
        spaces = [
            name for name, value in vars(base).items() if isinstance(value, gymnasium.spaces.Space)
        ]
        self.fixed = {*_FIXED_NAMES, *spaces}

    def save(self):
        saved = {}
        for name, value in vars(self.base).items():
            kind = type(value)
            if kind in _PLAIN or kind is tuple:
                saved[name] = value
            elif name in self.fixed:
                continue
            elif kind is np.ndarray:
                saved[name] = value.copy()
            elif kind is list and all(
                type(part) in _PLAIN or type(part) is tuple for part in value
            ):
                saved[name] = list(value)
            elif isinstance(value, np.generic):
                saved[name] = value
            else:
                raise NoState(f"its {name} is a {kind.__name__}")
        if hasattr(
            self.base, "P"
        ):  # no step changes it, but each copy may have drawn a map of its own
            saved["P"] = self.base.P
        return saved

    def restore(self, saved):
        attributes = vars(self.base)
        attributes.update(saved)
        for name, value in saved.items():
            if type(value) in (np.ndarray, list):
                attributes[name] = value.copy()


def _known(base):
    """What saves an environment of a known kind, or None. Raises NoState."""
    if isinstance(base, ale_py.env.AtariEnv):
        return _Emulator(base)
    if has_own_state(base):
        return _Own(base)
    if f"{type(base).__module__}.".startswith(_KNOWN_HOMES):
        return _Attributes(base)
    return None


# -------------------------------------------------------------------------------------------------
# States of whole environments


class QuickStates:
    """`save` and `restore` of an environment of a known kind in known wrappers.

    Raises NoState if it is not one.
    """

    def __init__(self, env):
        self.counters = []
        while isinstance(env, gymnasium.Wrapper):
            if type(env) in _COUNTING:
                self.counters.append(env)
            elif type(env) not in _CONSTANT:
                raise NoState(f"{type(env).__name__} may hold more of it")
            env = env.env
        self.base = env
        known = _known(env)
        if known is None:
            raise NoState("it is of no known kind")
        self.known = known
        if type(env.np_random.bit_generator) is not np.random.PCG64:
            raise NoState("it draws by another generator")

    def save(self):
        """What `restore` puts back, into this environment or another of its kind."""
        return [counter._elapsed_steps for counter in self.counters], self.known.save()

    def restore(self, saved, rng):
        """Put a state back, to go on with random numbers of `rng`, a PCG64 Generator."""
        steps, inner = saved
        for counter, elapsed in zip(self.counters, steps):
            counter._elapsed_steps = elapsed
        self.known.restore(inner)
        self.base.np_random.bit_generator.state = rng.bit_generator.state

    def drew(self, rng):
        """Whether random numbers were drawn since `restore`; `rng` has then drawn them too."""
        state = self.base.np_random.bit_generator.state
        if state == rng.bit_generator.state:
            return False
        rng.bit_generator.state = state
        return True


class AnyStates:
    """The same of any environment, as `state` does it."""

    def __init__(self, env):
        self.env = env
        self.before = []
        self.after = None  # what `drew` saved

    def save(self):
        saved = self.after or env_state_and_chance(self.env)
        self.after = None
        return saved

    def restore(self, saved, rng):
        self.after = None
        state, generators = saved
        for generator in generators:
            reseed(generator, rng)
        restore_env(self.env, state, reset=False)
        self.before = [_words(generator) for generator in generators]

    def drew(self, rng):
        """Whether random numbers were drawn since `restore`."""
        self.after = env_state_and_chance(self.env)
        return [_words(generator) for generator in self.after[1]] != self.before


def _words(state):
    """A part that holds a generator's state, as what can be compared."""
    if isinstance(state, dict):
        return {key: _words(part) for key, part in state.items()}
    if isinstance(state, list):
        return [_words(part) for part in state]
    return state.tobytes() if isinstance(state, np.ndarray) else state


def states_of(env):
    """The class whose instances save environments like `env`, the quickest that can.

    Raises NoState if none can, with why.
    """
    if isinstance(env, Unsaved):
        raise NoState("it is not to be saved")
    try:
        QuickStates(env).save()
        return QuickStates
    except NoState:
        AnyStates(env).save()
        return AnyStates
