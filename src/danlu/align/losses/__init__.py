"""The formulas of alignment, each a pure function of tensors with its paper beside it.

In:  numbers that models said; no model, no tokenizer, no order of steps.
Out: losses, advantages, rewards: ``ranking`` (people's rankings), ``policy`` (the policy's own samples), ``group``
(the same without a critic), ``direct`` (preferences without samples).
Left out: who calls them (``reward``, ``learner``, ``dpo``).
"""

from danlu.align.losses.direct import dpo, ipo, kl_baseline, kto, orpo, simpo
from danlu.align.losses.group import (
    Per,
    RunningMean,
    answer_weights,
    best_and_worst,
    best_of_n_kl,
    group_advantages,
    leave_one_out,
    overlong_penalty,
    policy_gradient_loss,
    telling,
)
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
from danlu.align.losses.ranking import bradley_terry, centring, davidson, mean_over_pairs

__all__ = [
    "AdaptiveKL",
    "Mismatch",
    "Per",
    "PolicyLoss",
    "RunningMean",
    "answer_weights",
    "best_and_worst",
    "best_of_n_kl",
    "bradley_terry",
    "centring",
    "davidson",
    "dpo",
    "gae",
    "group_advantages",
    "importance_weights",
    "ipo",
    "kl_baseline",
    "kl_k1",
    "kl_k3",
    "kto",
    "leave_one_out",
    "masked_mean",
    "mean_over_pairs",
    "mismatch",
    "orpo",
    "overlong_penalty",
    "policy_gradient_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "simpo",
    "telling",
    "token_rewards",
    "whiten",
]
