"""Hugging Face families as tables: which configurations they can express, and how they name and lay out weights.

In:  a ``ModelConfig``, or the keys of a config.json.
Out: ``FAMILIES``: per family the other of the two, and an ``Entry`` for every tensor on disk.
Left out: the choice of a family and the keys that all share (``config``), files (``directory``).

Everything a family does differently is a row or a field here, so that a new family is a new table. The numbers stay as
Hugging Face lays them out: no rotary dimension is ever permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from danlu.hub.layout import CONV1D, EXPERT_PAIRS, EXPERTS, FUSED_BIAS, FUSED_CONV1D, Entry, Row, modules
from danlu.model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture.

    Attributes:
        model_type: as in config.json.
        architectures: class name per head kind.
        trunk: prefix of everything but the heads.
        layers: prefix of a layer within the trunk, with ``{i}``.
        outer: rows outside the layers, within the trunk.
        inner: rows of a layer.
        fixed: fields that can have one value only.
        fields: our field -> key of config.json, where both mean the same.
        defaults: what a config.json means by leaving a key out; other keys of ``fields`` must be there.
        extra: further keys of config.json from the configuration.
        complete: further fields from a config.json; ValueError for a variant that we do not compute.
        refuse: why a configuration whose ``fixed`` fields fit still has no counterpart, or None.
        ignored: endings of names on disk that hold no weights (buffers that old files keep).
    """

    model_type: str
    architectures: Mapping[str, str]
    trunk: str
    layers: str
    outer: tuple[Row, ...]
    inner: tuple[Row, ...]
    fixed: Mapping[str, Any]
    fields: Mapping[str, str]
    defaults: Mapping[str, Any]
    extra: Callable[[ModelConfig], dict[str, Any]]
    complete: Callable[[Mapping[str, Any]], dict[str, Any]]
    refuse: Callable[[ModelConfig], str | None]
    ignored: tuple[str, ...] = ()

    def misfits(self, config: ModelConfig) -> list[str]:
        """Sentences' tails on what keeps ``config`` out of this family; empty if it belongs."""
        wrong = [
            f"model.{name} '{getattr(config, name)}' (only '{value}')"
            for name, value in self.fixed.items()
            if getattr(config, name) != value
        ]
        reason = None if wrong else self.refuse(config)
        return wrong + ([reason] if reason else [])

    def entries(self, config: ModelConfig, trunk: str | None = None) -> Iterator[Entry]:
        """Every tensor that a model of this family may have; the model decides which exist.

        Args:
            config: how many layers and experts.
            trunk: prefix to use instead of the family's: files of a trunk alone have none.
        """
        trunk = self.trunk if trunk is None else trunk
        for row in self.outer:
            yield row.entry("", trunk, 0)
        for i in range(config.n_layers):
            for row in self.inner:
                yield row.entry(f"blocks.{i}.", trunk + self.layers.format(i=i), config.n_experts)
        yield Entry(("head.weight",), ("lm_head.weight",))
        yield Entry(("score.weight",), ("score.weight",))


def _only(data: Mapping[str, Any], key: str, *valid: Any) -> None:
    """Refuse a config.json whose ``key`` says anything but what we compute; the first valid value is the default."""
    value = data.get(key, valid[0])
    if value not in valid:
        raise ValueError(f"{key} is '{value}' and only {' or '.join(repr(v) for v in valid)} is known here")


def _gpt2_extra(config: ModelConfig) -> dict[str, Any]:
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return {"n_inner": config.d_ff, "activation_function": "gelu_new", **dropout}


def _gpt2_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    _only(data, "scale_attn_by_inverse_layer_idx", False)
    _only(data, "scale_attn_weights", True)
    _only(data, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    d_model, n_heads = int(data["n_embd"]), int(data["n_head"])
    d_ff = data.get("n_inner") or 4 * d_model
    return {"d_ff": d_ff, "n_kv_heads": n_heads, "head_dim": d_model // n_heads}


def _gpt2_refuse(config: ModelConfig) -> str | None:
    if config.n_kv_heads != config.n_heads:
        return f"model.n_kv_heads {config.n_kv_heads} (only n_heads, {config.n_heads})"
    if config.head_dim * config.n_heads != config.d_model:
        return f"model.head_dim {config.head_dim} (only d_model / n_heads)"
    if config.quantization != "none":  # compressed-tensors knows linear layers, and these are stored as Conv1D
        return f"model.quantization '{config.quantization}' (only 'none')"
    return None


GPT2 = Family(
    model_type="gpt2",
    architectures={"lm": "GPT2LMHeadModel", "scalar": "GPT2ForSequenceClassification"},
    trunk="transformer.",
    layers="h.{i}.",
    outer=modules({"embed": "wte", "positions": "wpe", "norm": "ln_f"}),
    inner=(
        *modules({"norm1": "ln_1", "norm2": "ln_2"}),
        Row(("attn.q.weight", "attn.k.weight", "attn.v.weight"), ("attn.c_attn.weight",), FUSED_CONV1D),
        Row(("attn.q.bias", "attn.k.bias", "attn.v.bias"), ("attn.c_attn.bias",), FUSED_BIAS),
        *modules({"attn.o": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}, CONV1D),
    ),
    fixed={
        "norm": "layer", "positions": "learned", "attention": "gqa", "feedforward": "mlp", "activation": "gelu_tanh",
        "qkv_bias": True, "out_bias": True, "ffn_bias": True, "n_experts": 0,
    },
    fields={
        "vocab_size": "vocab_size", "n_layers": "n_layer", "d_model": "n_embd", "max_seq_len": "n_positions",
        "n_heads": "n_head", "norm_eps": "layer_norm_epsilon", "init_std": "initializer_range",
        "tie_embeddings": "tie_word_embeddings",
    },
    defaults={"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True},
    extra=_gpt2_extra,
    complete=_gpt2_complete,
    refuse=_gpt2_refuse,
    ignored=("attn.bias", "attn.masked_bias"),
)  # fmt: skip

_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False}
_LLAMA_OUTER = modules({"embed": "embed_tokens", "norm": "norm"})
_LLAMA_NORMS = modules({"norm1": "input_layernorm", "norm2": "post_attention_layernorm"})
_LLAMA_FFN = modules({f"ffn.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")})
_LLAMA_FIELDS = {
    "vocab_size": "vocab_size", "n_layers": "num_hidden_layers", "d_model": "hidden_size",
    "max_seq_len": "max_position_embeddings", "n_heads": "num_attention_heads", "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps", "init_std": "initializer_range", "tie_embeddings": "tie_word_embeddings",
}  # fmt: skip


def _rope_extra(config: ModelConfig) -> dict[str, Any]:
    """RoPE as transformers 5 spells it and as older readers do."""
    theta = config.rope_theta
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    }


def _rope_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type is '{kind}' and only 'default' is known here")
    _only(data, "hidden_act", "silu")
    return {"rope_theta": float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))}


def _llama_extra(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}
    return {"num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim, **biases, **_rope_extra(config)}


def _llama_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    n_heads, bias = int(data["num_attention_heads"]), bool(data.get("attention_bias", False))
    return {
        "n_kv_heads": data.get("num_key_value_heads") or n_heads,
        "head_dim": data.get("head_dim") or int(data["hidden_size"]) // n_heads,
        "qkv_bias": bias,
        "out_bias": bias,
        "ffn_bias": bool(data.get("mlp_bias", False)),
        **_rope_complete(data),
    }


def _llama_refuse(config: ModelConfig) -> str | None:
    if config.out_bias != config.qkv_bias:
        return f"model.out_bias {config.out_bias} (only as qkv_bias, {config.qkv_bias})"
    if config.d_model % config.n_heads:
        return f"model.n_heads {config.n_heads} (only divisors of d_model, {config.d_model})"
    return None


LLAMA = Family(
    model_type="llama",
    architectures={"lm": "LlamaForCausalLM", "scalar": "LlamaForSequenceClassification"},
    trunk="model.",
    layers="layers.{i}.",
    outer=_LLAMA_OUTER,
    inner=(*_LLAMA_NORMS, *modules({f"attn.{p}": f"self_attn.{p}_proj" for p in "qkvo"}), *_LLAMA_FFN),
    fixed={
        "norm": "rms", "positions": "rope", "rope_layout": "half", "attention": "gqa", "feedforward": "gated",
        "activation": "silu", "n_experts": 0,
    },
    fields=_LLAMA_FIELDS,
    defaults=_LLAMA_DEFAULTS,
    extra=_llama_extra,
    complete=_llama_complete,
    refuse=_llama_refuse,
    ignored=("self_attn.rotary_emb.inv_freq",),
)  # fmt: skip


def _deepseek_extra(config: ModelConfig) -> dict[str, Any]:
    n_dense = config.n_dense_layers if config.n_experts else config.n_layers
    return {
        "num_key_value_heads": config.n_heads,
        "q_lora_rank": config.q_rank or None,
        "first_k_dense_replace": n_dense,
        "attention_bias": False,
        "rope_interleave": config.rope_layout == "interleaved",
        "num_nextn_predict_layers": 0,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        **_rope_extra(config),
    }


def _deepseek_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    _only(data, "attention_bias", False)
    _only(data, "scoring_func", "sigmoid")
    n_layers, n_dense = int(data["num_hidden_layers"]), int(data.get("first_k_dense_replace", 3))
    dense = n_dense >= n_layers
    return {
        "q_rank": data.get("q_lora_rank") or 0,
        "n_kv_heads": data["num_attention_heads"],
        "n_dense_layers": 0 if dense else n_dense,
        "rope_layout": "interleaved" if data.get("rope_interleave", True) else "half",
        **({"n_experts": 0, "top_k": 0} if dense else {}),
        **_rope_complete(data),
    }


def _deepseek_refuse(config: ModelConfig) -> str | None:
    for name in ("qkv_bias", "out_bias", "ffn_bias"):
        if getattr(config, name):
            return f"model.{name} True (only False)"
    if config.n_experts and config.quantization != "none":  # transformers wants all experts quantized or nothing
        return f"model.quantization '{config.quantization}' (only 'none' with n_experts)"
    if config.n_experts and not config.n_shared_experts:
        return "model.n_shared_experts 0 (only 1 or more)"
    if config.n_experts and config.n_experts // config.router_groups < 2:
        return f"model.router_groups {config.router_groups} (a group must hold two experts or more)"
    if config.n_experts and config.n_dense_layers >= config.n_layers:
        return f"model.n_dense_layers {config.n_dense_layers} (only fewer than n_layers, {config.n_layers})"
    return None


_MLA = {
    "q": "q_proj", "q_a": "q_a_proj", "q_norm": "q_a_layernorm", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa",
    "kv_norm": "kv_a_layernorm", "kv_b": "kv_b_proj", "o": "o_proj",
}  # fmt: skip

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architectures={"lm": "DeepseekV3ForCausalLM", "scalar": "DeepseekV3ForSequenceClassification"},
    trunk="model.",
    layers="layers.{i}.",
    outer=_LLAMA_OUTER,
    inner=(
        *_LLAMA_NORMS,
        *modules({f"attn.{ours}": f"self_attn.{theirs}" for ours, theirs in _MLA.items()}),
        *_LLAMA_FFN,
        Row(("ffn.router.weight",), ("mlp.gate.weight",)),
        Row(("ffn.router.bias",), ("mlp.gate.e_score_correction_bias",)),
        Row(("ffn.gate_up",), tuple(f"mlp.experts.{{e}}.{p}_proj.weight" for p in ("gate", "up")), EXPERT_PAIRS),
        Row(("ffn.down",), ("mlp.experts.{e}.down_proj.weight",), EXPERTS),
        *modules({f"ffn.shared.{p}": f"mlp.shared_experts.{p}_proj" for p in ("gate", "up", "down")}),
    ),
    fixed={
        "norm": "rms", "positions": "rope", "attention": "mla", "feedforward": "gated", "activation": "silu",
        "router_score": "sigmoid",
    },
    fields={
        **_LLAMA_FIELDS, "kv_rank": "kv_lora_rank", "nope_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim",
        "v_dim": "v_head_dim", "n_experts": "n_routed_experts", "top_k": "num_experts_per_tok",
        "d_expert": "moe_intermediate_size", "n_shared_experts": "n_shared_experts", "router_groups": "n_group",
        "router_groups_kept": "topk_group", "norm_topk": "norm_topk_prob", "routed_scale": "routed_scaling_factor",
    },
    defaults={
        **_LLAMA_DEFAULTS, "n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    },
    extra=_deepseek_extra,
    complete=_deepseek_complete,
    refuse=_deepseek_refuse,
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, LLAMA, DEEPSEEK_V3)}
