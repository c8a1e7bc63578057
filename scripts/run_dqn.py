"""Train a Q-network on a gymnasium environment by DQN, or go on with a run.

python scripts/run_dqn.py --name=CartPole-v1
python scripts/run_dqn.py --name=Breakout-ram-v0 --seed=1 --run-dir=runs/breakout-1
python scripts/run_dqn.py --resume=runs/breakout-1
python scripts/run_dqn.py --name=Breakout-ram-v0 --actors=4    # with Ray (requirements-ray.txt)
"""

from tfdqt.games.run import main
from tfdqt.runs.cli import run_main

if __name__ == "__main__":
    run_main(lambda: main("dqn", __doc__))
