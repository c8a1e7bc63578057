"""Train a Q-network on a gymnasium environment by DQN, or go on with a run.

    python scripts/run_dqn.py --name=CartPole-v1
    python scripts/run_dqn.py --name=Breakout-ram-v0 --seed=1 --run-dir=runs/breakout-1
    python scripts/run_dqn.py --resume=runs/breakout-1
    python scripts/run_dqn.py --name=Breakout-ram-v0 --actors=4    # with Ray (requirements-ray.txt)
"""

import dataclasses
from typing import Annotated

import tyro

from tfdqt.config import DQNConfig, FarConfig
from tfdqt.game_runs import GameArgs, train
from tfdqt.runs import run_main


@dataclasses.dataclass(frozen=True)
class Args(GameArgs):
    """Train a Q-network by DQN. The defaults shown are those of --name."""

    dqn: Annotated[DQNConfig, tyro.conf.arg(name="")] = DQNConfig()
    far: Annotated[FarConfig, tyro.conf.arg(name="")] = FarConfig()


if __name__ == "__main__":
    run_main(lambda: train(Args, "dqn", __doc__))
