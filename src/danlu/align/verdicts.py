"""How well something tells unsafe texts from safe ones, and where it should draw the line.

In:  a score for each text, and whether it was unsafe.
Out: ``threshold_at``, ``auc``, ``verdict``: precision, recall and their like, beside the numbers they come from.
Left out: what gives the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from danlu.evals.intervals import wilson


def threshold_at(scores: Sequence[float], unsafe: Sequence[bool], rate: float) -> float:
    """The lowest threshold at which a new safe text is above it with probability ``rate`` at most.

    Of n safe texts, the k-th highest score with k = floor(rate (n + 1)): a new score is as likely to fall into any of
    the n + 1 gaps between theirs (Vovk et al., "Algorithmic Learning in a Random World", 2.2). With too few safe texts
    for the rate that is above them all.
    """
    safe = sorted((s for s, bad in zip(scores, unsafe, strict=True) if not bad), reverse=True)
    k = math.floor(rate * (len(safe) + 1))
    return math.nextafter(safe[max(k, 1) - 1] if safe else -math.inf, math.inf)


def auc(scores: Sequence[float], unsafe: Sequence[bool]) -> float | None:
    """Probability that an unsafe text scores above a safe one, ties by half; None without both kinds (Mann-Whitney)."""
    bad = np.asarray(unsafe, bool)
    n_bad, n_safe = int(bad.sum()), int((~bad).sum())
    if not n_bad or not n_safe:
        return None
    from scipy.stats import rankdata  # a second or two, which only what draws this curve should take

    ranks = rankdata(np.asarray(scores, float))
    return round(float((ranks[bad].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_safe)), 4)


def verdict(called: Sequence[bool], unsafe: Sequence[bool]) -> dict[str, float | None]:
    """Accuracy, precision, recall and false-positive rate of calling texts unsafe; None where nothing was to be called.

    Args:
        called: whether each text was called unsafe.
        unsafe: whether it is.
    """
    pairs = list(zip(called, unsafe, strict=True))
    hits, calls = sum(c and u for c, u in pairs), sum(called)
    n_unsafe = sum(unsafe)
    n_safe = len(pairs) - n_unsafe
    return {
        "accuracy": _share(sum(c == u for c, u in pairs), len(pairs)),
        "precision": _share(hits, calls),
        "recall": _share(hits, n_unsafe),
        "false_positive_rate": _share(calls - hits, n_safe),
    }


def clearly_above(called: Sequence[bool], unsafe: Sequence[bool], baseline: float) -> bool:
    """Whether the accuracy is above a baseline's even at the low end of its 95 % interval."""
    right = sum(c == u for c, u in zip(called, unsafe, strict=True))
    return wilson(right, len(unsafe))[0] > baseline


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
