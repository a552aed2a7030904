"""Linear layers with 8-bit weights: one symmetric scale per output channel, activations left alone.

In:  a trained weight (out, in), or stored integers and scales.
Out: ``QuantLinear``, which stands wherever ``Linear`` does.
Left out: how good integers are found (``compress``); 4-bit forms; expert tensors, embeddings and the head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.model.config import ModelConfig
from danlu.model.linear import Linear

PACKED_ROWS = 16  # the packed kernel wins while reading weights is what costs; many rows go to the matrix product


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round every output channel to -127..127 of its own largest value.

    Returns:
        int8 integers (out, in) and fp32 scales (out,); ``integers * scales[:, None]`` is the weight again, nearly.
    """
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / 127
    return (weight.float() / scale[:, None]).round_().to(torch.int8), scale


def quantized_linear_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` times the dequantised weight, in fp32."""
    out = F.linear(x.float(), weight.float() * scale[:, None], None if bias is None else bias.float())
    return out.to(x.dtype)


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (..., in) times an int8 weight (out, in) with scales (out,); result (..., out) in the dtype of ``x``.

    torch's packed CPU kernel takes bf16 rows and is 1.6 to 4 times the bf16 product for up to 16 of them; with fp32
    rows it is 10 times slower than the fp32 product. It has no gradient. Everything else multiplies with the integers,
    which bf16 holds exactly, and scales the outputs.
    """
    rows = x.numel() // x.shape[-1]
    packed = x.dtype == torch.bfloat16 and x.device.type == "cpu" and rows <= PACKED_ROWS
    if packed and not torch.is_grad_enabled():
        flat = torch._weight_int8pack_mm(x.reshape(rows, -1), weight, scale.to(x.dtype))
        out = flat.view(*x.shape[:-1], -1)
    else:
        out = F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
    return out if bias is None else out + bias.to(x.dtype)


class QuantLinear(nn.Module):
    """A linear layer of int8 weights; the weight is a buffer: it is stored and never trained."""

    compute_dtype: torch.dtype = torch.float32
    native: Callable[[Tensor], Tensor] | None = None  # as ``Linear.native``
    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @staticmethod
    def from_linear(linear: nn.Linear) -> QuantLinear:
        """The 8-bit form of ``linear`` by plain rounding."""
        quantized = QuantLinear(linear.in_features, linear.out_features, linear.bias is not None)
        with torch.no_grad():
            quantized.weight, quantized.scale = quantize_rows(linear.weight)
            if quantized.bias is not None:
                quantized.bias.copy_(linear.bias)
        quantized.compute_dtype = getattr(linear, "compute_dtype", linear.weight.dtype)
        return quantized

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in ``compute_dtype``."""
        if self.native is not None:
            return self.native(x)
        return quantized_linear(x.to(self.compute_dtype), self.weight, self.scale, self.bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of ``dtype``."""
        return (self.weight.float() * self.scale[:, None]).to(dtype)


def make_linear(config: ModelConfig, in_features: int, out_features: int, bias: bool) -> Linear | QuantLinear:
    """A linear layer in the storage that ``config.quantization`` asks for."""
    kind = QuantLinear if config.quantization == "int8" else Linear
    return kind(in_features, out_features, bias)
