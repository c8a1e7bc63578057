"""Decoders that are built as LLaMA is: LLaMA 2 and 3, Qwen 2 and 3, and Gemma.

Root mean square norms before each part, rotary places, grouped queries and a gated feed-forward
part (Touvron et al., 2023). transformers has them for PyTorch only. Here they are tf_keras
(Keras 2) models, as the encoders that transformers has for TensorFlow: TF-MOT prunes their Dense
layers, and a folder of Hugging Face is read and written without PyTorch.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfdqt.backend import quiet, tf
from tfdqt.errors import UsageError
from tfdqt.text.weights import check_left_over

with quiet():
    import tf_keras
    from transformers.modeling_tf_outputs import TFBaseModelOutputWithPast

KINDS = ("llama", "qwen2", "qwen3", "gemma")  # `model_type` of a config
HIDDEN = -1e9  # what is added to the score of a token that may not be seen
COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


class Traits(NamedTuple):
    """In what the kinds differ, by their configs."""

    heads: int
    kv_heads: int  # of keys and values, each shared by heads / kv_heads queries
    head_dim: int
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    normed_heads: bool  # whether queries and keys are normalised (Qwen 3)
    activation: str
    norm_offset: float  # what is added to the weights of a norm (Gemma: 1)
    scale: float  # of the embeddings (Gemma: the root of the width)


def traits_of(config):
    """The Traits of a config. Raises UsageError for what is not known here."""
    _check_sizes(config)
    kind = config.model_type
    gemma = kind == "gemma"
    heads = config.num_attention_heads
    if getattr(config, "use_sliding_window", False) and getattr(config, "sliding_window", None):
        raise UsageError(
            f"This {kind} lets some layers see a window alone (use_sliding_window), which is not "
            "known here; give a model without it."
        )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if gemma and not getattr(config, "hidden_activation", None):
        activation = "gelu_pytorch_tanh"  # what the first configs call gelu was trained as
    if activation not in ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh"):
        raise UsageError(f"The activation {activation} is not known here; give another encoder.")
    bias = bool(getattr(config, "attention_bias", False))
    return Traits(
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        normed_heads=kind == "qwen3",
        activation=activation,
        norm_offset=1.0 if gemma else 0.0,
        scale=math.sqrt(config.hidden_size) if gemma else 1.0,
    )


def _check_sizes(config):
    """Raise UsageError for what must be a number above 0 and is none."""
    kinds = dict.fromkeys(COUNTS, int)
    kinds["rms_norm_eps"] = (int, float)
    if getattr(config, "rope_theta", None) is not None:  # which has a default
        kinds["rope_theta"] = (int, float)
    for name, kind in kinds.items():
        value = getattr(config, name, None)
        if not isinstance(value, kind) or value <= 0:
            raise UsageError(
                f"The config of this {config.model_type} has {name} {value!r}; give a number above "
                "0, or fetch it again."
            )


def frequencies(config, head_dim):
    """By how much the angle of each pair of a head's numbers grows a token: [head_dim / 2].

    Raises UsageError for a scaling of places that is not known here.
    """
    theta = getattr(config, "rope_theta", None) or 10_000.0
    turns = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        turns = turns / scaling["factor"]
    elif kind == "llama3":
        turns = _stretched(turns, scaling)
    elif kind != "default":
        raise UsageError(
            f"The rotary places of this encoder are scaled by {kind}, which is not known here; "
            "default, linear and llama3 are."
        )
    return turns.astype(np.float32)


def _stretched(turns, scaling):
    """LLaMA 3.1's: slow turns are slowed by `factor`, fast ones kept, those between blended."""
    factor = scaling["factor"]
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    # How often each turns in the context that the model was first trained with.
    rounds = scaling["original_max_position_embeddings"] * turns / (2 * math.pi)
    kept = np.clip((rounds - low) / (high - low), 0.0, 1.0)
    return kept * turns + (1 - kept) * turns / factor


class Norm(tf_keras.layers.Layer):
    """Root mean square layer normalisation (Zhang and Sennrich, 2019)."""

    def __init__(self, size, epsilon, offset, name):
        super().__init__(name=name)
        start = "zeros" if offset else "ones"
        self.scale = self.add_weight("scale", (size,), initializer=start)
        self.epsilon = epsilon
        self.offset = offset

    def call(self, x):
        mean = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        return x * tf.math.rsqrt(mean + self.epsilon) * (self.offset + self.scale)


def _dense(inputs, units, bias, name):
    start = tf_keras.initializers.RandomNormal(stddev=0.02)
    layer = tf_keras.layers.Dense(units, use_bias=bias, kernel_initializer=start, name=name)
    layer.build((None, inputs))
    return layer


def _turn(x, angles):
    """Turn the pairs (i, i + d / 2) of x [B, T, H, d] by angles [B, T, d / 2]."""
    cos = tf.cos(angles)[:, :, None]
    sin = tf.sin(angles)[:, :, None]
    one, two = tf.split(x, 2, axis=-1)
    return tf.concat([one * cos - two * sin, two * cos + one * sin], axis=-1)


class Block(tf_keras.layers.Layer):
    """Attention and a gated feed-forward part, each added to what it reads."""

    def __init__(self, config, traits, name):
        super().__init__(name=name)
        self.traits = traits
        width = config.hidden_size
        inner = config.intermediate_size
        t = traits
        norm = dict(epsilon=config.rms_norm_eps, offset=t.norm_offset)
        self.input_layernorm = Norm(width, name="input_layernorm", **norm)
        self.q_proj = _dense(width, t.heads * t.head_dim, t.qkv_bias, "q_proj")
        self.k_proj = _dense(width, t.kv_heads * t.head_dim, t.qkv_bias, "k_proj")
        self.v_proj = _dense(width, t.kv_heads * t.head_dim, t.qkv_bias, "v_proj")
        self.o_proj = _dense(t.heads * t.head_dim, width, t.out_bias, "o_proj")
        if t.normed_heads:
            self.q_norm = Norm(t.head_dim, name="q_norm", **norm)
            self.k_norm = Norm(t.head_dim, name="k_norm", **norm)
        self.post_attention_layernorm = Norm(width, name="post_attention_layernorm", **norm)
        self.gate_proj = _dense(width, inner, t.mlp_bias, "gate_proj")
        self.up_proj = _dense(width, inner, t.mlp_bias, "up_proj")
        self.down_proj = _dense(inner, width, t.mlp_bias, "down_proj")

    def call(self, x, angles, hidden, past=None):
        """x [B, T, D], angles [B, T, d / 2], hidden [B, 1, 1, T, S] -> (x, keys and values)."""
        attended, kept = self._attend(self.input_layernorm(x), angles, hidden, past)
        x += attended
        y = self.post_attention_layernorm(x)
        y = self._activate(self.gate_proj(y)) * self.up_proj(y)
        return x + self.down_proj(y), kept

    def parts(self):
        """Each layer by its name in Hugging Face's files: dict."""
        attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
        if self.traits.normed_heads:
            attention += ["q_norm", "k_norm"]
        names = [f"self_attn.{name}" for name in attention]
        names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        names += ["input_layernorm", "post_attention_layernorm"]
        return {name: getattr(self, name.rpartition(".")[2]) for name in names}

    def _activate(self, x):
        name = self.traits.activation
        if name in ("silu", "swish"):
            return tf.nn.silu(x)
        return tf.nn.gelu(x, approximate=name != "gelu")

    def _attend(self, x, angles, hidden, past):
        t = self.traits
        batch, length = tf.shape(x)[0], tf.shape(x)[1]

        def heads_of(dense, count):
            return tf.reshape(dense(x), (batch, length, count, t.head_dim))

        q = heads_of(self.q_proj, t.heads)
        k = heads_of(self.k_proj, t.kv_heads)
        v = heads_of(self.v_proj, t.kv_heads)
        if t.normed_heads:
            q = self.q_norm(q)
            k = self.k_norm(k)
        q = _turn(q, angles) * t.head_dim**-0.5
        # [B, heads, T, d], as transformers keeps them
        k = tf.transpose(_turn(k, angles), (0, 2, 1, 3))
        v = tf.transpose(v, (0, 2, 1, 3))
        if past is not None:
            k = tf.concat([past[0], k], axis=2)
            v = tf.concat([past[1], v], axis=2)
        group = t.heads // t.kv_heads
        q = tf.transpose(q, (0, 2, 1, 3))
        q = tf.reshape(q, (batch, t.kv_heads, group, length, t.head_dim))
        scores = tf.matmul(q, k[:, :, None], transpose_b=True) + hidden
        out = tf.matmul(tf.nn.softmax(scores), v[:, :, None])
        out = tf.reshape(out, (batch, t.heads, length, t.head_dim))
        out = tf.reshape(tf.transpose(out, (0, 2, 1, 3)), (batch, length, t.heads * t.head_dim))
        return self.o_proj(out), (k, v)


class Decoder(tf_keras.Model):
    """A decoder of one of KINDS, by its transformers config; fresh weights.

    Call, as transformers' encoders for TensorFlow are: input_ids [B, T] int32, attention_mask
    [B, P + T] (by default all 1), position_ids [B, T] (by default 0, 1, ... behind the P kept) and
    past_key_values, a (keys, values) [B, heads, P, d] a block -> last_hidden_state [B, T, D] and,
    with use_cache, past_key_values with what was read now behind. Each token sees itself and those
    before it. Raises UsageError for a config that can't be built.
    """

    def __init__(self, config):
        super().__init__(name=config.model_type)
        self.config = config
        self.traits = traits_of(config)
        self.turns = tf.constant(frequencies(config, self.traits.head_dim))
        start = tf_keras.initializers.RandomNormal(stddev=0.02)
        self.embed_tokens = tf_keras.layers.Embedding(
            config.vocab_size, config.hidden_size, embeddings_initializer=start, name="embed_tokens"
        )
        self.embed_tokens.build(None)
        self.blocks = [
            Block(config, self.traits, f"layers_{i}") for i in range(config.num_hidden_layers)
        ]
        self.norm = Norm(
            config.hidden_size, config.rms_norm_eps, self.traits.norm_offset, name="norm"
        )
        self.built = True

    def call(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=False,
        training=False,
    ):
        length = tf.shape(input_ids)[1]
        kept = 0 if past_key_values is None else tf.shape(past_key_values[0][0])[2]
        if position_ids is None:
            position_ids = tf.range(kept, kept + length)[None]
        angles = tf.cast(position_ids, tf.float32)[..., None] * self.turns
        seen = tf.range(kept, kept + length)[:, None] >= tf.range(kept + length)
        seen = seen[None]
        if attention_mask is not None:
            seen &= tf.cast(attention_mask, tf.bool)[:, None]
        hidden = tf.where(seen, 0.0, HIDDEN)[:, None, None]
        x = self.embed_tokens(input_ids) * self.traits.scale
        pasts = past_key_values or [None] * len(self.blocks)
        kept_of_all = []
        for block, past in zip(self.blocks, pasts):
            x, now = block(x, angles, hidden, past)
            kept_of_all.append(now)
        return TFBaseModelOutputWithPast(
            last_hidden_state=self.norm(x),
            past_key_values=tuple(kept_of_all) if use_cache else None,
        )

    def get_input_embeddings(self):
        """The layer of the embeddings, as transformers' models give it."""
        return self.embed_tokens

    def named_weights(self):
        """Each variable by its name in Hugging Face's files, without "model.": dict.

        Those of Dense layers lie transposed there.
        """
        named = {"embed_tokens.weight": self.embed_tokens.embeddings}
        for i, block in enumerate(self.blocks):
            for part, layer in block.parts().items():
                name = f"layers.{i}.{part}"
                if isinstance(layer, Norm):
                    named[f"{name}.weight"] = layer.scale
                    continue
                named[f"{name}.weight"] = layer.kernel
                if layer.use_bias:
                    named[f"{name}.bias"] = layer.bias
        return {**named, "norm.weight": self.norm.scale}

    def load(self, arrays, source):
        """Take the weights from a dict of arrays by Hugging Face's names.

        Raises UsageError, which names the source, for one that is missing, left over or of another
        shape.
        """
        advice = "give the config and the weights of one model."
        named = self.named_weights()
        left = [name for name in arrays if name.removeprefix("model.") not in named]
        check_left_over(source, left, self.config)
        for name, variable in named.items():
            array = arrays.get(f"model.{name}", arrays.get(name))
            if array is None:
                raise UsageError(f"The weights of {source} do not fit. It has no {name}; {advice}")
            array = array.T if variable.shape.rank == 2 and "embed" not in name else array
            if tuple(array.shape) != tuple(variable.shape):
                raise UsageError(
                    f"The weights of {source} do not fit. Its {name} has the shape {array.shape}, "
                    f"the config asks for {tuple(variable.shape)}; {advice}"
                )
            variable.assign(np.asarray(array, np.float32))

    def save_pretrained(self, folder, safe_serialization=True):
        """Write a folder that transformers, and `encoder.load_encoder`, read.

        It holds the decoder without a language model's head, in float32.
        """
        from safetensors.numpy import save_file

        arrays = {}
        for name, variable in self.named_weights().items():
            array = variable.numpy()
            transposed = array.ndim == 2 and "embed" not in name
            arrays[name] = np.ascontiguousarray(array.T) if transposed else array
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = type(self.config).from_dict({**self.config.to_dict(), "architectures": None})
        config.save_pretrained(folder)
        save_file(arrays, str(Path(folder, "model.safetensors")), metadata={"format": "pt"})
