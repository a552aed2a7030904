"""Mixtures of experts with ordinary attention: Mixtral, Qwen3-MoE.

In:  the tables' own facts.
Out: ``MIXTRAL``, ``QWEN3_MOE``.
Left out: router noise; dense layers anywhere but at the start; the balance losses, which matter to training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.hub.families.family import only
from danlu.hub.families.llama import (
    ATTENTION,
    DEFAULTS,
    FFN,
    FIELDS,
    HALF_GQA,
    MIXTURE,
    NORMS,
    QK_NORMS,
    heads_complete,
    heads_extra,
    kin,
    one_bias,
    one_bias_refuse,
    whole_mixture,
)
from danlu.hub.layout import EXPERT_PAIRS, EXPERTS, Row
from danlu.model.config import ModelConfig

_ROUTER = {
    "router_score": "softmax", "router_groups": 1, "router_groups_kept": 1, "routed_scale": 1.0, "n_shared_experts": 0,
    "balance": "none", "ffn_bias": False,
}  # fmt: skip


def _no_mixture(config: ModelConfig) -> str | None:
    if not config.n_experts:
        return "model.n_experts 0 (only 1 or more)"
    return whole_mixture(config)


def _window(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"window": data.get("sliding_window") or 0, "n_full_layers": 0}


def _mixtral_extra(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.window or None, "router_jitter_noise": 0.0, **heads_extra(config)}


def _mixtral_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"d_expert": data["intermediate_size"], **_window(data), **heads_complete(data)}


def _mixtral_refuse(config: ModelConfig) -> str | None:
    if config.d_expert != config.d_ff:
        return f"model.d_expert {config.d_expert} (only as d_ff, {config.d_ff})"
    return _no_mixture(config)


MIXTRAL = kin(
    "mixtral",
    "Mixtral",
    inner=(
        *NORMS,
        *ATTENTION,
        Row(("ffn.router.weight",), ("block_sparse_moe.gate.weight",)),
        Row(("ffn.gate_up",), tuple(f"block_sparse_moe.experts.{{e}}.{p}.weight" for p in ("w1", "w3")), EXPERT_PAIRS),
        Row(("ffn.down",), ("block_sparse_moe.experts.{e}.w2.weight",), EXPERTS),
    ),
    fixed={
        **HALF_GQA, **_ROUTER, "norm_topk": True, "n_dense_layers": 0, "n_full_layers": 0, "qk_norm": False,
        "qkv_bias": False, "out_bias": False,
    },
    fields={**FIELDS, "n_experts": "num_local_experts", "top_k": "num_experts_per_tok"},
    defaults={**DEFAULTS, "rms_norm_eps": 1e-5},
    extra=_mixtral_extra,
    complete=_mixtral_complete,
    refuse=_mixtral_refuse,
)  # fmt: skip


def _qwen3_moe_extra(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_experts": config.n_experts,
        "attention_bias": config.qkv_bias,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(config.n_dense_layers)),
        "use_sliding_window": config.window > 0,
        "sliding_window": config.window or None,
        **heads_extra(config),
    }


def _qwen3_moe_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    only(data, "decoder_sparse_step", 1)
    dense = data.get("mlp_only_layers") or []
    if list(dense) != list(range(len(dense))):
        raise ValueError(f"mlp_only_layers is {dense}, and only the first layers can be dense here")
    n_experts = data.get("num_experts", data.get("num_local_experts"))
    if n_experts is None:
        raise ValueError("key 'num_experts' is missing")
    window = _window(data if data.get("use_sliding_window") else {})
    return {"n_experts": n_experts, "n_dense_layers": len(dense), **window, **one_bias(data), **heads_complete(data)}


QWEN3_MOE = kin(
    "qwen3_moe",
    "Qwen3Moe",
    inner=(
        *NORMS,
        *ATTENTION,
        *QK_NORMS,
        *FFN,
        *MIXTURE,
    ),
    fixed={**HALF_GQA, **_ROUTER, "qk_norm": True, "n_full_layers": 0},
    fields={
        **FIELDS, "top_k": "num_experts_per_tok", "d_expert": "moe_intermediate_size", "norm_topk": "norm_topk_prob",
    },
    defaults={**DEFAULTS, "norm_topk_prob": False},
    extra=_qwen3_moe_extra,
    complete=_qwen3_moe_complete,
    refuse=lambda config: _no_mixture(config) or one_bias_refuse(config),
)  # fmt: skip
