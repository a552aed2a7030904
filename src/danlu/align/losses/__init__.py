"""The formulas of alignment, each a pure function of tensors with its paper beside it.

In:  numbers that models said; no model, no tokenizer, no order of steps.
Out: losses, advantages, rewards: ``ranking`` (people's rankings), ``policy`` (the policy's own samples), ``direct``
    (preferences without samples).
Left out: who calls them (``reward``, ``learner``, ``dpo``).
"""

from danlu.align.losses.direct import dpo, ipo, kl_baseline, kto, orpo, simpo
from danlu.align.losses.policy import (
    AdaptiveKL,
    PolicyLoss,
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
    whiten,
)
from danlu.align.losses.ranking import bradley_terry, mean_over_pairs

__all__ = [
    "AdaptiveKL",
    "PolicyLoss",
    "bradley_terry",
    "dpo",
    "gae",
    "ipo",
    "kl_baseline",
    "kl_k1",
    "kl_k3",
    "kto",
    "masked_mean",
    "mean_over_pairs",
    "orpo",
    "ppo_policy_loss",
    "ppo_value_loss",
    "simpo",
    "token_rewards",
    "whiten",
]
