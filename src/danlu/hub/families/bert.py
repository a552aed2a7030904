"""BERT: the encoder of the family, with a head for masked tokens or for classes.

In:  the table's own facts.
Out: ``BERT``.
Left out: next-sentence prediction, relative positions, regression and several labels at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.hub.families.family import Family, only
from danlu.hub.layout import Row, modules
from danlu.model.config import ModelConfig

_OUTER = modules({
    "embed": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm", "classes.pool": "pooler.dense",
})  # fmt: skip
_INNER = modules({
    "attn.q": "attention.self.query", "attn.k": "attention.self.key", "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense", "norm1": "attention.output.LayerNorm", "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense", "norm2": "output.LayerNorm",
})  # fmt: skip
_HEADS = (
    *modules({"masked.dense": "cls.predictions.transform.dense", "masked.norm": "cls.predictions.transform.LayerNorm"}),
    Row(("masked.bias",), ("cls.predictions.bias",)),
    *modules({"classes.out": "classifier"}),
)
# Buffers, the second name of a bias, and what the head for next sentences leaves behind.
_IGNORED = ("embeddings.position_ids", "cls.predictions.decoder.bias", "cls.seq_relationship.weight",
            "cls.seq_relationship.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias")  # fmt: skip


def _extra(config: ModelConfig) -> dict[str, Any]:
    labels = {str(i): f"LABEL_{i}" for i in range(config.n_classes)}
    return {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **({"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}} if labels else {}),
    }


def _complete(data: Mapping[str, Any]) -> dict[str, Any]:
    only(data, "hidden_act", "gelu")
    only(data, "position_embedding_type", "absolute")
    only(data, "problem_type", None, "single_label_classification")
    n_heads, d_model = int(data["num_attention_heads"]), int(data["hidden_size"])
    classes = {}
    if any("SequenceClassification" in name for name in data.get("architectures") or ()):
        classes = {"n_classes": int(data.get("num_labels", len(data.get("id2label") or (0, 1))))}
    return {"n_kv_heads": n_heads, "head_dim": d_model // n_heads, **classes}


def _refuse(config: ModelConfig) -> str | None:
    if config.n_kv_heads != config.n_heads:
        return f"model.n_kv_heads {config.n_kv_heads} (only n_heads, {config.n_heads})"
    if config.head_dim * config.n_heads != config.d_model:
        return f"model.head_dim {config.head_dim} (only d_model / n_heads)"
    return None


BERT = Family(
    model_type="bert",
    architectures={"mlm": "BertForMaskedLM", "classes": "BertForSequenceClassification"},
    trunk="bert.",
    layers="encoder.layer.{i}.",
    outer=_OUTER,
    inner=_INNER,
    heads=_HEADS,
    fixed={
        "causal": False, "norm": "layer", "norm_placement": "post", "positions": "learned", "attention": "gqa",
        "feedforward": "mlp", "activation": "gelu", "qkv_bias": True, "out_bias": True, "ffn_bias": True,
        "n_mtp": 0, "attn_softcap": 0.0, "embed_scale": 1.0, "logit_scale": 1.0,
        "n_experts": 0, "qk_norm": False, "window": 0, "tie_embeddings": True, "quantization": "none",
    },
    fields={
        "vocab_size": "vocab_size", "n_layers": "num_hidden_layers", "d_model": "hidden_size",
        "max_seq_len": "max_position_embeddings", "n_heads": "num_attention_heads", "d_ff": "intermediate_size",
        "norm_eps": "layer_norm_eps", "init_std": "initializer_range", "n_segments": "type_vocab_size",
    },
    defaults={"layer_norm_eps": 1e-12, "initializer_range": 0.02, "type_vocab_size": 2},
    extra=_extra,
    complete=_complete,
    refuse=_refuse,
    ignored=_IGNORED,
    tied="cls.predictions.decoder.weight",
)  # fmt: skip
