"""Formulas without a critic, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from danlu.align import losses

SCORES = torch.tensor([1.0, 3.0, 2.0, 2.0, 7.0])
GROUPS = torch.tensor([0, 0, 4, 4, 4])


def test_a_group_of_equal_scores_says_nothing() -> None:
    scores = torch.tensor([0.1, 0.1, 0.1, 2.0, 5.0, 3.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    assert losses.telling(scores, groups).tolist() == [False, False, False, True, True, False]
    for advantages in (losses.group_advantages(scores, groups, scale=True), losses.leave_one_out(scores, groups)):
        assert (advantages[[0, 1, 2, 5]] == 0.0).all()  # to the last bit: three times 0.1 has a mean that is not 0.1
        assert (advantages[[3, 4]] != 0.0).all()


def test_the_best_and_the_worst_of_a_group_are_a_pair() -> None:
    scores = torch.tensor([0.1, 5.0, 0.1, 2.0, 4.0, 3.0, 4.0, 9.0])
    groups = torch.tensor([0, 1, 0, 1, 2, 2, 2, 3])
    assert losses.best_and_worst(scores, groups).tolist() == [[1, 3], [4, 5]]  # equals, and one alone, are none
    assert losses.best_and_worst(scores[:1], groups[:1]).shape == (0, 2)


def test_group_advantages_by_hand() -> None:
    plain = torch.tensor([-1.0, 1.0, -5 / 3, -5 / 3, 10 / 3])
    torch.testing.assert_close(losses.group_advantages(SCORES, GROUPS, scale=False), plain)
    deviations = torch.tensor([math.sqrt(2)] * 2 + [math.sqrt(25 / 3)] * 3)  # of samples: n - 1
    torch.testing.assert_close(losses.group_advantages(SCORES, GROUPS, scale=True), plain / (deviations + 1e-4))


def test_leave_one_out_by_hand() -> None:
    expected = torch.tensor([-2.0, 2.0, 2 - 4.5, 2 - 4.5, 5.0])
    torch.testing.assert_close(losses.leave_one_out(SCORES, GROUPS), expected)


def test_the_running_mean_is_that_of_all_scores_so_far() -> None:
    seen = losses.RunningMean().update(torch.tensor([1.0, 2.0]))
    assert (seen.mean, seen.n) == (1.5, 2)
    assert seen.update(torch.tensor([4.0])).mean == pytest.approx(7 / 3)


def test_the_policy_gradient_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -9.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    loss = losses.policy_gradient_loss(logprobs, torch.tensor([[2.0], [-1.0]]), mask)
    assert loss.item() == pytest.approx(2.0 * 3.0 - 0.5)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == [[-2.0, -2.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("answer", (3 / 2 + 2 / 4 + 6 / 6) / 3),  # the mean of means
        ("token", (3 + 2 + 6) / 12),
        ("constant", (3 + 2 + 6) / (3 * 10)),
        ("none", (3 + 2 + 6) / 3),
    ],
)
def test_what_the_loss_is_a_mean_over(per: losses.Per, expected: float) -> None:
    lengths, sums = torch.tensor([2, 4, 6]), torch.tensor([3.0, 2.0, 6.0])  # of three answers, and of their losses
    weights = losses.answer_weights(lengths, per, n_answers=3, n_tokens=12, longest=10)
    assert float((weights * sums).sum() / 12) == pytest.approx(expected)
    parts = [losses.answer_weights(part, per, 3, 12, 10) for part in lengths.split(2)]
    torch.testing.assert_close(torch.cat(parts), weights)  # however the step is split


@pytest.mark.parametrize(("length", "penalty"), [(2, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (10, -1.0)])
def test_a_late_end_costs_more_and_more(length: int, penalty: float) -> None:
    assert losses.overlong_penalty(torch.tensor([length]), longest=10, margin=4).item() == penalty
    assert losses.overlong_penalty(torch.tensor([length]), longest=10, margin=0).item() == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [(1.25, 2.0, -2.5, -2.5), (1.5, 2.0, -2.56, 0.0), (0.5, -2.0, 1.6, 0.0), (4.0, -2.0, 8.0, 8.0)],
)
def test_ratios_may_rise_further_than_they_may_fall(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    found = losses.ppo_policy_loss(new, torch.zeros(1, 1), torch.tensor([[advantage]]), mask, 0.2, None, 0.28)
    (by_new,) = torch.autograd.grad(found.loss, new)
    assert (found.loss.item(), by_new.item()) == pytest.approx((loss, gradient), abs=1e-5)


def test_how_far_the_best_of_n_is() -> None:
    assert losses.best_of_n_kl(1) == 0.0
    assert losses.best_of_n_kl(4) == pytest.approx(1.386294 - 0.75, abs=1e-6)


def test_the_bound_of_the_best_of_n_is_the_kl_where_no_two_answers_score_alike() -> None:
    """Of many equally likely answers the best of n is the k-th with probability (k/N)^n - ((k-1)/N)^n."""
    n, answers = 5, torch.arange(0, 200_001, dtype=torch.float64) / 200_000
    best = (answers**n).diff()
    exact = float((best * (best * 200_000).log()).nansum())
    assert losses.best_of_n_kl(n) == pytest.approx(exact, abs=1e-3)
