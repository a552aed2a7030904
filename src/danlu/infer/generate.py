"""A model made ready for inference: prompts in, answers out.

In:  a language model, its tokenizer, prompts as token ids, sampling options and one seed per prompt.
Out: completions with the log-probability of every token, one answer piece by piece, or an engine for requests that come
     and go.
Left out: how rows are served together (``engine``), what a prompt looks like (``tokens.chat``).

A sample depends on its prompt, options and seed alone: uniform numbers are addressed by (seed, step) and no row sees
another, so its neighbours in the batch change nothing but the last bit of a rounding.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from danlu.errors import UserError
from danlu.infer import read
from danlu.infer.answer import Completion, Request, Token
from danlu.infer.batching import answer_all
from danlu.infer.blocks import SIZE
from danlu.infer.engine import Drafter, Engine, follow
from danlu.infer.foresight import ForesightDrafter
from danlu.infer.forward import Forward
from danlu.infer.graphs import GraphedForward
from danlu.infer.kernels import NONE, Kernels, StepForward
from danlu.infer.prepare import native_head, prepare
from danlu.infer.sampler import Sampling
from danlu.infer.speculate import DraftModel
from danlu.infer.storage import Pages, Slots, Storage, blocks_for
from danlu.model import Decoder, ModelConfig
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

_MAX_ROWS = 256
_CACHE_BYTES, _DRAFT_BYTES = 1 << 30, 1 << 28
_WHOLE_BUDGET = 8192  # tokens read at once where nobody waits for the first one


class Sampler(Protocol):
    """What rollouts, evaluations and the server need of an engine."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per prompt, in order."""


class Generator:
    """A model made ready for inference.

    Attributes:
        model: its weights, in the dtype they are multiplied in.
        output_weight: (V, D) in the same dtype, or as a kernel reads it, without ids that the tokenizer does not have.
        dtype: of products and cache.
        tokenizer: the model's.
        stop_ids: tokens that end an answer.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, dtype: torch.dtype | None = None, kernels: Kernels | None = None
    ) -> None:
        """Prepare a model; its weights are cast once, here, instead of at every step.

        Args:
            model: with a language-model head; stays the caller's, who may go on training it (then ``refresh``).
            tokenizer: the one it was trained with.
            dtype: of matrix products and cache; the model's own compute dtype if None.
            kernels: native ones, used on a CPU in fp32. Weights of linear layers that are stored in bf16 or fp16 then
                stay so: the numbers are the same, and half the bytes are read.

        Raises:
            UserError: model and tokenizer are not a pair.
        """
        vocab = model.config.vocab_size
        if tokenizer.vocab_size > vocab:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids and the model {vocab}; they are not a pair")
        self.tokenizer, self.dtype = tokenizer, dtype or model.compute_dtype
        self.stop_ids = stop_ids_of(tokenizer)
        self._source = model
        fits = self.dtype == torch.float32 and model.embed.weight.device.type == "cpu"
        self._kernels = kernels if kernels is not None and fits else NONE
        self.model, self._copies = prepare(model, self.dtype, self._kernels)
        self._again: tuple[int, tuple[Forward, Storage]] | None = (
            None  # blocks that were asked for, and what came of it
        )
        self._take_head()

    def refresh(self) -> None:
        """Take over the model's weights as they are now, after an optimizer step."""
        with torch.no_grad():
            for ours, theirs in self._copies:
                ours.copy_(theirs)
        self._take_head()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int],
        batch_size: int | None = None,
        told: Callable[[int], object] = lambda _: None,
    ) -> list[Completion]:
        """Answer every prompt.

        Args:
            prompts: token ids; equal ones are read once.
            sampling: one for all, or one per prompt.
            seeds: one per prompt.
            batch_size: rows in step; None takes what a gigabyte of cache holds, at most 256.
            told: is told how many more are answered, after every batch.

        Returns:
            Completions in the order of the prompts.

        Raises:
            UserError: a prompt is empty, or with ``max_new_tokens`` exceeds the context; names both numbers. Or a
                bias is on a token that does not exist.
        """
        samplings = one_each(prompts, sampling, seeds)
        needs = [self.check(prompt, s) for prompt, s in zip(prompts, samplings, strict=True)]
        if not needs:
            return []
        # The neediest first: whatever memory they take, all that follow fit into it; alike together, less padding.
        order = sorted(range(len(prompts)), key=lambda i: (-needs[i], -len(prompts[i])))
        rows = min(batch_size or _MAX_ROWS, len(prompts))
        engine = Engine(self, *self._batch_runs(rows, max(needs)), rows=rows, budget=_WHOLE_BUDGET)
        requests = [Request(tuple(prompts[i]), samplings[i], seeds[i], streamed=False) for i in order]
        found = dict(zip(order, answer_all(engine, requests, told), strict=True))
        return [found[i] for i in range(len(prompts))]

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V) in fp32, as answers are drawn from them."""
        return Forward(self.model, self.output_weight, self._head).logits(states)

    def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """One vector of length 1 per prompt, (N, D) (see ``read``)."""
        return torch.stack([read.ended(read.embed(self, prompt)) for prompt in prompts])

    def score(self, prompts: Sequence[Sequence[int]], top: int = 0) -> list[list[Token]]:
        """How likely the model finds every token of each prompt but the first (see ``read``)."""
        return [read.ended(read.score(self, prompt, top)) for prompt in prompts]

    def engine(
        self, rows: int, *, budget: int, expected: int = 64, cache_bytes: int = _CACHE_BYTES, pool_bytes: int = 0,
        drafter: Drafter | None = None, foresight: bool = False,
    ) -> Engine:  # fmt: skip
        """An engine of this model for requests that come and go; give it only what ``check`` accepts.

        Args:
            rows: answers under way at most.
            budget: tokens that a step reads at most.
            expected: tokens that a row will need, so that room for them is taken at once.
            cache_bytes: what the answers under way may take.
            pool_bytes: what may be kept of earlier answers, so that prompts that begin like them are read sooner.
            drafter: guesses what comes next.
            foresight: whether the model guesses for itself, by its layer for the token after the next.

        Raises:
            UserError: there is no such layer.
        """
        if foresight and not self.model.config.n_mtp:
            raise UserError("the model has no layer that foresees the token after the next (n_mtp is 0)")
        forward, storage = self._runs(rows, expected, cache_bytes, pool_bytes, foresight)
        if foresight:
            drafter = ForesightDrafter(forward, storage)
        return Engine(self, forward, storage, rows=rows, budget=budget, drafter=drafter)

    def drafter(self, vocab_size: int, *, rows: int = 4, cache_bytes: int = _DRAFT_BYTES) -> DraftModel:
        """This model as one that guesses for a larger one.

        Args:
            vocab_size: of the larger one.
            rows: answers at the same time for which there is room at once.
            cache_bytes: what it may remember.

        Raises:
            UserError: the models do not have the same vocabulary.
        """
        return DraftModel(*self._runs(rows, 64, cache_bytes), vocab_size)

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, seed: int
    ) -> abc.Generator[tuple[str, Token], None, Completion]:
        """Answer one prompt piece by piece; close the iterator to cancel.

        Yields:
            A piece of text per token, and the token. A piece is never half a character nor a part of a stop string;
            they add up to the completion's text. A token that shows nothing yet gives an empty piece, so that whoever
            takes turns with other answers, or cancels, gets to do so at every token.

        Returns:
            The completion, as the value of ``yield from``.

        Raises:
            UserError: as ``generate``, at once; a JSON schema that cannot be kept to is told at the first piece.
        """
        need = self.check(prompt, sampling)
        engine = self.engine(1, budget=_WHOLE_BUDGET, expected=need)
        return follow(engine, Request(tuple(prompt), sampling, seed))

    def check(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Positions that a prompt and its answer take.

        Raises:
            UserError: the prompt is empty or has ids that do not exist, with the answer it exceeds the context, or a
                bias is on a token that does not exist.
        """
        return check(self.model.config, self.tokenizer, prompt, sampling)

    def _runs(
        self, rows: int, expected: int, cache_bytes: int, pool_bytes: int = 0, foresight: bool = False
    ) -> tuple[Forward, Storage]:
        """What runs the model, and where its keys and values lie; see ``engine``."""
        if self.output_weight.device.type == "cuda":
            pages = Pages(self.model, self.dtype, cache_bytes + pool_bytes, pool_bytes > 0, foresight)
            return GraphedForward(self.model, self.output_weight, pages, rows), pages
        per_token = self.model.new_cache(1, 1, self.dtype, foresight).bytes_per_token()
        first = max(1, min(rows, cache_bytes // (per_token * expected)))
        slots = Slots(self.model, self.dtype, cache_bytes, pool_bytes, (first, expected), foresight)
        return self._forward(), slots

    def _batch_runs(self, rows: int, expected: int) -> tuple[Forward, Storage]:
        """``_runs`` of ``generate``: on a GPU those of the last time, with all graphs that were recorded then.

        They stay while others learn, so no more is taken than these answers can fill.
        """
        if self.output_weight.device.type != "cuda":
            return self._runs(rows, expected, _CACHE_BYTES)
        blocks = rows * blocks_for(expected) + 1
        if self._again is None or self._again[0] < blocks:
            self._again = None  # its memory is free before more is asked for
            wanted = blocks * SIZE * self.model.new_cache(1, 1, self.dtype).bytes_per_token()
            self._again = blocks, self._runs(_MAX_ROWS, expected, min(wanted, _CACHE_BYTES))
        return self._again[1]

    def _forward(self) -> Forward:
        if self._head is not None and StepForward.fits(self.model, self._kernels):
            return StepForward(self.model, self.output_weight, self._head, self._kernels)
        return Forward(self.model, self.output_weight, self._head)

    def _take_head(self) -> None:
        # Ids beyond the tokenizer's fill up the vocabulary: they have no spelling and must never be drawn.
        ids = self.tokenizer.vocab_size
        self._head = native_head(self._source, ids, self._kernels)
        weight = self._source.output_weight.detach()[:ids]
        if self._head is not None or weight.dtype == self.dtype:
            self.output_weight = weight
        elif self._again is None:
            self.output_weight = weight.to(self.dtype)
        else:
            self.output_weight.copy_(weight)  # graphs read it where it lies


def one_each(
    prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], seeds: Sequence[int]
) -> Sequence[Sampling]:
    """The sampling options of every prompt.

    Raises:
        ValueError: there are not as many options and seeds as prompts.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    if not len(prompts) == len(samplings) == len(seeds):
        raise ValueError(f"{len(prompts)} prompts, {len(samplings)} samplings and {len(seeds)} seeds")
    return samplings


def check(config: ModelConfig, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> int:
    """Positions that a prompt and its answer take of a model of this shape; raises as ``Generator.check``."""
    need, context = len(prompt) + sampling.max_new_tokens, config.max_seq_len
    if not prompt:
        raise UserError("a prompt has no tokens; begin it with the tokenizer's bos")
    strange = [id for id in prompt if not 0 <= id < config.vocab_size]
    if strange:
        raise UserError(f"the prompt has token {strange[0]}, and the vocabulary has {tokenizer.vocab_size}")
    beyond = [id for id, _ in sampling.logit_bias if id >= tokenizer.vocab_size]
    if beyond:
        raise UserError(f"logit_bias names token {beyond[0]}, and the vocabulary has {tokenizer.vocab_size}")
    if need > context:
        raise UserError(
            f"a prompt of {len(prompt)} tokens and max_new_tokens {sampling.max_new_tokens} need {need} positions, "
            f"and the model has {context}; shorten one of them"
        )
    return need


def stop_ids_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer; of a base model without a chat template, the end of a document."""
    try:
        return chat.stop_ids(tokenizer)
    except UserError:
        return (tokenizer.eos,)
