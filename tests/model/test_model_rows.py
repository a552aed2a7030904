"""Tables of which a few rows are trained: what is looked up, what is made of the whole, where gradients go."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from danlu.model.losses import linear_cross_entropy
from danlu.model.rows import Table

V, D = 11, 4


class Tables(TorchDispatchMode):
    """Every tensor of the size of the table that comes into being meanwhile, by where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == V * D:
            self.made[out.untyped_storage().data_ptr()] = out  # kept, so that no place is used twice
        return out


def table_of() -> Table:
    """Row i of the frozen ones is all i + 1/256, which bf16 rounds; 2 and 5 are trained and are 1/3 and 2/3."""
    base = nn.Embedding(V, D, _weight=(torch.arange(V).view(-1, 1) + torch.full((V, D), 1 / 256)).bfloat16())
    table = Table(base, [5, 2])
    table.rows.data.copy_(torch.tensor([[2 / 3], [1 / 3]]).expand(2, D))
    return table


def test_a_row_that_is_looked_up_is_the_trained_one_in_full_and_alone_has_a_gradient() -> None:
    table = table_of()
    found = table(torch.tensor([[2, 0, 5], [2, 9, 9]]))
    rounded = table.base.weight.float()
    expected = torch.tensor([[1 / 3, 1 / 256, 2 / 3], [1 / 3, 9.0, 9.0]]).unsqueeze(-1).expand(2, 3, D)
    assert torch.equal(found, expected)
    assert rounded[9, 0] == 9.0, "which is what bf16 makes of 9 + 1/256"
    (found * torch.tensor([[1.0, 10.0, 100.0], [2.0, 10.0, 10.0]]).unsqueeze(-1)).sum().backward()
    assert torch.equal(table.rows.grad, torch.tensor([[100.0], [3.0]]).expand(2, D))
    assert table.base.weight.grad is None
    assert torch.equal(table.whole(torch.float32)[[2, 5, 9]], expected[[0, 0, 1], [0, 2, 1]])


def test_a_step_makes_one_copy_of_the_table_in_the_dtype_of_the_product() -> None:
    table, tokens = table_of(), torch.tensor([2, 0, 5, 7, 1, 3])
    with Tables() as seen:
        seen.made[table.weight.untyped_storage().data_ptr()] = table.weight  # is there, whoever looks at it again
        states = table(tokens).bfloat16()
        assert len(seen.made) == 1
        loss, _ = linear_cross_entropy(states, table.weight, tokens.roll(1), learnt=table.learnt)
        loss.backward()
    assert [made.dtype for made in seen.made.values()] == [torch.bfloat16] * 2
