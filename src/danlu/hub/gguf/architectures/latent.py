"""Latent attention: deepseek2, which is DeepSeek-V2, V2-Lite, V3 and R1.

In:  the table's own facts.
Out: ``DEEPSEEK2``.
Left out: layers for multi-token prediction, which llama.cpp does not use.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from danlu.hub.gguf.architectures.architecture import EXPERTS, FFN, MIXTURE, NORMS, ROTARY, Architecture, Metadata
from danlu.hub.gguf.positions import read_scaling, scaling_keys
from danlu.hub.layout import Layout, Row, modules
from danlu.model.config import ModelConfig

_SOFTMAX, _SIGMOID = 1, 2
_LITE = (26, 27)  # llama.cpp tells V2-Lite and its kin by their layers

_FIELDS = {
    **ROTARY, **EXPERTS, "kv_rank": "attention.kv_lora_rank", "rope_dim": "rope.dimension_count",
    "d_expert": "expert_feed_forward_length", "n_shared_experts": "expert_shared_count",
    "n_dense_layers": "leading_dense_block_count", "routed_scale": "expert_weights_scale",
}  # fmt: skip
_SHARED = (
    Row(("ffn.router.bias",), ("exp_probs_b.bias",)),
    *modules({f"ffn.shared.{p}": f"ffn_{p}_shexp" for p in ("gate", "up", "down")}),
)


def _latent_complete(metadata: Metadata) -> dict[str, Any]:
    key = metadata.get("attention.key_length_mla", metadata.get("attention.key_length"))
    value = metadata.get("attention.value_length_mla", metadata.get("attention.value_length"))
    if not key or not value:
        raise ValueError(f"key '{metadata.name}.attention.key_length_mla' is missing")
    fields = {
        "rope_layout": "interleaved",
        "n_kv_heads": metadata.need("attention.head_count"),
        "q_rank": metadata.get("attention.q_lora_rank", 0),
        "nope_dim": key - metadata.need("rope.dimension_count"),
        "v_dim": value,
        "rope_theta": float(metadata.get("rope.freq_base", 10000.0)),
        "rope_scaling": read_scaling(metadata.get, metadata.tensors),
        "router_groups": metadata.get("expert_group_count", 1),
        "router_groups_kept": metadata.get("expert_group_used_count", 1),
    }
    if _latent_family(metadata) == "deepseek_v3":
        fields |= {"norm_topk": bool(metadata.get("expert_weights_norm", False)), "balance": "bias"}
    if metadata.get("expert_count"):
        return fields
    return {**fields, "n_experts": 0, "top_k": 0, "n_shared_experts": 0, "n_dense_layers": 0}


def _latent_extra(config: ModelConfig) -> dict[str, Any]:
    limited = config.router_groups_kept < config.router_groups
    mixture = {
        "expert_group_count": config.router_groups if limited else None,
        "expert_group_used_count": config.router_groups_kept if limited else None,
        "expert_weights_norm": config.norm_topk,
        "expert_gating_func": _SIGMOID if config.router_score == "sigmoid" else _SOFTMAX,
    }
    return {
        **(mixture if config.n_experts else {"leading_dense_block_count": config.n_layers}),
        "attention.head_count_kv": 1,  # the latent is one head to all queries
        "attention.q_lora_rank": config.q_rank or None,
        "attention.key_length": config.kv_rank + config.rope_dim,
        "attention.value_length": config.kv_rank,
        "attention.key_length_mla": config.nope_dim + config.rope_dim,
        "attention.value_length_mla": config.v_dim,
        "rope.freq_base": config.rope_theta,
        **scaling_keys(config),
    }


def _latent_family(metadata: Metadata) -> str:
    return "deepseek_v3" if metadata.get("expert_gating_func") == _SIGMOID else "deepseek_v2"


def _split_latent(config: ModelConfig, t: list[Tensor]) -> list[Tensor]:
    """kv_b (H * (nope + v), rank) -> keys (H, rank, nope), values (H, v, rank)."""
    both = t[0].view(config.n_heads, -1, config.kv_rank)
    return [both[:, : config.nope_dim].transpose(1, 2), both[:, config.nope_dim :]]


def _join_latent(t: list[Tensor]) -> list[Tensor]:
    """The inverse of ``_split_latent``."""
    return [torch.cat([t[0].transpose(1, 2), t[1]], 1).flatten(0, 1)]


def _latent_rows(config: ModelConfig, tensors: Collection[str]) -> tuple[Row, ...]:
    names = {
        "q": "attn_q", "q_a": "attn_q_a", "q_norm": "attn_q_a_norm", "q_b": "attn_q_b", "kv_a": "attn_kv_a_mqa",
        "kv_norm": "attn_kv_a_norm", "o": "attn_output",
    }  # fmt: skip
    parts = modules({f"attn.{ours}": theirs for ours, theirs in names.items()})
    if "blk.0.attn_kv_b.weight" in tensors:  # files before April 2025
        kv_b = Row(("attn.kv_b.weight",), ("attn_kv_b.weight",))
    else:
        layout = Layout(read=_join_latent, write=functools.partial(_split_latent, config))
        kv_b = Row(("attn.kv_b.weight",), ("attn_k_b.weight", "attn_v_b.weight"), layout)
    return (*NORMS, *parts, kv_b, *FFN, *MIXTURE, *_SHARED)


def _latent_refuse(config: ModelConfig) -> str | None:
    if config.rope_layout != "interleaved":
        return "rotation of half-split pairs"
    if config.n_experts and config.group_score == "max" and config.router_groups_kept < config.router_groups:
        return "groups of experts that are scored by their best one; it takes the two best"
    if not config.q_rank and config.n_layers not in _LITE:
        return f"queries that are not compressed (q_rank 0) but in models of {' or '.join(map(str, _LITE))} layers"
    return None


DEEPSEEK2 = Architecture(
    name="deepseek2",
    families=("deepseek_v2", "deepseek_v3"),
    fields=_FIELDS,
    family=_latent_family,
    complete=_latent_complete,
    extra=_latent_extra,
    rows=_latent_rows,
    refuse=_latent_refuse,
)
