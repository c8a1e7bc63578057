"""Train a policy on a gymnasium environment by PPO, or go on with a run.

python scripts/run_ppo.py --name=CartPole-v1
python scripts/run_ppo.py --name=Breakout-ram-v0 --seed=1 --run-dir=runs/breakout-ppo-1
python scripts/run_ppo.py --resume=runs/breakout-ppo-1
"""

from tfdqt.games.run import main
from tfdqt.runs.cli import run_main

if __name__ == "__main__":
    run_main(lambda: main("ppo", __doc__))
