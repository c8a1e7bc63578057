"""What a word is: the rules by which a text is taken apart, whole or a block at a time.

`unicode` are Unicode's rules (UAX 29), as the library regex knows them: marks stay in their word,
Chinese characters and Hiragana are a word each. Thai, Lao, Khmer and Burmese have no spaces, and
their words stand in dictionaries only; there a word is a grapheme cluster, a letter with its marks.
Texts are brought to NFC and lower case. `plain` is what runs did before they said which rule. By
the rule RAW a text is not taken apart at all, but read as it stands, in a tokenizer's sub-words.
"""

import re
import unicodedata

import regex

RAW = "raw"
LONGEST = 256  # characters in a word; a longer one is cut, or a file without spaces would be one
HELD = 2  # words at the end of a block that what comes next may still join: "a", "." and "b"

# At the beginning of a word regex joins an apostrophe to a vowel, a mark to a letter and half a
# flag to anything; UAX 29 does not. Vowels of Thai and Lao that it cuts off belong to the cluster.
_ALONE = r"['’.:,;\p{M}\U0001f3fb-\U0001f3ff]\p{M}*|\p{RI}{1,2}\p{M}*"
_BEGIN = r"[^\s\p{Cc}\u200c\u200d]"
_END = r"\b(?![\u0e33\u0eb3])"
_WORD = regex.compile(
    f"{_ALONE}|{_BEGIN}(?:.{{0,{LONGEST - 1}}}?{_END}|.{{{LONGEST - 1}}})",
    regex.WORD | regex.VERSION1 | regex.DOTALL,
)
# Byte order marks, soft hyphens and marks of direction: the same word with and without them.
_INVISIBLE = regex.compile(
    r"[\u00ad\u061c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)
_SPACES = regex.compile(r"[\u200b\u202f]")  # that UAX 29 does not take for spaces
_CLUSTERED = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_PLAIN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def _normalized(text):
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _unicode_words(text, last):
    if not text.isascii():
        text = _normalized(_SPACES.sub(" ", _INVISIBLE.sub("", text)))
    words = _WORD.findall(text)
    rest = ""
    if not last:
        end = len(text)
        for word in reversed(words[-HELD:]):
            end = text.rindex(word, 0, end)
        words = words[:-HELD]
        rest = text[end:]
    # All at once, for speed; a word holds no line break.
    return _normalized("\n".join(words).lower()).split("\n") if words else [], rest


def _plain_words(text, last, block=1 << 20):
    # The last word may go on in the next block, unless it is longer than any word.
    cut = len(text) if last else 1 + max(text.rfind(space) for space in " \n\t")
    if cut == 0 and len(text) > block:
        cut = len(text)
    return _PLAIN.findall(text[:cut].lower()), text[cut:]


# (text, whether it is the last of its file) -> (words, rest to go on with)
_RULES = dict(unicode=_unicode_words, plain=_plain_words)


def take_words(text, rule="unicode", *, last=True):
    """The words of a block of text: -> (list of words, rest to put before the next block).

    last: whether nothing follows; then the rest is empty.
    """
    return _RULES[rule](text, last)


def words_of(text, rule="unicode"):
    """A text in lower case as words and marks: "Go, Joe!" -> ["go", ",", "joe", "!"]."""
    return take_words(text, rule)[0]


def describe_rule(rule, words):
    """What was done to a text of these words, for people."""
    if rule == "plain":
        return "by the rule that the run began with, lower case"
    clusters = any(map(_CLUSTERED.match, words))
    return "by Unicode's rules (UAX 29), NFC, lower case" + (
        "; Thai, Lao, Khmer and Burmese by grapheme cluster" if clusters else ""
    )
