"""Q-learning on texts: an encoder reads the text so far and a head values every next word.

Both learn together, by one optimizer, from batches drawn from an `ExperienceReplay`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt import losses
from tfdqt.backend import tf, traced
from tfdqt.errors import DIVERGED, Diverged, UsageError
from tfdqt.runs.processes import is_ctrl_c
from tfdqt.scale.distribute import (
    check_even,
    check_same,
    lost_learner_ends_run,
    make_group,
    make_means,
    slice_batch,
)
from tfdqt.settings import check_whole
from tfdqt.text.config import IMITATING, TextConfig, check_text
from tfdqt.text.methods import prepared_episodes
from tfdqt.text.replay import Episode, Transition, take_imitated, with_imitated
from tfdqt.text.tokenizers import as_list, token_rows

JIT = True  # compile updates by XLA, which takes seconds and makes each faster


class TextMetrics(NamedTuple):
    """One line of the log of a text run."""

    step: int  # updates
    samples: int  # transitions or episodes seen
    mean_return: float  # of the latest evaluation; NaN before the first
    loss: float
    q_mean: float
    td_error: float
    cloning: float  # cross-entropy of the data's actions, nats; NaN if not learned
    grad_norm: float


# -------------------------------------------------------------------------------------------------
# The loss


def custom_loss(
    q,
    actions,
    rewards,
    next_q,
    ends,
    *,
    gamma=0.99,
    mask=None,
    next_q_online=None,
    delta=1.0,
    conservative=0.0,
    value=None,
    frozen_q=None,
    expectile=0.8,
    advantage_learning=0.0,
):
    """The temporal-difference loss on words: -> (scalar, diagnostics).

    Args:
      q: [B, P, A] values of all words, or [B, P] of those written.
      actions: [B, P] the word written.
      rewards, ends: [B, P]; end 1 where the text ended.
      next_q: [B, P, A] of the target network behind it, or [B, P] if they are values of states
        already.
      mask: [B, P], 1 where there is a decision; all by default.
      next_q_online: [B, P, A]; with it the online network chooses the next word (double Q-learning,
        van Hasselt et al., 2016).
      conservative: weight of CQL's term.
      value, frozen_q: V [B, P] and the target network's Q here, [B, P, A] or, for these two, [B, P]
        of the words written; with both V is drawn to the `expectile` of Q (IQL).
      advantage_learning: part of the gap between `frozen_q`'s best word and the one written that is
        subtracted from the target, so that words stay apart where they matter little (Bellemare et
        al., 2016).

    Numbers may be of any type; all are taken as q's. Diagnostics are those of `losses.td_loss`,
    where the maths is. No gradient enters next_q, next_q_online or frozen_q. Raises UsageError for
    what does not fit together and, outside of a tf.function, for actions that q has no value of.
    """
    q = tf.convert_to_tensor(q)
    actions = tf.convert_to_tensor(actions)

    def as_q(numbers):
        return None if numbers is None else tf.cast(numbers, q.dtype)

    rewards, ends, next_q = map(as_q, (rewards, ends, next_q))
    next_q_online, value, frozen_q = map(as_q, (next_q_online, value, frozen_q))
    mask = tf.ones_like(rewards) if mask is None else as_q(mask)
    _check_of_words(q, actions, dict(rewards=rewards, ends=ends, mask=mask, value=value))
    _check_values(q, actions, dict(next_q=next_q, next_q_online=next_q_online, frozen_q=frozen_q))
    if tf.executing_eagerly() and q.shape.rank > actions.shape.rank:
        _check_range("actions", actions.numpy()[mask.numpy() > 0], q.shape[-1])
    if frozen_q is None and (value is not None or advantage_learning):
        raise UsageError("value and advantage_learning need frozen_q, the target network's Q here.")
    if advantage_learning and frozen_q.shape.rank == actions.shape.rank:
        raise UsageError("advantage_learning needs frozen_q of all words; give it [B, P, A].")
    if next_q_online is not None and next_q.shape.rank == actions.shape.rank:
        raise UsageError("next_q_online chooses among all words; give next_q [B, P, A] too.")
    if conservative and q.shape.rank == actions.shape.rank:
        raise UsageError("conservative asks for the values of all words; give q [B, P, A].")
    values = next_q
    if next_q.shape.rank > actions.shape.rank:
        values = losses.bootstrap_values(next_q, next_q_online)
    # One quantile: the mean of the return.
    targets = losses.n_step_targets(rewards, 1.0 - ends, values[..., None], gamma=gamma, n=1)
    if advantage_learning:
        targets = losses.widen_gap(targets, frozen_q, actions, advantage_learning)
    chosen = _of_written(q, actions)[..., None, None]  # as if there were one action
    nothing = tf.zeros_like(actions)
    loss, diagnostics = losses.td_loss(chosen, nothing, targets, mask, delta=delta)
    if conservative:
        loss += conservative * losses.conservative(q, actions, mask)
    if value is not None:
        frozen = _of_written(frozen_q, actions)
        loss += losses.expectile(value, frozen, mask, expectile)
    return loss, diagnostics


def _check_of_words(q, actions, named):
    """Raise UsageError for types that can't be learned from, or not one number a word written."""
    if not (q.dtype.is_floating and actions.dtype.is_integer):
        raise UsageError(
            f"q must be of floats and actions of whole numbers, not {q.dtype.name} and "
            f"{actions.dtype.name}."
        )
    for name, numbers in named.items():
        if numbers is not None and not numbers.shape.is_compatible_with(actions.shape):
            raise UsageError(f"{name} is {numbers.shape}, not {actions.shape} as actions are.")


def _check_values(q, actions, named):
    """Raise UsageError for values neither of the words written nor of all of them."""
    words = q.shape[-1:] if q.shape.rank == actions.shape.rank + 1 else [None]
    of_all = actions.shape.concatenate(words)
    for name, values in dict(q=q, **named).items():
        if values is None:
            continue
        if not any(map(values.shape.is_compatible_with, (actions.shape, of_all))):
            raise UsageError(
                f"{name} is {values.shape}, neither {actions.shape} as actions are nor {of_all}, "
                "with an axis of all words."
            )


def _of_written(q, actions):
    """Values of the words written: [B, P, A] or those already, [B, P] -> [B, P]."""
    return q if q.shape.rank == actions.shape.rank else losses.select_actions(q, actions)


# -------------------------------------------------------------------------------------------------
# What the encoder makes of a batch


def hidden_at(transformer, text, at):
    """What the encoder makes of texts [B, T] at tokens [B, P]: [B, P, D]."""
    return tf.gather(transformer(text), at, axis=1, batch_dims=1)


def summary_token(transformer, text):
    """Which token of texts [B, T] sums them up: [B, 1].

    The first one, or, if the encoder is causal, the last.
    """
    if not transformer.causal:
        return tf.zeros_like(text[:, :1])
    pad = transformer.bert.config.pad_token_id or 0
    places = tf.where(text != pad, tf.range(tf.shape(text)[1]), 0)
    return tf.reduce_max(places, axis=1, keepdims=True)


class Decisions(NamedTuple):
    """A batch as the loss sees it, whichever way it is learned from."""

    now: tf.Tensor  # [B, P, D] hidden states at the decisions
    behind: tf.Tensor  # [B, P, D] behind them
    action: tf.Tensor  # [B, P] int32
    reward: tf.Tensor  # [B, P]
    discount: tf.Tensor  # [B, P]
    mask: tf.Tensor  # [B, P]
    cloned: tf.Tensor  # [B, P] 1 where the policy clones the action


def encode_batch(transformer, batch):
    """A Transition or Episode of tensors [B, ...] as Decisions."""
    imitated = tf.cast(with_imitated(batch).imitated, tf.float32)[:, None]
    if isinstance(batch, Episode):
        x = hidden_at(transformer, batch.text, batch.at)
        fields = (batch.action, batch.reward, batch.discount, batch.mask)
        return Decisions(x[:, :-1], x[:, 1:], *fields, batch.mask * imitated)
    now = hidden_at(transformer, batch.state, summary_token(transformer, batch.state))
    behind = hidden_at(transformer, batch.next_state, summary_token(transformer, batch.next_state))
    fields = (batch.action, batch.reward, batch.discount, tf.ones_like(batch.reward))
    return Decisions(now, behind, *(field[:, None] for field in fields), imitated)


# -------------------------------------------------------------------------------------------------
# The update


class Term(NamedTuple):
    """A term of the loss."""

    loss: tf.Tensor  # scalar
    diagnostics: dict  # of scalars
    weight: tf.Tensor  # scalar, of the decisions that loss and diagnostics are the mean of


def make_terms(transformer, head, target_transformer, target_head, cfg) -> Callable:
    """`terms(batch) -> [Term]` of the loss that a TextConfig asks for."""
    imitates = cfg.method in IMITATING

    def in_units(values):
        """Values as they are learned, in the unit of both heads."""
        return values / head.unit

    def bootstrap(batch, seen):
        """What `custom_loss` is given of the states behind, by the method: (next_q, options)."""
        if cfg.method == "implicit":
            next_q = tf.stop_gradient(in_units(head.value(seen.behind)))
            target = encode_batch(target_transformer, batch)
            frozen_q = in_units(target_head.chosen(target.now, seen.action))
            value = in_units(head.value(seen.now))
            return next_q, dict(value=value, frozen_q=frozen_q, expectile=cfg.expectile)
        target = encode_batch(target_transformer, batch)
        chosen_by = losses.mask_implausible(
            head(seen.behind), head.prior(seen.behind), cfg.plausible
        )
        next_q = in_units(target_head(target.behind))
        options = dict(next_q_online=tf.stop_gradient(chosen_by))
        if cfg.advantage_learning:
            options.update(
                frozen_q=in_units(target_head(target.now)),
                advantage_learning=cfg.advantage_learning,
            )
        return next_q, options

    def value_term(batch, seen):
        discounts = seen.discount
        if cfg.method == "montecarlo":  # rewards are whole returns: nothing to bootstrap from
            next_q = tf.zeros_like(seen.reward)
            discounts = tf.zeros_like(discounts)
            options = {}
        else:
            next_q, options = bootstrap(batch, seen)
        # The conservative term asks for all words.
        q = head(seen.now) if cfg.conservative else head.chosen(seen.now, seen.action)
        loss, diagnostics = custom_loss(
            in_units(q),
            seen.action,
            in_units(seen.reward),
            next_q,
            1.0 - discounts,
            gamma=cfg.gamma,
            mask=seen.mask,
            delta=cfg.huber_delta,
            conservative=cfg.conservative,
            **options,
        )
        diagnostics = {name: head.unit * value for name, value in diagnostics.items()}
        return Term(loss, diagnostics, tf.reduce_sum(seen.mask)), options

    def cloning_term(seen, options):
        mask = seen.cloned
        if cfg.advantage_weighting:
            advantages = options["frozen_q"] - options["value"]
            mask *= losses.advantage_weights(advantages, cfg.advantage_weighting)
        entropy = losses.cloning(head.prior(seen.now), seen.action, mask)
        weight = 1.0 if imitates else cfg.cloning
        return Term(weight * entropy, dict(cloning=entropy), tf.reduce_sum(mask))

    def terms(batch):
        seen = encode_batch(transformer, batch)
        made = []
        options = {}
        if not imitates:
            term, options = value_term(batch, seen)
            made.append(term)
        if imitates or cfg.cloning:
            made.append(cloning_term(seen, options))
        return made

    return terms


def diagnostics_of(cfg):
    """The names of the diagnostics of each term that `make_terms` makes."""
    names = [] if cfg.method in IMITATING else [("q_mean", "td_error")]
    if cfg.method in IMITATING or cfg.cloning:
        names.append(("cloning",))
    return names


def make_text_update(
    transformer, head, target_transformer, target_head, optimizer, cfg, strategy=None
) -> Callable:
    """Compile `update(batch) -> diagnostics`: one step of the optimizer; the target follows.

    `batch` is a Transition or Episode of tensors [B, ...]. The encoder's masks are renewed outside,
    by `prune_step`. With a tf.distribute.Strategy the batch is shared evenly by its devices, whose
    gradients are added up; of several processes each is given the whole batch and takes its share.
    The weights stay where they were made. Raises UsageError for a batch that can't be shared.
    """
    weights = [*transformer.bert.trainable_variables, *head.trainable_variables]
    _build(optimizer, weights)
    pairs = [
        *zip(target_transformer.bert.weights, transformer.bert.weights),
        *zip(target_head.weights, head.weights),
    ]
    terms = make_terms(transformer, head, target_transformer, target_head, cfg)
    missing = dict.fromkeys(("q_mean", "td_error", "cloning"), math.nan)  # of what is not learned

    def gradients_of(tape, loss):
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        # As slices, each mention of a token would count apart in the norm.
        return [tf.convert_to_tensor(gradient) for gradient in gradients]

    def apply(gradients):
        gradients, norm = tf.clip_by_global_norm(gradients, cfg.max_grad_norm)
        optimizer.apply_gradients(zip(gradients, weights))
        for target, online in pairs:
            if target.dtype.is_floating:
                target.assign_add(cfg.target_tau * (online - target))
        return norm

    @traced(jit_compile=JIT)
    def update(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            made = terms(batch)
            loss = tf.add_n([term.loss for term in made])
        norm = apply(gradients_of(tape, loss))
        diagnostics = {name: tf.constant(value) for name, value in missing.items()}
        for term in made:
            diagnostics.update(term.diagnostics)
        return dict(diagnostics, loss=loss, grad_norm=norm)

    if strategy is None:
        return update
    check_even(cfg, strategy)
    means = _make_shared_means(weights, terms, gradients_of, strategy)
    apply = traced(apply, jit_compile=JIT)

    @traced
    def shared_update(batch):
        diagnostics = {name: tf.constant(value) for name, value in missing.items()}
        loss = 0.0
        gradient = 0.0
        for names, mean in zip(diagnostics_of(cfg), means(batch)):
            diagnostics.update(zip(names, tf.unstack(mean[1 : 1 + len(names)])))
            loss += mean[0]
            gradient += mean[1 + len(names) :]
        sizes = [int(np.prod(variable.shape)) for variable in weights]
        gradients = [
            tf.reshape(part, variable.shape)
            for part, variable in zip(tf.split(gradient, sizes), weights)
        ]
        return dict(diagnostics, loss=loss, grad_norm=apply(gradients))

    return shared_update


def _build(optimizer, weights):
    """Let an optimizer make its slots. Raises UsageError for one that can't be used."""
    if not isinstance(optimizer, tf.keras.optimizers.Optimizer):
        raise UsageError(
            f"The optimizer is a {type(optimizer).__module__}.{type(optimizer).__name__}; give one "
            "of tf.keras.optimizers (not legacy), or None for Adam."
        )
    optimizer.build(weights)  # which does nothing the second time
    if any(optimizer._var_key(weight) not in optimizer._index_dict for weight in weights):
        raise UsageError("The optimizer belongs to networks made before; make a new one for these.")


def _make_shared_means(weights, terms, gradients_of, strategy):
    """`means(batch) -> [vector]`: each term's loss, diagnostics and gradient over all devices."""
    group = make_group(strategy)

    # XLA reads no weights from another device.
    @traced(jit_compile=JIT and strategy.num_replicas_in_sync == group.size)
    def vectors(batch):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(weights)
            made = terms(batch)
        pairs = []
        for term in made:
            flat = [tf.reshape(gradient, [-1]) for gradient in gradients_of(tape, term.loss)]
            numbers = tf.stack([term.loss, *term.diagnostics.values()])
            pairs.append((term.weight, tf.concat([numbers, *flat], 0)))
        return pairs

    means = make_means(
        strategy,
        lambda batch, part, parts: vectors(slice_batch(batch, part, parts)),
        least=1e-6,
    )
    return lambda batch: means(slice_batch(with_imitated(batch), group.rank, group.size))


# -------------------------------------------------------------------------------------------------
# Training


def make_optimizer(cfg, epochs, data_loader):
    """Adam at the rates of a TextConfig, for so many passes over a loader.

    Raises UsageError if the rate changes and the loader has no length.
    """
    try:
        batches = len(data_loader)
    except TypeError:
        batches = 1
        if cfg.learning_rate != cfg.final_learning_rate:
            raise UsageError(
                "data_loader has no length, so it is unknown when final_learning_rate is reached; "
                "give it a __len__, set both rates to the same, or give an optimizer."
            ) from None
    updates = max(1, epochs * batches * cfg.updates_per_batch)
    rate = tf.keras.optimizers.schedules.PolynomialDecay(
        cfg.learning_rate, updates, cfg.final_learning_rate
    )
    return tf.keras.optimizers.Adam(rate)


def train_model(
    transformer,
    dq_learning_model,
    optimizer,
    epochs,
    tokenizer,
    data_loader,
    replay_buffer,
    device="cpu",
    *,
    cfg=None,
    reward_fn=None,
    length=64,
    seed=0,
    strategy=None,
    evaluate=None,
    evaluate_every=500,
    log=None,
    save=None,
    saved=None,
    should_stop=None,
):
    """Train the encoder and the Q-head together, and return the last TextMetrics.

    Every batch of `data_loader` goes into the replay buffer, and `cfg.updates_per_batch` updates on
    samples of it follow.

    Args:
      transformer: PrunedTransformerModel. dq_learning_model: DeepQLearningModel.
      optimizer: one of tf.keras (Keras 2), used as it is: the rates of `cfg` are then not read.
        None makes Adam, whose rate moves from `cfg.learning_rate` to `cfg.final_learning_rate`.
      epochs: passes over `data_loader`, which must give the same batches in every pass if runs are
        to be resumed exactly.
      tokenizer: turns batches of strings into token ids; not asked for batches of Transition or
        Episode.
      data_loader: iterable over batches: Transition or Episode of arrays [B, ...], or strings,
        whose every word is a decision.
      replay_buffer: ExperienceReplay.
      device: "cpu", "gpu" or a name of TensorFlow's such as "/GPU:0"; not asked for with a
        strategy.
      cfg: TextConfig. With `reward_units` the unit of a head that was trained so stays as it is.
      reward_fn: text -> float, for strings.
      length: tokens a string is cut or padded to.
      seed: of what is drawn from the replay buffer.
      strategy: a tf.distribute.Strategy on whose devices every batch is learned from together. Of
        a MultiWorkerMirroredStrategy every process must be given the same data, networks and
        settings.
      evaluate: called as evaluate() every `evaluate_every` updates and at the end -> mean return,
        for the log.
      log: called as log(TextMetrics) behind each batch, and once more with last=True behind the
        last evaluation.
      save: called as save(step, make, last=...) behind each batch; make() is the tree to save.
      saved: such a tree, to go on from.
      should_stop: asked behind each batch.

    Raises UsageError for what can't be trained on, and Diverged, without another save, when the
    loss or its gradient is not finite. No exception of the loader, the reward, the evaluation or
    the log is swallowed, but what was learned is saved before it goes on: an evaluation that fails
    does so behind the batch that it came in, and the last one behind the last checkpoint.

    >>> train_model(encoder, head, None, 2, tokenizer, [["a text"]], ExperienceReplay(10_000),
    ...             cfg=TextConfig(batch_size=32), reward_fn=len)
    """
    cfg = cfg or TextConfig()
    check_text(cfg)
    if tokenizer is not None and reward_fn is not None:  # which strings need
        check_whole(2, length=length)
        transformer.check_reads(length, len(tokenizer))
    check_whole(1, epochs=epochs, evaluate_every=evaluate_every)
    width = transformer.bert.config.hidden_size
    if dq_learning_model.input_dim != width:
        raise UsageError(
            f"The head reads states of {dq_learning_model.input_dim} numbers, the encoder gives "
            f"{width}; make the head with input_dim={width}."
        )
    group = make_group(strategy)
    check_same(group, repr((cfg, seed, epochs)), *_arrays(transformer), *_arrays(dq_learning_model))
    with _device_scope(device, strategy):
        if optimizer is None:
            optimizer = make_optimizer(cfg, epochs, data_loader)
        targets = (transformer.copy(), dq_learning_model.copy())
        networks = (transformer, dq_learning_model, *targets)
        update = make_text_update(*networks, optimizer, cfg, strategy)
        progress = Progress()
        if saved is not None:
            progress = _restore(saved, networks, optimizer, replay_buffer)

        def snapshot():
            return dict(
                weights=[array for network in networks for array in _arrays(network)],
                optimizer=[np.asarray(variable) for variable in _variables(optimizer)],
                replay=replay_buffer.arrays(),
                place=dict(progress.tree(), unit_known=dq_learning_model.unit_known),
            )

        @traced
        def draw_and_update(step):
            seeds = tf.stack([tf.constant(seed, tf.int64), step])
            return update(replay_buffer.draw(cfg.batch_size, seeds))

        failures = []  # of evaluations, raised when the batch is whole and saved

        def measure():
            try:
                progress.mean_return = float(evaluate())
            except BaseException as failure:  # sys.exit in a reward included
                if is_ctrl_c(failure):
                    raise
                failures.append(failure)

        def learn():
            """One update, and what belongs to it."""
            with lost_learner_ends_run(group.size):
                diagnostics = draw_and_update(tf.constant(progress.step, tf.int64))
                diagnostics = {name: value.numpy() for name, value in diagnostics.items()}
            transformer.prune_step()
            progress.step += 1
            if evaluate and progress.step % evaluate_every == 0 and not failures:
                measure()
            return diagnostics

        def save_now(last=True):
            if save and progress.step:  # else nothing was learned
                save(progress.step, snapshot, last=last)

        while progress.epoch < epochs:
            decisions = progress.batch  # those of a resumed pass are not counted again
            for items in _batches_left(data_loader, progress, save_now):
                with _saved_first(save_now):
                    items = _as_items(items, tokenizer, length, reward_fn, cfg)
                    check_items(items, transformer, dq_learning_model)
                decisions += _count_learned(items, cfg)
                if len(items.action) == 0 and not len(replay_buffer):
                    progress.batch += 1
                    continue  # there is nothing to draw from yet
                replay_buffer.extend(items)
                if cfg.reward_units and not dq_learning_model.unit_known:
                    _adapt_units(items, *networks[1::2])
                for _ in range(cfg.updates_per_batch):
                    diagnostics = learn()
                progress.finish_batch(len(items.action), diagnostics)
                with _saved_first(save_now):
                    if log:
                        log(progress.metrics())
                    if failures:
                        raise failures[0]
                stop = should_stop is not None and should_stop()
                stop = bool(group.all_sum([float(stop)])[0])  # a signal to one learner stops all
                save_now(last=stop)
                if stop:
                    return progress.metrics()
            with _saved_first(save_now):
                progress.finish_epoch()
            if not decisions:
                raise UsageError(
                    "Nothing was learned, for the tokenizer knows no word of the texts, or none of "
                    "them is to be imitated; give texts and a tokenizer of one language."
                )
        save_now()  # before the last evaluation, which may fail
        if evaluate:
            progress.mean_return = float(evaluate())
            if log:
                log(progress.metrics(), last=True)
    return progress.metrics()


class Progress:
    """How far training is."""

    def __init__(self):
        self.epoch = 0
        self.batch = 0  # of this epoch
        self.step = 0
        self.samples = 0
        self.mean_return = math.nan
        self.diagnostics = dict.fromkeys(
            ("loss", "q_mean", "td_error", "cloning", "grad_norm"), math.nan
        )

    def finish_batch(self, samples, diagnostics):
        """Count a batch. Raises Diverged if its loss is no number."""
        diagnostics = {name: float(value) for name, value in diagnostics.items()}
        if not (math.isfinite(diagnostics["loss"]) and math.isfinite(diagnostics["grad_norm"])):
            raise Diverged(
                f"{DIVERGED} at update {self.step} (loss {diagnostics['loss']:g}, grad_norm "
                f"{diagnostics['grad_norm']:g}); start again with a lower --learning-rate, or look "
                "for odd rewards."
            )
        self.batch += 1
        self.samples += samples
        self.diagnostics = diagnostics

    def finish_epoch(self):
        """Count a pass. Raises UsageError if nothing was learned in it, or nothing at all."""
        if self.batch == 0 and self.step:
            raise UsageError(
                f"The data loader gave nothing in pass {self.epoch + 1}; give one that can be gone "
                "through again, as a list or a tf.data.Dataset, for a generator is used up."
            )
        if self.step == 0:
            raise UsageError(
                "The run ended before its first update, for the data loader gave nothing to learn "
                "from; give it texts of at least one window."
            )
        self.epoch += 1
        self.batch = 0

    def metrics(self):
        return TextMetrics(self.step, self.samples, self.mean_return, **self.diagnostics)

    def tree(self):
        """As a checkpoint keeps it, under the names that 0.1 gave."""
        return dict(
            epoch=self.epoch,
            batch=self.batch,
            step=self.step,
            games=self.samples,
            mean_return=self.mean_return,
            diagnostics=self.diagnostics,
        )

    def restore(self, tree):
        """Put back what `tree` gave."""
        self.epoch = tree["epoch"]
        self.batch = tree["batch"]
        self.step = tree["step"]
        self.samples = tree["games"]
        self.mean_return = tree["mean_return"]
        self.diagnostics = tree.get("diagnostics", self.diagnostics)


def _device_scope(device, strategy):
    """What puts the block's variables on a device. Raises UsageError for one that there is not."""
    if strategy is not None:
        return contextlib.nullcontext()
    name = device if "/" in device else f"/{device.upper()}:0"
    try:
        asked = tf.DeviceSpec.from_string(name)
        devices = tf.config.list_logical_devices(asked.device_type)
        there = [tf.DeviceSpec.from_string(found.name).device_index for found in devices]
    except ValueError:
        there = []
    # TensorFlow would take the CPU in the place of one that is missing.
    if not there or asked.device_index not in there:
        raise UsageError(
            f"There is no device {device}; give cpu, gpu, or a device's name in TensorFlow such as "
            "/GPU:0."
        )
    return tf.device(name)


@contextlib.contextmanager
def _saved_first(save_now):
    """What was learned is saved before a failure of the block goes on."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):  # whoever stops twice wants it at once
        raise
    except BaseException:
        save_now()
        raise


def _batches_left(data_loader, progress, save_now):
    """The batches of this pass that were not learned from; saves before a failure goes on."""
    with _saved_first(save_now):
        yield from itertools.islice(data_loader, progress.batch, None)


def check_items(items, transformer, head):
    """Raise UsageError unless the networks can learn from a batch, and have numbers for all of it.

    XLA would not: behind the end of a table it reads numbers from elsewhere.
    """
    if isinstance(items, Episode) and not transformer.causal:
        raise UsageError(
            "Where every word of a text is a decision, the encoder would see the word that it is "
            "to choose; make it with causal=True, or give batches of Transition."
        )
    texts = [items.text] if isinstance(items, Episode) else [items.state, items.next_state]
    for ids in map(np.asarray, texts):
        if ids.size:
            transformer.check_reads(ids.shape[-1], int(ids.max()) + 1)
            _check_range("token ids", ids, transformer.vocabulary)
    _check_range("actions", items.action, head.action_dim)
    if isinstance(items, Episode):
        _check_range("places of decisions", items.at, np.shape(items.text)[-1])


def _check_range(what, numbers, end):
    numbers = np.asarray(numbers)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < end:
        raise UsageError(
            f"The batch has {what} from {numbers.min()} to {numbers.max()}; they must lie between "
            f"0 and {end - 1}."
        )


def _as_items(items, tokenizer, length, reward_fn, cfg):
    """A batch of the loader as a Transition or Episode."""
    if isinstance(items, (Transition, Episode)):
        return items
    if isinstance(items, tf.Tensor):
        items = items.numpy().tolist()
    texts = [_decoded(text) if isinstance(text, bytes) else text for text in as_list(items)]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError("The data loader must give batches of strings, Transition or Episode.")
    if reward_fn is None:
        raise UsageError(
            "Batches of strings need a reward_fn (text -> float) that says what a text is worth."
        )
    return prepared_episodes(tokenizer, token_rows(tokenizer, texts), length, reward_fn, cfg)


def _decoded(text):
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"The data loader gives {text[:40]!r}, which is not UTF-8; decode it, and give strings."
        ) from None


def _count_learned(items, cfg):
    """How many decisions of a batch something is learned from."""
    if cfg.method in IMITATING:
        items = take_imitated(items)
    return np.sum(getattr(items, "mask", len(items.action)))


def _adapt_units(items, head, target_head):
    """Set the unit of both heads by the rewards of a batch, of what is imitated if anything is."""
    imitated = take_imitated(items)
    if len(imitated.action):
        items = imitated
    rewards = np.asarray(items.reward)
    if isinstance(items, Episode):
        rewards = rewards[np.asarray(items.mask) > 0]
    head.adapt_to_rewards(rewards)
    target_head.unit.assign(head.unit)


def _variables(optimizer):
    return optimizer.variables() if callable(optimizer.variables) else optimizer.variables


def _arrays(network):
    return [np.asarray(variable) for variable in network.variables]


def saved_weights(saved, networks):
    """The arrays of a checkpoint, of which older ones lack the unit of each head."""
    weights = list(saved["weights"])
    if "unit_known" not in saved["place"]:
        ends = np.cumsum([len(network.variables) for network in networks])
        for network, end in zip(networks, ends):
            if hasattr(network, "unit"):
                weights.insert(end - 1, np.ones((), np.float32))
    return weights


def restore_networks(saved, networks, *, others=False):
    """Put a checkpoint's weights into its networks: whether they fit; if not, nothing is put back.

    others: whether it may hold more networks, behind these.
    """
    variables = [variable for network in networks for variable in network.variables]
    weights = saved_weights(saved, networks)
    if others:
        weights = weights[: len(variables)]
    if [variable.shape for variable in variables] != [array.shape for array in weights]:
        return False
    for variable, array in zip(variables, weights):
        variable.assign(array)
    for network in networks:
        if hasattr(network, "unit"):
            network.unit_known = saved["place"].get("unit_known", True)
    return True


def _restore(saved, networks, optimizer, replay_buffer):
    """Put back what a checkpoint holds: -> Progress."""
    if not restore_networks(saved, networks):
        raise UsageError(
            "The checkpoint holds networks of other sizes; resume with the settings that the run "
            "was started with."
        )
    for variable, array in zip(_variables(optimizer), saved["optimizer"]):
        variable.assign(array)
    replay_buffer.restore(saved["replay"])
    progress = Progress()
    progress.restore(saved["place"])
    return progress
