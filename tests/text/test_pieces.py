"""Texts as they stand: every script comes back whole, windows tile it, and bits compare."""

import math
import unittest
from collections.abc import Sequence
from unittest import mock

import numpy as np

from tests.helpers import InFolder, refused
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text import files, tokenizers
from tfdqt.text.config import TextConfig, TextNetworkConfig
from tfdqt.text.head import build_task_networks
from tfdqt.text.replay import episodes_of
from tfdqt.text.reward import Reward, RewardFailure
from tfdqt.text.tasks import corpus, pieces
from tfdqt.text.tokenizers import (
    load_tokenizer,
    make_tokenizer,
    start_of,
    token_rows,
    train_tokenizer,
)
from tfdqt.text.words import RAW

from transformers import PreTrainedTokenizerFast  # isort: skip  (behind tfdqt)

SCRIPTS = [
    "The sun, the moon;  two spaces.\n\tA tab -- and CAPITALS.",
    "Für Käfer: ein Fuß.",
    "Ὁ ἥλιος ἀνατέλλει.",
    "السلام عليكم ورحمة الله",
    "太阳升起来了。月亮落下去了。",
    "สวัสดีครับ ผมรักคุณ",
    "नमस्ते दुनिया",
    "family 👨‍👩‍👧 flag 🇩🇪",
]


def nothing(text):
    return 0.0


def of_words(words):
    """A tokenizer of these words with their numbers, and of no other."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel(words))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="[BOS]")


class TestPieces(InFolder):
    def write(self, *texts):
        for i, text in enumerate(texts):
            (self.tmp / f"{i}.txt").write_text(text, encoding="utf-8")

    def test_every_script_comes_back_as_it_was(self):
        tokenizer = train_tokenizer(SCRIPTS, 400)
        for text in SCRIPTS:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            self.assertEqual(tokenizer.decode(ids), text)
            self.assertNotIn(tokenizer.unk_token_id, ids)
        tokenizer.save_pretrained(self.tmp)
        again = corpus.load_tokenizer(str(self.tmp))
        self.assertEqual(again(SCRIPTS)["input_ids"], tokenizer(SCRIPTS)["input_ids"])
        with self.assertRaisesRegex(UsageError, "--vocabulary of at least 260, not 259"):
            train_tokenizer(SCRIPTS, 259)

    def test_what_has_no_spaces_is_learned_in_parts(self):
        """The time that a word takes grows with the square of its length."""
        texts = ["ab" * 5_000, " " * 5_000 + "the sun", "天" * 600, "the red sun"]
        parts = list(tokenizers._without_long_runs(texts))
        self.assertEqual("".join(parts), "".join(texts))
        self.assertLess(max(len(word) for part in parts for word in part.split()), 257)
        tokenizer = train_tokenizer(texts, 400)
        (row,) = token_rows(tokenizer, texts[:1])
        self.assertEqual(tokenizer.decode(row, skip_special_tokens=True), texts[0])
        self.assertLess(len(row), 200)

    def test_pieces_are_the_text_whatever_the_block(self):
        self.write(*SCRIPTS)
        (self.tmp / "w.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\r\n\r\ne\xcc\x81")
        for block in (5, 64, files.BLOCK):
            with mock.patch.object(files, "BLOCK", block):
                found = {}
                for path, text in pieces.read_pieces(self.tmp):
                    found[path.name] = found.get(path.name, "") + text
            for i, text in enumerate(SCRIPTS):
                self.assertEqual(found[f"{i}.txt"], text)
            # NFC, with neither a mark of byte order nor ends of lines as other systems have them.
            self.assertEqual(found["w.txt"], "one\ntwo\nthree\n\né")

    def test_what_stands_for_no_text_is_read_as_it_stands_there(self):
        text = "pad with [PAD] and mark [UNK] here"
        tokenizer = train_tokenizer([text], 300)
        (row,) = token_rows(tokenizer, [text])
        self.assertEqual(tokenizer.decode(row, skip_special_tokens=True), text)
        self.write(text)
        (window,) = pieces.piece_windows(self.tmp, len(row) - 1, tokenizer)
        self.assertEqual(window, row[1:])

    def test_a_text_that_ends_like_its_padding_is_refused(self):
        tokenizer = train_tokenizer(["the sun!"], 300)
        first = tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = None
        with mock.patch.object(tokenizers, "read_ids", lambda _, texts: [[5, 0]] * len(texts)):
            with self.assertRaisesRegex(UsageError, "'the sun!' ends in the token 0"):
                tokenizers.encode(tokenizer, ["the sun!"], 4)
            tokenizer.pad_token = first
            tokenizers.encode(tokenizer, ["the sun!"], 4)

    def test_words_that_can_not_have_a_number_each_are_refused(self):
        for words, said in (
            ("sun", "not the text 'sun'"),
            (["sun", "red", "sun"], "'sun' comes 2"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                make_tokenizer(words)

    def test_a_text_that_is_no_unicode_is_refused(self):
        tokenizer = train_tokenizer(["the sun"], 300)
        with self.assertRaisesRegex(UsageError, "'caf.*' is not Unicode; give it in UTF-8"):
            token_rows(tokenizer, ["caf\udce9"])

    def test_tokenizers_that_can_not_be_learned_with_are_refused(self):
        words = {"[BOS]": 0, "the": 1, "sun": 2}
        tokenizer = of_words(words)
        with self.assertRaisesRegex(UsageError, "can't read a text .*; give it a token"):
            token_rows(tokenizer, ["the moon"])
        self.write("the sun the sun")
        corpus.make_corpus(self.tmp, "sentiment", tokenizer=tokenizer, rule=RAW)
        gap = of_words(dict(words, sun=9))
        with self.assertRaisesRegex(UsageError, "has 3 tokens, but one with the number 9; number"):
            corpus.make_corpus(self.tmp, "sentiment", tokenizer=gap, rule=RAW)

    def test_what_is_left_out_of_a_text_is_counted(self):
        from tokenizers import Tokenizer, models

        self.write("ab ba\nabx 日月")
        plain = Tokenizer(models.BPE({"a": 0, "b": 1, "[BOS]": 2}, []))  # drops what it has not
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="[BOS]")
        self.assertEqual(pieces.survey_pieces(self.tmp, 2, tokenizer).unread, 3)
        made = corpus.make_corpus(self.tmp, "sentiment", tokenizer=tokenizer, rule=RAW)
        said, _ = made._replace(length=3).look_over()
        self.assertIn("3 characters left out, which it has no token for", said)
        bytes_ = train_tokenizer(SCRIPTS, 300)
        bytes_.unk_token = None
        self.assertEqual(pieces.survey_pieces(self.tmp, 2, bytes_).unread, 0)

    def test_windows_tile_each_file(self):
        self.write("one two three " * 30, "four five " * 40)
        tokenizer = train_tokenizer(["one two three four five"], 270)
        windows = list(pieces.piece_windows(self.tmp, 8, tokenizer))
        self.assertEqual({len(ids) for ids in windows}, {8})
        whole = "".join(map(tokenizer.decode, windows))
        self.assertTrue(whole.startswith("one two three " * 20))
        found = pieces.survey_pieces(self.tmp, 8, tokenizer)
        self.assertEqual((found.files, found.windows), (2, len(windows)))
        self.assertEqual(found.characters, 14 * 30 + 10 * 40)

    def test_a_corpus_of_pieces(self):
        self.write("The Lord is good, and His mercy great. " * 200)
        task = corpus.make_corpus(self.tmp, f"{__name__}:nothing", rule=RAW, vocabulary=280)
        cfg = TextConfig(method="clone")
        settings = dict(new_items=16, text=cfg)
        batches, about = task.load_data(settings)
        self.assertRegex(
            about, r"^1 file, 7,800 characters, .* 100.0% of them known .* texts of 32 tokens.$"
        )
        items = next(iter(batches))
        self.assertEqual(items.text.shape, (16, 33))
        self.assertEqual(set(items.text[:, 0]), {task.tokenizer.cls_token_id})
        first = task.tokenizer.decode(items.text[0], skip_special_tokens=True)
        self.assertTrue(("The Lord is good, and His mercy great. " * 9).startswith(first))
        self.assertEqual(task.as_read("The LORD"), "The LORD")
        np.testing.assert_array_equal(task.samples(2), items.text[:2])

    def test_bits_a_character_of_a_policy_that_knows_nothing(self):
        """An even choice among A actions costs log2 A bits a token, whatever a token is."""
        self.write("sun moon " * 2_000)
        network = TextNetworkConfig(layers=1, heads=2, width=16, hidden=())
        for rule, length in ((RAW, None), ("unicode", 4.5)):
            task = corpus.make_corpus(
                self.tmp, f"{__name__}:nothing", rule=rule, vocabulary=270, length=9
            )
            transformer, head = build_task_networks(task, network, 0)
            for weight in head.cloned.weights:
                weight.assign(tf.zeros_like(weight))
            found, bits = corpus.perplexity(task, transformer, head, TextConfig())
            actions = len(task.actions)
            self.assertAlmostEqual(found, actions, places=2)
            if length is None:
                rows = [row for rows in task.batches(64, True) for row in rows]
                texts = task.tokenizer.batch_decode(rows, skip_special_tokens=True)
                length = sum(map(len, texts)) / sum(len(row) - 1 for row in rows)
            else:
                length = (4.5 * 8 - 1) / 8  # no space behind the last of eight words
            self.assertAlmostEqual(bits, math.log2(actions) / length, places=3)

    def test_a_tokenizer_as_models_bring_it(self):
        # Like Qwen's without a beginning, and like LLaMA 3's set to take spaces out.
        inner = train_tokenizer(["the sun is red"], 270).backend_tokenizer
        PreTrainedTokenizerFast(
            tokenizer_object=inner,
            eos_token="[CLS]",
            pad_token="[CLS]",
            clean_up_tokenization_spaces=True,
        ).save_pretrained(self.tmp)
        tokenizer = load_tokenizer(self.tmp)
        text = "the sun , is n't red ."
        self.assertEqual(tokenizer.decode(tokenizer(text)["input_ids"]), text)
        self.assertEqual(start_of(tokenizer), [tokenizer.eos_token_id])

    def test_what_the_tokenizer_does_not_know_is_told(self):
        self.write("sun xyz " * 400)

        def look_over(word):
            tokenizer = make_tokenizer([word])
            reward = f"{__name__}:nothing"
            return corpus.make_corpus(self.tmp, reward, tokenizer=tokenizer, rule=RAW).look_over()

        self.assertIn("50.0% of them known", look_over("sun")[0])
        with self.assertRaisesRegex(UsageError, "knows none of the words"):
            look_over("moon")

    def test_characters_that_an_edge_cuts_count_once(self):
        text = "".join(chr(0x4E00 + i) for i in range(500)) * 4  # three bytes each, mostly apart
        self.write(text)
        task = corpus.make_corpus(
            self.tmp, f"{__name__}:nothing", rule=RAW, vocabulary=270, length=8
        )
        network = TextNetworkConfig(layers=1, heads=2, width=16, hidden=())
        transformer, head = build_task_networks(task, network, 0)
        for weight in head.cloned.weights:
            weight.assign(tf.zeros_like(weight))
        with mock.patch.object(corpus, "HELD_OUT", 1):  # all of it
            _, bits = corpus.perplexity(task, transformer, head, TextConfig())
        ids = sum(len(row) - 1 for rows in task.batches(64) for row in rows)
        expected = ids * math.log2(len(task.actions)) / len(text)
        self.assertAlmostEqual(bits / expected, 1, delta=0.005)

    def test_a_run_says_which_tokenizer_it_can_have(self):
        refused(self, "without --encoder", "run_text", "--task=maze", "--tokenizer=bpe")
        flags = ["--task=corpus", "--tokenizer=bpe", f"--encoder={self.tmp}"]
        refused(self, "without --encoder", "run_text", *flags)
        self.write("too short")
        flags = ["--task=corpus", "--tokenizer=bpe", f"--corpus={self.tmp}"]
        run_dir = self.tmp / "run"
        refused(self, "at least 260", "run_text", *flags, "--vocabulary=99", f"--run-dir={run_dir}")


class TestRewards(InFolder):
    def test_at_the_end_a_text_is_looked_at_once(self):
        tokenizer = train_tokenizer(["the sun is red"], 270)
        seen = []

        def reward(text):
            seen.append(text)
            return float(len(text))

        texts = ["the sun", "red", "the sun is red"]
        rows = token_rows(tokenizer, texts)
        by_word = episodes_of(tokenizer, rows, 20, reward)
        beginnings = len(seen)
        seen.clear()
        at_end = episodes_of(tokenizer, rows, 20, reward, reward_at="end")
        self.assertEqual(seen, texts)
        self.assertEqual(beginnings, by_word.mask.sum())
        np.testing.assert_array_equal(at_end.reward.sum(1), [7, 3, 14])
        np.testing.assert_array_equal(by_word.reward.sum(1), [7, 3, 14])
        self.assertEqual((at_end.reward != 0).sum(), 3)
        np.testing.assert_array_equal(at_end.discount[at_end.reward != 0], [0, 0, 0])

    def test_a_reward_of_a_list_is_given_many(self):
        asked = []

        def lengths(texts: list[str]):
            asked.append(len(texts))
            return [len(text) for text in texts]

        reward = Reward(lengths)
        self.assertEqual((reward("sun"), reward.many(["a", "bc"])), (3.0, [1.0, 2.0]))
        self.assertEqual(asked, [1, 2])

        def of_sequence(texts: Sequence[str]):
            return lengths(texts)

        self.assertEqual(Reward(of_sequence).many(["a", "bc"]), [1.0, 2.0])

        def too_few(texts: list):
            return [1.0]

        with self.assertRaisesRegex(RewardFailure, "not 1 for 2 texts"):
            Reward(too_few).many(["a", "b"])

        def unordered(texts: list):
            return {float(i) for i, _ in enumerate(texts)}

        with self.assertRaisesRegex(RewardFailure, "not 1 for 2 texts"):
            Reward(unordered).many(["a", "b"])
        with self.assertRaisesRegex(RewardFailure, "finite"):
            Reward(lambda text: math.nan).many(["a"])


if __name__ == "__main__":
    unittest.main()
