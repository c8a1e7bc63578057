"""Parts of a Transformer in Keras 3: norms, linear maps, attention, blocks."""

import numpy as np

from tfdqt.backend import keras

layers = keras.layers
ops = keras.ops


def norm(x, *, name):
    """Layer normalisation over the last axis."""
    return layers.LayerNormalization(epsilon=1e-5, name=name)(x)


def normal(stddev):
    """Random weights of mean 0 to start from."""
    return keras.initializers.RandomNormal(stddev=stddev)


def linear(x, units, *, name, scale=0.02, use_bias=True):
    """A linear map of the last axis, with GPT-2's small normal start."""
    return layers.Dense(units, use_bias=use_bias, kernel_initializer=normal(scale), name=name)(x)


# -------------------------------------------------------------------------------------------------
# The decoder


class AddPlaceBias(layers.Layer):
    """Adds to scores [B, H, T, T] a learned number a head for how two tokens lie to each other.

    Args:
      relation: [T, T] int, the number of the relation of each two tokens; they share what is
        learned with all others of that relation (Shaw et al., 2018; as a bias: Raffel et al.,
        2020).
    """

    def __init__(self, relation, **kwargs):
        super().__init__(**kwargs)
        self.relation = relation

    def build(self, shape):
        heads = shape[1]
        count = int(self.relation.max()) + 1
        self.bias = self.add_weight(shape=(heads, count), initializer="zeros", name="bias")
        # Into the flat weights: so that XLA lays the result out as scores are, not heads last.
        self.index = self.relation[None] + count * np.arange(heads, dtype="int32")[:, None, None]

    def compute_output_shape(self, shape):
        return shape

    def call(self, scores):
        return scores + ops.take(ops.reshape(self.bias, -1), self.index, axis=0)


def attention(x, visible, *, heads, name, scale, relation=None):
    """Multi-head self-attention: x [B, T, D], visible [B, T, T] -> [B, T, D].

    visible: None if every token sees all; without a `relation`, never a later one. relation: see
    AddPlaceBias; None: no bias.
    """
    _, length, width = x.shape
    qkv = linear(x, 3 * width, name=f"{name}_qkv")
    qkv = ops.reshape(qkv, (-1, length, 3, heads, width // heads))
    q = qkv[:, :, 0]  # [B, T, H, D/H]
    k = qkv[:, :, 1]
    v = qkv[:, :, 2]
    shrink = (width // heads) ** -0.5
    if relation is not None:
        add_bias = AddPlaceBias(relation, name=f"{name}_bias")
        mixed = _attend(q * shrink, k, v, visible, add_bias)
    elif length == 1:
        mixed = v
    elif length <= 16 and visible is not None:
        # A few steps: sums of products fuse into one loop, where many tiny matrix products would
        # each be a call.
        scores = ops.sum(q[:, :, None] * k[:, None], axis=-1) * shrink  # [B, T, S, H]
        scores = scores + _blocked(visible)[..., None]
        mixed = ops.sum(ops.softmax(scores, axis=2)[..., None] * v[:, None], axis=2)
    else:
        mixed = _attend_backwards(q * shrink, k, v, visible)
    return linear(ops.reshape(mixed, (-1, length, width)), width, name=f"{name}_out", scale=scale)


def _attend(q, k, v, visible, add_bias=None):
    """Attention of many tokens: q [B, T, H, D/H], k and v [B, S, H, D/H] -> [B, T, H, D/H].

    The weights are divided by their sum behind the product with the values, so that the gradient
    needs no sum over the keys, which XLA is slow at on a CPU.
    """
    scores = ops.einsum("bthd,bshd->bhts", q, k)
    if visible is not None:
        scores = scores + _blocked(visible)[:, None]
    if add_bias is not None:
        scores = add_bias(scores)
    weights = ops.exp(scores - ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True)))
    mixed = ops.einsum("bhts,bshd->bhtd", weights, v) / ops.sum(weights, axis=-1, keepdims=True)
    return ops.swapaxes(mixed, 1, 2)


def _attend_backwards(q, k, v, visible):
    """The same of tokens that see no later one, unless they see all (`visible` None).

    Many queries are taken in parts, each with the keys up to its own end: with four parts that is
    five eighths of the products. Smaller parts were slower on a CPU.
    """
    length = q.shape[1]
    parts = 1 if visible is None else min(4, max(1, length // 64))
    size = -(-length // parts)
    mixed = []
    for begin in range(0, length, size):
        end = min(length, begin + size)
        seen = None if visible is None else visible[:, begin:end, :end]
        mixed.append(_attend(q[:, begin:end], k[:, :end], v[:, :end], seen))
    return ops.concatenate(mixed, axis=1)


def _blocked(visible):
    return (1.0 - visible) * -1e9  # [B, T, T]


def mlp(x, *, name, scale, units=None):
    """The feed-forward part of a block: to `units` (None: four times as wide), GELU, and back."""
    width = x.shape[-1]
    hidden = ops.gelu(linear(x, units or 4 * width, name=f"{name}_in"), approximate=True)
    return linear(hidden, width, name=f"{name}_out", scale=scale)


def residual(x, y, *, name, gate):
    """x + y, or a GRU gate that starts near x (GTrXL, Parisotto et al., 2020, equation 9)."""
    if not gate:
        return x + y
    width = x.shape[-1]
    y_rzh = linear(y, 3 * width, name=f"{name}_y", use_bias=False)
    x_rz = linear(x, 2 * width, name=f"{name}_x", use_bias=False)
    reset = ops.sigmoid(y_rzh[..., :width] + x_rz[..., :width])
    bias = layers.Dense(
        width,
        name=f"{name}_z",
        bias_initializer=keras.initializers.Constant(-2.0),
        kernel_initializer="zeros",
    )
    keep = bias(y) + y_rzh[..., width : 2 * width] + x_rz[..., width:]
    update = ops.sigmoid(keep)
    reset_x = linear(reset * x, width, name=f"{name}_h", use_bias=False)
    candidate = ops.tanh(y_rzh[..., 2 * width :] + reset_x)
    return (1.0 - update) * x + update * candidate


def block(x, visible, cfg, *, name, relation=None):
    """One pre-norm Transformer block: [B, T, D] -> [B, T, D]."""
    # As GPT-2: the residual stream keeps its size, however often something is added to it.
    scale = 0.02 / np.sqrt(2 * cfg.layers * cfg.loops)
    y = attention(
        norm(x, name=f"{name}_norm1"),
        visible,
        heads=cfg.heads,
        name=f"{name}_attention",
        scale=scale,
        relation=relation,
    )
    x = residual(x, y, name=f"{name}_gate1", gate=cfg.gru_gate)
    y = mlp(norm(x, name=f"{name}_norm2"), name=f"{name}_mlp", scale=scale)
    return residual(x, y, name=f"{name}_gate2", gate=cfg.gru_gate)


def shared_block(shape, visible_shape, cfg, *, name, relation=None):
    """A block as a keras.Model of its own, to be called many times with the same weights.

    It takes [x] or [x, visible], of the shapes given, without the batch.
    """
    x = keras.Input(shape)
    visible = None if visible_shape is None else keras.Input(visible_shape)
    inputs = [x] if visible is None else [x, visible]
    return keras.Model(inputs, block(x, visible, cfg, name=name, relation=relation), name=name)


# -------------------------------------------------------------------------------------------------
# Loops


class LoopLimit(layers.Layer):
    """Lets a looped network stop early: after `loop_limit` loops, a weight that is not learned.

    `flat` knows such a layer by that attribute.
    """

    def __init__(self, loops, **kwargs):
        super().__init__(**kwargs)
        self.loops = loops

    def build(self, shape):
        start = keras.initializers.Constant(self.loops)
        self.loop_limit = self.add_weight(
            shape=(), initializer=start, trainable=False, name="loop_limit"
        )

    def call(self, before, after, loop):
        return ops.where(loop < self.loop_limit, after, before)


def decode(x, visible, cfg, *, relation=None, depth=None, after=None):
    """The blocks in their order, `cfg.loops` times: tokens [B, T, D] -> [B, T, D].

    From the second loop on the tokens are added again before the first block, so that no loop must
    carry them along. depth: only so many blocks are run, counted over all loops. after(x, done)
    -> x [B, T, D]: what looks at the residual stream after `done` blocks, or changes it.
    """
    depth = cfg.layers * cfg.loops if depth is None else depth
    after = after or _unchanged
    if cfg.loops == 1 and not cfg.loops_random:
        for layer in range(depth):
            x = block(x, visible, cfg, name=f"block{layer}", relation=relation)
            x = after(x, layer + 1)
        return x
    shapes = (x.shape[1:], None if visible is None else visible.shape[1:])
    blocks = [
        shared_block(*shapes, cfg, name=f"block{layer}", relation=relation)
        for layer in range(cfg.layers)
    ]
    limit = LoopLimit(cfg.loops, name="loops") if cfg.loops_random else None
    tokens = x
    for first in range(0, depth, cfg.layers):
        before = x
        if first:
            x = x + tokens
        last = min(first + cfg.layers, depth)
        for done, one in enumerate(blocks[: depth - first], first + 1):
            x = one([x] if visible is None else [x, visible])
            if limit and done == last:
                x = limit(before, x, loop=first // cfg.layers)
            x = after(x, done)
    return x


def _unchanged(x, done):
    return x
