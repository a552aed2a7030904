"""DPO, IPO, ORPO and SimPO on ranked answers: what each loss compares, the loss of a batch, figures of held-out data.

In:  comparisons, the policy before its first step, which is the reference.
Out: ``Comparisons``; ``Objective``, a loss with its constants; the loss of a batch; accuracy, margin and drift.
Left out: the formulas (``losses.direct``), the order of steps (``train.loop``), single answers (``unpaired``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from danlu.align import losses
from danlu.align.comparisons import Ranking, accuracy, encode
from danlu.align.likelihoods import (
    AT_ONCE,
    LikelihoodBatch,
    all_logprobs,
    answer_logprobs,
    lay_out,
    parts_of,
    remembered,
)
from danlu.model.decoder import Decoder
from danlu.records import Preference
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.task import LossOutput


@dataclass(frozen=True)
class Objective:
    """A loss on pairs with its constants.

    Attributes:
        loss: "dpo", "ipo", "orpo" or "simpo"; "kto" has no loss on pairs, but an implicit reward to be measured.
        beta, label_smoothing, gamma: as in ``losses.direct``.
    """

    loss: str
    beta: float
    label_smoothing: float = 0.0
    gamma: float = 0.0

    def compared(self, logprobs: Tensor, lengths: Tensor, reference: Tensor) -> Tensor:
        """What the loss compares, one number per answer; beta times it is the implicit reward. All (B, K)."""
        match self.loss:
            case "orpo" | "simpo":
                return logprobs / lengths
            case "ipo":
                return (logprobs - reference) / lengths
            case _:
                return logprobs - reference

    def of_pairs(self, found: Tensor, ranks: Tensor) -> Tensor:
        """(B,) losses of comparisons: the mean over strict pairs, ties weighing as in Bradley-Terry's; both (B, K)."""
        return losses.mean_over_pairs(self._of_pair(found[:, :, None], found[:, None, :]), ranks)

    def _of_pair(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        match self.loss:
            case "dpo":
                return losses.dpo(chosen, rejected, self.beta, self.label_smoothing)
            case "ipo":
                return losses.ipo(chosen, rejected, self.beta)
            case "orpo":
                return losses.orpo(chosen, rejected, self.beta)
            case "simpo":
                return losses.simpo(chosen, rejected, self.beta, self.gamma)
            case _:
                raise ValueError(f"'{self.loss}' is no loss on pairs")


@dataclass(frozen=True)
class Comparisons:
    """Rankings, and what the reference says of their answers: (N, largest K)."""

    rankings: list[Ranking]
    reference: Tensor

    @staticmethod
    def read(
        chosen: Sequence[tuple[Preference, float]], policy: Decoder, tokenizer: Tokenizer, file: Path
    ) -> Comparisons:
        """Ask the policy, which before its first step is the reference, or the file if it is there.

        Args:
            chosen: comparisons with what each counts for.
            policy: before its first step.
            tokenizer: its.
            file: where the answer is kept.
        """
        room = policy.config.max_seq_len
        rankings = [encode(preference, tokenizer, room, weight) for preference, weight in chosen]
        found = remembered(file, lambda: {"answers": all_logprobs(policy, rankings, AT_ONCE, tokenizer.pad)})
        return Comparisons(rankings, found["answers"])

    def __len__(self) -> int:
        return len(self.rankings)

    def batches(self, rows: Sequence[int], size: int, padding: int, device: str) -> list[LikelihoodBatch]:
        """Some of them as batches of ``size`` with similar lengths, so that little padding is computed."""
        chosen = [self.rankings[row] for row in rows]
        reference = self.reference[list(rows)]
        return [
            lay_out([chosen[index] for index in part], padding, device, reference[part])
            for part in parts_of(chosen, size)
        ]


def pair_loss(model: Decoder, batch: LikelihoodBatch, objective: Objective) -> LossOutput:
    """The weighted losses of all comparisons, summed; what ``measure`` tells is told of these too, without weights."""
    found, told = _read(model, batch, objective)
    loss = batch.ranked.weights * objective.of_pairs(found, batch.ranks)
    sums = torch.stack([value.detach().sum() for value in told.values()]).tolist()  # a GPU is waited for once
    return LossOutput(loss.sum(), len(loss), batch.ranked.n_tokens, sums=dict(zip(told, sums, strict=True)))


@torch.no_grad()
def measure(model: Decoder, batches: Sequence[LikelihoodBatch], objective: Objective) -> dict[str, float]:
    """Means over comparisons, without gradient; nothing for none.

    Returns:
        ``accuracy`` (pairs whose implicit rewards are in order), ``margin`` (implicit reward of the best answers over
        that of the worst), ``chosen`` and ``rejected`` (their log-ratios to the reference in nats), and the ``loss``
        unless it is kto's.
    """
    seen: dict[str, list[Tensor]] = {}
    for batch in batches:
        found, told = _read(model, batch, objective)
        if objective.loss != "kto":
            told = {"loss": objective.of_pairs(found, batch.ranks)} | told
        for name, value in told.items():
            seen.setdefault(name, []).append(value)
    return {name: float(torch.cat(values).mean()) for name, values in seen.items()}


def _read(model: Decoder, batch: LikelihoodBatch, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, K) what the loss compares, and (B,) what else is worth knowing of each comparison."""
    logprobs, lengths = answer_logprobs(model, batch)
    found, ratios = objective.compared(logprobs, lengths, batch.reference), logprobs - batch.reference
    worst = batch.ranks == batch.ranks.amax(1, keepdim=True)
    least = batch.ranks.masked_fill(batch.ranks < 0, int(batch.ranks.max())).amin(1, keepdim=True)
    best = batch.ranks == least  # not always 0: ranks say an order
    return found, {
        "accuracy": accuracy(found.detach(), batch.ranks),
        "margin": objective.beta * (_mean(found, best) - _mean(found, worst)),
        "chosen": _mean(ratios, best),
        "rejected": _mean(ratios, worst),
    }


def _mean(x: Tensor, where: Tensor) -> Tensor:
    """(B, K) -> (B,) means over those entries."""
    return (x * where).sum(1) / where.sum(1)
