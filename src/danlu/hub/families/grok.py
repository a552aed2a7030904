"""Grok-1, as its weights were laid out for Hugging Face by those who use it; transformers has no class for it.

In:  the table's own facts.
Out: ``GROK``.
Left out: its 8-bit checkpoint; the rule that token 0, its padding, is seen by nobody: no text has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.hub.families.family import Family, only
from danlu.hub.families.llama import whole_mixture
from danlu.hub.layout import EXPERT_PAIRS, EXPERTS, Row, modules
from danlu.model.config import ModelConfig

_NORMS = {"norm1": "pre_attn", "after1": "post_attn", "norm2": "pre_moe", "after2": "post_moe"}
_INNER = (
    *(Row((f"{ours}.weight",), (f"{theirs}_norm.scale",)) for ours, theirs in _NORMS.items()),
    *modules({f"attn.{p}": f"attn.{p}_proj" for p in "qkvo"}),
    Row(("ffn.router.weight",), ("moe_block.gate.weight",)),
    Row(("ffn.gate_up",), tuple(f"moe_block.experts.{{e}}.{p}.weight" for p in ("linear", "linear_v")), EXPERT_PAIRS),
    Row(("ffn.down",), ("moe_block.experts.{e}.linear_1.weight",), EXPERTS),
)


def _extra(config: ModelConfig) -> dict[str, Any]:
    return {"attn_output_multiplier": config.head_dim**-0.5, "rope_theta": config.rope_theta}


def _complete(data: Mapping[str, Any]) -> dict[str, Any]:
    head_dim = int(data["hidden_size"]) // int(data["num_attention_heads"])
    only(data, "attn_output_multiplier", head_dim**-0.5)
    return {"head_dim": head_dim, "d_expert": data["intermediate_size"], "rope_theta": data.get("rope_theta", 10000.0)}


def _refuse(config: ModelConfig) -> str | None:
    if not config.n_experts or config.d_expert != config.d_ff:
        return f"model.d_expert {config.d_expert} (only as d_ff, {config.d_ff}, with n_experts)"
    return whole_mixture(config)


GROK = Family(
    model_type="grok-1",
    architectures={"lm": "Grok1ModelForCausalLM"},
    trunk="model.",
    layers="layers.{i}.",
    outer=(*modules({"embed": "embed_tokens"}), Row(("norm.weight",), ("norm.scale",))),
    inner=_INNER,
    fixed={
        "causal": True, "norm": "rms", "norm_placement": "sandwich", "positions": "rope", "rope_layout": "half",
        "rope_scaling": None, "attention": "gqa", "feedforward": "gated", "activation": "gelu_tanh", "qkv_bias": False,
        "out_bias": False, "ffn_bias": False, "qk_norm": False, "window": 0, "n_mtp": 0, "router_score": "softmax",
        "router_groups": 1, "router_groups_kept": 1, "norm_topk": False, "routed_scale": 1.0, "n_shared_experts": 0,
        "n_dense_layers": 0, "balance": "none", "quantization": "none",
    },
    fields={
        "vocab_size": "vocab_size", "n_layers": "num_hidden_layers", "d_model": "hidden_size",
        "max_seq_len": "max_position_embeddings", "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads", "d_ff": "intermediate_size", "norm_eps": "rms_norm_eps",
        "tie_embeddings": "tie_word_embeddings", "n_experts": "num_experts", "top_k": "num_experts_per_tok",
        "attn_softcap": "max_attn_value", "embed_scale": "embedding_multiplier_scale",
        "logit_scale": "output_multiplier_scale",
    },
    defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    extra=_extra,
    complete=_complete,
    refuse=_refuse,
    foreign=True,
)  # fmt: skip
