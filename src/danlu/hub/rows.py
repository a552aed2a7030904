"""A few rows of the tables of tokens, trained beside an adapter: those of tokens that nobody has taught yet.

In:  a ``Decoder`` with an adapter; ids.
Out: the same model, whose embedding, and head if it is another table, have these rows as a parameter of their own.
Left out: LoRA of whole tables; files (``adapter``).

It is peft's ``trainable_token_indices``. A row of an untaught token is noise that no thin matrix beside a layer mends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from danlu.model import Decoder

TABLES = ("embed", "head")


class Rows(nn.Module):
    """A table (V, D) with some of its rows replaced; computed in fp32, which trained numbers are kept in.

    Attributes:
        ids: (k,) which.
        rows: (k, D) by what.
    """

    ids: Tensor

    def __init__(self, ids: Sequence[int], table: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(ids, device=table.device))
        self.rows = nn.Parameter(table.detach()[self.ids].float())

    def forward(self, table: Tensor) -> Tensor:
        """(V, D) -> (V, D)."""
        return table.to(self.rows.dtype).index_copy(0, self.ids, self.rows)


class Trained(NamedTuple):
    """Rows of one table.

    Attributes:
        table: its name here.
        ids: which rows.
        rows: (k, D), the live parameter.
    """

    table: str
    ids: list[int]
    rows: nn.Parameter


def train_rows(
    model: Decoder, ids: Sequence[int], tables: Sequence[str] = TABLES, values: Tensor | None = None
) -> Decoder:  # fmt: skip
    """Make rows of a model's tables parameters of their own; in place, and returned.

    Args:
        model: with an adapter; whatever of it is not trained stays so.
        ids: which rows.
        tables: of which tables, those that the model has.
        values: (k, D) what the rows are from now on; as they were if None.
    """
    for name in tables:
        if isinstance(table := getattr(model, name, None), nn.Module):
            rows = Rows(ids, cast(Tensor, table.weight))
            if values is not None:
                rows.rows.data.copy_(values)
            parametrize.register_parametrization(table, "weight", rows, unsafe=True)  # unsafe: of another dtype
    return model


def rows_of(model: Decoder) -> Iterator[Trained]:
    """The rows that are trained, table by table."""
    for name in TABLES:
        table = getattr(model, name, None)
        if isinstance(table, nn.Module) and parametrize.is_parametrized(table, "weight"):
            rows = cast(Rows, table.parametrizations.weight[0])  # type: ignore[index,union-attr]
            yield Trained(name, rows.ids.tolist(), rows.rows)


def without_rows(model: Decoder) -> Decoder:
    """Give a model its tables back as they were; in place, and returned."""
    for name in [trained.table for trained in rows_of(model)]:
        parametrize.remove_parametrizations(getattr(model, name), "weight", leave_parametrized=False)
    return model
