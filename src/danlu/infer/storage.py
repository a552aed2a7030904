"""Where the keys and values of answers under way lie: in slots (CPU) or in pages (GPU).

In:  how many tokens an answer may need, and what it has in common with earlier ones.
Out: a cache for the forward of some neighbouring rows.
Left out: which answer gets a row and when (``engine``); the tensors' own layout (``model.cache``).

*Slots*: a row of one buffer per answer, contiguous, so that attention reads it where it lies; what earlier answers left
behind is kept in a pool of blocks and copied. *Pages*: the pool itself, blocks shared between rows and gathered for
attention: on a GPU the copy is cheap and memory is not. Both promise room for a whole answer before it begins: nothing
that has begun is ever thrown out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch

from danlu.infer.blocks import SIZE, BlockManager, digests
from danlu.model import Decoder
from danlu.model.cache import Cache, SlotCache


class Storage(Protocol):
    """Rows, numbered without gaps; all methods but ``fits`` are told only what fits."""

    @property
    def blocks(self) -> BlockManager | None:
        """Of the pool; None where nothing is shared."""

    def fits(self, need: int) -> bool:
        """Whether one more row of ``need`` tokens has room now; always, if there is no other."""

    def open(self, need: int, prompt: Sequence[int], salt: str) -> int:
        """A new last row; returns how many tokens of the prompt are in it already, never all of them."""

    def share(self, source: int, target: int, count: int) -> None:
        """Give ``target`` the first ``count`` tokens of ``source``."""

    def move(self, source: int, target: int, count: int) -> None:
        """Row ``source``, ``count`` tokens of which matter, takes the number ``target``, whose row is forgotten."""

    def close(self) -> None:
        """Forget the last row."""

    def publish(self, row: int, tokens: Sequence[int], salt: str) -> None:
        """Let later prompts find these tokens of a row, all of which have been read."""

    def view(self, start: int, stop: int, reach: int) -> Cache:
        """A cache of some rows for a forward that reads their first ``reach`` tokens."""

    def used(self) -> tuple[int, int]:
        """Tokens that have room reserved, and how many there could be."""


class Slots:
    """A row of one buffer per answer.

    Args:
        model: tells the shape.
        dtype: of keys and values.
        limit_bytes: what rows may take together; a single one may take more.
        pool_bytes: for what finished answers leave behind; 0 keeps nothing.
        expected: rows and tokens of each that the buffer has room for at first.
        foresight: whether the layer that foresees the token after the next has its keys and values here too.
    """

    def __init__(
        self, model: Decoder, dtype: torch.dtype, limit_bytes: int, pool_bytes: int = 0,
        expected: tuple[int, int] = (1, 64), foresight: bool = False,
    ) -> None:  # fmt: skip
        self._new = partial(model.new_cache, dtype=dtype, foresight=foresight)
        self._cache: SlotCache = self._new(*expected)
        per_token = self._new(1, 1).bytes_per_token()
        self._limit = limit_bytes // per_token
        self._needs: list[int] = []
        n_blocks = pool_bytes // (per_token * SIZE)
        self.blocks = BlockManager(n_blocks) if n_blocks else None
        self._pool = self._new(n_blocks, SIZE) if n_blocks else None

    def fits(self, need: int) -> bool:
        """Rows are as long as the longest."""
        rows = len(self._needs) + 1
        return rows == 1 or rows * max(need, *self._needs) <= self._limit

    def open(self, need: int, prompt: Sequence[int], salt: str) -> int:
        """A new last row, with what the pool has of the prompt copied into it."""
        self._needs.append(need)
        self._grow()
        if self.blocks is None:
            return 0
        found = self.blocks.match(digests(prompt[:-1], salt))
        for place, block in enumerate(found):
            self._copy_block(block, len(self._needs) - 1, place, into_pool=False)
        self.blocks.release(found)
        return len(found) * SIZE

    def share(self, source: int, target: int, count: int) -> None:
        """Copy."""
        for buffer in self._cache.buffers:
            buffer[:, target, ..., :count, :] = buffer[:, source, ..., :count, :]

    def move(self, source: int, target: int, count: int) -> None:
        """Copy."""
        self.share(source, target, count)
        self._needs[target] = self._needs[source]

    def close(self) -> None:
        """The buffer stays."""
        self._needs.pop()

    def publish(self, row: int, tokens: Sequence[int], salt: str) -> None:
        """Copy the full blocks that the pool does not know, as long as it has room."""
        if self.blocks is None:
            return
        taken: list[int] = []
        for place, name in enumerate(digests(tokens, salt)):
            if self.blocks.knows(name):
                continue
            if not self.blocks.available:
                break
            taken += self.blocks.take(1)
            self._copy_block(taken[-1], row, place, into_pool=True)
            self.blocks.publish(taken[-1], name)
        self.blocks.release(taken)  # together, so that the end of a sequence goes before its beginning

    def view(self, start: int, stop: int, reach: int) -> Cache:
        """Where they lie."""
        return self._cache.rows(start, stop, reach)

    def used(self) -> tuple[int, int]:
        """Rows times the longest."""
        return len(self._needs) * max(self._needs, default=0), self._limit

    def _grow(self) -> None:
        """A larger buffer if this one is too small, half as wide again if there is room, so that this is seldom."""
        old, rows, length = self._cache, len(self._needs), max(self._needs)
        have = old.buffers[0].shape[1]
        if rows <= have and length <= old.capacity:
            return
        wanted = have if rows <= have else rows * 3 // 2
        self._cache = self._new(max(rows, min(wanted, self._limit // length)), length)
        kept, reach = min(rows - 1, have), min(old.capacity, length)
        for new, before in zip(self._cache.buffers, old.buffers, strict=True):
            new[:, :kept, ..., :reach, :] = before[:, :kept, ..., :reach, :]

    def _copy_block(self, block: int, row: int, place: int, into_pool: bool) -> None:
        assert self._pool is not None
        span = slice(place * SIZE, (place + 1) * SIZE)
        for pool, buffer in zip(self._pool.buffers, self._cache.buffers, strict=True):
            if into_pool:
                pool[:, block] = buffer[:, row, ..., span, :]
            else:
                buffer[:, row, ..., span, :] = pool[:, block]


class Pages:
    """Blocks of a pool, some of them in several rows.

    Args:
        model: tells the shape.
        dtype: of keys and values.
        limit_bytes: of the whole pool, which is taken at once.
        kept: whether finished answers stay findable until their blocks are needed.
        foresight: as of ``Slots``.

    Attributes:
        pool: its tensors.
        padding: a block that nobody reads.
    """

    def __init__(
        self, model: Decoder, dtype: torch.dtype, limit_bytes: int, kept: bool = True, foresight: bool = False
    ) -> None:
        new = partial(model.new_cache, dtype=dtype, foresight=foresight)
        per_token = new(1, 1).bytes_per_token()
        whole = -(-model.config.max_seq_len // SIZE) + 1
        self.blocks = BlockManager(max(limit_bytes // (per_token * SIZE), whole))
        self.pool: SlotCache = new(self.blocks.n_blocks, SIZE)
        self._kept, self._device = kept, model.embed.weight.device
        self.padding = self.blocks.take(1)[0]
        self._rows: list[list[int]] = []
        self._table: torch.Tensor | None = None

    def fits(self, need: int) -> bool:
        """Whether there are blocks for all of it, if nothing can be shared."""
        return blocks_for(need) <= self.blocks.available

    def open(self, need: int, prompt: Sequence[int], salt: str) -> int:
        """A new last row that begins with the blocks that are known."""
        found = self.blocks.match(digests(prompt[:-1], salt)) if self._kept else []
        self._rows.append(found + self.blocks.take(blocks_for(need) - len(found)))
        self._table = None
        return len(found) * SIZE

    def share(self, source: int, target: int, count: int) -> None:
        """Full blocks are shared, the last is copied: both rows will write into it."""
        full = count // SIZE
        row, shared = self._rows[target], self._rows[source][:full]
        for block in shared:
            self.blocks.use(block)
        self.blocks.release(row[:full])
        row[:full] = shared
        if count % SIZE:
            for buffer in self.pool.buffers:
                buffer[:, row[full]] = buffer[:, self._rows[source][full]]
        self._table = None

    def move(self, source: int, target: int, count: int) -> None:
        """The tables change places; the row to be forgotten is then the last to be closed."""
        self._rows[source], self._rows[target] = self._rows[target], self._rows[source]
        self._table = None

    def close(self) -> None:
        """Its blocks have one user less."""
        self.blocks.release(self._rows.pop())
        self._table = None

    def publish(self, row: int, tokens: Sequence[int], salt: str) -> None:
        """Name the full blocks."""
        if self._kept:
            names = digests(tokens, salt)
            for block, name in zip(self._rows[row][: len(names)], names, strict=True):
                self.blocks.publish(block, name)

    def view(self, start: int, stop: int, reach: int) -> Cache:
        """Blocks gathered by table."""
        return self.pool.paged(self.table()[start:stop, : blocks_for(reach)])

    def table(self) -> torch.Tensor:
        """The blocks of every row (R, n); those of short rows are filled up with ``padding``."""
        if self._table is None:
            widest = max(map(len, self._rows))
            filled = [row + [self.padding] * (widest - len(row)) for row in self._rows]
            self._table = torch.tensor(filled, device=self._device)
        return self._table

    def used(self) -> tuple[int, int]:
        """Blocks times their size."""
        return (self.blocks.used - 1) * SIZE, (self.blocks.n_blocks - 1) * SIZE


def blocks_for(tokens: int) -> int:
    """Blocks that so many tokens take."""
    return -(-tokens // SIZE)
