"""What a decoder reads of a window of steps: tokens, and which of them sees which."""

from typing import NamedTuple

import numpy as np

from tfdqt.backend import keras
from tfdqt.games.blocks import Kept, Sight, linear, normal
from tfdqt.games.features import (
    are_categories,
    as_numbers,
    cells_as_numbers,
    count_numbers,
    hide_static,
    rest_as_numbers,
    scaled,
    standardize,
)
from tfdqt.games.spaces import grid_of

layers = keras.layers
ops = keras.ops


# -------------------------------------------------------------------------------------------------
# What may be seen


def same_episode(first):
    """Which steps belong to one episode: first [B, C] -> [B, C, C] float, row sees column."""
    episode = ops.cumsum(ops.cast(first, "int32"), axis=1)  # [B, C]
    return ops.cast(ops.equal(episode[:, :, None], episode[:, None, :]), "float32")


def causal(length, most=None):
    """Which tokens may be seen: [1, T, T], 1 on and below the diagonal, or `most` of them."""
    seen = np.tril(np.ones((1, length, length), "float32"))
    return seen if most is None else np.triu(seen, 1 - most)


def steps_seen(visible):
    """How many steps before it each step sees: visible [B, C, C] -> [B, C] int32.

    Counted from the first step it can see, so that a window cut by a reset looks like one that
    starts there.
    """
    return ops.cast(ops.sum(visible, axis=-1) - 1.0, "int32")


# -------------------------------------------------------------------------------------------------
# Tokens


class Tokens(NamedTuple):
    """What a decoder reads, T tokens of a window of C steps, T / C of each."""

    x: object  # [B, T, D]
    sight: Sight  # what each of them sees


def step_tokens(inputs, info, cfg):
    """One token a step: T = C, or more steps, of which each sees C."""
    steps = inputs["first"].shape[1]
    visible = same_episode(inputs["first"]) * causal(steps, cfg.context)
    history = steps_seen(visible)
    if cfg.places == "lag-start":
        start = ops.sum(visible * ops.cast(inputs["first"], "float32")[:, None], axis=-1)
        history = ops.where(start > 0, history, -1)
    x = _step_vectors(inputs, info, cfg, history)
    if cfg.places == "history":
        return Tokens(x, Sight(visible, backwards=True))
    step = np.arange(steps, dtype="int32")
    lag = np.clip(step[:, None] - step, 0, cfg.context - 1)  # further back and later: not seen
    return Tokens(x, Sight(visible, lag, cfg.context, backwards=True))


def next_token(inputs, info, cfg):
    """The token of a step by itself, T = 1, where what came before is kept.

    Besides the named inputs, of windows of one step, `place` [B] int32, how many steps came before
    in its episode, and `kept` [B, L, 2, C, H, D/H], see Kept.
    """
    place = inputs["place"][:, None]
    steps = np.arange(cfg.context, dtype="int32")
    visible = ops.cast(ops.less_equal(steps, place), "float32")[:, None]
    sight = Sight(visible, kept=Kept(inputs["kept"], ops.equal(steps, place)))
    if cfg.places != "history":
        lag = ops.maximum(place - steps, 0)[:, None]
        sight = sight._replace(relation=lag, relations=cfg.context)
    return Tokens(_step_vectors(inputs, info, cfg, place), sight)


def _step_vectors(inputs, info, cfg, history):
    """A vector for each step: [B, T, D].

    history: how many steps each has seen before, [B, T], or -1 where that is not told.
    """
    numbers = as_numbers(hide_static(features_of(inputs, info), info, cfg), info, cfg)
    scale = min(0.3, count_numbers(info, cfg) ** -0.5)
    x = linear(numbers, cfg.width, name="embed_obs", scale=scale)
    if cfg.places != "lag":
        x = x + _embedded_time(history, cfg)
    if cfg.prev_action:
        x = x + _embedded_action(inputs, info, cfg)
    if info.mask:
        x = x + _embedded_mask(inputs, info, cfg)
    return x


def feature_tokens(inputs, info, cfg):
    """One token a feature of each step: T = C F. The last of a step has seen all of it."""
    features = info.features
    x = _feature_vectors(
        hide_static(features_of(inputs, info), info, cfg), info, cfg
    )  # [B, C, F, D]
    x = AddFeatureVectors(name="embed_feature")(x)
    episode = same_episode(inputs["first"])
    x = x + _embedded_time(steps_seen(episode * causal(cfg.context)), cfg)[:, :, None]
    if cfg.prev_action:
        x = x + _embedded_action(inputs, info, cfg)[:, :, None]
    if info.mask:
        x = x + _embedded_mask(inputs, info, cfg)[:, :, None]
    tokens = cfg.context * features
    visible = ops.repeat(ops.repeat(episode, features, axis=1), features, axis=2)
    x = ops.reshape(x, (-1, tokens, cfg.width))
    return Tokens(x, Sight(visible * causal(tokens), backwards=True))


def cell_tokens(inputs, info, cfg):
    """One token a cell of a grid, or a patch of cells, and one for the step: T = C (K + 1).

    All tokens of a step see each other, and those of the steps before. The step's own, the last,
    holds what is no cell: other numbers, the action before, the legal actions.
    """
    obs = features_of(inputs, info)
    grid = grid_of(info)
    cells = cells_as_numbers(obs, info, cfg)  # [B, C, H / P, W / P, N]
    scale = min(0.3, cells.shape[-1] ** -0.5)
    x = AddPlaces(name="embed_cell_place")(linear(cells, cfg.width, name="embed_cell", scale=scale))
    rows, columns = x.shape[2:4]
    x = ops.reshape(x, (-1, cfg.context, rows * columns, cfg.width))
    episode = same_episode(inputs["first"]) * causal(cfg.context)
    time = _embedded_time(steps_seen(episode), cfg)
    step = time
    if cfg.context > 1:
        x = x + time[:, :, None]
    if info.features > grid.size:
        step = step + linear(
            rest_as_numbers(obs, info, cfg), cfg.width, name="embed_obs", scale=0.3
        )
    if cfg.prev_action:
        step = step + _embedded_action(inputs, info, cfg)
    if info.mask:
        step = step + _embedded_mask(inputs, info, cfg)
    x = ops.concatenate([x, step[:, :, None]], axis=2)  # [B, C, K + 1, D]
    each = rows * columns + 1
    visible = None
    if cfg.context > 1:
        visible = ops.repeat(ops.repeat(episode, each, axis=1), each, axis=2)
    x = ops.reshape(x, (-1, cfg.context * each, cfg.width))
    relation = relations(rows, columns, cfg.context)
    return Tokens(x, Sight(visible, relation, int(relation.max()) + 1))


def relations(rows, columns, context):
    """How any two tokens of `cell_tokens` lie to each other, by number: [T, T] int.

    Two of the same offset in rows, columns and steps are alike. The token of a step has three
    relations: to a cell, from one, to the token of a step.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    down = row[:, None] - row[None] + rows - 1
    right = column[:, None] - column[None] + columns - 1
    count = (2 * rows - 1) * (2 * columns - 1)
    one = np.full((rows * columns + 1,) * 2, count)  # [K + 1, K + 1]
    one[:-1, :-1] = down * (2 * columns - 1) + right
    one[-1] += 1
    one[-1, -1] += 1
    lag = np.maximum(np.arange(context)[:, None] - np.arange(context)[None], 0)  # later: not seen
    every = lag[:, None, :, None] * (count + 3) + one[None, :, None]  # [C, K + 1, C, K + 1]
    return every.reshape(context * len(one), context * len(one)).astype("int32")


class AddPlaces(layers.Layer):
    """Adds learned vectors for the row and the column of each cell: [B, C, H, W, D]."""

    def build(self, shape):
        _, _, rows, columns, width = shape
        self.row_of_cell, self.column_of_cell = np.indices((rows, columns))
        self.rows = self.add_weight(shape=(rows, 1, width), initializer=normal(0.1), name="rows")
        self.columns = self.add_weight(
            shape=(columns, width), initializer=normal(0.1), name="columns"
        )

    def call(self, x):
        # Looked up, not broadcast: so that XLA sums the gradient over the batch once, not twice.
        rows = ops.take(self.rows[:, 0], self.row_of_cell, axis=0)
        return x + (rows + ops.take(self.columns, self.column_of_cell, axis=0))


def _feature_vectors(obs, info, cfg):
    """A vector for the value of every feature: [B, C, F] -> [B, C, F, D]."""
    if info.nvec and all(info.nvec):
        return _embedding(int(np.sum(info.nvec)), cfg)(obs + _offsets(info))
    if info.nvec:
        discrete = are_categories(info)
        codes = ops.where(discrete, ops.cast(obs, "int32") + _offsets(info), 0)
        vectors = _embedding(int(np.sum(info.nvec)), cfg, name="embed_category")(codes)
        numbers = ops.where(discrete, 0.0, scaled(obs, info.obs_dtype))
        numbers = standardize(numbers, discrete, cfg)
        return _directions(numbers, cfg) + vectors * discrete[:, None].astype("float32")
    if info.obs_dtype == "uint8":
        return _embedding(256, cfg)(ops.cast(obs, "int32"))
    return _directions(as_numbers(obs, info, cfg), cfg)


def _offsets(info):
    """Where the values of each entry begin among those of all."""
    return np.concatenate([[0], np.cumsum(info.nvec)[:-1]]).astype("int32")


def _directions(numbers, cfg):
    """Each feature has a direction of its own, scaled by its value: [B, C, F] -> [B, C, F, D]."""
    directions = layers.EinsumDense(
        "bcf,fd->bcfd",
        (cfg.context, numbers.shape[2], cfg.width),
        name="embed_value",
        kernel_initializer=normal(0.3),
    )
    return directions(numbers)


def _embedding(count, cfg, name="embed_value"):
    start = normal(0.02)
    return layers.Embedding(count, cfg.width, name=name, embeddings_initializer=start)


def _embedded_time(history, cfg):
    """A learned vector for how much history each step has: [B, C] int -> [B, C, D]; -1: zeros."""
    history = ops.one_hot(history, cfg.context)
    return linear(history, cfg.width, name="embed_place", use_bias=False)


def _embedded_action(inputs, info, cfg):
    """A learned vector for the action before each step: [B, C, D]."""
    action = action_before(inputs, info)
    return linear(action, cfg.width, name="embed_action", use_bias=False)


def action_before(inputs, info):
    """1 at the outputs of the action before each step, all 0 where there is none: [B, C, A]."""
    action = inputs["prev_action"]
    if not info.parts:
        return ops.one_hot(action, info.num_actions)
    values = []
    rest = action
    for count in reversed(info.parts):
        values.append(ops.where(action < 0, -1, rest % count))  # -1 is one-hot nowhere
        rest = rest // count
    hot = [ops.one_hot(value, count) for value, count in zip(values[::-1], info.parts)]
    return ops.concatenate(hot, axis=-1)


def _embedded_mask(inputs, info, cfg):
    """Learned vectors for the legal actions of each step: [B, C, D]."""
    return linear(legal_of(inputs, info), cfg.width, name="embed_mask", use_bias=False)


class AddFeatureVectors(layers.Layer):
    """Adds a learned vector for every feature: [B, C, F, D] -> [B, C, F, D]."""

    def build(self, shape):
        self.embeddings = self.add_weight(
            shape=shape[-2:], initializer=normal(0.02), name="embeddings"
        )

    def call(self, x):
        return x + self.embeddings


# -------------------------------------------------------------------------------------------------
# Legal actions, which are the last entries of an observation if an environment tells them


def features_of(inputs, info):
    """Observations without the mask of legal actions: [B, C, F]."""
    return inputs["obs"][..., : info.features] if info.mask else inputs["obs"]


def legal_of(inputs, info):
    """Which actions are legal: [B, C, A] float32, 1 or 0."""
    return ops.cast(inputs["obs"][..., info.features :], "float32")
