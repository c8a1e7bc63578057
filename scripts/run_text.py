"""Train a pruned BERT and a Q-head on a text task, or go on with a run.

python scripts/run_text.py
python scripts/run_text.py --task=wordle --seed=1 --run-dir=runs/wordle-1
python scripts/run_text.py --resume=runs/wordle-1
"""

from tfdqt.runs.cli import run_main
from tfdqt.text.run import main

if __name__ == "__main__":
    run_main(lambda: main(__doc__))
