"""Rotary positions (Su et al. 2021): angle tables once per forward, rotation per layer.

In:  positions (B or 1, T); queries or keys (B, H, T, D), any strides.
Out: rotated copies (B, H, T, D), contiguous, in the half-split layout.
Left out: learned positions, which are one ``nn.Embedding`` in ``decoder``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from danlu.model.config import RopeScaling


class Rope(NamedTuple):
    """Cosines and sines (B or 1, 1, T, D / 2), fp32 when built, then in the dtype of the activations."""

    cos: Tensor
    sin: Tensor


def rope_table(
    positions: Tensor, dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> Rope:
    """Angles ``position * frequency_i`` of every pair i.

    Args:
        positions: (B or 1, T) integers.
        dim: rotary width D of a head, even.
        theta: base of the frequencies.
        dtype: of the tables returned; the angles themselves are always fp32.
        scaling: how positions reach further than trained, if they do.
    """
    angles = positions[:, None, :, None].float() * frequencies(dim, theta, scaling, positions.device)  # B, 1, T, D/2
    cos, sin = angles.cos(), angles.sin()
    factor = 1.0 if scaling is None else attention_factor(scaling)
    if factor != 1.0:
        cos, sin = cos * factor, sin * factor
    return Rope(cos.to(dtype), sin.to(dtype))


def frequencies(dim: int, theta: float, scaling: RopeScaling | None, device: torch.device | None = None) -> Tensor:
    """(D / 2,) fp32 radians a token: ``theta^(-2i / dim)``, scaled.

    - ``linear``: all divided by the factor (position interpolation, arXiv 2306.15595).
    - ``llama3``: waves longer than ``original_len / low_freq`` tokens divided, those shorter than
      ``original_len / high_freq`` kept, in between blended by how often they turn (Llama 3.1).
    - ``yarn``: dimensions that turn less than ``beta_slow`` times in ``original_len`` divided, those that turn more
      than ``beta_fast`` times kept, in between blended by dimension (arXiv 2309.00071, section 3.2).
    """
    exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    kept = 1.0 / theta**exponents
    if scaling is None:
        return kept
    divided = kept / scaling.factor
    if scaling.kind == "linear":
        return divided
    if scaling.kind == "llama3":
        turns = scaling.original_len / (2 * math.pi / kept)
        share = ((turns - scaling.low_freq) / (scaling.high_freq - scaling.low_freq)).clamp(0, 1)
        return (1 - share) * divided + share * kept
    low, high = _yarn_borders(dim, theta, scaling)
    share = 1 - ((torch.arange(dim // 2, device=device, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return divided * (1 - share) + kept * share


def _yarn_borders(dim: int, theta: float, scaling: RopeScaling) -> tuple[float, float]:
    """Dimensions at which the blend begins and ends."""

    def turning(times: float) -> float:
        return dim * math.log(scaling.original_len / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning(scaling.beta_fast), turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def attention_factor(scaling: RopeScaling) -> float:
    """Factor on cosines and sines: YaRN's temperature of the softmax (section 3.4), split between query and key."""
    if scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.factor, scaling.mscale) / temperature(scaling.factor, scaling.mscale_all_dim)
    return temperature(scaling.factor, 1.0)


def temperature(factor: float, mscale: float) -> float:
    """``0.1 mscale ln(factor) + 1`` (YaRN, equation 22; DeepSeek-V3, section 4.3)."""
    return 0.1 * mscale * math.log(factor) + 1.0


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
