"""The linear layer: fp32 master weights, products in the compute dtype.

In:  activations of any float dtype.
Out: activations in ``compute_dtype``.
Left out: autocast contexts; the cast is written where it happens, costs nothing measurable and survives compilation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear`` whose weight stays a master copy and is cast, with the input, inside forward.

    Attributes:
        compute_dtype: dtype of the product and of the result; set for a whole model by ``Decoder.compute_in``.
        native: a faster way to the same product, given by whoever runs the model (``infer.kernels``) and read by no
            gradient; None for torch's.
    """

    compute_dtype: torch.dtype = torch.float32
    native: Callable[[Tensor], Tensor] | None = None

    def reset_parameters(self) -> None:
        """Nothing: ``decoder.initialise`` is the one place where weights get their first values."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in ``compute_dtype``."""
        if self.native is not None:
            return self.native(x)
        dtype = self.compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of ``dtype``, for those who multiply with parts of it."""
        return self.weight.to(dtype)
