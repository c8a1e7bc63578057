"""Environments that do what they are told, and vectors of them. Imports no TensorFlow."""

import math
import random

import gymnasium
import numpy as np
from gymnasium import spaces

from tfdqt.errors import UsageError
from tfdqt.games.envs import info_of
from tfdqt.games.vec_envs import make_vec_env


class Scripted(gymnasium.Env):
    """Plays episodes of (reward, terminated, truncated, lives).

    An observation tells episode and step, as 10 * episode + step.
    """

    episodes = (
        ((1.0, False, False, 3), (2.0, True, False, 2)),
        ((3.0, False, False, 5), (4.0, False, True, 5)),
        (
            (5.0, False, False, 3),
            (6.0, False, False, 2),
            (7.0, False, False, 2),
            (8.0, True, False, 0),
        ),
    )
    action_space = spaces.Discrete(2, start=5)
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self):
        self.episode = -1
        self.at = 0
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = (self.episode + 1) % len(self.episodes)
        self.at = 0
        return self.shown(), {}

    def step(self, action):
        self.actions.append(action)
        reward, terminated, truncated, lives = self.episodes[self.episode][self.at]
        self.at += 1
        return self.shown(), reward, terminated, truncated, dict(lives=lives)

    def shown(self):
        return np.array([10 * self.episode + self.at], np.float32)


class Remembering(Scripted):
    """One with a state of its own."""

    def get_state(self):
        return dict(episode=self.episode, at=np.array([self.at]))

    def set_state(self, state):
        self.episode = state["episode"]
        self.at = int(state["at"][0])


class Failing(Scripted):
    """Fails in the way it is told to."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def step(self, action):
        if self.fault == "raises":
            raise ZeroDivisionError("the ball left the field")
        if self.fault == "ends":
            next(iter([]))
        if self.fault == "interrupts":
            raise KeyboardInterrupt
        if self.fault == "reward":
            return self.shown(), math.nan, False, False, {}
        return np.array([np.inf], np.float32), 0.0, False, False, {}


class Refusing(Scripted):
    """Says in a game what ours say of options that can't be."""

    def step(self, action):
        raise UsageError("there is no such level")


class Drawing(Scripted):
    """Shows what it draws, in a way that it should not."""

    def shown(self):
        return np.array([random.random() + np.random.rand()], np.float32)


class FailingReset(Scripted):
    def reset(self, *, seed=None, options=None):
        raise ZeroDivisionError("no ball")


class FailingState(Remembering):
    def get_state(self):
        raise ZeroDivisionError("no memory")


class Spaces(gymnasium.Env):
    """Any spaces; shows what `show` says and remembers the actions that it got."""

    def __init__(self, obs, actions, show=None):
        self.observation_space, self.action_space, self.show, self.actions = obs, actions, show, []

    def reset(self, *, seed=None, options=None):
        return self.show, {}

    def step(self, action):
        self.actions.append(action)
        return self.show, 0.0, False, False, {}


def vec_of(test, env_fn, num_envs=1, seed=0, info=None, **options):
    """Environments that are closed behind the test."""
    vec = make_vec_env(env_fn, info or info_of(env_fn), num_envs, seed, **options)
    test.addCleanup(vec.close)
    return vec


def looks(vec):
    return {key: np.array(value) for key, value in vec.out.items() if key != "action"}


def follow(vec, actions):
    """What `vec` shows now and after each vector of actions: dict of [S + 1, N, ...]."""
    seen = [looks(vec)]
    for action in actions:
        vec.step(action)
        seen.append(looks(vec))
    return {key: np.stack([one[key] for one in seen]) for key in seen[0]}
