"""Train a Q-network on a gymnasium environment by PQN, or go on with a run.

python scripts/run_pqn.py --name=CartPole-v1
python scripts/run_pqn.py --name=Breakout-ram-v0 --seed=1 --run-dir=runs/breakout-pqn-1
python scripts/run_pqn.py --resume=runs/breakout-pqn-1
"""

from tfdqt.games.run import main
from tfdqt.runs.cli import run_main

if __name__ == "__main__":
    run_main(lambda: main("pqn", __doc__))
