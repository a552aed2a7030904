"""How likely ranked answers are, from rows that hold their common beginning once: log-probabilities of K answers.

In:  ``Ranking``s of ``comparisons``, any ``Decoder`` with a language head.
Out: ``LikelihoodBatch``; (B, K) summed log-probabilities and token counts; the former for many rankings at once; those
    of every token; ``remembered``, which keeps on disk what is computed once.
Left out: what is learnt from them (``direct``); answers one by one (``scoring``, whose numbers these are).

A token that answers share is read and given to the vocabulary once, and counts in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from danlu.align.comparisons import PADDING, RankedBatch, Ranking, batch_of
from danlu.files import atomic_write
from danlu.model.attention import SHARED
from danlu.model.decoder import Decoder
from danlu.model.losses import linear_logprobs, linear_logprobs_entropy

AT_ONCE = 64  # comparisons, or single answers, per forward where nothing is learnt


@dataclass(frozen=True)
class LikelihoodBatch:
    """Comparisons, a row for each, and what is known of their answers.

    Attributes:
        ranked: the rows.
        prompt_lengths: (B, K) int64; 0 where there are fewer than K answers.
        reference: (B, K) fp32, summed log-probabilities under the reference; 0 where there are fewer, or none is known.
    """

    ranked: RankedBatch
    prompt_lengths: Tensor
    reference: Tensor

    @property
    def ranks(self) -> Tensor:
        """(B, K), 0 the best, -1 where there are fewer than K answers."""
        return self.ranked.ranks


def lay_out(rankings: Sequence[Ranking], padding: int, device: str, reference: Tensor | None = None) -> LikelihoodBatch:
    """Comparisons as a batch; ``reference``, (B, at least K), goes with it if it is known."""
    ranked = batch_of(rankings, padding, device)
    k = ranked.ranks.shape[1]
    lengths = [[*map(len, r.prompts), *[0] * (k - len(r.prompts))] for r in rankings]
    known = torch.zeros(len(rankings), k) if reference is None else reference[:, :k]
    return LikelihoodBatch(ranked, torch.tensor(lengths, device=device), known.to(device))


def answer_logprobs(model: Decoder, batch: LikelihoodBatch) -> tuple[Tensor, Tensor]:
    """Log-probability of every answer given its prompt, at temperature 1, and how many tokens it has.

    Returns:
        (B, K) fp32 sums over tokens, differentiable, 0 where there is no answer; (B, K) fp32 counts, there 1.
    """
    counted = _counted(batch)
    learnt = counted.any(1)  # B, T
    found, _ = _read(model, batch, learnt)
    spread = torch.zeros(learnt.shape, dtype=found.dtype, device=found.device).masked_scatter(learnt, found)
    sums = (spread[:, None] * counted).sum(-1)
    return sums, counted.sum(-1).clamp(min=1).to(sums.dtype)


def token_logprobs(model: Decoder, batch: LikelihoodBatch, entropy: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probability of every token of every answer, and the entropy in nats of the distribution behind it.

    Returns:
        Two (N,) fp32, differentiable, answer after answer; the entropies are zeros if they are not asked for.
    """
    counted = _counted(batch)
    learnt = counted.any(1)  # B, T
    logprobs, entropies = _read(model, batch, learnt, entropy)
    # A shared token belongs to every answer, and stands before all that is an answer's own.
    places = torch.zeros(learnt.shape, dtype=torch.int64, device=learnt.device)
    places[learnt] = torch.arange(len(logprobs), device=learnt.device)
    index = places[:, None].expand(counted.shape)[counted]
    return logprobs[index], entropies[index]


def parts_of(rankings: Sequence[Ranking], size: int) -> Iterator[list[int]]:
    """Indices in parts of ``size`` with similar lengths, so that little padding is computed."""
    order = sorted(range(len(rankings)), key=lambda index: rankings[index].tokens())
    yield from (order[start : start + size] for start in range(0, len(order), size))


@torch.no_grad()
def all_logprobs(model: Decoder, rankings: Sequence[Ranking], size: int, padding: int) -> Tensor:
    """``answer_logprobs`` of many rankings, ``size`` of them at a time: (N, largest K) fp32 on the CPU."""
    result = torch.zeros(len(rankings), max((len(r.ranks) for r in rankings), default=0))
    device = model.output_weight.device.type
    for part in parts_of(rankings, size):
        sums, _ = answer_logprobs(model, lay_out([rankings[index] for index in part], padding, device))
        result[part, : sums.shape[1]] = sums.cpu()
    return result


def remembered(path: Path, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``compute`` gives, from the file if it was written before an interruption; it is whole or not there."""
    if not path.is_file():
        with atomic_write(path, "wb") as handle:
            handle.write(save(dict(compute())))
    return load_file(path)


def _read(model: Decoder, batch: LikelihoodBatch, learnt: Tensor, entropy: bool = False) -> tuple[Tensor, Tensor]:
    """(M,) log-probabilities of those tokens where ``learnt`` (B, T) is True, and entropies."""
    rows = batch.ranked
    states = model.hidden(rows.tokens, rows.positions, rows.documents).states.flatten(0, 1)
    read = states[_before(rows.documents)[learnt]], model.output_weight, rows.tokens[learnt]
    if entropy:
        return linear_logprobs_entropy(*read)
    found = linear_logprobs(*read)
    return found, torch.zeros_like(found)


def _counted(batch: LikelihoodBatch) -> Tensor:
    """(B, K, T) bool: the token is one of the answer's own, prompt and padding excluded."""
    documents = batch.ranked.documents[:, None]  # B, 1, T
    answers = torch.arange(batch.ranks.shape[1], device=documents.device)[:, None]  # K, 1
    there = ((documents == answers) | (documents == SHARED)) & (batch.ranks >= 0)[:, :, None]
    return there & (batch.ranked.positions[:, None] >= batch.prompt_lengths[:, :, None])


def _before(documents: Tensor) -> Tensor:
    """(B, T) index, in the flattened batch, of the token that each token follows.

    That is its neighbour, but for the first token of a branch: it follows the last that is shared. Where nothing is, it
    is a prompt's first and follows none; nobody asks for it.
    """
    batch, width = documents.shape
    places = torch.arange(width, device=documents.device).expand(batch, width)
    begins = torch.zeros_like(documents, dtype=torch.bool)
    begins[:, 1:] = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] != PADDING)
    shared = (documents == SHARED).sum(1, keepdim=True)  # B, 1
    before = torch.where(begins, shared - 1, places - 1)
    return before + width * torch.arange(batch, device=documents.device)[:, None]
