"""Looking inside a gpt: what it would say after each block, its residual stream, its attention."""

from tfdqt.backend import keras
from tfdqt.games.blocks import decode, unseen
from tfdqt.games.networks import (
    TOKENS,
    describe_values,
    gpt_body,
    input_layers,
    q_head,
    read_out,
    tokens_of_step,
    tokens_read,
)

ops = keras.ops


def build_lens(model, info, cfg, depth):
    """What the Q-network `model` (`build_q` of a gpt) would say after its first `depth` blocks.

    A keras.Model with the weights of `model`: its final norm and head read the residual stream
    early ("logit lens", nostalgebraist, 2020); depth 0 reads the tokens. Blocks are counted over
    all loops.
    """
    inputs = input_layers(info, cfg)
    x = gpt_body(inputs, info, cfg, depth)
    lens = keras.Model(inputs, q_head(x, info, cfg), name=f"lens{depth}")
    describe_values(lens, cfg)
    return _with_weights_of(model, lens)


def build_stream(model, info, cfg, edited=None):
    """The residual stream of the Q-network `model` (`build_q` of a gpt), and a way to change it.

    A keras.Model with the weights of `model`: the named inputs -> dict of `stream`
    [B, blocks + 1, T, D], the tokens and what each block leaves, counted over all loops, and `q`
    [B, P, A, N], as `q_head` gives it. edited: a number of blocks after which a further input,
    `edit` [B, T, D], is added to the stream; what comes before is not touched.
    """
    inputs = input_layers(info, cfg)
    named = dict(inputs)
    tokens = TOKENS[cfg.tokens](inputs, info, cfg)
    stream = [tokens.x]
    if edited is not None:
        named["edit"] = keras.Input(tokens.x.shape[1:], name="edit")

    def after(x, done):
        x = x + named["edit"] if done == edited else x
        stream.append(x)
        return x

    x = decode(*tokens, cfg, after=after)
    q = q_head(read_out(x, tokens_of_step(tokens, cfg), cfg), info, cfg)
    whole = keras.Model(named, dict(q=q, stream=ops.stack(stream, axis=1)), name="stream")
    return _with_weights_of(model, whole)


def _with_weights_of(model, other):
    """`other`, a model of layers of the same names, with the weights of `model`."""
    for layer in other.layers:
        if layer.get_weights():
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return other


def make_attention(model, info, cfg):
    """How the blocks of a gpt `model` share out their attention at the last step of windows.

    Returns `attend(named inputs) -> [B, blocks, T]`, for compiled code too: the shares of the T
    tokens, the mean over heads, for the token that is read out, or the mean over all tokens of the
    step where these are (`readout`). Blocks are counted over all loops.
    """
    inputs = input_layers(info, cfg)
    tokens = TOKENS[cfg.tokens](inputs, info, cfg)
    sight = tokens.sight
    read = [tokens.x]  # what each block reads

    def after(x, done):
        again = cfg.loops > 1 and done % cfg.layers == 0
        read.append(x + tokens.x if again else x)
        return x

    decode(*tokens, cfg, after=after)
    found = dict(read=ops.stack(read[:-1], axis=1))
    if sight.visible is not None:
        found["visible"] = sight.visible
    reading = keras.Model(inputs, found, name="reading")
    depth = len(read) - 1
    asking = tokens_read(tokens, cfg)
    layers = [_layers_of_block(model, cfg, done % cfg.layers) for done in range(depth)]
    _with_weights_of(model, reading)

    def attend(inputs):
        if tokens.x.shape[1] == 1:
            return ops.ones((inputs["first"].shape[0], depth, 1))
        found = reading({name: inputs[name] for name in reading.input})
        shares = []
        for done, (norm, qkv, bias) in enumerate(layers):
            x = qkv(norm(found["read"][:, done]))
            q, k, _ = ops.split(ops.reshape(x, (*x.shape[:2], 3, cfg.heads, -1)), 3, axis=2)
            q = q[:, -asking:, 0] * (cfg.width // cfg.heads) ** -0.5
            scores = ops.einsum("bqhd,bthd->bhqt", q, k[:, :, 0])
            if "visible" in found:
                scores = scores + unseen(found["visible"][:, -asking:])[:, None]
            if bias is not None:
                scores = bias(scores, sight.relation[-asking:])
            shares.append(ops.mean(ops.softmax(scores, axis=-1), axis=(1, 2)))
        return ops.stack(shares, axis=1)

    return attend


def _layers_of_block(model, cfg, index):
    """(norm, queries keys and values, bias of places or None) of a block's attention."""
    name = f"block{index}"
    if cfg.loops_random:
        block = model.get_layer("loops").blocks[index]
    elif cfg.loops > 1:
        block = model.get_layer(name)
    else:
        block = model
    known = {layer.name: layer for layer in block.layers}
    attention = f"{name}_attention"
    return known[f"{name}_norm1"], known[f"{attention}_qkv"], known.get(f"{attention}_bias")
