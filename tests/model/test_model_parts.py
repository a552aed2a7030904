"""Parts against their references: norms, rotations, attention, linear layers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.model.attention import KEY_BLOCK, Mask, attend, attend_reference, cached_mask, causal_mask
from danlu.model.feedforward import gelu_by_sigmoid
from danlu.model.linear import Linear
from danlu.model.norm import LayerNorm, rms_norm, rms_norm_reference
from danlu.model.positions import rope_table, rotate, rotate_reference
from danlu.model.quantized import QuantLinear, quantized_linear, quantized_linear_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_formula_and_gradient(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 32).to(dtype)
    weight, dy = torch.randn(32), torch.randn(3, 5, 32).to(dtype)
    results = []
    for f in (rms_norm, rms_norm_reference):
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = f(a, w, 1e-2)
        y.backward(dy)
        results.append((y, a.grad, w.grad))
    # The written-out gradient stays in fp32, autograd's rounds on the way: in bf16 they differ by that rounding.
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    for ours, reference in zip(*results, strict=True):
        assert ours.dtype == reference.dtype
        torch.testing.assert_close(ours, reference, **tolerance)


def test_layer_norm_computes_in_fp32() -> None:
    norm = LayerNorm(64, 1e-5)
    x = torch.randn(4, 64).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), F.layer_norm(x.float(), (64,), eps=1e-5).bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotation_equals_reference(layout: str) -> None:
    rope = rope_table(torch.tensor([[0, 3, 7, 100]]), 8, 100.0, torch.float32)
    x = torch.randn(2, 4, 3, 8, requires_grad=True)  # B, T, H, D: rotated through a transposed view
    y = rotate(x.transpose(1, 2), rope, layout)
    expected = rotate_reference(x.transpose(1, 2), rope, layout)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, dy)
    (reference,) = torch.autograd.grad(expected, x, dy)
    torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotated_products_depend_on_distance_only(layout: str) -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)
    scores = []
    for start in (0, 11):
        turned = rope_table(torch.tensor([[start, start + 5]]), 8, 1000.0, torch.float32)
        a, b = rotate(torch.cat([q, k], dim=2), turned, layout)[0, 0]
        scores.append(a @ b)
    torch.testing.assert_close(*scores)
    assert abs(scores[0] - q.flatten() @ k.flatten()) > 1e-3


@pytest.mark.parametrize(("length", "value_dim"), [(16, 16), (16, 12), (600, 16), (600, 12)])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_attend_equals_reference(
    length: int, value_dim: int, kv_heads: int, documents: bool, softcap: float
) -> None:  # fmt: skip
    q, k = torch.randn(2, 4, length, 16, requires_grad=True), torch.randn(2, kv_heads, length, 16, requires_grad=True)
    v = torch.randn(2, kv_heads, length, value_dim, requires_grad=True)
    ids = torch.arange(length).div(7, rounding_mode="floor").expand(2, -1) if documents else None
    mask = causal_mask(length, ids, torch.float32, q.device)
    assert (mask.bias is None) == (not documents)
    options = {"scale": 0.3, "mask": mask, "softcap": softcap}
    ours, reference = attend(q, k, v, **options), attend_reference(q, k, v, **options)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
    direction = torch.randn_like(ours)
    pairs = zip(*(torch.autograd.grad(out, (q, k, v), direction) for out in (ours, reference)), strict=True)
    for mine, expected in pairs:
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("n_keys", [KEY_BLOCK - 1, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK + 7])
def test_many_keys_go_in_blocks(n_keys: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 3, 16), torch.randn(2, 2, n_keys, 16)
    v = torch.randn(2, 2, n_keys, 24)[..., :12]  # a view, as latents are
    mask = cached_mask(torch.tensor([[5, n_keys - 2, n_keys - 1], [0, 1, n_keys // 2]]), n_keys, torch.float32)
    ours, expected = attend(q, k, v, scale=0.3, mask=mask), attend_reference(q, k, v, scale=0.3, mask=mask)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_attend_in_bf16_keeps_soft_max_in_fp32() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 64, 32).bfloat16()
    bias = torch.full((64, 64), -math.inf).triu(1).bfloat16()[None, None]
    out = attend(q, k, v, scale=1.0, mask=Mask(bias))
    expected = attend_reference(q, k, v, scale=1.0, mask=Mask(bias))
    assert (out.float() - expected.float()).abs().max() < 0.05


def test_linear_casts_and_keeps_fp32_gradients() -> None:
    layer = Linear(8, 4)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    layer.compute_dtype = torch.bfloat16
    y = layer(torch.randn(3, 8))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("grad", [False, True])
def test_quantized_linear_equals_reference(dtype: torch.dtype, rows: int, grad: bool) -> None:
    x = torch.randn(2, rows, 64).to(dtype)
    weight = torch.randint(-127, 128, (32, 64), dtype=torch.int8)
    scale, bias = torch.rand(32) * 0.01 + 0.001, torch.randn(32)
    with torch.set_grad_enabled(grad):
        out = quantized_linear(x, weight, scale, bias)
    expected = quantized_linear_reference(x, weight, scale, bias)
    assert out.dtype == dtype
    limit = 1e-4 if dtype == torch.float32 else 0.02
    assert (out.float() - expected.float()).abs().max() < limit * expected.float().abs().max()


def test_rounding_to_int8_errs_by_half_a_step_and_passes_gradients() -> None:
    layer = Linear(64, 16)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    quantized = QuantLinear.from_linear(layer)
    error = (quantized.dense(torch.float32) - layer.weight).abs()
    assert (error <= quantized.scale[:, None] * 0.5001).all()
    x = torch.randn(3, 64, requires_grad=True)
    quantized(x).sum().backward()
    torch.testing.assert_close(x.grad, quantized.dense(torch.float32).sum(0).expand(3, -1))
    assert set(quantized.state_dict()) == {"weight", "scale", "bias"}


def test_gelu_by_a_sigmoid_is_the_tanh_form() -> None:
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    ours, plain = gelu_by_sigmoid(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, plain, atol=2e-6, rtol=1e-5)
    gradients = (torch.autograd.grad(y.sum(), x)[0] for y in (ours, plain))
    torch.testing.assert_close(*gradients, atol=2e-6, rtol=1e-5)
    assert gelu_by_sigmoid(x.bfloat16()).dtype == torch.bfloat16
