"""Making text plain, and dropping documents by rule with the value and the limit that decided.

In:  texts as they were read.
Out: normalised (and simplified) texts; measured attributes; for each document the rule that it breaks, if any.
Left out: judging what a text says; no rule here tells good prose from grammatical advertising.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import opencc
from numpy.typing import NDArray

from danlu.corpus import langid, minhash
from danlu.corpus.langid import Kind

GRAM = 13  # characters: EvalWeb's run length for repetition
MEASURES = ("n_chars", "letters", "han", "repeated_lines", "repeated_grams", "unreadable")

_NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u200b\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_SEPARATOR = "\x1e"  # cannot be in a normalised text


@dataclass(frozen=True)
class Rule:
    """One limit on one measured attribute.

    Attributes:
        reason: what a document that breaks it is dropped for.
        setting: the option that changes the limit.
        attribute: which measure it looks at.
        at_least: whether the limit is the smallest value allowed, or the largest.
    """

    reason: str
    setting: str
    attribute: str
    at_least: bool


RULES = (
    Rule("too_short", "min_chars", "n_chars", True),
    Rule("too_long", "max_chars", "n_chars", False),
    Rule("unreadable", "max_unreadable", "unreadable", False),
    Rule("few_letters", "min_letters", "letters", True),
    Rule("little_han", "min_han", "han", True),
    Rule("repeated_lines", "max_repeated_lines", "repeated_lines", False),
    Rule("repeated_grams", "max_repeated_grams", "repeated_grams", False),
)

# Limits by profile. Prose: duplicate lines as in Gopher (0.20 of characters), repetition over 13 characters as in
# EvalWeb (0.5), which holds for Chinese and English; lengths are low, because a person's own notes are short. Poems:
# refrains repeat and quatrains are short, but a poem with a lost character teaches a model to write placeholders.
PROFILES: dict[str, dict[str, float]] = {
    "prose": {
        "min_chars": 20,
        "max_chars": 2_000_000,
        "max_unreadable": 0.01,
        "min_letters": 0.6,
        "max_repeated_lines": 0.2,
        "max_repeated_grams": 0.5,
    },
    "poems": {"min_chars": 10, "max_chars": 5_000, "max_unreadable": 0.0, "min_letters": 0.6},
    "none": {},
}


class Limited(Protocol):
    """Settings that choose a profile and may override its limits."""

    @property
    def profile(self) -> str:
        """A name in ``PROFILES``."""


@dataclass(frozen=True)
class Breach:
    """Why a document is dropped: the rule's reason, the document's value and the limit."""

    reason: str
    value: float
    limit: float


# ------------------------------------------------------------------------------------------- plain text


def normalise(text: str) -> str:
    """NFC, newlines as ``\\n``, no control characters, no lone surrogates, no outer white space; nothing else."""
    text = _CONTROLS.sub("", _NEWLINES.sub("\n", text)).strip()
    return unicodedata.normalize("NFC", _SURROGATES.sub("\ufffd", text))


def simplify(texts: Sequence[str]) -> list[str]:
    """Traditional Chinese to Simplified, word by word where words differ (OpenCC t2s).

    Args:
        texts: normalised texts; they are converted in one call, because each call costs more than a short text.
    """
    return _converter().convert(_SEPARATOR.join(texts)).split(_SEPARATOR) if texts else []


@functools.cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")


# --------------------------------------------------------------------------------------- measures and rules


def measure(texts: Sequence[str], counts: NDArray[np.int64]) -> list[dict[str, float]]:
    """The attributes of each text that rules look at: values, not verdicts, so that limits can be chosen afterwards.

    ``n_chars`` counts characters without white space; ``letters``, ``han`` and ``unreadable`` are shares of it;
    ``repeated_lines`` and ``repeated_grams`` are the shares of characters, and of runs of 13 of them, seen before in
    the same text.

    Args:
        texts: plain texts.
        counts: their characters by kind, (texts, kinds), as ``langid.count`` gives them.
    """
    n_chars = counts.sum(axis=1) - counts[:, Kind.SPACE]
    whole = np.maximum(n_chars, 1)
    letters = counts[:, [Kind.DIGIT, Kind.LATIN, Kind.LETTER, Kind.HAN, Kind.KANA]].sum(axis=1)
    columns = {
        "letters": letters / whole,
        "han": counts[:, Kind.HAN] / whole,
        "repeated_lines": np.array([_repeated_lines(text) for text in texts]),
        "repeated_grams": _repeated_grams(texts),
        "unreadable": counts[:, Kind.LOST] / whole,
    }
    rows = zip(n_chars.tolist(), *(column.round(4).tolist() for column in columns.values()), strict=True)
    return [dict(zip(("n_chars", *columns), row, strict=True)) for row in rows]


def limits(settings: Limited) -> dict[str, float]:
    """Setting -> limit: the profile's, and what the recipe says instead."""
    chosen = dict(PROFILES[settings.profile])
    for rule in RULES:
        value = getattr(settings, rule.setting)
        if value is not None:
            chosen[rule.setting] = float(value)
    return chosen


def breach(measures: Mapping[str, float], limit_of: Mapping[str, float], compared: str) -> Breach | None:
    """The first rule that a document breaks, or None if it is kept.

    Args:
        measures: the document's values, as ``measure`` gives them.
        limit_of: setting -> limit, as ``limits`` gives them.
        compared: what tells the document from others; one without a single letter or digit says nothing.
    """
    if not any(map(str.isalnum, compared)):
        return Breach("empty", 0.0, 1.0)
    for rule in RULES:
        limit = limit_of.get(rule.setting)
        value = measures[rule.attribute]
        if limit is not None and (value < limit if rule.at_least else value > limit):
            return Breach(rule.reason, value, limit)
    return None


def _repeated_lines(text: str) -> float:
    """Share of the text's characters in lines that stood before."""
    lines = [line.strip() for line in text.split("\n")]
    repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
    return repeated / max(sum(map(len, lines)), 1)


def _repeated_grams(texts: Sequence[str]) -> NDArray[np.float64]:
    """Share of each text's runs of 13 characters, white space and case aside, that stood before in it."""
    points, ends = langid.code_points(["".join(text.lower().split()) for text in texts])
    grams, ends = minhash.rolling(minhash.mix(points.astype(np.uint64)), ends, GRAM)
    sizes = np.diff(ends, prepend=0)
    rows = np.repeat(np.arange(len(texts)), sizes)
    bits = np.uint64(64 - len(texts).bit_length())  # as many of the hash as fit below the row: one array to sort
    keys = np.sort((rows.astype(np.uint64) << bits) | (grams & ((np.uint64(1) << bits) - np.uint64(1))))
    again = (keys[1:][np.diff(keys) == 0] >> bits).astype(np.int64)
    return np.bincount(again, minlength=len(texts)) / np.maximum(sizes, 1)
