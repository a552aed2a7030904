"""Ranked answers in token ids: the batches, the loss and the accuracy of a reward model.

In:  preferences, a tokenizer.
Out: ``Ranking``, one comparison; ``RankedBatch``, several of them in one forward; ``ranking_loss``; ``accuracy``.
Left out: where comparisons come from (``rankings``, the preference store), and training (``reward``).

Answers that are compared begin alike: with the prompt always, often with more. A comparison is therefore one row, which
holds the common beginning once and after it the rest of every answer as a branch that sees the beginning and itself
(prefix sharing, as Wang and Hegde, arXiv 2410.20305, do it for pairs). It says what forwarding each answer by itself
says (``scoring.rewards`` is the reference, tests compare) and reads half to a quarter of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.align import losses, scoring
from danlu.model.attention import SHARED
from danlu.model.decoder import Decoder
from danlu.records import Preference
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.task import LossOutput

PADDING = -1  # its document


@dataclass(frozen=True)
class Ranking:
    """One comparison in token ids: the answers of K, a prompt for each (the same, cut alike), their ranks."""

    prompts: tuple[list[int], ...]
    responses: tuple[list[int], ...]
    ranks: tuple[int, ...]

    def sequences(self) -> list[list[int]]:
        """Each answer after its prompt."""
        return [[*p, *r] for p, r in zip(self.prompts, self.responses, strict=True)]

    def tokens(self) -> int:
        """Tokens that a row takes: what all answers share, and the rest of each."""
        shared = self.shared()
        return shared + sum(len(sequence) - shared for sequence in self.sequences())

    def shared(self) -> int:
        """How many tokens all answers begin with; at least the last token of each stays its own."""
        sequences = self.sequences()
        shortest = min(map(len, sequences))
        columns = zip(*(sequence[: shortest - 1] for sequence in sequences), strict=True)
        different = (place for place, column in enumerate(columns) if len(set(column)) > 1)
        return next(different, shortest - 1)

    def near_miss(self) -> bool:
        """Whether all answers begin alike for at least half of the longest, so that little but what matters differs."""
        alike = self.shared() - len(self.prompts[0])
        return 2 * alike >= max(map(len, self.responses))


@dataclass(frozen=True)
class RankedBatch:
    """Comparisons, a row for each.

    Attributes:
        tokens: (B, T) int64.
        positions: (B, T) int64, the place of every token in its own answer.
        documents: (B, T) int64, ``SHARED`` for the common beginning, then the number of the answer.
        ends: (B, K) int64, where each answer's last token is; 0 where there are fewer than K.
        ranks: (B, K) int64, -1 where there are fewer than K.
        n_tokens: tokens that are not padding.
    """

    tokens: Tensor
    positions: Tensor
    documents: Tensor
    ends: Tensor
    ranks: Tensor
    n_tokens: int

    def rows(self, index: Tensor) -> RankedBatch:
        """Some of the rows; T and K stay."""
        documents = self.documents[index]
        return RankedBatch(
            self.tokens[index], self.positions[index], documents, self.ends[index], self.ranks[index],
            n_tokens=int((documents != PADDING).sum()),
        )  # fmt: skip


def encode(preference: Preference, tokenizer: Tokenizer, room: int) -> Ranking:
    """A preference in token ids, at most ``room`` of them per answer."""
    ids = [scoring.answer_ids(tokenizer, preference.prompt, answer, room) for answer in preference.answers]
    return Ranking(tuple(p for p, _ in ids), tuple(r for _, r in ids), preference.ranks)


def batch_of(rankings: Sequence[Ranking], padding: int, device: str) -> RankedBatch:
    """Lay comparisons out, a row for each."""
    rows = [_lay_out(ranking) for ranking in rankings]
    tokens, positions, documents, ends, ranks = zip(*rows, strict=True)
    return RankedBatch(
        _fill(tokens, padding, device), _fill(positions, 0, device), _fill(documents, PADDING, device),
        _fill(ends, 0, device), _fill(ranks, -1, device), sum(map(len, tokens)),
    )  # fmt: skip


def scores(model: Decoder, batch: RankedBatch) -> Tensor:
    """(B, K) fp32 rewards; 0 where there is no answer."""
    states = model.hidden(batch.tokens, batch.positions, batch.documents).states
    last = states.gather(1, batch.ends[:, :, None].expand(-1, -1, states.shape[-1]))
    return model.values(last).masked_fill(batch.ranks < 0, 0.0)


def ranking_loss(model: Decoder, batch: RankedBatch) -> LossOutput:
    """Bradley-Terry over every pair of every comparison, summed over comparisons."""
    found = scores(model, batch)
    loss = losses.bradley_terry(found, batch.ranks).sum()
    right = float(accuracy(found.detach(), batch.ranks).sum())
    return LossOutput(loss, len(batch.ranks), batch.n_tokens, sums={"accuracy": right})


def accuracy(found: Tensor, ranks: Tensor) -> Tensor:
    """(B,) share of each comparison's pairs that are in the right order.

    Args:
        found: (B, K) scores.
        ranks: (B, K), 0 the best, -1 for none.
    """
    right, better = right_pairs(found, ranks)
    return right.sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def right_pairs(found: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, K): 1 where i is better than j and scored so (a half for equal scores), and 1 where i is better."""
    present = ranks >= 0
    better = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    agreement = 0.5 + 0.5 * torch.sign(found[:, :, None] - found[:, None, :])
    return agreement.masked_fill(~better, 0.0), better


def _lay_out(ranking: Ranking) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Tokens, positions, documents, ends and ranks of a row."""
    shared, sequences = ranking.shared(), ranking.sequences()
    tokens, positions, documents = sequences[0][:shared], list(range(shared)), [SHARED] * shared
    ends = []
    for number, sequence in enumerate(sequences):
        tokens += sequence[shared:]
        positions += range(shared, len(sequence))
        documents += [number] * (len(sequence) - shared)
        ends.append(len(tokens) - 1)
    return tokens, positions, documents, ends, list(ranking.ranks)


def _fill(rows: Sequence[list[int]], filling: int, device: str) -> Tensor:
    """Rows of different lengths as one tensor, filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [filling] * (width - len(row)) for row in rows], device=device)
