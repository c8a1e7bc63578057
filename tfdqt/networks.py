"""A Keras model as a pure function of one flat weight vector, so that one fused kernel can move all of its weights."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import keras, tf
from tfdqt.config import UsageError


class Networks(NamedTuple):
    """A Keras model as a pure function of one flat weight vector."""

    model: keras.Model
    apply: Callable  # (weights [W], inputs) -> what the model gives, such as Q [B, P, A]
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


def change_rates(obs, first):
    """By which part of its range each feature changes a step, on average within episodes: obs [M, F], first [M] -> [F].

    The range of a byte is 256, of a category (int32) 1 whichever it becomes, of other numbers that from the least to the greatest in `obs`.
    """
    before, after = obs[:-1][~first[1:]], obs[1:][~first[1:]]
    if not len(after):
        return np.ones(obs.shape[1])  # nothing is known
    if obs.dtype == np.int32:
        return (before != after).mean(axis=0)
    span = 256.0 if obs.dtype == np.uint8 else np.maximum(np.ptp(obs, axis=0), 1e-12)
    return np.abs(after.astype("float64") - before).mean(axis=0) / span


def known_of(networks, obs, first):
    """What the network's Changing and Standardize layers are to know of the data: the fixed weights, as `join` takes them.

    obs [M, ...] and first [M], True where an episode starts, are steps in their order. Raises UsageError if no feature changes often
    enough to be shown.
    """
    model = networks.model
    layers = {layer.name: layer for layer in model.layers}
    if "changing" in layers:
        rate, least = change_rates(obs, first), layers["changing"].least
        if rate.max() < least:
            raise UsageError(f"No feature of the observation changes by {least:g} of its range a step, on average ({rate.max():.2g} at "
                             "most); lower --min-change.")
        layers["changing"].rate.assign(rate)
    if "standardize" in layers:
        numbers = keras.Model(model.input["obs"], layers["standardize"].input)
        obs = obs[:len(obs) // networks.context * networks.context].reshape(-1, *model.input["obs"].shape[1:])
        x = numbers(obs).numpy().reshape(-1, numbers.output.shape[-1])
        layers["standardize"].mean.assign(x.mean(axis=0))
        layers["standardize"].scale.assign(np.maximum(x.std(axis=0), 0.1))
    return [variable.numpy() for variable in model.non_trainable_variables]


def with_known(networks, weights, known):
    """The weights [W] with `known` in place of their fixed ones."""
    return join(networks, networks.split(weights)[0], known)


def features_shown(model):
    """Which features of an observation a trained network sees: their numbers, or None if all."""
    layers = [layer for layer in model.layers if layer.name == "changing"]
    return np.flatnonzero(layers[0].shown) if layers else None


def set_weights(networks, weights):
    """Write a flat weight vector into the Keras model."""
    trained, fixed = networks.split(weights)
    model = networks.model
    for variable, value in zip((*model.trainable_variables, *model.non_trainable_variables), (*trained, *fixed)):
        variable.assign(value)


def step_adam(weights, moments, gradient, count, part, cfg):
    """One step of Adam as DQN and PPO take it: -> (weights, moments, the gradient's norm before it is clipped).

    `count` is the number of this step, from 1; after `part` of the run the rate stands as far between cfg's two.
    """
    norm = tf.norm(gradient)
    gradient *= tf.minimum(1.0, cfg.max_grad_norm / tf.maximum(norm, 1e-12))
    rate = cfg.learning_rate + tf.minimum(part, 1.0) * (cfg.final_learning_rate - cfg.learning_rate)
    weights, moments = losses.adam(weights, gradient, moments, count, rate=rate, epsilon=cfg.adam_epsilon)
    return weights, moments, norm


def repeat(one, state, count, names):
    """`count` updates as a loop that XLA compiles once: one(state, i) -> (state, dict of scalars).

    Returns (state, the means of the scalars called `names`).
    """
    def body(i, state, sums):
        state, found = one(state, i)
        return i + 1, state, {name: sums[name] + found[name] for name in names}

    start = (tf.constant(0), state, {name: tf.zeros([]) for name in names})
    _, state, sums = tf.while_loop(lambda i, *_: i < count, body, start, maximum_iterations=count)
    return state, {name: total / count for name, total in sums.items()}


def make_scores(networks) -> Callable:
    """Compile `scores(weights, inputs) -> [B, A]` of the actions at the last step of windows: Q-values, or a policy's logits."""
    return tf.function(lambda weights, inputs: networks.apply(weights, inputs)[:, -1], jit_compile=True)


def make_act(networks) -> Callable:
    """Compile `act(weights, inputs) -> best actions [B]` at the last step of windows."""

    @tf.function(jit_compile=True)
    def act(weights, inputs):
        return tf.argmax(networks.apply(weights, inputs)[:, -1], axis=-1, output_type=tf.int32)

    return act
