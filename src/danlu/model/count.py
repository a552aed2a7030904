"""Counts that follow from a shape: parameters, FLOPs a token, bytes of cache a token, memory of training.

In:  a ``ModelConfig``.
Out: exact integers, without allocating anything.
Left out: what a machine makes of them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import torch

from danlu.model.config import ModelConfig
from danlu.model.encoder import build

STATE_BYTES = 16  # a parameter in training: weight, gradient and two Adam moments, fp32 each
# Numbers kept for the backward pass, per token, layer and unit of width (measured on the tang shapes).
_ACTIVATIONS = 34


class Parameters(NamedTuple):
    """How many numbers a model has.

    Attributes:
        total: all parameters, a tied matrix once.
        active: those that one token touches: everything except the routed experts it is not sent to.
        matmul: active weights that take part in matrix products, the head among them, tables that are looked up not.
    """

    total: int
    active: int
    matmul: int


@functools.lru_cache(maxsize=256)
def parameters(config: ModelConfig) -> Parameters:
    """Count by building the model without memory (the ``meta`` device)."""
    with torch.device("meta"):
        model = build(dataclasses.replace(config, quantization="none"), "lm" if config.causal else "mlm")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    routed = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    idle = routed * (config.n_experts - config.top_k) // config.n_experts if config.n_experts else 0
    looked_up = ["positions.weight", "segments.weight"]
    tables = looked_up if config.tie_embeddings else [*looked_up, "embed.weight"]
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1) - sum(sizes.get(name, 0) for name in tables)
    return Parameters(total, total - idle, matrices - idle)


def flops_per_token(config: ModelConfig, length: int) -> int:
    """FLOPs of forward and backward per token at sequence length ``length``.

    The convention of PaLM (appendix B): 6 per active matmul parameter and 12 L H D T for attention, as if no score were
    masked. With latent attention D is the mean of key and value widths.
    """
    if config.attention == "mla":
        widths = config.nope_dim + config.rope_dim + config.v_dim
    else:
        widths = 2 * config.head_dim
    return 6 * parameters(config).matmul + 6 * config.n_layers * config.n_heads * widths * length


def kv_bytes(config: ModelConfig, bytes_per_number: int = 2) -> int:
    """Bytes of cache that one token of one row takes, all layers together; an encoder keeps none."""
    if not config.causal:
        return 0
    if config.attention == "mla":
        return config.n_layers * (config.kv_rank + config.rope_dim) * bytes_per_number
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * bytes_per_number


def state_bytes(config: ModelConfig) -> int:
    """Bytes of weights, gradients and two moments in fp32."""
    return STATE_BYTES * parameters(config).total


def activation_bytes(config: ModelConfig, rows: int, length: int, bytes_per_number: int = 4) -> int:
    """Bytes kept for the backward pass of ``rows`` rows of ``length`` tokens, nothing recomputed; an estimate."""
    return bytes_per_number * _ACTIVATIONS * rows * length * config.d_model * config.n_layers
