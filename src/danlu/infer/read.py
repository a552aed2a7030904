"""What a model makes of a text that it only reads: a vector for it, and how likely it found each token.

In:  a model made ready for inference, prompts as token ids.
Out: one vector per prompt; log-probabilities of its tokens.
Left out: writing (``generate``); models trained to embed, which do it better: ours are language models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from danlu.errors import UserError
from danlu.infer.answer import Token
from danlu.model import Decoder

_BATCH_TOKENS = 4096
_LOGIT_ROWS = 256


class Readable(Protocol):
    """A model made ready for inference: what reading needs of a ``Generator``."""

    model: Decoder
    output_weight: Tensor  # V, D

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V) in fp32."""


@torch.inference_mode()
def embed(reader: Readable, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The mean of each prompt's final hidden states, of length 1.

    Returns:
        (N, D) fp32 on the CPU.

    Raises:
        UserError: a prompt is empty or longer than the context.
    """
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for places, states in _states(reader, prompts):
        for row, place in enumerate(places):
            mean = states[row, : len(prompts[place])].float().mean(dim=0)  # D
            found[place] = F.normalize(mean, dim=0).cpu()
    return torch.stack(found)


@torch.inference_mode()
def score(reader: Readable, prompts: Sequence[Sequence[int]], top: int = 0) -> list[list[Token]]:
    """Every token of each prompt with its log-probability given those before it, at temperature 1.

    Args:
        reader: the model.
        prompts: token ids.
        top: how many of the likeliest tokens in its place to tell with each.

    Returns:
        Per prompt a token fewer than it has: nothing comes before the first.

    Raises:
        UserError: a prompt is empty or longer than the context.
    """
    found: list[list[Token]] = [[] for _ in prompts]
    for places, states in _states(reader, prompts):
        for row, place in enumerate(places):
            found[place] = _scored(reader, prompts[place], states[row], top)
    return found


def _scored(reader: Readable, prompt: Sequence[int], states: Tensor, top: int) -> list[Token]:
    weight = reader.output_weight
    tokens: list[Token] = []
    for start in range(0, len(prompt) - 1, _LOGIT_ROWS):  # logits of all places at once would not fit into memory
        targets = torch.tensor(prompt[start + 1 : start + 1 + _LOGIT_ROWS], device=weight.device)
        logprobs = reader.logits(states[start : start + len(targets)]).log_softmax(-1)  # R, V
        said = logprobs.gather(1, targets[:, None])[:, 0].tolist()
        best = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
        likeliest = [
            tuple(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        tokens += map(Token, targets.tolist(), said, likeliest)
    return tokens


def _states(reader: Readable, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
    """Final hidden states (B, T, D) of prompts of like length together, and which prompts they are of."""
    context, vocabulary = reader.model.config.max_seq_len, reader.output_weight.shape[0]
    for prompt in prompts:
        if not 0 < len(prompt) <= context:
            raise UserError(f"a text of {len(prompt)} tokens cannot be read; the model reads 1 to {context}")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise UserError(f"token {max(prompt)} does not exist; the vocabulary has {vocabulary}")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    while order:
        rows = max(1, _BATCH_TOKENS // len(prompts[order[-1]]))
        order, places = order[:-rows], order[-rows:]
        # Padded on the right: no token of a causal model sees what comes after it.
        tokens = pad_sequence([torch.tensor(prompts[i]) for i in places], batch_first=True)
        yield places, reader.model.hidden(tokens.to(reader.output_weight.device)).states
