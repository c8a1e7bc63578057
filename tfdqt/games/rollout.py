"""Steps of many environments in a row, learned from as they were acted on: for PPO and PQN."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.games.flat import adapt, with_fixed
from tfdqt.games.loop import check_learns, ended_games
from tfdqt.games.window import Window


class Rollout(NamedTuple):
    """T steps of N environments. The stream has the C - 1 steps before that the first could see."""

    stream: Window  # obs [N, C - 1 + T, ...], first, prev_action
    action: np.ndarray  # [N, T] int32
    outputs: np.ndarray  # [N, T + 1, K] float32, what the network said of each step's window
    reward: np.ndarray  # [N, T]
    discount: np.ndarray  # [N, T], 0 where the episode terminated
    last: np.ndarray  # [N, T] bool, where the episode was over and the step only reset


def make_collect(net, stepper, length) -> Callable:
    """`collect(decide) -> (Rollout, games)`: `length` steps of every environment of a Stepper.

    decide: (t, inputs) -> (actions [N], outputs [N, K]) for step t; the inputs are tensors in the
    network's own order. It is asked once more behind the last step, where the action is not taken.
    `games` lists the (return, length) of each game that ended.

    Raises UsageError if a rollout does not fit memory.
    """
    names = list(net.model.input)
    vec = stepper.vec
    window = stepper.window
    context = net.context
    memory.check_fits(
        # The stream, a copy without its last step, and the tensor that is learned from.
        3 * window.obs[:, :1].nbytes * (context + length),
        f"A rollout of {length} steps of {len(window.obs)} environments takes",
        lambda room: "give fewer --rollout-steps or --num-envs.",
    )
    out = vec.out
    count = len(out["first"])

    def collect(decide):
        stream = Window(
            *(
                np.concatenate([part, np.zeros((count, length, *part.shape[2:]), part.dtype)], 1)
                for part in window
            )
        )
        action = np.zeros((length, count), np.int32)
        outputs = []
        reward = np.zeros((length, count), np.float32)
        discount = np.zeros((length, count), np.float32)
        last = np.zeros((length, count), bool)
        games = []

        def inputs_at(t, name):
            part = getattr(stream, name)[:, t : t + context]
            if name == "prev_action":
                part = part.copy()
                part[:, 0] = -1  # as in training, the action before the window is not shown
            return tf.constant(part)

        for t in range(length + 1):
            chosen, output = decide(t, [inputs_at(t, name) for name in names])
            outputs.append(output)
            if t == length:
                break
            action[t] = chosen
            last[t] = out["ended"]
            vec.step(action[t])
            reward[t] = out["reward"]
            discount[t] = out["discount"]
            games += ended_games(out)
            stream.obs[:, t + context] = out["obs"]
            stream.first[:, t + context] = out["first"]
            stream.prev_action[:, t + context] = np.where(out["first"], -1, action[t])
        for part, whole in zip(window, stream):
            part[...] = whole[:, length:]
        by_row = (
            np.swapaxes(array, 0, 1)
            for array in (action, np.stack(outputs), reward, discount, last)
        )
        return Rollout(Window(*(whole[:, :-1] for whole in stream)), *by_row), games

    return collect


def windows_of(stream, rows, context):
    """The windows that end with chosen steps, as inputs of a network.

    rows [B] count through the T steps of environment 0, then of 1, ...
    """
    size = stream.obs.shape[1]
    length = size - context + 1
    positions = (rows // length * size + rows % length)[:, None] + tf.range(context)

    def take(field):
        return tf.gather(tf.reshape(field, [-1, *field.shape[2:]]), positions)

    before = take(stream.prev_action)
    hidden = tf.concat([-tf.ones_like(before[:, :1]), before[:, 1:]], 1)
    return dict(obs=take(stream.obs), first=take(stream.first), prev_action=hidden)


def check_batches(cfg):
    """Raise UsageError unless the batches of a rollout come out even."""
    size = cfg.num_envs * cfg.rollout_steps
    if size % cfg.batch_size:
        divisor = max(n for n in range(1, min(cfg.batch_size, size) + 1) if size % n == 0)
        raise UsageError(
            f"--batch-size={cfg.batch_size} does not divide --num-envs x --rollout-steps, {size} "
            f"steps; choose for example {divisor}."
        )


def minibatches(rng, size, epochs, batch_size):
    """Which steps each update of `epochs` passes learns from: int32 [K, batch_size]."""
    order = [rng.permutation(size) for _ in range(epochs)]
    return tf.constant(np.concatenate(order).reshape(-1, batch_size), tf.int32)


def total_updates(cfg):
    """Gradient updates of a whole run, by which its schedules go."""
    size = cfg.num_envs * cfg.rollout_steps
    rollouts = -(-cfg.total_steps // size)
    return rollouts * cfg.update_epochs * (size // cfg.batch_size)


def check_adapts(net, cfg, progress):
    """Raise UsageError for a network that can't be adapted to data.

    One with a unit of rewards, which are seen before DQN learns, and one whose layers adapt to the
    rollout with which the run ends.
    """
    if net.value_unit is not None:
        raise UsageError("--reward-units are for DQN; leave them out.")
    if net.model.non_trainable_variables:
        size = cfg.num_envs * cfg.rollout_steps
        why = "the network's layers first adapt to a rollout, --num-envs x --rollout-steps"
        check_learns(progress, max(progress.step, size), cfg.total_steps, why)


def learn_from(rollout, state, learn, net, rng, cfg, *, step):
    """Learn from a Rollout that began at environment step `step`: -> (state, means, or None).

    learn: (state, Rollout, order [K, B]) -> (state, means of K updates). The first rollout of a
    network with layers that adapt to data is for that alone, for it was acted on before they did:
    PPO's ratios would not start at 1, and values that PQN bootstraps from are of no use.
    """
    if net.model.non_trainable_variables and step == 0:
        return state._replace(weights=adapted_weights(net, state.weights, rollout)), None
    size = cfg.num_envs * cfg.rollout_steps
    order = minibatches(rng, size, cfg.update_epochs, cfg.batch_size)
    return learn(state, tf.nest.map_structure(tf.constant, rollout), order)


def adapted_weights(net, weights, rollout):
    """The weights, their layers that adapt to data set by a rollout's observations.

    Not by the steps before it: where the run starts there are none, and the window holds zeros.
    """
    obs = rollout.stream.obs[:, net.context - 1 :]
    first = rollout.stream.first[:, net.context - 1 :].astype(bool)
    first[:, 0] = True
    fixed = adapt(net, obs.reshape(-1, *obs.shape[2:]), first.reshape(-1))
    return with_fixed(net, weights, fixed)
