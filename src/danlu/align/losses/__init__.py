"""The formulas of alignment, each a pure function of tensors with its paper beside it.

In:  numbers that models said; no model, no tokenizer, no order of steps.
Out: losses, advantages, rewards: ``ranking`` (people's rankings), ``policy`` (the policy's own samples), ``group``
(the same without a critic).
Left out: who calls them (``reward``, ``learner``).
"""

from danlu.align.losses.group import (
    Per,
    RunningMean,
    answer_weights,
    best_of_n_kl,
    group_advantages,
    leave_one_out,
    overlong_penalty,
    policy_gradient_loss,
    telling,
)
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
from danlu.align.losses.ranking import bradley_terry, centring, davidson, mean_over_pairs

__all__ = [
    "AdaptiveKL",
    "Per",
    "PolicyLoss",
    "RunningMean",
    "answer_weights",
    "best_of_n_kl",
    "bradley_terry",
    "centring",
    "davidson",
    "gae",
    "group_advantages",
    "kl_k1",
    "kl_k3",
    "leave_one_out",
    "masked_mean",
    "mean_over_pairs",
    "overlong_penalty",
    "policy_gradient_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "telling",
    "token_rewards",
    "whiten",
]
