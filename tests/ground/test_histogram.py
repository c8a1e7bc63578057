"""Values as histograms: what a target becomes, what a network's logits stand for."""

import math

import numpy as np

from tfdqt.backend import tf
from tfdqt.histogram import MARGIN, Histogram, make_histogram
from tfdqt.losses import td_loss
from tfdqt.value_scale import LINEAR, SCALES

EIGHT = Histogram(np.arange(-4.0, 4.1, dtype=np.float32), LINEAR)


def below(edge, value):
    """How much of a normal distribution of deviation 0.75 about a value lies below an edge."""
    return 0.5 * (1 + math.erf((edge - value) / (0.75 * math.sqrt(2))))


class TestHistogram(tf.test.TestCase):
    def test_a_target_by_hand(self):
        inner = [below(edge, 0.5) for edge in range(-4, 5)]
        known = np.diff(inner) / (inner[-1] - inner[0])
        self.assertAllClose(EIGHT.probabilities(tf.constant([0.5]))[0], known, atol=1e-6)

    def test_the_mean_of_logits_by_hand(self):
        logits = tf.math.log([0.0, 0.0, 0.0, 0.25, 0.25, 0.5, 0.0, 0.0])
        self.assertAllClose(EIGHT.mean(logits), -0.125 + 0.125 + 0.75)
        log = EIGHT._replace(scale=SCALES["log"])
        self.assertAllClose(log.mean(logits), math.exp(0.75) - 1)

    def test_no_value_is_lost_on_the_way(self):
        histogram = make_histogram(64, SCALES["log"])
        values = tf.constant([-1e4, -3.0, -0.01, 0.0, 0.2, 0.21, 1.0, 40.0, 5e4])
        logits = tf.math.log(histogram.probabilities(values) + 1e-30)
        self.assertAllClose(histogram.mean(logits), values, rtol=2e-3, atol=1e-3)
        self.assertAllClose(tf.reduce_sum(histogram.probabilities(values), -1), np.ones(9))

    def test_what_lies_beyond_counts_as_at_the_end(self):
        far, end = EIGHT.probabilities(tf.constant([1e9, 4 - MARGIN]))
        self.assertAllClose(far, end)
        self.assertAllClose(EIGHT.mean(tf.math.log(far)), 4 - MARGIN, atol=0.01)

    def test_few_bins_reach_far_too(self):
        histogram = make_histogram(16, SCALES["log"])
        values = tf.constant([1.0, 100.0, 10_000.0])
        logits = tf.math.log(histogram.probabilities(values) + 1e-30)
        self.assertAllClose(histogram.mean(logits), values, rtol=0.02)

    def test_the_least_cross_entropy_is_that_of_the_target(self):
        value = tf.constant([0.3])
        best = tf.math.log(EIGHT.probabilities(value))
        least = EIGHT.cross_entropy(best, value)
        self.assertAllClose(least, -tf.reduce_sum(tf.exp(best) * best, axis=-1))
        for change in np.eye(8, dtype="float32"):
            self.assertGreater(float(EIGHT.cross_entropy(best + change, value)[0]), float(least[0]))


class TestLoss(tf.test.TestCase):
    def test_of_the_actions_taken(self):
        """Two steps of which one counts; its action's logits are all alike, their mean is 0."""
        q = np.zeros((1, 2, 2, 8), "float32")
        q[0, 0, 1] = range(8)  # of the other action
        loss, told = td_loss(
            tf.constant(q),
            tf.constant([[0, 1]]),
            tf.constant([[[1.5], [0.0]]]),
            tf.constant([[1.0, 0.0]]),
            histogram=EIGHT,
        )
        self.assertAllClose(loss, math.log(8))
        self.assertAllClose((told["q_mean"], told["td_error"]), (0.0, 1.5), atol=1e-6)


if __name__ == "__main__":
    tf.test.main()
