"""Emphasis: tokens that count more than once in the training loss.

In:  targets of a batch, a tokenizer, the setting.
Out: how many times each target counts.
Left out: the loss itself (``language``), and held-out figures, where every target counts once.

Verse rhymes right before its full stops: one character in ten or fourteen, which a small model may not hear among the
others unless it counts for more (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from danlu.errors import UserError
from danlu.recipe import Settings
from danlu.tokens.loader import IGNORE
from danlu.tokens.tokenizer import Tokenizer

Count = Callable[[Tensor], Tensor]
"""(B, T) targets -> (B, T) int64, how many times each counts."""


class Emphasis(Settings):
    """What counts more than once: every token to be learnt right before a mark."""

    before: str = "。"
    """The mark, one token of the tokenizer. Merged with what follows (。 and a line break) it is another token and not
    meant: of a poem in rows only the last foot stands before a 。 of its own."""
    times: int = Field(default=1, ge=1)
    """How many times such a token counts in the training loss; 1 is as often as any other."""


def counter(emphasis: Emphasis, tokenizer: Tokenizer) -> Count | None:
    """The function that counts as ``emphasis`` says; None if everything counts once.

    Raises:
        UserError: the mark is not one token of the tokenizer.
    """
    if emphasis.times == 1:
        return None
    marks = tokenizer.encode(emphasis.before)
    if len(marks) != 1:
        raise UserError(
            f"the mark emphasis.before '{emphasis.before}' is {len(marks)} tokens of this tokenizer and must be one; "
            "choose another mark, or a larger tokenizer.vocab_size"
        )
    return lambda targets: emphasise(targets, marks[0], emphasis.times)


def emphasise(targets: Tensor, mark: int, times: int) -> Tensor:
    """Count ``times`` what stands right before the token ``mark`` if that is learnt too, and all other targets once.

    Args:
        targets: (B, T) ids, -100 where nothing is learnt.
        mark: id of the mark.
        times: at least 1.

    Returns:
        (B, T) int64.
    """
    counts = torch.ones_like(targets)
    counts[:, :-1][(targets[:, 1:] == mark) & (targets[:, :-1] != IGNORE)] = times
    return counts
