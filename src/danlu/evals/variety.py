"""How much of what a model writes is its own: copying from the training text, and variety across answers.

In:  training texts and answers.
Out: the longest run an answer shares with any training text, whether it is a copy, distinct-2; how much answers repeat
themselves.
Left out: fuzzy copying (one character changed breaks a run).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

COPY_RUN = 10
_GRAM = 4
_BREAK = 0


class CopyIndex:
    """Finds the longest common run of letters between an answer and any training text, exactly.

    Punctuation, spaces and line ends are ignored on both sides, so a run goes on across lines; it never goes on from
    one training text into the next. An answer is a *copy* when it holds a run of ``copy_run`` letters: 10 Han
    characters are two whole lines of a five-character poem.

    Every position of the training text is kept sorted by the four letters that start there (16 bits each); an answer's
    four letters find their positions by bisection, and the runs are then followed letter by letter in the text itself.
    """

    def __init__(self, texts: Iterable[str], copy_run: int = COPY_RUN) -> None:
        if copy_run < _GRAM:
            raise ValueError(f"copy_run must be at least {_GRAM}, not {copy_run}")
        self.copy_run = copy_run
        joined = _code_points("\n\0\n".join(texts) + "\0")
        self._ids = _letter_ids(joined)
        ids = self._ids[joined]
        self._text = ids[(ids != _BREAK) | (joined == 0)]
        grams = _grams(self._text)
        self._positions = np.argsort(grams, kind="stable")
        self._grams = grams[self._positions]

    def longest_run(self, answer: str) -> int:
        """Letters of ``answer`` in its longest run that some training text holds too; runs below four count as 0."""
        letters = self._letters(answer)
        longest = 0
        for start, gram in enumerate(_grams(letters)):
            if len(letters) - start > longest:
                longest = max(longest, self._follow(letters[start:], gram))
        return longest

    def is_copy(self, answer: str) -> bool:
        """Whether the answer holds a run of at least ``copy_run`` letters."""
        return self.longest_run(answer) >= self.copy_run

    def _letters(self, text: str) -> NDArray[np.int64]:
        """The text's letters as ids of the training text; a letter that it never uses gets an id nothing matches."""
        points = _code_points("".join(filter(str.isalnum, text)))
        ids = np.full(len(points), -1)
        known = points < len(self._ids)
        ids[known] = self._ids[points[known]]
        ids[ids == _BREAK] = -1
        return ids

    def _follow(self, letters: NDArray[np.int64], gram: np.uint64) -> int:
        """Length of the longest training run that starts like ``letters``; 0 below four."""
        low, high = np.searchsorted(self._grams, gram, "left"), np.searchsorted(self._grams, gram, "right")
        places, length = self._positions[low:high], 0
        while length < len(letters):
            places = places[places + length < len(self._text)]
            places = places[self._text[places + length] == letters[length]]
            if not len(places):
                break
            length += 1
        return length if length >= _GRAM else 0


def distinct_2(texts: Iterable[str]) -> float:
    """Distinct character bigrams over all bigrams of a set of texts (Li et al. 2016, distinct-2, over the set).

    Bigrams are taken inside lines: none spans punctuation or white space. 0 when there is not one bigram. The value
    falls as a set grows, so only sets of one size compare.
    """
    bigrams = [a + b for text in texts for a, b in pairwise(text) if a.isalnum() and b.isalnum()]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def repeated_4(answers: Sequence[Sequence[int]]) -> float:
    """Mean over answers, as token ids, of the share of their runs of four that they held before.

    seq-rep-4 of Welleck et al. (arXiv 1908.04319, section 6.1): ``1 - different runs / runs``; 0 for an answer of fewer
    than four tokens.
    """
    shares = []
    for tokens in answers:
        runs = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
        shares.append(1.0 - len(set(runs)) / len(runs) if runs else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _letter_ids(points: NDArray[np.uint32]) -> NDArray[np.int64]:
    """A table from code point to a small id, 0 for everything that is not a letter or digit."""
    present = np.bincount(points) > 0
    letters = [point for point in np.flatnonzero(present) if chr(point).isalnum()]
    ids = np.zeros(len(present), dtype=np.int64)
    ids[letters] = np.arange(1, len(letters) + 1)
    return ids


def _grams(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Four ids per position in one 64-bit number; ids beyond 16 bits may share one, which ``_follow`` tells apart."""
    if len(ids) < _GRAM:
        return np.zeros(0, dtype=np.uint64)
    short = (ids & 0xFFFF).astype(np.uint64)
    packed = np.zeros(len(ids) - _GRAM + 1, dtype=np.uint64)
    for offset in range(_GRAM):
        packed = (packed << np.uint64(16)) | short[offset : len(short) - _GRAM + 1 + offset]
    return packed
