"""Ranked answers in token ids: the batches, the loss and the accuracy of a reward model.

In:  preferences, a tokenizer.
Out: ``Ranking``, one comparison; ``RankedBatch``, several of them in one forward; ``Objective`` and ``ranking_loss``;
    ``accuracy``.
Left out: where comparisons come from (``rankings``, the preference store), and training (``reward``).

Answers that are compared begin alike: with the prompt always, often with more. A comparison is therefore one row, which
holds the common beginning once and after it the rest of every answer as a branch that sees the beginning and itself
(prefix sharing, as Wang and Hegde, arXiv 2410.20305, do it for pairs). It says what forwarding each answer by itself
says (``scoring.rewards`` is the reference, tests compare) and reads half to a quarter of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from danlu.align import losses, scoring
from danlu.model.attention import SHARED
from danlu.model.decoder import Decoder
from danlu.records import Preference
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.task import LossOutput

PADDING = -1  # its document


@dataclass(frozen=True)
class Ranking:
    """One comparison in token ids.

    Attributes:
        prompts: one for each of the K answers: the same, cut alike.
        responses: the answers.
        ranks: theirs, 0 the best.
        weight: what the comparison counts for.
        fold: which head learns from it, if there are several.
        rater: who judged.
        models: who wrote the answers.
        cut: whether its prompt was, to leave room for the answers.
        anew: how many answers another tokenizer wrote, whose words were read anew.
    """

    prompts: tuple[list[int], ...]
    responses: tuple[list[int], ...]
    ranks: tuple[int, ...]
    weight: float = 1.0
    fold: int = 0
    rater: str = ""
    models: tuple[str, ...] = ()
    cut: bool = False
    anew: int = 0

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
        weights: (B,) fp32.
        folds: (B,) int64.
        n_tokens: tokens that are not padding.
    """

    tokens: Tensor
    positions: Tensor
    documents: Tensor
    ends: Tensor
    ranks: Tensor
    weights: Tensor
    folds: Tensor
    n_tokens: int

    def rows(self, index: Tensor) -> RankedBatch:
        """Some of the rows; T and K stay."""
        documents = self.documents[index]
        return RankedBatch(
            self.tokens[index], self.positions[index], documents, self.ends[index], self.ranks[index],
            self.weights[index], self.folds[index], n_tokens=int((documents != PADDING).sum()),
        )  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """What is asked of the rewards of a comparison.

    Attributes:
        margin: lead wanted for every rank between two answers, in units of reward.
        centring: weight of the pull towards a mean reward of zero.
    """

    margin: float = 0.0
    centring: float = 0.0

    def __call__(self, found: Tensor, ranks: Tensor, log_nu: Tensor | None = None) -> Tensor:
        """(B, K) rewards and ranks -> (B,) losses; ties teach if there is a ``log_nu`` (``losses.davidson``)."""
        if log_nu is None:
            loss = losses.bradley_terry(found, ranks, self.margin)
        else:
            loss = losses.davidson(found, ranks, log_nu, self.margin)
        return loss + self.centring * losses.centring(found, ranks) if self.centring else loss


PLAIN = Objective()


def encode(preference: Preference, tokenizer: Tokenizer, room: int, weight: float = 1.0, fold: int = 0) -> Ranking:
    """A preference in token ids, at most ``room`` of them per answer."""
    ids = [scoring.answer_ids(tokenizer, preference.prompt, answer, room) for answer in preference.answers]
    models = tuple(answer.model for answer in preference.answers)
    return Ranking(
        tuple(p for p, _ in ids), tuple(r for _, r in ids), preference.ranks, weight, fold, preference.rater, models,
        *scoring.altered(tokenizer, preference.prompt, preference.answers, ids, room),
    )  # fmt: skip


class Encoded(Protocol):
    """A comparison or a single answer in token ids."""

    @property
    def cut(self) -> bool:
        """Whether its prompt was."""

    @property
    def anew(self) -> int:
        """How many answers were read anew."""


def altered(encoded: Iterable[Encoded], stage: Stage) -> dict[str, int]:
    """How many did not fit as they were, or were another tokenizer's, said and as figures; without those that are 0."""
    every = list(encoded)
    found = {"prompts_cut": sum(one.cut for one in every), "answers_read_anew": sum(one.anew for one in every)}
    why = {"prompts_cut": "prompts lose their beginning to fit the context",
           "answers_read_anew": "answers are another tokenizer's and are read anew from their words"}  # fmt: skip
    if any(found.values()):
        stage.console.say(f"{stage.name}: {'; '.join(f'{n} {why[name]}' for name, n in found.items() if n)}")
    return {name: n for name, n in found.items() if n}


def batch_of(rankings: Sequence[Ranking], padding: int, device: str) -> RankedBatch:
    """Lay comparisons out, a row for each."""
    rows = [_lay_out(ranking) for ranking in rankings]
    tokens, positions, documents, ends, ranks = zip(*rows, strict=True)
    return RankedBatch(
        _fill(tokens, padding, device), _fill(positions, 0, device), _fill(documents, PADDING, device),
        _fill(ends, 0, device), _fill(ranks, -1, device), torch.tensor([r.weight for r in rankings], device=device),
        torch.tensor([r.fold for r in rankings], device=device), sum(map(len, tokens)),
    )  # fmt: skip


def scores(model: Decoder, batch: RankedBatch) -> Tensor:
    """(B, K) fp32 rewards, the mean of the model's heads; 0 where there is no answer."""
    return head_scores(model, batch).mean(-1)


def head_scores(model: Decoder, batch: RankedBatch) -> Tensor:
    """(B, K, H) fp32 rewards by every head; 0 where there is no answer."""
    states = model.hidden(batch.tokens, batch.positions, batch.documents).states
    last = states.gather(1, batch.ends[:, :, None].expand(-1, -1, states.shape[-1]))
    found = model.values(last).reshape(*batch.ranks.shape, -1)
    return found.masked_fill((batch.ranks < 0)[:, :, None], 0.0)


def ranking_loss(model: Decoder, batch: RankedBatch, objective: Objective = PLAIN) -> LossOutput:
    """The weighted losses of all comparisons, summed; each is felt by the head of its fold alone."""
    every = head_scores(model, batch)
    found = every.gather(2, batch.folds[:, None, None].expand(-1, every.shape[1], 1)).squeeze(2)
    log_nu = getattr(model.score, "log_nu", None)
    loss = (batch.weights * objective(found, batch.ranks, log_nu)).sum()
    right = float(accuracy(found.detach(), batch.ranks).sum())
    return LossOutput(loss, len(batch.ranks), batch.n_tokens, sums={"accuracy": right})


def accuracy(found: Tensor, ranks: Tensor) -> Tensor:
    """(B,) share of each comparison's pairs that are in the right order; a half where nothing is better.

    Args:
        found: (B, K) scores.
        ranks: (B, K), 0 the best, -1 for none.
    """
    right, better = right_pairs(found, ranks)
    n = better.sum((1, 2))
    return torch.where(n > 0, right.sum((1, 2)) / n.clamp(min=1), 0.5)


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
