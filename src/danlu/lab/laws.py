"""Paths of policies as curves: gold at a given distance, laws of over-optimisation, the peak and what stops find of it.

In:  looks (``align.monitor``): ``kl`` in nats per answer, ``reward`` (the proxy), ``judge`` (the gold).
Out: interpolated gold, fitted coefficients, the look with most gold, what share of its gain a rule would have kept, how
far gold falls before the alarm.
Left out: making looks (``looks``), pictures (``report.pictures``).

Gao, Schulman and Hilton (arXiv 2210.10760, section 3) write the gold gained over the SFT model as a function of
d = sqrt(KL): d (alpha - beta d) for the best of n, d (alpha - beta log d) for reinforcement learning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from danlu.align import monitor

Look = dict[str, Any]


@dataclass(frozen=True)
class Law:
    """A fitted law, gold gained = d (alpha - beta f(d)), in units of gold.

    Attributes:
        sampled: whether it is the best of n's, f(d) = d, rather than that of training, f(d) = log d.
        alpha, beta: its coefficients.
        error: root mean square of what it misses.
    """

    sampled: bool
    alpha: float
    beta: float
    error: float

    def __call__(self, kl: float) -> float:
        """Gold gained at a distance in nats."""
        d = math.sqrt(kl)
        return d * (self.alpha - self.beta * (d if self.sampled else math.log(d))) if d else 0.0

    @property
    def peak_kl(self) -> float | None:
        """Nats at which gold stops rising by this law; None if it never falls, or never rises."""
        if self.beta <= 0:
            return None
        d = self.alpha / (2 * self.beta) if self.sampled else math.exp(self.alpha / self.beta - 1)
        return d * d if d > 0 else None


def fit(looks: Sequence[Look], sampled: bool, key: str = "judge") -> Law | None:
    """The law that misses the gains since the first look least, by squares; None for fewer than two distances.

    Args:
        looks: the first is at the SFT model.
        sampled: which of the two laws.
        key: what is fitted.
    """
    gained = [(math.sqrt(look["kl"]), look[key] - looks[0][key]) for look in looks[1:] if look["kl"] > 0]
    if len({d for d, _ in gained}) < 2:
        return None
    d, gain = np.array(gained).T
    terms = np.stack([d, -d * (d if sampled else np.log(d))], axis=1)
    coefficients = np.linalg.lstsq(terms, gain, rcond=None)[0]
    error = float(np.sqrt(np.mean((terms @ coefficients - gain) ** 2)))
    return Law(sampled, float(coefficients[0]), float(coefficients[1]), error)


def at_kl(looks: Sequence[Look], kl: float, key: str = "judge") -> float | None:
    """A figure at a distance, linear in sqrt(KL) between the looks where the path first passes it.

    Returns:
        None if the path never got so far: nothing is said beyond what was seen.
    """
    for before, after in pairwise(looks):
        here, there = (math.sqrt(max(0.0, look["kl"])) for look in (before, after))
        if here <= math.sqrt(kl) <= there:
            share = (math.sqrt(kl) - here) / (there - here) if there > here else 1.0
            return float(before[key] + share * (after[key] - before[key]))
    return None


def farthest(looks: Sequence[Look]) -> float:
    """Nats of the look that is farthest from the SFT model."""
    return max(float(look["kl"]) for look in looks)


def peak(looks: Sequence[Look]) -> Look:
    """The look with most gold, the first of several."""
    return max(looks, key=lambda look: float(look["judge"]))


def stopped_by_alarm(looks: Sequence[Look]) -> list[Look]:
    """The looks before the first that raises the alarm; all if none does."""
    for end in range(1, len(looks) + 1):
        if monitor.over_optimised(looks[:end]):
            return list(looks[: end - 1])
    return list(looks)


def alarm(looks: Sequence[Look]) -> Look | None:
    """The look that raises the alarm, and what that costs; None if none does.

    Returns:
        ``place`` among the looks, ``iteration``, ``kl``; gold below the best look so far, ``fallen`` at the alarm and
        ``lost`` by somebody who then keeps what had most proxy before it.
    """
    before = stopped_by_alarm(looks)
    if len(before) == len(looks):
        return None
    rings, best = looks[len(before)], peak(looks[: len(before) + 1])["judge"]
    found = {"place": len(before), "iteration": rings["iteration"], "kl": rings["kl"]}
    return found | {"fallen": best - rings["judge"], "lost": best - kept(before)["judge"]}


def kept(looks: Sequence[Look], kl_budget: float = math.inf) -> Look:
    """What somebody keeps who sees the proxy alone: the look with most of it within the budget."""
    chosen = monitor.choose(looks, 0.0, kl_budget)
    return next(look for look in looks if look["iteration"] == chosen)


def recovered(looks: Sequence[Look], look: Look) -> float | None:
    """What share of the gold gained at the peak a look holds, negative if it is below the SFT model's.

    Returns:
        None if the gain at the peak is within two standard errors: a share of noise says nothing.
    """
    top, start = peak(looks), looks[0]
    gain, error = top["judge"] - start["judge"], math.hypot(top["judge_error"], start["judge_error"])
    return float((look["judge"] - start["judge"]) / gain) if gain > 2.0 * error else None
