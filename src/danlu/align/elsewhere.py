"""Answers to practise on that another engine than the trainer's draws, kept at the policy's weights.

In:  the policy in training and its tokenizer; what the other engine said of the tokens that it drew.
Out: a sampler that follows the policy; the correction for what the two engines differ in, and its size for the metrics.
Left out: vLLM itself (``infer.vllm``), the loop (``practice``), the formulas (``losses``).

The other engine multiplies in another order, and often in another dtype: the tokens come from a policy that is almost
the one that learns. Their log-probabilities are computed again by the training forward, like everybody's; the other
engine's own serve to weigh the tokens (truncated importance sampling).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from danlu import hub
from danlu.align import losses
from danlu.align.learner import Scored
from danlu.errors import unknown
from danlu.infer.answer import Completion
from danlu.infer.generate import Generator, Sampler
from danlu.infer.sampler import Sampling
from danlu.infer.vllm import VLLM
from danlu.model.decoder import Decoder
from danlu.tokens.tokenizer import Tokenizer

SAMPLERS = ("danlu", "vllm")
CAP = 2.0  # of an importance weight, as in open-instruct and TRL
_MOST_CACHE_BYTES = 8 << 30


class Following(Sampler, Protocol):
    """A sampler of a model that changes."""

    def refresh(self) -> None:
        """Take over the model's weights as they are now."""


@contextmanager
def sampler_of(name: str, policy: Decoder, tokenizer: Tokenizer, folder: Path, rows: int) -> Iterator[Following]:
    """The sampler of that name, at the policy's weights; leaves nothing behind.

    Args:
        name: one of ``SAMPLERS``.
        policy: goes on being trained.
        tokenizer: the policy's.
        folder: where another engine may be handed the weights; is removed.
        rows: answers drawn at the same time.

    Raises:
        UserError: there is no such sampler, or it is not installed.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if name == "danlu":
        yield Generator(policy, tokenizer, policy.compute_dtype)
        return
    mirror = Mirror(policy, tokenizer, folder, rows)
    try:
        yield mirror
    finally:
        mirror.close()


class Mirror:
    """A policy as vLLM has it: the weights go over as a model directory, written beside and renamed.

    On disk, because that is the one way that also reaches devices and processes that share the model's layers. A file
    system in memory (/dev/shm) makes it a copy.

    Args:
        policy: see ``sampler_of``, like the rest.
        tokenizer: its.
        folder: of the model directory.
        rows: answers drawn at the same time.
    """

    def __init__(self, policy: Decoder, tokenizer: Tokenizer, folder: Path, rows: int) -> None:
        self._policy, self._tokenizer, self._folder = policy, tokenizer, folder
        self._write()
        per_token = policy.new_cache(1, 1, policy.compute_dtype).bytes_per_token()
        # Room for all rows and a block more for each; where that is too much vLLM lets some of them wait.
        need = rows * (policy.config.max_seq_len + 128) * per_token
        self._vllm = VLLM(folder, policy.compute_dtype, rows=rows, cache_bytes=min(need, _MOST_CACHE_BYTES))

    def refresh(self) -> None:
        """Take over the policy's weights as they are now."""
        self._write()
        self._vllm.reload(self._folder)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per prompt, in order."""
        return self._vllm.generate(prompts, sampling, seeds)

    def close(self) -> None:
        """Give memory and disk back."""
        self._vllm.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self) -> None:
        hub.save(self._policy, self._folder, self._tokenizer, card={"stage": "rollouts"})


def corrected(scored: Scored) -> tuple[Scored, dict[str, float]]:
    """An experience that another engine drew, with advantages weighted by how likely the trainer finds its tokens.

    A weight is 0 or more, and the loss of a token is proportional to its advantage, so weighing one is weighing the
    other.

    Returns:
        It, and for the metrics: ``mismatch`` (nats per token), ``mismatch_outside`` (share of tokens whose ratio lies
        outside 0.9 to 1.1), ``importance`` (mean weight).
    """
    drawn, mask = scored.experience.drawn, scored.mask
    weights = losses.importance_weights(scored.logprobs, drawn, mask, CAP)
    found = losses.mismatch(scored.logprobs, drawn, mask)
    figures = {
        "mismatch": float(found.nats),
        "mismatch_outside": float(found.outside),
        "importance": float(losses.masked_mean(weights, mask)),
    }
    return replace(scored, advantages=scored.advantages * weights), figures
