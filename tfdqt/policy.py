"""How values become actions."""

import numpy as np


def epsilon_at(step, cfg):
    """Probability of a random action at environment step `step`: a straight line, then flat."""
    part = min(1.0, step / (cfg.epsilon_fraction * cfg.total_steps))
    return cfg.epsilon_start + part * (cfg.epsilon_end - cfg.epsilon_start)


def epsilon_greedy(rng, greedy, num_actions, epsilon):
    """Each of `greedy` [N], or with probability `epsilon` a uniformly random action, drawn from numpy Generator `rng`."""
    explore = rng.random(len(greedy)) < epsilon
    return np.where(explore, rng.integers(num_actions, size=len(greedy)), greedy)
