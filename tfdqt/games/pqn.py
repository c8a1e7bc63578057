"""PQN in one file (Gallici et al., 2024): settings, defaults, update, and `pqn()`, which trains.

Parallel Q-learning: no replay buffer, no target network; many environments, lambda-returns and
layer normalisation instead. It receives environments and a network as functions and knows nothing
of either.

One iteration: all environments are stepped for a rollout by epsilon-greedy, then one call of XLA
makes every update on it: targets, and `update_epochs` passes over minibatches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from tfdqt import losses
from tfdqt.backend import keras, tf, traced
from tfdqt.errors import UsageError
from tfdqt.games.config import check_network
from tfdqt.games.envs import info_of
from tfdqt.games.flat import (
    draw_loops,
    flatten,
    flatten_q,
    learn_in_parts,
    repeat_update,
    scores_at_last,
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
from tfdqt.games.spaces import legal_actions
from tfdqt.games.stepwise import make_stepwise
from tfdqt.policy import Held, best_actions, epsilon_at, make_explore
from tfdqt.settings import check_fractions, check_positive, check_types
from tfdqt.value_scale import LINEAR

# -------------------------------------------------------------------------------------------------
# Settings


@dataclasses.dataclass(frozen=True)
class PQNConfig:
    """Parallel Q-learning (Gallici et al., 2024) on rollouts of many environments."""

    total_steps: int = 200_000
    """Environment steps in the whole run, over all environments, up to whole rollouts."""
    num_envs: int = 32
    """Environments stepped in lockstep."""
    rollout_steps: int = 32
    """Steps per environment between two rounds of learning."""
    update_epochs: int = 4
    """Passes over a rollout."""
    batch_size: int = 64
    """Windows per update; must divide num_envs x rollout_steps."""
    gamma: float = 0.99
    """Discount per environment step."""
    q_lambda: float = 0.65
    """How far targets look ahead: 0 one step, 1 the whole rollout (Peng and Williams, 1996)."""
    advantage_learning: float = 0.0
    """How much of the gap between the best action and the one taken is subtracted from its target,
    so that actions stay apart where they matter little (Bellemare et al., 2016); 0: none."""
    target_epsilon: float = 0.0
    """Probability of a random action in the policy whose values are learned (expected Sarsa, van
    Seijen et al., 2009); 0: the best action's value alone, as Q-learning."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    final_learning_rate: float = 1e-5
    """Adam's step size at the end; it moves in a straight line between the two."""
    adam_epsilon: float = 1e-2
    """Adam's epsilon. A small one makes a large step of the first error after a time of small ones,
    which no target network damps."""
    max_grad_norm: float = 1.0
    """The gradient's global norm is clipped to this."""
    huber_delta: float = 10.0
    """Where the Huber loss turns from squared to linear."""
    epsilon_start: float = 1.0
    """Probability of a random action at the start."""
    epsilon_end: float = 0.05
    """Probability of a random action after the schedule."""
    epsilon_fraction: float = 0.5
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
        network=dict(context=4, layers=1, heads=4, width=32, layer_norm=True),
        settings=dict(total_steps=204_800, advantage_learning=0.9),
    ),
    # Single random actions seldom lead out of a policy that has come to do nothing: they are held.
    "atari": dict(
        network=dict(
            context=4,
            layers=2,
            heads=4,
            width=64,
            dueling=True,
            min_change=0.001,
            hidden_scale=0.03,
            layer_norm=True,
        ),
        settings=dict(
            total_steps=1_000_000,
            num_envs=16,
            update_epochs=8,
            advantage_learning=0.9,
            target_epsilon=0.05,
            adam_epsilon=1e-5,
            max_grad_norm=10.0,
            huber_delta=1.0,
            epsilon_fraction=0.02,
            hold=100,
            life_loss_ends=True,
        ),
    ),
    # Observations and rewards may be of any size here. A policy that has come to do nothing sees
    # nothing else in its rollouts: targets look far ahead, and actions are held apart.
    "other": dict(
        network=dict(layer_norm=True, standardize=True, value_scale="sqrt"),
        settings=dict(
            update_epochs=8,
            q_lambda=0.9,
            advantage_learning=0.5,
            adam_epsilon=1e-5,
            epsilon_end=0.1,
        ),
    ),
}


def check_pqn(network, cfg):
    """Raise UsageError for a network and settings that PQN can't run with."""
    check_network(network)
    if network.quantiles > 1 or network.bins or network.reward_units:
        raise UsageError(
            "--quantiles, --bins and --reward-units are for DQN: PQN learns means as they are; "
            "leave them out."
        )
    check_settings(cfg)


def check_settings(cfg):
    """Raise UsageError for settings PQN can't run with."""
    check_types(cfg)
    check_positive(
        cfg,
        "total_steps",
        "num_envs",
        "rollout_steps",
        "update_epochs",
        "batch_size",
        "hold",
        "learning_rate",
        "final_learning_rate",
        "adam_epsilon",
        "max_grad_norm",
        "huber_delta",
        "epsilon_fraction",
    )
    check_fractions(
        cfg,
        "gamma",
        "q_lambda",
        "advantage_learning",
        "target_epsilon",
        "epsilon_start",
        "epsilon_end",
    )
    check_batches(cfg)


# -------------------------------------------------------------------------------------------------
# State and log


class PQNState(NamedTuple):
    """What learning changes."""

    weights: tf.Tensor  # [W] of the Q-network
    optimizer: tuple  # Adam's two moments, [W] each
    updates: tf.Tensor  # int64, updates done


class PQNMetrics(NamedTuple):
    """One line of the log. What is learned is a mean over the updates of one rollout."""

    step: int  # environment steps
    games: int  # games finished since the start
    mean_return: float  # of the last 100 games; NaN before the first
    loss: float  # Huber loss
    q_mean: float  # Q of the actions taken
    td_error: float  # size of the distance from Q to its lambda-return
    grad_norm: float  # global norm of the gradient before it is clipped to max_grad_norm
    epsilon: float  # probability of a random action
    updates: int  # gradient updates done


LEARNED = ("loss", "q_mean", "td_error")  # of a batch
DIAGNOSTICS = (*LEARNED, "grad_norm")


def first_state(net):
    """The state before the first update."""
    zeros = tf.zeros_like(net.start)
    return PQNState(net.start, (zeros, tf.identity(zeros)), tf.constant(0, tf.int64))


# -------------------------------------------------------------------------------------------------
# Acting


def make_act(net, stepper, info, cfg) -> Callable:
    """`act(weights, step) -> decide`, as `rollout.make_collect` asks it; outputs are Q, [N, A]."""
    begin = make_stepwise(net, scores_at_last())
    names = list(net.model.input)
    explore = make_explore(info, cfg.hold)
    out = stepper.vec.out

    def act(weights, step):
        scores = begin(weights)

        def decide(t, inputs):
            q = scores(dict(zip(names, inputs)))
            epsilon = epsilon_at(step + t * cfg.num_envs, cfg)
            best = best_actions(q, info.parts)
            legal = legal_actions(info, out["obs"])
            held = stepper.held
            if t == cfg.rollout_steps:  # not taken, so that none is begun or held longer
                held = Held(*(part.copy() for part in held))
            return explore(stepper.rng, best, epsilon, held, out["first"], legal), q

        return decide

    return act


# -------------------------------------------------------------------------------------------------
# The update


def q_targets(rollout, cfg, masked=False, parts=(), scale=LINEAR):
    """The targets of a Rollout of tensors, from the Q-values that it was acted on: [N, T].

    masked: whether some actions may be illegal. parts: of an action, see `losses`. scale: of
    values.
    """
    rewards = tf.sign(rollout.reward) if cfg.reward_transform == "sign" else rollout.reward
    q = rollout.outputs  # [N, T + 1, A]
    values = losses.best_values(q, parts)
    if cfg.target_epsilon:
        values -= losses.exploration_cost(
            q,
            cfg.target_epsilon,
            cfg.advantage_learning,
            masked=masked,
            parts=parts,
            scale=scale,
        )
    targets = losses.lambda_returns(
        rewards, rollout.discount, values, rollout.last, gamma=cfg.gamma, lam=cfg.q_lambda
    )
    if cfg.advantage_learning:
        targets = losses.widen_gap(
            targets[..., None], q[:, :-1], rollout.action, cfg.advantage_learning, parts, scale
        )[..., 0]
    return targets


def make_learn(net, cfg) -> Callable:
    """Compile `learn(state, Rollout, order [K, B]) -> (state, diagnostics)`.

    K updates, each on the windows that end with the steps that a row of `order` names. Q is learned
    at the last P steps of a window, but for those before the rollout.
    """
    total = total_updates(cfg)
    before = net.positions - 1  # steps of the first window that lie before the rollout

    def learned(weights, batch, inputs):
        with tf.GradientTape() as tape:
            trained, fixed = net.unflatten(weights)
            tape.watch(trained)
            q = net.apply((trained, fixed), inputs)  # [B, P, A, 1]
            loss, diagnostics = losses.td_loss(
                q,
                batch["action"],
                batch["target"][..., None],
                batch["mask"],
                delta=cfg.huber_delta,
                parts=net.parts,
                scale=net.scale,
            )
        gradient = flatten(net, tape.gradient(loss, trained))
        return dict(diagnostics, loss=loss, gradient=gradient, count=tf.reduce_sum(batch["mask"]))

    def one(state, batch, inputs):
        part = tf.cast(state.updates, tf.float32) / total
        weights = draw_loops(net, state.weights, state.updates)
        found = learn_in_parts(
            net, lambda part: learned(weights, *part), (batch, inputs), cfg.batch_size, LEARNED
        )
        updates = state.updates + 1
        weights, moments, norm = step_adam(
            state.weights, state.optimizer, found["gradient"], updates, part, cfg
        )
        return PQNState(weights, moments, updates), dict(found, grad_norm=norm)

    @traced(jit_compile=True)
    def learn(state, rollout, order):
        fields = dict(
            action=rollout.action,
            target=q_targets(rollout, cfg, net.masked, net.parts, net.scale),
            mask=1.0 - tf.cast(rollout.last, tf.float32),
        )
        fields = {name: tf.pad(field, [[0, 0], [before, 0]]) for name, field in fields.items()}

        def on_batch(state, i):
            rows = order[i]
            row = rows // cfg.rollout_steps
            steps = (rows % cfg.rollout_steps)[:, None] + tf.range(net.positions)  # [B, P]
            batch = {
                name: tf.gather(tf.gather(field, row), steps, batch_dims=1)
                for name, field in fields.items()
            }
            return one(state, batch, windows_of(rollout.stream, rows, net.context))

        return repeat_update(on_batch, state, order.shape[0], DIAGNOSTICS)

    return learn


def pqn(
    env_fn,
    q_fn,
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
    """Train a Q-network by PQN and return (state, net, progress).

    q_fn: EnvInfo -> keras.Model from a window to Q [B, P, A, 1], as `networks.build_q`; it should
    normalise its layers. cfg: PQNConfig. All else, what is raised included, is as in `dqn.dqn`;
    `log` gets PQNMetrics.
    """
    check_settings(cfg)
    check_start(q_fn, seed, workers)
    info = info or info_of(env_fn)
    keras.utils.set_random_seed(seed)
    net = flatten_q(q_fn(info), info, quantiles=1)
    state = first_state(net)
    if saved is not None:
        state = restore_state(saved, state)
    check_adapts(net, cfg, restore_progress(saved))
    learn = make_learn(net, cfg)
    size = cfg.num_envs * cfg.rollout_steps
    steps_here = dict(seed=seed, workers=workers, saved=saved)
    with stepping(env_fn, info, net.context, cfg, **steps_here) as stepper:
        act = make_act(net, stepper, info, cfg)
        collect = make_collect(net, stepper, cfg.rollout_steps)
        diagnostics = dict.fromkeys(DIAGNOSTICS, float("nan"))

        def iterate(state, progress):
            nonlocal diagnostics
            rollout, games = collect(act(state.weights, progress.step))
            state, means = learn_from(
                rollout, state, learn, net, stepper.rng, cfg, step=progress.step
            )
            if means is not None:
                diagnostics = {name: float(means[name]) for name in DIAGNOSTICS}
            progress = progress.after(size, games)
            return (
                state,
                progress,
                PQNMetrics(
                    *progress.metrics(),
                    **diagnostics,
                    epsilon=epsilon_at(progress.step, cfg),
                    updates=int(state.updates),
                ),
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
