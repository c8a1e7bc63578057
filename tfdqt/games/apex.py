"""DQN whose experience comes from actors elsewhere, after Ape-X (Horgan et al., 2018).

With uniform replay. It receives the actors as functions and knows nothing of Ray.

Actors play at their own pace with weights that were broadcast some updates ago, each environment
with an epsilon of its own, and deliver chunks of steps. The learner takes them as they come and
does as many updates as the steps so far ask for, so the replay ratio is that of `dqn` however
many actors there are. What is not the same is exactness: which chunk comes first depends on time.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.games.dqn import (
    DIAGNOSTICS,
    NO_DIAGNOSTICS,
    DQNMetrics,
    adapt_once,
    can_learn,
    check_fills,
    make_collect,
    make_draw,
    make_greedy,
    make_learner,
    make_update,
    resume_learner,
)
from tfdqt.games.flat import flatten_q, set_weights
from tfdqt.games.loop import learner_snapshot, make_stepper, restore_progress, train_loop
from tfdqt.policy import epsilon_at, epsilon_ladder
from tfdqt.replay import make_add_to, make_sampler, make_uneven_replay, replay_arrays
from tfdqt.scale.config import ScaleConfig, check_scale

MAX_CHUNK = 64  # steps of an environment in an actor's chunk, unless cfg.chunk is more

ApexMetrics = NamedTuple(
    "ApexMetrics",
    [
        *DQNMetrics.__annotations__.items(),  # epsilon: that of the schedule, not of each actor
        (
            "staleness",
            float,
        ),  # updates between a chunk's weights and its arrival; mean of 100 chunks
        ("replay_ratio", float),  # updates per environment step since learning began
        ("waited", float),  # part of the time since then that the learner waited for experience
        ("actors", int),  # alive
        ("replaced", int),  # actors that died and were replaced, since this process started
    ],
)


def steps_in_chunk(cfg, actors):
    """Steps of each environment in an actor's chunk.

    Enough that a chunk of few actors holds as many as an iteration of `dqn` makes, so that messages
    cost the learner the same for each step; beyond MAX_CHUNK, chunks would grow stale.
    """
    return min(cfg.chunk * actors, max(cfg.chunk, MAX_CHUNK))


# -------------------------------------------------------------------------------------------------
# What an actor does


def make_actor_collect(env_fn, q_fn, info, cfg, rows, seed):
    """`collect(weights, step) -> (rows, Steps, games)` of an actor, as `ray_pool.Actor` asks it.

    It plays the environments `rows` of a run by epsilon-greedy; seed is a numpy SeedSequence.
    """
    net = flatten_q(q_fn(info), info)
    epsilon_end = epsilon_ladder(cfg.num_envs)[rows] if cfg.num_envs > 1 else None
    # The environments live as long as the actor, whose process ends with it.
    stepper = make_stepper(
        env_fn,
        info,
        net.context,
        len(rows),
        seed=int(seed.generate_state(1)[0]),
        life_loss_ends=cfg.life_loss_ends,
        rng=np.random.default_rng(seed.spawn(1)[0]),
    )
    collect = make_collect(make_greedy(net), stepper, info, cfg, epsilon_end)
    return lambda weights, step: (rows, *collect(tf.constant(weights), step))


def actor_shares(cfg, actors):
    """The environments of each actor."""
    return np.array_split(np.arange(cfg.num_envs), actors)


# -------------------------------------------------------------------------------------------------
# The learner


def apex(
    env_fn,
    q_fn,
    cfg,
    *,
    make_pool,
    actors,
    broadcast_every=64,
    actor_q_fn=None,
    info=None,
    seed=0,
    strategy=None,
    log=None,
    save=None,
    saved=None,
    should_stop=None,
    evaluation=None,
):
    """Train a Q-network on what actors deliver and return (state, net, progress).

    Args:
      make_pool: (make_collect, shares, seed) -> Pool of an actor a share, as `ray_pool.make_pool`.
      actors: must divide cfg.num_envs; each plays its share of them, `steps_in_chunk` steps of each
        for a chunk.
      broadcast_every: updates between two broadcasts of the weights.
      actor_q_fn: what actors make their network by, by default q_fn; it reaches them by
        cloudpickle.
      The others as in `dqn`; log gets ApexMetrics.

    Raises UsageError for settings that can't work, and EnvFailure when an environment or the pool
    fails; what was learned is saved before that. The environments' states are never saved: going on
    starts fresh episodes.
    """
    check_scale(ScaleConfig(actors, broadcast_every=broadcast_every), cfg.num_envs)
    learner = make_learner(env_fn, q_fn, cfg, seed, info, make_buffer=make_uneven_replay)
    replay = learner.replay
    chunk = steps_in_chunk(cfg, actors)
    steps_per_chunk = chunk * cfg.num_envs // actors
    if chunk > replay.length:
        raise UsageError(
            f"An actor's chunk of {chunk} steps is more than the {replay.length} that "
            "--replay-size keeps of an environment; make it larger."
        )
    state = resume_learner(learner, saved)
    add = make_add_to(replay)
    updates_per_call = max(1, round(cfg.updates_per_step * steps_per_chunk))
    update = make_update(learner.net, cfg, strategy)
    sample = make_sampler(replay, learner.window)
    draw = make_draw(sample, cfg, updates_per_call, seed)
    # `life` is a number that no earlier start of this run had, for the actors' seeds.
    life = 0 if saved is None else saved["life"] + 1
    began = None if saved is None else saved["began"]  # the step at which learning began
    sent = None  # updates done at the last broadcast
    # A chunk behind the one that fills the buffer, or as many as an update is made of.
    chunks = -(-updates_per_call // (cfg.updates_per_step * steps_per_chunk))
    delay = int(chunks - 1) * steps_per_chunk
    check_fills(learner, state, restore_progress(saved), cfg, steps_per_chunk, delay)
    diagnostics = NO_DIAGNOSTICS
    ages = deque(maxlen=100)
    started = time.monotonic()
    waited = 0.0

    def take(step):
        nonlocal waited
        asked = time.monotonic()
        delivered = pool.take(step)
        waited += time.monotonic() - asked
        return delivered

    def iterate(state, progress):
        nonlocal began, sent, diagnostics, started, waited
        updates = int(state.updates)
        if sent is None or updates - sent >= broadcast_every:
            pool.broadcast(state.acting.numpy(), updates)
            sent = updates
        delivered = take(progress.step)
        if delivered is None:
            return state, progress, None
        rows, steps, games = delivered.experience
        add(steps, tf.constant(rows, tf.int64))
        progress = progress.after(steps_per_chunk, games)
        ages.append(updates - delivered.version)
        if began is None and can_learn(learner, state):
            began = progress.step
            started = time.monotonic()
            waited = 0.0
        while began is not None and updates + updates_per_call <= cfg.updates_per_step * (
            progress.step - began
        ):
            state = adapt_once(learner, state)
            state, means = update(state, draw(state.updates))
            diagnostics = {name: float(means[name]) for name in DIAGNOSTICS}
            updates += updates_per_call
        alive, replaced = pool.counts()
        return (
            state,
            progress,
            ApexMetrics(
                *progress.metrics(),
                **diagnostics,
                epsilon=epsilon_at(progress.step, cfg),
                updates=updates,
                staleness=float(np.mean(ages)),
                replay_ratio=updates / max(1, progress.step - (began or progress.step)),
                waited=waited / (time.monotonic() - started),
                actors=alive,
                replaced=replaced,
            ),
        )

    def snapshot(state, progress, envs=True):
        return learner_snapshot(
            state,
            progress,
            envs=[None] * cfg.num_envs,
            replay=replay_arrays(replay),
            began=began,
            life=life,
        )

    actor_settings = dataclasses.replace(cfg, chunk=chunk)
    make_actor = functools.partial(
        make_actor_collect, env_fn, actor_q_fn or q_fn, learner.info, actor_settings
    )
    pool = make_pool(make_actor, actor_shares(cfg, actors), [seed, 4, life])
    try:
        state, progress = train_loop(
            iterate,
            snapshot,
            state,
            restore_progress(saved),
            cfg.total_steps,
            log=log,
            save=save,
            should_stop=should_stop,
            evaluation=evaluation,
            net=learner.net,
            saved=saved,
        )
    finally:
        pool.close()
    set_weights(learner.net, state.acting)
    return state, learner.net, progress
