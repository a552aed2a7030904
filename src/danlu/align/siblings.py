"""Answers to one prompt read beside each other, the prompt once: what ``scoring`` says of each, for less work.

In:  ``Sequences`` in which several rows begin with the same prompt; any ``Decoder`` with a language head.
Out: ``response_logprobs``, ``response_logprobs_entropy`` and ``parts_by_length``, as in ``scoring``.
Left out: rows laid out as branches, and their log-probabilities (``likelihoods``).

Every optimiser that compares answers to one prompt would otherwise read the prompt again for each of them. A row of
many answers has fewer tokens, but each looks at a longer row, most of which its mask then hides: how many answers share
a row is what costs least.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from danlu.align import scoring
from danlu.align.comparisons import Ranking
from danlu.align.likelihoods import lay_out, token_logprobs
from danlu.align.scoring import Sequences
from danlu.model.config import ModelConfig
from danlu.model.decoder import Decoder


def response_logprobs(model: Decoder, sequences: Sequences) -> Tensor:
    """``scoring.response_logprobs``, to the rounding: (B, R) fp32."""
    return _read(model, sequences, entropy=False)[0]


def response_logprobs_entropy(model: Decoder, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """``scoring.response_logprobs_entropy``, to the rounding: both (B, R)."""
    return _read(model, sequences, entropy=True)


def parts_by_length(sequences: Sequences, size: int, rows: Tensor | None = None) -> list[Tensor]:
    """Cut rows (all by default) into parts of at most ``size``, answers to one prompt together if they fit.

    Rows of similar lengths come together, as in ``scoring.parts_by_length``; where no two rows have the same prompt
    that is what this gives.
    """
    index = torch.arange(len(sequences)) if rows is None else rows.flatten()
    chosen = sequences.rows(index).to("cpu")
    numbers, lengths = index.tolist(), chosen.lengths.tolist()
    pieces = [family[start : start + size] for family in _families(chosen)
              for start in range(0, len(family), size)]  # fmt: skip
    pieces.sort(key=lambda piece: max(lengths[place] for place in piece))
    found: list[list[int]] = [[]]
    for piece in pieces:
        if len(found[-1]) + len(piece) > size:
            found.append([])
        found[-1] += [numbers[place] for place in piece]
    return [torch.tensor(part) for part in found]


def answers_a_row(config: ModelConfig, prompt: float, answer: float, siblings: int) -> int:
    """How many of some answers to one prompt to put into a row, so that all of them cost least.

    The work of a token is counted in keys that it looks at: a block of 12 d² weights costs what 6 d keys do. A row of
    one answer is read by a causal kernel, which leaves out half of the square; a mask leaves out nothing.

    Args:
        config: the model's shape.
        prompt: tokens of the prompt.
        answer: tokens of an answer.
        siblings: how many answers there are.
    """
    if config.window:  # a window is counted in places of the row, where answers stand behind each other
        return 1
    products = 6 * config.d_model

    def cost(count: int) -> float:
        length = prompt + count * answer
        seen = length / 2 if count == 1 else length
        return math.ceil(siblings / count) * length * (products + seen)

    return min(range(1, siblings + 1), key=cost)


def _read(model: Decoder, sequences: Sequences, entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (B, R); zeros for these if they are not asked for."""
    here = sequences.to("cpu")  # a GPU would be waited for at every row
    families = _families(here)
    prompt, whole = (float(x.float().mean()) for x in (here.prompt_lengths, here.lengths))
    count = answers_a_row(model.config, prompt, whole - prompt, max(map(len, families)))
    if count == 1:
        if entropy:
            return scoring.response_logprobs_entropy(model, sequences)
        return scoring.response_logprobs(model, sequences), torch.zeros(())
    rows = [row for family in families for row in _evenly(family, count)]
    batch = lay_out([_ranking(here, row) for row in rows], 0, sequences.tokens.device.type)
    order = torch.tensor([number for row in rows for number in row], device=sequences.tokens.device)
    mask, back = sequences.mask[order], order.argsort()
    logprobs, entropies = (
        torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, flat)[back]
        for flat in token_logprobs(model, batch, entropy)
    )
    return logprobs, entropies


def _families(sequences: Sequences) -> list[list[int]]:
    """Numbers of the rows that have the same prompt, in order of the first of each."""
    families: dict[tuple[int, ...], list[int]] = {}
    for number, (ids, length) in enumerate(
        zip(sequences.tokens.tolist(), sequences.prompt_lengths.tolist(), strict=True)
    ):
        families.setdefault(tuple(ids[:length]), []).append(number)
    return list(families.values())


def _evenly(family: list[int], most: int) -> Iterator[list[int]]:
    """A family in as few rows as there have to be, with nearly as many answers in each."""
    n = math.ceil(len(family) / most)
    borders = [len(family) * place // n for place in range(n + 1)]
    return (family[start:end] for start, end in itertools.pairwise(borders))


def _ranking(sequences: Sequences, numbers: list[int]) -> Ranking:
    """Answers as the one thing that is laid out in branches; nobody reads which of them is better."""
    ends = (sequences.prompt_lengths[numbers], sequences.lengths[numbers])
    rows = zip(sequences.tokens[numbers].tolist(), *(end.tolist() for end in ends), strict=True)
    cut = [(ids[:start], ids[start:end]) for ids, start, end in rows]
    return Ranking(tuple(p for p, _ in cut), tuple(r for _, r in cut), (0,) * len(cut))
