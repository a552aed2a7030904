"""Static caches: what earlier tokens leave behind for later ones.

In:  keys and values, or latents, and the position of every token of every row.
Out: everything written so far, as views of one buffer.
Left out: paging and the scheduling of rows (``infer``).

A slot is a position. Rows have their own lengths: prompts are padded on the *right*, the padding writes slots that no
query may see (a query at p sees 0..p), and the tokens generated later overwrite them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from danlu.model.config import ModelConfig


class KVLayer(NamedTuple):
    """One layer's keys and values (B, H, S, D), slots up to the cache's reach."""

    keys: Tensor
    values: Tensor

    def write(self, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``k`` and ``v`` (B, H, T, D) at ``positions`` (B, T); returns all keys and values (B, H, S, D)."""
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]  # B, 1
        self.keys[rows, :, positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, positions] = v.transpose(1, 2).to(self.values.dtype)
        return self.keys.to(k.dtype), self.values.to(v.dtype)


class LatentLayer(NamedTuple):
    """One layer's latents and rotary keys side by side (B, S, R + P), slots up to the cache's reach."""

    entries: Tensor

    def write(self, positions: Tensor, entries: Tensor) -> Tensor:
        """Put ``entries`` (B, T, R + P) at ``positions`` (B, T); returns all entries (B, S, R + P)."""
        rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self.entries[rows, positions] = entries.to(self.entries.dtype)
        return self.entries.to(entries.dtype)


class Cache(Protocol):
    """What ``Decoder.hidden`` and the generator need of a cache.

    Attributes:
        reach: how many slots are read, all by default. Whoever knows the longest row may lower it: attention costs
            follow it, and no position may be reach or more.
    """

    reach: int

    @property
    def capacity(self) -> int:
        """Slots per row."""

    def bytes_per_token(self) -> int:
        """Bytes that one token of one row takes, all layers together."""

    def select(self, rows: Tensor) -> Cache:
        """A new cache with the given rows (indices), in their order."""


class KVCache:
    """Keys and values of every layer, for grouped-query attention: 2 L H D numbers a token."""

    def __init__(self, keys: Tensor, values: Tensor, reach: int | None = None) -> None:
        """Wrap two buffers (L, B, H, S, D); ``new`` makes them."""
        self.keys, self.values = keys, values
        self.reach = keys.shape[3] if reach is None else reach

    @staticmethod
    def new(config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An empty cache of ``batch`` rows of ``capacity`` slots."""
        shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        return KVCache(keys, torch.zeros_like(keys))

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.keys.shape[3]

    def layer(self, index: int) -> KVLayer:
        """The slots of layer ``index`` that are within reach."""
        return KVLayer(self.keys[index, :, :, : self.reach], self.values[index, :, :, : self.reach])

    def bytes_per_token(self) -> int:
        """Bytes that one token of one row takes, all layers together."""
        layers, _, heads, _, dim = self.keys.shape
        return 2 * layers * heads * dim * self.keys.element_size()

    def select(self, rows: Tensor) -> KVCache:
        """A new cache with the given rows (indices), in their order."""
        return KVCache(self.keys.index_select(1, rows), self.values.index_select(1, rows), self.reach)


class LatentCache:
    """Latents and rotary keys of every layer, for latent attention: L (R + P) numbers a token, heads or no heads."""

    def __init__(self, entries: Tensor, reach: int | None = None) -> None:
        """Wrap a buffer (L, B, S, R + P); ``new`` makes it."""
        self.entries = entries
        self.reach = entries.shape[2] if reach is None else reach

    @staticmethod
    def new(config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> LatentCache:
        """An empty cache of ``batch`` rows of ``capacity`` slots."""
        shape = (config.n_layers, batch, capacity, config.kv_rank + config.rope_dim)
        return LatentCache(torch.zeros(shape, dtype=dtype, device=device))

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.entries.shape[2]

    def layer(self, index: int) -> LatentLayer:
        """The slots of layer ``index`` that are within reach."""
        return LatentLayer(self.entries[index, :, : self.reach])

    def bytes_per_token(self) -> int:
        """Bytes that one token of one row takes, all layers together."""
        layers, _, _, width = self.entries.shape
        return layers * width * self.entries.element_size()

    def select(self, rows: Tensor) -> LatentCache:
        """A new cache with the given rows (indices), in their order."""
        return LatentCache(self.entries.index_select(1, rows), self.reach)
