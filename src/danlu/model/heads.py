"""The scalar head: one number per token, for reward models and critics.

In:  hidden states (B, T, D).
Out: values (B, T) in fp32.
Left out: the language-model head, which is the output weight of ``decoder`` and the losses that read it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ScalarHead(nn.Linear):
    """A linear map to one number, without bias (it would not change who is preferred), always in fp32."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, 1, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: ``decoder.initialise`` gives first values."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (...) fp32."""
        return F.linear(x.float(), self.weight.float()).squeeze(-1)


def last_values(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The value at each row's last token: (B, T) and lengths (B,) -> (B,); without lengths, the last column."""
    if lengths is None:
        return values[:, -1]
    return values.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
