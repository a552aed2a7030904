import pytest
import torch

from danlu.train.muon import Muon, orthogonalise


def twins(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [torch.nn.Parameter(v.clone()) for v in values], [torch.nn.Parameter(v.clone()) for v in values]


def steps(params, optimizer, n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_equals_torch_on_matrices():
    ours, theirs = twins([(8, 8), (8, 8), (24, 8), (8, 20), (24, 8)])
    steps(ours, Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16), 4)
    peer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    steps(theirs, peer, 4)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 0.02 * 0.2 * 5 * 0.02  # bf16 rounding of a batched against a single product


def test_a_stack_of_experts_is_as_many_matrices():
    (stack,), _ = twins([(3, 12, 8)])
    singles = [torch.nn.Parameter(m.clone()) for m in stack.detach()]
    gradient = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(5))
    stack.grad = gradient
    for p, g in zip(singles, gradient, strict=True):
        p.grad = g.clone()
    Muon([stack], lr=0.1, dtype=torch.float32).step()
    Muon(singles, lr=0.1, dtype=torch.float32).step()
    assert torch.allclose(stack, torch.stack([p.detach() for p in singles]), atol=1e-6)


def test_gate_and_up_in_one_parameter_are_two_matrices():
    (fused,), _ = twins([(3, 12, 8)])
    halves = [torch.nn.Parameter(fused.detach()[:, :6].clone()), torch.nn.Parameter(fused.detach()[:, 6:].clone())]
    fused.grad = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(5))
    halves[0].grad, halves[1].grad = fused.grad[:, :6].clone(), fused.grad[:, 6:].clone()
    Muon([{"params": [fused], "stacked": 2}], lr=0.1, dtype=torch.float32).step()
    Muon(halves, lr=0.1, dtype=torch.float32).step()
    assert torch.allclose(fused, torch.cat([p.detach() for p in halves], 1), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 8, 32), (4, 32, 8)])
def test_singular_values_come_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.median() > 0.6
    assert values.max() < 1.3


def test_a_zero_gradient_moves_nothing():
    p = torch.nn.Parameter(torch.ones(4, 4))
    p.grad = torch.zeros(4, 4)
    Muon([p], lr=0.1, weight_decay=0.0, dtype=torch.float32).step()
    assert torch.equal(p.detach(), torch.ones(4, 4))
