"""Networks in Keras 3, smallest function first: a GPT-like decoder and a dense one; their heads.

Every network maps a window of steps to numbers for its last steps. Inputs, by name:
  obs [B, C, F]        uint8, int32 or float32, as the replay buffer keeps them
  first [B, C]         1 where an episode starts; a step never sees past the start of its episode
  prev_action [B, C]   the action before each step, -1 where there is none (with `prev_action`)
Output: [B, P, ...] of the last P steps; P is C with `every_step`, which is the decoder's default,
and 1 without, the dense network's.
"""

import numpy as np

from tfdqt.backend import keras
from tfdqt.games.config import check_network, check_policy_network
from tfdqt.games.features import as_numbers, count_numbers, hide_static

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
# What may be seen


def same_episode(first):
    """Which steps belong to one episode: first [B, C] -> [B, C, C] float, row sees column."""
    episode = ops.cumsum(ops.cast(first, "int32"), axis=1)  # [B, C]
    return ops.cast(ops.equal(episode[:, :, None], episode[:, None, :]), "float32")


def causal(length):
    """Which tokens may be seen: [1, T, T], 1 on and below the diagonal."""
    return np.tril(np.ones((1, length, length), "float32"))


def steps_seen(visible):
    """How many steps before it each step sees: visible [B, C, C] -> [B, C] int32.

    Counted from the first step it can see, so that a window cut by a reset looks like one that
    starts there.
    """
    return ops.cast(ops.sum(visible, axis=-1) - 1.0, "int32")


# -------------------------------------------------------------------------------------------------
# The decoder


def attention(x, visible, *, heads, name, scale):
    """Multi-head self-attention: x [B, T, D], visible [B, T, T] -> [B, T, D]."""
    _, length, width = x.shape
    qkv = linear(x, 3 * width, name=f"{name}_qkv")
    qkv = ops.reshape(qkv, (-1, length, 3, heads, width // heads))
    q = qkv[:, :, 0]  # [B, T, H, D/H]
    k = qkv[:, :, 1]
    v = qkv[:, :, 2]
    blocked = (1.0 - visible) * -1e9  # [B, T, T]
    shrink = (width // heads) ** -0.5
    if length == 1:
        mixed = v
    elif length <= 16:
        # A few steps: sums of products fuse into one loop, where many tiny matrix products would
        # each be a call.
        scores = ops.sum(q[:, :, None] * k[:, None], axis=-1) * shrink  # [B, T, S, H]
        scores = scores + blocked[..., None]
        mixed = ops.sum(ops.softmax(scores, axis=2)[..., None] * v[:, None], axis=2)
    else:
        scores = ops.einsum("bthd,bshd->bhts", q, k) * shrink + blocked[:, None]
        mixed = ops.einsum("bhts,bshd->bthd", ops.softmax(scores, axis=-1), v)
    return linear(ops.reshape(mixed, (-1, length, width)), width, name=f"{name}_out", scale=scale)


def mlp(x, *, name, scale):
    """The feed-forward part of a block: four times as wide, GELU, and back."""
    width = x.shape[-1]
    hidden = ops.gelu(linear(x, 4 * width, name=f"{name}_in"), approximate=True)
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


def block(x, visible, cfg, *, name):
    """One pre-norm Transformer block: [B, T, D] -> [B, T, D]."""
    scale = 0.02 / np.sqrt(2 * cfg.layers)  # as GPT-2: the residual stream keeps its size
    normed = norm(x, name=f"{name}_norm1")
    y = attention(normed, visible, heads=cfg.heads, name=f"{name}_attention", scale=scale)
    x = residual(x, y, name=f"{name}_gate1", gate=cfg.gru_gate)
    y = mlp(norm(x, name=f"{name}_norm2"), name=f"{name}_mlp", scale=scale)
    return residual(x, y, name=f"{name}_gate2", gate=cfg.gru_gate)


# -------------------------------------------------------------------------------------------------
# Tokens


def step_tokens(inputs, info, cfg):
    """One token a step: -> tokens [B, C, D], visible [B, C, C]."""
    numbers = as_numbers(hide_static(_features(inputs, info), info, cfg), info, cfg)
    scale = min(0.3, count_numbers(info, cfg) ** -0.5)
    x = linear(numbers, cfg.width, name="embed_obs", scale=scale)
    visible = same_episode(inputs["first"]) * causal(cfg.context)
    x = x + _embedded_time(visible, cfg)
    if cfg.prev_action:
        x = x + _embedded_action(inputs, info, cfg)
    if info.mask:
        x = x + _embedded_mask(inputs, info, cfg)
    return x, visible


def feature_tokens(inputs, info, cfg):
    """One token per feature of each step: -> tokens [B, C * F, D], visible [B, C * F, C * F]."""
    features = info.features
    x = _feature_vectors(hide_static(_features(inputs, info), info, cfg), info, cfg)  # [B, C, F, D]
    x = AddFeatureVectors(name="embed_feature")(x)
    episode = same_episode(inputs["first"])
    x = x + _embedded_time(episode * causal(cfg.context), cfg)[:, :, None]
    if cfg.prev_action:
        x = x + _embedded_action(inputs, info, cfg)[:, :, None]
    if info.mask:
        x = x + _embedded_mask(inputs, info, cfg)[:, :, None]
    tokens = cfg.context * features
    visible = ops.repeat(ops.repeat(episode, features, axis=1), features, axis=2)
    return ops.reshape(x, (-1, tokens, cfg.width)), visible * causal(tokens)


def _feature_vectors(obs, info, cfg):
    """A vector for the value of every feature: [B, C, F] -> [B, C, F, D]."""
    if info.nvec and all(info.nvec):
        return _embedding(int(np.sum(info.nvec)), cfg)(obs + _offsets(info))
    if info.nvec:
        discrete = np.array(info.nvec) > 0
        codes = ops.cast(ops.where(discrete, obs, ops.zeros_like(obs)), "int32") + _offsets(info)
        vectors = _embedding(int(np.sum(info.nvec)), cfg, name="embed_category")(codes)
        numbers = ops.where(discrete, ops.zeros_like(obs), obs)
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


def _embedded_time(visible, cfg):
    """A learned vector for how much history each step has: [B, C, C] -> [B, C, D]."""
    history = ops.one_hot(steps_seen(visible), cfg.context)
    return linear(history, cfg.width, name="embed_place", use_bias=False)


def _embedded_action(inputs, info, cfg):
    """A learned vector for the action before each step: [B, C, D]."""
    action = _action_before(inputs, info)
    return linear(action, cfg.width, name="embed_action", use_bias=False)


def _action_before(inputs, info):
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
    return linear(_legal(inputs, info), cfg.width, name="embed_mask", use_bias=False)


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


def _features(inputs, info):
    """Observations without the mask of legal actions: [B, C, F]."""
    return inputs["obs"][..., : info.features] if info.mask else inputs["obs"]


def _legal(inputs, info):
    """Which actions are legal: [B, C, A] float32, 1 or 0."""
    return ops.cast(inputs["obs"][..., info.features :], "float32")


# -------------------------------------------------------------------------------------------------
# Bodies


def input_layers(info, cfg):
    """The named inputs of a network for windows of `cfg.context` steps."""
    inputs = dict(
        obs=keras.Input((cfg.context, *info.obs_shape), dtype=info.obs_dtype, name="obs"),
        first=keras.Input((cfg.context,), dtype="int32", name="first"),
    )
    if cfg.prev_action:
        inputs["prev_action"] = keras.Input((cfg.context,), dtype="int32", name="prev_action")
    return inputs


def gpt_body(inputs, info, cfg, depth=None):
    """The decoder without a head, or its first `depth` blocks: the named inputs -> [B, C, D]."""
    x, visible = (step_tokens if cfg.tokens == "steps" else feature_tokens)(inputs, info, cfg)
    for layer in range(cfg.layers if depth is None else depth):
        x = block(x, visible, cfg, name=f"block{layer}")
    if cfg.tokens == "features":  # the last feature of a step has seen the whole step
        x = ops.reshape(x, (-1, cfg.context, info.features, cfg.width))[:, :, -1]
    if cfg.every_step is False:
        x = x[:, -1:]
    return norm(x, name="norm")


def dense_body(inputs, info, cfg):
    """The dense network over the same window, flattened: the named inputs -> [B, P, D].

    Of the last step, or with `every_step` of each. Steps before the episode's start, or the
    window's, are zeros.
    """
    steps = [as_numbers(hide_static(_features(inputs, info), info, cfg), info, cfg)]
    if cfg.prev_action:
        steps.append(_action_before(inputs, info))
    if info.mask:
        steps.append(_legal(inputs, info))
    x = ops.concatenate(steps, axis=-1)  # [B, C, F]
    visible = same_episode(inputs["first"])
    last = cfg.context - 1
    ends = range(cfg.context) if cfg.every_step else [last]
    histories = [
        ops.pad(
            x[:, : end + 1] * visible[:, end, : end + 1, None], ((0, 0), (last - end, 0), (0, 0))
        )
        for end in ends
    ]
    x = ops.stack(histories, axis=1)
    x = ops.reshape(x, (-1, len(ends), cfg.context * x.shape[-1]))
    for index, units in enumerate(cfg.hidden):
        x = _hidden_layer(x, units, cfg, name=f"hidden{index}")
    return x


def _hidden_layer(x, units, cfg, *, name):
    if not cfg.layer_norm:
        start = "he_uniform"
        return layers.Dense(units, activation="relu", kernel_initializer=start, name=name)(x)
    x = layers.Dense(units, kernel_initializer="he_uniform", name=name)(x)
    return ops.relu(norm(x, name=f"{name}_norm"))


def body(info, cfg):
    """The network that `cfg.network` names, without a head: -> (named inputs, [B, P, D])."""
    check_network(cfg)
    inputs = input_layers(info, cfg)
    return inputs, (gpt_body if cfg.network == "gpt" else dense_body)(inputs, info, cfg)


# -------------------------------------------------------------------------------------------------
# Whole networks


def q_head(x, info, cfg):
    """Values of the actions: [B, P, D] -> [B, P, A, N], the N quantiles of a return (1: its mean).

    A: `info.outputs`. `dueling`: a value plus advantages of mean 0; of actions of several parts
    each part has its share of the value.
    """
    count = max(1, cfg.quantiles)
    q = linear(x, info.outputs * count, name="q")
    q = ops.reshape(q, (-1, x.shape[1], info.outputs, count))
    if not cfg.dueling:
        return q
    value = linear(x, count, name="value")[:, :, None]
    if not info.parts:
        return value + q - ops.mean(q, axis=2, keepdims=True)
    ends = np.cumsum(info.parts)
    share = value / len(info.parts)
    each = [q[:, :, end - n : end] for end, n in zip(ends, info.parts)]
    return ops.concatenate(
        [share + part - ops.mean(part, axis=2, keepdims=True) for part in each], axis=2
    )


def build_q(info, cfg):
    """The Q-network of a NetworkConfig as a keras.Model: window -> [B, P, A, N].

    Raises UsageError for sizes that don't fit together.

    >>> build_q(env_info(gymnasium.make("CartPole-v1")), NetworkConfig(width=32)).summary()
    """
    inputs, x = body(info, cfg)
    return keras.Model(inputs, q_head(x, info, cfg), name=f"{cfg.network}_q")


def build_pi_v(info, cfg):
    """Policy and value on the same body: window -> [B, P, A + 1].

    The logits of the actions, then the state's value. Raises UsageError for sizes that don't fit
    together, and for quantiles, dueling heads or `every_step`, which are for Q.
    """
    check_policy_network(cfg)
    inputs, x = body(info, cfg)
    # Small at first: every action about as likely as every other.
    scale = 0.01 / np.sqrt(x.shape[-1])
    heads = [
        linear(x, info.outputs, name="policy", scale=scale),
        linear(x, 1, name="value"),
    ]
    return keras.Model(inputs, ops.concatenate(heads, axis=-1), name=f"{cfg.network}_pi_v")


# -------------------------------------------------------------------------------------------------
# Looking inside


def build_lens(model, info, cfg, depth):
    """What the Q-network `model` (`build_q` of a gpt) would say after its first `depth` blocks.

    A keras.Model with the weights of `model`: its final norm and head read the residual stream
    early ("logit lens", nostalgebraist, 2020); depth 0 reads the tokens.
    """
    inputs = input_layers(info, cfg)
    x = gpt_body(inputs, info, cfg, depth)
    lens = keras.Model(inputs, q_head(x, info, cfg), name=f"lens{depth}")
    for layer in lens.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    return lens


def build_attention_probe(model, cfg):
    """The queries, keys and values of every block of a gpt `model`: a keras.Model.

    Its outputs are [B, T, 3 D] for each of the blocks, T tokens of a window.
    """
    names = [f"block{layer}_attention_qkv" for layer in range(cfg.layers)]
    return keras.Model(model.input, [model.get_layer(name).output for name in names])
