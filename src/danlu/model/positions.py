"""Rotary positions (Su et al. 2021): angle tables once per forward, rotation per layer.

In:  positions (B or 1, T); queries or keys (B, H, T, D), any strides.
Out: rotated copies (B, H, T, D), contiguous, in the half-split layout.
Left out: learned positions, which are one ``nn.Embedding`` in ``decoder``; context extension (Llama-3 scaling, YaRN).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Cosines and sines (B or 1, 1, T, D / 2), fp32 when built, then in the dtype of the activations."""

    cos: Tensor
    sin: Tensor


def rope_table(positions: Tensor, dim: int, theta: float, dtype: torch.dtype) -> Rope:
    """Angles ``position * theta^(-2i / dim)`` of every pair i.

    Args:
        positions: (B or 1, T) integers.
        dim: rotary width D of a head, even.
        theta: base of the frequencies.
        dtype: of the tables returned; the angles themselves are always fp32.
    """
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = positions[:, None, :, None].float() * (1.0 / theta**exponents)  # B, 1, T, D/2
    return Rope(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate_reference(x: Tensor, rope: Rope, layout: str) -> Tensor:
    """``rotate`` in four products."""
    a, b = _pairs(x, layout)
    return torch.cat([a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin], dim=-1)


def rotate(x: Tensor, rope: Rope, layout: str) -> Tensor:
    """Turn every pair of ``x`` by its angle.

    ``"half"`` pairs element i with i + D/2 (Llama on Hugging Face), ``"interleaved"`` 2i with 2i + 1 (Meta, DeepSeek).
    Both come out half-split: a fixed permutation of the head does not change dot products, and it saves a copy.

    Args:
        x: (B, H, T, D); a transposed view is welcome, the result is contiguous either way.
        rope: tables for the same T.
        layout: ``"half"`` or ``"interleaved"``.
    """
    exact = x.dtype == torch.float32 and not torch.is_grad_enabled()  # rounds as transformers does
    if exact or torch.compiler.is_compiling():  # a compiler fuses the formula; out= below would break its graph
        return rotate_reference(x, rope, layout)
    y: Tensor = _Rotate.apply(x, rope.cos, rope.sin, layout)  # type: ignore[no-untyped-call]
    return y


def _pairs(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """First and second elements of the pairs, as views (..., D / 2)."""
    if layout == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _turn(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, sign: int) -> None:
    """Write ``source`` turned by ``sign`` times the angle into ``target``, in four passes and no temporary."""
    (a, b), (x, y) = source, target
    torch.mul(a, cos, out=x).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=y).addcmul_(a, sin, value=sign)


class _Rotate(torch.autograd.Function):
    """Rotation whose gradient is the opposite rotation: nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
        y = x.new_empty(x.shape)
        _turn(_pairs(x, layout), _pairs(y, "half"), cos, sin, 1)
        ctx.save_for_backward(cos, sin)
        ctx.layout = layout
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        batch, heads, length, dim = dy.shape
        # In memory B, T, H, D: what comes before is a projection, and its gradient then needs no copy.
        dx = dy.new_empty(batch, length, heads, dim).transpose(1, 2)
        _turn(_pairs(dy, "half"), _pairs(dx, ctx.layout), cos, sin, -1)
        return dx, None, None, None
