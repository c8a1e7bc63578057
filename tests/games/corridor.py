"""Environments with known answers. Imports no TensorFlow: worker processes import it too."""

import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    """Cells 0 to 3; action 1 moves right, 0 left; reaching cell 3 pays 1 and ends.

    Cut after `limit` steps.
    """

    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(2)
    limit = 20

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 0
        self.steps = 0
        return self.cell, {}

    def step(self, action):
        self.cell = max(0, self.cell + (1 if action else -1))
        self.steps += 1
        return self.cell, float(self.cell == 3), self.cell == 3, self.steps >= self.limit, {}


class Stateful(Corridor):
    """A corridor whose state can be saved."""

    def get_state(self):
        return dict(cell=self.cell, steps=self.steps)

    def set_state(self, state):
        self.cell = state["cell"]
        self.steps = state["steps"]


class Numbered(Stateful):
    """One whose cells are shown as numbers, not as categories."""

    observation_space = gymnasium.spaces.Box(0, 3, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        cell, info = super().reset(seed=seed, options=options)
        return np.float32([cell]), info

    def step(self, action):
        cell, *rest = super().step(action)
        return np.float32([cell]), *rest


class Forever(Corridor):
    """Pays 1 a step and is only ever cut.

    With gamma 0.5 every state is worth 2, however short the episodes.
    """

    limit = 3

    def step(self, action):
        obs, _, _, truncated, info = super().step(action)
        return min(obs, 2), 1.0, False, truncated, info


class Failing(Corridor):
    """Raises in the middle of a run."""

    calls = 0

    def step(self, action):
        self.calls += 1
        if self.calls > 60:
            raise RuntimeError("the robot fell over")
        return super().step(action)
