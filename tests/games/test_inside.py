"""Where a gpt looks: what is told of its attention is what its blocks mix by."""

import numpy as np

from tests.games.test_cells import BOARD, window
from tests.games.toys import build
from tfdqt.backend import tf
from tfdqt.games.inside import build_stream, make_attention

KINDS = dict(
    steps=dict(tokens="steps", context=4, layers=2),
    lag=dict(tokens="steps", context=4, places="lag"),
    lag_start=dict(tokens="steps", context=4, places="lag-start"),
    looped=dict(tokens="steps", context=3, layers=2, loops=2),
    features=dict(tokens="features", context=2),
    cells=dict(tokens="cells", context=2),
    cells_of_one_step=dict(tokens="cells", context=1, loops=3, loops_random=True),
    mean=dict(tokens="cells", context=1, layers=2, readout="mean"),
)


def attending(settings):
    """A network of one head, whose blocks do nothing but attend."""
    model, cfg = build(BOARD, heads=1, width=8, **settings)
    for variable in model.trainable_variables:
        if "_mlp_out" in variable.path:
            variable.assign(np.zeros(variable.shape))
    return model, cfg


def mixed(model, cfg, stream, done, shares):
    """What a block adds to what is read out, by shares [B, T] of the values of what it reads."""
    name = f"block{done % cfg.layers}"
    if cfg.loops_random:
        block = model.get_layer("loops").blocks[done % cfg.layers]
    else:
        block = model.get_layer(name) if cfg.loops > 1 else model
    read = stream[:, done] + (stream[:, 0] if done and done % cfg.layers == 0 else 0)
    values = block.get_layer(f"{name}_attention_qkv")(block.get_layer(f"{name}_norm1")(read))
    values = values.numpy()[..., 2 * cfg.width :]
    out = block.get_layer(f"{name}_attention_out")
    return out(np.einsum("bt,btd->bd", shares, values)).numpy(), stream[:, done + 1] - read


class Attention(tf.test.TestCase):
    def test_it_is_what_the_blocks_mix_by(self):
        for kind, settings in KINDS.items():
            with self.subTest(kind):
                model, cfg = attending(settings)
                inputs = window(BOARD, cfg.context)
                shares = make_attention(model, BOARD, cfg)(inputs).numpy()
                self.assertAllClose(shares.sum(axis=-1), np.ones(shares.shape[:2]))
                found = build_stream(model, BOARD, cfg)({key: inputs[key] for key in model.input})
                stream = found["stream"].numpy()
                self.assertEqual(shares.shape, (3, cfg.layers * cfg.loops, stream.shape[2]))
                each = stream.shape[2] // cfg.context
                asking = each if cfg.readout == "mean" else 1
                for done in range(cfg.layers * cfg.loops):
                    added, known = mixed(model, cfg, stream, done, shares[:, done])
                    self.assertAllClose(added, known[:, -asking:].mean(axis=1), atol=1e-4)

    def test_steps_before_the_episode_get_nothing(self):
        for kind in ("steps", "lag", "features", "cells"):
            with self.subTest(kind):
                model, cfg = attending(KINDS[kind])
                inputs = window(BOARD, cfg.context)
                inputs["first"][:, -1] = 1
                shares = make_attention(model, BOARD, cfg)(inputs).numpy()
                before = shares[..., : -shares.shape[-1] // cfg.context]
                self.assertAllEqual(before, np.zeros_like(before))


if __name__ == "__main__":
    tf.test.main()
