"""SparseGPT: prune a linear layer in one pass and let the surviving weights make up for the lost ones.

In:  a weight matrix and the Hessian of its inputs over calibration text.
Out: the pruned matrix with an exact number of zeros.
Left out: N:M patterns (runtimes have dropped them) and joint quantisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from danlu.compress.prune import lowest

BLOCK = 128
DAMPING = 0.01


def sparsegpt(
    weight: Tensor, hessian: Tensor, sparsity: float, *, block: int = BLOCK, damping: float = DAMPING
) -> Tensor:
    """Zero a share of a matrix so that its outputs on the calibration inputs change as little as can be.

    Columns are settled from left to right. Zeroing w_j costs w_j^2 / U_jj^2 and is repaired by the weights to its
    right, along row j of U, the upper Cholesky factor of the inverse Hessian (Frantar and Alistarh 2023, algorithm 1:
    one factor serves every row and every step). The mask is chosen block by block, on weights already updated by the
    blocks before, so rows may end with different numbers of zeros.

    Args:
        weight: (out, in).
        hessian: (in, in), a multiple of X^T X over the inputs; its scale cancels out.
        sparsity: share of zeros, 0 to 1.
        block: columns whose mask is chosen together.
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        (out, in) in the dtype of ``weight``, with round(sparsity x out x in) zeros, more only where inputs that are
        always zero make whole columns useless. Zeros are +0.0.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be between 0 and 1, not {sparsity}")
    dead = hessian.diagonal() == 0
    work = weight.T.to(hessian.dtype, memory_format=torch.contiguous_format, copy=True)  # in, out: a column is a row
    work[dead] = 0
    upper = _inverse_factor(hessian, dead, damping)
    columns, rows = work.shape
    for start in range(0, columns, block):
        end = min(start + block, columns)
        # Cumulative rounding, so that the blocks together hit the exact count.
        count = round(sparsity * rows * end) - round(sparsity * rows * start)
        cost = (work[start:end] / upper.diagonal()[start:end, None]).square()
        errors = _settle(work[start:end], upper[start:end, start:end], lowest(cost, count))
        work[end:] -= upper[start:end, end:].T @ errors
    return work.T.to(weight.dtype, memory_format=torch.contiguous_format) + 0.0


def _settle(part: Tensor, upper: Tensor, mask: Tensor) -> Tensor:
    """Zero the masked weights of one block (block, out) in place, repair the rest of it; returns the errors."""
    errors = torch.zeros_like(part)
    for j in range(len(part)):
        lost = part[j] * mask[j]
        errors[j] = lost / upper[j, j]
        part[j] -= lost
        part[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
    return errors


def _inverse_factor(hessian: Tensor, dead: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor U of the inverse of the damped Hessian: H^-1 = U^T U, (in, in)."""
    damped = hessian.clone()
    damped.diagonal()[dead] = 1
    damped.diagonal().add_(damping * damped.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(damped)
    while failed:  # correlated inputs beyond this dtype's precision: damp until it can be factored
        damped.diagonal().add_(damped.diagonal().mean() * max(damping, 1e-6) * 10)
        lower, failed = torch.linalg.cholesky_ex(damped)
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper
