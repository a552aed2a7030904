"""The formulas of learning without samples, each against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from danlu.align import losses


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def one(value: float) -> Tensor:
    return torch.tensor([value])


def test_dpo_is_the_log_odds_of_the_margin() -> None:
    assert losses.dpo(one(0.0), one(0.0), 0.1).item() == pytest.approx(math.log(2))
    assert losses.dpo(one(3.0), one(-1.0), 0.5).item() == pytest.approx(softplus(-2.0))


def test_cdpo_stops_where_the_odds_are_those_of_a_wrong_label() -> None:
    smoothed = 0.9 * softplus(-2.0) + 0.1 * softplus(2.0)
    assert losses.dpo(one(3.0), one(-1.0), 0.5, 0.1).item() == pytest.approx(smoothed)
    margin = torch.tensor([math.log(9.0)], requires_grad=True)
    losses.dpo(margin, one(0.0), 1.0, 0.1).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_ipo_asks_for_a_margin_and_no_more() -> None:
    assert losses.ipo(one(5.5), one(0.5), 0.1).item() == pytest.approx(0.0)
    assert losses.ipo(one(7.5), one(0.5), 0.1).item() == pytest.approx(4.0)
    assert losses.ipo(one(0.0), one(0.0), 0.1).item() == pytest.approx(25.0)


def test_kto_weighs_gains_and_losses_about_the_baseline() -> None:
    ratios, good = torch.tensor([4.0, 4.0]), torch.tensor([True, False])
    found = losses.kto(ratios, good, torch.tensor(2.0), 0.5, 1.0, 1.5)
    sigmoid = 1 / (1 + math.exp(-1.0))  # 0.5 * (4 - 2)
    torch.testing.assert_close(found, torch.tensor([1 - sigmoid, 1.5 * sigmoid]))


def test_ktos_baseline_is_a_mean_that_is_never_negative_and_learns_nothing() -> None:
    ratios = torch.tensor([3.0, -1.0, 1.0], requires_grad=True)
    found = losses.kl_baseline(ratios)
    assert found.item() == 1.0
    assert not found.requires_grad
    assert losses.kl_baseline(torch.tensor([-3.0, 1.0])).item() == 0.0


def test_orpo_adds_the_likelihood_to_the_odds_ratio() -> None:
    chosen, rejected = math.log(0.5), math.log(0.2)  # odds 1 and 1/4
    expected = -chosen + 0.1 * softplus(-math.log(4.0))
    assert losses.orpo(one(chosen), one(rejected), 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_orpo_is_finite_for_an_answer_that_is_certain() -> None:
    mean = torch.zeros(1, requires_grad=True)
    losses.orpo(mean, one(-1.0), 0.1).sum().backward()
    assert mean.grad is not None
    assert torch.isfinite(mean.grad).all()


def test_simpo_asks_for_a_margin_per_token() -> None:
    assert losses.simpo(one(-1.0), one(-2.0), 2.0, 0.5).item() == pytest.approx(softplus(-1.5))


def test_pairs_of_a_ranking_share_its_weight_and_ties_have_none() -> None:
    x = torch.tensor([[2.0, 0.5, -1.0], [2.0, 0.5, 9.0], [1.0, 1.0, 0.0]])
    ranks = torch.tensor([[0, 1, 2], [0, 1, -1], [0, 0, 1]])
    pairs = losses.dpo(x[:, :, None], x[:, None, :], 1.0)
    found = losses.mean_over_pairs(pairs, ranks)
    expected = [(softplus(-1.5) + softplus(-3.0) + softplus(-1.5)) / 3, softplus(-1.5), 2 * softplus(-1.0) / 3]
    torch.testing.assert_close(found, torch.tensor(expected))
