"""Stage ``grpo``: practise without a critic; an answer is compared with other answers to the same prompt.

In:  the SFT model (policy and reference), what scores answers, training prompts.
Out: ``model/``, ``metrics.jsonl`` with a line per iteration, ``monitor.json`` with the looks from outside.
Left out: the formulas (``losses``), the update of the policy (``learner``), the iterations (``practice``).

Five methods, which differ in the rows of ``METHODS``; one table says what each is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from danlu.align import losses, siblings
from danlu.align.answering import PracticeSettings
from danlu.align.learner import Learner, Scored
from danlu.align.losses import PolicyLoss, RunningMean
from danlu.align.practice import practise
from danlu.align.rollout import Experience
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.train.parallel import ALONE, World


@dataclass(frozen=True)
class Method:
    """What distinguishes a method.

    Attributes:
        baseline: what an answer's score is compared with: "group", the mean of the answers to its prompt; "scaled",
            the same divided by their deviation; "others", the mean of the others; "running", all scores so far.
        per: what the loss is a mean over (``losses.answer_weights``).
        kl: where the distance from the SFT model is paid: in the "loss" per token (k3), or in the "score" (k1).
        clipped: whether the surrogate of PPO corrects for a policy that has moved; the plain gradient cannot.
        clip_high: how far a ratio may rise and still earn; None for as far as it may fall.
        refill: whether groups that say nothing are sampled anew (DAPO's dynamic sampling).
        margin: share of the longest answer over which a late end costs (``losses.overlong_penalty``).
    """

    baseline: Literal["group", "scaled", "others", "running"]
    per: losses.Per
    kl: Literal["loss", "score"]
    clipped: bool = True
    clip_high: float | None = None
    refill: bool = False
    margin: float = 0.0


METHODS = {
    "grpo": Method("scaled", "answer", "loss"),  # Shao et al., arXiv 2402.03300
    "dr_grpo": Method("group", "constant", "loss"),  # Liu et al., arXiv 2503.20783
    "dapo": Method("scaled", "token", "loss", clip_high=0.28, refill=True, margin=0.2),  # Yu et al., arXiv 2503.14476
    "rloo": Method("others", "none", "score"),  # Ahmadian et al., arXiv 2402.14740
    "reinforce": Method("running", "none", "score", clipped=False),  # Williams 1992
}


def unread(method: str) -> dict[str, str]:
    """Settings that a method does not read, and what it does instead."""
    one, unclipped = METHODS[method], "takes one step per experience and so has no ratio to hold"
    nothing = {} if one.clipped else dict.fromkeys(("clip", "clip_high", "approx_kl_limit"), unclipped)
    return nothing | ({} if one.refill else {"sampling_rounds": "samples once for an experience"})


class GRPOSettings(PracticeSettings):
    """The section ``grpo``."""

    method: Literal["grpo", "dr_grpo", "dapo", "rloo", "reinforce"] = "grpo"
    """grpo; dr_grpo, which divides by neither deviation nor length; dapo, with a mean over tokens, more room upwards,
    groups that say something and a price for late ends; rloo, each answer against the others; reinforce, the policy
    gradient written out against the mean of all scores so far. As published, dr_grpo and dapo have kl_coefficient 0."""
    group_size: int = Field(8, ge=1)
    """Answers per prompt."""
    mini_batch: int = Field(192, ge=1)
    """Answers per optimizer step; at least ``batch_size`` is one step per experience, as published."""
    clip: float = Field(0.2, gt=0)
    """Ratios beyond 1 -+ this earn nothing more."""
    clip_high: float | None = Field(None, gt=0)
    """How far a ratio may rise above 1 and still earn; if not said, the method's own: 0.28 for dapo, else ``clip``."""
    overlong: int | None = Field(None, ge=0)
    """Tokens before the longest possible answer over which a late end costs up to 1 of the score; if not said, the
    method's own: a fifth of max_new_tokens for dapo, else 0."""
    sampling_rounds: int = Field(4, ge=1)
    """How often dapo samples at most for one experience; the others do once."""

    @model_validator(mode="after")
    def _fits(self) -> GRPOSettings:
        self.in_groups_of(self.group_size)
        if self.group_size == 1 and self.method != "reinforce":
            raise ValueError(f"{self.method} compares answers to one prompt: group_size must be 2 or more")
        if self.method == "reinforce" and (self.epochs > 1 or self.mini_batch < self.batch_size):
            raise ValueError(
                "reinforce takes one step per experience, since its gradient holds for the policy that sampled alone: "
                "set epochs to 1 and mini_batch to batch_size"
            )
        return self

    @model_validator(mode="after")
    def _are_read(self) -> GRPOSettings:
        for name, why in unread(self.method).items():
            value, usual = getattr(self, name), type(self).model_fields[name].default
            if value != usual and (name, value) != ("sampling_rounds", 1):  # which is what they do
                raise ValueError(f"{name} says nothing to {self.method}, which {why}; leave it out")
        return self


def grpo(stage: Stage) -> dict[str, Any]:
    """Run GRPO or one of its kin, or go on with it.

    Returns:
        The looks before and after, the iteration that was kept, alarms, and speed.
    """
    settings = cast(GRPOSettings, stage.settings)
    return practise(stage, lambda policy, world: Grouped(policy, settings, world))


@dataclass(frozen=True)
class Compared(Scored):
    """``Scored`` with (B, 1) advantages, one per answer, and the KL coefficient that the loss is to pay."""

    beta: float


class Grouped(Learner):
    """A policy alone.

    Args:
        policy: a copy of the SFT model, trained in place.
        settings: of the stage.
        world: the processes that learn together.
    """

    settings: GRPOSettings
    reading = siblings

    def __init__(self, policy: Decoder, settings: GRPOSettings, world: World = ALONE) -> None:
        super().__init__("grpo", policy, settings, world)
        self.method = METHODS[settings.method]
        self.per_prompt = settings.group_size
        self.rounds = settings.sampling_rounds if self.method.refill else 1
        margin = round(self.method.margin * settings.max_new_tokens)
        self._margin = margin if settings.overlong is None else settings.overlong
        self._clip_high = self.method.clip_high if settings.clip_high is None else settings.clip_high
        self._seen = RunningMean()

    def score(self, experience: Experience, reference: Decoder, beta: float) -> Compared:
        """Log-probabilities, and each answer's score against the method's baseline."""
        old, frozen, opening = self._old_logprobs(experience, reference)
        lengths = experience.sequences.mask.sum(1)
        scores = experience.scores + losses.overlong_penalty(lengths, self.settings.max_new_tokens, self._margin)
        if self.method.kl == "score":
            scores = scores - beta * losses.kl_k1(old, frozen).sum(1)
        advantages = self._advantages(scores, groups_of(experience)) * self.tells(experience)
        self._seen = self._seen.update(scores)
        paid = beta if self.method.kl == "loss" else 0.0
        return Compared(experience, old, frozen, advantages[:, None], paid, opening=opening)

    def tells(self, experience: Experience) -> Tensor:
        """(B,) bool, whether an answer was scored otherwise than one that it is compared with."""
        if self.method.baseline == "running":
            return super().tells(experience)
        return losses.telling(experience.scores, groups_of(experience))

    def summary(self, scored: Compared) -> dict[str, float]:
        """What every learner tells, and the share of answers whose prompt says something."""
        return super().summary(scored) | {"telling": float(self.tells(scored.experience).float().mean())}

    def state(self) -> dict[str, Any]:
        """The baseline that remembers."""
        return {"seen": asdict(self._seen)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""
        self._seen = RunningMean(**state["seen"])

    def _advantages(self, scores: Tensor, groups: Tensor) -> Tensor:
        match self.method.baseline:
            case "running":
                return scores - self._seen.mean
            case "others":
                return losses.leave_one_out(scores, groups)
            case kind:
                return losses.group_advantages(scores, groups, scale=kind == "scaled")

    def _policy_loss(
        self, logprobs: Tensor, scored: Compared, rows: Tensor, n_answers: int, n_tokens: Tensor
    ) -> PolicyLoss:
        mask, old = scored.mask[rows], scored.logprobs[rows]
        weights = losses.answer_weights(
            mask.sum(1), self.method.per, n_answers, int(n_tokens), self.settings.max_new_tokens
        )[:, None]
        weighted = weights * scored.advantages[rows]
        result = losses.ppo_policy_loss(logprobs, old, weighted, mask, self.settings.clip, None, self._clip_high)
        if not self.method.clipped:
            plain = losses.policy_gradient_loss(logprobs, weighted, mask)
            result = PolicyLoss(plain, torch.zeros_like(result.clipped), result.approx_kl)
        if scored.beta:
            kl = losses.kl_k3(logprobs, scored.reference[rows]).masked_fill(~mask, 0.0)
            result = result._replace(loss=result.loss + scored.beta * (weights * kl).sum())
        return result


def groups_of(experience: Experience) -> Tensor:
    """(B,) int64, which prompt each answer is to; answers to one prompt that was drawn twice are one group."""
    numbers: dict[tuple[int, ...], int] = {}
    found = [numbers.setdefault(prompt.ids, len(numbers)) for prompt in experience.prompts]
    return torch.tensor(found, device=experience.scores.device)
