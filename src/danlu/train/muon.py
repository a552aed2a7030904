"""Muon: momentum, made orthogonal, as the update of hidden matrices (Jordan 2024; Moonshot, arXiv 2502.16982).

In:  matrices, and stacks of matrices such as expert weights (E, rows, columns), with gradients.
Out: the matrices after a step.
Left out: embeddings, head, norms, biases and routers, which belong to AdamW (``optim``); sharded matrices.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
_EPS = 1e-7


def orthogonalise(x: Tensor) -> Tensor:
    """Newton-Schulz iteration towards the nearest (semi-)orthogonal matrix; singular values end in about 0.7..1.2.

    Args:
        x: (N, rows, columns) matrices; the products are computed in its dtype.

    Returns:
        (N, rows, columns).
    """
    a, b, c = COEFFICIENTS
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)  # spectral norm is at most 1
    for _ in range(STEPS):
        gram = x @ x.mT  # N, r, r with r the shorter side
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """The optimizer; on 2-D parameters it takes the steps of ``torch.optim.Muon`` with ``match_rms_adamw``.

    The update of a matrix is scaled by ``0.2 * sqrt(max(rows, columns))``, which gives it the RMS of AdamW's, so that
    learning rate and weight decay carry over (arXiv 2502.16982, section 2.2). Matrices of one shape are stacked and
    made orthogonal together.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Take over parameters.

        Args:
            params: parameters, or groups of them; each (..., rows, columns). A group may say ``stacked``: how many
                matrices of equal size a parameter holds one above the other (2 for gate and up).
            lr: of AdamW's size.
            weight_decay: decoupled.
            momentum: of the Nesterov form.
            dtype: of the Newton-Schulz products; bfloat16 is enough where it is fast.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "stacked": 1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = self._momentum(params, group["momentum"])
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
            by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
            for index, p in enumerate(params):
                by_shape[p.size(-2) // group["stacked"], p.size(-1)].append(index)
            for (rows, columns), members in by_shape.items():
                stack = torch.cat([updates[i].reshape(-1, rows, columns) for i in members])
                scale = 0.2 * math.sqrt(max(rows, columns))
                counts = [updates[i].numel() // (rows * columns) for i in members]
                for i, part in zip(members, torch.split(orthogonalise(stack), counts), strict=True):
                    params[i].add_(part.reshape(params[i].shape), alpha=-group["lr"] * scale)

    def _momentum(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's look-ahead of the running mean of gradients, in the dtype of the products."""
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        gradients = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
        return [update.to(self.dtype) for update in torch._foreach_lerp(gradients, buffers, momentum)]
