"""What has been said makes itself less likely, and a client's own thumb on the scale.

In:  logits (R, V) of rows under way, what each row's prompt and answer have said.
Out: logits to choose from.
Left out: log-probabilities, which stay those of the model (``sampler``).

The order is OpenAI's and vLLM's: bias, repetition penalty, then frequency and presence penalty. A token that is part
of a character only, as many are in Chinese, is never penalised: its character is not what was repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.infer.sampler import Sampling
from danlu.tokens.tokenizer import Tokenizer


class Penalties:
    """The penalties and biases of a batch, and what its rows have said so far.

    Args:
        samplings: options of every row.
        prompts: ids of every row's prompt; they count for the repetition penalty only (Keskar et al. 2019, CTRL).
        tokenizer: tells which tokens are whole characters.
        vocab_size: V.
        device: where the logits are.
    """

    def __init__(
        self, samplings: Sequence[Sampling], prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, vocab_size: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]  # B, 1

        self._repetition = column([s.repetition_penalty for s in samplings])
        self._presence = column([s.presence_penalty for s in samplings])
        self._frequency = column([s.frequency_penalty for s in samplings])
        self._counts = torch.zeros(len(samplings), vocab_size, device=device)
        self._in_prompt = torch.zeros(len(samplings), vocab_size, dtype=torch.bool, device=device)
        self._bias = torch.zeros(len(samplings), vocab_size, device=device)
        self._whole = torch.tensor(_whole_tokens(tokenizer)[:vocab_size], device=device)  # V
        for row, (sampling, prompt) in enumerate(zip(samplings, prompts, strict=True)):
            said = torch.tensor(prompt, device=device)
            self._in_prompt[row, said[said < vocab_size]] = True
            for id, bias in sampling.logit_bias:
                self._bias[row, id] = bias
        self._in_prompt &= self._whole

    @staticmethod
    def wanted(samplings: Sequence[Sampling]) -> bool:
        """Whether any row asks for one."""
        return any(
            s.repetition_penalty != 1.0 or s.presence_penalty or s.frequency_penalty or s.logit_bias for s in samplings
        )

    def apply(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Logits (R, V) to choose from, of the rows (R,) of the batch."""
        counts = self._counts[rows]
        said = counts > 0
        logits = logits + self._bias[rows]
        repetition = self._repetition[rows]
        weaker = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(said | self._in_prompt[rows], weaker, logits)
        return logits - self._frequency[rows] * counts - self._presence[rows] * said

    def note(self, tokens: Tensor, rows: Tensor) -> None:
        """The rows (R,) have said the tokens (R,)."""
        self._counts[rows, tokens] += self._whole[tokens].float()


@functools.lru_cache(maxsize=8)
def _whole_tokens(tokenizer: Tokenizer) -> list[bool]:
    """Which tokens are whole characters by themselves; a special token has no bytes and is nobody's word."""

    def is_whole(raw: bytes) -> bool:
        try:
            return bool(raw.decode())
        except UnicodeDecodeError:
            return False

    return [is_whole(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)]
