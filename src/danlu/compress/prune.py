"""Magnitude pruning: zero the smallest weights of a matrix; the baseline that better methods have to beat.

In:  a weight matrix.
Out: the same matrix with an exact number of zeros.
Left out: structured pruning of whole heads, channels or layers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mask of exactly ``count`` lowest scores over the whole tensor; of equal scores, the earlier go first."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().argsort(stable=True)[:count]] = True
    return mask.view_as(scores)


def magnitude(weight: Tensor, sparsity: float) -> Tensor:
    """Zero the round(sparsity x n) smallest of a tensor's n weights, compared over the whole tensor.

    Args:
        weight: any shape.
        sparsity: share of zeros, 0 to 1.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be between 0 and 1, not {sparsity}")
    return weight.masked_fill(lowest(weight.abs(), round(sparsity * weight.numel())), 0.0)
