"""Train a policy on a gymnasium environment by PPO, or go on with a run.

    python scripts/run_ppo.py --name=CartPole-v1
    python scripts/run_ppo.py --name=Breakout-ram-v0 --seed=1 --run-dir=runs/breakout-ppo-1
    python scripts/run_ppo.py --resume=runs/breakout-ppo-1
"""

import dataclasses
from typing import Annotated

import tyro

from tfdqt.config import PPOConfig
from tfdqt.game_runs import GameArgs, train
from tfdqt.runs import run_main


@dataclasses.dataclass(frozen=True)
class Args(GameArgs):
    """Train a policy by PPO. The defaults shown are those of --name."""

    ppo: Annotated[PPOConfig, tyro.conf.arg(name="")] = PPOConfig()


if __name__ == "__main__":
    run_main(lambda: train(Args, "ppo", __doc__))
