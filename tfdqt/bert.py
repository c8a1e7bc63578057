"""The text encoder: a BERT pruned by TensorFlow Model Optimization, and the head that values next words.

These are tf_keras (Keras 2) models, because transformers and TF-MOT are. Never mix their layers with those of `gpt`.
"""

import contextlib
import json
import math
from pathlib import Path

import numpy as np

from tfdqt.backend import quiet, tf
from tfdqt.checks import check_text_network
from tfdqt.config import UsageError

with quiet():
    import tf_keras
    import transformers
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
    from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

    transformers.logging.set_verbosity_error()


def load_encoder(source, *, causal=None):
    """A transformers TF encoder from a hub name, a local folder (TensorFlow or PyTorch safetensors weights) or a config.

    Args:
      source: hub name such as "bert-base-uncased", folder of `save_pretrained`, or a transformers config (fresh weights).
      causal: True makes a BERT a decoder, whose every position sees only the text before it; None leaves it as it is.

    Raises UsageError, with what to do, if it can't be loaded.
    """
    overrides = {} if causal is None else dict(is_decoder=causal)
    if isinstance(source, transformers.PretrainedConfig):
        config = type(source).from_dict({**source.to_dict(), **overrides})
        return _build(config)
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UsageError(f"{source} has no config.json; give a folder that save_pretrained wrote, or a hub name.")
    with _said(f"The encoder {source} can't be found here or on the Hugging Face hub (%s); give a local folder with config.json and "
               "weights, or go online once."):
        config = transformers.AutoConfig.from_pretrained(source, **overrides)
    torch_file = folder / "model.safetensors"
    if not folder.is_dir():
        with quiet():
            cached = transformers.utils.cached_file(str(source), "model.safetensors", _raise_exceptions_for_missing_entries=False)
        torch_file = Path(cached or torch_file)
    if torch_file.is_file() and _safetensors_format(torch_file) == "pt":
        # transformers' own loader wants PyTorch here (its issue 40028); its conversion of plain arrays does not.
        import safetensors.numpy
        from transformers.modeling_tf_pytorch_utils import load_pytorch_state_dict_in_tf2_model

        model = _build(config)
        with _said(f"{torch_file} does not hold this encoder's weights (%s); fetch it again.", safetensors.SafetensorError):
            load_pytorch_state_dict_in_tf2_model(model, safetensors.numpy.load_file(torch_file), tf_inputs=False, allow_missing_keys=True)
        return model
    with _said(f"The weights of {source} can't be loaded in TensorFlow (%s); give a folder with model.safetensors or tf_model.h5 of an "
               "encoder that transformers has for TensorFlow."):
        return transformers.TFAutoModel.from_pretrained(source, config=config)


def load_tokenizer(source):
    """The tokenizer that belongs to an encoder of `load_encoder`. Raises UsageError if there is none."""
    with _said(f"There is no tokenizer with the encoder {source} (%s); give a folder that holds one."):
        return transformers.AutoTokenizer.from_pretrained(source)


def _build(config):
    with _said(f"transformers has no TensorFlow encoder for {type(config).__name__} (%s); use a BERT-like one."):
        model = transformers.TFAutoModel.from_config(config)
        model.build_in_name_scope()
    return model


@contextlib.contextmanager
def _said(sentence, *others):
    """What goes wrong in transformers while it loads becomes a UsageError, its first line in place of %s; its noise is held back."""
    with quiet():
        try:
            yield
        except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, *others) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UsageError(sentence % line) from None


def _safetensors_format(path):
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > 100_000_000:
            return None
        try:
            return json.loads(file.read(size)).get("__metadata__", {}).get("format", "pt")
        except ValueError:
            raise UsageError(f"{path} is not a safetensors file; fetch it again.") from None


def dense_kernels(model):
    """The kernels of every Dense layer in `model`, in the order of its layers."""
    found = {}
    for layer in model.submodules:
        if isinstance(layer, tf_keras.layers.Dense):
            found.setdefault(layer.kernel.ref(), layer.kernel)
    return list(found.values())


def sparsity(model):
    """Which part of the weights in a model's Dense kernels is exactly zero, from 0 to 1."""
    kernels = dense_kernels(model)
    zeros = sum(int(tf.math.count_nonzero(kernel == 0)) for kernel in kernels)
    return zeros / max(1, sum(kernel.shape.num_elements() for kernel in kernels))


class PrunedTransformerModel(tf_keras.Model):
    """A BERT whose smallest weights are zero and stay zero while it learns (Zhu and Gupta, 2017, by TF-MOT).

    Args:
      source: as for `load_encoder`.
      pruning_amount: part of every Dense kernel to set to zero, 0 to less than 1.
      schedule: "constant" prunes at once and again every `frequency` steps; "polynomial" raises the part from 0 to
        `pruning_amount` between `begin_step` and `end_step`.
      pattern: "unstructured", "block" (whole blocks of `block_size`) or "2:4" (two of every four in a row; its amount is 0.5).
      causal: True turns a BERT into a decoder.

    Call: input_ids [B, T] int32, attention_mask [B, T] (by default 1 where the id is not the padding) -> [B, T, D].
    `prune_step()` belongs behind every step of the optimizer. Raises UsageError for what can't be.
    """

    def __init__(self, source="bert-base-uncased", pruning_amount=0.2, *, schedule="constant", begin_step=0, end_step=1_000,
                 frequency=100, pattern="unstructured", block_size=(4, 1), causal=None):
        super().__init__(name="pruned_transformer")
        if not 0 <= pruning_amount < 1:
            raise UsageError(f"pruning_amount must be at least 0 and less than 1, not {pruning_amount}.")
        if schedule not in ("constant", "polynomial") or pattern not in ("unstructured", "block", "2:4"):
            raise UsageError("schedule must be constant or polynomial, and pattern unstructured, block or 2:4.")
        if pattern == "2:4" and pruning_amount not in (0, 0.5):
            raise UsageError(f"The pattern 2:4 sets half of the weights to zero; give pruning_amount=0.5, not {pruning_amount}.")
        self.bert = load_encoder(source, causal=causal)
        self.causal = bool(getattr(self.bert.config, "is_decoder", False))
        if self.causal and self._looks_ahead():
            raise UsageError(f"{type(self.bert).__name__} also reads what stands behind a word; use a BERT or RoBERTa to write.")
        self.steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="pruning_steps")
        self.masks = []
        if pruning_amount:
            self._make_pruner(pruning_amount, schedule, begin_step, end_step, frequency, pattern, block_size)

    def _make_pruner(self, pruning_amount, schedule, begin_step, end_step, frequency, pattern, block_size):
        kernels = dense_kernels(self.bert)
        self.masks = [tf.Variable(tf.ones_like(kernel), trainable=False, name=f"mask{i}") for i, kernel in enumerate(kernels)]
        thresholds = [tf.Variable(0.0, trainable=False, name=f"threshold{i}") for i in range(len(kernels))]
        if schedule == "constant":
            plan = ConstantSparsity(pruning_amount, begin_step, frequency=frequency)
        else:  # the last step must be one at which masks are renewed, or the amount is not reached
            plan = PolynomialDecay(0.0, pruning_amount, begin_step, end_step, frequency=math.gcd(frequency, end_step - begin_step))
        pruner = pruning_impl.Pruning(lambda: self.steps, list(zip(kernels, self.masks, thresholds)), plan,
                                      block_size if pattern == "block" else (1, 1), "AVG", (2, 4) if pattern == "2:4" else None)

        @tf.function
        def step():
            if pattern == "2:4":  # its mask is made when the step is 1, whatever the schedule
                self.steps.assign_add(1)
            with tf.control_dependencies([pruner.conditional_mask_update()]):
                pruner.weight_mask_op()
            if pattern != "2:4":
                self.steps.assign_add(1)

        self._prune = step
        if schedule == "constant" and begin_step == 0:
            step()

    def _looks_ahead(self):
        """Whether the state of a token depends on the one behind it."""
        ids = [i for i in range(min(8, self.bert.config.vocab_size)) if i != self.bert.config.pad_token_id][-3:]
        one, other = self(tf.constant([ids[:2]])), self(tf.constant([[ids[0], ids[2]]]))
        return float(tf.reduce_max(tf.abs(one[:, 0] - other[:, 0]))) > 1e-5

    def prune_step(self):
        """Count a step of the optimizer, renew the masks when the schedule says so, and set what they cover to zero."""
        if self.masks:
            self._prune()

    def call(self, input_ids, attention_mask=None):
        if attention_mask is None:
            attention_mask = tf.cast(input_ids != (self.bert.config.pad_token_id or 0), tf.int32)
        return self.bert(input_ids=input_ids, attention_mask=attention_mask, training=False).last_hidden_state

    def strip(self):
        """The pruned transformers model itself, zeros in place, free of masks."""
        return self.bert

    def save_pretrained(self, folder):
        """Write the pruned encoder so that transformers, and this class, load it again."""
        self.bert.save_pretrained(folder, safe_serialization=True)

    def copy(self):
        """A second, unpruned network of the same shape and weights; for a target network."""
        twin = PrunedTransformerModel(self.bert.config, 0.0)
        twin.bert.set_weights(self.bert.get_weights())
        return twin


class DeepQLearningModel(tf_keras.Model):
    """Values of the next words: [..., input_dim] -> Q [..., action_dim].

    Args:
      hidden: sizes of the hidden layers.
      features: [action_dim, F] what each action is made of, such as the letters of a word. An action's value is then also a sum
        over its features, so that what is learned of one action holds for those like it.
      saturating: whether that sum counts by its softplus only, which is 0 for all that is ruled out, by however many of its features.
      dueling: whether Q is a value of the state and, around it, advantages of mean 0 (Wang et al., 2016), so that what every action of a
        state is worth is learned from all of them.

    Besides Q it has `value(x)` -> V [...], for implicit Q-learning (Kostrikov et al., 2022), and `prior(x)` -> logits
    [..., action_dim] of the actions in the data (the cloned policy), each behind hidden layers of its own.
    """

    def __init__(self, input_dim=768, action_dim=10, *, hidden=(256,), features=None, saturating=False, dueling=False):
        super().__init__(name="deep_q_learning")
        if min((input_dim, action_dim, *hidden)) < 1:
            raise UsageError(f"input_dim, action_dim and hidden must be positive, not {input_dim}, {action_dim}, {tuple(hidden)}.")
        self.input_dim, self.action_dim, self.hidden = input_dim, action_dim, tuple(hidden)
        self.features, self.saturating = None if features is None else np.asarray(features, np.float32), saturating
        self.dueling = dueling
        count = 0 if features is None else self.features.shape[1]

        def branch(units, name):
            parts = [tf_keras.layers.Dense(size, activation="relu", kernel_initializer="he_uniform") for size in self.hidden]
            branch = tf_keras.Sequential([*parts, tf_keras.layers.Dense(units)], name=name)
            branch.build((None, input_dim))
            return branch

        self.q, self.v, self.cloned = branch(dueling + action_dim + count, "q"), branch(1, "v"), branch(action_dim + count, "cloned")
        self.built = True

    def _actions(self, y):
        if self.features is None:
            return y
        total = tf.tensordot(y[..., self.action_dim:], self.features.T, 1)
        return y[..., :self.action_dim] + (tf.nn.softplus(total) if self.saturating else total)

    def call(self, x):
        y = self.q(x)
        if not self.dueling:
            return self._actions(y)
        advantages = self._actions(y[..., 1:])
        return y[..., :1] + advantages - tf.reduce_mean(advantages, axis=-1, keepdims=True)

    def value(self, x):
        return self.v(x)[..., 0]

    def prior(self, x):
        return self._actions(self.cloned(x))

    def copy(self):
        """A second network of the same shape and weights."""
        twin = DeepQLearningModel(self.input_dim, self.action_dim, hidden=self.hidden, features=self.features, saturating=self.saturating,
                                  dueling=self.dueling)
        twin.set_weights(self.get_weights())
        return twin


def build_text_networks(cfg, *, vocabulary, length, num_actions, causal, features=None):
    """The encoder and head of a TextNetworkConfig, for texts of `length` tokens out of `vocabulary`: -> (transformer, head)."""
    check_text_network(cfg)
    source = cfg.encoder or transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=cfg.width, num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads,
        intermediate_size=4 * cfg.width, max_position_embeddings=length)
    transformer = PrunedTransformerModel(source, cfg.pruning_amount, schedule=cfg.pruning_schedule, end_step=cfg.pruning_end,
                                         pattern=cfg.pruning_pattern, causal=causal)
    if transformer.bert.config.max_position_embeddings < length:
        raise UsageError(f"The encoder reads {transformer.bert.config.max_position_embeddings} tokens, not {length}; shorten the text.")
    return transformer, DeepQLearningModel(transformer.bert.config.hidden_size, num_actions, hidden=cfg.hidden, features=features,
                                           saturating=cfg.saturating, dueling=cfg.dueling)
