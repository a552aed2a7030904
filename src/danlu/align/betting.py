"""Betting on a mean: what judgements prove of it, however often somebody looks.

In:  judgements of two models, each a score from 0 to 1.
Out: ``Tally``, ``score_of`` a judgement, ``log_wealth`` of who bets against a claim, ``lower_bound``.
Left out: which judgements count, and what is made of the proof (``gate``).

People vote one after another and somebody looks at every vote, so an interval for a fixed number of votes would be
wrong far more often than it says. The test is by betting (Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", arXiv 2010.09686): against the claim "the win rate is at most m" one stakes a share of one's
wealth on every judgement. If the claim is true the wealth is a non-negative supermartingale, and by Ville's inequality
it ever reaches 1 / alpha with probability alpha at most, however often one looks and whenever one stops. Not knowing
the best stake, one plays several at once and takes the mean of what they won: that is fair as well, and it has a closed
form in how often each score was given.

A ranking is one judgement, whose score is a mean over its pairs: they are one person's one opinion of one prompt, and
nothing is asked of how they hang together. Its score is seldom near 0 or 1, so it proves more than a pair does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from danlu.records import Preference

# Against one half the best stake is (wins - losses) / (wins + losses): 0.06 for a win rate of 53 %, 0.6 for 80 %. In
# even ratios every gain finds a stake near it, and pays for few that are not.
STAKES = tuple(0.8 * 0.6**k for k in range(8))


@dataclass(frozen=True)
class Tally:
    """How often each score was given, from the candidate's side; a share of a judgement is for projections.

    Attributes:
        counts: by score, 1 where every answer of the candidate was better, a half where none was, or as many as not.
    """

    counts: Mapping[float, float]

    @staticmethod
    def of(scores: Iterable[float]) -> Tally:
        """Of the scores of judgements."""
        return Tally(dict(Counter(scores)))

    @property
    def votes(self) -> float:
        """How many there are."""
        return sum(self.counts.values())

    @property
    def wins(self) -> float:
        """In how many the candidate was better."""
        return sum(count for score, count in self.counts.items() if score > 0.5)

    @property
    def ties(self) -> float:
        """In how many neither was."""
        return self.counts.get(0.5, 0)

    @property
    def losses(self) -> float:
        """In how many the champion was better."""
        return self.reversed().wins

    def rate(self) -> float:
        """The mean score; one half where there is no judgement."""
        return sum(score * count for score, count in self.counts.items()) / self.votes if self.votes else 0.5

    def reversed(self) -> Tally:
        """As the champion sees it."""
        return Tally({1 - score: count for score, count in self.counts.items()})

    def smoothed(self) -> Tally:
        """With one clear win and one clear loss more, so that few judgements promise nothing."""
        return self.ahead(2, Tally({1.0: 1, 0.0: 1}))

    def ahead(self, more: float, like: Tally) -> Tally:
        """With so many judgements more, which fall as those of another tally did."""
        scores = self.counts.keys() | like.counts.keys()
        return Tally({
            score: self.counts.get(score, 0) + more * like.counts.get(score, 0) / like.votes for score in scores
        })  # fmt: skip


def score_of(judgement: Preference, candidate: str) -> float:
    """What the candidate had of one judgement on answers of two models: the share of pairs of an answer of each in
    which its own was better, equal ones by half (Mann and Whitney's U as a share of its most). All bad is all equal.

    Of two answers that is 1, a half or 0. Its mean is the win rate of an answer of one against an answer of the other,
    however many of each are ranked.
    """
    ranks = judgement.ranks or (0,) * len(judgement.answers)
    own: list[int] = []
    others: list[int] = []
    for answer, rank in zip(judgement.answers, ranks, strict=True):
        (own if answer.model == candidate else others).append(rank)
    halves = sum(1 + (other > rank) - (other < rank) for rank in own for other in others)
    return halves / (2 * len(own) * len(others))


def log_wealth(tally: Tally, rate: float) -> float:
    """Log of what betting against "the win rate is at most ``rate``" has won.

    A stake c on a score x multiplies the wealth by 1 + c (x / rate - 1), whose mean is at most 1 if the claim is true,
    and which is never negative.
    """
    scores = sorted(tally.counts, reverse=True)  # the same sum in whatever order they came
    won = [sum(tally.counts[x] * math.log1p(c * (x / rate - 1)) for x in scores) for c in STAKES]
    return float(np.logaddexp.reduce(won)) - math.log(len(won))


def lower_bound(tally: Tally, error: float) -> float:
    """The largest m such that "the win rate is at most m" is refuted: a lower bound that holds at all times at once.

    Args:
        tally: judgements so far.
        error: probability that the bound is ever above the true rate, at most.
    """
    low, high = 0.0, 1.0
    for _ in range(40):  # wealth falls with m, because a score is worth less the more was expected
        middle = (low + high) / 2
        if log_wealth(tally, middle) >= -math.log(error):
            low = middle
        else:
            high = middle
    return low
