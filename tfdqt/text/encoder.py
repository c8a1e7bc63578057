"""The text encoder: a BERT pruned by TensorFlow Model Optimization. Alone imports TF-MOT.

These are tf_keras (Keras 2) models, because transformers and TF-MOT are. Never mix their layers
with those of the games, which are Keras 3.
"""

import math
from pathlib import Path

import numpy as np

from tfdqt import memory
from tfdqt.backend import quiet, tf, traced
from tfdqt.errors import UsageError
from tfdqt.settings import check_whole, is_whole
from tfdqt.text import llama
from tfdqt.text.tokenizers import loading, tells_kind
from tfdqt.text.weights import (
    check_left_over,
    count_numbers,
    is_of_pytorch,
    read_array,
    read_weights,
    weight_files,
)

with quiet():
    import tf_keras
    import transformers
    from safetensors import SafetensorError
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
    from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay
    from transformers.modeling_tf_utils import TFConv1D

    transformers.logging.set_verbosity_error()

STRAIGHT = (*llama.KINDS, "gpt2", "mistral", "opt")  # whose language model ends in one matrix


def load_encoder(source, *, causal=None):
    """A transformers TF encoder from a hub name, a local folder or a config.

    Args:
      source: hub name such as "bert-base-uncased", folder of `save_pretrained` (TensorFlow or
        PyTorch safetensors weights), or a transformers config (fresh weights).
      causal: True makes a BERT a decoder, whose every position sees only the text before it; None
        leaves it as it is. GPT-2, LLaMA and their like are decoders always.

    Raises UsageError, with what to do, if it can't be loaded.
    """
    overrides = {} if causal is None else dict(is_decoder=causal)
    if isinstance(source, transformers.PretrainedConfig):
        _check_reads_texts(type(source).__name__, source)
        return _build(type(source).from_dict({**source.to_dict(), **overrides}))
    config = read_config(source, **overrides)
    if getattr(config, "quantization_config", None):
        raise UsageError(
            f"The weights of {source} are quantised; give the model in float32, float16 or "
            "bfloat16."
        )
    files = weight_files(source)
    if files:
        _check_room(source, count_numbers(files))
    if files and (config.model_type in llama.KINDS or is_of_pytorch(files)):
        return _build(config, source, files)
    if config.model_type in llama.KINDS:
        raise UsageError(
            f"{source} has no model.safetensors; give a folder with the weights of its "
            f"{config.model_type} in that format."
        )
    with loading(
        f"The weights of {source} can't be loaded in TensorFlow (%s); give a folder with "
        "model.safetensors or tf_model.h5 of an encoder that transformers has for TensorFlow.",
        SafetensorError,
        tf.errors.OpError,  # of weights of another shape
        TypeError,  # of PyTorch weights in several files (transformers issue 40028)
    ):
        model, found = transformers.TFAutoModel.from_pretrained(
            source, config=config, output_loading_info=True
        )
    _check_whole(source, found, config)
    return model


def read_config(source, **overrides):
    """The transformers config of a hub's name or a folder.

    Raises UsageError, with what to do, if there is none of an encoder.
    """
    folder = Path(source)
    here = folder.is_dir()
    if here and not (folder / "config.json").is_file():
        raise UsageError(
            f"{source} has no config.json; give a folder that save_pretrained wrote, or a hub name."
        )
    if not here and (folder.is_absolute() or len(folder.parts) > 2 or source.startswith(".")):
        raise UsageError(f"There is no folder {source}; give that of an encoder, or a hub name.")
    sentence = (
        f"The config.json of {source} is none of an encoder (%s); fetch it again."
        if here
        else f"The encoder {source} can't be found here or on the Hugging Face hub (%s); give a "
        "local folder with config.json and weights, or go online once."
    )
    if here and not tells_kind(folder / "config.json", "model_type"):
        raise UsageError(sentence % "it has no model_type")
    # A config.json may hold no object, or another kind of value than its key asks for.
    with loading(sentence, TypeError, AttributeError):
        config = transformers.AutoConfig.from_pretrained(source, **overrides)
    _check_reads_texts(source, config)
    return config


def _check_reads_texts(source, config):
    """Raise UsageError unless a model of this config makes one state of every token of a text."""
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{source} is an encoder with a decoder ({config.model_type}), which reads two texts; "
            "give an encoder alone, such as a BERT, or a decoder alone, such as a GPT-2."
        )
    sizes = (getattr(config, name, None) for name in ("vocab_size", "hidden_size"))
    if not all(isinstance(size, int) for size in sizes):
        raise UsageError(
            f"{source} ({config.model_type}) does not read texts of tokens; give a BERT-like "
            "encoder."
        )


def _check_room(source, numbers):
    """Raise UsageError unless so many weights fit memory, as float32."""
    memory.check_fits(
        4 * numbers,
        f"The {numbers:,} weights of {source} take",
        lambda room: (
            "and to learn takes five times as much; give an encoder of at most "
            f"{memory.round_down(room // (5 * 4)):,} weights."
        ),
    )


def _build(config, source=None, files=()):
    """The encoder of a config, with fresh weights or those of PyTorch in safetensors files.

    transformers' own loader wants PyTorch for those (its issue 40028); its conversion of plain
    arrays does not.
    """
    if config.model_type in llama.KINDS:
        model = llama.Decoder(config)
        if files:
            model.load(_read_weights(source, files), source)
        return model
    with loading(
        f"transformers makes no TensorFlow encoder of this {type(config).__name__} (%s); use a "
        "BERT-like one.",
        AssertionError,  # of GPT-2's heads, which must divide its width
    ):
        model = transformers.TFAutoModel.from_config(config)
        model.build_in_name_scope()
    if not files:
        return model
    from transformers.modeling_tf_pytorch_utils import load_pytorch_state_dict_in_tf2_model

    state = _read_weights(source, files)
    with _loading_weights(source):
        model, found = load_pytorch_state_dict_in_tf2_model(
            model, state, tf_inputs=False, allow_missing_keys=True, output_loading_info=True
        )
    _check_whole(source, found, config)
    return model


def _check_whole(source, found, config):
    """Raise UsageError if weights are missing, which would stay as they were drawn, or left over.

    But for the pooler's, which few files have and nothing here asks. found: transformers' report.
    """
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"{source} does not hold this encoder's weights (there is no {missing[0]}{more}); give "
            "a folder that save_pretrained wrote of the model itself."
        )
    check_left_over(source, found["unexpected_keys"], config)


def _read_weights(source, files):
    with _loading_weights(source):
        return read_weights(files)


def _loading_weights(source):
    sentence = f"{source} does not hold this encoder's weights (%s); fetch it again."
    return loading(sentence, SafetensorError, tf.errors.OpError)  # the latter of another shape


def dense_kernels(model):
    """The kernels of every Dense layer in `model`, in the order of its layers.

    So are GPT-2's, which transformers calls Conv1D: a matrix [inputs, outputs] as Dense has it.
    """
    kernels = {}
    for layer in model.submodules:
        if isinstance(layer, tf_keras.layers.Dense):
            kernels.setdefault(layer.kernel.ref(), layer.kernel)
        elif isinstance(layer, TFConv1D):
            kernels.setdefault(layer.weight.ref(), layer.weight)
    return list(kernels.values())


def sparsity(model):
    """Which part of the weights in a model's `dense_kernels` is exactly zero, from 0 to 1."""
    kernels = dense_kernels(model)
    zeros = sum(int(tf.math.count_nonzero(kernel == 0)) for kernel in kernels)
    return zeros / max(1, sum(kernel.shape.num_elements() for kernel in kernels))


def language_head(source, encoder):
    """By what a pretrained decoder values next words: [D, V] float32, or None.

    source, encoder: what `load_encoder` took and gave. None for fresh weights and for models whose
    head is more than one matrix, such as BERT's.
    """
    config = encoder.config
    if isinstance(source, transformers.PretrainedConfig) or config.model_type not in STRAIGHT:
        return None
    array = read_array(weight_files(source), "lm_head.weight")
    names = " ".join(config.architectures or ())
    if array is None and config.tie_word_embeddings and ("CausalLM" in names or "LMHead" in names):
        array = encoder.get_input_embeddings().weights[0].numpy()
    if array is None or array.shape[1] != config.hidden_size:
        return None
    return np.ascontiguousarray(array.T, np.float32)


class PrunedTransformerModel(tf_keras.Model):
    """A BERT, GPT-2 or LLaMA whose smallest weights are zero and stay zero while it learns.

    Zhu and Gupta (2017), by TF-MOT.

    Args:
      source: as for `load_encoder`.
      pruning_amount: part of every Dense kernel to set to zero, 0 to less than 1.
      schedule: "constant" prunes at once and again every `frequency` steps; "polynomial" raises the
        part from 0 to `pruning_amount` between `begin_step` and `end_step`.
      pattern: "unstructured", "block" (whole blocks of `block_size`) or "2:4" (two of every four in
        a row; its amount is 0.5).
      causal: True turns a BERT into a decoder, and refuses what can't be one. Whether a token sees
        those behind it is found out by itself, in `causal`.

    Call: input_ids [B, T] int32, attention_mask [B, T] -> [B, T, D]. By default the mask is 1 where
    the id is not the padding, or everywhere if no token sees those behind it. `prune_step()`
    belongs behind every step of the optimizer. `vocabulary` token ids and `context` tokens at a
    time can be read. Raises UsageError for what can't be.

    >>> encoder = PrunedTransformerModel(BertConfig(num_hidden_layers=2), pruning_amount=0.5)
    >>> encoder(tf.constant([[2, 5, 6, 0]])).shape  # [1, 4, 768]
    >>> sparsity(encoder)  # 0.5
    """

    def __init__(
        self,
        source="bert-base-uncased",
        pruning_amount=0.2,
        *,
        schedule="constant",
        begin_step=0,
        end_step=1_000,
        frequency=100,
        pattern="unstructured",
        block_size=(4, 1),
        causal=None,
    ):
        super().__init__(name="pruned_transformer")
        _check_pruning(pruning_amount, schedule, pattern)
        _check_steps(schedule, begin_step, end_step, frequency)
        self.bert = load_encoder(source, causal=causal)
        self.vocabulary = self.bert.config.vocab_size
        self.first_place = self._first_place()
        self.context = self._longest_text()
        self.causal = not self._looks_ahead()
        if causal and not self.causal:
            raise UsageError(
                f"{type(self.bert).__name__} also reads what stands behind a word; use a GPT-2, a "
                "LLaMA, a BERT or a RoBERTa to write."
            )
        self.steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="pruning_steps")
        self.masks = []
        self.pruned_after = 0  # steps of the optimizer, before which no weight is zero
        if not pruning_amount:
            return
        if schedule == "constant":
            plan = ConstantSparsity(pruning_amount, begin_step, frequency=frequency)
        else:  # the last step must be one at which masks are renewed, or the amount is not reached
            frequency = math.gcd(frequency, end_step - begin_step)
            self.pruned_after = 0 if pattern == "2:4" else begin_step + frequency
            plan = PolynomialDecay(0.0, pruning_amount, begin_step, end_step, frequency=frequency)
        self._make_pruner(plan, pattern, block_size)
        if schedule == "constant" and begin_step == 0:
            self._prune()
            if not sparsity(self.bert):
                raise UsageError(
                    f"pruning_amount={pruning_amount} sets no weight to zero, for the kernels of "
                    "this encoder are small; give more, or 0."
                )

    def _make_pruner(self, plan, pattern, block_size):
        kernels = dense_kernels(self.bert)
        if not kernels:
            raise UsageError(
                f"{type(self.bert).__name__} has no Dense or Conv1D layer that could be pruned; "
                "give a pruning_amount of 0."
            )
        if pattern == "block":
            _check_block(block_size, kernels)
        self.masks = [
            tf.Variable(tf.ones_like(kernel), trainable=False, name=f"mask{i}")
            for i, kernel in enumerate(kernels)
        ]
        thresholds = [
            tf.Variable(0.0, trainable=False, name=f"threshold{i}") for i in range(len(kernels))
        ]
        two_of_four = pattern == "2:4"
        pruner = pruning_impl.Pruning(
            lambda: self.steps,
            list(zip(kernels, self.masks, thresholds)),
            plan,
            block_size if pattern == "block" else (1, 1),
            "AVG",
            (2, 4) if two_of_four else None,
        )

        @traced
        def step():
            if two_of_four:  # its mask is made when the step is 1, whatever the schedule
                self.steps.assign_add(1)
            with tf.control_dependencies([pruner.conditional_mask_update()]):
                pruner.weight_mask_op()
            if not two_of_four:
                self.steps.assign_add(1)

        self._prune = step

    def _looks_ahead(self):
        """Whether the state of a token depends on the one behind it."""
        config = self.bert.config
        ids = [i for i in range(min(8, config.vocab_size)) if i != config.pad_token_id][-3:]
        texts = tf.constant([[ids[0], ids[1]], [ids[0], ids[-1]]])
        one, other = self.bert(input_ids=texts, training=False).last_hidden_state[:, 0]
        return float(tf.reduce_max(tf.abs(one - other))) > 1e-5

    def prune_step(self):
        """Count a step of the optimizer, and set to zero what the masks cover.

        They are renewed when the schedule says so.
        """
        if self.masks:
            self._prune()

    def call(self, input_ids, attention_mask=None):
        if attention_mask is None and self.causal:
            # Padding stands behind a text, where nothing sees it; its id may be a word's, too, or
            # that of the beginning.
            attention_mask = tf.ones_like(input_ids)
        if attention_mask is None:
            pad = self.bert.config.pad_token_id or 0
            attention_mask = tf.cast(input_ids != pad, tf.int32)
        outputs = self.bert(input_ids=input_ids, attention_mask=attention_mask, training=False)
        return outputs.last_hidden_state

    def _longest_text(self):
        """How many tokens the encoder can read at a time; infinite if positions have no table."""
        rows = getattr(self.bert.config, "max_position_embeddings", None)
        if not isinstance(rows, int) or rows < 1:
            return math.inf
        return rows - self.first_place

    def _first_place(self):
        """The position of a text's first token: RoBERTa and its like count from behind padding."""
        taken = [
            layer.padding_idx + 1
            for layer in self.bert.submodules
            if hasattr(layer, "create_position_ids_from_input_ids")
        ]
        return max(taken, default=0)

    def check_reads(self, length, ids=0):
        """Raise UsageError unless texts of so many tokens and token ids can be read.

        XLA would not: behind the end of a table it reads numbers from elsewhere.
        """
        if length > self.context:
            raise UsageError(
                f"The encoder reads {self.context} tokens, not {length}; shorten the text "
                f"(--window={self.context - 1} at most), or give an encoder of a longer context."
            )
        if ids > self.vocabulary:
            raise UsageError(
                f"The encoder has vectors for {self.vocabulary:,} token ids, not for {ids:,}; give "
                "the tokenizer and the encoder of one model."
            )

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


def _check_pruning(amount, schedule, pattern):
    if not 0 <= amount < 1:
        raise UsageError(f"pruning_amount must be at least 0 and less than 1, not {amount}.")
    if schedule not in ("constant", "polynomial"):
        raise UsageError(f"schedule must be constant or polynomial, not {schedule}.")
    if pattern not in ("unstructured", "block", "2:4"):
        raise UsageError(f"pattern must be unstructured, block or 2:4, not {pattern}.")
    if pattern == "2:4" and amount not in (0, 0.5):
        raise UsageError(
            f"The pattern 2:4 sets half of the weights to zero; give pruning_amount=0.5, not "
            f"{amount}."
        )


def _check_steps(schedule, begin, end, frequency):
    check_whole(0, begin_step=begin)
    check_whole(begin + 1 if schedule == "polynomial" else 0, end_step=end)
    check_whole(1, frequency=frequency)


def _check_block(size, kernels):
    """Raise UsageError unless blocks of `size` rows and columns fit every kernel."""
    least = [min(kernel.shape[axis] for kernel in kernels) for axis in range(2)]
    fits = len(size) == 2 and all(is_whole(part) and part >= 1 for part in size)
    if not fits or size[0] > least[0] or size[1] > least[1]:
        raise UsageError(
            f"block_size must be rows and columns, at least 1 and at most {tuple(least)} as in the "
            f"smallest kernels, not {size}."
        )
