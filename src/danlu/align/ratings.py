"""How good each model is, as the people who compared answers see it, and how far they can be believed.

In:  preferences.
Out: ``rate``: a Bradley-Terry rating for every model with an interval; ``left_share``: whether place decides.
Left out: whether raters agree with each other (``agreement``), whether a model may be promoted.

Bradley and Terry (1952) fitted as logistic regression, a tie being half a win for both, as Chatbot Arena does it
(arXiv 2403.04132). Two models that met also get half a win each (Anscombe 1956): the estimate of log odds is nearly
unbiased by it, and a model that has never lost is not infinitely good. Intervals are a bootstrap: judgements are drawn
again, whole, because the pairs of one ranking are one person's one opinion. A bootstrap of a few unanimous votes knows
no doubt, so below ``ENOUGH`` judgements of a model nothing is called decided.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.evals import wilson
from danlu.records import Preference

POINTS = 400 / math.log(10)  # Elo's scale: 400 points are odds of ten to one
ENOUGH = 10  # of ten unanimous judgements, chance makes two in a thousand
_ROUNDS = 200

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rating:
    """What people's comparisons say of one model.

    Attributes:
        model: hash or name, as answers carry it.
        judgements: comparisons of it with other models.
        wins, ties, losses: over pairs of answers.
        points: on Elo's scale, the anchor's being 0; None if no chain of comparisons leads to the anchor.
        low, high: its 95 % interval.
        at_equal_length: the points with the length of answers accounted for.
        share: expected share of wins against the anchor.
        decided: whether the interval excludes 0 and there are enough judgements to say so.
    """

    model: str
    judgements: int
    wins: int
    ties: int
    losses: int
    points: float | None
    low: float | None
    high: float | None
    at_equal_length: float | None
    share: float | None
    decided: bool


@dataclass(frozen=True)
class Table:
    """Every model's rating, the best first.

    Attributes:
        anchor: the model whose rating is 0.
        ratings: one per model.
        length: what it is worth to be longer by as much as answers here typically differ, in log odds of a win.
        length_interval: 95 %.
    """

    anchor: str
    ratings: tuple[Rating, ...]
    length: float
    length_interval: tuple[float, float]


@dataclass(frozen=True)
class _Duels:
    """Pairs of answers of different models, a row for each.

    Attributes:
        first, second: (N,) places of the models.
        score: (N,) 1 if the first was preferred, 0 if the second, a half for a tie.
        length: (N,) relative difference of their lengths in characters, (a - b) / (a + b), in units of its root mean
            square over all pairs.
        judgement: (N,) which judgement each belongs to.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    score: Floats
    length: Floats
    judgement: NDArray[np.int64]


def rate(preferences: Sequence[Preference], anchor: str = "", seed: int = 0, rounds: int = _ROUNDS) -> Table | None:
    """Rate every model that was compared with another.

    Args:
        preferences: judgements; those of one model's answers among themselves say nothing here.
        anchor: the model whose rating is 0; the one most often judged if empty or never judged.
        seed: of the bootstrap.
        rounds: of the bootstrap.

    Returns:
        The table, or None if no two models were compared.
    """
    models, duels = _duels(preferences)
    if not models:
        return None
    judged = Counter(models[place] for place in _seats(duels))
    if anchor not in judged:
        anchor = max(models, key=lambda model: (judged[model], model))
    zero = models.index(anchor)
    met = _met(duels, len(models))
    reached = _reached(met, zero)
    points, controlled = POINTS * _fit(duels, met, zero), _fit(duels, met, zero, by_length=True)
    draws = _draws(duels, seed, rounds)
    low, high = _interval([POINTS * _fit(duels, met, zero, drawn) for drawn in draws])
    shorter, longer = _interval([_fit(duels, met, zero, drawn, by_length=True)[-1:] for drawn in draws])
    ratings = [
        _rating(models[i], judged[models[i]], _record(duels, i), points[i], low[i], high[i], POINTS * controlled[i])
        if reached[i]
        else _rating(models[i], judged[models[i]], _record(duels, i))
        for i in range(len(models))
    ]
    ratings.sort(key=lambda rating: (rating.points is None, -(rating.points or 0.0), rating.model))
    return Table(anchor, tuple(ratings), float(controlled[-1]), (float(shorter[0]), float(longer[0])))


def left_share(preferences: Sequence[Preference]) -> tuple[int, int, float, float]:
    """How often the first of two answers was preferred to the second, whoever wrote them.

    Returns:
        (times, of how many, low, high), the interval at 95 %; one that excludes a half says that place decides.
    """
    by_place = [[p.ranks[i] for i in p.display_order or (0, 1)] for p in preferences if len(p.ranks) == 2]
    decided = [left < right for left, right in by_place if left != right]
    return sum(decided), len(decided), *wilson(sum(decided), len(decided))


def _duels(preferences: Sequence[Preference]) -> tuple[list[str], _Duels]:
    """The models by name, and every pair of answers of two of them."""
    rows: list[tuple[str, str, float, float, int]] = []
    for number, preference in enumerate(preferences):
        for i in range(len(preference.ranks)):
            for j in range(i + 1, len(preference.ranks)):
                a, b = preference.answers[i], preference.answers[j]
                if a.model != b.model:
                    score = 0.5 + 0.5 * float(np.sign(preference.ranks[j] - preference.ranks[i]))
                    long, short = len(a.text), len(b.text)
                    rows.append((a.model, b.model, score, (long - short) / max(long + short, 1), number))
    models = sorted({name for a, b, *_ in rows for name in (a, b)})
    place = {name: index for index, name in enumerate(models)}
    return models, _Duels(
        first=np.array([place[a] for a, *_ in rows], np.int64),
        second=np.array([place[b] for _, b, *_ in rows], np.int64),
        score=np.array([score for _, _, score, _, _ in rows], np.float64),
        length=_in_typical([length for *_, length, _ in rows]),
        judgement=np.array([number for *_, number in rows], np.int64),
    )


def _in_typical(lengths: Sequence[float]) -> Floats:
    """Differences of length in units of their root mean square; zero where all are equal."""
    found = np.array(lengths, np.float64)
    typical = float(np.sqrt((found**2).mean())) if lengths else 0.0
    return found / typical if typical else found


def _seats(duels: _Duels) -> list[int]:
    """The place of every model in every judgement that it was part of, once each."""
    seats = np.concatenate([np.stack([duels.judgement, who], 1) for who in (duels.first, duels.second)])
    return [int(place) for _, place in np.unique(seats, axis=0)]


def _met(duels: _Duels, n: int) -> NDArray[np.int64]:
    """(M, 2) the pairs of models that met, each once."""
    low, high = np.minimum(duels.first, duels.second), np.maximum(duels.first, duels.second)
    return np.stack(np.divmod(np.unique(low * n + high), n), 1)


def _reached(met: NDArray[np.int64], zero: int) -> NDArray[np.bool_]:
    """Which models a chain of comparisons connects with the anchor."""
    from scipy.sparse import coo_array  # a second, which a server that starts should not take
    from scipy.sparse.csgraph import connected_components

    n = int(met.max()) + 1
    graph = coo_array((np.ones(len(met)), (met[:, 0], met[:, 1])), shape=(n, n))
    _, part = connected_components(graph, directed=False)
    return np.asarray(part == part[zero])


def _fit(
    duels: _Duels, met: NDArray[np.int64], zero: int, weights: Floats | None = None, by_length: bool = False
) -> Floats:
    """(models + 1,) log-odds ratings, the anchor's 0, and last the weight of length, 0 unless ``by_length``."""
    from scipy.optimize import minimize  # see _reached

    n = int(met.max()) + 1
    first = np.concatenate([duels.first, met[:, 0]])
    second = np.concatenate([duels.second, met[:, 1]])
    score = np.concatenate([duels.score, np.full(len(met), 0.5)])
    length = np.concatenate([duels.length, np.zeros(len(met))]) * by_length
    weight = np.concatenate([np.ones(len(duels.score)) if weights is None else weights, np.ones(len(met))])

    def loss(x: Floats) -> tuple[float, Floats]:
        margin = x[first] - x[second] + x[n] * length
        pull = weight * (_share(margin) - score)
        gradient = np.asarray(np.bincount(first, pull, n + 1) - np.bincount(second, pull, n + 1), np.float64)
        gradient[n] = pull @ length
        return float(weight @ (np.logaddexp(0.0, margin) - score * margin)), gradient

    found = minimize(loss, np.zeros(n + 1), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-8}).x
    found[:n] -= found[zero]
    return np.asarray(found, np.float64)


def _share(margin: Floats) -> Floats:
    """Expected share of wins at a margin of so many log odds."""
    return np.exp(-np.logaddexp(0.0, -margin))


def _draws(duels: _Duels, seed: int, rounds: int) -> list[Floats]:
    """How often each pair comes up when judgements are drawn again, whole: (N,) for every round."""
    _, own = np.unique(duels.judgement, return_inverse=True)
    n = int(own.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=rounds)
    return [row[own].astype(np.float64) for row in drawn]


def _interval(rounds: Sequence[Floats]) -> tuple[Floats, Floats]:
    low, high = np.quantile(np.stack(rounds), (0.025, 0.975), axis=0)
    return low, high


def _record(duels: _Duels, model: int) -> tuple[int, int, int]:
    """Wins, ties and losses of a model."""
    own = np.concatenate([duels.score[duels.first == model], 1 - duels.score[duels.second == model]])
    return int((own == 1).sum()), int((own == 0.5).sum()), int((own == 0).sum())


def _rating(
    model: str, judgements: int, record: tuple[int, int, int], points: float | None = None, low: float | None = None,
    high: float | None = None, at_equal_length: float | None = None,
) -> Rating:  # fmt: skip
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(float(value), 1) + 0.0  # no "-0.0"

    return Rating(
        model, judgements, *record, rounded(points), rounded(low), rounded(high), rounded(at_equal_length),
        share=None if points is None else round(float(_share(np.asarray(points / POINTS))), 4),
        decided=low is not None and high is not None and bool(low > 0 or high < 0) and judgements >= ENOUGH,
    )  # fmt: skip
