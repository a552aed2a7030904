"""Whether people who judge the same answers judge alike, and whether one who sees them again does.

In:  preferences, of which some are on the same comparison by different raters, or by one who was shown it twice.
Out: ``agree``: how often two raters give the same verdict, and Krippendorff's alpha, with intervals; ``steadiness``:
how often one rater does.
Left out: who is right (``ratings``).

The thing judged is a pair of answers of one comparison, the verdict -1, 0 (a tie, or all bad) or 1. Alpha
(Krippendorff, *Content Analysis*, chapter 12) is 1 - observed / expected disagreement with squared differences, so
that a tie is half as far from a win as a loss is: 1 is agreement, 0 is chance. Drawn again for the intervals are
comparisons, not pairs: those of one ranking hang together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.records import Preference

_ROUNDS = 1000
_VERDICTS = np.array([-1.0, 0.0, 1.0])


@dataclass(frozen=True)
class Agreement:
    """How far raters agree.

    Attributes:
        comparisons: judged by more than one rater.
        raters: who judged one of them.
        same: share of pairs of verdicts on the same pair of answers that are equal.
        alpha: Krippendorff's; None if every verdict is the same, which leaves nothing to disagree about.
        same_interval, alpha_interval: 95 %.
    """

    comparisons: int
    raters: int
    same: float
    same_interval: tuple[float, float]
    alpha: float | None
    alpha_interval: tuple[float, float] | None


def agree(preferences: Sequence[Preference], seed: int = 0, rounds: int = _ROUNDS) -> Agreement | None:
    """Measure agreement; None if no comparison was judged by two raters."""
    judged: dict[Hashable, dict[str, Preference]] = {}
    for preference in preferences:
        judged.setdefault(_comparison(preference), {})[preference.rater] = preference
    shared = [by_rater for by_rater in judged.values() if len(by_rater) > 1]
    if not shared:
        return None
    tables = np.stack([_coincidences(by_rater) for by_rater in shared])
    n = len(tables)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=rounds)
    drawn = np.tensordot(draws, tables, 1)
    alphas = np.array([alpha for alpha in map(_alpha, drawn) if alpha is not None])
    total = tables.sum(0)
    return Agreement(
        comparisons=n,
        raters=len({rater for by_rater in shared for rater in by_rater}),
        same=_same(total),
        same_interval=_interval(np.array([*map(_same, drawn)])),
        alpha=_alpha(total),
        alpha_interval=_interval(alphas) if len(alphas) else None,
    )


@dataclass(frozen=True)
class Steadiness:
    """What raters say when they are shown the same two answers again, left and right exchanged.

    Attributes:
        comparisons: shown again, and judged again.
        same: how often the verdict was the same.
        same_place: how often the other answer was preferred, which now stood where the first one had stood: whoever
            always chooses a side does that.
    """

    comparisons: int
    same: int
    same_place: int


def steadiness(pairs: Sequence[tuple[Preference, Preference]]) -> Steadiness | None:
    """Measure self-agreement from first and second judgements; None if nothing was judged twice."""
    if not pairs:
        return None
    same = sum(bool((_verdicts(first) == _verdicts(again)).all()) for first, again in pairs)
    turned = [
        (first, again) for first, again in pairs if first.display_order[::-1] == again.display_order
    ]  # fmt: skip
    place = sum(_verdicts(first)[0] * _verdicts(again)[0] == -1 for first, again in turned if len(first.answers) == 2)
    return Steadiness(len(pairs), same, int(place))


def _comparison(preference: Preference) -> Hashable:
    """What tells one comparison from another: the seeds differ where everything else is alike."""
    return preference.prompt, tuple((a.model, a.seed, a.text) for a in preference.answers)


def _coincidences(by_rater: Mapping[str, Preference]) -> NDArray[np.float64]:
    """(3, 3) how often two raters gave verdicts (row, column) on a pair of answers.

    A pair with m raters adds m in all, 1 / (m - 1) for each ordered pair of them, as Krippendorff counts.
    """
    verdicts = np.stack([_verdicts(preference) for preference in by_rater.values()])  # (m, pairs)
    counts = np.stack([(verdicts == verdict).sum(0) for verdict in (-1, 0, 1)]).astype(np.float64)  # (3, pairs)
    table = counts @ counts.T - np.diag(counts.sum(1))  # not with oneself
    return np.asarray(table / (len(verdicts) - 1))


def _verdicts(preference: Preference) -> NDArray[np.int64]:
    """-1, 0 or 1 for every pair of answers."""
    ranks = np.array(preference.ranks or (0,) * len(preference.answers))
    first, second = np.triu_indices(len(ranks), 1)
    return np.asarray(np.sign(ranks[first] - ranks[second]), np.int64)


def _same(table: NDArray[np.float64]) -> float:
    return float(np.trace(table) / table.sum())


def _alpha(table: NDArray[np.float64]) -> float | None:
    distance = (_VERDICTS[:, None] - _VERDICTS) ** 2
    values = table.sum(1)
    n = values.sum()
    expected = float((np.outer(values, values) * distance).sum() / (n - 1))
    return 1 - float((table * distance).sum()) / expected if expected else None


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
