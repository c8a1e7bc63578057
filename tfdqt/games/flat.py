"""A Keras model as a pure function of one flat weight vector, which one fused kernel can move."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import keras, quick_gradients, tf, traced
from tfdqt.errors import UsageError
from tfdqt.games.cost import parts_of_batch
from tfdqt.games.spaces import legal_actions
from tfdqt.histogram import Histogram, make_histogram
from tfdqt.value_scale import LINEAR, SCALES, Scale


class FlatModel(NamedTuple):
    """A Keras model as a pure function of one flat weight vector [W].

    The model maps a window of steps, named inputs [B, C, ...], to [B, P, ...] for its last P steps.
    """

    model: keras.Model
    apply: Callable  # (weights [W], or what `unflatten` gives, inputs) -> [B, P, ...]
    unflatten: Callable  # weights [W] -> (trained weights, fixed weights), lists of the model's own
    start: tf.Tensor  # [W], the weights that the model was given
    context: int  # C
    positions: int  # P
    parts: tuple = ()  # of an action that has outputs for each, see `losses`
    masked: bool = False  # whether illegal actions get the output losses.ILLEGAL
    loop_limit: int | None = None  # which weight is the number of loops, where that is drawn
    loops: int = 1  # the most that are drawn
    of_steps: Callable | None = None  # (steps) -> FlatModel of these weights for longer windows
    stepwise: Callable | None = None  # () -> `whole` and `step` of networks.build_stepwise, flat
    attention: int = 0  # bytes of the attention weights of one window in one block
    scale: Scale = LINEAR  # on which its values are learned, see `scale_of`
    value_unit: int | None = None  # which weight is the unit of its values, where it has one
    histogram: Histogram | None = None  # if it learns values as histograms
    logits: Callable | None = None  # as `apply`, of a histogram's bins: -> [B, P, A, N]
    values: Callable | None = None  # (logits, inputs) -> what `apply` gives, [B, P, A, 1]


def flatten_model(model, info=None):
    """The Keras model as a function of one flat weight vector; fixed weights behind trained ones.

    info: EnvInfo; if the environment says which actions are legal, the outputs of others are set to
    `losses.ILLEGAL`.

    >>> info = env_info(gymnasium.make("CartPole-v1"))  # of `envs`
    >>> net = flatten_model(build_q(info, NetworkConfig()))
    >>> inputs = network_inputs(make_window(info, num_envs=8, context=net.context))  # of `window`
    >>> net.apply(net.start, inputs).shape  # [8, 4, 2, 1]: [B, P, A, N]
    """
    trained = model.trainable_variables
    fixed = model.non_trainable_variables
    shapes = [variable.shape for variable in (*trained, *fixed)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    masked = info is not None and info.mask is not None

    def unflatten(weights):
        parts = [tf.reshape(part, shape) for part, shape in zip(tf.split(weights, sizes), shapes)]
        return parts[: len(trained)], parts[len(trained) :]

    def apply_of(model, weights, inputs):
        named = {name: inputs[name] for name in model.input}
        if not isinstance(weights, tuple):
            return model.stateless_call(*unflatten(weights), named)[0]
        with quick_gradients():  # weights by themselves are those that a gradient is asked of
            return model.stateless_call(*weights, named)[0]

    def apply(weights, inputs):
        return told(apply_of(model, weights, inputs), inputs)

    def told(outputs, inputs):
        if histogram is not None:
            outputs = histogram.mean(outputs)[..., None]
        return _masked(outputs, legal_actions(info, inputs["obs"])) if masked else outputs

    def stepwise():
        return [functools.partial(kept_apply, each) for each in model.stepwise()]

    def kept_apply(one, weights, inputs):
        """As apply, of the last step: -> (outputs [B, ...], kept)."""
        found = apply_of(one, weights, inputs)
        return told(found["out"], inputs)[:, 0], found["kept"]

    start = tf.concat([tf.reshape(variable.value, [-1]) for variable in (*trained, *fixed)], 0)
    context = model.input["obs"].shape[1]
    parts = () if info is None else info.parts
    limited = [layer for layer in model.layers if hasattr(layer, "loop_limit")]
    in_units = [layer for layer in model.layers if hasattr(layer, "value_unit")]

    def where(weight):
        """At which place of the vector a fixed weight of one number stands."""
        index = next(i for i, variable in enumerate(fixed) if variable is weight)
        return sum(sizes[: len(trained) + index])

    longer = getattr(model, "of_steps", None)
    scale = SCALES[getattr(model, "value_scale", "linear")]
    bins = getattr(model, "bins", 0)
    histogram = make_histogram(bins, scale) if bins else None
    return FlatModel(
        model,
        apply,
        unflatten,
        start,
        context,
        model.output.shape[1],
        parts,
        masked,
        where(limited[0].loop_limit) if limited else None,
        limited[0].loops if limited else 1,
        longer and (lambda steps: flatten_model(longer(steps), info)),
        stepwise if hasattr(model, "stepwise") else None,
        getattr(model, "attention_bytes", 0),
        scale,
        where(in_units[0].value_unit) if in_units else None,
        histogram,
        functools.partial(apply_of, model) if bins else None,
        told if bins else None,
    )


def with_loops(net, weights, loops):
    """The weights [W] with which a network runs `loops` loops, at most as many as it has."""
    here = tf.range(weights.shape[0]) == net.loop_limit
    return tf.where(here, tf.cast(loops, tf.float32), weights)


def draw_loops(net, weights, updates):
    """The weights [W] for an update, with the number of loops drawn if the network wants that.

    updates: how many there were before; they are what is drawn by, so that a resumed run draws the
    same.
    """
    if net.loop_limit is None:
        return weights
    seed = tf.stack([tf.constant(7, tf.int64), tf.cast(updates, tf.int64)])
    drawn = tf.random.stateless_uniform([], seed, 1, net.loops + 1, tf.int32)
    return with_loops(net, weights, drawn)


def scale_of(net, weights):
    """The Scale on which the values of a network with these weights [W] are learned."""
    if net.value_unit is None:
        return net.scale
    unit = weights[net.value_unit]
    return Scale(lambda x: net.scale.shrink(x / unit), lambda x: unit * net.scale.stretch(x))


def _masked(outputs, legal):
    """Outputs [B, P, A, N], or [B, P, A + 1] with a value behind, with those of illegal actions."""
    legal = legal[:, -outputs.shape[1] :]  # [B, P, A]
    if outputs.shape.rank == 4:
        return tf.where(legal[..., None], outputs, losses.ILLEGAL)
    return tf.where(
        tf.pad(legal, [[0, 0], [0, 0], [0, 1]], constant_values=True), outputs, losses.ILLEGAL
    )


def flatten_q(model, info, quantiles=None):
    """As `flatten_model`, of a Q-network for the actions of `info`.

    quantiles: how many it must have; None: any number. Raises UsageError unless it gives
    [B, P, A, N], P at most the context.
    """
    wanted = f"[batch, steps, {info.outputs} actions, {quantiles or 'any number of'} quantiles]"
    return _flatten_checked(model, info, (info.outputs, quantiles), wanted)


def flatten_pi_v(model, info):
    """As `flatten_model`, of a policy and a value for the actions of `info`.

    Raises UsageError unless it gives [B, P, A + 1], P at most the context.
    """
    wanted = f"[batch, steps, {info.outputs} logits and a value]"
    return _flatten_checked(model, info, (info.outputs + 1,), wanted)


def _check_model(model, info):
    """Raise UsageError for a network of one's own that can't be fed, or whose weights can't be."""
    inputs = getattr(model, "input", None)
    if not isinstance(model, keras.Model) or not isinstance(inputs, dict):
        raise UsageError(
            "A network is a keras.Model of named inputs, keras.Model(dict(obs=obs, first=first), "
            f"q), not {type(model).__name__}; tfdqt's Keras is tfdqt.backend.keras."
        )
    if "obs" not in inputs or set(inputs) - {"obs", "first", "prev_action"}:
        raise UsageError(
            f"A network reads obs and, if it likes, first and prev_action, not {', '.join(inputs)}."
        )
    shape = tuple(inputs["obs"].shape)
    if len(shape) < 2 or shape[1] is None or shape[2:] != info.obs_shape:
        raise UsageError(
            f"The network reads obs {shape}, but those of {info.name} are [batch, steps of the "
            f"context, {', '.join(map(str, info.obs_shape))}], of a fixed number of steps."
        )
    for variable in model.variables:
        if variable.dtype != "float32":
            raise UsageError(
                f"The weights of a network are float32, but {variable.path} is {variable.dtype}; "
                "leave that layer out (a Dropout keeps the state of its generator so)."
            )


def _flatten_checked(model, info, last_axes, wanted):
    _check_model(model, info)
    shape = tuple(model.output.shape)
    context = model.input["obs"].shape[1]
    fits = len(shape) == 2 + len(last_axes) and shape[1] <= context
    if not fits or any(axis not in (None, size) for axis, size in zip(last_axes, shape[2:])):
        raise UsageError(
            f"The network gives {shape}, but {wanted} is asked for, of at most its {context} "
            "steps; a Q-network without quantiles ends with an axis of size 1."
        )
    return flatten_model(model, info)


def flatten(net, trained, fixed=None):
    """One flat vector of values for all weights, the fixed ones last (zeros without `fixed`)."""
    if fixed is None:
        fixed = [tf.zeros(v.shape, v.dtype) for v in net.model.non_trainable_variables]
    return tf.concat([tf.reshape(part, [-1]) for part in (*trained, *fixed)], 0)


def with_fixed(net, weights, fixed):
    """The weights [W] with `fixed` in place of their fixed ones."""
    return flatten(net, net.unflatten(weights)[0], fixed)


def set_weights(net, weights):
    """Write a flat weight vector into the Keras model."""
    trained, fixed = net.unflatten(weights)
    variables = (*net.model.trainable_variables, *net.model.non_trainable_variables)
    for variable, value in zip(variables, (*trained, *fixed)):
        variable.assign(value)


def adapt(net, obs, first, rewards=()):
    """Show data to every layer that has `adapt` or `adapt_to_rewards`: -> its fixed weights.

    obs [M, ...] and first [M], True where an episode starts, are steps in their order, rewards [M].
    `adapt(x, first)` is shown what the layer is fed, x [M, ...], with the layers before it adapted
    already; `adapt_to_rewards(rewards)` the rewards. Raises what these raise.
    """
    inputs = net.model.input["obs"]
    for layer in net.model.layers:
        if hasattr(layer, "adapt"):
            x = obs
            if layer.input is not inputs:
                x = _in_windows(keras.Model(inputs, layer.input), obs, net.context)
            layer.adapt(x, first)
        if hasattr(layer, "adapt_to_rewards"):
            layer.adapt_to_rewards(rewards)
    return [variable.numpy() for variable in net.model.non_trainable_variables]


def _in_windows(model, obs, context):
    """What a model of windows [B, C, ...] makes of steps [M, ...], each by itself: [M, ...]."""
    missing = -len(obs) % context
    windows = np.concatenate([obs, np.repeat(obs[-1:], missing, axis=0)])
    x = model(windows.reshape(-1, context, *obs.shape[1:])).numpy()
    return x.reshape(-1, *x.shape[2:])[: len(obs)]


def step_adam(weights, moments, gradient, count, part, cfg):
    """One step of Adam: -> (weights, moments, the gradient's norm before it is clipped).

    `count` is the number of this step, from 1; after `part` of the run the rate has gone as
    far between the two of cfg.
    """
    norm = tf.norm(gradient)
    gradient *= tf.minimum(1.0, cfg.max_grad_norm / tf.maximum(norm, 1e-12))
    rate = cfg.learning_rate + tf.minimum(part, 1.0) * (cfg.final_learning_rate - cfg.learning_rate)
    weights, moments = losses.adam(
        weights, gradient, moments, count, rate=rate, epsilon=cfg.adam_epsilon
    )
    return weights, moments, norm


def learn_in_parts(net, learned, batch, size, names):
    """`learned(batch)` from one part after another of a batch of `size` windows: a dict of means.

    learned: dict of `gradient` [W], `count`, by which a part's means are weighed, and scalars, of
    which those called `names` are kept. batch: tensors [size, ...].
    """
    parts = parts_of_batch(net.attention, size)
    if parts == 1:
        return learned(batch)
    split = tf.nest.map_structure(lambda x: tf.reshape(x, [parts, -1, *x.shape[1:]]), batch)

    def body(i, total, sums):
        found = learned(tf.nest.map_structure(lambda x: x[i], split))
        count = found["count"]
        return i + 1, total + count, {name: sums[name] + count * found[name] for name in sums}

    sums = dict({name: tf.zeros([]) for name in names}, gradient=tf.zeros_like(net.start))
    start = (tf.constant(0), tf.zeros([]), sums)
    _, total, sums = tf.while_loop(lambda i, *_: i < parts, body, start, maximum_iterations=parts)
    return {name: value / tf.maximum(total, 1.0) for name, value in sums.items()}


def repeat_update(one, state, count, names):
    """`count` updates as a loop that XLA compiles once: one(state, i) -> (state, dict of scalars).

    Returns (state, the means of the scalars called `names`).
    """

    def body(i, state, sums):
        state, scalars = one(state, i)
        return i + 1, state, {name: sums[name] + scalars[name] for name in names}

    start = (tf.constant(0), state, {name: tf.zeros([]) for name in names})
    _, state, sums = tf.while_loop(lambda i, *_: i < count, body, start, maximum_iterations=count)
    return state, {name: total / count for name, total in sums.items()}


def mean_q(outputs):
    """Q [..., A] of a Q-network's quantiles [..., A, N]."""
    return tf.reduce_mean(outputs, axis=-1)


def policy_logits(outputs):
    """The logits [..., A] of a network that gives a policy and a value, [..., A + 1]."""
    return outputs[..., :-1]


def scores_at_last(scores_of=mean_q) -> Callable:
    """`scores(outputs [B, P, ...]) -> [B, A]`, of the actions at the last step.

    scores_of: outputs of the network -> what the best action has the greatest of, `mean_q` or
    `policy_logits`.
    """
    return lambda outputs: scores_of(outputs)[:, -1]


def best_at_last(scores_of=mean_q, parts=()) -> Callable:
    """`best(outputs [B, P, ...]) -> actions [B]` at the last step; see `scores_at_last`."""
    return lambda outputs: losses.best_actions(scores_of(outputs)[:, -1], parts)


def make_scores(net, scores_of=mean_q) -> Callable:
    """Compile `scores(weights, inputs) -> [B, A]` of the actions at the last step of windows."""
    scores = scores_at_last(scores_of)
    return traced(lambda weights, inputs: scores(net.apply(weights, inputs)), jit_compile=True)


def make_act(net, scores_of=mean_q) -> Callable:
    """Compile `act(weights, inputs) -> best actions [B]` at the last step of windows."""
    best = best_at_last(scores_of, net.parts)
    return traced(lambda weights, inputs: best(net.apply(weights, inputs)), jit_compile=True)
