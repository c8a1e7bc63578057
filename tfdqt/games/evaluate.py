"""scripts/evaluate.py on a game run: games by the network alone, or by a tree search."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfdqt import memory
from tfdqt.errors import UsageError
from tfdqt.games.algorithms import lockstep_parallel
from tfdqt.games.envs import close_env, env_fn_of, info_of, with_env_options, without_curriculum
from tfdqt.games.play import Games, film, games_that_fit, gif_of, longest_game, play_games
from tfdqt.games.search import play_searched
from tfdqt.games.space_json import info_to_json
from tfdqt.games.trained import Policy, TrainedRun, load_policy, load_run
from tfdqt.runs.evaluation import append_evaluation
from tfdqt.settings import check_left_out
from tfdqt.stats import confidence, decimals

SEARCHED_AT_ONCE = 64  # games by a search, each of which holds a tree


def evaluate_games(run_dir, args):
    """Play with a game run; print what came of it, add it to evaluation.csv, and film a game.

    args: those of scripts/evaluate.py. Returns the TrainedRun that played. Raises UsageError for
    flags that say nothing of such a run.
    """
    check_left_out(
        args,
        "is for text runs; leave it out for a gymnasium environment",
        "beta",
        "temperature",
        "best_of",
    )
    if not args.video:
        check_left_out(args, "is for a film; add --video=DIR, or leave it out", "video_steps")
    if args.simulations is None:
        check_left_out(
            args,
            "is for a search; add --simulations=N (1: the network alone), or leave it out",
            "exploration",
            "avoid_repeats",
            "leaves",
        )
        evaluated = _evaluated_plain(run_dir, args)
    else:
        check_left_out(
            args,
            "is for games without --simulations, which plays what the search chose; leave one out",
            "epsilon",
            "sample",
            "workers",
        )
        evaluated = _evaluated_search(run_dir, args)
    trained = evaluated.trained
    name = trained.settings["name"]
    returns, lengths, cut = evaluated.games
    if cut:
        print(
            f"{cut} of {args.episodes} games were not over after {evaluated.max_steps} steps, and "
            "count as they stood; --max-steps sets how long a game is waited for."
        )
    low, high = confidence(returns)
    how = evaluated.how + (f" with {args.env_options}" if args.env_options else "")
    digits = decimals(returns)
    print(
        f"{name} seed {trained.settings['seed']} after {trained.step} steps: {args.episodes} games "
        f"{how}: mean {returns.mean():.{digits}f}, std {returns.std():.{digits}f}, 95% CI of the "
        f"mean [{low:.{digits}f}, {high:.{digits}f}], min {returns.min():g}, median "
        f"{np.median(returns):g}, max {returns.max():g}, mean length {lengths.mean():.0f}"
    )
    columns = dict(epsilon=args.epsilon, sample=args.sample, **evaluated.columns)
    if args.loops is not None:
        columns["loops"] = args.loops
    if args.max_steps is not None:
        columns["max_steps"] = args.max_steps
    if args.env_options:
        columns["env_options"] = args.env_options
    append_evaluation(run_dir, trained.step, args.seed, columns, returns, lengths, evaluated.a_game)
    if args.video:
        make_filmed = functools.partial(env_fn_of(trained.settings), render_mode="rgb_array")
        mp4, score = film(
            make_filmed,
            evaluated.filmed,
            args.video,
            seed=args.seed,
            max_steps=evaluated.longest_film,
        )
        gif_of(mp4, mp4.with_suffix(".gif"))
        print(f"Film of a game that scored {score:g}: {mp4} and {mp4.with_suffix('.gif')}")
    return trained


def check_film(env_fn, folder):
    """Raise UsageError if a game can't be filmed, before any is played."""
    folder = Path(folder)
    there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not there:
            folder.rmdir()  # gymnasium warns of a folder that it did not make
    except OSError as error:
        raise UsageError(
            f"--video={folder} can't be a folder ({error.strerror}); name another."
        ) from None
    try:
        close_env(env_fn(render_mode="rgb_array"))
    except UsageError as error:
        raise UsageError(
            f"{str(error).rstrip('.')}; --video needs render_mode='rgb_array', so leave it out."
        ) from None


class _Evaluated(NamedTuple):
    """What came of an evaluation."""

    trained: TrainedRun
    games: Games
    max_steps: int
    how: str  # they were played, in words
    columns: dict  # of evaluation.csv: how they were played
    a_game: dict  # the same, with a value for each game
    filmed: object  # what `film` plays with
    longest_film: int


def _prepared(trained, args):
    """What games are played with: (TrainedRun, env_fn, steps after which one is cut)."""
    trained = _on_options(trained, args)
    env_fn = env_fn_of(trained.settings)
    if args.video:
        check_film(env_fn, args.video)
    return trained, env_fn, longest_game(env_fn) if args.max_steps is None else args.max_steps


def _on_options(trained, args):
    """The run with --env-options over those of its environment; its network is as it was.

    A puzzle is played without its curriculum, unless they give one. Raises UsageError if they
    change what the network sees or does.
    """
    trained = trained._replace(settings=without_curriculum(trained.settings))
    if not args.env_options:
        return trained
    trained = trained._replace(settings=with_env_options(trained.settings, args.env_options))
    known = trained.info
    found = info_of(env_fn_of(trained.settings), known.name)
    if info_to_json(found._replace(obs_dtype=known.obs_dtype)) != info_to_json(known):
        raise UsageError(
            f"--env-options={args.env_options} makes observations or actions of {known.name} that "
            f"the run was not trained on ({found.observation_space} and {found.action_space}, not "
            f"{known.observation_space} and {known.action_space}); leave out what changes them."
        )
    return trained


def _fitting(trained, args, most=None):
    """How many games are played at once, of `args.episodes` or `most`."""
    name = trained.settings["name"]
    wanted = min(args.episodes, most or args.episodes)
    env_fn = env_fn_of(trained.settings)
    at_once, a_game = games_that_fit(env_fn, wanted, trained.info, trained.settings["network"])
    if at_once < wanted:
        print(
            f"A game of {name} takes {memory.in_words(a_game)} of memory: {at_once} are played at "
            "a time."
        )
    return at_once


def _evaluated_plain(run_dir, args):
    """Whole games by the network alone: -> _Evaluated."""
    policy = load_policy(
        run_dir,
        args.checkpoint,
        epsilon=args.epsilon,
        sample=args.sample,
        seed=args.seed,
        loops=args.loops,
    )
    trained, env_fn, max_steps = _prepared(policy.trained, args)
    workers = args.workers
    if workers is None:
        # Acting and stepping take turns here, whatever the algorithm did.
        workers = lockstep_parallel(trained.settings["name"])["workers"]
    games = play_games(
        env_fn,
        policy,
        episodes=args.episodes,
        seed=args.seed,
        workers=workers,
        max_steps=max_steps,
        at_once=_fitting(trained, args),
    )
    how = "with actions drawn from the policy" if args.sample else f"at epsilon {args.epsilon:g}"
    filmed = Policy(trained, epsilon=args.epsilon, sample=args.sample, seed=args.seed)
    return _Evaluated(trained, games, max_steps, how, {}, {}, filmed, args.video_steps)


def _evaluated_search(run_dir, args):
    """Whole games by a search: -> _Evaluated."""
    trained = load_run(run_dir, args.checkpoint, args.loops)
    trained, env_fn, max_steps = _prepared(trained, args)
    columns = dict(
        simulations=args.simulations,
        exploration=args.exploration,
        avoid_repeats=args.avoid_repeats,
        leaves=args.leaves,
    )
    games = play_searched(
        env_fn,
        trained,
        episodes=args.episodes,
        seed=args.seed,
        max_steps=max_steps,
        at_once=_fitting(trained, args, most=SEARCHED_AT_ONCE),
        **columns,
    )
    a_game = dict(evaluations=games.evaluations, ms_a_move=1000 * games.seconds / games.lengths)
    if games.distances is not None:
        a_game["distance"] = games.distances
    moves = games.lengths.sum()
    evaluations = games.evaluations.sum() / moves
    milliseconds = 1000 * games.seconds.sum() / moves
    how = (
        f"by {args.simulations} simulation{'s' * (args.simulations > 1)} a move "
        f"({evaluations:.1f} evaluations of the network, {milliseconds:.1f} ms)"
    )
    return _Evaluated(
        trained,
        Games(games.returns, games.lengths, games.cut),
        max_steps,
        how,
        columns,
        a_game,
        Replayed(trained.info, games.actions[0]),
        min(args.video_steps, len(games.actions[0])),
    )


class Replayed:
    """Plays the actions of a game that was played before, counted from 0; see `Policy`."""

    def __init__(self, info, actions):
        self.info = info
        self.actions = actions

    def reset(self, num_envs=None):
        """Begin again. num_envs: None or 1."""
        self.rest = iter(self.actions)

    def act(self, obs, first=None):
        """The next action: -> [1]."""
        return np.array([next(self.rest)])
