"""What all puzzles have in common: checked options, the reward, the end of an episode, pictures."""

import math
import numbers

import gymnasium
import numpy as np

from tfdqt.errors import UsageError
from tfdqt.settings import is_whole

TILE = 32  # pixels of a cell
GIVE_UP = 20_000  # levels that are drawn in vain


def check_whole(name, value, least, most=None):
    """Raise UsageError if an option is no whole number of the range."""
    if not is_whole(value) or value < least or most is not None and value > most:
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} is a whole number {span}, not {value!r}.")


def _is_real(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_share(name, value):
    """Raise UsageError if an option is no number from 0 to 1."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise UsageError(f"{name} is a number from 0 to 1, not {value!r}.")


def check_lengths(least, most):
    """Raise UsageError if no solution can be as long as asked for."""
    check_whole("least", least, 1)
    if most is not None:
        check_whole("most", most, least)


def no_level(what, split, least, most):
    """The UsageError of levels that can't be drawn."""
    span = f"{least} or more" if most is None else f"{least} to {most}"
    return UsageError(
        f"Of {GIVE_UP:,} drawings none was {what} of the set {split!r} with a solution of {span} "
        "steps; ask for a less rare one."
    )


def optimal_q(next_distance, discount, step_cost=0.0):
    """The value of each action under optimal play without a limit of steps.

    next_distance: steps to the solution after each action, inf where there is none.
    discount: from 0 to 1; step_cost: taken off the reward of every step, as by the environments.
    Returns an array of the shape of next_distance, float64.
    """
    steps = np.asarray(next_distance, np.float64)
    solved = np.where(np.isinf(steps), 0.0, discount**steps)
    if not step_cost:
        return solved
    if discount == 1:
        return solved - step_cost * (steps + 1)
    powers = np.where(np.isinf(steps), 0.0, discount ** (steps + 1))
    return solved - step_cost * (1 - powers) / (1 - discount)


def picture(tiles, grid):
    """A grid [H, W] of codes drawn with tiles [codes, TILE, TILE, 3]: -> [H*TILE, W*TILE, 3]."""
    height, width = grid.shape
    return tiles[grid].transpose(0, 2, 1, 3, 4).reshape(height * TILE, width * TILE, 3)


class Puzzle(gymnasium.Env):
    """A puzzle that is solved or not. `NAME` is what messages call it.

    The reward is 1 for the step that solves it, and 0 otherwise, less `step_cost`; then the episode
    terminates. After `max_steps` it is truncated; max_steps=None: after twice the shortest solution
    and 10 steps. `info["distance"]` of a reset is the least number of steps to the solution.
    """

    NAME = "A puzzle"
    metadata = {
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
        "picture_margin": 0,
    }

    def __init__(self, max_steps, step_cost, render_mode):
        if max_steps is not None:
            check_whole("max_steps", max_steps, 1)
        if not _is_real(step_cost) or not math.isfinite(step_cost):
            raise UsageError(f"step_cost is a number, not {step_cost!r}.")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UsageError(f"render_mode is ansi or rgb_array, not {render_mode!r}.")
        self.max_steps = max_steps
        self.step_cost = float(step_cost)
        self.render_mode = render_mode
        self.steps = 0
        self.distance = 0  # at the start of the episode, in steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        level = self.level_of(options)
        self._show(*(self._draw() if level is None else self._given(level)))
        return self.grid(), {**self._details(), "distance": self.distance}

    def _draw(self):
        """A level drawn at random: (grid, least number of steps to its solution)."""
        raise NotImplementedError

    def _given(self, text):
        """The same of a level that a reset was given. Raises UsageError if it can't be played."""
        raise NotImplementedError

    def _show(self, grid, distance):
        """Start from a grid."""
        raise NotImplementedError

    def _details(self):
        """The info of each step."""
        return {}

    def grid(self):
        """The observation, [size, size] uint8."""
        raise NotImplementedError

    def patience(self):
        """Steps of an episode with max_steps=None."""
        return 2 * self.distance + 10

    def level_of(self, options):
        """The text of a level that a reset was given, or None."""
        unknown = sorted(map(str, set(options or {}) - {"level"}))
        if unknown:
            raise UsageError(f"{self.NAME}'s reset takes the option level, not {unknown[0]!r}.")
        level = (options or {}).get("level")
        if level is not None and not isinstance(level, str):
            raise UsageError(f"The level of a {self.NAME} is text, not {level!r:.60}.")
        return level

    def answer(self, solved):
        """What `step` returns."""
        self.steps += 1
        reward = (1.0 if solved else 0.0) - self.step_cost
        most = self.patience() if self.max_steps is None else self.max_steps
        cut = not solved and self.steps >= most
        return self.grid(), reward, solved, cut, self._details()

    def text(self):
        """The present state as a reset takes it."""
        raise NotImplementedError

    def image(self):
        """The present state as a picture [pixels, pixels, 3] uint8."""
        raise NotImplementedError

    def render(self):
        if self.render_mode == "ansi":
            return self.text()
        return self.image() if self.render_mode == "rgb_array" else None
