"""What is done to observations before a network reads them: scaled, hidden, standardized.

A layer with `adapt(x, first)` is shown data once, before learning starts: x [M, ...] is what the
layer is fed, first [M] where an episode starts. `flat.adapt` calls it.
"""

import numpy as np

from tfdqt.backend import keras
from tfdqt.errors import UsageError
from tfdqt.games.spaces import are_bits, grid_of

layers = keras.layers
ops = keras.ops

# Deviations from the mean beyond which a standardized number grows with the logarithm; the least
# that a deviation counts as, about one step of a byte between -1 and 1, and that of a number which
# has not changed yet.
FAR = 5.0
LEAST_DEVIATION = 0.01
UNKNOWN_DEVIATION = 0.1


def change_rates(obs, first, categories=False):
    """By which part of its range each feature changes a step: obs [M, F], first [M] -> [F].

    On average, within episodes. The range of a byte is 256, of a category 1 whichever it becomes,
    of other numbers that from the least to the greatest in `obs`. categories [F]: which are.
    """
    before = obs[:-1][~first[1:]]
    after = obs[1:][~first[1:]]
    if not len(after):
        return np.ones(obs.shape[1])  # nothing is known
    span = 256.0 if obs.dtype == np.uint8 else np.maximum(np.ptp(obs, axis=0), 1e-12)
    change = np.abs(after.astype("float64") - before).mean(axis=0) / span
    return np.where(categories, (before != after).mean(axis=0), change)


def are_categories(info):
    """Which features are: bool [F]. A bit of a grid counts as one."""
    if info.nvec:
        return np.array(info.nvec) > 0
    return np.full(info.features, are_bits(info))


class HideStatic(layers.Layer):
    """Multiplies by `scale` what changes by less than `least` a step: [B, C, F] -> [B, C, F].

    Their `rate` of change [F] is set by `adapt`; before that it is 1, and all features are shown.
    scale: a number, or [F]; categories: as `change_rates` takes them.
    """

    def __init__(self, least, scale=0.0, categories=False, **kwargs):
        super().__init__(**kwargs)
        self.least = least
        self.scale = np.asarray(scale, "float32")
        self.categories = categories

    def build(self, shape):
        self.rate = self.add_weight(
            shape=shape[-1:], initializer="ones", trainable=False, name="rate"
        )

    def adapt(self, x, first):
        """Count how often features change. Raises UsageError if none does often enough."""
        rate = change_rates(x, first, self.categories)
        if rate.max() < self.least:
            raise UsageError(
                f"No feature of the observation changes by {self.least:g} of its range a step, on "
                f"average ({rate.max():.2g} at most); lower --min-change."
            )
        self.rate.assign(rate)

    @property
    def shown(self):
        """Which features are shown, [F] bool."""
        return self.rate >= self.least

    def call(self, x):
        if not self.scale.any():
            return ops.where(self.shown, x, ops.zeros_like(x))
        x = ops.cast(x, "float32")
        return ops.where(self.shown, x, x * self.scale)


class Standardize(layers.Layer):
    """(x - mean) / scale of each number; `adapt` sets mean and scale, which are 0 and 1 before.

    Beyond FAR it grows with the logarithm: what was not seen before learning starts stays apart.
    keep: which of the F numbers are categories and stay as they are, [F] bool.
    """

    def __init__(self, keep=False, **kwargs):
        super().__init__(**kwargs)
        self.keep = np.asarray(keep)

    def build(self, shape):
        self.mean = self.add_weight(
            shape=shape[-1:], initializer="zeros", trainable=False, name="mean"
        )
        self.scale = self.add_weight(
            shape=shape[-1:], initializer="ones", trainable=False, name="scale"
        )

    def adapt(self, x, first):
        """Take mean and deviation of x [M, ..., F]."""
        axes = tuple(range(x.ndim - 1))
        deviation = np.maximum(x.std(axis=axes, dtype="float64"), LEAST_DEVIATION)
        deviation = np.where(np.ptp(x, axis=axes) > 0, deviation, UNKNOWN_DEVIATION)
        self.mean.assign(np.where(self.keep, 0.0, x.mean(axis=axes, dtype="float64")))
        self.scale.assign(np.where(self.keep, 1.0, deviation))

    def call(self, x):
        x = (x - self.mean) / self.scale
        beyond = ops.maximum(ops.abs(x) - FAR, 0.0)
        far = ops.clip(x, -FAR, FAR) + ops.sign(x) * ops.log1p(beyond)
        return ops.where(self.keep, x, far)


def features_shown(model):
    """Which features of an observation a trained network sees: their numbers, or None if all."""
    hiding = [layer for layer in model.layers if isinstance(layer, HideStatic)]
    return np.flatnonzero(hiding[0].shown) if hiding else None


def hide_static(obs, info, cfg):
    """Observations [B, C, F] with those features hidden that hardly change, if cfg asks for it."""
    if not cfg.min_change:
        return obs
    if info.nvec:
        looked_up = are_categories(info)
    else:
        bytes_as_tokens = cfg.ram_bits or cfg.network == "gpt" and cfg.tokens == "features"
        looked_up = info.obs_dtype == "uint8" and bytes_as_tokens
    scale = np.where(looked_up, 0.0, cfg.hidden_scale)
    return HideStatic(cfg.min_change, scale, are_categories(info), name="hide_static")(obs)


def as_numbers(obs, info, cfg):
    """Observations as numbers that a network can read: [B, C, F] -> [B, C, F'] float32."""
    dtype = info.obs_dtype
    has_bytes = dtype == "uint8" and not info.nvec
    bits = has_bytes and not cfg.ram_bits and are_bits(info)
    x, keep = _numbers_of(obs, info.nvec, "float32" if bits else dtype)
    keep = keep | bits
    if has_bytes and cfg.ram_bits:
        x = ops.concatenate([x, byte_bits(obs)], axis=-1)
        keep = np.concatenate([keep, np.ones(8 * info.features, bool)])
    return standardize(x, keep, cfg)


def standardize(x, keep, cfg, name="standardize"):
    """Numbers [B, C, ..., F] centred and scaled if cfg asks for it, but for those to `keep`."""
    if not cfg.standardize or np.all(keep):
        return x
    return Standardize(keep, name=name)(x)


def _numbers_of(obs, nvec, dtype):
    """Entries [B, C, F] as numbers [B, C, F'] float32, and which of these are of a category."""
    if not nvec:
        return scaled(obs, dtype), np.zeros(obs.shape[-1], bool)
    entries = [
        ops.one_hot(ops.cast(obs[..., i], "int32"), n) if n else scaled(obs[..., i : i + 1], dtype)
        for i, n in enumerate(nvec)
    ]
    return ops.concatenate(entries, axis=-1), np.repeat(np.array(nvec) > 0, np.maximum(nvec, 1))


def scaled(obs, dtype):
    """Numbers as float32, and bytes between -1 and 1."""
    x = ops.cast(obs, "float32")
    return x / 128.0 - 1.0 if dtype == "uint8" else x


def cells_as_numbers(obs, info, cfg):
    """The grid in observations, cut into patches: [B, C, F] -> [B, C, H / P, W / P, N] float32."""
    grid = grid_of(info)
    x = obs[..., grid.start : grid.start + grid.size]
    x = ops.reshape(x, (-1, cfg.context, grid.height, grid.width, grid.channels))
    counts = cell_categories(info, cfg)
    if any(counts):
        if info.obs_dtype == "float32" and grid.bytes:  # beside other numbers they were scaled
            x = (x + 1.0) * 128.0
        codes = ops.cast(ops.round(ops.cast(x, "float32")), "int32")
        hot = [
            ops.one_hot(ops.minimum(codes[..., i], count - 1), count)
            for i, count in enumerate(counts)
        ]
        x = ops.concatenate(hot, axis=-1)
    else:
        x = standardize(scaled(x, info.obs_dtype), False, cfg, "standardize_cells")
    size = cfg.patch
    if size == 1:
        return ops.cast(x, "float32")
    numbers = x.shape[-1]
    rows = grid.height // size
    columns = grid.width // size
    x = ops.reshape(x, (-1, cfg.context, rows, size, columns, size, numbers))
    x = ops.transpose(x, (0, 1, 2, 4, 3, 5, 6))
    return ops.reshape(x, (-1, cfg.context, rows, columns, size * size * numbers))


def cell_categories(info, cfg):
    """The number of categories of each channel of the grid, 0 of a number: a tuple [channels].

    Of `cfg.categories` if that is given, else those of the space.
    """
    grid = grid_of(info)
    return (cfg.categories,) * grid.channels if cfg.categories else grid.counts


def rest_as_numbers(obs, info, cfg):
    """What is no cell of the grid, as numbers: [B, C, F] -> [B, C, F'] float32."""
    grid = grid_of(info)
    end = grid.start + grid.size
    rest = ops.concatenate([obs[..., : grid.start], obs[..., end : info.features]], axis=-1)
    nvec = info.nvec and info.nvec[: grid.start] + info.nvec[end:]
    return standardize(*_numbers_of(rest, nvec, info.obs_dtype), cfg)


def byte_bits(obs):
    """The 8 bits of every byte, the lowest first: [B, C, F] -> [B, C, 8 F] float32."""
    shifted = ops.floor(
        ops.cast(obs, "float32")[..., None] / (2.0 ** np.arange(8, dtype="float32"))
    )
    bits = shifted - 2.0 * ops.floor(shifted / 2.0)  # [B, C, F, 8]
    return ops.reshape(bits, (-1, obs.shape[1], 8 * obs.shape[2]))


def count_numbers(info, cfg):
    """How many numbers `as_numbers` makes of an observation."""
    if info.nvec:
        return sum(max(n, 1) for n in info.nvec)
    return info.features * (9 if info.obs_dtype == "uint8" and cfg.ram_bits else 1)
