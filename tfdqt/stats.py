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


def improvement(pairs, *, level=0.95, draws=10_000):
    """Probability that a run of one kind beats one of another (Agarwal et al., 2021), ties half: (probability, low, high).

    `pairs` holds (ours [N], theirs [M]) for each task, such as each size; tasks count alike, and the interval is a stratified bootstrap. It
    has no width where every run of one beats every run of the other, which a few runs don't make certain.
    """
    rng = np.random.default_rng(0)

    def better(ours, theirs):
        ours, theirs = np.asarray(ours)[..., :, None], np.asarray(theirs)[..., None, :]
        return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(-2, -1))

    drawn = [better(*(rng.choice(side, (draws, len(side))) for side in pair)) for pair in pairs]
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([better(*pair) for pair in pairs])), float(low), float(high)
