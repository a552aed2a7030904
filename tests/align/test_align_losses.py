"""Every formula against numbers worked out by hand or by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from danlu.align import losses


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_bradley_terry_is_the_mean_of_pair_losses_without_ties() -> None:
    rewards = torch.tensor([[2.0, 0.5, -1.0]])
    ranks = torch.tensor([[0, 1, 2]])
    pairs = [softplus(-(2.0 - 0.5)), softplus(-(2.0 + 1.0)), softplus(-(0.5 + 1.0))]
    torch.testing.assert_close(losses.bradley_terry(rewards, ranks), torch.tensor([sum(pairs) / 3]))


def test_bradley_terry_skips_ties_and_absent_answers() -> None:
    rewards = torch.tensor([[1.0, 3.0, 3.0], [1.0, 2.0, 99.0], [5.0, 7.0, 9.0]])
    ranks = torch.tensor([[1, 0, 0], [1, 0, -1], [0, 0, 0]])
    expected = [2 * softplus(-2.0) / 3, softplus(-1.0), 0.0]
    torch.testing.assert_close(losses.bradley_terry(rewards, ranks), torch.tensor(expected))


def test_a_margin_is_asked_for_every_rank_between_two_answers() -> None:
    rewards, ranks = torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([[0, 1, 2]])
    pairs = [softplus(-(1.5 - 0.4)), softplus(-(3.0 - 0.8)), softplus(-(1.5 - 0.4))]
    torch.testing.assert_close(losses.bradley_terry(rewards, ranks, margin=0.4), torch.tensor([sum(pairs) / 3]))


def test_davidson_gives_a_tie_its_share_of_the_odds() -> None:
    rewards = torch.tensor([[1.0, 1.5, -1.0], [0.0, 0.0, 9.0]])
    ranks = torch.tensor([[0, 0, 1], [0, 0, -1]])
    nu = 0.5

    def odds(lead: float) -> tuple[float, float, float]:
        return math.exp(lead / 2), nu, math.exp(-lead / 2)

    tie = -math.log(nu / sum(odds(0.5)))
    wins = [-math.log(odds(lead)[0] / sum(odds(lead))) for lead in (2.0, 2.5)]
    expected = [(tie + sum(wins)) / 3, -math.log(0.5 / 2.5)]
    torch.testing.assert_close(losses.davidson(rewards, ranks, torch.tensor(math.log(nu))), torch.tensor(expected))


def test_davidson_without_ties_is_bradley_terry_and_pulls_those_who_tie_together() -> None:
    rewards, ranks = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1, 0, 2]])
    never = torch.tensor(-80.0)
    torch.testing.assert_close(losses.davidson(rewards, ranks, never, 0.3), losses.bradley_terry(rewards, ranks, 0.3))
    apart = torch.tensor([[1.0, -2.0]], requires_grad=True)
    log_nu = torch.tensor(0.0, requires_grad=True)
    losses.davidson(apart, torch.tensor([[0, 0]]), log_nu).sum().backward()
    assert apart.grad is not None
    assert log_nu.grad is not None
    assert apart.grad[0, 0] > 0 > apart.grad[0, 1]
    assert log_nu.grad < 0  # a tie that was not expected asks for a larger nu


def test_centring_is_the_mean_square_of_sums_of_pairs() -> None:
    rewards, ranks = torch.tensor([[1.0, -0.5, 2.0], [1.0, 3.0, 99.0]]), torch.tensor([[0, 0, 1], [0, 1, -1]])
    torch.testing.assert_close(losses.centring(rewards, ranks), torch.tensor([(0.25 + 9.0 + 2.25) / 3, 16.0]))


def test_absent_answers_get_no_gradient() -> None:
    rewards = torch.tensor([[1.0, 2.0, 99.0]], requires_grad=True)
    losses.bradley_terry(rewards, torch.tensor([[1, 0, -1]])).sum().backward()
    assert rewards.grad is not None
    assert rewards.grad[0, 2] == 0.0
    assert rewards.grad[0, 0] > 0.0 > rewards.grad[0, 1]


def test_kl_estimators_agree_with_the_exact_kl_in_expectation() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * losses.kl_k1(p.log(), q.log())).sum(), exact)
    torch.testing.assert_close((p * losses.kl_k3(p.log(), q.log())).sum(), exact)
    assert (losses.kl_k3(p.log(), q.log()) >= 0).all()


def test_whiten_ignores_padding_and_can_keep_the_mean() -> None:
    x = torch.tensor([[1.0, 3.0, 1e9], [5.0, 1e9, 1e9]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    white = losses.whiten(x, mask)
    deviation = math.sqrt(8 / 3)
    expected = torch.tensor([[-2 / deviation, 0.0, 0.0], [2 / deviation, 0.0, 0.0]])
    torch.testing.assert_close(white, expected)
    torch.testing.assert_close(losses.whiten(x, mask, shift_mean=False)[mask], expected[mask] + 3.0)


def test_the_last_token_gets_the_score_and_every_token_pays_for_kl() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.tensor([[0.1, 0.2, 7.0], [0.0, -0.5, 0.4]])
    rewards = losses.token_rewards(torch.tensor([2.0, -1.0]), kl, mask, beta=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 1.9, 0.0], [0.0, 0.25, -1.2]]))


def brute_force_advantage(rewards: list[float], values: list[float], gamma: float, lam: float, t: int) -> float:
    """The definition: an exponentially weighted mean of all n-step advantages (arXiv 1506.02438, eq. 11-16)."""
    n, ahead = len(rewards), [*values, 0.0]
    deltas = [rewards[i] + gamma * ahead[i + 1] - values[i] for i in range(n)]
    return sum((gamma * lam) ** (i - t) * deltas[i] for i in range(t, n))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_brute_force_on_rows_of_different_lengths(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    lengths = [5, 3, 1]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    advantages, returns = losses.gae(rewards.masked_fill(~mask, 0.0), values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        r, v = rewards[row, :length].tolist(), values[row, :length].tolist()
        expected = torch.tensor([brute_force_advantage(r, v, gamma, lam, t) for t in range(length)])
        torch.testing.assert_close(advantages[row, :length], expected)
        torch.testing.assert_close(returns[row, :length], expected + torch.tensor(v))
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def policy_loss(ratio: float, advantage: float) -> tuple[float, float]:
    """Loss and gradient by the new log-prob of a single token with this ratio."""
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = losses.ppo_policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, 0.2, 3.0)
    (gradient,) = torch.autograd.grad(result.loss, new)
    return result.loss.item(), gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside the clip: plain
        (1.5, 2.0, -2.4, 0.0),  # gone far enough the right way
        (0.5, 2.0, -1.0, -1.0),  # gone the wrong way: full gradient back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        (4.0, -2.0, 6.0, 0.0),  # dual clip: capped at 3 * 2
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert policy_loss(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-5)


def test_policy_loss_counts_clipped_tokens_and_measures_k3() -> None:
    new = torch.tensor([[math.log(1.5), math.log(1.1), 50.0]])
    mask = torch.tensor([[True, True, False]])
    result = losses.ppo_policy_loss(new, torch.zeros(1, 3), torch.ones(1, 3), mask, 0.2, 3.0)
    assert result.clipped.item() == 1
    assert result.approx_kl.item() == pytest.approx(0.5 - math.log(1.5) + 0.1 - math.log(1.1), abs=1e-6)


def test_value_loss_by_hand() -> None:
    values, old, returns = (torch.tensor([row]) for row in ([1.0, 0.1, 9.0], [0.0, 0.0, 9.0], [2.0, 0.0, 0.0]))
    mask = torch.tensor([[True, True, False]])
    loss = losses.ppo_value_loss(values, old, returns, mask, 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.2 - 2.0) ** 2 + 0.5 * 0.1**2)


@pytest.mark.parametrize("name", ["policy", "value"])
def test_masked_tokens_get_no_gradient_and_splitting_changes_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, old, target = (torch.randn(4, 6, generator=generator) for _ in range(3))
    mask = torch.arange(6) < torch.tensor([6, 2, 4, 1])[:, None]

    def loss(rows: slice) -> tuple[Tensor, Tensor]:
        new = x[rows].clone().requires_grad_()
        if name == "policy":
            total = losses.ppo_policy_loss(new, old[rows], target[rows], mask[rows], 0.2, 3.0).loss
        else:
            total = losses.ppo_value_loss(new, old[rows], target[rows], mask[rows], 0.2)
        (gradient,) = torch.autograd.grad(total, new)
        return total.detach(), gradient

    whole, gradient = loss(slice(0, 4))
    parts = [loss(slice(0, 1)), loss(slice(1, 4))]
    assert (gradient[~mask] == 0).all()
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0])
    torch.testing.assert_close(gradient, torch.cat([part[1] for part in parts]))


def test_beta_moves_the_right_way_slowly_and_within_bounds() -> None:
    start = losses.AdaptiveKL(beta=0.1, target=6.0, horizon=10_000)
    assert start.update(60.0, 1000).beta == pytest.approx(0.1 * (1 + 0.2 * 0.1))  # the error is clipped to 0.2
    assert start.update(6.6, 1000).beta == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert start.update(0.0, 1000).beta == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert start.update(6.0, 1000).beta == pytest.approx(0.1)
    assert losses.AdaptiveKL(0.999, 1.0, 100).update(5.0, 100).beta == 1.0
    assert losses.AdaptiveKL(0.1, 6.0, 0).update(99.0, 100).beta == 0.1
