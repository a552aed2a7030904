"""Mixture of experts: routed fine-grained experts beside shared ones (DeepSeekMoE; DeepSeek-V3, section 2.1.2).

In:  activations (B, T, D).
Out: activations (B, T, D), and how many tokens each expert got.
Left out: balance losses (the router bias balances); expert parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.model.config import ModelConfig
from danlu.model.feedforward import GatedMLP, activate


class Router(nn.Module):
    """Which experts a token goes to and with what weights, all in fp32.

    Attributes:
        bias: (E,) fp32 buffer added to the scores for *choosing* only; stored, moved by ``update_router_bias``,
            never by an optimizer, and never rounded: ``model.to(bfloat16)`` leaves it alone. None where scores are a
            softmax: those models have none.
    """

    bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_experts, config.d_model))
        self.register_buffer("bias", torch.zeros(config.n_experts) if config.router_score == "sigmoid" else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        exact = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if exact is not None and self.bias is not None and self.bias.dtype != torch.float32:
            self.bias = exact.to(self.bias.device)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> weights (N, K) fp32 and experts (N, K)."""
        config = self.config
        logits = F.linear(x.float(), self.weight.float())  # N, E
        scores = logits.sigmoid() if config.router_score == "sigmoid" else logits.softmax(-1)
        ranked = scores.detach() if self.bias is None else scores.detach() + self.bias
        chosen = self._limit_groups(ranked).topk(config.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, chosen)
        if config.norm_topk:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * config.routed_scale, chosen

    def _limit_groups(self, scores: Tensor) -> Tensor:
        """Keep the groups whose best expert (DeepSeek-V2) or two best together (V3) score highest.

        The rest become -inf: 0 would beat a negative score.
        """
        groups, kept = self.config.router_groups, self.config.router_groups_kept
        if kept == groups:
            return scores
        grouped = scores.view(scores.shape[0], groups, -1)  # N, G, E/G
        counted = 2 if self.config.group_score == "top2" else 1
        best = grouped.topk(counted, dim=-1).values.sum(-1).topk(kept, dim=-1, sorted=False).indices
        dropped = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, False)
        return torch.where(dropped.unsqueeze(-1), -math.inf, grouped).flatten(1)


class MoE(nn.Module):
    """``sum_k weight_k * expert_k(x) + shared(x)``; the shared experts are one network of their joint width."""

    compute_dtype: torch.dtype = torch.float32

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.router = Router(config)
        self.gate_up = nn.Parameter(torch.empty(config.n_experts, 2 * config.d_expert, config.d_model))
        self.down = nn.Parameter(torch.empty(config.n_experts, config.d_model, config.d_expert))
        self.shared = GatedMLP(config, config.d_expert * config.n_shared_experts) if config.n_shared_experts else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D) and tokens per expert (E,) int64."""
        flat = x.flatten(0, 1)  # N, D
        weights, chosen = self.router(flat)
        dtype = self.compute_dtype
        matrices = self.gate_up.to(dtype), self.down.to(dtype)
        out = expert_ffn(flat.to(dtype), chosen, weights, *matrices, activation=self.activation).view(x.shape)
        if self.shared is not None:
            out = out + self.shared(x)
        return out, expert_counts(chosen, self.gate_up.shape[0])


def expert_counts(chosen: Tensor, n_experts: int) -> Tensor:
    """How often each expert stands in ``chosen``: (E,) int64, without a shape that depends on data."""
    ones = torch.ones_like(chosen.flatten())
    return torch.zeros(n_experts, dtype=chosen.dtype, device=chosen.device).scatter_add_(0, chosen.flatten(), ones)


def expert_ffn(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, backend: str | None = None,
    activation: str = "silu",
) -> Tensor:  # fmt: skip
    """Each token through its experts: ``sum_k weights[n, k] * down_e(act(gate_e x) * up_e x)``, e = chosen[n, k].

    Args:
        x: (N, D) tokens.
        chosen: (N, K) experts.
        weights: (N, K) fp32.
        gate_up: (E, 2 I, D), gates first.
        down: (E, D, I).
        backend: ``"loop"`` (the reference), ``"grouped"`` (sort by expert, grouped products), ``"gather"`` (fetch the
            experts of every token: decoding). None chooses by shapes, dtype and device, never by data.
        activation: of the gates, see ``feedforward.activate``.

    Returns:
        (N, D).
    """
    return _BACKENDS[backend or _choose(x, chosen, gate_up)](x, chosen, weights, gate_up, down, activation)


def _choose(x: Tensor, chosen: Tensor, gate_up: Tensor) -> str:
    """By static facts only. torch 2.13 has grouped products in fp32 on CPUs alone, and does not trace them."""
    if chosen.numel() <= gate_up.shape[0]:
        return "gather"
    eager_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return "grouped" if x.dtype == torch.bfloat16 or eager_cpu else "loop"


def _gated(hidden: Tensor, activation: str) -> Tensor:
    gate, up = hidden.chunk(2, dim=-1)
    return activate(activation, gate) * up


def _mix(parts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over a token's experts; (N, K, D) and (N, K) -> (N, D)."""
    if parts.is_cuda and torch.compiler.is_compiling():
        return mix_in_one_pass(parts, weights)
    return (weights.to(parts.dtype).unsqueeze(1) @ parts).squeeze(1)


def mix_in_one_pass(parts: Tensor, weights: Tensor) -> Tensor:
    """The same as a sum that a compiler fuses: 100,000 products of 1 x K by K x D took 6 % of a step on an H200."""
    return (parts.float() * weights.unsqueeze(-1)).sum(1).to(parts.dtype)


def _loop(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str
) -> Tensor:  # fmt: skip
    out = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        token, place = torch.where(chosen == expert)
        hidden = F.linear(_gated(F.linear(x[token], gate_up[expert]), activation), down[expert])
        out = out.index_add(0, token, hidden * weights[token, place, None].to(x.dtype))
    return out


def _grouped(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str
) -> Tensor:  # fmt: skip
    """The dropless way of training: rows sorted by expert, one product per matrix, rows put back.

    Shapes do not depend on the routing, only the group ends do, and those stay on the device.
    """
    n, k = chosen.shape
    order = chosen.flatten().argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(n * k, device=order.device))
    ends = expert_counts(chosen, gate_up.shape[0]).cumsum(0).to(torch.int32)
    rows = _permute(x.unsqueeze(1).expand(-1, k, -1).reshape(n * k, -1), order, inverse)
    hidden = _gated(F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends), activation)
    parts = _permute(F.grouped_mm(hidden, down.transpose(1, 2), offs=ends), inverse, order)
    return _mix(parts.view(n, k, -1), weights)


def _gather(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str
) -> Tensor:  # fmt: skip
    """Reads only the experts asked for; copies them, so for a few tokens only."""
    hidden = _gated((gate_up[chosen] @ x[:, None, :, None]).squeeze(-1), activation)  # N, K, I
    return _mix((down[chosen] @ hidden.unsqueeze(-1)).squeeze(-1), weights)


_BACKENDS = {"loop": _loop, "grouped": _grouped, "gather": _gather}


def _permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Rows of ``x`` in ``order``; the gradient is a permutation too, not a scatter with additions."""
    y: Tensor = _Permute.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return y


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return dy.index_select(0, inverse), None, None
