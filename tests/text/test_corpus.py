"""Folders of texts are streamed whole and in order, and every pass over a corpus is the same."""

import errno
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text import files
from tfdqt.text.config import TextConfig
from tfdqt.text.files import fingerprint, text_files
from tfdqt.text.tasks import corpus
from tfdqt.text.tokenizers import make_tokenizer


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
        for block in (7, 64, files.BLOCK):
            with mock.patch.object(files, "BLOCK", block):
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
        lengths = [len(corpus.text_loader(self.tmp, 5, 8, heldout=each)) for each in (None, 1, 0)]
        self.assertEqual(lengths, [5, 1, 5])

    def test_a_loader_refuses_what_can_not_be_before_it_gives_anything(self):
        Path(self.tmp, "a.txt").write_bytes(b"caf\xe9")
        for given, said in (
            ((self.tmp, 5, 8), "a.txt is not UTF-8 at byte 3"),
            ((Path(self.tmp, "nowhere"), 5, 8), "nowhere can't be read"),
            ((self.tmp, 0, 8), "length must be a whole number of at least 1, not 0"),
            ((self.tmp, 5, 2.5), "batch_size must be a whole number of at least 1, not 2.5"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                corpus.text_loader(*given)

    def test_every_kind_of_line_and_a_byte_order_mark(self):
        for text in ("the sun\r\nthe moon", "the sun\rthe moon", "the sun\u2028the\u00a0moon"):
            Path(self.tmp, "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
            for block in (3, files.BLOCK):
                with mock.patch.object(files, "BLOCK", block):
                    words = [word for _, words in corpus.read_texts(self.tmp) for word in words]
                self.assertEqual(words, ["the", "sun", "the", "moon"])

    def test_a_file_of_one_word_is_read_a_block_at_a_time(self):
        Path(self.tmp, "a.txt").write_text("abcdefgh" * 40_000, encoding="utf-8")
        with mock.patch.object(files, "BLOCK", 4_096):
            pieces = [words for _, words in corpus.read_texts(self.tmp)]
        self.assertGreater(len(pieces), 70)
        self.assertLessEqual(max(map(len, pieces)), 20)
        self.assertEqual(sum(len(word) for words in pieces for word in words), 320_000)

    def test_a_survey_counts_what_the_loader_gives(self):
        words = " ".join(["sun", "moon"] * 101 + ["odd"])
        for name in "ab":
            Path(self.tmp, f"{name}.txt").write_text(words, encoding="utf-8")
        found = corpus.survey(self.tmp, 5)
        self.assertEqual((found.files, found.characters), (2, 2 * len(words)))
        self.assertEqual(found.counts, {"sun": 202, "moon": 202, "odd": 2})
        self.assertEqual(found.windows, len(list(corpus.text_windows(self.tmp, 5))))
        tokenizer = make_tokenizer(["sun", "moon"])
        self.assertAlmostEqual(corpus.known_part(tokenizer, found.counts), 404 / 406)

    def test_a_fingerprint_tells_texts_from_others(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "b.txt")
            file.write_text("sun", encoding="utf-8")
            seen = [fingerprint(folder), fingerprint(folder)]
            self.assertEqual(seen[0], seen.pop())
            file.write_text("moon", encoding="utf-8")
            seen.append(fingerprint(folder))
            Path(folder, "a.txt").write_text("", encoding="utf-8")
            seen.append(fingerprint(folder))
            file.rename(Path(folder, "c.txt"))
            seen.append(fingerprint(folder))
            Path(folder, os.fsdecode(b"\xff.txt")).write_text("", encoding="utf-8")
            seen.append(fingerprint(folder))
            self.assertEqual(len(set(seen)), 5)

    def test_what_is_no_text_is_said(self):
        faults = {
            b"the sun\x00 is red": "NUL at byte 7",
            "the sun".encode("utf-16"): "iconv -f utf-16",
            "für".encode("latin1"): "not UTF-8 at byte 1.*iconv",
        }
        for content, message in faults.items():
            Path(self.tmp, "a.txt").write_bytes(content)
            with self.assertRaisesRegex(UsageError, f"a.txt .*{message}"):
                list(corpus.read_texts(self.tmp))
        Path(self.tmp, "a.txt").unlink()
        Path(self.tmp, "folder.txt").mkdir()
        with self.assertRaisesRegex(UsageError, "no .txt files"):
            list(corpus.read_texts(self.tmp))
        Path(self.tmp, "gone.txt").symlink_to(self.tmp / "nowhere")
        with self.assertRaisesRegex(UsageError, "gone.txt can't be read"):
            list(corpus.read_texts(self.tmp))

    def test_runs_models_and_what_is_hidden_are_no_texts(self):
        for name in ("a.txt", "B.TXT", "more/b.txt", "run/vocab.txt", ".copies/a.txt", ".a.txt"):
            Path(self.tmp, name).parent.mkdir(parents=True, exist_ok=True)
            Path(self.tmp, name).write_text("sun", encoding="utf-8")
        before = fingerprint(self.tmp)
        Path(self.tmp, "run", "config.json").write_text("{}", encoding="utf-8")
        Path(self.tmp, "config.json").write_text("{}", encoding="utf-8")
        found = [str(path.relative_to(self.tmp)) for path in text_files(self.tmp)]
        self.assertEqual(found, ["B.TXT", "a.txt", "more/b.txt"])
        learned = fingerprint(self.tmp)
        self.assertNotEqual(learned, before)
        Path(self.tmp, "run", "failure.txt").write_text("what failed", encoding="utf-8")
        self.assertEqual(fingerprint(self.tmp), learned)

    def test_a_folder_that_can_not_be_read_is_said(self):
        denied = PermissionError(errno.EACCES, "Permission denied", "locked")
        with (
            mock.patch("os.scandir", side_effect=denied),
            self.assertRaisesRegex(UsageError, "locked can't be read .Permission denied.; mend"),
        ):
            text_files(self.tmp)

    def test_bad_bytes_are_named_with_file_and_offset(self):
        Path(self.tmp, "bad.txt").write_bytes("sunny día ".encode() + b"\xff more")
        for block in (5, files.BLOCK):
            with mock.patch.object(files, "BLOCK", block):
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

    def test_texts_that_nothing_can_be_learned_from(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "a.txt")
            for text in ("", " \n\t ", "\ufeff\u200b\r\n"):
                file.write_text(text, encoding="utf-8")
                with self.assertRaisesRegex(UsageError, "hold no words"):
                    corpus.make_corpus(folder, "sentiment")
            settings = dict(new_items=4, text=TextConfig())
            file.write_text("the sun", encoding="utf-8")
            with self.assertRaisesRegex(UsageError, "no 8 words in a row"):
                corpus.make_corpus(folder, "sentiment", length=9).load_data(settings)
            tokenizer = make_tokenizer(["天"])
            with self.assertRaisesRegex(UsageError, "knows none of the words"):
                corpus.make_corpus(folder, "sentiment", tokenizer=tokenizer, length=3).load_data(
                    settings
                )

    def test_what_was_done_to_it_is_said(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "a.txt").write_text("Für für FÜR ดี " * 9, encoding="utf-8")
            task = corpus.make_corpus(folder, "sentiment", vocabulary=1, length=5)
            _, about = task.load_data(dict(new_items=4, text=TextConfig()))
        self.assertRegex(
            about,
            r"^1 file, 135 characters, 36 words \(.*UAX 29.*NFC.*Thai.*cluster\), 75.0% of them "
            r"known \(vocabulary: 1\); 9 texts of 4 words.$",
        )

    def test_a_folder_where_nothing_was_learned_gives_no_words(self):
        with tempfile.TemporaryDirectory() as folder:
            run_dir = Path(folder, "run")
            file = Path(folder, "a.txt")
            settings = dict(
                corpus=folder, reward="sentiment", vocabulary=9, window=1, words="unicode"
            )
            for word in ("sun", "moon"):
                file.write_text(word, encoding="utf-8")
                task = corpus.make_run_corpus(None, run_dir, settings)
                self.assertIn(word, task.actions)
            (run_dir / "checkpoints" / "step-1").mkdir(parents=True)
            self.assertFalse(corpus.make_run_corpus(None, run_dir, settings).changed())
            file.write_text("mars", encoding="utf-8")
            changed = corpus.make_run_corpus(None, run_dir, settings)
            self.assertEqual(changed.actions, task.actions)
            with self.assertRaisesRegex(UsageError, "are not those that the run was started with"):
                changed.load_data(settings)
            cfg = TextConfig()
            (line,) = changed.details(None, None, None, cfg, [], [])
            self.assertRegex(line, "not those that the run learned from, so there is no held-out")
            del settings["words"]  # as runs of before have it
            self.assertEqual(corpus.make_run_corpus(None, run_dir, settings).rule, "plain")


if __name__ == "__main__":
    unittest.main()
