"""Tables of which a few rows are trained: what is looked up, and where gradients go."""

from __future__ import annotations

import torch
from torch import nn

from danlu.model.losses import linear_cross_entropy
from danlu.model.rows import Table

V, D = 11, 4


def table_of() -> Table:
    """Row i of the frozen ones is all i + 1/256, which bf16 rounds; 2 and 5 are trained and are 1/3 and 2/3."""
    base = nn.Embedding(V, D, _weight=(torch.arange(V).view(-1, 1) + torch.full((V, D), 1 / 256)).bfloat16())
    table = Table(base, [5, 2])
    table.rows.data.copy_(torch.tensor([[2 / 3], [1 / 3]]).expand(2, D))
    return table


def test_a_row_that_is_looked_up_is_the_trained_one_in_full_and_alone_has_a_gradient() -> None:
    table = table_of()
    found = table(torch.tensor([[2, 0, 5], [2, 9, 9]]))
    expected = torch.tensor([[1 / 3, 1 / 256, 2 / 3], [1 / 3, 9.0, 9.0]]).unsqueeze(-1).expand(2, 3, D)
    assert torch.equal(found, expected)
    (found * torch.tensor([[1.0, 10.0, 100.0], [2.0, 10.0, 10.0]]).unsqueeze(-1)).sum().backward()
    assert table.rows.grad is not None
    assert torch.equal(table.rows.grad, torch.tensor([[100.0], [3.0]]).expand(2, D))
    assert torch.equal(table.whole(torch.float32)[[2, 5, 9]], expected[[0, 0, 1], [0, 2, 1]])


def test_a_look_up_copies_no_table() -> None:
    base = nn.Embedding(1, 1)
    base.weight = nn.Parameter(torch.ones(1, D).expand(10**12, D))  # no memory holds another of these
    table = Table(base, [7, 10**11])
    found = table(torch.tensor([10**11, 3]))
    found.sum().backward()
    assert torch.equal(found, torch.ones(2, D))


def test_the_head_keeps_gradients_of_its_rows_alone() -> None:
    table, tokens = table_of(), torch.tensor([2, 0, 5, 7, 1, 3])
    loss, _ = linear_cross_entropy(table(tokens), table.weight, tokens.roll(1), learnt=table.learnt)
    assert loss.grad_fn is not None
    assert [kept.shape for kept in loss.grad_fn.saved_tensors] == [(6, D), (2, D)]  # type: ignore[attr-defined]
