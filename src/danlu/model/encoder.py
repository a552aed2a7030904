"""The encoder: every token sees every other, before and after (BERT, Devlin et al. 2019), from the decoder's parts.

In:  token ids, which segment each belongs to, which are padding.
Out: hidden states; logits of masked tokens, or of classes.
Left out: generation, for which an encoder has no use; next-sentence prediction; the encoder-decoders of the family
(Transformer 2017, BART, T5), which transformers runs.
"""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.model.attention import Context, Mask
from danlu.model.block import Block
from danlu.model.config import ModelConfig
from danlu.model.decoder import Decoder, embedding, initialise
from danlu.model.feedforward import activate
from danlu.model.linear import Linear
from danlu.model.norm import make_norm

ENCODER_HEADS = ("mlm", "classes")


def build(config: ModelConfig, head: str) -> Decoder | Encoder:
    """The model of a shape: an encoder where it sees both ways."""
    return Decoder(config, head) if config.causal else Encoder(config, head)


class MaskedHead(nn.Module):
    """Logits of the token behind a mask: a layer of its own before the tied table, and a bias per token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.dense = Linear(config.d_model, config.d_model)
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(..., D) and the table (V, D) -> (..., V) fp32."""
        x = self.norm(activate(self.activation, self.dense(x)))
        return F.linear(x, table.to(x.dtype)).float() + self.bias.float()


class ClassHead(nn.Module):
    """Logits of classes from the first token's state: ``out(tanh(pool(x)))``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pool = Linear(config.d_model, config.d_model)
        self.out = Linear(config.d_model, config.n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, n_classes) fp32."""
        logits: Tensor = self.out(torch.tanh(self.pool(x[:, 0])))
        return logits.float()


class Encoder(nn.Module):
    """A bidirectional transformer.

    Args:
        config: its shape, with ``causal`` false.
        head: ``"mlm"`` for logits over the vocabulary at every place, ``"classes"`` for logits of ``n_classes``.

    Attributes:
        compute_dtype: dtype of matrix products and of the residual stream; parameters stay what they are.
    """

    def __init__(self, config: ModelConfig, head: str = "mlm") -> None:
        super().__init__()
        if head not in ENCODER_HEADS:
            raise ValueError(f"head is '{head}'; valid: {', '.join(ENCODER_HEADS)}")
        if config.causal:
            raise ValueError("model.causal is true: an encoder sees both ways")
        if head == "classes" and config.n_classes < 1:
            raise ValueError("model.n_classes must be 1 or more for a head of classes")
        self.config, self.head_kind = config, head
        self.compute_dtype = torch.float32
        self.embed = embedding(config.vocab_size, config.d_model)
        self.positions = embedding(config.max_seq_len, config.d_model)
        self.segments = embedding(config.n_segments, config.d_model)
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        if head == "mlm":
            self.masked = MaskedHead(config)
        else:
            self.classes = ClassHead(config)
        if not self.embed.weight.is_meta:
            initialise(self)

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Multiply in ``dtype`` from now on; returns the model."""
        for module in self.modules():
            if isinstance(module, (Encoder, Linear)):
                module.compute_dtype = dtype
        return self

    def hidden(self, tokens: Tensor, segments: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """Run the body.

        Args:
            tokens: (B, T) ids.
            segments: (B, T) which of the texts in a row a token belongs to; all to the first by default.
            real: (B, T) False where a token is padding, which nobody sees.

        Returns:
            (B, T, D) states in the compute dtype; at padding they mean nothing.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        segments = torch.zeros_like(tokens) if segments is None else segments
        x: Tensor = F.embedding(tokens, self.embed.weight) + F.embedding(segments, self.segments.weight)
        x = self.norm((x + F.embedding(places, self.positions.weight)).to(self.compute_dtype))
        context = Context(self._mask(tokens, real), None, None, places)
        for block in self.blocks:
            x, _ = block(x, context)
        return x

    def _mask(self, tokens: Tensor, real: Tensor | None) -> Mask:
        bias = torch.zeros(tokens.shape, dtype=self.compute_dtype, device=tokens.device)
        if real is not None:
            bias = bias.masked_fill(~real, -math.inf)
        return Mask(bias[:, None, None, :].expand(-1, 1, tokens.shape[1], -1))

    def forward(self, tokens: Tensor, segments: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """Logits in fp32: (B, T, V) of the token at every place, or (B, n_classes)."""
        states = self.hidden(tokens, segments, real)
        out: Tensor = self.masked(states, self.embed.weight) if self.head_kind == "mlm" else self.classes(states)
        return out
