"""A few rows of the tables of tokens, trained beside an adapter: those of tokens that nobody has taught yet.

In:  a ``Decoder`` with an adapter; ids.
Out: the same model, whose embedding, and head if it is another table, have these rows as a parameter of their own.
Left out: reading such tables (``model.rows``); LoRA of whole tables; files (``adapter``).

It is peft's ``trainable_token_indices``. A row of an untaught token is noise that no thin matrix beside a layer mends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from danlu.model import Decoder
from danlu.model.rows import Table

TABLES = ("embed", "head")


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
        if isinstance(base := getattr(model, name, None), nn.Embedding | nn.Linear):
            table = Table(base, ids)
            if values is not None:
                table.rows.data.copy_(values)
            setattr(model, name, table)
    return model


def rows_of(model: Decoder) -> Iterator[Trained]:
    """The rows that are trained, table by table."""
    for name in TABLES:
        if isinstance(table := getattr(model, name, None), Table):
            yield Trained(name, table.ids.tolist(), table.rows)


def without_rows(model: Decoder) -> Decoder:
    """Give a model its tables back as they were; in place, and returned."""
    for name in [trained.table for trained in rows_of(model)]:
        setattr(model, name, getattr(model, name).base)
    return model
