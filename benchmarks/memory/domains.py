"""Environments that ask for memory, on which DTQN was measured (Esslinger et al., 2022).

    PYTHONPATH=benchmarks/memory python scripts/run_dqn.py --name=domains:CarFlag-v0

Written by the rules of DTQN's code, of gym-gridverse and of gym-pomdps, so that they need no old
version of gym. A game is a success if its return is over that of SUCCESS (in GridMemory, where each
step costs something, a right exit after 199 steps is none).
"""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class CarFlag(gym.Env):
    """A car between two flags, one good and one bad. Which is which is told near 0.5 alone.

    Observation: position, velocity and the side of the good flag, -1 or 1, or 0 where it is not
    told. Actions: push to the left, nothing, push to the right. Reward 1 or -1 at a flag.
    """

    FLAG = 1.0
    POWER = 0.0015
    FASTEST = 0.07
    TOLD = (0.3, 0.7)  # positions at which the side is told

    def __init__(self):
        high = np.array([1.1, self.FASTEST, 1.0], np.float32)
        self.observation_space = spaces.Box(-high, high)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.good = float(self.np_random.choice([-1, 1]))
        self.position = float(self.np_random.uniform(-0.2, 0.2))
        self.velocity = 0.0
        return self._obs(), {}

    def step(self, action):
        pushed = self.velocity + (action - 1) * self.POWER
        self.velocity = float(np.clip(pushed, -self.FASTEST, self.FASTEST))
        self.position = float(np.clip(self.position + self.velocity, -1.1, 1.1))
        ended = abs(self.position) >= self.FLAG
        reward = self.good * float(np.sign(self.position)) if ended else 0.0
        return self._obs(), reward, ended, False, {}

    def _obs(self):
        told = self.TOLD[0] <= self.position <= self.TOLD[1]
        side = self.good if told else 0.0
        return np.array([self.position, self.velocity, side], np.float32)


class MemoryCards(gym.Env):
    """Pairs of cards that lie face down; at each step one is shown, and its like must be named.

    Observation: of each card 0 face down, 1 to `pairs` shown, `pairs` + 1 taken. Reward -1 for a
    card that is not its like, 0 for one that is, by which both are taken.
    """

    def __init__(self, pairs=5):
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, not {pairs}.")
        self.taken = pairs + 1
        self.pairs = pairs
        self.observation_space = spaces.MultiDiscrete(np.full(2 * pairs, pairs + 2))
        self.action_space = spaces.Discrete(2 * pairs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cards = self.np_random.permutation(np.repeat(np.arange(1, self.pairs + 1), 2))
        self.left = np.ones(2 * self.pairs, bool)
        self._show()
        return self._obs(), {}

    def step(self, action):
        pair = (
            action != self.shown
            and self.left[action]
            and self.cards[action] == self.cards[self.shown]
        )
        if pair:
            self.left[[action, self.shown]] = False
        ended = not self.left.any()
        if not ended:
            self._show()
        return self._obs(), 0.0 if pair else -1.0, ended, False, {}

    def _show(self):
        self.shown = int(self.np_random.choice(np.flatnonzero(self.left)))

    def _obs(self):
        seen = np.where(self.left, 0, self.taken)
        if self.left[self.shown]:
            seen[self.shown] = self.cards[self.shown]
        return seen


class HeavenHell(gym.Env):
    """A crossing whose one end is heaven and whose other is hell; a priest elsewhere knows which.

    From the start, 0, a way leads `length` cells north to the crossing, from which heaven and hell
    lie `length` cells west and east, and a cell south and `length` cells east to the priest:

        6 5 4 3 7 8 9
              2
              1
              0
             10 11 12 13

    Observation: the cell, at the priest's one of two numbers beyond. Actions: north, south, east,
    west. At either end the next action ends the game, with 1 in heaven and -1 in hell.
    """

    NORTH, SOUTH, EAST, WEST = range(4)

    def __init__(self, length=3):
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}.")
        self.length = length
        self.cells = 2 + 4 * length
        self.ends = (2 * length, 3 * length)  # west, east
        self.observation_space = spaces.Discrete(self.cells + 1)
        self.action_space = spaces.Discrete(4)
        self.ways = self._ways()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.heaven = int(self.np_random.choice(self.ends))
        self.cell = 0
        return self._obs(), {}

    def step(self, action):
        if self.cell in self.ends:
            reward = 1.0 if self.cell == self.heaven else -1.0
            return self._obs(), reward, True, False, {}
        self.cell = self.ways.get((self.cell, int(action)), self.cell)
        return self._obs(), 0.0, False, False, {}

    def _obs(self):
        priest = self.cells - 1
        return priest + (self.heaven == self.ends[1]) if self.cell == priest else self.cell

    def _ways(self):
        """(cell, action) -> the cell that it leads to, both ways."""
        n = self.length
        south = self.cells - n - 1
        ways = {}
        for start, cells, there, back in (
            (0, range(1, n + 1), self.NORTH, self.SOUTH),
            (n, range(n + 1, 2 * n + 1), self.WEST, self.EAST),
            (n, range(2 * n + 1, 3 * n + 1), self.EAST, self.WEST),
            (0, (south,), self.SOUTH, self.NORTH),
            (south, range(south + 1, self.cells), self.EAST, self.WEST),
        ):
            for cell in cells:
                ways[start, there] = cell
                ways[cell, back] = start
                start = cell
        return ways


class GridMemory(gym.Env):
    """Rooms of gym-gridverse: the exit to take is the one that has the colour of the beacons.

        # # # # # # #     E: exits, of which one has the beacons' colour
        # E . . . E #     B: beacons, both of the same colour
        # # # . # # #     The agent starts in the middle and looks north.
        # # # . # # #
        # # # . # # #
        # B . . . B #
        # # # # # # #

    Observation: the three cells before the agent and the agent's own between its neighbours,
    [2, 3]: 0 wall, 1 floor, 2 to 5 an exit and 6 to 9 a beacon, by colour. Actions: a step forward,
    back, to the left, to the right; turn left, turn right. Reward -0.05 a step, and 5 or -5 at an
    exit.
    """

    WALL, FLOOR, EXIT, BEACON = 0, 1, 2, 6
    COLOURS = 4
    HEADINGS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # north, east, south, west

    def __init__(self, size=7):
        if size < 5 or not size % 2:
            raise ValueError(f"size must be odd and at least 5, not {size}.")
        self.size = size
        self.observation_space = spaces.MultiDiscrete(np.full((2, 3), self.BEACON + self.COLOURS))
        self.action_space = spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        last = self.size - 2
        middle = self.size // 2
        self.grid = np.full((self.size, self.size), self.WALL)
        self.grid[[1, last], 2:last] = self.FLOOR
        self.grid[2:last, middle] = self.FLOOR
        good, bad = self.np_random.choice(self.COLOURS, 2, replace=False)
        sides = self.np_random.permutation([1, last])
        self.good = (1, int(sides[0]))
        self.grid[self.good] = self.EXIT + good
        self.grid[1, sides[1]] = self.EXIT + bad
        self.grid[last, [1, last]] = self.BEACON + good
        self.position = np.array([middle, middle])
        self.heading = 0
        return self._obs(), {}

    def step(self, action):
        if action < 4:
            turned = (0, 2, 3, 1)[action]  # forward, back, left, right
            to = self.position + self.HEADINGS[(self.heading + turned) % 4]
            if self.grid[tuple(to)] != self.WALL:
                self.position = to
        else:
            self.heading = (self.heading + (3 if action == 4 else 1)) % 4
        here = self.grid[tuple(self.position)]
        ended = bool(self.EXIT <= here < self.BEACON)
        success = ended and tuple(self.position) == self.good
        reward = -0.05 + (5.0 if success else -5.0 if ended else 0.0)
        return self._obs(), reward, ended, False, {}

    def _obs(self):
        ahead = self.HEADINGS[self.heading]
        right = self.HEADINGS[(self.heading + 1) % 4]
        seen = [
            [self.position + row * ahead + column * right for column in (-1, 0, 1)]
            for row in (1, 0)
        ]
        return self.grid[tuple(np.moveaxis(seen, -1, 0))]


LIMITS = {CarFlag: 200, MemoryCards: 50, HeavenHell: 100, GridMemory: 250}  # steps of a game
# MemoryCards: all of five pairs are taken by step 50, so at most 45 cost a point.
SUCCESS = {"CarFlag-v0": 0, "MemoryCards-v0": -46, "HeavenHell-v0": 0, "GridMemory-v0": -5}

for env, steps in LIMITS.items():
    gym.register(f"{env.__name__}-v0", entry_point=env, max_episode_steps=steps)
