"""A rhyme book compiled from poems, as the rhyme books of the Tang were: which characters poets let rhyme.

In:  the feet of poems (the characters that rhyme, as the poet wrote them).
Out: for a character, others that rhyme with it.
Left out: pronunciation. What rhymes is what poets rhymed; the judge of ``evals`` goes by sound.
"""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np


class RhymeBook:
    """Characters that stood as feet of one poem together, counted over all poems."""

    def __init__(self) -> None:
        self._companions: dict[str, Counter[str]] = {}

    def add(self, feet: str) -> None:
        """Take in the feet of a poem."""
        for one, other in permutations(dict.fromkeys(feet), 2):
            self._companions.setdefault(one, Counter())[other] += 1

    def rhymes(self, foot: str, most: int, seed: int) -> str:
        """At most ``most`` different characters that rhyme with ``foot``, frequent ones more likely; or none."""
        companions = self._companions.get(foot)
        if not companions:
            return ""
        characters, counts = list(companions), np.array(list(companions.values()), dtype=float)
        size = min(most, len(characters))
        drawn = np.random.default_rng(seed).choice(len(characters), size, replace=False, p=counts / counts.sum())
        return "".join(characters[place] for place in drawn)
