"""The forward pass of some neighbouring rows, whatever the length of each.

In:  tokens per row, how far each row has been read, a storage.
Out: states of all tokens, and from states the logits of the ids that the tokenizer has.
Left out: which rows and which tokens (``engine``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.infer.storage import Storage
from danlu.model import Decoder


class Decoded(NamedTuple):
    """What a decoding step gives; good until the next one.

    Attributes:
        states: (R, T, D) after the last norm.
        logits: (R, T, V) in fp32.
    """

    states: Tensor
    logits: Tensor


class Forward:
    """Runs a model.

    Args:
        model: its weights in the dtype they are multiplied in.
        output_weight: (V, D) the rows that may be drawn.
        native: a faster way to multiply states with them (``kernels``).

    Attributes:
        device: where the model is.
        vocab_size: ids that may be drawn.
        context: tokens that a row may have.
        blank: (1, D) for the state of a token of which nothing is known.
    """

    def __init__(self, model: Decoder, output_weight: Tensor, native: Callable[[Tensor], Tensor] | None = None) -> None:
        self._model, self._output_weight, self._native = model, output_weight, native
        self.device, self.vocab_size = output_weight.device, len(output_weight)
        self.context = model.config.max_seq_len
        self.blank = torch.zeros(1, model.config.d_model, dtype=model.compute_dtype, device=self.device)

    def decode(
        self, storage: Storage, rows: Sequence[Sequence[int]], read: Sequence[int], needs: Sequence[int]
    ) -> Decoded:
        """States and logits behind every token of the first rows; otherwise as ``states``."""
        states = self.states(storage, 0, rows, read, needs)
        return Decoded(states, self.logits(states))

    def states(
        self, storage: Storage, start: int, rows: Sequence[Sequence[int]], read: Sequence[int], needs: Sequence[int]
    ) -> Tensor:
        """States (R, T, D) of the rows from ``start`` on, T the most tokens of any.

        Shorter rows are padded on the right. A padding token writes into a slot that its row will fill later, before
        anybody reads it; the last slot of a row is never filled, and takes what would go beyond.

        Args:
            storage: keys and values.
            start: the first row.
            rows: tokens to read.
            read: tokens of each row that were read before.
            needs: slots of each row.
        """
        tokens, positions, reach = self.laid_out(rows, read, needs)
        cache = storage.view(start, start + len(rows), reach)
        return self._model.hidden(tokens, positions, cache=cache).states

    def foresee(
        self, storage: Storage, start: int, rows: Sequence[Sequence[int]], states: Tensor, read: Sequence[int],
        needs: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """States (R, T, D) that foresee what follows tokens, by the model's own layer for it; otherwise as ``states``.

        Args:
            storage: with ``foresight``.
            start: the first row.
            rows: tokens.
            states: (R, T, D) behind the token before each.
            read: places of the first state of each row.
            needs: slots of each row.
        """
        tokens, positions, reach = self.laid_out(rows, read, needs)
        return self._model.foresee_next(states, tokens, positions, storage.view(start, start + len(rows), reach))

    def laid_out(
        self, rows: Sequence[Sequence[int]], read: Sequence[int], needs: Sequence[int]
    ) -> tuple[Tensor, Tensor, int]:
        """Tokens and their positions (R, T) each, and how many slots are read."""
        width = max(map(len, rows))
        padded = [[*row, *[0] * (width - len(row))] for row in rows]
        places = [[min(done + i, need - 1) for i in range(width)] for done, need in zip(read, needs, strict=True)]
        reach = min(max(done + width for done in read), max(needs))
        return torch.tensor(padded, device=self.device), torch.tensor(places, device=self.device), reach

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V) in fp32."""
        if self._native is not None:
            return self._native(states)
        return (states.to(self._output_weight.dtype) @ self._output_weight.T).float()
