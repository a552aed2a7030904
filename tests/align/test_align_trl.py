"""Our formulas against numbers that TRL's own code gave on the same batch.

GRPO's losses are those of ``GRPOTrainer._compute_loss`` of trl 1.16.0, epsilon 0.2 and 0.28, called with this batch in
place of a model. PPO's are those of the lines of ``experimental/ppo/ppo_trainer.py`` of trl 1.12.0, the last with it.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from danlu.align import losses

LENGTHS = torch.tensor([5, 3, 4, 2, 5, 1])
MASK = torch.arange(5) < LENGTHS[:, None]
SCORES = torch.tensor([1.0, 0.2, -0.5, 0.3, 2.0, 0.1])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
K = torch.arange(30, dtype=torch.float32).view(6, 5)


class Logprobs(NamedTuple):
    """Made without random numbers, so that anybody can make them."""

    new: Tensor = -2 + torch.sin(K)
    old: Tensor = -2 + torch.sin(K) - 0.3 * torch.cos(2 * K)
    reference: Tensor = -2 + torch.sin(K) + 0.25 * torch.sin(3 * K + 1)


@pytest.mark.parametrize(
    ("per", "scale", "beta", "loss", "gradient"),
    [
        ("answer", True, 0.0, 0.0668272, 0.2009495),  # loss_type grpo
        ("answer", True, 0.04, 0.0673980, 0.2002683),
        ("constant", False, 0.0, -0.1020609, 0.0726901),  # dr_grpo
        ("constant", False, 0.04, -0.1017827, 0.0727230),
        ("token", True, 0.0, -0.2195040, 0.1703714),  # dapo
        ("token", True, 0.04, -0.2189197, 0.1704522),
    ],
)
def test_grpo_is_trls(per: losses.Per, scale: bool, beta: float, loss: float, gradient: float) -> None:
    new, old, reference = Logprobs()
    new = new.clone().requires_grad_()
    advantages = losses.group_advantages(SCORES, GROUPS, scale)
    weights = losses.answer_weights(LENGTHS, per, n_answers=6, n_tokens=20, longest=7)[:, None]
    found = losses.ppo_policy_loss(new, old, weights * advantages[:, None], MASK, 0.2, None, 0.28).loss
    kl = losses.kl_k3(new, reference).masked_fill(~MASK, 0.0)
    total = (found + beta * (weights * kl).sum()) / 20
    (by_new,) = torch.autograd.grad(total, new)
    assert (total.item(), by_new.norm().item()) == pytest.approx((loss, gradient), abs=2e-6)


def test_ppo_is_trls() -> None:
    new, old, _ = Logprobs()
    new = new.clone().requires_grad_()
    values = torch.cos(K) * MASK
    kl = -0.1 * torch.sin(5 * K)  # with a coefficient of 1 the reward of every token
    rewards = losses.token_rewards(SCORES, kl, MASK, beta=1.0)
    advantages, returns = losses.gae(rewards, values, MASK, 1.0, 0.95)
    white = losses.whiten(advantages, MASK) * (19 / 20) ** 0.5  # TRL divides by n - 1
    expected = [-0.667346, -0.313029, 0.530073, 1.081121, 0.844386, -0.595047, -1.127759, -0.920336]
    torch.testing.assert_close(white[MASK][:8], torch.tensor(expected), rtol=0, atol=2e-6)
    policy = losses.ppo_policy_loss(new, old, white, MASK, 0.2, None).loss / 20
    predicted = (torch.cos(K) + 0.3 * torch.sin(7 * K)).requires_grad_()
    value = losses.ppo_value_loss(predicted, values, returns, MASK, 0.2) / 20
    (policy + value).backward()
    assert new.grad is not None
    assert predicted.grad is not None
    found = (policy.item(), new.grad.norm().item(), value.item(), predicted.grad.norm().item())
    assert found == pytest.approx((0.0601677, 0.2025398, 1.0519426, 0.2969789), abs=2e-6)
