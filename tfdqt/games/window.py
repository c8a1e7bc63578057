"""The latest steps of environments, as a network is shown them."""

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """The latest C steps of N environments; numpy, changed in place."""

    obs: np.ndarray  # [N, C, ...]
    first: np.ndarray  # [N, C] int32, 1 where an episode starts
    prev_action: np.ndarray  # [N, C] int32, -1 where there is none


def make_window(info, num_envs, context):
    """An empty window: every step starts an episode of its own, so nothing looks back at it."""
    return Window(
        np.zeros((num_envs, context, *info.obs_shape), info.obs_dtype),
        np.ones((num_envs, context), np.int32),
        np.full((num_envs, context), -1, np.int32),
    )


def push(window, obs, first, action):
    """Move the window on by one step: obs [N, ...], first [N], the action before it [N]."""
    for array in window:
        array[:, :-1] = array[:, 1:]
    window.obs[:, -1] = obs
    window.first[:, -1] = first
    window.prev_action[:, -1] = np.where(first, -1, action)


def forget_history(window, row, obs):
    """Let row `row` of the window start an episode with `obs` [...]: nothing before it is shown."""
    for array, empty in zip(window, (0, 1, -1)):
        array[row] = empty
    window.obs[row, -1] = obs
    window.first[row, -1] = 1


def network_inputs(window):
    """The window as inputs of a network, without the action before it, as in training."""
    before = window.prev_action.copy()
    before[:, 0] = -1
    return dict(obs=window.obs, first=window.first, prev_action=before)
