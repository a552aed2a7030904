"""Ordinary attention: llama with Mixtral, qwen2, qwen3, qwen3moe, gpt2.

In:  the tables' own facts.
Out: ``LLAMA``, ``QWEN2``, ``QWEN3``, ``QWEN3MOE``, ``GPT2``.
Left out: windows, which llama.cpp does not have for them; experts in tensors of their own (files before 2024).

A file of architecture ``llama`` pairs the rotary dimensions 2i and 2i + 1, where Hugging Face and danlu pair i and
i + D / 2: the rows of queries and keys are dealt out anew. The other architectures keep the order of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from danlu.hub.gguf.architectures.architecture import (
    EXPERTS,
    FFN,
    MIXTURE,
    NORMS,
    ROTARY,
    SIZES,
    Architecture,
    Metadata,
)
from danlu.hub.gguf.positions import read_scaling, scaling_keys
from danlu.hub.layout import FUSED_BIAS, Layout, Row, modules
from danlu.model.config import ModelConfig

_HEADS = modules({**{f"attn.{p}": f"attn_{p}" for p in "qkv"}, "attn.o": "attn_output"})
_QK_NORMS = modules({f"attn.{p}_norm": f"attn_{p}_norm" for p in "qk"})
_FUSED = Layout(read=lambda t: list(t[0].chunk(3)), write=lambda t: [torch.cat(t)])
_GPT2 = (
    *NORMS,
    Row(("attn.q.weight", "attn.k.weight", "attn.v.weight"), ("attn_qkv.weight",), _FUSED),
    Row(("attn.q.bias", "attn.k.bias", "attn.v.bias"), ("attn_qkv.bias",), FUSED_BIAS),
    *modules({"attn.o": "attn_output", "ffn.up": "ffn_up", "ffn.down": "ffn_down"}),
)


def _heads_complete(metadata: Metadata) -> dict[str, Any]:
    n_heads = metadata.need("attention.head_count")
    head_dim = metadata.get("attention.key_length", metadata.need("embedding_length") // n_heads)
    if metadata.get("rope.dimension_count", head_dim) != head_dim:
        raise ValueError("only a part of each head is rotated, and all of it is here")
    return {
        "n_kv_heads": metadata.get("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "rope_theta": float(metadata.get("rope.freq_base", 10000.0)),
        "rope_scaling": read_scaling(metadata.get, metadata.tensors),
        "qkv_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "out_bias": "blk.0.attn_output.bias" in metadata.tensors,
    }


def _heads_extra(config: ModelConfig) -> dict[str, Any]:
    return {
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        **scaling_keys(config),
    }


def _llama_complete(metadata: Metadata) -> dict[str, Any]:
    fields = {**_heads_complete(metadata), "ffn_bias": "blk.0.ffn_up.bias" in metadata.tensors}
    return {**fields, "d_expert": metadata.need("feed_forward_length")} if metadata.get("expert_count") else fields


def _pairs_apart(t: Tensor, n_heads: int) -> Tensor:
    """Rows (H * D, ...) whose pairs stand side by side, to pairs half a head apart."""
    return t.view(n_heads, -1, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


def _pairs_together(t: Tensor, n_heads: int) -> Tensor:
    """The inverse of ``_pairs_apart``."""
    return t.view(n_heads, 2, -1, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


def _rotated(n_heads: int) -> Layout:
    return Layout(read=lambda t: [_pairs_apart(t[0], n_heads)], write=lambda t: [_pairs_together(t[0], n_heads)])


def _llama_rows(config: ModelConfig, tensors: Collection[str]) -> tuple[Row, ...]:
    heads = {"attn.q": config.n_heads, "attn.k": config.n_kv_heads}
    rotated = tuple(
        Row((f"{ours}.{part}",), (f"{ours.replace('.', '_')}.{part}",), _rotated(n))
        for ours, n in heads.items()
        for part in ("weight", "bias")
    )
    rest = tuple(row for row in _HEADS if not row.ours[0].startswith(tuple(f"{name}." for name in heads)))
    return (*NORMS, *rotated, *rest, *FFN, *MIXTURE)


def _plain_rows(config: ModelConfig, tensors: Collection[str]) -> tuple[Row, ...]:
    return (*NORMS, *_HEADS, *_QK_NORMS, *FFN, *MIXTURE)


def _gpt2_complete(metadata: Metadata) -> dict[str, Any]:
    n_heads = metadata.need("attention.head_count")
    return {"n_kv_heads": n_heads, "head_dim": metadata.need("embedding_length") // n_heads}


def _qwen3moe_refuse(config: ModelConfig) -> str | None:
    if config.qkv_bias:
        return "biases of attention"
    if config.n_dense_layers:
        return "dense layers among the mixtures"
    return None if config.norm_topk else "routing without renormalised weights"


def _one_family(name: str, family: str, **own: Any) -> Architecture:
    """An architecture for one family, with ordinary attention unless ``own`` says otherwise."""
    usual = {"fields": ROTARY, "complete": _heads_complete, "extra": _heads_extra, "rows": _plain_rows}
    return Architecture(name=name, families=(family,), family=lambda metadata: family, **{**usual, **own})


LLAMA = Architecture(
    name="llama",
    families=("llama", "mixtral"),
    fields={**ROTARY, **EXPERTS},
    family=lambda metadata: "mixtral" if metadata.get("expert_count") else "llama",
    complete=_llama_complete,
    extra=_heads_extra,
    rows=_llama_rows,
)
QWEN2 = _one_family("qwen2", "qwen2")
QWEN3 = _one_family("qwen3", "qwen3", refuse=lambda config: "biases of attention" if config.qkv_bias else None)
QWEN3MOE = _one_family(
    "qwen3moe",
    "qwen3_moe",
    fields={**ROTARY, **EXPERTS, "d_expert": "expert_feed_forward_length"},
    refuse=_qwen3moe_refuse,
)
GPT2 = _one_family(
    "gpt2",
    "gpt2",
    fields={**SIZES, "norm_eps": "attention.layer_norm_epsilon"},
    complete=_gpt2_complete,
    extra=lambda config: {},
    rows=lambda config, tensors: _GPT2,
)
