"""What a few runs say: means that an outlier does not move, and how sure they are. Imports no TensorFlow."""

import numpy as np


def interquartile_mean(values, axis=-1):
    """Mean of the middle half (Agarwal et al., 2021): the lowest and the highest quarter are left out."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


def confidence(values, *, statistic=np.mean, level=0.95, draws=10_000):
    """Bootstrap confidence interval of a statistic of `values` [N]: (low, high). statistic(values, axis=1) is asked for."""
    values = np.asarray(values)
    draw = statistic(np.random.default_rng(0).choice(values, (draws, len(values))), axis=1)
    return tuple(np.quantile(draw, [(1 - level) / 2, (1 + level) / 2]))
