"""Networks in Keras 3: a GPT-like decoder, smallest function first, and the dense baseline; with Q-values, or a policy and values.

Every network maps a window of steps to numbers for its last steps. Inputs, by name:
  obs [B, C, F]        uint8, int32 or float32, as the replay buffer keeps them
  first [B, C]         1 where an episode starts; a step never sees past the start of its episode
  prev_action [B, C]   the action before each step, -1 where there is none (only with `prev_action`)
Output: [B, P, ...] of the last P steps; P is C with `every_step`, which is the decoder's default, 1 without, the dense network's.
"""

import numpy as np

from tfdqt.backend import keras
from tfdqt.checks import check_network
from tfdqt.config import UsageError

layers, ops = keras.layers, keras.ops


def norm(x, *, name):
    """Layer normalisation over the last axis."""
    return layers.LayerNormalization(epsilon=1e-5, name=name)(x)


def dense(x, units, *, name, scale=0.02, use_bias=True):
    """A linear map of the last axis, with GPT-2's small normal start."""
    start = keras.initializers.RandomNormal(stddev=scale)
    return layers.Dense(units, use_bias=use_bias, kernel_initializer=start, name=name)(x)


def same_episode(first):
    """Which steps belong to one episode: first [B, C] -> [B, C, C] float, row sees column."""
    episode = ops.cumsum(ops.cast(first, "int32"), axis=1)  # [B, C]
    return ops.cast(ops.equal(episode[:, :, None], episode[:, None, :]), "float32")


def causal(length):
    """Which positions may be seen: [1, T, T], 1 on and below the diagonal."""
    return np.tril(np.ones((1, length, length), "float32"))


def attention(x, visible, *, heads, name, scale):
    """Multi-head self-attention: x [B, T, D], visible [B, T, T] -> [B, T, D]."""
    _, length, width = x.shape
    qkv = ops.reshape(dense(x, 3 * width, name=f"{name}_qkv"), (-1, length, 3, heads, width // heads))
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, T, H, D/H]
    blocked = (1.0 - visible) * -1e9  # [B, T, T]
    shrink = (width // heads) ** -0.5
    if length == 1:
        mixed = v
    elif length <= 16:
        # A few steps: sums of products fuse into one loop, where many tiny matrix products would each be a call.
        scores = ops.sum(q[:, :, None] * k[:, None], axis=-1) * shrink + blocked[..., None]  # [B, T, S, H]
        mixed = ops.sum(ops.softmax(scores, axis=2)[..., None] * v[:, None], axis=2)  # [B, T, H, D/H]
    else:
        scores = ops.einsum("bthd,bshd->bhts", q, k) * shrink + blocked[:, None]
        mixed = ops.einsum("bhts,bshd->bthd", ops.softmax(scores, axis=-1), v)
    return dense(ops.reshape(mixed, (-1, length, width)), width, name=f"{name}_out", scale=scale)


def mlp(x, *, name, scale):
    """The feed-forward part of a block: four times as wide, GELU, and back."""
    width = x.shape[-1]
    hidden = ops.gelu(dense(x, 4 * width, name=f"{name}_in"), approximate=True)
    return dense(hidden, width, name=f"{name}_out", scale=scale)


def residual(x, y, *, name, gate):
    """x + y, or a GRU gate that starts near x (GTrXL, Parisotto et al., 2020, equation 9)."""
    if not gate:
        return x + y
    width = x.shape[-1]
    y_rzh = dense(y, 3 * width, name=f"{name}_y", use_bias=False)
    x_rz = dense(x, 2 * width, name=f"{name}_x", use_bias=False)
    reset = ops.sigmoid(y_rzh[..., :width] + x_rz[..., :width])
    keep = layers.Dense(width, name=f"{name}_z", bias_initializer=keras.initializers.Constant(-2.0),
                        kernel_initializer="zeros")(y) + y_rzh[..., width:2 * width] + x_rz[..., width:]
    update = ops.sigmoid(keep)
    fresh = ops.tanh(y_rzh[..., 2 * width:] + dense(reset * x, width, name=f"{name}_h", use_bias=False))
    return (1.0 - update) * x + update * fresh


def block(x, visible, cfg, *, name):
    """One pre-norm Transformer block: [B, T, D] -> [B, T, D]."""
    scale = 0.02 / np.sqrt(2 * cfg.layers)  # as GPT-2: the residual stream keeps its size
    y = attention(norm(x, name=f"{name}_norm1"), visible, heads=cfg.heads, name=f"{name}_attention", scale=scale)
    x = residual(x, y, name=f"{name}_gate1", gate=cfg.gru_gate)
    y = mlp(norm(x, name=f"{name}_norm2"), name=f"{name}_mlp", scale=scale)
    return residual(x, y, name=f"{name}_gate2", gate=cfg.gru_gate)


class Changing(layers.Layer):
    """Features that change by less than `least` a step are multiplied by `scale`. Their `rate` of change is set once, from data; before
    that it is 1."""

    def __init__(self, least, scale=0.0, **kwargs):
        super().__init__(**kwargs)
        self.least, self.scale = least, scale

    def build(self, shape):
        self.rate = self.add_weight(shape=shape[-1:], initializer="ones", trainable=False, name="rate")

    @property
    def shown(self):
        return self.rate >= self.least

    def call(self, x):
        if not self.scale:
            return ops.where(self.shown, x, ops.zeros_like(x))
        x = ops.cast(x, "float32")
        return ops.where(self.shown, x, self.scale * x)


class Standardize(layers.Layer):
    """(x - mean) / scale, clipped to +-5. `mean` and `scale` are set once, from data; before that they are 0 and 1."""

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[-1:], initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones", trainable=False, name="scale")

    def call(self, x):
        return ops.clip((x - self.mean) / self.scale, -5.0, 5.0)


def scaled(obs, info, cfg):
    """Observations as numbers a network can read: [B, C, F] -> [B, C, F'] float32."""
    x = raw_scaled(obs, info, cfg)
    return Standardize(name="standardize")(x) if cfg.standardize else x


def raw_scaled(obs, info, cfg):
    """As `scaled`, before it is standardized."""
    if info.nvec:
        return ops.concatenate([ops.one_hot(obs[..., i], n) for i, n in enumerate(info.nvec)], axis=-1)
    if info.obs_dtype == "uint8":
        values = ops.cast(obs, "float32") / 128.0 - 1.0
        if not cfg.ram_bits:
            return values
        bits = ops.floor(ops.cast(obs, "float32")[..., None] / (2.0 ** np.arange(8, dtype="float32")))  # [B, C, F, 8]
        bits = bits - 2.0 * ops.floor(bits / 2.0)
        return ops.concatenate([values, ops.reshape(bits, (-1, obs.shape[1], 8 * obs.shape[2]))], axis=-1)
    return ops.cast(obs, "float32")


def step_tokens(inputs, info, cfg):
    """One token a step: -> tokens [B, C, D], visible [B, C, C]."""
    x = dense(scaled(inputs["obs"], info, cfg), cfg.width, name="embed_obs", scale=_fan_in_scale(info, cfg))
    visible = same_episode(inputs["first"]) * causal(cfg.context)
    # A step's place counts from the first step it can see, so a window cut by a reset looks like one that starts there.
    place = ops.cast(ops.sum(visible, axis=-1) - 1.0, "int32")  # [B, C]
    x = x + dense(ops.one_hot(place, cfg.context), cfg.width, name="embed_place", use_bias=False)
    if cfg.prev_action:
        action = ops.one_hot(inputs["prev_action"], info.num_actions)
        x = x + dense(action, cfg.width, name="embed_action", use_bias=False)
    return x, visible


class FeaturePlaces(layers.Layer):
    """Adds a learned vector for every feature: [B, C, F, D] -> [B, C, F, D]."""

    def build(self, shape):
        self.embeddings = self.add_weight(shape=shape[-2:], initializer=keras.initializers.RandomNormal(stddev=0.02), name="embeddings")

    def call(self, x):
        return x + self.embeddings


def feature_tokens(inputs, info, cfg):
    """One token per feature of each step: -> tokens [B, C * F, D], visible [B, C * F, C * F]."""
    obs, features = inputs["obs"], info.obs_shape[0]
    if info.nvec:
        offsets = np.concatenate([[0], np.cumsum(info.nvec)[:-1]]).astype("int32")
        x = layers.Embedding(int(np.sum(info.nvec)), cfg.width, name="embed_value",
                             embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02))(obs + offsets)
    elif info.obs_dtype == "uint8":
        x = layers.Embedding(256, cfg.width, name="embed_value",
                             embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02))(ops.cast(obs, "int32"))
    else:
        # Each feature has a direction of its own, scaled by the feature's value.
        x = layers.EinsumDense("bcf,fd->bcfd", (cfg.context, features, cfg.width), name="embed_value",
                               kernel_initializer=keras.initializers.RandomNormal(stddev=0.3))(scaled(obs, info, cfg))
    x = FeaturePlaces(name="embed_feature")(x)
    steps = same_episode(inputs["first"]) * causal(cfg.context)
    place = ops.cast(ops.sum(steps, axis=-1) - 1.0, "int32")
    x = x + dense(ops.one_hot(place, cfg.context), cfg.width, name="embed_place", use_bias=False)[:, :, None]
    if cfg.prev_action:
        action = ops.one_hot(inputs["prev_action"], info.num_actions)
        x = x + dense(action, cfg.width, name="embed_action", use_bias=False)[:, :, None]
    tokens = cfg.context * features
    visible = ops.repeat(ops.repeat(same_episode(inputs["first"]), features, axis=1), features, axis=2)
    return ops.reshape(x, (-1, tokens, cfg.width)), visible * causal(tokens)


def q_head(x, num_actions, cfg):
    """Values of the actions: [B, P, D] -> [B, P, A], or quantiles [B, P, A, N]; `dueling`: a value plus advantages of mean 0."""
    count = max(1, cfg.quantiles)
    q = ops.reshape(dense(x, num_actions * count, name="q"), (-1, x.shape[1], num_actions, count))
    if cfg.dueling:
        q = dense(x, count, name="value")[:, :, None] + q - ops.mean(q, axis=2, keepdims=True)
    return q if cfg.quantiles else q[..., 0]


def window_inputs(info, cfg):
    """The named inputs of a network for windows of `cfg.context` steps."""
    inputs = dict(obs=keras.Input((cfg.context, *info.obs_shape), dtype=info.obs_dtype, name="obs"),
                  first=keras.Input((cfg.context,), dtype="int32", name="first"))
    if cfg.prev_action:
        inputs["prev_action"] = keras.Input((cfg.context,), dtype="int32", name="prev_action")
    return inputs


def seen(inputs, info, cfg):
    """The named inputs, those features of an observation hidden that hardly change."""
    if not cfg.min_change:
        return inputs
    one_hot = info.obs_dtype == "int32" or info.obs_dtype == "uint8" and (cfg.ram_bits or cfg.network == "gpt" and cfg.tokens == "features")
    scale = 0.0 if one_hot else cfg.hidden_scale
    return dict(inputs, obs=Changing(cfg.min_change, scale, name="changing")(inputs["obs"]))


def gpt_body(inputs, info, cfg, depth=None):
    """The decoder without a head: the named inputs -> [B, C, D], what it makes of every step; of its first `depth` blocks if given."""
    x, visible = (step_tokens if cfg.tokens == "steps" else feature_tokens)(seen(inputs, info, cfg), info, cfg)
    for layer in range(cfg.layers if depth is None else depth):
        x = block(x, visible, cfg, name=f"block{layer}")
    if cfg.tokens == "features":  # the last feature of a step has seen the whole step
        x = ops.reshape(x, (-1, cfg.context, info.obs_shape[0], cfg.width))[:, :, -1]
    if cfg.every_step is False:
        x = x[:, -1:]
    return norm(x, name="norm")


def dense_body(inputs, info, cfg):
    """The dense baseline over the same window, flattened: the named inputs -> [B, P, D] of the last step, or with `every_step` of each.

    Steps before the episode's start, or the window's, are zeros.
    """
    steps = [scaled(seen(inputs, info, cfg)["obs"], info, cfg)]
    if cfg.prev_action:
        steps.append(ops.one_hot(inputs["prev_action"], info.num_actions))
    x = ops.concatenate(steps, axis=-1)  # [B, C, F]
    visible, before = same_episode(inputs["first"]), cfg.context - 1
    ends = range(cfg.context) if cfg.every_step else [before]
    x = ops.stack([ops.pad(x[:, :end + 1] * visible[:, end, :end + 1, None], ((0, 0), (before - end, 0), (0, 0))) for end in ends], axis=1)
    x = ops.reshape(x, (-1, len(ends), cfg.context * x.shape[-1]))
    for index, units in enumerate(cfg.hidden):
        x = layers.Dense(units, activation="relu", kernel_initializer="he_uniform", name=f"hidden{index}")(x)
    return x


def body(info, cfg):
    """The network that `cfg.network` names, without a head: -> (named inputs, [B, P, D])."""
    check_network(cfg)
    inputs = window_inputs(info, cfg)
    return inputs, (gpt_body if cfg.network == "gpt" else dense_body)(inputs, info, cfg)


def build_q(info, cfg):
    """The Q-network that `cfg` names as a keras.Model: window -> Q [B, P, A], or its quantiles.

    Raises UsageError for sizes that don't fit together.
    """
    inputs, x = body(info, cfg)
    return keras.Model(inputs, q_head(x, info.num_actions, cfg), name=f"{cfg.network}_q")


def build_lens(model, info, cfg, depth):
    """What the Q-network `model` (`build_q` of a gpt) would say after its first `depth` blocks: a keras.Model with its weights.

    The final norm and the head read the residual stream early ("logit lens", nostalgebraist, 2020); depth 0 reads the tokens.
    """
    inputs = window_inputs(info, cfg)
    lens = keras.Model(inputs, q_head(gpt_body(inputs, info, cfg, depth), info.num_actions, cfg), name=f"lens{depth}")
    for layer in lens.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    return lens


def build_pi_v(info, cfg):
    """Policy and value on the same body: window -> [B, P, A + 1], the logits of the actions, then the state's value.

    Raises UsageError for sizes that don't fit together, and for quantiles, dueling heads or `every_step`, which are for Q.
    """
    if cfg.quantiles or cfg.dueling or cfg.every_step is not None:
        raise UsageError("--quantiles, --dueling and --every-step are for Q-values, which a policy has none of; leave them out.")
    inputs, x = body(info, cfg)
    # Small at first: every action about as likely as every other.
    heads = [dense(x, info.num_actions, name="policy", scale=0.01 / np.sqrt(x.shape[-1])), dense(x, 1, name="value")]
    return keras.Model(inputs, ops.concatenate(heads, axis=-1), name=f"{cfg.network}_pi_v")


def _fan_in_scale(info, cfg):
    size = sum(info.nvec) or info.obs_shape[0] * (9 if info.obs_dtype == "uint8" and cfg.ram_bits else 1)
    return min(0.3, size ** -0.5)
