"""Bootstrap intervals over layouts, and ranks, of what `plan.py` tells."""

import numpy as np


class Resample:
    """A bootstrap over layouts: which states are of the same, layout [N] int."""

    def __init__(self, layout, draws):
        self.group = np.unique(layout, return_inverse=True)[1]
        self.count = self.group.max() + 1
        chance = np.full(self.count, 1 / self.count)
        self.times = np.random.default_rng(0).multinomial(self.count, chance, size=draws)

    def sums(self, values):
        """Sums over states, [1 + draws, ...], of values [N, ...]: as they are, then resampled."""
        values = np.asarray(values, np.float64)
        by_layout = np.zeros((self.count, *values.shape[1:]))
        np.add.at(by_layout, self.group, values)
        weights = np.concatenate([np.ones((1, self.count)), self.times])
        return np.tensordot(weights, by_layout, 1)

    def mean(self, values, among=None):
        """(mean, low, high) of values [N] of the states that are `among`, [N] bool."""
        among = np.ones(len(values), bool) if among is None else among
        with np.errstate(invalid="ignore"):
            return interval(self.sums(np.where(among, values, 0)) / self.sums(among))

    def correlation(self, x, y, weight=None):
        """Correlations [1 + draws, ...] of x and y [N, M, ...], over states and M."""
        weight = np.ones(x.shape) if weight is None else weight
        terms = (weight, weight * x, weight * y, weight * x * x, weight * y * y, weight * x * y)
        n, sx, sy, sxx, syy, sxy = (self.sums(term.sum(1)) for term in terms)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = (sxx - sx**2 / n) * (syy - sy**2 / n)
            return (sxy - sx * sy / n) / np.sqrt(spread)


def interval(draws):
    """(value, low, high) of a statistic [1 + draws], of which the first is of the data itself."""
    if np.isnan(draws[0]):
        return (np.nan,) * 3
    low, high = np.nanquantile(draws[1:], (0.025, 0.975))
    return float(draws[0]), float(low), float(high)


def ranks(values):
    """Ranks [N] of values [N], the mean of ties."""
    from scipy.stats import rankdata

    return rankdata(values)


def within(values, strata):
    """Values [N] less the mean of their stratum, strata [N] int."""
    group = np.unique(strata, return_inverse=True)[1]
    mean = np.bincount(group, values) / np.bincount(group)
    return values - mean[group]
