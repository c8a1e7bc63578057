"""Values learned as histograms: a classification of returns instead of a regression.

HL-Gauss (Imani and White, 2018; Farebrother et al., 2024): a target becomes a normal distribution
about it, cut up into bins, and the network learns by cross-entropy to give that. Its value is the
mean of its histogram. The bins are of equal width on a scale of values.
"""

from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.value_scale import Scale

SPREAD = 0.75  # standard deviation of a target's distribution, in bins
MARGIN = 3 * SPREAD  # bins between a target and the end, so that nothing of it is cut off
LARGEST = 13.0  # where the bins end, on the scale


class Histogram(NamedTuple):
    """N bins between the edges [N + 1], which lie on a scale of values."""

    edges: np.ndarray
    scale: Scale

    def mean(self, logits):
        """The value that logits stand for: [..., N] -> [...]."""
        middles = (self.edges[1:] + self.edges[:-1]) / 2
        return self.scale.stretch(tf.reduce_sum(tf.nn.softmax(logits) * middles, axis=-1))

    def probabilities(self, values):
        """The histogram of a normal distribution about each value: [...] -> [..., N].

        Values beyond MARGIN bins from the ends count as there.
        """
        width = self.edges[1] - self.edges[0]
        low, high = self.edges[0] + MARGIN * width, self.edges[-1] - MARGIN * width
        about = tf.clip_by_value(self.scale.shrink(values), low, high)
        spread = SPREAD * width
        below = tf.math.erf((self.edges - about[..., None]) / (spread * 2**0.5))
        parts = below[..., 1:] - below[..., :-1]
        return parts / tf.reduce_sum(parts, axis=-1, keepdims=True)

    def cross_entropy(self, logits, values):
        """How badly logits tell values: [..., N], [...] -> [...], in nats."""
        return tf.nn.softmax_cross_entropy_with_logits(self.probabilities(values), logits)


def make_histogram(bins, scale):
    """A Histogram of so many bins, as far above 0 as below."""
    return Histogram(np.linspace(-LARGEST, LARGEST, bins + 1, dtype=np.float32), scale)
