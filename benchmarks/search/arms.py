"""The networks that are compared on puzzles, by name, and what they are told of a puzzle."""

import numpy as np
from gymnasium import spaces

from tfdqt.backend import keras
from tfdqt.games.config import NetworkConfig
from tfdqt.games.spaces import describe, grid_of

WIDTH = 48
HEADS = 4
GPT = dict(tokens="cells", context=1, width=WIDTH, heads=HEADS)


def arm(name):
    """The NetworkConfig of an arm.

    blocks-L: L different blocks. loops-L: one block run L times. random-L: the same, with the
    number of loops drawn in training. wide-D: one block of width D. narrow-L: L different blocks,
    of width 16. mean-L: L different blocks, read out at the mean of all tokens. dense-D: two hidden
    layers of D units. drc-T is no NetworkConfig, see `build_drc`.
    """
    kind, size = name.split("-")
    size = int(size)
    if kind == "blocks":
        return NetworkConfig(**GPT, layers=size)
    if kind == "loops":
        return NetworkConfig(**GPT, layers=1, loops=size)
    if kind == "random":
        return NetworkConfig(**GPT, layers=1, loops=size, loops_random=True)
    if kind == "wide":
        return NetworkConfig(**{**GPT, "width": size}, layers=1)
    if kind == "narrow":
        return NetworkConfig(**{**GPT, "width": 16}, layers=size)
    if kind == "mean":
        return NetworkConfig(**GPT, layers=size, readout="mean")
    if kind == "dense":
        return NetworkConfig(network="dense", context=1, hidden=(size, size), layer_norm=True)
    raise ValueError(f"there is no arm {name}")


def build_arm(name, info):
    """The Q-network of an arm: a keras.Model, [B, 1, F] -> [B, 1, A, 1]."""
    if name.startswith("drc-"):
        return build_drc(info, int(name.removeprefix("drc-")))
    from tfdqt.games.networks import build_q  # loads Keras

    return build_q(info, arm(name))


def build_drc(info, ticks, channels=32):
    """A recurrent convolutional network after DRC (Guez et al., 2019), of one layer.

    A ConvLSTM with the encoded grid as input is run for `ticks` steps with the same weights; its
    gates also see the mean and the maximum of its state over the board. All kernels are 3 x 3.
    """
    layers = keras.layers
    ops = keras.ops
    grid = grid_of(info)
    obs = keras.Input((1, *info.obs_shape), dtype=info.obs_dtype, name="obs")
    first = keras.Input((1,), dtype="int32", name="first")
    board = ops.reshape(obs[..., : grid.size], (-1, grid.height, grid.width))
    x = ops.one_hot(ops.cast(board, "int32"), grid.counts[0])
    x = layers.Dense(channels, activation="relu", name="encode")(_patches(x))
    seen = layers.Dense(4 * channels, name="gates_board")(_patches(x))
    around = layers.Dense(4 * channels, use_bias=False, name="gates_state")
    pooled = layers.Dense(4 * channels, use_bias=False, name="gates_pooled")
    hidden = ops.zeros_like(x)
    cell = ops.zeros_like(x)
    for _ in range(ticks):
        summary = [ops.mean(hidden, axis=(1, 2)), ops.max(hidden, axis=(1, 2))]
        whole = pooled(ops.concatenate(summary, axis=-1))[:, None, None]
        z = seen + around(_patches(hidden)) + whole
        keep, new, out, candidate = ops.split(z, 4, axis=-1)
        cell = ops.sigmoid(keep + 1.0) * cell + ops.sigmoid(new) * ops.tanh(candidate)
        hidden = ops.sigmoid(out) * ops.tanh(cell)
    last = ops.reshape(ops.concatenate([hidden, x], axis=-1), (-1, grid.size * 2 * channels))
    last = layers.Dense(128, activation="relu", name="last")(last)
    q = layers.Dense(info.num_actions, name="q")(last)
    q = ops.reshape(q, (-1, 1, info.num_actions, 1))
    return keras.Model(dict(obs=obs, first=first), q)


def _patches(x):
    """Each cell with the eight around it: [B, H, W, C] -> [B, H, W, 9 C], zeros beyond the board.

    A dense layer of these is a convolution of 3 x 3. XLA on a CPU is far quicker with products.
    """
    height, width = x.shape[1:3]
    padded = keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return keras.ops.concatenate(shifted, axis=-1)


def puzzle_info(puzzle, size):
    """The EnvInfo of a puzzle of `size` x `size` cells, `sokoban` or `lights-out`."""
    values, actions, mask = dict(sokoban=(7, 4, "info"), lights=(2, size * size, None))[puzzle]
    grid = spaces.MultiDiscrete(np.full((size, size), values), dtype=np.uint8)
    return describe(grid, spaces.Discrete(actions), puzzle, mask)
