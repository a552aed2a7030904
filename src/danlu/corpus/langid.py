"""What a text is written in, by counting characters: Han, kana, other letters, Latin, digits.

In:  texts.
Out: a table of counts per text, and "zh", "en" or "other".
Left out: telling apart languages that share a script beyond English and not English; no model is downloaded.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

HAN_LIMIT = 0.3  # share of letters; below it Chinese words are quotations (EvalWeb's limit)
KANA_LIMIT = 0.05  # Japanese has Han characters too
ENGLISH_LIMIT = 0.08  # share of words; running English has three times as many function words
SHORT_TEXT = 12  # words; too few to expect function words

_ENGLISH = frozenset(
    ["the", "of", "and", "to", "a", "in", "is", "that", "it", "was", "for", "on", "with", "he", "she", "you", "are"]
)  # fmt: skip
HAN_RANGES = (
    (0x3005, 0x3005), (0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
HAN = "[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in HAN_RANGES) + "]"  # a regular expression's class
_KANA_RANGES = ((0x3041, 0x30FF), (0x31F0, 0x31FF))
# A box where a character was lost, the replacement character, descriptions of characters that no font has.
_LOST_RANGES = ((0x25A1, 0x25A1), (0xFFFD, 0xFFFD), (0x2FF0, 0x2FFB), (0xE000, 0xF8FF), (0xF0000, 0x10FFFD))


class Kind(IntEnum):
    """What a character is."""

    OTHER = 0
    SPACE = 1
    DIGIT = 2
    LATIN = 3
    LETTER = 4  # of any script but Latin, Han and kana; combining marks too
    HAN = 5
    KANA = 6
    LOST = 7


@functools.cache
def kinds() -> NDArray[np.uint8]:
    """The ``Kind`` of every code point, (0x110000,), from Python's Unicode tables and the ranges above."""
    kind_of = {"Zs": Kind.SPACE, "Zl": Kind.SPACE, "Zp": Kind.SPACE, "Nd": Kind.DIGIT, "Nl": Kind.DIGIT}
    kind_of |= dict.fromkeys(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me"), Kind.LETTER)
    table = np.zeros(0x110000, np.uint8)
    for point in range(0x20000):  # planes above hold Han, set below, and nothing else that counts
        table[point] = kind_of.get(unicodedata.category(chr(point)), Kind.OTHER)
    for point in range(0x250):
        if table[point] == Kind.LETTER:
            table[point] = Kind.LATIN
    table[0x1E00:0x1F00] = Kind.LATIN
    table[[ord(c) for c in "\t\n\v\f\r\x85"]] = Kind.SPACE
    for kind, ranges in ((Kind.HAN, HAN_RANGES), (Kind.KANA, _KANA_RANGES), (Kind.LOST, _LOST_RANGES)):
        for first, last in ranges:
            table[first : last + 1] = kind
    return table


def code_points(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """All texts as one array of code points, and where each text ends in it."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
    return np.frombuffer(joined, np.uint32), np.cumsum(lengths)


def count(texts: Sequence[str]) -> NDArray[np.int64]:
    """Characters of each kind: (texts, kinds)."""
    points, ends = code_points(texts)
    rows = np.repeat(np.arange(len(texts)), np.diff(ends, prepend=0))
    flat = rows * len(Kind) + kinds()[points]
    return np.bincount(flat, minlength=len(texts) * len(Kind)).reshape(len(texts), len(Kind))


def language(text: str, counts: NDArray[np.int64]) -> str:
    """``"zh"``, ``"en"`` or ``"other"``.

    Args:
        text: the text.
        counts: its row of ``count``.
    """
    letters = int(counts[Kind.LATIN] + counts[Kind.LETTER] + counts[Kind.HAN] + counts[Kind.KANA])
    if not letters:
        return "other"
    if counts[Kind.KANA] <= KANA_LIMIT * letters and counts[Kind.HAN] >= HAN_LIMIT * letters:
        return "zh"
    if counts[Kind.LATIN] < 0.5 * letters:
        return "other"
    words = text.lower().split()
    english = sum(word in _ENGLISH for word in words)
    return "en" if len(words) < SHORT_TEXT or english >= ENGLISH_LIMIT * len(words) else "other"
