"""Formulas of learning from rankings: Bradley-Terry over every pair.

In:  scalar rewards of the K answers of each comparison, and their ranks.
Out: the loss of each comparison; ``mean_over_pairs`` for losses of pairs that are not Bradley-Terry's.
Left out: where rewards come from (``comparisons``).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(rewards: Tensor, ranks: Tensor) -> Tensor:
    """K-wise ranking loss: every strict pair once, weighted by 1 / C(K, 2).

    ``loss = -1/C(K,2) * sum over (i better than j) of log sigmoid(r_i - r_j)`` (InstructGPT, arXiv 2203.02155, eq. 1).
    Without ties this is the mean of the pair losses. A tie contributes no pair and keeps the divisor: a ranking that
    says less weighs less.

    Args:
        rewards: (B, K) scalar rewards.
        ranks: (B, K) integers, 0 the best, equal ranks tie, -1 where a ranking has fewer than K answers.

    Returns:
        (B,) loss of each ranking.
    """
    return mean_over_pairs(-F.logsigmoid(rewards[:, :, None] - rewards[:, None, :]), ranks)


def mean_over_pairs(losses: Tensor, ranks: Tensor) -> Tensor:
    """(B, K, K) losses of "i rather than j" -> (B,): the sum over strict pairs by 1 / C(K, 2), ranks as above."""
    present = ranks >= 0
    both = present[:, :, None] & present[:, None, :]  # B, K, K
    better = (ranks[:, :, None] < ranks[:, None, :]) & both
    n = present.sum(1)
    n_pairs = (n * (n - 1) / 2).clamp(min=1)
    return losses.masked_fill(~better, 0.0).sum((1, 2)) / n_pairs
