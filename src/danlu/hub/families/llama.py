"""Llama and its kin, dense: Llama 1 to 3.3, SmolLM2, Qwen2 and 2.5, Qwen3.

In:  the tables' own facts.
Out: ``LLAMA``, ``QWEN2``, ``QWEN3``, and what the mixtures of the same kin share (``experts``, ``deepseek``).
Left out: layers that alternate between a window and everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.hub.families.family import Family, only
from danlu.hub.families.rope import read_rope, rope_keys
from danlu.hub.layout import EXPERT_PAIRS, EXPERTS, Row, modules
from danlu.model.config import ModelConfig

DEFAULTS = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False}
OUTER = modules({"embed": "embed_tokens", "norm": "norm"})
NORMS = modules({"norm1": "input_layernorm", "norm2": "post_attention_layernorm"})
ATTENTION = modules({f"attn.{p}": f"self_attn.{p}_proj" for p in "qkvo"})
QK_NORMS = modules({f"attn.{p}_norm": f"self_attn.{p}_norm" for p in "qk"})
FFN = modules({f"ffn.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")})
MIXTURE = (
    Row(("ffn.router.weight",), ("mlp.gate.weight",)),
    Row(("ffn.gate_up",), tuple(f"mlp.experts.{{e}}.{p}_proj.weight" for p in ("gate", "up")), EXPERT_PAIRS),
    Row(("ffn.down",), ("mlp.experts.{e}.down_proj.weight",), EXPERTS),
)
FIELDS = {
    "vocab_size": "vocab_size", "n_layers": "num_hidden_layers", "d_model": "hidden_size",
    "max_seq_len": "max_position_embeddings", "n_heads": "num_attention_heads", "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps", "init_std": "initializer_range", "tie_embeddings": "tie_word_embeddings",
}  # fmt: skip
GATED = {
    "causal": True, "norm": "rms", "norm_placement": "pre", "positions": "rope", "feedforward": "gated",
    "activation": "silu", "attn_softcap": 0.0, "embed_scale": 1.0, "logit_scale": 1.0,
}  # fmt: skip
HALF_GQA = {**GATED, "rope_layout": "half", "attention": "gqa", "n_mtp": 0}
BUFFERS = ("self_attn.rotary_emb.inv_freq",)  # that old files keep


def kin(model_type: str, name: str, **own: Any) -> Family:
    """A family whose files are laid out as Llama's are.

    Args:
        model_type: as in config.json.
        name: what its classes begin with.
        own: the other fields of the family.
    """
    return Family(
        model_type=model_type,
        architectures={"lm": f"{name}ForCausalLM", "scalar": f"{name}ForSequenceClassification"},
        trunk="model.",
        layers="layers.{i}.",
        outer=OUTER,
        ignored=BUFFERS,
        **own,
    )


def whole_mixture(config: ModelConfig) -> str | None:
    """Why a mixture's weights cannot be stored as ``config`` has them: transformers quantizes all experts or none."""
    return (
        f"model.quantization '{config.quantization}' (only 'none' with n_experts)"
        if config.quantization != "none"
        else None
    )


def common_extra(config: ModelConfig) -> dict[str, Any]:
    """Keys of config.json that all kin share and no table says."""
    return {**rope_keys(config), "hidden_act": "silu", "attention_dropout": 0.0}


def common_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that all kin share and no table says."""
    only(data, "hidden_act", "silu")
    return read_rope(data)


def heads_extra(config: ModelConfig) -> dict[str, Any]:
    """The same for ordinary attention."""
    return {"num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim, **common_extra(config)}


def heads_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same for ordinary attention."""
    n_heads = int(data["num_attention_heads"])
    return {
        "n_kv_heads": data.get("num_key_value_heads") or n_heads,
        "head_dim": data.get("head_dim") or int(data["hidden_size"]) // n_heads,
        **common_complete(data),
    }


def one_bias(data: Mapping[str, Any]) -> dict[str, Any]:
    """``attention_bias`` speaks for queries, keys, values and output alike."""
    bias = bool(data.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def one_bias_refuse(config: ModelConfig) -> str | None:
    """Why a shape has no counterpart where one key speaks for all biases of attention."""
    if config.out_bias != config.qkv_bias:
        return f"model.out_bias {config.out_bias} (only as qkv_bias, {config.qkv_bias})"
    return None


def _llama_extra(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias, **heads_extra(config)}


def _llama_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"ffn_bias": bool(data.get("mlp_bias", False)), **one_bias(data), **heads_complete(data)}


def _llama_refuse(config: ModelConfig) -> str | None:
    if config.d_model % config.n_heads:
        return f"model.n_heads {config.n_heads} (only divisors of d_model, {config.d_model})"
    return one_bias_refuse(config)


LLAMA = kin(
    "llama",
    "Llama",
    inner=(*NORMS, *ATTENTION, *FFN),
    fixed={**HALF_GQA, "n_experts": 0, "qk_norm": False, "window": 0},
    fields=FIELDS,
    defaults=DEFAULTS,
    extra=_llama_extra,
    complete=_llama_complete,
    refuse=_llama_refuse,
)


def _window_extra(config: ModelConfig) -> dict[str, Any]:
    return {
        "use_sliding_window": config.window > 0,
        "sliding_window": config.window or None,
        "max_window_layers": config.n_full_layers if config.window else config.n_layers,
    }


def _window_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    """A window in all layers but the first ``max_window_layers``, which in spite of their name have none."""
    window = data.get("sliding_window") if data.get("use_sliding_window") else None
    full, n_layers = int(data.get("max_window_layers", 28)), int(data["num_hidden_layers"])
    kinds = [("full_attention", "sliding_attention")[bool(window) and i >= full] for i in range(n_layers)]
    if data.get("layer_types") not in (None, kinds):
        raise ValueError("layer_types differ from what max_window_layers says, and only that is known here")
    return {"window": window, "n_full_layers": full} if window else {"window": 0, "n_full_layers": 0}


def _qwen2_refuse(config: ModelConfig) -> str | None:
    if config.head_dim * config.n_heads != config.d_model:
        return f"model.head_dim {config.head_dim} (only d_model / n_heads)"
    return None


QWEN2 = kin(
    "qwen2",
    "Qwen2",
    inner=(*NORMS, *ATTENTION, *FFN),
    fixed={**HALF_GQA, "n_experts": 0, "qk_norm": False, "qkv_bias": True, "out_bias": False, "ffn_bias": False},
    fields=FIELDS,
    defaults=DEFAULTS,
    extra=lambda config: {**heads_extra(config), **_window_extra(config)},
    complete=lambda data: {**heads_complete(data), **_window_complete(data)},
    refuse=_qwen2_refuse,
)
QWEN3 = kin(
    "qwen3",
    "Qwen3",
    inner=(*NORMS, *ATTENTION, *QK_NORMS, *FFN),
    fixed={**HALF_GQA, "n_experts": 0, "qk_norm": True, "ffn_bias": False},
    fields=FIELDS,
    defaults={**DEFAULTS, "head_dim": 128},
    extra=lambda config: {"attention_bias": config.qkv_bias, **heads_extra(config), **_window_extra(config)},
    complete=lambda data: {**one_bias(data), **heads_complete(data), **_window_complete(data)},
    refuse=one_bias_refuse,
)
