"""What a few runs say: means that an outlier does not move, and how sure they are."""

import numpy as np

AT_ONCE = 10_000_000  # numbers that are drawn at a time


def decimals(values):
    """How many decimals a mean of returns is shown with: 1, or 3 where all of them are small.

    >>> decimals([0.0, 1.0]), decimals([21.0, 500.0])
    (3, 1)
    """
    return 1 if np.nanmax(np.abs(values), initial=0) >= 10 else 3


def interquartile_mean(values, axis=-1):
    """Mean of the middle half, without the lowest and highest quarter (Agarwal et al., 2021)."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


def confidence(values, *, statistic=np.mean, level=0.95, draws=10_000):
    """Bootstrap confidence interval of a statistic of `values` [N]: (low, high).

    The percentile method; it is called as statistic(values, axis=...).
    """
    return _bootstrap([values], statistic, level, draws)


def improvement(pairs, *, level=0.95, draws=10_000):
    """Probability that a run of one kind beats one of another, ties half: (probability, low, high).

    Agarwal et al. (2021). `pairs` holds (ours [N], theirs [M]) for each task, such as each size;
    tasks count alike, and the interval is a stratified bootstrap. It has no width where every run
    of one beats every run of the other, which a few runs don't make certain.
    """

    def probability(*samples, axis=-1):
        tasks = [better(*samples[i : i + 2]) for i in range(0, len(samples), 2)]
        return np.mean(tasks, axis=0)

    def better(ours, theirs):
        ours = np.asarray(ours)[..., :, None]
        theirs = np.asarray(theirs)[..., None, :]
        return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(-2, -1))

    samples = [side for pair in pairs for side in pair]
    low, high = _bootstrap(samples, probability, level, draws)
    return float(probability(*samples)), low, high


def _bootstrap(samples, statistic, level, draws):
    """The percentile interval of statistic(*samples, axis=...): (low, high)."""
    from scipy.stats import bootstrap

    samples = [np.asarray(sample, np.float64) for sample in samples]
    if min(len(sample) for sample in samples) < 2:  # scipy wants two of each; one has no spread
        value = float(statistic(*samples, axis=-1))
        if all(len(sample) < 2 for sample in samples):
            return value, value
        samples = [np.repeat(sample, 2) if len(sample) < 2 else sample for sample in samples]
    most = max(len(sample) for sample in samples)
    interval = bootstrap(
        samples,
        statistic,
        n_resamples=draws,
        batch=max(1, AT_ONCE // most),
        confidence_level=level,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def typical_size(values):
    """Root mean square of the values that are not 0; None if all are.

    At least 1e-30, by which float32 can still be divided.
    """
    values = np.asarray(values, np.float64)
    values = values[values != 0]
    return max(float(np.sqrt(np.mean(values**2))), 1e-30) if len(values) else None
