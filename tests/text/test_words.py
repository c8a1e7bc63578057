"""A text is taken apart by Unicode's rules, whole or a block at a time."""

import unicodedata
import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from tfdqt.text.words import LONGEST, describe_rule, take_words, words_of

TEXTS = {
    "Go, Joe! Don't e-mail l’homme": ["go", ",", "joe", "!", "don't", "e", "-", "mail", "l’homme"],
    "'Old' says 'it' o'er 'tis": ["'", "old", "'", "says", "'", "it", "'", "o'er", "'", "tis"],
    "3.14 and 1,000. U.S.A. a_b": ["3.14", "and", "1,000", ".", "u.s.a", ".", "a_b"],
    "\ufeffHello so\u00adft\ufeff": ["hello", "soft"],
    "हिन्दी भारत की": ["हिन्दी", "भारत", "की"],
    "தமிழ் மொழி": ["தமிழ்", "மொழி"],
    "مُحَمَّد שָׁלוֹם": ["مُحَمَّد", "שָׁלוֹם"],
    "天地玄黃，宇宙。": ["天", "地", "玄", "黃", "，", "宇", "宙", "。"],
    "テキストです": ["テキスト", "で", "す"],
    "ทิดีน้ำ": ["ทิ", "ดี", "น้ำ"],
    "ភាសា မြန်": ["ភា", "សា", "မြ", "န်"],
    "👍🏽 👨‍👩‍👧 🇩🇪🇫🇷🇮": ["👍🏽", "👨‍👩‍👧", "🇩🇪", "🇫🇷", "🇮"],
    "Bonjour\u202f! 1\u00a0a\u200bb": ["bonjour", "!", "1", "a", "b"],
    "a\rb\x0cc\x1a\t\x00\u200d": ["a", "b", "c"],
    "İstanbul ΟΔΟΣ": ["i̇stanbul", "οδος"],
    "": [],
    " \n": [],
}


class TestWords(unittest.TestCase):
    def test_by_unicodes_rules(self):
        for text, words in TEXTS.items():
            self.assertEqual(words_of(text), words, ascii(text))

    def test_composed_and_decomposed_are_the_same_words(self):
        text = "Das Mädchen für größere Straßen"
        for form in ("NFC", "NFD"):
            words = words_of(unicodedata.normalize(form, text))
            self.assertEqual(words, ["das", "mädchen", "für", "größere", "straßen"])

    def test_a_word_that_never_ends_is_cut(self):
        self.assertEqual([len(word) for word in words_of("x" * 600)], [LONGEST, LONGEST, 88])

    def test_runs_of_before_keep_their_rule(self):
        self.assertEqual(
            words_of("Go, 3.14\ufeff!", "plain"), ["go", ",", "3", ".", "14"] + list("\ufeff!")
        )

    @given(
        st.text("ab.' ,\n1;:_\"-ש\u05c1\u0308\u200d🇩🇪👍🏽天นำกㄱ가\r\u200b\ufeff\u00ad"),
        st.integers(1, 9),
    )
    @settings(max_examples=300, deadline=None)
    def test_blocks_give_what_the_whole_gives(self, text, size):
        words = []
        rest = ""
        for i in range(0, len(text), size):
            taken, rest = take_words(rest + text[i : i + size], last=False)
            words += taken
        taken, rest = take_words(rest)
        self.assertEqual(words + taken, words_of(text))
        self.assertEqual(rest, "")
        self.assertEqual(" ".join(words + taken).split(), words + taken)  # none holds a space

    def test_what_was_done_is_described(self):
        self.assertNotIn("Thai", describe_rule("unicode", ["the", "sun"]))
        self.assertIn("Thai", describe_rule("unicode", ["the", "ดี"]))


if __name__ == "__main__":
    unittest.main()
