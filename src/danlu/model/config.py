"""The shape of a model: one frozen, flat dataclass for the whole family, GPT-2 to DeepSeek-V3.

In:  numbers and names.
Out: ``ModelConfig``, checked.
Left out: family names (``presets``), files and Hugging Face spellings (``hub``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

_CHOICES = {
    "norm": ("layer", "rms"),
    "norm_placement": ("pre", "post", "sandwich"),
    "positions": ("learned", "rope"),
    "rope_layout": ("half", "interleaved"),
    "attention": ("gqa", "mla"),
    "feedforward": ("mlp", "gated"),
    "activation": ("gelu_tanh", "gelu", "silu"),
    "router_score": ("softmax", "sigmoid"),
    "group_score": ("max", "top2"),
    "balance": ("none", "bias"),
    "quantization": ("none", "int8"),
}

_SCALINGS = ("linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary positions reach further than a model was trained; formulas in ``positions``.

    Attributes:
        kind: ``"linear"`` (all positions divided), ``"llama3"`` (Llama 3.1) or ``"yarn"`` (Peng et al., 2309.00071).
        factor: how many times further.
        original_len: tokens that the model was trained on before.
        low_freq, high_freq: wavelengths between ``original_len`` over these two are blended (llama3).
        beta_fast, beta_slow: turns within ``original_len`` between which dimensions are blended (yarn).
        mscale, mscale_all_dim: DeepSeek's two temperatures (yarn); 0 where a model does not set them.
        attention_factor: factor on cosines and sines (yarn); 0 for the paper's.
        truncate: round the borders of the blend to whole dimensions (yarn).
    """

    kind: str
    factor: float
    original_len: int = 0
    low_freq: float = 1.0
    high_freq: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _SCALINGS:
            raise ValueError(f"model.rope_scaling.kind is '{self.kind}'; valid: {', '.join(_SCALINGS)}")
        if self.factor < 1:
            raise ValueError(f"model.rope_scaling.factor must be at least 1, not {self.factor}")
        if self.kind != "linear" and self.original_len <= 0:
            raise ValueError(f"model.rope_scaling '{self.kind}' needs original_len, the tokens trained on before")
        if self.kind == "llama3" and self.low_freq >= self.high_freq:
            raise ValueError(f"model.rope_scaling.low_freq {self.low_freq} must be below high_freq {self.high_freq}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides a model's shape; formulas in the modules that use the fields."""

    # sizes
    vocab_size: int
    n_layers: int
    d_model: int
    max_seq_len: int
    # an encoder (BERT) sees both ways, tells segments apart and may have a head of classes
    causal: bool = True
    n_segments: int = 0
    n_classes: int = 0
    # norm
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_placement: str = "pre"
    # positions
    positions: str = "rope"
    rope_theta: float = 10000.0
    rope_layout: str = "half"
    rope_scaling: RopeScaling | None = None
    # attention; window 0 sees everything before, and the first n_full_layers do so in any case
    attention: str = "gqa"
    n_heads: int = 8
    n_kv_heads: int = 8
    head_dim: int = 64
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    attn_softcap: float = 0.0  # scores become cap * tanh(score / cap); 0 leaves them
    window: int = 0
    n_full_layers: int = 0
    # multi-head latent attention (DeepSeek-V2, section 2.1); q_rank 0 means no query compression
    q_rank: int = 0
    kv_rank: int = 0
    nope_dim: int = 0
    rope_dim: int = 0
    v_dim: int = 0
    # feed-forward
    feedforward: str = "gated"
    activation: str = "silu"
    d_ff: int = 0
    ffn_bias: bool = False
    # mixture of experts (DeepSeek-V3, section 2.1.2); n_experts 0 means dense
    n_experts: int = 0
    top_k: int = 0
    d_expert: int = 0
    n_shared_experts: int = 0
    n_dense_layers: int = 0
    router_score: str = "sigmoid"
    router_groups: int = 1
    router_groups_kept: int = 1
    group_score: str = "top2"
    norm_topk: bool = True
    routed_scale: float = 1.0
    balance: str = "bias"
    # multi-token prediction (DeepSeek-V3, section 2.2): how many tokens beyond the next are foreseen in training
    n_mtp: int = 0
    # ends of the network: factors on what the table gives and on the logits
    tie_embeddings: bool = True
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    init_std: float = 0.02
    # storage of the weights of the linear layers
    quantization: str = "none"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and not isinstance(value, int):
                raise ValueError(f"model.{field.name} must be a whole number, not {value!r}")
            if field.type == "float" and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise ValueError(f"model.{field.name} must be a number, not {value!r}")
        for name, valid in _CHOICES.items():
            value = getattr(self, name)
            if value not in valid:
                raise ValueError(f"model.{name} is '{value}'; valid: {', '.join(valid)}")
        if self.router_groups < 1 or self.router_groups_kept < 1 or self.rope_theta <= 0:
            raise ValueError("model.router_groups, router_groups_kept and rope_theta must be positive")
        for name in ("vocab_size", "n_layers", "d_model", "max_seq_len", "n_heads", "n_kv_heads", "head_dim", "d_ff"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name} must be positive, not {getattr(self, name)}")
        if self.attention == "gqa" and self.n_heads % self.n_kv_heads:
            raise ValueError(f"model.n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if not self.causal:
            self._check_encoder()
        elif self.n_segments or self.n_classes:
            raise ValueError("model.n_segments and n_classes belong to an encoder, whose model.causal is false")
        if self.n_mtp and (self.quantization != "none" or self.norm_placement != "pre" or self.positions != "rope"):
            raise ValueError("model.n_mtp needs positions 'rope', norm_placement 'pre' and quantization 'none'")
        if self.attention == "mla" and (self.qk_norm or self.window or self.attn_softcap):
            raise ValueError("model.attention 'mla' has neither qk_norm nor window nor attn_softcap")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError("model.rope_scaling needs positions 'rope'")
        if self.window < 0 or self.n_full_layers < 0:
            raise ValueError(f"model.window ({self.window}) and n_full_layers ({self.n_full_layers}) must be 0 or more")
        if self.attention == "mla" and 0 in (self.kv_rank, self.nope_dim, self.rope_dim, self.v_dim):
            raise ValueError("model.attention 'mla' needs kv_rank, nope_dim, rope_dim and v_dim")
        if self.n_experts and not (0 < self.top_k <= self.n_experts and self.d_expert > 0):
            raise ValueError(
                f"model.top_k ({self.top_k}) must be in 1..n_experts ({self.n_experts}), with d_expert set"
            )
        if self.n_experts and self.n_experts % self.router_groups:
            raise ValueError(
                f"model.n_experts ({self.n_experts}) must divide into router_groups ({self.router_groups})"
            )
        if self.n_experts:
            self._check_routing()

    def _check_encoder(self) -> None:
        if self.positions != "learned" or self.n_segments < 1 or self.n_experts or self.window:
            raise ValueError(
                "model.causal false (BERT) needs positions 'learned' and n_segments, no experts, no window"
            )
        if self.attention != "gqa" or self.norm_placement != "post" or not self.tie_embeddings:
            raise ValueError(
                "model.causal false (BERT) needs attention 'gqa', norm_placement 'post' and tied embeddings"
            )

    def _check_routing(self) -> None:
        if self.feedforward != "gated":
            raise ValueError("model.n_experts needs feedforward 'gated': experts are gated networks")
        if self.balance == "bias" and self.router_score != "sigmoid":
            raise ValueError("model.balance 'bias' needs router_score 'sigmoid'; a softmax router has balance 'none'")
        per_group = self.n_experts // self.router_groups
        if not 0 < self.router_groups_kept <= self.router_groups:
            raise ValueError(f"model.router_groups_kept ({self.router_groups_kept}) must be in 1..router_groups")
        if self.group_score == "top2" and self.router_groups_kept < self.router_groups and per_group < 2:
            raise ValueError("model.router_groups leaves fewer than 2 experts per group, whose scores are summed")
        if self.top_k > self.router_groups_kept * per_group:
            raise ValueError(f"model.top_k ({self.top_k}) is more than the experts in the groups kept")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, read back by ``from_dict``."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelConfig:
        """Build from plain data.

        Raises:
            ValueError: an unknown field.
        """
        scaling = data.get("rope_scaling")
        if isinstance(scaling, Mapping):
            data = {**data, "rope_scaling": _build(RopeScaling, scaling, "model.rope_scaling")}
        return _build(ModelConfig, data, "model")


_Shape = TypeVar("_Shape", ModelConfig, RopeScaling)


def _build(kind: type[_Shape], data: Mapping[str, Any], what: str) -> _Shape:
    extra = set(data) - {f.name for f in fields(kind)}
    if extra:
        raise ValueError(f"unknown {what} field '{min(extra)}'")
    return kind(**data)
