"""Whole games by a policy: played, counted, filmed."""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np

from tfdqt import memory
from tfdqt.errors import UsageError
from tfdqt.games.cost import attention_bytes
from tfdqt.games.envs import close_env
from tfdqt.games.slots import REST
from tfdqt.games.vec_envs import game_seed, make_vec_env
from tfdqt.runs.processes import CLOSE_SECONDS
from tfdqt.settings import check_whole

FILM_SECONDS = 120  # for the close() that writes a film
COLORS = 128  # of a GIF
PALETTE_FRAMES = 16  # that these are chosen from
# A longer game is cut, if the environment has no limit of its own; Atari's is 27,000 steps.
LONGEST_GAME = 30_000


class Games(NamedTuple):
    """What came of whole games."""

    returns: np.ndarray  # [episodes]
    lengths: np.ndarray  # [episodes] steps
    cut: int  # how many were not over when they were left


def play_episodes(env_fn, policy, *, episodes, seed=0, workers=0, max_steps=None):
    """As `play_games`, without a count of those that were cut: -> (returns, lengths)."""
    options = dict(episodes=episodes, seed=seed, workers=workers, max_steps=max_steps)
    return play_games(env_fn, policy, **options)[:2]


def check_games(episodes, at_once=None):
    """Raise UsageError unless at least one game is played, and at least one at a time."""
    check_whole(1, episodes=episodes)
    if at_once is not None:
        check_whole(1, at_once=at_once)


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
    check_games(episodes, at_once)
    check_whole(0, seed=seed, workers=workers)
    if max_steps is not None:
        check_whole(1, max_steps=max_steps)
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


class Pictures(gymnasium.Wrapper):
    """Its pictures are of bytes: others, such as of floats from 0 to 1, would be filmed black.

    What is no array RecordVideo tells itself.
    """

    def render(self):
        picture = self.env.render()
        if isinstance(picture, np.ndarray) and picture.dtype != np.uint8:
            raise UsageError(
                "No film was written: the environment's render() gives pictures of "
                f"{picture.dtype}, not of uint8 from 0 to 255; mend that, or leave out --video."
            )
        return picture


def film(env_fn, policy, folder, *, seed=0, max_steps=None):
    """Play one game with gymnasium's RecordVideo: -> (path of the MP4 in `folder`, its return).

    `env_fn` must make an environment with render_mode="rgb_array". Raises UsageError if no film
    comes of it.
    """
    env_fn = functools.partial(_recorded, env_fn, folder)
    before = _films(folder)
    returns, _, _ = play_games(
        env_fn, policy, episodes=1, seed=seed, max_steps=max_steps, close_seconds=FILM_SECONDS
    )
    new = dict(_films(folder) - before)
    if not new:
        raise UsageError(
            "No film was written: the environment's render() must give pictures [height, width, 3] "
            "of one size; mend that, or leave out --video."
        )
    return max(new, key=new.get), float(returns[0])


def _films(folder):
    """The films in a folder: a set of (path, when it was written)."""
    return {(path, path.stat().st_mtime_ns) for path in Path(folder).glob("*.mp4")}


def _recorded(env_fn, folder):
    from gymnasium.wrappers import RecordVideo

    env = env_fn()
    if env.render_mode != "rgb_array":
        raise UsageError('A film needs an environment made with render_mode="rgb_array".')
    return RecordVideo(
        Pictures(env),
        str(folder),
        episode_trigger=lambda episode: episode == 0,
        fps=fps_of(env),
        disable_logger=True,
    )


def fps_of(env):
    """How many pictures a second an environment says it draws; 30 if it does not."""
    fps = env.metadata.get("render_fps")
    known = isinstance(fps, numbers.Real) and math.isfinite(fps) and fps > 0
    return fps if known else 30


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
