"""GPT-1 and GPT-2: learned positions, LayerNorm, matrices stored as (in, out).

In:  the tables' own facts.
Out: ``GPT1``, ``GPT2``.
Left out: the options of their config.json that no released model uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.hub.families.family import Family, only
from danlu.hub.layout import CONV1D, FUSED_BIAS, FUSED_CONV1D, Row, modules
from danlu.model.config import ModelConfig

_INNER = (
    *modules({"norm1": "ln_1", "norm2": "ln_2"}),
    Row(("attn.q.weight", "attn.k.weight", "attn.v.weight"), ("attn.c_attn.weight",), FUSED_CONV1D),
    Row(("attn.q.bias", "attn.k.bias", "attn.v.bias"), ("attn.c_attn.bias",), FUSED_BIAS),
    *modules({"attn.o": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}, CONV1D),
)
_FIXED = {
    "causal": True, "norm": "layer", "positions": "learned", "attention": "gqa", "feedforward": "mlp",
    "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True, "ffn_bias": True, "n_experts": 0, "qk_norm": False,
    "window": 0, "n_mtp": 0, "attn_softcap": 0.0, "embed_scale": 1.0, "logit_scale": 1.0,
}  # fmt: skip
_FIELDS = {
    "vocab_size": "vocab_size", "n_layers": "n_layer", "d_model": "n_embd", "max_seq_len": "n_positions",
    "n_heads": "n_head", "norm_eps": "layer_norm_epsilon", "init_std": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
}  # fmt: skip
_DEFAULTS = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True}
_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
_BUFFERS = ("attn.bias", "attn.masked_bias")  # that old files keep


def _complete(data: Mapping[str, Any]) -> dict[str, Any]:
    d_model, n_heads = int(data["n_embd"]), int(data["n_head"])
    d_ff = data.get("n_inner") or 4 * d_model
    return {"d_ff": d_ff, "n_kv_heads": n_heads, "head_dim": d_model // n_heads}


def _refuse(config: ModelConfig) -> str | None:
    if config.n_kv_heads != config.n_heads:
        return f"model.n_kv_heads {config.n_kv_heads} (only n_heads, {config.n_heads})"
    if config.head_dim * config.n_heads != config.d_model:
        return f"model.head_dim {config.head_dim} (only d_model / n_heads)"
    if config.quantization != "none":  # compressed-tensors knows linear layers, and these are stored as Conv1D
        return f"model.quantization '{config.quantization}' (only 'none')"
    return None


def _gpt1_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    only(data, "afn", "gelu", "gelu_new")  # both are the tanh form there
    return _complete(data)


def _gpt1_refuse(config: ModelConfig) -> str | None:
    if config.d_ff != 4 * config.d_model:
        return f"model.d_ff {config.d_ff} (only 4 d_model, {4 * config.d_model})"
    return _refuse(config)


GPT1 = Family(
    model_type="openai-gpt",
    architectures={"lm": "OpenAIGPTLMHeadModel", "scalar": "OpenAIGPTForSequenceClassification"},
    trunk="transformer.",
    layers="h.{i}.",
    outer=modules({"embed": "tokens_embed", "positions": "positions_embed"}),
    inner=_INNER,
    fixed={**_FIXED, "norm_placement": "post"},
    fields=_FIELDS,
    defaults=_DEFAULTS,
    extra=lambda config: {"afn": "gelu", **_DROPOUT},
    complete=_gpt1_complete,
    refuse=_gpt1_refuse,
    ignored=_BUFFERS,
)


def _gpt2_complete(data: Mapping[str, Any]) -> dict[str, Any]:
    only(data, "scale_attn_by_inverse_layer_idx", False)
    only(data, "scale_attn_weights", True)
    only(data, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    return _complete(data)


GPT2 = Family(
    model_type="gpt2",
    architectures={"lm": "GPT2LMHeadModel", "scalar": "GPT2ForSequenceClassification"},
    trunk="transformer.",
    layers="h.{i}.",
    outer=modules({"embed": "wte", "positions": "wpe", "norm": "ln_f"}),
    inner=_INNER,
    fixed={**_FIXED, "norm_placement": "pre"},
    fields=_FIELDS,
    defaults=_DEFAULTS,
    extra=lambda config: {"n_inner": config.d_ff, "activation_function": "gelu_new", **_DROPOUT},
    complete=_gpt2_complete,
    refuse=_refuse,
    ignored=_BUFFERS,
)
