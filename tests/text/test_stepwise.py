"""Writing from what was kept: the same words as from the whole text, by every kind of decoder."""

import unittest

import numpy as np

from tests.text.helpers import eager, without_xla
from tests.text.test_llama import config_of
from tfdqt.backend import tf
from tfdqt.text.encoder import PrunedTransformerModel
from tfdqt.text.generation import generate, make_word_scores
from tfdqt.text.head import DeepQLearningModel
from tfdqt.text.stepwise import make_stepwise
from tfdqt.text.tokenizers import make_tokenizer

import transformers  # isort: skip  (behind tfdqt, which sets the Keras it uses)

WORDS = [f"w{i}" for i in range(47)]
SMALL = dict(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=20,
)
CONFIGS = {
    "bert": transformers.BertConfig(**SMALL),
    "roberta": transformers.RobertaConfig(**SMALL),  # counts places from behind the padding
    "gpt2": transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=20, bos_token_id=0
    ),
    "opt": transformers.OPTConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=20,
        word_embed_proj_dim=32,
    ),
    "mistral": config_of("mistral"),
    "llama3": config_of("llama3"),
}


def identity(x):
    return x


class TestStepwise(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.enterContext(without_xla())
        tf.keras.utils.set_random_seed(0)

    def test_every_word_is_worth_what_it_is_in_the_whole_text(self):
        self.enterContext(eager())
        text = tf.constant([[3, 7, 9, 4, 8, 6], [5, 2, 8, 30, 40, 21]])
        for name, config in CONFIGS.items():
            with self.subTest(name):
                model = PrunedTransformerModel(config, 0.2, causal=True)
                stepwise = make_stepwise(model, identity)
                whole = model(text)
                at = np.array([2, 0], np.int32)  # of texts of two lengths
                got, kept = stepwise.start(text[:, :3], tf.constant(at), 6)
                for i in range(1, 4):
                    known = tf.gather(whole, at + i - 1, batch_dims=1)
                    self.assertAllClose(got, known, atol=1e-4)
                    word = tf.gather(text, at + i, batch_dims=1)
                    got, kept = stepwise.step(kept, word, tf.constant(at + i))

    def test_what_sees_ahead_or_keeps_nothing_is_left_alone(self):
        for config in (
            transformers.BertConfig(**SMALL),
            transformers.OpenAIGPTConfig(
                vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=20
            ),
        ):
            self.assertIsNone(make_stepwise(PrunedTransformerModel(config, 0.0), identity))
        short = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=2)
        short = PrunedTransformerModel(short, 0.0, causal=True)
        self.assertIsNone(make_stepwise(short, identity))  # no room to see that both ways agree

    def test_the_same_texts_are_written(self):
        """By each method, from prompts of several lengths, within and beyond what is seen."""
        tokenizer = make_tokenizer(WORDS)
        for name in ("bert", "llama3"):
            model = PrunedTransformerModel(CONFIGS[name], 0.2, causal=True)
            head = DeepQLearningModel(32, 50, hidden=(16,))
            scores = make_word_scores(model, head, beta=3.0)
            prompts = ["", "w1 w2 w3", "w7"]
            for method in ("greedy", "sample", "beam"):
                for words in (5, 14):
                    with self.subTest(name, method=method, words=words):
                        how = dict(words=words, length=12, method=method, seed=3)
                        kept = generate(scores, tokenizer, prompts, **how)
                        whole = generate(lambda *of: scores(*of), tokenizer, prompts, **how)
                        self.assertEqual(kept, whole)


if __name__ == "__main__":
    unittest.main()
