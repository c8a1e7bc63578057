"""Q-learning on texts: an encoder reads the text so far, a head values every next word, and both learn from a replay buffer.

Two ways to learn from a text. A `Transition` holds the text before and behind one decision; the encoder reads each alone.
An `Episode` holds one text and where in it decisions were taken; a causal encoder reads it once and gives Q at all of them.
"""

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import tf
from tfdqt.checks import check_text
from tfdqt.config import TextConfig, UsageError
from tfdqt.distribute import check_same, make_add_up, make_team, share_of, together
from tfdqt.reading import episodes
from tfdqt.replay import Episode, Transition


def custom_loss(q, actions, rewards, next_q, ends, *, gamma=0.99, mask=None, next_q_online=None, delta=1.0, conservative=0.0,
                value=None, frozen_q=None, expectile=0.8, advantage_learning=0.0):
    """The temporal-difference loss on words: -> (scalar, diagnostics).

    Args:
      q: [B, P, A] values of all words. actions: [B, P] the word written. rewards, ends: [B, P]; end 1 where the text ended.
      next_q: [B, P, A] of the target network behind it, or [B, P] if they are values of states already.
      mask: [B, P], 1 where there is a decision; all by default.
      next_q_online: [B, P, A]; with it the online network chooses the next word (double Q-learning, van Hasselt et al., 2016).
      conservative: weight of CQL's term. value, frozen_q: V [B, P] and the target network's Q [B, P, A] here; with both V is
        drawn to the `expectile` of Q (IQL).
      advantage_learning: part of the gap between `frozen_q`'s best word and the one written that is subtracted from the target, so
        that words stay apart where they matter little (Bellemare et al., 2016). The maths is in `losses`.

    No gradient enters next_q, next_q_online or frozen_q.
    """
    mask = tf.ones_like(rewards) if mask is None else mask
    values = next_q if next_q.shape.rank == actions.shape.rank else losses.bootstrap_values(next_q, next_q_online)
    targets = losses.n_step_targets(rewards, 1.0 - ends, values, gamma=gamma, n=1)
    if advantage_learning:
        targets -= losses.widening(frozen_q, actions, advantage_learning)
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


def make_text_update(transformer, head, target_transformer, target_head, optimizer, cfg, strategy=None) -> Callable:
    """Compile `update(batch) -> diagnostics`: one step of the optimizer on both networks, and the target follows.

    `batch` is a Transition or Episode of tensors [B, ...]. The encoder's masks are renewed outside, by `prune_step`. With a
    tf.distribute.Strategy the batch is shared evenly by its devices, whose gradients are added up; of several processes each is given
    the whole batch and takes its share. The weights stay where they were made.
    """
    weights = [*transformer.bert.trainable_variables, *head.trainable_variables]
    optimizer.build(weights)
    pairs = [*zip(target_transformer.bert.weights, transformer.bert.weights), *zip(target_head.weights, head.weights)]
    imitates = cfg.method in ("clone", "filtered")
    nothing = dict.fromkeys(("q_mean", "td_error", "cloning"), math.nan)

    def terms(batch):
        """The terms of the loss: -> [(loss, diagnostics, the weight of the decisions that both are the mean of)]."""
        now, behind, actions, rewards, discounts, mask = read_batch(transformer, batch)
        found, extra = [], {}
        if not imitates:
            if cfg.method == "montecarlo":  # rewards are whole returns: nothing to bootstrap from
                next_q, discounts = tf.zeros_like(rewards), tf.zeros_like(discounts)
            elif cfg.method == "implicit":
                next_q, frozen_q = tf.stop_gradient(head.value(behind)), target_head(read_batch(target_transformer, batch)[0])
                extra = dict(value=head.value(now), frozen_q=frozen_q, expectile=cfg.expectile)
            else:
                here, ahead = read_batch(target_transformer, batch)[:2]
                chosen_by = losses.plausible(head(behind), head.prior(behind), cfg.plausible)
                next_q, extra = target_head(ahead), dict(next_q_online=tf.stop_gradient(chosen_by))
                if cfg.advantage_learning:
                    extra.update(frozen_q=target_head(here), advantage_learning=cfg.advantage_learning)
            loss, diagnostics = custom_loss(head(now), actions, rewards, next_q, 1.0 - discounts, gamma=cfg.gamma, mask=mask,
                                            delta=cfg.huber_delta, conservative=cfg.conservative, **extra)
            found.append((loss, diagnostics, tf.reduce_sum(mask)))
        if imitates or cfg.cloning:
            if cfg.advantage_weighting:
                mask *= losses.advantage_weights(losses.select_actions(frozen_q, actions) - extra["value"], cfg.advantage_weighting)
            surprise = losses.cloning(head.prior(now), actions, mask)
            found.append(((1.0 if imitates else cfg.cloning) * surprise, dict(cloning=surprise), tf.reduce_sum(mask)))
        return found

    def gradients_of(tape, loss):
        found = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in found]  # of slices each mention of a token would count apart in the norm

    def follow(gradients):
        gradients, size = tf.clip_by_global_norm(gradients, cfg.max_grad_norm)
        optimizer.apply_gradients(zip(gradients, weights))
        for target, online in pairs:
            if target.dtype.is_floating:
                target.assign_add(cfg.target_tau * (online - target))
        return size

    @tf.function(jit_compile=True)
    def update(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            found = terms(batch)
            loss = tf.add_n([loss for loss, _, _ in found])
        size = follow(gradients_of(tape, loss))
        diagnostics = {name: tf.constant(value) for name, value in nothing.items()}
        for _, said, _ in found:
            diagnostics.update(said)
        return dict(diagnostics, loss=loss, grad_norm=size)

    if strategy is None:
        return update
    names = [*([] if imitates else [("q_mean", "td_error")]), *([("cloning",)] if imitates or cfg.cloning else [])]
    return _make_shared_update(weights, terms, gradients_of, names, tf.function(follow, jit_compile=True), nothing, cfg, strategy)


def _make_shared_update(weights, terms, gradients_of, names, follow, nothing, cfg, strategy):
    if cfg.batch_size % strategy.num_replicas_in_sync:
        raise UsageError(f"--batch-size={cfg.batch_size} can't be shared evenly by {strategy.num_replicas_in_sync} devices; choose a "
                         f"multiple of {strategy.num_replicas_in_sync}.")
    team, sizes = make_team(strategy), [int(np.prod(variable.shape)) for variable in weights]

    @tf.function(jit_compile=strategy.num_replicas_in_sync == team.size)  # XLA reads no weights from another device
    def learned(batch):
        """For each term the sums over its decisions of everything that is a mean, all in one vector, so that they can be added up."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(weights)
            found = terms(batch)
        vectors = []
        for loss, said, weight in found:
            flat = [tf.reshape(gradient, [-1]) for gradient in gradients_of(tape, loss)]
            vectors.append(weight * tf.concat([tf.stack([1.0, loss, *said.values()]), *flat], 0))
        return tf.concat(vectors, 0)

    add_up = make_add_up(strategy, lambda batch, part, parts: learned(share_of(batch, part, parts)))

    @tf.function
    def update(batch):
        diagnostics = {name: tf.constant(value) for name, value in nothing.items()}
        loss, total = 0.0, 0.0
        sums_of_terms = tf.split(add_up(share_of(batch, team.index, team.size)), [2 + len(said) + sum(sizes) for said in names])
        for said, sums in zip(names, sums_of_terms):
            means = sums / tf.maximum(sums[0], 1e-6)
            diagnostics.update(zip(said, tf.unstack(means[2:2 + len(said)])))
            loss, total = loss + means[1], total + means[2 + len(said):]
        gradients = [tf.reshape(part, variable.shape) for part, variable in zip(tf.split(total, sizes), weights)]
        return dict(diagnostics, loss=loss, grad_norm=follow(gradients))

    return update


def train_model(transformer, dq_learning_model, optimizer, epochs, tokenizer, data_loader, replay_buffer, device="cpu", *,
                cfg=None, reward_fn=None, length=64, seed=0, strategy=None, evaluate=None, evaluate_every=500, log=None, save=None,
                saved=None, should_stop=None):
    """Train the encoder and the Q-head together, and return the last Metrics.

    Every batch of `data_loader` goes into the replay buffer, and `cfg.updates_per_batch` updates on samples of it follow.

    Args:
      transformer: PrunedTransformerModel. dq_learning_model: DeepQLearningModel. optimizer: a tf_keras one.
      epochs: passes over `data_loader`, which must give the same batches in every pass if runs are to be resumed exactly.
      tokenizer: turns batches of strings into token ids; not asked for batches of Transition or Episode.
      data_loader: iterable over batches: Transition or Episode of arrays [B, ...], or strings, whose every word is a decision.
      replay_buffer: ExperienceReplay.
      device: "cpu", "gpu" or a name of TensorFlow's such as "/GPU:0"; not asked for with a strategy.
      cfg: TextConfig. reward_fn: text -> float, for strings. length: tokens a string is cut or padded to.
      strategy: a tf.distribute.Strategy on whose devices every batch is learned from together. Of a MultiWorkerMirroredStrategy
        every process must be given the same data, networks and settings.
      evaluate: called as evaluate() every `evaluate_every` updates and at the end -> mean return, for the log.
      log, save, saved, should_stop: as in `dqn.dqn`; a step is an update. The last evaluation is logged by log(Metrics, last=True).

    Raises UsageError for what can't be trained on. An exception of the loader, the reward or the evaluation is not swallowed.
    """
    cfg = cfg or TextConfig()
    check_text(cfg)
    if epochs < 1:
        raise UsageError(f"epochs must be at least 1, not {epochs}.")
    try:
        place_of = tf.device(device if "/" in device else f"/{device.upper()}:0") if strategy is None else contextlib.nullcontext()
    except ValueError:
        raise UsageError(f"There is no device {device}; give cpu, gpu, or a device's name in TensorFlow such as /GPU:0.") from None
    team = make_team(strategy)
    check_same(team, repr((cfg, seed, epochs)), *_arrays(transformer), *_arrays(dq_learning_model))
    with place_of:
        target_transformer, target_head = transformer.copy(), dq_learning_model.copy()
        update = make_text_update(transformer, dq_learning_model, target_transformer, target_head, optimizer, cfg, strategy)
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
                    with together(team.size):
                        fresh = {name: value.numpy() for name, value in learn(tf.constant(place["step"], tf.int64)).items()}
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
                stop = bool(team.total([should_stop is not None and should_stop()])[0])
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
