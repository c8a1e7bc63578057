"""Folders of texts are streamed whole and in order, and every pass over a corpus is the same."""

import tempfile
import unittest
from pathlib import Path
from unittest import mock

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text.config import TextConfig
from tfdqt.text.tasks import corpus


class TestTexts(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tmp = Path(folder.name)

    def test_words_are_streamed_in_order_over_block_borders(self):
        text = "The sun’s red, RED moon.\n\n" * 40
        Path(self.tmp, "b.txt").write_text(text, encoding="utf-8")
        Path(self.tmp, "a.txt").write_text("", encoding="utf-8")
        expected = ["the", "sun’s", "red", ",", "red", "moon", "."] * 40
        for block in (7, 64, corpus.BLOCK):
            with mock.patch.object(corpus, "BLOCK", block):
                pieces = list(corpus.read_texts(self.tmp))
            self.assertAllEqual([word for _, words in pieces for word in words], expected)
        self.assertAllEqual(corpus.common_words(self.tmp, 2), ["red", "the"])

    def test_windows_stay_inside_a_file_and_hold_out_every_twentieth(self):
        for name in "ab":
            words = " ".join(f"{name}{i}" for i in range(101))
            Path(self.tmp, f"{name}.txt").write_text(words, encoding="utf-8")

        def windows(heldout=None):
            loader = corpus.text_loader(self.tmp, 5, 8, heldout=heldout)
            return [line.decode() for batch in loader for line in batch.numpy()]

        everything = windows()
        self.assertLen(everything, 40)
        self.assertEqual(everything[20], "b0 b1 b2 b3 b4")
        self.assertLen(windows(heldout=True), 2)
        self.assertLen(windows(heldout=False), 38)

    def test_bad_bytes_are_named_with_file_and_offset(self):
        Path(self.tmp, "bad.txt").write_bytes("sunny día ".encode() + b"\xff more")
        for block in (5, corpus.BLOCK):
            with mock.patch.object(corpus, "BLOCK", block):
                with self.assertRaisesRegex(UsageError, "bad.txt is not UTF-8 at byte 11"):
                    list(corpus.read_texts(self.tmp))
        with tempfile.TemporaryDirectory() as empty:
            with self.assertRaisesRegex(UsageError, "no .txt files"):
                list(corpus.read_texts(empty))


class TestCorpus(tf.test.TestCase):
    def test_king_james_and_sentiment(self):
        with tempfile.TemporaryDirectory() as folder:
            corpus.write_king_james(folder)
            files = sorted(Path(folder).iterdir())
            self.assertLen(files, 66)
            self.assertIn("In the beginning God created", files[0].read_text(encoding="utf-8"))
            small = Path(folder, "small")
            small.mkdir()
            book = files[64].read_text(encoding="utf-8")
            small.joinpath("a.txt").write_text(book, encoding="utf-8")
            task = corpus.make_corpus(small, "sentiment", vocabulary=50, length=9)
            cfg = TextConfig(method="filtered", keep_best=0.25)
            batches = corpus.CorpusBatches(task, 16, cfg)
            first = list(batches)
            again = list(batches)
        self.assertLen(first, len(batches))
        for one, other in zip(first, again):
            for field, same in zip(one, other):
                self.assertAllEqual(field, same)
        self.assertBetween(len(first[0].text), 4, 15)
        reward = corpus.make_reward("sentiment")
        self.assertGreater(reward("a good and joyful heart"), 0.5)
        self.assertLess(reward("wrath and destruction"), -0.5)

    def test_an_unknown_reward_is_said(self):
        with self.assertRaisesRegex(UsageError, "module:function"):
            corpus.make_reward("nowhere:nothing")


if __name__ == "__main__":
    unittest.main()
