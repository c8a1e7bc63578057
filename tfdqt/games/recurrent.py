"""A recurrent layer in Keras 3 whose state starts anew where an episode does."""

from tfdqt.backend import keras

layers = keras.layers
ops = keras.ops


class ResettingGRU(layers.Layer):
    """A GRU over a window of steps (Cho et al., 2014): x [B, C, F], first [B, C] -> [B, C, D].

    Its state is zero at the front of the window and before every step at which `first` is 1.
    Weights and formula are those of `keras.layers.GRU(units, reset_after=True)`, which has no such
    reset and loops in a way that XLA compiles badly; here the steps are unrolled, and all of them
    are multiplied by the kernel at once.
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, x_shape, first_shape):
        units = 3 * self.units
        self.kernel = self.add_weight(
            shape=(x_shape[-1], units), initializer="glorot_uniform", name="kernel"
        )
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, units), initializer="orthogonal", name="recurrent_kernel"
        )
        self.bias = self.add_weight(shape=(2, units), initializer="zeros", name="bias")

    def compute_output_shape(self, x_shape, first_shape):
        return (*x_shape[:-1], self.units)

    def call(self, x, first):
        inputs = ops.matmul(x, self.kernel) + self.bias[0]  # [B, C, 3 D]: update, reset, candidate
        starts = ops.equal(first, 1)[..., None]
        state = ops.zeros_like(inputs[:, 0, : self.units])
        states = []
        for step in range(x.shape[1]):
            state = ops.where(starts[:, step], ops.zeros_like(state), state)
            state = self.step(inputs[:, step], state)
            states.append(state)
        return ops.stack(states, axis=1)

    def step(self, inputs, state):
        """The next state: inputs [B, 3 D], state [B, D] -> [B, D]."""
        update_in, reset_in, candidate_in = ops.split(inputs, 3, axis=-1)
        recurrent = ops.matmul(state, self.recurrent_kernel) + self.bias[1]
        update_rec, reset_rec, candidate_rec = ops.split(recurrent, 3, axis=-1)
        update = ops.sigmoid(update_in + update_rec)
        reset = ops.sigmoid(reset_in + reset_rec)
        candidate = ops.tanh(candidate_in + reset * candidate_rec)
        return update * state + (1.0 - update) * candidate
