"""The head that values next words, and both networks as a run's settings name them.

A tf_keras (Keras 2) model, as the encoder is.
"""

import numpy as np

from tfdqt import losses
from tfdqt.backend import quiet, tf
from tfdqt.errors import UsageError
from tfdqt.stats import typical_size
from tfdqt.text.config import check_text_network
from tfdqt.text.encoder import PrunedTransformerModel, language_head

with quiet():
    import tf_keras
    import transformers


class DeepQLearningModel(tf_keras.Model):
    """Values of the next words: [..., input_dim] -> Q [..., action_dim].

    Args:
      hidden: sizes of the hidden layers.
      features: [action_dim, F] what each action is made of, such as the letters of a word. An
        action's value is then also a sum over its features, so that what is learned of one action
        holds for those like it.
      saturating: whether that sum counts by its softplus only, which is 0 for all that is ruled
        out, by however many of its features.
      dueling: whether Q is a value of the state and, around it, advantages of mean 0 (Wang et al.,
        2016), so that what every action of a state is worth is learned from all of them.
      language: [input_dim, action_dim], by which a language model values next words (see
        `encoder.language_head`); the cloned policy starts as that model and is this matrix alone.

    Besides Q it has `value(x)` -> V [...], for implicit Q-learning (Kostrikov et al., 2022), and
    `prior(x)` -> logits [..., action_dim] of the actions in the data (the cloned policy), each
    behind hidden layers of its own. Values are learned in units of `unit`, a typical reward, which
    is a weight that is set (`adapt_to_rewards`), not learned; what the head gives are values all
    the same. Raises UsageError for sizes that can't be.

    >>> head = DeepQLearningModel(input_dim=768, action_dim=10)
    >>> head(encoder(ids)).shape  # [B, T, 10]
    """

    def __init__(
        self,
        input_dim=768,
        action_dim=10,
        *,
        hidden=(256,),
        features=None,
        saturating=False,
        dueling=False,
        language=None,
    ):
        super().__init__(name="deep_q_learning")
        if min((input_dim, action_dim, *hidden)) < 1:
            raise UsageError(
                f"input_dim, action_dim and hidden must be positive, not {input_dim}, "
                f"{action_dim}, {tuple(hidden)}."
            )
        self.input_dim = input_dim
        self.action_dim = action_dim
        self.hidden = tuple(hidden)
        self.features = None if features is None else np.asarray(features, np.float32)
        self.saturating = saturating
        self.dueling = dueling
        outputs = action_dim + (0 if features is None else self.features.shape[1])
        self.q = self._branch(dueling + outputs, "q")
        self.v = self._branch(1, "v")
        self.is_language_model = language is not None
        self.cloned = self._branch(outputs, "cloned", () if self.is_language_model else None)
        if self.is_language_model:
            self.cloned.layers[0].kernel.assign(language)
        self.unit = tf.Variable(1.0, trainable=False, name="unit")
        self.unit_known = False  # another unit would be another scale of what was learned
        self.built = True

    def _branch(self, units, name, hidden=None):
        layers = [
            tf_keras.layers.Dense(size, activation="relu", kernel_initializer="he_uniform")
            for size in (self.hidden if hidden is None else hidden)
        ]
        branch = tf_keras.Sequential([*layers, tf_keras.layers.Dense(units)], name=name)
        branch.build((None, self.input_dim))
        return branch

    def _actions(self, y):
        """Outputs for actions and their features as one number an action."""
        if self.features is None:
            return y
        total = tf.tensordot(y[..., self.action_dim :], self.features.T, 1)
        return y[..., : self.action_dim] + (tf.nn.softplus(total) if self.saturating else total)

    def adapt_to_rewards(self, rewards):
        """Set the unit, once: to the root mean square of the rewards that are not 0, if any are."""
        unit = typical_size(np.asarray(rewards, np.float32))  # as they are kept
        if unit and not self.unit_known:
            self.unit.assign(unit)
            self.unit_known = True

    def call(self, x):
        y = self.q(x)
        if not self.dueling:
            return self.unit * self._actions(y)
        advantages = self._actions(y[..., 1:])
        q = y[..., :1] + advantages - tf.reduce_mean(advantages, axis=-1, keepdims=True)
        return self.unit * q

    def chosen(self, x, actions):
        """Q of one action at each state: [..., input_dim], [...] -> [...].

        Those of the others are not worked out where they need not be.
        """
        if self.features is not None:
            return losses.select_actions(self(x), actions)
        for layer in self.q.layers[:-1]:
            x = layer(x)
        last = self.q.layers[-1]
        columns = tf.transpose(last.kernel)

        def outputs(at):
            return tf.reduce_sum(x * tf.gather(columns, at), axis=-1) + tf.gather(last.bias, at)

        if not self.dueling:
            return self.unit * outputs(actions)
        mean = tf.reduce_sum(x * tf.reduce_mean(columns[1:], axis=0), axis=-1)
        mean += tf.reduce_mean(last.bias[1:])
        return self.unit * (outputs(tf.zeros_like(actions)) + outputs(actions + 1) - mean)

    def value(self, x):
        return self.unit * self.v(x)[..., 0]

    def prior(self, x):
        return self._actions(self.cloned(x))

    def copy(self):
        """A second network of the same shape and weights."""
        twin = DeepQLearningModel(
            self.input_dim,
            self.action_dim,
            hidden=self.hidden,
            features=self.features,
            saturating=self.saturating,
            dueling=self.dueling,
            language=self.cloned.layers[0].kernel if self.is_language_model else None,
        )
        twin.set_weights(self.get_weights())
        twin.unit_known = self.unit_known
        return twin


def build_text_networks(cfg, *, vocabulary, length, num_actions, causal, features=None):
    """The encoder and head of a TextNetworkConfig: -> (transformer, head).

    Args:
      vocabulary: token ids there are. length: tokens in a text. causal: whether the encoder reads
        whole texts in one pass. features: as for DeepQLearningModel.

    Raises UsageError for networks that can't be.
    """
    check_text_network(cfg)
    source = cfg.encoder or transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=4 * cfg.width,
        max_position_embeddings=length,
    )
    transformer = PrunedTransformerModel(
        source,
        cfg.pruning_amount,
        schedule=cfg.pruning_schedule,
        end_step=cfg.pruning_end,
        pattern=cfg.pruning_pattern,
        causal=causal,
    )
    transformer.check_reads(length, vocabulary)
    language = None
    if cfg.language_head and cfg.encoder is not None and features is None:
        language = language_head(source, transformer.bert)
        language = None if language is None else language[:, :num_actions]
    head = DeepQLearningModel(
        transformer.bert.config.hidden_size,
        num_actions,
        hidden=cfg.hidden,
        features=features,
        saturating=cfg.saturating,
        dueling=cfg.dueling,
        language=language,
    )
    return transformer, head


def build_task_networks(task, cfg, seed):
    """The networks of a TextNetworkConfig for a task, initialised by a seed.

    -> (transformer, head).
    """
    tf.keras.utils.set_random_seed(seed)
    transformer, head = build_text_networks(
        cfg,
        vocabulary=len(task.tokenizer),
        length=task.length,
        num_actions=len(task.actions),
        causal=task.causal,
        features=task.features,
    )
    pads = (task.tokenizer.pad_token_id, transformer.bert.config.pad_token_id)
    if None not in pads and pads[0] != pads[1]:
        raise UsageError(
            f"The tokenizer fills texts up with the token id {pads[0]}, the encoder expects "
            f"{pads[1]}; give the tokenizer and the encoder of one model."
        )
    return transformer, head
