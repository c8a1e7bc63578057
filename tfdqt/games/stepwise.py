"""Acting one step after another, from what was kept of the steps before.

A window encoded anew at every step costs as much as all its steps. With the keys and values of the
steps before kept, or the states of a recurrent network, a step costs one step, and what the network
says is the same, as long as an episode fits the context. A row whose episode is longer has its
window encoded anew.
"""

from collections.abc import Callable

import numpy as np

from tfdqt.backend import tf, traced


def make_stepwise(net, outcome=None) -> Callable:
    """`begin(weights) -> look`; look(inputs) -> numpy [N, ...], what the network says of each row.

    look is called with windows, as `flat` has them, each one step on from those before; where an
    episode starts is told by first[:, -1]. outcome: outputs [N, P, ...] of the last P steps -> what
    is wanted of the last, a tensor [N, ...]; None: the outputs. A network that keeps no steps
    encodes each window.
    """
    outcome = outcome or _as_they_are

    if net.stepwise is None:
        encode_all = traced(lambda *of: outcome(net.apply(*of)), jit_compile=True)
        return lambda weights: lambda inputs: encode_all(weights, inputs).numpy()

    apply_whole, apply_step = net.stepwise()

    @traced(jit_compile=True)
    def encode(weights, inputs):
        """As net.apply, of the last step alone: a gpt's last block is run for no other."""
        place = tf.zeros_like(inputs["first"][:, 0])  # nothing is kept
        return outcome(apply_whole(weights, dict(inputs, place=place))[0][:, None])

    @traced(jit_compile=True)
    def whole(weights, inputs, place):
        """Encode windows: place [N] of their last steps -> (outcome, what is kept)."""
        outputs, kept = apply_whole(weights, dict(inputs, place=place))
        return outcome(outputs[:, None]), kept

    @traced(jit_compile=True)
    def step(weights, inputs, kept, place):
        outputs, kept = apply_step(weights, dict(inputs, kept=kept, place=place))
        return outcome(outputs[:, None]), kept

    def begin(weights):
        return _Looking(net.context, weights, whole, step, encode)

    return begin


def _as_they_are(outputs):
    return outputs[:, -1]


class _Looking:
    """What `begin` of make_stepwise gives."""

    def __init__(self, context, weights, whole, step, encode):
        self.context = context
        self.weights = weights
        self.whole = whole
        self.step = step
        self.encode = encode
        self.place = None  # [N], which step of its episode each row is at; C: beyond the context
        self.kept = None

    def __call__(self, inputs):
        first = np.asarray(inputs["first"])
        if self.place is None:
            starts = first[:, ::-1] == 1
            self.place = np.where(starts.any(axis=1), starts.argmax(axis=1), self.context)
            outcome, self.kept = self.whole(self.weights, inputs, self._place())
            return outcome.numpy()
        self.place = np.where(first[:, -1] == 1, 0, np.minimum(self.place + 1, self.context))
        beyond = np.flatnonzero(self.place == self.context)
        if len(beyond) == len(first):
            return self.encode(self.weights, inputs).numpy()
        last = {name: part[:, -1:] for name, part in inputs.items()}
        outcome, self.kept = self.step(self.weights, last, self.kept, self._place())
        outcome = outcome.numpy()
        if len(beyond):
            # Filled up to a power of two, so that few sizes are compiled.
            rows = np.resize(beyond, min(len(first), 1 << (len(beyond) - 1).bit_length()))
            windows = {name: np.asarray(part)[rows] for name, part in inputs.items()}
            outcome[rows] = self.encode(self.weights, windows).numpy()
        return outcome

    def _place(self):
        return tf.constant(np.minimum(self.place, self.context - 1), tf.int32)
