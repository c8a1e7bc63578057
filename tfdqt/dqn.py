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
from tfdqt.backend import keras, tf
from tfdqt.config import UsageError, check_dqn
from tfdqt.envs import EnvFailure, env_info, make_vec_env
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


class DQNState(NamedTuple):
    """What learning changes. Weights are one flat vector, so that one fused kernel moves them all."""

    online: tf.Tensor  # [W] weights of the Q-network
    target: tf.Tensor  # [W] weights of the target network
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


class Networks(NamedTuple):
    """A Keras model as a pure function of one flat weight vector."""

    model: keras.Model
    apply: Callable  # (weights [W], inputs) -> Q [B, P, A]
    raw: Callable  # the same before quantiles, if the model gives them, are averaged: [B, P, A, N]
    split: Callable  # weights [W] -> list of the model's weights
    start: tf.Tensor  # [W]
    context: int
    positions: int


def flatten_model(model):
    """The Keras model as a function of one flat weight vector; see Networks. Fixed weights stand behind the trained ones."""
    trained, fixed = model.trainable_variables, model.non_trainable_variables
    shapes = [variable.shape for variable in (*trained, *fixed)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    names = list(model.input)

    def split(flat):
        parts = [tf.reshape(part, shape) for part, shape in zip(tf.split(flat, sizes), shapes)]
        return parts[:len(trained)], parts[len(trained):]

    def raw(weights, inputs):
        parts = weights if isinstance(weights, tuple) else split(weights)
        return model.stateless_call(*parts, {name: inputs[name] for name in names})[0]

    def apply(weights, inputs):
        q = raw(weights, inputs)
        return tf.reduce_mean(q, axis=-1) if q.shape.rank == 4 else q

    start = tf.concat([tf.reshape(variable.value, [-1]) for variable in (*trained, *fixed)], 0)
    return Networks(model, apply, raw, split, start, model.input["obs"].shape[1], model.output.shape[1])


def join(networks, trained, fixed=None):
    """One flat vector of a value for each trained weight and each fixed one (zeros without `fixed`)."""
    fixed = [tf.zeros(v.shape, v.dtype) for v in networks.model.non_trainable_variables] if fixed is None else fixed
    return tf.concat([tf.reshape(part, [-1]) for part in (*trained, *fixed)], 0)


def standardize(networks, state, obs):
    """Set what the network's Standardize layers know of the data, in online and target weights, from obs [M, ...]."""
    model = networks.model
    numbers = keras.Model(model.input["obs"], model.get_layer("standardize").input)
    obs = obs[:len(obs) // networks.context * networks.context].reshape(-1, *model.input["obs"].shape[1:])
    x = numbers(obs).numpy().reshape(-1, numbers.output.shape[-1])
    fixed = [x.mean(axis=0), np.maximum(x.std(axis=0), 0.1)]
    return state._replace(online=join(networks, networks.split(state.online)[0], fixed),
                          target=join(networks, networks.split(state.target)[0], fixed))


def set_weights(networks, weights):
    """Write a flat weight vector into the Keras model."""
    trained, fixed = networks.split(weights)
    model = networks.model
    for variable, value in zip((*model.trainable_variables, *model.non_trainable_variables), (*trained, *fixed)):
        variable.assign(value)


def first_state(networks):
    """The state before the first update; the target starts as a copy."""
    nothing = tf.zeros_like(networks.start)
    return DQNState(networks.start, tf.identity(networks.start), (nothing, tf.identity(nothing)), tf.constant(0, tf.int64))


def acting_weights(state, cfg):
    """The weights that choose actions: [W]."""
    return state.target if cfg.act_with_target else state.online


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
    network's and at most 1, as Munchausen Q-learning clips its own (Vieillard et al., 2020).
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
    if q_target.shape.rank == 4:
        best = tf.argmax(tf.reduce_mean(q_target, axis=-1) if q_online is None else q_online, axis=-1, output_type=tf.int32)
        values, loss_fn = losses.select_actions(q_target, best), losses.quantile_td_loss
    else:
        values, loss_fn = losses.bootstrap_values(q_target, q_online), losses.td_loss
    length = positions + n - 1
    targets = losses.n_step_targets(rewards[:, skip:skip + length], steps.discount[:, skip:skip + length], values,
                                    gamma=cfg.gamma, n=n)
    one_step = losses.n_step_targets(rewards[:, skip:context], steps.discount[:, skip:context], values, gamma=cfg.gamma, n=1)
    targets = tf.where(tf.reshape(cut, [-1] + [1] * (targets.shape.rank - 1)), one_step, targets)
    if cfg.advantage_learning:
        gap = losses.action_gap(networks.apply(target, window_inputs(steps, 0, context)), steps.action[:, skip:context])
        gap = cfg.advantage_learning * tf.minimum(gap, 1.0)
        targets -= tf.reshape(gap, [*gap.shape, *[1] * (targets.shape.rank - 2)])

    mask = 1.0 - tf.cast(last[:, skip:context], tf.float32)
    with tf.GradientTape() as tape:
        trained, fixed = networks.split(online)
        tape.watch(trained)
        q = networks.raw((trained, fixed), window_inputs(steps, 0, context))
        loss, diagnostics = loss_fn(q, steps.action[:, skip:context], targets, mask, delta=cfg.huber_delta)
    return loss, join(networks, tape.gradient(loss, trained)), diagnostics


def make_update(networks, cfg) -> Callable:
    """Compile `update(state, steps [K, B, C + n, ...]) -> (state, diagnostics)`: K updates in one call of XLA."""
    total = max(1.0, cfg.updates_per_step * cfg.total_steps)

    def one(state, steps):
        loss, gradient, diagnostics = q_learning(networks, cfg, state.online, state.target, steps)
        size = tf.norm(gradient)
        gradient *= tf.minimum(1.0, cfg.max_grad_norm / tf.maximum(size, 1e-12))
        updates = state.updates + 1
        part = tf.cast(updates, tf.float32) / total
        rate = cfg.learning_rate + tf.minimum(part, 1.0) * (cfg.final_learning_rate - cfg.learning_rate)
        online, moments = losses.adam(state.online, gradient, state.optimizer, updates, rate=rate, epsilon=cfg.adam_epsilon)
        tau = tf.where(updates % cfg.target_every == 0, cfg.target_tau, 0.0)
        target = state.target + tau * (online - state.target)
        return DQNState(online, target, moments, updates), dict(diagnostics, loss=loss, grad_norm=size)

    @tf.function(jit_compile=True)
    def update(state, steps):
        count = steps.reward.shape[0]
        names = ("loss", "q_mean", "td_error", "grad_norm")

        def body(i, state, sums):
            state, diagnostics = one(state, tf.nest.map_structure(lambda field: field[i], steps))
            return i + 1, state, {name: sums[name] + diagnostics[name] for name in names}

        start = (tf.constant(0), state, {name: tf.zeros([]) for name in names})
        _, state, sums = tf.while_loop(lambda i, *_: i < count, body, start, maximum_iterations=count)
        return state, {name: total / count for name, total in sums.items()}

    return update


def make_learn(update, sample, cfg, count, seed) -> Callable:
    """Compile `learn(state) -> (state, diagnostics)`: draw `count` batches from the replay buffer and update on each."""

    @tf.function
    def learn(state):
        steps = sample(count * cfg.batch_size, tf.stack([tf.constant(seed, tf.int64), state.updates]))
        steps = tf.nest.map_structure(lambda f: tf.reshape(f, [count, cfg.batch_size, *f.shape[1:]]), steps)
        return update(state, steps)

    return learn


def make_act(networks) -> Callable:
    """Compile `act(weights, inputs) -> greedy actions [B]` at the last step of windows."""

    @tf.function(jit_compile=True)
    def act(weights, inputs):
        return tf.argmax(networks.apply(weights, inputs)[:, -1], axis=-1, output_type=tf.int32)

    return act


class Window(NamedTuple):
    """The latest steps of N environments, as the network is shown them; numpy, changed in place."""

    obs: np.ndarray  # [N, C, ...]
    first: np.ndarray  # [N, C] int32
    prev_action: np.ndarray  # [N, C] int32


def make_window(info, num_envs, context):
    """An empty window: every place starts an episode of its own, so nothing looks back at it."""
    return Window(np.zeros((num_envs, context, *info.obs_shape), info.obs_dtype), np.ones((num_envs, context), np.int32),
                  np.full((num_envs, context), -1, np.int32))


def push(window, obs, first, action):
    """Move the window on by one step: obs [N, ...], first [N], action before it [N]."""
    for array in window:
        array[:, :-1] = array[:, 1:]
    window.obs[:, -1], window.first[:, -1] = obs, first
    window.prev_action[:, -1] = np.where(first, -1, action)


def shown(window):
    """The window as inputs of the network: the action before its first step is not shown, as in training."""
    before = window.prev_action.copy()
    before[:, 0] = -1
    return dict(obs=window.obs, first=window.first, prev_action=before)


def make_collect(act, vec, info, cfg) -> Callable:
    """`collect(weights, step, window, rng) -> (steps [S, N, ...], games)`, S = cfg.chunk vector steps by epsilon-greedy.

    Changes `window` and `rng`. `games` lists the (return, length) of each game that ended.
    """
    shape = (cfg.chunk, cfg.num_envs)

    def collect(weights, step, window, rng):
        chunk = Steps(np.zeros((*shape, *info.obs_shape), info.obs_dtype), np.zeros(shape, np.int32),
                      np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, bool))
        games, out = [], vec.out
        for i in range(cfg.chunk):
            chunk.obs[i], chunk.first[i] = out["obs"], out["first"]
            action = epsilon_greedy(rng, act(weights, shown(window)).numpy(), info.num_actions,
                                    epsilon_at(step + i * cfg.num_envs, cfg))
            vec.step(action)
            chunk.action[i], chunk.reward[i], chunk.discount[i] = action, out["reward"], out["discount"]
            games += [(float(out["ret"][j]), int(out["length"][j])) for j in np.flatnonzero(out["ended"])]
            push(window, out["obs"], out["first"], action)
        return chunk, games

    return collect


class Progress(NamedTuple):
    """Where a run stands, beside the learner's state."""

    step: int = 0
    games: int = 0
    recent: tuple = ()  # returns of the last 100 games


def dqn(env_fn, q_fn, cfg, *, seed=0, workers=1, log=None, save=None, saved=None, should_stop=None):
    """Train a Q-network by DQN and return (state, networks, progress).

    Args:
      env_fn: makes one gymnasium environment.
      q_fn: EnvInfo -> keras.Model from a window to Q-values, as `gpt.build_gpt_q`.
      cfg: DQNConfig.
      seed: seeds weights, environments, exploration and replay.
      workers: processes that step the environments; 0 for none. The result does not depend on it.
      log: called as log(Metrics) after every iteration.
      save: called as save(step, make) after every iteration and, with last=True, at the end; calls make() for what to
        keep, if it wants to keep it.
      saved: what make() gave, to go on from there.
      should_stop: asked after every iteration; when true, the run saves and returns.

    Raises UsageError for settings that can't work, and EnvFailure when an environment fails; what was learned is saved
    before that, and going on from it starts fresh episodes.
    """
    check_dqn(cfg)
    env = env_fn()
    info = env_info(env)
    env.close()
    keras.utils.set_random_seed(seed)
    networks = flatten_model(q_fn(info))
    state = first_state(networks)
    replay = make_replay(steps_spec(info), cfg.num_envs, cfg.replay_size)
    window_length = networks.context + cfg.n_step
    needed = max(cfg.learning_starts, cfg.num_envs * window_length)
    if replay.length < window_length or needed > replay.rows * replay.length:
        raise UsageError(f"--replay-size={cfg.replay_size} is too small for {cfg.num_envs} environments, windows of "
                         f"{window_length} steps and a start after {needed} steps; make it larger.")
    per_iteration = cfg.chunk * cfg.num_envs
    add, act = make_add(replay), make_act(networks)
    count = round(cfg.updates_per_step * per_iteration)
    learn = make_learn(make_update(networks, cfg), make_sampler(replay, window_length), cfg, count, seed)
    vec = make_vec_env(env_fn, info, cfg.num_envs, seed, workers=workers, life_loss_ends=cfg.life_loss_ends)
    try:
        rng = np.random.default_rng([seed, 1])
        window, progress = make_window(info, cfg.num_envs, networks.context), Progress()
        push(window, vec.out["obs"], vec.out["first"], -1)
        if saved is not None:
            state, window, progress = _restore(saved, state, replay, vec, window, rng)
        collect = make_collect(act, vec, info, cfg)
        diagnostics = dict.fromkeys(("loss", "q_mean", "td_error", "grad_norm"), float("nan"))

        def snapshot(envs=True):
            return _snapshot(state, replay, vec.states() if envs else [None] * cfg.num_envs, window, rng, progress)

        def keep(last):
            try:
                save(progress.step, snapshot, last=last)
            except EnvFailure:  # a state could not be read: keep the rest
                save(progress.step, lambda: snapshot(envs=False), last=last)
                raise

        with ThreadPoolExecutor(1, "collect") as pool:
            while progress.step < cfg.total_steps:
                chunk = pool.submit(collect, acting_weights(state, cfg), progress.step, window, rng)
                if steps_stored(replay) >= needed:
                    if networks.model.non_trainable_variables and int(state.updates) == 0:
                        state = standardize(networks, state, stored_obs(replay))
                    state, fresh = learn(state)
                    diagnostics = {name: float(value) for name, value in fresh.items()}
                try:
                    steps, games = chunk.result()
                except EnvFailure:
                    if save:
                        save(progress.step, lambda: snapshot(envs=False), last=True)
                    raise
                add(steps)
                progress = Progress(progress.step + per_iteration, progress.games + len(games),
                                    (progress.recent + tuple(ret for ret, _ in games))[-100:])
                if log:
                    log(Metrics(progress.step, progress.games, float(np.mean(progress.recent or [np.nan])),
                                epsilon=epsilon_at(progress.step, cfg), updates=int(state.updates), **diagnostics))
                stop = should_stop is not None and should_stop()
                if save:
                    keep(last=stop or progress.step >= cfg.total_steps)
                if stop:
                    break
    finally:
        vec.close()
    set_weights(networks, acting_weights(state, cfg))
    return state, networks, progress


def _snapshot(state, replay, env_states, window, rng, progress):
    """All that a run needs to go on, as arrays and plain values in a tree of dicts and lists."""
    return dict(learner=[np.asarray(tensor) for tensor in tf.nest.flatten(state)], replay=replay_arrays(replay), envs=env_states,
                window=window._asdict(), rng=rng.bit_generator.state, progress=progress._asdict())


def _restore(saved, state, replay, vec, window, rng):
    learner = saved["learner"]
    same = len(learner) == len(tf.nest.flatten(state)) and all(
        tensor.shape == array.shape for tensor, array in zip(tf.nest.flatten(state), learner))
    if not same:
        raise UsageError("The checkpoint holds a network of other sizes; resume with the settings that the run was started with.")
    try:
        restore_replay(replay, saved["replay"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"The checkpoint does not fit these settings ({error}); resume with those the run was started with.") from None
    state = tf.nest.pack_sequence_as(state, [tf.constant(array) for array in learner])
    vec.restore(saved["envs"])
    for name, array in saved["window"].items():
        getattr(window, name)[...] = array
    for row, env in enumerate(saved["envs"]):
        if env is None:  # a fresh episode: the window must not show the old one
            for array, empty in zip(window, (0, 1, -1)):
                array[row] = empty
            window.obs[row, -1], window.first[row, -1] = vec.out["obs"][row], 1
    rng.bit_generator.state = saved["rng"]
    progress = saved["progress"]
    return state, window, Progress(progress["step"], progress["games"], tuple(progress["recent"]))
