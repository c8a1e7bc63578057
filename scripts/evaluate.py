"""Play whole games with the network of a run, or write with one of texts.

python scripts/evaluate.py runs/breakout-1 --episodes=30 --epsilon=0.05 --video=film
python scripts/evaluate.py runs/frozenlake-0 --simulations=32
python scripts/evaluate.py runs/sokoban-0 --env-options='{"split": "test"}'
python scripts/evaluate.py runs/writer --best-of=4
"""

import dataclasses
from typing import Annotated

import tyro

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import is_game_run
from tfdqt.games.config import EXPLORATION
from tfdqt.runs.cli import read_settings, run_main
from tfdqt.runs.folder import find_run
from tfdqt.settings import check_at_least_one, check_fractions, check_not_negative


@dataclasses.dataclass(frozen=True)
class Args:
    """Play whole games with the network of a run and print their mean score."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    episodes: int = 100
    """Games to play, or texts to write."""
    env_options: str = ""
    """Options of the environment, as JSON, put over those that the run was trained on:
    '{"split": "test"}'."""
    epsilon: float = 0.0
    """Probability of a random action (0: greedy)."""
    sample: bool = False
    """PPO runs: draw actions from the policy instead of taking the likeliest."""
    seed: int = 1_000
    """Seeds the games."""
    checkpoint: str | None = None
    """Checkpoint to take, by default the newest; best: the one that played best while the run
    trained with --evaluate-every."""
    max_steps: int | None = None
    """Longest game that is waited for; a longer one counts as it stands. By default 30,000 steps,
    or the environment's own limit if that is more."""
    workers: int | None = None
    """Processes that step the environments (0: none), by default one a core, or none for
    CartPole and puzzles."""
    video: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for a film (MP4 and GIF) of one more game."""
    video_steps: int = 2_000
    """Longest film, in steps."""
    explain: bool = False
    """With --video: also film, beside the picture, the value of each action with its quantiles, the
    attention of each block or what the choice hangs on, and lives that are lost."""
    simulations: int | None = None
    """Search a tree of what can come next before each move, by so many simulations of PUCT over
    copies of the environment; 1: the network alone."""
    loops: int | None = None
    """Looped networks: run the blocks so many times instead of as often as trained."""
    exploration: float = EXPLORATION
    """With --simulations: c of PUCT, how much actions are tried that seem worse."""
    avoid_repeats: bool = False
    """With --simulations: take no action that surely leads to an observation already met in this
    game, unless all do; with --simulations=1 too."""
    leaves: int = 1
    """With --simulations: states of one game that are valued at a time; more is quicker, and
    searches a little worse."""
    beta: float | None = None
    """Text runs: strength of the advantage over the cloned policy, in typical rewards if the run
    has --reward-units (0: that policy alone, inf: Q alone); by default as trained."""
    temperature: float | None = None
    """Text runs: how evenly actions are drawn (0: the best is taken); by default as trained."""
    best_of: int = 1
    """Corpus runs: texts written for each that counts; the one of the highest reward does."""


def explain(trained, args):
    """Film a game of a TrainedRun with what the network held of it."""
    from tfdqt.report.explained import play_explained
    from tfdqt.report.film import film_explained

    game = play_explained(
        trained,
        seed=args.seed,
        max_steps=args.video_steps,
        epsilon=args.epsilon,
        sample=args.sample,
    )
    print(f"Explained: {film_explained(game, args.video)}")


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    check_at_least_one(
        args,
        "episodes",
        "best_of",
        "max_steps",
        "video_steps",
        "simulations",
        "leaves",
        "loops",
    )
    check_fractions(args, "epsilon")
    given = [name for name in ("seed", "workers", "temperature") if getattr(args, name) is not None]
    check_not_negative(args, *given, "exploration")
    run_dir = find_run(args.run)
    if args.explain and (args.video is None or args.simulations is not None):
        raise UsageError("--explain films the network's own play; give --video=DIR with it.")
    if is_game_run(read_settings(run_dir)):
        from tfdqt.games.evaluate import evaluate_games

        trained = evaluate_games(run_dir, args)
        return explain(trained, args) if args.explain else 0
    from tfdqt.text.evaluate import evaluate_text

    return evaluate_text(run_dir, args)


if __name__ == "__main__":
    run_main(main)
