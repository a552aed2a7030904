"""The decoder: embeddings, blocks, final norm, head. One class for the whole family.

In:  token ids (B, T), optionally positions, documents, a cache.
Out: hidden states, from which come logits (language model) or values (scalar head).
Left out: losses (``losses``), sampling (``infer``), weights on disk (``hub``).
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.model.attention import Context, Mask, cached_mask, causal_mask
from danlu.model.block import Block
from danlu.model.cache import Cache, KVCache, LatentCache
from danlu.model.config import ModelConfig
from danlu.model.frozen import FrozenLinear
from danlu.model.heads import ScalarHead, last_values
from danlu.model.linear import Linear
from danlu.model.moe import MoE, Router
from danlu.model.mtp import Foresight
from danlu.model.norm import make_norm
from danlu.model.packed import fits
from danlu.model.positions import rope_table
from danlu.model.quantized import QuantLinear
from danlu.model.rows import Table


class Hidden(NamedTuple):
    """What a forward through the body gives.

    Attributes:
        states: (B, T, D) after the last norm, in the compute dtype.
        counts: (M, E) tokens per expert in each of the M mixture layers; None in a dense model. They are an output, so
            that micro-batches can be added up and recomputation cannot count twice.
    """

    states: Tensor
    counts: Tensor | None


class Decoder(nn.Module):
    """A decoder-only transformer.

    Args:
        config: its shape.
        head: ``"lm"`` for logits over the vocabulary, ``"scalar"`` for one value per token.

    Attributes:
        compute_dtype: dtype of matrix products and of the residual stream; parameters stay what they are.
    """

    def __init__(self, config: ModelConfig, head: str = "lm") -> None:
        super().__init__()
        if head not in ("lm", "scalar"):
            raise ValueError(f"head is '{head}'; valid: lm, scalar")
        if not config.causal:
            raise ValueError("model.causal is false: a decoder does not see what is to come; see Encoder")
        self.config, self.head_kind = config, head
        self.compute_dtype = torch.float32
        self.embed: nn.Embedding | Table = embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.positions = embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        last = make_norm(config.norm, config.d_model, config.norm_eps)
        self.norm = nn.Identity() if config.norm_placement == "post" else last  # a last block that normed is enough
        if head == "scalar":
            self.score = ScalarHead(config.d_model)
        elif not config.tie_embeddings:
            self.head: Linear | Table = Linear(config.d_model, config.vocab_size, bias=False)
        if head == "lm" and config.n_mtp:
            self.mtp = nn.ModuleList(Foresight(config, config.n_layers + depth) for depth in range(config.n_mtp))
        if not self.embed.weight.is_meta:  # counted or about to be loaded: there are no values to give
            initialise(self)

    @property
    def output_table(self) -> nn.Embedding | nn.Linear | Table:
        """Whose weight turns states into logits: the head, or the embedding when they are tied."""
        assert self.head_kind == "lm", "a scalar head has no output weight"
        return self.embed if self.config.tie_embeddings else self.head

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, D) of ``output_table``; made anew in fp32 if some of its rows are trained."""
        table = self.output_table
        return table.whole(torch.float32) if isinstance(table, Table) else table.weight

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Multiply in ``dtype`` from now on; returns the model."""
        for module in self.modules():
            if isinstance(module, (Decoder, Linear, QuantLinear, FrozenLinear, MoE)):
                module.compute_dtype = dtype
        return self

    def new_cache(
        self, batch: int, capacity: int, dtype: torch.dtype | None = None, foresight: bool = False
    ) -> KVCache | LatentCache:
        """An empty cache of ``batch`` rows of ``capacity`` tokens; by default in the compute dtype.

        ``foresight``: with one more layer, of ``foresee_next``.
        """
        kind = LatentCache if self.config.attention == "mla" else KVCache
        layers, device = self.config.n_layers + foresight, self.embed.weight.device
        return kind.new(self.config, layers, batch, capacity, dtype or self.compute_dtype, device)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Hidden:
        """Run the body.

        Args:
            tokens: (B, T) ids.
            positions: (B, T) place of every token; 0..T-1 by default. With a cache they are also the slots written.
            documents: (B, T) document of every token; attention never crosses documents, but for those tokens that are
                ``attention.SHARED`` by the row. Not together with a cache. May lie on the CPU whatever the model does.
            cache: keys and values of earlier tokens; updated in place. Queries see slots 0..their own position.
        """
        if cache is not None and documents is not None:
            raise ValueError("documents and a cache cannot be used together: a cached row is one document")
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        x = self.embedded(tokens, positions)  # B, T, D
        context = self._context(tokens, positions, documents, cache)
        counts = []
        for i, block in enumerate(self.blocks):
            x, count = block(x, context, None if cache is None else cache.layer(i))
            if count is not None:
                counts.append(count)
        states = self.norm(x)
        if self.config.logit_scale != 1.0:  # here, so that no reader of the output weight has to know
            states = states * self.config.logit_scale
        return Hidden(states, torch.stack(counts) if counts else None)

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, T) ids and places -> what the first block gets, (B, T, D) in the compute dtype."""
        x = self._embedded(tokens)
        if self.config.positions == "learned":
            x = x + F.embedding(positions, self.positions.weight).to(self.compute_dtype)
        return x

    def _embedded(self, tokens: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D) in the compute dtype."""
        x: Tensor = self.embed(tokens).to(self.compute_dtype)
        return x if self.config.embed_scale == 1.0 else x * self.config.embed_scale

    def foresee(
        self, states: Tensor, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> list[Hidden]:
        """States that foresee tokens further ahead, one depth after another.

        At depth k (from 1) place i joins what is known of tokens up to i + k - 1 with token i + k, and its logits are
        of token i + k + 1. The k last places of a row have no such token and are left out; those of a document have
        one of the next, so their targets must not be learnt, and nobody else sees them.

        Args:
            states: (B, T, D) of ``hidden``.
            tokens: (B, T) as given to ``hidden``, like the rest.
            positions: (B, T).
            documents: (B, T).

        Returns:
            For k = 1 .. n_mtp, but not beyond T - 1: states (B, T - k, D) after the depth's norm, and tokens per expert
            (1, E) or None.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        found = []
        for depth in self.mtp:
            if tokens.shape[1] < 2:
                break
            tokens, positions, states = tokens[:, 1:], positions[:, 1:], states[:, :-1]
            documents = None if documents is None else documents[:, :-1]
            context = self._context(tokens, positions, documents, None)
            states, counts = depth(self._embedded(tokens), states, context)
            found.append(Hidden(states, None if counts is None else counts.unsqueeze(0)))
        return found

    def foresee_next(self, states: Tensor, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """The first depth of ``foresee``, with a cache.

        Args:
            states: (B, T, D) of ``hidden``.
            tokens: (B, T) ids of what follows each of them.
            positions: (B, T) places of the states, which are also the slots written.
            cache: with ``foresight``.

        Returns:
            (B, T, D), whose logits are of the token that follows each of ``tokens``.
        """
        context = self._context(tokens, positions, None, cache)
        depth, embeddings = self.mtp[0], self._embedded(tokens)
        foreseen: Tensor = depth(embeddings, states, context, cache.layer(self.config.n_layers))[0]
        return foreseen

    def _context(self, tokens: Tensor, positions: Tensor, documents: Tensor | None, cache: Cache | None) -> Context:
        """Mask and angles: the same in every layer, so built once."""
        config, dtype = self.config, self.compute_dtype
        mla = config.attention == "mla"
        width = config.nope_dim + config.rope_dim if mla else config.head_dim
        kernel = not config.attn_softcap and config.v_dim <= width and fits(tokens.device, dtype, width)

        def mask(window: int) -> Mask:
            if cache is None:
                return causal_mask(tokens.shape[1], documents, dtype, tokens.device, window, kernel)
            return cached_mask(positions, cache.reach, dtype, window)

        whole, window = mask(0), mask(config.window) if config.window else None
        if config.positions != "rope":
            return Context(whole, window, None, positions)
        dim = config.rope_dim if mla else config.head_dim
        rope = rope_table(positions, dim, config.rope_theta, dtype, config.rope_scaling)
        return Context(whole, window, rope, positions)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) in fp32, or, with a scalar head, each row's value (B,) at its last token.

        Args:
            tokens: (B, T) ids, padded on the right.
            lengths: (B,) tokens per row, read by the scalar head; the whole row by default.
        """
        states = self.hidden(tokens).states
        if self.head_kind == "scalar":
            return last_values(self.values(states), lengths)
        return self.logits(states)

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V) in fp32."""
        table = self.output_table
        weight = table.whole(states.dtype) if isinstance(table, Table) else table.weight.to(states.dtype)
        return F.linear(states, weight).float()

    def values(self, states: Tensor) -> Tensor:
        """(B, T, D) -> (B, T) in fp32, by the scalar head."""
        values: Tensor = self.score(states)
        return values

    @torch.no_grad()
    def update_router_bias(self, counts: Tensor, rate: float) -> None:
        """Raise the bias of experts that got too little, lower that of the others (arXiv 2408.15664, algorithm 1).

        Call once per optimizer step. Does nothing when ``config.balance`` is ``"none"``.

        Args:
            counts: (M, E) tokens per expert, summed over micro-batches and ranks; layers of ``mtp`` come last, and
                may be left out.
            rate: size of the step; DeepSeek-V3 took 0.001.
        """
        if self.config.balance == "none":
            return
        routers = [module for module in self.modules() if isinstance(module, Router)]
        load = counts.float()
        step = rate * torch.sign(load.mean(-1, keepdim=True) - load)
        for router, change in zip(routers[: len(step)], step, strict=True):
            assert router.bias is not None, "ModelConfig gives a bias to balance"
            router.bias += change


def embedding(rows: int, width: int) -> nn.Embedding:
    """A table without values yet; ``initialise`` gives them."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give every parameter its first value, the one place that does.

    Matrices and tables are normal with ``init_std``; those that write into the residual stream are divided by
    sqrt(2 L), so that its size does not grow with depth (GPT-2, section 2.3). Norms are one, biases zero.

    Args:
        model: any model; 8-bit weights stay as they are, there is nothing to train in them.
        generator: source of randomness; the global one by default.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    residual = config.init_std / (2 * config.n_layers) ** 0.5
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            last = kind if kind != "weight" else module.rpartition(".")[2]
            std = residual if last in ("o", "down") else config.init_std
            nn.init.normal_(parameter, std=std, generator=generator)
