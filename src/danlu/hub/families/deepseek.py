"""DeepSeek-V2 and V3 (R1): latent attention, fine-grained experts beside shared ones, multi-token prediction.

In:  the tables' own facts.
Out: ``DEEPSEEK_V2``, ``DEEPSEEK_V3``.
Left out: biases of attention, which no released model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.hub.families.family import only
from danlu.hub.families.llama import (
    DEFAULTS,
    FFN,
    FIELDS,
    GATED,
    MIXTURE,
    NORMS,
    common_complete,
    common_extra,
    kin,
    whole_mixture,
)
from danlu.hub.layout import Row, modules
from danlu.model.config import ModelConfig

_MLA = {
    "q": "q_proj", "q_a": "q_a_proj", "q_norm": "q_a_layernorm", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa",
    "kv_norm": "kv_a_layernorm", "kv_b": "kv_b_proj", "o": "o_proj",
}  # fmt: skip
_INNER = (
    *NORMS,
    *modules({f"attn.{ours}": f"self_attn.{theirs}" for ours, theirs in _MLA.items()}),
    *FFN,
    *MIXTURE,
    Row(("ffn.router.bias",), ("mlp.gate.e_score_correction_bias",)),
    *modules({f"ffn.shared.{p}": f"mlp.shared_experts.{p}_proj" for p in ("gate", "up", "down")}),
)
_FIXED = {**GATED, "attention": "mla", "qkv_bias": False, "out_bias": False, "ffn_bias": False}
_FIELDS = {
    **FIELDS, "kv_rank": "kv_lora_rank", "nope_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim", "n_experts": "n_routed_experts", "top_k": "num_experts_per_tok",
    "d_expert": "moe_intermediate_size", "n_shared_experts": "n_shared_experts",
    "routed_scale": "routed_scaling_factor",
}  # fmt: skip


def _extra(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_key_value_heads": config.n_heads,
        "q_lora_rank": config.q_rank or None,
        "first_k_dense_replace": config.n_dense_layers if config.n_experts else config.n_layers,
        "attention_bias": False,
        **common_extra(config),
    }


def _complete(data: Mapping[str, Any], n_dense: int) -> dict[str, Any]:
    """Common fields; ``n_dense`` is what a missing ``first_k_dense_replace`` means."""
    only(data, "attention_bias", False)
    n_dense = int(data.get("first_k_dense_replace", n_dense))
    dense = n_dense >= int(data["num_hidden_layers"])
    return {
        "q_rank": data.get("q_lora_rank") or 0,
        "n_kv_heads": data["num_attention_heads"],
        "n_dense_layers": 0 if dense else n_dense,
        **({"n_experts": 0, "top_k": 0} if dense else {}),
        **common_complete(data),
    }


def _refuse(config: ModelConfig) -> str | None:
    if not config.n_experts:
        return None
    if reason := whole_mixture(config):
        return reason
    if not config.n_shared_experts:
        return "model.n_shared_experts 0 (only 1 or more)"
    if config.n_dense_layers >= config.n_layers:
        return f"model.n_dense_layers {config.n_dense_layers} (only fewer than n_layers, {config.n_layers})"
    return None


def _v2_extra(config: ModelConfig) -> dict[str, Any]:
    limited = config.router_groups > 1
    return {
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy" if limited else "greedy",
        "n_group": config.router_groups if limited else None,
        "topk_group": config.router_groups_kept if limited else None,
        "norm_topk_prob": False,
        "mlp_bias": False,
        **_extra(config),
    }


def _v2_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    only(data, "scoring_func", "softmax")
    only(data, "topk_method", "greedy", "group_limited_greedy")
    only(data, "mlp_bias", False)
    limited = data.get("topk_method") == "group_limited_greedy"
    groups = {"router_groups": data["n_group"], "router_groups_kept": data["topk_group"]} if limited else {}
    return {**groups, **_complete(data, n_dense=0)}


DEEPSEEK_V2 = kin(
    "deepseek_v2",
    "DeepseekV2",
    inner=_INNER,
    # transformers never renormalises the weights of V2's experts, whatever norm_topk_prob says.
    fixed={
        **_FIXED, "rope_layout": "interleaved", "router_score": "softmax", "group_score": "max", "norm_topk": False,
        "balance": "none", "n_mtp": 0,
    },
    fields=_FIELDS,
    defaults={**DEFAULTS, "routed_scaling_factor": 1.0, "n_shared_experts": 2},
    extra=_v2_extra,
    complete=_v2_complete,
    refuse=_refuse,
)  # fmt: skip


def _v3_extra(config: ModelConfig) -> dict[str, Any]:
    return {
        "rope_interleave": config.rope_layout == "interleaved",
        "num_nextn_predict_layers": config.n_mtp,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        **_extra(config),
    }


def _v3_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    only(data, "scoring_func", "sigmoid")
    layout = "interleaved" if data.get("rope_interleave", True) else "half"
    n_mtp = data.get("num_nextn_predict_layers") or data.get("num_mtp_layers") or 0
    return {"rope_layout": layout, "n_mtp": n_mtp, **_complete(data, n_dense=3)}


def _v3_refuse(config: ModelConfig) -> str | None:
    if config.n_experts and config.n_experts // config.router_groups < 2:
        return f"model.router_groups {config.router_groups} (a group must hold two experts or more)"
    return _refuse(config)


DEEPSEEK_V3 = kin(
    "deepseek_v3",
    "DeepseekV3",
    inner=_INNER,
    fixed={**_FIXED, "router_score": "sigmoid", "group_score": "top2"},
    fields={**_FIELDS, "router_groups": "n_group", "router_groups_kept": "topk_group", "norm_topk": "norm_topk_prob"},
    defaults={
        **DEFAULTS, "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    },
    extra=_v3_extra,
    complete=_v3_complete,
    refuse=_v3_refuse,
    foresight=modules({
        "norm_embed": "enorm", "norm_state": "hnorm", "merge": "eh_proj", "norm": "shared_head.norm",
    }),
)  # fmt: skip
