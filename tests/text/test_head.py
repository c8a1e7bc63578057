"""The head's values: what each action is made of, dueling, and sizes that can't be."""

import tempfile
import unittest

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text.config import TextNetworkConfig
from tfdqt.text.encoder import load_encoder
from tfdqt.text.head import DeepQLearningModel, build_text_networks

import transformers  # isort: skip  (behind tfdqt, which sets the Keras it uses)


class TestDeepQLearningModel(tf.test.TestCase):
    def test_shapes_and_defaults(self):
        head = DeepQLearningModel()
        self.assertEqual(head(tf.zeros([3, 768])).shape, (3, 10))
        head = DeepQLearningModel(input_dim=8, action_dim=5, hidden=(6, 7))
        x = tf.random.stateless_normal([2, 3, 8], (0, 1))
        self.assertEqual(head(x).shape, (2, 3, 5))
        self.assertEqual(head.value(x).shape, (2, 3))
        self.assertEqual(head.prior(x).shape, (2, 3, 5))
        self.assertAllEqual(head.copy()(x), head(x))

    def test_features_make_like_actions_alike(self):
        tf.keras.utils.set_random_seed(0)
        features = np.array([[1, 0], [1, 0], [0, 1]])
        head = DeepQLearningModel(4, 3, hidden=(), features=features)
        for variable in head.q.weights:
            variable.assign(
                tf.concat([tf.zeros_like(variable[..., :3]), tf.ones_like(variable[..., 3:])], -1)
            )
        values = head(tf.ones([1, 4])).numpy()[0]
        self.assertAllEqual(values, [5.0, 5.0, 5.0])

    def test_what_is_ruled_out_twice_is_worth_what_is_ruled_out_once(self):
        features = np.array(
            [[0, 0], [1, 0], [1, 1]]
        )  # the state rules out both features, with -20 each
        head = DeepQLearningModel(1, 3, hidden=(), features=features, saturating=True)
        for branch in (head.q, head.cloned):
            branch.set_weights([np.array([[1.0, 2.0, 3.0, -20.0, -20.0]]), np.zeros(5)])
        self.assertAllClose(head(tf.ones([1, 1])), [[1 + np.log(2), 2.0, 3.0]], atol=1e-6)
        self.assertAllClose(
            head.prior(-tf.ones([1, 1])), [[-1 + np.log(2), -2 + 20.0, -3 + 40.0]], atol=1e-6
        )
        self.assertAllEqual(head.copy()(tf.ones([1, 1])), head(tf.ones([1, 1])))

    def test_dueling_values_are_a_value_and_advantages_around_it(self):
        head = DeepQLearningModel(1, 2, hidden=(), dueling=True)
        head.q.set_weights([np.array([[7.0, 1.0, 4.0]]), np.zeros(3)])
        self.assertAllClose(head(tf.ones([1, 1])), [[7.0 - 1.5, 7.0 + 1.5]])
        self.assertEqual(head.prior(tf.ones([1, 1])).shape, (1, 2))
        self.assertAllEqual(head.copy()(tf.ones([1, 1])), head(tf.ones([1, 1])))

    def test_the_value_of_one_action_is_that_among_all(self):
        """With its gradient, for every kind of head."""
        tf.keras.utils.set_random_seed(0)
        x = tf.random.stateless_normal([2, 4, 8], (0, 1))
        actions = tf.constant([[0, 2, 1, 2], [1, 1, 0, 2]])
        features = np.array([[1, 0], [1, 1], [0, 1]])
        for options in (
            {},
            dict(hidden=()),
            dict(dueling=True),
            dict(dueling=True, features=features, saturating=True),
        ):
            head = DeepQLearningModel(8, 3, **{"hidden": (6,), **options})
            for bias in head.q.weights[1::2]:
                bias.assign(tf.random.stateless_normal(bias.shape, (1, 2)))
            with tf.GradientTape(persistent=True) as tape:
                chosen = head.chosen(x, actions)
                among = tf.gather(head(x), actions, batch_dims=2)
            self.assertAllClose(chosen, among, atol=1e-5)
            for one, other in zip(*(tape.gradient(q, head.q.weights) for q in (chosen, among))):
                self.assertAllClose(tf.convert_to_tensor(one), other, atol=1e-5)

    def test_sizes_that_can_not_be(self):
        for sizes in (dict(input_dim=0), dict(action_dim=0), dict(hidden=(0,))):
            with self.assertRaises(UsageError):
                DeepQLearningModel(**sizes)
        with self.assertRaisesRegex(UsageError, "reads 8 tokens"):
            config = transformers.BertConfig(
                vocab_size=40,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=8,
            )
            with tempfile.TemporaryDirectory() as folder:
                load_encoder(config).save_pretrained(folder)
                network = TextNetworkConfig(encoder=folder)
                build_text_networks(network, vocabulary=40, length=9, num_actions=2, causal=False)


if __name__ == "__main__":
    unittest.main()
