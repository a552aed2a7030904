"""Multi-token prediction: after the next token the one behind it, and so on (DeepSeek-V3, arXiv 2412.19437, 2.2).

In:  states after the last norm, embeddings of later tokens.
Out: states from which the decoder's own head reads tokens further ahead.
Left out: the loss (``train.language``); drafting with it (``infer``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danlu.model.attention import Context
from danlu.model.block import Block
from danlu.model.cache import CacheLayer
from danlu.model.config import ModelConfig
from danlu.model.linear import Linear
from danlu.model.norm import make_norm


class Foresight(nn.Module):
    """One depth of prediction: ``norm(block(merge[norm(embedding); norm(state)]))``, equations 21 to 23.

    The embedding comes first, as in the released weights; the paper prints it second.

    Args:
        config: the model's shape.
        layer: its place after all layers of the body.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_embed = make_norm(config.norm, config.d_model, config.norm_eps)
        self.norm_state = make_norm(config.norm, config.d_model, config.norm_eps)
        self.merge = Linear(2 * config.d_model, config.d_model, bias=False)
        self.block = Block(config, layer)
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps)

    def forward(
        self, embeddings: Tensor, states: Tensor, context: Context, cache: CacheLayer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) of token i + k and (B, T, D) from depth k - 1 at i -> (B, T, D), and tokens per expert."""
        merged = self.merge(torch.cat([self.norm_embed(embeddings), self.norm_state(states)], dim=-1))
        x, counts = self.block(merged, context, cache)
        return self.norm(x), counts
