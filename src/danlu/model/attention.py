"""Attention: one dispatcher beside its reference, and grouped-query attention (multi-head when groups are of one).

In:  queries, keys and values (B, H, T, D), and a ``Mask`` built once per forward.
Out: mixed values (B, H, T, D).
Left out: latent attention (``mla``), caches (``cache``), dropout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.model.cache import KVLayer, PagedKVLayer
from danlu.model.config import ModelConfig
from danlu.model.norm import RMSNorm
from danlu.model.packed import allowed, attend_packed, borders
from danlu.model.positions import Rope, rotate
from danlu.model.quantized import make_linear

SHARED = -2
"""The document of tokens that every later token of their row may see: what several answers begin with."""
KEY_BLOCK = 4096
"""Keys multiplied at a time: six queries times 16,384 latents of 144 numbers took 4.9 ms at once, 1.1 in blocks."""
FEW_QUERIES = 8
PLAIN_SCORES = 512 * 512  # up to this many scores per head the whole square is faster in bf16 on CPUs than SDPA


class Mask(NamedTuple):
    """Who may look at whom.

    Attributes:
        bias: 0 where a query may see a key and -inf where not, (B or 1, 1, T, S), in the dtype of the scores;
            None means plain causal, T = S, for kernels that know that by themselves.
        borders: where the documents of all rows begin and the last one ends (see ``packed``), for the kernel that keeps
            inside them; None where every row is one document, and where ``bias`` tells.
    """

    bias: Tensor | None
    borders: Tensor | None = None


class Context(NamedTuple):
    """What all layers of one forward share.

    Attributes:
        mask: who may look at whom.
        window: the same for layers with a window; None where no layer has one.
        rope: angle tables, None with learned positions.
        positions: (B, T) place of every token, read by caches only.
    """

    mask: Mask
    window: Mask | None
    rope: Rope | None
    positions: Tensor


def plain_scores(device: torch.device, n_queries: int, n_keys: int) -> bool:
    """Whether ``attend`` computes the whole score matrix: 2 to 2.7 times SDPA in bf16 on CPUs, equal in fp32.

    On a GPU for the few queries of a decoding step: with a mask, SDPA would first repeat all keys for every query head.
    """
    return n_queries <= FEW_QUERIES if device.type == "cuda" else n_queries * n_keys <= PLAIN_SCORES


def causal_mask(
    length: int,
    documents: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    window: int = 0,
    kernel: bool = False,
) -> Mask:
    """The mask of a forward without cache.

    Args:
        length: T.
        documents: (B, T) document of every token; attention stays inside a document, and sees what is ``SHARED``. None:
            one document per row. They may lie elsewhere than the scores: on the CPU, finding borders waits for no GPU.
        dtype: dtype of the scores.
        device: where the scores are.
        window: how many tokens a query sees, itself included; 0 for all before it.
        kernel: whether the attention of this model is one that ``packed`` computes.
    """
    narrow = dtype != torch.float32  # in fp32 SDPA is as fast, and rounds as transformers does
    everything = not 0 < window < length
    if documents is not None and everything and kernel and not bool((documents == SHARED).any()):
        return _packed_mask(documents, device)
    if documents is None and everything and not (narrow and plain_scores(device, length, length)):
        return Mask(None)
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    if not everything:
        seen = seen.triu(1 - window)
    if documents is not None:
        documents = documents.to(device)
        keys = documents[:, None, None, :]
        seen = seen & ((documents[:, None, :, None] == keys) | (keys == SHARED))
    return _mask(seen, dtype)


def _packed_mask(documents: Tensor, device: torch.device) -> Mask:
    """Borders of documents; none where every row is one."""
    ends = borders(documents)
    if len(ends) == len(documents) + 1:
        return Mask(None)
    ends = ends.to(device, non_blocking=True)
    torch._dynamo.maybe_mark_dynamic(ends, 0)  # every batch has another number of documents
    return Mask(None, ends)


def cached_mask(positions: Tensor, n_keys: int, dtype: torch.dtype, window: int = 0) -> Mask:
    """The mask of a forward with cache: a query at position p sees slots 0..p, of a window W the last W of them.

    ``positions`` (B, T).
    """
    slots, last = torch.arange(n_keys, device=positions.device), positions[:, None, :, None]
    seen = slots <= last
    return _mask(seen & (slots > last - window) if window else seen, dtype)


def _mask(seen: Tensor, dtype: torch.dtype) -> Mask:
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return Mask(bias.masked_fill_(~seen, -math.inf))


def attend_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Mask, softcap: float = 0.0) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1) as the formula says it, in fp32."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(groups, dim=1) for x in (k, v))
    bias = mask.bias
    if mask.borders is not None:
        bias = _mask(allowed(mask.borders, q.shape[2]), torch.float32).bias
    if bias is None:
        bias = torch.full((q.shape[2], k.shape[2]), -math.inf, device=q.device).triu(1)
    scores = q.float() @ k.transpose(-1, -2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + bias
    return (scores.softmax(-1) @ v).to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Mask, softcap: float = 0.0) -> Tensor:
    """Scaled dot-product attention; key head j serves query heads j G .. (j + 1) G - 1.

    Args:
        q: (B, H, T, D).
        k: (B, H / G, S, D).
        v: (B, H / G, S, V); V may differ from D.
        scale: factor on the scores.
        mask: who may look at whom.
        softcap: scores become ``cap * tanh(score / cap)`` before the mask (Gemma 2, Grok-1), which no kernel of torch
            does: the whole square of scores is computed. 0 leaves them.

    Returns:
        (B, H, T, V).
    """
    if softcap:
        return _attend_plain(q, k, v, scale, _written_out(mask, q, k), softcap)
    if mask.bias is not None and plain_scores(q.device, q.shape[2], k.shape[2]):
        return _attend_plain(q, k, v, scale, mask.bias)
    width = v.shape[-1]
    if width < q.shape[-1]:  # flash kernels want equal widths; zeros added to v and cut off again change nothing
        v = F.pad(v, (0, q.shape[-1] - width))
    if mask.borders is not None:
        return attend_packed(q, k, v, scale, mask.borders)[..., :width]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask.bias, is_causal=mask.bias is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[..., :width]


def _written_out(mask: Mask, q: Tensor, k: Tensor) -> Tensor:
    """A mask's bias, also of the mask that kernels know by themselves."""
    if mask.bias is not None:
        return mask.bias
    return torch.full((1, 1, q.shape[2], k.shape[2]), -math.inf, dtype=q.dtype, device=q.device).triu(1)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor, softcap: float = 0.0) -> Tensor:
    """Two batched products around a softmax; the query heads of a group are stacked, so keys are never repeated."""
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    stacked = (q * scale).reshape(batch, k.shape[1], groups * length, dim)
    blocks = [slice(start, start + KEY_BLOCK) for start in range(0, k.shape[2], KEY_BLOCK)]
    scores = torch.cat([stacked @ k[:, :, block].transpose(-1, -2) for block in blocks], -1)  # B, H/G, G*T, S
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores.add_(bias if groups == 1 else bias.repeat(1, 1, groups, 1))
    weights = scores.softmax(-1)  # computed in fp32 inside, rounded once
    mixed = weights[..., blocks[0]] @ v[:, :, blocks[0]]
    for block in blocks[1:]:
        mixed = mixed + weights[..., block] @ v[:, :, block]
    return mixed.view(batch, heads, length, v.shape[-1])


class GroupedQueryAttention(nn.Module):
    """Attention with ``n_kv_heads`` key-value heads (Ainslie et al. 2023); multi-head attention when all have one.

    Args:
        config: the model's shape.
        windowed: whether this layer sees ``config.window`` tokens only.
    """

    def __init__(self, config: ModelConfig, windowed: bool = False) -> None:
        super().__init__()
        self.config, self.windowed = config, windowed
        d, dim = config.d_model, config.head_dim
        self.q = make_linear(config, d, config.n_heads * dim, config.qkv_bias)
        self.k = make_linear(config, d, config.n_kv_heads * dim, config.qkv_bias)
        self.v = make_linear(config, d, config.n_kv_heads * dim, config.qkv_bias)
        self.o = make_linear(config, config.n_heads * dim, d, config.out_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(dim, config.norm_eps)
            self.k_norm = RMSNorm(dim, config.norm_eps)

    def forward(self, x: Tensor, context: Context, cache: KVLayer | PagedKVLayer | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with a cache, keys and values are written at ``context.positions`` and read back."""
        q, k, v = (_heads(part(x), self.config.head_dim) for part in (self.q, self.k, self.v))  # B, H, T, D
        if self.config.qk_norm:  # of every head, before its rotation (Qwen3)
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rope is not None:
            q = rotate(q, context.rope, self.config.rope_layout)
            k = rotate(k, context.rope, self.config.rope_layout)
        if cache is not None:
            k, v = cache.write(context.positions, k, v)
        mask = context.window if self.windowed and context.window is not None else context.mask
        config = self.config
        mixed = attend(q, k, v, scale=config.head_dim**-0.5, mask=mask, softcap=config.attn_softcap)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


def _heads(x: Tensor, dim: int) -> Tensor:
    """(B, T, H * D) -> (B, H, T, D), a view."""
    return x.view(*x.shape[:2], -1, dim).transpose(1, 2)
