"""DQN whose experience comes from actors elsewhere, after Ape-X (Horgan et al., 2018) but with uniform replay. Knows no Ray.

Actors play at their own pace with weights that were broadcast some updates ago, each environment with an epsilon of its own, and
deliver chunks of steps. The learner takes them as they come and does as many updates as the steps so far ask for, so the
replay ratio is that of `dqn` however many actors there are. What is not the same is exactness: which chunk comes first depends on time.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.acting import Progress, learned, restore_progress
from tfdqt.backend import tf
from tfdqt.checks import check_far
from tfdqt.config import FarConfig, UsageError
from tfdqt.dqn import NOTHING, Metrics, informed, make_learn, make_learner, make_update, resume_learner
from tfdqt.envs import EnvFailure
from tfdqt.networks import set_weights
from tfdqt.policy import epsilon_at
from tfdqt.replay import make_add_to, make_sampler, make_uneven_replay, replay_arrays, steps_stored

MOST = 64  # steps of an environment in a chunk, unless cfg.chunk is more


class Part(NamedTuple):
    """What an actor delivers."""

    found: tuple  # of games: rows [n] int64 of its environments; Steps [S, n, ...], which follow on those before or start with first
    # steps of episodes; the (return, length) of each game that ended
    version: int  # updates done when the weights it played with were broadcast


class Pool(NamedTuple):
    """Actors, as functions."""

    broadcast: Callable  # (weights in numpy, updates done, steps so far): what is played with from now on
    take: Callable  # () -> Part, or None if none came within a second
    census: Callable  # () -> (actors alive, actors replaced so far)
    close: Callable


ApexMetrics = NamedTuple("ApexMetrics", [
    *Metrics.__annotations__.items(),
    ("staleness", float),  # updates between the weights that a chunk was played with and its arrival, mean of the last 100 chunks
    ("replay_ratio", float),  # updates per environment step since learning began
    ("waited", float),  # part of the time, since learning began, that the learner waited for experience
    ("actors", int),  # alive
    ("replaced", int),  # actors that died and were replaced, since this process started
])


def steps_in_chunk(cfg, actors):
    """Steps of each environment in an actor's chunk: enough that a chunk of few actors holds as many as an iteration of `dqn` makes.

    So messages cost the learner the same for each step; beyond MOST, chunks would grow stale.
    """
    return min(cfg.chunk * actors, max(cfg.chunk, MOST))


def apex(env_fn, q_fn, cfg, *, make_pool, actors, broadcast_every=64, seed=0, strategy=None, log=None, save=None, saved=None,
         should_stop=None):
    """Train a Q-network on what actors deliver and return (state, networks, progress).

    Args:
      make_pool: (EnvInfo, life) -> Pool of `actors` actors; `life` is a number that no earlier start of this run had.
      actors: must divide cfg.num_envs; each plays its share of them, `steps_in_chunk` steps of each for a chunk.
      broadcast_every: updates between two broadcasts of the weights.
      The others as in `dqn`; log gets ApexMetrics.

    Raises UsageError for settings that can't work, and EnvFailure when an environment or the pool fails; what was learned is
    saved before that. The environments' states are never saved: going on starts fresh episodes.
    """
    check_far(FarConfig(actors, broadcast_every=broadcast_every), cfg.num_envs)
    learner = make_learner(env_fn, q_fn, cfg, seed, make_uneven_replay)
    state, replay, chunk = learner.state, learner.replay, steps_in_chunk(cfg, actors)
    per_part = chunk * cfg.num_envs // actors
    if chunk > replay.length:
        raise UsageError(f"An actor's chunk of {chunk} steps is more than the {replay.length} that --replay-size keeps of an environment; "
                         "make it larger.")
    progress, began, life = Progress(), None, 0
    if saved is not None:
        state = resume_learner(learner, saved).state
        progress, began, life = restore_progress(saved), saved["began"], saved["life"] + 1
    add = make_add_to(replay)
    count = max(1, round(cfg.updates_per_step * per_part))  # updates in one call
    learn = make_learn(make_update(learner.networks, cfg, strategy), make_sampler(replay, learner.window), cfg, count, seed)
    diagnostics, ages, updates, sent = NOTHING, deque(maxlen=100), int(state.updates), None
    started, waited = time.monotonic(), 0.0

    def make_snapshot():
        return learned(state, progress, envs=[None] * cfg.num_envs, replay=replay_arrays(replay), began=began, life=life)

    pool = make_pool(learner.info, life)
    try:
        while progress.step < cfg.total_steps:
            if sent is None or updates - sent >= broadcast_every:
                pool.broadcast(state.acting.numpy(), updates, progress.step)
                sent = updates
            asked = time.monotonic()
            try:
                part = pool.take()
            except EnvFailure:
                if save:
                    save(progress.step, make_snapshot, last=True)
                raise
            waited += time.monotonic() - asked
            if part is not None:
                rows, steps, games = part.found
                add(steps, tf.constant(rows, tf.int64))
                progress = progress.after(per_part, games)
                ages.append(updates - part.version)
                if began is None and steps_stored(replay) >= learner.needed:
                    began, started, waited = progress.step, time.monotonic(), 0.0
                while began is not None and updates + count <= cfg.updates_per_step * (progress.step - began):
                    state, fresh = learn(informed(learner, state))
                    diagnostics, updates = {name: float(value) for name, value in fresh.items()}, updates + count
                if log:
                    alive, replaced = pool.census()
                    log(ApexMetrics(progress.step, progress.games, progress.mean_return(), epsilon=epsilon_at(progress.step, cfg),
                                    updates=updates, staleness=float(np.mean(ages)), actors=alive, replaced=replaced,
                                    replay_ratio=updates / max(1, progress.step - (began or progress.step)),
                                    waited=waited / (time.monotonic() - started), **diagnostics))
            stop = should_stop is not None and should_stop()
            if save and (part is not None or stop):
                save(progress.step, make_snapshot, last=stop or progress.step >= cfg.total_steps)
            if stop:
                break
    finally:
        pool.close()
    set_weights(learner.networks, state.acting)
    return state, learner.networks, progress
