"""Writing word by word from the keys and values that were kept, not from the whole text again."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

from tfdqt.backend import tf, traced

JIT = True  # compile by XLA, as `learn.JIT`
CLOSE = 1e-3  # part by which values from what was kept may differ from those of the whole text


class Stepwise(NamedTuple):
    """How a decoder goes on with texts.

    start(text [B, P], at [B], room) -> (values [B, A] behind the tokens at `at`, kept), with room
    for texts of so many tokens, P or more;
    step(kept, word [B], at [B]) -> the same behind one more word, which is put at `at`, < room.
    """

    start: Callable
    step: Callable


PROBED = 3  # tokens of the texts by which it is seen that both ways agree


def make_stepwise(transformer, values):
    """The Stepwise of a PrunedTransformerModel, or None if it keeps nothing that can be gone on by.

    values: what a state of a token is worth, x [B, D] -> [B, A].
    """
    if transformer.context < PROBED:
        return None
    model = transformer.bert
    asked = inspect.signature(model.call).parameters
    if not (transformer.causal and {"past_key_values", "use_cache"} <= set(asked)):
        return None
    placed = "position_ids" in asked

    def states(ids, mask, places, **more):
        if placed:
            more["position_ids"] = transformer.first_place + places
        out = model(input_ids=ids, attention_mask=mask, use_cache=True, training=False, **more)
        return out.last_hidden_state, out.past_key_values

    @traced(jit_compile=JIT)
    def start(text, at, room):
        places = tf.range(text.shape[1])[None]
        # What lies behind the last token is seen by none before it, and is written over.
        hidden, kept = states(text, tf.ones_like(text), tf.broadcast_to(places, tf.shape(text)))
        more = [[0, 0], [0, room - text.shape[1]], [0, 0]]

        def widen(field):
            return tf.pad(field, [[0, 0]] * (field.shape.rank - 3) + more)

        return values(tf.gather(hidden, at, batch_dims=1)), tf.nest.map_structure(widen, kept)

    @traced(jit_compile=JIT)
    def step(kept, word, at):
        length = tf.nest.flatten(kept)[0].shape[-2]
        here = tf.range(length)[None] == at[:, None]
        before = tf.range(length)[None] < at[:, None]
        mask = tf.concat([tf.cast(before, tf.int32), tf.ones_like(word)[:, None]], axis=1)
        hidden, longer = states(word[:, None], mask, at[:, None], past_key_values=kept)
        # The word's own keys and values stand at the end, [..., B, heads, T + 1, d].
        kept = tf.nest.map_structure(
            lambda old, new: tf.where(here[:, None, :, None], new[..., -1:, :], old), kept, longer
        )
        return values(hidden[:, 0]), kept

    made = Stepwise(start, step)
    return made if _agrees(transformer, values, made) else None


def _agrees(transformer, values, stepwise):
    """Whether texts of two lengths, gone on with by a word, are worth what whole ones are."""
    ids = [i for i in range(transformer.vocabulary) if i != transformer.bert.config.pad_token_id]
    one, two, three = (ids * PROBED)[:PROBED]
    texts = tf.constant([[one, two, three], [two, three, one]])
    at = tf.constant([1, 0])  # the last tokens known at first
    known = values(tf.gather(transformer(texts), at + 1, batch_dims=1))
    try:
        _, kept = stepwise.start(texts[:, :2], at, 3)
        got, _ = stepwise.step(kept, tf.gather(texts, at + 1, batch_dims=1), at + 1)
    except (TypeError, ValueError, tf.errors.OpError):  # it keeps them in another form
        return False
    return bool(tf.reduce_all(tf.abs(got - known) <= CLOSE * (1 + tf.abs(known))))


def choose_rows(kept, rows):
    """What was kept of some rows of the batch, in another order: for beams."""
    return tf.nest.map_structure(
        lambda field: tf.gather(field, rows, axis=field.shape.rank - 4), kept
    )
