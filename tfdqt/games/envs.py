"""Environments: names, what they look like to a network, and their states."""

import difflib
import re
import warnings
from typing import NamedTuple

import numpy as np

from tfdqt.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ale_py
    import gymnasium
    from gymnasium import spaces

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gymnasium.register_envs(ale_py)


def _register_ram_names():
    """Bring back the `<Game>-ram[...]-v0/-v4` names that ale-py dropped in 0.11."""
    for spec in list(gymnasium.registry.values()):
        match = re.fullmatch(r"([A-Za-z]+?)(NoFrameskip)?-(v0|v4)", spec.id)
        if spec.entry_point != "ale_py.env:AtariEnv" or not match:
            continue
        game, no_skip, version = match.groups()
        kinds = (
            [("NoFrameskip", 1)]
            if no_skip
            else [("", (2, 5)), ("Deterministic", 3 if game == "SpaceInvaders" else 4)]
        )
        for kind, frameskip in kinds:
            name = f"{game}-ram{kind}-{version}"
            if name not in gymnasium.registry:
                gymnasium.register(
                    name,
                    spec.entry_point,
                    kwargs={**spec.kwargs, "obs_type": "ram", "frameskip": frameskip},
                )


_register_ram_names()


class Positions(gymnasium.ObservationWrapper):
    """CartPole without velocities: [position, angle], so that only who remembers can balance."""

    stateless = True  # for `env_state`: all there is to save is in the environment below

    def __init__(self, env):
        super().__init__(env)
        space = env.observation_space
        self.observation_space = spaces.Box(
            space.low[[0, 2]], space.high[[0, 2]], dtype=space.dtype
        )

    def observation(self, observation):
        return observation[[0, 2]]


def _cartpole_positions(**kwargs):
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    return Positions(CartPoleEnv(**kwargs))


gymnasium.register(
    "CartPolePositions-v1", _cartpole_positions, max_episode_steps=500, reward_threshold=475
)


class EnvInfo(NamedTuple):
    """What a network must know of an environment."""

    name: str
    obs_shape: tuple  # of one observation, one axis
    obs_dtype: str  # how the replay buffer keeps it: uint8, int32 or float32
    nvec: tuple  # number of values of each entry of a (Multi)Discrete observation; () otherwise
    num_actions: int
    obs_start: int | tuple = 0  # the least (Multi)Discrete observation; kept ones count from 0
    action_start: int = 0  # the least action; a network's count from 0


class StickyActions:
    """An ALE interface whose sticky actions are drawn here, from the environment's own generator.

    ALE repeats the last action of a frame with the same probability (Machado et al., 2018), but
    keeps that action out of its states, so that a restored game would go on differently.
    """

    def __init__(self, env):
        self.ale, self.env, self.last = env.ale, env, ale_py.Action.NOOP
        self.probability = env.ale.getFloat("repeat_action_probability")
        env.ale.setFloat("repeat_action_probability", 0.0)
        env.load_game()  # ALE reads the setting with the game
        env.ale = self

    def act(self, action, *strength):
        if self.env.np_random.random() >= self.probability:
            self.last = action
        return self.ale.act(self.last, *strength)

    def reset_game(self):
        self.last = ale_py.Action.NOOP
        self.ale.reset_game()

    def getFloat(self, key):
        return self.probability if key == "repeat_action_probability" else self.ale.getFloat(key)

    def __getattr__(self, name):
        return getattr(self.ale, name)


def make_env(name, **kwargs):
    """Make one gymnasium environment by name.

    RAM is chosen for `ALE/<Game>-v5`. Raises UsageError for a name that gymnasium does not know,
    with the nearest ones, and for one that can't be made.

    >>> env = make_env("Breakout-ram-v0")
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if name.startswith("ALE/"):
                kwargs.setdefault("obs_type", "ram")
            env = gymnasium.make(name, disable_env_checker=True, **kwargs)
            if isinstance(env.unwrapped, ale_py.env.AtariEnv):
                StickyActions(env.unwrapped)
            return env
        except (
            gymnasium.error.NameNotFound,
            gymnasium.error.VersionNotFound,
            gymnasium.error.NamespaceNotFound,
            gymnasium.error.UnregisteredEnv,
            gymnasium.error.DeprecatedEnv,
        ) as error:
            near = nearest_names(name)
            hint = (
                f"did you mean {', '.join(near)}?"
                if near
                else "see gymnasium.pprint_registry() for all names."
            )
            raise UsageError(
                f"There is no environment called {name!r} ({type(error).__name__}); {hint}"
            ) from None
        except UsageError:
            raise
        except Exception as error:  # whatever its constructor raises
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"The environment {name!r} can't be made: {first}") from None


def nearest_names(name, count=4):
    """The registered names most like `name`, best first."""
    lower = {known.lower(): known for known in gymnasium.registry}
    near = difflib.get_close_matches(name.lower(), lower, n=count, cutoff=0.5)
    return [lower[known] for known in near]


def info_of(env_fn, name=None):
    """What a network must know of the environments that `env_fn()` makes; see `env_info`."""
    env = env_fn()
    try:
        return env_info(env, name)
    finally:
        env.close()


def env_info(env, name=None):
    """What a network must know of `env`.

    Raises UsageError unless actions are Discrete and observations a vector Box, Discrete or
    MultiDiscrete.
    """
    name = name or (env.spec.id if env.spec else type(env.unwrapped).__name__)
    actions = env.action_space
    obs = env.observation_space
    if not isinstance(actions, spaces.Discrete):
        raise UsageError(
            f"{name} has the action space {actions}, but tfdqt chooses among Discrete actions; "
            "wrap the environment so that its actions are Discrete."
        )
    num_actions = int(actions.n)
    action_start = int(actions.start)
    if isinstance(obs, spaces.Discrete):
        nvec = (int(obs.n),)
        return EnvInfo(name, (1,), "int32", nvec, num_actions, int(obs.start), action_start)
    if isinstance(obs, spaces.MultiDiscrete) and obs.nvec.ndim == 1:
        nvec = tuple(int(n) for n in obs.nvec)
        start = tuple(int(n) for n in obs.start)
        return EnvInfo(name, obs.shape, "int32", nvec, num_actions, start, action_start)
    if isinstance(obs, spaces.Box) and len(obs.shape) == 1:
        dtype = "uint8" if obs.dtype == np.uint8 else "float32"
        return EnvInfo(name, obs.shape, dtype, (), num_actions, 0, action_start)
    if isinstance(obs, spaces.Box) and len(obs.shape) in (2, 3):
        raise UsageError(
            f"{name} shows images or tables of shape {obs.shape}, but tfdqt reads vectors; choose "
            "an environment with a vector observation, such as an Atari game's `-ram` name."
        )
    raise UsageError(
        f"{name} has the observation space {obs}, but tfdqt reads a vector Box, Discrete or "
        "MultiDiscrete; wrap the environment with gymnasium.wrappers.FlattenObservation."
    )


# By the module of an environment: what makes up its state, besides its random generator.
_PLAIN_ATTRIBUTES = {
    "gymnasium.envs.classic_control.": ("state", "steps_beyond_terminated", "last_u"),
    "gymnasium.envs.toy_text.": (
        "s",
        "lastaction",
        "player",
        "dealer",
        "dealer_top_card_suit",
        "dealer_top_card_value_str",
    ),
}


STATELESS = ("OrderEnforcing", "PassiveEnvChecker")  # gymnasium's wrappers without a state


def env_state(env):
    """The state of `env` as plain values and arrays, or None if it offers none.

    Known are ALE games (of `make_env`), gymnasium's classic control and toy text, and any
    environment with the methods `get_state() -> dict of arrays and plain values` and
    `set_state(dict)`.
    """
    wrappers = {}
    inner = env
    while isinstance(inner, gymnasium.Wrapper):
        kind = type(inner).__name__
        if kind == "TimeLimit":
            wrappers[kind] = int(inner._elapsed_steps)
        elif kind not in STATELESS and not getattr(inner, "stateless", False):
            return None
        inner = inner.env
    if isinstance(inner, ale_py.env.AtariEnv):
        if not isinstance(inner.ale, StickyActions):
            return None
        state = dict(
            sticky=int(inner.ale.last.value),
            ale=np.frombuffer(inner.clone_state(include_rng=True).serialize(), np.uint8),
        )
    elif hasattr(inner, "get_state") and hasattr(inner, "set_state"):
        state = dict(own=inner.get_state())
    else:
        module = type(inner).__module__
        names = [each for prefix, each in _PLAIN_ATTRIBUTES.items() if module.startswith(prefix)]
        if not names:
            return None
        state = dict(plain={key: getattr(inner, key) for key in names[0] if hasattr(inner, key)})
    return dict(state, wrappers=wrappers, rng=inner.np_random.bit_generator.state)


def restore_env(env, state, *, reset=True):
    """Put `env` into a `state` that `env_state` gave.

    reset=False saves time for an env that has been reset before.
    """
    if reset:
        env.reset()
    inner = env
    while isinstance(inner, gymnasium.Wrapper):
        if type(inner).__name__ in state["wrappers"]:
            inner._elapsed_steps = state["wrappers"][type(inner).__name__]
        inner = inner.env
    if "ale" in state:
        inner.restore_state(ale_py.ALEState(state["ale"].tobytes()))
        inner.ale.last = ale_py.Action(state["sticky"])
    elif "own" in state:
        inner.set_state(state["own"])
    else:
        for key, value in state["plain"].items():
            setattr(inner, key, value)
    inner.np_random.bit_generator.state = state["rng"]
