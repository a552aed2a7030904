"""What a GPU computes is what a CPU computes: models, attention on every path, experts, losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.model import Decoder, linear_cross_entropy, linear_logprobs_entropy
from danlu.model.attention import SHARED, Mask, attend, attend_reference, cached_mask, causal_mask
from danlu.model.frozen import FrozenLinear, quantize_blocks
from danlu.model.losses import cross_entropy_reference, logprobs_reference
from danlu.model.moe import expert_ffn

BF16 = torch.bfloat16


def apart(ours: Tensor, expected: Tensor) -> float:
    """Distance as a share of the expected one's size."""
    ours, expected = ours.detach().cpu().double(), expected.detach().cpu().double()
    assert torch.isfinite(ours).all()
    return float((ours - expected).norm() / expected.norm())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


def documents(kind: str, rows: int = 3, length: int = 96) -> Tensor | None:
    """On the CPU, as batches have them."""
    if kind == "none":
        return None
    found = torch.zeros(rows, length, dtype=torch.int32)
    if kind in ("packed", "shared"):
        found[0, 10:], found[0, 50:], found[1, 33:] = 1, 2, 1
        found[2, 80:] = -1
    if kind == "shared":
        found[0, :10] = SHARED
    return found


@pytest.mark.parametrize("kind", ["none", "packed"])
def test_fp32_forward_and_gradients_equal_the_cpus(pair: tuple[Decoder, Decoder], kind: str) -> None:
    tokens = torch.randint(331, (3, 96), generator=torch.Generator().manual_seed(1))
    found = []
    for model in pair:
        where = model.embed.weight.device
        states = model.hidden(tokens.to(where), documents=documents(kind)).states
        states.square().sum().backward()
        found.append([states, *(p.grad for p in model.parameters() if p.grad is not None)])
    for expected, ours in zip(*found, strict=True):
        if expected.norm() > 1e-4 * found[0][0].norm():  # a bias of keys has no gradient but rounding
            assert apart(ours, expected) < 2e-4  # tf32 products would be 3e-4 apart in a single one


@pytest.mark.parametrize("kind", ["none", "one", "packed", "shared"])
def test_bf16_states_are_near_fp32(pair: tuple[Decoder, Decoder], kind: str) -> None:
    tokens = torch.randint(331, (3, 96), generator=torch.Generator().manual_seed(1))
    reference, model = pair
    model.compute_in(BF16)
    with torch.no_grad():
        expected = reference.hidden(tokens, documents=documents(kind)).states
        ours = model.hidden(tokens.cuda(), documents=documents(kind)).states
    real = torch.ones(3, 96, dtype=torch.bool) if kind in ("none", "one") else documents(kind) >= SHARED
    away = (ours.cpu().float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert away[real].median() < 3e-2
    assert (away[real] < 0.1).float().mean() > 0.9  # a token near the edge between two experts may change sides


def flows(q: Tensor, k: Tensor, v: Tensor, mask: Mask, function: Any) -> list[Tensor]:
    """Result and gradients in the direction of a fixed tensor."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves, scale=0.2, mask=mask)
    return [out, *torch.autograd.grad(out, leaves, drawn(*out.shape, seed=9).to(out.dtype))]


@pytest.mark.parametrize("kind", ["none", "one", "packed", "shared"])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "width", "value"), [(4, 4, 64, 64), (6, 2, 64, 64), (4, 4, 48, 32)])
def test_attention_equals_its_reference(
    kind: str, dtype: torch.dtype, heads: int, groups: int, width: int, value: int
) -> None:
    q, k, v = (
        drawn(3, h, 96, w, seed=i) for i, (h, w) in enumerate(((heads, width), (groups, width), (groups, value)))
    )
    told = documents(kind)
    mask = causal_mask(96, told, dtype, q.device, kernel=dtype == BF16)
    assert (mask.borders is not None) == (kind == "packed" and dtype == BF16)
    written = causal_mask(96, told, torch.float32, q.device)
    expected = flows(q, k, v, written, attend_reference)
    ours = flows(*(x.to(dtype) for x in (q, k, v)), mask, attend)
    for a, b in zip(ours, expected, strict=True):
        assert apart(a, b) < (2e-2 if dtype == BF16 else 1e-4)


def test_a_packed_mask_means_the_same_to_the_reference() -> None:
    q, k, v = (drawn(3, 4, 96, 64, seed=i) for i in range(3))
    packed = causal_mask(96, documents("packed"), BF16, q.device, kernel=True)
    written = causal_mask(96, documents("packed"), torch.float32, q.device)
    assert (
        apart(attend_reference(q, k, v, scale=0.1, mask=packed), attend_reference(q, k, v, scale=0.1, mask=written))
        == 0
    )


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_a_decode_step_attends_like_the_reference(dtype: torch.dtype) -> None:
    q, k, v = drawn(3, 6, 1, 64), drawn(3, 2, 80, 64, seed=1), drawn(3, 2, 80, 64, seed=2)
    positions = torch.tensor([[79], [3], [40]], device="cuda")
    expected = attend_reference(q, k, v, scale=0.125, mask=cached_mask(positions, 80, torch.float32))
    ours = attend(*(x.to(dtype) for x in (q, k, v)), scale=0.125, mask=cached_mask(positions, 80, dtype))
    assert apart(ours, expected) < (2e-2 if dtype == BF16 else 1e-4)


@pytest.mark.parametrize("kind", ["none", "one", "packed"])
@pytest.mark.parametrize("groups", [12, 4])
def test_training_attends_by_a_fused_kernel(kind: str, groups: int) -> None:
    q, k, v = (drawn(3, h, 96, 64, seed=h).to(BF16) for h in (12, groups, groups))
    mask = causal_mask(96, documents(kind), BF16, q.device, kernel=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        flows(q, k, v, mask, attend)
        torch.cuda.synchronize()
    kernels = " ".join(event.key.lower() for event in recorded.key_averages())
    assert any(word in kernels for word in ("flash", "cudnn", "sdpa")), kernels
    assert "softmax_warp" not in kernels


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_grouped_experts_equal_the_loop(activation: str) -> None:
    chosen = torch.rand(200, 8, generator=torch.Generator().manual_seed(0)).argsort(-1)[:, :3]
    chosen[chosen == 5] = 4  # one expert idle
    leaves = [
        drawn(200, 64),
        drawn(200, 3, seed=1).abs(),
        drawn(8, 96, 64, seed=2) * 0.1,
        drawn(8, 64, 48, seed=3) * 0.1,
    ]
    found = []
    for backend, dtype in (("loop", torch.float32), ("grouped", BF16)):
        x, weights, up, down = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        out = expert_ffn(x, chosen.cuda(), weights, up, down, backend=backend, activation=activation)
        found.append([out, *torch.autograd.grad(out, (x, weights, up, down), drawn(200, 64, seed=4).to(dtype))])
    for expected, ours in zip(*found, strict=True):
        assert apart(ours, expected) < 2e-2


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_the_heads_loss_equals_its_reference(dtype: torch.dtype) -> None:
    states, weight = drawn(300, 64).to(dtype), drawn(331, 64, seed=1)
    targets = torch.randint(331, (300,), generator=torch.Generator().manual_seed(2)).cuda()
    targets[::7] = -100
    counts = torch.randint(1, 4, (300,), generator=torch.Generator().manual_seed(3)).cuda()
    found = []
    for function, more in ((cross_entropy_reference, {}), (linear_cross_entropy, {"chunk": 128})):
        x, w = states.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, n = function(x, w, targets, counts=counts, **more)
        found.append([loss, n, *torch.autograd.grad(loss, (x, w))])
    for expected, ours in zip(*found, strict=True):
        assert apart(ours, expected) < (1e-2 if dtype == BF16 else 1e-5)


def test_log_probabilities_equal_their_reference() -> None:
    states, weight = drawn(100, 64), drawn(331, 64, seed=1)
    targets = torch.randint(331, (100,), generator=torch.Generator().manual_seed(2)).cuda()
    found = []
    for function in (logprobs_reference, linear_logprobs_entropy):
        x, w = states.clone().requires_grad_(), weight.clone().requires_grad_()
        chosen, entropy = function(x, w, targets, temperature=0.7)
        found.append([chosen, entropy, *torch.autograd.grad(chosen.sum() + entropy.sum(), (x, w))])
    for expected, ours in zip(*found, strict=True):
        assert apart(ours, expected) < 1e-5


def test_four_bits_are_packed_and_read_as_on_the_cpu() -> None:
    weight = torch.randn(77, 45, generator=torch.Generator().manual_seed(0))  # no whole number of blocks
    (codes, scale), (ours, ours_scale) = quantize_blocks(weight), quantize_blocks(weight.cuda())
    assert torch.equal(ours.cpu(), codes)
    assert torch.equal(ours_scale.cpu(), scale)
    linear = torch.nn.Linear(45, 77, bias=False)
    linear.weight.data = weight
    found = []
    for layer in (FrozenLinear(linear), FrozenLinear(linear).cuda()):
        x = torch.linspace(-1, 1, 90, device=layer.scale.device).view(2, 45).requires_grad_()
        out = layer(x)
        found.append([layer.dense(torch.float32), out, *torch.autograd.grad(out.square().sum(), x)])
    for expected, mine in zip(*found, strict=True):
        assert apart(mine, expected) < 1e-6
