"""Environments: made by their names, options and wrappers, and looked at."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import json
import re
import traceback
import warnings

from tfdqt import puzzles
from tfdqt.errors import EnvFailure, UsageError, sentence_of
from tfdqt.games.config import PUZZLES, EnvConfig
from tfdqt.games.space_json import info_from_json, told_apart
from tfdqt.games.spaces import MASK_KEY, OLD_GYM, describe
from tfdqt.modules import advice_on, import_here
from tfdqt.runs.processes import close_all, is_ctrl_c, tell_of_close

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ale_py
    import gymnasium
    from gymnasium import spaces

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gymnasium.register_envs(ale_py)
gymnasium.register_envs(puzzles)


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
gymnasium.register("OpenSpiel-v0", "tfdqt.games.open_spiel:OpenSpiel")


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
        # Where none sticks nothing is drawn, and a search sees that chance has no part in it.
        if not self.probability or self.env.np_random.random() >= self.probability:
            self.last = action
        return self.ale.act(self.last, *strength)

    def reset_game(self):
        self.last = ale_py.Action.NOOP
        self.ale.reset_game()

    def getFloat(self, key):
        return self.probability if key == "repeat_action_probability" else self.ale.getFloat(key)

    def __getattr__(self, name):
        return getattr(self.ale, name)


DEFAULT = EnvConfig()


def env_fn_of(settings):
    """`env_fn(**more)` of the environment of a run's config.json, read as `settings`."""
    return functools.partial(make_env, settings["name"], settings.get("env", DEFAULT))


def with_env_options(settings, text):
    """A run's settings with the options of its environment changed by those in `text`, JSON.

    Raises UsageError if that is no object.
    """
    changed = options_of(text, "--env-options")
    cfg = settings.get("env", DEFAULT)
    options = json.dumps({**options_of(cfg.env_options, "--env-options"), **changed})
    return {**settings, "env": dataclasses.replace(cfg, env_options=options)}


def without_curriculum(settings):
    """A run's settings as an evaluation plays: its games are new, and a puzzle whose levels grow
    with what was solved would give each the shortest ones."""
    options = options_of(settings.get("env", DEFAULT).env_options, "--env-options")
    if not settings["name"].startswith(PUZZLES) or options.get("curriculum") is None:
        return settings
    return with_env_options(settings, '{"curriculum": null}')


def saved_info(settings):
    """The EnvInfo of a run's config.json, read as `settings`.

    Runs from before 0.2 did not save their spaces; their environment is made to see them.
    """
    if "spaces" in settings:
        return info_from_json(settings["spaces"], settings["name"])
    return info_of(env_fn_of(settings), settings["name"])


def check_goes_on_with(settings):
    """Raise UsageError if the environment of a run's config.json can't be made, or is another."""
    known = saved_info(settings)
    found = info_of(env_fn_of(settings), settings["name"])
    if told_apart(found) != told_apart(known):
        raise UsageError(
            f"{known.name} shows {found.observation_space} and takes {found.action_space} now, and "
            f"the run was started with {known.observation_space} and {known.action_space}; go on "
            "with the environment as it was."
        )


class ResetOptions(gymnasium.Wrapper):
    """Gives the environment the same options at every reset."""

    def __init__(self, env, options):
        super().__init__(env)
        self.options = options

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed, options=dict(self.options, **(options or {})))


def make_env(name, cfg=DEFAULT, **kwargs):
    """Make one gymnasium environment by name, as an EnvConfig and keyword arguments say.

    RAM is chosen for `ALE/<Game>-v5`. Of `module:Name` the module may lie in the current folder.
    Raises UsageError for a name that gymnasium does not know, with the nearest ones, and for what
    can't be made.

    >>> env = make_env("Breakout-ram-v0")
    """
    kwargs = {**options_of(cfg.env_options, "--env-options"), **kwargs}
    reset_options = options_of(cfg.reset_options, "--reset-options")
    if name.startswith("ALE/"):
        kwargs.setdefault("obs_type", "ram")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if ":" in name:
                import_here(name.partition(":")[0])
            env = gymnasium.make(name, disable_env_checker=True, **kwargs)
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
        except BaseException as error:  # whatever its constructor raises, sys.exit() among it
            if is_ctrl_c(error):
                raise
            raise UsageError(
                f"The environment {name!r} can't be made: {sentence_of(error)}"
                f"{_advice(name, error)}"
            ) from None
    if isinstance(env.unwrapped, ale_py.env.AtariEnv):
        StickyActions(env.unwrapped)
    for wrapper in cfg.wrappers:
        env = wrap(env, wrapper)
    check_learns_nothing(env)
    return ResetOptions(env, reset_options) if reset_options else env


def _advice(name, error):
    """What to do where the module of MODULE:NAME was not found, or nothing."""
    module = name.partition(":")[0]
    if ":" in name and not module:
        return "; give MODULE:NAME."
    advice = advice_on(module, error)
    return f"; {advice}, and give the module without .py: MODULE:NAME." if advice else ""


def options_of(text, flag):
    """Keyword arguments written as JSON; "" are none. Raises UsageError if it is no object."""
    try:
        options = json.loads(text) if text else {}
    except ValueError as error:
        raise UsageError(f"{flag}={text!r} is no JSON ({error}).") from None
    if not isinstance(options, dict):
        raise UsageError(f'{flag} takes a JSON object such as {{"level": 3}}, not {text!r}.')
    return options


# -------------------------------------------------------------------------------------------------
# Wrappers


def wrap(env, wrapper):
    """Put a wrapper, MODULE:FUNCTION or MODULE:FUNCTION(value, key=value), around `env`.

    Values are Python's literals. Raises UsageError if it can't be found or called.

    >>> wrap(env, "gymnasium.wrappers:TimeLimit(max_episode_steps=100)")
    """
    module, colon, call = wrapper.partition(":")
    try:
        node = ast.parse(call if "(" in call else f"{call}()", mode="eval").body
        name = node.func.id
        values = [ast.literal_eval(each) for each in node.args]
        named = {each.arg: ast.literal_eval(each.value) for each in node.keywords}
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
        colon = ""
    if not (colon and module and None not in named):
        raise UsageError(
            f"--wrappers takes MODULE:FUNCTION or 'MODULE:FUNCTION(key=value)', not {wrapper!r}."
        )
    try:
        wrapped = getattr(import_here(module), name)(env, *values, **named)
    except BaseException as error:  # whatever is raised in it
        if is_ctrl_c(error):
            raise
        raise UsageError(f"The wrapper {wrapper!r} can't be used: {sentence_of(error)}") from None
    if not isinstance(wrapped, gymnasium.Env):
        raise UsageError(f"The wrapper {wrapper!r} gave {type(wrapped).__name__}, no environment.")
    return wrapped


def check_learns_nothing(env):
    """Raise UsageError if a wrapper normalises by statistics of its own.

    Each copy of an environment would have others, and an evaluation none.
    """
    while isinstance(env, gymnasium.Wrapper):
        for value in vars(env).values():
            if type(value).__name__ == "RunningMeanStd":
                raise UsageError(
                    f"{type(env).__name__} learns statistics that each copy of the environment has "
                    "to itself, so the network would be evaluated on other numbers than it learned "
                    "from; leave it out, and use --standardize for observations, and "
                    "--reward-transform=sign or a wrapper of your own (--wrappers MODULE:FUNCTION) "
                    "for rewards."
                )
        env = env.env


def nearest_names(name, count=4):
    """The registered names most like `name`, best first."""
    lower = {known.lower(): known for known in gymnasium.registry}
    near = difflib.get_close_matches(name.lower(), lower, n=count, cutoff=0.5)
    return [lower[known] for known in near]


def info_of(env_fn, name=None):
    """What a network must know of the environments that `env_fn()` makes: -> EnvInfo.

    One is made, reset to see whether it says which actions are legal, and closed. Raises UsageError
    for spaces that can't be read, and for an environment that can't be reset.
    """
    if not callable(env_fn):
        raise UsageError(
            "env_fn makes an environment, and is none itself; give such as "
            "functools.partial(gymnasium.make, name)."
        )
    env = env_fn()
    try:
        with its_failures(name_of(env, name), "at its first reset"):
            answer = env.reset()
            details = answer[1] if type(answer) is tuple and len(answer) == 2 else None
            return env_info(env, name, details)
    finally:
        close_env(env, name)


@contextlib.contextmanager
def its_failures(name, where):
    """Turn what an environment of `name` raises in the block into an EnvFailure that says where."""
    try:
        yield
    except (UsageError, EnvFailure):
        raise
    except BaseException as error:  # sys.exit() among them
        if is_ctrl_c(error):
            raise
        raise EnvFailure(
            f"An environment of {name} failed {where}: {sentence_of(error)}{_old_gym(error)}\n"
            f"{traceback.format_exc()}"
        ) from error


def _old_gym(error):
    """What to do where `reset` takes no seed or options, or nothing."""
    refused = re.search("unexpected keyword argument '(seed|options)'", str(error))
    return f"; {OLD_GYM}" if refused and isinstance(error, TypeError) else ""


def close_env(env, name=None):
    """Close an environment that was only looked at, whatever it does then."""
    tell_of_close(name_of(env, name), close_all([env.close], seconds=1))


def name_of(env, name=None):
    """What an environment is called, if it was given no name."""
    return name or (env.spec.id if env.spec else type(env.unwrapped).__name__)


def env_info(env, name=None, details=None):
    """What a network must know of `env`: -> EnvInfo. details: the info dict of a reset.

    Raises UsageError for spaces that can't be read.
    """
    mask = None
    if isinstance(details, dict) and MASK_KEY in details:
        mask = "info"
    elif env.has_wrapper_attr("action_masks"):
        mask = "method"
    return describe(env.observation_space, env.action_space, name_of(env, name), mask)
