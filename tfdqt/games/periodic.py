"""Games that a run is evaluated by while it trains; the best policy is kept."""

import contextlib
import math
import random

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.games.loop import Evaluation, learner_snapshot
from tfdqt.games.play import games_that_fit, longest_game, play_games
from tfdqt.games.trained import Policy, TrainedRun
from tfdqt.runs.checkpoint import BEST, checkpoints, load_checkpoint, save_checkpoint


@contextlib.contextmanager
def generators_kept():
    """Put Python's and numpy's global generators back behind the block.

    Environments may draw from them, and training's are to go on as if none had played in between.
    """
    python = random.getstate()
    numpy = np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def make_evaluation(
    env_fn,
    info,
    algorithm,
    network,
    run_dir,
    *,
    every,
    episodes,
    seed=0,
    workers=0,
    stop_at_score=None,
    should_stop=None,
):
    """An Evaluation of a run in `run_dir`, which keeps the best policy there in best/.

    Every one plays the same games with the weights that act, as `evaluate_games` does by default,
    seeded apart from all others.

    Args:
      env_fn, info: of the environments. algorithm, network: its Algorithm and NetworkConfig.
      every: environment steps between two. episodes: games of one.
      stop_at_score: the mean return at which the run is to stop, or None.
      should_stop: asked at every step; when true, the evaluation is broken off.

    Its `play` tells of the evaluations so far: `last` and `best`, mean returns, and whether the
    last one `reached` stop_at_score.
    """
    game_seed = evaluation_seed(seed)
    max_steps = longest_game(env_fn)
    made = []  # with the first evaluation: the policy, compiled then, and how many games fit

    def play(net, state, progress):
        weights = getattr(state, algorithm.acting)
        with generators_kept():
            if not made:
                made.append(Policy(TrainedRun(net, weights, info, algorithm, {}, 0)))
                made.append(games_that_fit(env_fn, episodes, info, network)[0])
            policy, at_once = made
            policy.trained = policy.trained._replace(weights=weights)
            games = play_games(
                env_fn,
                policy,
                episodes=episodes,
                seed=game_seed,
                workers=workers,
                max_steps=max_steps,
                at_once=at_once,
                should_stop=should_stop,
            )
        if games is None:
            return None
        score = float(games.returns.mean())
        if play.best is None or score > play.best:
            play.best = score
            tree = learner_snapshot(state, progress, evaluation=score)
            save_checkpoint(run_dir, progress.step, tree, folder=BEST, kept=1)
        play.last = score
        play.reached = stop_at_score is not None and score >= stop_at_score
        return score, play.reached

    play.last = math.nan
    play.best = best_score(run_dir)
    play.reached = False
    return Evaluation(every, play)


def evaluation_seed(seed):
    """The seed of the games that a run of `seed` is evaluated by while it trains."""
    return int(np.random.SeedSequence([seed, 9]).generate_state(1)[0])


def best_score(run_dir):
    """The mean return that the policy in best/ had in its evaluation; None without one."""
    for path in reversed(checkpoints(run_dir, BEST)):
        with contextlib.suppress(UsageError):  # it is damaged
            return load_checkpoint(run_dir, path, best_too=True)[0]["evaluation"]
    return None
