"""Rows that are generated in step: one forward pass per token for all of them.

In:  an engine (weights made ready), prompts of any lengths, options and a seed per row.
Out: completions.
Left out: rows that join later; a batch ends when its last row does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from danlu.infer.detokenize import Detokenizer
from danlu.infer.penalties import Penalties
from danlu.infer.sampler import Options, Sampling, draw, likeliest, logprobs_of, uniforms
from danlu.model import Decoder, KVCache, LatentCache
from danlu.tokens.tokenizer import Tokenizer

_WORTH_DROPPING = 0.75  # finished rows are dropped, and the cache copied, once so few are still under way


class Token(NamedTuple):
    """A token that was drawn.

    Attributes:
        id: which.
        logprob: its log-probability under the model at the sampling temperature, before truncation (see ``sampler``).
        top: the likeliest tokens in its place and their log-probabilities, if the sampling asks for some.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Attributes:
        tokens: the ids, with the stop token if one came.
        text: what they say, without stop token and stop string.
        logprobs: of each token under the model at the sampling temperature, before truncation (see ``sampler``).
        finish_reason: ``"stop"`` (a stop token or stop string) or ``"length"`` (``max_new_tokens``).
        top: for each token the likeliest in its place, if the sampling asks for some.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finish_reason: str
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


class Engine(Protocol):
    """A model made ready for inference.

    Attributes:
        tokenizer: the model's.
        model: its weights in the dtype they are multiplied in.
        output_weight: (V, D), the rows that may be drawn.
        dtype: of products and cache.
        stop_ids: tokens that end an answer.
    """

    model: Decoder
    output_weight: Tensor
    dtype: torch.dtype
    stop_ids: tuple[int, ...]
    tokenizer: Tokenizer

    def head(self, states: Tensor) -> Tensor:
        """(R, D) -> logits (R, V) in fp32."""


class Batch:
    """Some rows, from their prompts to their ends.

    Attributes:
        done: whether every row has ended.
    """

    @torch.inference_mode()
    def __init__(
        self, engine: Engine, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], seeds: Sequence[int]
    ) -> None:
        """Read the prompts; the first ``step`` draws the first tokens."""
        self.done = False
        device, n, longest = engine.output_weight.device, len(prompts), max(s.max_new_tokens for s in samplings)
        self._engine, self._step = engine, 0
        # Per prompt, in the order given: what it wants and what it has got.
        self._limits = torch.tensor([s.max_new_tokens for s in samplings], device=device)
        self._uniforms = uniforms(seeds, longest).to(device)  # B, longest
        self._tokens = torch.zeros(n, longest, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(n, longest, device=device)
        self._lengths = self._limits.clone()
        self._scanners = {i: Detokenizer(engine.tokenizer, s.stop) for i, s in enumerate(samplings) if s.stop}
        self._texts = dict.fromkeys(self._scanners, "")
        # Per row under way: which prompt it belongs to, and what the next draw and the next forward pass need.
        self._rows = torch.arange(n, device=device)
        self._alive = torch.ones(n, dtype=torch.bool, device=device)
        self._options = Options.of(samplings, device)
        vocabulary = engine.output_weight.shape[0]
        wanted = Penalties.wanted(samplings)
        self._top = [s.top_logprobs for s in samplings]
        self._likeliest: list[dict[int, tuple[tuple[int, float], ...]]] = []  # per step: prompt -> tokens
        self._penalties = Penalties(samplings, prompts, engine.tokenizer, vocabulary, device) if wanted else None
        self._positions = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._stop_ids = torch.tensor(engine.stop_ids, device=device)
        self._cache, self._logits = self._read(prompts, capacity=int((self._positions + self._limits).max()))

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Draw one token for every row; returns them, (R,), a row that has ended meaning nothing."""
        rows, step = self._rows, self._step
        tokens, logprobs = self._draw(rows, self._uniforms[rows, step])
        self._tokens[rows, step], self._logprobs[rows, step] = tokens, logprobs
        if any(self._top):
            self._likeliest.append(self._find_likeliest())
        self._step += 1
        self._end(tokens)
        self._drop()
        if not self.done:
            self._logits = self._forward(self._tokens[self._rows, step])
        return tokens

    def _draw(self, rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (R,), and their log-probabilities under the model, which penalties do not change."""
        if self._penalties is None:
            return draw(self._logits, self._options, uniform)
        tokens, _ = draw(self._penalties.apply(self._logits, rows), self._options, uniform)
        self._penalties.note(tokens, rows)
        return tokens, logprobs_of(self._logits, self._options, tokens)

    def _find_likeliest(self) -> dict[int, tuple[tuple[int, float], ...]]:
        """For every row under way that asks for them, the likeliest tokens of this step."""
        ids, logprobs = (x.tolist() for x in likeliest(self._logits, self._options, max(self._top)))
        rows = enumerate(self._rows.tolist())
        return {
            row: tuple(zip(ids[i], logprobs[i], strict=True))[: self._top[row]] for i, row in rows if self._top[row]
        }

    def said(self, row: int, step: int) -> Token:
        """The token that a prompt's answer got at a step."""
        top = self._likeliest[step].get(row, ()) if self._likeliest else ()
        return Token(int(self._tokens[row, step]), float(self._logprobs[row, step]), top)

    def completions(self) -> list[Completion]:
        """The answers, once ``done``, in the order of the prompts."""
        every = zip(self._tokens.tolist(), self._logprobs.tolist(), self._lengths.tolist(), strict=True)
        return [self._completion(i, ids[:n], logprobs[:n]) for i, (ids, logprobs, n) in enumerate(every)]

    def _read(self, prompts: Sequence[Sequence[int]], capacity: int) -> tuple[KVCache | LatentCache, Tensor]:
        """Prefill: equal prompts are read once and their cache is copied; returns logits (B, V) of the first token."""
        unique = list(dict.fromkeys(map(tuple, prompts)))
        device = self._rows.device
        tokens = pad_sequence([torch.tensor(prompt) for prompt in unique], batch_first=True).to(device)  # U, T
        last = torch.tensor([len(prompt) - 1 for prompt in unique], device=device)
        model = self._engine.model
        cache = model.new_cache(len(unique), capacity, self._engine.dtype)
        cache.reach = tokens.shape[1]
        positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        states = model.hidden(tokens, positions, cache=cache).states  # U, T, D
        logits = self._engine.head(states[torch.arange(len(unique), device=device), last])
        if len(unique) < len(prompts):
            place = {prompt: i for i, prompt in enumerate(unique)}
            copies = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
            cache, logits = cache.select(copies), logits[copies]
        return cache, logits

    def _forward(self, tokens: Tensor) -> Tensor:
        """One token per row (B,) -> logits (B, V) of the next."""
        positions = self._positions
        self._cache.reach = int(positions.max()) + 1
        states = self._engine.model.hidden(tokens[:, None], positions[:, None], cache=self._cache).states
        self._positions = positions + self._alive  # an ended row stays where it is until it is dropped
        return self._engine.head(states[:, 0])

    def _end(self, tokens: Tensor) -> None:
        """Find the rows that this step's tokens (B,) have brought to an end."""
        ended = torch.isin(tokens, self._stop_ids) | (self._limits[self._rows] <= self._step)
        if self._scanners:
            alive, drawn = self._alive.tolist(), tokens.tolist()
            for place, row in enumerate(self._rows.tolist()):
                if alive[place] and row in self._scanners:
                    ended[place] |= self._scan(row, drawn[place], bool(ended[place]))
        self._lengths[self._rows[self._alive & ended]] = self._step
        self._alive &= ~ended

    def _scan(self, row: int, token: int, last: bool) -> bool:
        """Look for stop strings in what a row says; whether one is complete."""
        scanner = self._scanners[row]
        if token not in self._engine.stop_ids:
            self._texts[row] += scanner.feed(token)
        if last:
            self._texts[row] += scanner.finish()
        return scanner.stopped

    def _drop(self) -> None:
        """Let go of ended rows once that is worth copying the cache."""
        keep = self._alive.nonzero()[:, 0]
        self.done = len(keep) == 0
        if not self.done and len(keep) <= _WORTH_DROPPING * len(self._rows):
            self._rows, self._alive, self._positions = self._rows[keep], self._alive[keep], self._positions[keep]
            self._options, self._cache = self._options.select(keep), self._cache.select(keep)

    def _completion(self, row: int, tokens: list[int], logprobs: list[float]) -> Completion:
        engine, scanner = self._engine, self._scanners.get(row)
        by_token = tokens[-1] in engine.stop_ids
        text = engine.tokenizer.decode(tokens[:-1] if by_token else tokens) if scanner is None else self._texts[row]
        stopped = by_token or (scanner is not None and scanner.stopped)
        top = tuple(self._likeliest[step][row] for step in range(len(tokens))) if self._top[row] else ()
        return Completion(tuple(tokens), text, tuple(logprobs), "stop" if stopped else "length", top)
