"""Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values out of one small latent per token.

In:  activations (B, T, D) and, when decoding, a cache of latents.
Out: mixed values (B, T, D).
Left out: query-key norms and windows, which no model of this kind has.

The same function is computed in two ways. *Expanded*: the latents are multiplied out into keys and values per head;
cheapest per score, used for training and long queries. *Absorbed*: the up-projections are moved to the query and to the
output, so that all heads attend to the cached latents themselves; 3.4 times the arithmetic per score and a fraction of
the memory traffic, used for the few queries of a decode step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from danlu.model.attention import Context, attend
from danlu.model.cache import LatentLayer, PagedLatentLayer
from danlu.model.config import ModelConfig, RopeScaling
from danlu.model.norm import RMSNorm
from danlu.model.positions import Rope, rotate, temperature
from danlu.model.quantized import make_linear

ABSORB_UP_TO = 4  # queries per row; speculative decoding included
LATENT_EPS = 1e-6  # the norms of the latents do not follow ``norm_eps``, here as in Hugging Face


class LatentAttention(nn.Module):
    """MLA with the names of its parts: ``q`` or ``q_a, q_norm, q_b``; ``kv_a, kv_norm, kv_b``; ``o``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, heads = config.d_model, config.n_heads
        self.key_dim = config.nope_dim + config.rope_dim
        self.scale = self.key_dim**-0.5 * _extension(config.rope_scaling)
        if config.q_rank:
            self.q_a = make_linear(config, d, config.q_rank, config.qkv_bias)
            self.q_norm = RMSNorm(config.q_rank, LATENT_EPS)
            self.q_b = make_linear(config, config.q_rank, heads * self.key_dim, False)
        else:
            self.q = make_linear(config, d, heads * self.key_dim, False)
        self.kv_a = make_linear(config, d, config.kv_rank + config.rope_dim, config.qkv_bias)
        self.kv_norm = RMSNorm(config.kv_rank, LATENT_EPS)
        self.kv_b = make_linear(config, config.kv_rank, heads * (config.nope_dim + config.v_dim), False)
        self.o = make_linear(config, heads * config.v_dim, d, config.out_bias)

    def forward(self, x: Tensor, context: Context, cache: LatentLayer | PagedLatentLayer | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with a cache, latents are written at ``context.positions`` and read back."""
        assert context.rope is not None, "latent attention has rotary positions"
        nope, pe = self._queries(x, context.rope)
        entries = self._entries(x, context.rope)  # B, T, R + P
        absorb = cache is not None and x.shape[1] <= ABSORB_UP_TO
        if cache is not None:
            entries = cache.write(context.positions, entries)  # B, S, R + P
        mixed = (self.attend_absorbed if absorb else self.attend_expanded)(nope, pe, entries, context)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out

    def _queries(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Queries without position (B, H, T, N) and with it (B, H, T, P)."""
        q: Tensor = self.q_b(self.q_norm(self.q_a(x))) if self.config.q_rank else self.q(x)
        q = q.view(*q.shape[:2], -1, self.key_dim).transpose(1, 2)
        nope, pe = _split(q, self.config.nope_dim)
        return nope, rotate(pe, rope, self.config.rope_layout)

    def _entries(self, x: Tensor, rope: Rope) -> Tensor:
        """What a token leaves behind: its normed latent and its rotated key, which all heads share (B, T, R + P)."""
        latent, pe = _split(self.kv_a(x), self.config.kv_rank)
        pe = rotate(pe.unsqueeze(1), rope, self.config.rope_layout).squeeze(1)
        return torch.cat([self.kv_norm(latent), pe], dim=-1)

    def attend_expanded(self, nope: Tensor, pe: Tensor, entries: Tensor, context: Context) -> Tensor:
        """Ordinary attention over keys and values multiplied out of the latents; (B, H, T, V)."""
        config = self.config
        latent, key_pe = _split(entries, config.kv_rank)
        kv = self.kv_b(latent)
        kv = kv.view(*kv.shape[:2], config.n_heads, -1).transpose(1, 2)  # B, H, S, N + V
        key_nope, v = _split(kv, config.nope_dim)
        shared = key_pe.unsqueeze(1).expand(-1, config.n_heads, -1, -1)
        q, k = torch.cat([nope, pe], dim=-1), torch.cat([key_nope, shared], dim=-1)
        return attend(q, k, v, scale=self.scale, mask=context.mask)

    def attend_absorbed(self, nope: Tensor, pe: Tensor, entries: Tensor, context: Context) -> Tensor:
        """All heads attend to one: the entries themselves are its keys, their first columns its values (B, H, T, V)."""
        config = self.config
        weight = self.kv_b.dense(nope.dtype).view(config.n_heads, -1, config.kv_rank)  # H, N + V, R
        up_key, up_value = weight[:, : config.nope_dim], weight[:, config.nope_dim :]
        q = torch.cat([nope @ up_key, pe], dim=-1)  # B, H, T, R + P
        keys = entries.unsqueeze(1)  # B, 1, S, R + P
        mixed = attend(q, keys, keys[..., : config.kv_rank], scale=self.scale, mask=context.mask)
        return mixed @ up_value.transpose(1, 2)


def _extension(scaling: RopeScaling | None) -> float:
    """Factor on the scores of a model whose context was extended: the part of YaRN's temperature that also reaches the
    columns without position."""
    if scaling is None or not scaling.mscale_all_dim:
        return 1.0
    return temperature(scaling.factor, scaling.mscale_all_dim) ** 2


def _split(x: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The first columns of ``x`` and the others, as views."""
    return x[..., :first], x[..., first:]
