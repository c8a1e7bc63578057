"""Parts of a Transformer in Keras 3: norms, linear maps, attention, blocks."""

from typing import NamedTuple

import numpy as np

from tfdqt.backend import (
    are_gradients_quick,
    keras,
    optimization_barrier,
    quick_gradients,
    tf,
    traced,
)

layers = keras.layers
ops = keras.ops

FEW_STEPS = 12  # up to which attention is written as sums of products


def norm(x, *, name):
    """Layer normalisation over the last axis."""
    return layers.LayerNormalization(epsilon=1e-5, name=name)(x)


def normal(stddev):
    """Random weights of mean 0 to start from."""
    return keras.initializers.RandomNormal(stddev=stddev)


@keras.saving.register_keras_serializable("tfdqt")
class Linear(layers.Dense):
    """A Dense; by `quick_gradients` the gradient of a kernel that narrows comes the faster way.

    Elsewhere it is Keras' own, so that it is saved, exported and differentiated twice as that is.
    """

    def call(self, x):
        if not are_gradients_quick() or self.kernel.shape[0] <= self.kernel.shape[1]:
            return super().call(x)
        rows = ops.reshape(x, (-1, x.shape[-1]))
        y = _narrowed(rows, tf.convert_to_tensor(self.kernel))
        if self.use_bias:
            y = y + self.bias
        return self.activation(ops.reshape(y, (-1, *x.shape[1:-1], self.units)))


@tf.custom_gradient
def _narrowed(x, kernel):
    """The product of x [N, I] and a kernel [I, O]: [N, O]."""

    def gradient(dy):
        return tf.matmul(dy, kernel, transpose_b=True), _kernel_gradient(x, dy)

    return tf.matmul(x, kernel), gradient


@traced(jit_compile=True)
def _kernel_gradient(x, dy):
    """x [N, I] and the gradient dy [N, O] of the product -> that of the kernel, [I, O].

    With I greater than O XLA on a CPU takes 1.7 times as long for it as for its transpose, the same
    bits, and turns a transpose back unless something stands between.
    """
    turned = tf.matmul(dy, x, transpose_a=True)
    return tf.transpose(optimization_barrier(turned))


def linear(x, units, *, name, scale=0.02, use_bias=True):
    """A linear map of the last axis, with GPT-2's small normal start."""
    return Linear(units, use_bias=use_bias, kernel_initializer=normal(scale), name=name)(x)


# -------------------------------------------------------------------------------------------------
# The decoder


class Sight(NamedTuple):
    """What the tokens [B, T, D] of a decoder see."""

    visible: object = None  # [B, T, S] float, 1 where a token sees another; None: each sees all
    relation: object = None  # [T, S] int, how two lie to each other, see AddPlaceBias; or none
    relations: int = 0  # how many numbers of a relation there are
    backwards: bool = False  # whether no token sees a later one
    kept: object = None  # Kept, where S tokens are seen that came before


class Kept:
    """Keys and values of the steps before, of one block after another, joined by the new ones.

    Args:
      past: [B, L, 2, C, H, D/H], those of L blocks for C steps; None: there are none, and the new
        ones are C.
      here: [B, C] bool, which of the C a new step is; None with no past.

    `joined` lists what each block has then, [B, 2, C, H, D/H].
    """

    def __init__(self, past=None, here=None):
        self.past = past
        self.here = here
        self.joined = []

    def join(self, k, v):
        """What a block's attention sees: keys and values [B, T, H, D/H] -> the same of C steps."""
        new = ops.stack([k, v], axis=1)
        if self.past is not None:
            here = self.here[:, None, :, None, None]
            new = ops.where(here, new, self.past[:, len(self.joined)])
        self.joined.append(new)
        return new[:, 0], new[:, 1]


class EpisodeFirst(layers.Layer):
    """What was kept of windows [B, 2, C, H, D/H], the steps of their last episode in front.

    It is called with place [B] int32 too, which step of its episode, from 0, a window's last is.
    """

    def compute_output_shape(self, kept_shape, place_shape):
        return kept_shape

    def call(self, kept, place):
        last = kept.shape[2] - 1
        before = last - place  # steps of the window before the episode
        order = ops.minimum(ops.arange(last + 1, dtype="int32") + before[:, None], last)
        return tf.gather(kept, order, axis=2, batch_dims=1)


def _of_last(sight, count):
    """The Sight of the last tokens alone, so many of them."""
    if sight.visible is not None:
        sight = sight._replace(visible=sight.visible[:, -count:])
    if sight.relation is not None:
        sight = sight._replace(relation=sight.relation[..., -count:, :])
    return sight


class AddPlaceBias(layers.Layer):
    """Adds to scores [B, H, T, S] a learned number a head for how two tokens lie to each other.

    It is called with the relation of each two tokens, [T, S] numpy or [B, T, S], int from 0 to
    below `relations`; they share what is learned with all others of that relation (Shaw et al.,
    2018; as a bias: Raffel et al., 2020).
    """

    def __init__(self, relations, **kwargs):
        super().__init__(**kwargs)
        self.relations = relations

    def build(self, shape, *_):
        self.heads = shape[1]
        self.bias = self.add_weight(
            shape=(self.heads, self.relations), initializer="zeros", name="bias"
        )

    def compute_output_shape(self, shape, *_):
        return shape

    def call(self, scores, relation):
        # Into the flat weights: so that XLA lays the result out as scores are, not heads last.
        first = self.relations * np.arange(self.heads, dtype="int32")[:, None, None]
        index = relation[..., None, :, :] + first
        return scores + ops.take(ops.reshape(self.bias, -1), index, axis=0)


def attention(x, sight, *, heads, name, scale, last=None):
    """Multi-head self-attention: x [B, T, D], what its tokens see -> [B, T, D].

    last: of so many of the last tokens alone, [B, last, D].
    """
    _, length, width = x.shape
    qkv = linear(x, 3 * width, name=f"{name}_qkv")
    qkv = ops.reshape(qkv, (-1, length, 3, heads, width // heads))
    if last is not None:
        length = last
        sight = _of_last(sight, last)
    visible = sight.visible
    q = qkv[:, -length:, 0]  # [B, T, H, D/H]
    k = qkv[:, :, 1]
    v = qkv[:, :, 2]
    if sight.kept is not None:
        k, v = sight.kept.join(k, v)
    shrink = (width // heads) ** -0.5
    if sight.relation is not None:
        add_bias = AddPlaceBias(sight.relations, name=f"{name}_bias")
        mixed = _attend(q * shrink, k, v, visible, lambda x: add_bias(x, sight.relation))
    elif k.shape[1] == 1:
        mixed = v
    elif visible is not None and (length == 1 or k.shape[1] <= FEW_STEPS):
        mixed = _attend_few(q, k, v, visible, shrink)
    elif sight.backwards and length == k.shape[1]:
        mixed = _attend_backwards(q * shrink, k, v, visible)
    else:
        mixed = _attend(q * shrink, k, v, visible)
    return linear(ops.reshape(mixed, (-1, length, width)), width, name=f"{name}_out", scale=scale)


def _attend_few(q, k, v, visible, shrink):
    """Attention of a few tokens: q [B, T, H, D/H], k and v [B, S, H, D/H] -> [B, T, H, D/H].

    Sums of products fuse into one loop, where many tiny matrix products would each be a call.
    """
    scores = ops.sum(q[:, :, None] * k[:, None], axis=-1) * shrink  # [B, T, S, H]
    scores = scores + unseen(visible)[..., None]
    # Swapped here: how softmax swaps axes itself XLA does not know in a branch of random loops.
    weights = ops.swapaxes(ops.softmax(ops.swapaxes(scores, 2, 3)), 2, 3)
    return ops.sum(weights[..., None] * v[:, None], axis=2)


def _attend(q, k, v, visible, add_bias=None):
    """The same of many tokens.

    The weights are divided by their sum behind the product with the values, so that the gradient
    needs no sum over the keys, which XLA is slow at on a CPU.
    """
    scores = ops.einsum("bthd,bshd->bhts", q, k)
    if visible is not None:
        scores = scores + unseen(visible)[:, None]
    if add_bias is not None:
        scores = add_bias(scores)
    weights = ops.exp(scores - ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True)))
    mixed = ops.einsum("bhts,bshd->bhtd", weights, v) / ops.sum(weights, axis=-1, keepdims=True)
    return ops.swapaxes(mixed, 1, 2)


def _attend_backwards(q, k, v, visible):
    """The same of tokens that see no later one.

    Many queries are taken in parts, each with the keys up to its own end: with four parts that is
    five eighths of the products. Smaller parts were slower on a CPU.
    """
    length = q.shape[1]
    parts = min(4, max(1, length // 64))
    size = -(-length // parts)
    mixed = []
    for begin in range(0, length, size):
        end = min(length, begin + size)
        seen = visible[:, begin:end, :end]
        mixed.append(_attend(q[:, begin:end], k[:, :end], v[:, :end], seen))
    return ops.concatenate(mixed, axis=1)


def unseen(visible):
    """What is added to scores so that only what is visible counts: 0 or about -1e9 for 1 or 0.

    By a division, which XLA does once. What is cheaper it does again for each head, and with it all
    that `visible` is made of: at 50 steps that took as long as the products of attention.
    """
    return 1.0 - 1.0 / ops.maximum(visible, 1e-9)


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


def block(x, sight, cfg, *, name, last=None):
    """A pre-norm Transformer block: [B, T, D] -> [B, T, D], or of the last tokens [B, last, D]."""
    # As GPT-2: the residual stream keeps its size, however often something is added to it.
    scale = 0.02 / np.sqrt(2 * cfg.layers * cfg.loops)
    y = attention(
        norm(x, name=f"{name}_norm1"),
        sight,
        heads=cfg.heads,
        name=f"{name}_attention",
        scale=scale,
        last=last,
    )
    x = residual(_last_tokens(x, last), y, name=f"{name}_gate1", gate=cfg.gru_gate)
    y = mlp(norm(x, name=f"{name}_norm2"), name=f"{name}_mlp", scale=scale)
    return residual(x, y, name=f"{name}_gate2", gate=cfg.gru_gate)


def shared_block(shape, sight, cfg, *, name):
    """A block as a keras.Model of its own, to be called many times with the same weights.

    It takes [x], of the shape given, without the batch, or [x, visible], as in `sight`.
    """
    x = keras.Input(shape)
    if sight.visible is None:
        return keras.Model([x], block(x, sight, cfg, name=name), name=name)
    visible = keras.Input(sight.visible.shape[1:])
    y = block(x, sight._replace(visible=visible), cfg, name=name)
    return keras.Model([x, visible], y, name=name)


def run_block(block, x, tokens, visible):
    """x [B, T, D] after a block of `shared_block`; tokens [B, T, D] or None are added before it."""
    if tokens is not None:
        x = x + tokens
    return block([x] if visible is None else [x, visible])


# -------------------------------------------------------------------------------------------------
# Loops


class LoopLimit(layers.Layer):
    """Shared blocks that are run in the first `loop_limit` loops alone, a weight not learned.

    What is not run costs nothing. `flat` knows such a layer by that attribute.
    """

    def __init__(self, blocks, loops, **kwargs):
        super().__init__(**kwargs)
        self.blocks = blocks
        self.loops = loops

    def build(self, shape):
        start = keras.initializers.Constant(self.loops)
        self.loop_limit = self.add_weight(
            shape=(), initializer=start, trainable=False, name="loop_limit"
        )

    def call(self, x, tokens=None, visible=None, *, index, loop):
        """As `run_block`, of block `index` in loop `loop`; x as it is if there is no such loop."""
        # In a loop of updates TensorFlow does not find what a gradient of ours keeps of a branch.
        with quick_gradients(on=False):
            return ops.cond(
                loop < self.loop_limit,
                lambda: run_block(self.blocks[index], x, tokens, visible),
                lambda: x,
            )


def decode(x, sight, cfg, *, depth=None, after=None, last=None):
    """The blocks in their order, `cfg.loops` times: tokens [B, T, D] -> [B, T, D].

    sight: the tokens' Sight; a Kept there is for networks that don't loop. From the second loop on
    the tokens are added again before the first block, so that no loop must carry them along. depth:
    only so many blocks are run, counted over all loops. after(x, done) -> x [B, T, D]: what looks
    at the residual stream after `done` blocks, or changes it. last: how many of the last tokens are
    wanted, [B, last, D]; unless blocks are shared or `after` looks, the last is run for these
    alone.
    """
    depth = cfg.layers * cfg.loops if depth is None else depth
    only = last if after is None else None
    after = after or _unchanged
    if cfg.loops == 1 and not cfg.loops_random:
        for layer in range(depth):
            ends = layer == depth - 1
            x = block(x, sight, cfg, name=f"block{layer}", last=only if ends else None)
            x = after(x, layer + 1)
        return _last_tokens(x, last)
    blocks = [
        shared_block(x.shape[1:], sight, cfg, name=f"block{layer}") for layer in range(cfg.layers)
    ]
    limit = LoopLimit(blocks, cfg.loops, name="loops") if cfg.loops_random else None
    tokens = x
    for done in range(depth):
        loop, index = divmod(done, cfg.layers)
        again = tokens if loop and not index else None
        if limit:
            x = limit(x, again, sight.visible, index=index, loop=loop)
        else:
            x = run_block(blocks[index], x, again, sight.visible)
        x = after(x, done + 1)
    return _last_tokens(x, last)


def _last_tokens(x, count):
    return x if count is None else x[:, -count:]


def _unchanged(x, done):
    return x
