"""Whether an environment goes on from a saved state as it would have gone on: by trying it."""

import time

import numpy as np

from tfdqt.errors import EnvFailure, UsageError, first_line, sentence_of
from tfdqt.games.envs import close_env
from tfdqt.games.spaces import legal_actions
from tfdqt.games.state import NoState, env_state
from tfdqt.games.vec_envs import make_vec_env
from tfdqt.policy import epsilon_greedy

ROUNDS = 4
STEPS = 16  # in a round
SECONDS = 5.0  # after which no further round begins
LATER = "what is saved of it later can't be kept"


def state_fault(env_fn, info, seed=0):
    """Why runs of these environments can't go on exactly, or None if they can.

    Steps one by legal random actions, puts what is saved of it into another one, steps both alike,
    resets both, and compares all they return, several times over. An environment that fails in this
    is no failure: training will tell.
    """
    try:
        return _tried(env_fn, info, seed)
    except (EnvFailure, UsageError) as error:
        return f"it fails when that is tried ({first_line(error)})"


def _tried(env_fn, info, seed):
    env = env_fn()
    try:
        env.reset(seed=seed)
        env_state(env)
    except NoState as error:
        return str(error)
    except Exception as error:
        raise EnvFailure(sentence_of(error)) from error
    finally:
        close_env(env, info.name)
    rng = np.random.default_rng(seed)
    one = make_vec_env(env_fn, info, 1, seed, workers=0, tell=False)
    try:
        try:
            other = make_vec_env(env_fn, info, 1, seed + 1, workers=0, tell=False)
        except (EnvFailure, UsageError) as error:  # such as a simulator that there is one of
            return f"no copy to try it with can be made beside it ({first_line(error)})"
        try:
            return _fault(one, other, info, rng)
        finally:
            other.close()
    finally:
        one.close()


def _fault(one, other, info, rng):
    end = time.monotonic() + SECONDS
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            one.step(_action(one, info, rng))
        states = one.states()
        if states == [None]:
            return LATER
        if other.restore(states) != [True]:
            return "what is saved of it does not fit another one"
        for step in range(2 * STEPS):
            if step == STEPS:  # what is drawn in a reset is part of it
                (state,) = one.states()
                if state is None:
                    return LATER
                ended = [dict(state, slot=dict(state["slot"], ended=True))]
                if one.restore(ended) != [True] or other.restore(ended) != [True]:
                    return "what is saved of it does not fit another one"
            action = _action(one, info, rng)
            one.step(action)
            other.step(action)
            if any((one.out[key] != other.out[key]).any() for key in one.out):
                return "a copy of it goes on otherwise, so something of its state is elsewhere"
        if time.monotonic() > end:
            break
    return None


def _action(vec, info, rng):
    legal = legal_actions(info, vec.out["obs"])
    return epsilon_greedy(rng, np.zeros(1, int), info.num_actions, 1.0, legal, info.parts)
