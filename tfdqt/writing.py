"""Acting and writing: how networks that have learned on texts choose what comes next, and how varied it is."""

import collections
from collections.abc import Callable

import numpy as np

from tfdqt import losses
from tfdqt.backend import tf
from tfdqt.config import UsageError
from tfdqt.policy import choose
from tfdqt.reading import token_rows
from tfdqt.text import read_at


def make_scores(transformer, head, *, beta=None, clone=False, plausible=0.0) -> Callable:
    """Compile `scores(text [B, T], at [B]) -> [B, A]`, log-weights of the actions behind token `at`.

    clone: the cloned policy alone. beta: that policy x exp(beta x advantage), as ILQL decodes (Snell et al., 2023), the
    advantage being Q less its mean under the cloned policy. Neither: Q, and with `plausible` only that of actions whose probability
    under the cloned policy is at least this part of the likeliest one's.
    """
    @tf.function(jit_compile=True)
    def scores(text, at):
        x = read_at(transformer, text, at[:, None])[:, 0]
        if not clone and beta is None:
            return losses.plausible(head(x), head.prior(x), plausible)
        policy = tf.nn.log_softmax(head.prior(x))
        if clone:
            return policy
        q = head(x)
        return policy + beta * (q - tf.reduce_sum(tf.exp(policy) * q, axis=-1, keepdims=True))

    return scores


def generate(scores, tokenizer, prompts, *, words=30, length=64, method="sample", temperature=1.0, top_k=0, top_p=1.0, beams=4,
             allowed=None, seed=0):
    """Go on with each prompt by `words` words: strings -> strings, prompts included.

    Args:
      scores: from `make_scores`, of a causal encoder whose actions are the tokenizer's ids.
      length: tokens the encoder sees; of a longer text it sees the latest.
      method: "greedy", "sample" (temperature, top_k, top_p) or "beam" (the likeliest of `beams` texts).
      allowed: called as allowed(text) -> bool [A], which next words may be written.

    Raises UsageError for settings that can't be.
    """
    if method not in ("greedy", "sample", "beam") or words < 1 or temperature <= 0 or not 0 < top_p <= 1 or top_k < 0 or beams < 1:
        raise UsageError("generate needs method greedy, sample or beam, words and beams of at least 1, a temperature above 0, "
                         "top_p in (0, 1] and top_k of at least 0.")
    rng = np.random.default_rng(seed)
    rows = token_rows(tokenizer, prompts)
    if min(map(len, rows), default=1) == 0:
        raise UsageError("An empty prompt needs a tokenizer with a [CLS] token; give at least one word.")
    spread = beams if method == "beam" else 1
    rows = [list(row) for row in rows for _ in range(spread)]
    # All but the first beam of a prompt start out impossible, or all would stay equal.
    worth = np.where(np.arange(len(rows)) % spread == 0, 0.0, -np.inf)
    for _ in range(words):
        seen = [row[-length:] for row in rows]
        text = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(seen):
            text[i, :len(row)] = row
        logits = np.array(scores(tf.constant(text), tf.constant([len(row) - 1 for row in seen])), np.float64)
        logits[:, tokenizer.all_special_ids] = -np.inf
        if allowed is not None:
            for i, row in enumerate(rows):
                may = np.asarray(allowed(tokenizer.decode(row, skip_special_tokens=True)), bool)
                if not may.any():
                    raise UsageError("allowed() forbids every next word; let it allow at least one.")
                logits[i, ~may] = -np.inf
        if method == "beam":
            logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(-1, keepdims=True)
            total = (worth[:, None] + logits).reshape(-1, spread * logits.shape[-1])
            best = np.argsort(-total, axis=-1, kind="stable")[:, :spread]
            worth = np.take_along_axis(total, best, -1).reshape(-1)
            parents = (best // logits.shape[-1] + np.arange(len(best))[:, None] * spread).reshape(-1)
            rows = [[*rows[parent], int(word)] for parent, word in zip(parents, (best % logits.shape[-1]).reshape(-1))]
        else:
            for row, word in zip(rows, choose(rng, logits, greedy=method == "greedy", temperature=temperature, top_k=top_k, top_p=top_p)):
                row.append(int(word))
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows[::spread]]


def diversity(texts):
    """How varied texts are, to name a collapse: dict of distinct1, distinct2, repetition and entropy.

    distinct-n is the part of n-grams that differ (Li et al., 2016); repetition the part of words equal to one of the four
    before; entropy that of single words, in bits. `collapsed` says in a sentence what is wrong, or is None.
    """
    lines = [text.split() for text in texts]
    words = [word for line in lines for word in line]
    pairs = [pair for line in lines for pair in zip(line, line[1:])]
    counts = np.array(list(collections.Counter(words).values()), float)
    again = [word in line[max(0, i - 4):i] for line in lines for i, word in enumerate(line)]
    found = dict(distinct1=len(set(words)) / max(1, len(words)), distinct2=len(set(pairs)) / max(1, len(pairs)),
                 repetition=float(np.mean(again)) if again else 0.0,
                 entropy=float(-np.sum(counts / counts.sum() * np.log2(counts / counts.sum()))) if words else 0.0)
    most = collections.Counter(words).most_common(1)
    collapsed = None
    if found["repetition"] > 0.5:
        collapsed = f"The writer repeats itself: {found['repetition']:.0%} of its words are among the four before, mostly {most[0][0]!r}."
    elif words and found["entropy"] < 2:
        collapsed = f"The writer knows few words: {found['entropy']:.1f} bits of entropy."
    return dict(found, collapsed=collapsed)
