"""Static caches: what earlier tokens leave behind for later ones.

In:  keys and values, or latents, and the position of every token of every row.
Out: everything written so far: views of one buffer, or blocks of a pool put side by side.
Left out: who gets which row or block (``infer``).

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


class PagedKVLayer(NamedTuple):
    """One layer's pool of blocks (N, H, size, D) of keys and of values, and the blocks of every row in order (B, n)."""

    keys: Tensor
    values: Tensor
    table: Tensor

    def write(self, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``k`` and ``v`` (B, H, T, D) at ``positions`` (B, T); returns all keys and values (B, H, n size, D)."""
        block, place = _locate(self.table, positions, self.keys.shape[2])
        self.keys[block, :, place] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[block, :, place] = v.transpose(1, 2).to(self.values.dtype)
        return self._gather(self.keys).to(k.dtype), self._gather(self.values).to(v.dtype)

    def _gather(self, pool: Tensor) -> Tensor:
        return pool[self.table].transpose(1, 2).flatten(2, 3)  # B, n, H, size, D -> B, H, n size, D


class PagedLatentLayer(NamedTuple):
    """One layer's pool of blocks of latents (N, size, R + P), and the blocks of every row (B, n)."""

    entries: Tensor
    table: Tensor

    def write(self, positions: Tensor, entries: Tensor) -> Tensor:
        """Put ``entries`` (B, T, R + P) at ``positions`` (B, T); returns all entries (B, n size, R + P)."""
        self.entries[_locate(self.table, positions, self.entries.shape[1])] = entries.to(self.entries.dtype)
        return self.entries[self.table].flatten(1, 2).to(entries.dtype)


def _locate(table: Tensor, positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The block and the place inside it, (B, T) each."""
    return table.gather(1, positions // size), positions % size


CacheLayer = KVLayer | LatentLayer | PagedKVLayer | PagedLatentLayer


class Cache(Protocol):
    """What ``Decoder.hidden`` and the generator need of a cache.

    Attributes:
        reach: how many slots are read, all by default. Whoever knows the longest row may lower it: attention costs
            follow it, and no position may be reach or more.
    """

    reach: int

    def layer(self, index: int) -> CacheLayer:
        """Where layer ``index`` writes and what it reads."""


class SlotCache(Cache, Protocol):
    """A cache whose rows are rows of its buffers.

    Attributes:
        buffers: tensors with layers in dimension 0, rows in dimension 1 and slots in dimension -2.
    """

    @property
    def buffers(self) -> tuple[Tensor, ...]: ...  # noqa: D102

    @property
    def capacity(self) -> int:
        """Slots per row."""

    def rows(self, start: int, stop: int, reach: int) -> SlotCache:
        """Some rows of this cache: a view."""

    def paged(self, table: Tensor) -> Cache:
        """This cache as a pool, each row a block: rows of another cache are made of the blocks in ``table`` (B, n)."""

    def bytes_per_token(self) -> int:
        """Bytes that one token of one row takes, all layers together."""

    def select(self, rows: Tensor) -> SlotCache:
        """A new cache with the given rows (indices), in their order."""


class KVCache:
    """Keys and values of every layer, for grouped-query attention: 2 L H D numbers a token."""

    def __init__(self, keys: Tensor, values: Tensor, reach: int | None = None) -> None:
        """Wrap two buffers (L, B, H, S, D); ``new`` makes them."""
        self.keys, self.values = keys, values
        self.reach = keys.shape[3] if reach is None else reach

    @staticmethod
    def new(
        config: ModelConfig, layers: int, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """An empty cache of ``layers`` layers, ``batch`` rows of ``capacity`` slots each."""
        shape = (layers, batch, config.n_kv_heads, capacity, config.head_dim)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        return KVCache(keys, torch.zeros_like(keys))

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Keys and values, (L, B, H, S, D) each."""
        return self.keys, self.values

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.keys.shape[3]

    def rows(self, start: int, stop: int, reach: int) -> KVCache:
        """Some rows of this cache: a view."""
        return KVCache(self.keys[:, start:stop], self.values[:, start:stop], reach)

    def paged(self, table: Tensor) -> PagedKVCache:
        """This cache as a pool of blocks."""
        return PagedKVCache(self.keys, self.values, table)

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
    def new(
        config: ModelConfig, layers: int, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> LatentCache:
        """An empty cache of ``layers`` layers, ``batch`` rows of ``capacity`` slots each."""
        shape = (layers, batch, capacity, config.kv_rank + config.rope_dim)
        return LatentCache(torch.zeros(shape, dtype=dtype, device=device))

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Latents and rotary keys, (L, B, S, R + P)."""
        return (self.entries,)

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.entries.shape[2]

    def rows(self, start: int, stop: int, reach: int) -> LatentCache:
        """Some rows of this cache: a view."""
        return LatentCache(self.entries[:, start:stop], reach)

    def paged(self, table: Tensor) -> PagedLatentCache:
        """This cache as a pool of blocks."""
        return PagedLatentCache(self.entries, table)

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


class PagedKVCache:
    """Rows made of blocks of a pool (Kwon et al. 2023, PagedAttention), each ``size`` slots.

    Args:
        keys, values: the pool, (L, N, H, size, D).
        table: (B, n) the blocks of every row in the order of its tokens.
    """

    def __init__(self, keys: Tensor, values: Tensor, table: Tensor) -> None:
        self.keys, self.values, self.table = keys, values, table
        self.reach = table.shape[1] * keys.shape[3]

    def layer(self, index: int) -> PagedKVLayer:
        """The pool of layer ``index``."""
        return PagedKVLayer(self.keys[index], self.values[index], self.table)


class PagedLatentCache:
    """The same for latents.

    Args:
        entries: the pool, (L, N, size, R + P).
        table: (B, n).
    """

    def __init__(self, entries: Tensor, table: Tensor) -> None:
        self.entries, self.table = entries, table
        self.reach = table.shape[1] * entries.shape[2]

    def layer(self, index: int) -> PagedLatentLayer:
        """The pool of layer ``index``."""
        return PagedLatentLayer(self.entries[index], self.table)
