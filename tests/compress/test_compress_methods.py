"""Quantisation and pruning of single matrices, against oracles that are nothing but linear algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danlu.compress.prune import lowest, magnitude
from danlu.compress.sparsegpt import sparsegpt


def problem(rows: int, columns: int, seed: int = 0, n: int = 400) -> tuple[Tensor, Tensor]:
    """A weight matrix and the Hessian of correlated inputs, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(n, columns, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight, inputs.T @ inputs


def output_error(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    change = before - after
    return float(((change @ hessian) * change).sum())


def brute_force(weight: Tensor, hessian: Tensor, sparsity: float, block: int) -> Tensor:
    """Optimal brain surgeon column by column: a fresh inverse and a fresh least-squares solve at every step."""
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    result = weight.clone()
    rows, columns = weight.shape
    for start in range(0, columns, block):
        end = min(start + block, columns)
        saved = [torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(start, end)]
        cost = torch.stack([result[:, start + k] ** 2 / saved[k] for k in range(end - start)], dim=1)
        count = round(sparsity * rows * end) - round(sparsity * rows * start)
        chosen = set(cost.flatten().argsort()[:count].tolist())
        for j in range(start, end):
            for row in range(rows):
                if row * (end - start) + j - start not in chosen:
                    continue
                lost = result[row, j].item()
                result[row, j] = 0
                right = torch.arange(j + 1, columns)
                if len(right):
                    result[row, right] += lost * torch.linalg.solve(hessian[right][:, right], hessian[right, j])
    return result


@pytest.mark.parametrize("block", [1, 3, 8, 128])
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_sparsegpt_equals_brute_force_surgeon(block: int, sparsity: float) -> None:
    weight, hessian = problem(6, 8)
    expected = brute_force(weight, hessian, sparsity, block)
    torch.testing.assert_close(sparsegpt(weight, hessian, sparsity, block=block), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_sparsegpt_loses_less_than_magnitude_and_no_less_than_the_optimum_for_its_mask(seed: int) -> None:
    weight, hessian = problem(24, 40, seed)
    pruned = sparsegpt(weight, hessian, 0.5, block=16)
    error = output_error(weight, pruned, hessian)
    assert error < output_error(weight, magnitude(weight, 0.5), hessian)
    best = 0.0
    for row in range(len(weight)):
        kept = (pruned[row] != 0).nonzero()[:, 0]
        solution = torch.zeros_like(weight[row])
        solution[kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight[row])
        best += output_error(weight[row : row + 1], solution[None], hessian)
    assert error >= best * (1 - 1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(7, 13), (5, 300), (3, 129)])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.5, 1.0])
def test_zeros_are_counted_exactly(rows: int, columns: int, sparsity: float) -> None:
    weight, hessian = problem(rows, columns, n=2 * columns)
    expected = round(sparsity * rows * columns)
    for pruned in (sparsegpt(weight, hessian, sparsity), magnitude(weight, sparsity)):
        assert int((pruned == 0).sum()) == expected
        assert not torch.signbit(pruned[pruned == 0]).any()  # -0.0 is not a zero to every kernel


def test_ties_do_not_change_the_count() -> None:
    assert int((magnitude(torch.full((8, 8), -0.5), 0.5) == 0).sum()) == 32
    assert lowest(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]
    weight, hessian = torch.ones(8, 8), torch.eye(8)
    assert int((sparsegpt(weight, hessian, 0.5) == 0).sum()) == 32


def test_nothing_pruned_is_nothing_changed() -> None:
    weight, hessian = problem(5, 9)
    assert torch.equal(sparsegpt(weight, hessian, 0.0), weight)


def test_inputs_that_are_always_zero_lose_their_weights_and_disturb_nobody() -> None:
    weight, hessian = problem(6, 8)
    hessian[2], hessian[:, 2] = 0, 0
    pruned = sparsegpt(weight, hessian, 0.5)
    assert not pruned[:, 2].any()
    assert torch.isfinite(pruned).all()
    assert int((pruned == 0).sum()) == 24  # the dead column's six zeros count towards the half


def test_single_and_double_precision_agree() -> None:
    weight, hessian = problem(32, 96)
    double = sparsegpt(weight, hessian, 0.5)
    single = sparsegpt(weight.float(), hessian.float(), 0.5)
    assert ((double == 0) == (single == 0)).float().mean() > 0.999
    expected = output_error(weight, double, hessian)
    assert output_error(weight, single.double(), hessian) == pytest.approx(expected, rel=1e-3)


def test_a_hessian_of_rank_one_is_damped_until_it_can_be_solved() -> None:
    direction = torch.linspace(1, 2, 16)
    pruned = sparsegpt(torch.ones(4, 16), torch.outer(direction, direction), 0.5, damping=0.0)
    assert torch.isfinite(pruned).all()
    assert int((pruned == 0).sum()) == 32


def test_sparsity_outside_0_to_1_is_refused() -> None:
    for sparsity in (-0.1, 1.5):
        with pytest.raises(ValueError, match="sparsity"):
            magnitude(torch.ones(2, 2), sparsity)
        with pytest.raises(ValueError, match="sparsity"):
            sparsegpt(torch.ones(2, 2), torch.eye(2), sparsity)
