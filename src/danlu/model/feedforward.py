"""Dense feed-forward networks: two matrices (GPT) or three with a gate (Llama).

In:  activations (B, T, D).
Out: the same shape.
Left out: routed experts (``moe``).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.model.config import ModelConfig
from danlu.model.quantized import make_linear


def activate(kind: str, x: Tensor) -> Tensor:
    """``"silu"``; ``"gelu"``, which is BERT's; or its tanh form ``"gelu_tanh"``, GPT-2's and visibly different."""
    if kind == "silu":
        return F.silu(x)
    if kind == "gelu_tanh" and x.is_cuda and torch.compiler.is_compiling():
        return gelu_by_sigmoid(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def gelu_by_sigmoid(x: Tensor) -> Tensor:
    """The tanh form of GELU with ``(1 + tanh(u)) / 2 = sigmoid(2 u)``: a compiled tanh takes longer than the memory."""
    wide = x.float()
    twice = 2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (wide * twice.sigmoid()).to(x.dtype)


class MLP(nn.Module):
    """``down(act(up(x)))`` (GPT-2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = make_linear(config, config.d_model, config.d_ff, config.ffn_bias)
        self.down = make_linear(config, config.d_ff, config.d_model, config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down(activate(self.activation, self.up(x)))
        return out


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))`` (Shazeer 2020, SwiGLU when the activation is SiLU)."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = make_linear(config, config.d_model, width, config.ffn_bias)
        self.up = make_linear(config, config.d_model, width, config.ffn_bias)
        self.down = make_linear(config, width, config.d_model, config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down(activate(self.activation, self.gate(x)) * self.up(x))
        return out


def make_dense(config: ModelConfig) -> MLP | GatedMLP:
    """The dense feed-forward network of ``config``."""
    return MLP(config) if config.feedforward == "mlp" else GatedMLP(config, config.d_ff)
