"""The prose metric: a modest hidden human for text of any kind, in Chinese or English.

In:  a prompt and its answer.
Out: the same shape of score as the poem metric: components and one total to rank by.
Left out: whether the answer is true, helpful or to the point; that takes people or a stronger model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from danlu.corpus.langid import HAN

RATES = ("ended", "sound")
SHORTEST, LONGEST = 8, 400
MOST_REPETITION = 0.2
REPETITION_WEIGHT = 2.0
ECHO_WEIGHT = 0.5
_GRAM = 3

_WORDS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W_\u3400-\u9fff]+(?:['’][^\W_]+)?")
_HAN = re.compile(HAN)
_ENDED = re.compile(r"[.!?…。！？][\"'”’」』）)\]]*\s*$")


def accepts(prompt: str) -> bool:
    """Any prompt that says something can be answered in prose."""
    return bool(prompt.strip())


def score(prompt: str, answer: str) -> dict[str, float]:
    """Judge one answer; a word is a Han character or a run of letters.

    Returns:
        ``ended``: 1 if it closes with terminal punctuation (a cut-off answer does not).
        ``length_right``: 1 if it has 8 to 400 words, less in proportion outside.
        ``language``: 1 if it is written in the prompt's script (Han or not).
        ``repetition``: share of its word trigrams that occurred earlier in the answer.
        ``echo``: share of its word trigrams that the prompt holds.
        ``sound``: 1 if ended, length_right and language are all 1 and repetition is at most 0.2.
        ``total``: ended + length_right + language - 2 x repetition - 0.5 x echo.
    """
    words, asked = _words(answer), _words(prompt)
    trigrams = _trigrams(words)
    ended = float(bool(_ENDED.search(answer)))
    length = min(1.0, len(words) / SHORTEST, LONGEST / max(1, len(words)))
    language = float(bool(words) and _mostly_han(words) == _mostly_han(asked))
    repetition = 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
    in_prompt = set(_trigrams(asked))
    echo = sum(gram in in_prompt for gram in trigrams) / len(trigrams) if trigrams else 0.0
    sound = ended == length == language == 1.0 and repetition <= MOST_REPETITION
    return {
        "ended": ended,
        "length_right": length,
        "language": language,
        "repetition": repetition,
        "echo": echo,
        "sound": float(sound),
        "total": ended + length + language - REPETITION_WEIGHT * repetition - ECHO_WEIGHT * echo,
    }


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(text)]


def _trigrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]


def _mostly_han(words: Sequence[str]) -> bool:
    return 2 * sum(bool(_HAN.match(word)) for word in words) > len(words)
