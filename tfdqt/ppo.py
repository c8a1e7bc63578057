"""PPO as one function (Schulman et al., 2017). It receives environments and a network as functions and knows nothing of either.

One iteration: all environments are stepped for a rollout with the present policy, then one call of XLA makes every update on
it: advantages, and `update_epochs` passes over minibatches. A step is learned from the window it was acted on, so the ratio of new to
old probability starts at exactly 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.acting import Progress, Window, ended_games, make_window, push, restore_place, restore_state, save_with, snapshot
from tfdqt.backend import keras, tf
from tfdqt.checks import check_ppo
from tfdqt.envs import EnvFailure, env_info
from tfdqt.networks import flatten_model, join, known_of, repeat, set_weights, step_adam, with_known
from tfdqt.vec_envs import make_vec_env


class PPOState(NamedTuple):
    """What learning changes."""

    weights: tf.Tensor  # [W] of policy and value
    optimizer: tuple  # Adam's two moments, [W] each
    updates: tf.Tensor  # int64, updates done


class Rollout(NamedTuple):
    """T steps of N environments. The stream holds, before them, the C - 1 steps that the first one could see."""

    stream: Window  # obs [N, C - 1 + T, ...], first, prev_action
    action: np.ndarray  # [N, T] int32
    log_p: np.ndarray  # [N, T] of that action when it was taken
    value: np.ndarray  # [N, T + 1]
    reward: np.ndarray  # [N, T]
    discount: np.ndarray  # [N, T], 0 where the episode terminated
    last: np.ndarray  # [N, T] bool, where the episode was over and the step only reset


class Metrics(NamedTuple):
    """One line of the log."""

    step: int  # environment steps
    games: int  # games finished since the start
    mean_return: float  # of the last 100 games; NaN before the first
    loss: float
    policy_loss: float
    value_loss: float
    entropy: float
    approx_kl: float
    clip_fraction: float
    grad_norm: float
    updates: int


LOSSES = ("loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")


def policy_and_value(networks, weights, inputs):
    """What the network says at the last step of windows: -> logits [B, A], value [B]."""
    out = networks.raw(weights, inputs)[:, -1]
    return out[:, :-1], out[:, -1]


def first_state(networks):
    """The state before the first update."""
    nothing = tf.zeros_like(networks.start)
    return PPOState(networks.start, (nothing, tf.identity(nothing)), tf.constant(0, tf.int64))


def make_look(networks, num_envs) -> Callable:
    """Compile `look(weights, chance [N], *fields) -> [3, N]`: actions drawn by numbers in [0, 1), their log-probabilities, values.

    The fields are the network's inputs in its own order. Called as a concrete function, which takes half the time of a call
    that looks at its arguments first.
    """
    inputs = networks.model.input

    @tf.function(jit_compile=True)
    def look(weights, chance, *fields):
        logits, value = policy_and_value(networks, weights, dict(zip(inputs, fields)))
        log_p = tf.nn.log_softmax(logits)
        action = tf.reduce_sum(tf.cast(tf.cumsum(tf.exp(log_p), axis=1)[:, :-1] <= chance[:, None], tf.int32), axis=1)
        return tf.stack([tf.cast(action, tf.float32), losses.select_actions(log_p, action), value])

    return look.get_concrete_function(tf.TensorSpec(networks.start.shape), tf.TensorSpec([num_envs]),
                                      *(tf.TensorSpec([num_envs, *field.shape[1:]], field.dtype) for field in inputs.values()))


def make_collect(networks, vec, info, cfg) -> Callable:
    """`collect(weights, window, rng) -> (Rollout, games)`. Changes `window` and `rng`.

    `games` lists the (return, length) of each game that ended.
    """
    look, names = make_look(networks, cfg.num_envs), list(networks.model.input)
    count, length, context, out = cfg.num_envs, cfg.rollout_steps, networks.context, vec.out

    def collect(weights, window, rng):
        stream = Window(*(np.concatenate([part, np.zeros((count, length, *part.shape[2:]), part.dtype)], axis=1) for part in window))
        chance = rng.random((length + 1, count), np.float32)
        action, log_p, value = np.zeros((3, length + 1, count), np.float32)
        reward, discount = np.zeros((2, length, count), np.float32)
        last, games = np.zeros((length, count), bool), []

        def seen(t, name):
            part = getattr(stream, name)[:, t:t + context]
            if name == "prev_action":
                part = part.copy()
                part[:, 0] = -1  # as in training, the action before the window is not shown
            return tf.constant(part)

        for t in range(length + 1):
            action[t], log_p[t], value[t] = look(weights, tf.constant(chance[t]), *(seen(t, name) for name in names)).numpy()
            if t == length:
                break
            last[t] = out["ended"]
            vec.step(action[t])
            reward[t], discount[t] = out["reward"], out["discount"]
            games += ended_games(out)
            stream.obs[:, t + context], stream.first[:, t + context] = out["obs"], out["first"]
            stream.prev_action[:, t + context] = np.where(out["first"], -1, action[t])
        for part, whole in zip(window, stream):
            part[...] = whole[:, length:]
        rows = (np.ascontiguousarray(part.T) for part in (action[:-1].astype(np.int32), log_p[:-1], value, reward, discount, last))
        return Rollout(Window(*(whole[:, :-1] for whole in stream)), *rows), games

    return collect


def windows_of(stream, rows, context):
    """The windows that end with chosen steps, as inputs: rows [B] count through the T steps of environment 0, then of 1, ..."""
    size = stream.obs.shape[1]
    length = size - context + 1
    places = (rows // length * size + rows % length)[:, None] + tf.range(context)

    def take(field):
        return tf.gather(tf.reshape(field, [-1, *field.shape[2:]]), places)

    before = take(stream.prev_action)
    return dict(obs=take(stream.obs), first=take(stream.first), prev_action=tf.concat([-tf.ones_like(before[:, :1]), before[:, 1:]], 1))


def make_learn(networks, cfg) -> Callable:
    """Compile `learn(state, Rollout, order [K, B]) -> (state, diagnostics)`: K updates, each on the steps that a row of `order` names."""
    size = cfg.num_envs * cfg.rollout_steps
    total = -(-cfg.total_steps // size) * cfg.update_epochs * (size // cfg.batch_size)

    def one(state, batch, inputs):
        part = tf.cast(state.updates, tf.float32) / total
        clip = cfg.clip + tf.minimum(part, 1.0) * (cfg.final_clip - cfg.clip)
        advantages, mask = batch["advantages"], batch["mask"]
        if cfg.normalize_advantages:
            count = tf.maximum(tf.reduce_sum(mask), 1.0)
            centred = advantages - tf.reduce_sum(mask * advantages) / count
            advantages = centred / (tf.sqrt(tf.reduce_sum(mask * tf.square(centred)) / count) + 1e-8)
        with tf.GradientTape() as tape:
            trained, fixed = networks.split(state.weights)
            tape.watch(trained)
            logits, value = policy_and_value(networks, (trained, fixed), inputs)
            terms = losses.ppo_losses(logits, value, batch["action"], batch["log_p"], batch["value"], advantages, batch["returns"], mask,
                                      clip=clip, value_clip=cfg.value_clip)
            loss = terms["policy_loss"] + cfg.value_weight * terms["value_loss"] - cfg.entropy_weight * terms["entropy"]
        gradient = join(networks, tape.gradient(loss, trained))
        updates = state.updates + 1
        weights, moments, norm = step_adam(state.weights, state.optimizer, gradient, updates, part, cfg)
        return PPOState(weights, moments, updates), dict(terms, loss=loss, grad_norm=norm)

    @tf.function(jit_compile=True)
    def learn(state, roll, order):
        rewards = tf.sign(roll.reward) if cfg.reward_transform == "sign" else roll.reward
        advantages = losses.gae(rewards, roll.discount, roll.value, roll.last, gamma=cfg.gamma, lam=cfg.gae_lambda)
        fields = dict(action=roll.action, log_p=roll.log_p, value=roll.value[:, :-1], advantages=advantages,
                      returns=advantages + roll.value[:, :-1], mask=1.0 - tf.cast(roll.last, tf.float32))
        fields = {name: tf.reshape(field, [-1]) for name, field in fields.items()}

        def on(state, i):
            batch = {name: tf.gather(field, order[i]) for name, field in fields.items()}
            return one(state, batch, windows_of(roll.stream, order[i], networks.context))

        return repeat(on, state, order.shape[0], LOSSES)

    return learn


def ppo(env_fn, pi_v_fn, cfg, *, seed=0, workers=1, log=None, save=None, saved=None, should_stop=None):
    """Train a policy by PPO and return (state, networks, progress).

    pi_v_fn: EnvInfo -> keras.Model from a window to the logits of the actions and the state's value, as `gpt.build_pi_v`.
    cfg: PPOConfig. All else, what is raised included, is as in `dqn.dqn`; `log` gets this module's Metrics.
    """
    check_ppo(cfg)
    env = env_fn()
    info = env_info(env)
    env.close()
    keras.utils.set_random_seed(seed)
    networks = flatten_model(pi_v_fn(info))
    state, learn = first_state(networks), make_learn(networks, cfg)
    size = cfg.num_envs * cfg.rollout_steps
    vec = make_vec_env(env_fn, info, cfg.num_envs, seed, workers=workers, life_loss_ends=cfg.life_loss_ends)
    try:
        rng = np.random.default_rng([seed, 1])
        window, progress = make_window(info, cfg.num_envs, networks.context), Progress()
        push(window, vec.out["obs"], vec.out["first"], -1)
        if saved is not None:
            state = restore_state(saved, state)
            progress = restore_place(saved, vec, window, rng)
        collect = make_collect(networks, vec, info, cfg)
        diagnostics = dict.fromkeys(LOSSES, float("nan"))

        def make_snapshot(envs=True):
            return snapshot(state, vec, window, rng, progress, envs=envs)

        while progress.step < cfg.total_steps:
            try:
                roll, games = collect(state.weights, window, rng)
            except EnvFailure:
                if save:
                    save(progress.step, lambda: make_snapshot(envs=False), last=True)
                raise
            if networks.model.non_trainable_variables and progress.step == 0:
                # What was acted on before the data were known is not learned from: the ratios would not start at 1.
                first = roll.stream.first.astype(bool)
                first[:, 0] = True
                known = known_of(networks, roll.stream.obs.reshape(-1, *info.obs_shape), first.reshape(-1))
                state = state._replace(weights=with_known(networks, state.weights, known))
            else:
                order = np.concatenate([rng.permutation(size) for _ in range(cfg.update_epochs)]).reshape(-1, cfg.batch_size)
                state, found = learn(state, tf.nest.map_structure(tf.constant, roll), tf.constant(order, tf.int32))
                diagnostics = {name: float(value) for name, value in found.items()}
            progress = progress.after(size, games)
            if log:
                log(Metrics(progress.step, progress.games, progress.mean_return(), updates=int(state.updates), **diagnostics))
            stop = should_stop is not None and should_stop()
            if save:
                save_with(save, progress, make_snapshot, last=stop or progress.step >= cfg.total_steps)
            if stop:
                break
    finally:
        vec.close()
    set_weights(networks, state.weights)
    return state, networks, progress
