"""Copies of POPGym's games in sizes that its suite does not have: settings are tried on these.

    PYTHONPATH=benchmarks/memory python scripts/run_dqn.py --name=copies:RepeatPrevious16-v0

RepeatPrevious16: 51 steps, what was shown 16 steps before. PositionOnlyCartPole300: 300 steps.
CountRecallSuits: four kinds of 52 cards. Battleship6: three ships on 6x6 places.
"""

import functools

import gymnasium as gym
from popgym.envs.battleship import Battleship
from popgym.envs.count_recall import CountRecall
from popgym.envs.position_only_cartpole import PositionOnlyCartPole
from popgym.envs.repeat_previous import RepeatPrevious

COPIES = {
    "RepeatPrevious16-v0": functools.partial(RepeatPrevious, k=16),
    "PositionOnlyCartPole300-v0": functools.partial(PositionOnlyCartPole, max_episode_length=300),
    "CountRecallSuits-v0": functools.partial(CountRecall, deck_type="suits"),
    "Battleship6-v0": functools.partial(Battleship, board_size=6, ship_sizes=[2, 2, 3]),
}
for name, make in COPIES.items():
    gym.register(name, entry_point=make)
