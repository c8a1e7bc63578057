"""How networks that have learned on texts choose what comes next, and how varied it is."""

import collections
import functools
import math
import warnings
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import tf, traced
from tfdqt.errors import UsageError
from tfdqt.policy import choose_actions
from tfdqt.settings import check_whole
from tfdqt.text.config import IMITATING
from tfdqt.text.learn import hidden_at, summary_token
from tfdqt.text.stepwise import choose_rows, make_stepwise
from tfdqt.text.tokenizers import as_list, pad_rows, read_ids, token_rows
from tfdqt.text.words import words_of

JIT = True  # compile scores by XLA, as `learn.JIT`
ROUND = 16  # tokens of prompts and texts, which each number is compiled for, are rounded up to it
FEW = 20  # words, of which the entropy says nothing


class WordScores:
    """`scores(text [B, T], at [B]) -> [B, A]`, log-weights of actions behind the tokens `at`.

    Without `at` they are by the whole of each text.
    """

    def __init__(self, transformer, values):
        """values: log-weights by the state of a token, x [B, D] -> [B, A]."""
        self.transformer = transformer
        self.values = values
        self._compiled = traced(self._of_text, jit_compile=JIT)

    def __call__(self, text, at=None):
        # XLA would read numbers from behind the tables' ends.
        self.transformer.check_reads(text.shape[-1])
        return self._compiled(text, at)

    def _of_text(self, text, at):
        at = summary_token(self.transformer, text) if at is None else at[:, None]
        return self.values(hidden_at(self.transformer, text, at)[:, 0])

    @functools.cached_property
    def stepwise(self):
        """The same a word at a time, a `stepwise.Stepwise`; None if the encoder can't."""
        return make_stepwise(self.transformer, self.values)


def make_word_scores(transformer, head, *, beta=None, clone=False, plausible=0.0):
    """The WordScores of an encoder and a head.

    Args:
      clone: the cloned policy alone.
      beta: that policy x exp(beta x advantage), as ILQL decodes (Snell et al., 2023), the advantage
        being Q less its mean under the cloned policy, in the head's unit, a typical reward.
      plausible: without either, Q in that unit, and that only of actions whose probability under
        the cloned policy is at least this part of the likeliest one's.
    """

    def values(x):
        logits = head.prior(x)
        policy = tf.nn.log_softmax(logits)
        if clone:
            return policy
        q = head(x) / head.unit
        if beta is None:
            return losses.mask_implausible(q, logits, plausible)
        return policy + beta * (q - tf.reduce_sum(tf.exp(policy) * q, axis=-1, keepdims=True))

    return WordScores(transformer, values)


def make_run_scores(transformer, head, cfg, *, beta=None):
    """`make_word_scores` as a TextConfig has it, or with another `beta`.

    beta: 0 for the cloned policy alone, infinite for Q alone, None for the config's. Raises
    UsageError for one that is no such number, or that the config's method did not learn.
    """
    imitates = cfg.method in IMITATING
    if beta is not None and not beta >= 0:
        raise UsageError(f"beta must be 0 or more, or inf, not {beta}.")
    if beta is not None and beta != math.inf and beta > float(np.finfo(np.float32).max):
        raise UsageError(f"beta={beta} is beyond float32; give inf for Q alone.")
    if imitates and beta:
        raise UsageError(f"A {cfg.method} run has no values to steer by; leave out --beta.")
    if beta is None:
        beta = cfg.beta
    elif beta == math.inf:
        beta = None
    if beta is not None and not cfg.cloning and not imitates:
        raise UsageError(
            "This run did not learn the cloned policy that beta steers; train with --cloning "
            "greater than 0."
        )
    clone = imitates or beta == 0
    return make_word_scores(transformer, head, beta=beta, clone=clone, plausible=cfg.plausible)


# -------------------------------------------------------------------------------------------------
# Writing


def generate(scores, tokenizer, prompts, *, method="sample", on_word=None, **how):
    """Go on with each prompt by `words` words: strings -> strings, prompts included.

    Args:
      scores: from `make_word_scores`, of a causal encoder whose actions are the tokenizer's ids.
      method: "greedy", "sample" (temperature, top_k, top_p) or "beam" (the likeliest of `beams`
        texts).
      on_word: called with the texts so far after every word; not with beams, which change their
        minds.
      how: words (30), length (64), temperature, top_k, top_p, beams, allowed and seed, as for
        `write_rows`.

    Raises UsageError for settings that can't be. Warns of words of a prompt that the tokenizer does
    not know, which are read as such and left out of what is returned, and of a prompt that is
    longer than what is seen.

    >>> generate(make_word_scores(encoder, head), tokenizer, ["the red"], words=2)
    """

    def texts_of(rows):
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    for rows in write_rows(scores, tokenizer, prompts, method=method, **how):
        if on_word and method != "beam":
            on_word(texts_of(rows))
    return texts_of(rows)


def write_rows(
    scores,
    tokenizer,
    prompts,
    *,
    words=30,
    length=64,
    method="sample",
    beams=4,
    allowed=None,
    seed=0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
):
    """What `generate` writes, as token ids: yields the row of each prompt after every word.

    Args:
      words: how many are written.
      length: tokens the encoder sees; of a longer text it sees the latest.
      temperature, top_k, top_p: of what is drawn, as for `policy.narrow`.
      beams: texts of each prompt that are followed at a time.
      allowed: called as allowed(text) -> bool [A], which next words may be written.
      seed: of what is drawn.
    """
    for name, value, fits, rule in (
        ("method", method, method in ("greedy", "sample", "beam"), "greedy, sample or beam"),
        ("temperature", temperature, 0 < temperature < math.inf, "above 0 and finite"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
    ):
        if not fits:
            raise UsageError(f"{name} must be {rule}, not {value}.")
    check_whole(1, words=words, length=length, beams=beams)
    check_whole(0, top_k=top_k, seed=seed)
    prompts = as_list(prompts)
    rows = token_rows(tokenizer, prompts)
    if not rows:
        yield rows
        return
    if notice := _unread(tokenizer, prompts, rows, length):
        warnings.warn(notice, stacklevel=3)
    if min(map(len, rows)) == 0:
        raise UsageError(
            "An empty prompt needs a tokenizer with a [CLS] token; give at least one word."
        )
    per_prompt = beams if method == "beam" else 1
    rows = [list(row) for row in rows for _ in range(per_prompt)]
    # All but the first beam of a prompt start out impossible, or all would stay equal.
    log_p = np.where(np.arange(len(rows)) % per_prompt == 0, 0.0, -np.inf)
    rng = np.random.default_rng(seed)
    longest = min(length, _rounded(max(map(len, rows)) + words - 1))
    next_words = _Next(scores, length, longest)
    for _ in range(words):
        logits = _allowed_words(next_words(rows), tokenizer, rows, allowed)
        if method == "beam":
            parents, chosen, log_p = _extend_beams(logits, log_p, per_prompt)
            rows = [list(rows[parent]) for parent in parents]
            next_words.choose(parents)
        else:
            chosen = choose_actions(
                rng,
                logits,
                greedy=method == "greedy",
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
            )
        for row, word in zip(rows, chosen):
            row.append(int(word))
        yield rows[::per_prompt]


class Written(NamedTuple):
    """A text, and what the networks held of each of its words; those of the prompt have None."""

    text: str
    words: list  # strings, sub-words if the tokenizer has such
    values: list  # Q of each before it was written, or None of a run without values
    log_probabilities: list  # of each, by what the texts are written by, at temperature 1


def explain(scores, head, tokenizer, rows, prompts, length, *, valued=True):
    """What the networks hold of texts: list of Written.

    Args:
      scores: WordScores. head: DeepQLearningModel. rows: of token ids, from `write_rows`. prompts:
        how many ids of each row are the prompt's. length: tokens the encoder sees. valued: whether
        the head has learned values.
    """

    unwritten = np.zeros(head.action_dim, np.float32)
    unwritten[tokenizer.all_special_ids] = -np.inf

    def of_words(text, at, words):
        """Of words behind the tokens `at` of one text: log-probabilities and values, arrays."""
        x = hidden_at(scores.transformer, tf.constant([text]), tf.constant([at]))
        log_p = tf.nn.log_softmax(scores.values(x) + unwritten)
        words = tf.constant([words])
        return tf.gather(log_p, words, batch_dims=2).numpy()[0], head.chosen(x, words).numpy()[0]

    made = []
    for row, prompt in zip(rows, prompts):
        first = row[:length]
        known = [of_words(first, list(range(len(first) - 1)), first[1:])]
        for i in range(length, len(row)):  # of each later word the latest are read anew
            known.append(of_words(row[i - length : i], [length - 1], [row[i]]))
        log_p, q = (np.concatenate(parts).tolist() for parts in zip(*known))
        before = [None] * prompt
        made.append(
            Written(
                text=tokenizer.decode(row, skip_special_tokens=True),
                words=[tokenizer.decode([i]) for i in row],
                values=before + q[prompt - 1 :] if valued else [None] * len(row),
                log_probabilities=before + log_p[prompt - 1 :],
            )
        )
    return made


def _unread(tokenizer, prompts, rows, length):
    """What of prompts is not read as it stands there, in a sentence; "" if all is."""
    unknown = [
        word
        for prompt in dict.fromkeys(prompts)
        for word in prompt.split()
        if tokenizer.unk_token_id in read_ids(tokenizer, [word])[0]
    ]
    said = []
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        said.append(f"of the prompt these words are not known, and left out: {names}")
    if (longest := max(map(len, rows))) > length:
        said.append(f"of {longest} tokens of the prompt only the last {length} are read")
    return "; ".join(said)


def _rounded(tokens):
    return -(-tokens // ROUND) * ROUND


class _Next:
    """Log-weights behind rows of ids that grow by a word a call, from what was kept of them.

    Of rows longer than `length` the latest tokens are read anew, for all places change.
    """

    def __init__(self, scores, length, longest):
        """longest: tokens of the longest row that comes, at most `length`; so many are kept."""
        self.scores = scores
        self.length = length
        self.longest = longest
        self.stepwise = getattr(scores, "stepwise", None)
        if self.stepwise:
            scores.transformer.check_reads(longest)
        self.kept = None

    def __call__(self, rows):
        """[N, A] behind rows that are the last call's with one id more each."""
        if self.stepwise is None or max(map(len, rows)) > self.longest:
            seen = [row[-self.length :] for row in rows]
            text = tf.constant(pad_rows(seen, self.length, 0))
            return self.scores(text, tf.constant([len(row) - 1 for row in seen]))
        at = tf.constant([len(row) - 1 for row in rows])
        if self.kept is None:
            read = min(self.longest, _rounded(max(map(len, rows))))
            text = tf.constant(pad_rows(rows, read, 0))
            logits, self.kept = self.stepwise.start(text, at, self.longest)
        else:
            logits, self.kept = self.stepwise.step(
                self.kept, tf.constant([row[-1] for row in rows]), at
            )
        return logits

    def choose(self, parents):
        """Go on with these rows of the last call's, in this order."""
        if self.kept is not None:
            self.kept = choose_rows(self.kept, tf.constant(parents))


def _allowed_words(logits, tokenizer, rows, allowed):
    """Log-weights of what may be written behind rows of ids: [N, A], -inf for what may not."""
    logits = np.array(logits, np.float64)
    if np.isnan(logits).any():
        raise UsageError(
            "What the network says of the next word is no number; its weights, or beta, are not "
            "finite. Take an older checkpoint, or a smaller beta."
        )
    logits[:, tokenizer.all_special_ids] = -np.inf
    if allowed is None:
        return logits
    for i, row in enumerate(rows):
        may = np.asarray(allowed(tokenizer.decode(row, skip_special_tokens=True)), bool)
        if may.shape != logits[i].shape:
            raise UsageError(
                f"allowed() must give {logits.shape[1]} bools, one for each word, not an array of "
                f"shape {may.shape}."
            )
        if not (may & np.isfinite(logits[i])).any():
            raise UsageError("allowed() forbids every next word; let it allow at least one.")
        logits[i, ~may] = -np.inf
    return logits


def _extend_beams(logits, log_p, beams):
    """The likeliest ways on of N / beams prompts, by log-weights and log-probabilities so far.

    [N, A], [N] -> (rows to go on from [N], words [N], log-probabilities [N]).
    """
    words = logits.shape[-1]
    most = logits.max(-1, keepdims=True)
    logits = logits - (np.log(np.exp(logits - most).sum(-1, keepdims=True)) + most)
    total = (log_p[:, None] + logits).reshape(-1, beams * words)
    best = np.argsort(-total, axis=-1, kind="stable")[:, :beams]
    parents = best // words + np.arange(len(best))[:, None] * beams
    log_p = np.take_along_axis(total, best, -1)
    return parents.reshape(-1), (best % words).reshape(-1), log_p.reshape(-1)


# -------------------------------------------------------------------------------------------------
# What was written


def best_of_each(rewards, best_of):
    """Which of every `best_of` texts, one behind the other, has the greatest reward: [N] places."""
    rewards = np.reshape(rewards, (-1, best_of))
    return np.arange(len(rewards)) * best_of + rewards.argmax(axis=1)


def diversity(texts):
    """How varied texts are, to name a collapse: dict of distinct1, distinct2, repetition, entropy.

    distinct-n is the part of n-grams that differ (Li et al., 2016); repetition the part of words
    equal to one of the four before; entropy that of single words, in bits. Words are Unicode's, so
    scripts without spaces have some too. `collapsed` says in a sentence what is wrong, or is None.
    """
    lines = [words_of(text) for text in texts]
    words = [word for line in lines for word in line]
    pairs = [pair for line in lines for pair in zip(line, line[1:])]
    repeats = [word in line[max(0, i - 4) : i] for line in lines for i, word in enumerate(line)]
    counts = collections.Counter(words)
    frequencies = np.array(list(counts.values()), float) / max(1, len(words))
    measured = dict(
        distinct1=len(set(words)) / max(1, len(words)),
        distinct2=len(set(pairs)) / max(1, len(pairs)),
        repetition=float(np.mean(repeats)) if repeats else 0.0,
        entropy=float(np.sum(frequencies * -np.log2(frequencies))),
    )
    collapsed = None
    if measured["repetition"] > 0.5:
        most = counts.most_common(1)[0][0]
        collapsed = (
            f"The writer repeats itself: {measured['repetition']:.0%} of its words are among the "
            f"four before, mostly {most!r}."
        )
    elif len(words) >= FEW and measured["entropy"] < 2:
        collapsed = f"The writer knows few words: {measured['entropy']:.1f} bits of entropy."
    return dict(measured, collapsed=collapsed)
