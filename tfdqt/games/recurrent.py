"""A recurrent layer in Keras 3 whose state starts anew where an episode does."""

import functools

from tfdqt.backend import keras, tf

layers = keras.layers
ops = keras.ops

FEW_STEPS = 8  # up to which steps are unrolled: quicker, while they compile quickly


class ResettingGRU(layers.Layer):
    """A GRU over a window of steps (Cho et al., 2014): x [B, C, F], first [B, C] -> [B, C, D].

    Its state is `start` [B, D] at the front of the window (None: zero), and zero before every step
    at which `first` is 1.

    Weights and formula are those of `keras.layers.GRU(units, reset_after=True)`, which has no such
    reset and loops in a way that XLA compiles badly. Here all steps are multiplied by the kernel at
    once, and the gradient is written by hand.
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, x_shape, *_):
        units = 3 * self.units
        self.kernel = self.add_weight(
            shape=(x_shape[-1], units), initializer="glorot_uniform", name="kernel"
        )
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, units), initializer="orthogonal", name="recurrent_kernel"
        )
        self.bias = self.add_weight(shape=(2, units), initializer="zeros", name="bias")

    def compute_output_shape(self, x_shape, *_):
        return (*x_shape[:-1], self.units)

    def call(self, x, first, start=None):
        steps = ops.transpose(x, (1, 0, 2))
        inputs = ops.matmul(steps, self.kernel) + self.bias[0]
        stays = ops.cast(ops.not_equal(ops.transpose(first), 1), x.dtype)[..., None]
        # A copy: a function with a gradient of its own can't be given a variable.
        kernel = tf.identity(ops.convert_to_tensor(self.recurrent_kernel))
        if start is None:
            start = ops.zeros_like(inputs[0, :, : self.units])
        states = gru_states(inputs, stays, start, kernel, self.bias[1])
        return ops.transpose(states, (1, 0, 2))


@tf.custom_gradient
def gru_states(inputs, stays, start, kernel, bias):
    """The states of a GRU: inputs [C, B, 3 D], stays [C, B, 1], start [B, D] -> [C, B, D].

    inputs: of update, reset and candidate, multiplied by their kernel. stays: 0 where the state
    starts anew, which gets no gradient, else 1. start: the state before. kernel [D, 3 D] and bias
    [3 D] are the recurrent ones.

    The derived gradient would add up a tensor of all steps at each of them, and take minutes to
    compile for 72. Here only what goes from a step to the one before is a loop.
    """

    def step(state, parts):
        inputs, stays = parts
        state *= stays
        update, _, candidate, _ = _gates(inputs, tf.matmul(state, kernel) + bias)
        return update * state + (1.0 - update) * candidate

    states = _scan(step, start, (inputs, stays))

    def gradient(wanted):
        before = tf.concat([start[None], states[:-1]], axis=0) * stays
        recurrent = tf.tensordot(before, kernel, 1) + bias
        update, reset, candidate, candidate_rec = _gates(inputs, recurrent)
        # What each gate's sum, before it is squashed, changes of the state.
        of_candidate = (1.0 - update) * (1.0 - tf.square(candidate))
        of_update = (before - candidate) * update * (1.0 - update)
        of_reset = of_candidate * candidate_rec * reset * (1.0 - reset)
        of_recurrent = tf.concat([of_update, of_reset, of_candidate * reset], axis=-1)
        back = functools.partial(_back, tf.transpose(kernel))
        parts = (wanted, update, of_recurrent, stays)
        none = tf.zeros_like(start)
        by_state, by_before = _scan(back, (none, none), parts, reverse=True)
        by_inputs = tf.concat([of_update, of_reset, of_candidate], axis=-1) * _thrice(by_state)
        by_recurrent = of_recurrent * _thrice(by_state)
        by_kernel = tf.tensordot(before, by_recurrent, [[0, 1], [0, 1]])
        return by_inputs, None, by_before[0], by_kernel, tf.reduce_sum(by_recurrent, axis=(0, 1))

    return states, gradient


def _back(kernel, later, parts):
    """One step of the gradient, from the last to the first: -> (by its state, by the one before).

    kernel [3 D, D] is the recurrent one, transposed.
    """
    wanted, update, of_recurrent, stays = parts
    by_state = wanted + later[1]
    by_recurrent = of_recurrent * _thrice(by_state)
    return by_state, stays * (update * by_state + tf.matmul(by_recurrent, kernel))


def _thrice(x):
    """Once for each gate: [..., D] -> [..., 3 D]."""
    return tf.concat([x, x, x], axis=-1)


def _gates(inputs, recurrent):
    """[..., 3 D] each -> update, reset, candidate, and the candidate's recurrent part, [..., D]."""
    update_in, reset_in, candidate_in = tf.split(inputs, 3, axis=-1)
    update_rec, reset_rec, candidate_rec = tf.split(recurrent, 3, axis=-1)
    reset = tf.sigmoid(reset_in + reset_rec)
    candidate = tf.tanh(candidate_in + reset * candidate_rec)
    return tf.sigmoid(update_in + update_rec), reset, candidate, candidate_rec


def _scan(step, state, parts, reverse=False):
    """As `tf.scan`: every `state = step(state, parts of a step)`, in the order of the steps."""
    if parts[0].shape[0] > FEW_STEPS:
        return tf.scan(step, parts, state, reverse=reverse)
    each = list(zip(*map(tf.unstack, parts)))
    states = []
    for parts in reversed(each) if reverse else each:
        state = step(state, parts)
        states.append(state)
    return tf.nest.map_structure(lambda *of: tf.stack(of), *(states[::-1] if reverse else states))
