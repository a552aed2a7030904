"""One token per row from a batch of logits: temperature, then top-k, then top-p, then min-p, then the draw.

In:  logits (B, V) of the next token, every row's sampling options, one uniform number per row.
Out: token ids (B,) and their log-probabilities (B,).
Left out: when to stop (``generate``), what the tokens say (``detokenize``), penalties on logits (``penalties``).

The log-probability is that of the distribution at the row's temperature *before* truncation, computed in fp32 from raw
logits: what ``model.losses.linear_logprobs`` gives for the same states, so that PPO compares like with like. A greedy
row (temperature 0) reports temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.errors import UserError

_BLOCK = 64
_FEW = 256
_COLDEST = 1e-6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens and when to stop; the tokenizer's own stop tokens always stop.

    Attributes:
        temperature: logits are divided by this; 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: of those, keep the fewest whose probabilities sum to at least this.
        min_p: of those, keep tokens at least this share of the likeliest one's probability.
        max_new_tokens: how long an answer may get, in tokens.
        stop: strings that end the answer and are not part of it.
        repetition_penalty: logits of tokens that prompt or answer have said are divided by this if positive,
            multiplied if negative; 1 is off.
        presence_penalty: taken from the logit of a token that the answer has said.
        frequency_penalty: the same, as many times as it was said.
        logit_bias: (token, what is added to its logit) pairs.
        top_logprobs: how many of the likeliest tokens to tell with every token drawn.
        grammar: text of a JSON schema that the answer keeps to; empty for none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0
    grammar: str = ""

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0.0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            "min_p": (0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "stop": (all(self.stop), "strings with at least one character"),
            "repetition_penalty": (0.0 < self.repetition_penalty < float("inf"), "above 0; 1 is off"),
            "presence_penalty": (abs(self.presence_penalty) < float("inf"), "a number"),
            "frequency_penalty": (abs(self.frequency_penalty) < float("inf"), "a number"),
            "top_logprobs": (self.top_logprobs >= 0, "0 (none) or more"),
            "logit_bias": (all(id >= 0 for id, _ in self.logit_bias), "pairs of a token's id and a number"),
        }
        for name, (good, valid) in checks.items():
            if not good:
                raise UserError(f"sampling option {name} must be {valid}, not {getattr(self, name)!r}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken; so cold that a logit divided by it has no number is greedy too."""
        return self.temperature < _COLDEST


@dataclass(frozen=True, slots=True)
class Options:
    """The sampling options of a batch, a column per option, so that rows may differ.

    Attributes:
        temperature, top_k, top_p, min_p: (B,) each, on the logits' device.
        greedy, some_greedy: whether every row is, whether any is.
        truncated: whether any row has a top-k, top-p or min-p.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    greedy: bool
    some_greedy: bool
    truncated: bool

    @staticmethod
    def of(rows: Sequence[Sampling], device: torch.device | str = "cpu") -> Options:
        """Columns from rows."""

        def column(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return Options(
            temperature=column([0.0 if row.greedy else row.temperature for row in rows], torch.float32),
            top_k=column([row.top_k for row in rows], torch.int64),
            top_p=column([row.top_p for row in rows], torch.float32),
            min_p=column([row.min_p for row in rows], torch.float32),
            greedy=all(row.greedy for row in rows),
            some_greedy=any(row.greedy for row in rows),
            truncated=any(not row.greedy and (row.top_k or row.top_p < 1 or row.min_p) for row in rows),
        )

    def select(self, rows: Tensor) -> Options:
        """The options of some rows."""
        columns = {name: getattr(self, name)[rows] for name in ("temperature", "top_k", "top_p", "min_p")}
        return replace(self, **columns)


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Uniform numbers in [0, 1) addressed by (seed, step): SplitMix64's finaliser over a counter.

    A sample depends on its own seed and position alone: not on its neighbours, nor on what was drawn before.

    Returns:
        (len(seeds), steps) float64.
    """
    keys = _mix(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64) + _GOLDEN)[:, None]
    counters = np.arange(1, steps + 1, dtype=np.uint64)[None, :] * _GOLDEN  # wraps, as it should
    bits = _mix(_mix(keys + counters) ^ keys)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def draw(logits: Tensor, options: Options, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Choose a token for every row by inverting the distribution's cumulative sum at ``uniform``.

    Args:
        logits: (B, V) raw.
        options: of B rows.
        uniform: (B,) float64 in [0, 1).

    Returns:
        token ids (B,) int64, and log-probabilities (B,) fp32 (see the module's head).
    """
    if options.greedy:  # nothing to scale, nothing to weigh: what everybody waits for is short
        tokens = logits.argmax(dim=-1)
        return tokens, logprobs_of(logits, options, tokens)
    scaled = _scaled(logits, options)
    top = scaled.amax(dim=-1, keepdim=True)
    weights = (scaled - top).exp_()  # B, V: unnormalised probabilities, the likeliest is 1
    tokens = _draw_truncated(weights, options, uniform) if options.truncated else _invert(weights, uniform)
    if options.some_greedy:
        tokens = torch.where(options.temperature > 0, tokens, scaled.argmax(dim=-1))
    chosen = (scaled.gather(1, tokens[:, None]) - top)[:, 0]
    return tokens, chosen - weights.sum(dim=-1).log()


def likeliest(logits: Tensor, options: Options, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest tokens of every row and their log-probabilities, (B, count) each, likeliest first."""
    found = _log_softmax(logits, options).topk(min(count, logits.shape[1]), dim=-1)
    return found.indices, found.values


def logprobs_of(logits: Tensor, options: Options, tokens: Tensor) -> Tensor:
    """Log-probabilities (B,) of tokens (B,) as ``draw`` gives them, whoever chose the tokens."""
    return _log_softmax(logits, options).gather(1, tokens[:, None])[:, 0]


def _log_softmax(logits: Tensor, options: Options) -> Tensor:
    return _scaled(logits, options).log_softmax(-1)


def _scaled(logits: Tensor, options: Options) -> Tensor:
    """Logits at each row's temperature, a greedy row's at 1; fp32."""
    if options.greedy:
        return logits.float()
    temperature = torch.where(options.temperature > 0, options.temperature, 1.0)
    return logits.float() / temperature[:, None]


def _draw_truncated(weights: Tensor, options: Options, uniform: Tensor) -> Tensor:
    """Draw from the likeliest tokens; only rows whose cut lies deeper than the first few pay for a sort of all."""
    total = weights.sum(dim=-1)
    ordered, ids = weights.topk(min(_FEW, weights.shape[1]))
    tokens = _draw_ordered(ordered, ids, total, options, uniform)
    by_mass = (options.top_p < 1) & (ordered.sum(dim=-1) >= options.top_p * total)
    by_share = ordered[:, -1] < options.min_p
    cut = torch.where(options.top_k > 0, options.top_k <= ordered.shape[1], by_mass | by_share)
    deep = (~cut).nonzero()[:, 0]
    if len(deep):
        ordered, ids = weights[deep].sort(dim=-1, descending=True)
        tokens[deep] = _draw_ordered(ordered, ids, total[deep], options.select(deep), uniform[deep])
    return tokens


def _draw_ordered(ordered: Tensor, ids: Tensor, total: Tensor, options: Options, uniform: Tensor) -> Tensor:
    """Truncate in descending order, where each of the three filters keeps a prefix, and draw from what is left.

    Args:
        ordered: (B, N) the N largest weights, descending.
        ids: (B, N) their tokens.
        total: (B,) the sum of all weights.
        options: of B rows.
        uniform: (B,).
    """
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    limited = (options.top_k > 0)[:, None]
    ordered = ordered.masked_fill(limited & (rank >= options.top_k[:, None]), 0.0)
    mass = torch.where(limited, ordered.sum(dim=-1, keepdim=True), total[:, None])  # what top-p is a share of
    before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered  # mass of everything likelier
    # The likeliest always stays, also where a tiny top-p is rounded to nothing.
    outside = (options.top_p < 1)[:, None] & (before >= options.top_p[:, None] * mass) & (rank > 0)
    ordered = ordered.masked_fill(outside | (ordered < options.min_p[:, None]), 0.0)
    return ids.gather(1, _invert(ordered, uniform)[:, None])[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds ``uniform`` of the total, (B, V) -> (B,).

    In two levels, blocks and then one block's members: one pass over the vocabulary instead of a scan of it.
    """
    padded = F.pad(weights, (0, -weights.shape[1] % _BLOCK))
    blocks = padded.view(len(padded), -1, _BLOCK)  # B, N, 64
    sums = blocks.sum(dim=-1).double().cumsum(dim=-1)  # B, N
    target = uniform.to(weights.device)[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, target, right=True)  # B, 1; below N because uniform < 1
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(dim=-1)
    start = F.pad(sums, (1, 0)).gather(1, block)
    member = torch.searchsorted(inside, target - start, right=True)
    # Rounding may leave the target at the block's very end: then it is the last member that weighs anything.
    last = torch.searchsorted(inside, inside[:, -1:].contiguous())
    return (block * _BLOCK + torch.minimum(member, last))[:, 0]


def _mix(x: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """SplitMix64's output function (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
