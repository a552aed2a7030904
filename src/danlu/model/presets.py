"""Shapes with names: the sizes that recipes and tests use, and the published ones, from GPT-1 to DeepSeek-V3.

In:  a preset's name and the fields to change.
Out: a ``ModelConfig``.
Left out: where weights come from (``hub``). GPT-3's alternating sparse attention, which changes no count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.model.config import ModelConfig

_GPT2: dict[str, Any] = {
    "norm": "layer",
    "positions": "learned",
    "qkv_bias": True,
    "out_bias": True,
    "feedforward": "mlp",
    "activation": "gelu_tanh",
    "ffn_bias": True,
}
_LLAMA: dict[str, Any] = {}  # the defaults of ModelConfig
_DEEPSEEK: dict[str, Any] = {
    "norm_eps": 1e-6,
    "rope_layout": "interleaved",
    "attention": "mla",
    "n_shared_experts": 1,
    "n_dense_layers": 1,
}

_TINY: dict[str, Any] = {"n_layers": 2, "d_model": 64, "max_seq_len": 128, "n_heads": 4, "head_dim": 16}
# Four heads of 32 heard rhyme where two of 64 did not (docs/log.md); latent attention keeps two, with keys of 64.
_TANG: dict[str, Any] = {"n_layers": 4, "d_model": 128, "max_seq_len": 256, "n_heads": 4, "head_dim": 32}
_TINY_LATENT: dict[str, Any] = {"q_rank": 32, "kv_rank": 32, "nope_dim": 16, "rope_dim": 8, "v_dim": 16}
_TANG_LATENT: dict[str, Any] = {"n_heads": 2, "kv_rank": 64, "nope_dim": 32, "rope_dim": 32, "v_dim": 64}

_SMALL: dict[str, dict[str, Any]] = {
    "gpt2-tiny": {**_GPT2, **_TINY, "n_kv_heads": 4, "d_ff": 256},
    "llama-tiny": {**_LLAMA, **_TINY, "n_kv_heads": 2, "d_ff": 160},
    "deepseek-tiny": {
        **_DEEPSEEK,
        **_TINY,
        **_TINY_LATENT,
        "d_ff": 160,
        "n_experts": 8,
        "top_k": 2,
        "d_expert": 32,
        "router_groups": 2,
        "router_groups_kept": 1,
    },
    "gpt2-tang": {**_GPT2, **_TANG, "n_kv_heads": 4, "d_ff": 512},
    "llama-tang": {**_LLAMA, **_TANG, "n_kv_heads": 4, "d_ff": 384},
    "deepseek-tang": {
        **_DEEPSEEK,
        **_TANG,
        **_TANG_LATENT,
        "d_ff": 384,
        "n_experts": 12,
        "top_k": 3,
        "d_expert": 96,
    },
}

# The published ones, as their papers and config.json files have them.
_GPT1 = {**_GPT2, "norm_placement": "post", "vocab_size": 40478, "max_seq_len": 512}
_BERT = {**_GPT2, "causal": False, "n_segments": 2, "norm_placement": "post", "norm_eps": 1e-12, "activation": "gelu"}
_BERT |= {"vocab_size": 30522, "max_seq_len": 512}
_GROK = {
    "norm_placement": "sandwich", "attn_softcap": 30.0, "embed_scale": 78.38367176906169,
    "logit_scale": 0.5773502691896257, "activation": "gelu_tanh", "n_experts": 8, "top_k": 2, "d_expert": 32768,
    "router_score": "softmax", "norm_topk": False, "balance": "none", "vocab_size": 131072, "max_seq_len": 8192,
}  # fmt: skip
_GPT3 = {**_GPT2, "vocab_size": 50257, "max_seq_len": 2048}
_LLAMA2 = {"vocab_size": 32000, "max_seq_len": 4096, "tie_embeddings": False}
_LLAMA3 = {"vocab_size": 128256, "max_seq_len": 8192, "rope_theta": 5e5, "tie_embeddings": False}
_FURTHER: dict[str, Any] = {"kind": "llama3", "original_len": 8192, "low_freq": 1.0, "high_freq": 4.0}
_LLAMA31 = {
    **_LLAMA3,
    "max_seq_len": 131072,
    "rope_scaling": {**_FURTHER, "factor": 8.0},
}
_LLAMA32 = {**_LLAMA31, "rope_scaling": {**_FURTHER, "factor": 32.0}, "tie_embeddings": True}
_SMOLLM2 = {"vocab_size": 49152, "max_seq_len": 8192, "rope_theta": 1e5}
_QWEN2 = {"norm_eps": 1e-6, "rope_theta": 1e6, "qkv_bias": True, "vocab_size": 152064, "max_seq_len": 131072}
_QWEN3 = {"norm_eps": 1e-6, "rope_theta": 1e6, "qk_norm": True, "head_dim": 128, "vocab_size": 151936}
_QWEN3 |= {"max_seq_len": 40960}
_SOFTMAX = {"router_score": "softmax", "balance": "none"}
_QWEN3_MOE = {**_QWEN3, **_SOFTMAX, "n_experts": 128, "top_k": 8, "tie_embeddings": False}
_MIXTRAL = {**_SOFTMAX, "rope_theta": 1e6, "vocab_size": 32000, "n_experts": 8, "top_k": 2, "tie_embeddings": False}
_LATENT = {
    "kv_rank": 512,
    "nope_dim": 128,
    "rope_dim": 64,
    "v_dim": 128,
    "tie_embeddings": False,
    "init_std": 0.006,
    "max_seq_len": 163840,
}
_YARN = {"kind": "yarn", "factor": 40.0, "original_len": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
_DEEPSEEK_V2 = {**_DEEPSEEK, **_LATENT, **_SOFTMAX, "group_score": "max", "norm_topk": False, "vocab_size": 102400}
_DEEPSEEK_V2 |= {"n_shared_experts": 2, "top_k": 6}


def _sizes(base: Mapping[str, Any], columns: str, **rows: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """A preset per row: ``base`` and the named columns; heads are as wide as fits where nobody says otherwise."""
    presets = {}
    for name, row in rows.items():
        fields = {**base, **dict(zip(columns.split(), row, strict=True))}
        if "head_dim" not in fields:
            fields["head_dim"] = fields["d_model"] // fields["n_heads"]
        presets[name.replace("__", ".").replace("_", "-")] = {"n_kv_heads": fields["n_heads"], **fields}
    return presets


_GPT_SIZE = "n_layers d_model n_heads d_ff"
_SIZE = "n_layers d_model n_heads n_kv_heads d_ff"
PRESETS: dict[str, dict[str, Any]] = {
    **_SMALL,
    **_sizes(_GPT1, _GPT_SIZE, gpt1=(12, 768, 12, 3072)),
    **_sizes(_GROK, _SIZE + " head_dim", grok_1=(64, 6144, 48, 8, 32768, 128)),
    **_sizes(_BERT, _GPT_SIZE, bert_base=(12, 768, 12, 3072), bert_large=(24, 1024, 16, 4096)),
    **_sizes(
        {**_GPT2, "vocab_size": 50257, "max_seq_len": 1024},
        _GPT_SIZE,
        gpt2_124m=(12, 768, 12, 3072),
        gpt2_355m=(24, 1024, 16, 4096),
        gpt2_774m=(36, 1280, 20, 5120),
        gpt2_1558m=(48, 1600, 25, 6400),
    ),
    # Table 2.1 of arXiv 2005.14165, where XL's 24 heads of 128 do not make its 1.3 billion, and 16 do.
    **_sizes(
        _GPT3,
        _GPT_SIZE + " head_dim",
        gpt3_125m=(12, 768, 12, 3072, 64),
        gpt3_350m=(24, 1024, 16, 4096, 64),
        gpt3_760m=(24, 1536, 16, 6144, 96),
        gpt3_1__3b=(24, 2048, 16, 8192, 128),
        gpt3_2__7b=(32, 2560, 32, 10240, 80),
        gpt3_6__7b=(32, 4096, 32, 16384, 128),
        gpt3_13b=(40, 5140, 40, 20560, 128),
        gpt3_175b=(96, 12288, 96, 49152, 128),
    ),
    **_sizes(
        _LLAMA2,
        _SIZE,
        llama2_7b=(32, 4096, 32, 32, 11008),
        llama2_13b=(40, 5120, 40, 40, 13824),
        llama2_70b=(80, 8192, 64, 8, 28672),
    ),
    **_sizes(_LLAMA3, _SIZE, llama3_8b=(32, 4096, 32, 8, 14336), llama3_70b=(80, 8192, 64, 8, 28672)),
    **_sizes(
        _LLAMA31,
        _SIZE,
        llama3__1_8b=(32, 4096, 32, 8, 14336),
        llama3__1_70b=(80, 8192, 64, 8, 28672),
        llama3__1_405b=(126, 16384, 128, 8, 53248),
    ),
    **_sizes(_LLAMA32, _SIZE, llama3__2_1b=(16, 2048, 32, 8, 8192), llama3__2_3b=(28, 3072, 24, 8, 8192)),
    **_sizes(_SMOLLM2, _SIZE, smollm2_135m=(30, 576, 9, 3, 1536), smollm2_360m=(32, 960, 15, 5, 2560)),
    **_sizes({**_SMOLLM2, "rope_theta": 1.3e5}, _SIZE, smollm2_1__7b=(24, 2048, 32, 32, 8192)),
    **_sizes(
        {**_QWEN2, "vocab_size": 151936},
        _SIZE,
        qwen2_0__5b=(24, 896, 14, 2, 4864),
        qwen2_1__5b=(28, 1536, 12, 2, 8960),
    ),
    **_sizes(
        {**_QWEN2, "tie_embeddings": False},
        _SIZE,
        qwen2_7b=(28, 3584, 28, 4, 18944),
        qwen2_72b=(80, 8192, 64, 8, 29568),
    ),
    **_sizes(
        _QWEN3,
        _SIZE,
        qwen3_0__6b=(28, 1024, 16, 8, 3072),
        qwen3_1__7b=(28, 2048, 16, 8, 6144),
        qwen3_4b=(36, 2560, 32, 8, 9728),
    ),
    **_sizes(
        {**_QWEN3, "tie_embeddings": False},
        _SIZE,
        qwen3_8b=(36, 4096, 32, 8, 12288),
        qwen3_14b=(40, 5120, 40, 8, 17408),
        qwen3_32b=(64, 5120, 64, 8, 25600),
    ),
    **_sizes(
        _QWEN3_MOE,
        _SIZE + " d_expert",
        qwen3_30b_a3b=(48, 2048, 32, 4, 6144, 768),
        qwen3_235b_a22b=(94, 4096, 64, 4, 12288, 1536),
    ),
    **_sizes(
        _MIXTRAL,
        _SIZE + " d_expert max_seq_len",
        mixtral_8x7b=(32, 4096, 32, 8, 14336, 14336, 32768),
        mixtral_8x22b=(56, 6144, 48, 8, 16384, 16384, 65536),
    ),
    **_sizes(
        _DEEPSEEK_V2,
        _GPT_SIZE + " d_expert n_experts rope_scaling",
        deepseek_v2_lite=(27, 2048, 16, 10944, 1408, 64, {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}),
    ),
    **_sizes(
        {**_DEEPSEEK_V2, "q_rank": 1536, "router_groups": 8, "router_groups_kept": 3, "routed_scale": 16.0},
        _GPT_SIZE + " d_expert n_experts rope_scaling",
        deepseek_v2=(60, 5120, 128, 12288, 1536, 160, _YARN),
    ),
    **_sizes(
        {**_DEEPSEEK, **_LATENT, "vocab_size": 129280, "q_rank": 1536, "n_dense_layers": 3, "rope_scaling": _YARN},
        _GPT_SIZE + " d_expert n_experts top_k router_groups router_groups_kept routed_scale",
        deepseek_v3=(61, 7168, 128, 18432, 2048, 256, 8, 8, 4, 2.5),
    ),
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The config called ``name`` with some fields changed.

    Args:
        name: a key of ``PRESETS``. The tiny and tang sizes, made for recipes, leave ``vocab_size`` to the caller.
        overrides: any fields of ``ModelConfig``.

    Raises:
        ValueError: an unknown preset, an unknown field, a missing vocabulary size, or a shape that cannot be.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model preset '{name}'; valid: {', '.join(sorted(PRESETS))}")
    fields = {**PRESETS[name], **overrides}
    if "vocab_size" not in fields:
        raise ValueError(f"model preset '{name}' needs vocab_size, the tokenizer's")
    return ModelConfig.from_dict(fields)
