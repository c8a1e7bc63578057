"""DQN in one file: settings, defaults, loss, update, and `dqn()`, which trains.

It receives environments and a network as functions and knows nothing of either.

One iteration: a thread collects a chunk of steps with the weights of the last iteration (the
environments run in worker processes) while the compiled update learns from what was stored before.
What is learned from, and with which weights an action was chosen, never depends on which of the two
is faster, so equal seeds give equal runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import keras, tf, traced
from tfdqt.errors import UsageError
from tfdqt.games.config import check_network
from tfdqt.games.envs import info_of
from tfdqt.games.flat import (
    FlatModel,
    adapt,
    best_at_last,
    draw_loops,
    flatten,
    flatten_q,
    learn_in_parts,
    mean_q,
    repeat_update,
    scale_of,
    set_weights,
    step_adam,
    with_fixed,
)
from tfdqt.games.loop import (
    check_learns,
    check_start,
    ended_games,
    restore_progress,
    restore_state,
    run_snapshot,
    stepping,
    train_loop,
)
from tfdqt.games.spaces import EnvInfo, legal_actions
from tfdqt.games.stepwise import make_stepwise
from tfdqt.games.window import network_inputs, push
from tfdqt.policy import epsilon_at, make_explore
from tfdqt.replay import (
    Replay,
    Steps,
    check_memory,
    make_add,
    make_replay,
    make_sampler,
    replay_arrays,
    restore_replay,
    steps_spec,
    steps_stored,
    stored_obs,
    stored_rewards,
)
from tfdqt.runs.processes import one_thread
from tfdqt.scale.distribute import (
    SINGLE,
    ProcessGroup,
    check_even,
    check_same,
    lost_learner_ends_run,
    make_group,
    make_means,
    share_seed,
    share_settings,
    slice_batch,
)
from tfdqt.settings import check_fractions, check_not_negative, check_positive, check_types

# -------------------------------------------------------------------------------------------------
# Settings


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """Deep Q-learning (Mnih et al., 2015) with double Q, n-step returns and a sequence replay."""

    total_steps: int = 60_000
    """Environment steps in the whole run, over all environments."""
    num_envs: int = 8
    """Environments stepped in lockstep; each owns a row of the replay buffer."""
    chunk: int = 8
    """Steps per environment between two hand-overs of weights and data; acting lags learning by as
    much."""
    updates_per_step: float = 0.25
    """Gradient updates per environment step."""
    batch_size: int = 32
    """Windows per update."""
    replay_size: int = 1_000_000
    """Environment steps kept in the replay buffer."""
    learning_starts: int = 1_000
    """Environment steps before the first update."""
    gamma: float = 0.99
    """Discount per environment step."""
    n_step: int = 3
    """Rewards summed before the bootstrap."""
    n_step_if_steady: bool = False
    """Whether n rewards are summed only if all before the first update were the same, else one: a
    reward that varies for other reasons than an action is noise in the targets of those before."""
    advantage_learning: float = 0.0
    """How much of the gap between the best action and the one taken is subtracted from its target,
    so that actions stay apart where they matter little (Bellemare et al., 2016); 0: none."""
    gap_of: Literal["target", "online"] = "target"
    """Whose gap that is: the target network's, as published, or the online network's, whose values
    an update has anyway. Where the target follows fast they differ little."""
    target_epsilon: float = 0.0
    """Probability of a random action in the policy whose values are learned (expected Sarsa, van
    Seijen et al., 2009), so that it learns to play where slips happen; 0: the best action's value
    alone, as Q-learning."""
    double: bool = True
    """Whether the online network chooses the action that the target network values (van Hasselt et
    al., 2016)."""
    read_once: bool | None = None
    """Whether a state and the one n steps on are read in one pass over context + n steps, in which
    the latter has seen up to n steps more, and not in two; None: where the context is at least 8
    times n. Only by a network that reads step by step (gpt with --tokens=steps, gru)."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    final_learning_rate: float = 3e-4
    """Adam's step size at the end; it moves in a straight line between the two."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 10.0
    """The gradient's global norm is clipped to this."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from squared to linear."""
    target_tau: float = 0.005
    """How far the target moves towards the online network (1: a copy)."""
    target_every: int = 1
    """Updates between two moves of the target."""
    acting_tau: float = 1.0
    """How far the weights that choose actions, in training and evaluation, move towards the online
    network after each update (1: they are the online network's); an average of many updates plays
    better while the learning rate is high."""
    epsilon_start: float = 1.0
    """Probability of a random action at the start."""
    epsilon_end: float = 0.02
    """Probability of a random action after the schedule."""
    epsilon_fraction: float = 0.1
    """Part of the run over which epsilon falls in a straight line."""
    hold: int = 1
    """The longest that an action drawn at random is held, in steps; how long is drawn from a zeta
    distribution of exponent 2 (epsilon-z-greedy, Dabney et al., 2021). 1: for its own step."""
    reward_transform: Literal["none", "sign"] = "none"
    """What the learner sees of a reward: all of it, or only its sign."""
    life_loss_ends: bool = False
    """Whether a lost life ends the return in training (games with lives only); logged returns stay
    whole games."""


# What differs from the settings' own defaults, by `games.config.environment_kind`.
DEFAULTS = {
    "cartpole": dict(
        network=dict(context=4, layers=1, heads=4, width=32),
        settings=dict(
            total_steps=30_000,
            updates_per_step=0.5,
            batch_size=64,
            learning_rate=1e-3,
            final_learning_rate=1e-4,
            n_step=3,
            advantage_learning=0.9,
            learning_starts=1_000,
            replay_size=200_000,
            epsilon_fraction=0.1,
            target_tau=0.01,
            acting_tau=0.005,
        ),
    ),
    "atari": dict(
        network=dict(
            context=4,
            layers=2,
            heads=4,
            width=64,
            quantiles=16,
            dueling=True,
            min_change=0.001,
            hidden_scale=0.03,
            value_scale="sqrt",
        ),
        settings=dict(
            total_steps=1_000_000,
            num_envs=16,
            chunk=4,
            updates_per_step=0.25,
            batch_size=32,
            learning_rate=3e-4,
            final_learning_rate=1e-5,
            learning_starts=5_000,
            replay_size=1_000_000,
            epsilon_end=0.05,
            target_epsilon=0.05,
            epsilon_fraction=0.02,
            hold=100,
            life_loss_ends=True,
            advantage_learning=0.9,
            # The target follows fast, so another network's choice or gap would differ little, and
            # cost a reading each.
            double=False,
            gap_of="online",
            target_tau=0.05,
            acting_tau=0.005,
        ),
    ),
    # Observations and rewards may be of any size here. Where rewards are small, so are the
    # gradients, which must not be hidden by Adam's epsilon. With fewer random actions at the end a
    # lander may learn to hover.
    "other": dict(
        network=dict(value_scale="sqrt", standardize=True),
        settings=dict(
            total_steps=200_000,
            batch_size=64,
            learning_rate=1e-3,
            final_learning_rate=1e-4,
            adam_epsilon=1e-8,
            advantage_learning=0.5,
            target_tau=0.01,
            epsilon_end=0.1,
        ),
    ),
}


def check_dqn(network, cfg):
    """Raise UsageError for a network and settings that DQN can't run with."""
    check_network(network)
    check_settings(cfg)


def check_settings(cfg):
    """Raise UsageError for settings DQN can't run with."""
    check_types(cfg)
    check_positive(
        cfg,
        "total_steps",
        "num_envs",
        "chunk",
        "batch_size",
        "replay_size",
        "n_step",
        "hold",
        "target_every",
        "target_tau",
        "acting_tau",
        "learning_rate",
        "final_learning_rate",
        "adam_epsilon",
        "max_grad_norm",
        "huber_delta",
        "updates_per_step",
        "epsilon_fraction",
    )
    check_fractions(
        cfg,
        "gamma",
        "target_tau",
        "acting_tau",
        "epsilon_start",
        "epsilon_end",
        "advantage_learning",
        "target_epsilon",
    )
    check_not_negative(cfg, "learning_starts")
    updates = cfg.updates_per_step * cfg.num_envs * cfg.chunk
    if not 1 <= updates < 1e9 or abs(updates - round(updates)) > 1e-6:
        whole = max(1, round(min(updates, 1e9))) / (cfg.num_envs * cfg.chunk)
        raise UsageError(
            f"--updates-per-step x --num-envs x --chunk must be a whole number of updates, not "
            f"{updates:g}; change one of them (for example --updates-per-step={whole:.10g})."
        )


# -------------------------------------------------------------------------------------------------
# State and log


class DQNState(NamedTuple):
    """What learning changes. Weights are one flat vector, so one fused kernel moves them all."""

    online: tf.Tensor  # [W] weights of the Q-network
    target: tf.Tensor  # [W] weights of the target network
    acting: tf.Tensor  # [W] weights that choose the actions
    optimizer: tuple  # Adam's two moments, [W] each
    updates: tf.Tensor  # int64, updates done
    one_step: tf.Tensor  # bool, whether targets bootstrap one step on and not n


class DQNMetrics(NamedTuple):
    """One line of the log. What is learned is a mean over the updates of one iteration."""

    step: int  # environment steps
    games: int  # games finished since the start
    mean_return: float  # of the last 100 games; NaN before the first
    loss: float  # Huber or quantile loss, or cross-entropy; NaN before the first update
    q_mean: float  # Q of the actions taken
    td_error: float  # size of the temporal-difference error
    grad_norm: float  # global norm of the gradient before it is clipped to max_grad_norm
    epsilon: float  # probability of a random action
    updates: int  # gradient updates done


LEARNED = ("loss", "q_mean", "td_error")  # of a batch
DIAGNOSTICS = (*LEARNED, "grad_norm")
NO_DIAGNOSTICS = dict.fromkeys(DIAGNOSTICS, float("nan"))  # before the first update


def first_state(net):
    """The state before the first update; all weights start as copies."""
    zeros = tf.zeros_like(net.start)
    return DQNState(
        online=net.start,
        target=tf.identity(net.start),
        acting=tf.identity(net.start),
        optimizer=(zeros, tf.identity(zeros)),
        updates=tf.constant(0, tf.int64),
        one_step=tf.constant(False),
    )


# -------------------------------------------------------------------------------------------------
# The update


def replay_inputs(steps, begin, context):
    """What the network is shown of steps [B, T, ...]: the `context` steps from `begin` on."""
    part = tf.nest.map_structure(lambda field: field[:, begin : begin + context], steps)
    none = -tf.ones_like(part.action[:, :1])  # the action before a window is not in it
    before = tf.concat([none, part.action[:, :-1]], axis=1)
    return dict(
        obs=part.obs,
        first=tf.cast(part.first, tf.int32),
        prev_action=tf.where(part.first, -1, before),
    )


def reads_once(net, cfg):
    """Whether an update reads context + n steps in one pass; see DQNConfig.read_once.

    Raises UsageError if that is asked of a network that can't.
    """
    if cfg.read_once and net.of_steps is None:
        raise UsageError(
            "--read-once is for networks that read step by step and learn at every step (gpt with "
            "--tokens=steps, gru); leave it out."
        )
    long = net.context >= 8 * cfg.n_step if cfg.read_once is None else cfg.read_once
    return long and net.of_steps is not None


def make_read(net, cfg) -> Callable:
    """`read(weights, steps, cut) -> (found, q, ahead)`, [B, P, A, N] each.

    Of steps [B, C + n, ...], q is of the last P of the first C, and ahead of those n steps on, or
    one on in the rows that `cut` [B] names. `found` is q, or with logits=True the logits of a
    histogram's bins of which q is made.
    """
    n = cfg.n_step
    context = net.context
    if reads_once(net, cfg):
        longer = net.of_steps(context + n)

        def read_once(weights, steps, cut, logits=False):
            inputs = replay_inputs(steps, 0, context + n)
            found, q = _apply(longer, weights, inputs, logits)
            ahead = tf.where(cut[:, None, None, None], q[:, 1 : context + 1], q[:, n:])
            return found[:, :context], q[:, :context], ahead

        return read_once

    def read_twice(weights, steps, cut, logits=False):
        n_steps_on = replay_inputs(steps, n, context)
        one_step_on = replay_inputs(steps, 1, context)
        ahead = {}
        for key, value in n_steps_on.items():
            condition = tf.reshape(cut, [-1] + [1] * (value.shape.rank - 1))
            ahead[key] = tf.where(condition, one_step_on[key], value)
        now = _apply(net, weights, replay_inputs(steps, 0, context), logits)
        return *now, net.apply(weights, ahead)

    return read_twice


def _apply(net, weights, inputs, logits):
    """Q of the inputs, twice; with logits=True those of the histograms' bins first."""
    found = (net.logits if logits else net.apply)(weights, inputs)
    return found, net.values(found, inputs) if logits else found


def q_learning(net, cfg, online, target, steps, read=None, one_step=False):
    """The loss of one batch: weights, weights, steps [B, C + n, ...] -> (loss, gradient, scalars).

    Q is learned at the last P of the first C steps. Its target bootstraps n steps on. A window in
    which an episode was cut short (truncated) within reach bootstraps one step on instead, because
    the true last observation is the last state of that episode with a value; so do all if
    `one_step`, a bool, says so.
    read: what `make_read` made; None: it is made here.
    """
    read = read or make_read(net, cfg)
    skip = net.context - net.positions
    # The step behind an episode's last observation only resets: nothing is learned at it.
    last = tf.concat([steps.first[:, 1:], tf.zeros_like(steps.first[:, :1])], axis=1)  # [B, C + n]
    over = tf.concat([tf.zeros_like(last[:, :1]), steps.discount[:, :-1] == 0], axis=1)
    cut = tf.reduce_any(last[:, skip + 1 :] & ~over[:, skip + 1 :], axis=1)  # [B] truncated
    cut |= one_step
    actions = steps.action[:, skip : net.context]
    mask = 1.0 - tf.cast(last[:, skip : net.context], tf.float32)
    # XLA leaves out the readings of which nothing is used below.
    _, target_now, target_ahead = read(target, steps, cut)
    net = net._replace(scale=scale_of(net, online))
    with tf.GradientTape() as tape:
        trained, fixed = net.unflatten(online)
        tape.watch(trained)
        found, q, ahead = read((trained, fixed), steps, cut, logits=net.histogram is not None)
        online_ahead = tf.stop_gradient(ahead) if cfg.double else None
        targets = q_targets(net, cfg, target_ahead, online_ahead, steps, cut)  # [B, P, N]
        on_scale = dict(parts=net.parts, scale=net.scale)
        if cfg.advantage_learning:
            q_now = mean_q(tf.stop_gradient(q) if cfg.gap_of == "online" else target_now)
            part = cfg.advantage_learning
            targets = losses.widen_gap(targets, q_now, actions, part, **on_scale)
        loss, diagnostics = losses.td_loss(
            found,
            actions,
            targets,
            mask,
            delta=cfg.huber_delta,
            histogram=net.histogram,
            **on_scale,
        )
    gradient = flatten(net, tape.gradient(loss, trained))
    return loss, gradient, dict(diagnostics, count=tf.reduce_sum(mask))


def q_targets(net, cfg, q_target, q_online, steps, cut):
    """The targets of one batch: [B, P, N].

    q_target, q_online: what the two networks say of the steps ahead, [B, P, A, N], as `make_read`
    gives it; q_online None: the target network chooses. steps [B, C + n, ...], cut [B].
    """
    context = net.context
    skip = context - net.positions
    n = cfg.n_step
    values = losses.bootstrap_quantiles(q_target, q_online, net.parts)  # [B, P, N]
    if cfg.target_epsilon:
        cost = losses.exploration_cost(
            mean_q(q_target),
            cfg.target_epsilon,
            cfg.advantage_learning,
            masked=net.masked,
            parts=net.parts,
            scale=net.scale,
        )
        values -= cost[..., None]

    rewards = tf.sign(steps.reward) if cfg.reward_transform == "sign" else steps.reward
    end = skip + net.positions + n - 1
    n_step = losses.n_step_targets(
        rewards[:, skip:end], steps.discount[:, skip:end], values, gamma=cfg.gamma, n=n
    )
    one_step = losses.n_step_targets(
        rewards[:, skip:context], steps.discount[:, skip:context], values, gamma=cfg.gamma, n=1
    )
    return tf.where(cut[:, None, None], one_step, n_step)


def make_update(net, cfg, strategy=None) -> Callable:
    """Compile `update(state, steps [K, B, C + n, ...]) -> (state, diagnostics)`: K updates.

    With a tf.distribute.Strategy each batch is shared evenly by its devices, whose gradients are
    added up; the state stays one. Of several processes each is given its own part of the batches.
    """
    total = max(1.0, cfg.updates_per_step * cfg.total_steps)
    read = make_read(net, cfg)

    def follow(state, gradient):
        """Move all weights by one gradient: -> (state, the gradient's norm)."""
        updates = state.updates + 1
        part = tf.cast(updates, tf.float32) / total
        online, moments, norm = step_adam(
            state.online, state.optimizer, gradient, updates, part, cfg
        )
        tau = tf.where(updates % cfg.target_every == 0, cfg.target_tau, 0.0)
        target = state.target + tau * (online - state.target)
        acting = online
        if cfg.acting_tau != 1:
            acting = state.acting + cfg.acting_tau * (online - state.acting)
        return DQNState(online, target, acting, moments, updates, state.one_step), norm

    if strategy is not None:
        follow = traced(follow, jit_compile=True)
        return _make_shared_update(net, cfg, read, strategy, follow)

    def one(state, steps):
        online = draw_loops(net, state.online, state.updates)

        def learned(steps):
            loss, gradient, diagnostics = q_learning(
                net, cfg, online, state.target, steps, read, state.one_step
            )
            return dict(diagnostics, loss=loss, gradient=gradient)

        found = learn_in_parts(net, learned, steps, steps.reward.shape[0], LEARNED)
        state, norm = follow(state, found["gradient"])
        return state, dict(found, grad_norm=norm)

    @traced(jit_compile=True)
    def update(state, steps):
        def on_batch(state, i):
            return one(state, tf.nest.map_structure(lambda field: field[i], steps))

        return repeat_update(on_batch, state, steps.reward.shape[0], DIAGNOSTICS)

    return update


def _make_shared_update(net, cfg, read, strategy, follow):
    check_even(cfg, strategy)

    @traced(jit_compile=True)
    def learned(state, steps):
        online = draw_loops(net, state.online, state.updates)
        return q_learning(net, cfg, online, state.target, steps, read, state.one_step)

    def share(state, steps, i, part, parts):
        """A device's part of batch i: its number of decisions, and what is a mean over them."""
        batch = slice_batch(tf.nest.map_structure(lambda field: field[i], steps), part, parts)
        loss, gradient, diagnostics = learned(state, batch)
        scalars = dict(diagnostics, loss=loss)
        vector = tf.concat([tf.stack([scalars[name] for name in LEARNED]), gradient], 0)
        return [(diagnostics["count"], vector)]

    means_of = make_means(strategy, share, least=1.0)

    @traced
    def one(state, steps, i):
        (means,) = means_of(state, steps, i)
        state, norm = follow(state, means[len(LEARNED) :])
        return state, tf.concat([means[: len(LEARNED)], [norm]], 0)

    def update(state, steps):
        scalars = []
        # Not a loop of TensorFlow's: devices can't exchange gradients inside one.
        for i in tf.range(steps.reward.shape[0]):
            state, means = one(state, steps, i)
            scalars.append(means)
        mean = tf.add_n(scalars) / len(scalars)
        return state, dict(zip(DIAGNOSTICS, tf.unstack(mean)))

    return update


def make_draw(sample, cfg, count, seed) -> Callable:
    """Compile `draw(updates) -> Steps [count, B, ...]`, the batches of the next `count` updates.

    updates: how many there were before.
    """

    @traced
    def draw(updates):
        steps = sample(count * cfg.batch_size, tf.stack([tf.constant(seed, tf.int64), updates]))
        return tf.nest.map_structure(
            lambda field: tf.reshape(field, [count, cfg.batch_size, *field.shape[1:]]), steps
        )

    return draw


# -------------------------------------------------------------------------------------------------
# Acting


def make_greedy(net) -> Callable:
    """`begin(weights) -> act(inputs) -> best actions [N]`, one step after another; `stepwise`."""
    return make_stepwise(net, best_at_last(parts=net.parts))


def make_collect(begin, stepper, info, cfg, epsilon_end=None) -> Callable:
    """`collect(weights, step) -> (steps [S, N, ...], games)`: S = cfg.chunk steps, epsilon-greedy.

    begin: what `make_greedy` made. Changes the Stepper's window and generator. `games` lists the
    (return, length) of each game that ended. epsilon_end: where epsilon ends in each of the N
    environments, by default cfg.epsilon_end.
    """
    vec, window, rng, held = stepper
    out = vec.out
    explore = make_explore(info, cfg.hold)
    shape = (cfg.chunk, len(out["first"]))

    def collect(weights, step):
        chunk = Steps(
            obs=np.zeros((*shape, *info.obs_shape), info.obs_dtype),
            action=np.zeros(shape, np.int32),
            reward=np.zeros(shape, np.float32),
            discount=np.zeros(shape, np.float32),
            first=np.zeros(shape, bool),
        )
        games = []
        act = begin(weights)
        for i in range(cfg.chunk):
            chunk.obs[i] = out["obs"]
            chunk.first[i] = out["first"]
            best = act(network_inputs(window))
            epsilon = epsilon_at(step + i * cfg.num_envs, cfg, epsilon_end)
            legal = legal_actions(info, out["obs"])
            action = explore(rng, best, epsilon, held, out["first"], legal)
            vec.step(action)
            chunk.action[i] = action
            chunk.reward[i] = out["reward"]
            chunk.discount[i] = out["discount"]
            games += ended_games(out)
            push(window, out["obs"], out["first"], action)
        return chunk, games

    return collect


# -------------------------------------------------------------------------------------------------
# A learner, however experience comes in


class Learner(NamedTuple):
    """What learning from a replay buffer needs."""

    info: EnvInfo
    net: FlatModel
    replay: Replay
    window: int  # steps of a window of the replay buffer
    needed: int  # steps in the replay buffer before the first update
    own: DQNConfig  # with this process's share of environments, batch and replay buffer
    group: ProcessGroup


def make_learner(env_fn, q_fn, cfg, seed, info=None, make_buffer=make_replay, group=SINGLE):
    """Check the settings and make a Learner that has learned nothing yet."""
    check_settings(cfg)
    shared = ("num_envs", "batch_size", "replay_size")
    own = share_settings(cfg, group, even=shared[:2], uneven=("learning_starts",))
    own = dataclasses.replace(own, replay_size=cfg.replay_size // group.size)
    info = info or info_of(env_fn)
    keras.utils.set_random_seed(seed)
    net = flatten_q(q_fn(info), info)
    spec = steps_spec(info)
    check_memory(spec, own.replay_size, cfg.total_steps // group.size)
    replay = make_buffer(spec, own.num_envs, own.replay_size)
    window = net.context + cfg.n_step
    needed = max(own.learning_starts, own.num_envs * window)
    if replay.length < window or needed > replay.rows * replay.length:
        raise UsageError(
            f"--replay-size={cfg.replay_size} is too small for {cfg.num_envs} environments, "
            f"windows of {window} steps and a start after {needed} steps; make it larger."
        )
    return Learner(info, net, replay, window, needed, own, group)


def resume_learner(learner, saved):
    """The state of the snapshot `saved`, whose replay buffer is put back; the first one without.

    Raises UsageError if it is one of other settings.
    """
    state = first_state(learner.net)
    if saved is None:
        return state
    state = restore_state(saved, state)
    try:
        restore_replay(learner.replay, saved["replay"])
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"The checkpoint does not fit these settings ({error}); resume with those the run was "
            "started with."
        ) from None
    return state


def check_fills(learner, state, progress, cfg, steps, delay=0):
    """Raise UsageError if a run ends before the buffer holds enough for a first update.

    It comes at the start of an iteration of `steps` steps, `delay` steps behind that at the
    earliest.
    """
    if int(state.updates):
        return
    missing = max(0, learner.needed - steps_stored(learner.replay)) * learner.group.size
    first = progress.step + -(-missing // steps) * steps + delay
    why = (
        f"--learning-starts={cfg.learning_starts}, --num-envs={cfg.num_envs}, windows of "
        f"{learner.window} steps"
    )
    check_learns(progress, first, cfg.total_steps, why)


def can_learn(learner, state):
    """Whether the buffer holds what a first update needs, in every process of the group.

    That is steps enough, and where values are learned in units of a reward, a reward but 0.
    """
    if int(state.updates):
        return True
    if steps_stored(learner.replay) < learner.needed:
        return False
    if learner.net.value_unit is None:
        return True
    seen = float(np.any(stored_rewards(learner.replay)))
    return learner.group.all_sum([seen])[0] == learner.group.size


def adapt_once(learner, state):
    """The state; before the first update, with what the data of the buffer decides.

    That is how far targets reach, and what layers adapt to.
    """
    net = learner.net
    if int(state.updates):
        return state
    rewards = stored_rewards(learner.replay)
    if learner.own.reward_transform == "sign":
        rewards = np.sign(rewards)
    if learner.own.n_step_if_steady:
        state = state._replace(one_step=tf.constant(not _are_steady(rewards, learner.group)))
    if not net.model.non_trainable_variables:
        return state
    fixed = adapt(net, *stored_obs(learner.replay), rewards)
    group = learner.group
    if group.size > 1:  # each has seen other steps
        flat = np.concatenate([np.ravel(part) for part in fixed])
        mean = (group.all_sum(flat) / group.size).astype("float32")
        ends = np.cumsum([part.size for part in fixed])[:-1]
        fixed = np.split(mean, ends)
    names = ("online", "target", "acting")
    return state._replace(**{name: with_fixed(net, getattr(state, name), fixed) for name in names})


STEADY = 0.01  # how much rewards that count as the same may differ, of their size


def _are_steady(rewards, group):
    """Whether the rewards of all processes of a group differ by less than STEADY of their size."""
    rewards = rewards.astype("float64")
    sums = [len(rewards), np.sum(rewards), np.sum(np.square(rewards))]
    count, total, squares = group.all_sum(sums)
    return bool(squares / count - (total / count) ** 2 <= STEADY**2 * squares / count)


def dqn(
    env_fn,
    q_fn,
    cfg,
    *,
    info=None,
    seed=0,
    workers=1,
    strategy=None,
    log=None,
    save=None,
    saved=None,
    should_stop=None,
    evaluation=None,
):
    """Train a Q-network by DQN and return (state, net, progress).

    Args:
      env_fn: makes one gymnasium environment.
      q_fn: EnvInfo -> keras.Model from a window to Q [B, P, A, N], as `networks.build_q`.
      cfg: DQNConfig.
      info: EnvInfo of the environments, by default what one of them shows.
      seed: seeds weights, environments, exploration and replay.
      workers: processes that step the environments; 0 for none. The result does not depend on it.
      strategy: a tf.distribute.Strategy on whose devices every batch is learned from together. Of a
        MultiWorkerMirroredStrategy every process plays its share of the environments, and logs and
        saves what is its own.
      log: called as log(DQNMetrics) after every iteration, and as log(DQNMetrics, evaluation=mean
        return) behind an evaluation.
      save: called as save(step, make, last=...) after every iteration, with last=True at the end;
        calls make() for what to keep, if it wants to keep it.
      saved: what make() gave, to go on from there.
      should_stop: asked after every iteration; when true, the run saves and returns.
      evaluation: a `loop.Evaluation`, by which games are played in between; it changes nothing of
        what is learned.

    Raises UsageError for settings that can't work, or when another process of the strategy has
    gone, Diverged when what is learned is not finite, and EnvFailure when an environment fails;
    what was learned is saved before that, and going on from it starts fresh episodes.

    >>> import functools, gymnasium
    >>> from tfdqt.games.config import NetworkConfig
    >>> from tfdqt.games.networks import build_q
    >>> env_fn = functools.partial(gymnasium.make, "CartPole-v1")
    >>> q_fn = functools.partial(build_q, cfg=NetworkConfig())
    >>> dqn(env_fn, q_fn, DQNConfig(total_steps=5_000), workers=0)
    """
    check_start(q_fn, seed, workers)
    group = make_group(strategy)
    learner = make_learner(env_fn, q_fn, cfg, seed, info, group=group)
    info, net, replay, window_length, _, own, _ = learner
    check_same(group, repr((cfg, seed)), net.start)
    seed = share_seed(seed, group)
    per_iteration = cfg.chunk * cfg.num_envs
    updates_per_iteration = round(cfg.updates_per_step * per_iteration)
    add = make_add(replay)
    update = make_update(net, cfg, strategy)
    sample = make_sampler(replay, window_length)
    draw = make_draw(sample, own, updates_per_iteration, seed)
    state = resume_learner(learner, saved)
    check_fills(learner, state, restore_progress(saved), cfg, per_iteration)
    steps_here = dict(seed=seed, workers=workers, saved=saved)
    with (
        stepping(env_fn, info, net.context, own, **steps_here) as stepper,
        one_thread("collect") as pool,
    ):
        collect = make_collect(make_greedy(net), stepper, info, cfg)
        diagnostics = NO_DIAGNOSTICS

        def iterate(state, progress):
            nonlocal diagnostics
            chunk = pool.submit(collect, state.acting, progress.step)
            with lost_learner_ends_run(group.size):
                batches = None
                if can_learn(learner, state):
                    state = adapt_once(learner, state)
                    batches = draw(state.updates)
                # Only behind the draw, which then knows no step of this iteration.
                added = pool.submit(lambda: add(chunk.result()[0]))
                if batches is not None:
                    state, means = update(state, batches)
                    diagnostics = {name: float(means[name]) for name in DIAGNOSTICS}
            _, games = chunk.result()
            added.result()
            progress = progress.after(per_iteration, games)
            return (
                state,
                progress,
                DQNMetrics(
                    *progress.metrics(),
                    **diagnostics,
                    epsilon=epsilon_at(progress.step, cfg),
                    updates=int(state.updates),
                ),
            )

        def snapshot(state, progress, envs=True):
            return run_snapshot(state, progress, stepper, envs=envs, replay=replay_arrays(replay))

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
            net=net,
            saved=saved,
            any_of=lambda stop: bool(group.all_sum([stop])[0]),
        )
    set_weights(net, state.acting)
    return state, net, progress
