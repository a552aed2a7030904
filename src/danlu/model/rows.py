"""A table of tokens of which some rows are trained and the others are not.

In:  an embedding or a head (V, D), ids.
Out: ``Table``, which stands where the module stood: looked up as an embedding is, or whole for a product.
Left out: which rows, and when (``hub.rows``).

A look-up pays nothing for the rest of the table: it replaces what it found. The cross entropy puts the rows into one
copy in the dtype of its product, and computes a gradient for them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Learnt(NamedTuple):
    """Rows in place of a frozen weight's.

    Attributes:
        ids: (k,) which.
        rows: (k, D) what stands there.
    """

    ids: Tensor
    rows: Tensor

    def put_into(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy in ``dtype`` of the weight (V, D) with these rows in it."""
        return weight.detach().to(dtype, copy=True).index_copy_(0, self.ids, self.rows.to(dtype))


class Table(nn.Module):
    """A table (V, D) that is frozen but for some rows, which are kept in fp32 like all that is trained.

    Attributes:
        base: the module that stood here.
        ids: (k,) which rows, each once.
        rows: (k, D) what they are.
    """

    base: nn.Embedding | nn.Linear
    ids: Tensor

    def __init__(self, base: nn.Embedding | nn.Linear, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.register_buffer("ids", torch.tensor(ids, device=base.weight.device))
        self.rows = nn.Parameter(base.weight.detach()[self.ids].float())

    @property
    def weight(self) -> Tensor:
        """(V, D) as the base has it, without the rows."""
        return self.base.weight

    @property
    def learnt(self) -> Learnt:
        """The rows as they are now."""
        return Learnt(self.ids, self.rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) ids -> (..., D) in fp32."""
        mine = tokens.unsqueeze(-1) == self.ids  # ..., k
        learnt = F.embedding(mine.byte().argmax(-1), self.rows)
        return torch.where(mine.any(-1, keepdim=True), learnt, self.base(tokens).to(learnt.dtype))

    def whole(self, dtype: torch.dtype) -> Tensor:
        """(V, D) with the rows in it, made anew; their gradient passes through it."""
        return self.learnt.put_into(self.weight, dtype)
