"""A block: attention and feed-forward around the residual stream.

In:  states (B, T, D) and what all layers share.
Out: states (B, T, D), and tokens per expert where the block is a mixture.
Left out: embeddings and heads (``decoder``, ``encoder``).
"""

from __future__ import annotations

from torch import Tensor, nn

from danlu.model.attention import Context, GroupedQueryAttention
from danlu.model.cache import CacheLayer
from danlu.model.config import ModelConfig
from danlu.model.feedforward import make_dense
from danlu.model.mla import LatentAttention
from danlu.model.moe import MoE
from danlu.model.norm import make_norm


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream.

    Each works on a normed copy of it (``"pre"``, GPT-2 and after), and what it gives may be normed once more
    (``"sandwich"``, Grok-1); or the sum is normed (``"post"``, GPT-1, BERT).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        routed = config.n_experts > 0 and layer >= config.n_dense_layers
        windowed = config.window > 0 and layer >= config.n_full_layers
        self.post, self.sandwich = config.norm_placement == "post", config.norm_placement == "sandwich"
        self.norm1 = make_norm(config.norm, config.d_model, config.norm_eps)
        self.attn = LatentAttention(config) if config.attention == "mla" else GroupedQueryAttention(config, windowed)
        self.norm2 = make_norm(config.norm, config.d_model, config.norm_eps)
        self.ffn = MoE(config) if routed else make_dense(config)
        if self.sandwich:
            self.after1 = make_norm(config.norm, config.d_model, config.norm_eps)
            self.after2 = make_norm(config.norm, config.d_model, config.norm_eps)

    def forward(self, x: Tensor, context: Context, cache: CacheLayer | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), and tokens per expert (E,) where the block is a mixture."""
        if self.post:
            x = self.norm1(x + self.attn(x, context, cache))
        else:
            mixed = self.attn(self.norm1(x), context, cache)
            x = x + (self.after1(mixed) if self.sandwich else mixed)
        out = self.ffn(x if self.post else self.norm2(x))
        counts = None
        if isinstance(self.ffn, MoE):
            out, counts = out
        if self.sandwich:
            out = self.after2(out)
        return self.norm2(x + out) if self.post else x + out, counts
