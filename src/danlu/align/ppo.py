"""Stage ``ppo``: practise, be scored, learn with a critic; stay near the SFT model.

In:  the SFT model (policy and reference), the reward model (score, and the critic's trunk), training prompts.
Out: ``model/``, ``metrics.jsonl`` with a line per iteration, ``monitor.json`` with the looks from outside.
Left out: the formulas (``losses``), the update of the policy (``learner``), the iterations (``practice``).

Four models in one process (``trunk``): policy, reference, reward model, critic (InstructGPT, arXiv 2203.02155, section
3.5; the details that decide whether it works are those of Huang et al., arXiv 2403.17031). Policy and critic share no
weight that is trained, so no coefficient balances their losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from danlu.align import losses, scoring, trunk
from danlu.align.answering import PracticeSettings
from danlu.align.learner import Learner, Scored
from danlu.align.losses import PolicyLoss
from danlu.align.practice import practise
from danlu.align.rollout import Experience
from danlu.align.scoring import Opening
from danlu.model.decoder import Decoder
from danlu.run import Stage
from danlu.train.parallel import ALONE, World


class PPOSettings(PracticeSettings):
    """The section ``ppo``."""

    critic_lr: float = Field(2e-4, gt=0)
    """The critic's learning rate, falling linearly to 0."""
    clip: float = Field(0.2, gt=0)
    """Ratios beyond 1 -+ this earn nothing more."""
    dual_clip: float = Field(3.0, gt=1)
    """The loss of a token with negative advantage is capped at this times the advantage."""
    value_clip: float = Field(0.2, gt=0)
    """How far a value may move from its old self within an iteration."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda."""


def ppo(stage: Stage) -> dict[str, Any]:
    """Run PPO, or go on with it.

    Returns:
        The looks before and after, the iteration that was kept, alarms, and speed.
    """
    settings = cast(PPOSettings, stage.settings)

    def learner(policy: Decoder, world: World) -> ActorCritic:
        return ActorCritic(policy, trunk.critic(stage, policy, settings.adapter), settings, world)

    return practise(stage, learner)


@dataclass(frozen=True)
class Valued(Scored):
    """What PPO knows of an experience before the update; ``advantages`` are whitened over the whole batch.

    Attributes:
        values: (B, R) of the critic.
        returns: (B, R) what the critic should have said.
        opening_values: ``values`` of the first step.
    """

    values: Tensor
    returns: Tensor
    opening_values: Opening


class ActorCritic(Learner):
    """Policy and critic.

    Args:
        policy: a copy of the SFT model, trained in place.
        critic: a copy of the reward model, trained in place.
        settings: of the stage.
        world: the processes that learn together.

    The critic keeps the reward model's trunk and gets a head of zeros (Huang et al., "The N implementation details of
    RLHF with PPO"). The reward model's head has only ever been read at the end of an answer; in the middle it says
    anything, and unlearning that took a third of a short run (explained variance -4.7 at first, 0 after ten iterations
    of 192 poems). Zero is the mean of the normalised score.
    """

    settings: PPOSettings

    def __init__(self, policy: Decoder, critic: Decoder, settings: PPOSettings, world: World = ALONE) -> None:
        super().__init__("ppo", policy, settings, world, critic=critic)
        self.critic = critic
        torch.nn.init.zeros_(critic.score.weight)

    def score(self, experience: Experience, reference: Decoder, beta: float) -> Valued:
        """Log-probabilities, values, rewards with their KL share, advantages."""
        options, sequences = self.settings, experience.sequences
        old, frozen, opening = self._old_logprobs(experience, reference)
        steps = self._first_epoch(sequences)
        values, opening_values = scoring.opened(scoring.response_values, self.critic, sequences, steps, self.world)
        rewards = losses.token_rewards(experience.scores, losses.kl_k1(old, frozen), sequences.mask, beta)
        advantages, returns = losses.gae(rewards, values, sequences.mask, options.gamma, options.lam)
        white = losses.whiten(advantages, sequences.mask)
        return Valued(experience, old, frozen, white, values, returns, opening_values, opening=opening)

    def summary(self, scored: Valued) -> dict[str, float]:
        """What every learner tells, and how much the critic foresaw."""
        return super().summary(scored) | {"explained_variance": explained_variance(scored)}

    def _policy_loss(
        self, logprobs: Tensor, scored: Valued, rows: Tensor, n_answers: int, n_tokens: Tensor
    ) -> PolicyLoss:
        return losses.ppo_policy_loss(
            logprobs, scored.logprobs[rows], scored.advantages[rows], scored.mask[rows], self.settings.clip,
            self.settings.dual_clip,
        )  # fmt: skip

    def _further_step(self, scored: Valued, index: Tensor, decay: float) -> dict[str, float]:
        """One optimizer step of the critic."""
        options, sequences, total = self.settings, scored.experience.sequences, 0.0
        n_tokens = scored.mask[index].sum()
        for rows in self.world.deal(self._micro_batches(sequences, index)):
            known = scored.opening_values.take(rows)
            values = scoring.response_values(self.critic, sequences.rows(rows)) if known is None else known
            loss = losses.ppo_value_loss(
                values, scored.values[rows], scored.returns[rows], scored.mask[rows], options.value_clip
            )
            (loss / n_tokens).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        (total,) = self.world.sum_numbers([total], n_tokens.device)
        norm = self._step("critic", options.critic_lr * decay, "critic_lr")
        return {"value_loss": total / int(n_tokens), "critic_norm": norm}


def explained_variance(scored: Valued) -> float:
    """Share of the returns' variance that the critic foresaw: 1 perfect, 0 no better than a constant."""
    mask = scored.mask
    returns, errors = scored.returns[mask], (scored.returns - scored.values)[mask]
    variance = returns.var(correction=0)
    return float(1.0 - errors.var(correction=0) / variance) if variance > 0 else 0.0
