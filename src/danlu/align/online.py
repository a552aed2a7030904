"""Stage ``online_dpo``: practise, let the score order the answers to each prompt, learn from the pairs as DPO does.

In:  the SFT model (policy and reference), what scores answers, training prompts.
Out: ``model/``, ``metrics.jsonl`` with a line per iteration, ``monitor.json`` with the looks from outside.
Left out: the formulas (``losses.direct``, ``losses.group``), the update (``learner``), the iterations (``practice``).

Guo et al., "Direct language model alignment from online AI feedback" (arXiv 2402.04792): DPO's loss on answers of the
policy as it is, where the stage ``dpo`` has those of long ago. Nothing corrects for a policy that has moved within an
iteration or for another engine that drew the answers: a pair may come from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from danlu.align import losses
from danlu.align.answering import PracticeSettings
from danlu.align.grpo import groups_of
from danlu.align.learner import Learner, Scored
from danlu.align.losses import PolicyLoss
from danlu.align.paired import Objective
from danlu.align.practice import practise
from danlu.align.rollout import Experience
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.train.parallel import ALONE, World


class OnlineDPOSettings(PracticeSettings):
    """The section ``online_dpo``."""

    loss: Literal["dpo", "ipo"] = "dpo"
    """What is learnt from a pair: a large margin, or one of 1 / (2 kl_coefficient) nats per token and no more."""
    group_size: int = Field(2, ge=2)
    """Answers per prompt, of which the best and the worst are a pair."""
    kl_coefficient: float = Field(0.1, gt=0)
    """The loss's beta, at the start: the price of a nat of distance from the SFT model, as it is for every method."""
    kl_horizon: int = Field(0, ge=0)
    """Answers over which the coefficient may change by its own size; 0 keeps it fixed, as published."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.in_groups_of(self.group_size)
        return self


def online_dpo(stage: Stage) -> dict[str, Any]:
    """Run online DPO, or go on with it.

    Returns:
        The looks before and after, the iteration that was kept, alarms, and speed.
    """
    settings = cast(OnlineDPOSettings, stage.settings)
    return practise(stage, lambda policy, world: OnlinePairs(policy, settings, world))


@dataclass(frozen=True)
class Ordered(Scored):
    """``Scored`` with the pairs that are learnt from; ``advantages``, (B, 1), say which way an answer is pushed.

    Attributes:
        pairs: (P, 2) int64, rows of a better and of a worse answer.
        prompts: how many prompts were answered.
        objective: the loss on a pair.
    """

    pairs: Tensor
    prompts: int
    objective: Objective


class OnlinePairs(Learner):
    """A policy alone, which learns from pairs of its answers.

    Args:
        policy: a copy of the SFT model, trained in place.
        settings: of the stage.
        world: the processes that learn together.
    """

    settings: OnlineDPOSettings

    def __init__(self, policy: Decoder, settings: OnlineDPOSettings, world: World = ALONE) -> None:
        super().__init__("online_dpo", policy, settings, world)
        self.per_prompt = settings.group_size

    def score(self, experience: Experience, reference: Decoder, beta: float) -> Ordered:
        """Log-probabilities, and a pair for every prompt whose answers did not all score alike."""
        old, frozen, *_ = self._old_logprobs(experience, reference)
        groups = groups_of(experience)
        pairs = losses.best_and_worst(experience.scores, groups)
        pushed = torch.zeros(len(groups), 1, device=groups.device)
        pushed[pairs[:, 0]], pushed[pairs[:, 1]] = 1.0, -1.0
        prompts = int(groups.max()) + 1
        return Ordered(experience, old, frozen, pushed, pairs.cpu(), prompts, Objective(self.settings.loss, beta))

    def tells(self, experience: Experience) -> Tensor:
        """(B,) bool, whether an answer was scored otherwise than another to its prompt."""
        return losses.telling(experience.scores, groups_of(experience))

    def summary(self, scored: Ordered) -> dict[str, float]:
        """What every learner tells; how many prompts gave a ``pair`` and how many none (``ties``); and of the pairs the
        implicit reward's ``margin`` and how often it has the score's order (``accuracy``), a half for equals.
        """
        found = super().summary(scored) | {"pairs": float(len(scored.pairs))}
        found["ties"] = scored.prompts - found["pairs"]
        if not len(scored.pairs):
            return found
        better, worse = _compared(scored.logprobs[scored.pairs.flatten()], scored, scored.pairs.flatten()).unbind(1)
        lead = better - worse
        right = float((0.5 + 0.5 * lead.sign()).mean())
        return found | {"margin": scored.objective.beta * float(lead.mean()), "accuracy": right}

    def _units(self, scored: Ordered) -> Tensor:
        return scored.pairs

    def _policy_loss(
        self, logprobs: Tensor, scored: Ordered, rows: Tensor, n_answers: int, n_tokens: Tensor
    ) -> PolicyLoss:
        found = _compared(logprobs, scored, rows)
        ranks = torch.arange(2, device=found.device).expand_as(found)  # the better answer stands first
        moved = losses.kl_k3(scored.logprobs[rows], logprobs.detach()).masked_fill(~scored.mask[rows], 0.0)
        loss = scored.objective.of_pairs(found, ranks).sum() * (2 * n_tokens / n_answers)  # a mean over pairs
        return PolicyLoss(loss, torch.zeros((), device=loss.device), moved.sum())


def _compared(logprobs: Tensor, scored: Ordered, rows: Tensor) -> Tensor:
    """(P, 2) what the loss compares, from (2P, R) log-probabilities of ``rows`` in which pairs follow each other."""
    sums, reference = logprobs.sum(1).view(-1, 2), scored.reference[rows].sum(1).view(-1, 2)
    return scored.objective.compared(sums, scored.mask[rows].sum(1).view(-1, 2), reference)
