"""A trained network as a policy; whole games played with it, counted and filmed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.algorithms import (
    ALGORITHMS,
    Algorithm,
    is_game_run,
    lockstep_parallel,
    settings_classes,
)
from tfdqt.games.cost import attention_bytes
from tfdqt.games.envs import (
    close_env,
    env_fn_of,
    info_of,
    saved_info,
    with_env_options,
    without_curriculum,
)
from tfdqt.games.flat import (
    FlatModel,
    best_at_last,
    flatten_model,
    scores_at_last,
    set_weights,
    with_loops,
)
from tfdqt.games.reader import make_reader
from tfdqt.games.search import game_seed, play_searched
from tfdqt.games.slots import REST
from tfdqt.games.space_json import info_to_json
from tfdqt.games.spaces import (
    MASK_KEY,
    EnvInfo,
    legal_actions,
    make_action,
    read_mask,
)
from tfdqt.games.stepwise import make_stepwise
from tfdqt.games.vec_envs import make_vec_env
from tfdqt.games.window import make_window, network_inputs, push
from tfdqt.policy import draw_actions, epsilon_greedy
from tfdqt.runs.checkpoint import load_checkpoint
from tfdqt.runs.cli import read_settings
from tfdqt.runs.evaluation import append_evaluation, check_left_out
from tfdqt.runs.folder import find_run
from tfdqt.runs.processes import CLOSE_SECONDS
from tfdqt.stats import confidence, decimals

FILM_SECONDS = 120  # for the close() that writes a film
COLORS = 128  # of a GIF
PALETTE_FRAMES = 16  # that these are chosen from


class TrainedRun(NamedTuple):
    """A trained network and where it comes from."""

    net: FlatModel
    weights: tf.Tensor  # [W], those that act
    info: EnvInfo
    algorithm: Algorithm
    settings: dict  # of config.json
    step: int  # environment steps it was trained for


# A longer game is cut, if the environment has no limit of its own; Atari's is 27,000 steps.
LONGEST_GAME = 30_000
SEARCHED_AT_ONCE = 64  # games by a search, each of which holds a tree


def load_run(run_dir, checkpoint=None, loops=None):
    """The network of a run's newest checkpoint, of the one named, or of "best".

    loops: how often a looped network runs its blocks; by default as often as it was trained.
    Raises UsageError if there is none that is whole, or it does not fit its config.json.
    """
    folder = find_run(run_dir)
    plain = read_settings(folder)
    if not is_game_run(plain):
        raise UsageError(f"{run_dir} is a text run; load_writer opens it.")
    name = plain["algorithm"]
    algorithm = ALGORITHMS[name]
    settings = read_settings(folder, **settings_classes(name, plain))
    saved, _ = load_checkpoint(folder, checkpoint, best_too=True)
    info = saved_info(settings)
    network = settings["network"]
    if loops is not None:
        if network.loops == 1:
            raise UsageError(
                f"--loops is for runs trained with --loops, and {run_dir} was trained without; "
                "leave it out."
            )
        network = dataclasses.replace(network, loops=max(loops, 2 if network.loops_random else 1))
    net = flatten_model(algorithm.build(info, network), info)
    weights = tf.constant(algorithm.acting_weights(saved))
    if weights.shape != net.start.shape:
        raise UsageError(
            f"The checkpoint of {run_dir} holds {weights.shape[0]} weights, but the network of its "
            f"config.json has {net.start.shape[0]}; put back the config.json that the run was "
            "started with."
        )
    if net.loop_limit is not None:
        weights = with_loops(net, weights, loops or network.loops)
    set_weights(net, weights)
    return TrainedRun(net, weights, info, algorithm, settings, saved["progress"]["step"])


# -------------------------------------------------------------------------------------------------
# A policy


class Policy:
    """Acts in one environment or in many, with the window of past steps kept inside.

    >>> policy = tfdqt.load_policy("runs/cartpole-0")
    >>> env = gymnasium.make("CartPole-v1")
    >>> obs, _ = env.reset()
    >>> policy.reset()
    >>> action = policy(obs)  # an int; then env.step(action), policy(obs) and so on

    Of many environments the rows that start an episode are told at each call:

    >>> policy.reset(num_envs=8)
    >>> actions = policy(obs, first=first)  # obs [8, ...], first [8] bool -> [8]

    Args:
      trained: TrainedRun.
      epsilon: probability of a random action; 0: the best always.
      sample: of a run that learned a policy: actions are drawn from it.
      seed: of what is drawn.
    """

    def __init__(self, trained, *, epsilon=0.0, sample=False, seed=0):
        if not 0 <= epsilon <= 1:
            raise UsageError(f"epsilon must lie between 0 and 1, not {epsilon}.")
        self.trained = trained
        self.info = trained.info
        self.epsilon = epsilon
        self.sample = sample
        self._rng = np.random.default_rng([seed, 2])
        scores_of = trained.algorithm.scores
        self._read = make_reader(trained.info).read
        self._action_of = make_action(trained.info.action_space)
        scores = scores_at_last(scores_of)
        best = best_at_last(scores_of, trained.net.parts)
        self._begin = make_stepwise(trained.net, scores if sample else best)
        self._single = True
        self.reset()

    def reset(self, num_envs=None):
        """Forget the past: all environments start an episode. num_envs: None for a single one."""
        self._single = num_envs is None
        count = 1 if num_envs is None else num_envs
        if count < 1:
            raise UsageError(f"num_envs must be at least 1, not {num_envs}.")
        self._window = make_window(self.info, count, self.trained.net.context)
        self._action = np.full(count, -1)
        self._fresh = np.ones(count, bool)
        self._look = self._begin(self.trained.weights)

    def __call__(self, obs, first=None, mask=None):
        """The action for an observation, or for N of them: an int, or [N].

        Observations and actions as the environment, or gymnasium's vector of N, has them; actions
        of several parts are arrays.

        Args:
          first: [N], which rows start an episode with this observation; of a single environment
            `reset` tells that.
          mask: [A] or [N, A], the legal actions, where they are not in the observation.

        Raises UsageError for what does not fit the spaces the network was trained on.
        """
        count = len(self._fresh)
        observations = [obs] if self._single else _apart(obs)
        if len(observations) != count:
            raise UsageError(
                f"{count} observations of {self.info.name} are asked for, not {len(observations)}; "
                "reset(num_envs=N) makes the policy act for N environments at once."
            )
        if first is not None and np.shape(first) != (count,):
            raise UsageError(f"first must tell of each of {count} environments, not {first}.")
        masks = [mask] if self._single else [None] * count if mask is None else mask
        if self.info.mask and (
            len(masks) != count or masks[0] is None and self.info.mask != "observation"
        ):
            raise UsageError(
                f"{self.info.name} says which actions are legal: give mask, one of each of {count} "
                "environments."
            )
        try:
            rows = [self._row(*one) for one in zip(observations, masks)]
        except EnvFailure as error:
            raise UsageError(
                f"A policy of {self.info.name} was given what its environment never shows: {error}."
            ) from None
        actions = [self._action_of(action) for action in self.act(np.stack(rows), first)]
        return actions[0] if self._single else np.array(actions)

    def _row(self, obs, mask):
        """An observation as the network is shown it, [F]; raises EnvFailure if it does not fit."""
        row = self._read(obs)
        if not self.info.mask:
            return row
        if self.info.mask == "observation" and mask is None:
            mask = obs.get(MASK_KEY)
        return np.concatenate([row, read_mask(mask, self.info, "mask")])

    def act(self, obs, first=None):
        """As a call, for obs [N, ...] and actions [N] that both count from 0."""
        first = self._fresh if first is None else np.asarray(first, bool) | self._fresh
        push(self._window, obs, first, self._action)
        self._fresh = np.zeros(len(first), bool)
        inputs = network_inputs(self._window)
        found = self._look(inputs)
        if self.sample:
            self._action = draw_actions(self._rng, found, self.info.parts)
        else:
            legal = legal_actions(self.info, self._window.obs[:, -1])
            self._action = epsilon_greedy(
                self._rng, found, self.info.num_actions, self.epsilon, legal, self.info.parts
            )
        return self._action


def _apart(obs):
    """Observations of a vector of environments, one by one."""
    if isinstance(obs, dict):
        parts = [_apart(part) for part in obs.values()]
        return [dict(zip(obs, each)) for each in zip(*parts)]
    if isinstance(obs, tuple):
        return list(zip(*[_apart(part) for part in obs]))
    return list(obs) if np.ndim(obs) else [obs]


def load_policy(run_dir, checkpoint=None, *, epsilon=0.0, sample=False, seed=0, loops=None):
    """The Policy of a run's newest checkpoint, of the one named, or of "best" (the one that played
    best while it trained); see `Policy` and `load_run` for the others.

    Raises UsageError if there is none that is whole, or nothing to draw from.
    """
    trained = load_run(run_dir, checkpoint, loops)
    if sample and (not trained.algorithm.is_policy or epsilon):
        raise UsageError(
            "--sample draws from the policy of a PPO run, without --epsilon; leave it out."
        )
    return Policy(trained, epsilon=epsilon, sample=sample, seed=seed)


# -------------------------------------------------------------------------------------------------
# Whole games


class Games(NamedTuple):
    """What came of whole games."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes] steps
    cut: int  # how many were not over when they were left


def play_episodes(env_fn, policy, *, episodes, seed=0, workers=0, max_steps=None):
    """As `play_games`, without a count of those that were cut: -> (returns, lengths)."""
    options = dict(episodes=episodes, seed=seed, workers=workers, max_steps=max_steps)
    return play_games(env_fn, policy, **options)[:2]


def play_games(
    env_fn,
    policy,
    *,
    episodes,
    seed=0,
    workers=0,
    max_steps=None,
    at_once=None,
    should_stop=None,
    close_seconds=CLOSE_SECONDS,
):
    """Play `episodes` games, each in an environment of its own: -> Games.

    A game longer than `max_steps` steps counts as it stands then. The outcome depends on `seed` and
    the policy's alone; what a policy draws depends on `at_once` too.

    Args:
      at_once: games that are played side by side, by default all.
      should_stop: asked at every step; when true, what was played is dropped, and None returned.
      close_seconds: that the environments have to close.
    """
    env_seed = game_seed(seed)
    games = []
    for first in range(0, episodes, at_once or episodes):
        count = min(at_once or episodes, episodes - first)
        vec = make_vec_env(env_fn, policy.info, count, env_seed, workers=workers, first=first)
        try:
            games.append(_play(vec, policy, count, max_steps, should_stop))
        finally:
            vec.close(close_seconds)
        if games[-1] is None:
            return None
    returns, lengths, cut = zip(*games)
    return Games(np.concatenate(returns), np.concatenate(lengths), sum(cut))


def _play(vec, policy, count, max_steps, should_stop):
    """One game in each environment of a VecEnv: -> Games, or None when it is to stop."""
    returns = np.zeros(count)
    lengths = np.zeros(count, int)
    playing = np.ones(count, bool)
    policy.reset(count)
    steps = 0
    while playing.any() and (max_steps is None or steps < max_steps):
        if should_stop is not None and should_stop():
            return None
        action = policy.act(vec.out["obs"], vec.out["first"])
        vec.step(np.where(playing, action, REST))
        returns[playing] = vec.out["ret"][playing]
        lengths[playing] = vec.out["length"][playing]
        playing &= ~vec.out["ended"]
        steps += 1
    return Games(returns, lengths, int(playing.sum()))


def longest_game(env_fn):
    """Steps after which a game is cut: LONGEST_GAME, or the environment's own limit beyond that."""
    env = env_fn()
    try:
        spec = getattr(env, "spec", None)
    finally:
        close_env(env)
    if spec is None:
        return LONGEST_GAME
    own = (spec.max_episode_steps, spec.kwargs.get("max_num_frames_per_episode"))
    return max(LONGEST_GAME, *(limit or 0 for limit in own))


def games_that_fit(env_fn, count, info, network):
    """How many of `count` games fit memory side by side: -> (number, bytes of one).

    By how the memory in use grows when the first environments are made, and what the attention of
    a NetworkConfig takes. All, if that can't be told.
    """
    sizes = []
    try:
        with contextlib.ExitStack() as made:
            for _ in range(min(count, 3)):
                before = memory.resident()
                env = env_fn()
                made.callback(close_env, env)
                env.reset(seed=0)
                sizes.append(memory.resident() - before)
                room = memory.available()
                if room is None or room < 2 * sizes[-1]:
                    break
            del env
    except (Exception, SystemExit):  # playing will tell of it
        return count, 0
    a_copy = max(sizes[1:] or sizes)  # the first one loads what all share
    a_game = max(0, a_copy) + 2 * attention_bytes(info, network)
    room = memory.available()
    if room is None or not a_game:
        return count, 0
    return max(1, min(count, int(0.8 * room / a_game))), a_game


def film(env_fn, policy, folder, *, seed=0, max_steps=None):
    """Play one game with gymnasium's RecordVideo: -> (path of the MP4 in `folder`, its return).

    `env_fn` must make an environment with render_mode="rgb_array".
    """
    env_fn = functools.partial(_recorded, env_fn, folder)
    returns, _, _ = play_games(
        env_fn, policy, episodes=1, seed=seed, max_steps=max_steps, close_seconds=FILM_SECONDS
    )
    newest = max(Path(folder).glob("*.mp4"), key=lambda path: path.stat().st_mtime)
    return newest, float(returns[0])


def _recorded(env_fn, folder):
    from gymnasium.wrappers import RecordVideo

    env = env_fn()
    if env.render_mode != "rgb_array":
        raise UsageError('A film needs an environment made with render_mode="rgb_array".')
    return RecordVideo(
        env, str(folder), episode_trigger=lambda episode: episode == 0, disable_logger=True
    )


def gif_of(mp4, path, *, every=4, width=160):
    """A small GIF of an MP4: every `every`-th frame, `width` pixels wide."""
    import imageio.v2 as imageio

    with imageio.get_reader(mp4) as video:
        fps = video.get_meta_data()["fps"]
        frames = [frame for i, frame in enumerate(video) if i % every == 0]
    write_gif(frames, path, duration=round(1000 * every / fps), width=width)


def write_gif(frames, path, *, duration, width):
    """Write pictures [H, W, 3] as a GIF, `width` pixels wide, each for `duration` milliseconds.

    All have one palette, so that what stays the same takes no room.
    """
    from PIL import Image

    height = frames[0].shape[0] * width // frames[0].shape[1]
    small = [Image.fromarray(frame).resize((width, height)) for frame in frames]
    some = small[:: 1 + len(small) // PALETTE_FRAMES]
    palette = Image.fromarray(np.concatenate([np.asarray(one) for one in some])).quantize(COLORS)
    drawn = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in small]
    drawn[0].save(
        path, save_all=True, append_images=drawn[1:], duration=duration, loop=0, optimize=True
    )


# -------------------------------------------------------------------------------------------------
# The script


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
    if info_to_json(found) != info_to_json(known):
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
