"""Networks in Keras 3, smallest function first: GPT-like decoder, dense, recurrent; their heads.

Every network maps a window of steps to numbers for its last steps. Inputs, by name:
  obs [B, C, F]        uint8, int32 or float32, as the replay buffer keeps them
  first [B, C]         1 where an episode starts; a step never sees past the start of its episode
  prev_action [B, C]   the action before each step, -1 where there is none (with `prev_action`)
Output: [B, P, ...] of the last P steps; P is C with `every_step`, which is the default of decoder
and recurrent Q-network, and 1 without, the dense one's and that of policies.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.backend import keras
from tfdqt.errors import UsageError
from tfdqt.games.blocks import EpisodeFirst, Kept, decode, linear, mlp, norm
from tfdqt.games.config import check_network, check_policy_network, learns_every_step
from tfdqt.games.cost import attention_bytes, check_tokens
from tfdqt.games.features import as_numbers, hide_static
from tfdqt.games.recurrent import ResettingGRU
from tfdqt.games.tokens import (
    action_before,
    cell_tokens,
    feature_tokens,
    features_of,
    legal_of,
    next_token,
    same_episode,
    step_tokens,
)
from tfdqt.stats import typical_size
from tfdqt.value_scale import SCALES

layers = keras.layers
ops = keras.ops

SHORT = 8  # steps of a window that is encoded anew about as fast as one step


# -------------------------------------------------------------------------------------------------
# Bodies


def input_layers(info, cfg, steps=None):
    """The named inputs of a network for windows of so many steps, by default `cfg.context`."""
    steps = steps or cfg.context
    inputs = dict(
        obs=keras.Input((steps, *info.obs_shape), dtype=info.obs_dtype, name="obs"),
        first=keras.Input((steps,), dtype="int32", name="first"),
    )
    if cfg.prev_action:
        inputs["prev_action"] = keras.Input((steps,), dtype="int32", name="prev_action")
    return inputs


TOKENS = dict(steps=step_tokens, features=feature_tokens, cells=cell_tokens)


def gpt_body(inputs, info, cfg, depth=None):
    """The decoder without a head, or its first `depth` blocks: the named inputs -> [B, P, D]."""
    tokens = TOKENS[cfg.tokens](inputs, info, cfg)
    each = tokens_of_step(tokens, cfg)
    all_steps = learns_every_step(cfg) and tokens.x.shape[1] > each
    last = None if all_steps else tokens_read(tokens, cfg)
    return read_out(decode(*tokens, cfg, depth=depth, last=last), each, cfg)


def tokens_of_step(tokens, cfg):
    """How many of its tokens a decoder reads of each step."""
    return 1 if cfg.tokens == "steps" else tokens.x.shape[1] // cfg.context


def tokens_read(tokens, cfg):
    """How many of its tokens, the last, are read of each step."""
    return tokens_of_step(tokens, cfg) if cfg.readout == "mean" else 1


def read_out(x, each, cfg):
    """What a head reads of the decoder's tokens: [B, T, D], `each` of a step -> [B, P, D].

    Of the last step alone, where it is read at one token, that token is enough.
    """
    if each > 1 and x.shape[1] > 1:
        x = ops.reshape(x, (-1, x.shape[1] // each, each, cfg.width))
        # The last token of a step has seen the whole step.
        x = ops.mean(x, axis=2) if cfg.readout == "mean" else x[:, :, -1]
    if not learns_every_step(cfg):
        x = x[:, -1:]
    return norm(x, name="norm")


def numbers_of_steps(inputs, info, cfg):
    """All that is known of each step, as one row of numbers: the named inputs -> [B, C, F]."""
    steps = [as_numbers(hide_static(features_of(inputs, info), info, cfg), info, cfg)]
    if cfg.prev_action:
        steps.append(action_before(inputs, info))
    if info.mask:
        steps.append(legal_of(inputs, info))
    return ops.concatenate(steps, axis=-1)


def dense_body(inputs, info, cfg):
    """The dense network over the same window, flattened: the named inputs -> [B, P, D].

    Of the last step, or with `every_step` of each. Steps before the episode's start, or the
    window's, are zeros.
    """
    x = numbers_of_steps(inputs, info, cfg)
    visible = same_episode(inputs["first"])
    last = cfg.context - 1
    ends = range(cfg.context) if learns_every_step(cfg) else [last]
    histories = [
        ops.pad(
            x[:, : end + 1] * visible[:, end, : end + 1, None], ((0, 0), (last - end, 0), (0, 0))
        )
        for end in ends
    ]
    x = ops.stack(histories, axis=1)
    x = ops.reshape(x, (-1, len(ends), cfg.context * x.shape[-1]))
    if cfg.residual:
        return _residual_blocks(x, cfg)
    for index, units in enumerate(cfg.hidden):
        x = _hidden_layer(x, units, cfg, name=f"hidden{index}")
    return x


def _hidden_layer(x, units, cfg, *, name):
    if not cfg.layer_norm:
        start = "he_uniform"
        return layers.Dense(units, activation="relu", kernel_initializer=start, name=name)(x)
    x = layers.Dense(units, kernel_initializer="he_uniform", name=name)(x)
    return ops.relu(norm(x, name=f"{name}_norm"))


def _residual_blocks(x, cfg):
    """Feed-forward parts of Transformer blocks, without attention: [B, P, F] -> [B, P, D].

    They start as those of a decoder of as many blocks do, so that attention is what differs.
    """
    width, *inner = cfg.hidden
    x = linear(x, width, name="embed_obs", scale=min(0.3, x.shape[-1] ** -0.5))
    scale = 0.02 / np.sqrt(2 * len(inner))
    for index, units in enumerate(inner):
        y = norm(x, name=f"block{index}_norm")
        x = x + mlp(y, units=units, name=f"block{index}_mlp", scale=scale)
    return norm(x, name="norm")


def gru_layers(inputs, info, cfg, starts=None):
    """GRU layers over the steps of the window: -> ([B, C, D], the last state [B, D] of each).

    starts: the state of each at the front of the window; None: zero.
    """
    x = numbers_of_steps(inputs, info, cfg)
    kept = []
    for index in range(cfg.layers):
        start = () if starts is None else (starts[:, index],)
        x = ResettingGRU(cfg.width, name=f"gru{index}")(x, inputs["first"], *start)
        kept.append(x[:, -1])
        if cfg.layer_norm:
            x = norm(x, name=f"gru{index}_norm")
    return x, kept


def gru_body(inputs, info, cfg):
    """The recurrent network without a head: the named inputs -> [B, P, D]."""
    x, _ = gru_layers(inputs, info, cfg)
    return x if learns_every_step(cfg) else x[:, -1:]


BODIES = dict(gpt=gpt_body, dense=dense_body, gru=gru_body)


def body(info, cfg, steps=None):
    """The network that `cfg.network` names, without a head: -> (named inputs, [B, P, D])."""
    check_network(cfg)
    check_tokens(info, cfg)
    inputs = input_layers(info, cfg, steps)
    return inputs, BODIES[cfg.network](inputs, info, cfg)


def reads_by_step(cfg):
    """Whether a network reads each step as it comes, from what it made of those before."""
    return cfg.network == "gru" or cfg.network == "gpt" and cfg.tokens == "steps"


def reads_on(cfg):
    """Whether it can read more steps than its context in one pass, and learns at each."""
    return reads_by_step(cfg) and learns_every_step(cfg)


# -------------------------------------------------------------------------------------------------
# Whole networks


def q_head(x, info, cfg):
    """Values of the actions: [B, P, D] -> [B, P, A, N], the N quantiles of a return (1: its mean).

    A: `info.outputs`. `dueling`: a value plus advantages of mean 0; of actions of several parts
    each part has its share of the value. With `bins` they are the logits of N bins instead, of
    which `flat` makes values. Raises UsageError for bins and actions of several parts.
    """
    if cfg.bins and info.parts:
        raise UsageError(
            f"--bins needs actions that have an output each, and those of {info.name} have outputs "
            "for their parts; leave it out."
        )
    learned = _learned_q(x, info, cfg)
    if cfg.bins:
        return learned
    q = SCALES[cfg.value_scale].stretch(learned)
    return ValueUnit(name="value_unit")(q) if cfg.reward_units else q


class ValueUnit(layers.Layer):
    """Values times the unit in which they are learned, a weight that is set, not learned.

    `flat` knows such a layer by its attribute `value_unit`.
    """

    def build(self, shape):
        self.value_unit = self.add_weight(
            shape=(), initializer="ones", trainable=False, name="value_unit"
        )

    def adapt_to_rewards(self, rewards):
        """Set the unit to the root mean square of the rewards that are not 0, if there are any."""
        unit = typical_size(rewards)
        if unit:
            self.value_unit.assign(unit)

    def call(self, x):
        return x * self.value_unit


def _learned_q(x, info, cfg):
    """`q_head` on the scale of values, or logits."""
    count = cfg.bins or max(1, cfg.quantiles)
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


def pi_v_head(x, info, cfg):
    """The logits of the actions, then the state's value: [B, P, D] -> [B, P, A + 1]."""
    # Small at first: every action about as likely as every other.
    scale = 0.01 / np.sqrt(x.shape[-1])
    heads = [
        linear(x, info.outputs, name="policy", scale=scale),
        SCALES[cfg.value_scale].stretch(linear(x, 1, name="value")),
    ]
    return ops.concatenate(heads, axis=-1)


def build_q(info, cfg, steps=None):
    """The Q-network of a NetworkConfig as a keras.Model: window -> [B, P, A, N].

    Where each step is read as it comes (`reads_on`), `steps` makes one of the same weights for
    longer windows, in which a step sees the last `cfg.context` (a gru all); the model's own
    `of_steps(steps)` builds it. Raises UsageError for sizes that don't fit together.

    >>> build_q(env_info(gymnasium.make("CartPole-v1")), NetworkConfig(width=32)).summary()
    """
    inputs, x = body(info, cfg, steps)
    model = keras.Model(inputs, q_head(x, info, cfg), name=f"{cfg.network}_q")
    if reads_on(cfg):
        model.of_steps = functools.partial(build_q, info, cfg)
    return _described(model, q_head, info, cfg)


def build_pi_v(info, cfg):
    """Policy and value on the same body, of the last step: window -> [B, 1, A + 1].

    The logits of the actions, then the state's value. Raises UsageError for sizes that don't fit
    together, and for quantiles, dueling heads or `every_step`, which are for Q.
    """
    check_policy_network(cfg)
    cfg = dataclasses.replace(cfg, every_step=False)
    inputs, x = body(info, cfg)
    model = keras.Model(inputs, pi_v_head(x, info, cfg), name=f"{cfg.network}_pi_v")
    return _described(model, pi_v_head, info, cfg)


# -------------------------------------------------------------------------------------------------
# One step after another


def keeps_steps(cfg):
    """Whether a network can act from what it kept of the steps before; see `build_stepwise`."""
    return reads_by_step(cfg) and cfg.loops == 1 and cfg.context > SHORT


def _described(model, head, info, cfg):
    """The model, with what `flat` asks it for."""
    model.attention_bytes = attention_bytes(info, cfg)
    describe_values(model, cfg)
    if keeps_steps(cfg):
        model.stepwise = functools.partial(build_stepwise, info, cfg, head)
    return model


def describe_values(model, cfg):
    """Tell `flat` how the values of a Q-network are to be read."""
    model.value_scale = cfg.value_scale
    model.bins = cfg.bins


def build_stepwise(info, cfg, head):
    """Two keras.Models of a network's weights, that keep what was read: (whole, step).

    head: (x [B, P, D], info, cfg) -> what the network says. Both give dict of `out`, that of the
    last step, [B, 1, ...], and `kept`: of a gpt the keys and values of L blocks for the steps of an
    episode in their order, [B, L, 2, C, H, D/H]; of a gru the states of L layers, [B, L, D].

      whole   the named inputs of windows, and `place` [B] int32, which step of its episode, from 0,
              the last is
      step    the named inputs of one step, its `place`, below C, and `kept` of those before
    """
    keeping = KEEPING[cfg.network]
    each = []
    for steps in (cfg.context, 1):
        inputs = input_layers(info, cfg, steps=steps)
        inputs["place"] = keras.Input((), dtype="int32", name="place")
        if steps == 1:
            inputs["kept"] = keras.Input(keeping.shape(cfg), name="kept")
        x, kept = keeping.read(inputs, info, cfg)
        out = dict(out=head(x, info, cfg), kept=ops.stack(kept, axis=1))
        each.append(keras.Model(inputs, out))
    return each


class Keeping(NamedTuple):
    """How a kind of network keeps what it read."""

    shape: Callable  # (cfg) -> the shape of that in one environment
    read: Callable  # (inputs, info, cfg) -> (x of the last step for a head, what each layer keeps)


def _read_gru(inputs, info, cfg):
    x, kept = gru_layers(inputs, info, cfg, inputs.get("kept"))
    return x[:, -1:], kept


def _read_gpt(inputs, info, cfg):
    if "kept" in inputs:
        tokens = next_token(inputs, info, cfg)
    else:
        tokens = step_tokens(inputs, info, cfg)
        tokens = tokens._replace(sight=tokens.sight._replace(kept=Kept()))
    x = read_out(decode(*tokens, cfg, last=1), 1, cfg)
    kept = tokens.sight.kept.joined
    if "kept" not in inputs:
        kept = [EpisodeFirst()(each, inputs["place"]) for each in kept]
    return x, kept


KEEPING = dict(
    gpt=Keeping(
        lambda cfg: (cfg.layers, 2, cfg.context, cfg.heads, cfg.width // cfg.heads), _read_gpt
    ),
    gru=Keeping(lambda cfg: (cfg.layers, cfg.width), _read_gru),
)
