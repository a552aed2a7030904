"""Formulas of learning from rankings: Bradley-Terry over every pair, Davidson's ties, centring.

In:  scalar rewards of the K answers of each comparison, and their ranks.
Out: the loss of each comparison; ``mean_over_pairs`` for losses of pairs that are not Bradley-Terry's.
Left out: where rewards come from (``comparisons``).

In all of them ``ranks`` is (B, K) integers, 0 the best, equal ranks tie, -1 where a ranking has fewer than K answers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(rewards: Tensor, ranks: Tensor, margin: float = 0.0) -> Tensor:
    """K-wise ranking loss: every strict pair once, weighted by 1 / C(K, 2).

    ``loss = -1/C(K,2) * sum over (i better than j) of log sigmoid(r_i - r_j)`` (InstructGPT, arXiv 2203.02155, eq. 1).
    Without ties this is the mean of the pair losses. A tie contributes no pair and keeps the divisor: a ranking that
    says less weighs less.

    Args:
        rewards: (B, K) scalar rewards.
        ranks: (B, K).
        margin: how far apart rewards should be for every rank between them, as the margin of Llama 2 (arXiv 2307.09288,
            eq. 2) grows with how clearly one answer was preferred.

    Returns:
        (B,) loss of each ranking.
    """
    return mean_over_pairs(-F.logsigmoid(_leads(rewards, ranks, margin)), ranks)


def davidson(rewards: Tensor, ranks: Tensor, log_nu: Tensor, margin: float = 0.0) -> Tensor:
    """K-wise ranking loss in which a tie is an outcome too (Davidson, JASA 65, 1970).

    With ``d = r_i - r_j`` the odds of i winning, a tie, and j winning are ``exp(d/2) : nu : exp(-d/2)``. Every pair
    counts, tied ones once, weighted by 1 / C(K, 2). For nu = 0 this is Bradley-Terry.

    Args:
        rewards: (B, K) scalar rewards.
        ranks: (B, K).
        log_nu: () logarithm of nu, which is twice the odds of a tie between equals.
        margin: as for ``bradley_terry``; a tie has none.

    Returns:
        (B,) loss of each ranking.
    """
    half = _leads(rewards, ranks, margin) / 2  # B, K, K
    everything = torch.logaddexp(torch.logaddexp(half, -half), log_nu)
    won = mean_over_pairs(everything - half, ranks)
    tied = (ranks[:, :, None] == ranks[:, None, :]) & _both(ranks)
    tied = tied.triu(diagonal=1)
    return won + (everything - log_nu).masked_fill(~tied, 0.0).sum((1, 2)) / _n_pairs(ranks)


def centring(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Mean of ``(r_i + r_j)^2`` over all pairs of each ranking, which pulls rewards towards a mean of zero.

    Differences of rewards say nothing of where zero is; this does (Eisenstein et al., arXiv 2312.09244;
    TRL's ``center_rewards_coefficient`` is its weight).

    Args:
        rewards: (B, K) scalar rewards.
        ranks: (B, K).

    Returns:
        (B,) of each ranking, not weighted.
    """
    sums = (rewards[:, :, None] + rewards[:, None, :]) ** 2
    pairs = _both(ranks).triu(diagonal=1)
    return sums.masked_fill(~pairs, 0.0).sum((1, 2)) / _n_pairs(ranks)


def mean_over_pairs(losses: Tensor, ranks: Tensor) -> Tensor:
    """(B, K, K) losses of "i rather than j" -> (B,): the sum over strict pairs by 1 / C(K, 2), ranks as above."""
    better = (ranks[:, :, None] < ranks[:, None, :]) & _both(ranks)
    return losses.masked_fill(~better, 0.0).sum((1, 2)) / _n_pairs(ranks)


def _leads(rewards: Tensor, ranks: Tensor, margin: float) -> Tensor:
    """(B, K, K) by how much i is ahead of j, less what it ought to be ahead by."""
    leads = rewards[:, :, None] - rewards[:, None, :]
    return leads - margin * (ranks[:, None, :] - ranks[:, :, None]) if margin else leads


def _both(ranks: Tensor) -> Tensor:
    """(B, K, K) whether there are an i and a j."""
    present = ranks >= 0
    return present[:, :, None] & present[:, None, :]


def _n_pairs(ranks: Tensor) -> Tensor:
    """(B,) C(K, 2), but at least 1."""
    n = (ranks >= 0).sum(1)
    return (n * (n - 1) / 2).clamp(min=1)
