"""Linear layers that are read and never trained, in four bits: the base under an adapter (QLoRA).

In:  a weight (out, in).
Out: ``FrozenLinear``, which stands wherever ``Linear`` does; gradients pass through it to its input.
Left out: models on disk, which have no such weights; the scales of scales ("double quantization", 0.37 bits a weight);
kernels that multiply four bits as they are.

NF4 (Dettmers et al. 2023, arXiv 2305.14314, section 3): sixteen values, each the nearest for an equal share of a normal
variable, times the largest magnitude of a block of 64 weights. 4.5 bits a weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64
# Appendix E of the paper: quantiles of a normal variable, 0 and both ends exact.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight, block by block of its rows laid end to end, to the nearest of ``NF4``.

    Returns:
        uint8 codes (ceil(n / 64) * 32,), two to a byte and the first in the upper half; fp32 scales (ceil(n / 64),).
    """
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1)
    values = torch.tensor(NF4, device=flat.device)
    between = (values[1:] + values[:-1]) / 2
    codes = torch.bucketize(blocks / scale.clamp_min(1e-12)[:, None], between).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scale


def byte_values(device: torch.device | None = None) -> Tensor:
    """The two values of ``NF4`` that each byte of codes stands for: (256, 2)."""
    values = torch.tensor(NF4, device=device)
    return torch.stack([values.repeat_interleave(len(NF4)), values.repeat(len(NF4))], dim=1)


def dequantize_blocks(
    codes: Tensor, scale: Tensor, values: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """The inverse of ``quantize_blocks``, nearly: a weight of ``shape`` (out, in) as numbers of ``dtype``.

    ``values``: of ``byte_values``, where the codes are. Looking up bytes takes 0.4 of the time of looking up codes.
    """
    flat = values.index_select(0, codes.int()).view(-1, BLOCK).mul_(scale[:, None]).flatten()
    return flat[: shape[0] * shape[1]].view(shape).to(dtype)


class FrozenLinear(nn.Module):
    """A linear layer of 4-bit weights; they are buffers, and so is the bias: nothing here is ever trained."""

    compute_dtype: torch.dtype = torch.float32
    codes: Tensor
    scale: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, scale = quantize_blocks(linear.weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("values", byte_values(codes.device), persistent=False)  # a GPU waits for none
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.compute_dtype = getattr(linear, "compute_dtype", linear.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) in fp32, made anew: for those who look at it now and then."""
        return self.dense(torch.float32)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of ``dtype``."""
        return dequantize_blocks(self.codes, self.scale, self.values, (self.out_features, self.in_features), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in ``compute_dtype``."""
        x = x.to(self.compute_dtype)
        out: Tensor = _Product.apply(x, self.codes, self.scale, self.values, self.out_features)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """``x`` times a 4-bit weight. The backward makes the weight anew: kept, it would take 16 bits until then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, values: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(codes, scale, values)
        ctx.shape = rows, x.shape[-1]
        return F.linear(x, dequantize_blocks(codes, scale, values, ctx.shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None, None]:
        codes, scale, values = ctx.saved_tensors
        return dy @ dequantize_blocks(codes, scale, values, ctx.shape, dy.dtype), None, None, None, None
