"""Q-learning on texts: an encoder reads the text so far, a head values every next word, and both learn from a replay buffer.

Two ways to learn from a text. A `Transition` holds the text before and behind one decision; the encoder reads each alone.
An `Episode` holds one text and where in it decisions were taken; a causal encoder reads it once and gives Q at all of them.
"""

import codecs
import collections
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import tf
from tfdqt.config import TextConfig, UsageError, check_text
from tfdqt.policy import choose
from tfdqt.replay import Episode, Transition

BLOCK = 1 << 20  # bytes of a file read at a time

# ---------------------------------------------------------------------------------------------------------------------
# Texts as numbers


def make_tokenizer(words):
    """A Hugging Face tokenizer over whole words, split at spaces: ids in the order of `words`, behind [PAD], [UNK], [CLS]."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*special, *words))}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")


def words_of(text):
    """A text in lower case as words and punctuation marks: "Go, Joe!" -> ["go", ",", "joe", "!"]."""
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text.lower())


def read_texts(folder):
    """Stream the words of all *.txt files under a folder (or of one file), in the order of their names, a piece at a time.

    Yields (path, words); memory does not grow with a file's size. Raises UsageError for a folder without text and, with file
    and offset, for bytes that are not UTF-8.
    """
    folder = Path(folder)
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.txt"))
    if not paths:
        raise UsageError(f"There are no .txt files under {folder}; give a folder with texts.")
    for path in paths:
        decoder, rest, offset = codecs.getincrementaldecoder("utf-8")(), "", 0
        with open(path, "rb") as file:
            while True:
                block = file.read(BLOCK)
                held = len(decoder.getstate()[0])
                try:
                    rest += decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise UsageError(f"{path} is not UTF-8 at byte {offset - held + error.start}; convert it, for example by "
                                     f"iconv -t utf-8, or take it out.") from None
                offset += len(block)
                # The last word may go on in the next block, unless it is longer than any word.
                cut = len(rest) if not block else 1 + max(rest.rfind(space) for space in " \n\t")
                if cut == 0 and len(rest) > BLOCK:
                    cut = len(rest)
                words, rest = words_of(rest[:cut]), rest[cut:]
                if words:
                    yield path, words
                if not block:
                    break


def common_words(folder, count):
    """The `count` most frequent words of the texts in a folder, most frequent first."""
    counts = collections.Counter()
    for _, words in read_texts(folder):
        counts.update(words)
    return [word for word, _ in counts.most_common(count)]


def text_windows(folder, length, heldout=None):
    """The strings of `text_loader`, one by one."""
    number = 0
    for _, pieces in itertools.groupby(read_texts(folder), key=lambda piece: piece[0]):
        left = []
        for _, words in pieces:
            words = left + words
            whole = len(words) // length * length
            for i in range(0, whole, length):
                if heldout is None or heldout == (number % 20 == 19):
                    yield " ".join(words[i:i + length])
                number += 1
            left = words[whole:]


def text_loader(folder, length, batch_size, *, heldout=None):
    """A tf.data.Dataset over a folder of texts: batches of strings, each `length` words in a row of one file.

    The texts are streamed in a fixed order; what is left of a file behind its last whole window is dropped. Every twentieth
    window is held out: heldout=True gives only those, False only the others.
    """
    return tf.data.Dataset.from_generator(lambda: text_windows(folder, length, heldout),
                                          output_signature=tf.TensorSpec((), tf.string)).batch(batch_size).prefetch(2)


def encode(tokenizer, texts, length):
    """Token ids [N, length] of texts, behind a [CLS] if the tokenizer has one, cut at the end and padded with the padding's id."""
    start = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    rows = [start + ids for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    pad = tokenizer.pad_token_id or 0
    return np.array([(ids + [pad] * length)[:length] for ids in rows], np.int32).reshape(-1, length)


def episodes(tokenizer, texts, length, reward_fn):
    """Every word of each text as a decision: Episode of [N, ...] with T = length, P = length - 1.

    A word's reward is what it adds to `reward_fn` (text -> float), so that rewards sum to the worth of the whole text. Words
    that the tokenizer does not know are read, but nothing is learned about writing them.
    """
    ids = encode(tokenizer, texts, length)
    pad, unknown = tokenizer.pad_token_id or 0, tokenizer.unk_token_id
    written = (ids[:, 1:] != pad).astype(np.float32)
    worth = np.zeros(ids.shape, np.float32)
    for row, line in enumerate(ids):
        i = 0
        for i in range(1, 1 + int(written[row].sum())):
            worth[row, i] = reward_fn(tokenizer.decode(line[:i + 1], skip_special_tokens=True))
        worth[row, i + 1:] = worth[row, i]
    if not np.isfinite(worth).all():
        raise UsageError("reward_fn gave a value that is not finite; it must give a finite number for every text.")
    discount = np.ones_like(written)
    discount[np.arange(len(ids)), np.maximum(written.sum(axis=1).astype(int) - 1, 0)] = 0.0
    at = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    return Episode(ids, at, ids[:, 1:] * (written > 0), np.diff(worth, axis=1), discount, written * (ids[:, 1:] != unknown))


# ---------------------------------------------------------------------------------------------------------------------
# Learning


def custom_loss(q, actions, rewards, next_q, ends, *, gamma=0.99, mask=None, next_q_online=None, delta=1.0, conservative=0.0,
                value=None, frozen_q=None, expectile=0.8):
    """The temporal-difference loss on words: -> (scalar, diagnostics).

    Args:
      q: [B, P, A] values of all words. actions: [B, P] the word written. rewards, ends: [B, P]; end 1 where the text ended.
      next_q: [B, P, A] of the target network behind it, or [B, P] if they are values of states already.
      mask: [B, P], 1 where there is a decision; all by default.
      next_q_online: [B, P, A]; with it the online network chooses the next word (double Q-learning, van Hasselt et al., 2016).
      conservative: weight of CQL's term. value, frozen_q: V [B, P] and the target network's Q [B, P, A] here; with both V is
        drawn to the `expectile` of Q (IQL). The maths is in `losses`.

    No gradient enters next_q, next_q_online or frozen_q.
    """
    mask = tf.ones_like(rewards) if mask is None else mask
    values = next_q if next_q.shape.rank == actions.shape.rank else losses.bootstrap_values(next_q, next_q_online)
    targets = losses.n_step_targets(rewards, 1.0 - ends, values, gamma=gamma, n=1)
    loss, diagnostics = losses.td_loss(q, actions, targets, mask, delta=delta)
    if conservative:
        loss += conservative * losses.conservative(q, actions, mask)
    if value is not None:
        loss += losses.expectile(value, losses.select_actions(frozen_q, actions), mask, expectile)
    return loss, diagnostics


class Metrics(NamedTuple):
    """One line of the log of a text run."""

    step: int  # updates
    games: int  # transitions or episodes seen
    mean_return: float  # of the latest evaluation; NaN before the first
    loss: float
    q_mean: float
    td_error: float
    cloning: float  # cross-entropy of the data's actions, nats; NaN if not learned
    grad_norm: float


def read_at(transformer, text, at):
    """What the encoder makes of texts [B, T] at places [B, P]: [B, P, D]."""
    return tf.gather(transformer(text), at, axis=1, batch_dims=1)


def last_token(transformer, text):
    """Where the encoder's summary of texts [B, T] stands: at their first token, or, if it is causal, their last: [B, 1]."""
    if not transformer.causal:
        return tf.zeros_like(text[:, :1])
    pad = transformer.bert.config.pad_token_id or 0
    return tf.maximum(tf.reduce_sum(tf.cast(text != pad, tf.int32), axis=1, keepdims=True) - 1, 0)


def read_batch(transformer, batch):
    """A batch at its decisions and behind them: -> [B, P, D], [B, P, D], and Episode-like fields [B, P]."""
    if isinstance(batch, Episode):
        x = read_at(transformer, batch.text, batch.at)
        return x[:, :-1], x[:, 1:], batch.action, batch.reward, batch.discount, batch.mask
    now = read_at(transformer, batch.state, last_token(transformer, batch.state))
    behind = read_at(transformer, batch.next_state, last_token(transformer, batch.next_state))
    return now, behind, *(field[:, None] for field in (batch.action, batch.reward, batch.discount, tf.ones_like(batch.reward)))


def make_text_update(transformer, head, target_transformer, target_head, optimizer, cfg) -> Callable:
    """Compile `update(batch) -> diagnostics`: one step of the optimizer on both networks, and the target follows.

    `batch` is a Transition or Episode of tensors [B, ...]. The encoder's masks are renewed outside, by `prune_step`.
    """
    weights = [*transformer.bert.trainable_variables, *head.trainable_variables]
    optimizer.build(weights)
    pairs = [*zip(target_transformer.bert.weights, transformer.bert.weights), *zip(target_head.weights, head.weights)]
    imitates = cfg.method in ("clone", "filtered")

    @tf.function(jit_compile=True)
    def update(batch):
        nan = tf.constant(math.nan)
        diagnostics = dict(q_mean=nan, td_error=nan, cloning=nan)
        if not imitates and cfg.method != "montecarlo":
            frozen, behind, *_ = read_batch(target_transformer, batch)
            next_q, frozen_q = target_head(behind), target_head(frozen)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            now, behind, actions, rewards, discounts, mask = read_batch(transformer, batch)
            loss = tf.zeros([])
            if not imitates:
                extra = {}
                if cfg.method == "montecarlo":  # rewards are whole returns: nothing to bootstrap from
                    next_q, discounts = tf.zeros_like(rewards), tf.zeros_like(discounts)
                elif cfg.method == "implicit":
                    next_q = tf.stop_gradient(head.value(behind))
                    extra = dict(value=head.value(now), frozen_q=frozen_q, expectile=cfg.expectile)
                else:
                    extra = dict(next_q_online=tf.stop_gradient(head(behind)))
                loss, found = custom_loss(head(now), actions, rewards, next_q, 1.0 - discounts, gamma=cfg.gamma, mask=mask,
                                          delta=cfg.huber_delta, conservative=cfg.conservative, **extra)
                diagnostics.update(found)
            if imitates or cfg.cloning:
                if cfg.advantage_weighting:
                    mask *= losses.advantage_weights(losses.select_actions(frozen_q, actions) - extra["value"], cfg.advantage_weighting)
                diagnostics["cloning"] = losses.cloning(head.prior(now), actions, mask)
                loss += (1.0 if imitates else cfg.cloning) * diagnostics["cloning"]
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients, size = tf.clip_by_global_norm(gradients, cfg.max_grad_norm)
        optimizer.apply_gradients(zip(gradients, weights))
        for target, online in pairs:
            if target.dtype.is_floating:
                target.assign_add(cfg.target_tau * (online - target))
        return dict(diagnostics, loss=loss, grad_norm=size)

    return update


def train_model(transformer, dq_learning_model, optimizer, epochs, tokenizer, data_loader, replay_buffer, device="cpu", *,
                cfg=None, reward_fn=None, length=64, seed=0, evaluate=None, evaluate_every=500, log=None, save=None, saved=None,
                should_stop=None):
    """Train the encoder and the Q-head together, and return the last Metrics.

    Every batch of `data_loader` goes into the replay buffer, and `cfg.updates_per_batch` updates on samples of it follow.

    Args:
      transformer: PrunedTransformerModel. dq_learning_model: DeepQLearningModel. optimizer: a tf_keras one.
      epochs: passes over `data_loader`, which must give the same batches in every pass if runs are to be resumed exactly.
      tokenizer: turns batches of strings into token ids; not asked for batches of Transition or Episode.
      data_loader: iterable over batches: Transition or Episode of arrays [B, ...], or strings, whose every word is a decision.
      replay_buffer: ExperienceReplay.
      device: "cpu", "gpu" or a name of TensorFlow's such as "/GPU:0".
      cfg: TextConfig. reward_fn: text -> float, for strings. length: tokens a string is cut or padded to.
      evaluate: called as evaluate() every `evaluate_every` updates and at the end -> mean return, for the log.
      log, save, saved, should_stop: as in `dqn.dqn`; a step is an update. The last evaluation is logged by log(Metrics, last=True).

    Raises UsageError for what can't be trained on. An exception of the loader, the reward or the evaluation is not swallowed.
    """
    cfg = cfg or TextConfig()
    check_text(cfg)
    if epochs < 1:
        raise UsageError(f"epochs must be at least 1, not {epochs}.")
    try:
        place_of = tf.device(device if "/" in device else f"/{device.upper()}:0")
    except ValueError:
        raise UsageError(f"There is no device {device}; give cpu, gpu, or a device's name in TensorFlow such as /GPU:0.") from None
    with place_of:
        target_transformer, target_head = transformer.copy(), dq_learning_model.copy()
        update = make_text_update(transformer, dq_learning_model, target_transformer, target_head, optimizer, cfg)
        networks = (transformer, dq_learning_model, target_transformer, target_head)

        @tf.function
        def learn(step):
            return update(replay_buffer.draw(cfg.batch_size, tf.stack([tf.constant(seed, tf.int64), step])))

        place = dict(epoch=0, batch=0, step=0, games=0, mean_return=math.nan)
        if saved is not None:
            place = _restore(saved, networks, optimizer, replay_buffer)
        place.setdefault("diagnostics", dict.fromkeys(("loss", "q_mean", "td_error", "cloning", "grad_norm"), math.nan))

        def snapshot():
            return dict(weights=[array for network in networks for array in _arrays(network)],
                        optimizer=[np.asarray(variable) for variable in _variables(optimizer)],
                        replay=replay_buffer.arrays(), place=dict(place))

        stop = False
        for epoch in range(place["epoch"], epochs):
            skip = place["batch"] if epoch == place["epoch"] else 0
            number = skip
            for number, items in enumerate(itertools.islice(data_loader, skip, None), skip + 1):
                items = _items(items, tokenizer, length, reward_fn)
                replay_buffer.extend(items)
                for _ in range(cfg.updates_per_batch):
                    fresh = learn(tf.constant(place["step"], tf.int64))
                    transformer.prune_step()
                    place["step"] += 1
                    if evaluate and place["step"] % evaluate_every == 0:
                        place["mean_return"] = float(evaluate())
                diagnostics = {name: float(value) for name, value in fresh.items()}
                if not math.isfinite(diagnostics["loss"]):
                    raise UsageError(f"The loss is {diagnostics['loss']} at update {place['step']}; lower --learning-rate "
                                     "or look for odd rewards. The last checkpoint is whole.")
                place.update(epoch=epoch, batch=number, games=place["games"] + len(items.action), diagnostics=diagnostics)
                if log:
                    log(_metrics(place))
                stop = should_stop is not None and should_stop()
                if save:
                    save(place["step"], snapshot, last=stop)
                if stop:
                    break
            if number == 0:
                raise UsageError("The data loader gave nothing to learn from; give it texts of at least one window.")
            if stop:
                break
            place.update(epoch=epoch + 1, batch=0)
        if not stop:
            if evaluate:
                place["mean_return"] = float(evaluate())
            if log and evaluate:
                log(_metrics(place), last=True)
            if save:
                save(place["step"], snapshot, last=True)
    return _metrics(place)


def _metrics(place):
    return Metrics(place["step"], place["games"], place["mean_return"], **place["diagnostics"])


def _items(items, tokenizer, length, reward_fn):
    if isinstance(items, (Transition, Episode)):
        return items
    texts = [text.decode() if isinstance(text, bytes) else text for text in
             (items.numpy().tolist() if isinstance(items, tf.Tensor) else items)]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError("The data loader must give batches of strings, Transition or Episode.")
    if reward_fn is None:
        raise UsageError("Batches of strings need a reward_fn (text -> float) that says what a text is worth.")
    return episodes(tokenizer, texts, length, reward_fn)


def _variables(optimizer):
    return optimizer.variables() if callable(optimizer.variables) else optimizer.variables


def _arrays(network):
    return [np.asarray(variable) for variable in network.variables]


def _restore(saved, networks, optimizer, replay_buffer):
    variables = [variable for network in networks for variable in network.variables]
    if [v.shape for v in variables] != [a.shape for a in saved["weights"]]:
        raise UsageError("The checkpoint holds networks of other sizes; resume with the settings that the run was started with.")
    for variable, array in (*zip(variables, saved["weights"]), *zip(_variables(optimizer), saved["optimizer"])):
        variable.assign(array)
    replay_buffer.restore(saved["replay"])
    return dict(saved["place"])


# ---------------------------------------------------------------------------------------------------------------------
# Acting and writing


def make_scores(transformer, head, *, beta=None, clone=False) -> Callable:
    """Compile `scores(text [B, T], at [B]) -> [B, A]`, log-weights of the actions behind token `at`.

    clone: the cloned policy alone. beta: that policy x exp(beta x advantage), as ILQL decodes (Snell et al., 2023), the
    advantage being Q less its mean under the cloned policy. Neither: Q.
    """
    @tf.function(jit_compile=True)
    def scores(text, at):
        x = read_at(transformer, text, at[:, None])[:, 0]
        if not clone and beta is None:
            return head(x)
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
    start = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    rows = [start + ids for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
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
