"""Chunked losses against all the logits at once, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danlu.model import linear_cross_entropy, linear_logprobs, linear_logprobs_entropy
from danlu.model.losses import chunk_rows, cross_entropy_reference, logprobs_reference, loss_and_slopes
from danlu.model.rows import Learnt

N, D, V = 37, 16, 50


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    states, weight = torch.randn(N, D).to(dtype).requires_grad_(), torch.randn(V, D).requires_grad_()
    return states, weight, torch.randint(0, V, (N,))


@pytest.mark.parametrize("chunk", [1, 8, 37, 1000, None])
def test_cross_entropy_equals_plain(chunk: int | None) -> None:
    states, weight, targets = leaves()
    targets[::3] = -100
    loss, n = linear_cross_entropy(states, weight, targets, chunk=chunk)
    plain, n_plain = cross_entropy_reference(states, weight, targets)
    torch.testing.assert_close(loss, plain)
    assert n == n_plain == (targets != -100).sum()
    ours = torch.autograd.grad(loss / n * 3, (states, weight))
    expected = torch.autograd.grad(plain / n * 3, (states, weight))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("chunk", [1, 8, None])
def test_a_target_that_counts_three_times_is_three_targets(chunk: int | None) -> None:
    states, weight, targets = leaves()
    targets[::3] = -100
    counts = torch.ones_like(targets)
    counts[::4] = 3
    loss, n = linear_cross_entropy(states, weight, targets, counts=counts, chunk=chunk)
    index = torch.repeat_interleave(torch.arange(N), counts)
    for plain, n_plain in (
        cross_entropy_reference(states, weight, targets, counts),
        cross_entropy_reference(states[index], weight, targets[index]),
    ):
        torch.testing.assert_close(loss, plain)
        assert n == n_plain
        ours = torch.autograd.grad(loss / n, (states, weight), retain_graph=True)
        torch.testing.assert_close(ours, torch.autograd.grad(plain / n, (states, weight)))


def test_cross_entropy_in_bf16_is_near_and_keeps_dtypes() -> None:
    states, weight, targets = leaves(torch.bfloat16)
    loss, _ = linear_cross_entropy(states, weight, targets, chunk=8)
    plain, _ = cross_entropy_reference(states, weight, targets)
    torch.testing.assert_close(loss, plain)
    loss.backward()
    assert loss.dtype == torch.float32
    assert states.grad is not None
    assert weight.grad is not None
    assert (states.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    expected = torch.autograd.grad(cross_entropy_reference(states.float(), weight, targets)[0], weight)[0]
    assert (weight.grad - expected).norm() < 0.02 * expected.norm()


def test_nothing_to_predict_is_zero_loss_and_zero_gradient() -> None:
    states, weight, targets = leaves()
    loss, n = linear_cross_entropy(states, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0
    assert n == 0
    assert states.grad is not None
    assert not states.grad.any()


def test_frozen_sides_get_no_gradient() -> None:
    states, weight, targets = leaves()
    linear_cross_entropy(states, weight.detach(), targets)[0].backward()
    assert states.grad is not None
    with torch.no_grad():
        loss, _ = linear_cross_entropy(states, weight, targets)
    assert not loss.requires_grad


def test_rows_in_place_of_a_frozen_weights_alone_get_a_gradient() -> None:
    states, weight, targets = leaves()
    learnt = Learnt(torch.tensor([7, 3]), torch.randn(2, D, requires_grad=True))
    targets[:5], frozen = 3, weight.detach()
    kept = frozen.clone()
    loss, _ = linear_cross_entropy(states, frozen, targets, chunk=8, learnt=learnt)
    whole = torch.stack([{7: learnt.rows[0], 3: learnt.rows[1]}.get(i, row) for i, row in enumerate(frozen)])
    plain, _ = cross_entropy_reference(states, whole, targets)
    torch.testing.assert_close(loss, plain)
    ours, expected = (torch.autograd.grad(3 * value, (states, learnt.rows)) for value in (loss, plain))
    torch.testing.assert_close(ours, expected)
    assert torch.equal(frozen, kept)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [5, 64])
def test_logprobs_and_entropy_equal_plain(temperature: float, chunk: int) -> None:
    states, weight, targets = leaves()
    ours = linear_logprobs_entropy(states, weight, targets, temperature=temperature, chunk=chunk)
    plain = logprobs_reference(states, weight, targets, temperature)
    torch.testing.assert_close(ours, plain)
    a, b = torch.randn(2, N)
    both = [torch.autograd.grad((a * lp + b * h).sum(), (states, weight)) for lp, h in (ours, plain)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)


def test_logprobs_alone_equal_plain() -> None:
    states, weight, targets = leaves()
    ours = linear_logprobs(states, weight, targets, chunk=10)
    plain, _ = logprobs_reference(states, weight, targets)
    torch.testing.assert_close(ours, plain)
    a = torch.randn(N)
    both = [torch.autograd.grad((a * lp).sum(), (states, weight)) for lp in (ours, plain)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-4)


def test_cross_entropy_gradient_by_finite_differences() -> None:
    states, weight, targets = leaves()
    step = 1e-2 * torch.randn(N, D)
    loss, _ = linear_cross_entropy(states, weight, targets, chunk=8)
    (gradient,) = torch.autograd.grad(loss, states)
    with torch.no_grad():
        up, down = (linear_cross_entropy(states + s * step, weight, targets)[0] for s in (1, -1))
    assert abs((up - down) / 2 - (gradient * step).sum()) < 1e-2 * abs(up - down)


@pytest.mark.parametrize("size", [50, 1024, 1500])
def test_loss_and_slopes_by_blocks_equal_plain(size: int) -> None:
    torch.manual_seed(4)
    logits = torch.randn(N, -(-size // 1024) * 1024) * 4
    index, times = torch.randint(0, size, (N, 1)), torch.randint(0, 3, (N, 1))
    loss, slopes = loss_and_slopes(logits, index, times, size)
    leaf = logits[:, :size].clone().requires_grad_()
    plain = (torch.nn.functional.cross_entropy(leaf, index[:, 0], reduction="none") * times[:, 0]).sum()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(slopes[:, :size], torch.autograd.grad(plain, leaf)[0], atol=1e-6, rtol=1e-5)
    assert not slopes[:, size:].any()


def test_chunks_of_a_cpu_fit_its_caches() -> None:
    assert chunk_rows(torch.empty(8192, 1), 10**6, 2**30) == 512
    assert chunk_rows(torch.empty(1024, 1), 10**6, 2**30) == 4096
