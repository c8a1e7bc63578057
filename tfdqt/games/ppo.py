"""PPO in one file (Schulman et al., 2017): settings, defaults, update, and `ppo()`, which trains.

It receives environments and a network as functions and knows nothing of either.

One iteration: all environments are stepped for a rollout with the present policy, then one call of
XLA makes every update on it: advantages, and `update_epochs` passes over minibatches. A step is
learned from the window it was acted on, so the ratio of new to old probability starts at exactly 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import keras, tf, traced
from tfdqt.games.config import check_network, check_policy_network
from tfdqt.games.envs import info_of
from tfdqt.games.flat import (
    draw_loops,
    flatten,
    flatten_pi_v,
    learn_in_parts,
    repeat_update,
    set_weights,
    step_adam,
)
from tfdqt.games.loop import (
    check_start,
    restore_progress,
    restore_state,
    run_snapshot,
    stepping,
    train_loop,
)
from tfdqt.games.rollout import (
    check_adapts,
    check_batches,
    learn_from,
    make_collect,
    total_updates,
    windows_of,
)
from tfdqt.games.stepwise import make_stepwise
from tfdqt.settings import check_fractions, check_not_negative, check_positive, check_types

# -------------------------------------------------------------------------------------------------
# Settings


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al., 2017) on rollouts of many environments."""

    total_steps: int = 200_000
    """Environment steps in the whole run, over all environments, up to whole rollouts."""
    num_envs: int = 8
    """Environments stepped in lockstep."""
    rollout_steps: int = 128
    """Steps per environment between two rounds of learning."""
    update_epochs: int = 4
    """Passes over a rollout."""
    batch_size: int = 256
    """Steps per update; must divide num_envs x rollout_steps."""
    gamma: float = 0.99
    """Discount per environment step."""
    gae_lambda: float = 0.95
    """How far advantages look ahead: 0 one step, 1 the whole return (Schulman et al., 2016)."""
    clip: float = 0.2
    """How far the ratio of new to old probability may leave 1 before it no longer pays."""
    final_clip: float = 0.2
    """The same at the end of the run; it moves in a straight line between the two."""
    value_clip: float | None = None
    """How far a value may leave its old one before it no longer pays; None: without a limit."""
    value_weight: float = 0.5
    """Weight of the squared error of values."""
    entropy_weight: float = 0.0
    """Weight of the policy's entropy."""
    normalize_advantages: bool = True
    """Whether the advantages of a batch are brought to mean 0 and deviation 1."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    final_learning_rate: float = 0.0
    """Adam's step size at the end; it moves in a straight line between the two."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 0.5
    """The gradient's global norm is clipped to this."""
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
            total_steps=99_840,
            rollout_steps=32,
            update_epochs=20,
            gamma=0.98,
            gae_lambda=0.8,
            learning_rate=1e-3,
            final_clip=0.0,
        ),
    ),
    # Observations and rewards may be of any size from here on. Where returns are large, so would be
    # the gradient of their values, beside which the policy's is nothing.
    "atari": dict(
        network=dict(
            context=4,
            layers=2,
            heads=4,
            width=64,
            min_change=0.001,
            hidden_scale=0.03,
            value_scale="sqrt",
        ),
        # On the scale of roots gradients are small: the body learns too little from values that
        # weigh a half.
        settings=dict(
            total_steps=1_000_000,
            num_envs=16,
            update_epochs=10,
            batch_size=512,
            value_weight=5.0,
            entropy_weight=0.01,
            learning_rate=5e-4,
            life_loss_ends=True,
        ),
    ),
    "other": dict(
        network=dict(standardize=True, value_scale="sqrt"),
        settings=dict(update_epochs=10, batch_size=64),
    ),
}


def check_ppo(network, cfg):
    """Raise UsageError for a network and settings that PPO can't run with."""
    check_network(network)
    check_policy_network(network)
    check_settings(cfg)


def check_settings(cfg):
    """Raise UsageError for settings PPO can't run with."""
    check_types(cfg)
    check_positive(
        cfg,
        "total_steps",
        "num_envs",
        "rollout_steps",
        "update_epochs",
        "batch_size",
        "learning_rate",
        "adam_epsilon",
        "max_grad_norm",
    )
    check_fractions(cfg, "gamma", "gae_lambda", "clip", "final_clip")
    check_not_negative(cfg, "value_weight", "entropy_weight", "final_learning_rate")
    if cfg.value_clip is not None:
        check_positive(cfg, "value_clip")
    check_batches(cfg)


# -------------------------------------------------------------------------------------------------
# State and log


class PPOState(NamedTuple):
    """What learning changes."""

    weights: tf.Tensor  # [W] of policy and value
    optimizer: tuple  # Adam's two moments, [W] each
    updates: tf.Tensor  # int64, updates done


class PPOMetrics(NamedTuple):
    """One line of the log. What is learned is a mean over the updates of one rollout."""

    step: int  # environment steps
    games: int  # games finished since the start
    mean_return: float  # of the last 100 games; NaN before the first
    loss: float  # policy_loss + value_weight x value_loss - entropy_weight x entropy
    policy_loss: float  # clipped surrogate, negated
    value_loss: float  # half the squared error of values
    entropy: float  # of the policy, nats
    approx_kl: float  # from the policy that acted to the one that has learned, nats
    clip_fraction: float  # part of the steps whose ratio is clipped
    grad_norm: float  # global norm of the gradient before it is clipped to max_grad_norm
    updates: int  # gradient updates done


LEARNED = ("loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
DIAGNOSTICS = (*LEARNED, "grad_norm")


def first_state(net):
    """The state before the first update."""
    zeros = tf.zeros_like(net.start)
    return PPOState(net.start, (zeros, tf.identity(zeros)), tf.constant(0, tf.int64))


# -------------------------------------------------------------------------------------------------
# Acting


def policy_and_value(net, weights, inputs):
    """What the network says at the last step of windows: -> logits [B, A], value [B]."""
    out = net.apply(weights, inputs)[:, -1]
    return out[:, :-1], out[:, -1]


def draw(net, outputs, chance):
    """Actions of D parts drawn by numbers in [0, 1): -> int32 [N], and numbers [2, N].

    outputs [N, A + 1], chance [N, D]. The numbers are log-probabilities and values.
    """
    parts = net.parts or (net.model.output.shape[-1] - 1,)
    log_p = losses.log_probabilities(outputs[:, :-1], net.parts)
    each = [
        _drawn(part, chance[:, i], net.masked)
        for i, part in enumerate(tf.split(log_p, parts, axis=-1))
    ]
    action = losses.join_actions(each, parts)
    chosen = losses.select_actions(log_p, action, net.parts)
    return action, tf.stack([chosen, outputs[:, -1]])


def make_look(net, num_envs) -> Callable:
    """`begin(weights) -> look`; `look(chance [N, D], *inputs)` -> what `draw` draws.

    The inputs are the network's in its own order.
    """
    names = net.model.input
    if net.stepwise is not None:
        begin_outputs = make_stepwise(net)
        drawn = traced(functools.partial(draw, net), jit_compile=True)

        def begin(weights):
            outputs = begin_outputs(weights)
            return lambda chance, *inputs: drawn(outputs(dict(zip(names, inputs))), chance)

        return begin

    @traced(jit_compile=True)
    def look(weights, chance, *inputs):
        return draw(net, net.apply(weights, dict(zip(names, inputs)))[:, -1], chance)

    # Called as a concrete function, it takes half the time of a call that looks at its arguments.
    look = look.get_concrete_function(
        tf.TensorSpec(net.start.shape),
        tf.TensorSpec([num_envs, max(1, len(net.parts))]),
        *(tf.TensorSpec([num_envs, *x.shape[1:]], x.dtype) for x in names.values()),
    )
    return lambda weights: functools.partial(look, weights)


def _drawn(log_p, chance, masked):
    """The choices that numbers in [0, 1) fall on: log-probabilities [N, A], [N] -> int32 [N]."""
    reached = tf.cumsum(tf.exp(log_p), axis=1)[:, :-1] <= chance[:, None]
    choice = tf.reduce_sum(tf.cast(reached, tf.int32), axis=1)
    if masked:  # rounding must not carry it beyond the last that is legal
        places = tf.range(log_p.shape[1]) * tf.cast(log_p > losses.ILLEGAL / 2, tf.int32)
        choice = tf.minimum(choice, tf.reduce_max(places, axis=1))
    return choice


def make_act(net, stepper, cfg) -> Callable:
    """`act(weights) -> decide`, as `rollout.make_collect` asks it; outputs are log_p and value."""
    begin = make_look(net, cfg.num_envs)
    count = max(1, len(net.parts))

    def act(weights):
        shape = (cfg.rollout_steps + 1, cfg.num_envs, count)
        chance = stepper.rng.random(shape, np.float32)
        look = begin(weights)

        def decide(t, inputs):
            action, numbers = look(tf.constant(chance[t]), *inputs)
            return action.numpy(), numbers.numpy().T

        return decide

    return act


# -------------------------------------------------------------------------------------------------
# The update


def make_learn(net, cfg) -> Callable:
    """Compile `learn(state, Rollout, order [K, B]) -> (state, diagnostics)`.

    K updates, each on the steps that a row of `order` names.
    """
    total = total_updates(cfg)

    def learned(weights, clip, batch, inputs):
        with tf.GradientTape() as tape:
            trained, fixed = net.unflatten(weights)
            tape.watch(trained)
            logits, value = policy_and_value(net, (trained, fixed), inputs)
            terms = losses.ppo_losses(
                logits,
                value,
                batch["action"],
                batch["log_p"],
                batch["value"],
                batch["advantages"],
                batch["returns"],
                batch["mask"],
                clip=clip,
                value_clip=cfg.value_clip,
                parts=net.parts,
                scale=net.scale,
            )
            value_loss = cfg.value_weight * terms["value_loss"]
            loss = terms["policy_loss"] + value_loss - cfg.entropy_weight * terms["entropy"]
        gradient = flatten(net, tape.gradient(loss, trained))
        return dict(terms, loss=loss, gradient=gradient, count=tf.reduce_sum(batch["mask"]))

    def one(state, batch, inputs):
        part = tf.cast(state.updates, tf.float32) / total
        clip = cfg.clip + tf.minimum(part, 1.0) * (cfg.final_clip - cfg.clip)
        advantages = batch["advantages"]
        mask = batch["mask"]
        if cfg.normalize_advantages:
            count = tf.maximum(tf.reduce_sum(mask), 1.0)
            centred = advantages - tf.reduce_sum(mask * advantages) / count
            deviation = tf.sqrt(tf.reduce_sum(mask * tf.square(centred)) / count)
            advantages = centred / (deviation + 1e-8)
        weights = draw_loops(net, state.weights, state.updates)
        found = learn_in_parts(
            net,
            lambda part: learned(weights, clip, *part),
            (dict(batch, advantages=advantages), inputs),
            cfg.batch_size,
            LEARNED,
        )
        updates = state.updates + 1
        weights, moments, norm = step_adam(
            state.weights, state.optimizer, found["gradient"], updates, part, cfg
        )
        return PPOState(weights, moments, updates), dict(found, grad_norm=norm)

    @traced(jit_compile=True)
    def learn(state, rollout, order):
        rewards = tf.sign(rollout.reward) if cfg.reward_transform == "sign" else rollout.reward
        values = rollout.outputs[:, :, 1]
        advantages = losses.gae(
            rewards, rollout.discount, values, rollout.last, gamma=cfg.gamma, lam=cfg.gae_lambda
        )
        fields = dict(
            action=rollout.action,
            log_p=rollout.outputs[:, :-1, 0],
            value=values[:, :-1],
            advantages=advantages,
            returns=advantages + values[:, :-1],
            mask=1.0 - tf.cast(rollout.last, tf.float32),
        )
        fields = {name: tf.reshape(field, [-1]) for name, field in fields.items()}

        def on_batch(state, i):
            batch = {name: tf.gather(field, order[i]) for name, field in fields.items()}
            return one(state, batch, windows_of(rollout.stream, order[i], net.context))

        return repeat_update(on_batch, state, order.shape[0], DIAGNOSTICS)

    return learn


def ppo(
    env_fn,
    pi_v_fn,
    cfg,
    *,
    info=None,
    seed=0,
    workers=1,
    log=None,
    save=None,
    saved=None,
    should_stop=None,
    evaluation=None,
):
    """Train a policy by PPO and return (state, net, progress).

    pi_v_fn: EnvInfo -> keras.Model from a window to the logits of the actions and the state's
    value, [B, P, A + 1], as `networks.build_pi_v`. cfg: PPOConfig. All else, what is raised
    included, is as in `dqn.dqn`; `log` gets PPOMetrics.
    """
    check_settings(cfg)
    check_start(pi_v_fn, seed, workers)
    info = info or info_of(env_fn)
    keras.utils.set_random_seed(seed)
    net = flatten_pi_v(pi_v_fn(info), info)
    state = first_state(net)
    if saved is not None:
        state = restore_state(saved, state)
    check_adapts(net, cfg, restore_progress(saved))
    learn = make_learn(net, cfg)
    size = cfg.num_envs * cfg.rollout_steps
    steps_here = dict(seed=seed, workers=workers, saved=saved)
    with stepping(env_fn, info, net.context, cfg, **steps_here) as stepper:
        act = make_act(net, stepper, cfg)
        collect = make_collect(net, stepper, cfg.rollout_steps)
        diagnostics = dict.fromkeys(DIAGNOSTICS, float("nan"))

        def iterate(state, progress):
            nonlocal diagnostics
            rollout, games = collect(act(state.weights))
            state, means = learn_from(
                rollout, state, learn, net, stepper.rng, cfg, step=progress.step
            )
            if means is not None:
                diagnostics = {name: float(means[name]) for name in DIAGNOSTICS}
            progress = progress.after(size, games)
            return (
                state,
                progress,
                PPOMetrics(*progress.metrics(), **diagnostics, updates=int(state.updates)),
            )

        def snapshot(state, progress, envs=True):
            return run_snapshot(state, progress, stepper, envs=envs)

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
        )
    set_weights(net, state.weights)
    return state, net, progress
