"""Environments: names, what they look like to a network, and many of them stepped in worker processes.

A vector step gives, for every environment, the plain stream that the replay buffer keeps. When an episode has ended,
the next step only resets: the true last observation stays in the stream, with a step after it that means nothing and
that the learner recognises, because the observation behind it is the first of an episode.
"""

import contextlib
import difflib
import multiprocessing
import re
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import NamedTuple

import numpy as np

from tfdqt.config import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ale_py
    import gymnasium
    from gymnasium import spaces

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gymnasium.register_envs(ale_py)


def _register_ram_names():
    """Bring back the `<Game>-ram[Deterministic|NoFrameskip]-v0/-v4` names that ale-py dropped in 0.11."""
    for spec in list(gymnasium.registry.values()):
        match = re.fullmatch(r"([A-Za-z]+?)(NoFrameskip)?-(v0|v4)", spec.id)
        if spec.entry_point != "ale_py.env:AtariEnv" or not match:
            continue
        game, no_skip, version = match.groups()
        kinds = [("NoFrameskip", 1)] if no_skip else [("", (2, 5)), ("Deterministic", 3 if game == "SpaceInvaders" else 4)]
        for kind, frameskip in kinds:
            name = f"{game}-ram{kind}-{version}"
            if name not in gymnasium.registry:
                gymnasium.register(name, spec.entry_point, kwargs={**spec.kwargs, "obs_type": "ram", "frameskip": frameskip})


_register_ram_names()


class Positions(gymnasium.ObservationWrapper):
    """CartPole without velocities: [position, angle], so that only who remembers can balance."""

    stateless = True  # for `env_state`: all there is to save is in the environment below

    def __init__(self, env):
        super().__init__(env)
        space = env.observation_space
        self.observation_space = spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=space.dtype)

    def observation(self, observation):
        return observation[[0, 2]]


def _cartpole_positions(**kwargs):
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    return Positions(CartPoleEnv(**kwargs))


gymnasium.register("CartPolePositions-v1", _cartpole_positions, max_episode_steps=500, reward_threshold=475)


class EnvInfo(NamedTuple):
    """What a network must know of an environment."""

    name: str
    obs_shape: tuple  # of one observation, always one axis
    obs_dtype: str  # how the replay buffer keeps it: uint8, int32 or float32
    nvec: tuple  # number of values of each entry of a (Multi)Discrete observation; () otherwise
    num_actions: int


class EnvFailure(RuntimeError):
    """An environment raised, or returned something that is not a number."""


class StickyActions:
    """An ALE interface whose sticky actions (Machado et al., 2018) are drawn here, from the environment's own generator.

    ALE repeats the last action of a frame with the same probability, but keeps that action out of its states, so that a restored
    game would go on differently.
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

    RAM is chosen for `ALE/<Game>-v5`. Raises UsageError for a name that gymnasium does not know, with the nearest ones,
    and for one that can't be made.
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
        except (gymnasium.error.NameNotFound, gymnasium.error.VersionNotFound, gymnasium.error.NamespaceNotFound,
                gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
            near = nearest_names(name)
            hint = f"did you mean {', '.join(near)}?" if near else "see gymnasium.pprint_registry() for all names."
            raise UsageError(f"There is no environment called {name!r} ({type(error).__name__}); {hint}") from None
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"The environment {name!r} can't be made: {first}") from None


def nearest_names(name, count=4):
    """The registered names most like `name`, best first."""
    lower = {known.lower(): known for known in gymnasium.registry}
    near = difflib.get_close_matches(name.lower(), lower, n=count, cutoff=0.5)
    return [lower[known] for known in near]


def env_info(env, name=None):
    """What a network must know of `env`.

    Raises UsageError unless actions are Discrete and observations a vector Box, Discrete or MultiDiscrete.
    """
    name = name or (env.spec.id if env.spec else type(env.unwrapped).__name__)
    actions, obs = env.action_space, env.observation_space
    if not isinstance(actions, spaces.Discrete):
        raise UsageError(f"{name} has the action space {actions}, but DQN chooses among Discrete actions; "
                         "wrap the environment so that its actions are Discrete.")
    if isinstance(obs, spaces.Discrete):
        return EnvInfo(name, (1,), "int32", (int(obs.n),), int(actions.n))
    if isinstance(obs, spaces.MultiDiscrete) and obs.nvec.ndim == 1:
        return EnvInfo(name, obs.shape, "int32", tuple(int(n) for n in obs.nvec), int(actions.n))
    if isinstance(obs, spaces.Box) and len(obs.shape) == 1:
        dtype = "uint8" if obs.dtype == np.uint8 else "float32"
        return EnvInfo(name, obs.shape, dtype, (), int(actions.n))
    if isinstance(obs, spaces.Box) and len(obs.shape) in (2, 3):
        raise UsageError(f"{name} shows images or tables of shape {obs.shape}, but tfdqt reads vectors; choose an "
                         "environment with a vector observation, such as an Atari game's `-ram` name.")
    raise UsageError(f"{name} has the observation space {obs}, but tfdqt reads a vector Box, Discrete or "
                     "MultiDiscrete; wrap the environment with gymnasium.wrappers.FlattenObservation.")


# ---------------------------------------------------------------------------------------------------------------------
# One environment, stepped as a stream


class Slot:
    """One environment and where it stands in its stream. `out` holds views into the arrays of the vector."""

    def __init__(self, env, seed, life_loss_ends, out):
        self.env, self.out, self.life_loss_ends = env, out, life_loss_ends
        self.start = getattr(env.action_space, "start", 0)
        self.obs_start = getattr(env.observation_space, "start", 0)
        self.lives, self.ret, self.length, self.ended = 0, 0.0, 0, False
        self._show(env.reset(seed=seed)[0], first=True)

    def _show(self, obs, *, first, reward=0.0, discount=1.0, ended=False, ret=0.0, length=0):
        obs = np.asarray(obs) - self.obs_start
        if obs.dtype.kind == "f" and not np.isfinite(obs).all():
            raise EnvFailure(f"it returned an observation that is not a number: {obs}")
        if not np.isfinite(reward):
            raise EnvFailure(f"it returned a reward that is not a number: {reward}")
        out, self.ended = self.out, ended
        out["obs"][...] = obs
        out["first"][...] = first
        out["reward"][...] = reward
        out["discount"][...] = discount
        out["ended"][...] = ended
        out["ret"][...] = ret
        out["length"][...] = length

    def step(self, action):
        """Take `action`, or reset if the episode has ended, and write what comes next to `out`."""
        if self.ended:
            self.lives, self.ret, self.length = 0, 0.0, 0
            self._show(self.env.reset()[0], first=True)
            return
        obs, reward, terminated, truncated, info = self.env.step(int(action + self.start))
        lives = info.get("lives", 0)
        lost_life, self.lives = lives < self.lives, lives
        over = terminated or (self.life_loss_ends and lost_life)
        self.ret += float(reward)
        self.length += 1
        self._show(obs, first=False, reward=reward, discount=0.0 if over else 1.0,
                   ended=bool(terminated or truncated), ret=self.ret, length=self.length)

    def state(self):
        """Everything that `restore` needs, as plain values and arrays, or None if the environment offers no state."""
        env = env_state(self.env)
        own = dict(lives=int(self.lives), ret=float(self.ret), length=int(self.length), ended=bool(self.ended))
        return None if env is None else dict(env=env, slot=own, out={key: np.array(value) for key, value in self.out.items()})

    def restore(self, state):
        """Go on from `state`, or from a fresh episode if it is None."""
        if state is None:
            self.lives, self.ret, self.length = 0, 0.0, 0
            self._show(self.env.reset()[0], first=True)
            return
        restore_env(self.env, state["env"])
        for key, value in state["slot"].items():
            setattr(self, key, value)
        for key, value in state["out"].items():
            self.out[key][...] = value


_PLAIN_ATTRIBUTES = {  # by the module of the environment: what makes up its state, beside its random generator
    "gymnasium.envs.classic_control.": ("state", "steps_beyond_terminated", "last_u"),
    "gymnasium.envs.toy_text.": ("s", "lastaction", "player", "dealer", "dealer_top_card_suit", "dealer_top_card_value_str"),
}


def env_state(env):
    """The state of `env` as plain values and arrays, or None if it offers none.

    Known are ALE games (of `make_env`), gymnasium's classic control and toy text, and any environment with the methods
    `get_state() -> dict of arrays and plain values` and `set_state(dict)`.
    """
    wrappers, inner = {}, env
    while isinstance(inner, gymnasium.Wrapper):
        kind = type(inner).__name__
        if kind == "TimeLimit":
            wrappers[kind] = int(inner._elapsed_steps)
        elif kind not in ("OrderEnforcing", "PassiveEnvChecker") and not getattr(inner, "stateless", False):
            return None
        inner = inner.env
    if isinstance(inner, ale_py.env.AtariEnv):
        if not isinstance(inner.ale, StickyActions):
            return None
        state = dict(sticky=int(inner.ale.last.value), ale=np.frombuffer(inner.clone_state(include_rng=True).serialize(), np.uint8))
    elif hasattr(inner, "get_state") and hasattr(inner, "set_state"):
        state = dict(own=inner.get_state())
    else:
        names = [names for module, names in _PLAIN_ATTRIBUTES.items() if type(inner).__module__.startswith(module)]
        if not names:
            return None
        state = dict(plain={key: getattr(inner, key) for key in names[0] if hasattr(inner, key)})
    return dict(state, wrappers=wrappers, rng=inner.np_random.bit_generator.state)


def restore_env(env, state, *, reset=True):
    """Put `env` into a `state` that `env_state` gave. reset=False saves time for an env that has been reset before."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Many environments


class VecEnv(NamedTuple):
    """Environments in lockstep, as functions. `out` holds the arrays that `step` fills, one row an environment."""

    out: dict  # obs [N, ...], first [N], reward [N], discount [N], ended [N], ret [N], length [N]
    step: Callable  # (actions [N]) -> None
    states: Callable  # () -> list of N states, None where an environment offers none
    restore: Callable  # (list of N states) -> None
    close: Callable  # () -> None


def _layout(info, num_envs):
    fields = dict(obs=(info.obs_dtype, info.obs_shape), first=("bool", ()), reward=("float32", ()), discount=("float32", ()),
                  ended=("bool", ()), ret=("float64", ()), length=("int64", ()), action=("int64", ()))
    offset, places = 0, {}
    for key, (dtype, shape) in fields.items():
        places[key] = (np.dtype(dtype), (num_envs, *shape), offset)
        offset += -(-int(np.dtype(dtype).itemsize * num_envs * np.prod(shape, dtype=int)) // 64) * 64
    return places, offset


def _arrays(places, buffer):
    return {key: np.ndarray(shape, dtype, buffer, offset) for key, (dtype, shape, offset) in places.items()}


def _slots(env_fn, seeds, life_loss_ends, arrays, rows):
    views = [{key: array[row:row + 1].reshape(array.shape[1:]) for key, array in arrays.items() if key != "action"} for row in rows]
    return [Slot(env_fn(), seed, life_loss_ends, view) for seed, view in zip(seeds, views)]


def _serve(slots, arrays, rows, message, payload=None):
    if message == "step":
        for slot, action in zip(slots, arrays["action"][rows]):
            slot.step(action)
    elif message == "states":
        return [slot.state() for slot in slots]
    elif message == "restore":
        for slot, state in zip(slots, payload):
            slot.restore(state)


def _worker(connection, pickled_env_fn, seeds, life_loss_ends, places, memory_name, rows):
    import signal

    import cloudpickle

    for number in (signal.SIGINT, signal.SIGTERM):  # the learner decides when to stop
        signal.signal(number, signal.SIG_IGN)
    memory = shared_memory.SharedMemory(memory_name)
    arrays, slots = _arrays(places, memory.buf), []
    try:
        slots += _slots(cloudpickle.loads(pickled_env_fn), seeds, life_loss_ends, arrays, rows)
        connection.send((True, None))
        while True:
            message, payload = connection.recv()
            if message == "close":
                break
            connection.send((True, _serve(slots, arrays, rows, message, payload)))
    except EOFError:
        pass  # the learner is gone
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    finally:
        for slot in slots:
            slot.env.close()
        arrays.clear()
        slots.clear()
        with contextlib.suppress(BufferError):
            memory.close()


def make_vec_env(env_fn, info, num_envs, seed, *, workers=1, life_loss_ends=False):
    """Step `num_envs` environments in lockstep in `workers` processes (0: in this one). Results don't depend on `workers`.

    `env_fn()` makes one environment and reaches the workers by cloudpickle. Environment i is seeded with the i-th child
    of `seed`. Any call raises EnvFailure when an environment raised or gave something that is not a number.
    """
    seeds = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(num_envs)]
    places, size = _layout(info, num_envs)
    if workers == 0:
        arrays = _arrays(places, bytearray(size))
        return _in_process(env_fn, seeds, life_loss_ends, arrays)

    import cloudpickle

    context = multiprocessing.get_context("spawn")
    memory = shared_memory.SharedMemory(create=True, size=size)
    arrays = _arrays(places, memory.buf)
    links = []
    for rows in np.array_split(np.arange(num_envs), min(workers, num_envs)):
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, daemon=True, args=(
            theirs, cloudpickle.dumps(env_fn), [seeds[row] for row in rows], life_loss_ends, places, memory.name, rows))
        process.start()
        theirs.close()
        links.append((ours, process, rows))

    def gather():
        answers = []
        for link, process, rows in links:
            try:
                good, answer = link.recv()
            except (EOFError, OSError):
                process.join(1)
                good, answer = False, f"its process ended with exit code {process.exitcode}"
            if not good:
                raise EnvFailure(f"An environment of {info.name} failed (one of numbers {rows[0]} to {rows[-1]}): {answer}")
            answers.append(answer)
        return answers

    def send(message, payloads=None):
        for index, (link, _, _) in enumerate(links):
            with contextlib.suppress(OSError):  # a dead worker shows when its answer is read
                link.send((message, payloads[index] if payloads else None))
        return gather()

    def step(actions):
        arrays["action"][:] = actions
        send("step")

    def states():
        return [state for answer in send("states") for state in answer]

    def restore(states):
        send("restore", [[states[row] for row in rows] for _, _, rows in links])

    def close():
        for link, process, _ in links:
            with contextlib.suppress(OSError):
                link.send(("close", None))
            process.join(5)
            if process.is_alive():
                process.kill()
            link.close()
        links.clear()
        if arrays:
            arrays.clear()
            with contextlib.suppress(BufferError):
                memory.close()
            memory.unlink()

    try:
        gather()
    except EnvFailure:
        close()
        raise
    return VecEnv(arrays, step, states, restore, close)


def _in_process(env_fn, seeds, life_loss_ends, arrays):
    rows = np.arange(len(seeds))

    @contextlib.contextmanager
    def failures():
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            raise EnvFailure(f"An environment failed: {type(error).__name__}: {error}\n{traceback.format_exc()}") from error

    with failures():
        slots = _slots(env_fn, seeds, life_loss_ends, arrays, rows)

    def step(actions):
        arrays["action"][:] = actions
        with failures():
            _serve(slots, arrays, rows, "step")

    def restore(states):
        with failures():
            _serve(slots, arrays, rows, "restore", states)

    def states():
        with failures():
            return _serve(slots, arrays, rows, "states")

    return VecEnv(arrays, step, states, restore,
                  lambda: [slot.env.close() for slot in slots] and None)
