"""The formulas of alignment, each a pure function of tensors with its paper beside it.

In:  numbers that models said; no model, no tokenizer, no order of steps.
Out: losses, advantages, rewards: ``ranking`` (people's rankings), ``policy`` (the policy's own samples).
Left out: who calls them (``reward``, ``learner``).
"""

from danlu.align.losses.policy import (
    AdaptiveKL,
    Mismatch,
    PolicyLoss,
    gae,
    importance_weights,
    kl_k1,
    kl_k3,
    masked_mean,
    mismatch,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
    whiten,
)
from danlu.align.losses.ranking import bradley_terry

__all__ = [
    "AdaptiveKL",
    "Mismatch",
    "PolicyLoss",
    "bradley_terry",
    "gae",
    "importance_weights",
    "kl_k1",
    "kl_k3",
    "masked_mean",
    "mismatch",
    "ppo_policy_loss",
    "ppo_value_loss",
    "token_rewards",
    "whiten",
]
