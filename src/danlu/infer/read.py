"""What a model makes of a text that it only reads: a vector for it, and how likely it found each token.

In:  a model made ready for inference, a prompt as token ids.
Out: a vector; log-probabilities of its tokens. Both come from generators that pause behind every few hundred tokens, so
     that others get their turn and whoever asked can leave.
Left out: writing (``generate``); models trained to embed, which do it better: ours are language models.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.errors import UserError
from danlu.infer.answer import Token
from danlu.model import Decoder

CHUNK = 128
"""Tokens between two pauses: nobody waits long, and the logits of all of them fit into memory."""

T = TypeVar("T")


class Readable(Protocol):
    """A model made ready for inference: what reading needs of a ``Generator``."""

    model: Decoder
    output_weight: Tensor  # V, D
    dtype: torch.dtype

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V) in fp32."""


@torch.inference_mode()
def embed(reader: Readable, prompt: Sequence[int]) -> Generator[None, None, Tensor]:
    """The mean of a prompt's final hidden states, of length 1.

    Returns:
        (D,) fp32 on the CPU.

    Raises:
        UserError: the prompt is empty or longer than the context, or has ids that do not exist.
    """
    total = torch.zeros(())
    for states in _states(reader, prompt):
        total = total + states.float().sum(dim=0).cpu()  # D
        yield
    return F.normalize(total, dim=0)


@torch.inference_mode()
def score(reader: Readable, prompt: Sequence[int], top: int = 0) -> Generator[None, None, list[Token]]:
    """Every token of a prompt with its log-probability given those before it, at temperature 1.

    Args:
        reader: the model.
        prompt: token ids.
        top: how many of the likeliest tokens in its place to tell with each.

    Returns:
        A token fewer than the prompt has: nothing comes before the first.

    Raises:
        UserError: as ``embed``.
    """
    tokens: list[Token] = []
    for states in _states(reader, prompt):
        targets = prompt[len(tokens) + 1 : len(tokens) + 1 + len(states)]
        tokens += _scored(reader, targets, states[: len(targets)], top)
        yield
    return tokens


def ended(reading: Generator[None, None, T]) -> T:
    """What a reading comes to if nobody else wants a turn."""
    while True:
        try:
            next(reading)
        except StopIteration as end:
            found: T = end.value
            return found


def _scored(reader: Readable, targets: Sequence[int], states: Tensor, top: int) -> list[Token]:
    """Tokens (T,) that follow states (T, D)."""
    if not targets:
        return []
    logprobs = reader.logits(states).log_softmax(-1)  # T, V
    said = logprobs.gather(1, torch.tensor(targets, device=logprobs.device)[:, None])[:, 0].tolist()
    best = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    likeliest = [tuple(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return list(map(Token, targets, said, likeliest))


def _states(reader: Readable, prompt: Sequence[int]) -> Iterator[Tensor]:
    """Final hidden states of a prompt, (T, D) at a time."""
    context, vocabulary = reader.model.config.max_seq_len, reader.output_weight.shape[0]
    if not 0 < len(prompt) <= context:
        raise UserError(f"a text of {len(prompt)} tokens cannot be read; the model reads 1 to {context}")
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise UserError(f"token {max(prompt)} does not exist; the vocabulary has {vocabulary}")
    device, cache = reader.output_weight.device, reader.model.new_cache(1, len(prompt), reader.dtype)
    for start in range(0, len(prompt), CHUNK):
        tokens = torch.tensor([prompt[start : start + CHUNK]], device=device)
        cache.reach = start + tokens.shape[1]
        places = torch.arange(start, cache.reach, device=device)[None]
        yield reader.model.hidden(tokens, places, cache=cache).states[0]
