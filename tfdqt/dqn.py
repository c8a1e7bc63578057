"""DQN as one function. It receives environments and a network as functions and knows nothing of either.

One iteration: a thread collects a chunk of steps with the weights of the last iteration (the environments run in worker
processes) while the compiled update learns from what was stored before. What is learned from, and with which weights
an action was chosen, never depends on which of the two is faster, so equal seeds give equal runs.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.acting import Progress, ended_games, make_window, push, restore_place, restore_state, save_with, shown, snapshot
from tfdqt.backend import keras, tf
from tfdqt.checks import check_dqn
from tfdqt.config import DQNConfig, UsageError
from tfdqt.distribute import ALONE, Team, check_same, make_add_up, make_team, own_seed, own_share, share_of, together
from tfdqt.envs import EnvFailure, env_info
from tfdqt.networks import flatten_model, join, known_of, make_act, repeat, set_weights, step_adam, with_known
from tfdqt.policy import epsilon_at, epsilon_greedy
from tfdqt.replay import (
    Steps,
    make_add,
    make_replay,
    make_sampler,
    replay_arrays,
    restore_replay,
    steps_spec,
    steps_stored,
    stored_obs,
)
from tfdqt.vec_envs import make_vec_env


class DQNState(NamedTuple):
    """What learning changes. Weights are one flat vector, so that one fused kernel moves them all."""

    online: tf.Tensor  # [W] weights of the Q-network
    target: tf.Tensor  # [W] weights of the target network
    acting: tf.Tensor  # [W] weights that choose the actions
    optimizer: tuple  # Adam's two moments, [W] each
    updates: tf.Tensor  # int64, updates done


class Metrics(NamedTuple):
    """One line of the log."""

    step: int  # environment steps
    games: int  # games finished since the start
    mean_return: float  # of the last 100 games; NaN before the first
    loss: float
    q_mean: float
    td_error: float
    grad_norm: float
    epsilon: float
    updates: int


DIAGNOSTICS = ("loss", "q_mean", "td_error", "grad_norm")
NOTHING = dict.fromkeys(DIAGNOSTICS, float("nan"))  # before the first update


def first_state(networks):
    """The state before the first update; all weights start as copies."""
    start, nothing = networks.start, tf.zeros_like(networks.start)
    return DQNState(start, tf.identity(start), tf.identity(start), (nothing, tf.identity(nothing)), tf.constant(0, tf.int64))


def window_inputs(steps, begin, context):
    """What the network is shown of steps [B, T, ...]: the `context` steps from `begin` on."""
    part = tf.nest.map_structure(lambda field: field[:, begin:begin + context], steps)
    none = -tf.ones_like(part.action[:, :1])  # the action before a window is not in it
    before = tf.concat([none, part.action[:, :-1]], axis=1)
    return dict(obs=part.obs, first=tf.cast(part.first, tf.int32), prev_action=tf.where(part.first, -1, before))


def q_learning(networks, cfg, online, target, steps):
    """The loss of one batch: weights, weights, steps [B, C + n, ...] -> (scalar, diagnostics).

    Q is learned at the last P of the first C steps. Its target bootstraps n steps on, from a window as long as its own.
    A window in which an episode was cut short (truncated) within reach bootstraps one step on instead, because the true
    last observation is the last state of that episode with a value. The gap that advantage learning widens is the target
    network's.
    """
    context, positions, n = networks.context, networks.positions, cfg.n_step
    skip = context - positions
    rewards = tf.sign(steps.reward) if cfg.reward_transform == "sign" else steps.reward
    # The step behind an episode's last observation only resets: nothing is learned at it.
    last = tf.concat([steps.first[:, 1:], tf.zeros_like(steps.first[:, :1])], axis=1)  # [B, C + n]
    over = tf.concat([tf.zeros_like(last[:, :1]), steps.discount[:, :-1] == 0], axis=1)
    cut = tf.reduce_any(last[:, skip + 1:] & ~over[:, skip + 1:], axis=1)  # [B]

    far, near = window_inputs(steps, n, context), window_inputs(steps, 1, context)
    ahead = {key: tf.where(tf.reshape(cut, [-1] + [1] * (far[key].shape.rank - 1)), near[key], far[key]) for key in far}
    q_target = networks.raw(target, ahead)
    q_online = networks.apply(online, ahead) if cfg.double else None
    q_ahead = q_target
    if q_target.shape.rank == 4:
        q_ahead = tf.reduce_mean(q_target, axis=-1)
        best = tf.argmax(q_ahead if q_online is None else q_online, axis=-1, output_type=tf.int32)
        values, loss_fn = losses.select_actions(q_target, best), losses.quantile_td_loss
    else:
        values, loss_fn = losses.bootstrap_values(q_target, q_online), losses.td_loss
    if cfg.target_epsilon:
        cost = losses.slip_cost(q_ahead, cfg.target_epsilon, cfg.advantage_learning)
        values -= tf.reshape(cost, [*cost.shape, *[1] * (values.shape.rank - 2)])
    length = positions + n - 1
    targets = losses.n_step_targets(rewards[:, skip:skip + length], steps.discount[:, skip:skip + length], values,
                                    gamma=cfg.gamma, n=n)
    one_step = losses.n_step_targets(rewards[:, skip:context], steps.discount[:, skip:context], values, gamma=cfg.gamma, n=1)
    targets = tf.where(tf.reshape(cut, [-1] + [1] * (targets.shape.rank - 1)), one_step, targets)
    if cfg.advantage_learning:
        q_here = networks.apply(target, window_inputs(steps, 0, context))
        gap = losses.widening(q_here, steps.action[:, skip:context], cfg.advantage_learning)
        targets -= tf.reshape(gap, [*gap.shape, *[1] * (targets.shape.rank - 2)])

    mask = 1.0 - tf.cast(last[:, skip:context], tf.float32)
    with tf.GradientTape() as tape:
        trained, fixed = networks.split(online)
        tape.watch(trained)
        q = networks.raw((trained, fixed), window_inputs(steps, 0, context))
        loss, diagnostics = loss_fn(q, steps.action[:, skip:context], targets, mask, delta=cfg.huber_delta)
    return loss, join(networks, tape.gradient(loss, trained)), dict(diagnostics, count=tf.reduce_sum(mask))


def make_update(networks, cfg, strategy=None) -> Callable:
    """Compile `update(state, steps [K, B, C + n, ...]) -> (state, diagnostics)`: K updates in one call of XLA.

    With a tf.distribute.Strategy each batch is shared evenly by its devices, whose gradients are added up; the state stays one. Of
    several processes each is given its own part of the batches.
    """
    total = max(1.0, cfg.updates_per_step * cfg.total_steps)

    def follow(state, gradient):
        updates = state.updates + 1
        online, moments, size = step_adam(state.online, state.optimizer, gradient, updates, tf.cast(updates, tf.float32) / total, cfg)
        tau = tf.where(updates % cfg.target_every == 0, cfg.target_tau, 0.0)
        target = state.target + tau * (online - state.target)
        acting = online if cfg.acting_tau == 1 else state.acting + cfg.acting_tau * (online - state.acting)
        return DQNState(online, target, acting, moments, updates), size

    def one(state, steps):
        loss, gradient, diagnostics = q_learning(networks, cfg, state.online, state.target, steps)
        state, size = follow(state, gradient)
        return state, dict(diagnostics, loss=loss, grad_norm=size)

    @tf.function(jit_compile=True)
    def update(state, steps):
        return repeat(lambda state, i: one(state, tf.nest.map_structure(lambda field: field[i], steps)), state, steps.reward.shape[0],
                      DIAGNOSTICS)

    return update if strategy is None else _make_shared_update(networks, cfg, strategy, tf.function(follow, jit_compile=True))


def _make_shared_update(networks, cfg, strategy, follow):
    replicas = strategy.num_replicas_in_sync
    if cfg.batch_size % replicas:
        raise UsageError(f"--batch-size={cfg.batch_size} can't be shared evenly by {replicas} devices; choose a multiple of {replicas}.")
    learned = tf.function(lambda online, target, steps: q_learning(networks, cfg, online, target, steps), jit_compile=True)
    sums = [name for name in DIAGNOSTICS if name != "grad_norm"]

    def share(state, steps, i, part, parts):
        """A device's part of batch i: sums over the steps that count, in one vector, so that they can be added up."""
        mine = share_of(tf.nest.map_structure(lambda field: field[i], steps), part, parts)
        loss, gradient, diagnostics = learned(state.online, state.target, mine)
        found = dict(diagnostics, loss=loss)
        return diagnostics["count"] * tf.concat([tf.ones([1]), tf.stack([found[name] for name in sums]), gradient], 0)

    add_up = make_add_up(strategy, share)

    @tf.function
    def one(state, steps, i):
        total = add_up(state, steps, i)
        means = total / tf.maximum(total[0], 1.0)
        state, size = follow(state, means[1 + len(sums):])
        return state, tf.concat([means[1:1 + len(sums)], [size]], 0)

    def update(state, steps):
        found = []
        for i in tf.range(steps.reward.shape[0]):  # not a loop of TensorFlow's: devices can't meet inside one
            state, means = one(state, steps, i)
            found.append(means)
        return state, dict(zip([*sums, "grad_norm"], tf.unstack(tf.add_n(found) / len(found))))

    return update


def make_learn(update, sample, cfg, count, seed) -> Callable:
    """`learn(state) -> (state, diagnostics)`: draw `count` batches from the replay buffer and update on each."""

    @tf.function
    def draw(updates):
        steps = sample(count * cfg.batch_size, tf.stack([tf.constant(seed, tf.int64), updates]))
        return tf.nest.map_structure(lambda f: tf.reshape(f, [count, cfg.batch_size, *f.shape[1:]]), steps)

    def learn(state):
        return update(state, draw(state.updates))

    return learn


def make_collect(act, vec, info, cfg, end=None) -> Callable:
    """`collect(weights, step, window, rng) -> (steps [S, N, ...], games)`, S = cfg.chunk vector steps by epsilon-greedy.

    Changes `window` and `rng`. `games` lists the (return, length) of each game that ended. `end`: where epsilon ends in each
    of the N environments of `vec`, by default cfg.epsilon_end in all.
    """
    shape = (cfg.chunk, len(vec.out["first"]))

    def collect(weights, step, window, rng):
        chunk = Steps(np.zeros((*shape, *info.obs_shape), info.obs_dtype), np.zeros(shape, np.int32),
                      np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, bool))
        games, out = [], vec.out
        for i in range(cfg.chunk):
            chunk.obs[i], chunk.first[i] = out["obs"], out["first"]
            action = epsilon_greedy(rng, act(weights, shown(window)).numpy(), info.num_actions,
                                    epsilon_at(step + i * cfg.num_envs, cfg, end))
            vec.step(action)
            chunk.action[i], chunk.reward[i], chunk.discount[i] = action, out["reward"], out["discount"]
            games += ended_games(out)
            push(window, out["obs"], out["first"], action)
        return chunk, games

    return collect


class Learner(NamedTuple):
    """What learning needs, however experience comes in."""

    info: tuple  # EnvInfo
    networks: tuple  # Networks
    state: DQNState
    replay: tuple  # Replay
    window: int  # steps of a window of the replay buffer
    needed: int  # steps in the replay buffer before the first update
    own: DQNConfig  # with this process's share of environments, batch and replay buffer
    team: Team


def make_learner(env_fn, q_fn, cfg, seed, make_buffer=make_replay, team=ALONE):
    """Check the settings and make a Learner that has learned nothing yet."""
    check_dqn(cfg)
    own = own_share(cfg, team)
    env = env_fn()
    info = env_info(env)
    env.close()
    keras.utils.set_random_seed(seed)
    networks = flatten_model(q_fn(info))
    replay = make_buffer(steps_spec(info), own.num_envs, own.replay_size)
    window = networks.context + cfg.n_step
    needed = max(own.learning_starts, own.num_envs * window)
    if replay.length < window or needed > replay.rows * replay.length:
        raise UsageError(f"--replay-size={cfg.replay_size} is too small for {cfg.num_envs} environments, windows of "
                         f"{window} steps and a start after {needed} steps; make it larger.")
    return Learner(info, networks, first_state(networks), replay, window, needed, own, team)


def resume_learner(learner, saved):
    """The Learner as the snapshot `saved` has it. Raises UsageError if that is one of other settings."""
    state = restore_state(saved, learner.state)
    try:
        restore_replay(learner.replay, saved["replay"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"The checkpoint does not fit these settings ({error}); resume with those the run was started "
                         "with.") from None
    return learner._replace(state=state)


def informed(learner, state):
    """The state, before the first update with what the replay buffer tells of the data, if the network has use for it."""
    if int(state.updates) or not learner.networks.model.non_trainable_variables:
        return state
    known = known_of(learner.networks, *stored_obs(learner.replay))
    if learner.team.size > 1:  # each has seen other steps
        mean = (learner.team.total(np.concatenate(known)) / learner.team.size).astype("float32")
        known = np.split(mean, np.cumsum([len(part) for part in known])[:-1])
    return state._replace(**{name: with_known(learner.networks, getattr(state, name), known) for name in ("online", "target", "acting")})


def dqn(env_fn, q_fn, cfg, *, seed=0, workers=1, strategy=None, log=None, save=None, saved=None, should_stop=None):
    """Train a Q-network by DQN and return (state, networks, progress).

    Args:
      env_fn: makes one gymnasium environment.
      q_fn: EnvInfo -> keras.Model from a window to Q-values, as `gpt.build_q`.
      cfg: DQNConfig.
      seed: seeds weights, environments, exploration and replay.
      workers: processes that step the environments; 0 for none. The result does not depend on it.
      strategy: a tf.distribute.Strategy on whose devices every batch is learned from together. Of a MultiWorkerMirroredStrategy
        every process plays its share of the environments, and logs and saves what is its own.
      log: called as log(Metrics) after every iteration.
      save: called as save(step, make) after every iteration and, with last=True, at the end; calls make() for what to
        keep, if it wants to keep it.
      saved: what make() gave, to go on from there.
      should_stop: asked after every iteration; when true, the run saves and returns.

    Raises UsageError for settings that can't work, or when another process of the strategy has gone, and EnvFailure when an
    environment fails; what was learned is saved before that, and going on from it starts fresh episodes.
    """
    team = make_team(strategy)
    learner = make_learner(env_fn, q_fn, cfg, seed, team=team)
    info, networks, state, replay, window_length, needed, own, _ = learner
    check_same(team, repr((cfg, seed)), networks.start)
    seed, per_iteration = own_seed(seed, team), cfg.chunk * cfg.num_envs
    add, act = make_add(replay), make_act(networks)
    count = round(cfg.updates_per_step * per_iteration)
    learn = make_learn(make_update(networks, cfg, strategy), make_sampler(replay, window_length), own, count, seed)
    vec = make_vec_env(env_fn, info, own.num_envs, seed, workers=workers, life_loss_ends=cfg.life_loss_ends)
    try:
        rng = np.random.default_rng([seed, 1])
        window, progress = make_window(info, own.num_envs, networks.context), Progress()
        push(window, vec.out["obs"], vec.out["first"], -1)
        if saved is not None:
            state = resume_learner(learner, saved).state
            progress = restore_place(saved, vec, window, rng)
        collect = make_collect(act, vec, info, cfg)
        diagnostics = NOTHING

        def make_snapshot(envs=True):
            return snapshot(state, vec, window, rng, progress, envs=envs, replay=replay_arrays(replay))

        with ThreadPoolExecutor(1, "collect") as pool:
            while progress.step < cfg.total_steps:
                chunk = pool.submit(collect, state.acting, progress.step, window, rng)
                if steps_stored(replay) >= needed:
                    with together(team.size):
                        state, fresh = learn(informed(learner, state))
                        diagnostics = {name: float(value) for name, value in fresh.items()}
                try:
                    steps, games = chunk.result()
                except EnvFailure:
                    if save:
                        save(progress.step, lambda: make_snapshot(envs=False), last=True)
                    raise
                add(steps)
                progress = progress.after(per_iteration, games)
                if log:
                    log(Metrics(progress.step, progress.games, progress.mean_return(), epsilon=epsilon_at(progress.step, cfg),
                                updates=int(state.updates), **diagnostics))
                stop = bool(team.total([should_stop is not None and should_stop()])[0])
                if save:
                    save_with(save, progress, make_snapshot, last=stop or progress.step >= cfg.total_steps)
                if stop:
                    break
    finally:
        vec.close()
    set_weights(networks, state.acting)
    return state, networks, progress
