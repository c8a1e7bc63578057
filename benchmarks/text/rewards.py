"""Rewards of one's own for texts.

python scripts/run_text.py --task=corpus --reward=benchmarks.text.rewards:alliteration
"""

import re


def long_words(text):
    """A tenth for every word of seven letters or more."""
    return sum(len(word) >= 7 for word in words_of(text)) / 10


def alliteration(text):
    """A tenth for every word that begins like the one before it."""
    words = words_of(text)
    return sum(one[0] == two[0] for one, two in zip(words, words[1:])) / 10


def words_of(text):
    return re.findall(r"[a-z]+", text.lower())
