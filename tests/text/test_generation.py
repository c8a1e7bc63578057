"""Writing: how the next word is chosen, what steers it, and how a collapse is named."""

import math
import unittest
import warnings

import numpy as np

from tests.text.helpers import NETWORK, without_xla
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text.config import TextConfig
from tfdqt.text.generation import diversity, generate, make_run_scores, make_word_scores
from tfdqt.text.head import build_text_networks
from tfdqt.text.tokenizers import make_tokenizer

WORDS = ["red", "green", "blue", "sun", "moon"]


class TestGenerate(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.tokenizer = make_tokenizer(WORDS)
        self.size = len(self.tokenizer)
        self.names = self.tokenizer.convert_ids_to_tokens(list(range(self.size)))

    def chain(self, table):
        """Scores that depend on the last word alone: {word: {next: probability}}."""

        def scores(ids, at):
            last = [self.names[row[i]] for row, i in zip(np.asarray(ids), np.asarray(at))]
            rows = [table.get(word, {}) for word in last]
            return np.log([[row.get(name, 1e-9) for name in self.names] for row in rows])

        return scores

    def test_greedy_beam_and_sample(self):
        # The likeliest first word leads to no likely text: greedy 0.6 * 0.5, beam 0.4 * 1.
        scores = self.chain(
            {
                "[CLS]": {"red": 0.6, "blue": 0.4},
                "red": {"sun": 0.5, "moon": 0.5},
                "blue": {"moon": 1.0},
            }
        )

        def write(prompts, **how):
            return generate(scores, self.tokenizer, prompts, **how)

        self.assertEqual(write([""], words=2, method="greedy"), ["red sun"])
        self.assertEqual(write([""], words=2, method="beam", beams=2), ["blue moon"])
        texts = write([""] * 2_000, words=1, seed=1)
        self.assertAlmostEqual(texts.count("red") / 2_000, 0.6, delta=0.04)
        cold = write([""] * 500, words=1, seed=1, temperature=0.1)
        self.assertGreater(cold.count("red"), 480)
        self.assertEqual(set(write([""] * 100, words=1, top_k=1)), {"red"})
        self.assertEqual(set(write([""] * 100, words=1, top_p=0.5)), {"red"})

    def test_masks_and_long_texts(self):
        scores = self.chain({word: {"red": 0.9, "sun": 0.1} for word in ["[CLS]", *WORDS]})
        never_red = np.array([name != "red" for name in self.names])

        def write(prompts, **how):
            return generate(scores, self.tokenizer, prompts, **how)

        self.assertEqual(
            write(["blue"], words=3, method="greedy", allowed=lambda text: never_red),
            ["blue sun sun sun"],
        )
        self.assertEqual(write(["moon"], words=9, length=4, method="greedy"), ["moon" + " red" * 9])
        for fault in (dict(temperature=math.nan), dict(temperature=math.inf), dict(top_p=math.nan)):
            (name,) = fault
            with self.assertRaisesRegex(UsageError, f"{name} must be above 0"):
                write(["blue"], **fault)
        for fault in (
            dict(words=2.5),
            dict(length=0),
            dict(seed=-1),
            dict(top_k=1.5),
            dict(beams=True),
        ):
            (name,) = fault
            with self.assertRaisesRegex(UsageError, f"{name} must be a whole number"):
                write(["blue"], **fault)
        with self.assertRaisesRegex(UsageError, "forbids"):
            write(["blue"], allowed=lambda text: np.zeros(self.size, bool))
        only_special = np.isin(np.arange(self.size), self.tokenizer.all_special_ids)
        with self.assertRaisesRegex(UsageError, "forbids"):
            write(["blue"], allowed=lambda text: only_special)
        with self.assertRaisesRegex(UsageError, rf"must give {self.size} bools"):
            write(["blue"], allowed=lambda text: np.ones(2, bool))
        with self.assertRaises(UsageError):
            write(["blue"], temperature=0)

    def test_what_is_not_read_of_a_prompt_is_said(self):
        scores = self.chain({word: {"red": 0.9} for word in ["[CLS]", "[UNK]", *WORDS]})

        def said(*prompts):
            with warnings.catch_warnings(record=True) as notices:
                warnings.simplefilter("always")
                generate(scores, self.tokenizer, prompts, words=1, length=4)
            return " ".join(str(notice.message) for notice in notices)

        self.assertEqual(said("", "red sun", "blue"), "")
        self.assertRegex(said("red Mars", "red pluto Mars"), "left out: Mars, pluto$")
        self.assertRegex(said("red sun moon blue"), "of 5 tokens .* only the last 4 are read")


class TestWordScores(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tf.keras.utils.set_random_seed(0)
        size = 8
        cls.networks = build_text_networks(
            NETWORK, vocabulary=size, length=6, num_actions=size, causal=True
        )
        cls.ids = tf.constant([[2, 3, 4, 0, 0, 0]])
        cls.at = tf.constant([2])
        transformer, head = cls.networks
        x = transformer(cls.ids)[:, 2]
        cls.q = head(x).numpy()
        cls.policy = tf.nn.log_softmax(head.prior(x)).numpy()

    def scores(self, **options):
        with without_xla():
            return make_word_scores(*self.networks, **options)(self.ids, self.at).numpy()

    def test_the_advantage_steers_the_cloned_policy(self):
        # One of them as runs have it, compiled by XLA.
        compiled = make_word_scores(*self.networks)(self.ids, self.at)
        self.assertAllClose(compiled, self.q, atol=1e-5)
        self.assertAllClose(self.scores(clone=True), self.policy, atol=1e-5)
        advantage = self.q - (np.exp(self.policy) * self.q).sum()
        self.assertAllClose(self.scores(beta=3.0), self.policy + 3 * advantage, atol=1e-5)

    def test_a_text_beyond_the_context_is_refused(self):
        scores = make_word_scores(*self.networks)
        with self.assertRaisesRegex(UsageError, "reads 6 tokens, not 7"):
            scores(tf.zeros([1, 7], tf.int32), self.at)

    def test_a_beta_that_is_no_number_is_refused(self):
        for beta in (math.nan, -1.0, -math.inf):
            with self.assertRaisesRegex(UsageError, "beta must be 0 or more"):
                make_run_scores(*self.networks, TextConfig(cloning=1.0), beta=beta)
        with self.assertRaisesRegex(UsageError, "beta=1e.40 is beyond float32; give inf"):
            make_run_scores(*self.networks, TextConfig(cloning=1.0), beta=1e40)

    def test_only_plausible_words_are_chosen_by_their_values(self):
        q = self.q[0]
        policy = np.exp(self.policy[0])
        part = np.sort(policy)[-3] / policy.max() * 0.999  # three words are likely enough
        scores = self.scores(plausible=float(part))[0]
        likely = np.argsort(policy)[-3:]
        self.assertAllClose(np.sort(scores)[-3:], np.sort(q[likely]), atol=1e-5)
        self.assertEqual(scores.argmax(), max(likely, key=lambda word: q[word]))


class TestDiversity(tf.test.TestCase):
    def test_a_collapse_is_named(self):
        fine = diversity(["the red sun and a blue moon", "all that green grass we saw"])
        self.assertIsNone(fine["collapsed"])
        self.assertEqual(fine["distinct1"], 1.0)
        bad = diversity(["sun sun sun sun sun"])
        self.assertIn("'sun'", bad["collapsed"])
        self.assertAlmostEqual(bad["repetition"], 0.8)
        self.assertEqual(bad["entropy"], 0.0)

    def test_words_of_scripts_without_spaces_are_counted_too(self):
        bad = diversity([first + "的" * 15 for first in "天地玄黄"])
        self.assertIn("'的'", bad["collapsed"])
        self.assertGreater(bad["repetition"], 0.8)

    def test_few_words_are_no_collapse(self):
        self.assertIsNone(diversity(["red sun moon"])["collapsed"])
        self.assertIn("few words: 1.0 bits", diversity(["red sun"] * 10)["collapsed"])


if __name__ == "__main__":
    unittest.main()
